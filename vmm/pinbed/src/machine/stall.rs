// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Time that a guest could not run in, since the host ran something else, or stopped QEMU, the device or us. No limit counts it, so that no
//! verdict depends on what else the host has to do.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::machine::threads::{Thread, threads};

/// How often to look, at least: a process is seen to be stopped only while it is.
pub const TICK: Duration = Duration::from_millis(250);

/// Adds up such time.
#[derive(Debug)]
pub struct Stall {
    looked: Instant,
    /// What each thread has waited for a CPU so far.
    waited: HashMap<PathBuf, Duration>,
    total: Duration,
}

impl Stall {
    /// From now on.
    pub fn new() -> Self {
        Stall {
            looked: Instant::now(),
            waited: HashMap::new(),
            total: Duration::ZERO,
        }
    }

    /// All until the last look.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// When it is time for another look.
    pub fn due(&self) -> Instant {
        self.looked + TICK
    }

    /// Looks at these processes.
    pub fn look(&mut self, processes: &[Pid]) {
        let now = Instant::now();
        let since = now.duration_since(self.looked);
        self.looked = now;
        // A process that has gone waits for nothing.
        let threads = processes
            .iter()
            .flat_map(|pid| threads(*pid).unwrap_or_default());
        let threads: Vec<_> = threads.collect();
        let is_stopped = |thread: &Thread| thread.leads && matches!(thread.state, b'T' | b't');
        let stopped = match threads.iter().any(is_stopped) {
            true => since,
            false => Duration::ZERO,
        };
        let waited: HashMap<_, _> = threads
            .into_iter()
            .map(|thread| (thread.path, thread.waited))
            .collect();
        // Threads wait at the same time, so this is what the guest waited for at least.
        let longest = waited
            .iter()
            .map(|(thread, now)| {
                let before = self.waited.get(thread).copied().unwrap_or_default();
                now.saturating_sub(before)
            })
            .max()
            .unwrap_or_default();
        self.waited = waited;
        // Who looks too late was stopped or frozen, and the guest perhaps with us.
        let late = match since > 4 * TICK {
            true => since - TICK,
            false => Duration::ZERO,
        };
        self.total += longest.max(stopped).max(late).min(since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use std::process::Command;
    use std::thread;

    #[test]
    fn threads_that_share_a_cpu_wait_for_it() {
        // As many as cannot all have one.
        let count = 2 + thread::available_parallelism().map_or(1, usize::from);
        let spin = || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(300) {}
        };
        let this = [nix::unistd::getpid()];
        let mut stall = Stall::new();
        stall.look(&this);
        let before = stall.total();
        thread::scope(|scope| {
            let all: Vec<_> = (0..count).map(|_| scope.spawn(spin)).collect();
            thread::sleep(Duration::from_millis(250));
            stall.look(&this);
            assert!(stall.total() > before);
            drop(all);
        });
    }

    #[test]
    fn a_process_that_is_stopped_cannot_run() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut stall = Stall::new();
        let wait = |stall: &mut Stall| {
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(50));
                stall.look(&[pid]);
            }
            stall.total()
        };
        stall.look(&[pid]);
        kill(pid, Signal::SIGSTOP).unwrap();
        let stopped = wait(&mut stall);
        assert!(stopped >= Duration::from_millis(200), "{stopped:?}");
        kill(pid, Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        // Nobody is there to wait.
        let before = stall.total();
        stall.look(&[pid]);
        assert_eq!(stall.total(), before);
    }

    #[test]
    fn who_looks_too_late_was_stopped_too() {
        let mut stall = Stall::new();
        stall.looked -= Duration::from_secs(10);
        stall.look(&[]);
        assert!(stall.total() > Duration::from_secs(9));
    }
}
