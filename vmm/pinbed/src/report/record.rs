// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A run as one value, collected from its events: what the JSON file, JUnit and comparisons are made from.
//!
//! # The JSON file
//!
//! One object, [`Run`]. Fields are only ever added; a change of meaning raises `format`. Every type here is a part of it, under the names
//! that its fields have in Rust.

use chrono::{DateTime, SecondsFormat, Utc};
use pinbed_abi::report::{Memory, Region, TestInfo};
use serde::{Deserialize, Serialize, Serializer};

use crate::judge::verdict::{Counts, Verdict};
use crate::machine::accel::Accel;
use crate::machine::watch::{End, Evidence};

/// The version of the JSON file and of the event stream.
pub const FORMAT: u32 = 2;

/// A run: one call of `pinbed run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of pinbed.
    pub pinbed: String,
    /// Revision of pinbed's checkout, as `git describe --always --dirty` has it; none where there is no git.
    pub revision: Option<String>,
    /// When the run began: UTC, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub started: DateTime<Utc>,
    /// The command line.
    pub command: Vec<String>,
    /// The exit code; none while the run goes on.
    pub exit: Option<u8>,
    /// What ended the run before its time, if something did.
    pub error: Option<String>,
    /// A session for each kernel, in the order they ran.
    pub sessions: Vec<Session>,
}

/// The tests of one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Session {
    /// What the tests ran on.
    pub environment: Environment,
    /// What it comes to.
    #[serde(flatten)]
    pub summary: Summary,
    /// The boots of the guest, in the order they ended.
    pub boots: Vec<Boot>,
    /// Every attempt at every test in the order they ended; then the tests that did not run.
    pub tests: Vec<Judged>,
}

impl Environment {
    /// The kernel's name without that of the environment.
    pub fn kernel_alone(&self) -> &str {
        let name = self.kernel.as_str();
        let env = self.env.as_deref();
        env.and_then(|env| name.strip_suffix(env)?.strip_suffix(','))
            .unwrap_or(name)
    }
}

impl Session {
    /// How it is named among sessions of several kernels.
    pub fn name(&self) -> &str {
        &self.environment.kernel
    }

    /// The last attempt at each test of each repetition, with the attempts before it.
    pub fn results(&self) -> impl Iterator<Item = (&Judged, Vec<&Judged>)> {
        let is_last = |at: usize| !self.tests[at].retried;
        (0..self.tests.len())
            .filter(move |at| is_last(*at))
            .map(|at| {
                let last = &self.tests[at];
                let same = |other: &&Judged| {
                    other.retried
                        && other.test.name == last.test.name
                        && other.repetition == last.repetition
                };
                let earlier = match last.attempt {
                    1 => Vec::new(),
                    _ => self.tests.iter().filter(same).collect(),
                };
                (last, earlier)
            })
    }
}

/// What a session comes to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Summary {
    /// The exit code.
    pub exit: u8,
    /// How it ended: the end of the boot that decided, or `done`.
    pub end: End,
    /// How many verdicts are as expected.
    pub counts: Counts,
    /// How long things took.
    pub times: Times,
}

/// What the tests ran on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// `uname -r` of the guest, once it is up.
    pub release: Option<String>,
    /// `uname -v` of the guest, once it is up.
    pub version: Option<String>,
    /// The guest's zones and CMA regions, once it is up.
    #[serde(default)]
    pub regions: Vec<Region>,
    /// The kernel's name for pinbed: one of its own, a Debian package, or the path of a tree or an image.
    pub kernel: String,
    /// The environment of environments.toml that the tests ran in, if it is one: `kernel` then has its name, too, after a comma.
    #[serde(default)]
    pub env: Option<String>,
    /// What tells the kernel from others of its name: a hash of all that went into it, such as source, patches, configuration and compiler.
    pub fingerprint: Option<String>,
    /// The revision of a user's tree, as `git describe --always --dirty` has it ("-dirty" at the end: with changes that no commit has).
    pub tree_revision: Option<String>,
    /// Fragments that were added to the kernel's configuration.
    pub fragments: Vec<String>,
    /// What was added to the kernel's command line.
    pub append: String,
    /// The faults that the device was asked for, as `--fault` takes them.
    #[serde(default)]
    pub faults: Vec<String>,
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
    /// The seed that the tests' order was shuffled with.
    pub shuffle: Option<u64>,
    /// Which share of the tests was to run, of `--shard`: "1/4".
    #[serde(default)]
    pub shard: Option<String>,
    /// How the guest came up, or before that how it is to come up.
    #[serde(default)]
    pub start: Option<StartedBy>,
}

/// How a guest came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum StartedBy {
    /// It booted.
    Cold,
    /// It started from the state that another boot of the same machine was saved in when PID 1 was ready.
    Warm,
}

/// Milliseconds from the start of the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Times {
    /// QEMU was first started.
    pub qemu_started: Option<u64>,
    /// A guest first reported in.
    pub hello: Option<u64>,
    /// The first test's result came.
    pub first_result: Option<u64>,
    /// The last machine was gone.
    pub ended: u64,
}

/// An attempt at a test, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Judged {
    /// Its name, and what a correct kernel does.
    #[serde(flatten)]
    pub test: TestInfo,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Which of the repetitions that `--repeat` asks for, from 1.
    pub repetition: u32,
    /// Which of the attempts that `--retries` allows, from 1.
    pub attempt: u32,
    /// Whether another attempt follows, whose verdict counts.
    pub retried: bool,
    /// The boot it ran in; none if it did not run.
    pub boot: Option<usize>,
    /// When it began, in milliseconds from the start of the command; none if it did not run.
    pub started_ms: Option<u64>,
    /// Milliseconds it took, with the judging; none if it did not end.
    pub duration_ms: Option<u64>,
    /// Facts that it noted.
    pub notes: Vec<String>,
    /// Kernel log lines that appeared meanwhile.
    pub dmesg: Vec<String>,
    /// What the test did with guest memory; none if it did not come to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<Memory>>,
    /// What the machine looked like when the test timed out; none if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hang: Option<Box<Evidence>>,
}

/// A boot of the guest, and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Boot {
    /// The number of the boot in the session, from 0.
    pub boot: usize,
    /// How it ended.
    pub end: End,
    /// The test that the end is put down to: the one that ran when the kernel first said that something is wrong, or when the end came.
    pub culprit: Option<String>,
    /// The first oops, BUG or sanitizer report on the console, of a boot that ended badly.
    pub headline: Option<String>,
    /// Whether the baseline knows the culprit to end so.
    pub known: bool,
    /// What is known of a bad end.
    pub evidence: Evidence,
}

impl Boot {
    /// A boot of which no more is known than how it ended.
    pub fn new(boot: usize, end: End) -> Self {
        Boot {
            boot,
            end,
            culprit: None,
            headline: None,
            known: false,
            evidence: Evidence::default(),
        }
    }
}

/// A time as RFC 3339 with milliseconds, in UTC.
pub fn rfc3339<S: Serializer>(time: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
}
