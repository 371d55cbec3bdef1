// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who has which session open, which calls are under way, and whose turn it is.
//!
//! All of it is under one lock, which is never held while a trusted application runs: a call takes its session's instance
//! out, runs it, and puts it back. Whatever may end a wait (an instance put back, a call gone, a cancellation, a closing)
//! wakes all that wait; they are at most [`MAX_CALLS`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pinbed_abi::tee;

use super::ta::{Descriptor, TrustedApp};
use super::{MAX_CALLS, MAX_SESSIONS, Refusal};

/// The instance of a session's trusted application.
enum Instance {
    Idle(Box<dyn TrustedApp>),
    /// A call has it.
    Busy,
    /// It panicked.
    Dead,
}

struct Session {
    context: u64,
    descriptor: &'static Descriptor,
    instance: Instance,
    /// Whether the call that opens it has succeeded; until then its client does not know it.
    opened: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// A call that heeds it ends early.
    Cancelled,
    /// Nobody waits for the answer: the call ends early whether it heeds cancellations or not.
    Forced,
}

#[derive(Debug)]
struct Pending {
    context: u64,
    session: u32,
    opens: bool,
    cancel_id: u32,
    ending: Option<Ending>,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<u32, Session>,
    /// By number, which grows: the calls of a session take turns in this order.
    calls: BTreeMap<u64, Pending>,
    last_session: u32,
    last_call: u64,
}

/// See the module.
#[derive(Default)]
pub struct Sessions {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Sessions")
            .field("sessions", &state.sessions.keys())
            .field("calls", &state.calls)
            .finish()
    }
}

impl State {
    fn begin(
        &mut self,
        context: u64,
        session: u32,
        opens: bool,
        cancel_id: u32,
    ) -> Result<u64, Refusal> {
        if self.calls.len() >= MAX_CALLS {
            return Err(Refusal::by_tee(tee::TEEC_ERROR_BUSY));
        }
        self.last_call += 1;
        let pending = Pending {
            context,
            session,
            opens,
            cancel_id,
            ending: None,
        };
        self.calls.insert(self.last_call, pending);
        Ok(self.last_call)
    }

    fn new_session_id(&mut self) -> u32 {
        loop {
            self.last_session = self.last_session.wrapping_add(1);
            let id = self.last_session;
            if id != 0 && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    fn owned(&self, context: u64, session: u32) -> Result<&Session, Refusal> {
        self.sessions
            .get(&session)
            .filter(|session| session.context == context && session.opened)
            .ok_or(Refusal::by_tee(tee::TEEC_ERROR_BAD_PARAMETERS))
    }

    fn end(&mut self, ending: Ending, which: impl Fn(&Pending) -> bool) {
        for call in self.calls.values_mut().filter(|call| which(call)) {
            if call.ending != Some(Ending::Forced) {
                call.ending = Some(ending);
            }
        }
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call that opens a session, which exists from now on; returns the call's number.
    pub fn begin_open(
        &self,
        context: u64,
        cancel_id: u32,
        descriptor: &'static Descriptor,
    ) -> Result<u64, Refusal> {
        let mut state = self.lock();
        let mut same = state.sessions.values();
        if descriptor.single_instance && same.any(|s| s.descriptor.uuid == descriptor.uuid) {
            return Err(Refusal::by_tee(tee::TEEC_ERROR_BUSY));
        }
        if state.sessions.len() >= MAX_SESSIONS {
            return Err(Refusal::by_tee(tee::TEEC_ERROR_OUT_OF_MEMORY));
        }
        let session = state.new_session_id();
        let number = state.begin(context, session, true, cancel_id)?;
        state.sessions.insert(
            session,
            Session {
                context,
                descriptor,
                instance: Instance::Idle((descriptor.new)()),
                opened: false,
            },
        );
        Ok(number)
    }

    /// Notes a call into a session; returns the call's number.
    pub fn begin_invoke(&self, context: u64, session: u32, cancel_id: u32) -> Result<u64, Refusal> {
        let mut state = self.lock();
        state.owned(context, session)?;
        state.begin(context, session, false, cancel_id)
    }

    /// Cancels what [`tee::CancelRequest`] names. That it names no call is no error: it may have ended just now.
    pub fn cancel(&self, context: u64, session: u32, cancel_id: u32) -> Result<(), Refusal> {
        let mut state = self.lock();
        if session != 0 {
            state.owned(context, session)?;
        }
        state.end(Ending::Cancelled, |call| {
            let named = if call.opens { 0 } else { call.session };
            call.context == context && named == session && call.cancel_id == cancel_id
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Closes a session.
    pub fn close(&self, context: u64, session: u32) -> Result<(), Refusal> {
        let mut state = self.lock();
        state.owned(context, session)?;
        let closed = state.sessions.remove(&session);
        state.end(Ending::Cancelled, |call| call.session == session);
        self.changed.notify_all();
        drop(state);
        drop(closed);
        Ok(())
    }

    /// Closes all sessions of a context and ends its calls.
    pub fn close_context(&self, context: u64) {
        self.close_where(|of| of == context);
    }

    /// Closes all sessions and ends all calls.
    pub fn reset(&self) {
        self.close_where(|_| true);
    }

    /// Number of sessions, and of calls under way.
    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.sessions.len(), state.calls.len())
    }

    /// Whether a call of the session runs.
    #[cfg(test)]
    pub fn is_busy(&self, session: u32) -> bool {
        let state = self.lock();
        let session = state.sessions.get(&session);
        session.is_some_and(|session| matches!(session.instance, Instance::Busy))
    }

    fn close_where(&self, which: impl Fn(u64) -> bool) {
        let mut state = self.lock();
        let (closed, open) = std::mem::take(&mut state.sessions)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, session)| which(session.context));
        state.sessions = open;
        state.end(Ending::Forced, |call| which(call.context));
        self.changed.notify_all();
        drop(state);
        drop(closed);
    }

    /// The call of this number is over. If it was to open a session and did not, the session goes with it.
    pub fn forget(&self, number: u64) {
        let mut state = self.lock();
        let call = state.calls.remove(&number);
        let unopened = call.filter(|call| call.opens).and_then(|call| {
            match state.sessions.entry(call.session) {
                Entry::Occupied(session) if !session.get().opened => Some(session.remove()),
                _ => None,
            }
        });
        self.changed.notify_all();
        drop(state);
        drop(unopened);
    }
}

/// A call that has the word.
pub struct Turn {
    /// Its session.
    pub session: u32,
    /// What the application is.
    pub descriptor: &'static Descriptor,
    /// The application, back to the session with [`Ticket::give_back`].
    pub app: Box<dyn TrustedApp>,
}

/// A running call's place among the calls.
pub struct Ticket<'a> {
    sessions: &'a Sessions,
    number: u64,
}

impl<'a> Ticket<'a> {
    /// The place of the call of this number.
    pub fn new(sessions: &'a Sessions, number: u64) -> Self {
        Self { sessions, number }
    }

    /// Waits until the calls that came before are done with the session's instance, and takes it.
    pub fn turn(&self) -> Result<Turn, Refusal> {
        let cancelled = Refusal::by_tee(tee::TEEC_ERROR_CANCEL);
        let closed = Refusal::by_tee(tee::TEEC_ERROR_BAD_PARAMETERS);
        let mut state = self.sessions.lock();
        loop {
            let state_now = &mut *state;
            let call = state_now.calls.get(&self.number).ok_or(cancelled)?;
            let id = call.session;
            let session = state_now.sessions.get_mut(&id).ok_or(closed)?;
            if call.ending.is_some() {
                return Err(cancelled);
            }
            let mut earlier = state_now.calls.range(..self.number);
            match session.instance {
                Instance::Dead => return Err(Refusal::by_tee(tee::TEEC_ERROR_TARGET_DEAD)),
                Instance::Idle(_) if earlier.all(|(_, call)| call.session != id) => {
                    if let Instance::Idle(app) =
                        std::mem::replace(&mut session.instance, Instance::Busy)
                    {
                        let descriptor = session.descriptor;
                        return Ok(Turn {
                            session: id,
                            descriptor,
                            app,
                        });
                    }
                }
                _ => {}
            }
            state = self
                .sessions
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts the instance back, or notes that it is `alive` no more. A call that went `well` has opened the session, if it
    /// was not open. If the session was closed meanwhile the instance goes away now.
    pub fn give_back(&self, turn: Turn, alive: bool, well: bool) {
        let mut state = self.sessions.lock();
        let mut gone = Some(turn.app);
        if let Some(session) = state.sessions.get_mut(&turn.session) {
            session.opened |= well;
            session.instance = match gone.take_if(|_| alive) {
                Some(app) => Instance::Idle(app),
                None => Instance::Dead,
            };
        }
        self.sessions.changed.notify_all();
        drop(state);
        drop(gone);
    }

    /// Waits for `time`, or without end; ends early with `false` when the client is gone or, if `heeding`, when the call
    /// is cancelled.
    pub fn wait(&self, time: Option<Duration>, heeding: bool) -> bool {
        let until = time.map(|time| Instant::now() + time);
        let mut state = self.sessions.lock();
        loop {
            match state.calls.get(&self.number).map(|call| call.ending) {
                Some(None) => {}
                Some(Some(Ending::Cancelled)) if !heeding => {}
                _ => return false,
            }
            let changed = &self.sessions.changed;
            state = match until {
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return true;
                    }
                    let waited = changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
