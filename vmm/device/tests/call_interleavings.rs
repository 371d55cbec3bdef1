// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls of the TEE under threads in many orders: `calls.rs`, `life.rs` and the engine's `sessions.rs` themselves, compiled here with shuttle's
//! locks and threads, a model of the rings, and an engine whose calls do nothing but take turns, wait and end.

/// What the code has its locks and threads from.
mod sync {
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub use shuttle::thread;
    pub use std::sync::PoisonError;

    pub fn doze<T>(_: &Condvar, guard: MutexGuard<T>, _: std::time::Duration) {
        drop(guard);
        thread::yield_now();
    }
}

/// A ring that a front end starts and stops, and what was answered on it since it began.
mod ring {
    use std::convert::Infallible;
    use std::sync::Arc;

    use crate::chain::Chain;
    use crate::sync::{Mutex, MutexGuard};

    #[derive(Clone)]
    pub struct Memory;

    #[derive(Default)]
    pub struct State {
        pub runs: bool,
        pub at: u16,
        pub answers: Vec<u16>,
    }

    #[derive(Clone, Default)]
    pub struct Ring(Arc<Mutex<State>>);

    impl Ring {
        pub fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        pub fn queue_next_avail(&self) -> u16 {
            self.state().at
        }
    }

    pub fn runs(ring: &Ring) -> bool {
        ring.state().runs
    }

    pub fn answer_if_running(
        ring: &Ring,
        _: &Memory,
        head: u16,
        _: &Chain,
        _: &[u8],
        first: impl FnOnce() -> bool,
    ) -> Result<bool, Infallible> {
        let mut state = ring.state();
        let sent = state.runs && first();
        if sent {
            state.answers.push(head);
        }
        Ok(sent)
    }
}

/// A request's place for its answer.
mod chain {
    pub struct Chain;
}

mod events {
    pub fn post(_: &crate::Engine, _: &crate::ring::Ring, _: &crate::ring::Memory, _: &[()]) {}
}

mod spans {
    pub fn begin(_: u32, _: &[u8]) {}
    pub fn end(_: u32, _: &[u8]) {}
}

/// The engine, as far as calls know it: the sessions are the real ones.
mod engine {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use crate::ring::Memory;
    use crate::sessions::{Sessions, Ticket};

    #[derive(Debug, Default)]
    pub struct Engine {
        pub sessions: Sessions<()>,
        /// Sessions whose instance a call has.
        pub busy: Mutex<BTreeSet<u32>>,
    }

    pub struct Answer {
        pub bytes: [u8; 0],
        pub events: [(); 0],
    }

    const ANSWER: Answer = Answer {
        bytes: [],
        events: [],
    };

    #[allow(dead_code, reason = "this engine sends every answer once")]
    pub enum Delivery {
        Once,
        Late,
        Twice,
        Never,
    }

    #[derive(Clone, Copy, PartialEq)]
    pub enum Kind {
        Works,
        Waits,
        Closes,
    }

    pub struct Call {
        pub engine: Arc<Engine>,
        pub number: u64,
        pub kind: Kind,
    }

    impl Drop for Call {
        fn drop(&mut self) {
            self.engine.sessions.forget(self.number);
        }
    }

    impl Call {
        pub fn decline(self) -> Answer {
            ANSWER
        }
    }

    impl Engine {
        pub fn reset(&self) {
            self.sessions.reset();
        }

        pub fn halt(&self, _: bool) {}

        pub fn is_silent(&self) -> bool {
            false
        }

        pub fn call_delivery(&self) -> Delivery {
            Delivery::Once
        }

        pub fn run(&self, _: Memory, call: Call, go_on: &dyn Fn() -> bool) -> Answer {
            let ticket = Ticket::new(&self.sessions, call.number);
            if call.kind == Kind::Closes {
                ticket.close();
            } else if let Ok(mut turn) = ticket.turn() {
                turn.instance = Some(());
                let session = turn.session;
                let alone = self.busy.lock().unwrap().insert(session);
                assert!(alone, "two calls have an instance");
                match call.kind {
                    Kind::Waits => drop(ticket.wait(None, true)),
                    _ => drop(go_on()),
                }
                self.busy.lock().unwrap().remove(&session);
                ticket.give_back(turn, true);
            }
            ANSWER
        }
    }
}

#[allow(dead_code, unused_imports, reason = "the device uses the rest")]
#[path = "../src/calls.rs"]
mod calls;
#[allow(dead_code, unused_imports, reason = "the device uses the rest")]
#[path = "../src/life.rs"]
mod life;
#[allow(dead_code, reason = "the engine uses the rest")]
#[path = "../../engine/src/tee/sessions.rs"]
mod sessions;

use std::sync::Arc;

use calls::{Calls, Place};
use chain::Chain;
use engine::{Answer, Call, Delivery, Engine, Kind};
use life::Life;
use ring::{Memory, Ring};
use sessions::{Closing, MAX_CALLS, Ticket};
use shuttle::thread;

const ORDERS: usize = 1_000;
const CONTEXT: u64 = 1;
/// How a call that waits is cancelled.
const CANCEL: u32 = 7;

struct World {
    engine: Arc<Engine>,
    life: Arc<Life>,
    calls: Arc<Calls>,
    control: Ring,
    own: Ring,
}

impl World {
    /// A device that runs.
    fn new() -> Arc<Self> {
        let engine = Arc::new(Engine::default());
        let life = Arc::new(Life::new(Arc::clone(&engine)));
        let world = Arc::new(Self {
            calls: Calls::new(Arc::clone(&engine), Arc::clone(&life), Memory),
            engine,
            life,
            control: Ring::default(),
            own: Ring::default(),
        });
        world.begin();
        world
    }

    /// A session that is open.
    fn open(&self) -> u32 {
        let sessions = &self.engine.sessions;
        let number = sessions.begin_open(CONTEXT, 0, None).unwrap();
        let ticket = Ticket::new(sessions, number);
        let mut turn = ticket.turn().unwrap();
        let session = turn.session;
        turn.instance = Some(());
        ticket.give_back(turn, true);
        sessions.forget(number);
        session
    }

    /// A driver begins with new rings.
    fn begin(&self) {
        self.life.config_read();
        for ring in [&self.own, &self.control] {
            let mut state = ring.state();
            (state.runs, state.at) = (true, 0);
            state.answers.clear();
        }
        assert!(self.life.is_running(&self.control));
    }

    /// As GET_VRING_BASE does for each ring.
    fn stop(&self) {
        self.own.state().runs = false;
        self.control.state().runs = false;
        self.life.control_stopped();
    }

    /// After a pause, as the rings' worker does when it is kicked.
    fn resume(&self) {
        self.own.state().runs = true;
        self.control.state().runs = true;
        assert!(self.life.is_running(&self.control));
        self.calls.send();
    }

    /// A call that begins in the present life, if its session is there.
    fn begin_call(&self, head: u16, session: u32, kind: Kind) -> bool {
        let life = self.life.number();
        let sessions = &self.engine.sessions;
        let number = match kind {
            Kind::Works => sessions.begin_invoke(CONTEXT, session, 0),
            Kind::Waits => sessions.begin_invoke(CONTEXT, session, CANCEL),
            Kind::Closes => match sessions.begin_close(CONTEXT, session) {
                Ok(Closing::Waits(number)) => Ok(number),
                // Answered at once.
                Ok(Closing::Done) => return false,
                Err(refusal) => Err(refusal),
            },
        };
        let Ok(number) = number else {
            return false;
        };
        let place = Place {
            life,
            head,
            request: Vec::new(),
            chain: Chain,
            control: self.control.clone(),
            own: self.own.clone(),
            event: Ring::default(),
        };
        let call = Call {
            engine: Arc::clone(&self.engine),
            number,
            kind,
        };
        self.calls.start(place, call);
        true
    }

    /// Returns when all these were answered.
    fn await_answers(&self, mut heads: Vec<u16>) {
        heads.sort_unstable();
        while self.own.state().answers.len() < heads.len() {
            thread::yield_now();
        }
        let mut answers = self.own.state().answers.clone();
        answers.sort_unstable();
        assert_eq!(answers, heads, "each is answered once");
    }

    /// The device ends, and all its threads.
    fn end(&self) {
        self.life.stop();
        self.calls.stop();
        // A thread that never ends is found as too long an order.
        while Arc::strong_count(&self.calls) > 1 {
            thread::yield_now();
        }
        assert_eq!(self.engine.sessions.count(), (0, 0));
    }
}

fn check(order: fn()) {
    shuttle::check_random(order, ORDERS);
    shuttle::check_pct(order, ORDERS, 3);
}

/// Runs `part` on a thread of its own.
fn beside(
    world: &Arc<World>,
    part: impl FnOnce(&World) + Send + 'static,
) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || part(&world))
}

#[test]
fn each_call_is_answered_once_while_its_session_is_closed() {
    check(|| {
        let world = World::new();
        let session = world.open();
        let cancels = beside(&world, move |world| {
            // Too early, or when the session has gone.
            let _ = world.engine.sessions.cancel(CONTEXT, session, CANCEL);
        });
        let mut heads = Vec::new();
        for (head, kind) in [(1, Kind::Waits), (2, Kind::Works), (3, Kind::Closes)] {
            if world.begin_call(head, session, kind) {
                heads.push(head);
            }
        }
        world.await_answers(heads);
        cancels.join().unwrap();
        assert_eq!(world.engine.sessions.count(), (0, 0));
        world.end();
    });
}

#[test]
fn a_pause_loses_no_answer_and_repeats_none() {
    check(|| {
        let world = World::new();
        let session = world.open();
        for head in [1, 2] {
            assert!(world.begin_call(head, session, Kind::Works));
        }
        // Not at zero, where a pause and a reset look the same.
        world.life.control_taken();
        world.control.state().at = 1;
        world.stop();
        world.resume();
        // What ended just before the worker looked is sent when it looks again.
        let kicks = beside(&world, |world| world.calls.send());
        world.await_answers(vec![1, 2]);
        kicks.join().unwrap();
        world.await_answers(vec![1, 2]);
        world.end();
    });
}

#[test]
fn a_call_of_another_life_is_not_answered() {
    check(|| {
        let world = World::new();
        let session = world.open();
        let calls = beside(&world, move |world| {
            assert!(world.begin_call(1, session, Kind::Waits));
            assert!(world.begin_call(2, session, Kind::Works));
        });
        calls.join().unwrap();
        let closes = beside(&world, move |world| {
            // Its thread is the queue's, which the stop waits for; so it is the session alone that is closed here.
            let _ = world.engine.sessions.begin_close(CONTEXT, session);
        });
        world.stop();
        world.begin();
        let session = world.open();
        assert!(world.begin_call(9, session, Kind::Works));
        world.await_answers(vec![9]);
        closes.join().unwrap();
        world.await_answers(vec![9]);
        world.end();
    });
}

#[test]
fn the_end_of_the_device_ends_every_call() {
    check(|| {
        let world = World::new();
        let session = world.open();
        let calls = beside(&world, move |world| {
            for (head, kind) in [(1, Kind::Waits), (2, Kind::Works), (3, Kind::Closes)] {
                world.begin_call(head, session, kind);
            }
        });
        let cancels = beside(&world, move |world| {
            world.engine.sessions.close_context(CONTEXT);
        });
        world.life.stop();
        world.calls.stop();
        calls.join().unwrap();
        cancels.join().unwrap();
        world.end();
    });
}
