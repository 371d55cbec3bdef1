// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel and the device say about memory.
//!
//! - [`pagemap`], [`smaps`]: the pages behind an address; [`physical`]: the bytes at a physical address;
//! - [`cma`], [`zones`], [`movable`]: regions that long-term pins must stay out of;
//! - [`frame`]: what a page frame is used for now;
//! - [`vmstat`]: counts of pinned and of available pages; [`dma`]: of DMA mappings; [`swiotlb`]: bounce buffers;
//! - [`slab`]: objects of each slab cache; [`mm`]: what a process is charged for;
//! - [`audit`]: who takes user pages; [`release`]: which kernel it is; [`kmsg`]: what it says;
//! - [`device`]: the engine, through /dev/pinbed;
//! - [`extent`]: the pieces of physical memory that all of them speak of.

pub mod audit;
pub mod cma;
pub mod device;
pub mod dma;
pub mod extent;
pub mod frame;
pub mod kmsg;
pub mod mm;
pub mod movable;
pub mod pagemap;
pub mod physical;
pub mod release;
pub mod slab;
pub mod smaps;
pub mod swiotlb;
pub mod vmstat;
pub mod zones;
