// SPDX-License-Identifier: Apache-2.0 OR MIT
//! RSA signatures.

use pinbed_abi::ta::sign_verify::*;
use pinbed_abi::tee::TEEC_ERROR_GENERIC;
use rsa::rand_core::OsRng;
use rsa::traits::{PublicKeyParts, SignatureScheme};
use rsa::{Pkcs1v15Sign, Pss, RsaPublicKey};
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::{Descriptor, TrustedApp, acipher};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(SignVerify),
};

struct SignVerify;

impl TrustedApp for SignVerify {
    /// Takes any parameters and ignores them, as the example that clients know does.
    fn open(&mut self, _: &mut Invocation) -> Result<(), Failure> {
        Ok(())
    }

    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        if function != SIGN_VERIFY {
            return Err(BAD_PARAMETERS);
        }
        use Kind::*;
        call.expect([MemrefIn, MemrefOut, ValueIn, ValueIn])?;
        match call.value(2).0 as u32 {
            ALGORITHM_PSS_SHA1 => sign::<Sha1, _>(call, Pss::new::<Sha1>),
            ALGORITHM_PSS_SHA224 => sign::<Sha224, _>(call, Pss::new::<Sha224>),
            ALGORITHM_PSS_SHA256 => sign::<Sha256, _>(call, Pss::new::<Sha256>),
            ALGORITHM_PSS_SHA384 => sign::<Sha384, _>(call, Pss::new::<Sha384>),
            ALGORITHM_PSS_SHA512 => sign::<Sha512, _>(call, Pss::new::<Sha512>),
            ALGORITHM_PKCS1_V1_5_SHA1 => sign::<Sha1, _>(call, Pkcs1v15Sign::new::<Sha1>),
            ALGORITHM_PKCS1_V1_5_SHA224 => sign::<Sha224, _>(call, Pkcs1v15Sign::new::<Sha224>),
            ALGORITHM_PKCS1_V1_5_SHA256 => sign::<Sha256, _>(call, Pkcs1v15Sign::new::<Sha256>),
            ALGORITHM_PKCS1_V1_5_SHA384 => sign::<Sha384, _>(call, Pkcs1v15Sign::new::<Sha384>),
            ALGORITHM_PKCS1_V1_5_SHA512 => sign::<Sha512, _>(call, Pkcs1v15Sign::new::<Sha512>),
            _ => Err(BAD_PARAMETERS),
        }
    }
}

fn sign<D: Digest, S: SignatureScheme>(
    call: &mut Invocation,
    scheme: impl Fn() -> S,
) -> Result<(), Failure> {
    let message = call.memref(0)?;
    let mut digest = D::new();
    call.each_chunk(message, |_, _, bytes| {
        digest.update(bytes);
        Ok(())
    })?;
    let digest = digest.finalize();
    let key = acipher::generate(call, call.value(3).0)?;
    // A key may be too short for the digest and its padding.
    let signature = key
        .sign_with_rng(&mut OsRng, scheme(), &digest)
        .map_err(|_| BAD_PARAMETERS)?;
    RsaPublicKey::from(&key)
        .verify(scheme(), &digest, &signature)
        .map_err(|_| Failure::Code(TEEC_ERROR_GENERIC))?;
    let to = call.make_room(1, key.size() as u64)?;
    call.write(to, &signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    fn signed(session: &Session, algorithm: u32, bits: u64, room: usize) -> Reply {
        let rig = session.rig;
        let from = rig.buffer(b"HelloFromHost").all(PARAM_MEMREF_INPUT);
        let to = rig.room(room).all(PARAM_MEMREF_OUTPUT);
        let values = [value_in(algorithm.into(), 0), value_in(bits, 0)];
        session.invoke(SIGN_VERIFY, [from, to, values[0], values[1]])
    }

    #[test]
    fn signs_and_verifies_with_every_scheme() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        // Just long enough for PSS with SHA-512.
        for algorithm in ALGORITHM_PSS_SHA1..=ALGORITHM_PKCS1_V1_5_SHA512 {
            let reply = signed(&session, algorithm, 1040, 512);
            assert_eq!(reply.ok().size(1), 130);
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        for (algorithm, bits, room, wanted) in [
            (10, 1024, 512, TEEC_ERROR_BAD_PARAMETERS),
            (2, 255, 512, TEEC_ERROR_NOT_SUPPORTED),
            (2, 4097, 512, TEEC_ERROR_NOT_SUPPORTED),
            (4, 512, 512, TEEC_ERROR_BAD_PARAMETERS),
            (9, 512, 512, TEEC_ERROR_BAD_PARAMETERS),
        ] {
            let reply = signed(&session, algorithm, bits, room);
            assert_eq!(reply.result, wanted, "{algorithm} {bits}");
        }
        let short = signed(&session, 7, 512, 63);
        assert_eq!((short.result, short.size(1)), (TEEC_ERROR_SHORT_BUFFER, 64));
    }
}
