// SPDX-License-Identifier: Apache-2.0 OR MIT
//! HMAC-based one-time passwords (RFC 4226).

use hmac::{Hmac, Mac};
use pinbed_abi::ta::hotp::{GET_HOTP, REGISTER_SHARED_KEY, UUID};
use sha1::Sha1;

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Hotp::default()),
};

/// Key lengths in bytes that HMAC-SHA1 takes in GlobalPlatform's TEE Internal Core API.
const KEY: std::ops::RangeInclusive<usize> = 10..=64;

#[derive(Default)]
struct Hotp {
    key: Vec<u8>,
    counter: u64,
}

impl TrustedApp for Hotp {
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        match function {
            REGISTER_SHARED_KEY => {
                call.expect([Kind::MemrefIn, Kind::Unused, Kind::Unused, Kind::Unused])?;
                let key = call.memref(0)?;
                if key.size() > *KEY.end() as u64 {
                    return Err(BAD_PARAMETERS);
                }
                self.key = call.read_all(key, *KEY.end() as u64)?;
                Ok(())
            }
            GET_HOTP => {
                call.expect([Kind::ValueOut, Kind::Unused, Kind::Unused, Kind::Unused])?;
                if !KEY.contains(&self.key.len()) {
                    return Err(BAD_PARAMETERS);
                }
                let password = password(&self.key, self.counter)?;
                self.counter = self.counter.wrapping_add(1);
                call.set_value(0, password.into(), 0, 0);
                Ok(())
            }
            _ => Err(BAD_PARAMETERS),
        }
    }
}

/// RFC 4226, section 5.3, six digits.
fn password(key: &[u8], counter: u64) -> Result<u32, Failure> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).map_err(|_| BAD_PARAMETERS)?;
    mac.update(&counter.to_be_bytes());
    let mac: [u8; 20] = mac.finalize().into_bytes().into();
    let offset = usize::from(mac[19] & 0xf);
    let word = [
        mac[offset],
        mac[offset + 1],
        mac[offset + 2],
        mac[offset + 3],
    ];
    Ok((u32::from_be_bytes(word) & 0x7fff_ffff) % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    fn next(session: &Session) -> u64 {
        let reply = session.invoke(GET_HOTP, [VALUE_OUT, NONE, NONE, NONE]);
        reply.ok().value(0).0
    }

    #[test]
    fn gives_the_passwords_of_rfc_4226_appendix_d() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let key = rig.buffer(b"12345678901234567890").all(PARAM_MEMREF_INPUT);
        session
            .invoke(REGISTER_SHARED_KEY, [key, NONE, NONE, NONE])
            .ok();
        let passwords: Vec<u64> = (0..10).map(|_| next(&session)).collect();
        assert_eq!(
            passwords,
            [
                755224, 287082, 359152, 969429, 338314, 254676, 287922, 162583, 399871, 520489
            ]
        );
    }

    #[test]
    fn a_session_has_its_own_key_and_counter() {
        let rig = Rig::new();
        let (one, two) = (rig.open(1, UUID), rig.open(1, UUID));
        let key = rig.buffer(b"12345678901234567890").all(PARAM_MEMREF_INPUT);
        one.invoke(REGISTER_SHARED_KEY, [key, NONE, NONE, NONE])
            .ok();
        assert_eq!(next(&one), 755224);
        let keyless = two.invoke(GET_HOTP, [VALUE_OUT, NONE, NONE, NONE]);
        assert_eq!(keyless.result, TEEC_ERROR_BAD_PARAMETERS);
        two.invoke(REGISTER_SHARED_KEY, [key, NONE, NONE, NONE])
            .ok();
        assert_eq!(next(&two), 755224);
        assert_eq!(next(&one), 287082);
    }

    #[test]
    fn refuses_keys_of_a_wrong_length() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        for (length, registered) in [(65, false), (64, true), (10, true), (9, true)] {
            let key = rig.room(length).all(PARAM_MEMREF_INPUT);
            let reply = session.invoke(REGISTER_SHARED_KEY, [key, NONE, NONE, NONE]);
            assert_eq!(reply.result == TEEC_SUCCESS, registered, "{length}");
        }
        // Nine bytes are registered and then too few, as in the example that clients know.
        let reply = session.invoke(GET_HOTP, [VALUE_OUT, NONE, NONE, NONE]);
        assert_eq!(reply.result, TEEC_ERROR_BAD_PARAMETERS);
    }
}
