// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A command that a person runs in the guest: a terminal or pipes for it, and frames on a port that carry them to the runner.

mod network;
mod root;

use crate::{Broken, port, processes, supervisor};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, setsid};
use pinbed_abi::shell::{Frame, HISTORY_PATH, PAYLOAD_MAX, PORT_NAME, SHARE_PLACE, Session, Size};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const BUSYBOX: &str = "/bin/busybox";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long output may take to come out of a terminal when its last process has ended but others still have it open, in milliseconds.
const LAST_WORDS: u16 = 50;
/// How often it is looked whether the command has ended, in milliseconds.
const LOOK: u16 = 250;
/// How long the runner may take to end the machine after the last frame.
const FAREWELL: Duration = Duration::from_secs(3600);

nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// Runs the command to its end. `warnings` are told to the person first.
pub fn run(session: &Session, warnings: &[String]) -> Result<(), Broken> {
    let path = port::wait_for(PORT_NAME)?;
    let mut port = OpenOptions::new().read(true).write(true).open(path)?;
    let mut warn = |text: &str| {
        let line = format!("pinbed: {text}\r\n").into_bytes();
        port.write_all(&Frame::Errors(line).to_bytes())
    };
    for warning in warnings {
        warn(warning)?;
    }
    let root = root::prepare(session)?;
    // It is in bash's prompt.
    let _ = fs::write("/proc/sys/kernel/hostname", "pinbed");
    if session.network
        && let Err(error) = network::configure(root.as_deref().unwrap_or(Path::new("/")))
    {
        warn(&format!("the network is not up: {error}"))?;
    }
    let code = match start(session, root.as_deref()) {
        Ok((child, streams)) => carry(child, streams, &mut port)?,
        Err(error) => {
            let name = session.command.first().map_or("the shell", String::as_str);
            warn(&format!("{name} cannot be run: {error}"))?;
            // As shells have it.
            if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            }
        }
    };
    // Disks and directories of the host have all that was written.
    nix::unistd::sync();
    if session.terminal.is_some()
        && let Ok(history) = fs::read(inside(root.as_deref(), HISTORY_PATH))
    {
        let last = history.len().saturating_sub(PAYLOAD_MAX);
        port.write_all(&Frame::History(history[last..].to_vec()).to_bytes())?;
    }
    port.write_all(&Frame::Exit(code).to_bytes())?;
    // What is still on its way would be lost with the machine: the runner ends it when it has the last frame.
    thread::sleep(FAREWELL);
    Ok(())
}

/// A path as it is below another root.
fn inside(root: Option<&Path>, path: &str) -> std::path::PathBuf {
    match root {
        Some(root) => root.join(path.trim_start_matches('/')),
        None => path.into(),
    }
}

/// Makes a frame of what a stream said.
type Wrap = fn(Vec<u8>) -> Frame;

/// What a command says, and where its words belong.
struct Streams {
    heard: Vec<(OwnedFd, Wrap)>,
    /// Its standard input, or its terminal.
    input: OwnedFd,
    is_terminal: bool,
}

/// Starts the command.
fn start(session: &Session, root: Option<&Path>) -> io::Result<(Pid, Streams)> {
    let has = |program: &str| inside(root, program).exists();
    let (program, arguments): (&str, Vec<&str>) = match &session.command[..] {
        [] if has("/bin/bash") => ("/bin/bash", vec!["-l"]),
        [] => ("/bin/sh", vec!["-l"]),
        [program, arguments @ ..] => (program, arguments.iter().map(String::as_str).collect()),
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env(
            "SHELL",
            if has("/bin/bash") {
                "/bin/bash"
            } else {
                "/bin/sh"
            },
        )
        .env("LANG", "C.UTF-8")
        .env("HISTFILE", HISTORY_PATH)
        .env("PS1", "pinbed:\\w# ");
    let is_shared = session
        .shares
        .iter()
        .any(|share| share.place == SHARE_PLACE);
    let directory = if is_shared { SHARE_PLACE } else { "/" };
    let root = root.map(Path::to_owned);
    let enter = move || {
        if let Some(root) = &root {
            nix::unistd::chroot(root)?;
        }
        nix::unistd::chdir(directory)
    };
    let Some(terminal) = &session.terminal else {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: chroot, chdir and setsid are safe to call between fork and exec.
        unsafe {
            command.pre_exec(move || {
                enter()?;
                setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a pipe is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        let streams = Streams {
            heard: vec![
                (output.into(), Frame::Output),
                (errors.into(), Frame::Errors),
            ],
            input: input.into(),
            is_terminal: false,
        };
        return Ok((Pid::from_raw(child.id().cast_signed()), streams));
    };
    let pair = openpty(&window(terminal.size), None).map_err(|error| {
        io::Error::other(format!(
            "there is no terminal for it ({error}); build the kernel with CONFIG_UNIX98_PTYS, or give `pinbed shell` a command and a pipe"
        ))
    })?;
    let slave = || pair.slave.try_clone().map(Stdio::from);
    command
        .env("TERM", &terminal.term)
        .stdin(slave()?)
        .stdout(slave()?)
        .stderr(slave()?);
    // SAFETY: as above, and ioctl.
    unsafe {
        command.pre_exec(move || {
            enter()?;
            setsid()?;
            set_controlling_terminal(0, 0)?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    let streams = Streams {
        heard: vec![(pair.master.try_clone()?, Frame::Output)],
        input: pair.master,
        is_terminal: true,
    };
    Ok((Pid::from_raw(child.id().cast_signed()), streams))
}

fn window(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Carries a command's streams until it has ended. Returns its exit code.
fn carry(child: Pid, streams: Streams, port: &mut File) -> Result<u8, Broken> {
    let Streams {
        mut heard,
        input,
        is_terminal,
    } = streams;
    let keys = port.try_clone()?;
    thread::Builder::new().spawn(move || feed(keys, input, is_terminal))?;
    let signals = supervisor::child_signals()?;
    // It may have ended before the signal was watched for.
    let mut ended = processes::reap(child);
    let mut bytes = vec![0; PAYLOAD_MAX];
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut set = vec![readable(signals.as_fd())];
        set.extend(heard.iter().map(|(fd, _)| readable(fd.as_fd())));
        // Another thread may get the signal, and drop it: whoever waits has to look, too.
        let limit = PollTimeout::from(if ended.is_some() || heard.is_empty() {
            LAST_WORDS
        } else {
            LOOK
        });
        match poll(&mut set, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = set[1..]
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut ready = ready.into_iter();
        let mut said = false;
        let mut failed = None;
        heard.retain(|(fd, frame)| {
            if ready.next() != Some(true) {
                return true;
            }
            match nix::unistd::read(fd, &mut bytes) {
                // EIO is how a terminal says that nobody has it open any more.
                Ok(0) | Err(Errno::EIO) => false,
                Ok(count) => {
                    said = true;
                    let frame = frame(bytes[..count].to_vec());
                    failed = port.write_all(&frame.to_bytes()).err().or(failed.take());
                    true
                }
                Err(_) => true,
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        ended = ended.or(processes::reap(child));
        if ended.is_some() && (heard.is_empty() || !said) {
            break;
        }
    }
    Ok(match ended {
        Some(WaitStatus::Exited(_, code)) => code as u8,
        Some(WaitStatus::Signaled(_, signal, _)) => 128 + signal as u8,
        _ => 1,
    })
}

/// Gives the command what the person sends, until one of them wants no more.
fn feed(mut port: File, input: OwnedFd, is_terminal: bool) {
    let mut input = Some(File::from(input));
    while let Ok(Some(frame)) = Frame::read(&mut Patient(&mut port)) {
        match frame {
            Frame::Input(bytes) if bytes.is_empty() && !is_terminal => input = None,
            Frame::Input(bytes) => {
                if let Some(file) = &mut input
                    && file.write_all(&bytes).is_err()
                {
                    // The command reads no more.
                    input = None;
                }
            }
            Frame::Size(size) => {
                if let Some(file) = &input {
                    // SAFETY: the descriptor is open and the structure whole. What is no terminal refuses.
                    let _ = unsafe { set_window_size(file.as_raw_fd(), &window(size)) };
                }
            }
            _ => {}
        }
    }
}

/// A port reads as if at its end while the host has not opened it; it is the host that ends the machine.
struct Patient<'a>(&'a mut File);

impl Read for Patient<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(bytes) {
                Ok(0) => thread::sleep(Duration::from_millis(5)),
                other => return other,
            }
        }
    }
}
