// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests of the TEE queue.

use super::stage::{Driver, Hand, region, short};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{self, pin};
use pinbed_abi::tee::{self, Param};
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Stop, TestResult};
use pinbed_guest::observe::device::header;
use pinbed_raw::region::Region;
use pinbed_raw::ring::F_WRITE;
use zerocopy::FromBytes;

/// No parameter.
pub const NONE: Param = Param {
    attr: zerocopy::little_endian::U64::ZERO,
    a: zerocopy::little_endian::U64::ZERO,
    b: zerocopy::little_endian::U64::ZERO,
    c: zerocopy::little_endian::U64::ZERO,
};

/// A value, with `a` and `b`.
pub fn value(attr: u64, a: u64, b: u64) -> Param {
    memref(attr, a, b, 0)
}

/// `a` is the offset, `b` the size, `c` the handle.
pub fn memref(attr: u64, a: u64, b: u64, c: u64) -> Param {
    Param {
        attr: attr.into(),
        a: a.into(),
        b: b.into(),
        c: c.into(),
    }
}

/// An OPEN_SESSION.
pub fn open_request(context: u64, uuid: ta::Uuid) -> tee::OpenSessionRequest {
    tee::OpenSessionRequest {
        header: header(tee::OP_OPEN_SESSION),
        context: context.into(),
        uuid,
        ..Default::default()
    }
}

/// An INVOKE.
pub fn invoke_request(
    context: u64,
    session: u32,
    function: u32,
    params: [Param; 4],
) -> tee::InvokeRequest {
    tee::InvokeRequest {
        header: header(tee::OP_INVOKE),
        context: context.into(),
        session: session.into(),
        function: function.into(),
        params,
        ..Default::default()
    }
}

/// OPEN_SESSION: the session, or result and origin.
pub fn open(
    driver: &mut impl Driver,
    context: u64,
    uuid: ta::Uuid,
) -> TestResult<Result<u32, (u32, u32)>> {
    let answer: tee::CallResponse = driver.ask(wire::QUEUE_TEE, &open_request(context, uuid))?;
    Ok(match answer.result.get() {
        tee::TEEC_SUCCESS => Ok(answer.session.get()),
        result => Err((result, answer.origin.get())),
    })
}

/// A session that opens.
pub fn session(driver: &mut impl Driver, context: u64, uuid: ta::Uuid) -> TestResult<u32> {
    open(driver, context, uuid)?.map_err(|result| {
        Stop::finding(
            Eye::Device,
            format!("OPEN_SESSION: result and origin {result:x?}"),
        )
    })
}

/// INVOKE.
pub fn invoke(
    driver: &mut impl Driver,
    context: u64,
    session: u32,
    function: u32,
    params: [Param; 4],
) -> TestResult<tee::CallResponse> {
    driver.ask(
        wire::QUEUE_TEE,
        &invoke_request(context, session, function, params),
    )
}

/// CLOSE_SESSION: the result.
pub fn close(driver: &mut impl Driver, context: u64, session: u32) -> TestResult<u32> {
    let request = tee::CloseSessionRequest {
        header: header(tee::OP_CLOSE_SESSION),
        context: context.into(),
        session: session.into(),
        reserved: 0.into(),
    };
    let answer: tee::ResultResponse = driver.ask(wire::QUEUE_TEE, &request)?;
    Ok(answer.result.get())
}

/// Chains of the TEE queue: each has its own place for request and answer in a region.
pub struct Calls {
    memory: Region,
}

impl Calls {
    const PLACE: usize = 1024;

    pub fn new(count: usize) -> TestResult<Self> {
        Ok(Self {
            memory: region(count * Self::PLACE)?,
        })
    }

    pub fn send(&self, hand: &mut Hand, slot: u16, request: &[u8]) {
        let at = usize::from(slot) * Self::PLACE;
        self.memory.write(at, request);
        let (from, to) = (
            self.memory.physical(at),
            self.memory.physical(at + Self::PLACE / 2),
        );
        let ring = hand.ring(wire::QUEUE_TEE);
        ring.chain(
            2 * slot,
            &[
                (from, request.len() as u32, 0),
                (to, (Self::PLACE / 2) as u32, F_WRITE),
            ],
        );
        ring.offer(2 * slot);
        hand.notify(wire::QUEUE_TEE);
    }

    /// The answer's result and origin.
    pub fn answer(&self, slot: u16) -> TestResult<tee::CallResponse> {
        let at = usize::from(slot) * Self::PLACE + Self::PLACE / 2;
        let bytes = self.memory.read(at..at + size_of::<tee::CallResponse>());
        tee::CallResponse::read_from_bytes(&bytes).map_err(|_| short())
    }
}

/// An INVOKE that ends when it is cancelled.
pub fn endless(context: u64, session: u32, cancel_id: u32) -> tee::InvokeRequest {
    let mut request = invoke_request(
        context,
        session,
        pin::WAIT,
        [value(tee::PARAM_VALUE_INPUT, 0, 0), NONE, NONE, NONE],
    );
    request.cancel_id = cancel_id.into();
    request
}
