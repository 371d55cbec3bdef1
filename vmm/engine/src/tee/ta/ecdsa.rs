// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ECDSA: digests, keys, signatures.

use pinbed_abi::ta::ecdsa::*;
use pinbed_abi::ta::sha;
use pinbed_abi::tee::{TEEC_ERROR_BAD_STATE, TEEC_ERROR_GENERIC};

use super::curve::{self, Curve, KeyPair};
use super::digest::digest;
use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Ecdsa::default()),
};

/// Bytes of the longest digest.
const DIGEST: u64 = 64;

const BAD_STATE: Failure = Failure::Code(TEEC_ERROR_BAD_STATE);

#[derive(Default)]
struct Ecdsa {
    algorithm: u32,
    key: Option<Box<dyn KeyPair>>,
}

/// Hash and curve of an algorithm.
fn parts(algorithm: u32) -> Result<(u32, Curve), Failure> {
    match algorithm {
        ALGORITHM_SHA1 => Ok((sha::SHA1, Curve::P192)),
        ALGORITHM_SHA224 => Ok((sha::SHA224, Curve::P224)),
        ALGORITHM_SHA256 => Ok((sha::SHA256, Curve::P256)),
        ALGORITHM_SHA384 => Ok((sha::SHA384, Curve::P384)),
        ALGORITHM_SHA512 => Ok((sha::SHA512, Curve::P521)),
        _ => Err(BAD_PARAMETERS),
    }
}

impl TrustedApp for Ecdsa {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        match function {
            COMPUTE_DIGEST => {
                call.expect([MemrefIn, MemrefOut, ValueIn, Unused])?;
                self.algorithm = call.value(2).0 as u32;
                let (hash, _) = parts(self.algorithm)?;
                digest(call, hash)
            }
            GENERATE_KEY => {
                call.expect([Unused; 4])?;
                let (_, curve) = parts(self.algorithm)?;
                self.key = Some(curve::generate(curve));
                Ok(())
            }
            SIGN_VERIFY_DIGEST => {
                call.expect([MemrefIn, MemrefOut, Unused, Unused])?;
                let key = self.key.as_ref().ok_or(BAD_STATE)?;
                let digest = call.memref(0)?;
                if digest.size() > DIGEST {
                    return Err(BAD_PARAMETERS);
                }
                let digest = call.read_all(digest, DIGEST)?;
                let signature = key.sign(&digest).ok_or(BAD_PARAMETERS)?;
                if !key.verify(&digest, &signature) {
                    return Err(Failure::Code(TEEC_ERROR_GENERIC));
                }
                let to = call.make_room(1, signature.len() as u64)?;
                call.write(to, &signature)
            }
            _ => Err(BAD_PARAMETERS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    fn digest(session: &Session, algorithm: u32, message: &[u8], room: usize) -> (u32, Vec<u8>) {
        let from = session.rig.buffer(message).all(PARAM_MEMREF_INPUT);
        let to = session.rig.room(room);
        let memref = to.all(PARAM_MEMREF_OUTPUT);
        let algorithm = value_in(algorithm.into(), 0);
        let reply = session.invoke(COMPUTE_DIGEST, [from, memref, algorithm, NONE]);
        let mut digest = session.rig.get(&to);
        digest.truncate(reply.size(1) as usize);
        (reply.result, digest)
    }

    fn sign(session: &Session, digest: &[u8], room: usize) -> (u32, Vec<u8>) {
        let from = session.rig.buffer(digest).all(PARAM_MEMREF_INPUT);
        let to = session.rig.room(room);
        let memref = to.all(PARAM_MEMREF_OUTPUT);
        let reply = session.invoke(SIGN_VERIFY_DIGEST, [from, memref, NONE, NONE]);
        let mut signature = session.rig.get(&to);
        signature.truncate(reply.size(1) as usize);
        (reply.result, signature)
    }

    #[test]
    fn signs_with_every_algorithm() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        for (algorithm, length, signed) in [
            (ALGORITHM_SHA1, 20, 48),
            (ALGORITHM_SHA224, 28, 56),
            (ALGORITHM_SHA256, 32, 64),
            (ALGORITHM_SHA384, 48, 96),
            (ALGORITHM_SHA512, 64, 132),
        ] {
            let (result, digest) = digest(&session, algorithm, b"hello world", 64);
            assert_eq!((result, digest.len()), (TEEC_SUCCESS, length));
            session.invoke(GENERATE_KEY, NO_PARAMS).ok();
            let (result, signature) = sign(&session, &digest, 512);
            assert_eq!((result, signature.len()), (TEEC_SUCCESS, signed));
            let (_, another) = sign(&session, &digest, 512);
            assert_ne!(signature, another);
        }
    }

    /// The curves' own verification takes what this signs, and nothing else.
    #[test]
    fn signatures_are_of_their_digest() {
        for curve in [
            Curve::P192,
            Curve::P224,
            Curve::P256,
            Curve::P384,
            Curve::P521,
        ] {
            let (key, other) = (curve::generate(curve), curve::generate(curve));
            let digest = [7; 64];
            let signature = key.sign(&digest).unwrap();
            assert!(key.verify(&digest, &signature), "{curve:?}");
            assert!(!other.verify(&digest, &signature), "{curve:?}");
            let mut changed = signature.clone();
            changed[5] ^= 1;
            assert!(!key.verify(&digest, &changed), "{curve:?}");
            let mut longer = digest;
            longer[0] ^= 1;
            assert!(!key.verify(&longer, &signature), "{curve:?}");
            assert!(!key.verify(&digest, &signature[1..]), "{curve:?}");
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let keyless = session.invoke(GENERATE_KEY, NO_PARAMS);
        assert_eq!(keyless.result, TEEC_ERROR_BAD_PARAMETERS);
        assert_eq!(sign(&session, &[1; 32], 64).0, TEEC_ERROR_BAD_STATE);
        let (unknown, _) = digest(&session, 0x7000_0042, b"ab", 64);
        assert_eq!(unknown, TEEC_ERROR_BAD_PARAMETERS);
        let (short, _) = digest(&session, ALGORITHM_SHA256, b"ab", 31);
        assert_eq!(short, TEEC_ERROR_SHORT_BUFFER);
        session.invoke(GENERATE_KEY, NO_PARAMS).ok();
        for (length, room, wanted) in [
            (32, 63, TEEC_ERROR_SHORT_BUFFER),
            (65, 64, TEEC_ERROR_BAD_PARAMETERS),
            (15, 64, TEEC_ERROR_BAD_PARAMETERS),
        ] {
            assert_eq!(sign(&session, &vec![1; length], room).0, wanted, "{length}");
        }
    }
}
