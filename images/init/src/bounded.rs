// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Asking the kernel things that may never return, for example because a lock is held by a task that hangs.

use crate::Broken;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Runs `work` in a thread of its own and waits for it at most so long. A thread that does not come back is left behind: what it
/// waits for would also be waited for by any later judgement, so the plan ends here.
pub fn run<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name(what.chars().take(15).collect())
        .spawn(move || sender.send(work()))
        .map_err(|error| Broken(format!("no thread can be made for {what}: {error}")))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => {
            let stacks = crate::processes::stuck_notes(&[1]).join("\n");
            Broken(format!("{what} does not return within {} s, so the kernel can be judged no further\n{stacks}", limit.as_secs()))
        }
        RecvTimeoutError::Disconnected => Broken(format!("{what} ended without a result")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_returns_in_time_is_passed_on_and_what_does_not_is_named() {
        assert!(run("sum", Duration::from_secs(5), || 1 + 1).is_ok_and(|sum| sum == 2));
        let late = run("a nap", Duration::from_millis(10), || {
            thread::sleep(Duration::from_secs(2))
        });
        assert!(late.is_err_and(|Broken(reason)| reason.contains("a nap does not return")));
    }
}
