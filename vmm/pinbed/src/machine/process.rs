// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Child processes that do not outlive us, whatever ends us.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::machine::stall::Stall;

/// How long a process may take to end after SIGKILL. One that waits in the host's kernel for something that does not come never does.
const DEATH: Duration = Duration::from_secs(5);

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
        let begin = Instant::now();
        let mut stall = Stall::new();
        while let Ok(None) = self.child.try_wait() {
            // It takes the CPU to end.
            if stall.due() <= Instant::now() {
                stall.look(&[self.pid()]);
            }
            if begin.elapsed().saturating_sub(stall.total()) > DEATH {
                let pid = self.child.id();
                say!(
                    "pinbed: process {pid} has not ended {} s after SIGKILL, and is left behind: it waits in the host's kernel, or a debugger has it",
                    DEATH.as_secs()
                );
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// As a process that waits in the kernel does, one whose tracer does not let it go stays after SIGKILL.
    #[test]
    fn a_process_that_stays_after_sigkill_is_left_behind() {
        let child = Process::spawn(Command::new("sleep").arg("60"), vec![]).unwrap();
        let traced = child.pid().as_raw();
        let (mut hear, tell) = io::pipe().unwrap();
        // A process of its own: a tracer among our threads would let us reap.
        // SAFETY: after the fork the child only makes system calls.
        let tracer = match unsafe { libc::fork() } {
            // SAFETY: as above; the pointer is to an array of as many bytes as are written.
            0 => unsafe {
                let seized = libc::ptrace(libc::PTRACE_SEIZE, traced, 0, 0) == 0;
                libc::write(tell.as_raw_fd(), [u8::from(seized)].as_ptr().cast(), 1);
                libc::sleep(60);
                libc::_exit(0)
            },
            tracer => Pid::from_raw(tracer),
        };
        assert!(tracer.as_raw() > 0);
        let mut seized = [0];
        hear.read_exact(&mut seized).unwrap();
        let begin = Instant::now();
        drop(child);
        let took = begin.elapsed();
        nix::sys::signal::kill(tracer, Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(tracer, None).unwrap();
        assert_eq!(seized, [1], "the host lets nobody trace");
        assert!((DEATH..2 * DEATH).contains(&took), "{took:?}");
    }
}
