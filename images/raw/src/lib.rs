// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A driver for the device in user space, on the crate virtio-drivers: what the kernel's driver never sends can be sent, too.
//!
//! - [`function`]: takes the device's PCI function from the kernel's driver, and gives it back;
//! - [`dma`]: the memory that rings and requests lie in; [`region`]: pieces of it;
//! - [`ring`]: a split virtqueue by hand, for what [`virtio_drivers::queue::VirtQueue`] cannot express.
//!
//! The crate knows nothing of the kernel's memory management: who uses it gives it memory that stays where it is, and says where
//! that is.

pub mod dma;
mod error;
pub mod function;
pub mod region;
pub mod ring;

pub use error::Error;
pub use virtio_drivers;
