// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Objects in use of each slab cache (Documentation/mm/slab.rst; man 5 slabinfo).

use crate::harness::error::Error;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

const INFO: &str = "/proc/slabinfo";

/// Free objects that a CPU keeps for itself count as objects in use: a whole slab, which is 64 to 512 of a cache of small objects, and 120
/// more in other slabs where objects are smaller than this (slub_set_cpu_partial()). The CPUs give them up before the count.
const SMALL: i64 = 256;

/// A write has the kernel free what it can; among that are objects that kfree_rcu() would free some seconds later.
const DROP: &str = "/proc/sys/vm/drop_caches";

/// The counts of all caches. The files stay open: to open one allocates, and what closing it frees is counted for seconds after that.
pub struct Caches {
    info: File,
    drop: File,
    /// Where a write has the CPUs give up the free objects of a cache of small objects.
    shrink: Vec<File>,
}

impl Caches {
    /// Opens the table and the caches of small objects.
    pub fn open() -> Result<Self, Error> {
        let info = File::open(INFO).map_err(|_| Error::Absent {
            what: INFO.into(),
            remedy: "build the kernel with CONFIG_SLUB_DEBUG".into(),
        })?;
        let mut caches = Self {
            info,
            drop: OpenOptions::new()
                .write(true)
                .open(DROP)
                .map_err(Error::io(DROP))?,
            shrink: Vec::new(),
        };
        // From now on without a line in the kernel's log.
        caches.drop.write_at(b"4", 0).map_err(Error::io(DROP))?;
        let mut small: Vec<_> = parse(&caches.read()?)?
            .into_iter()
            .filter(|cache| cache.size < SMALL)
            .collect();
        // A write allocates 8 bytes, in kmalloc-8: that is shrunk last.
        small.sort_by_key(|cache| Reverse((cache.size, cache.name.clone())));
        caches.shrink = small
            .iter()
            .filter_map(|cache| open_shrink(&cache.name))
            .collect();
        Ok(caches)
    }

    /// Objects in use, by cache. What waits for RCU is among them: it is freed some milliseconds after this.
    pub fn objects(&mut self) -> Result<BTreeMap<String, i64>, Error> {
        self.drop.write_at(b"2", 0).map_err(Error::io(DROP))?;
        for file in &self.shrink {
            // A cache that has gone stays as it is.
            let _ = file.write_at(b"1", 0);
        }
        let caches = parse(&self.read()?)?;
        Ok(caches
            .into_iter()
            .map(|cache| (cache.name, cache.objects))
            .collect())
    }

    fn read(&mut self) -> Result<String, Error> {
        let mut text = String::new();
        self.info
            .rewind()
            .and_then(|()| self.info.read_to_string(&mut text))
            .map_err(Error::io(INFO))?;
        Ok(text)
    }
}

/// A line of the table.
struct Cache {
    name: String,
    /// Objects in use.
    objects: i64,
    /// Bytes of an object.
    size: i64,
}

fn parse(text: &str) -> Result<Vec<Cache>, Error> {
    let cache = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?.into();
        let mut number = || fields.next()?.parse().ok();
        let (objects, _, size) = (number()?, number()?, number()?);
        Some(Cache {
            name,
            objects,
            size,
        })
    };
    // Two lines of heading.
    text.lines()
        .skip(2)
        .map(|line| {
            cache(line).ok_or_else(|| Error::Format {
                source_name: INFO.into(),
                text: line.into(),
            })
        })
        .collect()
}

fn open_shrink(cache: &str) -> Option<File> {
    let path = format!("/sys/kernel/slab/{cache}/shrink");
    OpenOptions::new().write(true).open(path).ok()
}

/// Has the CPUs give up the free objects of a cache. One that has gone, or cannot be shrunk, is as it is.
pub fn shrink(cache: &str) {
    if let Some(file) = open_shrink(cache) {
        let _ = file.write_at(b"1", 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_objects_in_use_and_their_size() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs>\nkmalloc-64   512   640  64 64 1 : tunables 0\nfilp 3 16 256 16 1 : tunables 0\n";
        let caches = parse(text).unwrap();
        assert_eq!(
            (caches[0].name.as_str(), caches[0].objects),
            ("kmalloc-64", 512)
        );
        assert_eq!(caches[1].size, 256);
        assert!(parse("a\nb\nkmalloc-64 many\n").is_err());
    }
}
