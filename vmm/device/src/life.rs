// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the device is doing, and what a stop of its rings meant.
//!
//! # What a reset of the device looks like from here
//!
//! QEMU does not tell a back end that the guest has reset the device. It stops the rings (GET_VRING_BASE), as it also does
//! when the virtual machine is paused, by a user or a debugger's breakpoint, and then all that is attached must stay. The two
//! differ when the rings start again: after a pause the control ring goes on where it stopped, after a reset it begins at
//! zero. So the decision falls before the first request after a stop is served: unless the control ring is where it was
//! left, the engine is reset. One case is left, a ring stopped at zero, or at a multiple of 65,536 requests: there, that the
//! configuration space was read in between says that a driver has begun anew, since a paused guest reads nothing.
//!
//! # How work stops
//!
//! Work is done by threads that ask [`Life::look`] between two slices of it. Where the device is paused they wait there, parked:
//! they touch no memory and hold no lock. Parked work goes on after a pause, and is abandoned after a reset or when the device
//! ends. A [`Worker`] tells who stops a ring when the ring's thread is idle or parked; calls of the TEE, which have threads of
//! their own, the engine halts.

use std::sync::Arc;
use std::time::Duration;

use vhost_user_backend::VringT;

use crate::Engine;
use crate::ring::{Ring, runs};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, doze};

/// How often parked work looks whether a ring runs again, which nobody tells.
const LOOK: Duration = Duration::from_millis(2);

/// What the device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It serves its rings.
    Running,
    /// The control ring has not run since it was stopped, so it is not decided yet what that meant.
    Undecided,
    /// It ends.
    Stopping,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Goes up when the device is reset: work of another life is abandoned.
    number: u64,
    /// Where the control ring is, after the last request that was taken from it.
    control_at: u16,
    /// The configuration space was read since the control ring was stopped.
    config_read: bool,
}

/// What work is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    /// Wait a moment and look again.
    Wait,
    /// Nobody waits for it.
    Abandon,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Life {
    engine: Arc<Engine>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Life {
    /// A device whose rings have not run yet.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            state: Mutex::new(State {
                phase: Phase::Undecided,
                number: 0,
                control_at: 0,
                config_read: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present life's number.
    pub fn number(&self) -> u64 {
        self.state().number
    }

    /// A request was taken from the control ring. Not asked of the ring, which the front end may set elsewhere.
    pub fn control_taken(&self) {
        let mut state = self.state();
        state.control_at = state.control_at.wrapping_add(1);
    }

    /// The configuration space was read.
    pub fn config_read(&self) {
        let mut state = self.state();
        state.config_read |= state.phase == Phase::Undecided;
    }

    /// The control ring was stopped.
    pub fn control_stopped(&self) {
        let mut state = self.state();
        if state.phase == Phase::Running {
            state.phase = Phase::Undecided;
            self.engine.halt(true);
        }
        state.config_read = false;
    }

    /// The device was reset, and the front end says so.
    pub fn reset(&self) {
        self.begin_anew(&mut self.state());
    }

    /// The device ends: all work is abandoned.
    pub fn stop(&self) {
        let mut state = self.state();
        state.phase = Phase::Stopping;
        self.engine.reset();
        self.engine.halt(false);
        self.changed.notify_all();
    }

    /// Whether rings are served; decides, once after each stop, whether that was a reset.
    pub fn is_running(&self, control: &Ring) -> bool {
        let mut state = self.state();
        if state.phase == Phase::Undecided && runs(control) {
            self.decide(&mut state, control.queue_next_avail());
        }
        state.phase == Phase::Running
    }

    /// Whether the device ends.
    pub fn is_stopping(&self) -> bool {
        self.state().phase == Phase::Stopping
    }

    fn decide(&self, state: &mut State, at: u16) {
        let goes_on = at == state.control_at && !(at == 0 && state.config_read);
        log::debug!(
            "control ring stopped at {} and goes on at {at}: {}",
            state.control_at,
            if goes_on { "a pause" } else { "a reset" }
        );
        if !goes_on {
            self.begin_anew(state);
        }
        state.control_at = at;
        state.config_read = false;
        state.phase = Phase::Running;
        self.engine.halt(false);
        self.changed.notify_all();
    }

    /// Under the lock: nothing of the new life begins before the old one is over.
    fn begin_anew(&self, state: &mut State) {
        state.number += 1;
        self.engine.reset();
        self.changed.notify_all();
    }

    /// What work of this life is to do that came from the ring `own`.
    pub fn look(&self, life: u64, control: &Ring, own: &Ring) -> Next {
        // Asked before the lock is taken, which others take while they have a ring's.
        let runs = self.is_running(control) && runs(own);
        let state = self.state();
        match state.phase {
            Phase::Stopping => Next::Abandon,
            _ if state.number != life => Next::Abandon,
            Phase::Running if runs => Next::GoOn,
            _ => Next::Wait,
        }
    }

    /// Whether rings were served when last that was decided, and the present life's number.
    pub fn now(&self) -> (bool, u64) {
        let state = self.state();
        (state.phase == Phase::Running, state.number)
    }

    /// Waits a moment, or until something changed.
    pub fn wait_a_moment(&self) {
        doze(&self.changed, self.state(), LOOK);
    }
}

/// What a ring's thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    #[default]
    Idle,
    /// It may touch memory.
    Busy,
    /// It has work in hand and waits.
    Parked,
}

/// A ring's thread, as seen by who stops the ring.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    activity: Mutex<Activity>,
    changed: Condvar,
}

impl Worker {
    /// Marks the thread busy while `work` runs.
    pub fn works<T>(&self, work: impl FnOnce() -> T) -> T {
        self.set(Activity::Busy);
        let result = work();
        self.set(Activity::Idle);
        result
    }

    /// Marks a busy thread parked while `wait` runs. It has to look anew afterwards.
    pub fn parks<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.set(Activity::Parked);
        let result = wait();
        self.set(Activity::Busy);
        result
    }

    /// Returns when the thread is not busy.
    pub fn await_rest(&self) {
        let activity = self.activity();
        let busy = |activity: &mut Activity| *activity == Activity::Busy;
        drop(self.changed.wait_while(activity, busy));
    }

    fn set(&self, activity: Activity) {
        *self.activity() = activity;
        self.changed.notify_all();
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
