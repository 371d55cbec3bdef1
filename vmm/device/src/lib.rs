// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device as a vhost-user back end: virtqueues in, engine calls out.
//!
//! [`serve`] is all that a command needs. `chain` checks a descriptor chain, once, before anything is done with it;
//! `backend` takes chains off the rings, asks the [`pinbed_engine::Engine`], and answers; `calls` has those
//! calls of the TEE that may take long; `socket` is the listening socket's life. What a guest does is never an error of this
//! crate: it is answered, and logged.

mod backend;
mod calls;
mod chain;
mod serve;
mod socket;

pub use serve::{Error, serve, serve_until};
