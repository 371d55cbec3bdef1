// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A file with a line for each line of the log, at every level: the host's time stamp counter, the thread, the module, the text, with a
//! tab between two of them. `spans` of the library and the engine's DMA core write lines for it.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The file. Opened before the process is confined.
#[derive(Debug)]
pub struct File(fs::File);

static THREADS: AtomicU32 = AtomicU32::new(1);
thread_local! {
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

impl File {
    /// Lines are added to what is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::options().create(true).append(true).open(path);
        file.map(File)
    }

    pub fn add(&self, record: &log::Record) {
        // Not a library's.
        if !record.target().starts_with("pinbed") {
            return;
        }
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
        let time = unsafe { std::arch::x86_64::_rdtsc() };
        let thread = THREAD.with(|thread| {
            if thread.get() == 0 {
                thread.set(THREADS.fetch_add(1, Ordering::Relaxed));
            }
            thread.get()
        });
        let text = record.args().to_string().replace(['\n', '\t'], " ");
        let line = format!("{time}\t{thread}\t{}\t{text}\n", record.target());
        // One call, so that lines of threads do not mix. A trace that cannot be written is no reason to fail.
        let _ = (&self.0).write_all(line.as_bytes());
    }
}
