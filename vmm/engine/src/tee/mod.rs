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
//! Lifetimes: a session lives from OPEN_SESSION to CLOSE_SESSION, which waits for the calls under way in it, or to its client's
//! CLOSE_CONTEXT. It has an instance of its trusted application ([`ta::TrustedApp`]), which runs one call at a time. An instance
//! that panics is gone, its session answers [`TEEC_ERROR_TARGET_DEAD`](tee::TEEC_ERROR_TARGET_DEAD) until it is closed. Objects in
//! [`storage`] live as long as the engine, resets included.
//!
//! Return codes and origins are those of GlobalPlatform's *TEE Client API Specification* v1.0 and, where it leaves a choice,
//! those of OP-TEE: a session that is not there is BAD_PARAMETERS, a memref with an unknown buffer BAD_PARAMETERS, one that
//! goes past its buffer's end SECURITY, protected memory for an application that may not have it BAD_PARAMETERS.

mod contain;
mod heap;
mod invocation;
mod memory;
mod sessions;
mod storage;
mod ta;

use std::sync::Arc;

use pinbed_abi::tee::{
    self, CallResponse, CancelRequest, CloseContextRequest, CloseSessionRequest, InvokeRequest,
    OpenSessionRequest, Param, ResultResponse,
};
use pinbed_abi::wire;
use vm_memory::GuestAddressSpace;
use zerocopy::IntoBytes;

pub use contain::quiet_applications;
pub use sessions::{MAX_CALLS, MAX_SESSIONS};
pub use storage::MAX_STORAGE;

use crate::message::{Answer, Request, status};
use crate::{Engine, GoOn};
use invocation::{Client, Clock, Failure, Invocation, Resources};
use memory::Attached;
use sessions::{Closing, Sessions, Ticket};
use ta::{Descriptor, Instance};

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

impl From<sessions::Refusal> for Refusal {
    fn from(refusal: sessions::Refusal) -> Self {
        Self::by_tee(match refusal {
            sessions::Refusal::NoSession => tee::TEEC_ERROR_BAD_PARAMETERS,
            sessions::Refusal::Busy => tee::TEEC_ERROR_BUSY,
            sessions::Refusal::Full => tee::TEEC_ERROR_OUT_OF_MEMORY,
            sessions::Refusal::Cancelled => tee::TEEC_ERROR_CANCEL,
            sessions::Refusal::Dead => tee::TEEC_ERROR_TARGET_DEAD,
        })
    }
}

/// The TEE of an engine.
#[derive(Debug, Default)]
pub(crate) struct Tee {
    sessions: Sessions<Instance>,
    resources: Resources,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Open(&'static Descriptor, Client),
    Invoke { function: u32 },
    Close,
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
    /// First step of a request.
    pub fn submit(self: &Arc<Self>, request: &Request) -> Submitted {
        let mut call = None;
        let mut begun = |entry, params, number| {
            call = Some(Call {
                tee: Arc::clone(self),
                number,
                request: request.header,
                entry,
                params,
            });
        };
        let bytes = match request.op() {
            tee::OP_OPEN_SESSION => request.reply(|| {
                let open: OpenSessionRequest = request.exactly()?;
                let begin = self.open_session(&open).map(|(entry, number)| {
                    begun(entry, open.params, number);
                });
                Ok(response(open.params, begin))
            }),
            tee::OP_INVOKE => request.reply(|| {
                let invoke: InvokeRequest = request.exactly()?;
                reserved_is_zero(invoke.reserved)?;
                let (context, session) = (invoke.context.get(), invoke.session.get());
                let function = invoke.function.get();
                let cancel_id = invoke.cancel_id.get();
                let begin = self.sessions.begin_invoke(context, session, cancel_id);
                let begin = begin.map(|number| {
                    begun(Entry::Invoke { function }, invoke.params, number);
                });
                Ok(response(invoke.params, begin.map_err(Refusal::from)))
            }),
            tee::OP_CANCEL => request.reply(|| {
                let cancel: CancelRequest = request.exactly()?;
                let (context, session) = (cancel.context.get(), cancel.session.get());
                let cancel_id = cancel.cancel_id.get();
                Ok(result(self.sessions.cancel(context, session, cancel_id)))
            }),
            tee::OP_CLOSE_SESSION => request.reply(|| {
                let close: CloseSessionRequest = request.exactly()?;
                reserved_is_zero(close.reserved)?;
                let (context, session) = (close.context.get(), close.session.get());
                let closing = self.sessions.begin_close(context, session);
                Ok(result(closing.map(|closing| {
                    if let Closing::Waits(number) = closing {
                        begun(Entry::Close, <[Param; 4]>::default(), number);
                    }
                })))
            }),
            tee::OP_CLOSE_CONTEXT => request.reply(|| {
                let close: CloseContextRequest = request.exactly()?;
                self.sessions.close_context(close.context.get());
                Ok(result(Ok(())))
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

    fn open_session(&self, open: &OpenSessionRequest) -> Result<(Entry, u64), Refusal> {
        if !is_login(open.client_login.get()) {
            return Err(Refusal::by_tee(tee::TEEC_ERROR_BAD_PARAMETERS));
        }
        let descriptor = ta::find(&open.uuid);
        let descriptor = descriptor.ok_or(Refusal::by_tee(tee::TEEC_ERROR_ITEM_NOT_FOUND))?;
        let client = Client {
            login: open.client_login.get(),
            uuid: open.client_uuid,
        };
        let single = descriptor.single_instance.then_some(descriptor.uuid);
        let (context, cancel_id) = (open.context.get(), open.cancel_id.get());
        let number = self.sessions.begin_open(context, cancel_id, single)?;
        Ok((Entry::Open(descriptor, client), number))
    }
}

impl Clock for Ticket<'_, Instance> {
    fn wait(&self, time: Option<std::time::Duration>, cancellable: bool) -> bool {
        Ticket::wait(self, time, cancellable)
    }
}

impl Call {
    /// Runs the call. Blocks as long as the call takes.
    pub(crate) fn run<S: GuestAddressSpace>(
        self,
        engine: &Engine,
        space: S,
        go_on: GoOn,
    ) -> Answer {
        let ticket = Ticket::new(&self.tee.sessions, self.number);
        if let Entry::Close = self.entry {
            ticket.close();
            return self.closed();
        }
        let mut turn = match ticket.turn() {
            Ok(turn) => turn,
            Err(refusal) => return self.refuse(refusal.into()),
        };
        let mut instance = match (turn.instance.take(), self.entry) {
            (Some(instance), _) => instance,
            (None, Entry::Open(descriptor, client)) => Instance::new(descriptor, client),
            // A session is opened before it is named.
            (None, _) => {
                ticket.give_back(turn, false);
                return self.refuse(sessions::Refusal::Dead.into());
            }
        };
        let (app, owner) = (&mut instance.app, &instance.owner);
        let owner = instance.descriptor.secure_data_path.then_some(owner);
        let attached = Attached::new(engine, space, owner, go_on);
        let resources = &self.tee.resources;
        let mut call = Invocation::new(self.params, instance.client, &attached, resources, &ticket);
        let ended = match call.admit() {
            Err(result) => Ended::Alive(Err(Refusal::by_tee(result))),
            Ok(()) => Ended::of(contain::run(|| match self.entry {
                Entry::Invoke { function } => app.invoke(function, &mut call),
                _ => app.open(&mut call),
            })),
        };
        let (params, fault) = call.leave();
        let alive = matches!(ended, Ended::Alive(_));
        let result = match ended {
            Ended::Alive(result) => result,
            Ended::Dead => Err(Refusal::by_tee(tee::TEEC_ERROR_TARGET_DEAD)),
        };
        let session = match self.entry {
            Entry::Open(..) if result.is_err() => 0,
            _ => turn.session,
        };
        if alive {
            turn.instance = Some(instance);
        } else {
            drop(instance);
        }
        ticket.give_back(turn, result.is_ok());
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
        match self.entry {
            Entry::Close => self.closed(),
            _ => self.refuse(Refusal::by_tee(tee::TEEC_ERROR_BUSY)),
        }
    }

    /// The answer to a closing.
    fn closed(&self) -> Answer {
        let mut response = result(Ok(()));
        response.header.cookie = self.request.cookie;
        Answer {
            bytes: response.as_bytes().to_vec(),
            events: Vec::new(),
        }
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
    fn of(returned: Result<Result<(), Failure>, String>) -> Self {
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
            Err(why) => {
                log::info!("a trusted application panicked: {why}");
                Self::Dead
            }
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

fn result(result: Result<(), sessions::Refusal>) -> ResultResponse {
    let result = result.map_err(Refusal::from);
    let result = result.map_or_else(|refusal| refusal.result, |()| tee::TEEC_SUCCESS);
    ResultResponse {
        header: status(wire::STATUS_OK),
        result: result.into(),
        origin: tee::TEEC_ORIGIN_TEE.into(),
    }
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

#[cfg(any(test, fuzzing))]
pub mod protection;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "the unit tests use the rest"))]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
