// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue's operations, one rule a test.

mod support;

use pinbed_abi::wire;
use support::{COOKIE, HOLE, LIMITS, ROOM, Rig, attach, header, pattern, range, segments};
use zerocopy::{FromBytes, IntoBytes};

const OK: u32 = wire::STATUS_OK;
const INVALID: u32 = wire::STATUS_INVALID;

#[test]
fn config_tells_the_limits() {
    let config = Rig::new().engine.config();
    assert_eq!(config.max_buffers.get(), LIMITS.buffers);
    assert_eq!(config.max_segments.get(), LIMITS.segments);
    assert_eq!(config.max_length.get(), LIMITS.length);
}

#[test]
fn handles_are_never_used_again_even_after_a_reset() {
    let rig = Rig::new();
    let first = rig.attach(wire::DIRECTION_READ, &[(0, 1)]);
    assert_ne!(first, 0);
    assert_eq!(rig.detach(first), OK);
    let second = rig.attach(wire::DIRECTION_READ, &[(0, 1)]);
    rig.engine.reset();
    let third = rig.attach(wire::DIRECTION_READ, &[(0, 1)]);
    assert!(first < second && second < third);
    assert_eq!(rig.detach(second), wire::STATUS_NO_BUFFER);
}

#[test]
fn status_counts_what_is_held_and_reset_lets_go_of_it() {
    let rig = Rig::new();
    let handle = rig.attach(wire::DIRECTION_READ, &[(0, 10), (100, 5)]);
    rig.attach(wire::DIRECTION_WRITE, &[(0, 7)]);
    let status = rig.status();
    assert_eq!((status.buffers.get(), status.bytes.get()), (2, 22));
    rig.detach(handle);
    rig.engine.count_lost_events(3);
    let status = rig.status();
    assert_eq!((status.buffers.get(), status.bytes.get()), (1, 7));
    assert_eq!((status.attached.get(), status.events_lost.get()), (2, 3));
    rig.engine.reset();
    let empty = wire::StatusResponse {
        header: status.header,
        ..Default::default()
    };
    assert_eq!(rig.status(), empty);
}

#[test]
fn attach_refuses_what_contradicts_itself() {
    let rig = Rig::new();
    let ask = |request: &[u8]| {
        let answer = rig.control(request, ROOM).bytes;
        let answer = wire::AttachResponse::read_from_bytes(&answer).unwrap();
        assert_eq!(answer.header.cookie.get(), COOKIE);
        assert_eq!(answer.handle.get(), 0);
        answer.header.status.get()
    };
    let two = [(0, 10), (100, 5)];
    assert_eq!(ask(&attach(0, 2, 15, &two)), INVALID, "no direction");
    assert_eq!(ask(&attach(4, 2, 15, &two)), INVALID, "unknown direction");
    assert_eq!(ask(&attach(1, 1, 15, &two)), INVALID, "too many segments");
    assert_eq!(ask(&attach(1, 3, 15, &two)), INVALID, "too few segments");
    assert_eq!(ask(&attach(1, 2, 14, &two)), INVALID, "another length");
    assert_eq!(ask(&attach(1, 0, 0, &[])), INVALID, "no segment");
    assert_eq!(ask(&attach(1, 1, 0, &[(0, 0)])), INVALID, "empty segment");
    assert_eq!(
        ask(&attach(1, 1, 2, &[(u64::MAX, 2)])),
        INVALID,
        "a segment that wraps"
    );
    assert_eq!(
        ask(&attach(1, 2, 1, &[(0, u64::MAX), (0, 2)])),
        INVALID,
        "a sum that wraps"
    );
    let whole = attach(1, 2, 15, &two);
    assert_eq!(ask(&whole[..whole.len() - 1]), INVALID, "cut off");
    let mut reserved = whole.clone();
    reserved[4] = 1;
    assert_eq!(ask(&reserved), INVALID, "reserved bits");
    assert_eq!(rig.status().attached.get(), 0);
}

#[test]
fn attach_keeps_its_limits() {
    let rig = Rig::new();
    let most: Vec<_> = (0..u64::from(LIMITS.segments))
        .map(|i| (2 * i, 1))
        .collect();
    rig.attach(wire::DIRECTION_READ, &most);
    let more = [most.as_slice(), &[(0, 1)]].concat();
    assert_eq!(rig.try_attach(1, &more), (wire::STATUS_LIMIT, 0));
    rig.attach(wire::DIRECTION_READ, &[(0, LIMITS.length)]);
    let long = [(0, LIMITS.length + 1)];
    assert_eq!(rig.try_attach(1, &long), (wire::STATUS_LIMIT, 0));
    for _ in 2..LIMITS.buffers {
        rig.attach(wire::DIRECTION_READ, &[(0, 1)]);
    }
    assert_eq!(rig.try_attach(1, &[(0, 1)]), (wire::STATUS_LIMIT, 0));
}

#[test]
fn query_returns_segments_as_they_were_attached_in_as_many_turns_as_the_room_needs() {
    let rig = Rig::new();
    // Adjacent, overlapping, and outside memory: all are told back.
    let attached = [(0, 10), (10, 10), (5, 1), (HOLE.start, 3), (1 << 60, 9)];
    let handle = rig.attach(wire::DIRECTION_BOTH, &attached);
    let fixed = size_of::<wire::QueryResponse>();
    let query = |first: u32, room| {
        let request = wire::QueryRequest {
            header: header(wire::OP_QUERY),
            handle: handle.into(),
            first_segment: first.into(),
            ..Default::default()
        };
        let answer = rig.control(request.as_bytes(), room).bytes;
        let (response, _) = wire::QueryResponse::read_from_prefix(&answer).unwrap();
        assert_eq!(response.header.status.get(), OK);
        assert_eq!(response.segment_count.get(), 5);
        assert_eq!(response.length.get(), 33);
        assert_eq!(response.direction.get(), wire::DIRECTION_BOTH);
        let segments = segments(&answer, fixed);
        assert_eq!(response.returned.get() as usize, segments.len());
        segments
    };
    assert_eq!(query(0, ROOM), attached);
    assert_eq!(query(3, ROOM), attached[3..]);
    assert_eq!(query(0, fixed + 2 * 16 + 15), attached[..2]);
    assert_eq!(query(5, ROOM), []);
    assert_eq!(query(u32::MAX, ROOM), []);
}

#[test]
fn query_next_lists_all_buffers() {
    let rig = Rig::new();
    let handles: Vec<u64> = (0..4).map(|_| rig.attach(1, &[(0, 1)])).collect();
    rig.detach(handles[1]);
    let next = |handle: u64, flags: u32| {
        let answer: wire::QueryResponse = rig.ask(&wire::QueryRequest {
            header: header(wire::OP_QUERY),
            handle: handle.into(),
            flags: flags.into(),
            ..Default::default()
        });
        (answer.header.status.get(), answer.handle.get())
    };
    let mut listed = vec![];
    let mut at = 0;
    while let (OK, handle) = next(at, wire::QUERY_NEXT) {
        listed.push(handle);
        at = handle;
    }
    assert_eq!(listed, [handles[0], handles[2], handles[3]]);
    let none = (wire::STATUS_NO_BUFFER, 0);
    assert_eq!(next(at, wire::QUERY_NEXT), none);
    assert_eq!(next(u64::MAX, wire::QUERY_NEXT), none);
    assert_eq!(next(handles[1], 0), none);
    assert_eq!(next(handles[0], 2), (INVALID, 0));
}

#[test]
fn checksum_reads_whatever_the_direction_and_faults_outside() {
    let rig = Rig::new();
    let bytes = pattern(3000, 1);
    rig.put(0x100, &bytes);
    let handle = rig.attach(
        wire::DIRECTION_WRITE,
        &[(0x100 + 1000, 2000), (0x100, 1000), (HOLE.start, 1)],
    );
    let checksum = |handle, offset, length| {
        let request = wire::ChecksumRequest {
            header: header(wire::OP_CHECKSUM),
            range: range(handle, offset, length),
        };
        let answer = rig.control(request.as_bytes(), ROOM);
        let response = wire::ChecksumResponse::read_from_bytes(&answer.bytes).unwrap();
        (response, answer.events)
    };
    let (answer, events) = checksum(handle, 1990, 20);
    let expected = crc32c::crc32c(&[&bytes[2990..], &bytes[..10]].concat());
    assert_eq!(answer.crc.get(), expected);
    assert_eq!((answer.header.status.get(), events.len()), (OK, 0));

    let (answer, events) = checksum(handle, 0, 3002);
    assert_eq!(answer.header.status.get(), wire::STATUS_DMA_FAULT);
    assert_eq!(answer.fault.reason.get(), wire::FAULT_OUT_OF_BOUNDS);
    assert_eq!(answer.fault.range, range(handle, 0, 3002));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].fault, answer.fault);
    assert_eq!(events[0].cookie.get(), COOKIE);
    let (answer, _) = checksum(handle, 2999, 2);
    assert_eq!(answer.fault.reason.get(), wire::FAULT_NO_MEMORY);
    assert_eq!(answer.fault.address.get(), HOLE.start);
    let (answer, events) = checksum(handle + 1, 0, 1);
    assert_eq!(answer.header.status.get(), wire::STATUS_NO_BUFFER);
    assert_eq!(events.len(), 0);
    assert_eq!(rig.status().faults.get(), 2);
}

#[test]
fn a_long_checksum_is_that_of_all_its_bytes() {
    // More than the engine has in hand at a time: a page, many times over.
    let rig = Rig {
        engine: pinbed_engine::Engine::new(pinbed_engine::DEFAULT_LIMITS),
        memory: support::memory(),
    };
    let page = pattern(0x1000, 3);
    rig.put(0x3000, &page);
    let handle = rig.attach(wire::DIRECTION_READ, &[(0x3000, 0x1000); 700]);
    let answer: wire::ChecksumResponse = rig.ask(&wire::ChecksumRequest {
        header: header(wire::OP_CHECKSUM),
        range: range(handle, 1, 700 * 0x1000 - 1),
    });
    assert_eq!(answer.header.status.get(), OK);
    assert_eq!(answer.crc.get(), crc32c::crc32c(&page.repeat(700)[1..]));
}

#[test]
fn what_has_no_room_for_its_answer_is_not_carried_out() {
    let rig = Rig::new();
    let request = attach(1, 1, 1, &[(0, 1)]);
    for room in 0..size_of::<wire::AttachResponse>() {
        let answer = rig.control(&request, room).bytes;
        if room < size_of::<wire::ResponseHeader>() {
            assert!(answer.is_empty());
        } else {
            let answer = wire::ResponseHeader::read_from_bytes(&answer).unwrap();
            assert_eq!(answer.status.get(), INVALID);
        }
    }
    assert_eq!(rig.status().attached.get(), 0);
}

#[test]
fn unknown_operations_and_those_of_another_queue_are_unsupported() {
    let rig = Rig::new();
    for op in [0, 0xff, 0x106, wire::OP_COPY, u32::MAX] {
        let answer: wire::ResponseHeader = rig.ask(&header(op));
        assert_eq!(answer.status.get(), wire::STATUS_UNSUPPORTED);
        assert_eq!(answer.cookie.get(), COOKIE);
    }
    for op in [wire::OP_STATUS, 0x203] {
        let request = header(op);
        let video = rig.video(request.as_bytes(), ROOM).bytes;
        let tee = rig.tee(request.as_bytes(), ROOM).bytes;
        assert_eq!(video, tee);
        let answer = wire::ResponseHeader::read_from_bytes(&tee).unwrap();
        assert_eq!(answer.status.get(), wire::STATUS_UNSUPPORTED);
    }
}

#[test]
fn requests_too_long_are_invalid() {
    let rig = Rig::new();
    for op in [
        wire::OP_STATUS,
        wire::OP_DETACH,
        wire::OP_QUERY,
        wire::OP_CHECKSUM,
        wire::OP_INJECT,
    ] {
        let mut request = header(op).as_bytes().to_vec();
        request.resize(100, 0);
        let answer = rig.control(&request, ROOM).bytes;
        let (answer, _) = wire::ResponseHeader::read_from_prefix(&answer).unwrap();
        assert_eq!(answer.status.get(), INVALID, "{op:#x}");
    }
}
