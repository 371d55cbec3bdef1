// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Touches memory in every way a test may want: now, late, and between calls.

use std::collections::BTreeMap;
use std::time::Duration;

use pinbed_abi::ta::pin::*;
use pinbed_abi::tee::{
    TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ERROR_NOT_SUPPORTED, TEEC_ERROR_OUT_OF_MEMORY,
};
use pinbed_abi::wire::Segment;
use zerocopy::IntoBytes;

use super::{Descriptor, TrustedApp};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind, Memref};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: false,
    new: || Box::new(Pin::default()),
};

#[derive(Default)]
struct Pin {
    held: BTreeMap<u64, Memref>,
    last_held: u64,
}

impl TrustedApp for Pin {
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        match function {
            CHECKSUM => {
                call.expect([Readable, ValueOut, Unused, Unused])?;
                let memref = call.memref(0)?;
                checksum(call, memref, 1)
            }
            FILL => {
                call.expect([Writable, ValueIn, Unused, Unused])?;
                let (pattern, ms, _) = call.value(1);
                call.unmask_cancellation();
                call.wait(Some(milliseconds(ms)?))?;
                let to = call.memref(0)?;
                let pattern = (pattern as u32).to_le_bytes();
                call.fill(to, |bytes| {
                    for four in bytes.chunks_mut(4) {
                        four.copy_from_slice(&pattern[..four.len()]);
                    }
                    Ok(())
                })
            }
            COPY => {
                call.expect([MemrefIn, MemrefOut, Unused, Unused])?;
                let from = call.memref(0)?;
                let to = call.make_room(1, from.size())?;
                copy(call, from, to)
            }
            DESCRIBE => {
                call.expect([AnyMemref, MemrefOut, ValueOut, Unused])?;
                describe(call)
            }
            HOLD => {
                call.expect([AnyMemref, ValueOut, Unused, Unused])?;
                if self.held.len() >= MAX_HELD as usize {
                    return Err(Failure::Code(TEEC_ERROR_OUT_OF_MEMORY));
                }
                self.last_held += 1;
                self.held.insert(self.last_held, call.memref(0)?);
                call.set_value(1, self.last_held, 0, 0);
                Ok(())
            }
            RELEASE => {
                call.expect([ValueIn, Unused, Unused, Unused])?;
                self.held(call)?;
                self.held.remove(&call.value(0).0);
                Ok(())
            }
            HELD_CHECKSUM => {
                call.expect([ValueIn, ValueIn, ValueOut, Unused])?;
                let (offset, length, _) = call.value(1);
                let part = self.held(call)?.part(offset, length);
                let part = part.filter(Memref::is_readable).ok_or(BAD_PARAMETERS)?;
                checksum(call, part, 2)
            }
            HELD_READ => {
                call.expect([ValueIn, MemrefOut, Unused, Unused])?;
                let to = call.memref(1)?;
                let part = self.held(call)?.part(call.value(0).1, to.size());
                let from = part.filter(Memref::is_readable).ok_or(BAD_PARAMETERS)?;
                copy(call, from, to)
            }
            HELD_WRITE => {
                call.expect([ValueIn, MemrefIn, Unused, Unused])?;
                let from = call.memref(1)?;
                let part = self.held(call)?.part(call.value(0).1, from.size());
                let to = part.filter(Memref::is_writable).ok_or(BAD_PARAMETERS)?;
                copy(call, from, to)
            }
            WAIT => {
                call.expect([ValueIn, MemrefOrUnused, Unused, Unused])?;
                let (ms, deaf, _) = call.value(0);
                let time = match ms {
                    0 => None,
                    ms => Some(milliseconds(ms)?),
                };
                if deaf != 1 {
                    call.unmask_cancellation();
                }
                call.wait(time)
            }
            ECHO => {
                call.expect([ValueIn, ValueOut, ValueInout, Unused])?;
                let (a, b, c) = call.value(0);
                call.set_value(1, a, b, c);
                let (a, b, c) = call.value(2);
                call.set_value(2, !a, !b, !c);
                Ok(())
            }
            SET_SIZE => {
                call.expect([MemrefOut, ValueIn, Unused, Unused])?;
                call.make_room(0, call.value(1).0).map(drop)
            }
            CLIENT => {
                call.expect([ValueOut, ValueOut, Unused, Unused])?;
                let client = call.client();
                let uuid = u128::from_be_bytes(client.uuid);
                call.set_value(0, client.login.into(), 0, 0);
                call.set_value(1, (uuid >> 64) as u64, uuid as u64, 0);
                Ok(())
            }
            RETURN => {
                call.expect([ValueIn, Unused, Unused, Unused])?;
                Err(Failure::Code(call.value(0).0 as u32))
            }
            PANIC => {
                call.expect([Unused; 4])?;
                panic!("as it was asked to");
            }
            _ => Err(Failure::Code(TEEC_ERROR_NOT_SUPPORTED)),
        }
    }
}

impl Pin {
    /// The memref that the first parameter names.
    fn held(&self, call: &Invocation) -> Result<Memref, Failure> {
        let not_found = Failure::Code(TEEC_ERROR_ITEM_NOT_FOUND);
        self.held.get(&call.value(0).0).copied().ok_or(not_found)
    }
}

fn milliseconds(ms: u64) -> Result<Duration, Failure> {
    match ms {
        0..=MAX_WAIT_MS => Ok(Duration::from_millis(ms)),
        _ => Err(BAD_PARAMETERS),
    }
}

fn checksum(call: &mut Invocation, memref: Memref, to: usize) -> Result<(), Failure> {
    let crc = call.checksum(memref)?;
    call.set_value(to, crc.into(), memref.size(), 0);
    Ok(())
}

/// Copies between memrefs of the same size.
fn copy(call: &mut Invocation, from: Memref, to: Memref) -> Result<(), Failure> {
    call.each_chunk(from, |call, offset, bytes| {
        let part = to.part(offset, bytes.len() as u64).ok_or(BAD_PARAMETERS)?;
        call.write(part, bytes)
    })
}

fn describe(call: &mut Invocation) -> Result<(), Failure> {
    /// Segments that are written at a time.
    const STEP: usize = 4096;
    const SEGMENT: u64 = size_of::<Segment>() as u64;
    let memref = call.memref(0)?;
    let (_, all) = call.pieces(memref, 0, 0)?;
    let null = memref.is_null().into();
    call.set_value(2, all as u64, memref.size(), null);
    let to = call.make_room(1, all as u64 * SEGMENT)?;
    for skip in (0..all).step_by(STEP) {
        let (pieces, _) = call.pieces(memref, skip, STEP)?;
        let segments: Vec<Segment> = pieces.into_iter().map(Segment::from).collect();
        let part = to.part(skip as u64 * SEGMENT, segments.len() as u64 * SEGMENT);
        call.write(part.ok_or(BAD_PARAMETERS)?, segments.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::{
        Buffer, DONE, NO_PARAMS, NONE, Reply, Rig, Session, VALUE_OUT, param, value_in,
    };
    use pinbed_abi::tee::*;
    use pinbed_abi::wire;
    use zerocopy::FromBytes;

    const SHORT: (u32, u32) = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
    const REFUSED: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
    const NULL_OUT: Param = param(PARAM_MEMREF_OUTPUT, 0, 0, 0);

    fn hold(session: &Session, memref: Param) -> u64 {
        let reply = session.invoke(HOLD, [memref, VALUE_OUT, NONE, NONE]);
        reply.ok().value(1).0
    }

    fn held_read(session: &Session, held: u64, offset: u64, length: usize) -> (Reply, Vec<u8>) {
        let to = session.rig.room(length);
        let to_all = to.all(PARAM_MEMREF_OUTPUT);
        let reply = session.invoke(HELD_READ, [value_in(held, offset), to_all, NONE, NONE]);
        (reply, session.rig.get(&to))
    }

    #[test]
    fn checksums_what_is_there_now() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.buffer(b"..123456789..");
        for attr in [PARAM_MEMREF_INPUT, PARAM_MEMREF_INOUT] {
            let params = [buffer.part(attr, 2, 9), VALUE_OUT, NONE, NONE];
            let reply = session.invoke(CHECKSUM, params);
            // The check value of CRC32C.
            assert_eq!(reply.ok().value(1), (0xe306_9283, 9, 0));
        }
        let params = [buffer.all(PARAM_MEMREF_OUTPUT), VALUE_OUT, NONE, NONE];
        assert_eq!(session.invoke(CHECKSUM, params).verdict(), REFUSED);
        let null = [param(PARAM_MEMREF_INPUT, 3, 4, 0), VALUE_OUT, NONE, NONE];
        assert_eq!(session.invoke(CHECKSUM, null).ok().value(1), (0, 0, 0));
        let large: Vec<u8> = (0..200_001u32)
            .map(|n| (n.wrapping_mul(n) >> 5) as u8)
            .collect();
        let params = [
            rig.buffer(&large).all(PARAM_MEMREF_INPUT),
            VALUE_OUT,
            NONE,
            NONE,
        ];
        let crc = crc32c::crc32c(&large).into();
        let reply = session.invoke(CHECKSUM, params);
        assert_eq!(reply.ok().value(1), (crc, 200_001, 0));
    }

    #[test]
    fn fills_the_memref_and_nothing_else() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.room(70_007);
        let memref = buffer.part(PARAM_MEMREF_OUTPUT, 3, 70_001);
        let reply = session.invoke(FILL, [memref, value_in(0x0403_0201, 0), NONE, NONE]);
        reply.ok();
        let mut wanted = vec![0xee; 3];
        wanted.extend([1, 2, 3, 4].iter().cycle().take(70_001));
        wanted.extend([0xee; 3]);
        assert_eq!(rig.get(&buffer), wanted);
        let late = [memref, value_in(0, MAX_WAIT_MS + 1), NONE, NONE];
        assert_eq!(session.invoke(FILL, late).verdict(), REFUSED);
    }

    #[test]
    fn copies_and_says_how_much() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let from = rig.buffer(b"0123456789");
        let from = from.all(PARAM_MEMREF_INPUT);
        for (room, verdict, wanted) in [
            (10, DONE, &b"0123456789"[..]),
            (12, DONE, b"0123456789\xee\xee"),
            (9, SHORT, &[0xee; 9]),
        ] {
            let to = rig.room(room);
            let params = [from, to.all(PARAM_MEMREF_OUTPUT), NONE, NONE];
            let reply = session.invoke(COPY, params);
            assert_eq!((reply.verdict(), reply.size(1)), (verdict, 10));
            assert_eq!(rig.get(&to), wanted);
        }
    }

    #[test]
    fn describes_where_a_memref_is() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let describe = |memref, to: Param| session.invoke(DESCRIBE, [memref, to, VALUE_OUT, NONE]);
        let buffer = rig.room(9000);
        let to = rig.room(32);
        let to_all = to.all(PARAM_MEMREF_OUTPUT);
        for attr in [PARAM_MEMREF_INPUT, PARAM_MEMREF_OUTPUT, PARAM_MEMREF_INOUT] {
            let reply = describe(buffer.all(attr), to_all).ok();
            assert_eq!((reply.value(2), reply.size(1)), ((2, 9000, 0), 32));
            let bytes = rig.get(&to);
            let segments = <[wire::Segment]>::ref_from_bytes(&bytes).unwrap();
            assert_eq!(segments, buffer.segments());
        }
        let reply = describe(buffer.part(PARAM_MEMREF_INPUT, 8999, 1), to_all);
        assert_eq!(reply.ok().value(2), (1, 1, 0));
        let bytes = rig.get(&to);
        let (last, _) = wire::Segment::read_from_prefix(&bytes).unwrap();
        let second = buffer.segments()[1];
        assert_eq!(
            last.address.get(),
            second.address.get() + second.length.get() - 1
        );
        let reply = describe(buffer.all(PARAM_MEMREF_INPUT), NULL_OUT);
        assert_eq!((reply.verdict(), reply.size(1)), (SHORT, 32));
        let reply = describe(NULL_OUT, to_all).ok();
        assert_eq!((reply.value(2), reply.size(1)), ((0, 0, 1), 0));
    }

    #[test]
    fn holds_memory_between_calls() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.buffer(b"before the call");
        let held = hold(&session, buffer.part(PARAM_MEMREF_INOUT, 3, 9));
        rig.put(&buffer, b"after  the call");
        let (reply, bytes) = held_read(&session, held, 4, 5);
        reply.ok();
        assert_eq!(bytes, b"the c");
        let from = rig.buffer(b"!!").all(PARAM_MEMREF_INPUT);
        let params = [value_in(held, 7), from, NONE, NONE];
        session.invoke(HELD_WRITE, params).ok();
        assert_eq!(rig.get(&buffer), b"after  the!!all");
        let params = [value_in(held, 0), value_in(2, 7), VALUE_OUT, NONE];
        let crc = crc32c::crc32c(b"  the!!").into();
        let reply = session.invoke(HELD_CHECKSUM, params);
        assert_eq!(reply.ok().value(2), (crc, 7, 0));
        // Past the memref's end, though inside the buffer.
        assert_eq!(held_read(&session, held, 5, 5).0.verdict(), REFUSED);
        assert_eq!(held_read(&session, held, u64::MAX, 5).0.verdict(), REFUSED);
        let params = [value_in(held, 8), from, NONE, NONE];
        assert_eq!(session.invoke(HELD_WRITE, params).verdict(), REFUSED);
        assert_eq!(rig.get(&buffer), b"after  the!!all");
    }

    #[test]
    fn held_memory_that_is_detached_is_a_fault_and_no_harm() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.buffer(b"the page's next user");
        let held = hold(&session, buffer.all(PARAM_MEMREF_INOUT));
        rig.detach(&buffer);
        let (reply, bytes) = held_read(&session, held, 0, 4);
        assert_eq!(reply.verdict(), (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE));
        assert_eq!(reply.fault.reason, wire::FAULT_NOT_ATTACHED);
        assert_eq!(reply.fault.access, wire::DIRECTION_READ);
        assert_eq!(bytes, [0xee; 4]);
        let from = rig.buffer(b"!!").all(PARAM_MEMREF_INPUT);
        let reply = session.invoke(HELD_WRITE, [value_in(held, 0), from, NONE, NONE]);
        assert_eq!(reply.verdict(), (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE));
        assert_eq!(reply.fault.access, wire::DIRECTION_WRITE);
        assert_eq!(rig.get(&buffer), b"the page's next user");
        // The session goes on.
        assert_eq!(
            session
                .invoke(RELEASE, [value_in(held, 0), NONE, NONE, NONE])
                .verdict(),
            DONE
        );
    }

    #[test]
    fn a_memref_is_held_with_the_rights_it_was_given() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer = rig.buffer(b"0123");
        let read = hold(&session, buffer.all(PARAM_MEMREF_INPUT));
        let write = hold(&session, buffer.all(PARAM_MEMREF_OUTPUT));
        let from = rig.buffer(b"!!").all(PARAM_MEMREF_INPUT);
        let put = |held| session.invoke(HELD_WRITE, [value_in(held, 0), from, NONE, NONE]);
        assert_eq!(put(read).verdict(), REFUSED);
        assert_eq!(rig.get(&buffer), b"0123");
        put(write).ok();
        assert_eq!(rig.get(&buffer), b"!!23");
        assert_eq!(held_read(&session, write, 0, 2).0.verdict(), REFUSED);
        held_read(&session, read, 0, 2).0.ok();
    }

    #[test]
    fn bounds_what_it_holds_and_forgets_what_it_releases() {
        let rig = Rig::new();
        let (session, other) = (rig.open(1, UUID), rig.open(1, UUID));
        let buffer = rig.room(4);
        let memref = buffer.all(PARAM_MEMREF_INPUT);
        let held: Vec<u64> = (0..MAX_HELD).map(|_| hold(&session, memref)).collect();
        let params = [memref, VALUE_OUT, NONE, NONE];
        let verdict = session.invoke(HOLD, params).verdict();
        assert_eq!(verdict, (TEEC_ERROR_OUT_OF_MEMORY, TEEC_ORIGIN_TRUSTED_APP));
        let release = |held| session.invoke(RELEASE, [value_in(held, 0), NONE, NONE, NONE]);
        release(held[5]).ok();
        let not_found = (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(release(held[5]).verdict(), not_found);
        assert_eq!(held_read(&session, held[5], 0, 4).0.verdict(), not_found);
        assert_eq!(held_read(&other, held[6], 0, 4).0.verdict(), not_found);
        assert!(!held.contains(&hold(&session, memref)));
    }

    #[test]
    fn echoes_all_bits_of_values() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let (a, b, c) = (0x0123_4567_89ab_cdef, u64::MAX, 1 << 63);
        let params = [
            param(PARAM_VALUE_INPUT, a, b, c),
            VALUE_OUT,
            param(PARAM_VALUE_INOUT, a, b, c),
            NONE,
        ];
        let reply = session.invoke(ECHO, params).ok();
        assert_eq!(reply.value(1), (a, b, c));
        assert_eq!(reply.value(2), (!a, !b, !c));
    }

    #[test]
    fn sets_sizes_and_returns_codes_as_told() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let buffer: Buffer = rig.room(10);
        for (size, verdict) in [(0, DONE), (10, DONE), (11, SHORT), (u64::MAX, SHORT)] {
            let memref = buffer.all(PARAM_MEMREF_OUTPUT);
            let reply = session.invoke(SET_SIZE, [memref, value_in(size, 0), NONE, NONE]);
            assert_eq!((reply.verdict(), reply.size(0)), (verdict, size));
        }
        assert_eq!(rig.get(&buffer), [0xee; 10]);
        for code in [TEEC_SUCCESS, 1, TEEC_ERROR_TARGET_DEAD, u32::MAX] {
            let reply = session.invoke(RETURN, [value_in(code.into(), 0), NONE, NONE, NONE]);
            assert_eq!(reply.verdict(), (code, TEEC_ORIGIN_TRUSTED_APP));
        }
        let unknown = session.invoke(CLIENT + 1, NO_PARAMS).verdict();
        assert_eq!(unknown, (TEEC_ERROR_NOT_SUPPORTED, TEEC_ORIGIN_TRUSTED_APP));
    }
}
