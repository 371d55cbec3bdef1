// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Clients of the TEE.
//!
//! - [`client`]: the ioctls; [`libteec`]: the usual client library's sequence of them;
//! - [`protected`]: memory that only the TEE can access.

pub mod client;
pub mod libteec;
pub mod protected;
