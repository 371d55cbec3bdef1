// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that a buffer can be made of, and what moves it or takes it away.
//!
//! - [`mapping`]: a mapping of this process; [`area`]: a buffer's window in one, with guard bytes around it;
//! - [`disk`]: files on ext4, with and without DAX; [`fixed`]: fixed buffers of io_uring; [`hugetlb`]: the pool of huge pages; [`bar`]: a PCI device's BAR, which is no memory;
//! - [`reuse`]: pages that were freed and have a new owner;
//! - [`compaction`]: free pages that are put together;
//! - [`ksm`], [`memory_block`], [`numa`], [`swap`], [`userfault`]: merging, offlining, migration, swap-out and user-handled faults;
//! - [`dimm`]: memory that leaves the machine.

pub mod area;
pub mod bar;
pub mod compaction;
pub mod dimm;
pub mod disk;
pub mod fixed;
pub mod hugetlb;
pub mod ksm;
pub mod mapping;
pub mod memory_block;
pub mod numa;
pub mod reuse;
pub mod swap;
pub mod userfault;
