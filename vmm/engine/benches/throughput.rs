// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How fast the engine attaches, copies and converts. Beside each, in the same run and of the same size, stands what any engine has to
//! do: for a copy, a memcpy and a CRC32C in one loop; for a conversion, that of the `yuv` crate alone, and with both images'
//! memcpy and CRC32C. What is measured is CPU time.
//!
//! A round trip through virtqueues is the device's: `cargo bench -p pinbed-device`.
// criterion's macro makes a public function without a comment.
#![allow(missing_docs)]

mod cpu_time;

use std::hint::black_box;
use std::time::Duration;

use cpu_time::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pinbed_abi::ta::playback;
use pinbed_abi::{tee, wire};
use pinbed_engine::pixel::{Converter, Layout};
use pinbed_engine::{DEFAULT_LIMITS, Engine, Submitted};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use yuv::{
    BufferStoreMut, YuvBiPlanarImage, YuvBiPlanarImageMut, YuvConversionMode, YuvGrayImage,
    YuvGrayImageMut, YuvPackedImage, YuvRange, YuvStandardMatrix,
};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
const ROOM: usize = 4096;
/// Small enough for the cache, and not.
const SIZES: [(u32, u32); 2] = [(320, 240), (1920, 1080)];
/// What a loop over memory works on at a time, so that the cache has it.
const CHUNK: usize = 1 << 15;

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
fn attach_request(direction: u32, flags: u32, at: u64, length: u64) -> Vec<u8> {
    let pages = length.div_ceil(PAGE);
    let mut request = wire::AttachRequest {
        header: header(wire::OP_ATTACH),
        direction: direction.into(),
        flags: flags.into(),
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
        let request = attach_request(direction, 0, at, length);
        self.attach_with(&request)
    }

    /// Protected memory that a session of `playback` lets the video engine write.
    fn attach_protected(&self, at: u64, length: u64) -> u64 {
        let both = wire::DIRECTION_BOTH;
        let request = attach_request(both, wire::ATTACH_PROTECTED, at, length);
        let handle = self.attach_with(&request);
        let open = tee::OpenSessionRequest {
            header: header(tee::OP_OPEN_SESSION),
            context: 1.into(),
            uuid: playback::UUID,
            ..Default::default()
        };
        let session = self.call(open.as_bytes()).session;
        let value = |a: u64| tee::Param {
            attr: tee::PARAM_VALUE_INPUT.into(),
            a: a.into(),
            ..Default::default()
        };
        let none = tee::Param::default();
        let allow = tee::InvokeRequest {
            header: header(tee::OP_INVOKE),
            context: 1.into(),
            session,
            function: playback::ALLOW_VIDEO.into(),
            params: [value(handle), value(both.into()), none, none],
            ..Default::default()
        };
        self.call(allow.as_bytes());
        handle
    }

    fn attach_with(&self, request: &[u8]) -> u64 {
        let answer = self
            .engine
            .control(&self.memory, request, ROOM, &|| true)
            .bytes;
        let answer = wire::AttachResponse::read_from_bytes(&answer).expect("an answer");
        assert_eq!(answer.header.status.get(), wire::STATUS_OK);
        answer.handle.get()
    }

    fn call(&self, request: &[u8]) -> tee::CallResponse {
        let answer = match self.engine.tee(request, ROOM) {
            Submitted::Answer(answer) => answer,
            Submitted::Call(call) => self.engine.run(&self.memory, call, &|| true),
        };
        let answer = tee::CallResponse::read_from_bytes(&answer.bytes).expect("an answer");
        assert_eq!(answer.result.get(), tee::TEEC_SUCCESS);
        answer
    }

    fn job(&self, job: &wire::JobRequest) {
        let answer = self
            .engine
            .video(&self.memory, job.as_bytes(), ROOM, &|| true)
            .bytes;
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

/// What a copy is at least: each byte is read, written and checksummed.
fn memcpy_and_crc(from: &[u8], to: &mut [u8]) -> u32 {
    let chunks = from.chunks(CHUNK).zip(to.chunks_mut(CHUNK));
    chunks.fold(0, |crc, (from, to)| {
        to.copy_from_slice(from);
        crc32c::crc32c_append(crc, to)
    })
}

fn copy(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("copy");
    for length in [4 << 10, 64 << 10, 1 << 20, 8u64 << 20] {
        group.throughput(Throughput::Bytes(length));
        let (src, mut dst) = (vec![1u8; length as usize], vec![0u8; length as usize]);
        group.bench_function(BenchmarkId::new("memcpy", length), |b| {
            b.iter(|| black_box(&mut dst).copy_from_slice(black_box(&src)));
        });
        group.bench_function(BenchmarkId::new("memcpy and crc32c", length), |b| {
            b.iter(|| memcpy_and_crc(black_box(&src), black_box(&mut dst)));
        });
        let rig = rig();
        let src = rig.attach(wire::DIRECTION_READ, 0, length);
        let plain = rig.attach(wire::DIRECTION_WRITE, 32 << 20, length);
        let protected = rig.attach_protected(16 << 20, length);
        for (name, dst) in [
            ("engine", plain),
            ("engine, to protected memory", protected),
        ] {
            let job = wire::JobRequest {
                header: header(wire::OP_COPY),
                src: range(src, length),
                dst: range(dst, length),
                ..Default::default()
            };
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| rig.job(&job));
            });
        }
    }
}

const FORMATS: [&[u8; 4]; 4] = [b"GREY", b"NV12", b"YUYV", b"RGB3"];

fn format(fourcc: &[u8; 4], width: u32, height: u32) -> wire::Format {
    let rgb = fourcc == b"RGB3";
    let line = match fourcc {
        b"YUYV" => width * 2,
        b"RGB3" => width * 3,
        _ => width,
    };
    wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: width.into(),
        height: height.into(),
        stride: line.into(),
        encoding: if rgb {
            wire::ENCODING_NONE
        } else {
            wire::ENCODING_BT601
        }
        .into(),
        quantization: match rgb {
            true => wire::QUANTIZATION_FULL,
            false => wire::QUANTIZATION_LIMITED,
        }
        .into(),
    }
}

/// The crate's own conversion, where it has one.
fn library(
    from: &Layout,
    from_fourcc: &[u8; 4],
    to_fourcc: &[u8; 4],
    image: &[u8],
    made: &mut [u8],
) -> bool {
    let (width, height) = (from.width, from.height);
    let pixels = (width * height) as usize;
    let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
    let mode = YuvConversionMode::Balanced;
    match (from_fourcc, to_fourcc) {
        (b"RGB3", b"GREY") => {
            let mut made = YuvGrayImageMut {
                y_plane: BufferStoreMut::Borrowed(made),
                y_stride: width,
                width,
                height,
            };
            yuv::rgb_to_yuv400(&mut made, image, 3 * width, range, matrix)
        }
        (b"RGB3", b"NV12") => {
            let (y, uv) = made.split_at_mut(pixels);
            let mut made = YuvBiPlanarImageMut {
                y_plane: BufferStoreMut::Borrowed(y),
                y_stride: width,
                uv_plane: BufferStoreMut::Borrowed(uv),
                uv_stride: width,
                width,
                height,
            };
            yuv::rgb_to_yuv_nv12(&mut made, image, 3 * width, range, matrix, mode)
        }
        (b"GREY", b"RGB3") => {
            let image = YuvGrayImage {
                y_plane: image,
                y_stride: width,
                width,
                height,
            };
            yuv::yuv400_to_rgb(&image, made, 3 * width, range, matrix)
        }
        (b"NV12", b"RGB3") => {
            let (y_plane, uv_plane) = image.split_at(pixels);
            let image = YuvBiPlanarImage {
                y_plane,
                y_stride: width,
                uv_plane,
                uv_stride: width,
                width,
                height,
            };
            yuv::yuv_nv12_to_rgb(&image, made, 3 * width, range, matrix, mode)
        }
        (b"YUYV", b"RGB3") => {
            let image = YuvPackedImage {
                yuy: image,
                yuy_stride: 2 * width,
                width,
                height,
            };
            yuv::yuyv422_to_rgb(&image, made, 3 * width, range, matrix)
        }
        _ => return false,
    }
    .expect("a conversion");
    true
}

/// Where the crate has no such conversion, memcpy and CRC32C of both images are what it is measured by.
fn convert(c: &mut Criterion<CpuTime>) {
    for (width, height) in SIZES {
        let mut group = c.benchmark_group(format!("convert {width}x{height}"));
        let rig = rig();
        let most = u64::from(width * height * 3);
        let src = rig.attach(wire::DIRECTION_READ, 0, most);
        let dst = rig.attach(wire::DIRECTION_WRITE, 32 << 20, most);
        for from in FORMATS {
            for to in FORMATS.into_iter().filter(|to| *to != from) {
                let wires = [format(from, width, height), format(to, width, height)];
                let [a, b] = wires.map(|wire| Layout::from_wire(&wire).expect("a layout"));
                let job = wire::JobRequest {
                    header: header(wire::OP_CONVERT),
                    src: range(src, a.size()),
                    dst: range(dst, b.size()),
                    src_format: wires[0],
                    dst_format: wires[1],
                    ..Default::default()
                };
                let name = [from, to].map(|fourcc| String::from_utf8_lossy(fourcc).into_owned());
                let id = |what| BenchmarkId::new(name.join(" to "), what);
                group.throughput(Throughput::Elements((width * height).into()));
                let mut image = vec![100u8; a.packed_size()];
                let mut made = vec![0u8; b.packed_size()];
                let mut moved = [image.clone(), made.clone()];
                let crate_has = library(&a, from, to, &image, &mut made);
                if crate_has {
                    group.bench_function(id("yuv"), |b| {
                        b.iter(|| library(&a, from, to, black_box(&image), black_box(&mut made)));
                    });
                }
                group.bench_function(id("yuv, memcpy and crc32c"), |b| {
                    b.iter(|| {
                        let crc = memcpy_and_crc(black_box(&image), &mut moved[0]);
                        library(&a, from, to, &moved[0], black_box(&mut made));
                        (crc, memcpy_and_crc(&made, black_box(&mut moved[1])))
                    });
                });
                let mut converter = Converter::default();
                group.bench_function(id("converter"), |bench| {
                    bench.iter(|| {
                        let made = converter.convert(&a, &b, black_box(&mut image));
                        black_box(made.expect("an image").len())
                    });
                });
                group.bench_function(id("engine"), |b| b.iter(|| rig.job(&job)));
            }
        }
    }
}

fn attach(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("attach and detach");
    for pages in [1, 1024] {
        let rig = rig();
        let request = attach_request(wire::DIRECTION_READ, 0, 0, pages * PAGE);
        group.throughput(Throughput::Elements(pages));
        group.bench_function(BenchmarkId::new("pages", pages), |b| {
            b.iter(|| {
                let detach = wire::DetachRequest {
                    header: header(wire::OP_DETACH),
                    handle: rig.attach_with(&request).into(),
                };
                rig.engine
                    .control(&rig.memory, detach.as_bytes(), ROOM, &|| true)
            });
        });
    }
}

/// Short, since there are many.
fn config() -> Criterion<CpuTime> {
    Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = config(); targets = copy, convert, attach);
criterion_main!(benches);
