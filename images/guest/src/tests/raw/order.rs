// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which requests wait for which: those of a queue, of two queues, of a session: docs/device.md, 2, 5.1 and 5.3.

use super::stage::{Driver, Hand, Lanes, OFFERED, Stage, attach, region, status_in};
use super::tee_requests::{
    Calls, NONE, close, endless, invoke, invoke_request, memref, open, open_request, session, value,
};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{pin, secure_storage};
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::observe::device::{copy, header};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::ring::{F_WRITE, poll};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

const QUEUES: &str = "docs/device.md, 2 Virtqueues";
const CONTROL: &str = "docs/device.md, 5.1 Control";
const OPERATION: &str = "docs/device.md, 7 Device operation";
const TEE: &str = "docs/device.md, 5.3 TEE";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::requests_are_carried_out_in_their_order", requests_are_carried_out_in_their_order, QUEUES,
        "Requests of the control queue, and jobs, that are made available at once are carried out and answered in their order."),
    test("raw::queues_are_served_at_the_same_time", queues_are_served_at_the_same_time, QUEUES,
        "While a job is late and a call waits, the control queue and another call are served."),
    test("raw::inject_none_ends_delays", inject_none_ends_delays, CONTROL,
        "INJECT_NONE ends the delay of the job under way and takes back the faults of those after it."),
    test("raw::detach_ends_a_late_job", detach_ends_a_late_job, CONTROL,
        "DETACH is answered while a job with the buffer is late; the job then faults with NOT_ATTACHED and moves no byte."),
    test("raw::reset_takes_faults_back", reset_takes_faults_back, OPERATION,
        "Faults that were asked for before a reset do not happen after it."),
    test("raw::calls_of_a_session_take_turns", calls_of_a_session_take_turns, TEE,
        "A call does not run before those of its session that came first have ended; CANCEL ends one that does not run yet with CANCEL of origin TEE."),
    test("raw::masked_cancellation_is_not_heeded", masked_cancellation_is_not_heeded, TEE,
        "CANCEL does not end a call that runs and whose application has cancellation masked."),
    test("raw::applications_know_their_client", applications_know_their_client, TEE,
        "The client's login and UUID reach the application."),
    test("raw::an_application_with_one_instance_is_busy", an_application_with_one_instance_is_busy, TEE,
        "While the one instance of an application has a session, a second is BUSY; after CLOSE_SESSION it opens."),
    test("raw::a_memref_can_be_kept", a_memref_can_be_kept, TEE,
        "An application reads a memref that it kept in an earlier call of its session; after DETACH the same is SECURITY."),
];

/// Makes requests available at once, notifies once, and returns the answers, which have to come back in the same order.
fn all_at_once(
    t: &mut Ctx,
    hand: &mut Hand,
    queue: u32,
    requests: &[Vec<u8>],
    room: usize,
) -> TestResult<Vec<Vec<u8>>> {
    let longest = requests.iter().map(Vec::len).max().unwrap_or_default();
    let place = longest.next_multiple_of(16) + room;
    let memory = region(requests.len() * place)?;
    let ring = hand.ring(queue);
    for (slot, request) in requests.iter().enumerate() {
        let at = slot * place;
        memory.write(at, request);
        let answer = memory.physical(at + place - room);
        let pieces = [
            (memory.physical(at), request.len() as u32, 0),
            (answer, room as u32, F_WRITE),
        ];
        ring.chain(2 * slot as u16, &pieces);
        ring.prepare(2 * slot as u16);
    }
    ring.publish(ring.offered);
    hand.notify(queue);
    let mut answers = Vec::new();
    for slot in 0..requests.len() {
        let (head, used) = hand.ring(queue).wait_used()?;
        t.equal(
            Eye::Device,
            &format!("chain that comes back as number {slot} of queue {queue}"),
            head,
            2 * slot as u32,
        );
        let at = slot * place + place - room;
        answers.push(memory.read(at..at + room.min(used as usize)));
    }
    Ok(answers)
}

fn requests_are_carried_out_in_their_order(t: &mut Ctx) -> TestResult {
    const COUNT: usize = 24;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 128, 0)?;
    // ATTACH and STATUS in turn: each STATUS counts the ATTACHs before it.
    let memory = region((COUNT + 1) * 64)?;
    let requests: Vec<_> = (0..2 * COUNT)
        .map(|n| match n % 2 {
            0 => attach(
                wire::DIRECTION_BOTH,
                0,
                &[(memory.physical(n / 2 * 64), 64)],
            ),
            _ => header(wire::OP_STATUS).as_bytes().to_vec(),
        })
        .collect();
    let room = size_of::<wire::StatusResponse>();
    let answers = all_at_once(t, &mut hand, wire::QUEUE_CONTROL, &requests, room)?;
    let mut handles = Vec::new();
    for (n, answer) in answers.iter().enumerate() {
        let short = || Stop::finding(Eye::Device, format!("answer {n} is too short"));
        if n % 2 == 0 {
            let (answer, _) =
                wire::AttachResponse::read_from_prefix(answer).map_err(|_| short())?;
            handles.push(answer.handle.get());
            continue;
        }
        let (answer, _) = wire::StatusResponse::read_from_prefix(answer).map_err(|_| short())?;
        t.equal(
            Eye::Device,
            &format!("buffers that STATUS {} counts", n / 2),
            answer.buffers.get(),
            n as u64 / 2 + 1,
        );
    }
    // Each job copies what the one before has copied.
    let bytes = t.random(64);
    memory.write(0, &bytes);
    let jobs: Vec<_> = handles
        .windows(2)
        .map(|pair| copy(pair[0], pair[1], 64).as_bytes().to_vec())
        .collect();
    let room = size_of::<wire::JobResponse>();
    for answer in all_at_once(t, &mut hand, wire::QUEUE_VIDEO, &jobs, room)? {
        t.equal(
            Eye::Device,
            "a job's status",
            status_in(&answer),
            wire::STATUS_OK,
        );
    }
    let last = (COUNT - 1) * 64;
    t.same_bytes(
        Eye::Cpu,
        "what the last job wrote",
        &memory.read(last..last + 64),
        &bytes,
    );
    Ok(())
}

/// How late a job is that [`late_job`] offers.
const LATE: Duration = Duration::from_secs(10);

/// Offers a job that begins late, and waits until the device has it.
fn late_job(hand: &mut Hand, source: u64, target: u64) -> TestResult {
    hand.inject(wire::INJECT_DELAY, 1, LATE.as_micros() as u64)?;
    let before = hand.status()?.jobs.get();
    hand.write_request(wire::QUEUE_VIDEO, copy(source, target, 64).as_bytes(), 4096);
    hand.ring(wire::QUEUE_VIDEO).offer(0);
    hand.notify(wire::QUEUE_VIDEO);
    let begun = || (hand.status().ok()?.jobs.get() > before).then_some(());
    Ok(poll(wire::QUEUE_VIDEO as u16, begun)?)
}

fn queues_are_served_at_the_same_time(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 256, 0)?;
    let calls = Calls::new(8)?;
    let memory = region(64)?;
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), 64)])?;
    let waiting = session(&mut hand, 1, pin::UUID)?;
    let other = session(&mut hand, 1, pin::UUID)?;
    late_job(&mut hand, handle, handle)?;
    calls.send(&mut hand, 4, endless(1, waiting, 1).as_bytes());
    poll(2, || (hand.status().ok()?.calls.get() == 1).then_some(()))?;
    let answer = hand.checksum(handle, 0, 64)?;
    t.equal(
        Eye::Device,
        "CHECKSUM beside a late job and a call that waits",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    let params = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
    let request = invoke_request(1, other, pin::RETURN, params);
    calls.send(&mut hand, 5, request.as_bytes());
    let head = hand.ring(wire::QUEUE_TEE).wait_used()?.0;
    t.equal(Eye::Device, "the call that comes back first", head, 10);
    let job = hand.ring(wire::QUEUE_VIDEO).poll_used();
    t.equal(Eye::Device, "the late job meanwhile", job, None);
    Ok(())
}

fn inject_none_ends_delays(t: &mut Ctx) -> TestResult {
    const TRIES: usize = 3;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let memory = region(64)?;
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), 64)])?;
    // A guest that stands still for as long as the delay cannot tell, and tries again.
    let mut ended = false;
    for _ in 0..TRIES {
        let begun = Instant::now();
        late_job(&mut hand, handle, handle)?;
        hand.inject(wire::INJECT_FAIL, 5, 0)?;
        t.equal(
            Eye::Device,
            "INJECT_NONE",
            hand.inject(wire::INJECT_NONE, 0, 0)?,
            wire::STATUS_OK,
        );
        hand.ring(wire::QUEUE_VIDEO).wait_used()?;
        ended = begun.elapsed() < LATE;
        let late = status_in(&hand.answer(wire::QUEUE_VIDEO, 4));
        t.equal(Eye::Device, "the late job", late, wire::STATUS_OK);
        let next = hand.job(&copy(handle, handle, 64))?.header.status.get();
        t.equal(Eye::Device, "the job after it", next, wire::STATUS_OK);
        if ended {
            break;
        }
    }
    t.check(Eye::Device, ended, || {
        format!("{TRIES} late jobs ended when their {LATE:?} were over, and not by INJECT_NONE")
    });
    Ok(())
}

fn detach_ends_a_late_job(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let memory = region(128)?;
    let bytes = t.random(128);
    memory.write(0, &bytes);
    let source = hand.attach(wire::DIRECTION_READ, &[(memory.physical(0), 64)])?;
    let target = hand.attach(wire::DIRECTION_WRITE, &[(memory.physical(64), 64)])?;
    late_job(&mut hand, source, target)?;
    let detached = hand.detach(target)?;
    t.equal(
        Eye::Device,
        "DETACH under a late job",
        detached,
        wire::STATUS_OK,
    );
    let job = hand.ring(wire::QUEUE_VIDEO).poll_used();
    t.equal(Eye::Device, "the job when DETACH is answered", job, None);
    hand.inject(wire::INJECT_NONE, 0, 0)?;
    let (_, used) = hand.ring(wire::QUEUE_VIDEO).wait_used()?;
    let answer = hand.answer(wire::QUEUE_VIDEO, used as usize);
    let answer = wire::JobResponse::read_from_prefix(&answer);
    let (answer, _) = answer
        .map_err(|_| Stop::finding(Eye::Device, format!("a job is answered by {used} bytes")))?;
    t.equal(
        Eye::Device,
        "the late job's status, and its fault's reason and handle",
        (
            answer.header.status.get(),
            answer.fault.reason.get(),
            answer.fault.range.handle.get(),
        ),
        (wire::STATUS_DMA_FAULT, wire::FAULT_NOT_ATTACHED, target),
    );
    t.same_bytes(Eye::Cpu, "memory after it", &memory.read(0..128), &bytes);
    Ok(())
}

fn reset_takes_faults_back(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let kinds = [
        (wire::INJECT_DELAY, 10_000_000),
        (wire::INJECT_FAIL, 0),
        (wire::INJECT_KEEP, 0),
        (wire::INJECT_STATUS, 99),
        (wire::INJECT_LOSE, 0),
        (wire::INJECT_LOSE_CALL, 0),
    ];
    for (kind, argument) in kinds {
        let status = hand.inject(kind, 5, argument)?;
        t.equal(
            Eye::Device,
            &format!("INJECT {kind}"),
            status,
            wire::STATUS_OK,
        );
    }
    drop(hand);
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let memory = region(64)?;
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), 64)])?;
    let job = hand.job(&copy(handle, handle, 64))?.header.status.get();
    t.equal(Eye::Device, "a job after a reset", job, wire::STATUS_OK);
    session(&mut hand, 1, pin::UUID)?;
    let detached = hand.detach(handle)?;
    t.equal(
        Eye::Device,
        "DETACH after a reset",
        detached,
        wire::STATUS_OK,
    );
    Ok(())
}

fn calls_of_a_session_take_turns(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 256, 0)?;
    let calls = Calls::new(16)?;
    let app = session(&mut hand, 3, pin::UUID)?;
    calls.send(&mut hand, 10, endless(3, app, 1).as_bytes());
    let seven = [value(tee::PARAM_VALUE_INPUT, 7, 0), NONE, NONE, NONE];
    for (slot, cancel_id) in [(11, 2), (12, 3)] {
        let mut request = invoke_request(3, app, pin::RETURN, seven);
        request.cancel_id = cancel_id.into();
        calls.send(&mut hand, slot, request.as_bytes());
    }
    poll(2, || (hand.status().ok()?.calls.get() == 3).then_some(()))?;
    let none = hand.ring(wire::QUEUE_TEE).poll_used();
    t.equal(
        Eye::Device,
        "calls that come back before the first",
        none,
        None,
    );
    for (what, cancel_id, slots, results) in [
        (
            "one that does not run yet",
            2,
            &[11][..],
            &[(tee::TEEC_ERROR_CANCEL, &[tee::TEEC_ORIGIN_TEE][..])][..],
        ),
        (
            "the first",
            1,
            &[10, 12],
            &[
                // No answer tells whether it has begun to run.
                (
                    tee::TEEC_ERROR_CANCEL,
                    &[tee::TEEC_ORIGIN_TRUSTED_APP, tee::TEEC_ORIGIN_TEE],
                ),
                (7, &[tee::TEEC_ORIGIN_TRUSTED_APP]),
            ],
        ),
    ] {
        let cancel = tee::CancelRequest {
            header: header(tee::OP_CANCEL),
            context: 3.into(),
            session: app.into(),
            cancel_id: cancel_id.into(),
        };
        calls.send(&mut hand, 13, cancel.as_bytes());
        let mut expected: Vec<u32> = slots.iter().map(|slot| 2 * slot).collect();
        expected.push(26);
        let mut heads = Vec::new();
        for _ in 0..expected.len() {
            heads.push(hand.ring(wire::QUEUE_TEE).wait_used()?.0);
        }
        // Answers may pass each other: a call that begins when another has ended can be answered before that.
        heads.sort_unstable();
        t.equal(
            Eye::Device,
            &format!("chains that come back when CANCEL names {what}"),
            heads,
            expected,
        );
        for (slot, (result, origins)) in slots.iter().zip(results) {
            let answer = calls.answer(*slot as u16)?;
            let (ended, origin) = (answer.result.get(), answer.origin.get());
            t.check(
                Eye::Device,
                ended == *result && origins.contains(&origin),
                || {
                    format!(
                        "call {slot} ends with {ended:#x} of origin {origin}, expected {result:#x} of one of {origins:?}"
                    )
                },
            );
        }
    }
    Ok(())
}

fn masked_cancellation_is_not_heeded(t: &mut Ctx) -> TestResult {
    const TRIES: u64 = 20;
    const MS: u64 = 300;
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 64, 0)?;
    let calls = Calls::new(16)?;
    let app = session(&mut hand, 1, pin::UUID)?;
    let wait = [value(tee::PARAM_VALUE_INPUT, MS, 1), NONE, NONE, NONE];
    let mut request = invoke_request(1, app, pin::WAIT, wait);
    request.cancel_id = 9.into();
    let cancel = tee::CancelRequest {
        header: header(tee::OP_CANCEL),
        context: 1.into(),
        session: app.into(),
        cancel_id: 9.into(),
    };
    for tried in 0..TRIES {
        calls.send(&mut hand, 10, request.as_bytes());
        // No answer tells that a call has begun.
        std::thread::sleep(Duration::from_millis(10 * (tried + 1)));
        calls.send(&mut hand, 11, cancel.as_bytes());
        for _ in 0..2 {
            hand.ring(wire::QUEUE_TEE).wait_used()?;
        }
        let answer = calls.answer(10)?;
        let result = (answer.result.get(), answer.origin.get());
        // It did not run yet.
        if result == (tee::TEEC_ERROR_CANCEL, tee::TEEC_ORIGIN_TEE) {
            continue;
        }
        t.equal(
            Eye::Device,
            "result and origin of the call",
            result,
            (tee::TEEC_SUCCESS, tee::TEEC_ORIGIN_TRUSTED_APP),
        );
        return Ok(());
    }
    t.find(
        Eye::Device,
        format!("of {TRIES} calls each was ended before it ran"),
    );
    Ok(())
}

fn applications_know_their_client(t: &mut Ctx) -> TestResult {
    const UUID: [u8; 16] = [
        0x10, 0x21, 0x32, 0x43, 0x54, 0x65, 0x76, 0x87, 0x98, 0xa9, 0xba, 0xcb, 0xdc, 0xed, 0xfe,
        0x0f,
    ];
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    for (login, uuid) in [(0, [0; 16]), (1, UUID), (4, UUID)] {
        let mut request = open_request(1, pin::UUID);
        request.client_login = login.into();
        request.client_uuid = uuid;
        let answer: tee::CallResponse = lanes.ask(wire::QUEUE_TEE, &request)?;
        t.equal(
            Eye::Device,
            &format!("OPEN_SESSION with login {login}"),
            answer.result.get(),
            tee::TEEC_SUCCESS,
        );
        let out = value(tee::PARAM_VALUE_OUTPUT, 0, 0);
        let app = answer.session.get();
        let answer = invoke(&mut lanes, 1, app, pin::CLIENT, [out, out, NONE, NONE])?;
        let [upper, lower] = [0, 8].map(|at| {
            let half: [u8; 8] = std::array::from_fn(|n| uuid[at + n]);
            u64::from_be_bytes(half)
        });
        t.equal(
            Eye::Device,
            "login and UUID that the application knows",
            (
                answer.params[0].a.get(),
                answer.params[1].a.get(),
                answer.params[1].b.get(),
            ),
            (u64::from(login), upper, lower),
        );
    }
    Ok(())
}

fn an_application_with_one_instance_is_busy(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let first = session(&mut hand, 1, secure_storage::UUID)?;
    for context in [1, 2] {
        let second: tee::CallResponse = hand.ask(
            wire::QUEUE_TEE,
            &open_request(context, secure_storage::UUID),
        )?;
        t.equal(
            Eye::Device,
            &format!("a second session, of context {context}"),
            second.result.get(),
            tee::TEEC_ERROR_BUSY,
        );
    }
    close(&mut hand, 1, first)?;
    let third = open(&mut hand, 2, secure_storage::UUID)?;
    t.check(Eye::Device, third.is_ok(), || {
        format!("a session after CLOSE_SESSION: {third:x?}")
    });
    Ok(())
}

fn a_memref_can_be_kept(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut hand = stage.hand(OFFERED, 16, 0)?;
    let app = session(&mut hand, 1, pin::UUID)?;
    let memory = region(PAGE)?;
    let bytes = t.random(PAGE);
    memory.write(0, &bytes);
    let handle = hand.attach(wire::DIRECTION_BOTH, &[(memory.physical(0), PAGE as u64)])?;
    let out = value(tee::PARAM_VALUE_OUTPUT, 0, 0);
    let kept = [
        memref(tee::PARAM_MEMREF_INOUT, 10, 100, handle),
        out,
        NONE,
        NONE,
    ];
    let answer: tee::CallResponse =
        hand.ask(wire::QUEUE_TEE, &invoke_request(1, app, pin::HOLD, kept))?;
    let number = answer.params[1].a.get();
    let look = [
        value(tee::PARAM_VALUE_INPUT, number, 0),
        value(tee::PARAM_VALUE_INPUT, 5, 20),
        out,
        NONE,
    ];
    let look = invoke_request(1, app, pin::HELD_CHECKSUM, look);
    let answer: tee::CallResponse = hand.ask(wire::QUEUE_TEE, &look)?;
    t.equal(
        Eye::Device,
        "result and CRC32C of a part of what was kept",
        (answer.result.get(), answer.params[2].a.get()),
        (
            tee::TEEC_SUCCESS,
            u64::from(pinbed_guest::harness::ctx::crc(&bytes[15..35])),
        ),
    );
    hand.detach(handle)?;
    let answer: tee::CallResponse = hand.ask(wire::QUEUE_TEE, &look)?;
    t.equal(
        Eye::Device,
        "result and fault after DETACH",
        (answer.result.get(), answer.fault.reason.get()),
        (tee::TEEC_ERROR_SECURITY, wire::FAULT_NOT_ATTACHED),
    );
    Ok(())
}
