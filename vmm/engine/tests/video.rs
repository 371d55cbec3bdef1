// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The video queue's jobs: what is moved, what is answered, and that a fault moves nothing.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pinbed_abi::wire;
use support::{COOKIE, HOLE, ROOM, Rig, copy, format, header, pattern, range, segments};
use zerocopy::{FromBytes, IntoBytes};

const READ: u32 = wire::DIRECTION_READ;
const WRITE: u32 = wire::DIRECTION_WRITE;
const OK: u32 = wire::STATUS_OK;

#[test]
fn copy_moves_unaligned_pieces_and_answers_what_it_saw() {
    let rig = Rig::new();
    let bytes = pattern(5000, 2);
    rig.put(0x1003, &bytes);
    let src = rig.attach(READ, &[(0x1003, 1001), (0x1003 + 1001, 3999)]);
    let dst = rig.attach(WRITE, &[(0x8001, 7), (0x9fff, 2), (0xa001, 4991)]);
    let (answer, whole) = rig.job(&copy(range(src, 11, 4000), range(dst, 3, 4000)));
    assert_eq!(answer.header.status.get(), OK);
    assert_eq!(answer.header.cookie.get(), COOKIE);
    assert_eq!(answer.fault, wire::Fault::default());
    let moved = &bytes[11..4011];
    assert_eq!(rig.get(0x8004, 4), moved[..4]);
    assert_eq!(rig.get(0x9fff, 3996), moved[4..]);
    assert_eq!(rig.get(0x8001, 3), [0, 0, 0]);
    assert_eq!(rig.get(0x9fff + 3996, 3), [0, 0, 0]);
    assert_eq!(answer.bytes_read.get(), 4000);
    assert_eq!(answer.bytes_written.get(), 4000);
    assert_eq!(answer.src_crc.get(), crc32c::crc32c(moved));
    assert_eq!(answer.dst_crc, answer.src_crc);
    // Adjacent pieces are merged.
    let pieces = segments(&whole.bytes, size_of::<wire::JobResponse>());
    assert_eq!(pieces, [(0x100e, 4000), (0x8004, 4), (0x9fff, 3996)]);
    assert_eq!(
        (answer.src_segments.get(), answer.dst_segments.get()),
        (1, 2)
    );
    assert_eq!(
        (answer.src_returned.get(), answer.dst_returned.get()),
        (1, 2)
    );
}

#[test]
fn an_answer_gives_each_side_half_of_the_room() {
    let rig = Rig::new();
    let spread = |at: u64| (0..8).map(|i| (at + 16 * i, 1)).collect::<Vec<_>>();
    let src = rig.attach(READ, &spread(0));
    let dst = rig.attach(WRITE, &spread(0x1000));
    let job = copy(range(src, 0, 8), range(dst, 0, 8));
    let fixed = size_of::<wire::JobResponse>();
    let room = fixed + 7 * size_of::<wire::Segment>();
    let bytes = rig.video(job.as_bytes(), room).bytes;
    let (answer, _) = wire::JobResponse::read_from_prefix(&bytes).unwrap();
    assert_eq!(
        (answer.src_segments.get(), answer.src_returned.get()),
        (8, 3)
    );
    assert_eq!(
        (answer.dst_segments.get(), answer.dst_returned.get()),
        (8, 3)
    );
    let expected = [&spread(0)[..3], &spread(0x1000)[..3]].concat();
    assert_eq!(segments(&bytes, fixed), expected);
}

#[test]
fn an_overlapping_copy_sees_its_source_as_it_was() {
    for (from, to) in [(0x1000, 0x1010), (0x1010, 0x1000), (0x1000, 0x1000)] {
        let rig = Rig::new();
        let bytes = pattern(0x2000, 5);
        rig.put(from, &bytes);
        let src = rig.attach(READ, &[(from, 0x2000)]);
        let dst = rig.attach(WRITE, &[(to, 0x2000)]);
        let (answer, _) = rig.job(&copy(range(src, 0, 0x2000), range(dst, 0, 0x2000)));
        assert_eq!(answer.dst_crc.get(), crc32c::crc32c(&bytes));
        assert_eq!(rig.get(to, 0x2000), bytes);
    }
}

#[test]
fn fill_repeats_its_pattern_in_memory_order() {
    let rig = Rig::new();
    let dst = rig.attach(WRITE, &[(0x1001, 5), (0x2001, 5)]);
    let job = wire::JobRequest {
        header: header(wire::OP_FILL),
        dst: range(dst, 1, 9),
        pattern: u32::from_le_bytes(*b"abcd").into(),
        ..Default::default()
    };
    let (answer, whole) = rig.job(&job);
    assert_eq!(answer.header.status.get(), OK);
    assert_eq!(rig.get(0x1001, 6), *b"\0abcd\0");
    assert_eq!(rig.get(0x2001, 6), *b"abcda\0");
    assert_eq!(
        (answer.bytes_read.get(), answer.bytes_written.get()),
        (0, 9)
    );
    assert_eq!(answer.dst_crc.get(), crc32c::crc32c(b"abcdabcda"));
    let pieces = segments(&whole.bytes, size_of::<wire::JobResponse>());
    assert_eq!(pieces, [(0x1002, 4), (0x2001, 5)]);

    let with_source = wire::JobRequest {
        src: range(dst, 0, 0),
        ..job
    };
    let (answer, _) = rig.job(&with_source);
    assert_eq!(answer.header.status.get(), wire::STATUS_INVALID);
}

/// A faulting job's answer and event say the same, and no byte of memory has changed.
fn assert_fault(rig: &Rig, job: &wire::JobRequest, reason: u32, access: u32, address: u64) {
    let (low, high) = (HOLE.start as usize, (support::END - HOLE.end) as usize);
    let memory = || (rig.get(0, low), rig.get(HOLE.end, high));
    let before = memory();
    let faults = rig.status().faults.get();
    let (answer, whole) = rig.job(job);
    assert_eq!(answer.header.status.get(), wire::STATUS_DMA_FAULT);
    let expected = wire::Fault {
        reason: reason.into(),
        access: access.into(),
        range: if access == READ { job.src } else { job.dst },
        address: address.into(),
    };
    let rest = wire::JobResponse {
        header: answer.header,
        fault: expected,
        ..Default::default()
    };
    assert_eq!(answer, rest);
    let event = wire::Event {
        kind: wire::EVENT_DMA_FAULT.into(),
        cookie: COOKIE.into(),
        fault: expected,
        ..Default::default()
    };
    assert_eq!(whole.events, [event]);
    assert!(memory() == before, "a faulting job wrote");
    assert_eq!(rig.status().faults.get(), faults + 1);
}

#[test]
fn a_job_that_faults_writes_nothing_and_says_where() {
    let rig = Rig::new();
    rig.put(0, &pattern(HOLE.start as usize, 9));
    let src = rig.attach(READ, &[(0x1000, 0x100)]);
    let dst = rig.attach(WRITE, &[(0x2000, 0x80), (HOLE.start - 0x40, 0x80)]);
    let fault = |src, dst, reason, access, address| {
        assert_fault(&rig, &copy(src, dst), reason, access, address);
    };
    let (bounds, permission) = (wire::FAULT_OUT_OF_BOUNDS, wire::FAULT_PERMISSION);
    let not_attached = wire::FAULT_NOT_ATTACHED;
    let whole = |handle| range(handle, 0, 0x80);
    fault(whole(77), whole(dst), not_attached, READ, 0);
    fault(whole(src), whole(0), not_attached, WRITE, 0);
    fault(range(src, 0x81, 0x80), whole(dst), bounds, READ, 0);
    fault(range(src, u64::MAX, 0x80), whole(dst), bounds, READ, 0);
    fault(whole(src), range(dst, 0x81, 0x80), bounds, WRITE, 0);
    fault(range(src, 0x101, 0), range(dst, 0, 0), bounds, READ, 0);
    fault(whole(dst), whole(dst), permission, READ, 0);
    fault(whole(src), whole(src), permission, WRITE, 0);
    // The good part of the destination comes first, and stays as it was.
    let reaches_hole = range(dst, 0x41, 0x80);
    let no_memory = wire::FAULT_NO_MEMORY;
    fault(whole(src), reaches_hole, no_memory, WRITE, HOLE.start);
    rig.detach(dst);
    fault(whole(src), whole(dst), not_attached, WRITE, 0);
    let fill = wire::JobRequest {
        header: header(wire::OP_FILL),
        dst: whole(dst),
        ..Default::default()
    };
    assert_fault(&rig, &fill, not_attached, WRITE, 0);
}

#[test]
fn a_job_of_no_bytes_is_done_where_its_ranges_are_good() {
    let rig = Rig::new();
    let src = rig.attach(READ, &[(HOLE.start, 4)]);
    let dst = rig.attach(WRITE, &[(0x2000, 4)]);
    let (answer, _) = rig.job(&copy(range(src, 4, 0), range(dst, 4, 0)));
    assert_eq!(answer.header.status.get(), OK);
    assert_eq!(answer.src_segments.get(), 0);
}

#[test]
fn jobs_that_contradict_themselves_are_invalid_and_touch_nothing() {
    let rig = Rig::new();
    let src = rig.attach(READ, &[(0x1000, 0x4000)]);
    let dst = rig.attach(WRITE, &[(0x8000, 0x4000)]);
    let good = wire::JobRequest {
        header: header(wire::OP_CONVERT),
        src: range(src, 0, 0x1000),
        dst: range(dst, 0, 0x1000),
        src_format: format(b"GREY", 16, 8, 20),
        dst_format: format(b"YUYV", 16, 8, 32),
        ..Default::default()
    };
    let status = |job: &wire::JobRequest| rig.job(job).0.header.status.get();
    assert_eq!(status(&good), OK);
    let jobs = rig.status().jobs.get();
    let bad = |change: &dyn Fn(&mut wire::JobRequest)| {
        let mut job = good;
        change(&mut job);
        assert_eq!(status(&job), wire::STATUS_INVALID, "{job:?}");
    };
    bad(&|job| job.reserved = 1.into());
    bad(&|job| job.src_format.fourcc = 0.into());
    bad(&|job| job.src_format.width = 15.into());
    bad(&|job| job.dst_format.height = 9.into());
    bad(&|job| job.src_format.stride = 15.into());
    bad(&|job| job.dst_format.stride = 31.into());
    bad(&|job| job.src_format.stride = u32::MAX.into());
    bad(&|job| job.src.length = (20 * 8 - 1).into());
    bad(&|job| job.dst.length = (32 * 8 - 1).into());
    for side in [0, 16385, u32::MAX] {
        bad(&|job| (job.src_format.width, job.dst_format.width) = (side.into(), side.into()));
        bad(&|job| (job.src_format.height, job.dst_format.height) = (side.into(), side.into()));
    }
    // Odd sizes, where the format cannot have them.
    let odd = |fourcc: &[u8; 4], width, height| {
        bad(&|job| {
            job.src_format = format(b"GREY", width, height, 64);
            job.dst_format = format(fourcc, width, height, 64);
        });
    };
    odd(b"YUYV", 15, 8);
    odd(b"NV12", 15, 8);
    odd(b"NV12", 16, 7);
    let mut odd_grey = good;
    odd_grey.src_format = format(b"GREY", 15, 7, 15);
    odd_grey.dst_format = format(b"RGB3", 15, 7, 45);
    assert_eq!(status(&odd_grey), OK);

    for (read, written) in [(10, 11), (11, 10)] {
        let uneven = copy(range(src, 0, read), range(dst, 0, written));
        assert_eq!(status(&uneven), wire::STATUS_INVALID);
    }
    let mut long = good.as_bytes().to_vec();
    long.push(0);
    for bytes in [&long, &long[..long.len() - 2]] {
        let answer = rig.video(bytes, ROOM).bytes;
        let (answer, _) = wire::JobResponse::read_from_prefix(&answer).unwrap();
        assert_eq!(answer.header.status.get(), wire::STATUS_INVALID);
    }
    assert_eq!(rig.status().jobs.get(), jobs + 1);
}

#[test]
fn padding_is_neither_read_nor_written() {
    let rig = Rig::new();
    // 4 × 2 NV12, lines of 4 in strides of 6, to YUYV, lines of 8 in strides of 9.
    let src = b"abcd..efgh..uvUV..";
    rig.put(0x1001, src);
    rig.put(0x2001, &[b'.'; 18]);
    let from = rig.attach(READ, &[(0x1001, 18)]);
    let to = rig.attach(WRITE, &[(0x2001, 18)]);
    let (answer, whole) = rig.job(&wire::JobRequest {
        header: header(wire::OP_CONVERT),
        src: range(from, 0, 18),
        dst: range(to, 0, 18),
        src_format: format(b"NV12", 4, 2, 6),
        dst_format: format(b"YUYV", 4, 2, 9),
        ..Default::default()
    });
    assert_eq!(answer.header.status.get(), OK);
    assert_eq!(rig.get(0x2001, 18), *b"aubvcUdV.eufvgUhV.");
    assert_eq!(
        (answer.bytes_read.get(), answer.bytes_written.get()),
        (12, 16)
    );
    assert_eq!(answer.src_crc.get(), crc32c::crc32c(b"abcdefghuvUV"));
    assert_eq!(answer.dst_crc.get(), crc32c::crc32c(b"aubvcUdVeufvgUhV"));
    let pieces = segments(&whole.bytes, size_of::<wire::JobResponse>());
    let lines = [
        (0x1001, 4),
        (0x1007, 4),
        (0x100d, 4),
        (0x2001, 8),
        (0x200a, 8),
    ];
    assert_eq!(pieces, lines);
}

#[test]
fn memory_that_holds_only_padding_need_not_be_there() {
    let rig = Rig::new();
    let src = rig.attach(
        READ,
        &[(0x1000, 4), (HOLE.start, 4), (0x1004, 4), (HOLE.start, 4)],
    );
    let dst = rig.attach(WRITE, &[(0x2000, 8)]);
    let (answer, _) = rig.job(&wire::JobRequest {
        header: header(wire::OP_CONVERT),
        src: range(src, 0, 16),
        dst: range(dst, 0, 8),
        src_format: format(b"GREY", 4, 2, 8),
        dst_format: format(b"GREY", 4, 2, 4),
        ..Default::default()
    });
    assert_eq!(answer.header.status.get(), OK);
}

#[test]
fn an_injected_failure_moves_nothing_and_counts_down() {
    let rig = Rig::new();
    let src = rig.attach(READ, &[(0x1000, 4)]);
    let dst = rig.attach(WRITE, &[(0x2000, 4)]);
    rig.put(0x1000, b"data");
    let job = copy(range(src, 0, 4), range(dst, 0, 4));
    assert_eq!(rig.inject(wire::INJECT_FAIL, 2, 0), OK);
    for _ in 0..2 {
        let (answer, whole) = rig.job(&job);
        assert_eq!(answer.header.status.get(), wire::STATUS_ERROR);
        assert!(whole.events.is_empty());
        assert_eq!(rig.get(0x2000, 4), [0; 4]);
    }
    assert_eq!(rig.job(&job).0.header.status.get(), OK);
    assert_eq!(rig.status().jobs.get(), 3);

    assert_eq!(rig.inject(wire::INJECT_FAIL, 2, 0), OK);
    assert_eq!(rig.inject(wire::INJECT_FAIL, 0, 0), OK);
    assert_eq!(rig.job(&job).0.header.status.get(), OK);
    assert_eq!(rig.inject(wire::INJECT_FAIL, 2, 0), OK);
    rig.engine.reset();
    assert_eq!(rig.job(&job).0.header.status.get(), wire::STATUS_DMA_FAULT);
}

#[test]
fn unknown_injections_and_long_delays_are_invalid() {
    let rig = Rig::new();
    let unknown = wire::INJECT_STATUS_CALL + 1;
    assert_eq!(rig.inject(unknown, 1, 0), wire::STATUS_INVALID);
    let far = (1 << 20) + 1;
    assert_eq!(
        rig.inject(wire::INJECT_ASTRAY, 1, far),
        wire::STATUS_INVALID
    );
    let long = pinbed_engine::MAX_DELAY + 1;
    assert_eq!(
        rig.inject(wire::INJECT_DELAY, 1, long),
        wire::STATUS_INVALID
    );
}

/// Runs a job in a thread and returns when it waits for its delay.
fn delayed(rig: &Arc<Rig>, job: wire::JobRequest) -> thread::JoinHandle<wire::JobResponse> {
    assert_eq!(
        rig.inject(wire::INJECT_DELAY, 1, pinbed_engine::MAX_DELAY),
        OK
    );
    let jobs = rig.status().jobs.get();
    let thread = {
        let rig = rig.clone();
        thread::spawn(move || rig.job(&job).0)
    };
    let start = Instant::now();
    while rig.status().jobs.get() == jobs {
        assert!(start.elapsed() < Duration::from_secs(5), "no job began");
        thread::yield_now();
    }
    thread
}

#[test]
fn a_buffer_detached_during_a_delay_faults_and_control_goes_on_meanwhile() {
    let rig = Arc::new(Rig::new());
    let src = rig.attach(READ, &[(0x1000, 4)]);
    let dst = rig.attach(WRITE, &[(0x2000, 4)]);
    rig.put(0x1000, b"data");
    let start = Instant::now();
    let job = delayed(&rig, copy(range(src, 0, 4), range(dst, 0, 4)));
    assert_eq!(rig.detach(dst), OK);
    assert_eq!(rig.inject(wire::INJECT_NONE, 0, 0), OK);
    let answer = job.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(answer.fault.reason.get(), wire::FAULT_NOT_ATTACHED);
    assert_eq!(rig.get(0x2000, 4), [0; 4]);
}

#[test]
fn hurry_and_reset_end_a_delay() {
    let rig = Arc::new(Rig::new());
    let start = Instant::now();
    let job = delayed(&rig, copy(range(1, 0, 4), range(1, 0, 4)));
    drop(rig.engine.hurry());
    job.join().unwrap();
    let job = delayed(&rig, copy(range(1, 0, 4), range(1, 0, 4)));
    rig.engine.reset();
    job.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_delay_is_as_long_as_asked_for() {
    let rig = Rig::new();
    assert_eq!(rig.inject(wire::INJECT_DELAY, 1, 50_000), OK);
    let start = Instant::now();
    rig.job(&copy(range(1, 0, 4), range(1, 0, 4)));
    assert!(start.elapsed() >= Duration::from_millis(50));
}

/// Set when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn after_detach_is_answered_no_byte_moves_any_more() {
    const LENGTH: u64 = 0x8000;
    let rig = Rig::new();
    let src = rig.attach(READ, &[(0, LENGTH)]);
    let dst = AtomicU64::new(0);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let to = dst.load(Ordering::Relaxed);
                let (answer, _) = rig.job(&copy(range(src, 0, LENGTH), range(to, 0, LENGTH)));
                written.fetch_add(answer.bytes_written.get(), Ordering::Relaxed);
            }
        });
        // However this ends, the job's thread must.
        let _stop = Stop(&stop);
        for _ in 0..100 {
            let handle = rig.attach(WRITE, &[(0x10000, LENGTH)]);
            let before = written.load(Ordering::Relaxed);
            dst.store(handle, Ordering::Relaxed);
            let start = Instant::now();
            while written.load(Ordering::Relaxed) == before {
                assert!(start.elapsed() < Duration::from_secs(5), "no job gets done");
                thread::yield_now();
            }
            assert_eq!(rig.detach(handle), OK);
            rig.put(0x10000, &[0xee; LENGTH as usize]);
            thread::yield_now();
            let bytes = rig.get(0x10000, LENGTH as usize);
            assert!(bytes.iter().all(|byte| *byte == 0xee), "a stray write");
        }
    });
}

#[test]
fn an_injected_death_ends_the_process() {
    const CHILD: &str = "PINBED_TEST_DIES";
    if std::env::var_os(CHILD).is_some() {
        let rig = Rig::new();
        assert_eq!(rig.inject(wire::INJECT_DIE, 1, 0), OK);
        rig.job(&copy(range(1, 0, 4), range(1, 0, 4)));
        std::process::exit(0);
    }
    use std::os::unix::process::ExitStatusExt;
    let me = std::env::current_exe().unwrap();
    let output = Command::new(me)
        .args(["--exact", "an_injected_death_ends_the_process"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    const SIGABRT: i32 = 6;
    assert_eq!(output.status.signal(), Some(SIGABRT), "{output:?}");
}
