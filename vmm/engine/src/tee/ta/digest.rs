// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Digests by the names that GlobalPlatform gives them, for the applications `ecdsa` and `sha`.

use pinbed_abi::ta::sha::*;
use pinbed_abi::tee::TEEC_ERROR_NOT_SUPPORTED;
use sha1::Sha1;
use sha2::digest::{DynDigest, ExtendableOutput, XofReader};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512, Shake128, Shake256};

use crate::tee::invocation::{Failure, Invocation};

/// Serves [memref in, memref out, …]: the digest of the first to the second.
pub fn digest(call: &mut Invocation, algorithm: u32) -> Result<(), Failure> {
    match algorithm {
        SHA1 => fixed(call, Sha1::default()),
        SHA224 => fixed(call, Sha224::default()),
        SHA256 => fixed(call, Sha256::default()),
        SHA384 => fixed(call, Sha384::default()),
        SHA512 => fixed(call, Sha512::default()),
        SHA3_224 => fixed(call, Sha3_224::default()),
        SHA3_256 => fixed(call, Sha3_256::default()),
        SHA3_384 => fixed(call, Sha3_384::default()),
        SHA3_512 => fixed(call, Sha3_512::default()),
        SHAKE128 => extendable(call, Shake128::default()),
        SHAKE256 => extendable(call, Shake256::default()),
        _ => Err(Failure::Code(TEEC_ERROR_NOT_SUPPORTED)),
    }
}

fn fixed(call: &mut Invocation, mut hash: impl DynDigest + 'static) -> Result<(), Failure> {
    let to = call.make_room(1, hash.output_size() as u64)?;
    let message = call.memref(0)?;
    call.each_chunk(message, |_, _, bytes| {
        DynDigest::update(&mut hash, bytes);
        Ok(())
    })?;
    call.write(to, &Box::new(hash).finalize())
}

fn extendable(call: &mut Invocation, mut hash: impl ExtendableOutput) -> Result<(), Failure> {
    let (message, to) = (call.memref(0)?, call.memref(1)?);
    call.each_chunk(message, |_, _, bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    let mut reader = hash.finalize_xof();
    call.fill(to, |bytes| {
        reader.read(bytes);
        Ok(())
    })
}
