// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a run shows while it goes on, and leaves behind.

pub mod explain;
pub mod junit;
pub mod ktap;
mod page;
pub mod record;
pub mod table;

use std::io;

use crate::machine::accel::Accel;
use crate::report::record::{Environment, Judged, Record};

/// Somebody who is told of a run while it goes on.
pub trait Output {
    /// The guest is up, or will not come up: `total` results are to follow.
    fn begin(&mut self, environment: &Environment, total: usize) -> io::Result<()>;
    /// A test begins.
    fn start(&mut self, name: &str) -> io::Result<()>;
    /// A test has its verdict.
    fn verdict(&mut self, judged: &Judged) -> io::Result<()>;
    /// The guest's console shows a line.
    fn console(&mut self, line: &str) -> io::Result<()>;
    /// The run is over.
    fn end(&mut self, record: &Record) -> io::Result<()>;
}

/// Who ran the guest's code, in words.
fn accel_name(accel: Option<Accel>) -> &'static str {
    accel.map_or("not booted", Accel::name)
}

/// Nobody.
pub struct Silent;

impl Output for Silent {
    fn begin(&mut self, _: &Environment, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn start(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn verdict(&mut self, _: &Judged) -> io::Result<()> {
        Ok(())
    }
    fn console(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn end(&mut self, _: &Record) -> io::Result<()> {
        Ok(())
    }
}

/// Runs to show in tests.
#[cfg(test)]
mod samples {
    use pinbed_abi::report::{Eye, Finding, TestInfo};

    use super::*;
    use crate::judge::verdict::{Counts, Verdict};
    use crate::machine::watch::End;
    use crate::report::record::{Evidence, FORMAT, Times};

    fn finding() -> Finding {
        Finding {
            eye: Eye::Cpu,
            text: "byte 0 is 1, expected 2".to_owned(),
        }
    }

    fn record(exit: u8, end: End, tests: Vec<(&str, Verdict)>) -> Record {
        let tests: Vec<_> = tests
            .into_iter()
            .map(|(name, verdict)| Judged {
                test: TestInfo {
                    name: name.to_owned(),
                    correct: "The device reads what the process wrote.".to_owned(),
                    source: "a thread".to_owned(),
                    timeout_s: 0,
                },
                duration_ms: (!matches!(verdict, Verdict::Missing { .. })).then_some(20),
                verdict,
                notes: vec![],
                dmesg: vec![
                    "fine".to_owned(),
                    "WARNING: CPU: 0 PID: 1 at mm/gup.c:1".to_owned(),
                ],
            })
            .collect();
        Record {
            format: FORMAT,
            pinbed: "0",
            exit,
            end,
            counts: Counts::of(tests.iter().map(|judged| &judged.verdict)),
            environment: Environment {
                release: Some("6.12.1".to_owned()),
                version: None,
                kernel: "6.12".to_owned(),
                qemu: "11.1.3".to_owned(),
                accel: Some(Accel::Tcg),
                accel_reason: None,
                memory_mib: 512,
                cpus: 2,
                baseline: Some("6.12".to_owned()),
            },
            times: Times::default(),
            tests,
            evidence: Evidence::default(),
        }
    }

    pub fn green() -> Record {
        record(0, End::Done, vec![("group::passes", Verdict::Pass)])
    }

    /// Of another kernel than the others.
    pub fn not_provided() -> Record {
        let missing = Verdict::Missing {
            reason: "the run ended before its result came".to_owned(),
        };
        let end = End::NotProvided {
            reason: "there is no network".to_owned(),
        };
        let mut record = record(3, end, vec![("group::passes", missing)]);
        record.environment.kernel = "7.3".to_owned();
        record
    }

    pub fn panicked() -> Record {
        let line = "Kernel panic - not syncing: x".to_owned();
        let end = End::Panic {
            line: line.clone(),
            test: Some("group::passes".to_owned()),
        };
        let missing = Verdict::Missing {
            reason: "the run ended before its result came".to_owned(),
        };
        let mut record = record(5, end, vec![("group::passes", missing)]);
        record.evidence.console = vec![line];
        record
    }

    pub fn mixed() -> Record {
        let (reason, reference) = ("it never worked".to_owned(), "a commit".to_owned());
        let skip = |reason: &str, expected| Verdict::Skip {
            reason: reason.to_owned(),
            expected,
        };
        let tests = vec![
            ("group::passes", Verdict::Pass),
            (
                "group::unknown_failure",
                Verdict::Fail {
                    findings: vec![finding(); 2],
                    expected: None,
                },
            ),
            (
                "group::known_failure",
                Verdict::Xfail {
                    findings: vec![finding()],
                    reason,
                    reference,
                },
            ),
            ("group::lacking", skip("no heap", true)),
            (
                "other::works_now",
                Verdict::Fixed {
                    reason: "broken".to_owned(),
                },
            ),
            ("other::gone", skip("no /dev/video0", false)),
        ];
        record(1, End::Done, tests)
    }

    /// Tells an output of a run as a session does.
    pub fn tell(record: &Record, output: &mut dyn Output) {
        output
            .begin(&record.environment, record.tests.len())
            .unwrap();
        for judged in record
            .tests
            .iter()
            .filter(|judged| judged.duration_ms.is_some())
        {
            output.start(&judged.test.name).unwrap();
            output.verdict(judged).unwrap();
        }
        output.end(record).unwrap();
    }
}
