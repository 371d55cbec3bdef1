// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KTAP version 1 (the kernel's Documentation/dev-tools/ktap.rst), one level deep; with several kernels each is a test whose subtests are
//! those of its run.
//!
//! A verdict that is as the baseline says is `ok`, so that a parser that knows no directives sees the run as pinbed does.

use std::io::{self, Write};

use super::Output;
use super::accel_name;
use super::explain::explain;
use super::table::eye;
use crate::judge::verdict::Verdict;
use crate::report::record::{Environment, Judged, Record};
use crate::text::printable;

/// KTAP, to `out`.
pub struct Ktap<W> {
    out: W,
    indent: &'static str,
    number: usize,
    rerun: Box<dyn Fn(&str) -> String>,
}

impl<W: Write> Ktap<W> {
    /// Writes to `out`, as one run of several or as the only one; `rerun` makes the command that runs one test again.
    pub fn new(out: W, among_others: bool, rerun: Box<dyn Fn(&str) -> String>) -> Self {
        Ktap {
            out,
            indent: if among_others { "  " } else { "" },
            number: 0,
            rerun,
        }
    }

    fn comment(&mut self, text: &str) -> io::Result<()> {
        text.lines()
            .try_for_each(|line| writeln!(self.out, "{}# {}", self.indent, printable(line)))
    }
}

/// Begins the runs of so many kernels.
pub fn begin_all(out: &mut impl Write, kernels: usize) -> io::Result<()> {
    writeln!(out, "KTAP version 1\n1..{kernels}")
}

/// Ends the run of one of them, the first being number 1.
pub fn end_one(out: &mut impl Write, number: usize, record: &Record) -> io::Result<()> {
    let result = if record.exit == 0 { "ok" } else { "not ok" };
    writeln!(out, "{result} {number} {}", record.name())?;
    out.flush()
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
        let indent = self.indent;
        writeln!(self.out, "{indent}KTAP version 1\n{indent}1..{total}")?;
        let kernel = release.as_ref().unwrap_or(kernel);
        self.comment(&format!(
            "Linux {kernel}, QEMU {qemu}, {}, {memory_mib} MiB, {cpus} CPUs",
            accel_name(*accel)
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
            "{}{}",
            self.indent,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn shown(record: &Record) -> String {
        let mut out = Vec::new();
        let mut ktap = Ktap::new(
            &mut out,
            false,
            Box::new(|test| format!("pinbed run {test}")),
        );
        samples::tell(record, &mut ktap);
        String::from_utf8(out).unwrap()
    }

    /// All lines but diagnostic ones.
    fn results(ktap: &str) -> Vec<&str> {
        ktap.lines()
            .filter(|line| !line.starts_with("# "))
            .collect()
    }

    #[test]
    fn each_verdict_has_its_line() {
        let expected = [
            "KTAP version 1",
            "1..6",
            "ok 1 group::passes",
            "not ok 2 group::unknown_failure",
            "ok 3 group::known_failure # XFAIL it never worked",
            "ok 4 group::lacking # SKIP no heap",
            "not ok 5 other::works_now # passes, and the baseline says: broken",
            "not ok 6 other::gone # skipped, and the baseline does not say so: no /dev/video0",
        ];
        let shown = shown(&samples::mixed());
        assert_eq!(results(&shown), expected);
        assert!(
            shown.contains("# group::unknown_failure: cpu: byte 0 is 1, expected 2\n"),
            "{shown}"
        );
        assert!(
            shown.ends_with("# 2 passed, 3 failed, 1 skipped\n"),
            "{shown}"
        );
    }

    #[test]
    fn the_plan_is_kept_whatever_happens() {
        let shown = shown(&samples::panicked());
        let missing = "not ok 1 group::passes # ERROR the run ended before its result came";
        assert_eq!(results(&shown), ["KTAP version 1", "1..1", missing]);
        assert!(
            shown.contains("# Kernel panic - not syncing: x\n"),
            "{shown}"
        );
    }

    #[test]
    fn kernels_are_tests_with_subtests() {
        let (mut out, runs) = (Vec::new(), [samples::green(), samples::not_provided()]);
        begin_all(&mut out, runs.len()).unwrap();
        for (at, record) in runs.iter().enumerate() {
            let mut ktap = Ktap::new(&mut out, true, Box::new(str::to_owned));
            samples::tell(record, &mut ktap);
            end_one(&mut out, at + 1, record).unwrap();
        }
        let shown = String::from_utf8(out).unwrap();
        let lines: Vec<_> = shown
            .lines()
            .filter(|line| !line.trim_start().starts_with("# "))
            .collect();
        let expected = [
            "KTAP version 1",
            "1..2",
            "  KTAP version 1",
            "  1..1",
            "  ok 1 group::passes",
            "ok 1 6.12",
            "  KTAP version 1",
            "  1..1",
            "  not ok 1 group::passes # ERROR the run ended before its result came",
            "not ok 2 7.3",
        ];
        assert_eq!(lines, expected);
        assert!(
            shown.contains("\n  # there is no kernel to boot: there is no network\n"),
            "{shown}"
        );
    }
}
