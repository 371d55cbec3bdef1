// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine's state, saved when PID 1 had nothing left to do and no device was there: a warm start begins with it.
//!
//! QEMU takes up what is not memory; the memory is ours to copy. The device is plugged in afterwards, since QEMU migrates no vhost-user device
//! of this kind. What makes guests from one state differ comes with the errand: the plan, the time, random bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pinbed_abi::report::{Errand, Plan};
use serde::{Deserialize, Serialize};

use crate::machine::memory::{Layout, Memory};
use crate::machine::tsc;

/// How far the frequency of the time stamp counter may be from what the guest was told: 500 parts in a million.
const TSC_TOLERANCE: u64 = 2000;

/// Names in a saved state's directory.
pub(super) const MEMORY: &str = "memory";
pub(super) const STATE: &str = "state";
pub(super) const CONSOLE: &str = "console";

/// What is known of a saved state besides its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub(super) layout: Layout,
    /// The frequency that the guest takes its time stamp counter for.
    pub(super) tsc_khz: Option<u64>,
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
