// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A system call that may never come back, made by a forked process in the test's place.

use crate::harness::child::Child;
use crate::harness::ctx::{Stop, TestResult};
use crate::harness::error::Error;
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use std::fmt;

/// What came of the call.
pub enum Attempt {
    /// It came back.
    Returned(Result<(), Errno>),
    /// It did not, but SIGKILL ended it.
    Killed,
    /// Nothing ends it.
    Stuck(Child),
}

impl Attempt {
    /// What the call returned; a finding where it is to return, and did not.
    pub fn returned(self, what: &str) -> TestResult<Result<(), Errno>> {
        match self {
            Self::Returned(result) => Ok(result),
            other => Err(Stop::finding(Eye::Cpu, format!("{what} {other}"))),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(Ok(())) => write!(f, "accepted"),
            Self::Returned(Err(errno)) => write!(f, "refused with {errno:?}"),
            Self::Killed => write!(f, "does not end, but by SIGKILL"),
            Self::Stuck(_) => write!(f, "does not end, nor by SIGKILL"),
        }
    }
}

/// Makes the call in a process of its own, with this one's memory and descriptors. What it changes in memory that is not shared
/// is lost, and so is what only the process holds.
pub fn attempt(call: impl FnOnce() -> Result<(), Errno>) -> Result<Attempt, Error> {
    Prepared::new(call)?.make()
}

/// A call that a forked process is to make later, with the privileges, memory and descriptors of this moment.
pub struct Prepared(Child);

impl Prepared {
    /// Forks the process.
    pub fn new(call: impl FnOnce() -> Result<(), Errno>) -> Result<Self, Error> {
        let child = Child::fork(|| {
            let errno = call().err().map_or(0, |errno| errno as i32);
            errno.to_le_bytes().into()
        })?;
        Ok(Self(child))
    }

    /// Has it make the call.
    pub fn make(self) -> Result<Attempt, Error> {
        let Self(mut child) = self;
        match child.run_unless_it_hangs()? {
            Some((answer, status)) => match answer[..].try_into().map(i32::from_le_bytes) {
                Ok(0) => Ok(Attempt::Returned(Ok(()))),
                Ok(errno) => Ok(Attempt::Returned(Err(Errno::from_raw(errno)))),
                Err(_) => Err(Error::Format {
                    source_name: "the forked child".into(),
                    text: format!("{answer:?}, {status:?}"),
                }),
            },
            None if child.kill()? => Ok(Attempt::Killed),
            None => Ok(Attempt::Stuck(child)),
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
        let call = attempt(|| Err(Errno::EFAULT)).unwrap();
        assert_eq!(call.returned("a call").unwrap(), Err(Errno::EFAULT));
        let Err(Stop::Finding(finding)) = Attempt::Killed.returned("a call") else {
            panic!("it returned")
        };
        assert_eq!(finding.text, "a call does not end, but by SIGKILL");
    }

    #[test]
    fn what_does_not_return_is_killed() {
        // Spinning, which is noticed sooner than sleeping.
        let hang = || loop {
            std::hint::spin_loop();
        };
        assert!(matches!(attempt(hang).unwrap(), Attempt::Killed));
    }
}
