// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Free pages that get a new owner: what shows that a page which still has its old bytes was not merely free and not yet reused.

use crate::harness::ctx::{Ctx, Stop, TestResult};
use crate::memory::area::Area;
use crate::memory::mapping::Mapping;
use crate::observe::extent::PAGE;
use crate::observe::pagemap;
use pinbed_abi::report::Eye;
use std::collections::BTreeSet;

/// Bytes to allocate at most in search of a page that was freed.
const SEARCH: usize = 32 << 20;
/// Bytes to allocate at a time.
const PIECE: usize = 64 * PAGE;

/// Memory that nobody holds and whose pages are freed together with memory that somebody does.
pub struct Control(Mapping);

impl Control {
    /// A page, with something in it.
    pub fn new() -> TestResult<Self> {
        let mapping = Mapping::anon(PAGE)?;
        mapping.write(0, &[1]);
        Ok(Self(mapping))
    }

    /// Frees it, and allocates and fills memory until some of that is in the page it was in. What the test freed just before this has
    /// new owners by then, too, if it was free. The caller keeps the memory for as long as nobody else is to have those pages.
    pub fn reused(self, t: &mut Ctx) -> TestResult<Vec<Area>> {
        let wanted = frames(&self.0)?;
        drop(self);
        let mut areas = Vec::new();
        for _ in 0..SEARCH / PIECE {
            let mapping = Mapping::anon(PIECE)?;
            for page in (0..PIECE).step_by(PAGE) {
                mapping.write(page, &[1]);
            }
            let here = frames(&mapping)?;
            areas.push(Area::user(mapping, 0..PIECE));
            if !wanted.is_disjoint(&here) {
                // Not before: what is filled with is memory, too.
                for area in &mut areas {
                    area.fill(t)?;
                }
                return Ok(areas);
            }
        }
        Err(Stop::finding(
            Eye::Harness,
            format!("a page that was freed has no new owner after {SEARCH} bytes were allocated"),
        ))
    }
}

fn frames(mapping: &Mapping) -> TestResult<BTreeSet<u64>> {
    let entries = pagemap::entries(mapping.address(), mapping.len())?;
    Ok(entries.iter().filter_map(|entry| entry.frame()).collect())
}
