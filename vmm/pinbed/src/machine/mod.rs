// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual machine: QEMU and the device process, what they say, and how a run of them ends.

pub mod accel;
pub mod boot;
pub mod environments;
pub mod events;
mod frozen;
pub mod initramfs;
pub mod memory;
pub mod person;
pub mod process;
pub mod qmp;
pub mod save;
pub mod saved;
pub mod slot;
pub mod stall;
pub mod taken;
mod threads;
pub mod tsc;
pub mod unwind;
pub mod vm;
pub mod watch;

/// The guest's memory in MiB unless something else is asked for.
pub const DEFAULT_MEMORY: u64 = 512;
/// The guest's CPUs unless something else is asked for.
pub const DEFAULT_CPUS: u8 = 2;
