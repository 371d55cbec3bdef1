// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Elliptic-curve Diffie-Hellman with itself.

use pinbed_abi::ta::ecdh::*;
use pinbed_abi::tee::TEEC_ERROR_GENERIC;

use super::curve::{self, Curve};
use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Ecdh),
};

struct Ecdh;

impl TrustedApp for Ecdh {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        if function != DERIVE_SELFTEST {
            return Err(BAD_PARAMETERS);
        }
        use Kind::*;
        call.expect([ValueIn, Unused, Unused, MemrefOut])?;
        let curve = match call.value(0).0 as u32 {
            CURVE_P192 => Curve::P192,
            CURVE_P224 => Curve::P224,
            CURVE_P256 => Curve::P256,
            CURVE_P384 => Curve::P384,
            _ => return Err(BAD_PARAMETERS),
        };
        let [ours, theirs] = curve::agree(curve);
        if ours != theirs {
            return Err(Failure::Code(TEEC_ERROR_GENERIC));
        }
        let to = call.make_room(3, ours.len() as u64)?;
        call.write(to, &ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    /// As clients do it: ask for the size, then for the bytes.
    #[test]
    fn gives_a_secret_as_long_as_the_curve_says() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        for (curve, length) in [
            (CURVE_P192, 24),
            (CURVE_P224, 28),
            (CURVE_P256, 32),
            (CURVE_P384, 48),
        ] {
            let curve = value_in(curve.into(), 0);
            let null = param(PARAM_MEMREF_OUTPUT, 0, 0, 0);
            let reply = session.invoke(DERIVE_SELFTEST, [curve, NONE, NONE, null]);
            let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
            assert_eq!((reply.verdict(), reply.size(3)), (short, length));
            let secrets = [0; 2].map(|_| {
                let to = rig.room(length as usize);
                let memref = to.all(PARAM_MEMREF_OUTPUT);
                let reply = session.invoke(DERIVE_SELFTEST, [curve, NONE, NONE, memref]);
                assert_eq!(reply.ok().size(3), length);
                rig.get(&to)
            });
            assert_ne!(secrets[0], secrets[1]);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let to = rig.room(66).all(PARAM_MEMREF_OUTPUT);
        for params in [
            [value_in(4, 0), NONE, NONE, to],
            [value_in(2, 0), to, NONE, NONE],
        ] {
            let reply = session.invoke(DERIVE_SELFTEST, params);
            assert_eq!(reply.result, TEEC_ERROR_BAD_PARAMETERS);
        }
        let reply = session.invoke(1, [value_in(2, 0), NONE, NONE, to]);
        assert_eq!(reply.result, TEEC_ERROR_BAD_PARAMETERS);
    }
}
