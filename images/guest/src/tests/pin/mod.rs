// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which memory may be pinned: the pin matrix, and where long-term pins must not be.

pub mod dirty;
pub mod fixed;
pub mod fresh;
pub mod kinds;
pub mod longterm;
pub mod memory;
pub mod udmabuf;
