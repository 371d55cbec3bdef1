// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Objects in use of each slab cache (Documentation/mm/slab.rst; man 5 slabinfo).

use crate::harness::error::Error;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

const INFO: &str = "/proc/slabinfo";

/// Free objects that a CPU keeps for itself count as objects in use: up to a whole slab of them, which is 64 to 512 of a cache of small
/// objects. Where that many fit in a slab, the CPUs give them up before the count.
const MANY: i64 = 40;

/// The counts of all caches. The files stay open: to open one allocates, and what closing it frees is counted for seconds after that.
pub struct Caches {
    info: File,
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
            shrink: Vec::new(),
        };
        let mut small: Vec<_> = parse(&caches.read()?)?
            .into_iter()
            .filter(|cache| cache.in_a_slab >= MANY)
            .collect();
        // A write allocates 8 bytes, in kmalloc-8: that is shrunk last.
        small.sort_by_key(|cache| Reverse((cache.size, cache.name.clone())));
        caches.shrink = small
            .iter()
            .filter_map(|cache| open_shrink(&cache.name))
            .collect();
        Ok(caches)
    }

    /// Objects in use, by cache.
    pub fn objects(&mut self) -> Result<BTreeMap<String, i64>, Error> {
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
    /// Objects that fit in a slab.
    in_a_slab: i64,
}

fn parse(text: &str) -> Result<Vec<Cache>, Error> {
    let cache = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?.into();
        let mut number = || fields.next()?.parse().ok();
        let (objects, _, size, in_a_slab) = (number()?, number()?, number()?, number()?);
        Some(Cache {
            name,
            objects,
            size,
            in_a_slab,
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
    fn a_line_has_objects_in_use_their_size_and_how_many_fit() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs>\nkmalloc-64   512   640  64 64 1 : tunables 0\nfilp 3 16 256 16 1 : tunables 0\n";
        let caches = parse(text).unwrap();
        assert_eq!(
            (caches[0].name.as_str(), caches[0].objects),
            ("kmalloc-64", 512)
        );
        assert_eq!((caches[1].size, caches[1].in_a_slab), (256, 16));
        assert!(parse("a\nb\nkmalloc-64 many\n").is_err());
    }
}
