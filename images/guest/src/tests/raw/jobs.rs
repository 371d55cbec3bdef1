// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The video engine: jobs, faults and events: docs/device.md, 5.2 and 5.4.

use super::stage::{Driver, Lanes, OFFERED, PAGE64, REQUEST, Stage, region, short};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::observe::device::{copy, header, range};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::region::Region;
use pinbed_raw::ring::F_WRITE;
use zerocopy::{FromBytes, IntoBytes};

const VIDEO: &str = "docs/device.md, 5.2 Video";
const FAULTS: &str = "docs/device.md, 5.4 Faults";

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
];

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
