// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE: calls, and memory registered with it.

pub mod calls;
pub mod client;
pub mod dirty;
pub mod hold;
pub mod input;
pub mod kinds;
pub mod memory;
pub mod place;
pub mod race;
pub mod stage;
