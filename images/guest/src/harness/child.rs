// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A forked process that waits for its turn, acts on memory as it was given to it, and answers.

use crate::harness::ctx::{Stop, TestResult};
use crate::harness::error::Error;
use crate::harness::patience::{self, Watch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};
use pinbed_abi::report::Eye;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// The process. One that is dropped is killed and reaped.
pub struct Child {
    pid: Pid,
    turn: OwnedFd,
    answer: OwnedFd,
    gone: bool,
}

impl Child {
    /// Forks. On its turn the child does as told, answers with at most a page of bytes, and exits.
    pub fn fork(act: impl FnOnce() -> Vec<u8>) -> Result<Self, Error> {
        let (wait, turn) = pipe().map_err(Error::call("pipe"))?;
        let (answer, tell) = pipe().map_err(Error::call("pipe"))?;
        // SAFETY: the C library makes its allocator usable in the child, and nothing else here is shared between threads.
        match unsafe { fork() }.map_err(Error::call("fork"))? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                turn,
                answer,
                gone: false,
            }),
            ForkResult::Child => {
                drop((turn, answer));
                // Without a turn the parent is gone.
                let failed =
                    !matches!(read(&wait, &mut [0]), Ok(1)) || write(&tell, &act()).is_err();
                // SAFETY: _exit runs nothing of the parent's.
                unsafe { libc::_exit(i32::from(failed)) }
            }
        }
    }

    /// Lets the child act, and waits for its answer and its end, which must be a good one.
    pub fn go(self) -> TestResult<Vec<u8>> {
        match self.run()? {
            (answer, WaitStatus::Exited(_, 0)) => Ok(answer),
            (_, other) => Err(Stop::finding(
                Eye::Harness,
                format!("the forked child ended with {other:?}"),
            )),
        }
    }

    /// Lets the child act, and waits for its answer, if any, and its end, whatever that is.
    pub fn run(mut self) -> Result<(Vec<u8>, WaitStatus), Error> {
        self.start()?;
        self.hear()
    }

    /// As [`Child::run`], for one that may never answer: `None` if it does not.
    pub fn run_unless_it_hangs(&mut self) -> Result<Option<(Vec<u8>, WaitStatus)>, Error> {
        let watch = Watch::process(self.pid)?;
        self.start()?;
        while !watch.is_over() {
            let mut set = [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)];
            let heard = poll(&mut set, PollTimeout::from(50u8))
                .map_err(Error::call("waiting for the child"))?;
            if heard > 0 {
                return self.hear().map(Some);
            }
        }
        Ok(None)
    }

    fn hear(&mut self) -> Result<(Vec<u8>, WaitStatus), Error> {
        let mut answer = vec![0; 4096];
        let length =
            read(&self.answer, &mut answer).map_err(Error::call("hearing from the child"))?;
        answer.truncate(length);
        let status = waitpid(self.pid, None).map_err(Error::call("waitpid"))?;
        self.gone = true;
        Ok((answer, status))
    }

    /// Lets the child act, and does not wait.
    pub fn start(&self) -> Result<(), Error> {
        write(&self.turn, &[1]).map_err(Error::call("telling the child to go on"))?;
        Ok(())
    }

    /// How the child ended, if it did. To be asked no more after that.
    pub fn ended(&mut self) -> Result<Option<WaitStatus>, Error> {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).map_err(Error::call("waitpid"))? {
            WaitStatus::StillAlive => Ok(None),
            status => {
                self.gone = true;
                Ok(Some(status))
            }
        }
    }

    /// Sends it SIGKILL. Whether that ends it.
    pub fn kill(&mut self) -> Result<bool, Error> {
        if self.gone {
            return Ok(true);
        }
        let watch = Watch::process(self.pid)?;
        kill(self.pid, Signal::SIGKILL).map_err(Error::call("kill"))?;
        while self.ended()?.is_none() {
            if watch.is_over() {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Sends it SIGKILL. Whether it is gone within this time.
    pub fn kill_within(&mut self, limit: Duration) -> Result<bool, Error> {
        if self.gone {
            return Ok(true);
        }
        kill(self.pid, Signal::SIGKILL).map_err(Error::call("kill"))?;
        patience::until(limit, || Ok(self.ended()?.is_some()))
    }

    /// The state that proc(5) gives it, such as 'D' for an uninterruptible sleep.
    pub fn state(&self) -> Result<char, Error> {
        let path = format!("/proc/{}/stat", self.pid);
        let text = std::fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
        let state = text.rsplit_once(") ").and_then(|it| it.1.chars().next());
        state.ok_or_else(|| Error::Format {
            source_name: path,
            text: text.clone(),
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that does not die is for PID 1 to find.
        let _ = self.kill();
    }
}
