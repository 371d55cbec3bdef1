// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device without the kernel's driver: a driver in this process sends what that one never would.

pub mod engines;
mod frozen;
pub mod hostile;
pub mod order;
pub mod pin;
pub mod requests;
pub mod rights;
pub mod stage;
pub mod transport;
