// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A trace of tests: what to ask of the guest's kernel, and one timeline of what it and the device recorded, for Perfetto.
//!
//! `ftrace` decodes the kernel's buffers, `device` the device's lines; `clock` brings both on one clock; `timeline` makes tracks of
//! them, with the names of `names`; `perfetto` writes these.

mod clock;
mod device;
mod ftrace;
mod names;
mod perfetto;
mod timeline;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pinbed_abi::trace::Wanted;

use crate::machine::vm::{Files, Machine};
use crate::report::file::Target;

/// The fragment with what tracing takes.
pub const FRAGMENT: &str = "trace";
/// KiB of a buffer, of which each CPU has two.
const BUFFER_KIB: u32 = 8192;

/// Functions whose calls make up the path of a pin, from the ioctl to the page, and of its end.
const FUNCTIONS: [&str; 12] = [
    ":mod:pinbed",
    "*pin_user_page*",
    "*gup*",
    "try_grab_*",
    "migrate_*",
    "vb2_*",
    "*dma_map_sg*",
    "*dma_unmap_sg*",
    "dma_buf_*",
    "tee_*",
    "memfd_pin_folios",
    "iov_iter_extract_pages",
];

/// Events of the kernel and the driver. A kernel has those that it has.
const EVENTS: [&str; 15] = [
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "pinbed",
    "pins",
    "vb2",
    "migrate/mm_migrate_pages",
    "cma",
    "compaction/mm_compaction_begin",
    "page_isolation/test_pages_isolated",
    "dma/dma_map_sg",
    "dma/dma_unmap_sg",
    "dma_fence",
    "oom/mark_victim",
    "sched/sched_process_fork",
    "sched/sched_process_exit",
];

/// Pins and unpins, with what they are asked for. Each is an event `pins/FUNCTION`; the names of the fields are known to `timeline`.
const PROBES: [(&str, &str); 9] = [
    (
        "pin_user_pages",
        "address=$arg1:x64 pages=$arg2:s64 flags=$arg3:x32",
    ),
    (
        "pin_user_pages_fast",
        "address=$arg1:x64 pages=$arg2:s32 flags=$arg3:x32",
    ),
    (
        "pin_user_pages_remote",
        "address=$arg2:x64 pages=$arg3:s64 flags=$arg4:x32",
    ),
    ("memfd_pin_folios", "address=$arg2:x64"),
    ("unpin_user_page", ""),
    ("unpin_user_pages", "pages=$arg2:s64"),
    (
        "unpin_user_pages_dirty_lock",
        "pages=$arg2:s64 dirty=$arg3:u8",
    ),
    (
        "unpin_user_page_range_dirty_lock",
        "pages=$arg2:s64 dirty=$arg3:u8",
    ),
    ("unpin_folios", "pages=$arg2:s64"),
];

/// What is asked of the guest. `has_symbols` says that the kernel's addresses have names here.
pub fn wanted(has_symbols: bool) -> Wanted {
    let strings = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect();
    let mut probes = Vec::new();
    for (function, arguments) in PROBES {
        probes.push(
            format!("p:pins/{function} {function} {arguments}")
                .trim_end()
                .to_owned(),
        );
        if function.starts_with("pin_") {
            probes.push(format!(
                "r:pins/{function}_returns {function} pinned=$retval:s64"
            ));
        }
    }
    Wanted {
        buffer_kib: BUFFER_KIB,
        probes,
        events: strings(&EVENTS),
        stacks: PROBES
            .iter()
            .map(|(function, _)| format!("pins/{function}"))
            .collect(),
        functions: strings(&FUNCTIONS),
        symbols: !has_symbols,
    }
}

/// What the guests of a run recorded, one boot after the other.
#[derive(Clone, Debug, Default)]
pub struct Collector(Arc<Mutex<Collected>>);

#[derive(Debug, Default)]
struct Collected {
    tracks: timeline::Tracks,
    notes: Vec<String>,
}

impl Collector {
    /// Takes in what a guest left, which has ended.
    pub fn add(&self, machine: &Machine, files: &Files) {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Collected { tracks, notes } = &mut *collected;
        // What is not there was not written.
        let guest = fs::read(files.trace()).unwrap_or_default();
        let device = fs::read_to_string(files.device_trace()).unwrap_or_default();
        let guest = ftrace::Recording::parse(&guest);
        let device = device::parse(&device);
        for note in &guest.notes {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        let names = names::Names::new(machine, &guest);
        timeline::add_boot(tracks, &guest, &device, &names);
    }

    /// Writes the trace, and says what it lacks. Without any event there is none, and a file of that name stays as it is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<Option<Written>> {
        let collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if collected.tracks.events() == 0 {
            return Ok(None);
        }
        let bytes = perfetto::encode(&collected.tracks);
        Target::from(path.to_owned()).write(&bytes)?;
        Ok(Some(Written {
            path: path.to_owned(),
            bytes: bytes.len(),
            events: collected.tracks.events(),
            uncertainty_ns: collected.tracks.uncertainty_ns,
            lost: collected.tracks.lost,
            notes: collected.notes.clone(),
        }))
    }
}

/// A trace that was written.
#[derive(Debug)]
pub struct Written {
    pub path: PathBuf,
    pub bytes: usize,
    /// Slices, instants and values.
    pub events: usize,
    /// By how much the device's times may be off; none where it had no request.
    pub uncertainty_ns: Option<u64>,
    /// Whether a buffer of the guest's overflowed.
    pub lost: bool,
    /// What the kernel could not trace.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_traced_nothing_leaves_an_earlier_trace_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pinbed.pftrace");
        fs::write(&path, "earlier").unwrap();
        assert!(Collector::default().write(&path).unwrap().is_none());
        assert_eq!(fs::read(&path).unwrap(), b"earlier");
    }
}
