// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Counts up and down.

use pinbed_abi::ta::hello_world::{DECREMENT, INCREMENT, UUID};

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(HelloWorld),
};

struct HelloWorld;

impl TrustedApp for HelloWorld {
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        let step: fn(u32) -> u32 = match function {
            INCREMENT => |a| a.wrapping_add(1),
            DECREMENT => |a| a.wrapping_sub(1),
            _ => return Err(BAD_PARAMETERS),
        };
        call.expect([Kind::ValueInout, Kind::Unused, Kind::Unused, Kind::Unused])?;
        let (a, b, c) = call.value(0);
        // A trusted application's values have 32 bits.
        call.set_value(0, step(a as u32).into(), b, c);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::tee::*;

    #[test]
    fn counts_in_32_bits() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let count = |function, a| {
            let params = [param(PARAM_VALUE_INOUT, a, 7, 9), NONE, NONE, NONE];
            session.invoke(function, params).ok().value(0)
        };
        assert_eq!(count(INCREMENT, 42), (43, 7, 9));
        assert_eq!(count(DECREMENT, 42), (41, 7, 9));
        assert_eq!(count(INCREMENT, 0xffff_ffff), (0, 7, 9));
        assert_eq!(count(DECREMENT, 0), (0xffff_ffff, 7, 9));
    }

    #[test]
    fn refuses_other_functions_and_parameters() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let refused = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
        let good = [param(PARAM_VALUE_INOUT, 1, 0, 0), NONE, NONE, NONE];
        assert_eq!(session.invoke(2, good).verdict(), refused);
        let one_more = [good[0], NONE, NONE, value_in(0, 0)];
        for bad in [NO_PARAMS, [value_in(1, 0), NONE, NONE, NONE], one_more] {
            assert_eq!(session.invoke(INCREMENT, bad).verdict(), refused);
        }
        let mut open = open(1, UUID);
        open.params = good;
        assert_eq!(rig.call(&open).verdict(), refused);
    }
}
