// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What holds for every request, and the control queue's: docs/device.md, 5 and 5.1.

use super::stage::{Driver, Hand, Lanes, OFFERED, QUEUES, Stage, attach, region, status_in};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::observe::device::{copy, header};
use pinbed_guest::observe::extent::PAGE;
use zerocopy::{FromBytes, IntoBytes};

const REQUESTS: &str = "docs/device.md, 5 Requests";
const CONTROL: &str = "docs/device.md, 5.1 Control";
const LIMITS: &str = "docs/device.md, 4 Configuration space";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::requests_without_headers_come_back_empty", requests_without_headers_come_back_empty, REQUESTS,
        "A chain without room for both headers is given back with used length 0."),
    test("raw::unknown_operations_are_unsupported", unknown_operations_are_unsupported, REQUESTS,
        "On each queue, an operation that is not that queue's is answered STATUS_UNSUPPORTED by a header alone."),
    test("raw::requests_have_just_their_length", requests_have_just_their_length, REQUESTS,
        "Every operation with too little room, a byte less or more, or a reserved field that is not zero is STATUS_INVALID."),
    test("raw::answers_carry_the_cookie_and_no_more", answers_carry_the_cookie_and_no_more, REQUESTS,
        "Every answer has the request's cookie and reserved fields of zero; one that is not OK is zero but for header and fault."),
    test("raw::attach_checks_its_segments", attach_checks_its_segments, CONTROL,
        "ATTACH refuses segments that are none, empty, wrap around or have another sum, directions and flags that are not defined."),
    test("raw::attach_takes_any_address", attach_takes_any_address, CONTROL,
        "Segments may have any alignment, overlap, and be no memory; QUERY gives them back as they were attached."),
    test("raw::query_pages_through_segments", query_pages_through_segments, CONTROL,
        "QUERY gives as many segments as there is room for from any first one, and QUERY_NEXT lists all buffers in order."),
    test("raw::checksum_is_what_the_cpu_sees", checksum_is_what_the_cpu_sees, CONTROL,
        "CHECKSUM of any range and direction is the CRC32C of what the CPU reads there."),
    test("raw::detach_is_exact", detach_is_exact, CONTROL,
        "DETACH of a handle that is not attached is STATUS_NO_BUFFER, and after one that was answered a job with it faults."),
    test("raw::status_counts", status_counts, CONTROL,
        "STATUS counts buffers, bytes, attachments, jobs and faults."),
    test("raw::injected_faults_are_taken_back", injected_faults_are_taken_back, CONTROL,
        "INJECT refuses kinds and delays that are not defined; KEEP, FAIL and SILENCE do what they say, as often as they say."),
    test("raw::limits_hold_at_the_edge", limits_hold_at_the_edge, LIMITS,
        "As many buffers, segments and bytes as the configuration space says are attached, one more is STATUS_LIMIT."),
];

/// The operations of each queue, and the sizes of a request's and an answer's fixed part.
const OPERATIONS: [(u32, u32, usize, usize); 14] = [
    op::<wire::RequestHeader, wire::StatusResponse>(wire::QUEUE_CONTROL, wire::OP_STATUS),
    op::<wire::AttachRequest, wire::AttachResponse>(wire::QUEUE_CONTROL, wire::OP_ATTACH),
    op::<wire::DetachRequest, wire::ResponseHeader>(wire::QUEUE_CONTROL, wire::OP_DETACH),
    op::<wire::QueryRequest, wire::QueryResponse>(wire::QUEUE_CONTROL, wire::OP_QUERY),
    op::<wire::ChecksumRequest, wire::ChecksumResponse>(wire::QUEUE_CONTROL, wire::OP_CHECKSUM),
    op::<wire::InjectRequest, wire::ResponseHeader>(wire::QUEUE_CONTROL, wire::OP_INJECT),
    op::<wire::JobRequest, wire::JobResponse>(wire::QUEUE_VIDEO, wire::OP_COPY),
    op::<wire::JobRequest, wire::JobResponse>(wire::QUEUE_VIDEO, wire::OP_FILL),
    op::<wire::JobRequest, wire::JobResponse>(wire::QUEUE_VIDEO, wire::OP_CONVERT),
    op::<tee::OpenSessionRequest, tee::CallResponse>(wire::QUEUE_TEE, tee::OP_OPEN_SESSION),
    op::<tee::InvokeRequest, tee::CallResponse>(wire::QUEUE_TEE, tee::OP_INVOKE),
    op::<tee::CancelRequest, tee::ResultResponse>(wire::QUEUE_TEE, tee::OP_CANCEL),
    op::<tee::CloseSessionRequest, tee::ResultResponse>(wire::QUEUE_TEE, tee::OP_CLOSE_SESSION),
    op::<tee::CloseContextRequest, tee::ResultResponse>(wire::QUEUE_TEE, tee::OP_CLOSE_CONTEXT),
];

const fn op<Q, A>(queue: u32, op: u32) -> (u32, u32, usize, usize) {
    (queue, op, size_of::<Q>(), size_of::<A>())
}

const HEADER: usize = size_of::<wire::ResponseHeader>();

/// A request of this operation and size, zero but for its header.
fn blank(op: u32, size: usize) -> Vec<u8> {
    let mut bytes = header(op).as_bytes().to_vec();
    bytes.resize(size, 0);
    bytes
}

fn requests_without_headers_come_back_empty(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    for queue in QUEUES {
        for length in 0..HEADER {
            for (request, room) in [(length, 4096), (HEADER, length)] {
                hand.write_request(queue, &vec![1; request], room);
                let used = hand.serve(queue, 0)?;
                t.equal(
                    Eye::Device,
                    &format!("{request} bytes with room for {room} on queue {queue}"),
                    used,
                    (0, 0),
                );
            }
        }
    }
    Ok(())
}

fn unknown_operations_are_unsupported(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    for queue in QUEUES {
        let of_others = OPERATIONS.iter().filter(|it| it.0 != queue).map(|it| it.1);
        for op in of_others.chain([0, 0x00ff, 0x0106, 0x0203, 0x0305, u32::MAX]) {
            for room in [HEADER, 4096] {
                let answer = lanes.exchange(queue, &blank(op, 64), room)?;
                let what = format!("op {op:#x} on queue {queue}");
                t.equal(
                    Eye::Device,
                    &what,
                    status_in(&answer),
                    wire::STATUS_UNSUPPORTED,
                );
                t.equal(
                    Eye::Device,
                    &format!("bytes of the answer to {what}"),
                    answer.len(),
                    HEADER,
                );
            }
        }
    }
    Ok(())
}

fn requests_have_just_their_length(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    for (queue, op, request, fixed) in OPERATIONS {
        for (size, room, answered) in [
            (request, fixed - 1, HEADER),
            (request + 1, fixed - 1, HEADER),
            (request - 1, fixed, fixed),
            (request + 1, fixed, fixed),
        ] {
            // A room of a header is enough for an answer that is one.
            if room < HEADER || size < HEADER {
                continue;
            }
            let answer = lanes.exchange(queue, &blank(op, size), room)?;
            let what = format!("op {op:#x} of {size} bytes with room for {room}");
            t.equal(Eye::Device, &what, status_in(&answer), wire::STATUS_INVALID);
            t.equal(
                Eye::Device,
                &format!("bytes of the answer to {what}"),
                answer.len(),
                answered,
            );
        }
        let mut reserved = blank(op, request);
        reserved[4] = 1;
        let answer = lanes.exchange(queue, &reserved, fixed)?;
        let what = format!("op {op:#x} with a reserved field of 1");
        t.equal(Eye::Device, &what, status_in(&answer), wire::STATUS_INVALID);
    }
    Ok(())
}

fn answers_carry_the_cookie_and_no_more(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    for (queue, op, request, fixed) in OPERATIONS {
        for extra in [0, 1] {
            let bytes = blank(op, request + extra);
            let answer = lanes.exchange(queue, &bytes, 4096)?;
            let Ok((head, rest)) = wire::ResponseHeader::read_from_prefix(&answer) else {
                t.find(
                    Eye::Device,
                    format!("op {op:#x} is answered by {} bytes", answer.len()),
                );
                continue;
            };
            t.equal(
                Eye::Device,
                &format!("the cookie of op {op:#x}"),
                head.cookie.as_bytes(),
                &bytes[8..16],
            );
            t.equal(
                Eye::Device,
                &format!("the reserved field of op {op:#x}"),
                head.reserved.get(),
                0,
            );
            if head.status == wire::STATUS_INVALID {
                t.equal(
                    Eye::Device,
                    &format!("bytes of op {op:#x}'s answer"),
                    answer.len(),
                    fixed,
                );
                t.check(Eye::Device, rest.iter().all(|byte| *byte == 0), || {
                    format!("the answer to a refused op {op:#x} is not zero")
                });
            }
        }
    }
    Ok(())
}

fn attach_checks_its_segments(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let page = PAGE as u64;
    let good = attach(wire::DIRECTION_READ, 0, &[(0x1000, page), (0x9000, page)]);
    let with = |at: usize, value: u64, width: usize| {
        let mut bytes = good.clone();
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        bytes
    };
    // Offsets of struct pinbed_attach_request: direction 16, segment_count 20, length 24, flags 32, reserved 36; segments from 40 on.
    let refused = [
        ("direction 0", with(16, 0, 4)),
        ("direction 4", with(16, 4, 4)),
        ("segment_count 0", with(20, 0, 4)),
        ("segment_count 1 of 2", with(20, 1, 4)),
        ("segment_count 3 of 2", with(20, 3, 4)),
        ("segment_count 2^32-1", with(20, u32::MAX.into(), 4)),
        ("a length less than the sum", with(24, 2 * page - 1, 8)),
        ("a length more than the sum", with(24, 2 * page + 1, 8)),
        ("flags 2", with(32, 2, 4)),
        ("flags 2^31", with(32, 1 << 31, 4)),
        ("a reserved field of 1", with(36, 1, 4)),
        ("no segment", attach(wire::DIRECTION_READ, 0, &[])),
        (
            "an empty segment",
            attach(wire::DIRECTION_READ, 0, &[(0x1000, page), (0x9000, 0)]),
        ),
        (
            "a segment that wraps",
            attach(wire::DIRECTION_READ, 0, &[(u64::MAX - 100, page)]),
        ),
        (
            "lengths whose sum wraps",
            attach(
                wire::DIRECTION_READ,
                0,
                &[(0, 1 << 63), (0, 1 << 63), (0, page)],
            ),
        ),
        ("half a segment", good[..good.len() - 8].to_vec()),
    ];
    for (what, request) in refused {
        let status = lanes.status_of(wire::QUEUE_CONTROL, &request[..])?;
        t.equal(
            Eye::Device,
            &format!("ATTACH with {what}"),
            status,
            wire::STATUS_INVALID,
        );
    }
    t.equal(
        Eye::Device,
        "buffers after refused ATTACHs",
        lanes.status()?.attached.get(),
        0,
    );
    let status = lanes.status_of(wire::QUEUE_CONTROL, &good[..])?;
    t.equal(Eye::Device, "a good ATTACH", status, wire::STATUS_OK);
    Ok(())
}

/// QUERY's answer, and the addresses and lengths of the segments behind it.
type Described = (wire::QueryResponse, Vec<(u64, u64)>);

/// QUERY: what it says, or the status.
fn query(
    driver: &mut impl Driver,
    handle: u64,
    flags: u32,
    first: u32,
    room: usize,
) -> TestResult<Result<Described, u32>> {
    let request = wire::QueryRequest {
        header: header(wire::OP_QUERY),
        handle: handle.into(),
        flags: flags.into(),
        first_segment: first.into(),
    };
    let answer = driver.exchange(
        wire::QUEUE_CONTROL,
        request.as_bytes(),
        size_of::<wire::QueryResponse>() + room * size_of::<wire::Segment>(),
    )?;
    Ok(match wire::QueryResponse::read_from_prefix(&answer) {
        Ok((fixed, rest)) if fixed.header.status == wire::STATUS_OK => {
            let segments = <[wire::Segment]>::ref_from_bytes(rest).unwrap_or_default();
            let plain = segments
                .iter()
                .map(|it| (it.address.get(), it.length.get()));
            Ok((fixed, plain.collect()))
        }
        _ => Err(status_in(&answer)),
    })
}

fn attach_takes_any_address(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let segments = [
        (1, 1),
        (3, 4099),
        (0, 8192),
        (u64::MAX - 1, 1),
        (1 << 52, 1 << 20),
        (3, 4099),
    ];
    for direction in [
        wire::DIRECTION_READ,
        wire::DIRECTION_WRITE,
        wire::DIRECTION_BOTH,
    ] {
        let handle = lanes.attach(direction, &segments)?;
        match query(&mut lanes, handle, 0, 0, 16)? {
            Ok((fixed, found)) => {
                t.equal(Eye::Device, "the segments", &found[..], &segments);
                t.equal(
                    Eye::Device,
                    "the direction",
                    fixed.direction.get(),
                    direction,
                );
                let sum: u64 = segments.iter().map(|it| it.1).sum();
                t.equal(Eye::Device, "the length", fixed.length.get(), sum);
            }
            Err(status) => t.find(
                Eye::Device,
                format!("QUERY is answered with status {status}"),
            ),
        }
    }
    Ok(())
}

fn query_pages_through_segments(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let segments: Vec<(u64, u64)> = (0..100).map(|n| (0x1000 * n, 1 + n)).collect();
    let mut handles = Vec::new();
    for count in [100usize, 1, 7] {
        handles.push(lanes.attach(wire::DIRECTION_BOTH, &segments[..count])?);
    }
    for (first, room, expected) in [
        (0, 100, 0..100),
        (0, 7, 0..7),
        (93, 100, 93..100),
        (99, 1, 99..100),
        (100, 5, 0..0),
        (u32::MAX, 5, 0..0),
        (50, 0, 0..0),
    ] {
        match query(&mut lanes, handles[0], 0, first, room)? {
            Ok((fixed, found)) => {
                let what = format!("segments from {first} on with room for {room}");
                t.equal(Eye::Device, &what, &found[..], &segments[expected.clone()]);
                t.equal(
                    Eye::Device,
                    "their number",
                    fixed.returned.get(),
                    expected.len() as u32,
                );
                t.equal(
                    Eye::Device,
                    "the number of all",
                    fixed.segment_count.get(),
                    100,
                );
            }
            Err(status) => t.find(
                Eye::Device,
                format!("QUERY is answered with status {status}"),
            ),
        }
    }
    let (mut listed, mut last) = (Vec::new(), 0);
    while let Ok((fixed, _)) = query(&mut lanes, last, wire::QUERY_NEXT, 0, 0)? {
        last = fixed.handle.get();
        listed.push(last);
    }
    t.equal(Eye::Device, "the list", listed, handles.clone());
    let end = query(&mut lanes, last, wire::QUERY_NEXT, 0, 0)?.err();
    t.equal(
        Eye::Device,
        "QUERY_NEXT of the last",
        end,
        Some(wire::STATUS_NO_BUFFER),
    );
    for (handle, flags, status) in [
        (0, 0, wire::STATUS_NO_BUFFER),
        (last + 1, 0, wire::STATUS_NO_BUFFER),
        (last, 2, wire::STATUS_INVALID),
    ] {
        let refused = query(&mut lanes, handle, flags, 0, 0)?.err();
        t.equal(
            Eye::Device,
            &format!("QUERY of {handle} with flags {flags}"),
            refused,
            Some(status),
        );
    }
    Ok(())
}

fn checksum_is_what_the_cpu_sees(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(4 * PAGE)?;
    let bytes = t.random(4 * PAGE);
    memory.write(0, &bytes);
    // The pages in another order, and a piece that is cut.
    let page = PAGE as u64;
    let places = [3 * PAGE, 0, 2 * PAGE + 5];
    let segments: Vec<_> = places
        .iter()
        .map(|at| (memory.physical(*at), page - 5))
        .collect();
    let seen: Vec<u8> = places
        .iter()
        .flat_map(|at| bytes[*at..at + PAGE - 5].to_vec())
        .collect();
    for direction in [
        wire::DIRECTION_READ,
        wire::DIRECTION_WRITE,
        wire::DIRECTION_BOTH,
    ] {
        let handle = lanes.attach(direction, &segments)?;
        for (offset, length) in [
            (0, seen.len()),
            (1, 1),
            (4000, 4000),
            (seen.len(), 0),
            (seen.len() - 1, 1),
        ] {
            let answer = lanes.checksum(handle, offset as u64, length as u64)?;
            let what = format!("the CRC32C of {length} bytes at {offset}");
            t.equal(
                Eye::Device,
                &what,
                answer.crc.get(),
                crc(&seen[offset..offset + length]),
            );
        }
        let past = lanes.checksum(handle, 1, seen.len() as u64)?;
        t.equal(
            Eye::Device,
            "CHECKSUM past the end",
            past.header.status.get(),
            wire::STATUS_DMA_FAULT,
        );
        t.equal(
            Eye::Device,
            "its fault",
            past.fault.reason.get(),
            wire::FAULT_OUT_OF_BOUNDS,
        );
        let wraps = lanes.checksum(handle, u64::MAX, 2)?;
        t.equal(
            Eye::Device,
            "CHECKSUM at 2^64-1",
            wraps.fault.reason.get(),
            wire::FAULT_OUT_OF_BOUNDS,
        );
    }
    let unknown = lanes.checksum(1 << 40, 0, 1)?;
    t.equal(
        Eye::Device,
        "CHECKSUM of no buffer",
        unknown.header.status.get(),
        wire::STATUS_NO_BUFFER,
    );
    Ok(())
}

fn detach_is_exact(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(PAGE)?;
    let page = PAGE as u64;
    let handle = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), page)])?;
    let other = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), page)])?;
    for unknown in [0, handle + 100, u64::MAX] {
        t.equal(
            Eye::Device,
            &format!("DETACH of {unknown}"),
            lanes.detach(unknown)?,
            wire::STATUS_NO_BUFFER,
        );
    }
    t.equal(
        Eye::Device,
        "DETACH",
        lanes.detach(handle)?,
        wire::STATUS_OK,
    );
    t.equal(
        Eye::Device,
        "DETACH again",
        lanes.detach(handle)?,
        wire::STATUS_NO_BUFFER,
    );
    let answer = lanes.job(&copy(handle, other, page))?;
    t.equal(
        Eye::Device,
        "the fault of a job with it",
        answer.fault.reason.get(),
        wire::FAULT_NOT_ATTACHED,
    );
    let answer = lanes.job(&copy(other, handle, page))?;
    t.equal(
        Eye::Device,
        "the fault of a job to it",
        answer.fault.reason.get(),
        wire::FAULT_NOT_ATTACHED,
    );
    t.equal(
        Eye::Device,
        "buffers left",
        lanes.status()?.buffers.get(),
        1,
    );
    Ok(())
}

fn status_counts(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(PAGE)?;
    let at = memory.physical(0);
    let a = lanes.attach(wire::DIRECTION_BOTH, &[(at, 100)])?;
    let b = lanes.attach(wire::DIRECTION_BOTH, &[(at, 50), (at, 7)])?;
    lanes.job(&copy(a, b, 57))?;
    lanes.job(&copy(a, b, 58))?;
    lanes.detach(a)?;
    let mut invalid = copy(a, b, 57);
    invalid.dst.length = 1.into();
    lanes.job(&invalid)?;
    let status = lanes.status()?;
    let expected = wire::StatusResponse {
        header: status.header,
        buffers: 1.into(),
        bytes: 57.into(),
        attached: 2.into(),
        jobs: 2.into(),
        faults: 1.into(),
        events_lost: 1.into(),
        ..Default::default()
    };
    t.equal(Eye::Device, "STATUS", status, expected);
    Ok(())
}

fn injected_faults_are_taken_back(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let memory = region(PAGE)?;
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), 64)])?;
    for (kind, argument) in [
        (u32::MAX, 0),
        (64, 0),
        (wire::INJECT_DELAY, 10_000_001),
        (wire::INJECT_DELAY, u64::MAX),
    ] {
        let status = hand.inject(kind, 1, argument)?;
        t.equal(
            Eye::Device,
            &format!("INJECT {kind} with {argument}"),
            status,
            wire::STATUS_INVALID,
        );
    }
    let status =
        |hand: &mut Hand| TestResult::Ok(hand.job(&copy(handle, handle, 64))?.header.status.get());
    hand.inject(wire::INJECT_FAIL, 2, 0)?;
    for (job, expected) in [wire::STATUS_ERROR, wire::STATUS_ERROR, wire::STATUS_OK]
        .into_iter()
        .enumerate()
    {
        t.equal(
            Eye::Device,
            &format!("job {job} after FAIL 2"),
            status(&mut hand)?,
            expected,
        );
    }
    hand.inject(wire::INJECT_FAIL, 2, 0)?;
    hand.inject(wire::INJECT_FAIL, 0, 0)?;
    t.equal(
        Eye::Device,
        "a job after FAIL 0",
        status(&mut hand)?,
        wire::STATUS_OK,
    );
    hand.inject(wire::INJECT_KEEP, 1, 0)?;
    t.equal(
        Eye::Device,
        "DETACH after KEEP",
        hand.detach(handle)?,
        wire::STATUS_ERROR,
    );
    t.equal(
        Eye::Device,
        "a job with what was kept",
        status(&mut hand)?,
        wire::STATUS_OK,
    );
    t.equal(
        Eye::Device,
        "DETACH again",
        hand.detach(handle)?,
        wire::STATUS_OK,
    );
    hand.inject(wire::INJECT_SILENCE, 1, 0)?;
    hand.write_request(wire::QUEUE_VIDEO, copy(1, 1, 1).as_bytes(), 4096);
    hand.ring(wire::QUEUE_VIDEO).offer(0);
    hand.notify(wire::QUEUE_VIDEO);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let answered = hand.ring(wire::QUEUE_VIDEO).poll_used();
    t.equal(Eye::Device, "an answer of a silent device", answered, None);
    drop(hand);
    super::transport::judge_empty(t, &stage, "silent")
}

fn limits_hold_at_the_edge(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let again = |stage: &Stage| stage.lanes::<8>(OFFERED);
    let mut lanes = again(&stage)?;
    let attach_status = |lanes: &mut Lanes<8>, segments: &[(u64, u64)]| {
        TestResult::Ok(
            lanes
                .try_attach(wire::DIRECTION_READ, 0, segments)?
                .err()
                .unwrap_or(wire::STATUS_OK),
        )
    };
    const MAX_LENGTH: u64 = 256 << 20;
    for (what, segments, expected) in [
        (
            "of the greatest length",
            vec![(0, MAX_LENGTH)],
            wire::STATUS_OK,
        ),
        (
            "of a byte more",
            vec![(0, MAX_LENGTH + 1)],
            wire::STATUS_LIMIT,
        ),
        (
            "of a byte more in two segments",
            vec![(0, MAX_LENGTH), (0, 1)],
            wire::STATUS_LIMIT,
        ),
        ("of 2^63 bytes", vec![(0, 1 << 63)], wire::STATUS_LIMIT),
        (
            "of one segment too many",
            vec![(0, 1); 65_537],
            wire::STATUS_INVALID,
        ),
    ] {
        t.equal(
            Eye::Device,
            &format!("ATTACH {what}"),
            attach_status(&mut lanes, &segments)?,
            expected,
        );
    }
    drop(lanes);
    // Of the most segments at a time, until there are as many as there may be.
    let mut lanes = again(&stage)?;
    let most = vec![(0, 1); 65_536];
    for n in 0..17 {
        let expected = if n < 16 {
            wire::STATUS_OK
        } else {
            wire::STATUS_LIMIT
        };
        t.equal(
            Eye::Device,
            &format!("ATTACH {n} of 65,536 segments"),
            attach_status(&mut lanes, &most)?,
            expected,
        );
    }
    t.equal(
        Eye::Device,
        "ATTACH of one more segment",
        attach_status(&mut lanes, &[(0, 1)])?,
        wire::STATUS_LIMIT,
    );
    drop(lanes);
    let mut lanes = again(&stage)?;
    let mut attached = 0;
    while attached < 5000 && attach_status(&mut lanes, &[(0, 1)])? == wire::STATUS_OK {
        attached += 1;
    }
    t.equal(Eye::Device, "buffers attached", attached, 4096);
    t.equal(
        Eye::Device,
        "ATTACH of one more buffer",
        attach_status(&mut lanes, &[(0, 1)])?,
        wire::STATUS_LIMIT,
    );
    drop(lanes);
    super::transport::judge_empty(t, &stage, "full")
}
