// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The engines: jobs, faults and events, calls of the TEE, protected memory: docs/device.md, 5.2 to 5.4 and 6.

use super::stage::{Driver, Hand, Lanes, OFFERED, REQUEST, Stage, region};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{self, pin, playback};
use pinbed_abi::tee::{self, Param};
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::observe::device::{copy, header, range};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::region::Region;
use pinbed_raw::ring::{F_WRITE, poll};
use zerocopy::{FromBytes, IntoBytes};

const VIDEO: &str = "docs/device.md, 5.2 Video";
const FAULTS: &str = "docs/device.md, 5.4 Faults";
const TEE: &str = "docs/device.md, 5.3 TEE";
const PROTECTED: &str = "docs/device.md, 6 Protected memory";
const LIMITS: &str = "docs/device.md, 4 Configuration space";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::jobs_report_what_the_cpu_sees", jobs_report_what_the_cpu_sees, VIDEO,
        "COPY and FILL move just the bytes asked for; the answer's bytes, CRC32C and segments are those that the CPU sees."),
    test("raw::overlapping_copies_read_first", overlapping_copies_read_first, VIDEO,
        "A COPY whose source and destination share memory reads all of it first, up to max_overlap; more is STATUS_LIMIT."),
    test("raw::jobs_that_contradict_themselves_are_invalid", jobs_that_contradict_themselves_are_invalid, VIDEO,
        "COPY of different lengths, FILL with a source, and images with sides, strides, formats or encodings that are not defined are STATUS_INVALID."),
    test("raw::padding_is_not_touched", padding_is_not_touched, VIDEO,
        "CONVERT reads and writes the pixels of each line, and not the padding up to the stride."),
    test("raw::padding_need_not_be_memory", padding_need_not_be_memory, VIDEO,
        "CONVERT of an image whose padding lies where there is no memory moves its pixels."),
    test("raw::answers_list_as_many_segments_as_fit", answers_list_as_many_segments_as_fit, VIDEO,
        "A job's answer lists segments read and written, of each as many as fit into half of the room behind the fixed part."),
    test("raw::the_longest_side_is_taken", the_longest_side_is_taken, VIDEO,
        "An image of max_side pixels or lines is converted, one more is STATUS_INVALID."),
    test("raw::faults_say_where_and_why", faults_say_where_and_why, FAULTS,
        "Each access that misses is answered with its reason, range and address, the same as an event, and moves no byte."),
    test("raw::events_come_before_answers", events_come_before_answers, FAULTS,
        "A fault's event is in the event queue when the request is answered; without fit room it is lost, and counted."),
    test("raw::calls_take_and_give_parameters", calls_take_and_give_parameters, TEE,
        "A trusted application gets the values and memory of a call and gives them back; attributes that are not defined are STATUS_INVALID or BAD_PARAMETERS."),
    test("raw::sessions_belong_to_their_context", sessions_belong_to_their_context, TEE,
        "For another context a session is not there; after CLOSE_SESSION and CLOSE_CONTEXT it is gone."),
    test("raw::memrefs_are_checked_before_the_call", memrefs_are_checked_before_the_call, TEE,
        "A memref of an unknown handle is BAD_PARAMETERS, one past its buffer SECURITY, both of origin TEE with the fault set; NULL memrefs pass."),
    test("raw::calls_end_when_they_are_cancelled", calls_end_when_they_are_cancelled, TEE,
        "CANCEL ends a call that waits, and so do CLOSE_SESSION and CLOSE_CONTEXT; none of them waits for other sessions."),
    test("raw::a_panic_ends_the_instance", a_panic_ends_the_instance, TEE,
        "After a panic each call is TARGET_DEAD, and a new session works."),
    test("raw::sessions_and_calls_are_bounded", sessions_and_calls_are_bounded, LIMITS,
        "1,024 sessions and 64 calls at a time are served, one more is OUT_OF_MEMORY and BUSY."),
    test("raw::protected_memory_is_the_tees", protected_memory_is_the_tees, PROTECTED,
        "Protected memory cannot be protected twice, read by CHECKSUM, a job or an application without the right, under whatever handle."),
    test("raw::protected_bytes_stand_encrypted", protected_bytes_stand_encrypted, PROTECTED,
        "What an application decrypts into protected memory is not what the CPU reads there; the device reads it back, and nobody else."),
];

const PAGE64: u64 = PAGE as u64;

fn jobs_report_what_the_cpu_sees(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (src, dst) = (region(4 * PAGE)?, region(4 * PAGE)?);
    let bytes = t.random(4 * PAGE);
    src.write(0, &bytes);
    // Two pieces that touch and one that does not.
    let from = lanes.attach(
        wire::DIRECTION_READ,
        &[
            (src.physical(0), 100),
            (src.physical(100), 200),
            (src.physical(PAGE), 5000),
        ],
    )?;
    let to = lanes.attach(wire::DIRECTION_WRITE, &[(dst.physical(3), 5300)])?;
    let seen = [&bytes[..300], &bytes[PAGE..PAGE + 5000]].concat();
    for (at, length) in [(0usize, 5300usize), (7, 1), (250, 100), (0, 0)] {
        dst.write(0, &vec![0xcd; 4 * PAGE]);
        let request = wire::JobRequest {
            header: header(wire::OP_COPY),
            src: range(from, at as u64, length as u64),
            dst: range(to, 0, length as u64),
            ..Default::default()
        };
        let answer = lanes.exchange(wire::QUEUE_VIDEO, request.as_bytes(), 4096)?;
        let (fixed, rest) = wire::JobResponse::read_from_prefix(&answer).map_err(|_| short())?;
        let what = format!("COPY of {length} bytes from {at} on");
        let part = &seen[at..at + length];
        t.equal(
            Eye::Device,
            &format!("{what}: status"),
            fixed.header.status.get(),
            wire::STATUS_OK,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: bytes"),
            (fixed.bytes_read.get(), fixed.bytes_written.get()),
            (length as u64, length as u64),
        );
        t.equal(
            Eye::Device,
            &format!("{what}: CRC32C"),
            (fixed.src_crc.get(), fixed.dst_crc.get()),
            (crc(part), crc(part)),
        );
        let mut expected = vec![0xcd; 4 * PAGE];
        expected[3..3 + length].copy_from_slice(part);
        t.same_bytes(
            Eye::Cpu,
            &format!("{what}: the destination"),
            &dst.read(0..4 * PAGE),
            &expected,
        );
        if length == 5300 {
            let segments = <[wire::Segment]>::ref_from_bytes(rest).unwrap_or_default();
            let segments: Vec<_> = segments
                .iter()
                .map(|it| (it.address.get(), it.length.get()))
                .collect();
            let expected = [
                (src.physical(0), 300),
                (src.physical(PAGE), 5000),
                (dst.physical(3), 5300),
            ];
            t.equal(
                Eye::Device,
                "the segments read and written, merged",
                &segments[..],
                &expected,
            );
        }
    }
    let fill = wire::JobRequest {
        header: header(wire::OP_FILL),
        dst: range(to, 1, 10),
        pattern: 0x4433_2211.into(),
        ..Default::default()
    };
    lanes.job(&fill)?;
    let expected = [0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0x33, 0x44, 0x11, 0x22];
    t.same_bytes(Eye::Cpu, "what FILL wrote", &dst.read(4..14), &expected);
    Ok(())
}

fn short() -> Stop {
    Stop::finding(Eye::Device, "the answer is too short")
}

fn overlapping_copies_read_first(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(4 * PAGE)?;
    let bytes = t.random(4 * PAGE);
    for shift in [1usize, 100, PAGE] {
        memory.write(0, &bytes);
        let length = 4 * PAGE - shift;
        let low = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), length as u64)])?;
        let high = lanes.attach(
            wire::DIRECTION_BOTH,
            &[(memory.physical(shift), length as u64)],
        )?;
        lanes.job(&copy(low, high, length as u64))?;
        t.same_bytes(
            Eye::Cpu,
            &format!("a copy {shift} bytes up"),
            &memory.read(shift..4 * PAGE),
            &bytes[..length],
        );
    }
    // The same page again and again.
    const MOST: u64 = 32 << 20;
    let again = vec![(memory.physical(0), PAGE64); (MOST / PAGE64) as usize + 1];
    let many = lanes.attach(wire::DIRECTION_BOTH, &again)?;
    let other = lanes.attach(wire::DIRECTION_BOTH, &again)?;
    for (length, expected) in [(MOST, wire::STATUS_OK), (MOST + 1, wire::STATUS_LIMIT)] {
        let status = lanes.job(&copy(many, other, length))?.header.status.get();
        t.equal(
            Eye::Device,
            &format!("COPY of {length} bytes that overlap"),
            status,
            expected,
        );
    }
    Ok(())
}

fn fourcc(name: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*name)
}

fn grey(width: u32, height: u32, stride: u32) -> wire::Format {
    wire::Format {
        fourcc: fourcc(b"GREY").into(),
        width: width.into(),
        height: height.into(),
        stride: stride.into(),
        encoding: wire::ENCODING_BT601.into(),
        quantization: wire::QUANTIZATION_FULL.into(),
    }
}

fn convert(
    src: wire::Range,
    dst: wire::Range,
    from: wire::Format,
    to: wire::Format,
) -> wire::JobRequest {
    wire::JobRequest {
        header: header(wire::OP_CONVERT),
        src,
        dst,
        src_format: from,
        dst_format: to,
        ..Default::default()
    }
}

fn jobs_that_contradict_themselves_are_invalid(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(4 * PAGE)?;
    let handle = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), 4 * PAGE64)])?;
    let whole = range(handle, 0, 4 * PAGE64);
    let good = grey(32, 16, 32);
    let with = |change: fn(&mut wire::Format)| {
        let mut format = good;
        change(&mut format);
        format
    };
    let mut different = copy(handle, handle, 64);
    different.dst.length = 63.into();
    let mut reserved = copy(handle, handle, 64);
    reserved.reserved = 1.into();
    let fill = wire::JobRequest {
        header: header(wire::OP_FILL),
        src: range(handle, 0, 4),
        dst: range(handle, 0, 4),
        ..Default::default()
    };
    let mut refused = vec![
        ("COPY of 64 to 63 bytes", different),
        ("COPY with a reserved field of 1", reserved),
        ("FILL with a source", fill),
    ];
    for (what, format) in [
        ("no width", with(|it| it.width = 0.into())),
        ("no height", with(|it| it.height = 0.into())),
        (
            "a width of 16,385",
            with(|it| (it.width, it.stride) = (16_385.into(), 16_385.into())),
        ),
        ("a height of 2^32-1", with(|it| it.height = u32::MAX.into())),
        (
            "a stride less than a line",
            with(|it| it.stride = 31.into()),
        ),
        (
            "an unknown fourcc",
            with(|it| it.fourcc = fourcc(b"YU12").into()),
        ),
        (
            "no encoding",
            with(|it| it.encoding = wire::ENCODING_NONE.into()),
        ),
        ("an unknown encoding", with(|it| it.encoding = 99.into())),
        ("no quantization", with(|it| it.quantization = 0.into())),
        (
            "another height than the destination",
            with(|it| it.height = 15.into()),
        ),
        (
            "another encoding than the destination",
            with(|it| it.encoding = wire::ENCODING_BT709.into()),
        ),
        (
            "NV12 of odd height",
            with(|it| (it.fourcc, it.height) = (fourcc(b"NV12").into(), 15.into())),
        ),
        (
            "YUYV of odd width",
            with(|it| {
                (it.fourcc, it.width, it.stride) = (fourcc(b"YUYV").into(), 31.into(), 64.into())
            }),
        ),
        (
            "RGB with an encoding",
            with(|it| (it.fourcc, it.stride) = (fourcc(b"RGB3").into(), 96.into())),
        ),
    ] {
        refused.push((what, convert(whole, whole, format, good)));
    }
    for (what, request) in refused {
        let answer = lanes.job(&request)?;
        t.equal(
            Eye::Device,
            what,
            answer.header.status.get(),
            wire::STATUS_INVALID,
        );
    }
    t.equal(Eye::Device, "jobs counted", lanes.status()?.jobs.get(), 0);
    let answer = lanes.job(&convert(whole, whole, good, good))?;
    t.equal(
        Eye::Device,
        "a good CONVERT",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    let short = range(handle, 0, 32 * 16 - 1);
    let answer = lanes.job(&convert(whole, short, good, good))?;
    t.equal(
        Eye::Device,
        "CONVERT to a range that is a byte short",
        answer.header.status.get(),
        wire::STATUS_INVALID,
    );
    Ok(())
}

fn padding_is_not_touched(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (src, dst) = (region(PAGE)?, region(PAGE)?);
    let bytes = t.random(PAGE);
    src.write(0, &bytes);
    dst.write(0, &[0xcd; PAGE]);
    let from = lanes.attach(wire::DIRECTION_READ, &[(src.physical(0), PAGE64)])?;
    let to = lanes.attach(wire::DIRECTION_WRITE, &[(dst.physical(0), PAGE64)])?;
    let (width, height, stride, other) = (30usize, 10usize, 33usize, 50usize);
    let request = convert(
        range(from, 0, (stride * height) as u64),
        range(to, 0, (other * height) as u64),
        grey(width as u32, height as u32, stride as u32),
        grey(width as u32, height as u32, other as u32),
    );
    let answer = lanes.job(&request)?;
    let mut expected = vec![0xcd; PAGE];
    let mut moved = Vec::new();
    for line in 0..height {
        let pixels = &bytes[line * stride..line * stride + width];
        expected[line * other..line * other + width].copy_from_slice(pixels);
        moved.extend_from_slice(pixels);
    }
    t.same_bytes(Eye::Cpu, "the destination", &dst.read(0..PAGE), &expected);
    t.equal(
        Eye::Device,
        "bytes written",
        answer.bytes_written.get(),
        moved.len() as u64,
    );
    t.equal(
        Eye::Device,
        "CRC32C of what was read",
        answer.src_crc.get(),
        crc(&moved),
    );
    Ok(())
}

fn padding_need_not_be_memory(t: &mut Ctx) -> TestResult {
    const WIDTH: usize = 30;
    const LINES: usize = 10;
    const STRIDE: usize = 50;
    let stage = Stage::take()?;
    let mut lanes: Lanes<64> = stage.lanes(OFFERED)?;
    let (src, dst) = (region(PAGE)?, region(PAGE)?);
    let bytes = t.random(WIDTH * LINES);
    src.write(0, &bytes);
    // The lines side by side in memory, the padding after each of them nowhere.
    let lines = |memory: &Region| {
        let pieces = (0..LINES).flat_map(|line| {
            [
                (memory.physical(line * WIDTH), WIDTH as u64),
                (1 << 45, (STRIDE - WIDTH) as u64),
            ]
        });
        pieces.collect::<Vec<_>>()
    };
    let from = lanes.attach(wire::DIRECTION_READ, &lines(&src))?;
    let to = lanes.attach(wire::DIRECTION_WRITE, &lines(&dst))?;
    let length = (STRIDE * LINES) as u64;
    let format = grey(WIDTH as u32, LINES as u32, STRIDE as u32);
    let image = convert(range(from, 0, length), range(to, 0, length), format, format);
    let answer = lanes.job(&image)?;
    t.equal(
        Eye::Device,
        "CONVERT's status",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    t.same_bytes(Eye::Cpu, "the lines", &dst.read(0..WIDTH * LINES), &bytes);
    // All of the range is what a COPY wants.
    let answer = lanes.job(&copy(from, to, length))?;
    t.equal(
        Eye::Device,
        "the fault of a COPY of the same",
        (answer.fault.reason.get(), answer.fault.address.get()),
        (wire::FAULT_NO_MEMORY, 1 << 45),
    );
    Ok(())
}

fn answers_list_as_many_segments_as_fit(t: &mut Ctx) -> TestResult {
    const COUNT: usize = 5;
    const SEGMENT: usize = size_of::<wire::Segment>();
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (src, dst) = (region(PAGE)?, region(PAGE)?);
    let pieces = |memory: &Region| {
        let pieces = (0..COUNT).map(|n| (memory.physical(100 * n), 10));
        pieces.collect::<Vec<(u64, u64)>>()
    };
    let (read, written) = (pieces(&src), pieces(&dst));
    let from = lanes.attach(wire::DIRECTION_READ, &read)?;
    let to = lanes.attach(wire::DIRECTION_WRITE, &written)?;
    let request = copy(from, to, 10 * COUNT as u64);
    for (room, each) in [
        (0, 0),
        (SEGMENT, 0),
        (2 * SEGMENT, 1),
        (7 * SEGMENT + 15, 3),
        (8 * SEGMENT, 4),
        (20 * SEGMENT, COUNT),
    ] {
        let all = size_of::<wire::JobResponse>() + room;
        let answer = lanes.exchange(wire::QUEUE_VIDEO, request.as_bytes(), all)?;
        let (fixed, rest) = wire::JobResponse::read_from_prefix(&answer).map_err(|_| short())?;
        t.equal(
            Eye::Device,
            &format!("segments read and written in {room} bytes"),
            (fixed.src_returned.get(), fixed.dst_returned.get()),
            (each as u32, each as u32),
        );
        let listed = <[wire::Segment]>::ref_from_bytes(rest).unwrap_or_default();
        let listed: Vec<_> = listed
            .iter()
            .map(|it| (it.address.get(), it.length.get()))
            .collect();
        let expected = [&read[..each], &written[..each]].concat();
        t.equal(Eye::Device, "the segments", listed, expected);
    }
    Ok(())
}

fn the_longest_side_is_taken(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (src, dst) = (region(5 * PAGE)?, region(5 * PAGE)?);
    let from = lanes.attach(wire::DIRECTION_READ, &[(src.physical(0), 5 * PAGE64)])?;
    let to = lanes.attach(wire::DIRECTION_WRITE, &[(dst.physical(0), 5 * PAGE64)])?;
    for (side, expected) in [(16_384, wire::STATUS_OK), (16_385, wire::STATUS_INVALID)] {
        for (width, height) in [(side, 1), (1, side)] {
            let format = grey(width, height, width);
            let length = u64::from(width * height);
            let answer = lanes.job(&convert(
                range(from, 0, length),
                range(to, 0, length),
                format,
                format,
            ))?;
            t.equal(
                Eye::Device,
                &format!("an image of {width}×{height}"),
                answer.header.status.get(),
                expected,
            );
        }
    }
    Ok(())
}

fn faults_say_where_and_why(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 32)?;
    let memory = region(PAGE)?;
    memory.write(0, &[0xcd; PAGE]);
    let at = memory.physical(0);
    let good = hand.attach(wire::DIRECTION_BOTH, &[(at, PAGE64)])?;
    let read = hand.attach(wire::DIRECTION_READ, &[(at, PAGE64)])?;
    let write = hand.attach(wire::DIRECTION_WRITE, &[(at, PAGE64)])?;
    let nowhere = hand.attach(wire::DIRECTION_BOTH, &[(at, 100), (1 << 45, PAGE64)])?;
    let (reads, writes) = (wire::DIRECTION_READ, wire::DIRECTION_WRITE);
    let job = |src: wire::Range, dst: wire::Range| wire::JobRequest {
        header: header(wire::OP_COPY),
        src,
        dst,
        ..Default::default()
    };
    let fine = range(good, 0, 64);
    let cases = [
        (
            "an unknown source",
            job(range(9999, 0, 64), fine),
            wire::FAULT_NOT_ATTACHED,
            reads,
            9999,
            0,
        ),
        (
            "an unknown destination",
            job(fine, range(9999, 0, 64)),
            wire::FAULT_NOT_ATTACHED,
            writes,
            9999,
            0,
        ),
        (
            "two unknown, the source first",
            job(range(9998, 0, 64), range(9999, 0, 64)),
            wire::FAULT_NOT_ATTACHED,
            reads,
            9998,
            0,
        ),
        (
            "a source past its end",
            job(range(good, PAGE64 - 63, 64), fine),
            wire::FAULT_OUT_OF_BOUNDS,
            reads,
            good,
            0,
        ),
        (
            "an offset that wraps",
            job(range(good, u64::MAX - 1, 64), fine),
            wire::FAULT_OUT_OF_BOUNDS,
            reads,
            good,
            0,
        ),
        (
            "a destination past its end",
            job(fine, range(good, PAGE64, 64)),
            wire::FAULT_OUT_OF_BOUNDS,
            writes,
            good,
            0,
        ),
        (
            "a source that is for writing",
            job(range(write, 0, 64), fine),
            wire::FAULT_PERMISSION,
            reads,
            write,
            0,
        ),
        (
            "a destination that is for reading",
            job(fine, range(read, 0, 64)),
            wire::FAULT_PERMISSION,
            writes,
            read,
            0,
        ),
        (
            "past the end of one for reading",
            job(fine, range(read, PAGE64, 64)),
            wire::FAULT_OUT_OF_BOUNDS,
            writes,
            read,
            0,
        ),
        (
            "a source that is no memory",
            job(range(nowhere, 90, 64), fine),
            wire::FAULT_NO_MEMORY,
            reads,
            nowhere,
            1 << 45,
        ),
        (
            "a destination that is no memory",
            job(fine, range(nowhere, 200, 64)),
            wire::FAULT_NO_MEMORY,
            writes,
            nowhere,
            (1 << 45) + 100,
        ),
    ];
    for (count, (what, request, reason, access, handle, address)) in cases.into_iter().enumerate() {
        let asked = if access == reads {
            request.src
        } else {
            request.dst
        };
        let expected = wire::Fault {
            reason: reason.into(),
            access: access.into(),
            range: asked,
            address: address.into(),
        };
        let answer = hand.job(&request)?;
        t.equal(
            Eye::Device,
            &format!("{what}: status"),
            answer.header.status.get(),
            wire::STATUS_DMA_FAULT,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: fault"),
            answer.fault,
            expected,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: handle"),
            answer.fault.range.handle.get(),
            handle,
        );
        let nothing_else = wire::JobResponse {
            header: answer.header,
            fault: expected,
            ..Default::default()
        };
        t.equal(
            Eye::Device,
            &format!("{what}: the answer"),
            answer,
            nothing_else,
        );
        let event = hand.poll_event().map(|(event, _)| event);
        let expected = wire::Event {
            kind: wire::EVENT_DMA_FAULT.into(),
            reserved: 0.into(),
            cookie: request.header.cookie,
            fault: expected,
        };
        t.equal(
            Eye::Device,
            &format!("{what}: event"),
            event,
            Some(expected),
        );
        t.equal(
            Eye::Device,
            &format!("{what}: faults counted"),
            hand.status()?.faults.get(),
            count as u64 + 1,
        );
    }
    t.same_bytes(
        Eye::Cpu,
        "memory after jobs that missed",
        &memory.read(0..PAGE),
        &[0xcd; PAGE],
    );
    Ok(())
}

fn events_come_before_answers(t: &mut Ctx) -> TestResult {
    const LENGTH: u32 = size_of::<wire::Event>() as u32;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 0)?;
    hand.job(&copy(77, 77, 1))?;
    t.equal(
        Eye::Device,
        "events lost without room",
        hand.status()?.events_lost.get(),
        1,
    );
    // Room that is too small is given back empty, and what comes next is used.
    let small = hand.requests.physical(3 * REQUEST);
    let ring = hand.ring(wire::QUEUE_EVENT);
    ring.chain(40, &[(small, LENGTH - 1, F_WRITE)]);
    ring.offer(40);
    ring.chain(41, &[(small, LENGTH, 0)]);
    ring.offer(41);
    hand.post_event_buffer(2);
    for round in 0..2 {
        let request = copy(77, 77, 1);
        hand.job(&request)?;
        match round {
            0 => {
                let ring = hand.ring(wire::QUEUE_EVENT);
                t.equal(
                    Eye::Device,
                    "room that is too small",
                    ring.poll_used(),
                    Some((40, 0)),
                );
                t.equal(
                    Eye::Device,
                    "room that is not writable",
                    ring.poll_used(),
                    Some((41, 0)),
                );
                let event = hand.poll_event();
                let cookie = event.map(|(event, length)| (event.cookie, length));
                t.equal(
                    Eye::Device,
                    "the event",
                    cookie,
                    Some((request.header.cookie, LENGTH)),
                );
            }
            _ => {
                let lost = hand.status()?.events_lost.get();
                t.equal(Eye::Device, "events lost", lost, 2);
            }
        }
    }
    Ok(())
}

/// No parameter.
pub const NONE: Param = Param {
    attr: zerocopy::little_endian::U64::ZERO,
    a: zerocopy::little_endian::U64::ZERO,
    b: zerocopy::little_endian::U64::ZERO,
    c: zerocopy::little_endian::U64::ZERO,
};

/// A value, with `a` and `b`.
pub fn value(attr: u64, a: u64, b: u64) -> Param {
    memref(attr, a, b, 0)
}

/// `a` is the offset, `b` the size, `c` the handle.
pub fn memref(attr: u64, a: u64, b: u64, c: u64) -> Param {
    Param {
        attr: attr.into(),
        a: a.into(),
        b: b.into(),
        c: c.into(),
    }
}

/// An OPEN_SESSION.
pub fn open_request(context: u64, uuid: ta::Uuid) -> tee::OpenSessionRequest {
    tee::OpenSessionRequest {
        header: header(tee::OP_OPEN_SESSION),
        context: context.into(),
        uuid,
        ..Default::default()
    }
}

/// An INVOKE.
pub fn invoke_request(
    context: u64,
    session: u32,
    function: u32,
    params: [Param; 4],
) -> tee::InvokeRequest {
    tee::InvokeRequest {
        header: header(tee::OP_INVOKE),
        context: context.into(),
        session: session.into(),
        function: function.into(),
        params,
        ..Default::default()
    }
}

/// OPEN_SESSION: the session, or result and origin.
pub fn open(
    driver: &mut impl Driver,
    context: u64,
    uuid: ta::Uuid,
) -> TestResult<Result<u32, (u32, u32)>> {
    let answer: tee::CallResponse = driver.ask(wire::QUEUE_TEE, &open_request(context, uuid))?;
    Ok(match answer.result.get() {
        tee::TEEC_SUCCESS => Ok(answer.session.get()),
        result => Err((result, answer.origin.get())),
    })
}

/// A session that opens.
pub fn session(driver: &mut impl Driver, context: u64, uuid: ta::Uuid) -> TestResult<u32> {
    open(driver, context, uuid)?.map_err(|result| {
        Stop::finding(
            Eye::Device,
            format!("OPEN_SESSION: result and origin {result:x?}"),
        )
    })
}

/// INVOKE.
pub fn invoke(
    driver: &mut impl Driver,
    context: u64,
    session: u32,
    function: u32,
    params: [Param; 4],
) -> TestResult<tee::CallResponse> {
    driver.ask(
        wire::QUEUE_TEE,
        &invoke_request(context, session, function, params),
    )
}

/// CLOSE_SESSION: the result.
pub fn close(driver: &mut impl Driver, context: u64, session: u32) -> TestResult<u32> {
    let request = tee::CloseSessionRequest {
        header: header(tee::OP_CLOSE_SESSION),
        context: context.into(),
        session: session.into(),
        reserved: 0.into(),
    };
    let answer: tee::ResultResponse = driver.ask(wire::QUEUE_TEE, &request)?;
    Ok(answer.result.get())
}

fn calls_take_and_give_parameters(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let session = session(&mut lanes, 1, pin::UUID)?;
    let params = [
        value(tee::PARAM_VALUE_INPUT, 3, 4),
        value(tee::PARAM_VALUE_OUTPUT, 0, 0),
        value(tee::PARAM_VALUE_INOUT, 5, !0),
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, session, pin::ECHO, params)?;
    t.equal(
        Eye::Device,
        "ECHO's result",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    t.equal(
        Eye::Device,
        "the value that came back",
        (answer.params[1].a.get(), answer.params[1].b.get()),
        (3, 4),
    );
    t.equal(
        Eye::Device,
        "the value inverted",
        (answer.params[2].a.get(), answer.params[2].b.get()),
        (!5, 0),
    );
    let memory = region(PAGE)?;
    let bytes = t.random(PAGE);
    memory.write(0, &bytes);
    let handle = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE64)])?;
    let params = [
        memref(tee::PARAM_MEMREF_INPUT, 5, 1000, handle),
        value(tee::PARAM_VALUE_OUTPUT, 0, 0),
        NONE,
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, session, pin::CHECKSUM, params)?;
    t.equal(
        Eye::Device,
        "CHECKSUM's CRC32C and size",
        (answer.params[1].a.get(), answer.params[1].b.get()),
        (u64::from(crc(&bytes[5..1005])), 1000),
    );
    let params = [
        memref(tee::PARAM_MEMREF_OUTPUT, 100, 6, handle),
        value(tee::PARAM_VALUE_INPUT, 0x4433_2211, 0),
        NONE,
        NONE,
    ];
    invoke(&mut lanes, 1, session, pin::FILL, params)?;
    let mut expected = bytes.clone();
    expected[100..106].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x11, 0x22]);
    t.same_bytes(
        Eye::Cpu,
        "the memory after FILL",
        &memory.read(0..PAGE),
        &expected,
    );
    for attr in [4, 8, 1 << 8, 1 << 63] {
        let answer = invoke(
            &mut lanes,
            1,
            session,
            pin::ECHO,
            [value(attr, 0, 0), NONE, NONE, NONE],
        )?;
        let (status, result) = (answer.header.status.get(), answer.result.get());
        let refused = status == wire::STATUS_INVALID || result == tee::TEEC_ERROR_BAD_PARAMETERS;
        t.check(Eye::Device, refused, || {
            format!("attribute {attr:#x}: status {status}, result {result:#x}")
        });
    }
    let unknown = open(&mut lanes, 1, [0x12; 16])?;
    t.equal(
        Eye::Device,
        "a session with nobody",
        unknown,
        Err((tee::TEEC_ERROR_ITEM_NOT_FOUND, tee::TEEC_ORIGIN_TEE)),
    );
    let mut login = open_request(1, pin::UUID);
    login.client_login = 99.into();
    let answer: tee::CallResponse = lanes.ask(wire::QUEUE_TEE, &login)?;
    t.equal(
        Eye::Device,
        "login 99",
        answer.result.get(),
        tee::TEEC_ERROR_BAD_PARAMETERS,
    );
    Ok(())
}

fn sessions_belong_to_their_context(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let mine = session(&mut lanes, 1, pin::UUID)?;
    let ret = |lanes: &mut Lanes<16>, context, session| {
        let params = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
        let answer = invoke(lanes, context, session, pin::RETURN, params)?;
        TestResult::Ok((answer.result.get(), answer.origin.get()))
    };
    let absent = (tee::TEEC_ERROR_BAD_PARAMETERS, tee::TEEC_ORIGIN_TEE);
    t.equal(
        Eye::Device,
        "its own session",
        ret(&mut lanes, 1, mine)?,
        (7, tee::TEEC_ORIGIN_TRUSTED_APP),
    );
    for (context, other) in [
        (2, mine),
        (0, mine),
        (u64::MAX, mine),
        (1, 0),
        (1, mine + 1),
        (1, u32::MAX),
    ] {
        t.equal(
            Eye::Device,
            &format!("session {other} in context {context}"),
            ret(&mut lanes, context, other)?,
            absent,
        );
        t.equal(
            Eye::Device,
            "its CLOSE_SESSION",
            close(&mut lanes, context, other)?,
            tee::TEEC_ERROR_BAD_PARAMETERS,
        );
    }
    t.equal(
        Eye::Device,
        "CLOSE_SESSION",
        close(&mut lanes, 1, mine)?,
        tee::TEEC_SUCCESS,
    );
    t.equal(
        Eye::Device,
        "a closed session",
        ret(&mut lanes, 1, mine)?,
        absent,
    );
    let sessions = [
        session(&mut lanes, 5, pin::UUID)?,
        session(&mut lanes, 5, pin::UUID)?,
    ];
    let request = tee::CloseContextRequest {
        header: header(tee::OP_CLOSE_CONTEXT),
        context: 5.into(),
    };
    let answer: tee::ResultResponse = lanes.ask(wire::QUEUE_TEE, &request)?;
    t.equal(
        Eye::Device,
        "CLOSE_CONTEXT",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    for gone in sessions {
        t.equal(
            Eye::Device,
            "a session of a closed context",
            ret(&mut lanes, 5, gone)?,
            absent,
        );
    }
    t.equal(
        Eye::Device,
        "sessions left",
        lanes.status()?.sessions.get(),
        0,
    );
    Ok(())
}

fn memrefs_are_checked_before_the_call(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let session = session(&mut lanes, 1, pin::UUID)?;
    let memory = region(PAGE)?;
    let handle = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE64)])?;
    let out = value(tee::PARAM_VALUE_OUTPUT, 0, 0);
    let cases = [
        (
            "an unknown handle",
            memref(tee::PARAM_MEMREF_INPUT, 0, 1, 9999),
            tee::TEEC_ERROR_BAD_PARAMETERS,
            wire::FAULT_NOT_ATTACHED,
        ),
        (
            "a size past the end",
            memref(tee::PARAM_MEMREF_INPUT, 1, PAGE64, handle),
            tee::TEEC_ERROR_SECURITY,
            wire::FAULT_OUT_OF_BOUNDS,
        ),
        (
            "an offset past the end",
            memref(tee::PARAM_MEMREF_INPUT, PAGE64 + 1, 0, handle),
            tee::TEEC_ERROR_SECURITY,
            wire::FAULT_OUT_OF_BOUNDS,
        ),
        (
            "offset and size that wrap",
            memref(tee::PARAM_MEMREF_INPUT, u64::MAX, 2, handle),
            tee::TEEC_ERROR_SECURITY,
            wire::FAULT_OUT_OF_BOUNDS,
        ),
    ];
    for (what, param, result, reason) in cases {
        let answer = invoke(
            &mut lanes,
            1,
            session,
            pin::CHECKSUM,
            [param, out, NONE, NONE],
        )?;
        t.equal(
            Eye::Device,
            &format!("{what}: result and origin"),
            (answer.result.get(), answer.origin.get()),
            (result, tee::TEEC_ORIGIN_TEE),
        );
        t.equal(
            Eye::Device,
            &format!("{what}: fault"),
            answer.fault.reason.get(),
            reason,
        );
    }
    let null = memref(tee::PARAM_MEMREF_INPUT, 100, 0, 0);
    let answer = invoke(
        &mut lanes,
        1,
        session,
        pin::CHECKSUM,
        [null, out, NONE, NONE],
    )?;
    t.equal(
        Eye::Device,
        "the NULL memref",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    Ok(())
}

/// Chains of the TEE queue: each has its own place for request and answer in a region.
pub struct Calls {
    memory: Region,
}

impl Calls {
    const PLACE: usize = 1024;

    pub fn new(count: usize) -> TestResult<Self> {
        Ok(Self {
            memory: region(count * Self::PLACE)?,
        })
    }

    pub fn send(&self, hand: &mut Hand, slot: u16, request: &[u8]) {
        let at = usize::from(slot) * Self::PLACE;
        self.memory.write(at, request);
        let (from, to) = (
            self.memory.physical(at),
            self.memory.physical(at + Self::PLACE / 2),
        );
        let ring = hand.ring(wire::QUEUE_TEE);
        ring.chain(
            2 * slot,
            &[
                (from, request.len() as u32, 0),
                (to, (Self::PLACE / 2) as u32, F_WRITE),
            ],
        );
        ring.offer(2 * slot);
        hand.notify(wire::QUEUE_TEE);
    }

    /// The answer's result and origin.
    pub fn answer(&self, slot: u16) -> TestResult<tee::CallResponse> {
        let at = usize::from(slot) * Self::PLACE + Self::PLACE / 2;
        let bytes = self.memory.read(at..at + size_of::<tee::CallResponse>());
        tee::CallResponse::read_from_bytes(&bytes).map_err(|_| short())
    }
}

/// An INVOKE that ends when it is cancelled.
pub fn endless(context: u64, session: u32, cancel_id: u32) -> tee::InvokeRequest {
    let mut request = invoke_request(
        context,
        session,
        pin::WAIT,
        [value(tee::PARAM_VALUE_INPUT, 0, 0), NONE, NONE, NONE],
    );
    request.cancel_id = cancel_id.into();
    request
}

fn calls_end_when_they_are_cancelled(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 256, 0)?;
    let calls = Calls::new(128)?;
    for (what, ends) in [("CANCEL", 0), ("CLOSE_SESSION", 1), ("CLOSE_CONTEXT", 2)] {
        let of_call = session(&mut hand, 3, pin::UUID)?;
        let other = session(&mut hand, 4, pin::UUID)?;
        calls.send(&mut hand, 100, endless(3, of_call, 9).as_bytes());
        poll(2, || (hand.status().ok()?.calls.get() == 1).then_some(()))?;
        // The other session is served meanwhile.
        let params = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
        t.equal(
            Eye::Device,
            "another session's call",
            invoke(&mut hand, 4, other, pin::RETURN, params)?
                .result
                .get(),
            7,
        );
        let cancel = tee::CancelRequest {
            header: header(tee::OP_CANCEL),
            context: 3.into(),
            session: of_call.into(),
            cancel_id: 9.into(),
        };
        let close = tee::CloseSessionRequest {
            header: header(tee::OP_CLOSE_SESSION),
            context: 3.into(),
            session: of_call.into(),
            reserved: 0.into(),
        };
        let leave = tee::CloseContextRequest {
            header: header(tee::OP_CLOSE_CONTEXT),
            context: 3.into(),
        };
        let request = [cancel.as_bytes(), close.as_bytes(), leave.as_bytes()][ends];
        calls.send(&mut hand, 101, request);
        let mut heads = vec![
            hand.ring(wire::QUEUE_TEE).wait_used()?.0,
            hand.ring(wire::QUEUE_TEE).wait_used()?.0,
        ];
        heads.sort_unstable();
        t.equal(
            Eye::Device,
            &format!("chains that come back after {what}"),
            heads,
            vec![200, 202],
        );
        let answer = calls.answer(100)?;
        t.check(
            Eye::Device,
            answer.result.get() != tee::TEEC_SUCCESS,
            || format!("{what}: the call succeeds"),
        );
        if ends == 0 {
            t.equal(
                Eye::Device,
                "the cancelled call",
                answer.result.get(),
                tee::TEEC_ERROR_CANCEL,
            );
        }
        close_all(&mut hand, 3)?;
        close_all(&mut hand, 4)?;
        t.equal(
            Eye::Device,
            &format!("sessions after {what}"),
            hand.status()?.sessions.get(),
            0,
        );
    }
    Ok(())
}

fn close_all(driver: &mut impl Driver, context: u64) -> TestResult {
    let request = tee::CloseContextRequest {
        header: header(tee::OP_CLOSE_CONTEXT),
        context: context.into(),
    };
    driver.status_of(wire::QUEUE_TEE, &request).map(drop)
}

fn a_panic_ends_the_instance(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let dead = session(&mut lanes, 1, pin::UUID)?;
    let beside = session(&mut lanes, 1, pin::UUID)?;
    for function in [pin::PANIC, pin::ECHO, pin::CLIENT] {
        let answer = invoke(&mut lanes, 1, dead, function, [NONE; 4])?;
        t.equal(
            Eye::Device,
            &format!("function {function} of a dead session"),
            answer.result.get(),
            tee::TEEC_ERROR_TARGET_DEAD,
        );
    }
    let params = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
    t.equal(
        Eye::Device,
        "the session beside it",
        invoke(&mut lanes, 1, beside, pin::RETURN, params)?
            .result
            .get(),
        7,
    );
    t.equal(
        Eye::Device,
        "CLOSE_SESSION of a dead session",
        close(&mut lanes, 1, dead)?,
        tee::TEEC_SUCCESS,
    );
    session(&mut lanes, 1, pin::UUID)?;
    Ok(())
}

fn sessions_and_calls_are_bounded(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 256, 0)?;
    let mut sessions = Vec::new();
    let refused = loop {
        match open(&mut hand, 1, pin::UUID)? {
            Ok(session) => sessions.push(session),
            Err((result, _)) => break result,
        }
        if sessions.len() > 2000 {
            break tee::TEEC_SUCCESS;
        }
    };
    t.equal(
        Eye::Device,
        "sessions, and the result of one more",
        (sessions.len(), refused),
        (1024, tee::TEEC_ERROR_OUT_OF_MEMORY),
    );
    close_all(&mut hand, 1)?;
    // Calls of sessions of their own, since those of one wait for each other.
    let calls = Calls::new(128)?;
    let mut open = Vec::new();
    for _ in 0..65 {
        open.push(session(&mut hand, 2, pin::UUID)?);
    }
    for (slot, session) in open[..64].iter().enumerate() {
        calls.send(
            &mut hand,
            slot as u16 + 4,
            endless(2, *session, 1).as_bytes(),
        );
    }
    poll(2, || (hand.status().ok()?.calls.get() == 64).then_some(()))?;
    let params = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
    let answer = invoke(&mut hand, 2, open[64], pin::RETURN, params)?;
    t.equal(
        Eye::Device,
        "one call more",
        answer.result.get(),
        tee::TEEC_ERROR_BUSY,
    );
    t.equal(Eye::Device, "calls", hand.status()?.calls.get(), 64);
    Ok(())
}

fn protected_memory_is_the_tees(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(4 * PAGE)?;
    let at = memory.physical(0);
    let before = lanes.attach(wire::DIRECTION_BOTH, &[(at, 4 * PAGE64)])?;
    let protected = lanes.try_attach(
        wire::DIRECTION_BOTH,
        wire::ATTACH_PROTECTED,
        &[(at + PAGE64, PAGE64)],
    )?;
    let protected = protected.map_err(|status| {
        Stop::finding(Eye::Device, format!("a protected ATTACH: status {status}"))
    })?;
    for (what, place) in [
        ("the same", (at + PAGE64, PAGE64)),
        ("its last byte", (at + 2 * PAGE64 - 1, 1)),
        ("memory around it", (at, 4 * PAGE64)),
    ] {
        let twice = lanes.try_attach(wire::DIRECTION_BOTH, wire::ATTACH_PROTECTED, &[place])?;
        t.equal(
            Eye::Device,
            &format!("protecting {what} again"),
            twice,
            Err(wire::STATUS_INVALID),
        );
    }
    let after = lanes.attach(wire::DIRECTION_BOTH, &[(at, 4 * PAGE64)])?;
    let app = session(&mut lanes, 1, pin::UUID)?;
    for (what, handle, offset) in [
        ("its own handle", protected, 0),
        ("a handle of before", before, PAGE64),
        ("a handle of after", after, PAGE64),
    ] {
        let answer = lanes.checksum(handle, offset, 16)?;
        t.equal(
            Eye::Device,
            &format!("CHECKSUM by {what}"),
            answer.fault.reason.get(),
            wire::FAULT_PROTECTED,
        );
        for (name, src, dst) in [
            ("from", range(handle, offset, 16), range(after, 0, 16)),
            ("to", range(after, 0, 16), range(handle, offset, 16)),
        ] {
            let job = wire::JobRequest {
                header: header(wire::OP_COPY),
                src,
                dst,
                ..Default::default()
            };
            let answer = lanes.job(&job)?;
            t.equal(
                Eye::Device,
                &format!("a job {name} {what}"),
                answer.fault.reason.get(),
                wire::FAULT_PROTECTED,
            );
        }
        let params = [
            memref(tee::PARAM_MEMREF_INPUT, offset, 16, handle),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
            NONE,
        ];
        let answer = invoke(&mut lanes, 1, app, pin::CHECKSUM, params)?;
        t.equal(
            Eye::Device,
            &format!("a call without the right by {what}"),
            (answer.result.get(), answer.fault.reason.get()),
            (tee::TEEC_ERROR_BAD_PARAMETERS, wire::FAULT_PROTECTED),
        );
    }
    // The bytes beside it are nobody's secret; after DETACH neither are these.
    for (what, offset, expected) in [
        ("before it", 0, wire::STATUS_OK),
        ("into it", 1, wire::STATUS_DMA_FAULT),
    ] {
        let answer = lanes.checksum(after, offset, PAGE64)?;
        t.equal(
            Eye::Device,
            &format!("CHECKSUM {what}"),
            answer.header.status.get(),
            expected,
        );
    }
    lanes.detach(protected)?;
    let answer: wire::ChecksumResponse = lanes.checksum(after, 0, 4 * PAGE64)?;
    t.equal(
        Eye::Device,
        "CHECKSUM after DETACH",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    Ok(())
}

fn protected_bytes_stand_encrypted(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (clear, secret) = (region(PAGE)?, region(PAGE)?);
    // Key, counter block, and a stream that the application decrypts; what comes of it is known by its CRC32C.
    let stream = t.random(PAGE);
    clear.write(0, &stream);
    let from = lanes.attach(wire::DIRECTION_BOTH, &[(clear.physical(0), PAGE64)])?;
    let to = lanes.try_attach(
        wire::DIRECTION_BOTH,
        wire::ATTACH_PROTECTED,
        &[(secret.physical(0), PAGE64)],
    )?;
    let to = to.map_err(|status| {
        Stop::finding(Eye::Device, format!("a protected ATTACH: status {status}"))
    })?;
    let app = session(&mut lanes, 1, playback::UUID)?;
    let key = [
        memref(tee::PARAM_MEMREF_INPUT, 0, 16, from),
        memref(tee::PARAM_MEMREF_INPUT, 16, 16, from),
        value(tee::PARAM_VALUE_INPUT, playback::POLICY_PROTECTED, 0),
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, app, playback::SET_KEY, key)?;
    t.equal(
        Eye::Device,
        "SET_KEY",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    let decrypt = |to| {
        [
            memref(tee::PARAM_MEMREF_INPUT, 0, PAGE64, from),
            memref(tee::PARAM_MEMREF_OUTPUT, 0, PAGE64, to),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
        ]
    };
    let answer = invoke(&mut lanes, 1, app, playback::DECRYPT, decrypt(to))?;
    t.equal(
        Eye::Device,
        "DECRYPT to protected memory",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    let plain = answer.params[2].a.get() as u32;
    let stands = secret.read(0..PAGE);
    t.check(
        Eye::Device,
        crc(&stands) != plain && stands.iter().any(|byte| *byte != 0),
        || "the CPU reads the plain bytes in protected memory".into(),
    );
    let sum = [
        memref(tee::PARAM_MEMREF_INPUT, 0, PAGE64, to),
        value(tee::PARAM_VALUE_OUTPUT, 0, 0),
        NONE,
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, app, playback::CHECKSUM, sum)?;
    t.equal(
        Eye::Device,
        "what the application reads back",
        answer.params[1].a.get() as u32,
        plain,
    );
    // Out of protected memory, plain bytes may go nowhere.
    let answer = invoke(&mut lanes, 1, app, playback::DECRYPT, decrypt(from))?;
    t.equal(
        Eye::Device,
        "DECRYPT to other memory",
        answer.result.get(),
        tee::TEEC_ERROR_ACCESS_DENIED,
    );
    t.same_bytes(Eye::Cpu, "that memory", &clear.read(0..PAGE), &stream);
    let other = session(&mut lanes, 1, playback::UUID)?;
    invoke(&mut lanes, 1, other, playback::SET_KEY, key)?;
    let answer = invoke(&mut lanes, 1, other, playback::CHECKSUM, sum)?;
    t.check(
        Eye::Device,
        answer.result.get() != tee::TEEC_SUCCESS,
        || "another session reads it".into(),
    );
    Ok(())
}
