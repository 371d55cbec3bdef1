// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Authenticated encryption with AES, CCM and GCM, for the application `aes`.

use ::aes::{Aes128, Aes256};
use aes_gcm::AesGcm;
use aes_gcm::aead::{AeadInOut, Error, Nonce, Tag};
use ccm::Ccm;
use cipher::consts::{U4, U6, U8, U10, U12, U13, U14, U15, U16};
use cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit};
use pinbed_abi::ta::aes::{ALGORITHM_CCM, ALGORITHM_GCM, NONCE};

/// A key with an algorithm and a tag length.
pub trait Authenticated {
    /// Encrypts in place, and gives the tag.
    fn seal(&self, bytes: &mut [u8]) -> Result<Vec<u8>, Error>;
    /// Decrypts in place; an error if the tag is not that of these bytes.
    fn open(&self, bytes: &mut [u8], tag: &[u8]) -> Result<(), Error>;
}

impl<A: AeadInOut> Authenticated for A {
    fn seal(&self, bytes: &mut [u8]) -> Result<Vec<u8>, Error> {
        let tag = self.encrypt_inout_detached(nonce::<A>()?, &[], bytes.into())?;
        Ok(tag.to_vec())
    }

    fn open(&self, bytes: &mut [u8], tag: &[u8]) -> Result<(), Error> {
        let tag = <&Tag<A>>::try_from(tag).map_err(|_| Error)?;
        self.decrypt_inout_detached(nonce::<A>()?, &[], bytes.into(), tag)
    }
}

fn nonce<A: AeadInOut>() -> Result<&'static Nonce<A>, Error> {
    <&Nonce<A>>::try_from(&NONCE[..]).map_err(|_| Error)
}

/// `None` if the algorithm does not authenticate, or not with a tag of so many bytes, or the key has a wrong length.
pub fn authenticated(
    algorithm: u32,
    key: &[u8],
    tag_length: u64,
) -> Option<Box<dyn Authenticated>> {
    match key.len() {
        16 => with::<Aes128>(algorithm, key, tag_length),
        32 => with::<Aes256>(algorithm, key, tag_length),
        _ => None,
    }
}

fn with<C>(algorithm: u32, key: &[u8], tag_length: u64) -> Option<Box<dyn Authenticated>>
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit + 'static,
{
    macro_rules! one_of {
        ($cipher:ident, $($length:literal: $tag:ident)*) => {
            match tag_length {
                $($length => Box::new($cipher::<C, $tag>::new_from_slice(key).ok()?),)*
                _ => return None,
            }
        };
    }
    type CcmOf<C, T> = Ccm<C, T, U12>;
    type GcmOf<C, T> = AesGcm<C, U12, T>;
    Some(match algorithm {
        ALGORITHM_CCM => one_of!(CcmOf, 4: U4 6: U6 8: U8 10: U10 12: U12 14: U14 16: U16),
        ALGORITHM_GCM => one_of!(GcmOf, 12: U12 13: U13 14: U14 15: U15 16: U16),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::tee::heap::HEAP;
    use crate::tee::rig::*;
    use pinbed_abi::ta::aes::*;
    use pinbed_abi::tee::*;
    use pinbed_abi::wire;

    const KEY128: &str = "2b7e151628aed2a6abf7158809cf4f3c";
    const KEY256: &str = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
    const PLAIN: &[u8] = b"TestCCMMessage";

    /// Algorithm, key, ciphertext, tag, as OpenSSL has them.
    const VECTORS: [(u32, &str, &str, &str); 6] = [
        (
            ALGORITHM_CCM,
            KEY128,
            "8509fb0fa03df93f3c7e7aea0c92",
            "254745846b70b10e08b0c7b65a849177",
        ),
        (
            ALGORITHM_CCM,
            KEY128,
            "8509fb0fa03df93f3c7e7aea0c92",
            "82489f2b8abaf887",
        ),
        (
            ALGORITHM_CCM,
            KEY256,
            "a529e43f5c751ef6b74a2af9ea68",
            "0e22c584d91b1daee19fff4cabbfd281",
        ),
        (
            ALGORITHM_GCM,
            KEY128,
            "0faa4822fb2bc30f85ab67e7c5ec",
            "ac4a2602e249f0bd8fbaa8f7acaa2a03",
        ),
        (
            ALGORITHM_GCM,
            KEY128,
            "0faa4822fb2bc30f85ab67e7c5ec",
            "ac4a2602e249f0bd8fbaa8f7ac",
        ),
        (
            ALGORITHM_GCM,
            KEY256,
            "5c04c227c707d633c3d331c8ea5b",
            "4675c9667a972258fe2a10b46ab2ac4c",
        ),
    ];

    fn prepared<'r>(rig: &'r Rig, algorithm: u32, key: &[u8], mode: u32) -> Session<'r> {
        let session = rig.open(1, UUID);
        let [algorithm, size, mode] =
            [algorithm, key.len() as u32, mode].map(|a| value_in(a.into(), 0));
        session.invoke(PREPARE, [algorithm, size, mode, NONE]).ok();
        let key = rig.buffer(key).all(PARAM_MEMREF_INPUT);
        session.invoke(SET_KEY, [key, NONE, NONE, NONE]).ok();
        session
    }

    /// Output and tag, or why there are none.
    fn authenc(
        session: &Session,
        encode: bool,
        bytes: &[u8],
        room: usize,
        tag: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), Box<Reply>> {
        let rig = session.rig;
        let (from, to, tag) = (rig.buffer(bytes), rig.room(room), rig.buffer(tag));
        let params = [
            from.all(PARAM_MEMREF_INPUT),
            to.all(PARAM_MEMREF_OUTPUT),
            value_in(encode.into(), 0),
            tag.all(PARAM_MEMREF_INOUT),
        ];
        let reply = session.invoke(AUTHENC, params);
        if reply.result != TEEC_SUCCESS {
            assert_eq!(rig.get(&to), vec![0xee; room]);
            return Err(Box::new(reply));
        }
        let mut out = rig.get(&to);
        assert_eq!(reply.size(3), tag.len());
        out.truncate(reply.size(1) as usize);
        Ok((out, rig.get(&tag)))
    }

    #[test]
    fn gives_what_another_implementation_gives() {
        let rig = Rig::new();
        for (algorithm, key, coded, tag) in VECTORS {
            let (key, coded, tag) = (hex(key), hex(coded), hex(tag));
            let session = prepared(&rig, algorithm, &key, MODE_ENCODE);
            let room = vec![0; tag.len()];
            let sealed = authenc(&session, true, PLAIN, 80, &room);
            assert_eq!(sealed, Ok((coded.clone(), tag.clone())));
            let session = prepared(&rig, algorithm, &key, MODE_DECODE);
            let opened = authenc(&session, false, &coded, 80, &tag);
            assert_eq!(opened, Ok((PLAIN.to_vec(), tag)));
        }
    }

    #[test]
    fn another_tag_gives_no_plain_bytes() {
        let rig = Rig::new();
        for (algorithm, key, coded, tag) in VECTORS {
            let (key, coded, mut tag) = (hex(key), hex(coded), hex(tag));
            tag[3] ^= 1;
            let session = prepared(&rig, algorithm, &key, MODE_DECODE);
            let refused = authenc(&session, false, &coded, 80, &tag).unwrap_err();
            assert_eq!(
                refused.verdict(),
                (TEE_ERROR_MAC_INVALID, TEEC_ORIGIN_TRUSTED_APP)
            );
        }
    }

    /// A call that reads a message of half the heap; it ends when it has begun to, after `meanwhile`.
    fn take_half(rig: &Rig, message: u64, meanwhile: impl FnOnce()) -> Reply {
        let session = prepared(rig, ALGORITHM_GCM, &[7; 16], MODE_ENCODE);
        let from = param(PARAM_MEMREF_INPUT, 0, HEAP as u64 / 2, message);
        let to = rig.room(16).all(PARAM_MEMREF_OUTPUT);
        let tag = rig.room(16).all(PARAM_MEMREF_INOUT);
        let call = session.begin(AUTHENC, [from, to, value_in(1, 0), tag]);
        let (asked, meanwhile) = (Cell::new(0), Cell::new(Some(meanwhile)));
        let go_on = || {
            asked.set(asked.get() + 1);
            if asked.get() < 8 {
                return true;
            }
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            false
        };
        Reply::of(&rig.engine.run(&rig.memory, call, &go_on))
    }

    #[test]
    fn messages_of_all_calls_share_the_heap() {
        let rig = Rig::new();
        let page = wire::Segment {
            address: 0x1000.into(),
            length: 0x1000.into(),
        };
        let message = rig.attach(0, &vec![page; HEAP / 2 / 0x1000]);
        let third = Cell::new(None);
        let took = |meanwhile: &dyn Fn()| take_half(&rig, message, meanwhile).result;
        let ended = took(&|| {
            let second = took(&|| third.set(Some(took(&|| ()))));
            assert_eq!(second, TEEC_ERROR_CANCEL);
            assert_eq!(third.get(), Some(TEEC_ERROR_OUT_OF_MEMORY));
            // What the second one had is there again.
            assert_eq!(took(&|| ()), TEEC_ERROR_CANCEL);
        });
        assert_eq!(ended, TEEC_ERROR_CANCEL);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = prepared(&rig, ALGORITHM_GCM, &[7; 16], MODE_ENCODE);
        for length in [8, 11, 17] {
            let refused = authenc(&session, true, PLAIN, 80, &vec![0; length]).unwrap_err();
            assert_eq!(refused.result, TEEC_ERROR_NOT_SUPPORTED, "{length}");
        }
        let short = authenc(&session, true, PLAIN, 13, &[0; 16]).unwrap_err();
        assert_eq!((short.result, short.size(1)), (TEEC_ERROR_SHORT_BUFFER, 14));
        // GlobalPlatform has the application panic where an operation is of another class or mode.
        let other_mode = authenc(&session, false, PLAIN, 80, &[0; 16]).unwrap_err();
        assert_eq!(other_mode.result, TEEC_ERROR_TARGET_DEAD);
        let session = prepared(&rig, ALGORITHM_CTR, &[7; 16], MODE_ENCODE);
        let other_class = authenc(&session, true, PLAIN, 80, &[0; 16]).unwrap_err();
        assert_eq!(other_class.result, TEEC_ERROR_TARGET_DEAD);
        let session = prepared(&rig, ALGORITHM_CCM, &[7; 16], MODE_ENCODE);
        let iv = rig.buffer(&[0; 16]).all(PARAM_MEMREF_INPUT);
        let reply = session.invoke(SET_IV, [iv, NONE, NONE, NONE]);
        assert_eq!(reply.result, TEEC_ERROR_TARGET_DEAD);
        let session = rig.open(1, UUID);
        let unprepared = authenc(&session, true, PLAIN, 80, &[0; 16]).unwrap_err();
        assert_eq!(unprepared.result, TEEC_ERROR_TARGET_DEAD);
    }
}
