// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Warm starts: which machines are saved, when, and where.
//!
//! A run of some named tests starts from a saved state of its very machine, if there is one. A machine that boots for the second time is
//! saved, by a process of its own after the run has told its results. Runs of many tests boot, since booting is among the things that
//! they test.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use pinbed_abi::report::Plan;

use crate::cli::VmArgs;
use crate::machine::save::save;
use crate::machine::saved::{Record, Saved};
use crate::machine::vm::{Files, Start};
use crate::provision::answers;
use crate::provision::cache::{Cache, Entry, Fingerprint, STARTS};
use crate::provision::inventory::Check;
use crate::run::setup::Setup;

/// How many states are kept, some 50 MiB each: those used last.
const KEPT: usize = 6;
/// How many machines are remembered that booted and were not saved.
const REMEMBERED: usize = 16;
/// The hidden option of `pinbed run` that saves and runs nothing.
pub const OPTION: &str = "--save-start";
/// How nice saving is.
const NICE: i32 = 19;

/// The place of a machine's saved state.
#[derive(Debug)]
pub struct Place {
    cache: Cache,
    key: String,
    entry: Entry,
}

impl Place {
    /// Of the machine that these arguments make.
    ///
    /// # Errors
    /// When a file that it is made of cannot be read.
    pub fn of(setup: &Setup, args: &VmArgs) -> Result<Self> {
        let cache = &setup.context().cache;
        let nowhere = Files::new("/".as_ref());
        let machine = setup.machine_of(args, &nowhere, &Plan::Await, Start::Bare);
        let mut key = Fingerprint::default()
            .add("machine", machine.description())
            .add("QEMU", setup.qemu());
        for file in [&machine.kernel, &machine.device] {
            key = key.add("file", answers::stamp_of(file).unwrap_or_default());
        }
        for (name, content) in setup.root(&Plan::Await, Vec::new())? {
            key = key.add(&name, content.stamp());
        }
        let key = key.finish();
        Ok(Place {
            entry: cache.entry(STARTS, &key),
            cache: cache.clone(),
            key,
        })
    }

    /// What is saved there.
    pub fn saved(&self) -> Option<Saved> {
        Saved::new(self.entry.dir(), self.entry.record::<Record>()?)
    }

    /// Saves the machine's state, unless that is done.
    ///
    /// # Errors
    /// When it cannot be booted or saved, or on a signal.
    pub fn save(&self, setup: &Setup, args: &VmArgs) -> Result<()> {
        let work = self.entry.lock(&setup.context().progress)?;
        if self.saved().is_some() {
            return Ok(());
        }
        work.retract()?;
        // In the entry itself: it is nobody's business where temporary files are.
        let files = Files::new(work.dir());
        let machine = setup.machine_from(args, &files, &Plan::Await, Start::Bare, Vec::new())?;
        let record = save(&machine, setup.qemu_command(), &files, work.dir())?;
        for file in [files.initramfs(), files.command(), files.qemu_log()] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        work.publish(&record, Check::EachUse, &[])?;
        self.cache.keep(STARTS, "", KEPT)?;
        Ok(())
    }

    /// Remembers that the machine booted; has it saved if it is the second time.
    pub fn booted(&self) {
        const QUESTION: &str = "which machines booted and were not saved";
        let mut keys: Vec<String> = answers::recall(&self.cache, QUESTION, "").unwrap_or_default();
        let before = keys.len();
        keys.retain(|key| *key != self.key);
        if keys.len() < before {
            if let Err(error) = save_later() {
                log::debug!("the start is not saved: {error:#}");
            }
        } else {
            keys.insert(0, self.key.clone());
            keys.truncate(REMEMBERED);
        }
        answers::keep(&self.cache, QUESTION, "", &keys);
    }
}

/// Starts this command once more, to save the start, and does not wait for it.
fn save_later() -> Result<()> {
    let program = env::current_exe().context("cannot find the program that runs")?;
    let mut command = Command::new(program);
    command
        .args(env::args_os().skip(1))
        .arg(OPTION)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec the closure only makes a system call.
    unsafe {
        command.pre_exec(|| {
            // Not being nice does no harm but for time.
            libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
            Ok(())
        });
    }
    command.spawn().context("cannot start pinbed")?;
    Ok(())
}
