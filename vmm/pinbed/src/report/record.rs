// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is known of a run: the source of everything that is shown of it, and, as it stands, of the JSON file.
//!
//! # The JSON file
//!
//! One object for a run. Fields are only ever added; a change of meaning raises `format`. Of runs of several kernels it is one object with
//! `format`, `pinbed`, `exit` and `runs`, an array of such objects, see [`Records`].
//!
//! | field | what |
//! |---|---|
//! | `format` | [`FORMAT`] |
//! | `pinbed` | version of pinbed |
//! | `exit` | the exit code |
//! | `end` | how the run ended: `how` (`done`, `not_provided`, `broken`, `never_up`, `panic`, `hang`, `device_died`, `qemu_died`, `accel_broken`, `unexpected`, `interrupted`), and with it `reason`, `line`, `status`, `signal`, `test` where they apply |
//! | `counts` | `passed`, `failed`, `skipped` |
//! | `environment` | what the tests ran on, see [`Environment`] |
//! | `times` | milliseconds from the command's start, see [`Times`] |
//! | `tests` | one object for each test in the order they ran, see [`Judged`]: `name`, `correct`, `source`, `verdict` (`pass`, `fail`, `xfail`, `fixed`, `skip`, `missing`) with `findings` (each an `eye` and a `text`), `expected`, `reason`, `reference` where they apply, `duration_ms`, `notes`, `dmesg` |
//! | `evidence` | what is known of a bad end, see [`Evidence`] |

use pinbed_abi::report::TestInfo;
use serde::Serialize;

use crate::judge::verdict::{Counts, Verdict};
use crate::machine::accel::Accel;
use crate::machine::watch::End;

/// The version of the JSON file.
pub const FORMAT: u32 = 1;

/// A run.
#[derive(Debug, Serialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of pinbed.
    pub pinbed: &'static str,
    /// The exit code.
    pub exit: u8,
    /// How the run ended.
    pub end: End,
    /// How many verdicts are as expected.
    pub counts: Counts,
    /// What the tests ran on.
    pub environment: Environment,
    /// How long things took.
    pub times: Times,
    /// The tests, in the order they ran; then those that did not get to run.
    pub tests: Vec<Judged>,
    /// What is known of a bad end.
    pub evidence: Evidence,
}

/// Runs of several kernels.
#[derive(Debug, Serialize)]
pub struct Records<'a> {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of pinbed.
    pub pinbed: &'static str,
    /// The exit code.
    pub exit: u8,
    /// The runs, in the order they ran.
    pub runs: &'a [Record],
}

impl Record {
    /// How it is named among runs of several kernels.
    pub fn name(&self) -> &str {
        &self.environment.kernel
    }
}

/// What the tests ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// `uname -r` of the guest, once it is up.
    pub release: Option<String>,
    /// `uname -v` of the guest, once it is up.
    pub version: Option<String>,
    /// The kernel's name for pinbed: one of its own, or the path of a tree.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// Who ran the guest's code; none if it did not come to that.
    pub accel: Option<Accel>,
    /// Why it is that one, where there is something to say.
    pub accel_reason: Option<String>,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// The guest's CPUs.
    pub cpus: u8,
    /// The kernel of kernels.toml, with its patches, whose baseline it was held against; none if the kernel has no baseline.
    pub baseline: Option<String>,
}

/// Milliseconds from the start of the command.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Times {
    /// QEMU was started.
    pub qemu_started: u64,
    /// The guest reported in.
    pub hello: Option<u64>,
    /// The first test's result came.
    pub first_result: Option<u64>,
    /// The machine was gone.
    pub ended: u64,
}

/// A test and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Its name, and what a correct kernel does.
    #[serde(flatten)]
    pub test: TestInfo,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Milliseconds it took, with the judging; none if its result is missing.
    pub duration_ms: Option<u64>,
    /// Facts that it noted.
    pub notes: Vec<String>,
    /// Kernel log lines that appeared meanwhile.
    pub dmesg: Vec<String>,
}

/// What is known of a bad end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evidence {
    /// The last lines on the guest's console.
    pub console: Vec<String>,
    /// All CPUs' registers, if the guest hung.
    pub registers: Option<String>,
    /// The last lines that QEMU wrote to standard error.
    pub qemu: Vec<String>,
    /// The last lines that the device process wrote to standard error.
    pub device: Vec<String>,
}
