// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that attacks the device: rings and requests that no driver would send. Each is refused or leads to a device that needs a
//! reset; nothing is written that is not attached, and who else uses the device notices nothing.

use super::frozen;
use super::stage::{
    ANSWER, Driver, EVENT_IDX, Hand, Lanes, NO_ANSWER, OFFERED, QUEUES, REQUEST, Stage, attach,
    negotiate, region, reset, status_in,
};
use super::tee_requests::{invoke_request, open_request};
use super::transport::{judge_empty, put_table};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::device::{copy, header, range};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::region::Region;
use pinbed_raw::ring::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE};
use pinbed_raw::virtio_drivers::transport::Transport;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use zerocopy::IntoBytes;

const THREAT: &str = "docs/threat-model.md";
const QUEUES_RULE: &str = "docs/device.md, 2 Virtqueues";

/// A flood or a canary takes its time.
const LONG: u64 = 60;

const fn hostile(
    name: &'static str,
    run: fn(&mut Ctx) -> TestResult,
    source: &'static str,
    correct: &'static str,
) -> Test {
    Test {
        timeout_s: LONG,
        ..test(name, run, source, correct)
    }
}

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    hostile("raw_hostile::nothing_is_written_but_what_was_given", nothing_is_written_but_what_was_given, THREAT,
        "Malformed chains, jobs at and past the edges of a buffer, ATTACHs of anything and random requests, on all queues at once, change no byte of all guest memory but used rings, room for answers and the buffer."),
    hostile("raw_hostile::one_byte_written_elsewhere_is_seen", one_byte_written_elsewhere_is_seen, THREAT,
        "Where the device is told to write one byte beside its buffer, the comparison of all guest memory finds that byte and no other."),
    hostile("raw_hostile::malformed_chains_come_back_empty", malformed_chains_come_back_empty, QUEUES_RULE,
        "Chains that loop, leave the table, are too long, have directions mixed, or name what is no memory are given back with used length 0, on every queue."),
    hostile("raw_hostile::index_jumps_stop_one_queue", index_jumps_stop_one_queue, THREAT,
        "An available index that jumps, or a head that is no descriptor, stops no other queue; after a reset the queue works again."),
    hostile("raw_hostile::rings_may_lie_over_each_other", rings_may_lie_over_each_other, THREAT,
        "Rings that lie over each other or at address 0 break nothing: after a reset the device works."),
    hostile("raw_hostile::queue_sizes_are_bounded", queue_sizes_are_bounded, THREAT,
        "Queue sizes of 0, 3, 1,023, 2,048 and 65,535 break nothing: after a reset the device works."),
    hostile("raw_hostile::answers_may_go_over_the_ring", answers_may_go_over_the_ring, THREAT,
        "Room for an answer over the descriptor table, the rings or the request itself harms nobody but the guest."),
    hostile("raw_hostile::memory_changes_under_the_device", memory_changes_under_the_device, THREAT,
        "Descriptors, indirect tables and requests that change while the device reads them are served or refused, and never read twice for a check and a use."),
    hostile("raw_hostile::random_requests_are_refused", random_requests_are_refused, THREAT,
        "Requests of random bytes and lengths for every operation are answered, and leave others unharmed."),
    hostile("raw_hostile::handles_cannot_be_guessed_into_use", handles_cannot_be_guessed_into_use, THREAT,
        "Handles that were freed, never given, or are near one that is attached are no buffers."),
    hostile("raw_hostile::attaching_without_end_meets_the_limit", attaching_without_end_meets_the_limit, THREAT,
        "50,000 ATTACHs are answered OK up to the limit and STATUS_LIMIT from there on."),
    hostile("raw_hostile::floods_of_notifications_are_survived", floods_of_notifications_are_survived, THREAT,
        "10,000 notifications of each queue, with and without chains in it, keep no queue from being served."),
    hostile("raw_hostile::jobs_reach_nothing_that_is_not_attached", jobs_reach_nothing_that_is_not_attached, THREAT,
        "Jobs with ranges around, past and far beyond a buffer write no byte outside of it."),
    hostile("raw_hostile::sessions_of_others_are_out_of_reach", sessions_of_others_are_out_of_reach, THREAT,
        "Requests with guessed contexts, sessions and cancel IDs reach no session of another context."),
    hostile("raw_hostile::config_writes_are_without_effect", config_writes_are_without_effect, THREAT,
        "Writes all over the configuration space while requests are served change neither."),
];

/// Memory that nobody gave to the device, for the test whose guest cannot stand still: all others have all memory compared (`frozen`).
struct Canary {
    memory: Mapping,
}

impl Canary {
    const LENGTH: usize = 8 << 20;

    fn new() -> TestResult<Self> {
        let memory = Mapping::anon(Self::LENGTH)?;
        for at in (0..Self::LENGTH).step_by(PAGE) {
            memory.write(at, &Self::page(at));
        }
        Ok(Self { memory })
    }

    /// What is in the page: no two have the same.
    fn page(at: usize) -> [u8; PAGE] {
        let mut page = [0xa5; PAGE];
        page[..8].copy_from_slice(&at.to_le_bytes());
        page[PAGE - 8..].copy_from_slice(&(!at).to_le_bytes());
        page
    }

    fn judge(&self, t: &mut Ctx) {
        let length = self.memory.len();
        let changed = (0..length)
            .step_by(PAGE)
            .filter(|at| self.memory.read(*at..at + PAGE) != Self::page(*at))
            .count();
        t.check(Eye::Cpu, changed == 0, || {
            format!(
                "{changed} of {} pages that were never attached have changed",
                length / PAGE
            )
        });
    }
}

/// Another user of the device: a buffer and a session, which nothing may touch.
struct Victim {
    memory: Region,
    bytes: Vec<u8>,
    handle: u64,
    session: u32,
}

/// Its context.
const CONTEXT: u64 = 0x7777;

impl Victim {
    fn new(t: &mut Ctx, driver: &mut impl Driver) -> TestResult<Self> {
        let memory = region(PAGE)?;
        let bytes = t.random(PAGE);
        memory.write(0, &bytes);
        let handle = driver.attach(wire::DIRECTION_READ, &[(memory.physical(0), PAGE as u64)])?;
        let open = open_request(CONTEXT, pin::UUID);
        let answer: tee::CallResponse = driver.ask(wire::QUEUE_TEE, &open)?;
        Ok(Self {
            memory,
            bytes,
            handle,
            session: answer.session.get(),
        })
    }

    /// Its memory, as CPU and device see it, and its session, are as they were.
    fn judge(&self, t: &mut Ctx, driver: &mut impl Driver, what: &str) -> TestResult {
        let seen = self.memory.read(0..PAGE);
        t.same_bytes(
            Eye::Cpu,
            &format!("another user's buffer after {what}"),
            &seen,
            &self.bytes,
        );
        let answer = driver.checksum(self.handle, 0, PAGE as u64)?;
        t.equal(
            Eye::Device,
            &format!("its CRC32C after {what}"),
            answer.crc.get(),
            crc(&self.bytes),
        );
        let mut request = invoke_request(CONTEXT, self.session, pin::RETURN, Default::default());
        request.params[0].attr = tee::PARAM_VALUE_INPUT.into();
        request.params[0].a = 7.into();
        let answer: tee::CallResponse = driver.ask(wire::QUEUE_TEE, &request)?;
        t.equal(
            Eye::Device,
            &format!("its session's answer after {what}"),
            answer.result.get(),
            7,
        );
        Ok(())
    }
}

const SIZE: u16 = 64;

/// Physical addresses that are no RAM on a PC: where devices are, APICs, and far beyond.
const NOWHERE: [u64; 6] = [
    0xc000_0000,
    0xe000_0000,
    0xfec0_0000,
    0xfee0_0000,
    1 << 46,
    u64::MAX - 0xfff,
];

type Piece = (u64, u32, u16);

/// Chains that are wrong in a queue of this size, as descriptors from 0 on; and what is wrong with them. `from` is a request, `to` room
/// for an answer, `table` a place for indirect tables.
fn malformed(from: u64, to: u64, table: &Region, size: u16) -> Vec<(String, Vec<Descriptor>)> {
    let piece = |address, length, flags, next| Descriptor {
        address,
        length,
        flags,
        next,
    };
    let mut all = vec![
        (
            "a loop on itself".to_owned(),
            vec![piece(from, 16, F_NEXT, 0)],
        ),
        (
            "a loop of two".into(),
            vec![
                piece(from, 16, F_NEXT, 1),
                piece(to, 256, F_WRITE | F_NEXT, 0),
            ],
        ),
        (
            "a loop in the room".into(),
            vec![
                piece(from, 16, F_NEXT, 1),
                piece(to, 256, F_WRITE | F_NEXT, 1),
            ],
        ),
        (
            "a successor out of range".into(),
            vec![piece(from, 16, F_NEXT, size)],
        ),
        (
            "a successor of 65535".into(),
            vec![
                piece(from, 16, F_NEXT, 1),
                piece(to, 256, F_WRITE | F_NEXT, 65535),
            ],
        ),
        (
            "room before the request".into(),
            vec![piece(to, 256, F_WRITE | F_NEXT, 1), piece(from, 16, 0, 0)],
        ),
        (
            "a request between room".into(),
            vec![
                piece(to, 8, F_WRITE | F_NEXT, 1),
                piece(from, 16, F_NEXT, 2),
                piece(to, 256, F_WRITE, 0),
            ],
        ),
        ("only room".into(), vec![piece(to, 256, F_WRITE, 0)]),
        ("only a request".into(), vec![piece(from, 16, 0, 0)]),
        (
            "empty descriptors".into(),
            vec![piece(from, 0, F_NEXT, 1), piece(to, 0, F_WRITE, 0)],
        ),
        (
            "a request of 4 GiB less one".into(),
            vec![piece(from, u32::MAX, F_NEXT, 1), piece(to, 256, F_WRITE, 0)],
        ),
        (
            "room of 4 GiB less one".into(),
            vec![piece(from, 16, F_NEXT, 1), piece(to, u32::MAX, F_WRITE, 0)],
        ),
        (
            "more than 4 GiB".into(),
            vec![
                piece(from, 16, F_NEXT, 1),
                piece(to, 1 << 31, F_WRITE | F_NEXT, 2),
                piece(to, 1 << 31, F_WRITE | F_NEXT, 3),
                piece(to, 256, F_WRITE, 0),
            ],
        ),
        (
            "a request that wraps".into(),
            vec![
                piece(u64::MAX - 7, 16, F_NEXT, 1),
                piece(to, 256, F_WRITE, 0),
            ],
        ),
        (
            "room that wraps".into(),
            vec![
                piece(from, 16, F_NEXT, 1),
                piece(u64::MAX - 7, 256, F_WRITE, 0),
            ],
        ),
        (
            "a table of odd size".into(),
            vec![piece(table.physical(0), 33, F_INDIRECT, 0)],
        ),
        (
            "a table of no size".into(),
            vec![piece(table.physical(0), 0, F_INDIRECT, 0)],
        ),
        (
            "a table of 4 GiB less 16".into(),
            vec![piece(table.physical(0), u32::MAX - 15, F_INDIRECT, 0)],
        ),
        (
            "a table at the end of addresses".into(),
            vec![piece(u64::MAX - 15, 32, F_INDIRECT, 0)],
        ),
        (
            "a table in a table".into(),
            vec![piece(table.physical(PAGE), 32, F_INDIRECT, 0)],
        ),
        (
            "a table with a loop".into(),
            vec![piece(table.physical(2 * PAGE), 32, F_INDIRECT, 0)],
        ),
        (
            "a table with a successor out of it".into(),
            vec![piece(table.physical(3 * PAGE), 32, F_INDIRECT, 0)],
        ),
    ];
    for place in NOWHERE {
        all.push((
            format!("a request at {place:#x}"),
            vec![piece(place, 16, F_NEXT, 1), piece(to, 256, F_WRITE, 0)],
        ));
        all.push((
            format!("room at {place:#x}"),
            vec![piece(from, 16, F_NEXT, 1), piece(place, 256, F_WRITE, 0)],
        ));
        all.push((
            format!("a table at {place:#x}"),
            vec![piece(place, 32, F_INDIRECT, 0)],
        ));
    }
    table.write(PAGE, &piece(from, 16, F_NEXT, 1).bytes());
    table.write(
        PAGE + 16,
        &piece(table.physical(0), 32, F_INDIRECT, 0).bytes(),
    );
    table.write(2 * PAGE, &piece(from, 16, F_NEXT, 1).bytes());
    table.write(2 * PAGE + 16, &piece(to, 256, F_WRITE | F_NEXT, 1).bytes());
    table.write(3 * PAGE, &piece(from, 16, F_NEXT, 1).bytes());
    table.write(3 * PAGE + 16, &piece(to, 256, F_WRITE | F_NEXT, 2).bytes());
    all
}

fn malformed_chains_come_back_empty(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let table = region(4 * PAGE)?;
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let mut hand = stage.hand(features, SIZE, 8)?;
        let victim = Victim::new(t, &mut hand)?;
        for queue in QUEUES {
            let at = queue as usize * REQUEST;
            let (from, to) = (
                hand.requests.physical(at),
                hand.requests.physical(at + ANSWER),
            );
            for (what, descriptors) in malformed(from, to, &table, SIZE) {
                // A room that stays untouched shows that nothing was carried out.
                hand.requests.write(at, header(wire::OP_STATUS).as_bytes());
                hand.requests.write(at + ANSWER, &[0xee; 256]);
                for (index, descriptor) in descriptors.iter().enumerate() {
                    hand.ring(queue).describe(index as u16, *descriptor);
                }
                let used = hand.serve(queue, 0)?;
                t.equal(
                    Eye::Device,
                    &format!("{what} on queue {queue}: head and used length"),
                    used,
                    (0, 0),
                );
                let room = hand.answer(queue, 256);
                t.check(Eye::Cpu, room == [0xee; 256], || {
                    format!("{what} on queue {queue}: its room was written")
                });
            }
        }
        victim.judge(t, &mut hand, "malformed chains")?;
    }
    Ok(())
}

/// Chains for one queue that the device is not told of yet. Each has a place for its request and room for its answer.
struct Batch {
    queue: u32,
    requests: Region,
    rooms: Region,
    /// The next chain's first descriptor.
    descriptor: u16,
    chains: usize,
}

impl Batch {
    /// Bytes of each place.
    const REQUEST: usize = 512;
    const ROOM: usize = 1024;

    fn new(queue: u32, chains: usize) -> TestResult<Self> {
        Ok(Self {
            queue,
            requests: region(chains * Self::REQUEST)?,
            rooms: region(chains * Self::ROOM)?,
            descriptor: 0,
            chains: 0,
        })
    }

    /// Where answers go: physical address and bytes.
    fn rooms(&self) -> (u64, u64) {
        (self.rooms.physical(0), self.rooms.len() as u64)
    }

    /// A chain as it should be.
    fn request(&mut self, hand: &mut Hand, request: &[u8]) {
        self.requests.write(self.chains * Self::REQUEST, request);
        let from = self.requests.physical(self.chains * Self::REQUEST);
        let to = self.rooms.physical(self.chains * Self::ROOM);
        let ring = hand.ring(self.queue);
        let pieces = [
            (from, request.len() as u32, 0),
            (to, Self::ROOM as u32, F_WRITE),
        ];
        ring.chain(self.descriptor, &pieces);
        ring.offer(self.descriptor);
        self.descriptor += 2;
        self.chains += 1;
    }

    /// A chain of these descriptors, as if they were the table's first.
    fn chain(&mut self, hand: &mut Hand, descriptors: &[Descriptor]) {
        let (ring, length) = (hand.ring(self.queue), descriptors.len() as u16);
        for (at, descriptor) in (self.descriptor..).zip(descriptors) {
            let next = match descriptor.next < length {
                true => descriptor.next + self.descriptor,
                false => descriptor.next,
            };
            ring.describe(
                at,
                Descriptor {
                    next,
                    ..*descriptor
                },
            );
        }
        ring.offer(self.descriptor);
        self.descriptor += length;
        self.chains += 1;
    }
}

fn nothing_is_written_but_what_was_given(t: &mut Ctx) -> TestResult {
    /// Random requests for each queue.
    const RANDOM: usize = 100;
    const CHAINS: usize = 300;
    const DEEP: u16 = 1024;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, DEEP, 64)?;
    let victim = Victim::new(t, &mut hand)?;
    let memory = region(3 * PAGE)?;
    let (start, length) = (PAGE - 100, PAGE as u64 + 200);
    let given = (memory.physical(start), length);
    let mine = hand.attach(wire::DIRECTION_BOTH, &[given])?;
    let table = region(4 * PAGE)?;
    let (request, no_room) = (region(PAGE)?, region(PAGE)?);
    request.write(0, header(wire::OP_STATUS).as_bytes());
    let mut numbers = Numbers(0x0dd_ba11);
    let batches = QUEUES.map(|queue| Batch::new(queue, CHAINS));
    let mut batches = batches.into_iter().collect::<TestResult<Vec<_>>>()?;
    let mut allowed = hand.used_rings();
    allowed.push(hand.event_room());
    allowed.push(given);
    allowed.extend(batches.iter().map(Batch::rooms));
    let held = frozen::hold(&allowed)?;
    for batch in &mut batches {
        let queue = batch.queue;
        let wrong = malformed(request.physical(0), no_room.physical(0), &table, DEEP);
        for (_, descriptors) in wrong {
            batch.chain(&mut hand, &descriptors);
        }
        if queue == wire::QUEUE_VIDEO {
            for (_, job, _) in jobs_at_edges(mine, length) {
                batch.request(&mut hand, job.as_bytes());
            }
            batch.request(&mut hand, copy(victim.handle, mine, 64).as_bytes());
            batch.request(&mut hand, copy(mine, victim.handle, 64).as_bytes());
        }
        if queue == wire::QUEUE_CONTROL {
            for (address, size) in [(0, 1 << 40), (0, 1), (1 << 20, 64 << 20), (u64::MAX, 2)] {
                let anything = attach(wire::DIRECTION_BOTH, 0, &[(address, size)]);
                batch.request(&mut hand, &anything);
            }
        }
        for _ in 0..RANDOM {
            let request = random_request(&mut numbers, queue, victim.handle);
            batch.request(&mut hand, &request);
        }
    }
    let written = held.serve(&mut hand.transport, &QUEUES)?;
    written.judge(t, "attacks on all queues");
    for batch in &batches {
        let mut back = 0;
        while hand.ring(batch.queue).poll_used().is_some() {
            back += 1;
        }
        let what = format!("chains of queue {} that came back", batch.queue);
        t.equal(Eye::Device, &what, back, batch.chains);
    }
    victim.judge(t, &mut hand, "attacks on all queues")
}

fn one_byte_written_elsewhere_is_seen(t: &mut Ctx) -> TestResult {
    const DISTANCE: u64 = 5 * PAGE as u64 + 77;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, SIZE, 0)?;
    let memory = region(8 * PAGE)?;
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE as u64)])?;
    for (count, expected) in [
        (1, vec![(memory.physical(0) + DISTANCE, 1)]),
        // And where nothing is wrong, nothing is found.
        (0, vec![]),
    ] {
        let status = hand.inject(wire::INJECT_ASTRAY, count, DISTANCE)?;
        t.equal(Eye::Device, "INJECT", status, wire::STATUS_OK);
        let fill = wire::JobRequest {
            header: header(wire::OP_FILL),
            dst: range(handle, 0, 1),
            pattern: 0x77.into(),
            ..Default::default()
        };
        hand.write_request(wire::QUEUE_VIDEO, fill.as_bytes(), 1024);
        let mut allowed = hand.used_rings();
        allowed.push((memory.physical(0), PAGE as u64));
        let at = wire::QUEUE_VIDEO as usize * REQUEST + ANSWER;
        allowed.push((hand.requests.physical(at), 1024));
        let held = frozen::hold(&allowed)?;
        hand.ring(wire::QUEUE_VIDEO).offer(0);
        let written = held.serve(&mut hand.transport, &[wire::QUEUE_VIDEO])?;
        t.equal(
            Eye::Device,
            "bytes written elsewhere (address, length)",
            written.found,
            expected,
        );
        t.check(Eye::Device, written.inside > 0, || {
            "the job was not answered".into()
        });
        hand.ring(wire::QUEUE_VIDEO).wait_used()?;
    }
    Ok(())
}

fn index_jumps_stop_one_queue(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    for queue in QUEUES {
        for jump in [SIZE + 1, 0x7fff, 0x8000, 0xffff] {
            let mut hand = stage.hand(OFFERED, SIZE, 0)?;
            let victim = Victim::new(t, &mut hand)?;
            let ring = hand.ring(queue);
            let index = ring.offered.wrapping_add(jump);
            ring.publish(index);
            hand.notify(queue);
            judge_others(
                t,
                &mut hand,
                queue,
                &format!("an index that jumps by {jump} on queue {queue}"),
            )?;
            reset(&mut hand.transport)?;
            drop(hand);
            drop(victim);
        }
        for head in [SIZE, 0x8000, 0xffff] {
            let mut hand = stage.hand(OFFERED, SIZE, 0)?;
            hand.ring(queue).offer(head);
            hand.notify(queue);
            judge_others(
                t,
                &mut hand,
                queue,
                &format!("head {head} on queue {queue}"),
            )?;
        }
        judge_empty(t, &stage, "under attack")?;
    }
    // All at once, with an eye on all memory.
    let mut hand = stage.hand(OFFERED, SIZE, 0)?;
    let held = frozen::hold(&hand.used_rings())?;
    for (queue, jump) in QUEUES.into_iter().zip([SIZE + 1, 0x7fff, 0xffff]) {
        hand.ring(queue).publish(jump);
    }
    let written = held.serve(&mut hand.transport, &QUEUES)?;
    t.equal(
        Eye::Device,
        "bytes written elsewhere",
        written.found,
        vec![],
    );
    Ok(())
}

/// The other queues are served.
fn judge_others(t: &mut Ctx, hand: &mut Hand, queue: u32, what: &str) -> TestResult {
    for other in QUEUES.into_iter().filter(|other| *other != queue) {
        for _ in 0..3 {
            let status = hand.status_of(other, &header(0xdead))?;
            t.equal(
                Eye::Device,
                &format!("queue {other} after {what}"),
                status,
                wire::STATUS_UNSUPPORTED,
            );
        }
    }
    Ok(())
}

fn rings_may_lie_over_each_other(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let place = region(4 * PAGE)?;
    let good = [
        place.physical(0),
        place.physical(PAGE),
        place.physical(2 * PAGE),
    ];
    // Elsewhere than in RAM, or unaligned, the vhost crates end the connection and QEMU itself: see docs/threat-model.md.
    let all: Vec<(String, [u64; 3])> = vec![
        ("all in one place".into(), [good[0]; 3]),
        (
            "the used ring over the table".into(),
            [good[0], good[1], good[0]],
        ),
        (
            "the used ring over the available ring".into(),
            [good[0], good[1], good[1]],
        ),
        ("all at 0".into(), [0; 3]),
    ];
    let mut transport = stage.function.transport()?;
    negotiate(&mut transport, OFFERED)?;
    for queue in 0..wire::QUEUE_COUNT as u16 {
        transport.queue_set(queue, SIZE.into(), good[0], good[0], good[0]);
    }
    transport.finish_init();
    let held = frozen::hold(&[(good[0], place.len() as u64)])?;
    // An index of 1, wherever it is looked for.
    place.write(2, &[1]);
    let written = held.serve(&mut transport, &QUEUES)?;
    // By its used ring the device makes chains available to itself, without end.
    written.judge(t, "rings over each other");
    drop(transport);
    for (what, [table, available, used]) in all {
        for queue in [wire::QUEUE_CONTROL, wire::QUEUE_TEE] {
            let mut transport = stage.function.transport()?;
            negotiate(&mut transport, OFFERED)?;
            transport.queue_set(queue as u16, SIZE.into(), table, available, used);
            transport.finish_init();
            for _ in 0..3 {
                transport.notify(queue as u16);
            }
            reset(&mut transport)?;
        }
        judge_empty(t, &stage, &format!("its rings were {what}"))?;
    }
    Ok(())
}

fn queue_sizes_are_bounded(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let place = region(96 * PAGE)?;
    for size in [0u32, 3, 1023, 2048, 65_535] {
        let mut transport = stage.function.transport()?;
        negotiate(&mut transport, OFFERED)?;
        for queue in 0..wire::QUEUE_COUNT as u16 {
            transport.queue_set(
                queue,
                size,
                place.physical(0),
                place.physical(32 * PAGE),
                place.physical(64 * PAGE),
            );
        }
        transport.finish_init();
        for queue in 0..8 {
            transport.notify(queue % 4);
        }
        reset(&mut transport)?;
        drop(transport);
        judge_empty(t, &stage, &format!("its queues had a size of {size}"))?;
    }
    Ok(())
}

fn answers_may_go_over_the_ring(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    for place in 0..5 {
        let mut hand = stage.hand(OFFERED, SIZE, 0)?;
        let victim = Victim::new(t, &mut hand)?;
        let queue = wire::QUEUE_VIDEO;
        let at = queue as usize * REQUEST;
        hand.requests.write(at, copy(1, 2, 3).as_bytes());
        let from = hand.requests.physical(at);
        let ring = hand.ring(queue);
        let to = [
            ring.table.physical(0),
            ring.available.physical(0),
            ring.used.physical(0),
            ring.used.physical(2),
            from,
        ][place];
        let length = size_of::<wire::JobRequest>() as u32;
        ring.chain(0, &[(from, length, 0), (to, 2048, F_WRITE)]);
        ring.offer(0);
        hand.notify(queue);
        // Whatever came of the ring, the others are served.
        judge_others(t, &mut hand, queue, &format!("an answer over part {place}"))?;
        victim.judge(t, &mut hand, &format!("an answer over part {place}"))?;
        drop(hand);
        judge_empty(t, &stage, "its ring was overwritten")?;
    }
    // A job that writes over the ring it came through.
    let mut hand = stage.hand(OFFERED, SIZE, 0)?;
    let queue = wire::QUEUE_VIDEO;
    let (table, used) = (
        hand.ring(queue).table.physical(0),
        hand.ring(queue).used.physical(0),
    );
    for at in [table, used] {
        let handle = hand.attach(wire::DIRECTION_WRITE, &[(at, 512)])?;
        let request = wire::JobRequest {
            header: header(wire::OP_FILL),
            dst: range(handle, 0, 512),
            pattern: u32::MAX.into(),
            ..Default::default()
        };
        hand.write_request(queue, request.as_bytes(), 4096);
        hand.ring(queue).offer(0);
        hand.notify(queue);
        judge_others(t, &mut hand, queue, "a job over its ring")?;
    }
    drop(hand);
    judge_empty(t, &stage, "its ring was filled")?;
    Ok(())
}

/// Pseudo-random numbers (xorshift64): the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn memory_changes_under_the_device(t: &mut Ctx) -> TestResult {
    const ROUNDS: usize = 1_500;
    let stage = Stage::take()?;
    let canary = Canary::new()?;
    let mut hand = stage.hand(OFFERED, SIZE, 0)?;
    let victim = Victim::new(t, &mut hand)?;
    let queue = wire::QUEUE_VIDEO;
    let at = queue as usize * REQUEST;
    let table = region(PAGE)?;
    let (from, to) = (
        hand.requests.physical(at),
        hand.requests.physical(at + ANSWER),
    );
    let length = size_of::<wire::JobRequest>() as u32;
    // Requests and descriptors that a device would like, and others that it must not act on.
    let good = copy(victim.handle, victim.handle, 64);
    let pieces: [Piece; 2] = [(from, length, 0), (to, 1024, F_WRITE)];
    put_table(&table, &pieces);
    hand.requests.write(at, good.as_bytes());
    let stop = AtomicBool::new(false);
    let (requests, shared) = (&hand.requests, &table);
    // The region is shared by reference: it is accessed by copies only.
    struct Shared<'a>(&'a Region, &'a Region);
    // SAFETY: a region's accesses are copies of bytes that the device changes at any time, too.
    unsafe impl Sync for Shared<'_> {}
    let shared = Shared(requests, shared);
    let (transport, rings) = (&mut hand.transport, &mut hand.rings);
    let served = thread::scope(|scope| {
        let (shared, stop) = (&shared, &stop);
        scope.spawn(move || {
            let mut numbers = Numbers(0x1234_5678_9abc_def1);
            while !stop.load(Ordering::Relaxed) {
                let value = [0, 1, 0x7f, 0xff, numbers.next() as u8][numbers.below(5)];
                match numbers.below(3) {
                    0 => shared
                        .0
                        .write(at + numbers.below(length as usize), &[value]),
                    // Lengths, flags and successors. Where an address leads is the guest's own affair.
                    1 => shared
                        .1
                        .write(16 * numbers.below(2) + 8 + numbers.below(8), &[value]),
                    _ => {
                        shared.0.write(at, good.as_bytes());
                        put_table(shared.1, &pieces);
                    }
                }
            }
        });
        let ring = &mut rings[queue as usize];
        ring.chain(0, &[(table.physical(0), 32, F_INDIRECT)]);
        let mut served = Ok(0);
        for _ in 0..ROUNDS {
            served = match (served, ring.serve(transport, 0)) {
                (Ok(count), Ok((0, _))) => Ok(count + 1),
                (Ok(_), Ok(used)) => Err(Stop::finding(
                    Eye::Device,
                    format!("chain {used:?} comes back"),
                )),
                (Ok(_), Err(error)) => Err(error.into()),
                (error, _) => error,
            };
        }
        stop.store(true, Ordering::Relaxed);
        served
    })?;
    t.equal(Eye::Device, "chains that came back", served, ROUNDS);
    victim.judge(t, &mut hand, "memory that changed")?;
    canary.judge(t);
    Ok(())
}

/// A request of random bytes and length for the queue, with one of its operations if it is long enough. It names no buffer `spare`: a
/// DETACH of that would be a request of its owner's.
fn random_request(numbers: &mut Numbers, queue: u32, spare: u64) -> Vec<u8> {
    const OPS: [&[u32]; 3] = [
        &[
            wire::OP_STATUS,
            wire::OP_ATTACH,
            wire::OP_DETACH,
            wire::OP_QUERY,
            wire::OP_CHECKSUM,
            0x106,
            0,
        ],
        &[
            wire::OP_COPY,
            wire::OP_FILL,
            wire::OP_CONVERT,
            0x203,
            u32::MAX,
        ],
        &[
            tee::OP_OPEN_SESSION,
            tee::OP_INVOKE,
            tee::OP_CANCEL,
            tee::OP_CLOSE_SESSION,
            0x305,
        ],
    ];
    let ops = OPS[queue as usize];
    let mut request = vec![0; numbers.below(400)];
    // Numbers that are small, great, and at the edges of fields.
    for word in request.chunks_mut(4) {
        let number = match numbers.below(6) {
            0 => 0,
            1 => numbers.below(8) as u32,
            2 => u32::MAX,
            3 => 1 << numbers.below(32),
            4 => 4096,
            _ => numbers.next() as u32,
        };
        word.copy_from_slice(&number.to_le_bytes()[..word.len()]);
    }
    if request.len() >= 16 {
        request[..4].copy_from_slice(&ops[numbers.below(ops.len())].to_le_bytes());
        request[4..8].fill(0);
        if request.len() >= 24 && request[16..24] == spare.to_le_bytes() {
            request[16] ^= 0x80;
        }
    }
    request
}

fn random_requests_are_refused(t: &mut Ctx) -> TestResult {
    const ROUNDS: usize = 4_000;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, SIZE, 16)?;
    let victim = Victim::new(t, &mut hand)?;
    let mut numbers = Numbers(0xfeed_beef_0bad_cafe);
    let mut answers = [0usize; 2];
    for round in 0..ROUNDS {
        let queue = QUEUES[round % 3];
        let request = random_request(&mut numbers, queue, victim.handle);
        let room = numbers.below(600);
        let answer = hand.exchange(queue, &request, room)?;
        answers[usize::from(status_in(&answer) != NO_ANSWER)] += 1;
    }
    t.note(format!(
        "{} requests were answered, {} came back empty",
        answers[1], answers[0]
    ));
    t.check(Eye::Device, answers[1] > ROUNDS / 2, || {
        format!("only {} of {ROUNDS} were answered", answers[1])
    });
    victim.judge(t, &mut hand, "random requests")?;
    Ok(())
}

fn handles_cannot_be_guessed_into_use(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let victim = Victim::new(t, &mut lanes)?;
    let memory = region(PAGE)?;
    let mine = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE as u64)])?;
    let freed: Vec<u64> = (0..50)
        .map(|_| {
            let handle =
                lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE as u64)])?;
            lanes.detach(handle)?;
            Ok(handle)
        })
        .collect::<TestResult<_>>()?;
    let mut numbers = Numbers(77);
    let guesses = freed
        .iter()
        .copied()
        .chain((1..64).map(|bit| mine ^ (1 << bit)))
        .chain([0, u64::MAX]);
    let guesses: Vec<u64> = guesses.chain((0..200).map(|_| numbers.next())).collect();
    for guess in guesses {
        if guess == victim.handle || guess == mine {
            continue;
        }
        t.equal(
            Eye::Device,
            &format!("DETACH of {guess:#x}"),
            lanes.detach(guess)?,
            wire::STATUS_NO_BUFFER,
        );
        for request in [copy(guess, mine, 16), copy(mine, guess, 16)] {
            let answer = lanes.job(&request)?;
            t.equal(
                Eye::Device,
                &format!("a job with {guess:#x}"),
                answer.fault.reason.get(),
                wire::FAULT_NOT_ATTACHED,
            );
        }
    }
    victim.judge(t, &mut lanes, "guessed handles")
}

fn attaching_without_end_meets_the_limit(t: &mut Ctx) -> TestResult {
    /// Chains in the ring at a time.
    const BATCH: u16 = 256;
    const ATTACHES: u32 = 50_000;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 1024, 0)?;
    let queue = wire::QUEUE_CONTROL;
    let request = attach(wire::DIRECTION_BOTH, 0, &[(0, 1)]);
    hand.write_request(queue, &request, 64);
    let (from, to) = (hand.requests.physical(0), hand.requests.physical(ANSWER));
    for chain in 0..BATCH {
        let room = to + 32 * u64::from(chain);
        hand.ring(queue).chain(
            2 * chain,
            &[(from, request.len() as u32, 0), (room, 24, F_WRITE)],
        );
    }
    let (mut attached, mut sent) = (0u32, 0u32);
    while sent < ATTACHES {
        let ring = hand.ring(queue);
        for chain in 0..BATCH {
            ring.prepare(2 * chain);
        }
        let index = ring.offered;
        ring.publish(index);
        hand.notify(queue);
        for _ in 0..BATCH {
            hand.ring(queue).wait_used()?;
        }
        sent += u32::from(BATCH);
        // All of the first, then a sample.
        if sent <= 8192 || sent.is_multiple_of(1 << 13) {
            let answers = hand.answer(queue, 32 * usize::from(BATCH));
            for answer in answers.chunks(32) {
                match status_in(answer) {
                    wire::STATUS_OK => attached += 1,
                    wire::STATUS_LIMIT => (),
                    status => t.find(
                        Eye::Device,
                        format!("ATTACH is answered with status {status}"),
                    ),
                }
            }
        }
    }
    t.equal(Eye::Device, "buffers that were attached", attached, 4096);
    t.equal(
        Eye::Device,
        "buffers held",
        hand.status()?.buffers.get(),
        4096,
    );
    drop(hand);
    judge_empty(t, &stage, "full of buffers")?;
    Ok(())
}

fn floods_of_notifications_are_survived(t: &mut Ctx) -> TestResult {
    const NOTIFICATIONS: usize = 10_000;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, SIZE, 4)?;
    let victim = Victim::new(t, &mut hand)?;
    for queue in 0..wire::QUEUE_COUNT {
        for n in 0..NOTIFICATIONS {
            hand.notify(queue);
            // Now and then one with something behind it.
            if n % 500 == 0 && queue < wire::QUEUE_EVENT {
                let status = hand.status_of(queue, &header(0xdead))?;
                t.equal(
                    Eye::Device,
                    &format!("queue {queue} in a flood"),
                    status,
                    wire::STATUS_UNSUPPORTED,
                );
            }
        }
        victim.judge(t, &mut hand, &format!("a flood of queue {queue}"))?;
    }
    Ok(())
}

/// FILLs around, past and far beyond a buffer of `length` bytes, and whether they are within it.
fn jobs_at_edges(handle: u64, length: u64) -> Vec<(String, wire::JobRequest, bool)> {
    let edges = [
        0,
        1,
        length - 1,
        length,
        length + 1,
        1 << 31,
        1 << 32,
        (1 << 32) + 1,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    let job = |offset: u64, size: u64| {
        let request = wire::JobRequest {
            header: header(wire::OP_FILL),
            dst: range(handle, offset, size),
            pattern: 0x7777_7777.into(),
            ..Default::default()
        };
        let inside = offset.checked_add(size).is_some_and(|end| end <= length);
        (
            format!("FILL of {size:#x} bytes at {offset:#x}"),
            request,
            inside,
        )
    };
    let pairs = edges.iter().flat_map(|at| edges.map(|size| (*at, size)));
    pairs.map(|(at, size)| job(at, size)).collect()
}

fn jobs_reach_nothing_that_is_not_attached(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let victim = Victim::new(t, &mut lanes)?;
    // A buffer in the middle of three pages, with guards around it.
    let memory = region(3 * PAGE)?;
    memory.write(0, &[0xcd; 3 * PAGE]);
    let (start, length) = (PAGE - 100, PAGE as u64 + 200);
    let handle = lanes.attach(wire::DIRECTION_BOTH, &[(memory.physical(start), length)])?;
    for (what, request, inside) in jobs_at_edges(handle, length) {
        let status = lanes.job(&request)?.header.status.get();
        let expected = if inside {
            wire::STATUS_OK
        } else {
            wire::STATUS_DMA_FAULT
        };
        t.equal(Eye::Device, &what, status, expected);
    }
    let mut expected = vec![0xcd; 3 * PAGE];
    expected[start..start + length as usize].fill(0x77);
    t.same_bytes(
        Eye::Cpu,
        "the buffer and its guards",
        &memory.read(0..3 * PAGE),
        &expected,
    );
    victim.judge(t, &mut lanes, "jobs at the edges")?;
    Ok(())
}

fn sessions_of_others_are_out_of_reach(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let victim = Victim::new(t, &mut lanes)?;
    let mut numbers = Numbers(0x5e55_1055);
    for round in 0..90 {
        // The victim's session from another context, and from one that differs in a bit; sessions that another context guesses.
        let (context, session) = match round % 3 {
            0 => (numbers.next(), victim.session),
            1 => (CONTEXT ^ (1 << numbers.below(64)), victim.session),
            _ => (CONTEXT + 1, numbers.next() as u32),
        };
        let invoke = invoke_request(context, session, pin::PANIC, Default::default());
        let answer: tee::CallResponse = lanes.ask(wire::QUEUE_TEE, &invoke)?;
        t.equal(
            Eye::Device,
            "INVOKE in another's session",
            answer.result.get(),
            tee::TEEC_ERROR_BAD_PARAMETERS,
        );
        let close = tee::CloseSessionRequest {
            header: header(tee::OP_CLOSE_SESSION),
            context: context.into(),
            session: session.into(),
            reserved: 0.into(),
        };
        let answer: tee::ResultResponse = lanes.ask(wire::QUEUE_TEE, &close)?;
        t.equal(
            Eye::Device,
            "CLOSE_SESSION of another's",
            answer.result.get(),
            tee::TEEC_ERROR_BAD_PARAMETERS,
        );
        let cancel = tee::CancelRequest {
            header: header(tee::OP_CANCEL),
            context: context.into(),
            session: session.into(),
            cancel_id: 0.into(),
        };
        lanes.status_of(wire::QUEUE_TEE, &cancel)?;
        let leave = tee::CloseContextRequest {
            header: header(tee::OP_CLOSE_CONTEXT),
            context: context.into(),
        };
        lanes.status_of(wire::QUEUE_TEE, &leave)?;
    }
    victim.judge(t, &mut lanes, "guessed sessions")
}

fn config_writes_are_without_effect(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let victim = Victim::new(t, &mut lanes)?;
    let magic = |lanes: &Lanes<16>| lanes.transport.read_config_space::<u32>(0);
    let mut numbers = Numbers(0xc0_ff1e);
    for _ in 0..200 {
        let at = numbers.below(size_of::<wire::Config>() / 4) * 4;
        let value = numbers.next() as u32;
        let written = lanes.transport.write_config_space(at, value);
        written.map_err(pinbed_raw::Error::Queue)?;
        let read = magic(&lanes).map_err(pinbed_raw::Error::Queue)?;
        t.equal(Eye::Device, "the magic after a write", read, wire::MAGIC);
        lanes.status()?;
    }
    victim.judge(t, &mut lanes, "config writes")
}
