// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The locks and threads of code whose interleavings are tested: tests compile that code with shuttle's in their place.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
pub(crate) use std::thread;
use std::time::Duration;

/// Waits until something changed, or for so long. Shuttle knows no time, so that there it is any other thread's turn.
pub(crate) fn doze<T>(changed: &Condvar, guard: MutexGuard<T>, time: Duration) {
    drop(changed.wait_timeout(guard, time));
}
