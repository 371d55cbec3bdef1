// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one path of Ctrl-C, SIGTERM and SIGHUP: a flag that long work looks at, and calls to those who wait for other things, too.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type Tell = Box<dyn Fn(i32) + Send>;

/// The signal that came first; 0 before.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static SUBSCRIBERS: Mutex<(usize, Vec<(usize, Tell)>)> = Mutex::new((0, Vec::new()));

/// From here on the signals no longer end the process.
///
/// # Errors
/// When the kernel refuses a signal handler.
pub fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = Signals::new([SIGINT, SIGTERM, SIGHUP]).map(|mut signals| {
            thread::spawn(move || {
                for signal in signals.forever() {
                    let subscribers = SUBSCRIBERS.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
                    for (_, tell) in &subscribers.1 {
                        tell(signal);
                    }
                }
            });
        });
    });
    result
}

/// Whether one of the signals has come.
pub fn requested() -> bool {
    SIGNAL.load(Ordering::SeqCst) != 0
}

/// Ends the calls when it is dropped.
#[derive(Debug)]
pub struct Subscription(usize);

/// Calls `tell` with each signal to come; at once if one has come already.
pub fn subscribe(tell: impl Fn(i32) + Send + 'static) -> Subscription {
    let mut subscribers = SUBSCRIBERS.lock().unwrap_or_else(PoisonError::into_inner);
    match SIGNAL.load(Ordering::SeqCst) {
        0 => {}
        signal => tell(signal),
    }
    subscribers.0 += 1;
    let id = subscribers.0;
    subscribers.1.push((id, Box::new(tell)));
    Subscription(id)
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = SUBSCRIBERS.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.1.retain(|(id, _)| *id != self.0);
    }
}
