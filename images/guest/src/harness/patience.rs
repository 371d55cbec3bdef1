// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting for what the kernel does in its own time.

use crate::harness::error::Error;
use nix::unistd::Pid;
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that is going to happen at all, under emulation on a machine that is busy with other things, too.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The most that counts of the time between two looks: in what is longer the host ran something else, and nothing went on here.
const TICK: Duration = Duration::from_millis(250);

/// Time of this guest's: that in which the host ran something else counts little, so that no verdict depends on it.
struct Clock {
    looked: Instant,
    time: Duration,
}

impl Clock {
    fn start() -> Self {
        Self {
            looked: Instant::now(),
            time: Duration::ZERO,
        }
    }

    /// To be asked at least once in a [`TICK`].
    fn time(&mut self) -> Duration {
        self.pass(Instant::now());
        self.time
    }

    fn pass(&mut self, now: Instant) {
        self.time += now.duration_since(self.looked).min(TICK);
        self.looked = now;
    }
}

/// Does something in a thread of its own; also whether it took no longer than this.
pub fn within<T: Send>(
    limit: Duration,
    act: impl FnOnce() -> T + Send,
) -> Result<(T, bool), Error> {
    thread::scope(|scope| {
        let act = scope.spawn(act);
        let in_time = until(limit, || Ok(act.is_finished()))?;
        match act.join() {
            Ok(value) => Ok((value, in_time)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Asks again and again until the answer is yes; whether it was, within this time.
pub fn until(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let mut clock = Clock::start();
    loop {
        if done()? {
            return Ok(true);
        }
        if clock.time() > limit {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How much CPU time a call gets before it counts as one that does not return: some hundred times what the longest takes.
const ENOUGH: Duration = Duration::from_secs(2);

/// Tells a call that does not return from one that a busy host keeps waiting: by the CPU time that the thread got which makes it, and
/// where that sleeps by [`LIMIT`].
pub struct Watch {
    stat: File,
    spent: Duration,
    clock: RefCell<Clock>,
}

impl Watch {
    /// Of the calling thread.
    pub fn this_thread() -> Result<Self, Error> {
        Self::of("thread-self".into())
    }

    /// Of a process's first thread.
    pub fn process(pid: Pid) -> Result<Self, Error> {
        Self::of(pid.to_string())
    }

    fn of(task: String) -> Result<Self, Error> {
        let path = format!("/proc/{task}/stat");
        let stat = File::open(&path).map_err(Error::io(format!("opening {path}")))?;
        Ok(Self {
            spent: spent(&stat).unwrap_or_default(),
            clock: RefCell::new(Clock::start()),
            stat,
        })
    }

    /// Whether it has been long enough; to be asked again and again. Takes no memory, so that it can be asked while the call holds the lock on the process's mappings.
    pub fn is_over(&self) -> bool {
        let spent = spent(&self.stat).unwrap_or_default();
        spent.saturating_sub(self.spent) >= ENOUGH || self.clock.borrow_mut().time() >= LIMIT
    }
}

/// The CPU time in a stat file of proc(5): utime and stime, in hundredths of a second. Nothing if its task is gone.
fn spent(stat: &File) -> Option<Duration> {
    let mut bytes = [0; 1024];
    let length = stat.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    // The name, in parentheses, may have spaces; the state is after it.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(10 * (user + system)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_spins_is_told_from_one_that_has_just_begun() {
        let watch = Watch::this_thread().unwrap();
        let start = Instant::now();
        assert!(!watch.is_over());
        while !watch.is_over() {
            std::hint::spin_loop();
        }
        assert!(start.elapsed() >= ENOUGH);
    }

    #[test]
    fn time_that_the_host_takes_counts_little() {
        let mut clock = Clock::start();
        let start = clock.looked;
        clock.pass(start + Duration::from_millis(100));
        clock.pass(start + Duration::from_secs(60));
        assert_eq!(clock.time, Duration::from_millis(350));
    }

    #[test]
    fn what_takes_too_long_is_told_with_its_value() {
        assert_eq!(within(LIMIT, || 1).unwrap(), (1, true));
        let long = || thread::sleep(Duration::from_millis(100));
        assert_eq!(within(Duration::ZERO, long).unwrap(), ((), false));
    }
}
