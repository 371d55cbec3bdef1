// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs a program to its end: its output line by line, an optional log, and no survivor after Ctrl-C. To be used from a
//! thread that lives as long as the program: the kernel ends it with the thread that started it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Pid, Uid};

use super::error::Error;
use super::interrupt;

/// How often the callback hears of a program that says nothing.
const TICK_MS: u16 = 200;
/// How long a program may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// How many of the last lines are kept for a failure's message.
const TAIL: usize = 200;

/// What the callback hears.
pub enum Event<'a> {
    /// A line of output, standard output and standard error alike, without its end.
    Line(&'a str),
    /// Time passed.
    Tick,
}

/// What to do when Ctrl-C comes while the program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// End it and everything it started.
    Kill,
    /// Let it end by itself first: for what must not be left half done, as dpkg.
    Finish,
}

/// A program about to be run. It ends with [`Error::DiskFull`] when its working directory, if it is given one, is full.
pub struct Run<'a> {
    what: &'a str,
    command: Command,
    log: Option<PathBuf>,
    on_interrupt: OnInterrupt,
}

/// How it ended, and the last it said.
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The last lines of its output.
    pub lines: Vec<String>,
}

impl<'a> Run<'a> {
    /// `what` is what the program does, for messages: "the kernel build". Messages are asked for in English, since some
    /// of them are looked at.
    pub fn new(what: &'a str, mut command: Command) -> Self {
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        Run {
            what,
            command,
            log: None,
            on_interrupt: OnInterrupt::Kill,
        }
    }

    /// Feeds it a file on standard input.
    pub fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Also writes its output to this file.
    pub fn log(mut self, path: PathBuf) -> Self {
        self.log = Some(path);
        self
    }

    /// Sets what Ctrl-C does.
    pub fn on_interrupt(mut self, what: OnInterrupt) -> Self {
        self.on_interrupt = what;
        self
    }

    /// Runs it; anything but success is an error that carries the last lines `relevant` picks (all of the last ten if it
    /// picks none).
    pub fn checked(
        self,
        relevant: fn(&str) -> bool,
        on_event: impl FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let (what, log, full) = (
            self.what.to_owned(),
            self.log.clone(),
            self.working_directory(),
        );
        let ended = self.ended(on_event)?;
        if ended.status.success() {
            return Ok(());
        }
        if let Some(line) = ended.lines.iter().rev().find(|line| says_disk_full(line)) {
            return Err(Error::DiskFull {
                path: full,
                detail: format!("cannot be written to any more ({})", line.trim()),
            });
        }
        let lines = pick(&ended.lines, relevant);
        Err(Error::Command {
            what,
            status: ended.status.to_string(),
            lines,
            log,
        })
    }

    /// Runs it to its end, however it ends.
    pub fn ended(mut self, mut on_event: impl FnMut(Event<'_>)) -> Result<Ended, Error> {
        let program = self.command.get_program().to_string_lossy().into_owned();
        let directory = self.command.get_current_dir().map(Path::to_owned);
        let spawn_error = |source| Error::Spawn {
            program: program.clone(),
            source,
        };
        let mut log = match &self.log {
            Some(path) => Some((
                File::create(path).map_err(|e| Error::io("create", path, e))?,
                path,
            )),
            None => None,
        };
        let (mut output, theirs) = io::pipe().map_err(spawn_error)?;
        self.command
            .stderr(theirs.try_clone().map_err(spawn_error)?)
            .stdout(theirs)
            .process_group(0);
        // SAFETY: between fork and exec only prctl(2) runs, which is async-signal-safe and touches no memory.
        unsafe {
            // So that it ends even when this process is killed outright. make passes the signal on to what it started.
            self.command
                .pre_exec(|| Ok(set_pdeathsig(Signal::SIGTERM)?));
        }
        let mut group = Group {
            child: self.command.spawn().map_err(spawn_error)?,
            reaped: false,
        };
        // The command holds the pipe's writing end, which must be closed for the end of output to be seen.
        drop(self.command);

        let mut lines = Lines::default();
        let mut told = false;
        loop {
            if interrupt::requested() {
                if self.on_interrupt == OnInterrupt::Kill {
                    return Err(Error::Interrupted);
                }
                if !told {
                    eprintln!(
                        "pinbed: will stop when {} has ended; it must not be left half done",
                        self.what
                    );
                    told = true;
                }
            }
            let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(TICK_MS)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {
                    on_event(Event::Tick);
                    // Not every program notices: apt's helpers wait for ever once a write has failed.
                    if let Some(dir) = &directory
                        && is_full(dir)
                    {
                        let detail = format!("has no space left, while {} runs", self.what);
                        return Err(Error::DiskFull {
                            path: dir.clone(),
                            detail,
                        });
                    }
                    continue;
                }
                Ok(_) => {}
                Err(errno) => return Err(spawn_error(errno.into())),
            }
            let mut bytes = [0; 16384];
            let count = match output.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(spawn_error(e)),
            };
            if let Some((file, path)) = &mut log {
                file.write_all(&bytes[..count])
                    .map_err(|e| Error::io("write", path, e))?;
            }
            lines.add(&bytes[..count], &mut on_event);
        }
        lines.end(&mut on_event);
        let status = group.wait().map_err(spawn_error)?;
        if interrupt::requested() {
            return Err(Error::Interrupted);
        }
        Ok(Ended {
            status,
            lines: lines.last.into(),
        })
    }

    fn working_directory(&self) -> PathBuf {
        self.command
            .get_current_dir()
            .map_or_else(|| PathBuf::from("."), Path::to_owned)
    }
}

/// Whether nothing more can be written there.
fn is_full(dir: &Path) -> bool {
    statvfs(dir).is_ok_and(|stat| {
        let blocks = if Uid::effective().is_root() {
            stat.blocks_free()
        } else {
            stat.blocks_available()
        };
        blocks * stat.fragment_size() < 64 << 10
    })
}

/// Whether a line of a program's output says that the disk is full.
pub fn says_disk_full(line: &str) -> bool {
    line.contains("No space left on device") || line.contains("You don't have enough free space")
}

/// The last lines that are relevant, twelve at most; if none is, the last ten of any kind.
pub fn pick(lines: &[String], relevant: fn(&str) -> bool) -> Vec<String> {
    let last = |lines: Vec<&String>, most: usize| -> Vec<String> {
        lines[lines.len().saturating_sub(most)..]
            .iter()
            .map(|line| (*line).clone())
            .collect()
    };
    let picked: Vec<_> = lines.iter().filter(|line| relevant(line)).collect();
    if picked.is_empty() {
        return last(
            lines
                .iter()
                .filter(|line| !line.trim().is_empty())
                .collect(),
            10,
        );
    }
    last(picked, 12)
}

/// A program and all it started: none of them outlives this.
struct Group {
    child: Child,
    reaped: bool,
}

impl Group {
    fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let Ok(id) = i32::try_from(self.child.id()) else {
            return;
        };
        let group = Pid::from_raw(id);
        let deadline = Instant::now() + GRACE;
        let _ = killpg(group, Signal::SIGTERM);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The leader may be gone and others of its group not; what is gone already makes this fail, which is fine.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Cuts bytes into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end(on_event);
            } else {
                self.partial.push(byte);
            }
        }
    }

    fn end(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
        if !line.is_empty() {
            on_event(Event::Line(&line));
            if self.last.len() == TAIL {
                self.last.pop_front();
            }
            self.last.push_back(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_are_heard_in_order() {
        let mut heard = Vec::new();
        let ended = Run::new("a script", shell("echo one; echo two >&2; printf three"))
            .ended(|event| {
                if let Event::Line(line) = event {
                    heard.push(line.to_owned());
                }
            })
            .unwrap();
        assert!(ended.status.success());
        assert_eq!(heard, ["one", "two", "three"]);
    }

    #[test]
    fn a_failure_carries_the_relevant_lines() {
        let error = Run::new(
            "a script",
            shell("echo noise; echo 'x.c:1: error: bad'; echo noise; exit 3"),
        )
        .checked(|line| line.contains("error:"), |_| {})
        .unwrap_err();
        let Error::Command { lines, status, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(lines, ["x.c:1: error: bad"]);
        assert!(status.contains('3'), "{status}");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = Run::new(
            "a script",
            shell("echo 'cc: fatal error: write: No space left on device'; exit 1"),
        )
        .checked(|_| true, |_| {})
        .unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    }

    #[test]
    fn dropping_a_group_leaves_no_process() {
        let mut command = shell("sleep 1000 & echo $!; wait");
        command.process_group(0).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut id = String::new();
        let mut output = io::BufReader::new(child.stdout.take().unwrap());
        io::BufRead::read_line(&mut output, &mut id).unwrap();
        drop(Group {
            child,
            reaped: false,
        });
        let grandchild = Pid::from_raw(id.trim().parse().unwrap());
        // An orphan stays visible until its new parent reaps it, so look at its state rather than at its existence.
        let state = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "{state}");
    }
}
