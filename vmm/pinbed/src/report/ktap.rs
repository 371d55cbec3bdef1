// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KTAP version 1 (the kernel's Documentation/dev-tools/ktap.rst), one level deep; with several kernels each is a test whose subtests are
//! those of its session.
//!
//! A verdict that is as the baseline says is `ok`, so that a parser that knows no directives sees the run as pinbed does.

use std::io::{self, Write};

use super::again::Rerun;
use super::collect::Collector;
use super::event::{Event, What};
use super::record::{Environment, Judged};
use super::table::eye;
use super::{Error, Reporter, accel_name, explain};
use crate::judge::verdict::Verdict;
use crate::text::printable;

/// KTAP, to `out`.
pub struct Ktap<W> {
    out: W,
    kernels: usize,
    number: usize,
    rerun: Rerun,
    collector: Collector,
}

impl<W: Write> Ktap<W> {
    /// Writes to `out`; `rerun` makes the command that runs one test again.
    pub fn new(out: W, rerun: Rerun) -> Self {
        Ktap {
            out,
            kernels: 1,
            number: 0,
            rerun,
            collector: Collector::default(),
        }
    }

    fn indent(&self) -> &'static str {
        if self.kernels > 1 { "  " } else { "" }
    }

    fn comment(&mut self, text: &str) -> io::Result<()> {
        let indent = self.indent();
        text.lines()
            .try_for_each(|line| writeln!(self.out, "{indent}# {}", printable(line)))
    }

    fn begin(&mut self, environment: &Environment, total: usize) -> io::Result<()> {
        self.number = 0;
        let indent = self.indent();
        writeln!(self.out, "{indent}KTAP version 1\n{indent}1..{total}")?;
        self.comment(&format!(
            "kernel {}, QEMU {}, {}, {} MiB, {} CPUs",
            environment.kernel,
            environment.qemu,
            accel_name(environment.accel),
            environment.memory_mib,
            environment.cpus
        ))
    }

    fn verdict(&mut self, judged: &Judged) -> io::Result<()> {
        let name = &judged.test.name;
        if let Verdict::Fail { findings, .. } = &judged.verdict {
            for finding in findings {
                self.comment(&format!("{name}: {}: {}", eye(finding), finding.text))?;
            }
            self.comment(&format!("{name}: correct: {}", judged.test.correct))?;
            let hang = judged.hang.as_deref().map(explain::evidence);
            for (title, lines) in hang.unwrap_or_default() {
                for line in lines {
                    self.comment(&format!("{name}: {title}: {line}"))?;
                }
            }
            for line in &judged.dmesg {
                self.comment(&format!("{name}: dmesg: {line}"))?;
            }
        }
        if judged.retried {
            return self.comment(&format!(
                "{name}: {} on attempt {}, another follows",
                judged.verdict.name(),
                judged.attempt
            ));
        }
        self.number += 1;
        let number = self.number;
        let result = if judged.verdict.differs() {
            "not ok"
        } else {
            "ok"
        };
        let rest = match &judged.verdict {
            Verdict::Pass if judged.attempt > 1 => {
                format!(" # flaky: passed on attempt {}", judged.attempt)
            }
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
            Verdict::NotRun { reason } => format!(" # ERROR not run: {reason}"),
        };
        writeln!(
            self.out,
            "{}{}",
            self.indent(),
            one_line(&format!("{result} {number} {name}{rest}"))
        )?;
        self.out.flush()
    }

    /// Why something ended badly; also on standard error, since who reads standard output with a parser reads that.
    fn explain(&mut self, explanation: Option<explain::Explanation>) -> io::Result<()> {
        let Some(explanation) = explanation else {
            return Ok(());
        };
        for (title, lines) in &explanation.evidence {
            self.comment(&format!("{title}:"))?;
            for line in lines {
                self.comment(line)?;
            }
        }
        for what in &explanation.what {
            self.comment(what)?;
            say!("pinbed: {}", printable(what));
        }
        self.comment(&format!("next: {}", explanation.next))?;
        say!("pinbed: next: {}", explanation.next);
        Ok(())
    }

    fn write(&mut self, what: &What) -> io::Result<()> {
        match what {
            What::RunStarted { kernels, .. } => {
                self.kernels = kernels.len();
                if self.kernels > 1 {
                    writeln!(self.out, "KTAP version 1\n1..{}", self.kernels)?;
                }
                self.out.flush()
            }
            What::SessionStarted {
                environment, plan, ..
            } => self.begin(environment, plan.len()),
            What::GuestUp {
                release, boot: 0, ..
            } => self.comment(&format!("Linux {release}")),
            What::TestFinished { judged, .. } => self.verdict(judged),
            What::BootFinished { ended, .. } => {
                let explanation = self.collector.session().and_then(|session| {
                    explain::boot(ended, &session.environment, self.rerun.as_ref())
                });
                self.explain(explanation)
            }
            What::SessionFinished { session, summary } => {
                let of = self.collector.session();
                let explanation =
                    of.and_then(|session| explain::session(session, self.rerun.as_ref()));
                let name = of.map_or("", |session| session.name()).to_owned();
                self.explain(explanation)?;
                self.comment(&summary.counts.to_string())?;
                if self.kernels > 1 {
                    let result = if summary.exit == 0 { "ok" } else { "not ok" };
                    writeln!(self.out, "{result} {} {name}", session + 1)?;
                }
                self.out.flush()
            }
            _ => Ok(()),
        }
    }
}

/// The part of a result line after the hash sign, on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .map(printable)
        .collect::<Vec<_>>()
        .join(" ")
}

impl<W: Write> Reporter for Ktap<W> {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        self.collector.hear(event);
        self.write(&event.what).map_err(Error::stdout)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::rc::Rc;

    use super::*;
    use crate::report::record::Run;
    use crate::report::samples;

    fn shown(run: &Run) -> String {
        let mut out = Vec::new();
        let rerun: Rerun =
            Rc::new(|_, test| super::super::again::Again::new("pinbed", test, &[], &[]));
        samples::tell(run, &mut Ktap::new(&mut out, rerun));
        String::from_utf8(out).unwrap()
    }

    /// All lines but diagnostic ones.
    fn results(ktap: &str) -> Vec<&str> {
        ktap.lines()
            .filter(|line| !line.trim_start().starts_with("# "))
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
        let panicked = shown(&samples::panicked());
        let expected = [
            "KTAP version 1",
            "1..2",
            "not ok 1 group::ends_it",
            "ok 2 group::passes",
        ];
        assert_eq!(results(&panicked), expected);
        assert!(
            panicked.contains("# Kernel panic - not syncing: x\n"),
            "{panicked}"
        );
        let interrupted = shown(&samples::interrupted());
        let last = "not ok 3 group::third # ERROR not run: interrupted";
        assert_eq!(results(&interrupted).last(), Some(&last));
        let flaky = shown(&samples::flaky());
        let last = "ok 1 group::flaky # flaky: passed on attempt 2";
        assert_eq!(results(&flaky), ["KTAP version 1", "1..1", last]);
    }

    /// What the kernel's own parser (tools/testing/kunit) makes of it: how many passed, failed, were skipped, crashed, and how many lines
    /// it objects to. None where the cache has no source tree of 6.12 yet, or there is no Python.
    fn parsed_by_the_kernel(ktap: &str) -> Option<String> {
        const SCRIPT: &str = "\
import sys
sys.path.insert(0, sys.argv[1])
from kunit_parser import parse_run_tests
c = parse_run_tests(sys.stdin.read().splitlines()).counts
print(c.passed, c.failed, c.skipped, c.crashed, c.errors)
";
        let cache = crate::provision::Context::of_user().ok()?.cache;
        let parser = cache.entry("source", "6.12");
        let parser = parser.dir().join("tree/tools/testing/kunit");
        if !parser.exists() {
            return None;
        }
        let mut python = Command::new("python3")
            .args(["-B", "-c", SCRIPT])
            .arg(parser)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut stdin = python.stdin.take().unwrap();
        stdin.write_all(ktap.as_bytes()).unwrap();
        drop(stdin);
        let output = python.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        said.lines().last().map(str::to_owned)
    }

    #[test]
    fn the_kernels_parser_counts_as_the_run_does() {
        let mut both = samples::mixed();
        both.sessions.extend(samples::not_provided().sessions);
        for (run, counts) in [
            (samples::green(), "1 0 0 0 0"),
            (samples::mixed(), "2 3 1 0 0"),
            (samples::panicked(), "1 1 0 0 0"),
            (samples::interrupted(), "1 2 0 0 0"),
            (samples::flaky(), "1 0 0 0 0"),
            (both, "2 4 1 0 0"),
        ] {
            let ktap = shown(&run);
            if let Some(parsed) = parsed_by_the_kernel(&ktap) {
                assert_eq!(parsed, counts, "{ktap}");
            }
        }
    }

    #[test]
    fn kernels_are_tests_with_subtests() {
        let mut both = samples::green();
        both.sessions.extend(samples::not_provided().sessions);
        let shown = shown(&both);
        let expected = [
            "KTAP version 1",
            "1..2",
            "  KTAP version 1",
            "  1..1",
            "  ok 1 group::passes",
            "ok 1 6.12",
            "  KTAP version 1",
            "  1..1",
            "  not ok 1 group::passes # ERROR not run: there is no kernel to boot",
            "not ok 2 7.3",
        ];
        assert_eq!(results(&shown), expected);
        assert!(
            shown.contains("\n  # there is no kernel to boot: there is no network\n"),
            "{shown}"
        );
    }
}
