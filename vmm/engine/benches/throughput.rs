// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How fast the engine attaches, copies and converts, beside a plain memcpy of the same size in the same run.
// criterion's macro makes a public function without a comment.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pinbed_abi::wire;
use pinbed_engine::{DEFAULT_LIMITS, Engine};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
const ROOM: usize = 4096;
/// A frame of 1920 × 1080.
const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;

struct Rig {
    engine: Engine,
    memory: GuestMemoryMmap,
}

fn rig() -> Rig {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]);
    Rig {
        engine: Engine::new(DEFAULT_LIMITS),
        memory: memory.expect("64 MiB of memory"),
    }
}

/// An ATTACH of single pages that do not touch, from `at` on: what a long-used machine hands out.
fn attach_request(direction: u32, at: u64, length: u64) -> Vec<u8> {
    let pages = length.div_ceil(PAGE);
    let mut request = wire::AttachRequest {
        header: header(wire::OP_ATTACH),
        direction: direction.into(),
        segment_count: (pages as u32).into(),
        length: (pages * PAGE).into(),
        ..Default::default()
    }
    .as_bytes()
    .to_vec();
    for page in 0..pages {
        let segment = wire::Segment {
            address: (at + 2 * page * PAGE).into(),
            length: PAGE.into(),
        };
        request.extend_from_slice(segment.as_bytes());
    }
    request
}

fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        ..Default::default()
    }
}

impl Rig {
    fn attach(&self, direction: u32, at: u64, length: u64) -> u64 {
        let request = attach_request(direction, at, length);
        self.attach_with(&request)
    }

    fn attach_with(&self, request: &[u8]) -> u64 {
        let answer = self.engine.control(&self.memory, request, ROOM).bytes;
        let answer = wire::AttachResponse::read_from_bytes(&answer).expect("an answer");
        assert_eq!(answer.header.status.get(), wire::STATUS_OK);
        answer.handle.get()
    }

    fn job(&self, job: &wire::JobRequest) {
        let answer = self.engine.video(&self.memory, job.as_bytes(), ROOM).bytes;
        let (answer, _) = wire::JobResponse::read_from_prefix(&answer).expect("an answer");
        assert_eq!(answer.header.status.get(), wire::STATUS_OK);
    }
}

fn range(handle: u64, length: u64) -> wire::Range {
    wire::Range {
        handle: handle.into(),
        length: length.into(),
        ..Default::default()
    }
}

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    for length in [64 << 10, 8u64 << 20] {
        group.throughput(Throughput::Bytes(length));
        let (src, mut dst) = (vec![1u8; length as usize], vec![0u8; length as usize]);
        group.bench_function(BenchmarkId::new("memcpy", length), |b| {
            b.iter(|| black_box(&mut dst).copy_from_slice(black_box(&src)));
        });
        group.bench_function(BenchmarkId::new("crc32c", length), |b| {
            b.iter(|| crc32c::crc32c(black_box(&src)));
        });
        let rig = rig();
        let src = rig.attach(wire::DIRECTION_READ, 0, length);
        let dst = rig.attach(wire::DIRECTION_WRITE, 32 << 20, length);
        let job = wire::JobRequest {
            header: header(wire::OP_COPY),
            src: range(src, length),
            dst: range(dst, length),
            ..Default::default()
        };
        group.bench_function(BenchmarkId::new("engine, page by page", length), |b| {
            b.iter(|| rig.job(&job));
        });
    }
}

fn convert(c: &mut Criterion) {
    let mut group = c.benchmark_group("convert 1920x1080");
    let pixels = u64::from(WIDTH) * u64::from(HEIGHT);
    let formats: [(&[u8; 4], u32, u64); 4] = [
        (b"GREY", WIDTH, pixels),
        (b"NV12", WIDTH, pixels * 3 / 2),
        (b"YUYV", WIDTH * 2, pixels * 2),
        (b"RGB3", WIDTH * 3, pixels * 3),
    ];
    let rig = rig();
    let most = pixels * 3;
    let src = rig.attach(wire::DIRECTION_READ, 0, most);
    let dst = rig.attach(wire::DIRECTION_WRITE, 32 << 20, most);
    for (from, from_stride, from_size) in formats {
        for (to, to_stride, to_size) in formats {
            let format = |fourcc: &[u8; 4], stride: u32| wire::Format {
                fourcc: u32::from_le_bytes(*fourcc).into(),
                width: WIDTH.into(),
                height: HEIGHT.into(),
                stride: stride.into(),
            };
            let job = wire::JobRequest {
                header: header(wire::OP_CONVERT),
                src: range(src, from_size),
                dst: range(dst, to_size),
                src_format: format(from, from_stride),
                dst_format: format(to, to_stride),
                ..Default::default()
            };
            let name = |fourcc: &[u8; 4]| String::from_utf8_lossy(fourcc).into_owned();
            group.throughput(Throughput::Elements(pixels));
            group.bench_function(BenchmarkId::new(name(from), name(to)), |b| {
                b.iter(|| rig.job(&job));
            });
        }
    }
}

fn attach(c: &mut Criterion) {
    let mut group = c.benchmark_group("attach and detach");
    for pages in [1, 1024] {
        let rig = rig();
        let request = attach_request(wire::DIRECTION_READ, 0, pages * PAGE);
        group.throughput(Throughput::Elements(pages));
        group.bench_function(BenchmarkId::new("pages", pages), |b| {
            b.iter(|| {
                let detach = wire::DetachRequest {
                    header: header(wire::OP_DETACH),
                    handle: rig.attach_with(&request).into(),
                };
                rig.engine.control(&rig.memory, detach.as_bytes(), ROOM)
            });
        });
    }
}

criterion_group!(benches, copy, convert, attach);
criterion_main!(benches);
