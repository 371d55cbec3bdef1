// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Saves a machine's state for warm starts: what is not memory by QEMU's migration to a file, with `x-ignore-shared`, and the memory ourselves.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pinbed_abi::report::Message;

use crate::interrupt;
use crate::machine::events;
use crate::machine::qmp::{self, Monitor, Said};
use crate::machine::saved::{CONSOLE, MEMORY, Record, STATE};
use crate::machine::vm::{self, Files, Machine};
use crate::machine::watch::is_trouble;

/// How long a guest may take until it can be saved: there is no hurry.
const PATIENCE: Duration = Duration::from_secs(120);

/// Boots a machine without the device until its guest is ready, and saves its state in a directory, which exists. `qemu` is the command
/// without arguments.
///
/// # Errors
/// When the guest does not come up, its kernel complains meanwhile, or the state cannot be saved.
pub fn save(machine: &Machine, qemu: Command, files: &Files, to: &Path) -> Result<Record> {
    let deadline = Instant::now() + PATIENCE;
    let started = vm::start_qemu(machine, qemu, files)?;
    let mut console = started.console;
    let mut copy = File::create(to.join(CONSOLE))?;
    // Its end is QEMU's.
    let reader = thread::spawn(move || io::copy(&mut console, &mut copy));

    let mut report = Lines::new(started.report)?;
    let ready = report.wait(deadline, |line| match Message::from_line(line) {
        Ok(Message::Ready) => Some(Ok(())),
        Ok(Message::Broken { reason }) => Some(Err(reason)),
        _ => None,
    });
    if let Err(reason) = ready.context("the guest did not get ready")? {
        bail!("the guest says: {reason}");
    }
    let mut monitor = Monitor::new(started.qmp.try_clone()?)?;
    let mut qemu = Lines::new(started.qmp)?;
    monitor.save(&to.join(STATE))?;
    let saved = qemu.wait(deadline, |line| match qmp::parse(line) {
        Some(Said::Migrated) => Some(true),
        Some(Said::NotMigrated) => Some(false),
        _ => None,
    });
    ensure!(saved?, "QEMU does not save the machine's state");
    let mut file = File::create(to.join(MEMORY))?;
    let layout = started.memory.save(&mut file)?;
    drop(started.qemu);
    // A reader that panicked has read nothing.
    if let Ok(read) = reader.join() {
        read?;
    }
    let console = fs::read(to.join(CONSOLE))?;
    if let Some(line) = events::lines(&console).find(|line| is_trouble(line)) {
        bail!("the kernel complains while it boots: {line}");
    }
    Ok(Record {
        layout,
        tsc_khz: started.tsc_khz,
    })
}

/// Lines from a socket.
struct Lines(BufReader<UnixStream>);

impl Lines {
    fn new(from: UnixStream) -> io::Result<Self> {
        from.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Lines(BufReader::new(from)))
    }

    /// Waits for a line that says something.
    fn wait<T>(&mut self, deadline: Instant, means: impl Fn(&str) -> Option<T>) -> Result<T> {
        let mut line = Vec::new();
        loop {
            match self.0.read_until(b'\n', &mut line) {
                Ok(0) => bail!("QEMU ended"),
                Ok(_) => {
                    if let Some(meant) = means(&String::from_utf8_lossy(&line)) {
                        return Ok(meant);
                    }
                    line.clear();
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    ensure!(!interrupt::requested(), "interrupted");
                    ensure!(Instant::now() < deadline, "it took too long");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
