// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the runner asks of the guest, and what the guest reports.
//!
//! The runner puts a [`Plan`] as JSON into the initramfs at [`PLAN_PATH`]. The guest writes one [`Message`] a line, as JSON, to the
//! virtio-serial port [`PORT_NAME`].

use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// Path of the [`Plan`] in the guest.
pub const PLAN_PATH: &str = "/etc/pinbed-plan.json";
/// Path in the guest of the configuration of its kernel, in the form of a .config.
pub const CONFIG_PATH: &str = "/etc/pinbed-kernel.config";
/// Path in the guest of the list of modules to load before the driver, in order: a line for each, its path and parameters. Not there
/// where the kernel has none.
pub const MODULES_PATH: &str = "/etc/pinbed-modules";
/// Name of the virtio-serial port that carries [`Message`]s.
pub const PORT_NAME: &str = "org.pinbed.report";

/// Group of the tests that run v4l2-compliance.
pub const COMPLIANCE_GROUP: &str = "compliance";
/// Directory in the guest with v4l2-compliance, its dynamic loader and its libraries, if the plan has a test of that group.
pub const COMPLIANCE_PATH: &str = "/opt/v4l2-compliance";
/// The dynamic loader in [`COMPLIANCE_PATH`].
pub const COMPLIANCE_LOADER: &str = "ld-linux-x86-64.so.2";
/// The program in [`COMPLIANCE_PATH`].
pub const COMPLIANCE_PROGRAM: &str = "v4l2-compliance";

/// The library in [`COMPLIANCE_PATH`] that makes time pass faster for a program: libfaketime.
pub const COMPLIANCE_HURRY: &str = "libfaketimeMT.so.1";

/// What the guest is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// Run these tests in this order, then power off.
    Tests {
        /// Names as [`TestInfo::name`].
        names: Vec<String>,
        /// Seconds each test may take, unless it asks for more.
        timeout_s: u64,
    },
    /// Load the driver and give the console to a shell; power off when it ends.
    Shell,
}

/// One test, as the guest's test binary lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TestInfo {
    /// `group::what_a_correct_kernel_does`.
    pub name: String,
    /// One sentence: what a correct kernel does.
    pub correct: String,
    /// Where that is from: a thread, a commit, a kernel document.
    pub source: String,
    /// Seconds that the test asks for, if more than the plan gives; else 0.
    pub timeout_s: u64,
}

/// One of the four eyes that judge a test, or the test itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Eye {
    /// What the process reads back, and what system calls return.
    Cpu,
    /// What the engine saw.
    Device,
    /// Where the page frames are.
    Placement,
    /// What is left behind.
    Aftermath,
    /// The test did not get to a judgement: it crashed, timed out, or could not set itself up.
    Harness,
}

/// Something a correct kernel does not do, or that kept the test from judging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Who saw it.
    pub eye: Eye,
    /// One sentence with the expected and the actual value.
    pub text: String,
}

/// What a test came to in the guest, before any baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No eye found anything.
    Pass,
    /// At least one did; never empty.
    Fail(Vec<Finding>),
    /// The guest lacks what the test needs; the reason says what and how to get it.
    Skip(String),
}

/// A line from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Message {
    /// User space is up.
    Hello {
        /// `uname -r`.
        release: String,
        /// `uname -v`.
        version: String,
    },
    /// The plan cannot be carried out (no driver, no device …). Nothing follows.
    Broken {
        /// One sentence.
        reason: String,
    },
    /// A test begins.
    Start {
        /// Its name.
        name: String,
    },
    /// A test ended.
    End {
        /// Its name.
        name: String,
        /// What it came to.
        outcome: Outcome,
        /// Milliseconds it took, with the judging.
        duration_ms: u64,
        /// Facts worth keeping, as `key: value` in the test's own words (addresses, counters).
        notes: Vec<String>,
        /// Kernel log lines that appeared meanwhile.
        dmesg: Vec<String>,
    },
    /// Every test of the plan ended; power off follows.
    Done,
}

impl Message {
    /// The message as one line, with its newline.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|mut line| {
            line.push('\n');
            line
        })
    }

    /// Parses a line, with or without its newline.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim_end())
    }
}
