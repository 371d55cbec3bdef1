// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What this process is charged for: counters of its memory in /proc/self/status, and its descriptors.

use crate::harness::error::Error;
use std::fs;

/// What a process is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charges {
    /// VmLck, in KiB: mm->locked_vm.
    pub locked: i64,
    /// VmPin, in KiB: mm->pinned_vm.
    pub pinned: i64,
    /// VmRSS, in KiB.
    pub resident: i64,
    /// Open descriptors.
    pub descriptors: i64,
}

/// This process's, now.
pub fn charges() -> Result<Charges, Error> {
    const STATUS: &str = "/proc/self/status";
    let text = fs::read_to_string(STATUS).map_err(Error::io(format!("reading {STATUS}")))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
            .ok_or_else(|| Error::Format {
                source_name: STATUS.into(),
                text: format!("no {name}"),
            })
    };
    let open = fs::read_dir("/proc/self/fd").map_err(Error::io("reading /proc/self/fd"))?;
    Ok(Charges {
        locked: field("VmLck")?,
        pinned: field("VmPin")?,
        resident: field("VmRSS")?,
        descriptors: open.count() as i64,
    })
}
