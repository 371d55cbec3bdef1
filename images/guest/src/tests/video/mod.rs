// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the video nodes do with user memory and buffers, from a single QBUF to v4l2-compliance.

pub mod compliance;
pub mod convert;
pub mod fault;
pub mod memop;
pub mod mplane;
pub mod stream;
pub mod userptr;
