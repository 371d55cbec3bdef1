// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device as a vhost-user back end: virtqueues in, engine calls out.
//!
//! [`serve`] is all that a command needs. From the bottom up: `chain` checks a descriptor chain, once, before anything is done with
//! it; `vring` is a ring whose descriptors never block; `ring` takes chains off it and puts answers there; `events` posts events; `life` knows whether the device runs, and has work stop; `calls` has
//! those calls of the TEE that may take long; `backend` asks the [`pinbed_engine::Engine`]; `socket` is the listening socket's life;
//! `inspect` tells a debugger what is attached; `spans` tells a trace what is worked on; `confine` takes from the process what serving does not need.
//! What a guest does is never an error of this crate: it is answered, and logged.

mod backend;
mod calls;
mod chain;
mod confine;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod inspect;
mod life;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod ring;
mod serve;
mod socket;
mod spans;
mod sync;
mod vring;

use pinbed_engine::tee::{Call, MAX_CALLS};
use pinbed_engine::{Answer, Delivery, Engine};
pub use serve::{Error, serve, serve_until};

/// What the host lets the device do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether the guest may have the device misbehave: delay and fail jobs, and abort the process.
    pub allow_sabotage: bool,
    /// Whether the calling thread, and those that serve, get no more rights than they need, for good: no file can be opened, no program
    /// executed, no socket made. For a process that does nothing else.
    pub confined: bool,
    /// How it misbehaves, whatever the guest asks for.
    pub faults: Vec<pinbed_abi::fault::Fault>,
    /// Where a socket listens that tells whoever connects what is attached, as [`pinbed_engine::Engine::describe_holds`] says it.
    pub inspect: Option<std::path::PathBuf>,
}
