// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Digests, HMAC and CMAC.

use ::aes::{Aes128, Aes192, Aes256};
use cmac::Cmac;
use hmac::Hmac;
use pinbed_abi::ta::sha::*;
use pinbed_abi::tee::{TEE_ERROR_MAC_INVALID, TEEC_ERROR_BAD_STATE, TEEC_ERROR_NOT_SUPPORTED};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::digest::digest;
use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Sha::default()),
};

const BAD_STATE: Failure = Failure::Code(TEEC_ERROR_BAD_STATE);
const NOT_SUPPORTED: Failure = Failure::Code(TEEC_ERROR_NOT_SUPPORTED);

/// Bytes of the longest code.
const CODE: u64 = 64;

#[derive(Default)]
struct Sha {
    operation: Option<Operation>,
}

/// What PREPARE made.
struct Operation {
    algorithm: u32,
    key: Vec<u8>,
    /// The message so far, since SET_IV began it.
    message: Option<Box<dyn Mac>>,
}

/// A message authentication code of either generation of the crates.
trait Mac: Send {
    fn update(&mut self, bytes: &[u8]);
    fn finish(self: Box<Self>) -> Vec<u8>;
    fn length(&self) -> u64;
}

struct HashMac<M>(M);
struct CipherMac<M>(M);

impl<M: hmac::Mac + Send> Mac for HashMac<M> {
    fn update(&mut self, bytes: &[u8]) {
        hmac::Mac::update(&mut self.0, bytes);
    }

    fn finish(self: Box<Self>) -> Vec<u8> {
        self.0.finalize().into_bytes().to_vec()
    }

    fn length(&self) -> u64 {
        M::output_size() as u64
    }
}

impl<M: cmac::Mac + Send> Mac for CipherMac<M> {
    fn update(&mut self, bytes: &[u8]) {
        cmac::Mac::update(&mut self.0, bytes);
    }

    fn finish(self: Box<Self>) -> Vec<u8> {
        self.0.finalize().into_bytes().to_vec()
    }

    fn length(&self) -> u64 {
        M::output_size() as u64
    }
}

/// The code's beginning; `None` if the key has a wrong length or the algorithm is none of these.
fn begin(algorithm: u32, key: &[u8]) -> Option<Box<dyn Mac>> {
    fn hmac<M: hmac::Mac + hmac::digest::KeyInit + Send + 'static>(
        key: &[u8],
    ) -> Option<Box<dyn Mac>> {
        let code = <M as hmac::digest::KeyInit>::new_from_slice(key).ok()?;
        Some(Box::new(HashMac(code)))
    }
    fn cmac<M: cmac::Mac + cmac::KeyInit + Send + 'static>(key: &[u8]) -> Option<Box<dyn Mac>> {
        let code = <M as cmac::KeyInit>::new_from_slice(key).ok()?;
        Some(Box::new(CipherMac(code)))
    }
    match (algorithm, key.len()) {
        (HMAC_SHA1, _) => hmac::<Hmac<Sha1>>(key),
        (HMAC_SHA224, _) => hmac::<Hmac<Sha224>>(key),
        (HMAC_SHA256, _) => hmac::<Hmac<Sha256>>(key),
        (HMAC_SHA384, _) => hmac::<Hmac<Sha384>>(key),
        (HMAC_SHA512, _) => hmac::<Hmac<Sha512>>(key),
        (AES_CMAC, 16) => cmac::<Cmac<Aes128>>(key),
        (AES_CMAC, 24) => cmac::<Cmac<Aes192>>(key),
        (AES_CMAC, 32) => cmac::<Cmac<Aes256>>(key),
        _ => None,
    }
}

impl TrustedApp for Sha {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        match function {
            PREPARE => {
                call.expect([ValueIn, ValueIn, ValueIn, Unused])?;
                self.prepare([0, 1, 2].map(|index| call.value(index).0 as u32))
            }
            SET_KEY => {
                let operation = self.operation.as_mut().ok_or(BAD_STATE)?;
                call.expect([MemrefIn, Unused, Unused, Unused])?;
                let key = call.memref(0)?;
                if key.size() != operation.key.len() as u64 {
                    return Err(BAD_PARAMETERS);
                }
                operation.key = call.read_all(key, key.size())?;
                operation.message = None;
                Ok(())
            }
            SET_IV => {
                let operation = self.operation.as_mut().ok_or(BAD_STATE)?;
                call.expect([MemrefIn, Unused, Unused, Unused])?;
                operation.message = begin(operation.algorithm, &operation.key);
                Ok(())
            }
            COMPUTE_MAC => {
                let operation = self.operation.as_mut().ok_or(BAD_STATE)?;
                call.expect([MemrefIn, MemrefOut, Unused, Unused])?;
                operation.update(call)?;
                let length = operation.message.as_ref().map_or(0, |code| code.length());
                // Too little room leaves the operation where it is, with the message taken once.
                let to = call.make_room(1, length)?;
                let code = operation.finish(call)?;
                call.write(to, &code)
            }
            COMPARE_MAC => {
                let operation = self.operation.as_mut().ok_or(BAD_STATE)?;
                call.expect([MemrefIn, MemrefIn, Unused, Unused])?;
                operation.update(call)?;
                let code = operation.finish(call)?;
                let expected = call.memref(1)?;
                let same =
                    expected.size() == code.len() as u64 && call.read_all(expected, CODE)? == code;
                match same {
                    true => Ok(()),
                    false => Err(Failure::Code(TEE_ERROR_MAC_INVALID)),
                }
            }
            COMPUTE_DIGEST => {
                call.expect([MemrefIn, MemrefOut, ValueIn, Unused])?;
                digest(call, call.value(2).0 as u32)
            }
            _ => Err(NOT_SUPPORTED),
        }
    }
}

impl Sha {
    fn prepare(&mut self, [algorithm, size, kind]: [u32; 3]) -> Result<(), Failure> {
        let (of, sizes) = match kind {
            KEY_HMAC_SHA1 => (HMAC_SHA1, 10..=64),
            KEY_HMAC_SHA224 => (HMAC_SHA224, 14..=64),
            KEY_HMAC_SHA256 => (HMAC_SHA256, 24..=128),
            KEY_HMAC_SHA384 => (HMAC_SHA384, 32..=128),
            KEY_HMAC_SHA512 => (HMAC_SHA512, 32..=128),
            KEY_AES => (AES_CMAC, 16..=32),
            _ => return Err(BAD_PARAMETERS),
        };
        self.operation = None;
        if !sizes.contains(&size) {
            return Err(NOT_SUPPORTED);
        }
        let key = vec![0; size as usize];
        begin(algorithm, &key).ok_or(NOT_SUPPORTED)?;
        if algorithm != of {
            return Err(Failure::Panic("a key of another algorithm"));
        }
        self.operation = Some(Operation {
            algorithm,
            key,
            message: None,
        });
        Ok(())
    }
}

impl Operation {
    /// Goes on with the first parameter.
    fn update(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        let no_message = Failure::Panic("no message was begun");
        let code = self.message.as_mut().ok_or(no_message)?;
        let message = call.memref(0)?;
        call.each_chunk(message, |_, _, bytes| {
            code.update(bytes);
            Ok(())
        })
    }

    /// Goes on with the first parameter, and ends.
    fn finish(&mut self, call: &mut Invocation) -> Result<Vec<u8>, Failure> {
        self.update(call)?;
        Ok(self.message.take().map(Mac::finish).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    fn prepare(session: &Session, [algorithm, size, kind]: [u32; 3]) -> u32 {
        let [algorithm, size, kind] = [algorithm, size, kind].map(|a| value_in(a.into(), 0));
        let params = [algorithm, size, kind, NONE];
        session.invoke(PREPARE, params).result
    }

    /// Key and message, begun.
    fn begin(session: &Session, algorithm: [u32; 3], key: &[u8]) {
        assert_eq!(prepare(session, algorithm), TEEC_SUCCESS);
        let key = session.rig.buffer(key).all(PARAM_MEMREF_INPUT);
        session.invoke(SET_KEY, [key, NONE, NONE, NONE]).ok();
        let iv = param(PARAM_MEMREF_INPUT, 0, 0, 0);
        session.invoke(SET_IV, [iv, NONE, NONE, NONE]).ok();
    }

    fn code(session: &Session, message: &[u8], room: usize) -> Reply {
        let from = session.rig.buffer(message).all(PARAM_MEMREF_INPUT);
        let to = session.rig.room(room).all(PARAM_MEMREF_OUTPUT);
        session.invoke(COMPUTE_MAC, [from, to, NONE, NONE])
    }

    /// Code of "message" twice, as OpenSSL has it: `printf messagemessage | openssl dgst -sha256 -mac HMAC -macopt hexkey:a5a5…`.
    const CODES: [([u32; 3], &str); 6] = [
        (
            [HMAC_SHA1, 64, KEY_HMAC_SHA1],
            "3b179b81dcabf15032b253cb982c9c6cbf29ce2d",
        ),
        (
            [HMAC_SHA224, 64, KEY_HMAC_SHA224],
            "b8cae6ae4e2f125f15fec62f3f03c20fc9af20488aa474a665b531ac",
        ),
        (
            [HMAC_SHA256, 128, KEY_HMAC_SHA256],
            "df6e6ab04b8869b23129a83f6b63c7bd954912d915b7fe4b1f6e2a7dab85474f",
        ),
        (
            [HMAC_SHA384, 128, KEY_HMAC_SHA384],
            "ba1b14a0e77add53b654f224d5274cbb2f4c67d177589e77f3ac8a80b8504c192a990bf4201c9f01e36c0eed181e2fbc",
        ),
        (
            [HMAC_SHA512, 128, KEY_HMAC_SHA512],
            "50c78789e6d6e32c98a6b4c5d7a4f25456a80ba98a1ea0186b813ff56e2a9cedac49a20e3e3a890672c8e6d26b00ed44b2255ad994ac63380c79a6fe06699cd3",
        ),
        ([AES_CMAC, 16, KEY_AES], "1ecee010652738e8c6dfbf7bd7d2de51"),
    ];

    #[test]
    fn gives_the_codes_that_another_implementation_gives() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        for (algorithm, wanted) in CODES {
            let wanted = hex(wanted);
            let key = vec![0xa5; algorithm[1] as usize];
            begin(&session, algorithm, &key);
            let from = rig.buffer(b"message").all(PARAM_MEMREF_INPUT);
            let to = rig.room(64);
            let memref = to.all(PARAM_MEMREF_OUTPUT);
            let reply = session.invoke(COMPUTE_MAC, [from, memref, NONE, NONE]);
            assert_eq!(reply.ok().size(1), wanted.len() as u64);
            assert_eq!(rig.get(&to)[..wanted.len()], wanted);
            for (change, result) in [(0, TEEC_SUCCESS), (1, TEE_ERROR_MAC_INVALID)] {
                begin(&session, algorithm, &key);
                let mut expected = wanted.clone();
                expected[3] ^= change;
                let expected = rig.buffer(&expected).all(PARAM_MEMREF_INPUT);
                let reply = session.invoke(COMPARE_MAC, [from, expected, NONE, NONE]);
                assert_eq!(reply.result, result);
            }
        }
    }

    /// Digest of "message", as OpenSSL has it; SHAKE's first 64 bytes.
    const DIGESTS: [(u32, &str); 11] = [
        (SHA1, "6f9b9af3cd6e8b8a73c2cdced37fe9f59226e27d"),
        (
            SHA224,
            "ff51ddfabb180148583ba6ac23483acd2d049e7c4fdba6a891419320",
        ),
        (
            SHA256,
            "ab530a13e45914982b79f9b7e3fba994cfd1f3fb22f71cea1afbf02b460c6d1d",
        ),
        (
            SHA384,
            "353eb7516a27ef92e96d1a319712d84b902eaa828819e53a8b09af7028103a9978ba8feb6161e33c3619c5da4c4666a5",
        ),
        (
            SHA512,
            "f8daf57a3347cc4d6b9d575b31fe6077e2cb487f60a96233c08cb479dbf31538cc915ec6d48bdbaa96ddc1a16db4f4f96f37276cfcb3510b8246241770d5952c",
        ),
        (
            SHA3_224,
            "29b8cdd610daa7f31a05f8855c403ec4e11133903600d3685f25b5bd",
        ),
        (
            SHA3_256,
            "7f4a23d90de90d100754f82d6c14073b7fb466f76fd1f61b187b9f39c3ffd895",
        ),
        (
            SHA3_384,
            "cff0a8cb36aa0dea0c14a6396359508979b24ed4aa9ff1fda428d26ea8f7309612f6c4e441042a20b5fde32e11e1d9b9",
        ),
        (
            SHA3_512,
            "6b68516bdfd85cb5b6cdfa7ce6994ae8e59053997bcad939dd79f254dea783e7b93a82d4b4a7299029c62e009f9f130dfd42825527984159c783447a9ec142cb",
        ),
        (
            SHAKE128,
            "91704d0d76e0c4e208da3095d9722c8752b06b07bdcb0998d15fa053207a20995663c21d3f11c91edcded74381d19e02c0bfe2d8e121be98d2f23c2d3287e304",
        ),
        (
            SHAKE256,
            "8616e1e4cfd8b5f7d92d43d86e1b1451a2a65af864fcb126c2660ab34651b17530d6ba2a4665f19df06225b126d13eed91d50de7b9cb65f33a46aed36c7dc5e8",
        ),
    ];

    #[test]
    fn gives_the_digests_that_another_implementation_gives() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let from = rig.buffer(b"message").all(PARAM_MEMREF_INPUT);
        for (algorithm, wanted) in DIGESTS {
            let wanted = hex(wanted);
            let to = rig.room(64);
            let params = [
                from,
                to.all(PARAM_MEMREF_OUTPUT),
                value_in(algorithm.into(), 0),
                NONE,
            ];
            let reply = session.invoke(COMPUTE_DIGEST, params);
            assert_eq!(reply.ok().size(1), wanted.len() as u64);
            assert_eq!(rig.get(&to)[..wanted.len()], wanted, "{algorithm:#x}");
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let key = |length| rig.room(length).all(PARAM_MEMREF_INPUT);
        for function in [SET_KEY, SET_IV] {
            let reply = session.invoke(function, [key(16), NONE, NONE, NONE]);
            assert_eq!(reply.result, TEEC_ERROR_BAD_STATE);
        }
        assert_eq!(code(&session, b"ab", 64).result, TEEC_ERROR_BAD_STATE);
        for (parts, wanted) in [
            ([HMAC_SHA1, 64, 6], TEEC_ERROR_BAD_PARAMETERS),
            ([HMAC_SHA1, 9, KEY_HMAC_SHA1], TEEC_ERROR_NOT_SUPPORTED),
            ([HMAC_SHA1, 65, KEY_HMAC_SHA1], TEEC_ERROR_NOT_SUPPORTED),
            ([AES_CMAC, 17, KEY_AES], TEEC_ERROR_NOT_SUPPORTED),
            ([SHA256, 64, KEY_HMAC_SHA256], TEEC_ERROR_NOT_SUPPORTED),
        ] {
            assert_eq!(prepare(&session, parts), wanted, "{parts:?}");
        }
        begin(&session, [HMAC_SHA256, 32, KEY_HMAC_SHA256], &[1; 32]);
        let short = session.invoke(SET_KEY, [key(31), NONE, NONE, NONE]);
        assert_eq!(short.result, TEEC_ERROR_BAD_PARAMETERS);
        let short = code(&session, b"ab", 31);
        assert_eq!((short.result, short.size(1)), (TEEC_ERROR_SHORT_BUFFER, 32));
        code(&session, b"ab", 32).ok();
        // GlobalPlatform has the application panic where no message was begun, and where a key is of another kind.
        assert_eq!(code(&session, b"ab", 32).result, TEEC_ERROR_TARGET_DEAD);
        let session = rig.open(1, UUID);
        let panicked = prepare(&session, [HMAC_SHA256, 64, KEY_HMAC_SHA1]);
        assert_eq!(panicked, TEEC_ERROR_TARGET_DEAD);
    }
}
