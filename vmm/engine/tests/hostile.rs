// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bytes that no driver would send: the engine answers them, within the room there is, and no byte outside what was
//! attached for writing changes.

mod support;

use std::sync::LazyLock;

use pinbed_abi::wire;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use support::{END, HOLE, Rig, attach, format, header, range};
use zerocopy::IntoBytes;

#[derive(Debug, Clone)]
struct Sent {
    queue: u8,
    bytes: Vec<u8>,
    room: usize,
}

/// Numbers at which things break.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..16u64,
        8 => 0..END,
        2 => HOLE.start - 16..HOLE.end + 16,
        1 => (0..64u32).prop_map(|bit| 1 << bit),
        1 => u64::MAX - 16..=u64::MAX,
        1 => (u64::from(u32::MAX) - 4)..(u64::from(u32::MAX) + 4),
    ]
}

fn some_range() -> impl Strategy<Value = wire::Range> {
    let handle = prop_oneof![8 => 1..4u64, 1 => 0..8u64, 1 => number()];
    let offset = prop_oneof![8 => 0..64u64, 1 => number()];
    let length = prop_oneof![8 => 0..0x1000u64, 1 => number()];
    (handle, offset, length).prop_map(|(handle, offset, length)| range(handle, offset, length))
}

fn some_format() -> impl Strategy<Value = wire::Format> {
    let fourcc = prop_oneof![
        Just(b"GREY"),
        Just(b"NV12"),
        Just(b"YUYV"),
        Just(b"RGB3"),
        Just(b"MJPG")
    ];
    let side = || prop_oneof![8 => 1..40u32, 1 => any::<u32>(), 1 => 16380..16390u32];
    (fourcc, side(), side(), side()).prop_map(|(fourcc, width, height, more)| {
        format(
            fourcc,
            width,
            height,
            (width.saturating_mul(3)).saturating_add(more % 8),
        )
    })
}

fn control() -> impl Strategy<Value = Vec<u8>> {
    let direction = 0..5u32;
    let segments = prop::collection::vec((number(), 0..0x2000u64), 0..6);
    let op = prop_oneof![
        Just(wire::OP_STATUS),
        Just(wire::OP_DETACH),
        Just(wire::OP_QUERY),
        Just(wire::OP_CHECKSUM),
        0..0x400u32
    ];
    prop_oneof![
        3 => (direction, segments, prop::bool::weighted(0.9)).prop_map(|(direction, segments, honest)| {
            let length = segments.iter().fold(0u64, |sum, segment| sum.wrapping_add(segment.1));
            attach(direction, segments.len() as u32, length + u64::from(!honest), &segments)
        }),
        3 => (op, 0..8u64, number(), number(), 0..40usize).prop_map(|(op, handle, a, b, length)| {
            let mut bytes = header(op).as_bytes().to_vec();
            for number in [handle, a, b] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.truncate(16 + length / 8 * 8);
            bytes
        }),
        1 => (0..3u32, 0..3u32, number()).prop_map(|(kind, count, argument)| {
            wire::InjectRequest {
                header: header(wire::OP_INJECT),
                kind: kind.into(),
                count: count.into(),
                argument: argument.into(),
            }.as_bytes().to_vec()
        }),
    ]
}

fn video() -> impl Strategy<Value = Vec<u8>> {
    let op = prop_oneof![
        Just(wire::OP_COPY),
        Just(wire::OP_FILL),
        Just(wire::OP_CONVERT)
    ];
    let parts = (
        some_range(),
        some_range(),
        some_format(),
        some_format(),
        any::<u32>(),
    );
    (op, parts, any::<[bool; 3]>()).prop_map(|(op, (src, dst, from, to, pattern), plausible)| {
        let mut job = wire::JobRequest {
            header: header(op),
            src,
            dst,
            src_format: from,
            dst_format: to,
            pattern: pattern.into(),
            ..Default::default()
        };
        // Without these hardly a job would get past the first check.
        if plausible[0] {
            job.dst.length = job.src.length;
            (job.dst_format.width, job.dst_format.height) = (from.width, from.height);
            job.dst_format.stride = (from.width.get().saturating_mul(3)).into();
        }
        if plausible[1] {
            (job.src.offset, job.dst.offset) = (0.into(), 0.into());
        }
        if plausible[2] && op == wire::OP_FILL {
            job.src = wire::Range::default();
        }
        job.as_bytes().to_vec()
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    let bytes = prop_oneof![
        8 => control().prop_map(|bytes| (0, bytes)),
        8 => video().prop_map(|bytes| (1, bytes)),
        1 => (0..3u8, prop::collection::vec(any::<u8>(), 0..200)),
    ];
    let change = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let changes = prop_oneof![3 => Just(vec![]), 1 => change];
    let cut = prop_oneof![9 => Just(usize::MAX), 1 => 0..120usize];
    let room = prop_oneof![4 => Just(4096usize), 1 => 0..300usize];
    (bytes, changes, cut, room).prop_map(|((queue, mut bytes), changes, cut, room)| {
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes.truncate(cut);
        Sent { queue, bytes, room }
    })
}

fn asks_for_death(bytes: &[u8]) -> bool {
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
    };
    word(0) == Some(wire::OP_INJECT) && word(16) == Some(wire::INJECT_DIE)
}

/// Memory before anything is sent.
static BEFORE: LazyLock<Vec<u8>> = LazyLock::new(|| support::pattern(END as usize, 7));

/// Runs what was sent, and returns the statuses that came back from the video queue.
fn run(all: &[Sent]) -> Vec<u32> {
    let rig = Rig::new();
    let _hurry = rig.engine.hurry();
    let before = &*BEFORE;
    rig.put(0, &before[..HOLE.start as usize]);
    rig.put(HOLE.end, &before[HOLE.end as usize..]);
    // Something to work on: handles 1 to 3.
    rig.attach(wire::DIRECTION_READ, &[(0x101, 0xfff), (0x1ff00, 0x100)]);
    rig.attach(wire::DIRECTION_WRITE, &[(0x3001, 0x1000)]);
    rig.attach(wire::DIRECTION_BOTH, &[(0x5000, 7), (0x6000, 0xff9)]);
    let mut writable = vec![(0x3001, 0x1000), (0x5000, 7), (0x6000, 0xff9)];
    let mut statuses = vec![];
    for sent in all {
        if asks_for_death(&sent.bytes) {
            continue;
        }
        let answer = match sent.queue {
            0 => rig.control(&sent.bytes, sent.room),
            1 => rig.video(&sent.bytes, sent.room),
            _ => rig.tee(&sent.bytes, sent.room),
        };
        assert!(answer.bytes.len() <= sent.room);
        if sent.bytes.len() < 16 || sent.room < 16 {
            assert!(answer.bytes.is_empty());
            continue;
        }
        assert_eq!(answer.bytes[8..16], sent.bytes[8..16], "the cookie");
        let status = u32::from_le_bytes(answer.bytes[..4].try_into().unwrap());
        let faults = usize::from(status == wire::STATUS_DMA_FAULT);
        assert_eq!(answer.events.len(), faults);
        if sent.queue == 1 {
            statuses.push(status);
        }
        let op = u32::from_le_bytes(sent.bytes[..4].try_into().unwrap());
        if sent.queue == 0
            && op == wire::OP_ATTACH
            && status == wire::STATUS_OK
            && sent.bytes[16] & 2 != 0
        {
            writable.extend(support::segments(
                &sent.bytes,
                size_of::<wire::AttachRequest>(),
            ));
        }
    }
    let mut after = rig.get(0, HOLE.start as usize);
    after.extend(&before[HOLE.start as usize..HOLE.end as usize]);
    after.extend(rig.get(HOLE.end, (END - HOLE.end) as usize));
    // What could be written is like before by definition; the rest must be.
    for (address, length) in writable {
        let end = address.saturating_add(length).min(END) as usize;
        let start = (address as usize).min(end);
        after[start..end].copy_from_slice(&before[start..end]);
    }
    assert!(*before == after, "a stray write");
    statuses
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_sent_is_answered_and_nothing_strays(all in prop::collection::vec(sent(), 1..40)) {
        run(&all);
    }
}

/// What is sent above is no good if nearly all of it falls at the first check.
#[test]
fn hostile_requests_get_far_enough() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let all = prop::collection::vec(sent(), 30..40);
    let mut statuses = vec![];
    for _ in 0..60 {
        let tree = all.new_tree(&mut runner).unwrap();
        statuses.extend(run(&tree.current()));
    }
    let share =
        |of: u32| statuses.iter().filter(|status| **status == of).count() * 100 / statuses.len();
    let (done, faulted) = (share(wire::STATUS_OK), share(wire::STATUS_DMA_FAULT));
    assert!(
        done >= 3 && faulted >= 10,
        "{done} % done, {faulted} % faulted"
    );
}
