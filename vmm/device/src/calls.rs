// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls of the TEE queue that are under way.
//!
//! A call may block, so each is run by a thread of a pool, which has one for each call that the engine lets be under way. It is
//! answered when it ends, in whatever order. A stop of the rings does not end a call, since it may be a pause: one that ends
//! meanwhile waits here until the ring runs again, and is dropped if that is in another life of the device.

use std::collections::VecDeque;
use std::sync::Arc;

use pinbed_abi::wire;

use crate::chain::Chain;
use crate::events::post;
use crate::life::{Life, Next};
use crate::ring::{self, Memory, Ring};
use crate::spans;
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, thread};
use crate::{Answer, Call, Delivery, Engine, MAX_CALLS};

/// Calls and closings that are not answered yet; more are declined.
const SLOTS: usize = 2 * MAX_CALLS;

/// Where a call's answer goes.
pub(crate) struct Place {
    /// The life of the device in which it was made.
    pub life: u64,
    pub head: u16,
    /// The request's header.
    pub request: Vec<u8>,
    pub chain: Chain,
    pub control: Ring,
    pub own: Ring,
    pub event: Ring,
}

#[derive(Default)]
struct State {
    /// The life that the rest is about.
    life: u64,
    /// Calls that no thread has taken yet.
    queue: VecDeque<(Place, Call)>,
    /// Answers that wait for their ring.
    ended: Vec<(Place, Answer)>,
    /// Calls that are not answered.
    slots: usize,
    threads: usize,
    /// Threads that wait for a call.
    idle: usize,
    stopping: bool,
}

impl State {
    /// Forgets what was of another life.
    fn enter(&mut self, life: u64) {
        if self.life != life {
            self.life = life;
            self.slots = 0;
            self.queue.clear();
            self.ended.clear();
        }
    }
}

/// The calls of a device.
pub(crate) struct Calls {
    engine: Arc<Engine>,
    life: Arc<Life>,
    memory: Memory,
    state: Mutex<State>,
    more: Condvar,
}

impl Calls {
    pub fn new(engine: Arc<Engine>, life: Arc<Life>, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            engine,
            life,
            memory,
            state: Mutex::default(),
            more: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `call` run, and then answered in its place.
    pub fn start(self: &Arc<Self>, place: Place, call: Call) {
        let mut state = self.state();
        state.enter(place.life);
        if state.idle <= state.queue.len() && state.threads < MAX_CALLS {
            let calls = Arc::clone(self);
            let thread = thread::Builder::new().name("tee call".into());
            match thread.spawn(move || calls.work()) {
                Ok(_) => state.threads += 1,
                Err(error) => log::error!("no thread for a TEE call: {error}"),
            }
        }
        state.slots += 1;
        if state.slots > SLOTS || state.threads == 0 {
            drop(state);
            self.end(place, call.decline());
            return;
        }
        state.queue.push_back((place, call));
        drop(state);
        self.more.notify_one();
    }

    /// A thread of the pool.
    fn work(&self) {
        let mut state = self.state();
        while !state.stopping {
            let Some((place, call)) = state.queue.pop_front() else {
                state.idle += 1;
                let woken = self.more.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            let answer = self.run(&place, call);
            self.end(place, answer);
            state = self.state();
        }
    }

    fn run(&self, place: &Place, call: Call) -> Answer {
        let go_on = || {
            loop {
                match self.life.look(place.life, &place.control, &place.own) {
                    Next::GoOn => return true,
                    Next::Abandon => return false,
                    Next::Wait => self.life.wait_a_moment(),
                }
            }
        };
        spans::begin(wire::QUEUE_TEE, &place.request);
        let answer = self.engine.run(self.memory.clone(), call, &go_on);
        spans::end(wire::QUEUE_TEE, &answer.bytes);
        answer
    }

    /// No thread takes up a call any more.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        state.queue.clear();
        state.ended.clear();
        drop(state);
        self.more.notify_all();
    }

    /// Sends the answers that have waited, as far as their rings run again.
    pub fn send(&self) {
        let mut state = self.state();
        let waiting = std::mem::take(&mut state.ended);
        for (place, answer) in waiting {
            self.try_send(&mut state, place, answer);
        }
    }

    fn end(&self, place: Place, answer: Answer) {
        // Held until the answer is sent or waits: else `send` could miss it in between.
        let mut state = self.state();
        self.try_send(&mut state, place, answer);
    }

    /// Sends an answer, or keeps it if its ring does not run.
    fn try_send(&self, state: &mut State, place: Place, answer: Answer) {
        let (_, life) = self.life.now();
        state.enter(life);
        if place.life != life || state.stopping {
            log::debug!("a TEE call ends after the device's reset");
            return;
        }
        if self.engine.is_silent() {
            return;
        }
        // Memory is touched under the ring's lock only, and only if the ring runs in the call's life: it may have been stopped and begun anew
        // since the call ended.
        let lives = || self.life.now() == (true, place.life);
        let with_events = || {
            let lives = lives();
            if lives {
                post(&self.engine, &place.event, &self.memory, &answer.events);
            }
            lives
        };
        let send = |first: &dyn Fn() -> bool| {
            let (ring, memory) = (&place.own, &self.memory);
            ring::answer_if_running(ring, memory, place.head, &place.chain, &answer.bytes, first)
        };
        let sent = match lives() {
            true => match self.engine.call_delivery() {
                Delivery::Never => Ok(true),
                Delivery::Twice => send(&with_events).and_then(|_| send(&lives)),
                Delivery::Once | Delivery::Late => send(&with_events),
            },
            false => Ok(false),
        };
        match sent {
            Ok(false) => {
                state.ended.push((place, answer));
                return;
            }
            Ok(true) => {}
            Err(error) => log::warn!("TEE queue: {error}; an answer is lost"),
        }
        state.slots -= 1;
    }
}
