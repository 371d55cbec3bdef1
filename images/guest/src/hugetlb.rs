// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's pool of huge pages (Documentation/admin-guide/mm/hugetlbpage.rst).

use crate::error::Error;
use std::fs;

/// Of the first node: elsewhere they may lie in ZONE_MOVABLE, which no page that is pinned may stay in, and there is no other to move to.
const SIZE: &str = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";

/// Huge pages in the pool, which is empty again when this is dropped. Pages in use stay until they are given back.
pub struct Pool(());

impl Pool {
    /// As many huge pages as this, or [`Error::Absent`].
    pub fn of(pages: usize) -> Result<Self, Error> {
        let absent = |what: String| Error::Absent {
            what,
            remedy: "build the kernel with CONFIG_HUGETLBFS and give the guest more memory".into(),
        };
        fs::write(SIZE, pages.to_string()).map_err(|_| absent(SIZE.into()))?;
        let pool = Self(());
        let got = fs::read_to_string(SIZE).map_err(Error::io(format!("reading {SIZE}")))?;
        match got.trim().parse() {
            Ok(got) if pages <= got => Ok(pool),
            _ => Err(absent(format!("a pool of {pages} huge pages"))),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Nothing depends on it: a pool that stays is only memory that others do not have.
        let _ = fs::write(SIZE, "0");
    }
}
