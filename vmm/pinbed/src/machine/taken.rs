// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What processes take up: memory, descriptors, threads.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;

use nix::unistd::{Pid, getpid};

/// What a process takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Anonymous memory in KiB, but for what is executable: QEMU's translated code grows up to a limit of its own.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Taken {
    /// By this process, now.
    ///
    /// # Errors
    /// When there is no such process, or it is not ours to look at.
    pub fn by(pid: Pid) -> io::Result<Self> {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        Ok(Self {
            memory: anonymous(&fs::read_to_string(format!("/proc/{pid}/smaps"))?),
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }

    /// The lesser of each.
    pub fn least(self, other: Self) -> Self {
        Self {
            memory: self.memory.min(other.memory),
            descriptors: self.descriptors.min(other.descriptors),
            threads: self.threads.min(other.threads),
        }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB, {} descriptors, {} threads",
            self.memory, self.descriptors, self.threads
        )
    }
}

/// KiB of the anonymous memory in /proc/PID/smaps that is not executable.
fn anonymous(smaps: &str) -> u64 {
    let (mut sum, mut executable) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some(size)) if !executable => {
                sum += size.parse().unwrap_or(0);
            }
            // A mapping begins: its addresses, then its permissions.
            (Some(first), Some(permissions)) if !first.ends_with(':') => {
                executable = permissions.contains('x');
            }
            _ => {}
        }
    }
    sum
}

/// A process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// This one.
    Pinbed,
    /// QEMU.
    Qemu,
    /// The device.
    Device,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Pinbed => "pinbed",
            Role::Qemu => "QEMU",
            Role::Device => "the device",
        })
    }
}

/// What this process takes up, and QEMU and the device that it started. One that is just going is not there.
pub fn by_all() -> BTreeMap<Role, Taken> {
    let children = children().into_iter().filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let has = |word: &str| {
            command
                .split(|byte| *byte == 0)
                .any(|it| it == word.as_bytes())
        };
        let role = match () {
            () if has("-nodefaults") => Role::Qemu,
            () if has("--socket-path") => Role::Device,
            () => return None,
        };
        Some((role, pid))
    });
    [(Role::Pinbed, getpid())]
        .into_iter()
        .chain(children)
        .filter_map(|(role, pid)| Some((role, Taken::by(pid).ok()?)))
        .filter(|(_, taken)| taken.descriptors > 0)
        .collect()
}

/// The children of all our threads.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_memory_does_not_count() {
        let smaps = "\
            7f00-7f10 rwxp 00000000 00:00 0\nRss: 400 kB\nAnonymous: 400 kB\nVmFlags: rd wr ex\n\
            7f20-7f30 rw-p 00000000 00:00 0  [heap]\nAnonymous: 12 kB\nLazyFree: 0 kB\n\
            7f40-7f50 rw-s 00000000 00:01 7  /memfd:ram (deleted)\nAnonymous: 3 kB\n";
        assert_eq!(anonymous(smaps), 15);
    }

    #[test]
    fn what_we_take_up_is_seen() {
        let before = by_all()[&Role::Pinbed];
        let memory = vec![1_u8; 32 << 20];
        let file = fs::File::open("/dev/null").unwrap();
        let with = by_all()[&Role::Pinbed];
        // Other tests come and go meanwhile.
        assert!(
            with.memory >= before.memory + (24 << 10),
            "{before}; {with}"
        );
        drop((memory, file));
    }
}
