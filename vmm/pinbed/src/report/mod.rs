// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Reporters: whoever hears the events of a run. Each form of output is one of them, in a file of its own.

pub mod again;
pub mod collect;
pub mod coverage;
pub mod event;
mod explain;
pub mod file;
pub mod html;
pub mod junit;
pub mod kcidb;
pub mod ktap;
pub mod mutants;
mod page;
pub mod record;
pub mod recorder;
pub mod result;
pub mod table;

use std::io;
use std::time::Instant;

use chrono::Utc;

use crate::machine::accel::Accel;
use event::{Event, What};
use record::Run;

/// Somebody who hears of a run while it goes on.
pub trait Reporter {
    /// Takes in the next event. After [`What::RunFinished`], which comes on every way out, nothing may be left to write.
    ///
    /// # Errors
    /// When the report cannot be written; the reporter then hears no more.
    fn hear(&mut self, event: &Event) -> Result<(), Error>;
}

/// Why a report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Who reads it has closed the pipe.
    #[error("the reader of standard output has gone")]
    ClosedPipe,
    /// Anything else.
    #[error("cannot write {what}: {why}")]
    Write {
        /// What was to be written: "the JSON file out.json".
        what: String,
        /// Why not.
        why: String,
    },
}

impl Error {
    /// An error of writing `what`.
    pub fn write(what: impl Into<String>, why: impl ToString) -> Self {
        Error::Write {
            what: what.into(),
            why: why.to_string(),
        }
    }

    /// An error of writing to standard output.
    pub fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Error::ClosedPipe,
            _ => Error::write("to standard output", error),
        }
    }
}

/// All reporters of a run. One that fails hears no more, and does not keep the others from hearing.
pub struct Reporters {
    reporters: Vec<Box<dyn Reporter>>,
    began: Instant,
    failure: Option<Error>,
}

impl Reporters {
    /// These reporters, of a command that began then.
    pub fn new(reporters: Vec<Box<dyn Reporter>>, began: Instant) -> Self {
        Reporters {
            reporters,
            began,
            failure: None,
        }
    }

    /// Milliseconds since the command began.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells all of them what happens.
    pub fn tell(&mut self, what: What) {
        self.pass_on(&Event {
            time: Utc::now(),
            elapsed_ms: self.elapsed_ms(),
            what,
        });
    }

    /// Tells all of them of an event, now or of the past.
    fn pass_on(&mut self, event: &Event) {
        let failure = &mut self.failure;
        self.reporters.retain_mut(|reporter| {
            let result = reporter.hear(event);
            match result {
                Ok(()) => true,
                Err(error) => {
                    log::warn!("{error}");
                    failure.get_or_insert(error);
                    false
                }
            }
        });
    }

    /// The first failure of a reporter.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Ends the reports: the first failure, if there was one.
    ///
    /// # Errors
    /// When a reporter could not write what it should.
    pub fn finish(self) -> Result<(), Error> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Tells all of them of a run of the past, and ends the reports. A reader that has gone wanted no more.
    ///
    /// # Errors
    /// When a reporter could not write what it should.
    pub fn retell(mut self, run: &Run) -> Result<(), Error> {
        for event in run.events() {
            self.pass_on(&event);
        }
        match self.finish() {
            Ok(()) | Err(Error::ClosedPipe) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Who ran the guest's code, in words.
fn accel_name(accel: Option<Accel>) -> &'static str {
    accel.map_or("not booted", Accel::name)
}

/// The group and the rest of a test's name.
fn parts(name: &str) -> (&str, &str) {
    name.split_once("::").unwrap_or(("", name))
}

/// Runs to show in tests.
#[cfg(test)]
pub mod samples;
/// The JSON schema of a run.
#[cfg(test)]
mod schema;
