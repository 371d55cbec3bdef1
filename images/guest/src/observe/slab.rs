// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Objects in use of each slab cache (Documentation/mm/slab.rst; man 5 slabinfo).

use crate::harness::error::Error;
use std::collections::BTreeMap;
use std::fs;

const INFO: &str = "/proc/slabinfo";

/// Objects in use, by cache. Those that wait in a CPU's slab count as if they were in use; see [`shrink`].
pub fn objects() -> Result<BTreeMap<String, i64>, Error> {
    let text = fs::read_to_string(INFO).map_err(|_| Error::Absent {
        what: INFO.into(),
        remedy: "build the kernel with CONFIG_SLUB_DEBUG".into(),
    })?;
    parse(&text)
}

fn parse(text: &str) -> Result<BTreeMap<String, i64>, Error> {
    // Two lines of heading.
    text.lines()
        .skip(2)
        .map(|line| {
            let mut fields = line.split_whitespace();
            let cache = fields.next().map(str::to_owned);
            let objects = fields.next().and_then(|count| count.parse().ok());
            cache.zip(objects).ok_or_else(|| Error::Format {
                source_name: INFO.into(),
                text: line.into(),
            })
        })
        .collect()
}

/// Empties a cache's lists of free objects, so that those in use are counted alone. One that has gone, or cannot be shrunk, is as it is.
pub fn shrink(cache: &str) {
    let _ = fs::write(format!("/sys/kernel/slab/{cache}/shrink"), "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_use_are_the_first_number() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs>\nkmalloc-64   512   640  64 64 1 : tunables 0\nfilp 3 16 256\n";
        let objects = parse(text).unwrap();
        assert_eq!(objects["kmalloc-64"], 512);
        assert_eq!(objects["filp"], 3);
        assert!(parse("a\nb\nkmalloc-64 many\n").is_err());
    }
}
