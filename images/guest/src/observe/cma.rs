// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's CMA regions, through debugfs (mm/cma_debug.c). All counts are in pages.

use crate::harness::error::Error;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

const ROOT: &str = "/sys/kernel/debug/cma";

/// One region. Its name differs between kernels (`cma-reserved`, `reserved` …), so regions are listed, not named.
#[derive(Clone, Debug)]
pub struct Region {
    /// The kernel's name for it.
    pub name: String,
    /// Page frames it spans.
    pub frames: Range<u64>,
    path: PathBuf,
}

/// Every region, or [`Error::Absent`] if there is none.
pub fn regions() -> Result<Vec<Region>, Error> {
    let mut regions = Vec::new();
    for entry in fs::read_dir(ROOT).map_err(|_| absent())?.flatten() {
        let mut region = Region {
            name: entry.file_name().to_string_lossy().into_owned(),
            frames: 0..0,
            path: entry.path(),
        };
        let base = region.number("base_pfn")?;
        region.frames = base..base + region.number("count")?;
        regions.push(region);
    }
    if regions.is_empty() {
        Err(absent())
    } else {
        Ok(regions)
    }
}

/// The largest region.
pub fn largest() -> Result<Region, Error> {
    let regions = regions()?.into_iter();
    let largest = regions.max_by_key(|region| region.frames.end - region.frames.start);
    largest.ok_or_else(absent)
}

fn absent() -> Error {
    Error::Absent {
        what: format!("a CMA region in {ROOT}"),
        remedy: "build the kernel with CONFIG_CMA and CONFIG_CMA_DEBUGFS, and boot it with cma=64M"
            .into(),
    }
}

impl Region {
    fn number(&self, file: &str) -> Result<u64, Error> {
        let path = self.path.join(file);
        let text =
            fs::read_to_string(&path).map_err(Error::io(format!("reading {}", path.display())))?;
        let text = text.trim();
        text.parse().map_err(|_| Error::Format {
            source_name: path.display().to_string(),
            text: text.into(),
        })
    }

    fn tell(&self, file: &str, pages: u64) -> Result<(), Error> {
        let path = self.path.join(file);
        fs::write(&path, pages.to_string())
            .map_err(Error::io(format!("writing {pages} to {}", path.display())))
    }

    /// Pages in all.
    pub fn pages(&self) -> u64 {
        self.frames.end - self.frames.start
    }

    /// Pages that drivers hold.
    pub fn used(&self) -> Result<u64, Error> {
        self.number("used")
    }

    /// The longest run of pages that no driver holds. Says nothing of pages that users hold: only [`Region::take`] does.
    pub fn longest_free(&self) -> Result<u64, Error> {
        self.number("maxchunk")
    }

    /// Allocates a contiguous run as a driver would, moving users' pages out of the way; given back on drop. Fails with
    /// ENOMEM where a page cannot be moved.
    pub fn take(&self, pages: u64) -> Result<Taken<'_>, Error> {
        self.tell("alloc", pages)?;
        Ok(Taken {
            region: self,
            pages,
        })
    }

    /// Whether the longest run that no driver holds can be had now.
    pub fn whole_can_be_had(&self) -> Result<(), Error> {
        self.take(self.longest_free()?).map(drop)
    }
}

/// Pages of a region that are held.
pub struct Taken<'a> {
    region: &'a Region,
    pages: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // The kernel frees its newest allocations first, so this gives back what `take` took. A failure shows up as `used`.
        let _ = self.region.tell("free", self.pages);
    }
}
