// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test process tells its supervisor, one JSON line each, on file descriptor [`FD`].

use pinbed_abi::report::{Finding, Part, Sighting};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The descriptor that PID 1 gives a test.
pub const FD: i32 = 3;

/// A line. A test that ends without [`Progress::Finished`] or [`Progress::Skip`] did not get to a judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// First of all: what the test asks of its supervisor.
    Begin {
        /// Seconds it needs, if more than the plan gives.
        timeout_s: u64,
    },
    /// A fact worth keeping.
    Note(String),
    /// Something a correct kernel does not do.
    Finding(Finding),
    /// Where a buffer is.
    Sighting(Sighting),
    /// Kernel log lines with this text are the test's own doing.
    Expected(String),
    /// The host is asked to take a part of the machine away, or to put it in.
    Hotplug {
        /// Which.
        part: Part,
        /// Whether it is to be there.
        plugged: bool,
    },
    /// The host is asked to compare guest memory while the guest stands still; see [`pinbed_abi::frozen`].
    Freeze {
        /// Physical address of the mailbox.
        mailbox: u64,
    },
    /// Last: the guest lacks something.
    Skip(String),
    /// Last: the test looked at all it wanted to see.
    Finished,
}

/// For a person who runs a test by hand.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin { .. } => write!(f, "begins"),
            Self::Note(note) => write!(f, "note: {note}"),
            Self::Finding(finding) => write!(f, "{:?} eye: {}", finding.eye, finding.text),
            Self::Sighting(Sighting {
                buffer,
                moment,
                frames,
            }) => write!(f, "{buffer}: {moment:?} in page frames {frames}"),
            Self::Expected(text) => write!(f, "makes the kernel log '{text}'"),
            Self::Hotplug {
                part,
                plugged: true,
            } => write!(f, "asks the host for the {part}"),
            Self::Hotplug {
                part,
                plugged: false,
            } => write!(f, "asks the host to take the {part} away"),
            Self::Freeze { mailbox } => {
                write!(f, "asks the host to compare memory, by {mailbox:#x}")
            }
            Self::Skip(reason) => write!(f, "skipped: {reason}"),
            Self::Finished => write!(f, "ends; what it leaves behind is not judged here"),
        }
    }
}
