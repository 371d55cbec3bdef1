// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who may read and write which byte of protected memory: the engine against a model of it. `ci/fuzz` chooses the requests by coverage, and
//! a property test at random.

use std::collections::BTreeMap;
use std::ops::Range;

use aes::Aes128;
use cipher::{KeyIvInit, StreamCipher};
use ctr::Ctr128BE;
use pinbed_abi::ta::{pin, playback};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::rig::*;

/// Where the memory is that all of this is about, and its length.
const BASE: u64 = 24 << 20;
const LENGTH: usize = 512;
/// Bytes before and after it that nothing is attached of.
const MARGIN: u64 = 256;
/// Bytes of input that an operation is made of.
const RECORD: usize = 12;
const SESSIONS: usize = 3;
/// Plain bytes of which the CPU sees none: so many, side by side and aligned, stand in memory by chance never.
const UNSEEN: usize = 8;
const KEY: [u8; 16] = [0x42; 16];

const KEPT_OUT: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE);
const DENIED: (u32, u32) = (TEEC_ERROR_ACCESS_DENIED, TEEC_ORIGIN_TRUSTED_APP);
const REFUSED: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);

/// A part of a buffer: which one, and where in it, both to be cut to what there is.
type Part = (usize, usize, usize);

#[derive(Debug, Clone)]
enum Op {
    Attach(bool, usize, usize),
    Detach(usize),
    /// The CPU writes.
    Poke(usize, usize, u8),
    /// A session decrypts bytes that these are made of.
    Decrypt(usize, Part, u8),
    /// A session decrypts what is in one part to another.
    Through(usize, Part, Part),
    Checksum(usize, Part),
    AllowVideo(usize, Part, u32),
    /// The session ends, and another begins.
    Close(usize),
    /// An application without the right looks.
    Outsider(Part),
    /// The control queue looks.
    Control(Part),
    Copy(Part, Part),
}

#[derive(Clone, Copy)]
enum Agent {
    Outsider,
    Video(u32),
    Session(usize),
}

struct Model<'r> {
    rig: &'r Rig,
    sessions: Vec<Session<'r>>,
    contexts: u64,
    /// Handle, first byte, length.
    buffers: Vec<(u64, usize, usize)>,
    /// Which attachment protects a byte.
    guard: Vec<Option<u64>>,
    /// What stands in a protected byte, if it is not garbage.
    plain: Vec<Option<u8>>,
    /// What the video engine may do there.
    video: Vec<u32>,
    /// The owners of attachments.
    owners: BTreeMap<u64, Option<usize>>,
    /// What the operation may have written.
    written: Range<usize>,
}

/// 0 for the sessions whose streams go to protected memory only.
fn policy(session: usize) -> u64 {
    match session {
        0 | 1 => playback::POLICY_PROTECTED,
        _ => playback::POLICY_CLEAR,
    }
}

fn keystream(bytes: &mut [u8]) {
    Ctr128BE::<Aes128>::new(&KEY.into(), &[0; 16].into()).apply_keystream(bytes);
}

impl<'r> Model<'r> {
    fn new(rig: &'r Rig) -> Self {
        let mut model = Self {
            rig,
            sessions: Vec::new(),
            contexts: 0,
            buffers: Vec::new(),
            guard: vec![None; LENGTH],
            plain: vec![None; LENGTH],
            video: vec![0; LENGTH],
            owners: BTreeMap::new(),
            written: 0..0,
        };
        for session in 0..SESSIONS {
            let opened = model.open(session);
            model.sessions.push(opened);
        }
        model
    }

    fn open(&mut self, number: usize) -> Session<'r> {
        self.contexts += 1;
        let session = self.rig.open(self.contexts, playback::UUID);
        let key = self.rig.buffer(&KEY).all(PARAM_MEMREF_INPUT);
        let counter = self.rig.buffer(&[0; 16]).all(PARAM_MEMREF_INPUT);
        let params = [key, counter, value_in(policy(number), 0), NONE];
        session.invoke(playback::SET_KEY, params).ok();
        session
    }

    fn raw(&self, bytes: Range<usize>) -> Vec<u8> {
        let mut seen = vec![0; bytes.len()];
        let at = GuestAddress(BASE + bytes.start as u64);
        self.rig.memory.read_slice(&mut seen, at).unwrap();
        seen
    }

    /// The part's bytes and its memref, unless nothing is attached.
    fn part(&self, part: Part, attr: u64) -> Option<(Range<usize>, Param)> {
        let (which, offset, length) = part;
        let (handle, start, whole) = *self.buffers.get(which % self.buffers.len().max(1))?;
        let offset = offset % whole;
        let length = 1 + length % (whole - offset);
        let memref = param(attr, offset as u64, length as u64, handle);
        Some((start + offset..start + offset + length, memref))
    }

    /// The first session that accesses it owns what nobody owns.
    fn claim(&mut self, session: usize, bytes: Range<usize>) {
        let mut attachments: Vec<u64> = self.guard[bytes].iter().copied().flatten().collect();
        attachments.dedup();
        for attachment in attachments {
            if self.owners[&attachment].is_none() {
                self.owners.insert(attachment, Some(session));
                for at in 0..LENGTH {
                    if self.guard[at] == Some(attachment) {
                        (self.plain[at], self.video[at]) = (None, 0);
                    }
                }
            }
        }
    }

    fn admits(&self, agent: Agent, bytes: Range<usize>) -> bool {
        let mut start = bytes.start;
        let mut pieces = self.guard[bytes].chunk_by(|one, next| one == next);
        pieces.all(|piece| {
            let bytes = start..start + piece.len();
            start = bytes.end;
            match (piece[0], agent) {
                (None, _) => true,
                (Some(_), Agent::Outsider) => false,
                (Some(attachment), Agent::Video(wants)) => {
                    let mut rights = self.video[bytes].iter();
                    self.owners[&attachment].is_some() && rights.all(|right| right & wants != 0)
                }
                (Some(attachment), Agent::Session(session)) => {
                    self.owners[&attachment] == Some(session)
                }
            }
        })
    }

    fn guarded(&self, bytes: Range<usize>) -> usize {
        self.guard[bytes].iter().flatten().count()
    }

    /// What who may see the bytes sees; `None` if some are garbage.
    fn seen(&self, bytes: Range<usize>) -> Option<Vec<u8>> {
        let raw = self.raw(bytes.clone());
        let pairs = bytes.zip(raw);
        pairs
            .map(|(byte, raw)| match self.guard[byte] {
                Some(_) => self.plain[byte],
                None => Some(raw),
            })
            .collect()
    }

    fn write(&mut self, bytes: Range<usize>, from: Option<&[u8]>) {
        self.written = bytes.clone();
        for (n, byte) in bytes.enumerate() {
            if self.guard[byte].is_some() {
                self.plain[byte] = from.map(|from| from[n]);
            }
        }
    }

    /// All of the memory, and the margins.
    fn whole(&self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH + 2 * MARGIN as usize];
        let at = GuestAddress(BASE - MARGIN);
        self.rig.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// Does it, and looks whether it changed a byte that the model does not let it write.
    fn run(&mut self, op: &Op) {
        let before = self.whole();
        self.written = 0..0;
        self.apply(op);
        let after = self.whole();
        let margin = MARGIN as usize;
        let (start, end) = (margin + self.written.start, margin + self.written.end);
        assert_eq!(
            before[..start],
            after[..start],
            "{op:?} wrote before its range"
        );
        assert_eq!(before[end..], after[end..], "{op:?} wrote behind its range");
        self.hidden(&after[margin..margin + LENGTH]);
    }

    /// Everybody looks at every byte that is attached: who may see it sees what stands there, nobody else sees anything.
    fn look_around(&mut self) {
        for which in 0..self.buffers.len() {
            let (_, start, length) = self.buffers[which];
            let mut at = 0;
            while at < length {
                let guard = self.guard[start + at];
                let same = self.guard[start + at..start + length].iter();
                let run = same.take_while(|it| **it == guard).count();
                let part = (which, at, run - 1);
                self.run(&Op::Control(part));
                self.run(&Op::Outsider(part));
                for session in 0..SESSIONS {
                    self.run(&Op::Checksum(session, part));
                }
                at += run;
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        let rig = self.rig;
        let read = PARAM_MEMREF_INPUT;
        match *op {
            Op::Attach(protected, start, length) => {
                let length = 1 + length % (LENGTH - start);
                let segment = wire::Segment {
                    address: (BASE + start as u64).into(),
                    length: (length as u64).into(),
                };
                let flags = if protected { wire::ATTACH_PROTECTED } else { 0 };
                let attached = rig.try_attach(flags, &[segment]);
                let twice = protected && self.guarded(start..start + length) > 0;
                assert_eq!(attached.is_err(), twice);
                let Ok(handle) = attached else { return };
                self.buffers.push((handle, start, length));
                if protected {
                    self.owners.insert(handle, None);
                    for byte in start..start + length {
                        self.guard[byte] = Some(handle);
                        (self.plain[byte], self.video[byte]) = (None, 0);
                    }
                }
            }
            Op::Detach(which) => {
                if self.buffers.is_empty() {
                    return;
                }
                let (handle, ..) = self.buffers.remove(which % self.buffers.len());
                rig.detach_handle(handle);
                self.owners.remove(&handle);
                for (guard, plain) in self.guard.iter_mut().zip(&mut self.plain) {
                    if *guard == Some(handle) {
                        (*guard, *plain) = (None, None);
                    }
                }
            }
            Op::Poke(start, length, seed) => {
                let length = 1 + length % (LENGTH - start);
                let bytes = vec![seed; length];
                let at = GuestAddress(BASE + start as u64);
                rig.memory.write_slice(&bytes, at).unwrap();
                self.write(start..start + length, None);
            }
            Op::Decrypt(session, to, seed) => {
                let Some((bytes, to)) = self.part(to, PARAM_MEMREF_OUTPUT) else {
                    return;
                };
                let plain: Vec<u8> = (0..bytes.len())
                    .map(|n| {
                        seed.wrapping_mul(31)
                            .wrapping_add((n as u8).wrapping_mul(7))
                    })
                    .collect();
                let mut coded = [plain.clone(), vec![0]].concat();
                keystream(&mut coded);
                let from = rig.buffer(&coded).part(read, 0, bytes.len() as u64);
                self.seek(session);
                let params = [from, to, VALUE_OUT, NONE];
                let reply = self.sessions[session].invoke(playback::DECRYPT, params);
                self.claim(session, bytes.clone());
                let all = self.guarded(bytes.clone()) == bytes.len();
                let expected = match self.admits(Agent::Session(session), bytes.clone()) {
                    false => KEPT_OUT,
                    true if policy(session) == playback::POLICY_PROTECTED && !all => DENIED,
                    true => DONE,
                };
                assert_eq!(reply.verdict(), expected);
                if expected == DONE {
                    self.write(bytes.clone(), Some(&plain));
                    assert_eq!(self.seen(bytes), Some(plain));
                }
            }
            Op::Through(session, from, to) => {
                let Some((from_bytes, from)) = self.part(from, read) else {
                    return;
                };
                let Some((mut bytes, mut to)) = self.part(to, PARAM_MEMREF_OUTPUT) else {
                    return;
                };
                if bytes.len() < from_bytes.len() {
                    return;
                }
                bytes.end = bytes.start + from_bytes.len();
                to.b = (bytes.len() as u64).into();
                self.seek(session);
                // What is garbage before the session claims it is garbage after, too.
                self.claim(session, from_bytes.clone());
                let agent = Agent::Session(session);
                let mut expected = KEPT_OUT;
                if self.admits(agent, from_bytes.clone()) {
                    self.claim(session, bytes.clone());
                    let secret = self.guarded(from_bytes.clone()) > 0
                        || policy(session) == playback::POLICY_PROTECTED;
                    let all = self.guarded(bytes.clone()) == bytes.len();
                    expected = match self.admits(agent, bytes.clone()) {
                        false => KEPT_OUT,
                        true if secret && !all => DENIED,
                        true => DONE,
                    };
                }
                let mut plain = self.seen(from_bytes);
                if let Some(plain) = &mut plain {
                    keystream(plain);
                }
                let params = [from, to, VALUE_OUT, NONE];
                let reply = self.sessions[session].invoke(playback::DECRYPT, params);
                assert_eq!(reply.verdict(), expected);
                if expected == DONE {
                    self.write(bytes, plain.as_deref());
                }
            }
            Op::Checksum(session, of) => {
                let Some((bytes, of)) = self.part(of, read) else {
                    return;
                };
                self.claim(session, bytes.clone());
                let params = [of, VALUE_OUT, NONE, NONE];
                let reply = self.sessions[session].invoke(playback::CHECKSUM, params);
                match self.admits(Agent::Session(session), bytes.clone()) {
                    false => assert_eq!(reply.verdict(), KEPT_OUT),
                    true => {
                        reply.ok();
                        if let Some(seen) = self.seen(bytes) {
                            assert_eq!(reply.value(1).0, u64::from(crc32c::crc32c(&seen)));
                        }
                    }
                }
            }
            Op::AllowVideo(session, of, direction) => {
                let Some((bytes, of)) = self.part(of, PARAM_MEMREF_INOUT) else {
                    return;
                };
                self.claim(session, bytes.clone());
                let params = [of, value_in(direction.into(), 0), NONE, NONE];
                let reply = self.sessions[session].invoke(playback::ALLOW_VIDEO, params);
                let all = self.guarded(bytes.clone()) == bytes.len();
                let expected = match self.admits(Agent::Session(session), bytes.clone()) {
                    false => KEPT_OUT,
                    true if !all => REFUSED,
                    true => DONE,
                };
                assert_eq!(reply.verdict(), expected);
                if expected == DONE {
                    self.video[bytes].fill(direction);
                }
            }
            Op::Close(session) => {
                assert_eq!(self.sessions[session].close(), TEEC_SUCCESS);
                for owner in self.owners.values_mut() {
                    owner.take_if(|owner| *owner == session);
                }
                self.sessions[session] = self.open(session);
            }
            Op::Outsider(of) => {
                let Some((bytes, of)) = self.part(of, read) else {
                    return;
                };
                self.contexts += 1;
                let session = rig.open(self.contexts, pin::UUID);
                let reply = session.invoke(pin::CHECKSUM, [of, VALUE_OUT, NONE, NONE]);
                match self.admits(Agent::Outsider, bytes.clone()) {
                    false => assert_eq!(reply.verdict(), KEPT_OUT),
                    true => {
                        let crc = u64::from(crc32c::crc32c(&self.raw(bytes)));
                        assert_eq!(reply.ok().value(1).0, crc);
                    }
                }
                session.close();
            }
            Op::Control(of) => {
                let Some((bytes, of)) = self.part(of, read) else {
                    return;
                };
                let seen = rig.checksum_part(of.c.get(), of.a.get(), of.b.get());
                match self.admits(Agent::Outsider, bytes.clone()) {
                    false => assert_eq!(seen.unwrap_err().reason, wire::FAULT_PROTECTED),
                    true => assert_eq!(seen, Ok(crc32c::crc32c(&self.raw(bytes)))),
                }
            }
            Op::Copy(from, to) => {
                let (Some((from_bytes, from)), Some((mut bytes, mut to))) =
                    (self.part(from, read), self.part(to, read))
                else {
                    return;
                };
                if bytes.len() < from_bytes.len() {
                    return;
                }
                bytes.end = bytes.start + from_bytes.len();
                to.b = from.b;
                let plain = self.seen(from_bytes.clone());
                let done = rig.copy_part(from, to);
                let allowed = self.admits(Agent::Video(wire::DIRECTION_READ), from_bytes)
                    && self.admits(Agent::Video(wire::DIRECTION_WRITE), bytes.clone());
                match allowed {
                    false => assert_eq!(done.fault.reason, wire::FAULT_PROTECTED),
                    true => {
                        assert_eq!(done.header.status, wire::STATUS_OK);
                        if let Some(plain) = &plain {
                            assert_eq!(done.src_crc, crc32c::crc32c(plain));
                        }
                        self.write(bytes.clone(), plain.as_deref());
                        assert!(plain.is_none() || self.seen(bytes) == plain);
                    }
                }
            }
        }
    }

    fn seek(&self, session: usize) {
        let start = [value_in(0, 0), NONE, NONE, NONE];
        self.sessions[session].invoke(playback::SEEK, start).ok();
    }

    /// The CPU does not see what stands in protected memory.
    fn hidden(&self, raw: &[u8]) {
        let pieces = self.plain.chunks(UNSEEN).zip(raw.chunks(UNSEEN));
        for (number, (plain, raw)) in pieces.enumerate() {
            let mut bytes = plain.iter().zip(raw);
            assert!(
                bytes.any(|(plain, raw)| *plain != Some(*raw)),
                "plain bytes from {} on",
                number * UNSEEN
            );
        }
    }
}

impl Op {
    fn of(record: &[u8; RECORD]) -> Self {
        let [kind, session, parts @ ..] = record;
        let short = |at: usize| usize::from(u16::from_le_bytes([parts[at], parts[at + 1]]));
        let part = |at: usize| {
            let which = usize::from(parts[at]);
            (which, short(at + 1) % LENGTH, short(at + 3) % LENGTH)
        };
        let (first, second) = (part(0), part(5));
        let session = usize::from(*session) % SESSIONS;
        let seed = parts[9];
        match kind % 28 {
            0..2 => Op::Attach(true, first.1, first.2),
            2 => Op::Attach(false, first.1, first.2),
            3 => Op::Detach(first.0),
            4 => Op::Poke(first.1, first.2, seed),
            5..9 => Op::Decrypt(session, first, seed),
            9..12 => Op::Through(session, first, second),
            12..15 => Op::Checksum(session, first),
            15..18 => Op::AllowVideo(session, first, u32::from(seed % 4)),
            18 => Op::Close(session),
            19..21 => Op::Outsider(first),
            21..23 => Op::Control(first),
            _ => Op::Copy(first, second),
        }
    }
}

/// Operations, one for each record of the input: each does what the model says, and no more.
pub fn run(data: &[u8]) {
    thread_local! {
        /// One for all inputs. Each begins with zeros where it looks.
        static MEMORY: GuestMemoryMmap = Rig::new_memory();
    }
    let rig = Rig::on(MEMORY.with(GuestMemoryMmap::clone));
    let zeros = [0; LENGTH + 2 * MARGIN as usize];
    let at = GuestAddress(BASE - MARGIN);
    rig.memory.write_slice(&zeros, at).unwrap();
    let mut model = Model::new(&rig);
    for record in data.as_chunks().0 {
        model.run(&Op::of(record));
    }
    model.look_around();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::replay;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn who_sees_which_byte_is_as_the_model_says(records in prop::collection::vec(any::<[u8; RECORD]>(), 1..60)) {
            run(records.as_flattened());
        }
    }

    #[test]
    fn the_corpus_of_protected_memory_breaks_nothing() {
        replay("protection", run);
    }
}
