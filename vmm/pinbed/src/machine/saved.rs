// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine's state, saved when PID 1 had nothing left to do and no device was there: a warm start begins with it.
//!
//! QEMU saves and takes up what is not memory (its migration to a file, with `x-ignore-shared`); the memory is ours to copy. The device is
//! plugged in afterwards, since QEMU migrates no vhost-user device of this kind. What makes guests from one state differ comes with the
//! errand: the plan, the time, random bytes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use pinbed_abi::report::{Errand, Message, Plan};
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::machine::memory::{Layout, Memory};
use crate::machine::qmp::{self, Monitor, Said};
use crate::machine::vm::{self, Files, Machine};
use crate::machine::watch::is_trouble;
use crate::machine::{events, tsc};

/// How long a guest may take until it can be saved: there is no hurry.
const PATIENCE: Duration = Duration::from_secs(120);
/// How far the frequency of the time stamp counter may be from what the guest was told: 500 parts in a million.
const TSC_TOLERANCE: u64 = 2000;

/// Names in a saved state's directory.
const MEMORY: &str = "memory";
const STATE: &str = "state";
const CONSOLE: &str = "console";

/// What is known of a saved state besides its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    layout: Layout,
    /// The frequency that the guest takes its time stamp counter for.
    tsc_khz: Option<u64>,
}

/// A saved state.
#[derive(Clone, Debug)]
pub struct Saved {
    directory: PathBuf,
    record: Record,
}

impl Saved {
    /// What was saved in this directory; none if the guest would take its clock for a faster or slower one than it is now.
    pub fn new(directory: &Path, record: Record) -> Option<Self> {
        let holds = match (record.tsc_khz, tsc::khz()) {
            (Some(then), Some(now)) => then.abs_diff(now) < now / TSC_TOLERANCE,
            _ => false,
        };
        holds.then(|| Saved {
            directory: directory.to_owned(),
            record,
        })
    }

    /// Removes it: it was of no use.
    pub fn clear(&self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            log::debug!("{} stays: {error}", self.directory.display());
        }
    }

    /// What is not memory, for QEMU.
    pub fn state(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    /// What the console showed until then.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn console(&self) -> io::Result<Vec<u8>> {
        fs::read(self.directory.join(CONSOLE))
    }

    /// Puts the guest's memory in place.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn fill(&self, memory: &Memory) -> io::Result<()> {
        let mut file = File::open(self.directory.join(MEMORY))?;
        memory.fill(&mut file, &self.record.layout)
    }
}

/// Tells a guest that was saved what to do.
///
/// # Errors
/// When nobody listens.
pub fn send_errand(port: &mut UnixStream, plan: &Plan) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_err(io::Error::other)?.as_nanos();
    let mut seed = vec![0; 32];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut seed)?;
    let errand = Errand {
        plan: plan.clone(),
        realtime_ns: u64::try_from(now).map_err(io::Error::other)?,
        seed,
    };
    port.write_all(errand.to_line()?.as_bytes())
}

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
