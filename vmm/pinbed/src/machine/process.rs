// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Child processes that do not outlive us, whatever ends us.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A child that is killed when this is dropped, and when the thread that started it dies.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a child that inherits `fds` under the numbers they have here, in a process group of its own: Ctrl-C reaches us alone, and
    /// we decide.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let parent = nix::unistd::getpid();
        let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        command.process_group(0);
        // SAFETY: between fork and exec the closure only makes system calls (prctl, getppid, fcntl) and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != parent {
                    return Err(Errno::ESRCH.into());
                }
                for &fd in &numbers {
                    // Without FD_CLOEXEC.
                    if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        drop(fds);
        Ok(Process { child })
    }

    /// Its process id, valid until this is dropped or [`Process::reap`]ed.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Its exit status; waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn reap(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only if the child has been reaped, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a child ends, but leaves it to be reaped, so that its id stays its own.
pub fn wait_without_reaping(pid: Pid) -> nix::Result<()> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}
