// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The mailbox of a test that has the runner compare guest memory while the guest stands still.
//!
//! The test asks for it by [`Message::Freeze`] with the mailbox's physical address. From then on both sides write the mailbox, in turns that
//! [`Mailbox::phase`] tells:
//!
//! | phase | who writes it, and what it says |
//! |---|---|
//! | [`PHASE_ASKED`] | the test, before it asks |
//! | [`PHASE_HELD`] | the runner: the device process is stopped, and a notification is not heard yet |
//! | [`PHASE_READY`] | the test: requests are in the rings, and the device is notified |
//! | [`PHASE_DONE`] | the runner: QEMU was stopped, the device has done what there was to do, and all guest memory was compared |
//! | [`PHASE_FAILED`] | the runner: it could not be done |
//!
//! While QEMU is stopped only the device can write guest memory, so every byte that differs was written by the device.
//!
//! [`Message::Freeze`]: crate::report::Message::Freeze

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// See the module.
pub const PHASE_ASKED: u32 = 1;
/// See the module.
pub const PHASE_HELD: u32 = 2;
/// See the module.
pub const PHASE_READY: u32 = 3;
/// See the module.
pub const PHASE_DONE: u32 = 4;
/// See the module.
pub const PHASE_FAILED: u32 = 5;

/// Ranges of each kind that a mailbox has room for.
pub const RANGES: usize = 100;

/// A range of physical addresses.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Range {
    /// Its first byte.
    pub address: U64,
    /// Bytes.
    pub length: U64,
}

/// See the module. It lies within one page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Mailbox {
    /// `PHASE_…`.
    pub phase: U32,
    /// The test: how many of [`Mailbox::allowed`] there are.
    pub allowed_count: U32,
    /// The runner: bytes of guest memory that were compared.
    pub compared: U64,
    /// The runner: bytes within [`Mailbox::allowed`] that differ.
    pub inside: U64,
    /// The runner: bytes elsewhere that differ.
    pub outside: U64,
    /// The test: what the device may write.
    pub allowed: [Range; RANGES],
    /// The runner: the first bytes elsewhere that differ. What is left over has length 0.
    pub found: [Range; RANGES],
}
