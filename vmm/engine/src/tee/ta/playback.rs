// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Secure playback: decrypts a stream into memory that only the device's engines can read.

use aes::{Aes128, Aes256};
use cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use ctr::Ctr128BE;
use pinbed_abi::ta::playback::*;
use pinbed_abi::tee::{
    TEEC_ERROR_ACCESS_DENIED, TEEC_ERROR_BAD_STATE, TEEC_ERROR_NOT_SUPPORTED,
    TEEC_ERROR_SHORT_BUFFER,
};

use super::{Descriptor, TrustedApp};
use crate::access::{Destination, Direction, Protection};
use crate::tee::invocation::{BAD_PARAMETERS, Failure, Invocation, Kind};

pub const DESCRIPTOR: Descriptor = Descriptor {
    uuid: UUID,
    single_instance: false,
    secure_data_path: true,
    new: || Box::new(Playback::default()),
};

/// A stream's cipher, at any position.
trait Keystream: Send {
    /// Goes on at `position`; false if the stream does not go that far.
    fn apply(&mut self, position: u64, bytes: &mut [u8]) -> bool;
}

impl<C: StreamCipher + StreamCipherSeek + Send> Keystream for C {
    fn apply(&mut self, position: u64, bytes: &mut [u8]) -> bool {
        self.try_seek(position).is_ok() && self.try_apply_keystream(bytes).is_ok()
    }
}

struct Stream {
    keystream: Box<dyn Keystream>,
    /// Plain bytes may go to memory that is not protected.
    clear: bool,
    position: u64,
}

#[derive(Default)]
struct Playback {
    stream: Option<Stream>,
}

impl TrustedApp for Playback {
    fn invoke(&mut self, function: u32, call: &mut Invocation) -> Result<(), Failure> {
        use Kind::*;
        match function {
            SET_KEY => {
                call.expect([MemrefIn, MemrefIn, ValueIn, Unused])?;
                self.stream = None;
                self.stream = Some(stream(call)?);
                Ok(())
            }
            DECRYPT => {
                call.expect([MemrefIn, AnyMemory, ValueOut, Unused])?;
                self.stream()?.decrypt(call)
            }
            SEEK => {
                call.expect([ValueIn, Unused, Unused, Unused])?;
                self.stream()?.position = call.value(0).0;
                Ok(())
            }
            CHECKSUM => {
                call.expect([AnyMemory, ValueOut, Unused, Unused])?;
                self.stream()?;
                let memref = call.memory(0, Readable)?;
                let crc = call.checksum(memref)?;
                call.set_value(1, crc.into(), memref.size(), 0);
                Ok(())
            }
            ALLOW_VIDEO => {
                call.expect([AnyMemory, ValueIn, Unused, Unused])?;
                let direction = match call.value(1).0 {
                    0 => None,
                    // Out of u32's range it is no direction either.
                    value => Some(
                        u32::try_from(value)
                            .ok()
                            .and_then(Direction::from_wire)
                            .ok_or(BAD_PARAMETERS)?,
                    ),
                };
                let memref = call.memory(0, AnyMemref)?;
                call.allow_video(memref, direction)
            }
            _ => Err(Failure::Code(TEEC_ERROR_NOT_SUPPORTED)),
        }
    }
}

impl Playback {
    fn stream(&mut self) -> Result<&mut Stream, Failure> {
        let no_key = Failure::Code(TEEC_ERROR_BAD_STATE);
        self.stream.as_mut().ok_or(no_key)
    }
}

/// The stream that SET_KEY's parameters describe.
fn stream(call: &mut Invocation) -> Result<Stream, Failure> {
    let (key, counter) = (call.memref(0)?, call.memref(1)?);
    if counter.size() != 16 {
        return Err(BAD_PARAMETERS);
    }
    let counter = call.read_all(counter, 16)?;
    let clear = match call.value(2).0 {
        POLICY_PROTECTED => false,
        POLICY_CLEAR => true,
        _ => return Err(BAD_PARAMETERS),
    };
    let keystream: Box<dyn Keystream> = match key.size() {
        16 => {
            let key = call.read_all(key, 16)?;
            let stream = Ctr128BE::<Aes128>::new_from_slices(&key, &counter);
            Box::new(stream.map_err(|_| BAD_PARAMETERS)?)
        }
        32 => {
            let key = call.read_all(key, 32)?;
            let stream = Ctr128BE::<Aes256>::new_from_slices(&key, &counter);
            Box::new(stream.map_err(|_| BAD_PARAMETERS)?)
        }
        _ => return Err(BAD_PARAMETERS),
    };
    Ok(Stream {
        keystream,
        clear,
        position: 0,
    })
}

impl Stream {
    fn decrypt(&mut self, call: &mut Invocation) -> Result<(), Failure> {
        let from = call.memref(0)?;
        let end = self.position.checked_add(from.size());
        let end = end.ok_or(BAD_PARAMETERS)?;
        let to = call.memory(1, Kind::MemrefOut)?;
        // What a value names has no size to be written back.
        if call.memref(1).is_ok() {
            call.set_size(1, from.size());
        }
        let too_short = Failure::Code(TEEC_ERROR_SHORT_BUFFER);
        let to = to.part(0, from.size()).ok_or(too_short)?;
        // What comes from protected memory does not leave it, whatever the policy.
        let secret = !self.clear || call.protection(from)? != Protection::None;
        if secret && call.protection(to)? != Protection::Whole {
            return Err(Failure::Code(TEEC_ERROR_ACCESS_DENIED));
        }
        let mut crc = 0;
        call.each_secret(from, |call, offset, bytes, destination| {
            if !self.keystream.apply(self.position + offset, bytes) {
                return Err(BAD_PARAMETERS);
            }
            crc = crc32c::crc32c_append(crc, bytes);
            let part = to.part(offset, bytes.len() as u64).ok_or(BAD_PARAMETERS)?;
            let destination = match self.clear {
                true => destination,
                false => Destination::Protected,
            };
            call.write_to(part, bytes, destination)
        })?;
        self.position = end;
        call.set_value(2, crc.into(), end, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::*;
    use pinbed_abi::ta::{pin, random};
    use pinbed_abi::tee::*;
    use pinbed_abi::wire;

    const REFUSED: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
    const KEPT_OUT: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE);
    const DENIED: (u32, u32) = (TEEC_ERROR_ACCESS_DENIED, TEEC_ORIGIN_TRUSTED_APP);

    // NIST SP 800-38A, section F.5.1.
    const KEY: &str = "2b7e151628aed2a6abf7158809cf4f3c";
    const COUNTER: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
    const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
                         30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710";
    const CODED: &str = "874d6191b620e3261bef6864990db6ce 9806f66b7970fdff8617187bb9fffdff
                         5ae4df3edbd5d35e5b4f09020db03eab 1e031dda2fbe03d1792170a0f3009cee";

    fn set_key(session: &Session, key: &[u8], counter: &[u8], policy: u64) -> Reply {
        let key = session.rig.buffer(key).all(PARAM_MEMREF_INPUT);
        let counter = session.rig.buffer(counter).all(PARAM_MEMREF_INPUT);
        session.invoke(SET_KEY, [key, counter, value_in(policy, 0), NONE])
    }

    fn playback(rig: &Rig, policy: u64) -> Session<'_> {
        let session = rig.open(1, UUID);
        set_key(&session, &hex(KEY), &hex(COUNTER), policy).ok();
        session
    }

    fn decrypt(session: &Session, coded: &[u8], to: Param) -> Reply {
        let from = session.rig.buffer(coded).all(PARAM_MEMREF_INPUT);
        session.invoke(DECRYPT, [from, to, VALUE_OUT, NONE])
    }

    fn allow_video(session: &Session, memref: Param, direction: u64) -> (u32, u32) {
        let params = [memref, value_in(direction, 0), NONE, NONE];
        session.invoke(ALLOW_VIDEO, params).verdict()
    }

    /// As the playback application sees it.
    fn checksum(session: &Session, memref: Param) -> u64 {
        let reply = session.invoke(CHECKSUM, [memref, VALUE_OUT, NONE, NONE]);
        reply.ok().value(1).0
    }

    fn crc(bytes: &[u8]) -> u64 {
        crc32c::crc32c(bytes).into()
    }

    #[test]
    fn decrypts_a_stream_over_calls_of_any_length_and_from_any_position() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_CLEAR);
        let (plain, coded) = (hex(PLAIN), hex(CODED));
        let to = rig.room(64);
        for (from, until) in [(0, 5), (5, 37), (37, 39), (39, 64)] {
            let part = to.part(PARAM_MEMREF_OUTPUT, from, until - from);
            let (start, end) = (from as usize, until as usize);
            let reply = decrypt(&session, &coded[start..end], part).ok();
            assert_eq!(reply.value(2), (crc(&plain[start..end]), until, 0));
            assert_eq!(reply.size(1), until - from);
        }
        assert_eq!(rig.get(&to), plain);
        session
            .invoke(SEEK, [value_in(17, 0), NONE, NONE, NONE])
            .ok();
        let to = rig.room(30);
        decrypt(&session, &coded[17..47], to.all(PARAM_MEMREF_OUTPUT)).ok();
        assert_eq!(rig.get(&to), plain[17..47]);
        session
            .invoke(SEEK, [value_in(u64::MAX - 28, 0), NONE, NONE, NONE])
            .ok();
        let past = decrypt(&session, &coded[..30], to.all(PARAM_MEMREF_OUTPUT));
        assert_eq!(past.verdict(), REFUSED);
    }

    #[test]
    fn the_cpu_does_not_see_what_stands_in_protected_memory() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let plain = vec![0x5a; 200_000];
        let mut coded = plain.clone();
        let mut cipher = Ctr128BE::<Aes128>::new_from_slices(&hex(KEY), &hex(COUNTER)).unwrap();
        cipher.apply_keystream(&mut coded);
        let to = rig.protected(200_000);
        let to_all = to.all(PARAM_MEMREF_OUTPUT);
        let reply = decrypt(&session, &coded, to_all).ok();
        assert_eq!(reply.value(2).0, crc(&plain));
        assert_eq!(checksum(&session, to.all(PARAM_MEMREF_INPUT)), crc(&plain));
        let seen = rig.get(&to);
        for (hidden, bytes) in [("plain", &plain), ("coded", &coded)] {
            let same = seen.iter().zip(bytes).filter(|(a, b)| a == b).count();
            assert!(same < 1200, "{same} of 200,000 bytes are {hidden}");
        }
        // And it does not after the buffer is let go of either.
        rig.detach(&to);
        assert_eq!(rig.get(&to), seen);
    }

    #[test]
    fn plain_bytes_go_to_protected_memory_only_unless_the_policy_is_another() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let coded = hex(CODED);
        let clear = rig.room(64);
        let reply = decrypt(&session, &coded, clear.all(PARAM_MEMREF_OUTPUT));
        assert_eq!(reply.verdict(), DENIED);
        assert_eq!(rig.get(&clear), [0xee; 64]);
        // The stream stays where it was.
        let protected = rig.protected(64);
        let all = protected.all(PARAM_MEMREF_OUTPUT);
        let reply = decrypt(&session, &coded, all).ok();
        assert_eq!(reply.value(2), (crc(&hex(PLAIN)), 64, 0));
        // Half of it is protected.
        let half = rig.attach(0, &[clear.segments()[0], protected.segments()[1]]);
        let half = param(PARAM_MEMREF_OUTPUT, 0, 40, half);
        let reply = decrypt(&session, &coded[..40], half);
        assert_eq!(reply.verdict(), DENIED);
        let clear = playback(&rig, POLICY_CLEAR);
        let all = rig.protected(64).all(PARAM_MEMREF_OUTPUT);
        decrypt(&clear, &coded, all).ok();
    }

    #[test]
    fn others_are_kept_out_of_protected_memory_by_whatever_name() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let protected = rig.protected(64);
        let reply = decrypt(&session, &hex(CODED), protected.all(PARAM_MEMREF_OUTPUT));
        reply.ok();
        let before = rig.get(&protected);
        // The same memory under another name, as an import of a dma-buf.
        let alias = rig.attach(0, &protected.segments());
        for handle in [protected.handle, alias] {
            let fault = rig.checksum(handle, 64).unwrap_err();
            assert_eq!(fault.reason, wire::FAULT_PROTECTED);
            let clear = rig.room(64);
            for (src, dst) in [(handle, clear.handle), (clear.handle, handle)] {
                let job = rig.copy(src, dst, 64);
                assert_eq!(job.header.status, wire::STATUS_DMA_FAULT);
                assert_eq!(job.fault.reason, wire::FAULT_PROTECTED);
                assert_eq!(job.fault.range.handle, handle);
            }
            assert_eq!(rig.get(&clear), [0xee; 64]);
            let memref = param(PARAM_MEMREF_OUTPUT, 0, 64, handle);
            let other = rig.open(2, random::UUID);
            let reply = other.invoke(random::GENERATE, [memref, NONE, NONE, NONE]);
            assert_eq!(reply.verdict(), KEPT_OUT);
            assert_eq!(reply.fault.reason, wire::FAULT_PROTECTED);
        }
        assert_eq!(rig.get(&protected), before);
    }

    #[test]
    fn protected_memory_is_its_first_sessions_and_no_other_clients() {
        let rig = Rig::new();
        let owner = playback(&rig, POLICY_PROTECTED);
        let (coded, plain) = (hex(CODED), hex(PLAIN));
        let memory = rig.protected(64);
        decrypt(&owner, &coded, memory.all(PARAM_MEMREF_OUTPUT)).ok();
        let alias = Buffer {
            handle: rig.attach(0, &memory.segments()),
            ..memory
        };
        // Who knows a key stream reads what it decrypts out: here the one of a key of its own.
        let thief = rig.open(2, UUID);
        set_key(&thief, &hex(KEY), &hex(COUNTER), POLICY_CLEAR).ok();
        let out = rig.room(64);
        for name in [memory, alias] {
            let from = name.all(PARAM_MEMREF_INPUT);
            let to = out.all(PARAM_MEMREF_OUTPUT);
            let reply = thief.invoke(DECRYPT, [from, to, VALUE_OUT, NONE]);
            assert_eq!(reply.verdict(), KEPT_OUT);
            assert_eq!(reply.fault.reason, wire::FAULT_PROTECTED);
            for at in 0..64 {
                let byte = name.part(PARAM_MEMREF_INPUT, at, 1);
                let reply = thief.invoke(CHECKSUM, [byte, VALUE_OUT, NONE, NONE]);
                assert_eq!(reply.verdict(), KEPT_OUT);
            }
            let opened = allow_video(&thief, name.all(PARAM_MEMREF_INOUT), 1);
            assert_eq!(opened, KEPT_OUT);
        }
        let named = value_in(memory.handle, 0);
        for reply in [
            decrypt(&thief, &coded, named),
            thief.invoke(CHECKSUM, [named, VALUE_OUT, NONE, NONE]),
        ] {
            assert_eq!(reply.fault.reason, wire::FAULT_PROTECTED);
        }
        assert_eq!(rig.get(&out), [0xee; 64]);
        let seen = checksum(&owner, memory.all(PARAM_MEMREF_INPUT));
        assert_eq!(seen, crc(&plain));
    }

    #[test]
    fn a_checksum_needs_a_key() {
        let rig = Rig::new();
        let keyless = rig.open(1, UUID);
        let byte = rig.protected(64).part(PARAM_MEMREF_INPUT, 0, 1);
        let reply = keyless.invoke(CHECKSUM, [byte, VALUE_OUT, NONE, NONE]);
        let bad_state = (TEEC_ERROR_BAD_STATE, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(reply.verdict(), bad_state);
    }

    #[test]
    fn what_was_protected_does_not_leave_by_another_policy() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let (memory, out) = (rig.protected(64), rig.room(64));
        decrypt(&session, &hex(CODED), memory.all(PARAM_MEMREF_OUTPUT)).ok();
        set_key(&session, &hex(KEY), &hex(COUNTER), POLICY_CLEAR).ok();
        let from = memory.all(PARAM_MEMREF_INPUT);
        let to = out.all(PARAM_MEMREF_OUTPUT);
        let reply = session.invoke(DECRYPT, [from, to, VALUE_OUT, NONE]);
        assert_eq!(reply.verdict(), DENIED);
        assert_eq!(rig.get(&out), [0xee; 64]);
    }

    #[test]
    fn protection_that_ends_in_the_middle_ends_the_stream() {
        const LENGTH: usize = 1 << 20;
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let coded = rig.buffer(&vec![0x5a; LENGTH]);
        let memory = rig.protected(LENGTH);
        // Under this name the memory stays attached, in clear.
        let alias = Buffer {
            handle: rig.attach(0, &memory.segments()),
            ..memory
        };
        let memrefs = [
            coded.all(PARAM_MEMREF_INPUT),
            alias.all(PARAM_MEMREF_OUTPUT),
        ];
        let call = session.begin(DECRYPT, [memrefs[0], memrefs[1], VALUE_OUT, NONE]);
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            if asked.get() == 8 {
                rig.detach(&memory);
                rig.put(&memory, &vec![0; LENGTH]);
            }
            true
        };
        let answer = rig.engine.run(&rig.memory, call, &go_on);
        let reply = Reply::of(&answer);
        assert_eq!(reply.verdict(), (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE));
        assert_eq!(reply.fault.reason, wire::FAULT_NOT_PROTECTED);
        assert_eq!(answer.events.len(), 1);
        assert_eq!(asked.get(), 8, "it ended at another moment");
        let written = rig.get(&memory).iter().filter(|byte| **byte != 0).count();
        assert_eq!(written, 0, "bytes in clear");
    }

    #[test]
    fn memory_that_is_protected_again_shows_nothing_of_its_last_owner() {
        let rig = Rig::new();
        let (first, second) = (
            playback(&rig, POLICY_PROTECTED),
            playback(&rig, POLICY_PROTECTED),
        );
        let plain = crc(&hex(PLAIN));
        let mut memory = rig.protected(64);
        let decrypted = |session: &Session, memory: &Buffer| {
            session
                .invoke(SEEK, [value_in(0, 0), NONE, NONE, NONE])
                .ok();
            decrypt(session, &hex(CODED), memory.all(PARAM_MEMREF_OUTPUT)).ok();
        };
        decrypted(&first, &memory);
        // Attached anew.
        rig.detach(&memory);
        memory.handle = rig.attach(wire::ATTACH_PROTECTED, &memory.segments());
        let all = memory.all(PARAM_MEMREF_INPUT);
        assert_ne!(checksum(&second, all), plain);
        // Attached still, when its owner has gone.
        decrypted(&second, &memory);
        assert_eq!(checksum(&second, all), plain);
        assert_eq!(allow_video(&second, all, 1), DONE);
        let display = rig.room(64).handle;
        let show = || rig.copy(memory.handle, display, 64).header.status.get();
        assert_eq!(show(), wire::STATUS_OK);
        second.close();
        assert_eq!(show(), wire::STATUS_DMA_FAULT);
        assert_ne!(checksum(&first, all), plain);
        assert_eq!(show(), wire::STATUS_DMA_FAULT);
    }

    #[test]
    fn memory_that_becomes_protected_is_lost_to_who_held_it() {
        let rig = Rig::new();
        let buffer = rig.room(64);
        let other = rig.open(2, pin::UUID);
        let memref = buffer.all(PARAM_MEMREF_INPUT);
        let held = other
            .invoke(pin::HOLD, [memref, VALUE_OUT, NONE, NONE])
            .ok()
            .value(1)
            .0;
        let read = || {
            let to = rig.room(64).all(PARAM_MEMREF_OUTPUT);
            other.invoke(pin::HELD_READ, [value_in(held, 0), to, NONE, NONE])
        };
        read().ok();
        let handle = rig.attach(wire::ATTACH_PROTECTED, &buffer.segments());
        let reply = read();
        assert_eq!(reply.verdict(), (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE));
        assert_eq!(reply.fault.reason, wire::FAULT_PROTECTED);
        rig.detach(&Buffer { handle, ..buffer });
        read().ok();
    }

    #[test]
    fn the_video_engine_reads_what_it_is_allowed_to_and_no_longer() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let protected = rig.protected(64);
        let all = protected.all(PARAM_MEMREF_OUTPUT);
        decrypt(&session, &hex(CODED), all).ok();
        let alias = rig.attach(0, &protected.segments());
        let display = rig.room(64);
        let show = || {
            let job = rig.copy(alias, display.handle, 64);
            (job.header.status.get(), job.src_crc.get())
        };
        let plain = hex(PLAIN);
        assert_eq!(show().0, wire::STATUS_DMA_FAULT);
        let read = u64::from(wire::DIRECTION_READ);
        assert_eq!(allow_video(&session, all, read), DONE);
        assert_eq!(show(), (wire::STATUS_OK, crc32c::crc32c(&plain)));
        assert_eq!(rig.get(&display), plain);
        let write = rig.copy(display.handle, alias, 64);
        assert_eq!(write.fault.reason, wire::FAULT_PROTECTED);
        assert!(rig.checksum(alias, 64).is_err());
        let part = protected.part(PARAM_MEMREF_OUTPUT, 63, 1);
        assert_eq!(allow_video(&session, part, 0), DONE);
        assert_eq!(show().0, wire::STATUS_DMA_FAULT);
        let both = u64::from(wire::DIRECTION_BOTH);
        assert_eq!(allow_video(&session, all, both), DONE);
        rig.put(&display, &[0x77; 64]);
        let write = rig.copy(display.handle, alias, 64);
        assert_eq!(write.header.status, wire::STATUS_OK);
        assert_ne!(rig.get(&protected), [0x77; 64]);
        let seen = checksum(&session, protected.all(PARAM_MEMREF_INPUT));
        assert_eq!(seen, crc(&[0x77; 64]));
    }

    #[test]
    fn protected_memory_has_a_name_beside_memrefs() {
        let rig = Rig::new();
        let session = playback(&rig, POLICY_PROTECTED);
        let (coded, plain) = (hex(CODED), hex(PLAIN));
        let (clear, protected) = (rig.room(64), rig.protected(64));
        let alias = rig.attach(0, &protected.segments());
        // A handle is not the way to memory that is not protected, or to an importer's view of it.
        for other in [clear.handle, alias, 0, protected.handle + 1000] {
            let named = value_in(other, 0);
            assert_eq!(decrypt(&session, &coded, named).verdict(), REFUSED);
            assert_eq!(allow_video(&session, named, 1), REFUSED);
        }
        let named = value_in(protected.handle, 0);
        let reply = decrypt(&session, &coded, named).ok();
        assert_eq!(reply.value(2), (crc(&plain), 64, 0));
        assert_eq!(reply.params[1], named);
        assert_eq!(checksum(&session, named), crc(&plain));
        assert_eq!(allow_video(&session, named, 1), DONE);
        let job = rig.copy(alias, clear.handle, 64);
        assert_eq!(job.header.status, wire::STATUS_OK);
        assert_eq!(rig.get(&clear), plain);
        let long = [coded.clone(), coded].concat();
        let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!(decrypt(&session, &long, named).verdict(), short);
        // An application without a right to protected memory knows no such names.
        let other = rig.open(2, pin::UUID);
        let reply = other.invoke(pin::CHECKSUM, [named, VALUE_OUT, NONE, NONE]);
        assert_eq!(reply.verdict(), REFUSED);
    }

    #[test]
    fn a_reset_ends_protection() {
        let rig = Rig::new();
        let segments = rig.protected(64).segments();
        let alias = rig.attach(0, &segments);
        assert!(rig.checksum(alias, 64).is_err());
        rig.engine.reset();
        let alias = rig.attach(0, &segments);
        assert_eq!(rig.checksum(alias, 64), Ok(crc32c::crc32c(&[0xee; 64])));
    }

    #[test]
    fn opens_protected_memory_only() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let (clear, protected) = (rig.room(64), rig.protected(64));
        let clear = clear.all(PARAM_MEMREF_INOUT);
        assert_eq!(allow_video(&session, clear, 1), REFUSED);
        let null = param(PARAM_MEMREF_INOUT, 0, 0, 0);
        assert_eq!(allow_video(&session, null, 1), REFUSED);
        let protected = protected.all(PARAM_MEMREF_INOUT);
        for no_direction in [4, 1 << 32 | 1] {
            assert_eq!(allow_video(&session, protected, no_direction), REFUSED);
        }
    }

    #[test]
    fn protection_is_told_by_query_and_not_given_twice() {
        let rig = Rig::new();
        let (clear, protected) = (rig.room(64), rig.protected(64));
        assert_eq!(rig.query(clear.handle).flags, 0);
        assert_eq!(rig.query(protected.handle).flags, wire::ATTACH_PROTECTED);
        let segments = protected.segments();
        let again = rig.try_attach(wire::ATTACH_PROTECTED, &segments);
        assert_eq!(again, Err(wire::STATUS_INVALID));
        assert_eq!(
            rig.try_attach(2, &clear.segments()),
            Err(wire::STATUS_INVALID)
        );
        rig.detach(&protected);
        rig.attach(wire::ATTACH_PROTECTED, &segments);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let rig = Rig::new();
        let session = rig.open(1, UUID);
        let to = rig.room(64).all(PARAM_MEMREF_OUTPUT);
        let keyless = decrypt(&session, &hex(CODED), to).verdict();
        assert_eq!(keyless, (TEEC_ERROR_BAD_STATE, TEEC_ORIGIN_TRUSTED_APP));
        for (key, counter, policy) in [(15, 16, 0), (24, 16, 0), (16, 15, 0), (16, 16, 2)] {
            let reply = set_key(&session, &vec![0; key], &vec![0; counter], policy);
            assert_eq!(reply.verdict(), REFUSED);
        }
        set_key(&session, &[0; 32], &[0; 16], POLICY_CLEAR).ok();
        let short = rig.room(63).all(PARAM_MEMREF_OUTPUT);
        let reply = decrypt(&session, &hex(CODED), short);
        let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
        assert_eq!((reply.verdict(), reply.size(1)), (short, 64));
        // A key that does not work leaves none.
        assert_eq!(set_key(&session, &[0; 3], &[0; 16], 0).verdict(), REFUSED);
        let keyless = decrypt(&session, &hex(CODED), to).result;
        assert_eq!(keyless, TEEC_ERROR_BAD_STATE);
    }
}
