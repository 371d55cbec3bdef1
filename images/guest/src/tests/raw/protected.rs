// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Protected memory: docs/device.md, 6.

use super::stage::{Driver, Lanes, OFFERED, PAGE64, Stage, region};
use super::tee_requests::{NONE, invoke, memref, session, value};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{pin, playback};
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::observe::device::{header, range};
use pinbed_guest::observe::extent::PAGE;

const PROTECTED: &str = "docs/device.md, 6 Protected memory";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::protected_memory_is_the_tees", protected_memory_is_the_tees, PROTECTED,
        "Protected memory cannot be protected twice, read by CHECKSUM, a job or an application without the right, under whatever handle."),
    test("raw::protected_bytes_stand_encrypted", protected_bytes_stand_encrypted, PROTECTED,
        "What an application decrypts into protected memory is not what the CPU reads there; the device reads it back, and nobody else."),
];

fn protected_memory_is_the_tees(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let memory = region(4 * PAGE)?;
    let at = memory.physical(0);
    let before = lanes.attach(wire::DIRECTION_BOTH, &[(at, 4 * PAGE64)])?;
    let protected = lanes.try_attach(
        wire::DIRECTION_BOTH,
        wire::ATTACH_PROTECTED,
        &[(at + PAGE64, PAGE64)],
    )?;
    let protected = protected.map_err(|status| {
        Stop::finding(Eye::Device, format!("a protected ATTACH: status {status}"))
    })?;
    for (what, place) in [
        ("the same", (at + PAGE64, PAGE64)),
        ("its last byte", (at + 2 * PAGE64 - 1, 1)),
        ("memory around it", (at, 4 * PAGE64)),
    ] {
        let twice = lanes.try_attach(wire::DIRECTION_BOTH, wire::ATTACH_PROTECTED, &[place])?;
        t.equal(
            Eye::Device,
            &format!("protecting {what} again"),
            twice,
            Err(wire::STATUS_INVALID),
        );
    }
    let after = lanes.attach(wire::DIRECTION_BOTH, &[(at, 4 * PAGE64)])?;
    let app = session(&mut lanes, 1, pin::UUID)?;
    for (what, handle, offset) in [
        ("its own handle", protected, 0),
        ("a handle of before", before, PAGE64),
        ("a handle of after", after, PAGE64),
    ] {
        let answer = lanes.checksum(handle, offset, 16)?;
        t.equal(
            Eye::Device,
            &format!("CHECKSUM by {what}"),
            answer.fault.reason.get(),
            wire::FAULT_PROTECTED,
        );
        for (name, src, dst) in [
            ("from", range(handle, offset, 16), range(after, 0, 16)),
            ("to", range(after, 0, 16), range(handle, offset, 16)),
        ] {
            let job = wire::JobRequest {
                header: header(wire::OP_COPY),
                src,
                dst,
                ..Default::default()
            };
            let answer = lanes.job(&job)?;
            t.equal(
                Eye::Device,
                &format!("a job {name} {what}"),
                answer.fault.reason.get(),
                wire::FAULT_PROTECTED,
            );
        }
        let params = [
            memref(tee::PARAM_MEMREF_INPUT, offset, 16, handle),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
            NONE,
        ];
        let answer = invoke(&mut lanes, 1, app, pin::CHECKSUM, params)?;
        t.equal(
            Eye::Device,
            &format!("a call without the right by {what}"),
            (answer.result.get(), answer.fault.reason.get()),
            (tee::TEEC_ERROR_BAD_PARAMETERS, wire::FAULT_PROTECTED),
        );
    }
    // The bytes beside it are nobody's secret; after DETACH neither are these.
    for (what, offset, expected) in [
        ("before it", 0, wire::STATUS_OK),
        ("into it", 1, wire::STATUS_DMA_FAULT),
    ] {
        let answer = lanes.checksum(after, offset, PAGE64)?;
        t.equal(
            Eye::Device,
            &format!("CHECKSUM {what}"),
            answer.header.status.get(),
            expected,
        );
    }
    lanes.detach(protected)?;
    let answer: wire::ChecksumResponse = lanes.checksum(after, 0, 4 * PAGE64)?;
    t.equal(
        Eye::Device,
        "CHECKSUM after DETACH",
        answer.header.status.get(),
        wire::STATUS_OK,
    );
    Ok(())
}

fn protected_bytes_stand_encrypted(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (clear, secret) = (region(PAGE)?, region(PAGE)?);
    // Key, counter block, and a stream that the application decrypts; what comes of it is known by its CRC32C.
    let stream = t.random(PAGE);
    clear.write(0, &stream);
    let from = lanes.attach(wire::DIRECTION_BOTH, &[(clear.physical(0), PAGE64)])?;
    let to = lanes.try_attach(
        wire::DIRECTION_BOTH,
        wire::ATTACH_PROTECTED,
        &[(secret.physical(0), PAGE64)],
    )?;
    let to = to.map_err(|status| {
        Stop::finding(Eye::Device, format!("a protected ATTACH: status {status}"))
    })?;
    let app = session(&mut lanes, 1, playback::UUID)?;
    let key = [
        memref(tee::PARAM_MEMREF_INPUT, 0, 16, from),
        memref(tee::PARAM_MEMREF_INPUT, 16, 16, from),
        value(tee::PARAM_VALUE_INPUT, playback::POLICY_PROTECTED, 0),
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, app, playback::SET_KEY, key)?;
    t.equal(
        Eye::Device,
        "SET_KEY",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    let decrypt = |to| {
        [
            memref(tee::PARAM_MEMREF_INPUT, 0, PAGE64, from),
            memref(tee::PARAM_MEMREF_OUTPUT, 0, PAGE64, to),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
        ]
    };
    let answer = invoke(&mut lanes, 1, app, playback::DECRYPT, decrypt(to))?;
    t.equal(
        Eye::Device,
        "DECRYPT to protected memory",
        answer.result.get(),
        tee::TEEC_SUCCESS,
    );
    let plain = answer.params[2].a.get() as u32;
    let stands = secret.read(0..PAGE);
    t.check(
        Eye::Device,
        crc(&stands) != plain && stands.iter().any(|byte| *byte != 0),
        || "the CPU reads the plain bytes in protected memory".into(),
    );
    let sum = [
        memref(tee::PARAM_MEMREF_INPUT, 0, PAGE64, to),
        value(tee::PARAM_VALUE_OUTPUT, 0, 0),
        NONE,
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, app, playback::CHECKSUM, sum)?;
    t.equal(
        Eye::Device,
        "what the application reads back",
        answer.params[1].a.get() as u32,
        plain,
    );
    // Out of protected memory, plain bytes may go nowhere.
    let answer = invoke(&mut lanes, 1, app, playback::DECRYPT, decrypt(from))?;
    t.equal(
        Eye::Device,
        "DECRYPT to other memory",
        answer.result.get(),
        tee::TEEC_ERROR_ACCESS_DENIED,
    );
    t.same_bytes(Eye::Cpu, "that memory", &clear.read(0..PAGE), &stream);
    let other = session(&mut lanes, 1, playback::UUID)?;
    invoke(&mut lanes, 1, other, playback::SET_KEY, key)?;
    let answer = invoke(&mut lanes, 1, other, playback::CHECKSUM, sum)?;
    t.check(
        Eye::Device,
        answer.result.get() != tee::TEEC_SUCCESS,
        || "another session reads it".into(),
    );
    Ok(())
}
