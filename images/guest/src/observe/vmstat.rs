// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many pages are pinned, and how much memory the kernel keeps to itself.

use crate::harness::error::Error;
use std::fs;

/// Counters of the whole system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages pinned by `pin_user_pages` and its kin (FOLL_PIN): a huge page counts as many times as it has small pages pinned.
    pub pins: i64,
    /// Pages of CMA regions that the buddy allocator has: nobody holds a reference to one of them, and none waits in a CPU's list.
    pub free_cma: i64,
}

/// The counters as they are now.
///
/// The kernel gathers them from all CPUs once a second, which is too late for a judgement; reading
/// /proc/sys/vm/stat_refresh makes it do so now.
pub fn counters() -> Result<Counters, Error> {
    parse(&fresh()?)
}

/// [`Counters::pins`] as it is now.
pub fn pinned_pages() -> Result<i64, Error> {
    Ok(counters()?.pins)
}

/// A counter of /proc/vmstat, by name.
pub fn counter(name: &str) -> Result<i64, Error> {
    find(&fresh()?, name)
}

/// All counters of /proc/vmstat as they are now, by name.
pub fn all() -> Result<impl Fn(&str) -> Result<i64, Error>, Error> {
    let text = fresh()?;
    Ok(move |name: &str| find(&text, name))
}

fn fresh() -> Result<String, Error> {
    fs::read("/proc/sys/vm/stat_refresh").map_err(Error::io(
        "reading /proc/sys/vm/stat_refresh (CONFIG_PROC_SYSCTL)",
    ))?;
    fs::read_to_string("/proc/vmstat").map_err(Error::io("reading /proc/vmstat"))
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

fn parse(vmstat: &str) -> Result<Counters, Error> {
    Ok(Counters {
        pins: find(vmstat, "nr_foll_pin_acquired")? - find(vmstat, "nr_foll_pin_released")?,
        free_cma: find(vmstat, "nr_free_cma")?,
    })
}

fn find(vmstat: &str, name: &str) -> Result<i64, Error> {
    vmstat
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse::<i64>().ok())
        .ok_or_else(|| Error::Format {
            source_name: "/proc/vmstat".into(),
            text: format!("no {name}"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_the_difference() {
        let text = "nr_free_pages 5\nnr_free_cma 16383\nnr_foll_pin_acquired 1033\nnr_foll_pin_released 1024\n";
        let counters = Counters {
            pins: 9,
            free_cma: 16383,
        };
        assert_eq!(parse(text).unwrap(), counters);
        assert!(parse("nr_free_cma 5\nnr_foll_pin_acquired 3\n").is_err());
    }
}
