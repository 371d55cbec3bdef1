// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sessions and calls of the TEE: docs/device.md, 5.3.

use super::stage::{Driver, Lanes, OFFERED, PAGE64, Stage, region};
use super::tee_requests::{
    Calls, NONE, close, endless, invoke, memref, open, open_request, session, value,
};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::observe::device::header;
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::ring::poll;
use zerocopy::IntoBytes;

const TEE: &str = "docs/device.md, 5.3 TEE";
const LIMITS: &str = "docs/device.md, 4 Configuration space";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
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
];

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
