// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where ZONE_MOVABLE is: /proc/zoneinfo.

use crate::harness::error::Error;
use std::fs;
use std::ops::Range;

/// One node's ZONE_MOVABLE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movable {
    /// The NUMA node.
    pub node: u32,
    /// Its page frames.
    pub frames: Range<u64>,
}

/// ZONE_MOVABLE of each node that has one; empty where the machine was booted without one.
pub fn movable() -> Result<Vec<Movable>, Error> {
    Ok(parse(
        &fs::read_to_string("/proc/zoneinfo").map_err(Error::io("reading /proc/zoneinfo"))?,
    ))
}

fn parse(zoneinfo: &str) -> Vec<Movable> {
    let mut zones = Vec::new();
    for zone in zoneinfo.trim_start_matches("Node ").split("\nNode ") {
        let first = zone.lines().next().unwrap_or_default();
        let Some((node, name)) = first.split_once(", zone") else {
            continue;
        };
        let Some(node) = node.parse().ok().filter(|_| name.trim() == "Movable") else {
            continue;
        };
        let number = |name: &str| {
            zone.lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .and_then(|value| value.trim_start_matches(':').trim().parse::<u64>().ok())
        };
        if let (Some(start), Some(spanned @ 1..)) = (number("start_pfn"), number("spanned")) {
            zones.push(Movable {
                node,
                frames: start..start + spanned,
            });
        }
    }
    zones
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_movable_zones_with_pages_count() {
        let text = "Node 0, zone    DMA32\n  pages free     5\n        spanned  1044480\n  start_pfn:           4096\n\
                    Node 0, zone  Movable\n  pages free     7\n        spanned  512\n  start_pfn:           131072\n\
                    Node 1, zone  Movable\n  pages free     0\n        spanned  0\n";
        assert_eq!(
            parse(text),
            [Movable {
                node: 0,
                frames: 131_072..131_584
            }]
        );
    }
}
