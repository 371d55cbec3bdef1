// SPDX-License-Identifier: Apache-2.0 OR MIT
//! AES in modes ECB, CBC and CTR, without padding; CCM and GCM are [`aes_ae`]'s.

use ::aes::{Aes128, Aes256};
use cipher::consts::U16;
use cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt,
    BlockSizeUser, KeyInit, KeyIvInit, StreamCipher,
};
use ctr::Ctr128BE;
use pinbed_abi::ta::aes::{
    ALGORITHM_CBC, ALGORITHM_CCM, ALGORITHM_CTR, ALGORITHM_ECB, ALGORITHM_GCM, AUTHENC, CIPHER,
    MODE_DECODE, MODE_ENCODE, PREPARE, SET_IV, SET_KEY, UUID,
};
use pinbed_abi::tee::{TEE_ERROR_MAC_INVALID, TEEC_ERROR_BAD_STATE, TEEC_ERROR_NOT_SUPPORTED};

use super::{Descriptor, TrustedApp, aes_ae};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Aes::default()),
};

const BLOCK: usize = 16;

/// Bytes of a message that is authenticated as a whole.
const MESSAGE_MAX: u64 = 16 << 20;

/// What PREPARE chose.
#[derive(Clone, Copy)]
struct Mode {
    algorithm: u32,
    encode: bool,
}

impl Mode {
    fn authenticates(self) -> bool {
        matches!(self.algorithm, ALGORITHM_CCM | ALGORITHM_GCM)
    }
}

#[derive(Default)]
struct Aes {
    mode: Option<Mode>,
    key: Vec<u8>,
    stream: Option<Stream>,
}

/// A message on its way through the cipher.
struct Stream {
    cipher: Box<dyn Cipher>,
    /// Bytes that wait for the rest of their block; never a whole block.
    rest: Vec<u8>,
    /// A call ended in the middle of its work, so how far the message is nobody knows.
    broken: bool,
}

trait Cipher: Send {
    /// Bytes that it takes at a time.
    fn unit(&self) -> usize {
        BLOCK
    }
    /// Goes on with a whole number of units, in place.
    fn apply(&mut self, bytes: &mut [u8]);
}

struct Encrypt<M>(M);
struct Decrypt<M>(M);
struct Keystream<M>(M);

impl<M: BlockModeEncrypt + BlockSizeUser<BlockSize = U16> + Send> Cipher for Encrypt<M> {
    fn apply(&mut self, bytes: &mut [u8]) {
        self.0.encrypt_blocks(Array::slice_as_chunks_mut(bytes).0);
    }
}

impl<M: BlockModeDecrypt + BlockSizeUser<BlockSize = U16> + Send> Cipher for Decrypt<M> {
    fn apply(&mut self, bytes: &mut [u8]) {
        self.0.decrypt_blocks(Array::slice_as_chunks_mut(bytes).0);
    }
}

impl<M: StreamCipher + Send> Cipher for Keystream<M> {
    fn unit(&self) -> usize {
        1
    }

    fn apply(&mut self, bytes: &mut [u8]) {
        self.0.apply_keystream(bytes);
    }
}

/// The cipher, or `None` if key or IV have a wrong length, or the algorithm takes none.
fn cipher<C>(mode: Mode, key: &[u8], iv: &[u8]) -> Option<Box<dyn Cipher>>
where
    C: KeyInit
        + BlockCipherEncrypt
        + BlockCipherDecrypt
        + BlockSizeUser<BlockSize = U16>
        + Send
        + 'static,
{
    Some(match (mode.algorithm, mode.encode) {
        (ALGORITHM_CBC, true) => {
            Box::new(Encrypt(cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?))
        }
        (ALGORITHM_CBC, false) => {
            Box::new(Decrypt(cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?))
        }
        (ALGORITHM_CTR, _) => Box::new(Keystream(Ctr128BE::<C>::new_from_slices(key, iv).ok()?)),
        (ALGORITHM_ECB, true) if iv.is_empty() => {
            Box::new(Encrypt(ecb::Encryptor::<C>::new_from_slice(key).ok()?))
        }
        (ALGORITHM_ECB, false) if iv.is_empty() => {
            Box::new(Decrypt(ecb::Decryptor::<C>::new_from_slice(key).ok()?))
        }
        _ => return None,
    })
}

impl TrustedApp for Aes {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        match function {
            PREPARE => self.prepare(call),
            SET_KEY => self.set_key(call),
            SET_IV => self.set_iv(call),
            CIPHER => self.cipher(call),
            AUTHENC => self.authenc(call),
            _ => Err(Failure::Code(TEEC_ERROR_NOT_SUPPORTED)),
        }
    }
}

impl Aes {
    fn prepare(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        call.expect([ValueIn, ValueIn, ValueIn, Unused])?;
        let algorithm = call.value(0).0 as u32;
        let key_size = match call.value(1).0 {
            size @ (16 | 32) => size as usize,
            _ => return Err(BAD_PARAMETERS),
        };
        let encode = match call.value(2).0 as u32 {
            MODE_ENCODE => true,
            MODE_DECODE => false,
            _ => return Err(BAD_PARAMETERS),
        };
        let mode = Mode { algorithm, encode };
        let enciphers = matches!(algorithm, ALGORITHM_ECB | ALGORITHM_CBC | ALGORITHM_CTR);
        if !enciphers && !mode.authenticates() {
            return Err(BAD_PARAMETERS);
        }
        *self = Self {
            mode: Some(mode),
            key: vec![0; key_size],
            stream: None,
        };
        Ok(())
    }

    fn set_key(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        call.expect([Kind::MemrefIn, Kind::Unused, Kind::Unused, Kind::Unused])?;
        let key = call.memref(0)?;
        if key.size() != self.key.len() as u64 {
            return Err(BAD_PARAMETERS);
        }
        if self.mode.is_none() {
            return Err(Failure::Panic("a key is set before PREPARE"));
        }
        self.key = call.read_all(key, key.size())?;
        self.stream = None;
        Ok(())
    }

    fn set_iv(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        call.expect([Kind::MemrefIn, Kind::Unused, Kind::Unused, Kind::Unused])?;
        let mode = self
            .mode
            .ok_or(Failure::Panic("an initial vector is set before PREPARE"))?;
        let iv = call.memref(0)?;
        let iv = call.read_all(iv, BLOCK as u64)?;
        let cipher = match self.key.len() {
            16 => cipher::<Aes128>(mode, &self.key, &iv),
            _ => cipher::<Aes256>(mode, &self.key, &iv),
        };
        let cipher = cipher.ok_or(Failure::Panic("an initial vector has a wrong length"))?;
        self.stream = Some(Stream {
            cipher,
            rest: Vec::new(),
            broken: false,
        });
        Ok(())
    }

    fn cipher(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        call.expect([Kind::MemrefIn, Kind::MemrefOut, Kind::Unused, Kind::Unused])?;
        let (from, to) = (call.memref(0)?, call.memref(1)?);
        if to.size() < from.size() {
            return Err(BAD_PARAMETERS);
        }
        if self.mode.is_none() {
            return Err(Failure::Code(TEEC_ERROR_BAD_STATE));
        }
        let Stream {
            cipher,
            rest,
            broken,
        } = self
            .stream
            .as_mut()
            .ok_or(Failure::Panic("a message has no initial vector"))?;
        if *broken {
            return Err(Failure::Code(TEEC_ERROR_BAD_STATE));
        }
        let whole = |length: u64| length - length % cipher.unit() as u64;
        let to = call.make_room(1, whole(rest.len() as u64 + from.size()))?;
        *broken = true;
        let mut written = 0;
        call.each_chunk(from, |call, _, bytes| {
            rest.extend_from_slice(bytes);
            let ready = rest.len() - rest.len() % cipher.unit();
            cipher.apply(&mut rest[..ready]);
            let part = to.part(written, ready as u64).ok_or(BAD_PARAMETERS)?;
            call.write(part, &rest[..ready])?;
            rest.drain(..ready);
            written += ready as u64;
            Ok(())
        })?;
        *broken = false;
        Ok(())
    }
}

impl Aes {
    fn authenc(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        call.expect([MemrefIn, MemrefOut, ValueIn, MemrefInout])?;
        let encode = call.value(2).0 as u32 != 0;
        let (from, tag) = (call.memref(0)?, call.memref(3)?);
        let mode = self.mode.filter(|mode| mode.authenticates());
        let mode = mode.ok_or(Failure::Panic(
            "no algorithm that authenticates is prepared",
        ))?;
        let cipher = aes_ae::authenticated(mode.algorithm, &self.key, tag.size())
            .ok_or(Failure::Code(TEEC_ERROR_NOT_SUPPORTED))?;
        if encode != mode.encode {
            return Err(Failure::Panic("another mode is prepared"));
        }
        let mut bytes = call.read_message(from, MESSAGE_MAX)?;
        let to = call.make_room(1, from.size())?;
        if encode {
            let made = cipher.seal(&mut bytes).map_err(|_| BAD_PARAMETERS)?;
            call.write(tag, &made)?;
        } else {
            let tag = call.read_all(tag, BLOCK as u64)?;
            let opened = cipher.open(&mut bytes, &tag);
            opened.map_err(|_| Failure::Code(TEE_ERROR_MAC_INVALID))?;
        }
        call.write(to, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    const KEY128: &str = "2b7e151628aed2a6abf7158809cf4f3c";
    const KEY256: &str = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
    const IV: &str = "000102030405060708090a0b0c0d0e0f";
    const COUNTER: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
    const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
                         30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710";

    /// NIST SP 800-38A, sections F.1.1, F.1.5, F.2.1, F.2.5, F.5.1, F.5.5.
    const VECTORS: [(u32, &str, &str, &str); 6] = [
        (
            ALGORITHM_ECB,
            KEY128,
            "",
            "3ad77bb40d7a3660a89ecaf32466ef97 f5d3d58503b9699de785895a96fdbaaf
             43b1cd7f598ece23881b00e3ed030688 7b0c785e27e8ad3f8223207104725dd4",
        ),
        (
            ALGORITHM_ECB,
            KEY256,
            "",
            "f3eed1bdb5d2a03c064b5a7e3db181f8 591ccb10d410ed26dc5ba74a31362870
             b6ed21b99ca6f4f9f153e7b1beafed1d 23304b7a39f9f3ff067d8d8f9e24ecc7",
        ),
        (
            ALGORITHM_CBC,
            KEY128,
            IV,
            "7649abac8119b246cee98e9b12e9197d 5086cb9b507219ee95db113a917678b2
             73bed6b8e3c1743b7116e69e22229516 3ff1caa1681fac09120eca307586e1a7",
        ),
        (
            ALGORITHM_CBC,
            KEY256,
            IV,
            "f58c4c04d6e5f1ba779eabfb5f7bfbd6 9cfc4e967edb808d679f777bc6702c7d
             39f23369a9d9bacfa530e26304231461 b2eb05e2c39be9fcda6c19078c6a9d1b",
        ),
        (
            ALGORITHM_CTR,
            KEY128,
            COUNTER,
            "874d6191b620e3261bef6864990db6ce 9806f66b7970fdff8617187bb9fffdff
             5ae4df3edbd5d35e5b4f09020db03eab 1e031dda2fbe03d1792170a0f3009cee",
        ),
        (
            ALGORITHM_CTR,
            KEY256,
            COUNTER,
            "601ec313775789a5b7a7f504bbf3d228 f443e3ca4d62b59aca84e990cacaf5c5
             2b0930daa23de94ce87017ba2d84988d dfc9c58db67aada613c2dd08457941a6",
        ),
    ];

    fn prepare(session: &Session, algorithm: u32, key_size: usize, mode: u32) -> Reply {
        let values = [algorithm, key_size as u32, mode].map(|a| value_in(a.into(), 0));
        session.invoke(PREPARE, [values[0], values[1], values[2], NONE])
    }

    fn set(session: &Session, function: u32, bytes: &[u8]) -> Reply {
        let memref = match bytes {
            [] => param(PARAM_MEMREF_INPUT, 0, 0, 0),
            _ => session.rig.buffer(bytes).all(PARAM_MEMREF_INPUT),
        };
        session.invoke(function, [memref, NONE, NONE, NONE])
    }

    fn cipher(session: &Session, bytes: &[u8]) -> Vec<u8> {
        let from = session.rig.buffer(bytes);
        let to = session.rig.room(bytes.len());
        let memrefs = [from.all(PARAM_MEMREF_INPUT), to.all(PARAM_MEMREF_OUTPUT)];
        let reply = session.invoke(CIPHER, [memrefs[0], memrefs[1], NONE, NONE]);
        let size = reply.ok().size(1) as usize;
        let mut bytes = session.rig.get(&to);
        assert!(bytes[size..].iter().all(|byte| *byte == 0xee));
        bytes.truncate(size);
        bytes
    }

    #[test]
    fn gives_what_nist_sp_800_38a_gives() {
        let rig = Rig::new();
        for (algorithm, key, iv, coded) in VECTORS {
            for (mode, from, to) in [(MODE_ENCODE, PLAIN, coded), (MODE_DECODE, coded, PLAIN)] {
                let session = rig.open(1, UUID);
                let key = hex(key);
                prepare(&session, algorithm, key.len(), mode).ok();
                set(&session, SET_KEY, &key).ok();
                set(&session, SET_IV, &hex(iv)).ok();
                assert_eq!(cipher(&session, &hex(from)), hex(to), "{algorithm} {mode}");
                session.close();
            }
        }
    }

    #[test]
    fn a_message_may_come_in_pieces_of_any_length() {
        let rig = Rig::new();
        for (algorithm, key, iv, coded) in VECTORS {
            let session = rig.open(1, UUID);
            let (key, plain) = (hex(key), hex(PLAIN));
            prepare(&session, algorithm, key.len(), MODE_ENCODE).ok();
            set(&session, SET_KEY, &key).ok();
            set(&session, SET_IV, &hex(iv)).ok();
            let mut out = Vec::new();
            for piece in [&plain[..2], &plain[2..20], &plain[20..63]] {
                out.extend(cipher(&session, piece));
            }
            let whole = if algorithm == ALGORITHM_CTR { 63 } else { 48 };
            assert_eq!(out, hex(coded)[..whole]);
            session.close();
        }
    }

    #[test]
    fn encodes_and_decodes_more_than_one_chunk() {
        let rig = Rig::new();
        let plain: Vec<u8> = (0..300_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let mut coded = plain.clone();
        for mode in [MODE_ENCODE, MODE_DECODE] {
            let session = rig.open(1, UUID);
            prepare(&session, ALGORITHM_CBC, 32, mode).ok();
            set(&session, SET_KEY, &[0xa5; 32]).ok();
            set(&session, SET_IV, &[0; 16]).ok();
            coded = cipher(&session, &coded);
            assert_eq!(coded == plain, mode == MODE_DECODE);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let refused = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
        for (algorithm, key_size, mode) in [(5, 16, 0), (0, 24, 0), (0, 16, 2)] {
            let reply = prepare(&session, algorithm, key_size, mode);
            assert_eq!(reply.verdict(), refused);
        }
        let two = [rig.room(16), rig.room(15)];
        let memrefs = [
            two[0].all(PARAM_MEMREF_INPUT),
            two[1].all(PARAM_MEMREF_OUTPUT),
        ];
        let smaller = session.invoke(CIPHER, [memrefs[0], memrefs[1], NONE, NONE]);
        assert_eq!(smaller.verdict(), refused);
        let memrefs = [
            two[1].all(PARAM_MEMREF_INPUT),
            two[0].all(PARAM_MEMREF_OUTPUT),
        ];
        let unprepared = session.invoke(CIPHER, [memrefs[0], memrefs[1], NONE, NONE]);
        assert_eq!(unprepared.result, TEEC_ERROR_BAD_STATE);
        prepare(&session, ALGORITHM_CTR, 16, MODE_ENCODE).ok();
        assert_eq!(set(&session, SET_KEY, &[0; 32]).verdict(), refused);
        set(&session, SET_KEY, &[0; 16]).ok();
        // GlobalPlatform has the application panic here.
        let reply = set(&session, SET_IV, &[0; 8]);
        assert_eq!(reply.verdict(), (TEEC_ERROR_TARGET_DEAD, TEEC_ORIGIN_TEE));
    }

    #[test]
    fn a_stream_whose_call_broke_off_does_not_go_on_until_it_begins_anew() {
        const LENGTH: usize = 300_000;
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        prepare(&session, ALGORITHM_CBC, 16, MODE_ENCODE).ok();
        set(&session, SET_KEY, &hex(KEY128)).ok();
        set(&session, SET_IV, &hex(IV)).ok();
        let (from, to) = (rig.room(LENGTH), rig.room(LENGTH));
        let memrefs = [from.all(PARAM_MEMREF_INPUT), to.all(PARAM_MEMREF_OUTPUT)];
        let call = session.begin(CIPHER, [memrefs[0], memrefs[1], NONE, NONE]);
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            if asked.get() == 4 {
                rig.detach(&to);
            }
            true
        };
        let reply = Reply::of(&rig.engine.run(&rig.memory, call, &go_on));
        assert_eq!(reply.result, TEEC_ERROR_SECURITY);
        let to = rig.room(16);
        let again = [
            rig.room(16).all(PARAM_MEMREF_INPUT),
            to.all(PARAM_MEMREF_OUTPUT),
            NONE,
            NONE,
        ];
        let reply = session.invoke(CIPHER, again);
        let bad_state = (TEEC_ERROR_BAD_STATE, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(reply.verdict(), bad_state);
        assert_eq!(rig.get(&to), [0xee; 16]);
        set(&session, SET_IV, &hex(IV)).ok();
        session.invoke(CIPHER, again).ok();
    }
}
