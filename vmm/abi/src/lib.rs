// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What pinbed's parts say to each other, defined once.
//!
//! - [`wire`]: the virtio device's format, between the driver `pinbed.ko` and the engine;
//! - [`tee`]: the TEE queue's part of that format;
//! - [`ta`]: the built-in trusted applications, between the engine and TEE clients;
//! - [`uapi`]: the driver's own ioctls, between the driver and the guest tests;
//! - [`fault`]: the device's faults by name, between the runner and the device's process;
//! - [`frozen`] (feature `report`): how a test and the runner compare guest memory while the guest stands still;
//! - [`report`] (feature `report`): results and plans, between the guest's PID 1 and the runner;
//! - [`trace`] (feature `report`): what of the guest's kernel is traced, between the guest's PID 1 and the runner;
//! - [`shell`] (feature `report`): the streams of a command that runs in the guest for a person.
//!
//! The driver's C header `guest-kernel-config/driver/pinbed_abi.h` is made from [`wire`] and [`uapi`]; a test of this
//! crate fails when the two differ.
#![no_std]

#[cfg(feature = "report")]
extern crate std;

pub mod fault;
#[cfg(feature = "report")]
pub mod frozen;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "report")]
pub mod shell;
pub mod ta;
pub mod tee;
#[cfg(feature = "report")]
pub mod trace;
pub mod uapi;
pub mod wire;
