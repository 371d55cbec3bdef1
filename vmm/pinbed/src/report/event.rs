// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What happens in a run, as one stream of events that every reporter hears.
//!
//! A run is one call of `pinbed run`. It has a session for each kernel, a session has one boot of a guest or more, and a boot runs tests.
//! `--events FILE` writes the stream as it is, one JSON object a line: `time` (UTC, RFC 3339), `elapsed_ms` (from the start of the
//! command), `event` (its kind) and the fields of that kind. Consumers have to ignore kinds and fields that they do not know.

use chrono::{DateTime, Utc};
use pinbed_abi::report::{Region, TestInfo};
use serde::Serialize;

use super::record::{Boot, Environment, Judged, StartedBy, Summary, rfc3339};

/// Something that happened, and when.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Wall-clock time.
    #[serde(serialize_with = "rfc3339")]
    pub time: DateTime<Utc>,
    /// Milliseconds from the start of the command.
    pub elapsed_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The command is understood, and what the sessions share is there. The first event.
    RunStarted {
        /// [`super::record::FORMAT`].
        format: u32,
        /// Version of pinbed.
        pinbed: String,
        /// Revision of pinbed's checkout, as `git describe --always --dirty` has it; none where there is no git.
        revision: Option<String>,
        /// The command line.
        command: Vec<String>,
        /// The kernels of the sessions to come.
        kernels: Vec<String>,
    },
    /// A kernel's tests are about to be run, or its kernel could not be provided.
    SessionStarted {
        /// The number of the session, from 0.
        session: usize,
        /// What the tests run on, as far as it is known before the guest is up.
        environment: Box<Environment>,
        /// The tests that are to run, each as often as it is to run.
        plan: Vec<TestInfo>,
    },
    /// QEMU and the device were started.
    BootStarted {
        /// The session.
        session: usize,
        /// The number of the boot in the session, from 0.
        boot: usize,
        /// How many tests this boot is to run.
        tests: usize,
    },
    /// The guest reported in.
    GuestUp {
        /// The session.
        session: usize,
        /// The boot.
        boot: usize,
        /// `uname -r`.
        release: String,
        /// `uname -v`.
        version: String,
        /// Zones and CMA regions.
        regions: Vec<Region>,
        /// How it came up.
        start: StartedBy,
    },
    /// A test begins.
    TestStarted {
        /// The session.
        session: usize,
        /// The boot.
        boot: usize,
        /// The test's name.
        name: String,
    },
    /// The guest's console shows a line.
    Console {
        /// The session.
        session: usize,
        /// The boot.
        boot: usize,
        /// The line, without control characters.
        line: String,
    },
    /// A test has its verdict, which may be that it did not run.
    TestFinished {
        /// The session.
        session: usize,
        /// The test and what became of it.
        #[serde(flatten)]
        judged: Box<Judged>,
    },
    /// A boot ended.
    BootFinished {
        /// The session.
        session: usize,
        /// The boot and how it ended.
        #[serde(flatten)]
        ended: Box<Boot>,
    },
    /// A session ended.
    SessionFinished {
        /// The session.
        session: usize,
        /// What it comes to.
        #[serde(flatten)]
        summary: Summary,
    },
    /// The run ended. The last event, whatever happens.
    RunFinished {
        /// The exit code.
        exit: u8,
        /// What ended the run before its time, if something did.
        error: Option<String>,
    },
}
