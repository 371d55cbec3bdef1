// SPDX-License-Identifier: Apache-2.0 OR MIT
//! TEE calls over a real socket: answers out of order, and calls that the rings stop under.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::thread;
use std::time::Duration;

use pinbed_abi::ta::{Uuid, pin, random};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use support::{F_NEXT, F_WRITE, FREE, Host, RING_SIZE, eventually, header};
use vhost::vhost_user::VhostUserFrontend;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const CONTEXT: u64 = 7;
const NO_PARAMS: [Param; 4] = [param(PARAM_NONE, 0, 0, 0); 4];

const fn param(attr: u64, a: u64, b: u64, c: u64) -> Param {
    Param {
        attr: U64::new(attr),
        a: U64::new(a),
        b: U64::new(b),
        c: U64::new(c),
    }
}

fn first(param: Param) -> [Param; 4] {
    let mut params = NO_PARAMS;
    params[0] = param;
    params
}

/// WAIT for this long; zero is until cancelled.
fn wait(ms: u64) -> [Param; 4] {
    first(param(PARAM_VALUE_INPUT, ms, 0, 0))
}

fn open(host: &mut Host, uuid: Uuid) -> u32 {
    let request = OpenSessionRequest {
        header: header(OP_OPEN_SESSION),
        context: CONTEXT.into(),
        uuid,
        ..Default::default()
    };
    let answer: CallResponse = host.ask(wire::QUEUE_TEE, &request);
    assert_eq!(answer.result, TEEC_SUCCESS);
    answer.session.get()
}

fn invoke(session: u32, function: u32, params: [Param; 4]) -> InvokeRequest {
    InvokeRequest {
        header: header(OP_INVOKE),
        context: CONTEXT.into(),
        session: session.into(),
        function: function.into(),
        params,
        ..Default::default()
    }
}

fn cancel(session: u32) -> CancelRequest {
    CancelRequest {
        header: header(OP_CANCEL),
        context: CONTEXT.into(),
        session: session.into(),
        ..Default::default()
    }
}

/// Sends a request that may stay unanswered for a while, and returns its head. `Host::request` has descriptors 0 and 1.
fn send(host: &mut Host, slot: u16, request: &(impl IntoBytes + Immutable)) -> u32 {
    let head = 2 + 2 * slot;
    let at = answer_at(u32::from(head)) - 0x1000;
    host.write(at, request.as_bytes());
    let length = request.as_bytes().len() as u32;
    host.descriptor(wire::QUEUE_TEE, head, at, length, F_NEXT, head + 1);
    host.descriptor(wire::QUEUE_TEE, head + 1, at + 0x1000, 0x1000, F_WRITE, 0);
    host.offer(wire::QUEUE_TEE, head);
    host.kick(wire::QUEUE_TEE);
    u32::from(head)
}

fn answer_at(head: u32) -> u64 {
    FREE + 0x20_0000 + 0x2000 * u64::from(head)
}

fn answer<R: FromBytes>(host: &Host, head: u32) -> R {
    R::read_from_bytes(&host.read(answer_at(head), size_of::<R>())).unwrap()
}

/// Cancels a session's call and returns its answer. Which of the two answers is first is anybody's guess.
fn cancelled(host: &mut Host, session: u32, call: u32) -> CallResponse {
    let cancel = send(host, 20, &cancel(session));
    let mut heads = [0, 0].map(|_| {
        let (head, _) = eventually("an answer", || host.poll_used(wire::QUEUE_TEE));
        head
    });
    heads.sort();
    assert_eq!(heads, [call, cancel]);
    assert_eq!(answer::<ResultResponse>(host, cancel).result, TEEC_SUCCESS);
    answer(host, call)
}

/// The call of the TEE queue that is answered next.
fn answered(host: &mut Host) -> (u32, CallResponse) {
    let (head, length) = host.used(wire::QUEUE_TEE);
    assert_eq!(length as usize, size_of::<CallResponse>());
    (head, answer(host, head))
}

fn attach(host: &mut Host, length: u64) -> u64 {
    host.attach(wire::DIRECTION_BOTH, &[(FREE, length)])
}

#[test]
fn a_call_that_waits_holds_up_neither_queue() {
    for event_idx in [false, true] {
        let mut host = Host::new(event_idx);
        let (blocked, other) = (open(&mut host, pin::UUID), open(&mut host, random::UUID));
        let buffer = attach(&mut host, 4096);
        let waits = send(&mut host, 0, &invoke(blocked, pin::WAIT, wait(0)));
        for _ in 0..50 {
            let memref = param(PARAM_MEMREF_OUTPUT, 0, 4096, buffer);
            let fill = send(
                &mut host,
                1,
                &invoke(other, random::GENERATE, first(memref)),
            );
            let (head, response) = answered(&mut host);
            assert_eq!(head, fill);
            assert_eq!(response.result, TEEC_SUCCESS);
            assert_eq!(host.status().buffers.get(), 1);
        }
        let response = cancelled(&mut host, blocked, waits);
        assert_eq!(response.header.cookie.get(), 0x5eed);
        assert_eq!(response.result, TEEC_ERROR_CANCEL);
        assert_eq!(response.origin, TEEC_ORIGIN_TRUSTED_APP);
    }
}

#[test]
fn calls_that_fill_the_ring_end_with_their_client() {
    let mut host = Host::new(true);
    let session = open(&mut host, pin::UUID);
    let room = RING_SIZE / 2 - 2;
    for slot in 0..room {
        send(&mut host, slot, &invoke(session, pin::WAIT, wait(0)));
    }
    let request = CloseContextRequest {
        header: header(OP_CLOSE_CONTEXT),
        context: CONTEXT.into(),
    };
    send(&mut host, room, &request);
    eventually("the calls' ends", || {
        while host.poll_used(wire::QUEUE_TEE).is_some() {}
        (host.rings[wire::QUEUE_TEE as usize].pending() == 0).then_some(())
    });
}

#[test]
fn a_fault_of_a_call_is_in_the_event_ring_before_it_is_answered() {
    let mut host = Host::new(true);
    let session = open(&mut host, random::UUID);
    let buffer = attach(&mut host, 100);
    let event = host.post_event_buffer(3);
    let memref = param(PARAM_MEMREF_OUTPUT, 1, 100, buffer);
    let fill = send(
        &mut host,
        0,
        &invoke(session, random::GENERATE, first(memref)),
    );
    let (head, response) = answered(&mut host);
    assert_eq!(head, fill);
    let (_, length) = host.poll_used(wire::QUEUE_EVENT).expect("no event");
    let event = wire::Event::read_from_bytes(&host.read(event, length as usize)).unwrap();
    assert_eq!(response.result, TEEC_ERROR_SECURITY);
    assert_eq!(response.fault.reason, wire::FAULT_OUT_OF_BOUNDS);
    assert_eq!(event.fault, response.fault);
    assert_eq!(event.cookie.get(), 0x5eed);
}

#[test]
fn a_call_outlasts_a_pause() {
    let mut host = Host::new(true);
    let (blocked, other) = (open(&mut host, pin::UUID), open(&mut host, pin::UUID));
    let waits = send(&mut host, 0, &invoke(blocked, pin::WAIT, wait(0)));
    let ends = send(&mut host, 1, &invoke(other, pin::WAIT, wait(50)));
    // Any request on the control ring, so that it does not stop at zero.
    host.status();
    let base = host.stop_rings();
    thread::sleep(Duration::from_millis(150));
    // The call has ended, but a ring that does not run is not touched.
    assert_eq!(host.poll_used(wire::QUEUE_TEE), None);
    host.resume_rings(base);
    let (head, response) = answered(&mut host);
    assert_eq!((head, response.result.get()), (ends, TEEC_SUCCESS));
    let response = cancelled(&mut host, blocked, waits);
    assert_eq!(response.result, TEEC_ERROR_CANCEL);
}

#[test]
fn a_ring_that_is_stopped_alone_is_not_touched() {
    let mut host = Host::new(true);
    let session = open(&mut host, pin::UUID);
    let ends = send(&mut host, 0, &invoke(session, pin::WAIT, wait(30)));
    let tee = wire::QUEUE_TEE as usize;
    host.frontend.set_vring_enable(tee, false).unwrap();
    thread::sleep(Duration::from_millis(80));
    assert_eq!(host.poll_used(wire::QUEUE_TEE), None);
    host.frontend.set_vring_enable(tee, true).unwrap();
    let (head, response) = answered(&mut host);
    assert_eq!((head, response.result.get()), (ends, TEEC_SUCCESS));
}

#[test]
fn a_call_from_before_a_reset_is_not_answered_after_it() {
    let mut host = Host::new(true);
    let session = open(&mut host, pin::UUID);
    let other = open(&mut host, pin::UUID);
    send(&mut host, 0, &invoke(session, pin::WAIT, wait(0)));
    let ends = send(&mut host, 1, &invoke(other, pin::WAIT, wait(20)));
    host.status();
    host.stop_rings();
    thread::sleep(Duration::from_millis(60));
    let before = host.read(answer_at(ends), size_of::<CallResponse>());
    host.begin_rings();
    // The session is gone with its driver.
    let response: CallResponse = host.ask(wire::QUEUE_TEE, &invoke(session, pin::WAIT, wait(1)));
    assert_eq!(response.result, TEEC_ERROR_BAD_PARAMETERS);
    open(&mut host, pin::UUID);
    thread::sleep(Duration::from_millis(60));
    assert_eq!(host.poll_used(wire::QUEUE_TEE), None);
    assert_eq!(
        host.read(answer_at(ends), size_of::<CallResponse>()),
        before
    );
}

#[test]
fn the_device_ends_when_told_to_even_in_a_call_that_waits() {
    let mut host = Host::new(true);
    let session = open(&mut host, pin::UUID);
    send(&mut host, 0, &invoke(session, pin::WAIT, wait(0)));
    host.device.stop();
    host.device.ended().unwrap();
}
