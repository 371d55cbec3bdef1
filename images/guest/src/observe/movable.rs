// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Regions out of which the kernel moves pages before it pins them for long: CMA and ZONE_MOVABLE; and among which others they lie.

use super::{cma, pagemap, zones};
use crate::harness::error::Error;
use pinbed_abi::report::{Region, RegionKind};
use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

/// One such region.
#[derive(Clone, Debug)]
pub struct MovablePlace {
    /// "CMA region reserved", "ZONE_MOVABLE".
    pub name: String,
    /// Its page frames.
    pub frames: Range<u64>,
}

/// All of this machine's, read from the kernel once in each process: every QBUF is judged by them.
pub fn places() -> Result<&'static [MovablePlace], Error> {
    static PLACES: OnceLock<Vec<MovablePlace>> = OnceLock::new();
    if let Some(places) = PLACES.get() {
        return Ok(places);
    }
    let mut places: Vec<_> = zones::movable()?
        .into_iter()
        .map(|zone| MovablePlace {
            name: "ZONE_MOVABLE".into(),
            frames: zone.frames,
        })
        .collect();
    match cma::regions() {
        Ok(regions) => places.extend(regions.into_iter().map(|region| MovablePlace {
            name: format!("CMA region {}", region.name),
            frames: region.frames,
        })),
        Err(Error::Absent { .. }) => (),
        Err(error) => return Err(error),
    }
    Ok(PLACES.get_or_init(|| places))
}

/// Why not all such regions are among [`places`], if they are not: the kernel has CMA, and does not say where.
pub fn blind() -> Result<Option<&'static str>, Error> {
    const WHERE: &str = "/proc/meminfo";
    static BLIND: OnceLock<bool> = OnceLock::new();
    let blind = match BLIND.get() {
        Some(blind) => *blind,
        None => {
            let text = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
            let has_cma = has_cma(&text);
            *BLIND.get_or_init(|| has_cma && cma::regions().is_err())
        }
    };
    Ok(blind.then_some("the kernel has CMA and does not show where (CONFIG_CMA_DEBUGFS)"))
}

/// Of /proc/meminfo.
fn has_cma(text: &str) -> bool {
    let total = text.lines().find_map(|line| line.strip_prefix("CmaTotal:"));
    total.is_some_and(|total| total.trim() != "0 kB")
}

/// How many of the pages at an address are in such a region now; one that is not present is in none.
pub fn count_in(address: usize, length: usize) -> Result<usize, Error> {
    let places = places()?;
    let entries = pagemap::entries(address, length)?;
    let frames = entries.iter().filter_map(|entry| entry.frame());
    Ok(frames
        .filter(|frame| places.iter().any(|place| place.frames.contains(frame)))
        .count())
}

/// All zones and CMA regions, for a picture of guest memory; those that the kernel does not show are missing.
pub fn regions() -> Vec<Region> {
    let region = |name, kind, frames: &Range<u64>| Region {
        name,
        kind,
        first: frames.start,
        pages: frames.end - frames.start,
    };
    let zones = zones::all().unwrap_or_default();
    let zones = zones.iter().map(|zone| {
        let kind = match zone.name == zones::MOVABLE {
            true => RegionKind::Movable,
            false => RegionKind::Zone,
        };
        let name = format!("Node {} {}", zone.node, zone.name);
        region(name, kind, &zone.frames)
    });
    let cma = cma::regions().unwrap_or_default();
    let cma = cma
        .iter()
        .map(|cma| region(cma.name.clone(), RegionKind::Cma, &cma.frames));
    zones.chain(cma).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_memory_in_cma_has_none() {
        assert!(has_cma("MemTotal: 5 kB\nCmaTotal:          65536 kB\n"));
        assert!(!has_cma("MemTotal: 5 kB\nCmaTotal:              0 kB\n"));
        assert!(!has_cma("MemTotal: 5 kB\n"));
    }
}
