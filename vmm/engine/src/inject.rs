// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sabotage, where the host allows it: video jobs that start late, fail, come out wrong, or take the device down with them; answers that
//! are lost, doubled or late; a DETACH that is refused, or not heeded; silence.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinbed_abi::wire;

use crate::access::Piece;

/// Longest delay of a job in microseconds.
pub const MAX_DELAY: u64 = 10_000_000;
/// Farthest from its destination that a job can write, in bytes.
const MAX_ASTRAY: u64 = 1 << 20;

#[derive(Debug, Default)]
struct Planned {
    delay: Duration,
    delays: u32,
    failures: u32,
    deaths: u32,
    /// DETACHs that are refused.
    keeps: u32,
    silent: bool,
    /// What is wrong with the next jobs, and with how many of them.
    wrong: Option<(Outcome, u32)>,
    /// How the next answers go out, and how many of them.
    delivery: Option<(Delivery, u32)>,
    /// DETACHs that are not heeded, and the byte that is written later.
    stale: u32,
    fill: u8,
    /// What is written with the next STATUS.
    detached: Vec<Piece>,
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
    /// Do half of it, and say so without an error.
    Short,
    /// Do it, and answer with this status.
    Status(u32),
    /// Write so many bytes behind the destination.
    Astray(u64),
}

/// How a video job's answer goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// As it should.
    Once,
    /// Not at all.
    Never,
    /// Twice.
    Twice,
    /// After the next.
    Late,
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
            wire::INJECT_LOSE => planned.delivery = Some((Delivery::Never, count)),
            wire::INJECT_TWICE => planned.delivery = Some((Delivery::Twice, count)),
            wire::INJECT_REORDER => planned.delivery = Some((Delivery::Late, count)),
            wire::INJECT_SHORT => planned.wrong = Some((Outcome::Short, count)),
            wire::INJECT_STATUS => planned.wrong = Some((Outcome::Status(argument as u32), count)),
            wire::INJECT_ASTRAY if argument <= MAX_ASTRAY => {
                planned.wrong = Some((Outcome::Astray(argument), count));
            }
            wire::INJECT_STALE => (planned.stale, planned.fill) = (count, argument as u8),
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
            take(&mut planned.wrong).unwrap_or(Outcome::Run)
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

    /// Called when a job is answered.
    pub fn delivery(&self) -> Delivery {
        take(&mut self.lock().delivery).unwrap_or(Delivery::Once)
    }

    /// Called when a buffer was detached.
    pub fn detached(&self, segments: &[Piece]) {
        let mut planned = self.lock();
        if planned.stale > 0 {
            planned.stale -= 1;
            planned.detached.extend_from_slice(segments);
        }
    }

    /// Called for a STATUS: memory that is written though it is not attached any more, and with what.
    pub fn stale(&self) -> (Vec<Piece>, u8) {
        let mut planned = self.lock();
        (std::mem::take(&mut planned.detached), planned.fill)
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

/// The next of what is planned.
fn take<T: Copy>(planned: &mut Option<(T, u32)>) -> Option<T> {
    let (what, left) = planned.as_mut()?;
    let what = *what;
    match left {
        0 => return None,
        left => *left -= 1,
    }
    Some(what)
}

/// See [`crate::Engine::hurry`].
#[derive(Debug)]
pub struct Hurry<'a>(&'a Injector);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.lock().hurried -= 1;
    }
}
