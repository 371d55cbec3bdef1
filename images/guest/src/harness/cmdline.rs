// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's command line, on which the runner says what an environment asks of the guest.

use crate::harness::error::Error;
use std::fs;

/// All of it.
pub fn read() -> Result<String, Error> {
    const PLACE: &str = "/proc/cmdline";
    fs::read_to_string(PLACE).map_err(Error::io(format!("reading {PLACE}")))
}

/// What a line has behind `name`, which ends in `=`. The last one counts, as with the kernel's own parameters.
pub fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace().rev();
    words.find_map(|word| word.strip_prefix(name))
}
