// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel log, and which of its lines are complaints (Documentation/ABI/testing/dev-kmsg).

use crate::Broken;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// /dev/kmsg, read to its end each time.
pub struct Log {
    file: File,
}

/// What the kernel said since the last look.
#[derive(Default)]
pub struct News {
    /// Lines, without their timestamps.
    pub lines: Vec<String>,
    /// Whether some were overwritten before they could be read.
    pub lost: bool,
}

impl News {
    /// The lines that say that something is wrong with the kernel.
    pub fn complaints(&self) -> impl Iterator<Item = &str> {
        self.lines
            .iter()
            .map(String::as_str)
            .filter(|line| is_complaint(line))
    }
}

impl Log {
    /// Opens the log behind what is in it already: what a kernel complains of while it boots is on the console.
    pub fn open() -> Result<Self, Broken> {
        let unreadable = |error| {
            Broken(format!(
                "the kernel log cannot be read, so no test could be judged: /dev/kmsg: {error}"
            ))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .map_err(unreadable)?;
        file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        Ok(Self { file })
    }

    /// What came since the last call.
    pub fn news(&mut self) -> News {
        let mut news = News::default();
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => news
                    .lines
                    .extend(kernel_lines(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => news.lost = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // EAGAIN is the end; any other error will not get better.
                Err(_) => return news,
            }
        }
    }
}

/// The text of a record "priority,sequence,time,flags;text\n key=value\n", if the kernel wrote it: processes can write to the log
/// too, and are no witnesses.
fn kernel_lines(record: &str) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    let facility = priority >> 3;
    (facility == 0).then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// How a report begins, of whatever checker of the kernel's.
const COMPLAINTS: [&str; 17] = [
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
];

/// Whether the line says that something is wrong with the kernel.
pub fn is_complaint(line: &str) -> bool {
    // Under a complaint of DMA-API debugging comes where the memory was mapped.
    if line == "DMA-API: Mapped at:" {
        return false;
    }
    // SLUB writes "BUG kmalloc-64 (Tainted: …): Poison overwritten" under a line of '='.
    COMPLAINTS.iter().any(|complaint| line.contains(complaint)) || line.starts_with("BUG ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_processes_are_not_the_kernels() {
        let kernel = "4,1022,5123456,-;WARNING: CPU: 0 PID: 61 at mm/gup.c:1 f+0x1\n SUBSYSTEM=x\n";
        assert_eq!(
            kernel_lines(kernel).as_deref(),
            Some("WARNING: CPU: 0 PID: 61 at mm/gup.c:1 f+0x1")
        );
        assert_eq!(
            kernel_lines("12,1023,5123457,-;WARNING: said a process\n"),
            None
        );
        assert_eq!(kernel_lines("nonsense"), None);
    }

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
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [
            "pinbed virtio1: DETACH of buffer 7",
            "cma: __cma_alloc: reserved: alloc failed, req-size: 16384 pages, ret: -16",
            "pinbed-guest[61]: segfault at 0 ip 0000000000401234 sp 00007ffe error 4",
            "pinbed: loading out-of-tree module taints kernel.",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
    }
}
