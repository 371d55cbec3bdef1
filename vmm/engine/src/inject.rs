// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sabotage, where the host allows it: video jobs that start late, fail, come out wrong, or take the device down with them; answers that
//! are lost, doubled or late; a DETACH that is refused, or not heeded; silence. The guest asks for it, or the host: its faults wait for
//! their job, and are then as if the guest had just asked.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinbed_abi::fault::Fault;
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
    /// ATTACHs at which the device dies, and those that are not answered.
    attach_deaths: u32,
    attach_losses: u32,
    /// The ATTACH in hand is not to be answered.
    unanswered: bool,
    /// Calls of the TEE at which the device dies.
    call_deaths: u32,
    /// How the next calls' answers go out, and how many of them.
    call_delivery: Option<(Delivery, u32)>,
    /// The status of the next calls' answers, and how many of them.
    call_status: Option<(u32, u32)>,
    /// What the host asked for, which a reset does not take back, and how many requests it waits for.
    host: Vec<(Fault, u32)>,
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

/// A request at which a fault may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Job,
    Attach,
    Detach,
    Call,
}

impl Point {
    /// Where faults of a kind come.
    fn of(kind: u32) -> Self {
        match kind {
            wire::INJECT_DIE_ATTACHED | wire::INJECT_LOSE_ATTACH => Self::Attach,
            wire::INJECT_KEEP | wire::INJECT_STALE => Self::Detach,
            wire::INJECT_DIE_IN_CALL
            | wire::INJECT_LOSE_CALL
            | wire::INJECT_TWICE_CALL
            | wire::INJECT_STATUS_CALL => Self::Call,
            _ => Self::Job,
        }
    }
}

/// How an answer goes out.
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
        match kind {
            wire::INJECT_NONE => {
                self.clear();
                true
            }
            _ => self.lock().plan(kind, count, argument),
        }
    }

    /// Plans a fault for the life of the device.
    pub fn plan_for_host(&self, fault: Fault) {
        self.lock().host.push((fault, fault.nth.get()));
    }

    /// Takes everything back; a job that waits goes on at once.
    pub fn clear(&self) {
        let mut planned = self.lock();
        *planned = Planned {
            generation: planned.generation + 1,
            hurried: planned.hurried,
            host: std::mem::take(&mut planned.host),
            ..Planned::default()
        };
        self.changed.notify_all();
    }

    /// Called as a job begins. Waits if a delay is planned, without a lock on anything else; does not return if death is.
    pub fn before_job(&self) -> Outcome {
        let mut planned = self.lock();
        planned.arrive(Point::Job);
        if planned.deaths > 0 {
            die("INJECT_DIE");
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
        planned.arrive(Point::Detach);
        let keeps = planned.keeps > 0;
        planned.keeps = planned.keeps.saturating_sub(1);
        keeps
    }

    /// Called when an ATTACH has been carried out. Does not return if death is planned.
    pub fn attached(&self) {
        let mut planned = self.lock();
        planned.arrive(Point::Attach);
        if planned.attach_deaths > 0 {
            die("INJECT_DIE_ATTACHED");
        }
        planned.unanswered = planned.attach_losses > 0;
        planned.attach_losses = planned.attach_losses.saturating_sub(1);
    }

    /// Called when a request of the control queue is answered: whether it is not to be.
    pub fn is_unanswered(&self) -> bool {
        std::mem::take(&mut self.lock().unanswered)
    }

    /// Called as a call of the TEE begins: the status that it is to be answered with, if that is planned. Does not return if death is.
    pub fn before_call(&self) -> Option<u32> {
        let mut planned = self.lock();
        planned.arrive(Point::Call);
        if planned.call_deaths > 0 {
            die("INJECT_DIE_IN_CALL");
        }
        take(&mut planned.call_status)
    }

    /// Called when a call of the TEE is answered.
    pub fn call_delivery(&self) -> Delivery {
        take(&mut self.lock().call_delivery).unwrap_or(Delivery::Once)
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

impl Planned {
    /// See [`Injector::plan`].
    fn plan(&mut self, kind: u32, count: u32, argument: u64) -> bool {
        match kind {
            wire::INJECT_DELAY if argument <= MAX_DELAY => {
                self.delay = Duration::from_micros(argument);
                self.delays = count;
            }
            wire::INJECT_FAIL => self.failures = count,
            wire::INJECT_DIE => self.deaths = count,
            wire::INJECT_KEEP => self.keeps = count,
            wire::INJECT_SILENCE => self.silent |= count > 0,
            wire::INJECT_LOSE => self.delivery = Some((Delivery::Never, count)),
            wire::INJECT_TWICE => self.delivery = Some((Delivery::Twice, count)),
            wire::INJECT_REORDER => self.delivery = Some((Delivery::Late, count)),
            wire::INJECT_SHORT => self.wrong = Some((Outcome::Short, count)),
            wire::INJECT_STATUS => self.wrong = Some((Outcome::Status(argument as u32), count)),
            wire::INJECT_ASTRAY if argument <= MAX_ASTRAY => {
                self.wrong = Some((Outcome::Astray(argument), count));
            }
            wire::INJECT_STALE => (self.stale, self.fill) = (count, argument as u8),
            wire::INJECT_DIE_ATTACHED => self.attach_deaths = count,
            wire::INJECT_LOSE_ATTACH => self.attach_losses = count,
            wire::INJECT_DIE_IN_CALL => self.call_deaths = count,
            wire::INJECT_LOSE_CALL => self.call_delivery = Some((Delivery::Never, count)),
            wire::INJECT_TWICE_CALL => self.call_delivery = Some((Delivery::Twice, count)),
            wire::INJECT_STATUS_CALL => self.call_status = Some((argument as u32, count)),
            _ => return false,
        }
        true
    }

    /// A request has come: the host's faults that waited for it are planned.
    fn arrive(&mut self, point: Point) {
        let mut due = Vec::new();
        self.host.retain_mut(|(fault, left)| {
            if Point::of(fault.named.kind) == point {
                *left -= 1;
            }
            if *left == 0 {
                due.push(fault.named);
            }
            *left > 0
        });
        for fault in due {
            log::warn!("misbehaves now, as the host asked for: {}", fault.text);
            self.plan(fault.kind, 1, fault.argument);
        }
    }
}

fn die(kind: &str) -> ! {
    log::error!("the device dies now, as {kind} asked for");
    std::process::abort()
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
