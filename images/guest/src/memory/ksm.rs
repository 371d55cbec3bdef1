// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel samepage merging (Documentation/admin-guide/mm/ksm.rst).

use crate::harness::error::Error;
use crate::harness::patience::{LIMIT, until};
use crate::harness::setting::{Setting, number, write};
use std::fs;

const ROOT: &str = "/sys/kernel/mm/ksm";
const REMEDY: &str = "build the kernel with CONFIG_KSM";

/// A daemon that scans without a rest. When this is dropped it stops, and all it merged is copied apart.
pub struct Ksm {
    pace: Vec<Setting>,
}

impl Ksm {
    /// Starts it.
    pub fn run() -> Result<Self, Error> {
        let mut pace = Vec::new();
        for (file, value) in [("sleep_millisecs", "0"), ("pages_to_scan", "1000")] {
            pace.push(Setting::set(format!("{ROOT}/{file}"), value, REMEDY)?);
        }
        // Since 6.7 pages that were not merged are looked at less and less often.
        pace.extend(Setting::set(format!("{ROOT}/smart_scan"), "0", REMEDY));
        let ksm = Self { pace };
        write(format!("{ROOT}/run"), "1")?;
        Ok(ksm)
    }

    /// Waits until each page that was there when this was called has been looked at as often as a merge takes: once for its
    /// checksum, and once to see that this has not changed.
    pub fn scan(&self) -> Result<(), Error> {
        let scans = || number(format!("{ROOT}/full_scans"));
        // The scan that is under way may have gone past it already.
        let enough = scans()? + 3;
        if until(LIMIT, || Ok(scans()? >= enough))? {
            return Ok(());
        }
        Err(Error::Format {
            source_name: format!("{ROOT}/full_scans"),
            text: format!("{} where {enough} were expected by now", scans()?),
        })
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // A daemon without a rest leaves nobody the lock that stopping it takes.
        self.pace.clear();
        // What fails here is found by `stop`, before the next test.
        let _ = stop();
    }
}

/// Stops the daemon, if it runs, and undoes its work.
pub fn stop() -> Result<(), Error> {
    let run = format!("{ROOT}/run");
    // Absent in kernels without it.
    if !fs::read_to_string(&run).is_ok_and(|state| state.trim() != "0") {
        return Ok(());
    }
    write(&run, "2")?;
    write(&run, "0")
}
