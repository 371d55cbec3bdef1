// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls of the TEE queue that are under way.
//!
//! A call may block, so each runs in a thread of its own; the engine bounds their number. It is answered when it ends, in
//! whatever order. A stop of the rings does not end a call, since it may be a pause: one that ends meanwhile waits here
//! ([`Calls::halt`]) until it is decided what the stop meant ([`Calls::go_on`]). After a pause its answer goes out; after a
//! reset it belongs to a ring that is no more, and is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use pinbed_engine::tee::Call;
use pinbed_engine::{Answer, Engine};
use vhost_user_backend::VringT;
use vm_memory::GuestAddressSpace;

use crate::backend::{Memory, Ring, give_back, is_running, post};
use crate::chain::Chain;

/// Where a call's answer goes.
pub(crate) struct Place {
    pub head: u16,
    pub chain: Chain,
    pub own: Ring,
    pub event: Ring,
}

#[derive(Default)]
struct State {
    /// Which life of the device this is: goes up when it is reset.
    life: u64,
    halted: bool,
    ended: Vec<(Place, Answer)>,
}

/// The calls of a device.
pub(crate) struct Calls {
    engine: Arc<Engine>,
    memory: Memory,
    state: Mutex<State>,
}

struct Task {
    calls: Arc<Calls>,
    life: u64,
    place: Place,
    call: Call,
}

impl Task {
    fn run(self) {
        let memory = self.calls.memory.memory();
        let answer = self.calls.engine.run(&*memory, self.call);
        // Let go of before the end: a front end may change the memory's layout while an answer waits.
        drop(memory);
        self.calls.end(self.life, self.place, answer);
    }

    fn decline(self) {
        self.calls.end(self.life, self.place, self.call.decline());
    }
}

impl Calls {
    pub fn new(engine: Arc<Engine>, memory: Memory) -> Self {
        Self {
            engine,
            memory,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call`, and then answers it in its place.
    pub fn start(self: &Arc<Self>, place: Place, call: Call) {
        let task = Task {
            calls: Arc::clone(self),
            life: self.state().life,
            place,
            call,
        };
        // So that the task is still there when there is no thread for it.
        let slot = Arc::new(Mutex::new(Some(task)));
        let take = |slot: &Mutex<Option<Task>>| {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.take()
        };
        let of_thread = Arc::clone(&slot);
        let spawned = thread::Builder::new()
            .name("tee call".into())
            .spawn(move || {
                if let Some(task) = take(&of_thread) {
                    task.run();
                }
            });
        if let Err(error) = spawned
            && let Some(task) = take(&slot)
        {
            log::error!("no thread for a TEE call, which is answered BUSY: {error}");
            task.decline();
        }
    }

    /// The control ring was stopped: answers wait.
    pub fn halt(&self) {
        self.state().halted = true;
    }

    /// It was decided what that meant.
    pub fn go_on(&self, reset: bool) {
        let mut state = self.state();
        state.halted = false;
        if reset {
            state.life += 1;
            state.ended.clear();
        }
    }

    /// Sends the answers that have waited, as far as their rings run again.
    pub fn send(&self) {
        let mut state = self.state();
        if state.halted {
            return;
        }
        let waiting = std::mem::take(&mut state.ended);
        let answers = waiting.into_iter();
        state.ended = answers
            .filter_map(|(place, answer)| self.try_send(place, answer))
            .collect();
    }

    fn end(&self, life: u64, place: Place, answer: Answer) {
        // Held until the answer is sent or waits: else `send` could miss it in between.
        let mut state = self.state();
        if life != state.life {
            log::debug!("a TEE call ends after the device's reset");
            return;
        }
        let left = match state.halted {
            true => Some((place, answer)),
            false => self.try_send(place, answer),
        };
        state.ended.extend(left);
    }

    /// Sends an answer; gives it back if its ring does not run.
    fn try_send(&self, place: Place, answer: Answer) -> Option<(Place, Answer)> {
        // Memory is touched under the ring's lock only, after a look at whether it runs.
        let mut own = place.own.get_mut();
        if !is_running(&own) {
            drop(own);
            return Some((place, answer));
        }
        if self.engine.is_silent() {
            return None;
        }
        let memory = self.memory.memory();
        post(&self.engine, &place.event, &memory, &answer.events);
        let written = place.chain.write(&*memory, &answer.bytes);
        if let Err(error) = give_back(&mut own, place.head, written) {
            log::warn!("TEE queue: {error}; an answer is lost");
        }
        None
    }
}
