// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lets a trusted application panic without taking the device, or its standard error, with it.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// What is left of something that panicked.
#[derive(Debug)]
pub struct Panicked;

/// Makes panics inside [`run`] go to the log; all others go where they went before.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if RUNS.get() {
                log::info!("a trusted application panicked: {info}");
            } else {
                others(info);
            }
        }));
    });
}

/// Runs `what` and catches its panic. The caller must not use again what `what` could have left half changed.
pub fn run<T>(what: impl FnOnce() -> T) -> Result<T, Panicked> {
    RUNS.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(what));
    RUNS.set(false);
    result.map_err(|_| Panicked)
}
