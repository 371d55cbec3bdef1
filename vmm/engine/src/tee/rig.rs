// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A TEE client without a kernel, for tests: memory, attached buffers, sessions, all through the engine's public entries.

use std::sync::Mutex;

use pinbed_abi::ta::Uuid;
use pinbed_abi::tee::*;
use pinbed_abi::wire::{self, RequestHeader, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Call, Submitted};
use crate::{Answer, DEFAULT_LIMITS, Engine};

/// Bytes of memory.
const MEMORY: usize = 32 << 20;
pub const COOKIE: u64 = 0xc00c1e;

/// An engine with memory.
pub struct Rig {
    pub engine: Engine,
    pub memory: GuestMemoryMmap,
    free: Mutex<u64>,
}

/// A buffer that is attached in two pieces which lie apart, neither aligned to anything.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub handle: u64,
    pub segments: [(u64, usize); 2],
}

/// An answer to OPEN_SESSION or INVOKE, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub result: u32,
    pub origin: u32,
    pub session: u32,
    pub fault: wire::Fault,
    pub params: [Param; 4],
}

impl Reply {
    pub fn of(answer: &Answer) -> Self {
        let response = CallResponse::read_from_bytes(&answer.bytes).unwrap();
        assert_eq!(response.header.status, wire::STATUS_OK);
        assert_eq!(response.header.cookie, COOKIE);
        Self {
            result: response.result.get(),
            origin: response.origin.get(),
            session: response.session.get(),
            fault: response.fault,
            params: response.params,
        }
    }

    /// Result and origin.
    pub fn verdict(&self) -> (u32, u32) {
        (self.result, self.origin)
    }

    pub fn value(&self, index: usize) -> (u64, u64, u64) {
        let param = &self.params[index];
        (param.a.get(), param.b.get(), param.c.get())
    }

    pub fn size(&self, index: usize) -> u64 {
        self.params[index].b.get()
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.verdict(), DONE);
        self
    }
}

pub const DONE: (u32, u32) = (TEEC_SUCCESS, TEEC_ORIGIN_TRUSTED_APP);

pub const NONE: Param = param(PARAM_NONE, 0, 0, 0);
pub const NO_PARAMS: [Param; 4] = [NONE; 4];

pub const fn param(attr: u64, a: u64, b: u64, c: u64) -> Param {
    use zerocopy::little_endian::U64;
    Param {
        attr: U64::new(attr),
        a: U64::new(a),
        b: U64::new(b),
        c: U64::new(c),
    }
}

pub const fn value_in(a: u64, b: u64) -> Param {
    param(PARAM_VALUE_INPUT, a, b, 0)
}

pub const VALUE_OUT: Param = param(PARAM_VALUE_OUTPUT, 0, 0, 0);

impl Buffer {
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|(_, length)| *length as u64).sum()
    }

    /// All of it, as a memref of kind `attr`.
    pub fn all(&self, attr: u64) -> Param {
        self.part(attr, 0, self.len())
    }

    pub fn part(&self, attr: u64, offset: u64, size: u64) -> Param {
        param(attr, offset, size, self.handle)
    }

    pub fn segments(&self) -> Vec<Segment> {
        let segment = |(address, length): (u64, usize)| Segment {
            address: address.into(),
            length: (length as u64).into(),
        };
        self.segments.into_iter().map(segment).collect()
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::on(Self::new_memory())
    }

    pub fn new_memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
    }

    /// An engine with memory that others may have used.
    pub fn on(memory: GuestMemoryMmap) -> Self {
        Self {
            engine: Engine::new(DEFAULT_LIMITS).allow_sabotage(),
            memory,
            free: Mutex::new(0x1001),
        }
    }

    /// Memory that holds `bytes`, attached.
    pub fn buffer(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.place(bytes.len());
        self.put(&buffer, bytes);
        buffer
    }

    /// Detaches all, and begins anew with the memory.
    pub fn forget_all(&self) {
        self.engine.reset();
        *self.free.lock().unwrap() = 0x1001;
    }

    /// Memory of this length, attached.
    pub fn room(&self, length: usize) -> Buffer {
        self.buffer(&vec![0xee; length])
    }

    fn place(&self, length: usize) -> Buffer {
        assert!(length >= 2);
        let mut free = self.free.lock().unwrap();
        let first = length / 3 + 1;
        let segments = [
            (*free, first),
            (*free + first as u64 + 0x101, length - first),
        ];
        *free += length as u64 + 0x303;
        assert!(*free < MEMORY as u64);
        let mut buffer = Buffer {
            handle: 0,
            segments,
        };
        buffer.handle = self.attach(0, &buffer.segments());
        buffer
    }

    /// Memory of this length, attached as protected.
    pub fn protected(&self, length: usize) -> Buffer {
        let mut buffer = self.room(length);
        self.detach(&buffer);
        buffer.handle = self.attach(wire::ATTACH_PROTECTED, &buffer.segments());
        buffer
    }

    #[track_caller]
    pub fn attach(&self, flags: u32, segments: &[Segment]) -> u64 {
        self.try_attach(flags, segments).unwrap()
    }

    /// The handle, or the status.
    pub fn try_attach(&self, flags: u32, segments: &[Segment]) -> Result<u64, u32> {
        let length: u64 = segments.iter().map(|s| s.length.get()).sum();
        let mut request = wire::AttachRequest {
            header: header(wire::OP_ATTACH),
            direction: wire::DIRECTION_BOTH.into(),
            segment_count: (segments.len() as u32).into(),
            length: length.into(),
            flags: flags.into(),
            ..Default::default()
        }
        .as_bytes()
        .to_vec();
        request.extend_from_slice(segments.as_bytes());
        let response: wire::AttachResponse = self.ask_control(&request);
        match response.header.status.get() {
            wire::STATUS_OK => Ok(response.handle.get()),
            status => Err(status),
        }
    }

    pub fn status(&self) -> wire::StatusResponse {
        self.ask_control(header(wire::OP_STATUS).as_bytes())
    }

    pub fn query(&self, handle: u64) -> wire::QueryResponse {
        let request = wire::QueryRequest {
            header: header(wire::OP_QUERY),
            handle: handle.into(),
            ..Default::default()
        };
        self.ask_control(request.as_bytes())
    }

    /// OP_CHECKSUM of the first `length` bytes.
    pub fn checksum(&self, handle: u64, length: u64) -> Result<u32, wire::Fault> {
        self.checksum_part(handle, 0, length)
    }

    pub fn checksum_part(&self, handle: u64, offset: u64, length: u64) -> Result<u32, wire::Fault> {
        let request = wire::ChecksumRequest {
            header: header(wire::OP_CHECKSUM),
            range: wire::Range {
                offset: offset.into(),
                ..first(handle, length)
            },
        };
        let response: wire::ChecksumResponse = self.ask_control(request.as_bytes());
        match response.header.status.get() {
            wire::STATUS_OK => Ok(response.crc.get()),
            _ => Err(response.fault),
        }
    }

    fn ask_control<R: FromBytes>(&self, request: &[u8]) -> R {
        let answer = self.engine.control(&self.memory, request, 4096, &|| true);
        R::read_from_prefix(&answer.bytes).unwrap().0
    }

    /// OP_COPY of the first `length` bytes.
    pub fn copy(&self, src: u64, dst: u64, length: u64) -> wire::JobResponse {
        self.copy_part(param(0, 0, length, src), param(0, 0, length, dst))
    }

    /// OP_COPY of what memrefs mean.
    pub fn copy_part(&self, src: Param, dst: Param) -> wire::JobResponse {
        let range = |memref: Param| wire::Range {
            handle: memref.c,
            offset: memref.a,
            length: memref.b,
        };
        let request = wire::JobRequest {
            header: header(wire::OP_COPY),
            src: range(src),
            dst: range(dst),
            ..Default::default()
        };
        let request = request.as_bytes();
        let answer = self.engine.video(&self.memory, request, 4096, &|| true);
        wire::JobResponse::read_from_prefix(&answer.bytes)
            .unwrap()
            .0
    }

    pub fn detach(&self, buffer: &Buffer) {
        self.detach_handle(buffer.handle);
    }

    pub fn detach_handle(&self, handle: u64) {
        let request = wire::DetachRequest {
            header: header(wire::OP_DETACH),
            handle: handle.into(),
        };
        let response: wire::ResponseHeader = self.ask_control(request.as_bytes());
        assert_eq!(response.status, wire::STATUS_OK);
    }

    /// What the CPU writes.
    pub fn put(&self, buffer: &Buffer, mut bytes: &[u8]) {
        for (address, length) in buffer.segments {
            let (now, later) = bytes.split_at(length);
            self.memory.write_slice(now, GuestAddress(address)).unwrap();
            bytes = later;
        }
    }

    /// What the CPU sees.
    pub fn get(&self, buffer: &Buffer) -> Vec<u8> {
        let mut all = Vec::new();
        for (address, length) in buffer.segments {
            let mut bytes = vec![0; length];
            self.memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            all.extend(bytes);
        }
        all
    }

    pub fn submit(&self, request: &impl AsRequest) -> Submitted {
        self.engine
            .tee(request.as_request(), size_of::<CallResponse>())
    }

    /// Submits a call without running it.
    #[track_caller]
    pub fn begin(&self, request: &impl AsRequest) -> Call {
        match self.submit(request) {
            Submitted::Call(call) => call,
            Submitted::Answer(answer) => panic!("answered at once: {answer:?}"),
        }
    }

    pub fn answer(&self, call: Call) -> Answer {
        self.engine.run(&self.memory, call, &|| true)
    }

    pub fn run(&self, call: Call) -> Reply {
        Reply::of(&self.answer(call))
    }

    /// The whole of an OPEN_SESSION or INVOKE.
    pub fn call(&self, request: &impl AsRequest) -> Reply {
        match self.submit(request) {
            Submitted::Answer(answer) => Reply::of(&answer),
            Submitted::Call(call) => self.run(call),
        }
    }

    /// Result of a request that is answered at once, or of one that closes a session, when that is closed.
    #[track_caller]
    pub fn control(&self, request: &impl AsRequest) -> u32 {
        let answer = match self.submit(request) {
            Submitted::Answer(answer) => answer,
            Submitted::Call(call) => self.answer(call),
        };
        let response = ResultResponse::read_from_bytes(&answer.bytes).unwrap();
        assert_eq!(response.header.status, wire::STATUS_OK);
        assert_eq!(response.header.cookie, COOKIE);
        assert_eq!(response.origin, TEEC_ORIGIN_TEE);
        response.result.get()
    }

    pub fn open(&self, context: u64, uuid: Uuid) -> Session<'_> {
        let id = self.call(&open(context, uuid)).ok().session;
        assert_ne!(id, 0);
        Session {
            rig: self,
            context,
            id,
        }
    }
}

/// A session of a client.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    pub rig: &'a Rig,
    pub context: u64,
    pub id: u32,
}

impl Session<'_> {
    pub fn invoke(&self, function: u32, params: [Param; 4]) -> Reply {
        self.rig.call(&self.request(function, params))
    }

    pub fn begin(&self, function: u32, params: [Param; 4]) -> Call {
        self.rig.begin(&self.request(function, params))
    }

    pub fn request(&self, function: u32, params: [Param; 4]) -> InvokeRequest {
        InvokeRequest {
            header: header(OP_INVOKE),
            context: self.context.into(),
            session: self.id.into(),
            function: function.into(),
            params,
            ..InvokeRequest::default()
        }
    }

    pub fn cancel(&self) -> u32 {
        self.rig.control(&cancel(self.context, self.id, 0))
    }

    pub fn close(&self) -> u32 {
        self.rig.control(&CloseSessionRequest {
            header: header(OP_CLOSE_SESSION),
            context: self.context.into(),
            session: self.id.into(),
            ..CloseSessionRequest::default()
        })
    }
}

pub fn open(context: u64, uuid: Uuid) -> OpenSessionRequest {
    OpenSessionRequest {
        header: header(OP_OPEN_SESSION),
        context: context.into(),
        uuid,
        ..OpenSessionRequest::default()
    }
}

pub fn cancel(context: u64, session: u32, cancel_id: u32) -> CancelRequest {
    CancelRequest {
        header: header(OP_CANCEL),
        context: context.into(),
        session: session.into(),
        cancel_id: cancel_id.into(),
    }
}

pub fn close_context(context: u64) -> CloseContextRequest {
    CloseContextRequest {
        header: header(OP_CLOSE_CONTEXT),
        context: context.into(),
    }
}

fn first(handle: u64, length: u64) -> wire::Range {
    wire::Range {
        handle: handle.into(),
        offset: 0.into(),
        length: length.into(),
    }
}

fn header(op: u32) -> RequestHeader {
    RequestHeader {
        op: op.into(),
        cookie: COOKIE.into(),
        ..RequestHeader::default()
    }
}

pub trait AsRequest {
    fn as_request(&self) -> &[u8];
}

impl<T: IntoBytes + Immutable + KnownLayout> AsRequest for T {
    fn as_request(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Bytes from hexadecimal digits.
pub fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|two| (two[0] << 4 | two[1]) as u8)
        .collect()
}
