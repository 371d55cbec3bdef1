// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Everything that happens around the guest, as one stream of events: a thread for each source, one channel for all.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use nix::unistd::Pid;
use pinbed_abi::report::Message;

use crate::machine::person;
use crate::machine::process::wait_without_reaping;
use crate::machine::qmp::{self, Said};
use crate::text::printable;

/// The longest line we take from a guest, in bytes; what is longer is cut, so that a guest cannot fill our memory.
const LINE_MAX: u64 = 1 << 20;

/// One thing that happened. Processes that ended are still to be reaped, by who owns them.
#[derive(Debug)]
pub enum Happening {
    /// A message from the guest, or why a line is none.
    Report(Result<Message, String>),
    /// A line on the guest's console, without control characters.
    Console(String),
    /// QEMU said something.
    Qemu(Said),
    /// QEMU ended, and all that came through it has come.
    QemuEnded,
    /// A device process ended, this one.
    DeviceEnded(Pid),
    /// A signal came.
    Signal(i32),
    /// The runner wants no more of this boot.
    Stop,
    /// Something about the command that a person runs in the guest.
    Person(person::Said),
}

/// Where the guest's words come from.
#[derive(Debug)]
pub struct Sources {
    /// The report port.
    pub report: UnixStream,
    /// Where a copy of the report goes.
    pub report_log: File,
    /// The console.
    pub console: UnixStream,
    /// What it showed before a saved guest's state was saved; empty in a boot.
    pub console_before: Vec<u8>,
    /// Where a copy of what it shows goes.
    pub console_log: File,
    /// The port of `pinbed shell`, if there is one; who wants it takes it.
    pub shell: Option<UnixStream>,
    /// The QMP connection.
    pub qmp: UnixStream,
    /// QEMU.
    pub qemu: Pid,
    /// The device process.
    pub device: Pid,
}

/// The channel that all sources send to.
pub fn stream() -> (Sender<Happening>, Receiver<Happening>) {
    channel()
}

/// Starts a thread for each source. They end when QEMU and the device have ended.
pub fn listen(sources: Sources, to: &Sender<Happening>) {
    for line in lines(&sources.console_before) {
        // Who made the channel may be gone.
        let _ = to.send(Happening::Console(line));
    }
    let through_qemu = vec![
        each_line(sources.report, Some(sources.report_log), to, |line| {
            Some(Happening::Report(message(line)))
        }),
        each_line(sources.qmp, None, to, |line| {
            qmp::parse(line).map(Happening::Qemu)
        }),
        each_line(sources.console, Some(sources.console_log), to, |line| {
            Some(Happening::Console(printable(line)))
        }),
    ];
    let (qemu, device) = (sources.qemu, sources.device);
    on_end_of(qemu, to, move |to| {
        for reader in through_qemu {
            // A reader that panicked has nothing more to say.
            let _ = reader.join();
        }
        to.send(Happening::QemuEnded)
    });
    listen_to_device(device, to);
}

/// Starts a thread that tells of the end of a device process.
pub fn listen_to_device(device: Pid, to: &Sender<Happening>) {
    on_end_of(device, to, move |to| {
        to.send(Happening::DeviceEnded(device))
    });
}

/// A line of the report port, or why it is no message.
pub fn message(line: &str) -> Result<Message, String> {
    Message::from_line(line).map_err(|error| format!("{error} in {line:?}"))
}

/// Lines of the console as they are told.
pub fn lines(console: &[u8]) -> impl Iterator<Item = String> {
    let lines = console.split(|byte| *byte == b'\n');
    lines
        .map(|line| printable(String::from_utf8_lossy(line).trim_end_matches('\r')))
        .filter(|line| !line.is_empty())
}

fn on_end_of<R>(
    pid: Pid,
    to: &Sender<Happening>,
    then: impl FnOnce(Sender<Happening>) -> R + Send + 'static,
) {
    let to = to.clone();
    thread::spawn(move || {
        if let Err(error) = wait_without_reaping(pid) {
            log::warn!("cannot wait for process {pid}: {error}");
        }
        then(to);
    });
}

fn each_line(
    from: UnixStream,
    mut log: Option<File>,
    to: &Sender<Happening>,
    understand: impl Fn(&str) -> Option<Happening> + Send + 'static,
) -> JoinHandle<()> {
    let to = to.clone();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            let gone = understand(text).is_some_and(|happening| to.send(happening).is_err());
            // Written after it was told: who reads the log knows that what is in it comes before all that happens from now on.
            if let Some(file) = &mut log
                && let Err(error) = file.write_all(&line)
            {
                log::warn!("cannot write a log of the run: {error}");
                log = None;
            }
            if gone {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_whole_and_the_last_without_its_end_too() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (to, events) = stream();
        let log = tempfile::NamedTempFile::new().unwrap();
        let reader = each_line(ours, Some(log.reopen().unwrap()), &to, |line| {
            Some(Happening::Console(line.to_owned()))
        });
        (&theirs).write_all(b"one\r\ntw").unwrap();
        (&theirs).write_all(b"o\nthr\xffee").unwrap();
        drop(theirs);
        reader.join().unwrap();
        drop(to);
        let lines: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(
            lines,
            [
                "Console(\"one\")",
                "Console(\"two\")",
                "Console(\"thr\u{fffd}ee\")"
            ]
        );
        assert_eq!(std::fs::read(log.path()).unwrap(), b"one\r\ntwo\nthr\xffee");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (to, events) = stream();
        let reader = each_line(ours, None, &to, |line| {
            Some(Happening::Console(line.to_owned()))
        });
        theirs
            .write_all(&vec![b'x'; LINE_MAX as usize + 5])
            .unwrap();
        drop(theirs);
        reader.join().unwrap();
        drop(to);
        let lengths: Vec<_> = events
            .iter()
            .map(|event| match event {
                Happening::Console(line) => line.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(lengths, [LINE_MAX as usize, 5]);
    }
}
