// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the threads of a process do, and how much they got of the CPUs: /proc/PID/task.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;

/// A thread.
pub struct Thread {
    /// Its directory in /proc.
    pub path: PathBuf,
    /// It is the process's first, whose state is the process's.
    pub leads: bool,
    /// As in /proc/PID/stat: T and t for one that is stopped, by a signal or a tracer, S for one that sleeps.
    pub state: u8,
    /// On a CPU so far; zero on a kernel without that figure (Documentation/scheduler/sched-stats.rst).
    pub ran: Duration,
    /// Waiting for a CPU so far; as above.
    pub waited: Duration,
}

/// All threads of a process.
///
/// # Errors
/// When there is no such process.
pub fn threads(pid: Pid) -> io::Result<Vec<Thread>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // One that has ended meanwhile is none.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else {
            continue;
        };
        // The name, in parentheses, may have anything in it; the state is after it.
        let state = stat.rfind(") ").and_then(|at| stat.as_bytes().get(at + 2));
        let times = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let mut times = times.split_whitespace().map(|time| time.parse().ok());
        let mut time = || Duration::from_nanos(times.next().flatten().unwrap_or(0));
        all.push(Thread {
            leads: path.ends_with(pid.to_string()),
            state: *state.unwrap_or(&b'?'),
            ran: time(),
            waited: time(),
            path,
        });
    }
    Ok(all)
}
