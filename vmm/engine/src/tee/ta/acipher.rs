// SPDX-License-Identifier: Apache-2.0 OR MIT
//! RSA encryption. Not hardened against timing: a guest that measures its own test keys learns nothing.

use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use pinbed_abi::ta::acipher::*;
use pinbed_abi::tee::{
    TEE_ERROR_CIPHERTEXT_INVALID, TEEC_ERROR_BAD_STATE, TEEC_ERROR_GENERIC,
    TEEC_ERROR_NOT_SUPPORTED,
};
use rsa::rand_core::{CryptoRng, Error, OsRng, RngCore};
use rsa::traits::{PaddingScheme, PublicKeyParts};
use rsa::{Oaep, Pkcs1v15Encrypt, RsaPrivateKey, RsaPublicKey};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Acipher::default()),
};

/// Key sizes in bits: GlobalPlatform asks for 256 to 2048 and OP-TEE has up to 4096, which bounds a key's making to seconds.
const KEY_BITS: std::ops::RangeInclusive<u64> = 256..=4096;

/// Longest search for a key, after which the call fails.
const SEARCH: Duration = Duration::from_secs(60);

const NOT_SUPPORTED: Failure = Failure::Code(TEEC_ERROR_NOT_SUPPORTED);

#[derive(Default)]
struct Acipher {
    key: Option<RsaPrivateKey>,
}

impl TrustedApp for Acipher {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        match function {
            GENERATE_KEY => {
                call.expect([Kind::ValueIn, Kind::Unused, Kind::Unused, Kind::Unused])?;
                self.key = Some(generate(call, call.value(0).0)?);
                Ok(())
            }
            ENCRYPT_DECRYPT => {
                use Kind::*;
                call.expect([MemrefIn, MemrefOut, ValueIn, ValueIn])?;
                let bad_state = Failure::Code(TEEC_ERROR_BAD_STATE);
                let key = self.key.as_ref().ok_or(bad_state)?;
                let encrypt = call.value(2).0 as u32 != 0;
                match call.value(3).0 as u32 {
                    ALGORITHM_PKCS1_V1_5 => apply(call, key, encrypt, || Pkcs1v15Encrypt),
                    ALGORITHM_OAEP_SHA1 => apply(call, key, encrypt, Oaep::new::<Sha1>),
                    ALGORITHM_OAEP_SHA224 => apply(call, key, encrypt, Oaep::new::<Sha224>),
                    ALGORITHM_OAEP_SHA256 => apply(call, key, encrypt, Oaep::new::<Sha256>),
                    ALGORITHM_OAEP_SHA384 => apply(call, key, encrypt, Oaep::new::<Sha384>),
                    ALGORITHM_OAEP_SHA512 => apply(call, key, encrypt, Oaep::new::<Sha512>),
                    _ => Err(NOT_SUPPORTED),
                }
            }
            _ => Err(NOT_SUPPORTED),
        }
    }
}

/// Random numbers for the search of a key, whose every candidate begins with one: so this is where a search ends that nobody
/// waits for. The library has no other way to be told.
struct Candidates<'a, 'b> {
    call: &'a Invocation<'b>,
    until: Instant,
}

/// With which a search unwinds.
struct Ended(Failure);

impl RngCore for Candidates<'_, '_> {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        let wanted = self.call.still_wanted();
        let ended = wanted.and(match Instant::now() < self.until {
            true => Ok(()),
            false => Err(Failure::Code(TEEC_ERROR_GENERIC)),
        });
        if let Err(failure) = ended {
            panic::resume_unwind(Box::new(Ended(failure)));
        }
        OsRng.fill_bytes(to);
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(to);
        Ok(())
    }
}

impl CryptoRng for Candidates<'_, '_> {}

/// A new key of so many bits.
pub fn generate(call: &Invocation, bits: u64) -> Result<RsaPrivateKey, Failure> {
    if !KEY_BITS.contains(&bits) {
        return Err(NOT_SUPPORTED);
    }
    let until = Instant::now() + SEARCH;
    let mut candidates = Candidates { call, until };
    let search = AssertUnwindSafe(|| RsaPrivateKey::new(&mut candidates, bits as usize));
    match panic::catch_unwind(search) {
        Ok(key) => key.map_err(|_| NOT_SUPPORTED),
        Err(payload) => match payload.downcast::<Ended>() {
            Ok(ended) => Err(ended.0),
            Err(payload) => panic::resume_unwind(payload),
        },
    }
}

fn apply<P: PaddingScheme>(
    call: &mut Invocation,
    key: &RsaPrivateKey,
    encrypt: bool,
    padding: impl Fn() -> P,
) -> Result<(), Failure> {
    let input = call.memref(0)?;
    if input.size() > key.size() as u64 {
        return Err(BAD_PARAMETERS);
    }
    let input = call.read_all(input, key.size() as u64)?;
    let output = if encrypt {
        // Encryption is random: only what fits is worth making.
        call.make_room(1, key.size() as u64)?;
        RsaPublicKey::from(key)
            .encrypt(&mut OsRng, padding(), &input)
            .map_err(|_| BAD_PARAMETERS)?
    } else {
        key.decrypt(padding(), &input)
            .map_err(|_| Failure::Code(TEE_ERROR_CIPHERTEXT_INVALID))?
    };
    let to = call.make_room(1, output.len() as u64)?;
    call.write(to, &output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    const ALGORITHMS: [u32; 6] = [
        ALGORITHM_PKCS1_V1_5,
        ALGORITHM_OAEP_SHA1,
        ALGORITHM_OAEP_SHA224,
        ALGORITHM_OAEP_SHA256,
        ALGORITHM_OAEP_SHA384,
        ALGORITHM_OAEP_SHA512,
    ];

    fn generate(session: &Session, bits: u64) -> (u32, u32) {
        session
            .invoke(GENERATE_KEY, [value_in(bits, 0), NONE, NONE, NONE])
            .verdict()
    }

    /// As clients do it: ask for the size, then for the bytes.
    fn apply(session: &Session, encrypt: bool, algorithm: u32, bytes: &[u8]) -> Vec<u8> {
        let values = [value_in(encrypt.into(), 0), value_in(algorithm.into(), 0)];
        let from = session.rig.buffer(bytes).all(PARAM_MEMREF_INPUT);
        let null = param(PARAM_MEMREF_OUTPUT, 0, 0, 0);
        let reply = session.invoke(ENCRYPT_DECRYPT, [from, null, values[0], values[1]]);
        let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(reply.verdict(), short);
        let to = session.rig.room(reply.size(1) as usize);
        let memref = to.all(PARAM_MEMREF_OUTPUT);
        let reply = session.invoke(ENCRYPT_DECRYPT, [from, memref, values[0], values[1]]);
        assert_eq!(reply.ok().size(1), to.len());
        session.rig.get(&to)
    }

    #[test]
    fn encrypts_and_decrypts_with_every_padding() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        assert_eq!(generate(&session, 2048), DONE);
        for algorithm in ALGORITHMS {
            let coded = apply(&session, true, algorithm, b"a message");
            assert_eq!(coded.len(), 256);
            assert_eq!(apply(&session, false, algorithm, &coded), b"a message");
            // Not with PKCS1-v1_5, to which one in a hundred random blocks looks well padded.
            let other = match algorithm {
                ALGORITHM_OAEP_SHA1 => ALGORITHM_OAEP_SHA256,
                _ => ALGORITHM_OAEP_SHA1,
            };
            let values = [value_in(0, 0), value_in(other.into(), 0)];
            let from = rig.buffer(&coded).all(PARAM_MEMREF_INPUT);
            let to = rig.room(256).all(PARAM_MEMREF_OUTPUT);
            let reply = session.invoke(ENCRYPT_DECRYPT, [from, to, values[0], values[1]]);
            assert_eq!(reply.result, TEE_ERROR_CIPHERTEXT_INVALID);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let (from, to) = (rig.room(65), rig.room(64));
        let memrefs = [from.all(PARAM_MEMREF_INPUT), to.all(PARAM_MEMREF_OUTPUT)];
        let encrypt = |algorithm: u32| {
            let algorithm = value_in(algorithm.into(), 0);
            let params = [memrefs[0], memrefs[1], value_in(1, 0), algorithm];
            session.invoke(ENCRYPT_DECRYPT, params).result
        };
        assert_eq!(encrypt(ALGORITHM_PKCS1_V1_5), TEEC_ERROR_BAD_STATE);
        for bits in [0, 1, 255, 4097, 1 << 32, u64::MAX] {
            let verdict = generate(&session, bits);
            assert_eq!(verdict, (TEEC_ERROR_NOT_SUPPORTED, TEEC_ORIGIN_TRUSTED_APP));
        }
        assert_eq!(generate(&session, 512), DONE);
        assert_eq!(encrypt(ALGORITHM_PKCS1_V1_5), TEEC_ERROR_BAD_PARAMETERS);
        assert_eq!(encrypt(0), TEEC_ERROR_NOT_SUPPORTED);
    }

    #[test]
    fn a_search_ends_with_its_client() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let call = session.begin(GENERATE_KEY, [value_in(4096, 0), NONE, NONE, NONE]);
        std::thread::scope(|scope| {
            let search = scope.spawn(|| rig.run(call));
            std::thread::sleep(Duration::from_millis(100));
            rig.control(&close_context(1));
            let begin = Instant::now();
            while !search.is_finished() && begin.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(search.is_finished(), "the search goes on");
            assert_eq!(search.join().unwrap().result, TEEC_ERROR_CANCEL);
        });
    }
}
