// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a request takes from a driver's kick to its notification, through real virtqueues and a real vhost-user socket, beside
//! what the request is at least: for a copy, a memcpy and a CRC32C of the same size in the same run. It is CPU time, of the driver's side,
//! too, which is this program's.
// criterion's macro makes a public function without a comment.
#![allow(missing_docs)]

#[path = "../../engine/benches/cpu_time/mod.rs"]
mod cpu_time;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::Duration;

use cpu_time::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pinbed_abi::wire;
use support::{FREE, HOLE, Host, copy, header};
use zerocopy::IntoBytes;

/// What a loop over memory works on at a time, so that the cache has it.
const CHUNK: usize = 1 << 15;

fn status(c: &mut Criterion<CpuTime>) {
    let mut host = Host::new(true);
    c.bench_function("STATUS, which moves nothing", |b| {
        b.iter(|| host.prompt(wire::QUEUE_CONTROL, header(wire::OP_STATUS).as_bytes()));
    });
}

fn copies(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("copy");
    for length in [4 << 10, 64 << 10, 1 << 20, 4u64 << 20] {
        group.throughput(Throughput::Bytes(length));
        let (src, mut dst) = (vec![1u8; length as usize], vec![0u8; length as usize]);
        group.bench_function(BenchmarkId::new("memcpy and crc32c", length), |b| {
            b.iter(|| {
                let chunks = black_box(&src).chunks(CHUNK).zip(dst.chunks_mut(CHUNK));
                chunks.fold(0, |crc, (from, to)| {
                    to.copy_from_slice(from);
                    crc32c::crc32c_append(crc, to)
                })
            });
        });
        let mut host = Host::new(true);
        let src = host.attach(wire::DIRECTION_READ, &[(FREE, length)]);
        let dst = host.attach(wire::DIRECTION_WRITE, &[(HOLE.end, length)]);
        let job = copy(src, dst, length);
        group.bench_function(BenchmarkId::new("round trip", length), |b| {
            b.iter(|| host.prompt(wire::QUEUE_VIDEO, job.as_bytes()));
        });
    }
}

/// Short, since the tests' front end gives up on a device after half a minute.
fn config() -> Criterion<CpuTime> {
    Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group!(name = benches; config = config(); targets = status, copies);
criterion_main!(benches);
