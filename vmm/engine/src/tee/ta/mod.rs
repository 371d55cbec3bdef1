// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The trusted applications, one file each, and what two of them share. [`pinbed_abi::ta`] says what they do for whom.

mod acipher;
mod aes;
mod aes_ae;
mod curve;
mod digest;
mod ecdh;
mod ecdsa;
mod hello_world;
mod hotp;
mod pin;
mod playback;
mod random;
mod secure_storage;
mod sha;
mod sign_verify;

use pinbed_abi::ta::Uuid;

use super::invocation::{Client, Failure, Invocation, Kind};
use crate::access::Owner;

/// An instance of a trusted application; there is one for each session, made by the call that opens it. It goes away when the
/// session is closed.
///
/// A `Failure::Code` is returned to the client with origin TRUSTED_APP. A `Failure::Panic`, or a real one, ends the instance:
/// GlobalPlatform's *TEE Internal Core API* wants that for many a mistake.
pub trait TrustedApp: Send {
    /// The session is opened. Most take no parameters.
    fn open(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        call.expect([Kind::Unused; 4])
    }

    /// The client calls a function.
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure>;
}

/// What the TEE knows of a trusted application before it runs.
#[derive(Debug)]
pub struct Descriptor {
    /// Its name to clients.
    pub uuid: Uuid,
    /// Whether it takes one session at a time.
    pub single_instance: bool,
    /// Whether it may be given protected memory.
    pub secure_data_path: bool,
    /// Makes an instance.
    pub new: fn() -> Box<dyn TrustedApp>,
}

/// An instance, and what the TEE knows of it.
pub struct Instance {
    /// What it is an instance of.
    pub descriptor: &'static Descriptor,
    /// Who opened its session.
    pub client: Client,
    /// As which it owns protected memory.
    pub owner: Owner,
    /// Itself.
    pub app: Box<dyn TrustedApp>,
}

impl Instance {
    /// For a session of `client`.
    pub fn new(descriptor: &'static Descriptor, client: Client) -> Self {
        Self {
            descriptor,
            client,
            owner: Owner::default(),
            app: (descriptor.new)(),
        }
    }
}

/// All that are built in.
const BUILT_IN: &[Descriptor] = &[
    acipher::DESCRIPTOR,
    aes::DESCRIPTOR,
    ecdh::DESCRIPTOR,
    ecdsa::DESCRIPTOR,
    hello_world::DESCRIPTOR,
    hotp::DESCRIPTOR,
    pin::DESCRIPTOR,
    playback::DESCRIPTOR,
    random::DESCRIPTOR,
    secure_storage::DESCRIPTOR,
    sha::DESCRIPTOR,
    sign_verify::DESCRIPTOR,
];

/// The application of this name.
pub fn find(uuid: &Uuid) -> Option<&'static Descriptor> {
    BUILT_IN.iter().find(|app| app.uuid == *uuid)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All names.
    pub fn uuids() -> impl Iterator<Item = Uuid> {
        BUILT_IN.iter().map(|app| app.uuid)
    }

    #[test]
    fn each_is_found_by_its_name() {
        assert!(uuids().all(|uuid| find(&uuid).is_some_and(|app| app.uuid == uuid)));
        let names: std::collections::BTreeSet<_> = uuids().collect();
        assert_eq!(names.len(), BUILT_IN.len());
    }
}
