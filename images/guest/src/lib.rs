// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's test harness: what a test needs to say what a correct kernel does, and the eyes that judge it.
//!
//! - [`ctx`]: what every test is given: findings, notes, random data;
//! - [`area`]: memory of every kind a buffer can be made of, on [`mapping`], [`dmabuf`] and [`vgem`];
//! - [`m2m`]: the video node's two queues, with the placement and device eyes in QBUF and DQBUF, on [`v4l2`];
//! - [`disk`]: a real file system;
//! - [`tee`]: a client of the TEE, and [`tee_client`]: as client libraries are one; [`protected`]: memory that only the TEE gets at;
//! - [`taker`]: system calls that take pages of user memory, in an [`attempt`] where they may not come back;
//! - [`device`]: the engine behind the driver's back;
//! - [`pagemap`], [`smaps`], [`cma`], [`zones`], [`vmstat`]: where pages are and who holds them; [`physical`]: what is in them;
//! - [`child`], [`ksm`], [`memory_block`], [`numa`], [`swap`], [`userfault`]: what can happen to memory that is held;
//! - [`progress`]: what a test tells its supervisor, PID 1.
//!
//! PID 1 uses the same views of the kernel for the aftermath eye.

pub mod area;
pub mod attempt;
pub mod child;
pub mod cma;
pub mod ctx;
pub mod device;
pub mod disk;
pub mod dmabuf;
pub mod error;
pub mod extent;
pub mod hugetlb;
pub mod image;
pub mod ksm;
pub mod m2m;
pub mod mapping;
pub mod memory_block;
pub mod module;
pub mod numa;
pub mod pagemap;
pub mod patience;
pub mod physical;
pub mod progress;
pub mod protected;
pub mod setting;
pub mod smaps;
pub mod swap;
pub mod taker;
pub mod tee;
pub mod tee_client;
pub mod userfault;
pub mod v4l2;
pub mod vgem;
pub mod vmstat;
pub mod zones;

pub use error::Error;
