// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel says while a test runs, and which of its lines are complaints.

use std::fs;

use pinbed_guest::observe::kmsg::{Log, Record};

/// What the kernel said since the last judgement.
#[derive(Default)]
pub struct News {
    /// Lines, without their timestamps; no more than [`News::LINES`].
    lines: Vec<String>,
    /// How many more there were.
    more: usize,
    /// The lines that say that something is wrong with the kernel, each kind once.
    pub complaints: Vec<Complaint>,
    /// Whether some were overwritten before they could be read.
    pub lost: bool,
}

/// Lines that differ in their numbers only.
pub struct Complaint {
    /// The first of them.
    pub line: String,
    /// How many there were.
    pub count: usize,
    shape: String,
}

impl News {
    /// Enough for some traces; a kernel that complains without end must not fill the memory that the tests need.
    const LINES: usize = 1000;

    /// Adds what came since the log was last read.
    pub fn read(&mut self, log: &mut Log) {
        for record in log {
            match record {
                Ok(Record::Line(line)) => self.add(line),
                Ok(Record::Lost) => self.lost = true,
                // It will not get better.
                Err(_) => return,
            }
        }
    }

    fn add(&mut self, line: String) {
        if is_complaint(&line) {
            let shape = shape(&line);
            match self
                .complaints
                .iter_mut()
                .find(|complaint| complaint.shape == shape)
            {
                Some(complaint) => complaint.count += 1,
                None => self.complaints.push(Complaint {
                    line: line.clone(),
                    count: 1,
                    shape,
                }),
            }
        }
        if self.lines.len() < Self::LINES {
            self.lines.push(line);
        } else {
            self.more += 1;
        }
    }

    /// Has the kernel say where each CPU is (SysRq l, by NMIs), and returns that; it is no news, unlike complaints that come meanwhile.
    pub fn cpus(&mut self, log: &mut Log) -> Vec<String> {
        self.read(log);
        // A kernel without CONFIG_MAGIC_SYSRQ says nothing.
        if fs::write("/proc/sysrq-trigger", "l").is_err() {
            return Vec::new();
        }
        let mut said = News::default();
        said.read(log);
        self.complaints.append(&mut said.complaints);
        self.lost |= said.lost;
        said.into_lines()
    }

    /// Forgets complaints of lines with one of these texts.
    pub fn excuse(&mut self, texts: &[String]) {
        self.complaints
            .retain(|complaint| !texts.iter().any(|text| complaint.line.contains(text)));
    }

    /// The lines that are kept.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Adds the lines of what came later, which are judged already.
    pub fn append(&mut self, later: Self) {
        self.more += later.more;
        for line in later.lines {
            if self.lines.len() < Self::LINES {
                self.lines.push(line);
            } else {
                self.more += 1;
            }
        }
    }

    /// The lines, with a last one that counts what is missing.
    pub fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("({} more lines)", self.more));
        }
        self.lines
    }
}

/// A line without its numbers, decimal or hexadecimal.
fn shape(line: &str) -> String {
    line.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| match word.find(|c: char| c.is_ascii_digit()) {
            Some(_) => "#",
            None => word,
        })
        .collect()
}

/// How a report begins, of whatever checker of the kernel's.
const COMPLAINTS: [&str; 23] = [
    "WARNING:",
    "BUG:",
    "kernel BUG at ",
    "Oops",
    "KASAN:",
    "UBSAN:",
    "KCSAN:",
    "general protection fault",
    "unable to handle",
    "DMA-API:",
    "unbalanced counters",
    "ODEBUG:",
    "possible recursive locking",
    "possible circular locking",
    "blocked for more than",
    "detected stall",
    "refcount_t:",
    "page allocation failure",
    "invoked oom-killer",
    "Out of memory",
    "EXT4-fs error",
    "EXT4-fs warning",
    "I/O error",
];

/// How lines begin of the driver and of the TEE subsystem, which have something to say only where something went wrong.
const DRIVERS: [&str; 2] = ["pinbed virtio", "tee tee"];

/// What looks like the beginning of a report and is none: where memory was mapped that a report above it is about, and DMA-API
/// debugging's bookkeeping.
const NEWS: [&str; 4] = [
    "DMA-API: Mapped at:",
    "DMA-API: dma_debug_entry pool grown",
    "DMA-API: preallocated",
    "DMA-API: debugging enabled",
];

/// Whether the line says that something is wrong with the kernel.
pub fn is_complaint(line: &str) -> bool {
    if NEWS.iter().any(|news| line.starts_with(news)) {
        return false;
    }
    // SLUB writes "BUG kmalloc-64 (Tainted: …): Poison overwritten" under a line of '='.
    COMPLAINTS.iter().any(|complaint| line.contains(complaint))
        || DRIVERS.iter().any(|driver| line.starts_with(driver))
        || line.starts_with("BUG ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_from_news() {
        for line in [
            "WARNING: CPU: 1 PID: 77 at drivers/media/common/videobuf2/videobuf2-core.c:1779 __vb2_queue_cancel+0x1",
            "WARNING: possible circular locking dependency detected",
            "BUG: KASAN: use-after-free in vb2_dma_sg_put+0x1/0x2",
            "BUG: Bad page state in process pinbed-guest  pfn:12345",
            "BUG kmalloc-64 (Not tainted): Poison overwritten",
            "kernel BUG at mm/gup.c:123!",
            "Oops: general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 [#1]",
            "DMA-API: virtio-pci 0000:00:02.0: cacheline tracking EEXIST, overlapping mappings aren't supported",
            "videobuf2_common: unbalanced counters for queue 0000000012345678:",
            "INFO: task pinbed-guest:61 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [pinbed-guest:61]",
            "pinbed-guest: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP)",
            "pinbed-guest invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0",
            "Out of memory: Killed process 61 (pinbed-guest) total-vm:1024kB",
            "EXT4-fs error (device ram1): ext4_lookup:1855: inode #2: comm pinbed-guest",
            "Buffer I/O error on dev ram1, logical block 0, lost sync page write",
            "pinbed virtio1: DETACH of buffer 7 failed (-5): given up until it is bound again",
            "tee tee1: can't register DMA heap id 1 (protected,secure-video)",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [
            "cma: __cma_alloc: reserved: alloc failed, req-size: 16384 pages, ret: -16",
            "pinbed-guest[61]: segfault at 0 ip 0000000000401234 sp 00007ffe error 4",
            "pinbed: loading out-of-tree module taints kernel.",
            "DMA-API: dma_debug_entry pool grown to 16384 (200%)",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
    }

    #[test]
    fn complaints_that_differ_in_numbers_are_one() {
        let line = |address: &str| {
            format!("DMA-API: virtio-pci 0000:00:02.0: overlap [address={address}]")
        };
        let mut news = News::default();
        for line in [
            line("0x27e5000"),
            line("0x929000"),
            "BUG: other".into(),
            "hello".into(),
        ] {
            news.add(line);
        }
        let found: Vec<_> = news
            .complaints
            .iter()
            .map(|c| (c.line.as_str(), c.count))
            .collect();
        assert_eq!(found, [(line("0x27e5000").as_str(), 2), ("BUG: other", 1)]);
        assert_eq!(news.lines.len(), 4);
    }

    #[test]
    fn what_a_test_causes_itself_is_excused() {
        let mut news = News::default();
        news.add("pinbed virtio1: job 7: DMA fault".into());
        news.add("pinbed virtio1: DETACH of buffer 7 failed".into());
        news.excuse(&["DMA fault".into()]);
        assert_eq!(news.complaints.len(), 1);
        assert_eq!(news.lines.len(), 2);
    }

    #[test]
    fn a_kernel_that_does_not_stop_does_not_fill_the_memory() {
        let mut news = News::default();
        for number in 0..5000 {
            news.add(format!("WARNING: number {number}"));
        }
        assert_eq!((news.lines.len(), news.more), (1000, 4000));
        assert_eq!(news.complaints[0].count, 5000);
    }
}
