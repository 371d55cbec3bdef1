// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's test harness: what a test needs to state what a correct kernel does, and the views of the kernel that it is judged by.
//!
//! Each folder uses those below it only:
//!
//! - [`second`]: a second device beside the one that every test has;
//! - [`module`]: pinbed.ko and the nodes that it brings;
//! - [`video`]: the video node's two queues; [`tee`]: a client of the TEE;
//! - [`memory`]: memory that a buffer can be made of, and what moves it or takes it away;
//! - [`dmabuf`]: dma-bufs from other drivers; [`observe`]: what kernel and device say about memory;
//! - [`harness`]: what every test is given.
//!
//! PID 1 uses the same views of the kernel for the aftermath eye.

pub mod dmabuf;
pub mod harness;
pub mod memory;
pub mod module;
pub mod observe;
pub mod second;
pub mod tee;
pub mod video;
