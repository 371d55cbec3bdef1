// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random bytes from the host's generator.

use pinbed_abi::ta::random::{GENERATE, UUID};
use pinbed_abi::tee::TEEC_ERROR_GENERIC;

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Random),
};

struct Random;

impl TrustedApp for Random {
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        if function != GENERATE {
            return Err(BAD_PARAMETERS);
        }
        call.expect([Kind::MemrefOut, Kind::Unused, Kind::Unused, Kind::Unused])?;
        let to = call.memref(0)?;
        call.fill(to, |bytes| {
            getrandom::fill(bytes).map_err(|_| Failure::Code(TEEC_ERROR_GENERIC))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    #[test]
    fn fills_all_of_the_memref_and_nothing_else() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.buffer(&vec![0; 200_000]);
        let memref = buffer.part(PARAM_MEMREF_OUTPUT, 16, 199_952);
        session.invoke(GENERATE, [memref, NONE, NONE, NONE]).ok();
        let bytes = rig.get(&buffer);
        assert_eq!(bytes[..16], [0; 16]);
        assert_eq!(bytes[199_968..], [0; 32]);
        // 2^-128 each of being wrong.
        assert!(
            bytes[16..199_968]
                .chunks(16)
                .all(|sixteen| sixteen != [0; 16])
        );
        let zeros = bytes[16..199_968].iter().filter(|byte| **byte == 0).count();
        assert!(
            (600..1000).contains(&zeros),
            "{zeros} of 199,952 bytes are zero"
        );
    }
}
