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

/// What the kernel says of a task.
struct Task {
    /// Number, process, name, state, and what it waits in.
    head: String,
    /// The functions on its kernel stack, the innermost first. Of one that runs, the kernel shows none.
    stack: Vec<String>,
}

impl Task {
    /// The tasks of a process, those that have ended meanwhile left out.
    fn of(pid: i32) -> impl Iterator<Item = Task> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let tasks = tasks.into_iter().flatten().flatten();
        tasks.filter_map(move |task| {
            let read = |file: &str| fs::read_to_string(task.path().join(file));
            let status = read("status").ok()?;
            let field = |name: &str| {
                let value = status.lines().find_map(|line| line.strip_prefix(name));
                value.map_or("?", str::trim)
            };
            let stack = read("stack").unwrap_or_default();
            // "0" of one that runs.
            let waits = match read("wchan").unwrap_or_default() {
                wchan if wchan.is_empty() || wchan == "0" => String::new(),
                wchan => format!(", waits in {wchan}"),
            };
            let function = |line: &str| line.trim_start_matches("[<0>]").trim().to_owned();
            Some(Task {
                head: format!(
                    "task {} of {pid} ({}): state {}{waits}",
                    task.file_name().to_string_lossy(),
                    field("Name:"),
                    field("State:"),
                ),
                stack: stack.lines().map(function).collect(),
            })
        })
    }

    fn is_blocked(&self) -> bool {
        self.head.contains("state D")
    }
}

/// A line for each task of these processes.
pub fn stuck_notes(pids: &[i32]) -> Vec<String> {
    let tasks = pids.iter().flat_map(|pid| Task::of(*pid));
    let note = |task: Task| format!("{}, stack: {}", task.head, task.stack.join(" < "));
    tasks.map(note).collect()
}

/// The tasks of these processes, and all others that are blocked: a line for each, and under it, indented, each function of its stack.
pub fn blocked(pids: &[i32]) -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let others = all.filter(|pid| !pids.contains(pid));
    let others = others.flat_map(Task::of).filter(Task::is_blocked);
    let tasks = pids.iter().flat_map(|pid| Task::of(*pid)).chain(others);
    let lines = |task: Task| {
        let stack = task
            .stack
            .into_iter()
            .map(|function| format!("  {function}"));
        std::iter::once(task.head).chain(stack)
    };
    tasks.flat_map(lines).collect()
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

    #[test]
    fn tasks_come_with_their_functions_under_them() {
        let lines = blocked(&[std::process::id() as i32]);
        assert!(lines[0].starts_with("task "), "{lines:?}");
        // Who may not read stacks sees none.
        let rest = lines.iter().skip(1);
        assert!(
            rest.clone()
                .all(|line| line.starts_with("task ") || line.starts_with("  ")),
            "{lines:?}"
        );
    }
}
