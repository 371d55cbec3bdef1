// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs a program to its end: its output line by line, an optional log, and no survivor, neither after Ctrl-C nor when this process is killed
//! outright. To be used from a thread that lives as long as the program: the kernel ends it with the thread that started it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Pid, Uid};

use super::error::Error;
use crate::interrupt;

/// How often the callback hears of a program that says nothing.
const TICK_MS: u16 = 200;
/// How long a program may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// How long a program goes on after a fatal line, for what others of its processes have to say.
const AFTER_FATAL: Duration = Duration::from_millis(500);
/// How many lines a failure's message has.
const SHOWN: usize = 12;

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
    limit: Option<Duration>,
    on_interrupt: OnInterrupt,
    is_error: fn(&str) -> bool,
    is_fatal: fn(&str) -> bool,
}

/// How it ended, and what it said.
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Whether it was stopped at a fatal line.
    stopped: bool,
    lines: Lines,
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
            limit: None,
            on_interrupt: OnInterrupt::Kill,
            is_error: |_| false,
            is_fatal: |_| false,
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

    /// Ends it, with [`Error::Slow`], when it has not ended by itself within this time.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Sets what Ctrl-C does.
    pub fn on_interrupt(mut self, what: OnInterrupt) -> Self {
        self.on_interrupt = what;
        self
    }

    /// Which lines of its output say what is wrong: the first of them go into the error.
    pub fn errors(mut self, is_error: fn(&str) -> bool) -> Self {
        self.is_error = is_error;
        self
    }

    /// After which line it is stopped, as it would go on for long and fail in the end.
    pub fn stop_at(mut self, is_fatal: fn(&str) -> bool) -> Self {
        self.is_fatal = is_fatal;
        self
    }

    /// Runs it; anything but success is an error that carries the lines that say what is wrong, or the last ones.
    pub fn checked(self, on_event: impl FnMut(Event<'_>)) -> Result<(), Error> {
        let (what, log) = (self.what.to_owned(), self.log.clone());
        let directory = self.command.get_current_dir();
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        let ended = self.ended(on_event)?;
        if ended.status.success() {
            return Ok(());
        }
        if let Some(line) = ended
            .lines
            .last
            .iter()
            .rev()
            .find(|line| says_disk_full(line))
        {
            return Err(Error::DiskFull {
                path: directory,
                detail: format!("cannot be written to any more ({})", line.trim()),
            });
        }
        let status = match ended.stopped {
            true => "stopped at the first error".to_owned(),
            false => ended.status.to_string(),
        };
        Err(Error::Command {
            what,
            status,
            lines: ended.lines.telling(),
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
        // Held by this process alone, so that its end is seen by who reads the other one.
        let (life, alive) = io::pipe().map_err(spawn_error)?;
        if self.on_interrupt == OnInterrupt::Kill {
            let (life, alive) = (life.as_raw_fd(), alive.as_raw_fd());
            // SAFETY: what runs between fork and exec is async-signal-safe: system calls alone, and no allocation.
            unsafe {
                self.command.pre_exec(move || watch(life, alive));
            }
        }
        let mut group = Group {
            child: self.command.spawn().map_err(spawn_error)?,
            reaped: false,
            _alive: alive,
        };
        // The command holds the pipe's writing end, which must be closed for the end of output to be seen.
        drop(self.command);

        let mut lines = Lines::new(self.is_error, self.is_fatal);
        let mut told = false;
        let mut deadline: Option<Instant> = None;
        let began = Instant::now();
        loop {
            if let Some(limit) = self.limit.filter(|limit| began.elapsed() > *limit) {
                return Err(Error::Slow {
                    what: self.what.to_owned(),
                    seconds: limit.as_secs_f64(),
                });
            }
            if deadline.is_none() && lines.fatal {
                deadline = Some(Instant::now() + AFTER_FATAL);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            if interrupt::requested() {
                if self.on_interrupt == OnInterrupt::Kill {
                    return Err(Error::Interrupted);
                }
                if !told {
                    say!(
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
        let stopped = lines.fatal;
        if stopped {
            group.stop();
        }
        let status = group.wait().map_err(spawn_error)?;
        if interrupt::requested() {
            return Err(Error::Interrupted);
        }
        Ok(Ended {
            status,
            stopped,
            lines,
        })
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

/// A program and all it started: none of them outlives this.
struct Group {
    child: Child,
    reaped: bool,
    /// Whoever watches over the group acts when this is closed.
    _alive: io::PipeWriter,
}

/// Starts a process of the caller's group that ends the group when the other end of the pipe `life` is closed: when the [`Group`] is
/// dropped, or this program dies of whatever. (That a leader dies with its parent is not enough: make passes the signal on to its shells,
/// and their compilers would go on, and write where the next build is at work.)
///
/// Runs in a forked child of a program with threads, so it makes system calls and nothing else.
fn watch(life: RawFd, alive: RawFd) -> io::Result<()> {
    // SAFETY: each of these is async-signal-safe, and the forked processes leave with _exit.
    unsafe {
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            // In between, so that the watcher is no child of the program, which may wait for all that it has.
            0 => match libc::fork() {
                0 => guard(life, alive),
                _ => libc::_exit(0),
            },
            between => {
                let mut status = 0;
                while libc::waitpid(between, &raw mut status, 0) < 0
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {
                }
            }
        }
    }
    Ok(())
}

/// Waits for the end of the pipe, and ends the process group: first with a chance to clean up, as make does.
///
/// # Safety
/// For a forked process that has nothing else to do.
unsafe fn guard(life: RawFd, alive: RawFd) -> ! {
    let pause = libc::timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut byte = 0u8;
    // SAFETY: system calls on memory of this frame.
    unsafe {
        // It ends last, with SIGKILL.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // Everything but the one end: the other one, above all, even on a kernel without close_range, and the pipes of others like this.
        libc::close(alive);
        let first = libc::c_uint::try_from(life).unwrap_or(0);
        if first > 0 {
            libc::syscall(libc::SYS_close_range, 0, first - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, first + 1, libc::c_uint::MAX, 0);
        while libc::read(life, (&raw mut byte).cast(), 1) < 0
            && *libc::__errno_location() == libc::EINTR
        {}
        libc::kill(0, libc::SIGTERM);
        let leader = libc::getpgrp();
        let mut left = 150;
        while left > 0 && libc::kill(leader, 0) == 0 {
            libc::nanosleep(&raw const pause, std::ptr::null_mut());
            left -= 1;
        }
        libc::kill(0, libc::SIGKILL);
        libc::_exit(0)
    }
}

impl Group {
    fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }

    /// Ends all of the group, the leader with a chance to clean up.
    fn stop(&mut self) {
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
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.stop();
            let _ = self.child.wait();
        }
    }
}

/// Cuts bytes into lines, and keeps those that tell something.
struct Lines {
    is_error: fn(&str) -> bool,
    is_fatal: fn(&str) -> bool,
    partial: Vec<u8>,
    errors: Vec<String>,
    last: VecDeque<String>,
    fatal: bool,
}

impl Lines {
    fn new(is_error: fn(&str) -> bool, is_fatal: fn(&str) -> bool) -> Self {
        Lines {
            is_error,
            is_fatal,
            partial: Vec::new(),
            errors: Vec::new(),
            last: VecDeque::new(),
            fatal: false,
        }
    }

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
        if line.trim().is_empty() {
            return;
        }
        on_event(Event::Line(&line));
        self.fatal |= (self.is_fatal)(&line);
        if self.errors.len() < SHOWN && (self.is_error)(&line) {
            self.errors.push(line.clone());
        }
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The lines for a failure's message.
    fn telling(self) -> Vec<String> {
        if self.errors.is_empty() {
            self.last.into()
        } else {
            self.errors
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
        .errors(|line| line.contains("error:"))
        .checked(|_| {})
        .unwrap_err();
        let Error::Command { lines, status, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(lines, ["x.c:1: error: bad"]);
        assert!(status.contains('3'), "{status}");
    }

    #[test]
    fn the_first_errors_are_kept_however_much_follows() {
        let error = Run::new("a script", shell("echo 'error: bad'; seq 1000; exit 1"))
            .errors(|line| line.contains("error:"))
            .checked(|_| {})
            .unwrap_err();
        let Error::Command { lines, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(lines, ["error: bad"]);
    }

    #[test]
    fn a_fatal_line_ends_it_soon() {
        let began = Instant::now();
        let error = Run::new("a script", shell("echo '*** Error 1'; sleep 1000; exit 1"))
            .stop_at(|line| line.contains("***"))
            .checked(|_| {})
            .unwrap_err();
        assert!(began.elapsed() < GRACE);
        assert!(
            error.to_string().contains("stopped at the first error"),
            "{error}"
        );
    }

    #[test]
    fn a_program_over_its_limit_is_ended() {
        for script in ["sleep 1000", "while :; do echo busy; done"] {
            let began = Instant::now();
            let error = Run::new("a script", shell(script))
                .within(Duration::from_millis(300))
                .checked(|_| {})
                .unwrap_err();
            assert!(began.elapsed() < Duration::from_secs(100));
            assert!(matches!(error, Error::Slow { .. }), "{script}: {error}");
        }
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = Run::new(
            "a script",
            shell("echo 'cc: fatal error: write: No space left on device'; exit 1"),
        )
        .checked(|_| {})
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
            _alive: io::pipe().unwrap().1,
        });
        let grandchild = Pid::from_raw(id.trim().parse().unwrap());
        // A killed process goes when it is next scheduled, and an orphan stays visible until its new parent reaps it.
        let lives = || {
            let state =
                std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            !(state.is_empty() || state.contains(") Z"))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while lives() {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The ids of the processes of a group that live.
    fn group_of(leader: u32) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|file| file.file_name().to_str()?.parse::<u32>().ok());
        let is_member = |id: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let mut fields = fields.split(' ');
            let (state, group) = (fields.next(), fields.nth(1));
            group.is_some_and(|group| group == leader.to_string()) && state != Some("Z")
        };
        ids.filter(is_member).collect()
    }

    /// What a build is: a leader that waits for a shell that waits for a compiler, none of which hears that pinbed has died.
    #[test]
    fn a_group_ends_with_a_process_that_is_killed_outright() {
        // This test once more, in a process that may be killed.
        const SCRIPT: &str = "PINBED_TEST_SCRIPT";
        if let Ok(script) = std::env::var(SCRIPT) {
            let _ = Run::new("a script", shell(&script)).ended(|_| {});
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("leader");
        let script = format!(
            "echo $$ >{0}.new; mv {0}.new {0}; sh -c 'trap \"\" TERM; sleep 1000; true'; true",
            path.display()
        );
        let name = std::thread::current().name().unwrap().to_owned();
        let mut pinbed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name])
            .env(SCRIPT, script)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() {
            assert!(Instant::now() < deadline, "it never began");
            std::thread::sleep(Duration::from_millis(5));
        }
        let leader = std::fs::read_to_string(&path).unwrap();
        let leader = leader.trim().parse().unwrap();
        while group_of(leader).len() < 3 {
            assert!(Instant::now() < deadline, "{:?}", group_of(leader));
            std::thread::sleep(Duration::from_millis(5));
        }
        pinbed.kill().unwrap();
        pinbed.wait().unwrap();
        while !group_of(leader).is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}", group_of(leader));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
