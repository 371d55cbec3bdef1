// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A system call that may never come back, made by a forked process in the test's place.

use crate::error::Error;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::fmt;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// How long a call may take, in milliseconds: a hundred times what it takes under emulation.
const PATIENCE_MS: u16 = 2_000;
/// How long a killed process may take to be gone.
const DEATH_MS: u16 = 1_000;

/// What came of the call.
#[derive(Debug)]
pub enum Attempt {
    /// It came back.
    Returned(Result<(), Errno>),
    /// It did not, but SIGKILL ended it.
    Killed,
    /// Nothing ends it.
    Stuck(Stuck),
}

/// A process that does not die.
#[derive(Debug)]
pub struct Stuck(Forked);

/// A child, and a descriptor that can be read once it is gone.
#[derive(Debug)]
struct Forked {
    pid: Pid,
    end: OwnedFd,
}

impl Forked {
    /// How it ended, if it does within this time, in milliseconds.
    fn end_within(&self, limit: u16) -> Result<Option<WaitStatus>, Error> {
        let mut set = [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut set, PollTimeout::from(limit))
            .map_err(Error::call("waiting for a forked process"))?;
        match ended {
            0 => Ok(None),
            _ => Ok(Some(
                waitpid(self.pid, None).map_err(Error::call("waitpid"))?,
            )),
        }
    }
}

impl Stuck {
    /// Whether it is gone after all.
    pub fn is_gone(&self) -> Result<bool, Error> {
        Ok(self.0.end_within(DEATH_MS)?.is_some())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(Ok(())) => write!(f, "accepted"),
            Self::Returned(Err(errno)) => write!(f, "refused with {errno:?}"),
            Self::Killed => write!(f, "does not end within {PATIENCE_MS} ms, but by SIGKILL"),
            Self::Stuck(_) => write!(f, "does not end within {PATIENCE_MS} ms, nor by SIGKILL"),
        }
    }
}

/// Makes the call in a process of its own, with this one's memory and descriptors. What it changes in memory that is not shared
/// is lost, and so is what only the process holds.
pub fn attempt(call: impl FnOnce() -> Result<(), Errno>) -> Result<Attempt, Error> {
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let pid = match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let errno = call().err().map_or(0, |errno| errno as i32);
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(errno) }
        }
    };
    // SAFETY: pidfd_open has no preconditions.
    let end = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let end = Errno::result(end).map_err(Error::call("pidfd_open"))?;
    let forked = Forked {
        pid,
        // SAFETY: the kernel has just given us this descriptor.
        end: unsafe { OwnedFd::from_raw_fd(end as i32) },
    };
    match forked.end_within(PATIENCE_MS)? {
        Some(WaitStatus::Exited(_, 0)) => Ok(Attempt::Returned(Ok(()))),
        Some(WaitStatus::Exited(_, errno)) => Ok(Attempt::Returned(Err(Errno::from_raw(errno)))),
        Some(other) => Err(Error::Format {
            source_name: "a forked process".into(),
            text: format!("{other:?}"),
        }),
        None => {
            kill(pid, Signal::SIGKILL).map_err(Error::call("kill"))?;
            match forked.end_within(DEATH_MS)? {
                Some(_) => Ok(Attempt::Killed),
                None => Ok(Attempt::Stuck(Stuck(forked))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_returns_is_told() {
        let told = |call: fn() -> Result<(), Errno>| attempt(call).unwrap().to_string();
        assert_eq!(told(|| Ok(())), "accepted");
        assert_eq!(told(|| Err(Errno::EFAULT)), "refused with EFAULT");
    }

    #[test]
    fn what_does_not_return_is_killed() {
        let hang = || loop {
            nix::unistd::pause();
        };
        assert!(matches!(attempt(hang).unwrap(), Attempt::Killed));
    }
}
