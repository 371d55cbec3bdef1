// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test process tells its supervisor, one JSON line each, on file descriptor [`FD`].

use pinbed_abi::report::Finding;
use serde::{Deserialize, Serialize};

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
    /// Last: the guest lacks something.
    Skip(String),
    /// Last: the test looked at all it wanted to see.
    Finished,
}
