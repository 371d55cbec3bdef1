// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many pages are pinned, and how much memory the kernel keeps to itself.

use crate::error::Error;
use std::fs;

/// Pages pinned by `pin_user_pages` and its kin (FOLL_PIN) in the whole system: a huge page counts as many times as it has
/// small pages pinned.
///
/// The kernel gathers these counters from all CPUs once a second, which is too late for a judgement; reading
/// /proc/sys/vm/stat_refresh makes it do so now.
pub fn pinned_pages() -> Result<i64, Error> {
    fs::read("/proc/sys/vm/stat_refresh").map_err(Error::io(
        "reading /proc/sys/vm/stat_refresh (CONFIG_PROC_SYSCTL)",
    ))?;
    let text = fs::read_to_string("/proc/vmstat").map_err(Error::io("reading /proc/vmstat"))?;
    difference(&text)
}

/// Bytes that the kernel keeps free for itself: /proc/sys/vm/min_free_kbytes.
pub fn reserve() -> Result<u64, Error> {
    const WHERE: &str = "/proc/sys/vm/min_free_kbytes";
    let text = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
    let text = text.trim();
    let kilobytes: u64 = text.parse().map_err(|_| Error::Format {
        source_name: WHERE.into(),
        text: text.into(),
    })?;
    Ok(kilobytes * 1024)
}

fn difference(vmstat: &str) -> Result<i64, Error> {
    let counter = |name: &str| {
        vmstat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse::<i64>().ok())
            .ok_or_else(|| Error::Format {
                source_name: "/proc/vmstat".into(),
                text: format!("no {name}"),
            })
    };
    Ok(counter("nr_foll_pin_acquired")? - counter("nr_foll_pin_released")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_the_difference() {
        let text = "nr_free_pages 5\nnr_foll_pin_acquired 1033\nnr_foll_pin_released 1024\n";
        assert_eq!(difference(text).unwrap(), 9);
        assert!(difference("nr_foll_pin_acquired 3\n").is_err());
    }
}
