// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the zones are: /proc/zoneinfo.

use crate::harness::error::Error;
use std::fs;
use std::ops::Range;

/// [`Zone::name`] of ZONE_MOVABLE.
pub const MOVABLE: &str = "Movable";

/// One zone of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The NUMA node.
    pub node: u32,
    /// The kernel's name for it: "DMA32", "Movable".
    pub name: String,
    /// Its page frames.
    pub frames: Range<u64>,
}

/// Every zone that has pages.
pub fn all() -> Result<Vec<Zone>, Error> {
    Ok(parse(&zoneinfo()?))
}

/// ZONE_MOVABLE of each node that has one; empty where the machine was booted without one.
pub fn movable() -> Result<Vec<Zone>, Error> {
    let mut zones = all()?;
    zones.retain(|zone| zone.name == MOVABLE);
    Ok(zones)
}

/// Free pages that wait in the lists of the CPUs: `nr_free_pages` does not count them.
pub fn waiting() -> Result<i64, Error> {
    Ok(count_waiting(&zoneinfo()?))
}

fn zoneinfo() -> Result<String, Error> {
    fs::read_to_string("/proc/zoneinfo").map_err(Error::io("reading /proc/zoneinfo"))
}

/// The sum of "count:", which each pageset has (mm/vmstat.c, zoneinfo_show_print()).
fn count_waiting(zoneinfo: &str) -> i64 {
    zoneinfo
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("count:")?
                .trim()
                .parse::<i64>()
                .ok()
        })
        .sum()
}

fn parse(zoneinfo: &str) -> Vec<Zone> {
    let mut zones = Vec::new();
    for zone in zoneinfo.trim_start_matches("Node ").split("\nNode ") {
        let first = zone.lines().next().unwrap_or_default();
        let Some((node, name)) = first.split_once(", zone") else {
            continue;
        };
        let Ok(node) = node.parse() else {
            continue;
        };
        let number = |name: &str| {
            zone.lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .and_then(|value| value.trim_start_matches(':').trim().parse::<u64>().ok())
        };
        if let (Some(start), Some(spanned @ 1..)) = (number("start_pfn"), number("spanned")) {
            zones.push(Zone {
                node,
                name: name.trim().to_owned(),
                frames: start..start + spanned,
            });
        }
    }
    zones
}

/// The node whose memory is in ZONE_MOVABLE whole, or [`Error::Absent`].
pub fn movable_node() -> Result<Zone, Error> {
    let zone = movable()?.into_iter().find(|zone| zone.node != 0);
    zone.ok_or_else(|| Error::Absent {
        what: "a node of ZONE_MOVABLE only".into(),
        remedy: "boot with a memory device on a second node".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str, frames: Range<u64>) -> Zone {
        Zone {
            node: 0,
            name: name.to_owned(),
            frames,
        }
    }

    #[test]
    fn zones_without_pages_do_not_count() {
        let text = "Node 0, zone    DMA32\n  pages free     5\n        spanned  1044480\n  start_pfn:           4096\n\
                    Node 0, zone  Movable\n  pages free     7\n        spanned  512\n  start_pfn:           131072\n\
                    Node 1, zone  Movable\n  pages free     0\n        spanned  0\n";
        assert_eq!(
            parse(text),
            [
                zone("DMA32", 4096..4096 + 1_044_480),
                zone("Movable", 131_072..131_584)
            ]
        );
    }
    #[test]
    fn free_pages_wait_in_the_list_of_each_cpu() {
        let text = "Node 0, zone    DMA32\n  pages free     5\n  pagesets\n    cpu: 0\n              count:    252\n              high:     500\n\
                    \x20   cpu: 1\n              count: 7\n  start_pfn:           4096\nNode 1, zone  Movable\n    cpu: 0\n              count: 1\n";
        assert_eq!(count_waiting(text), 260);
    }
}
