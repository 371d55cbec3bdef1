// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An engine with plain memory beside it.
// Each test binary uses a part of this.
#![allow(dead_code)]

use std::ops::Range;

use pinbed_abi::wire;
use pinbed_engine::{Answer, Engine, Limits, Submitted};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Memory is `[0, END)` less a hole.
pub const END: u64 = 0x40000;
pub const HOLE: Range<u64> = 0x20000..0x28000;
pub const COOKIE: u64 = 0xc00c1e;
/// More room than any answer takes.
pub const ROOM: usize = 1 << 20;
pub const LIMITS: Limits = Limits {
    buffers: 4,
    segments: 64,
    length: 0x30000,
    total_segments: 128,
    protected_pieces: 16,
};

pub struct Rig {
    pub engine: Engine,
    pub memory: GuestMemoryMmap,
}

pub fn memory() -> GuestMemoryMmap {
    let region = |range: Range<u64>| {
        (
            GuestAddress(range.start),
            (range.end - range.start) as usize,
        )
    };
    GuestMemoryMmap::from_ranges(&[region(0..HOLE.start), region(HOLE.end..END)]).unwrap()
}

pub fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i * 31 + i / 255 + seed * 101) as u8)
        .collect()
}

impl Rig {
    pub fn new() -> Self {
        Self {
            engine: Engine::new(LIMITS).allow_sabotage(),
            memory: memory(),
        }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// A request of the TEE queue; a call that comes of it is not run.
    pub fn tee(&self, request: &[u8], room: usize) -> Answer {
        match self.engine.tee(request, room) {
            Submitted::Answer(answer) => answer,
            Submitted::Call(call) => call.decline(),
        }
    }

    pub fn control(&self, request: &[u8], room: usize) -> Answer {
        self.engine.control(&self.memory, request, room, &|| true)
    }

    pub fn video(&self, request: &[u8], room: usize) -> Answer {
        self.engine.video(&self.memory, request, room, &|| true)
    }

    pub fn ask<Q: IntoBytes + Immutable, R: FromBytes>(&self, request: &Q) -> R {
        let answer = self.control(request.as_bytes(), ROOM);
        R::read_from_prefix(&answer.bytes)
            .expect("an answer too short")
            .0
    }

    pub fn status(&self) -> wire::StatusResponse {
        self.ask(&header(wire::OP_STATUS))
    }

    /// The answer's status and handle.
    pub fn try_attach(&self, direction: u32, segments: &[(u64, u64)]) -> (u32, u64) {
        let length = segments
            .iter()
            .fold(0u64, |sum, segment| sum.wrapping_add(segment.1));
        let request = attach(direction, segments.len() as u32, length, segments);
        let answer = self.control(&request, ROOM);
        let answer = wire::AttachResponse::read_from_bytes(&answer.bytes).unwrap();
        (answer.header.status.get(), answer.handle.get())
    }

    pub fn attach(&self, direction: u32, segments: &[(u64, u64)]) -> u64 {
        let (status, handle) = self.try_attach(direction, segments);
        assert_eq!(status, wire::STATUS_OK);
        handle
    }

    pub fn detach(&self, handle: u64) -> u32 {
        let answer: wire::ResponseHeader = self.ask(&detach(handle));
        answer.status.get()
    }

    pub fn inject(&self, kind: u32, count: u32, argument: u64) -> u32 {
        let answer: wire::ResponseHeader = self.ask(&wire::InjectRequest {
            header: header(wire::OP_INJECT),
            kind: kind.into(),
            count: count.into(),
            argument: argument.into(),
        });
        answer.status.get()
    }

    pub fn job(&self, job: &wire::JobRequest) -> (wire::JobResponse, Answer) {
        let answer = self.video(job.as_bytes(), ROOM);
        let (response, _) = wire::JobResponse::read_from_prefix(&answer.bytes).unwrap();
        (response, answer)
    }
}

pub fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        cookie: COOKIE.into(),
        ..Default::default()
    }
}

pub fn attach(direction: u32, count: u32, length: u64, segments: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = wire::AttachRequest {
        header: header(wire::OP_ATTACH),
        direction: direction.into(),
        segment_count: count.into(),
        length: length.into(),
        ..Default::default()
    }
    .as_bytes()
    .to_vec();
    for (address, length) in segments {
        bytes.extend_from_slice(&address.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
    }
    bytes
}

pub fn detach(handle: u64) -> wire::DetachRequest {
    wire::DetachRequest {
        header: header(wire::OP_DETACH),
        handle: handle.into(),
    }
}

pub fn range(handle: u64, offset: u64, length: u64) -> wire::Range {
    wire::Range {
        handle: handle.into(),
        offset: offset.into(),
        length: length.into(),
    }
}

pub fn copy(src: wire::Range, dst: wire::Range) -> wire::JobRequest {
    wire::JobRequest {
        header: header(wire::OP_COPY),
        src,
        dst,
        ..Default::default()
    }
}

pub fn format(fourcc: &[u8; 4], width: u32, height: u32, stride: u32) -> wire::Format {
    wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: width.into(),
        height: height.into(),
        stride: stride.into(),
        encoding: match fourcc {
            b"RGB3" => wire::ENCODING_NONE,
            _ => wire::ENCODING_BT601,
        }
        .into(),
        quantization: match fourcc {
            b"RGB3" => wire::QUANTIZATION_FULL,
            _ => wire::QUANTIZATION_LIMITED,
        }
        .into(),
    }
}

/// The segments that follow an answer's fixed part.
pub fn segments(bytes: &[u8], fixed: usize) -> Vec<(u64, u64)> {
    <[wire::Segment]>::ref_from_bytes(&bytes[fixed..])
        .unwrap()
        .iter()
        .map(|segment| (segment.address.get(), segment.length.get()))
        .collect()
}
