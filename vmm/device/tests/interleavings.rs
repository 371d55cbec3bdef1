// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where a life of the device ends and another begins, under threads in many orders: `life.rs` itself, compiled here with shuttle's locks, a
//! model of the rings, and an engine that only counts.

/// What the code has its locks from.
mod sync {
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;

    pub fn doze<T>(_: &Condvar, guard: MutexGuard<T>, _: std::time::Duration) {
        drop(guard);
        shuttle::thread::yield_now();
    }
}

/// A ring that a front end starts and stops.
mod ring {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

    #[derive(Clone, Debug, Default)]
    pub struct Ring(Arc<(AtomicBool, AtomicU16)>);

    impl Ring {
        pub fn start(&self, at: u16) {
            self.0.1.store(at, Ordering::SeqCst);
            self.0.0.store(true, Ordering::SeqCst);
        }

        pub fn stop(&self) {
            self.0.0.store(false, Ordering::SeqCst);
        }

        pub fn queue_next_avail(&self) -> u16 {
            self.0.1.load(Ordering::SeqCst)
        }
    }

    pub fn runs(ring: &Ring) -> bool {
        ring.0.0.load(Ordering::SeqCst)
    }
}

/// The engine, as far as life knows it: what is attached is of a life.
mod engine {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    pub struct Engine {
        pub resets: AtomicUsize,
    }

    impl Engine {
        pub fn reset(&self) {
            self.resets.fetch_add(1, Ordering::SeqCst);
        }

        pub fn halt(&self, _: bool) {}
    }
}

#[allow(dead_code, unused_imports, reason = "the device uses the rest")]
#[path = "../src/life.rs"]
mod life;

use std::sync::atomic::{AtomicUsize, Ordering};

use engine::Engine;
use life::{Life, Next, Worker};
use ring::Ring;
use shuttle::sync::Arc;
use shuttle::thread;

const ORDERS: usize = 3_000;

struct World {
    engine: std::sync::Arc<Engine>,
    life: Life,
    control: Ring,
    worker: Worker,
    /// Accesses to memory that are under way.
    accesses: AtomicUsize,
}

impl World {
    fn new() -> Arc<Self> {
        let engine = std::sync::Arc::new(Engine::default());
        Arc::new(Self {
            life: Life::new(std::sync::Arc::clone(&engine)),
            engine,
            control: Ring::default(),
            worker: Worker::default(),
            accesses: AtomicUsize::new(0),
        })
    }

    /// A worker's thread: takes a request, and makes some accesses for it, as `Backend::ask` does. Returns whether it was abandoned.
    fn work(&self) -> bool {
        self.worker.works(|| {
            if !self.life.is_running(&self.control) {
                return true;
            }
            let life = self.life.number();
            self.life.control_taken();
            for _ in 0..2 {
                loop {
                    match self.life.look(life, &self.control, &self.control) {
                        Next::GoOn => break,
                        Next::Abandon => return true,
                        Next::Wait => self.worker.parks(|| {
                            thread::yield_now();
                        }),
                    }
                }
                self.accesses.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                self.accesses.fetch_sub(1, Ordering::SeqCst);
            }
            false
        })
    }

    /// As GET_VRING_BASE does. When it returns, nobody accesses memory.
    fn stop(&self) {
        self.control.stop();
        self.life.control_stopped();
        self.worker.await_rest();
        assert_eq!(
            self.accesses.load(Ordering::SeqCst),
            0,
            "memory is accessed after a stop"
        );
    }
}

fn check(order: fn()) {
    shuttle::check_random(order, ORDERS);
    shuttle::check_pct(order, ORDERS, 3);
}

#[test]
fn no_memory_is_accessed_between_a_stop_and_a_start() {
    check(|| {
        let world = World::new();
        world.control.start(0);
        let worker = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.work())
        };
        world.stop();
        // A reset: the ring begins anew, and the configuration space was read.
        world.life.config_read();
        world.control.start(0);
        assert!(world.life.is_running(&world.control));
        worker.join().unwrap();
        assert_eq!(world.accesses.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn work_of_another_life_is_abandoned_once_and_the_engine_reset_once() {
    check(|| {
        let world = World::new();
        world.control.start(0);
        assert!(world.life.is_running(&world.control));
        let before = world.engine.resets.load(Ordering::SeqCst);
        let life = world.life.number();
        world.life.control_taken();
        world.stop();
        world.control.start(0);
        // All threads ask at the same time, and decide once.
        let threads = [(); 3].map(|()| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.life.look(life, &world.control, &world.control))
        });
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Next::Abandon);
        }
        assert_eq!(world.engine.resets.load(Ordering::SeqCst), before + 1);
        assert_eq!(world.life.number(), life + 1);
    });
}

#[test]
fn work_goes_on_after_a_pause() {
    check(|| {
        let world = World::new();
        world.control.start(0);
        assert!(world.life.is_running(&world.control));
        let resets = world.engine.resets.load(Ordering::SeqCst);
        world.life.control_taken();
        let worker = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let life = world.life.number();
                world.worker.works(|| {
                    loop {
                        match world.life.look(life, &world.control, &world.control) {
                            Next::GoOn => return true,
                            Next::Abandon => return false,
                            Next::Wait => world.worker.parks(thread::yield_now),
                        }
                    }
                })
            })
        };
        world.stop();
        world.control.start(1);
        assert!(worker.join().unwrap(), "work was abandoned by a pause");
        assert_eq!(world.engine.resets.load(Ordering::SeqCst), resets);
    });
}
