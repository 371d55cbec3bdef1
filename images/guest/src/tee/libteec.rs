// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the usual GlobalPlatform client library (libteec) does between a program and the kernel: the same ioctls in the same order.
//!
//! - The first of /dev/tee0 to 9 that says it follows GlobalPlatform is taken.
//! - Every call carries four parameters.
//! - Memory that a program names in a call is registered for that call. Where that fails a copy in whole pages is registered instead,
//!   and copied back. Where the TEE takes no registered memory, memory of the TEE's is allocated, mapped, and its descriptor closed at
//!   once: the mapping keeps it.
//! - No bytes are registered as eight, and NULL is a NULL memref.

use crate::harness::ctx::TestResult;
use crate::harness::error::Error;
use crate::memory::mapping::{Mapping, READ_WRITE};
use crate::observe::extent::PAGE;
use crate::tee::client::{CAP_GP, CAP_REG_MEM, NONE, Reply, Session, Shm, Tee};
use crate::tee::client::{null, value};
use nix::errno::Errno;
use pinbed_abi::ta::Uuid;
use pinbed_abi::tee::{
    PARAM_MEMREF_INOUT, PARAM_MEMREF_INPUT, PARAM_MEMREF_OUTPUT, PARAM_VALUE_INOUT,
    PARAM_VALUE_INPUT, PARAM_VALUE_OUTPUT, Param,
};
use std::ops::Range;

/// A context of the TEE Client API.
pub struct Client {
    /// The device.
    pub tee: Tee,
    /// Whether user memory can be registered.
    pub registers: bool,
}

/// Bytes of a mapping.
#[derive(Clone)]
pub struct Bytes<'m> {
    /// The mapping.
    pub mapping: &'m Mapping,
    /// Which of its bytes.
    pub range: Range<usize>,
}

/// A parameter of a call, as a program gives it.
#[derive(Clone)]
pub enum Argument<'m> {
    /// Not used.
    None,
    /// The application reads it.
    ValueInput(u32, u32),
    /// The application writes it.
    ValueOutput,
    /// Both.
    ValueInout(u32, u32),
    /// Memory for this call only, as one of `PARAM_MEMREF_…`; `None` is NULL.
    Temporary(u64, Option<Bytes<'m>>),
    /// Memory that was registered before.
    Whole(&'m Memory<'m>),
    /// A part of it, from its start, as one of `PARAM_MEMREF_…`.
    Part(u64, &'m Memory<'m>, Range<usize>),
}

/// How the kernel knows a memory.
enum Name {
    /// By a descriptor, which is closed at the end.
    Registered(Shm),
    /// By the mapping alone.
    Mapped(Param),
}

/// Shared memory of the TEE Client API, until this is dropped.
pub struct Memory<'m> {
    name: Name,
    /// What is shared in place of the program's memory.
    shadow: Option<Mapping>,
    bytes: Bytes<'m>,
    attr: u64,
}

impl Memory<'_> {
    /// Whether a copy is shared, not the memory itself.
    pub fn is_copied(&self) -> bool {
        self.shadow.is_some()
    }

    fn memref(&self, attr: u64, range: &Range<usize>) -> Param {
        let id = match &self.name {
            Name::Registered(shm) => shm.all(attr).c.get(),
            Name::Mapped(memref) => memref.c.get(),
        };
        value(attr, range.start as u64, range.len() as u64, id)
    }

    /// Before a call: the application sees what the program has written.
    fn copy_in(&self, attr: u64, range: &Range<usize>) {
        if let Some(shadow) = self.shadow.as_ref().filter(|_| attr != PARAM_MEMREF_OUTPUT) {
            let from = self.bytes.range.start;
            let bytes = self
                .bytes
                .mapping
                .read(from + range.start..from + range.end);
            shadow.write(range.start, &bytes);
        }
    }

    /// After a call that left this size: the program sees what the application has written.
    fn copy_out(&self, attr: u64, range: &Range<usize>, size: usize) {
        let fits = |_: &&Mapping| attr != PARAM_MEMREF_INPUT && size <= range.len();
        if let Some(shadow) = self.shadow.as_ref().filter(fits) {
            let bytes = shadow.read(range.start..range.start + size);
            let to = self.bytes.range.start + range.start;
            self.bytes.mapping.write(to, &bytes);
        }
    }
}

impl Client {
    /// TEEC_InitializeContext of no name.
    pub fn open() -> Result<Self, Error> {
        for number in 0..10 {
            let Ok(tee) = Tee::open_at(&format!("/dev/tee{number}")) else {
                continue;
            };
            let caps = tee.version()?.caps;
            if caps & CAP_GP != 0 {
                return Ok(Self {
                    tee,
                    registers: caps & CAP_REG_MEM != 0,
                });
            }
        }
        Err(Error::Absent {
            what: "a TEE that follows GlobalPlatform".into(),
            remedy: "build the kernel with CONFIG_TEE, and the driver for it".into(),
        })
    }

    /// TEEC_RegisterSharedMemory: for reading or writing by applications, as one of `PARAM_MEMREF_…`.
    pub fn register<'m>(&self, attr: u64, bytes: Bytes<'m>) -> Result<Memory<'m>, Error> {
        let length = match bytes.range.len() {
            0 => 8,
            length => length,
        };
        let (name, shadow) = if self.registers {
            let address = bytes.mapping.address() + bytes.range.start;
            match self.tee.register(address, length) {
                Ok(shm) => (Name::Registered(shm), None),
                Err(_) => {
                    let shadow = Mapping::anon(length)?;
                    let shm = self.tee.register(shadow.address(), length);
                    let shm = shm.map_err(Error::call("TEE_IOC_SHM_REGISTER of a copy"))?;
                    (Name::Registered(shm), Some(shadow))
                }
            }
        } else {
            let shm = self.tee.allocate(length);
            let shm = shm.map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
            let shadow = Mapping::shared(&shm.file, length.next_multiple_of(PAGE), READ_WRITE)?;
            (Name::Mapped(shm.all(attr)), Some(shadow))
        };
        Ok(Memory {
            name,
            shadow,
            bytes,
            attr,
        })
    }

    /// TEEC_OpenSession, without parameters.
    pub fn open_session(&self, uuid: Uuid) -> TestResult<Session> {
        self.tee.session(uuid)
    }

    /// TEEC_InvokeCommand.
    pub fn invoke(
        &self,
        session: Session,
        function: u32,
        arguments: [Argument; 4],
    ) -> Result<Reply, Error> {
        let mut params = [NONE; 4];
        let mut temporary = [const { None }; 4];
        for (index, argument) in arguments.iter().enumerate() {
            params[index] = match argument {
                Argument::None => NONE,
                Argument::ValueInput(a, b) => value(PARAM_VALUE_INPUT, (*a).into(), (*b).into(), 0),
                Argument::ValueOutput => value(PARAM_VALUE_OUTPUT, 0, 0, 0),
                Argument::ValueInout(a, b) => value(PARAM_VALUE_INOUT, (*a).into(), (*b).into(), 0),
                Argument::Temporary(attr, None) => null(*attr),
                Argument::Temporary(attr, Some(bytes)) => {
                    let range = 0..bytes.range.len();
                    let memory = temporary[index].insert(self.register(*attr, bytes.clone())?);
                    memory.copy_in(*attr, &range);
                    memory.memref(*attr, &range)
                }
                Argument::Whole(memory) => {
                    let range = 0..memory.bytes.range.len();
                    memory.copy_in(memory.attr, &range);
                    memory.memref(memory.attr, &range)
                }
                Argument::Part(attr, memory, range) => {
                    memory.copy_in(*attr, range);
                    memory.memref(*attr, range)
                }
            };
        }
        let reply = self.tee.invoke(session, function, params)?;
        for (index, argument) in arguments.iter().enumerate() {
            let size = reply.size(index) as usize;
            match argument {
                Argument::Temporary(attr, Some(bytes)) => {
                    if let Some(memory) = &temporary[index] {
                        memory.copy_out(*attr, &(0..bytes.range.len()), size);
                    }
                }
                Argument::Whole(memory) => {
                    memory.copy_out(memory.attr, &(0..memory.bytes.range.len()), size);
                }
                Argument::Part(attr, memory, range) => memory.copy_out(*attr, range, size),
                _ => (),
            }
        }
        Ok(reply)
    }

    /// TEEC_RequestCancellation, which names all calls 0.
    pub fn cancel(&self, session: Session) -> Result<(), Errno> {
        self.tee.cancel(session, 0)
    }
}

/// Memory for one call that the application reads.
pub fn input(mapping: &Mapping, range: Range<usize>) -> Argument<'_> {
    Argument::Temporary(PARAM_MEMREF_INPUT, Some(Bytes { mapping, range }))
}

/// Memory for one call that the application writes.
pub fn output(mapping: &Mapping, range: Range<usize>) -> Argument<'_> {
    Argument::Temporary(PARAM_MEMREF_OUTPUT, Some(Bytes { mapping, range }))
}

/// Memory for one call that the application reads and writes.
pub fn inout(mapping: &Mapping, range: Range<usize>) -> Argument<'_> {
    Argument::Temporary(PARAM_MEMREF_INOUT, Some(Bytes { mapping, range }))
}
