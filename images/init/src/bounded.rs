// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Asking the kernel things that may never return, for example because a lock is held by a task that hangs.

use crate::Broken;
use std::io;
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A limit of time that the guest could run in. Its clock goes on while the host runs something else or has QEMU stopped, so when the
/// limit is over by the clock the host is asked for how much of that.
pub struct Allowance {
    start: Instant,
    /// The limit, which may grow.
    pub limit: Duration,
    granted: Duration,
}

impl Allowance {
    /// So long, from now on.
    pub fn of(limit: Duration) -> Self {
        Self {
            start: Instant::now(),
            limit,
            granted: Duration::ZERO,
        }
    }

    /// What is left by the clock.
    pub fn left(&self) -> Duration {
        (self.limit + self.granted).saturating_sub(self.start.elapsed())
    }

    /// When nothing is left: asks how long the guest was kept from running since the start, and says whether that is more than is known.
    pub fn grows(
        &mut self,
        delay: &mut impl FnMut() -> Result<Duration, Broken>,
    ) -> Result<bool, Broken> {
        let before = std::mem::replace(&mut self.granted, delay()?);
        Ok(self.granted >= before + LITTLE)
    }
}

/// Delays below this are everyday ones.
const LITTLE: Duration = Duration::from_millis(500);

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread that does all work in turn: a thread is costly to make under emulation.
static WORKER: LazyLock<io::Result<Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Work>();
    thread::Builder::new()
        .name("bounded".into())
        .spawn(move || receiver.into_iter().for_each(|work| work()))?;
    Ok(sender)
});

/// Runs `work` in another thread and waits for it at most so long by the guest's clock. A thread that does not come back is left behind, and no other
/// takes its place: what it waits for would also be waited for by any later judgement, so the plan ends here.
pub fn run<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    run_with(what, limit, || Ok(Duration::ZERO), work)
}

/// The same, where the time does not count that the host kept the guest from running: `delay` says how much that was.
pub fn run_with<T: Send + 'static>(
    what: &str,
    limit: Duration,
    mut delay: impl FnMut() -> Result<Duration, Broken>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let (sender, receiver) = mpsc::channel();
    let worker = WORKER
        .as_ref()
        .map_err(|error| Broken(format!("no thread can be made for {what}: {error}")))?;
    // Nobody is there any more to hear of a result that comes too late. A worker that has ended drops its work, and the sender in it.
    let _ = worker.send(Box::new(move || drop(sender.send(work()))));
    let mut allowance = Allowance::of(limit);
    loop {
        match receiver.recv_timeout(allowance.left()) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) if allowance.grows(&mut delay)? => {}
            Err(RecvTimeoutError::Timeout) => {
                let stacks = crate::processes::stuck_notes(&[1]).join("\n");
                return Err(Broken(format!(
                    "{what} does not return within {} s, so the kernel can be judged no further\n{stacks}",
                    limit.as_secs()
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Broken(format!("{what} ended without a result")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since there is one worker: it stands still for what comes after what is late.
    #[test]
    fn what_returns_in_time_is_passed_on_and_what_does_not_is_named() {
        assert!(run("sum", Duration::from_secs(5), || 1 + 1).is_ok_and(|sum| sum == 2));
        let mut answers = [700, 1400].into_iter();
        let delay = || Ok(Duration::from_millis(answers.next().unwrap_or(1400)));
        let begin = Instant::now();
        let nap = run_with("a nap", Duration::from_millis(10), delay, || {
            thread::sleep(Duration::from_millis(900))
        });
        assert!(nap.is_ok());
        assert!(begin.elapsed() >= Duration::from_millis(900));
        let late = run("a nap", Duration::from_millis(10), || {
            thread::sleep(Duration::from_secs(2))
        });
        assert!(late.is_err_and(|Broken(reason)| reason.contains("a nap does not return")));
    }

    #[test]
    fn time_that_the_host_took_does_not_count() {
        let mut allowance = Allowance::of(Duration::ZERO);
        let mut delays = [700, 700, 1300].map(Duration::from_millis).into_iter();
        let mut grows = || {
            let next = delays.next().unwrap_or_default();
            allowance.grows(&mut || Ok(next)).is_ok_and(|grows| grows)
        };
        assert_eq!([grows(), grows(), grows()], [true, false, true]);
    }
}
