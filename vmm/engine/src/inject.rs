// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sabotage, where the host allows it: video jobs that start late, fail, or take the device down with them; a DETACH that is refused;
//! silence.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinbed_abi::wire;

/// Longest delay of a job in microseconds.
pub const MAX_DELAY: u64 = 10_000_000;

#[derive(Debug, Default)]
struct Planned {
    delay: Duration,
    delays: u32,
    failures: u32,
    deaths: u32,
    /// DETACHs that are refused.
    keeps: u32,
    silent: bool,
    /// Goes up when jobs that wait are to go on.
    generation: u64,
    /// While not zero, no job begins to wait.
    hurried: u32,
}

/// What is injected; see `wire::INJECT_…`.
#[derive(Debug, Default)]
pub struct Injector {
    planned: Mutex<Planned>,
    changed: Condvar,
}

/// What [`Injector::before_job`] wants of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Do it.
    Run,
    /// Do nothing and answer with an error.
    Fail,
}

impl Injector {
    /// Plans the misbehaviour of the next `count` jobs; false if there is no such kind, or the argument is out of range.
    pub fn plan(&self, kind: u32, count: u32, argument: u64) -> bool {
        let mut planned = self.lock();
        match kind {
            wire::INJECT_NONE => {
                drop(planned);
                self.clear();
            }
            wire::INJECT_DELAY if argument <= MAX_DELAY => {
                planned.delay = Duration::from_micros(argument);
                planned.delays = count;
            }
            wire::INJECT_FAIL => planned.failures = count,
            wire::INJECT_DIE => planned.deaths = count,
            wire::INJECT_KEEP => planned.keeps = count,
            wire::INJECT_SILENCE => planned.silent |= count > 0,
            _ => return false,
        }
        true
    }

    /// Takes everything back; a job that waits goes on at once.
    pub fn clear(&self) {
        let mut planned = self.lock();
        *planned = Planned {
            generation: planned.generation + 1,
            hurried: planned.hurried,
            ..Planned::default()
        };
        self.changed.notify_all();
    }

    /// Called as a job begins. Waits if a delay is planned, without a lock on anything else; does not return if death is.
    pub fn before_job(&self) -> Outcome {
        let mut planned = self.lock();
        if planned.deaths > 0 {
            log::error!("the device dies now, as INJECT_DIE asked for");
            std::process::abort();
        }
        let outcome = if planned.failures > 0 {
            planned.failures -= 1;
            Outcome::Fail
        } else {
            Outcome::Run
        };
        if planned.delays > 0 {
            planned.delays -= 1;
            if planned.hurried > 0 {
                return outcome;
            }
            let (delay, generation) = (planned.delay, planned.generation);
            log::debug!("job waits {delay:?}, as INJECT_DELAY asked for");
            let waits = |now: &mut Planned| now.generation == generation;
            // The result is the same lock; poisoned or timed out makes no difference to what follows.
            drop(self.changed.wait_timeout_while(planned, delay, waits));
        }
        outcome
    }

    /// Called for a DETACH: whether it is to be refused.
    pub fn keeps(&self) -> bool {
        let mut planned = self.lock();
        let keeps = planned.keeps > 0;
        planned.keeps = planned.keeps.saturating_sub(1);
        keeps
    }

    /// Whether the device has fallen silent.
    pub fn is_silent(&self) -> bool {
        self.lock().silent
    }

    /// While the guard lives, jobs do not wait, and one that does goes on at once.
    pub fn hurry(&self) -> Hurry<'_> {
        let mut planned = self.lock();
        planned.hurried += 1;
        planned.generation += 1;
        self.changed.notify_all();
        Hurry(self)
    }

    fn lock(&self) -> MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`crate::Engine::hurry`].
#[derive(Debug)]
pub struct Hurry<'a>(&'a Injector);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.lock().hurried -= 1;
    }
}
