// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a page frame is used for now: /proc/kpageflags and /proc/kpagecount (Documentation/admin-guide/mm/pagemap.rst), and who allocated it,
//! where the kernel was booted with page_owner=on (Documentation/mm/page_owner.rst).

use crate::harness::error::Error;
use crate::observe::extent::{Extent, frames};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const FLAGS: &str = "/proc/kpageflags";
const HUGETLB: u32 = 17;
const THP: u32 = 22;
const ZERO_PAGE: u32 = 24;
/// Bits of /proc/kpageflags, in the order in which the first that is set tells what a page is.
const KINDS: [(u32, &str); 9] = [
    (20, "no memory"),
    (19, "poisoned"),
    (10, "free"),
    (ZERO_PAGE, "the zero page"),
    (21, "merged by KSM"),
    (26, "a page table"),
    (7, "of a slab"),
    (HUGETLB, "of hugetlb"),
    (12, "anonymous"),
];
/// It is mapped by user space, or could be.
const MMAP: u32 = 11;
/// It is on a list of reclaim's, as pages of files are.
const LRU: u32 = 5;
/// Where page_owner tells of each page.
const OWNERS: &str = "/sys/kernel/debug/page_owner";
/// More than a record of page_owner's has.
const RECORD: usize = 8192;

/// How the memory that a device holds differs from what the process has: the first page that does, and what both its frames are now.
pub fn difference(held: &[Extent], here: &[Extent]) -> String {
    let pages: Vec<_> = frames(held).zip(frames(here)).collect();
    let mut differ = pages.iter().enumerate().filter(|(_, (a, b))| a != b);
    let count = differ.clone().count();
    match differ.next() {
        Some((index, &(theirs, ours))) if frames(held).count() == frames(here).count() => format!(
            "the device holds frame {theirs:#x}, the process has frame {ours:#x} as page {} of {}, and {count} differ; \
             {theirs:#x} is {}; {ours:#x} is {}",
            index + 1,
            pages.len(),
            describe(theirs),
            describe(ours),
        ),
        _ => format!("the device holds {held:?}, the process has {here:?}"),
    }
}

/// How many of these frames are the page of zeros that all untouched memory shares.
pub fn zero_pages(frames: impl IntoIterator<Item = u64>) -> Result<usize, Error> {
    let mut count = 0;
    for frame in frames {
        let flags = word(FLAGS, frame).map_err(Error::io(format!("reading {FLAGS}")))?;
        count += usize::from(flags >> ZERO_PAGE & 1 == 1);
    }
    Ok(count)
}

/// Whether a frame is part of a huge page, transparent or of hugetlb.
pub fn is_huge(frame: u64) -> Result<bool, Error> {
    let flags = word(FLAGS, frame).map_err(Error::io(format!("reading {FLAGS}")))?;
    Ok(flags & (1 << HUGETLB | 1 << THP) != 0)
}

/// What a frame is, in words.
pub fn describe(frame: u64) -> String {
    let word = |file| word(file, frame);
    let mut words = match word(FLAGS) {
        Ok(flags) => kind(flags).to_owned(),
        Err(error) => format!("not known ({FLAGS}: {error})"),
    };
    match word("/proc/kpagecount") {
        Ok(0) => words += ", mapped by nobody",
        Ok(count) => words += &format!(", mapped {count}x"),
        Err(_) => {}
    }
    if let Some(owner) = owner(frame) {
        words += &format!(", {owner}");
    }
    words
}

fn word(file: &str, frame: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open(file)?.read_exact_at(&mut bytes, frame * 8)?;
    Ok(u64::from_le_bytes(bytes))
}

fn kind(flags: u64) -> &'static str {
    let has = |bit: u32| flags >> bit & 1 == 1;
    match KINDS.iter().find(|(bit, _)| has(*bit)) {
        Some((_, name)) => name,
        None if has(MMAP) || has(LRU) => "of a file",
        None => "the kernel's",
    }
}

/// Who allocated a frame.
fn owner(frame: u64) -> Option<String> {
    let file = File::open(OWNERS).ok()?;
    // Its offset is a frame, that of the first record that is wanted; on 5.10 it is counted
    // from the first frame of memory, which is 1.
    [frame, frame.saturating_sub(1)].into_iter().find_map(|at| {
        let mut bytes = vec![0; RECORD];
        let length = file.read_at(&mut bytes, at).ok()?;
        allocated(frame, &String::from_utf8_lossy(&bytes[..length]))
    })
}

/// From a record such as "Page allocated via order 0, mask ..., pid 44, tgid 44 (init), ts ... ns\nPFN 0x1234 type ...\n stack...".
fn allocated(frame: u64, record: &str) -> Option<String> {
    let mut lines = record.lines();
    let who = lines.next()?;
    let number = lines.next()?.strip_prefix("PFN ")?.split(' ').next()?;
    let is_its = match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16) == Ok(frame),
        None => number.parse() == Ok(frame),
    };
    // 5.10 does not say it.
    let by = who.split(", ").find_map(|part| part.strip_prefix("pid "));
    let by = by.map_or(String::new(), |pid| format!(" by process {pid}"));
    let stack: Vec<_> = lines
        .take_while(|line| line.starts_with(' '))
        .filter_map(|line| line.trim().split(['+', ' ']).next())
        .collect();
    is_its.then(|| format!("allocated{by}: {}", stack.join(" < ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(frame: u64, pages: u64) -> Extent {
        Extent {
            address: frame << 12,
            length: pages << 12,
        }
    }

    #[test]
    fn the_first_page_that_differs_is_named() {
        let text = difference(&[at(0x10, 3)], &[at(0x10, 1), at(0x99, 1), at(0x12, 1)]);
        assert!(
            text.starts_with(
                "the device holds frame 0x11, the process has frame 0x99 as page 2 of 3, and 1 differ; 0x11 is "
            ),
            "{text}"
        );
        let text = difference(&[at(0x10, 1)], &[at(0x10, 2)]);
        assert_eq!(
            text,
            "the device holds [0x10000+0x1000], the process has [0x10000+0x2000]"
        );
    }

    #[test]
    fn flags_and_records_of_page_owner_become_words() {
        assert_eq!(kind(1 << 10), "free");
        assert_eq!(kind(1 << 12 | 1 << 11 | 1 << 5), "anonymous");
        assert_eq!(kind(1 << 11 | 1 << 5), "of a file");
        assert_eq!(kind(0), "the kernel's");
        let record = "Page allocated via order 0, mask 0x140dca(GFP_HIGHUSER_MOVABLE), pid 44, tgid 44 (pinbed-guest), ts 5 ns\n\
                      PFN 0x333c type Movable Block 25 type Movable Flags 0xfffffc\n \
                      post_alloc_hook+0x5b/0x60\n get_page_from_freelist+0x1/0x2\n\nPage allocated via";
        assert_eq!(
            allocated(0x333c, record).unwrap(),
            "allocated by process 44: post_alloc_hook < get_page_from_freelist"
        );
        let of_5_10 = "Page allocated via order 0, mask 0x0()\nPFN 16 type Unmovable Block 0\n register_early_stack+0x38/0x50\n\n";
        assert_eq!(
            allocated(16, of_5_10).unwrap(),
            "allocated: register_early_stack"
        );
        assert_eq!(
            allocated(0x333d, record),
            None,
            "the record is another page's"
        );
    }
}
