// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bytes on the control and video queues: each request is answered within its room, with its cookie and an event for each fault, and
//! no byte changes that is not attached for writing.
//!
//!     ci/fuzz 60

use std::ops::Range;

use arbitrary::{Arbitrary, Unstructured};
use pinbed_abi::wire::{self, AttachRequest, JobRequest, Segment};
use pinbed_engine::{DEFAULT_LIMITS, Engine};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

const LENGTH: usize = 1 << 16;
const BEFORE: u8 = 0xa5;

thread_local! {
    /// One for all inputs, full of [`BEFORE`] when an input begins: else that input fails.
    static MEMORY: GuestMemoryMmap = {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LENGTH)]).unwrap();
        memory.write_slice(&[BEFORE; LENGTH], GuestAddress(0)).unwrap();
        memory
    };
}

#[derive(Arbitrary, Debug)]
enum Sent<'a> {
    /// Whatever comes.
    Raw { video: bool, bytes: &'a [u8] },
    /// Whole but for what the bytes make of it.
    Attach {
        direction: u8,
        flags: u8,
        segments: Vec<(u16, u16)>,
    },
    Job {
        op: u8,
        src: (u8, u16, u16),
        dst: (u8, u16, u16),
        formats: [(u8, u8, u8, u8); 2],
        pattern: u32,
    },
}

fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        cookie: 0x5eed.into(),
        ..Default::default()
    }
}

fn range((handle, offset, length): (u8, u16, u16)) -> wire::Range {
    wire::Range {
        handle: u64::from(handle % 8).into(),
        offset: u64::from(offset).into(),
        length: u64::from(length).into(),
    }
}

fn format((fourcc, width, height, colours): (u8, u8, u8, u8)) -> wire::Format {
    let (fourcc, line) =
        [(b"GREY", 1), (b"NV12", 1), (b"YUYV", 2), (b"RGB3", 3)][usize::from(fourcc % 4)];
    let rgb = fourcc == b"RGB3";
    wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: u32::from(width).into(),
        height: u32::from(height).into(),
        stride: (u32::from(width) * line + u32::from(colours >> 6)).into(),
        encoding: if rgb {
            0
        } else {
            [1, 2, 6, 8][usize::from(colours % 4)]
        }
        .into(),
        quantization: if rgb { 1 } else { u32::from(colours >> 2 & 3) }.into(),
    }
}

impl Sent<'_> {
    /// Queue and bytes.
    fn bytes(&self) -> (bool, Vec<u8>) {
        match self {
            Self::Raw { video, bytes } => (*video, bytes.to_vec()),
            Self::Attach {
                direction,
                flags,
                segments,
            } => {
                let mut bytes = AttachRequest {
                    header: header(wire::OP_ATTACH),
                    direction: u32::from(*direction % 4).into(),
                    segment_count: (segments.len() as u32).into(),
                    length: segments
                        .iter()
                        .map(|(_, length)| u64::from(*length))
                        .sum::<u64>()
                        .into(),
                    flags: u32::from(*flags % 4 / 3).into(),
                    ..Default::default()
                }
                .as_bytes()
                .to_vec();
                for (address, length) in segments {
                    let segment = Segment {
                        address: u64::from(*address).into(),
                        length: u64::from(*length).into(),
                    };
                    bytes.extend_from_slice(segment.as_bytes());
                }
                (false, bytes)
            }
            Self::Job {
                op,
                src,
                dst,
                formats,
                pattern,
            } => {
                let op = wire::OP_COPY + u32::from(op % 3);
                let job = JobRequest {
                    header: header(op),
                    src: if op == wire::OP_FILL {
                        wire::Range::default()
                    } else {
                        range(*src)
                    },
                    dst: range(*dst),
                    src_format: format(formats[0]),
                    dst_format: format(formats[1]),
                    pattern: (*pattern).into(),
                    ..Default::default()
                };
                (true, job.as_bytes().to_vec())
            }
        }
    }
}

/// The segments of an ATTACH that succeeded and lets the device write.
fn writable(request: &[u8]) -> Vec<Segment> {
    let Ok((attach, mut rest)) = AttachRequest::read_from_prefix(request) else {
        return Vec::new();
    };
    let mut segments = Vec::new();
    while attach.direction.get() & wire::DIRECTION_WRITE != 0
        && let Ok((segment, more)) = Segment::read_from_prefix(rest)
    {
        segments.push(segment);
        rest = more;
    }
    segments
}

/// What a fuzzer calls, and the test of the corpus.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let memory = MEMORY.with(GuestMemoryMmap::clone);
    let engine = Engine::new(DEFAULT_LIMITS);
    let mut free: Vec<Range<usize>> = Vec::new();
    while !input.is_empty()
        && let Ok(sent) = Sent::arbitrary(&mut input)
    {
        let room = usize::from(u8::arbitrary(&mut input).unwrap_or(0)) * 8;
        let (video, bytes) = sent.bytes();
        let answer = match video {
            false => engine.control(&memory, &bytes, room, &|| true),
            true => engine.video(&memory, &bytes, room, &|| true),
        };
        assert!(answer.bytes.len() <= room);
        let Ok((response, _)) = wire::ResponseHeader::read_from_prefix(&answer.bytes) else {
            assert!(answer.bytes.is_empty() && answer.events.is_empty());
            continue;
        };
        assert_eq!(response.cookie.as_bytes(), &bytes[8..16]);
        let status = response.status.get();
        assert_eq!(
            answer.events.len(),
            usize::from(status == wire::STATUS_DMA_FAULT)
        );
        let op = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        if !video && op == wire::OP_ATTACH && status == wire::STATUS_OK {
            for segment in writable(&bytes) {
                let start = segment.address.get().min(LENGTH as u64);
                let end = segment.address.get().saturating_add(segment.length.get());
                free.push(start as usize..end.min(LENGTH as u64) as usize);
            }
        }
    }
    let mut after = vec![0; LENGTH];
    memory.read_slice(&mut after, GuestAddress(0)).unwrap();
    for range in free {
        let before = &[BEFORE; LENGTH][range.clone()];
        after[range.clone()].copy_from_slice(before);
        let start = GuestAddress(range.start as u64);
        memory.write_slice(before, start).unwrap();
    }
    // In one comparison, which is quick.
    if after != [BEFORE; LENGTH] {
        let stray = after.iter().position(|byte| *byte != BEFORE);
        panic!("a stray write at {stray:?}");
    }
}
