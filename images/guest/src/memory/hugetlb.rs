// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's pool of huge pages (Documentation/admin-guide/mm/hugetlbpage.rst).

use crate::harness::error::Error;
use crate::harness::setting;
use crate::memory::area::HUGE;
use crate::memory::compaction::until_whole;
use crate::observe::cma;
use crate::observe::extent::PAGE;
use std::fs;

/// Huge pages in the pool, which is empty again when this is dropped. Pages in use stay until they are given back.
pub struct Pool(String);

impl Pool {
    /// As many huge pages as this, or [`Error::Absent`]. Of the first node: elsewhere they may lie in ZONE_MOVABLE, which no page that is
    /// pinned may stay in, and there is no other to move to.
    pub fn of(pages: usize) -> Result<Self, Error> {
        Self::on(0, pages)
    }

    /// As [`Pool::of`], of pages that are not in CMA: one that is there is moved before it is pinned, or is not there for who wants no page
    /// that can be moved.
    pub fn outside_cma(pages: usize) -> Result<Self, Error> {
        // None on a kernel without CMA.
        let regions = cma::regions().unwrap_or_default();
        let mut taken = Vec::new();
        for region in &regions {
            loop {
                let longest = region.longest_free()?;
                if longest < (HUGE / PAGE) as u64 {
                    break;
                }
                taken.push(region.take(longest)?);
            }
        }
        Self::of(pages)
    }

    /// As [`Pool::of`], on a NUMA node.
    pub fn on(node: u32, pages: usize) -> Result<Self, Error> {
        let size =
            format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages");
        let absent = |what: String| Error::Absent {
            what,
            remedy: "build the kernel with CONFIG_HUGETLBFS and give the guest more memory".into(),
        };
        let pool = Self(size);
        let whole = until_whole(|| {
            fs::write(&pool.0, pages.to_string()).map_err(|_| absent(pool.0.clone()))?;
            Ok::<_, Error>(pages as u64 <= setting::number(&pool.0)?)
        })?;
        match whole {
            true => Ok(pool),
            false => Err(absent(format!(
                "a pool of {pages} huge pages on node {node}"
            ))),
        }
    }
}

/// Huge pages of all nodes that are reserved: promised to mappings and files, and not yet allocated.
pub fn reserved() -> Result<u64, Error> {
    const WHERE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";
    let text = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
    text.trim().parse().map_err(|_| Error::Format {
        source_name: WHERE.into(),
        text: text.trim().into(),
    })
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Nothing depends on it: a pool that stays is only memory that others do not have.
        let _ = fs::write(&self.0, "0");
    }
}
