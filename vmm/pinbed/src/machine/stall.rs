// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Time that a guest could not run in, since the host ran something else, or stopped QEMU, the device or us. No limit counts it, so that no
//! verdict depends on what else the host has to do.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

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
        let waited: HashMap<_, _> = processes.iter().flat_map(|pid| threads(*pid)).collect();
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
        let stopped = match processes.iter().any(|pid| is_stopped(*pid)) {
            true => since,
            false => Duration::ZERO,
        };
        // Who looks too late was stopped or frozen, and the guest perhaps with us.
        let late = match since > 4 * TICK {
            true => since - TICK,
            false => Duration::ZERO,
        };
        self.total += longest.max(stopped).max(late).min(since);
    }
}

/// What each thread of a process has waited for a CPU. A kernel without that figure says nothing.
fn threads(pid: Pid) -> impl Iterator<Item = (PathBuf, Duration)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    threads.flatten().filter_map(|thread| {
        let path = thread.path();
        // Nanoseconds on a CPU, then waiting for one (Documentation/scheduler/sched-stats.rst).
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((path, Duration::from_nanos(waited)))
    })
}

/// Whether a process is stopped, by a signal or a tracer.
fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may have anything in it; the state is after it.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with(['T', 't']))
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
