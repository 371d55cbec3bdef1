// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A log that no guest can flood: warnings and information are lines that a guest can cause, so their rate has a bound. Lines of
//! the levels debug and trace have none, as somebody has asked for them (`RUST_LOG`), and neither have errors.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::trace;

/// Lines that are written at once.
const BURST: f64 = 1000.0;
/// Lines in a second, in the long run.
const RATE: f64 = 20.0;

#[derive(Debug)]
struct Bucket {
    lines: f64,
    at: Instant,
    left_out: u64,
}

impl Bucket {
    fn new(at: Instant) -> Self {
        Self {
            lines: BURST,
            at,
            left_out: 0,
        }
    }

    /// Whether a line may be written, and how many were not since the last one that was.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.lines = (self.lines + passed * RATE).min(BURST);
        self.at = now;
        if self.lines < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

struct Limited<L> {
    inner: L,
    bucket: Mutex<Bucket>,
    trace: Option<trace::File>,
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.trace.is_some() || self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if let Some(trace) = &self.trace {
            trace.add(record);
        }
        let limited = matches!(record.level(), Level::Warn | Level::Info);
        if !limited || !self.inner.enabled(record.metadata()) {
            return self.inner.log(record);
        }
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = bucket.take(Instant::now()) else {
            return;
        };
        drop(bucket);
        if left_out > 0 {
            let mut note = Record::builder();
            note.level(record.level()).target(record.target());
            let text = format_args!("{left_out} lines left out").to_string();
            self.inner.log(&note.args(format_args!("{text}")).build());
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// Makes this the process's log, written as `env_logger` does. A trace gets every line, whatever the log shows.
pub fn install(trace: Option<trace::File>) {
    let inner = env_logger::Builder::from_default_env().build();
    log::set_max_level(match &trace {
        Some(_) => LevelFilter::Trace,
        None => inner.filter(),
    });
    let limited = Limited {
        inner,
        bucket: Mutex::new(Bucket::new(Instant::now())),
        trace,
    };
    // Fails only where there is a log already, which then stays.
    let _ = log::set_boxed_logger(Box::new(limited));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let written = (0..5000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(written, 1000);
        assert_eq!(bucket.take(start), None);
        let later = start + Duration::from_secs(1);
        assert_eq!(bucket.take(later), Some(4001));
        let more = (0..100).filter(|_| bucket.take(later).is_some()).count();
        assert_eq!(more, 19);
    }
}
