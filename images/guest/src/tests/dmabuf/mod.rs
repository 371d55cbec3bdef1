// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs: imported into a queue, moved by their exporter, and their mappings handed to calls that pin user memory.

pub mod exporter;
pub mod import;
pub mod mmaps;
pub mod orders;
pub mod taker;
