// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Features, configuration space, virtqueues, interrupts and reset: docs/device.md, 1 to 4 and 7.

use super::stage::{
    ANSWER, Driver, EVENT_IDX, Hand, INDIRECT, Lanes, OFFERED, OWN, REQUEST, Stage, VERSION_1,
    attach, inject, negotiate, region, reset, status_in,
};
use super::tee_requests::{invoke_request, open_request};
use crate::tests::test::{Test, test};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::observe::device::{copy, header};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::ring::{F_INDIRECT, F_WRITE, NO_INTERRUPT, linked};
use pinbed_raw::virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;
use zerocopy::IntoBytes;

const FEATURES: &str = "docs/device.md, 3 Feature bits";
const CONFIG: &str = "docs/device.md, 4 Configuration space";
const QUEUES: &str = "docs/device.md, 2 Virtqueues";
const SPLIT: &str = "virtio 1.3, 2.7 Split Virtqueues";
const OPERATION: &str = "docs/device.md, 7 Device operation";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::features_are_those_of_the_specification", features_are_those_of_the_specification, FEATURES,
        "The device offers VERSION_1, INDIRECT_DESC, EVENT_IDX and its own three features, and no other."),
    test("raw::any_subset_of_features_works", any_subset_of_features_works, FEATURES,
        "With any of INDIRECT_DESC, EVENT_IDX and the device's own features left out, requests are served."),
    test("raw::features_that_are_not_offered_have_no_effect", features_that_are_not_offered_have_no_effect, FEATURES,
        "A driver that writes bits which the device does not offer gets FEATURES_OK refused, or a device that works without them."),
    test("raw::config_is_the_same_at_every_width_and_offset", config_is_the_same_at_every_width_and_offset, CONFIG,
        "Reads of 1, 2 and 4 bytes at every offset of the configuration space agree."),
    test("raw::config_states_the_limits", config_states_the_limits, CONFIG,
        "Magic, version and limits are those of the specification's table."),
    test("raw::config_is_read_only", config_is_read_only, CONFIG,
        "Writes of 1, 2 and 4 bytes at any offset of the configuration space change nothing."),
    test("raw::there_are_four_queues", there_are_four_queues, QUEUES,
        "Queues 0 to 3 have up to 1,024 descriptors, and there is no queue 4."),
    test("raw::any_queue_size_works", any_queue_size_works, SPLIT,
        "Queues of 2, 4, 8 and so on to 1,024 descriptors serve requests, many times around the ring."),
    test("raw::indices_wrap_around", indices_wrap_around, SPLIT,
        "The rings' 16-bit indices wrap around, with and without EVENT_IDX."),
    test("raw::used_event_says_when_to_interrupt", used_event_says_when_to_interrupt, SPLIT,
        "With EVENT_IDX the device interrupts when it uses the chain that used_event names, and at none before."),
    test("raw::no_interrupt_flag_is_heeded", no_interrupt_flag_is_heeded, SPLIT,
        "Without EVENT_IDX the device does not interrupt while the available ring's flags forbid it."),
    test("raw::avail_event_asks_for_the_next_chain", avail_event_asks_for_the_next_chain, SPLIT,
        "With EVENT_IDX an idle device wants to be notified of the very next chain."),
    test("raw::intx_reaches_the_driver", intx_reaches_the_driver, SPLIT,
        "A used chain interrupts by INTx, and reading the ISR status tells that a queue did."),
    test("raw::chains_may_be_in_any_pieces", chains_may_be_in_any_pieces, QUEUES,
        "A request and its room may be cut into descriptors anywhere, empty ones too, directly and in an indirect table."),
    test("raw::a_chain_may_be_as_long_as_the_queue", a_chain_may_be_as_long_as_the_queue, QUEUES,
        "A chain of as many descriptors as the queue has is served, one more in an indirect table is given back empty."),
    test("raw::reset_works_in_every_state", reset_works_in_every_state, OPERATION,
        "Whatever the device does when it is reset, it says status 0, holds nothing afterwards, and serves a new driver."),
    test("raw::handles_stay_unique_over_resets", handles_stay_unique_over_resets, OPERATION,
        "No handle is given twice, also after a reset; a handle of before is not known."),
];

fn features_are_those_of_the_specification(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut transport = stage.function.transport()?;
    let offered = transport.read_device_features();
    t.check(Eye::Device, offered == OFFERED, || {
        format!("the device offers features {offered:#x}, expected {OFFERED:#x}")
    });
    Ok(())
}

/// A copy of a page, judged by CPU and device.
fn copy_a_page(t: &mut Ctx, driver: &mut impl Driver) -> TestResult {
    let (src, dst) = (region(PAGE)?, region(PAGE)?);
    let bytes = t.random(PAGE);
    src.write(0, &bytes);
    let length = PAGE as u64;
    let from = driver.attach(wire::DIRECTION_READ, &[(src.physical(0), length)])?;
    let to = driver.attach(wire::DIRECTION_WRITE, &[(dst.physical(0), length)])?;
    let answer = driver.job(&copy(from, to, length))?;
    t.equal(
        Eye::Device,
        "COPY's status",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    t.equal(
        Eye::Device,
        "CRC32C of what was read",
        answer.src_crc.get(),
        crc(&bytes),
    );
    t.equal(
        Eye::Device,
        "CRC32C of what was written",
        answer.dst_crc.get(),
        crc(&bytes),
    );
    t.same_bytes(Eye::Cpu, "the destination", &dst.read(0..PAGE), &bytes);
    for handle in [from, to] {
        t.equal(
            Eye::Device,
            "DETACH's status",
            driver.detach(handle)?,
            wire::STATUS_OK,
        );
    }
    Ok(())
}

fn any_subset_of_features_works(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    for rings in [0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX] {
        for own in [0, 1 << wire::F_TEE, 1 << wire::F_PROTECTED, OWN] {
            let mut lanes: Lanes<8> = stage.lanes(VERSION_1 | rings | own)?;
            copy_a_page(t, &mut lanes)?;
        }
    }
    Ok(())
}

fn features_that_are_not_offered_have_no_effect(t: &mut Ctx) -> TestResult {
    /// RING_PACKED, ACCESS_PLATFORM, IN_ORDER, RING_RESET, and bits that nobody has defined.
    const OTHERS: [u64; 6] = [1 << 34, 1 << 33, 1 << 35, 1 << 40, 1 << 63, 1 << 10];
    let stage = Stage::take()?;
    for bit in OTHERS {
        let mut transport = stage.function.transport()?;
        if negotiate(&mut transport, OFFERED | bit).is_err() {
            continue;
        }
        drop(transport);
        let mut lanes: Lanes<8> = stage.lanes(OFFERED | bit)?;
        copy_a_page(t, &mut lanes)?;
    }
    Ok(())
}

/// Bytes of the configuration space.
const CONFIG_LENGTH: usize = size_of::<wire::Config>();

fn config_by_width(transport: &impl Transport, width: usize) -> TestResult<Vec<u8>> {
    let mut bytes = Vec::new();
    for at in (0..CONFIG_LENGTH).step_by(width) {
        let read = match width {
            1 => transport.read_config_space::<u8>(at).map(|it| vec![it]),
            2 => transport
                .read_config_space::<u16>(at)
                .map(|it| it.to_le_bytes().to_vec()),
            _ => transport
                .read_config_space::<u32>(at)
                .map(|it| it.to_le_bytes().to_vec()),
        };
        bytes.extend(read.map_err(pinbed_raw::Error::Queue)?);
    }
    Ok(bytes)
}

fn config_is_the_same_at_every_width_and_offset(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let transport = stage.function.transport()?;
    let words = config_by_width(&transport, 4)?;
    for width in [1, 2] {
        let read = config_by_width(&transport, width)?;
        t.same_bytes(
            Eye::Device,
            &format!("the configuration space by {width} bytes"),
            &read,
            &words,
        );
    }
    t.equal(Eye::Device, "its first bytes", &words[..4], b"PINB");
    Ok(())
}

fn config_states_the_limits(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let transport = stage.function.transport()?;
    let read = config_by_width(&transport, 4)?;
    let expected = wire::Config {
        magic: wire::MAGIC.into(),
        version: wire::VERSION.into(),
        max_buffers: 4_096.into(),
        max_segments: 65_536.into(),
        max_length: (256 << 20).into(),
        max_total_segments: 1_048_576.into(),
        max_protected_pieces: 65_536.into(),
        max_overlap: (32 << 20).into(),
        max_side: 16_384.into(),
        max_delay_us: 10_000_000.into(),
        max_sessions: 1_024.into(),
        max_calls: 64.into(),
        max_storage: (16 << 20).into(),
    };
    t.same_bytes(
        Eye::Device,
        "the configuration space",
        &read,
        expected.as_bytes(),
    );
    Ok(())
}

fn config_is_read_only(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<8> = stage.lanes(OFFERED)?;
    let before = config_by_width(&lanes.transport, 4)?;
    for at in 0..CONFIG_LENGTH {
        let transport = &mut lanes.transport;
        let mut written = transport.write_config_space(at, 0xa5u8);
        if at % 2 == 0 {
            written = written.and(transport.write_config_space(at, 0xa5a5u16));
        }
        if at % 4 == 0 {
            written = written.and(transport.write_config_space(at, 0xa5a5_a5a5u32));
        }
        written.map_err(pinbed_raw::Error::Queue)?;
    }
    let after = config_by_width(&lanes.transport, 4)?;
    t.same_bytes(
        Eye::Device,
        "the configuration space after writes",
        &after,
        &before,
    );
    copy_a_page(t, &mut lanes)
}

fn there_are_four_queues(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut transport = stage.function.transport()?;
    let sizes: Vec<u32> = (0..5)
        .map(|queue| transport.max_queue_size(queue))
        .collect();
    t.equal(
        Eye::Device,
        "sizes of queues 0 to 4",
        sizes,
        vec![1024, 1024, 1024, 1024, 0],
    );
    Ok(())
}

fn any_queue_size_works(t: &mut Ctx) -> TestResult {
    fn of_size<const N: usize>(t: &mut Ctx, stage: &Stage) -> TestResult {
        let features = [VERSION_1 | OWN, OFFERED];
        for features in features {
            let mut lanes: Lanes<N> = stage.lanes(features)?;
            // A request takes two descriptors, or one that names a table.
            for _ in 0..(3 * N / 2).clamp(5, 100) {
                lanes.status()?;
            }
            copy_a_page(t, &mut lanes)?;
        }
        Ok(())
    }
    let stage = Stage::take()?;
    of_size::<2>(t, &stage)?;
    of_size::<4>(t, &stage)?;
    of_size::<8>(t, &stage)?;
    of_size::<16>(t, &stage)?;
    of_size::<32>(t, &stage)?;
    of_size::<64>(t, &stage)?;
    of_size::<128>(t, &stage)?;
    of_size::<256>(t, &stage)?;
    of_size::<512>(t, &stage)?;
    of_size::<1024>(t, &stage)
}

fn indices_wrap_around(t: &mut Ctx) -> TestResult {
    /// Chains in the ring at a time.
    const BATCH: u16 = 128;
    let stage = Stage::take()?;
    for features in [VERSION_1 | OWN, OFFERED] {
        let mut hand = stage.hand(features, 256, 0)?;
        let queue = wire::QUEUE_CONTROL;
        hand.write_request(queue, header(wire::OP_STATUS).as_bytes(), 4096);
        let at = queue as usize * REQUEST;
        let (from, to) = (
            hand.requests.physical(at),
            hand.requests.physical(at + ANSWER),
        );
        let ring = hand.ring(queue);
        for chain in 0..BATCH {
            ring.chain(2 * chain, &[(from, 16, 0), (to, 4096, F_WRITE)]);
        }
        let mut served = 0u32;
        while served < 0x1_0000 + 2 * u32::from(BATCH) {
            let ring = hand.ring(queue);
            for chain in 0..BATCH {
                ring.prepare(2 * chain);
            }
            let offered = ring.offered;
            ring.publish(offered);
            hand.notify(queue);
            for chain in 0..BATCH {
                let used = hand.ring(queue).wait_used()?;
                let length = size_of::<wire::StatusResponse>() as u32;
                if used != (u32::from(2 * chain), length) {
                    t.find(
                        Eye::Device,
                        format!(
                            "after {served} chains, of which the next is {}, {used:?} comes back",
                            2 * chain
                        ),
                    );
                    return Ok(());
                }
                served += 1;
            }
        }
        let ring = hand.ring(queue);
        t.equal(
            Eye::Device,
            "the used ring's index",
            ring.used_index(),
            served as u16,
        );
        copy_a_page(t, &mut hand)?;
    }
    Ok(())
}

/// Whether a queue has interrupted. Waits for that a moment, or for long where it is `expected`.
fn interrupted(hand: &mut Hand, expected: bool) -> bool {
    let looks = if expected { 20_000 } else { 50 };
    for _ in 0..looks {
        if hand
            .transport
            .ack_interrupt()
            .contains(InterruptStatus::QUEUE_INTERRUPT)
        {
            return true;
        }
        thread::sleep(Duration::from_micros(100));
    }
    false
}

/// A STATUS through queue 0.
fn serve_status(hand: &mut Hand) -> TestResult {
    hand.write_request(
        wire::QUEUE_CONTROL,
        header(wire::OP_STATUS).as_bytes(),
        4096,
    );
    hand.serve(wire::QUEUE_CONTROL, 0)?;
    Ok(())
}

fn used_event_says_when_to_interrupt(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 0)?;
    for round in 0..3 {
        let now = hand.ring(wire::QUEUE_CONTROL).taken;
        hand.ring(wire::QUEUE_CONTROL).set_used_event(now + 3);
        for chain in 0..4 {
            serve_status(&mut hand)?;
            let expected = chain == 3;
            let seen = interrupted(&mut hand, expected);
            t.equal(
                Eye::Device,
                &format!("an interrupt at chain {chain} of round {round}"),
                seen,
                expected,
            );
        }
    }
    Ok(())
}

fn no_interrupt_flag_is_heeded(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(VERSION_1 | OWN, 64, 0)?;
    for (flags, expected) in [(0, true), (NO_INTERRUPT, false), (0, true)] {
        hand.ring(wire::QUEUE_CONTROL).set_flags(flags);
        serve_status(&mut hand)?;
        let seen = interrupted(&mut hand, expected);
        t.equal(
            Eye::Device,
            &format!("an interrupt with flags {flags}"),
            seen,
            expected,
        );
    }
    Ok(())
}

fn avail_event_asks_for_the_next_chain(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 0)?;
    for _ in 0..70 {
        serve_status(&mut hand)?;
    }
    let ring = hand.ring(wire::QUEUE_CONTROL);
    let idle = || (ring.avail_event() == ring.offered).then_some(());
    let wanted = pinbed_raw::ring::poll(0, idle);
    t.check(Eye::Device, wanted.is_ok(), || {
        format!(
            "avail_event is {} when {} chains were offered",
            ring.avail_event(),
            ring.offered
        )
    });
    Ok(())
}

fn intx_reaches_the_driver(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(VERSION_1 | OWN, 64, 0)?;
    for round in 0..3 {
        stage.function.unmask()?;
        serve_status(&mut hand)?;
        let mut set = [PollFd::new(
            stage.function.interrupts().as_fd(),
            PollFlags::POLLIN,
        )];
        poll(&mut set, PollTimeout::from(10_000u16))
            .map_err(Error::call("poll of the uio node"))?;
        let ready = set[0].any().unwrap_or_default();
        if !t.check(Eye::Device, ready, || {
            format!("no interrupt in round {round}")
        }) {
            break;
        }
        stage.function.wait_for_interrupt()?;
        let status = hand.transport.ack_interrupt();
        t.equal(Eye::Device, "the ISR status", status.bits(), 1);
    }
    Ok(())
}

fn chains_may_be_in_any_pieces(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 0)?;
    let table = region(PAGE)?;
    let queue = wire::QUEUE_CONTROL;
    let room = size_of::<wire::StatusResponse>() as u32;
    for cut in 0..=16u32 {
        for indirect in [false, true] {
            let request = header(wire::OP_STATUS);
            hand.write_request(queue, request.as_bytes(), room as usize);
            let (from, to) = (hand.requests.physical(0), hand.requests.physical(ANSWER));
            let pieces = [
                (from, cut, 0),
                (from + 1, 0, 0),
                (from + u64::from(cut), 16 - cut, 0),
                (to, cut, F_WRITE),
                (to + u64::from(cut), room - cut, F_WRITE),
            ];
            let ring = hand.ring(queue);
            match indirect {
                false => ring.chain(0, &pieces),
                true => {
                    put_table(&table, &pieces);
                    ring.chain(
                        0,
                        &[(table.physical(0), 16 * pieces.len() as u32, F_INDIRECT)],
                    );
                }
            }
            let what = format!(
                "a STATUS cut at {cut}{}",
                if indirect { " in a table" } else { "" }
            );
            let used = hand.serve(queue, 0)?;
            t.equal(
                Eye::Device,
                &format!("{what}: head and used length"),
                used,
                (0, room),
            );
            let answer = hand.answer(queue, 16);
            t.equal(
                Eye::Device,
                &format!("{what}: status"),
                status_in(&answer),
                wire::STATUS_OK,
            );
            t.equal(
                Eye::Device,
                &format!("{what}: cookie"),
                &answer[8..],
                request.cookie.as_bytes(),
            );
        }
    }
    Ok(())
}

/// Writes an indirect table, linked in the order of the slice.
pub fn put_table(table: &pinbed_raw::region::Region, pieces: &[(u64, u32, u16)]) {
    for (at, descriptor) in linked(0, pieces).enumerate() {
        table.write(16 * at, &descriptor.bytes());
    }
}

fn a_chain_may_be_as_long_as_the_queue(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let table = region(1025 * 16)?;
    let queue = wire::QUEUE_CONTROL;
    let room = size_of::<wire::StatusResponse>() as u32;
    for size in [2u16, 16, 256, 1024] {
        let mut hand = stage.hand(OFFERED, size, 0)?;
        for (count, indirect, served) in [
            (size, false, true),
            (size, true, true),
            (size + 1, true, false),
        ] {
            hand.write_request(queue, header(wire::OP_STATUS).as_bytes(), room as usize);
            let (from, to) = (hand.requests.physical(0), hand.requests.physical(ANSWER));
            let mut pieces = vec![(from, 16, 0)];
            pieces.resize(usize::from(count) - 1, (from, 0, 0));
            pieces.push((to, room, F_WRITE));
            let ring = hand.ring(queue);
            match indirect {
                false => ring.chain(0, &pieces),
                true => {
                    put_table(&table, &pieces);
                    ring.chain(0, &[(table.physical(0), 16 * u32::from(count), F_INDIRECT)]);
                }
            }
            let used = hand.serve(queue, 0)?;
            let expected = (0, if served { room } else { 0 });
            t.equal(
                Eye::Device,
                &format!("a chain of {count} in a queue of {size}"),
                used,
                expected,
            );
        }
        copy_a_page(t, &mut hand)?;
    }
    Ok(())
}

/// An INVOKE that waits until it is cancelled.
fn endless_call(hand: &mut Hand) -> TestResult {
    let open = open_request(1, pin::UUID);
    let session: tee::CallResponse = hand.ask(wire::QUEUE_TEE, &open)?;
    let mut request = invoke_request(1, session.session.get(), pin::WAIT, Default::default());
    request.params[0].attr = tee::PARAM_VALUE_INPUT.into();
    hand.write_request(wire::QUEUE_TEE, request.as_bytes(), 4096);
    hand.ring(wire::QUEUE_TEE).offer(0);
    hand.notify(wire::QUEUE_TEE);
    pinbed_raw::ring::poll(2, || {
        let status = hand.status().ok()?;
        (status.calls.get() == 1).then_some(())
    })?;
    Ok(())
}

fn reset_works_in_every_state(t: &mut Ctx) -> TestResult {
    type Prepare = fn(&mut Hand) -> TestResult;
    /// What the device does when it is reset.
    const STATES: [(&str, Prepare); 8] = [
        ("idle", |_| Ok(())),
        ("holding buffers", |hand| {
            for flags in [0, wire::ATTACH_PROTECTED] {
                hand.try_attach(wire::DIRECTION_BOTH, flags, &[(0x10_0000, 4096)])?
                    .ok();
            }
            Ok(())
        }),
        ("with a job that is late", |hand| {
            hand.inject(wire::INJECT_DELAY, 1, 10_000_000)?;
            hand.write_request(wire::QUEUE_VIDEO, copy(1, 1, 1).as_bytes(), 4096);
            hand.ring(wire::QUEUE_VIDEO).offer(0);
            hand.notify(wire::QUEUE_VIDEO);
            pinbed_raw::ring::poll(1, || (hand.status().ok()?.jobs.get() == 1).then_some(()))?;
            Ok(())
        }),
        ("in a call that waits", endless_call),
        ("silent", |hand| {
            hand.inject(wire::INJECT_SILENCE, 1, 0)?;
            Ok(())
        }),
        ("with a full ring that it was not notified of", |hand| {
            hand.write_request(
                wire::QUEUE_CONTROL,
                header(wire::OP_STATUS).as_bytes(),
                4096,
            );
            for _ in 0..32 {
                hand.ring(wire::QUEUE_CONTROL).offer(0);
            }
            Ok(())
        }),
        ("with a full ring that it is at work on", |hand| {
            hand.write_request(
                wire::QUEUE_CONTROL,
                header(wire::OP_STATUS).as_bytes(),
                4096,
            );
            for _ in 0..32 {
                hand.ring(wire::QUEUE_CONTROL).offer(0);
            }
            hand.notify(wire::QUEUE_CONTROL);
            Ok(())
        }),
        ("with a ring whose index jumped", |hand| {
            hand.ring(wire::QUEUE_VIDEO).publish(0x7000);
            hand.notify(wire::QUEUE_VIDEO);
            Ok(())
        }),
    ];
    let stage = Stage::take()?;
    for (what, prepare) in STATES {
        let mut hand = stage.hand(OFFERED, 64, 8)?;
        prepare(&mut hand)?;
        reset(&mut hand.transport)?;
        drop(hand);
        judge_empty(t, &stage, what)?;
    }
    // Half-way through initialization.
    let stop_at = [
        DeviceStatus::ACKNOWLEDGE,
        DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER,
        DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK,
        DeviceStatus::FAILED,
    ];
    for status in stop_at {
        let mut transport = stage.function.transport()?;
        transport.set_status(status);
        reset(&mut transport)?;
        drop(transport);
        judge_empty(t, &stage, &format!("in status {status:?}"))?;
    }
    Ok(())
}

/// A new driver finds a device that holds nothing and works.
pub fn judge_empty(t: &mut Ctx, stage: &Stage, what: &str) -> TestResult {
    let mut lanes: Lanes<8> = stage.lanes(OFFERED)?;
    let status = lanes.status()?;
    let nothing = wire::StatusResponse {
        header: status.header,
        ..Default::default()
    };
    t.equal(
        Eye::Device,
        &format!("what a device reset while {what} holds and counts"),
        status,
        nothing,
    );
    copy_a_page(t, &mut lanes)
}

fn handles_stay_unique_over_resets(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut last = 0;
    for round in 0..4 {
        let mut lanes: Lanes<8> = stage.lanes(OFFERED)?;
        if round > 0 {
            t.equal(
                Eye::Device,
                "DETACH of a handle of before",
                lanes.detach(last)?,
                wire::STATUS_NO_BUFFER,
            );
        }
        for _ in 0..3 {
            let request = attach(wire::DIRECTION_READ, 0, &[(0x10_0000, 4096)]);
            let answer: wire::AttachResponse = lanes.ask(wire::QUEUE_CONTROL, &request[..])?;
            let handle = answer.handle.get();
            t.check(Eye::Device, handle > last, || {
                format!("handle {handle} after {last}")
            });
            last = handle;
        }
        t.equal(
            Eye::Device,
            "INJECT of nothing",
            lanes.status_of(wire::QUEUE_CONTROL, &inject(0, 0, 0))?,
            wire::STATUS_OK,
        );
    }
    Ok(())
}
