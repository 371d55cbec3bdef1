// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KTAP version 1 (the kernel's Documentation/dev-tools/ktap.rst), one level deep.
//!
//! A verdict that is as the baseline says is `ok`, so that a parser that knows no directives sees the run as pinbed does.

use std::io::{self, Write};

use super::Output;
use super::explain::explain;
use super::table::eye;
use crate::events::printable;
use crate::record::{Environment, Judged, Record};
use crate::verdict::Verdict;

/// KTAP, to `out`.
pub struct Ktap<W> {
    out: W,
    number: usize,
    rerun: Box<dyn Fn(&str) -> String>,
}

impl<W: Write> Ktap<W> {
    /// Writes to `out`; `rerun` makes the command that runs one test again.
    pub fn new(out: W, rerun: Box<dyn Fn(&str) -> String>) -> Self {
        Ktap {
            out,
            number: 0,
            rerun,
        }
    }

    fn comment(&mut self, text: &str) -> io::Result<()> {
        text.lines()
            .try_for_each(|line| writeln!(self.out, "# {}", printable(line)))
    }
}

/// The part of a result line after the hash sign, on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .map(printable)
        .collect::<Vec<_>>()
        .join(" ")
}

impl<W: Write> Output for Ktap<W> {
    fn begin(&mut self, environment: &Environment, total: usize) -> io::Result<()> {
        let Environment {
            release,
            kernel,
            qemu,
            accel,
            memory_mib,
            cpus,
            ..
        } = environment;
        writeln!(self.out, "KTAP version 1\n1..{total}")?;
        let kernel = release.as_ref().unwrap_or(kernel);
        self.comment(&format!(
            "Linux {kernel}, QEMU {qemu}, {}, {memory_mib} MiB, {cpus} CPUs",
            accel.name()
        ))
    }

    fn start(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn verdict(&mut self, judged: &Judged) -> io::Result<()> {
        self.number += 1;
        let (name, number) = (&judged.test.name, self.number);
        if let Verdict::Fail { findings, .. } = &judged.verdict {
            for finding in findings {
                self.comment(&format!("{name}: {}: {}", eye(finding), finding.text))?;
            }
            self.comment(&format!("{name}: correct: {}", judged.test.correct))?;
            for line in &judged.dmesg {
                self.comment(&format!("{name}: dmesg: {line}"))?;
            }
        }
        let result = if judged.verdict.differs() {
            "not ok"
        } else {
            "ok"
        };
        let rest = match &judged.verdict {
            Verdict::Pass | Verdict::Fail { .. } => String::new(),
            Verdict::Xfail { reason, .. } => format!(" # XFAIL {reason}"),
            Verdict::Fixed { reason } => format!(" # passes, and the baseline says: {reason}"),
            // Not the directive SKIP where the skip is what went wrong: with it, "not ok" would not count.
            Verdict::Skip {
                reason,
                expected: false,
            } => format!(" # skipped, and the baseline does not say so: {reason}"),
            Verdict::Skip {
                reason,
                expected: true,
            } => format!(" # SKIP {reason}"),
            Verdict::Missing { reason } => format!(" # ERROR {reason}"),
        };
        writeln!(
            self.out,
            "{}",
            one_line(&format!("{result} {number} {name}{rest}"))
        )?;
        self.out.flush()
    }

    fn console(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, record: &Record) -> io::Result<()> {
        for missing in record.tests.iter().skip(self.number) {
            self.verdict(missing)?;
        }
        if let Some(explanation) = explain(record, &self.rerun) {
            for (title, lines) in &explanation.evidence {
                self.comment(&format!("{title}:"))?;
                for line in lines {
                    self.comment(line)?;
                }
            }
            let (what, next) = (&explanation.what, &explanation.next);
            self.comment(what)?;
            self.comment(&format!("next: {next}"))?;
            // Who reads standard output with a parser reads this.
            writeln!(
                io::stderr(),
                "pinbed: {}\npinbed: next: {next}",
                printable(what)
            )?;
        }
        self.comment(&record.counts.to_string())?;
        self.out.flush()
    }
}
