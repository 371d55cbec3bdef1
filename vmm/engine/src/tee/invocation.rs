// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a trusted application sees of a call: its parameters, memory, time.

use std::time::Duration;

use pinbed_abi::ta::Uuid;
use pinbed_abi::tee::{self, Param};

use super::heap::{Block, Heap};
use super::memory::Memory;
use super::storage::Storage;
use crate::access::{Access, Destination, Direction, Fault, Piece, Protection, Range, Reason};
use crate::protected;

/// Bytes that are moved at a time; what an application does with a large memref, it does in steps of this.
pub const CHUNK: u64 = 1 << 16;

/// Who opened a session, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// `TEE_IOCTL_LOGIN_…`
    pub login: u32,
    /// The UUID that the kernel computed for this login.
    pub uuid: Uuid,
}

/// What a call has of the TEE.
#[derive(Debug, Default)]
pub struct Resources {
    /// Objects that outlive the session.
    pub storage: Storage,
    /// Memory for what is worked on as a whole.
    pub heap: Heap,
}

/// A call's own time.
pub trait Clock {
    /// Waits for `time`, or without end; ends early with `false` when the client is gone or, if `cancellable`, when the call is
    /// cancelled.
    fn wait(&self, time: Option<Duration>, cancellable: bool) -> bool;
}

/// How a trusted application fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It returns this code.
    #[error("the trusted application returns {0:#010x}")]
    Code(u32),
    /// A memory access missed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It cannot go on, as GlobalPlatform's `TEE_Panic`: its instance is destroyed.
    #[error("the trusted application panics: {0}")]
    Panic(&'static str),
}

/// [`tee::TEEC_ERROR_BAD_PARAMETERS`], which is what most go wrong with.
pub const BAD_PARAMETERS: Failure = Failure::Code(tee::TEEC_ERROR_BAD_PARAMETERS);

/// A kind of parameter that an application expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`tee::PARAM_NONE`]
    Unused,
    /// [`tee::PARAM_VALUE_INPUT`]
    ValueIn,
    /// [`tee::PARAM_VALUE_OUTPUT`]
    ValueOut,
    /// [`tee::PARAM_VALUE_INOUT`]
    ValueInout,
    /// [`tee::PARAM_MEMREF_INPUT`]
    MemrefIn,
    /// [`tee::PARAM_MEMREF_OUTPUT`]
    MemrefOut,
    /// [`tee::PARAM_MEMREF_INOUT`]
    MemrefInout,
    /// A memref that can be read: in or inout.
    Readable,
    /// A memref that can be written: out or inout.
    Writable,
    /// Any memref.
    AnyMemref,
    /// Any memref, or none.
    MemrefOrUnused,
    /// Any memref, or a value that names protected memory; see [`Invocation::memory`].
    AnyMemory,
}

impl Kind {
    fn is(self, attr: u64) -> bool {
        use tee::*;
        match self {
            Self::Unused => attr == PARAM_NONE,
            Self::ValueIn => attr == PARAM_VALUE_INPUT,
            Self::ValueOut => attr == PARAM_VALUE_OUTPUT,
            Self::ValueInout => attr == PARAM_VALUE_INOUT,
            Self::MemrefIn => attr == PARAM_MEMREF_INPUT,
            Self::MemrefOut => attr == PARAM_MEMREF_OUTPUT,
            Self::MemrefInout => attr == PARAM_MEMREF_INOUT,
            Self::Readable => matches!(attr, PARAM_MEMREF_INPUT | PARAM_MEMREF_INOUT),
            Self::Writable => matches!(attr, PARAM_MEMREF_OUTPUT | PARAM_MEMREF_INOUT),
            Self::AnyMemref => direction(attr).is_some(),
            Self::MemrefOrUnused => attr == PARAM_NONE || direction(attr).is_some(),
            Self::AnyMemory => attr == PARAM_VALUE_INPUT || direction(attr).is_some(),
        }
    }
}

fn direction(attr: u64) -> Option<Direction> {
    match attr {
        tee::PARAM_MEMREF_INPUT => Some(Direction::Read),
        tee::PARAM_MEMREF_OUTPUT => Some(Direction::Write),
        tee::PARAM_MEMREF_INOUT => Some(Direction::Both),
        _ => None,
    }
}

/// Memory that was given to an application. It keeps its meaning after the call, as long as the buffer is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memref {
    range: Range,
    direction: Direction,
}

impl Memref {
    /// From a parameter; `None` if it is not a memref. The NULL memref has handle and size zero.
    fn of(param: &Param) -> Option<Self> {
        let direction = direction(param.attr.get())?;
        let handle = param.c.get();
        let (offset, length) = match handle {
            0 => (0, 0),
            _ => (param.a.get(), param.b.get()),
        };
        let range = Range {
            handle,
            offset,
            length,
        };
        Some(Self { range, direction })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.range.length
    }

    /// Whether it is the NULL memref.
    pub fn is_null(&self) -> bool {
        self.range.handle == 0
    }

    /// Whether all of it may be had for reading; else for writing only.
    pub fn is_readable(&self) -> bool {
        self.direction != Direction::Write
    }

    /// Whether it may be had for writing.
    pub fn is_writable(&self) -> bool {
        self.direction != Direction::Read
    }

    /// A part of it; `None` if that goes past its end.
    pub fn part(&self, offset: u64, length: u64) -> Option<Self> {
        if offset.checked_add(length)? > self.size() {
            return None;
        }
        let range = Range {
            handle: self.range.handle,
            offset: self.range.offset + offset,
            length,
        };
        Some(Self { range, ..*self })
    }

    /// It, in parts of at most [`CHUNK`], each with its offset.
    fn chunks(self) -> impl Iterator<Item = (u64, Self)> {
        (0..self.size()).step_by(CHUNK as usize).map(move |offset| {
            let range = Range {
                offset: self.range.offset + offset,
                length: CHUNK.min(self.size() - offset),
                ..self.range
            };
            (offset, Self { range, ..self })
        })
    }

    fn accesses(&self) -> impl Iterator<Item = Access> {
        let read = self.is_readable().then_some(Access::Read);
        read.into_iter()
            .chain(self.is_writable().then_some(Access::Write))
    }
}

/// A call, as the application sees it.
pub struct Invocation<'a> {
    params: [Param; 4],
    client: Client,
    memory: &'a dyn Memory,
    resources: &'a Resources,
    clock: &'a dyn Clock,
    fault: Option<Fault>,
    /// Cancellation is masked until the application unmasks it, anew in each call.
    cancellable: bool,
}

impl<'a> Invocation<'a> {
    pub(super) fn new(
        params: [Param; 4],
        client: Client,
        memory: &'a dyn Memory,
        resources: &'a Resources,
        clock: &'a dyn Clock,
    ) -> Self {
        Self {
            params,
            client,
            memory,
            resources,
            clock,
            fault: None,
            cancellable: false,
        }
    }

    /// Checks the parameters before the application sees them; else returns a `TEEC_ERROR_…`.
    pub(super) fn admit(&mut self) -> Result<(), u32> {
        for param in &self.params {
            let Some(memref) = Memref::of(param) else {
                if param.attr.get() > tee::PARAM_VALUE_INOUT {
                    return Err(tee::TEEC_ERROR_BAD_PARAMETERS);
                }
                continue;
            };
            if memref.is_null() {
                continue;
            }
            for access in memref.accesses() {
                if let Err(fault) = self.memory.check(memref.range, access) {
                    self.fault = Some(fault);
                    return Err(match fault.reason {
                        Reason::NotAttached | Reason::Protected => tee::TEEC_ERROR_BAD_PARAMETERS,
                        _ => tee::TEEC_ERROR_SECURITY,
                    });
                }
            }
        }
        Ok(())
    }

    /// The parameters as the application left them, and its first fault.
    pub(super) fn leave(self) -> ([Param; 4], Option<Fault>) {
        (self.params, self.fault)
    }

    /// Who opened the session.
    pub fn client(&self) -> Client {
        self.client
    }

    /// Whether the parameters are of these kinds.
    pub fn expect(&self, kinds: [Kind; 4]) -> Result<(), Failure> {
        let fits = |(kind, param): (Kind, &Param)| kind.is(param.attr.get());
        match kinds.into_iter().zip(&self.params).all(fits) {
            true => Ok(()),
            false => Err(BAD_PARAMETERS),
        }
    }

    /// A value's parts.
    pub fn value(&self, index: usize) -> (u64, u64, u64) {
        let param = &self.params[index];
        (param.a.get(), param.b.get(), param.c.get())
    }

    /// Sets an output value.
    pub fn set_value(&mut self, index: usize, a: u64, b: u64, c: u64) {
        let param = &mut self.params[index];
        (param.a, param.b, param.c) = (a.into(), b.into(), c.into());
    }

    /// A memref; [`Invocation::expect`] has seen to it that it is one.
    pub fn memref(&self, index: usize) -> Result<Memref, Failure> {
        Memref::of(&self.params[index]).ok_or(BAD_PARAMETERS)
    }

    /// The memory that a parameter means: a memref of this kind, or all of the protected buffer whose handle is a value's `a`.
    pub fn memory(&self, index: usize, kind: Kind) -> Result<Memref, Failure> {
        if let Ok(memref) = self.memref(index) {
            let fits = kind.is(self.params[index].attr.get());
            return fits.then_some(memref).ok_or(BAD_PARAMETERS);
        }
        let handle = self.value(index).0;
        let length = self.memory.protected_length(handle);
        let range = Range {
            handle,
            offset: 0,
            length: length.ok_or(BAD_PARAMETERS)?,
        };
        let direction = Direction::Both;
        Ok(Memref { range, direction })
    }

    /// Sets what the client gets to see as an output memref's size: how much was written, or is needed.
    pub fn set_size(&mut self, index: usize, size: u64) {
        self.params[index].b = size.into();
    }

    /// Whether `size` bytes fit into an output memref, whose size is set to that either way.
    pub fn make_room(&mut self, index: usize, size: u64) -> Result<Memref, Failure> {
        let memref = self.memref(index)?;
        self.set_size(index, size);
        memref
            .part(0, size)
            .ok_or(Failure::Code(tee::TEEC_ERROR_SHORT_BUFFER))
    }

    /// Reads all of a memref that has at most [`CHUNK`] bytes; more than `most` are [`tee::TEEC_ERROR_OUT_OF_MEMORY`].
    pub fn read_all(&mut self, memref: Memref, most: u64) -> Result<Vec<u8>, Failure> {
        if memref.size() > most.min(CHUNK) {
            return Err(Failure::Code(tee::TEEC_ERROR_OUT_OF_MEMORY));
        }
        let mut bytes = vec![0; memref.size() as usize];
        self.read(memref, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all of a memref to the heap; [`tee::TEEC_ERROR_OUT_OF_MEMORY`] if it has more than `most` bytes or the heap not
    /// enough.
    pub fn read_message(&mut self, memref: Memref, most: u64) -> Result<Block, Failure> {
        let out_of_memory = Failure::Code(tee::TEEC_ERROR_OUT_OF_MEMORY);
        if memref.size() > most {
            return Err(out_of_memory);
        }
        let block = self.resources.heap.take(memref.size() as usize);
        let mut block = block.ok_or(out_of_memory)?;
        for (offset, chunk) in memref.chunks() {
            let start = offset as usize;
            self.read(chunk, &mut block[start..start + chunk.size() as usize])?;
        }
        Ok(block)
    }

    /// Calls `with` for each part of a memref, in order, with its offset and bytes.
    pub fn each_chunk(
        &mut self,
        memref: Memref,
        mut with: impl FnMut(&mut Self, u64, &mut [u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.each_secret(memref, |call, offset, bytes, _| with(call, offset, bytes))
    }

    /// As [`Invocation::each_chunk`], and says where the bytes may go: those from protected memory only there.
    pub fn each_secret(
        &mut self,
        memref: Memref,
        mut with: impl FnMut(&mut Self, u64, &mut [u8], Destination) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut bytes = vec![0; CHUNK.min(memref.size()) as usize];
        for (offset, chunk) in memref.chunks() {
            bytes.truncate(chunk.size() as usize);
            let destination = match self.read(chunk, &mut bytes)? {
                true => Destination::Protected,
                false => Destination::Any,
            };
            with(self, offset, &mut bytes, destination)?;
        }
        Ok(())
    }

    /// Fills a memref: `fill` makes each part's bytes, which begin as what it left in the part before.
    pub fn fill(
        &mut self,
        memref: Memref,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut bytes = vec![0; CHUNK.min(memref.size()) as usize];
        for (_, chunk) in memref.chunks() {
            bytes.truncate(chunk.size() as usize);
            fill(&mut bytes)?;
            self.write(chunk, &bytes)?;
        }
        Ok(())
    }

    /// CRC32C of a memref.
    pub fn checksum(&mut self, memref: Memref) -> Result<u32, Failure> {
        let mut crc = 0;
        self.each_chunk(memref, |_, _, bytes| {
            crc = crc32c::crc32c_append(crc, bytes);
            Ok(())
        })?;
        Ok(crc)
    }

    fn read(&mut self, memref: Memref, to: &mut [u8]) -> Result<bool, Failure> {
        if memref.is_null() {
            return Ok(false);
        }
        self.still_wanted()?;
        let result = self.memory.read(memref.range, to);
        self.noted(result)
    }

    /// Writes `bytes`, as long as `memref`, there.
    pub fn write(&mut self, memref: Memref, bytes: &[u8]) -> Result<(), Failure> {
        self.write_to(memref, bytes, Destination::Any)
    }

    /// As [`Invocation::write`], to protected memory only if `destination` wants that: else a fault.
    pub fn write_to(
        &mut self,
        memref: Memref,
        bytes: &[u8],
        destination: Destination,
    ) -> Result<(), Failure> {
        if memref.is_null() {
            return Ok(());
        }
        self.still_wanted()?;
        let result = self.memory.write(memref.range, bytes, destination);
        self.noted(result)
    }

    /// Where the memref is in memory: `most` pieces after the first `skip`, and how many there are.
    pub fn pieces(
        &mut self,
        memref: Memref,
        skip: usize,
        most: usize,
    ) -> Result<(Vec<Piece>, usize), Failure> {
        if memref.is_null() {
            return Ok((Vec::new(), 0));
        }
        let result = self.memory.pieces(memref.range, skip, most);
        self.noted(result)
    }

    /// How much of the memref is protected memory.
    pub fn protection(&mut self, memref: Memref) -> Result<Protection, Failure> {
        if memref.is_null() {
            return Ok(Protection::None);
        }
        let result = self.memory.protection(memref.range);
        self.noted(result)
    }

    /// Sets what the video engine may do with a memref. [`BAD_PARAMETERS`] if not all of it is protected,
    /// [`tee::TEEC_ERROR_OUT_OF_MEMORY`] if that makes protected memory too motley.
    pub fn allow_video(
        &mut self,
        memref: Memref,
        direction: Option<Direction>,
    ) -> Result<(), Failure> {
        if memref.is_null() {
            return Err(BAD_PARAMETERS);
        }
        let result = self.memory.allow_video(memref.range, direction);
        self.noted(result)?.map_err(|refusal| match refusal {
            protected::Refusal::Limit => Failure::Code(tee::TEEC_ERROR_OUT_OF_MEMORY),
            _ => BAD_PARAMETERS,
        })
    }

    /// A call whose client is gone, with its memory perhaps, ends here, at the latest at its next access.
    pub fn still_wanted(&self) -> Result<(), Failure> {
        match self.memory.go_on() && self.clock.wait(Some(Duration::ZERO), false) {
            true => Ok(()),
            false => Err(Failure::Code(tee::TEEC_ERROR_CANCEL)),
        }
    }

    fn noted<T>(&mut self, result: Result<T, Fault>) -> Result<T, Failure> {
        result.map_err(|fault| {
            self.fault.get_or_insert(fault);
            Failure::Fault(fault)
        })
    }

    /// Objects that outlive the session.
    pub fn storage(&self) -> &'a Storage {
        &self.resources.storage
    }

    /// From now on a cancellation ends this call's waits, as GlobalPlatform's `TEE_UnmaskCancellation`.
    pub fn unmask_cancellation(&mut self) {
        self.cancellable = true;
    }

    /// Waits for `time`, or without end. [`tee::TEEC_ERROR_CANCEL`] when the call is cancelled meanwhile and cancellation is
    /// not masked, or when its client is gone.
    pub fn wait(&self, time: Option<Duration>) -> Result<(), Failure> {
        match self.clock.wait(time, self.cancellable) {
            true => Ok(()),
            false => Err(Failure::Code(tee::TEEC_ERROR_CANCEL)),
        }
    }
}
