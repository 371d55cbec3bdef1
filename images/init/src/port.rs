// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The way to the runner: a virtio-serial port.

use crate::Broken;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinbed_abi::report::{Delay, Message, PORT_NAME};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the port may take to appear: the host names it some time after the driver found it.
const APPEARANCE: Duration = Duration::from_secs(10);
/// How long the host may take to open its end, or to make room. It does both at once, or never.
const ATTENTION: Duration = Duration::from_secs(3);

/// How long the host may take to answer or to send an errand, which it does at once, or never. No time passes in a guest whose state is saved.
const ANSWER: Duration = Duration::from_secs(60);

/// The open report port. It never blocks: a host that does not listen must not keep the guest from its work.
pub struct Port {
    file: File,
    /// The host did not listen for as long as it may take, and is not waited for again.
    given_up: bool,
}

impl Port {
    /// Opens it, once it is there.
    pub fn open() -> Result<Self, Broken> {
        let path = wait_for(PORT_NAME)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| Broken(format!("{}: {error}", path.display())))?;
        Ok(Self {
            file,
            given_up: false,
        })
    }

    /// Sends a message. If it cannot be sent nobody can be told but the console.
    pub fn send(&mut self, message: &Message) {
        let line = message.to_line().map_err(io::Error::from);
        if let Err(error) = line.and_then(|line| self.write(line.as_bytes())) {
            eprintln!("pinbed-init: cannot send {message:?}: {error}");
        }
    }

    /// Waits for a line from the host; without its newline.
    pub fn receive(&mut self) -> Result<String, Broken> {
        let start = Instant::now();
        let mut line = Vec::new();
        let mut bytes = [0; 4096];
        while line.last() != Some(&b'\n') {
            match self.file.read(&mut bytes) {
                Ok(length @ 1..) => line.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                // Nothing, also where the host's end is not open.
                Ok(_) | Err(_) => {
                    if start.elapsed() > ANSWER {
                        return Err(Broken(format!(
                            "the host sent nothing within {} s",
                            ANSWER.as_secs()
                        )));
                    }
                    self.wait(PollFlags::POLLIN)?;
                }
            }
        }
        line.pop();
        Ok(String::from_utf8(line)?)
    }

    /// How long the host has kept the guest from running since the last message, now that a limit is over.
    pub fn delay(&mut self) -> Result<Duration, Broken> {
        self.ask(&Message::Late)
    }

    /// Has the host look at a machine in which a test has timed out; returns when it has.
    pub fn show(&mut self, tasks: Vec<String>, cpus: Vec<String>) -> Result<(), Broken> {
        self.ask(&Message::TimedOut { tasks, cpus }).map(drop)
    }

    fn ask(&mut self, message: &Message) -> Result<Duration, Broken> {
        self.send(message);
        let line = self.receive()?;
        let delay: Delay = serde_json::from_str(&line)
            .map_err(|error| Broken(format!("the host sent no delay but '{line}': {error}")))?;
        Ok(Duration::from_millis(delay.ms))
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let start = Instant::now();
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.given_up || start.elapsed() > ATTENTION {
                        self.given_up = true;
                        return Err(error);
                    }
                    self.wait(PollFlags::POLLOUT)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for room, or for something to read. An end that the host has not opened looks ready for anything, hence the pause.
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        let mut set = [PollFd::new(self.file.as_fd(), what)];
        poll(&mut set, PollTimeout::from(100u8))?;
        if set[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP))
        {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// The device node of the port with this name, once it is there.
pub fn wait_for(name: &str) -> Result<PathBuf, Broken> {
    let start = Instant::now();
    loop {
        if let Some(path) = find(name).filter(|path| path.exists()) {
            return Ok(path);
        }
        if start.elapsed() > APPEARANCE {
            return Err(Broken(format!(
                "there is no virtio-serial port named {name}; start QEMU with -device virtserialport,name={name}"
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn find(wanted: &str) -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|port| {
            let name = fs::read_to_string(port.path().join("name")).ok()?;
            (name.trim_end() == wanted).then(|| Path::new("/dev").join(port.file_name()))
        })
}
