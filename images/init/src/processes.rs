// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The processes that a test left, and where in the kernel a stuck one is.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use std::fs;

/// Whether PID 1 has no child, not even one that has ended and is not reaped: then there is no other process, since all descend from
/// it and come to it when they lose their parent. Far quicker to see than [`others`].
pub fn are_all_gone() -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, look) == Err(Errno::ECHILD)
}

/// All processes but this one and the kernel's threads. In a guest these are the running test's, or stuck ones of former tests.
pub fn others() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid > 2 && !is_kernel_thread(*pid))
        .collect()
}

/// Kernel threads are kthreadd's children.
fn is_kernel_thread(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| parent(&stat) == Some(2))
}

/// The parent in /proc/PID/stat. The command before it, in parentheses, may hold anything.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// SIGKILL to everything that is not PID 1.
pub fn kill_all() {
    // Only PID 1 may do this: it is what -1 spares. ESRCH says that nobody was left.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
}

/// Takes in all that have ended; the wait status of `main` if it is among them.
pub fn reap(main: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Ok(status) if status.pid() == Some(main) => found = Some(status),
            Ok(_) | Err(_) => (),
        }
    }
}

/// What the kernel says of these processes' tasks: state, what they wait in, their kernel stacks.
pub fn stuck_notes(pids: &[i32]) -> Vec<String> {
    let mut notes = Vec::new();
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let status = read("status");
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::trim)
                    .unwrap_or("?")
                    .to_owned()
            };
            let stack: Vec<_> = read("stack")
                .lines()
                .map(|line| line.trim_start_matches("[<0>]").trim().to_owned())
                .collect();
            notes.push(format!(
                "task {} of {} ({}): state {}, waits in {}, stack: {}",
                task.file_name().to_string_lossy(),
                pid,
                field("Name:"),
                field("State:"),
                read("wchan"),
                stack.join(" < ")
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_cannot_hide_the_parent() {
        assert_eq!(parent("61 (a) S 5 (b) R 7 61 61 0"), Some(7));
        assert_eq!(parent("61 (kworker/0:1) I 2 0 0 0"), Some(2));
        assert_eq!(parent("61"), None);
    }

    #[test]
    fn the_notes_name_this_test() {
        let notes = stuck_notes(&[std::process::id() as i32]);
        assert!(
            notes
                .iter()
                .any(|note| note.contains("state") && note.contains("stack:")),
            "{notes:?}"
        );
    }
}
