// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sessions of the TEE under threads in many orders: the engine's own code, compiled here with shuttle's locks, so that every lock and
//! every wait is a place where another thread may go on. A thread that waits for ever is a deadlock, which shuttle finds.

/// What the code has its locks from.
mod sync {
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

#[allow(dead_code, reason = "the engine uses the rest")]
#[path = "../src/tee/sessions.rs"]
mod sessions;

use std::sync::atomic::{AtomicUsize, Ordering};

use pinbed_abi::ta::Uuid;
use sessions::{Closing, Refusal, Sessions, Ticket};
use shuttle::sync::Arc;
use shuttle::thread;

/// Orders that are tried of each test: the same in each run.
const ORDERS: usize = 1_000;

/// An application's instance. It knows how many there are, and who uses it.
struct Instance {
    alive: Arc<AtomicUsize>,
    users: Arc<AtomicUsize>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Default)]
struct World {
    sessions: Arc<Sessions<Instance>>,
    alive: Arc<AtomicUsize>,
}

impl World {
    /// Runs a call as the engine does: takes the instance, uses it, and puts it back. Dies if the call says so.
    fn run(&self, number: u64, dies: bool) -> Result<u32, Refusal> {
        let ticket = Ticket::new(&self.sessions, number);
        let turn = ticket.turn();
        let result = turn.map(|mut turn| {
            let session = turn.session;
            let instance = turn.instance.take().unwrap_or_else(|| {
                self.alive.fetch_add(1, Ordering::SeqCst);
                Instance {
                    alive: Arc::clone(&self.alive),
                    users: Arc::default(),
                }
            });
            assert_eq!(
                instance.users.fetch_add(1, Ordering::SeqCst),
                0,
                "two calls have an instance"
            );
            thread::yield_now();
            instance.users.fetch_sub(1, Ordering::SeqCst);
            turn.instance = (!dies).then_some(instance);
            ticket.give_back(turn, !dies);
            session
        });
        self.sessions.forget(number);
        result
    }

    fn open(&self, context: u64, single: Option<Uuid>) -> Result<u32, Refusal> {
        let number = self.sessions.begin_open(context, 0, single)?;
        self.run(number, false)
    }

    fn invoke(&self, context: u64, session: u32, dies: bool) -> Result<u32, Refusal> {
        let number = self.sessions.begin_invoke(context, session, 1)?;
        self.run(number, dies)
    }

    fn close(&self, context: u64, session: u32) -> Result<(), Refusal> {
        if let Closing::Waits(number) = self.sessions.begin_close(context, session)? {
            Ticket::new(&self.sessions, number).close();
            self.sessions.forget(number);
        }
        Ok(())
    }
}

/// Runs these at the same time, in many orders. In the end there is no session, no call and no instance.
fn all_at_once<const N: usize>(prepare: fn(&World) -> u32, parts: [fn(&World, u32); N]) {
    let order = move || {
        let world = World::default();
        let session = prepare(&world);
        let threads = parts.map(|part| {
            let world = world.clone();
            thread::spawn(move || part(&world, session))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        world.sessions.reset();
        assert_eq!(world.sessions.count(), (0, 0));
        assert_eq!(world.alive.load(Ordering::SeqCst), 0, "an instance is left");
    };
    shuttle::check_random(order, ORDERS);
    // And orders with few changes of thread, at places that random orders seldom have.
    shuttle::check_pct(order, ORDERS, 3);
}

#[test]
fn calls_of_a_session_take_turns_while_it_is_closed() {
    all_at_once(
        |world| world.open(1, None).unwrap(),
        [
            |world, session| {
                let _ = world.invoke(1, session, false);
            },
            |world, session| {
                let _ = world.invoke(1, session, false);
            },
            |world, session| {
                world.close(1, session).unwrap();
                assert_eq!(world.invoke(1, session, false), Err(Refusal::NoSession));
            },
        ],
    );
}

#[test]
fn an_instance_that_dies_is_taken_by_no_other_call() {
    all_at_once(
        |world| world.open(1, None).unwrap(),
        [
            |world, session| {
                let _ = world.invoke(1, session, true);
            },
            |world, session| {
                let _ = world.invoke(1, session, false);
            },
            |world, _| world.sessions.close_context(1),
        ],
    );
}

#[test]
fn an_application_of_one_instance_has_one() {
    const SINGLE: Uuid = pinbed_abi::ta::pin::UUID;
    fn open(world: &World, _: u32) {
        if let Ok(session) = world.open(1, Some(SINGLE)) {
            assert!(
                world.alive.load(Ordering::SeqCst) <= 1,
                "two instances at a time"
            );
            // A reset may have closed it.
            let _ = world.close(1, session);
        }
    }
    all_at_once(|_| 0, [open, open, open]);
}

#[test]
fn a_reset_ends_everything_in_whatever_order() {
    all_at_once(
        |world| world.open(1, None).unwrap(),
        [
            |world, session| {
                let _ = world.invoke(1, session, false);
            },
            |world, session| {
                let _ = world.close(1, session);
            },
            |world, _| world.sessions.reset(),
            |world, _| {
                let _ = world.open(2, None);
            },
        ],
    );
}

#[test]
fn a_wait_without_end_ends_when_its_client_cancels_or_goes() {
    fn waits(world: &World, session: u32) {
        let Ok(number) = world.sessions.begin_invoke(1, session, 7) else {
            return;
        };
        let ticket = Ticket::new(&world.sessions, number);
        if let Ok(turn) = ticket.turn() {
            assert!(!ticket.wait(None, true));
            ticket.give_back(turn, true);
        }
        world.sessions.forget(number);
    }
    all_at_once(
        |world| world.open(1, None).unwrap(),
        [waits, |world, _| world.sessions.close_context(1)],
    );
    all_at_once(
        |world| world.open(1, None).unwrap(),
        [waits, |world, session| world.close(1, session).unwrap()],
    );
}
