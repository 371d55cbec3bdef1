// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bounce buffers: the kernel's pool of them (swiotlb), which the device is given in place of a buffer's own pages where swiotlb=force
//! is on the command line.

use crate::harness::cmdline;
use crate::harness::error::Error;
use crate::observe::extent::Extent;
use crate::observe::kmsg::{Log, Record};
use std::ops::Range;
use std::sync::OnceLock;

/// Whether all DMA mappings are bounced, but for those of devices that opt out.
pub fn is_forced() -> Result<bool, Error> {
    Ok(forces(&cmdline::read()?))
}

fn forces(line: &str) -> bool {
    let is_forced = |value: &str| value.split(',').any(|part| part == "force");
    line.split_whitespace()
        .filter_map(|word| word.strip_prefix("swiotlb="))
        .any(is_forced)
}

/// For a test that has the device use memory between QBUF and DQBUF, when the CPU and a bounce buffer have different bytes.
///
/// # Errors
/// [`Error::Absent`] where mappings are bounced.
pub fn unless_forced() -> Result<(), Error> {
    match is_forced()? {
        false => Ok(()),
        true => Err(Error::Absent {
            what: "DMA without bounce buffers".into(),
            remedy: "boot without swiotlb=force".into(),
        }),
    }
}

/// Physical addresses of the pool; none if mappings are not bounced.
///
/// # Errors
/// Where they are and the kernel log does not say where the pool is.
pub fn pool() -> Result<Option<Range<u64>>, Error> {
    static POOL: OnceLock<Range<u64>> = OnceLock::new();
    if !is_forced()? {
        return Ok(None);
    }
    if let Some(pool) = POOL.get() {
        return Ok(Some(pool.clone()));
    }
    let failed = || Error::io("reading /dev/kmsg");
    for record in Log::open().map_err(failed())? {
        if let Record::Line(line) = record.map_err(failed())?
            && let Some(pool) = parse(&line)
        {
            return Ok(Some(POOL.get_or_init(|| pool).clone()));
        }
    }
    Err(Error::Format {
        source_name: "the kernel log".into(),
        text: "no line \"software IO TLB: mapped [mem ...]\"; log_buf_len= makes room for it"
            .into(),
    })
}

/// Whether all of these pieces are bounce buffers.
pub fn holds(pieces: &[Extent]) -> Result<bool, Error> {
    let Some(pool) = pool()? else {
        return Ok(false);
    };
    Ok(!pieces.is_empty()
        && pieces
            .iter()
            .all(|it| pool.start <= it.address && it.address + it.length <= pool.end))
}

/// "software IO TLB: mapped [mem 0x0000000018c00000-0x000000001ac00000] (32MB)": 5.10 and later.
fn parse(line: &str) -> Option<Range<u64>> {
    let (_, rest) = line.split_once("software IO TLB: mapped [mem 0x")?;
    let (start, rest) = rest.split_once("-0x")?;
    let (end, _) = rest.split_once(']')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    // The end is the first byte behind on some kernels, and the last byte on others.
    Some(number(start)?..number(end)?.next_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_force_forces() {
        assert!(forces("quiet swiotlb=16384,force cma=64M"));
        assert!(forces("swiotlb=force"));
        assert!(!forces("swiotlb=noforce cma=64M"));
        assert!(!forces("swiotlb=16384"));
    }

    #[test]
    fn the_pool_is_where_the_log_says() {
        let line = "software IO TLB: mapped [mem 0x0000000018c00000-0x000000001ac00000] (32MB)";
        assert_eq!(parse(line), Some(0x18c0_0000..0x1ac0_0000));
        assert_eq!(parse("software IO TLB: area num 2."), None);
    }
}
