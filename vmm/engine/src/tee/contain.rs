// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lets a trusted application panic without taking the device with it.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// From now on the process's panic hook does not hear of the panics of trusted applications: each ends that application and nothing else, and
/// the engine logs it.
pub fn quiet_applications() {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !RUNS.get() {
            others(info);
        }
    }));
}

/// Runs `what`; if it panics, returns what it said. The caller must not use again what `what` could have left half changed.
pub(super) fn run<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    RUNS.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(what));
    RUNS.set(false);
    result.map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).into());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".into())
}
