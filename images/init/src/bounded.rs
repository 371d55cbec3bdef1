// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Asking the kernel things that may never return, for example because a lock is held by a task that hangs.

use crate::Broken;
use std::io;
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread that does all work in turn: a thread is costly to make under emulation.
static WORKER: LazyLock<io::Result<Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Work>();
    thread::Builder::new()
        .name("bounded".into())
        .spawn(move || receiver.into_iter().for_each(|work| work()))?;
    Ok(sender)
});

/// Runs `work` in another thread and waits for it at most so long. A thread that does not come back is left behind, and no other
/// takes its place: what it waits for would also be waited for by any later judgement, so the plan ends here.
pub fn run<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let (sender, receiver) = mpsc::channel();
    let worker = WORKER
        .as_ref()
        .map_err(|error| Broken(format!("no thread can be made for {what}: {error}")))?;
    // Nobody is there any more to hear of a result that comes too late. A worker that has ended drops its work, and the sender in it.
    let _ = worker.send(Box::new(move || drop(sender.send(work()))));
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
