// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE: sessions with built-in trusted applications that work on attached buffers.
//!
//! What a request means stands in [`pinbed_abi::tee`]. It takes two steps, so that one client's call, which may block, keeps
//! nobody else waiting, and yet all happens in the order of the queue:
//!
//! 1. [`Engine::tee`](crate::Engine::tee), in that order, never blocks. It answers what can be answered at once
//!    ([`Submitted::Answer`]: cancellations, closings, requests that make no sense), or takes note of the call and returns
//!    it ([`Submitted::Call`]). From then on a cancellation finds the call, whether it runs yet or not.
//! 2. [`Engine::run`](crate::Engine::run), on any thread, blocks as long as the trusted application does, and answers.
//!
//! Lifetimes: a session lives from OPEN_SESSION to CLOSE_SESSION or to its client's CLOSE_CONTEXT; it has an instance of its
//! trusted application ([`ta::TrustedApp`]), which runs one call at a time. An instance that panics is gone, its session
//! answers [`TEEC_ERROR_TARGET_DEAD`](tee::TEEC_ERROR_TARGET_DEAD) until it is closed. Objects in [`storage`] live as long as the
//! engine, resets included.
//!
//! Return codes and origins are those of GlobalPlatform's *TEE Client API Specification* v1.0 and, where it leaves a choice,
//! those of OP-TEE: a session that is not there is BAD_PARAMETERS, a memref with an unknown buffer BAD_PARAMETERS, one that
//! goes past its buffer's end SECURITY, protected memory for an application that may not have it BAD_PARAMETERS.

pub(crate) mod invocation;
mod memory;
mod quiet;
mod sessions;
mod storage;
mod ta;

use std::sync::Arc;

use pinbed_abi::tee::{
    self, CallResponse, CancelRequest, CloseContextRequest, CloseSessionRequest, InvokeRequest,
    OpenSessionRequest, Param, ResultResponse,
};
use pinbed_abi::wire;
use vm_memory::GuestMemory;
use zerocopy::IntoBytes;

use crate::Engine;
use crate::control::nothing_follows;
use crate::message::{Answer, Request, status};
use invocation::{Failure, Invocation};
use memory::Attached;
use sessions::{Sessions, Ticket};
use storage::Storage;

/// Calls that can be under way at a time; more are answered with [`TEEC_ERROR_BUSY`](tee::TEEC_ERROR_BUSY).
pub const MAX_CALLS: usize = 64;
/// Sessions that can be open at a time; more are answered with [`TEEC_ERROR_OUT_OF_MEMORY`](tee::TEEC_ERROR_OUT_OF_MEMORY).
pub const MAX_SESSIONS: usize = 1024;

/// What became of a request.
#[derive(Debug)]
pub enum Submitted {
    /// It is answered.
    Answer(Answer),
    /// It is to be run.
    Call(Call),
}

/// Result and origin of something that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    result: u32,
    origin: u32,
}

impl Refusal {
    fn by_tee(result: u32) -> Self {
        Self {
            result,
            origin: tee::TEEC_ORIGIN_TEE,
        }
    }
}

/// The TEE of an engine.
#[derive(Debug)]
pub(crate) struct Tee {
    sessions: Sessions,
    storage: Storage,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Open,
    Invoke { function: u32 },
}

/// A call that was taken note of. Dropped without having run, it is forgotten.
#[derive(Debug)]
pub struct Call {
    tee: Arc<Tee>,
    number: u64,
    request: wire::RequestHeader,
    entry: Entry,
    params: [Param; 4],
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tee.sessions.forget(self.number);
    }
}

impl Tee {
    pub fn new() -> Self {
        quiet::install();
        Self {
            sessions: Sessions::default(),
            storage: Storage::default(),
        }
    }

    /// First step of a request.
    pub fn submit(self: &Arc<Self>, request: &Request) -> Submitted {
        let sessions = &self.sessions;
        let mut call = None;
        let bytes = match request.header.op.get() {
            tee::OP_OPEN_SESSION => request.answer(|open: OpenSessionRequest, rest| {
                nothing_follows(rest)?;
                let begun = self.open_session(&open);
                Ok(self.begun(request, Entry::Open, open.params, begun, &mut call))
            }),
            tee::OP_INVOKE => request.answer(|invoke: InvokeRequest, rest| {
                nothing_follows(rest)?;
                reserved_is_zero(invoke.reserved)?;
                let (context, session) = (invoke.context.get(), invoke.session.get());
                let begun = sessions.begin_invoke(context, session, invoke.cancel_id.get());
                let function = invoke.function.get();
                let entry = Entry::Invoke { function };
                Ok(self.begun(request, entry, invoke.params, begun, &mut call))
            }),
            tee::OP_CANCEL => request.answer(|cancel: CancelRequest, rest| {
                nothing_follows(rest)?;
                let (context, session) = (cancel.context.get(), cancel.session.get());
                Ok(control(sessions.cancel(
                    context,
                    session,
                    cancel.cancel_id.get(),
                )))
            }),
            tee::OP_CLOSE_SESSION => request.answer(|close: CloseSessionRequest, rest| {
                nothing_follows(rest)?;
                reserved_is_zero(close.reserved)?;
                Ok(control(
                    sessions.close(close.context.get(), close.session.get()),
                ))
            }),
            tee::OP_CLOSE_CONTEXT => request.answer(|close: CloseContextRequest, rest| {
                nothing_follows(rest)?;
                sessions.close_context(close.context.get());
                Ok(control(Ok(())))
            }),
            _ => request.refuse(wire::STATUS_UNSUPPORTED),
        };
        match call {
            Some(call) => Submitted::Call(call),
            None => Submitted::Answer(Answer {
                bytes,
                events: Vec::new(),
            }),
        }
    }

    /// Ends all calls and closes all sessions. Calls that run do not touch memory any more.
    pub fn reset(&self) {
        self.sessions.reset();
    }

    /// Number of sessions, and of calls under way.
    pub fn count(&self) -> (usize, usize) {
        self.sessions.count()
    }

    fn open_session(&self, open: &OpenSessionRequest) -> Result<u64, Refusal> {
        if !is_login(open.client_login.get()) {
            return Err(Refusal::by_tee(tee::TEEC_ERROR_BAD_PARAMETERS));
        }
        let app = ta::find(&open.uuid).ok_or(Refusal::by_tee(tee::TEEC_ERROR_ITEM_NOT_FOUND))?;
        self.sessions
            .begin_open(open.context.get(), open.cancel_id.get(), app)
    }

    /// Makes a call of what was begun; where nothing was, answers.
    fn begun(
        self: &Arc<Self>,
        request: &Request,
        entry: Entry,
        params: [Param; 4],
        begun: Result<u64, Refusal>,
        call: &mut Option<Call>,
    ) -> (CallResponse, Vec<crate::dma::Piece>) {
        let result = begun.map(|number| {
            *call = Some(Call {
                tee: Arc::clone(self),
                number,
                request: request.header,
                entry,
                params,
            });
        });
        (response(params, result), Vec::new())
    }
}

impl Call {
    /// Runs the call. Blocks as long as the call takes.
    pub(crate) fn run<M: GuestMemory>(self, engine: &Engine, memory: &M) -> Answer {
        let ticket = Ticket::new(&self.tee.sessions, self.number);
        let mut turn = match ticket.turn() {
            Ok(turn) => turn,
            Err(refusal) => return self.refuse(refusal),
        };
        let attached = Attached::new(engine, memory, turn.descriptor.secure_data_path);
        let mut invocation = Invocation::new(self.params, &attached, &self.tee.storage, &ticket);
        let ended = match invocation.admit() {
            Err(refusal) => Ended::Alive(Err(refusal)),
            Ok(()) => Ended::of(quiet::run(|| match self.entry {
                Entry::Open => turn.app.open(&mut invocation),
                Entry::Invoke { function } => turn.app.invoke(function, &mut invocation),
            })),
        };
        let (params, fault) = invocation.leave();
        let alive = matches!(ended, Ended::Alive(_));
        let result = match ended {
            Ended::Alive(result) => result,
            Ended::Dead => Err(Refusal::by_tee(tee::TEEC_ERROR_TARGET_DEAD)),
        };
        let session = match self.entry {
            Entry::Open if result.is_err() => 0,
            _ => turn.session,
        };
        ticket.give_back(turn, alive, result.is_ok());
        let mut response = CallResponse {
            session: session.into(),
            ..response(params, result)
        };
        let mut events = Vec::new();
        if let Some(fault) = fault {
            response.fault = fault.into();
            events.push(engine.fault(&fault, &self.request));
        }
        self.answer(response, events)
    }

    /// Answers without running: nobody could be found to run it.
    pub fn decline(self) -> Answer {
        self.refuse(Refusal::by_tee(tee::TEEC_ERROR_BUSY))
    }

    fn refuse(&self, refusal: Refusal) -> Answer {
        self.answer(response(self.params, Err(refusal)), Vec::new())
    }

    fn answer(&self, mut response: CallResponse, events: Vec<wire::Event>) -> Answer {
        log::debug!(
            "TEE call {}: {:?} result {:#010x} origin {}",
            self.number,
            self.entry,
            response.result,
            response.origin
        );
        response.header.cookie = self.request.cookie;
        Answer {
            bytes: response.as_bytes().to_vec(),
            events,
        }
    }
}

/// How a trusted application came back.
enum Ended {
    Alive(Result<(), Refusal>),
    Dead,
}

impl Ended {
    fn of(returned: Result<Result<(), Failure>, quiet::Panicked>) -> Self {
        match returned {
            Ok(Ok(())) => Self::Alive(Ok(())),
            Ok(Err(Failure::Code(tee::TEEC_SUCCESS))) => Self::Alive(Ok(())),
            Ok(Err(Failure::Code(result))) => Self::Alive(Err(Refusal {
                result,
                origin: tee::TEEC_ORIGIN_TRUSTED_APP,
            })),
            Ok(Err(Failure::Fault(_))) => {
                Self::Alive(Err(Refusal::by_tee(tee::TEEC_ERROR_SECURITY)))
            }
            Ok(Err(Failure::Panic(why))) => {
                log::info!("a trusted application panics: {why}");
                Self::Dead
            }
            Err(quiet::Panicked) => Self::Dead,
        }
    }
}

/// Whether this is a `TEE_IOCTL_LOGIN_…`.
fn is_login(login: u32) -> bool {
    matches!(login, 0 | 1 | 2 | 4 | 5 | 6 | 0x8000_0000)
}

fn reserved_is_zero(reserved: zerocopy::little_endian::U32) -> Result<(), u32> {
    match reserved.get() {
        0 => Ok(()),
        _ => Err(wire::STATUS_INVALID),
    }
}

fn control(result: Result<(), Refusal>) -> (ResultResponse, Vec<crate::dma::Piece>) {
    let result = result.map_or_else(|refusal| refusal.result, |()| tee::TEEC_SUCCESS);
    let response = ResultResponse {
        header: status(wire::STATUS_OK),
        result: result.into(),
        origin: tee::TEEC_ORIGIN_TEE.into(),
    };
    (response, Vec::new())
}

fn response(params: [Param; 4], result: Result<(), Refusal>) -> CallResponse {
    let Refusal { result, origin } = result.err().unwrap_or(Refusal {
        result: tee::TEEC_SUCCESS,
        origin: tee::TEEC_ORIGIN_TRUSTED_APP,
    });
    CallResponse {
        header: status(wire::STATUS_OK),
        result: result.into(),
        origin: origin.into(),
        params,
        ..CallResponse::default()
    }
}

#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;
