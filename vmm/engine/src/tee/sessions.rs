// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who has which session open, which calls are under way, and whose turn it is.
//!
//! All of it is under one lock, which is never held while a trusted application runs: a call takes its session's instance
//! out, runs it, and puts it back. Whatever may end a wait (an instance put back, a call gone, a cancellation, a closing)
//! wakes all that wait. What an instance is does not matter here.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pinbed_abi::ta::Uuid;

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Calls that can be under way at a time, those aside that close a session.
pub const MAX_CALLS: usize = 64;
/// Sessions that can be open at a time.
pub const MAX_SESSIONS: usize = 1024;

/// Reasons not to begin or not to run a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The context has no such session.
    #[error("no such session")]
    NoSession,
    /// Too many calls, or an application that takes one session at a time has one.
    #[error("busy")]
    Busy,
    /// Too many sessions.
    #[error("too many sessions")]
    Full,
    /// The call was cancelled before it ran.
    #[error("cancelled")]
    Cancelled,
    /// The session's instance is gone.
    #[error("the instance is dead")]
    Dead,
}

/// The instance of a session's trusted application.
enum Instance<I> {
    /// It is not made yet.
    New,
    Idle(I),
    /// A call has it.
    Busy,
    /// It panicked.
    Dead,
}

struct Session<I> {
    context: u64,
    /// The application, if it has one instance at a time.
    single: Option<Uuid>,
    instance: Instance<I>,
    /// Whether the call that opens it has succeeded; until then its client does not know it.
    opened: bool,
    /// Its client has closed it, and it waits for its calls to end.
    closing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Opens,
    Invokes,
    Closes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// A call that has unmasked cancellation ends early.
    Cancelled,
    /// Nobody waits for the answer: the call ends early in any case.
    Forced,
}

#[derive(Debug)]
struct Pending {
    context: u64,
    session: u32,
    kind: Kind,
    cancel_id: u32,
    ending: Option<Ending>,
}

struct State<I> {
    sessions: BTreeMap<u32, Session<I>>,
    /// By number, which grows: the calls of a session take turns in this order.
    calls: BTreeMap<u64, Pending>,
    /// Applications with one instance at a time that have it now.
    singles: BTreeSet<Uuid>,
    last_session: u32,
    last_call: u64,
}

/// See the module.
pub struct Sessions<I> {
    state: Mutex<State<I>>,
    changed: Condvar,
}

impl<I> Default for Sessions<I> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                sessions: BTreeMap::new(),
                calls: BTreeMap::new(),
                singles: BTreeSet::new(),
                last_session: 0,
                last_call: 0,
            }),
            changed: Condvar::new(),
        }
    }
}

impl<I> std::fmt::Debug for Sessions<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Sessions")
            .field("sessions", &state.sessions.keys())
            .field("calls", &state.calls)
            .finish()
    }
}

impl<I> State<I> {
    fn begin(
        &mut self,
        context: u64,
        session: u32,
        kind: Kind,
        cancel_id: u32,
    ) -> Result<u64, Refusal> {
        let counted = self.calls.values().filter(|call| call.kind != Kind::Closes);
        // No more closings than sessions with calls under way.
        if kind != Kind::Closes && counted.count() >= MAX_CALLS {
            return Err(Refusal::Busy);
        }
        self.last_call += 1;
        let pending = Pending {
            context,
            session,
            kind,
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

    fn owned(&mut self, context: u64, session: u32) -> Result<&mut Session<I>, Refusal> {
        self.sessions
            .get_mut(&session)
            .filter(|session| session.context == context && session.opened && !session.closing)
            .ok_or(Refusal::NoSession)
    }

    fn end(&mut self, ending: Ending, which: impl Fn(&Pending) -> bool) {
        for call in self.calls.values_mut().filter(|call| which(call)) {
            if call.ending != Some(Ending::Forced) {
                call.ending = Some(ending);
            }
        }
    }
}

/// What became of a CLOSE_SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The session is closed.
    Done,
    /// It has calls under way, for whose end the closing waits: a call of this number.
    Waits(u64),
}

impl<I> Sessions<I> {
    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call that opens a session, which exists from now on; returns the call's number. `single` is an application that
    /// takes one session at a time.
    pub fn begin_open(
        &self,
        context: u64,
        cancel_id: u32,
        single: Option<Uuid>,
    ) -> Result<u64, Refusal> {
        let mut state = self.lock();
        let mut open = state.sessions.values().filter(|session| !session.closing);
        if single.is_some() && open.any(|session| session.single == single) {
            return Err(Refusal::Busy);
        }
        if state.sessions.len() >= MAX_SESSIONS {
            return Err(Refusal::Full);
        }
        let session = state.new_session_id();
        let number = state.begin(context, session, Kind::Opens, cancel_id)?;
        state.sessions.insert(
            session,
            Session {
                context,
                single,
                instance: Instance::New,
                opened: false,
                closing: false,
            },
        );
        Ok(number)
    }

    /// Notes a call into a session; returns the call's number.
    pub fn begin_invoke(&self, context: u64, session: u32, cancel_id: u32) -> Result<u64, Refusal> {
        let mut state = self.lock();
        state.owned(context, session)?;
        state.begin(context, session, Kind::Invokes, cancel_id)
    }

    /// Closes a session, or notes that it is to be closed: no call begins in it any more, those under way are cancelled.
    pub fn begin_close(&self, context: u64, session: u32) -> Result<Closing, Refusal> {
        let mut state = self.lock();
        state.owned(context, session)?.closing = true;
        if state.calls.values().all(|call| call.session != session) {
            let closed = state.sessions.remove(&session);
            drop(state);
            self.retire(closed);
            return Ok(Closing::Done);
        }
        state.end(Ending::Cancelled, |call| call.session == session);
        let number = state.begin(context, session, Kind::Closes, 0)?;
        drop(state);
        self.changed.notify_all();
        Ok(Closing::Waits(number))
    }

    /// Cancels what [`pinbed_abi::tee::CancelRequest`] names. That it names no call is no error: it may have ended just now.
    pub fn cancel(&self, context: u64, session: u32, cancel_id: u32) -> Result<(), Refusal> {
        let mut state = self.lock();
        if session != 0 {
            state.owned(context, session)?;
        }
        state.end(Ending::Cancelled, |call| {
            let named = match call.kind {
                Kind::Opens => 0,
                Kind::Invokes => call.session,
                Kind::Closes => return false,
            };
            call.context == context && named == session && call.cancel_id == cancel_id
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Closes all sessions of a context and ends its calls.
    pub fn close_context(&self, context: u64) {
        let mut state = self.lock();
        let (closed, open) = std::mem::take(&mut state.sessions)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, session)| session.context == context);
        state.sessions = open;
        state.end(Ending::Forced, |call| call.context == context);
        drop(state);
        self.retire(closed.into_values());
    }

    /// Closes all sessions and forgets all calls, which end early: the next driver has all slots.
    pub fn reset(&self) {
        let mut state = self.lock();
        let closed = std::mem::take(&mut state.sessions);
        state.calls.clear();
        drop(state);
        self.retire(closed.into_values());
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

    /// The call of this number is over. If it was to open a session and did not, or to close one, the session goes with it.
    pub fn forget(&self, number: u64) {
        let mut state = self.lock();
        let call = state.calls.remove(&number);
        let gone = call.and_then(|call| match state.sessions.entry(call.session) {
            Entry::Occupied(session) => match call.kind {
                Kind::Opens if !session.get().opened => Some(session.remove()),
                Kind::Closes => Some(session.remove()),
                _ => None,
            },
            Entry::Vacant(_) => None,
        });
        drop(state);
        self.retire(gone);
    }

    /// Drops closed sessions, without the lock. An instance that a call has goes away with that.
    fn retire(&self, closed: impl IntoIterator<Item = Session<I>>) {
        let mut singles = Vec::new();
        for session in closed {
            if let Instance::Idle(instance) = session.instance {
                drop(instance);
                singles.extend(session.single);
            }
        }
        let mut state = self.lock();
        for single in singles {
            state.singles.remove(&single);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// A call whose turn it is.
pub struct Turn<I> {
    /// Its session.
    pub session: u32,
    /// The instance, back to the session with [`Ticket::give_back`]; `None` if the call is to make it.
    pub instance: Option<I>,
    single: Option<Uuid>,
}

/// A running call's place among the calls.
pub struct Ticket<'a, I> {
    sessions: &'a Sessions<I>,
    number: u64,
}

impl<'a, I> Ticket<'a, I> {
    /// The place of the call of this number.
    pub fn new(sessions: &'a Sessions<I>, number: u64) -> Self {
        Self { sessions, number }
    }

    /// Waits until the calls that came before are done with the session's instance, and takes it. One that is to be made waits
    /// until there is no other of its kind, if there may be one only.
    pub fn turn(&self) -> Result<Turn<I>, Refusal> {
        let mut state = self.sessions.lock();
        loop {
            let now = &mut *state;
            let call = now.calls.get(&self.number).ok_or(Refusal::Cancelled)?;
            // That of a session that is closed, too, since it began before.
            if call.ending.is_some() {
                return Err(Refusal::Cancelled);
            }
            let id = call.session;
            let session = now.sessions.get_mut(&id);
            let session = session.filter(|session| !session.closing);
            let session = session.ok_or(Refusal::NoSession)?;
            let single = session.single;
            let mut earlier = now.calls.range(..self.number);
            let waits = match &session.instance {
                Instance::Dead => return Err(Refusal::Dead),
                Instance::New => single.is_some_and(|single| now.singles.contains(&single)),
                Instance::Busy => true,
                Instance::Idle(_) => earlier.any(|(_, call)| call.session == id),
            };
            if !waits {
                let instance = match std::mem::replace(&mut session.instance, Instance::Busy) {
                    Instance::Idle(instance) => Some(instance),
                    _ => {
                        now.singles.extend(single);
                        None
                    }
                };
                return Ok(Turn {
                    session: id,
                    instance,
                    single,
                });
            }
            state = self.changed(state);
        }
    }

    /// Waits until the session's other calls are over, and closes it.
    pub fn close(&self) {
        let mut state = self.sessions.lock();
        let closed = loop {
            let Some(call) = state.calls.get(&self.number) else {
                return;
            };
            let id = call.session;
            let mut earlier = state.calls.range(..self.number);
            if earlier.all(|(_, call)| call.session != id) {
                break state.sessions.remove(&id);
            }
            state = self.changed(state);
        };
        drop(state);
        self.sessions.retire(closed);
    }

    /// Puts the instance back; `None` says that it is no more. A call that went `well` has opened the session, if it
    /// was not open. If the session was closed meanwhile the instance goes away now.
    pub fn give_back(&self, turn: Turn<I>, well: bool) {
        let mut state = self.sessions.lock();
        let mut instance = turn.instance;
        if let Some(session) = state.sessions.get_mut(&turn.session) {
            session.opened |= well;
            session.instance = match instance.take() {
                Some(instance) => Instance::Idle(instance),
                None => Instance::Dead,
            };
            if !matches!(session.instance, Instance::Dead) {
                drop(state);
                self.sessions.changed.notify_all();
                return;
            }
        }
        drop(state);
        drop(instance);
        if let Some(single) = turn.single {
            self.sessions.lock().singles.remove(&single);
        }
        self.sessions.changed.notify_all();
    }

    /// Waits for `time`, or without end; ends early with `false` when the client is gone or, if `cancellable`, when the call
    /// is cancelled.
    pub fn wait(&self, time: Option<Duration>, cancellable: bool) -> bool {
        let until = time.map(|time| Instant::now() + time);
        let mut state = self.sessions.lock();
        loop {
            match state.calls.get(&self.number).map(|call| call.ending) {
                Some(None) => {}
                Some(Some(Ending::Cancelled)) if !cancellable => {}
                _ => return false,
            }
            state = match until {
                None => self.changed(state),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return true;
                    }
                    let waited = self.sessions.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn changed<'s>(&'s self, state: MutexGuard<'s, State<I>>) -> MutexGuard<'s, State<I>> {
        let changed = self.sessions.changed.wait(state);
        changed.unwrap_or_else(PoisonError::into_inner)
    }
}
