// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sessions, memrefs, cancellation, panics, concurrency, and requests that make no sense.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use pinbed_abi::ta::{acipher, ecdh, ecdsa, hello_world, pin, secure_storage};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use zerocopy::{FromBytes, IntoBytes};

use super::rig::*;
use super::{MAX_CALLS, MAX_SESSIONS, Submitted};

const NO_SESSION: (u32, u32) = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE);
const CANCELLED: (u32, u32) = (TEEC_ERROR_CANCEL, TEEC_ORIGIN_TRUSTED_APP);
const CANCELLED_EARLY: (u32, u32) = (TEEC_ERROR_CANCEL, TEEC_ORIGIN_TEE);
const DEAD: (u32, u32) = (TEEC_ERROR_TARGET_DEAD, TEEC_ORIGIN_TEE);

const ECHO: [Param; 4] = [
    value_in(1, 2),
    VALUE_OUT,
    param(PARAM_VALUE_INOUT, 3, 4, 5),
    NONE,
];

/// Parameters of WAIT: until cancelled.
const FOREVER: [Param; 4] = [value_in(0, 0), NONE, NONE, NONE];
const FOREVER_AND_DEAF: [Param; 4] = [value_in(0, 1), NONE, NONE, NONE];

fn wait(ms: u64) -> [Param; 4] {
    [value_in(ms, 0), NONE, NONE, NONE]
}

/// Waits until `happened`; a test that hangs says less than one that fails.
#[track_caller]
fn eventually(happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it did not happen"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the session's application has begun with a call.
fn runs(session: Session) -> bool {
    session.rig.engine.tee.sessions.is_busy(session.id)
}

/// The reply of a call that is about to end. One that does not end is ended, so that the test fails and does not hang.
#[track_caller]
fn ended(rig: &Rig, call: ScopedJoinHandle<Reply>) -> Reply {
    let begin = Instant::now();
    while !call.is_finished() {
        if begin.elapsed() > Duration::from_secs(20) {
            rig.engine.reset();
            panic!("the call did not end");
        }
        thread::sleep(Duration::from_millis(1));
    }
    call.join().unwrap()
}

/// Nothing is left behind.
#[track_caller]
fn assert_empty(rig: &Rig) {
    let state = format!("{:?}", rig.engine.tee.sessions);
    assert_eq!(state, "Sessions { sessions: [], calls: {} }");
}

#[test]
fn status_counts_what_is_open_and_under_way() {
    let rig = Rig::new();
    let count = || {
        let status = rig.status();
        (status.sessions.get(), status.calls.get())
    };
    assert_eq!(count(), (0, 0));
    let session = rig.open(1, pin::UUID);
    rig.open(2, pin::UUID);
    assert_eq!(count(), (2, 0));
    let call = session.begin(pin::ECHO, ECHO);
    assert_eq!(count(), (2, 1));
    rig.run(call).ok();
    assert_eq!(count(), (2, 0));
    rig.control(&close_context(2));
    assert_eq!(count(), (1, 0));
}

#[test]
fn an_unknown_application_is_not_found() {
    let rig = Rig::new();
    let reply = rig.call(&open(1, [7; 16]));
    assert_eq!(
        reply.verdict(),
        (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TEE)
    );
    assert_eq!(reply.session, 0);
    assert_empty(&rig);
}

#[test]
fn an_unknown_login_is_refused() {
    let rig = Rig::new();
    for (login, known) in [
        (0, true),
        (3, false),
        (6, true),
        (7, false),
        (0x8000_0000, true),
    ] {
        let mut open = open(1, pin::UUID);
        open.client_login = login.into();
        assert_eq!(rig.call(&open).verdict() == DONE, known, "{login:#x}");
    }
}

#[test]
fn a_session_ends_when_it_is_closed() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    session.invoke(pin::ECHO, ECHO).ok();
    assert_eq!(session.close(), TEEC_SUCCESS);
    assert_eq!(session.invoke(pin::ECHO, ECHO).verdict(), NO_SESSION);
    assert_eq!(session.cancel(), TEEC_ERROR_BAD_PARAMETERS);
    assert_eq!(session.close(), TEEC_ERROR_BAD_PARAMETERS);
    let never = Session { id: 77, ..session };
    assert_eq!(never.invoke(pin::ECHO, ECHO).verdict(), NO_SESSION);
    assert_empty(&rig);
}

#[test]
fn a_session_is_no_other_clients() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let foreign = Session {
        context: 2,
        ..session
    };
    assert_eq!(foreign.invoke(pin::ECHO, ECHO).verdict(), NO_SESSION);
    assert_eq!(foreign.cancel(), TEEC_ERROR_BAD_PARAMETERS);
    assert_eq!(foreign.close(), TEEC_ERROR_BAD_PARAMETERS);
    session.invoke(pin::ECHO, ECHO).ok();
}

#[test]
fn a_session_that_its_application_refuses_does_not_come_to_be() {
    let rig = Rig::new();
    let mut open = open(1, pin::UUID);
    open.params[0] = value_in(0, 0);
    let reply = rig.call(&open);
    assert_eq!(
        reply.verdict(),
        (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP)
    );
    assert_eq!(reply.session, 0);
    assert_empty(&rig);
}

#[test]
fn a_session_is_not_there_before_it_is_open() {
    let rig = Rig::new();
    let call = rig.begin(&open(1, pin::UUID));
    // The id that it is going to have.
    let session = Session {
        rig: &rig,
        context: 1,
        id: 1,
    };
    let Submitted::Answer(answer) = rig.submit(&session.request(pin::ECHO, ECHO)) else {
        panic!("taken");
    };
    assert_eq!(Reply::of(&answer).verdict(), NO_SESSION);
    assert_eq!(session.close(), TEEC_ERROR_BAD_PARAMETERS);
    assert_eq!(rig.run(call).ok().session, session.id);
    session.invoke(pin::ECHO, ECHO).ok();
    // One that is never run leaves none.
    drop(rig.begin(&open(1, pin::UUID)));
    session.close();
    assert_empty(&rig);
}

#[test]
fn closing_a_context_closes_its_sessions_only() {
    let rig = Rig::new();
    let mine = [rig.open(1, pin::UUID), rig.open(1, hello_world::UUID)];
    let other = rig.open(2, pin::UUID);
    assert_eq!(rig.control(&close_context(1)), TEEC_SUCCESS);
    for session in mine {
        assert_eq!(session.invoke(pin::ECHO, ECHO).verdict(), NO_SESSION);
    }
    other.invoke(pin::ECHO, ECHO).ok();
    assert_eq!(rig.control(&close_context(2)), TEEC_SUCCESS);
    assert_eq!(rig.control(&close_context(2)), TEEC_SUCCESS);
    assert_empty(&rig);
    // The driver may use the number again.
    rig.open(1, pin::UUID).invoke(pin::ECHO, ECHO).ok();
}

#[test]
fn sessions_and_calls_are_bounded() {
    let rig = Rig::new();
    let sessions: Vec<_> = (0..MAX_SESSIONS).map(|_| rig.open(1, pin::UUID)).collect();
    let full = (TEEC_ERROR_OUT_OF_MEMORY, TEEC_ORIGIN_TEE);
    assert_eq!(rig.call(&open(1, pin::UUID)).verdict(), full);
    sessions[7].close();
    rig.open(1, pin::UUID);
    let mut calls: Vec<_> = (0..MAX_CALLS)
        .map(|n| sessions[100 + n].begin(pin::ECHO, ECHO))
        .collect();
    let busy = (TEEC_ERROR_BUSY, TEEC_ORIGIN_TEE);
    assert_eq!(sessions[0].invoke(pin::ECHO, ECHO).verdict(), busy);
    sessions[0].close();
    assert_eq!(rig.call(&open(1, pin::UUID)).verdict(), busy);
    calls.pop();
    sessions[1].invoke(pin::ECHO, ECHO).ok();
    rig.open(1, pin::UUID);
}

#[test]
fn a_memref_to_no_buffer_is_refused_and_reported() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let memref = param(PARAM_MEMREF_INPUT, 0, 4, 999);
    let call = session.begin(pin::CHECKSUM, [memref, VALUE_OUT, NONE, NONE]);
    let answer = rig.answer(call);
    let reply = Reply::of(&answer);
    assert_eq!(
        reply.verdict(),
        (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE)
    );
    assert_eq!(reply.fault.reason, wire::FAULT_NOT_ATTACHED);
    assert_eq!(answer.events.len(), 1);
    assert_eq!(answer.events[0].kind, wire::EVENT_DMA_FAULT);
    assert_eq!(answer.events[0].cookie, COOKIE);
    assert_eq!(answer.events[0].fault, reply.fault);
}

#[test]
fn a_memref_past_its_buffers_end_is_refused_and_touches_nothing() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let buffer = rig.room(100);
    for (offset, size) in [(0, 101), (1, 100), (101, 0), (u64::MAX, 2), (2, u64::MAX)] {
        for attr in [PARAM_MEMREF_OUTPUT, PARAM_MEMREF_INOUT] {
            let memref = buffer.part(attr, offset, size);
            let call = session.begin(pin::FILL, [memref, value_in(0, 0), NONE, NONE]);
            let answer = rig.answer(call);
            let reply = Reply::of(&answer);
            assert_eq!(reply.verdict(), (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE));
            assert_eq!(reply.fault.reason, wire::FAULT_OUT_OF_BOUNDS);
            assert_eq!(reply.fault.range.offset, offset);
            assert_eq!(answer.events.len(), 1);
        }
    }
    assert_eq!(rig.get(&buffer), [0xee; 100]);
    let memref = buffer.part(PARAM_MEMREF_OUTPUT, 100, 0);
    session
        .invoke(pin::FILL, [memref, value_in(0, 0), NONE, NONE])
        .ok();
}

#[test]
fn a_parameter_of_no_known_kind_is_refused() {
    let rig = Rig::new();
    let session = rig.open(1, secure_storage::UUID);
    for attr in [4, 8, 0x105, 1 << 32 | 5] {
        let params = [NONE, NONE, NONE, param(attr, 0, 0, 0)];
        let verdict = session.invoke(secure_storage::READ, params).verdict();
        assert_eq!(verdict, (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE));
    }
}

#[test]
fn an_application_that_panics_is_dead_and_the_rest_goes_on() {
    let rig = Rig::new();
    let (session, other) = (rig.open(1, pin::UUID), rig.open(1, pin::UUID));
    let waits = session.begin(pin::ECHO, ECHO);
    let panics = session.begin(pin::PANIC, NO_PARAMS);
    let late = session.begin(pin::ECHO, ECHO);
    assert_eq!(rig.run(waits).verdict(), DONE);
    assert_eq!(rig.run(panics).verdict(), DEAD);
    assert_eq!(rig.run(late).verdict(), DEAD);
    assert_eq!(session.invoke(pin::ECHO, ECHO).verdict(), DEAD);
    other.invoke(pin::ECHO, ECHO).ok();
    rig.open(1, pin::UUID).invoke(pin::ECHO, ECHO).ok();
    assert_eq!(session.close(), TEEC_SUCCESS);
    assert_eq!(session.invoke(pin::ECHO, ECHO).verdict(), NO_SESSION);
}

#[test]
fn a_dead_single_instance_can_be_opened_again_once_closed() {
    let rig = Rig::new();
    let session = rig.open(1, secure_storage::UUID);
    let long = rig.room(65).all(PARAM_MEMREF_INPUT);
    let reply = session.invoke(secure_storage::DELETE, [long, NONE, NONE, NONE]);
    assert_eq!(reply.verdict(), DEAD);
    session.close();
    rig.open(1, secure_storage::UUID);
}

#[test]
fn a_call_that_waits_is_cancelled() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let call = session.begin(pin::WAIT, FOREVER);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(call));
        eventually(|| runs(session));
        // Other cancellations than its own do not touch it.
        for (context, id, cancel_id) in [(1, session.id, 1), (1, 0, 0)] {
            assert_eq!(rig.control(&cancel(context, id, cancel_id)), TEEC_SUCCESS);
        }
        thread::sleep(Duration::from_millis(50));
        assert!(!running.is_finished());
        assert_eq!(session.cancel(), TEEC_SUCCESS);
        assert_eq!(ended(&rig, running).verdict(), CANCELLED);
    });
    // The cancellation was for that call only.
    session.invoke(pin::WAIT, wait(1)).ok();
}

#[test]
fn a_cancellation_finds_a_call_that_does_not_run_yet() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let call = session.begin(pin::ECHO, ECHO);
    session.cancel();
    assert_eq!(rig.run(call).verdict(), CANCELLED_EARLY);
    session.invoke(pin::ECHO, ECHO).ok();

    let mut open = open(1, secure_storage::UUID);
    open.cancel_id = 5.into();
    // Other clients' cancellations do not.
    let call = rig.begin(&open);
    assert_eq!(rig.control(&cancel(2, 0, 5)), TEEC_SUCCESS);
    let id = rig.run(call).ok().session;
    Session { id, ..session }.close();

    let call = rig.begin(&open);
    assert_eq!(rig.control(&cancel(1, 0, 5)), TEEC_SUCCESS);
    let reply = rig.run(call);
    assert_eq!((reply.verdict(), reply.session), (CANCELLED_EARLY, 0));
    rig.open(1, secure_storage::UUID);
}

#[test]
fn a_call_is_cancelled_by_its_id() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let numbered = |cancel_id: u32| InvokeRequest {
        cancel_id: cancel_id.into(),
        ..session.request(pin::ECHO, ECHO)
    };
    let (one, two) = (rig.begin(&numbered(1)), rig.begin(&numbered(2)));
    rig.control(&cancel(1, session.id, 2));
    assert_eq!(rig.run(one).verdict(), DONE);
    assert_eq!(rig.run(two).verdict(), CANCELLED_EARLY);
}

#[test]
fn a_cancelled_fill_writes_nothing() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let buffer = rig.room(100);
    let memref = buffer.all(PARAM_MEMREF_OUTPUT);
    let call = session.begin(pin::FILL, [memref, value_in(0, 60_000), NONE, NONE]);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(call));
        eventually(|| runs(session));
        session.cancel();
        assert_eq!(ended(&rig, running).result, TEEC_ERROR_CANCEL);
    });
    assert_eq!(rig.get(&buffer), [0xee; 100]);
}

#[test]
fn a_deaf_call_outlasts_a_cancellation_but_not_its_client() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let call = session.begin(pin::WAIT, FOREVER_AND_DEAF);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(call));
        eventually(|| runs(session));
        session.cancel();
        let closing = scope.spawn(|| session.close());
        thread::sleep(Duration::from_millis(50));
        assert!(!running.is_finished() && !closing.is_finished());
        rig.control(&close_context(1));
        assert_eq!(ended(&rig, running).result, TEEC_ERROR_CANCEL);
        assert_eq!(closing.join().unwrap(), TEEC_SUCCESS);
    });
    assert_empty(&rig);
}

#[test]
fn closing_a_session_ends_its_calls() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let running = session.begin(pin::WAIT, FOREVER);
    let queued = session.begin(pin::ECHO, ECHO);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(running));
        let queued = scope.spawn(|| rig.run(queued));
        eventually(|| runs(session));
        assert_eq!(session.close(), TEEC_SUCCESS);
        assert_eq!(ended(&rig, running).result, TEEC_ERROR_CANCEL);
        // It began before, so that it is cancelled whether it had its turn or not.
        assert_eq!(ended(&rig, queued).result, TEEC_ERROR_CANCEL);
    });
    assert_empty(&rig);
}

#[test]
fn closing_waits_for_the_call_that_runs() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let call = session.begin(pin::WAIT, [value_in(200, 1), NONE, NONE, NONE]);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(call));
        eventually(|| runs(session));
        let closing = scope.spawn(|| {
            assert_eq!(session.close(), TEEC_SUCCESS);
            assert_eq!(rig.status().calls, 0, "CLOSE did not wait");
        });
        eventually(|| session.invoke(pin::ECHO, ECHO).verdict() == NO_SESSION);
        assert_eq!(session.close(), TEEC_ERROR_BAD_PARAMETERS, "closed twice");
        assert_eq!(ended(&rig, running).verdict(), DONE);
        closing.join().unwrap();
    });
    assert_empty(&rig);
}

#[test]
fn a_single_instance_is_single_while_the_last_one_ends() {
    let rig = Rig::new();
    let session = rig.open(1, secure_storage::UUID);
    // Its call is under way: it has its turn, and is stopped at its first access.
    let at_work = AtomicBool::new(false);
    let released = AtomicBool::new(false);
    let go_on = || {
        at_work.store(true, Ordering::SeqCst);
        while !released.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        true
    };
    let id = rig.buffer(b"object").all(PARAM_MEMREF_INPUT);
    let call = session.begin(secure_storage::DELETE, [id, NONE, NONE, NONE]);
    thread::scope(|scope| {
        let running = scope.spawn(|| Reply::of(&rig.engine.run(&rig.memory, call, &go_on)));
        eventually(|| at_work.load(Ordering::SeqCst));
        rig.control(&close_context(1));
        // The client is gone, its instance is not yet: the next one waits.
        let next = rig.begin(&open(2, secure_storage::UUID));
        let next = scope.spawn(|| rig.run(next));
        thread::sleep(Duration::from_millis(50));
        let early = next.is_finished();
        released.store(true, Ordering::SeqCst);
        assert_eq!(ended(&rig, running).result, TEEC_ERROR_CANCEL);
        ended(&rig, next).ok();
        assert!(!early, "two instances at a time");
    });
}

#[test]
fn a_reset_frees_the_slots_of_calls_that_still_end() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let calls: Vec<_> = (0..MAX_CALLS)
        .map(|_| session.begin(pin::WAIT, FOREVER))
        .collect();
    rig.engine.reset();
    let session = rig.open(1, pin::UUID);
    session.invoke(pin::ECHO, ECHO).ok();
    for call in calls {
        assert_eq!(rig.run(call).result, TEEC_ERROR_CANCEL);
    }
    session.close();
    assert_empty(&rig);
}

#[test]
fn login_and_client_uuid_reach_the_application() {
    let rig = Rig::new();
    let mut request = open(1, pin::UUID);
    request.client_login = 1.into();
    request.client_uuid = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let id = rig.call(&request).ok().session;
    let session = Session {
        rig: &rig,
        context: 1,
        id,
    };
    let reply = session.invoke(pin::CLIENT, [VALUE_OUT, VALUE_OUT, NONE, NONE]);
    assert_eq!(reply.ok().value(0), (1, 0, 0));
    let uuid = (0x0102_0304_0506_0708, 0x090a_0b0c_0d0e_0f10, 0);
    assert_eq!(reply.value(1), uuid);
}

#[test]
fn a_reset_ends_all_calls_and_they_touch_nothing_more() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let buffer = rig.room(100);
    let memref = buffer.all(PARAM_MEMREF_OUTPUT);
    let late = rig.open(2, pin::UUID);
    let late = late.begin(pin::FILL, [memref, value_in(0, 0), NONE, NONE]);
    let deaf = session.begin(pin::WAIT, FOREVER_AND_DEAF);
    thread::scope(|scope| {
        let deaf = scope.spawn(|| rig.run(deaf));
        eventually(|| runs(session));
        rig.engine.reset();
        assert_eq!(ended(&rig, deaf).result, TEEC_ERROR_CANCEL);
        assert_ne!(rig.run(late).result, TEEC_SUCCESS);
    });
    assert_eq!(rig.get(&buffer), [0xee; 100]);
    assert_empty(&rig);
}

#[test]
fn a_call_in_the_midst_of_its_work_ends_with_its_client() {
    const LENGTH: usize = 20 << 20;
    let rig = Rig::new();
    let buffer = rig.buffer(&vec![0; LENGTH]);
    let memref = buffer.all(PARAM_MEMREF_OUTPUT);
    // The end may come too early, or too late.
    let cut_short = (1..100u8).any(|round| {
        let session = rig.open(1, pin::UUID);
        let pattern = value_in(u64::from(round) * 0x0101_0101, 0);
        let call = session.begin(pin::FILL, [memref, pattern, NONE, NONE]);
        thread::scope(|scope| {
            let running = scope.spawn(|| rig.run(call));
            eventually(|| runs(session) || running.is_finished());
            thread::sleep(Duration::from_micros(100) * round.into());
            rig.control(&close_context(1));
            let cancelled = ended(&rig, running).result == TEEC_ERROR_CANCEL;
            let bytes = rig.get(&buffer);
            cancelled && bytes[0] == round && bytes[LENGTH - 1] != round
        })
    });
    assert!(cut_short);
}

#[test]
fn a_session_runs_one_call_at_a_time_in_their_order() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let calls: Vec<_> = (0..8).map(|_| session.begin(pin::WAIT, wait(10))).collect();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        // The last one first: each must wait for those before it.
        for (n, call) in calls.into_iter().enumerate().rev() {
            let (rig, done) = (&rig, &done);
            scope.spawn(move || {
                rig.run(call).ok();
                assert_eq!(done.fetch_add(1, Ordering::SeqCst), n);
            });
            thread::sleep(Duration::from_millis(2));
        }
    });
}

#[test]
fn a_call_that_waits_holds_up_nobody_else() {
    let rig = Rig::new();
    let blocked = rig.open(1, pin::UUID);
    let call = blocked.begin(pin::WAIT, FOREVER);
    thread::scope(|scope| {
        let running = scope.spawn(|| rig.run(call));
        eventually(|| runs(blocked));
        for context in 1..4 {
            let other = rig.open(context, pin::UUID);
            other.invoke(pin::ECHO, ECHO).ok();
            let buffer = rig.room(10);
            rig.detach(&buffer);
            other.close();
        }
        assert!(!running.is_finished());
        blocked.cancel();
        ended(&rig, running);
    });
}

#[test]
fn clients_that_come_and_go_at_once_leave_nothing_behind() {
    const CLIENTS: u64 = 8;
    const ROUNDS: usize = 150;
    let rig = Rig::new();
    let buffer = rig.room(5000);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|context| {
                let rig = &rig;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let reply = rig.call(&open(context, pin::UUID));
                        if reply.result == TEEC_ERROR_CANCEL {
                            continue;
                        }
                        let session = Session {
                            rig,
                            context,
                            id: reply.ok().session,
                        };
                        let memref = buffer.all(PARAM_MEMREF_INOUT);
                        let requests = [
                            session.request(pin::CHECKSUM, [memref, VALUE_OUT, NONE, NONE]),
                            session.request(pin::WAIT, FOREVER),
                            session.request(pin::FILL, [memref, value_in(0, 1), NONE, NONE]),
                        ];
                        thread::scope(|scope| {
                            // The calls race the end of the session, one way or another.
                            for request in requests {
                                scope.spawn(move || {
                                    let verdict = rig.call(&request).verdict();
                                    let expected = [DONE, CANCELLED, CANCELLED_EARLY, NO_SESSION];
                                    assert!(expected.contains(&verdict), "{verdict:x?}");
                                });
                            }
                            match round % 3 {
                                0 => drop(session.close()),
                                1 => drop(rig.control(&close_context(context))),
                                _ => {
                                    session.cancel();
                                    thread::yield_now();
                                    session.close();
                                }
                            }
                        });
                    }
                })
            })
            .collect();
        let (rig, over) = (&rig, &over);
        // Someone else's work goes on meanwhile.
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let session = rig.open(99, hello_world::UUID);
                let params = [param(PARAM_VALUE_INOUT, 1, 0, 0), NONE, NONE, NONE];
                session.invoke(hello_world::INCREMENT, params).ok();
                assert_eq!(session.close(), TEEC_SUCCESS);
            }
        });
        eventually(|| clients.iter().all(|client| client.is_finished()));
        over.store(true, Ordering::Relaxed);
    });
    assert_empty(&rig);
}

/// Status of a request that makes no sense.
fn status(rig: &Rig, request: &[u8], room: usize) -> Option<u32> {
    match rig.engine.tee(request, room) {
        Submitted::Call(call) => panic!("taken: {call:?}"),
        Submitted::Answer(answer) => {
            let (header, rest) = wire::ResponseHeader::read_from_prefix(&answer.bytes).ok()?;
            assert!(answer.bytes.len() <= room);
            assert!(rest.iter().all(|byte| *byte == 0));
            Some(header.status.get())
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_invalid() {
    let rig = Rig::new();
    let session = rig.open(1, pin::UUID);
    let room = size_of::<CallResponse>();
    let open = open(1, pin::UUID);
    let invoke = session.request(pin::ECHO, ECHO);
    let cancel = cancel(1, session.id, 0);
    for request in [open.as_bytes(), invoke.as_bytes(), cancel.as_bytes()] {
        let short = &request[..request.len() - 1];
        assert_eq!(status(&rig, short, room), Some(wire::STATUS_INVALID));
        let long = [request, &[0]].concat();
        assert_eq!(status(&rig, &long, room), Some(wire::STATUS_INVALID));
        let mut reserved = request.to_vec();
        reserved[4] = 1;
        assert_eq!(status(&rig, &reserved, room), Some(wire::STATUS_INVALID));
    }
    let mut reserved = invoke;
    reserved.reserved = 1.into();
    assert_eq!(
        status(&rig, reserved.as_bytes(), room),
        Some(wire::STATUS_INVALID)
    );
    assert_eq!(
        status(&rig, invoke.as_bytes(), room - 1),
        Some(wire::STATUS_INVALID)
    );
    assert_eq!(status(&rig, invoke.as_bytes(), 0), None);
    assert_eq!(status(&rig, &invoke.as_bytes()[..15], room), None);
    for op in [0, wire::OP_COPY, OP_CLOSE_CONTEXT + 1] {
        let mut unknown = invoke;
        unknown.header.op = op.into();
        assert_eq!(
            status(&rig, unknown.as_bytes(), room),
            Some(wire::STATUS_UNSUPPORTED)
        );
    }
    // Nothing of it was taken for a call.
    session.invoke(pin::ECHO, ECHO).ok();
    session.close();
    assert_empty(&rig);
}

/// Mostly one that an application may take: else hardly a call would get to one.
fn hostile_param() -> impl Strategy<Value = Param> {
    let wild = || prop_oneof![0u64..20, any::<u64>()];
    prop_oneof![
        4 => Just(NONE),
        3 => (1u64..4, wild(), wild()).prop_map(|(attr, a, b)| param(attr, a, b, 0)),
        3 => (5u64..8, 0u64..20, 0u64..40).prop_map(|(attr, offset, size)| param(attr, offset, size, 1)),
        1 => (prop_oneof![0u64..8, any::<u64>()], wild(), wild(), wild())
            .prop_map(|(attr, a, b, c)| param(attr, a, b, c)),
    ]
}

type HostileCall = (u32, usize, [u8; 8], [Param; 4]);

fn hostile_calls() -> impl Strategy<Value = Vec<HostileCall>> {
    let op = prop_oneof![2 => Just(OP_INVOKE), 1 => 0x0300u32..0x0306];
    let params = prop::array::uniform4(hostile_param());
    prop::collection::vec((op, 0usize..14, any::<[u8; 8]>(), params), 1..20)
}

/// Makes the calls, and returns the sessions whose applications had a say in the answer.
fn call_all(rig: &Rig, calls: Vec<HostileCall>, room: usize) -> Vec<usize> {
    let buffer = rig.room(64);
    assert_eq!(buffer.handle, 1);
    let uuids: Vec<_> = super::ta::tests::uuids().collect();
    for uuid in &uuids {
        // The calls go for these sessions, 1 to 12, for none, and for the first that a call opens.
        rig.open(0, *uuid);
    }
    let mut reached = Vec::new();
    for (op, n, bytes, params) in calls {
        let header = wire::RequestHeader {
            op: op.into(),
            ..Default::default()
        };
        // The bytes choose the function; small ones are more likely to exist.
        let function = u32::from(bytes[0] % 16);
        let request = match op {
            OP_OPEN_SESSION => OpenSessionRequest {
                header,
                uuid: uuids[n % uuids.len()],
                client_login: u32::from(bytes[1] % 8).into(),
                params,
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
            OP_INVOKE => InvokeRequest {
                header,
                session: (n as u32).into(),
                function: function.into(),
                params,
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
            _ => [header.as_bytes(), &bytes, &[n as u8, 0, 0, 0, 0, 0, 0, 0]].concat(),
        };
        // One that may take its time.
        let uuid = uuids.get(n.wrapping_sub(1)).copied().unwrap_or_default();
        let long = [
            (acipher::UUID, acipher::GENERATE_KEY),
            (ecdh::UUID, ecdh::DERIVE_SELFTEST),
            (ecdsa::UUID, ecdsa::GENERATE_KEY),
            (pin::UUID, pin::WAIT),
            (pin::UUID, pin::FILL),
        ];
        match rig.engine.tee(&request, room) {
            Submitted::Answer(answer) => assert!(answer.bytes.len() <= room),
            Submitted::Call(call) if op == OP_INVOKE && long.contains(&(uuid, function)) => {
                drop(call);
            }
            Submitted::Call(call) => {
                let answer = rig.answer(call);
                let response = CallResponse::read_from_bytes(&answer.bytes).unwrap();
                if op == OP_INVOKE && response.origin.get() == TEEC_ORIGIN_TRUSTED_APP {
                    reached.push(n);
                }
            }
        }
    }
    reached
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever is in a request, it is answered, and the next client is served.
    #[test]
    fn no_request_harms_the_next(
        calls in hostile_calls(),
        tail in prop::collection::vec(any::<u8>(), 0..300),
        room in prop_oneof![4 => Just(size_of::<CallResponse>()), 1 => 0usize..300],
    ) {
        let rig = Rig::new();
        call_all(&rig, calls, room);
        match rig.engine.tee(&tail, room) {
            Submitted::Answer(answer) => prop_assert!(answer.bytes.len() <= room),
            Submitted::Call(_) => {}
        }
        rig.control(&close_context(0));
        rig.open(1, pin::UUID).invoke(pin::ECHO, ECHO).ok();
    }
}

/// What is called above is no good if it does not get to all applications.
#[test]
fn hostile_calls_get_far_enough() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reached = [0; 14];
    for _ in 0..60 {
        let calls = hostile_calls().new_tree(&mut runner).unwrap().current();
        for session in call_all(&Rig::new(), calls, size_of::<CallResponse>()) {
            reached[session] += 1;
        }
    }
    assert!(
        reached[1..=12].iter().all(|calls| *calls >= 3),
        "{reached:?}"
    );
    assert_eq!(reached[0], 0);
}
