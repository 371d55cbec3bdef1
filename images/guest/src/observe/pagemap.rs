// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which page frames are under a process's addresses: /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).

use crate::harness::error::Error;
use crate::observe::extent::{Extent, PAGE, merged};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// One page's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub u64);

impl Entry {
    /// Whether a page is mapped; else it is swapped out or was never there.
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// Whether the page is in swap (or on its way to another frame).
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// Whether the page may have been written since soft-dirty bits were cleared.
    pub fn soft_dirty(self) -> bool {
        self.0 >> 55 & 1 == 1
    }

    /// The frame number, if a page is present. (Zero is shown to those without CAP_SYS_ADMIN, and frame 0 is never a user's.)
    pub fn frame(self) -> Option<u64> {
        let frame = self.0 & ((1 << 55) - 1);
        (self.present() && frame != 0).then_some(frame)
    }
}

/// Entries of the pages that `length` bytes at `address` touch, of this process.
pub fn entries(address: usize, length: usize) -> Result<Vec<Entry>, Error> {
    const WHERE: &str = "/proc/self/pagemap";
    let file = File::open(WHERE).map_err(|_| Error::Absent {
        what: WHERE.into(),
        remedy: "build the kernel with CONFIG_PROC_PAGE_MONITOR".into(),
    })?;
    let first = address / PAGE;
    let count = (address + length).div_ceil(PAGE) - first;
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, first as u64 * 8)
        .map_err(Error::io(format!("reading {WHERE}")))?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|entry| Entry(u64::from_le_bytes(*entry)))
        .collect())
}

/// The physical memory under `length` bytes at `address`, byte for byte, or the virtual address of the first page that is
/// not present.
pub fn extents(address: usize, length: usize) -> Result<Result<Vec<Extent>, usize>, Error> {
    Ok(to_extents(address, length, &entries(address, length)?))
}

fn to_extents(address: usize, length: usize, entries: &[Entry]) -> Result<Vec<Extent>, usize> {
    let end = address + length;
    let mut at = address;
    let mut pieces = Vec::with_capacity(entries.len());
    for entry in entries {
        let next = (at / PAGE + 1) * PAGE;
        let frame = entry.frame().ok_or(at)?;
        pieces.push(Extent {
            address: frame * PAGE as u64 + (at % PAGE) as u64,
            length: (next.min(end) - at) as u64,
        });
        at = next;
    }
    Ok(merged(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: u64 = 1 << 63;

    #[test]
    fn an_entry_says_present_and_frame() {
        assert_eq!(Entry(PRESENT | 1 << 61 | 0x1234).frame(), Some(0x1234));
        assert_eq!(Entry(1 << 62 | 0x1234).frame(), None, "swapped out");
        assert!(Entry(1 << 62).swapped() && !Entry(PRESENT).swapped());
        assert!(Entry(1 << 55).soft_dirty() && !Entry(PRESENT | 1 << 56).soft_dirty());
        assert_eq!(
            Entry(PRESENT).frame(),
            None,
            "hidden from an unprivileged reader"
        );
    }

    #[test]
    fn unaligned_ranges_are_exact_to_the_byte() {
        let entries = [Entry(PRESENT | 7), Entry(PRESENT | 8), Entry(PRESENT | 3)];
        assert_eq!(
            to_extents(0x5ff8, 8 + 0x1000 + 5, &entries),
            Ok(vec![
                Extent {
                    address: 0x7ff8,
                    length: 0x1008
                },
                Extent {
                    address: 0x3000,
                    length: 5
                }
            ])
        );
        assert_eq!(to_extents(0x5ff8, 16, &[entries[0], Entry(0)]), Err(0x6000));
    }

    #[test]
    fn a_touched_page_of_this_process_is_present() {
        let bytes = [1u8; 64];
        let entries = entries(bytes.as_ptr() as usize, 1).unwrap();
        assert!(entries.len() == 1 && entries[0].present());
    }
}
