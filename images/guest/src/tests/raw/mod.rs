// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device without the kernel's driver: a driver in this process sends what that one never would.

pub mod calls;
mod frozen;
pub mod hostile;
pub mod jobs;
pub mod order;
pub mod pin;
pub mod protected;
pub mod requests;
pub mod rights;
pub mod stage;
mod tee_requests;
pub mod transport;
