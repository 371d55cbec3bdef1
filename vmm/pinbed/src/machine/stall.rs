// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Time that a guest could not run in, since the host ran something else, or stopped QEMU, the device or us. No limit counts it, so that no
//! verdict depends on what else the host has to do.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use pinbed_abi::report::{Eye, Finding, Outcome};

use crate::machine::threads::{Thread, threads};

/// As long as the first of the kernel's detectors waits: a soft lockup is 20 s without a turn, an RCU stall 21 s.
const DETECTED: Duration = Duration::from_secs(10);
/// What they say in the kernel log.
const DETECTORS: [&str; 3] = ["soft lockup", "detected stall", "blocked for more than"];

/// The kernel's detectors of lockups go by the clock, which goes on while the guest does not run. What they say of a test during which it
/// did not for so long shows nothing.
pub fn excuse(outcome: &mut Outcome, stalled: Duration) {
    let Outcome::Fail(findings) = outcome else {
        return;
    };
    let is_lockup = |finding: &Finding| DETECTORS.iter().any(|it| finding.text.contains(it));
    for finding in findings.iter_mut().filter(|it| is_lockup(it)) {
        if finding.eye == Eye::Aftermath && stalled >= DETECTED {
            finding.eye = Eye::Premise;
            finding.text += &format!(
                "; the host kept the guest from running for {} s of this test",
                stalled.as_secs()
            );
        }
    }
}

/// How often to look, at least: a process is seen to be stopped only while it is.
pub const TICK: Duration = Duration::from_millis(250);

/// Adds up such time.
#[derive(Debug)]
pub struct Stall {
    began: Instant,
    looked: Instant,
    threads: HashMap<PathBuf, Seen>,
    total: Duration,
}

/// A thread when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// On a CPU so far.
    ran: Duration,
    /// Waiting for one so far.
    waited: Duration,
}

impl Seen {
    /// The same thread after this time. The host's kernel counts what a thread has waited when it comes to run; one that has not run, and
    /// can, has waited all the time.
    fn later(self, now: &Thread, since: Duration) -> Self {
        // A host's kernel without the figure would have all of them wait.
        let waits = now.state == b'R' && now.ran == self.ran && !now.ran.is_zero();
        let so_far = self.waited + if waits { since } else { Duration::ZERO };
        Seen {
            ran: now.ran,
            waited: now.waited.max(so_far),
        }
    }
}

impl Stall {
    /// From now on.
    pub fn new() -> Self {
        let now = Instant::now();
        Stall {
            began: now,
            looked: now,
            threads: HashMap::new(),
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
        let mut longest = Duration::ZERO;
        let mut seen = HashMap::new();
        for thread in threads {
            let (before, after) = match self.threads.get(&thread.path) {
                Some(before) => (before.waited, before.later(&thread, since)),
                // As one that has just begun, which has not waited yet or is counted with all that it waited for.
                None => (
                    Duration::ZERO,
                    Seen::default().later(&thread, Duration::ZERO),
                ),
            };
            // Threads wait at the same time, so this is what the guest waited for at least.
            longest = longest.max(after.waited - before);
            seen.insert(thread.path, after);
        }
        self.threads = seen;
        // Who looks too late was stopped or frozen, and the guest perhaps with us.
        let late = match since > 4 * TICK {
            true => since - TICK,
            false => Duration::ZERO,
        };
        // A wait that ends now may have begun before the last look.
        let most = now.duration_since(self.began) - self.total;
        self.total += longest.max(stopped).max(late).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use std::process::Command;
    use std::thread;

    #[test]
    fn a_lockup_of_a_guest_that_did_not_run_shows_nothing() {
        let said = |text: &str, stalled| {
            let finding = Finding {
                eye: Eye::Aftermath,
                text: format!("the kernel log says: {text}"),
            };
            let mut outcome = Outcome::Fail(vec![finding]);
            excuse(&mut outcome, Duration::from_secs(stalled));
            let Outcome::Fail(findings) = outcome else {
                unreachable!()
            };
            findings[0].eye
        };
        let lockup = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!";
        assert_eq!(said(lockup, 26), Eye::Premise);
        assert_eq!(said(lockup, 2), Eye::Aftermath);
        let stall = "rcu: INFO: rcu_preempt self-detected stall on CPU";
        assert_eq!(said(stall, 30), Eye::Premise);
        assert_eq!(said("kernel BUG at mm/gup.c:69!", 60), Eye::Aftermath);
    }

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
    fn a_thread_that_does_not_come_to_run_waits() {
        let thread = |state, ran, waited| Thread {
            path: PathBuf::new(),
            leads: true,
            state,
            ran: Duration::from_secs(ran),
            waited: Duration::from_secs(waited),
        };
        let tick = Duration::from_secs(1);
        let begun = Seen::default().later(&thread(b'S', 1, 1), tick);
        let mut seen = begun;
        for _ in 0..30 {
            seen = seen.later(&thread(b'R', 1, 1), tick);
        }
        assert_eq!(
            seen.waited,
            Duration::from_secs(31),
            "the kernel has not counted it yet"
        );
        let runs = seen.later(&thread(b'R', 2, 31), tick);
        assert_eq!(runs.waited, seen.waited, "nor is it counted twice");
        let unknown = Seen::default().later(&thread(b'R', 0, 0), tick);
        assert_eq!(unknown.waited, Duration::ZERO);
        let sleeps = begun.later(&thread(b'S', 1, 1), tick);
        assert_eq!(sleeps.waited, begun.waited);
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
        stall.began = stall.looked;
        stall.look(&[]);
        assert!(stall.total() > Duration::from_secs(9));
    }
}
