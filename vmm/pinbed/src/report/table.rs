// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table for people: a line for each test as it ends, failures in full, and at the end what differs and what is known.

use std::io::{self, Write};
use std::time::Duration;

use console::{Style, measure_text_width, style};
use pinbed_abi::report::{Eye, Finding};

use super::explain::explain;
use super::page::{INDENT, Page};
use super::{Output, accel_name};
use crate::judge::verdict::Verdict;
use crate::machine::watch::End;
use crate::report::record::{Environment, Judged, Record};
use crate::text::printable;

/// Findings shown under a failure; all of them are in the JSON file.
const FINDINGS: usize = 8;
/// Lines of the kernel log shown under a failure; all of them are in the JSON file.
const DMESG: usize = 12;
/// Where a kernel's complaint begins.
const COMPLAINTS: [&str; 6] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "KASAN:",
    "general protection",
    "INFO: task",
];
/// How wide a duration is.
const DURATION: usize = 10;

/// The table.
pub struct Table<W> {
    page: Page<W>,
    /// How wide names are.
    names: usize,
    /// The last group that has a heading.
    group: Option<String>,
    total: usize,
    ended: usize,
    verbose: bool,
    rerun: Box<dyn Fn(&str) -> String>,
}

impl<W: Write> Table<W> {
    /// A table of tests with these names on `out`, which is standard output; `rerun` makes the command that runs one test again.
    pub fn new<'a>(
        out: W,
        names: impl IntoIterator<Item = &'a str>,
        verbose: bool,
        rerun: Box<dyn Fn(&str) -> String>,
    ) -> Self {
        let page = Page::new(out);
        page.now("booting".to_owned());
        let longest = names
            .into_iter()
            .map(|name| measure_text_width(parts(name).1))
            .max()
            .unwrap_or(0);
        let names = longest.min(page.width() - INDENT.len() - DURATION);
        Table {
            page,
            names,
            group: None,
            total: 0,
            ended: 0,
            verbose,
            rerun,
        }
    }

    /// What a failure is.
    fn failure(
        &mut self,
        judged: &Judged,
        findings: &[Finding],
        expected: Option<&str>,
    ) -> io::Result<()> {
        let distinct = distinct(findings);
        for (finding, times) in distinct.iter().take(FINDINGS) {
            let times = if *times > 1 {
                format!(" ({times} times)")
            } else {
                String::new()
            };
            self.page.titled(
                style(eye(finding)).red(),
                &format!("{}{times}", finding.text),
            )?;
        }
        if let Some(more @ 1..) = distinct.len().checked_sub(FINDINGS) {
            self.page
                .text(&format!("… {more} more findings; --json FILE has them all"))?;
        }
        if let Some(expected) = expected {
            self.page.titled(
                style("expected").dim(),
                &format!("another failure: {expected}"),
            )?;
        }
        self.page
            .titled(style("correct").dim(), &judged.test.correct)?;
        self.page
            .titled(style("source").dim(), &judged.test.source)?;
        self.dmesg(&judged.dmesg)?;
        self.page
            .titled(style("again").dim(), &(self.rerun)(&judged.test.name))
    }

    /// The part of a kernel log that is worth a look: from the first complaint on, else the end.
    fn dmesg(&mut self, lines: &[String]) -> io::Result<()> {
        let complains = |line: &String| COMPLAINTS.iter().any(|word| line.contains(word));
        let from = lines
            .iter()
            .position(complains)
            .unwrap_or(lines.len().saturating_sub(DMESG));
        let to = lines.len().min(from + DMESG);
        let left_out = |count: usize, which: &str| match count {
            0 => String::new(),
            1 => format!("… a line of the kernel log {which}"),
            _ => format!("… {count} lines of the kernel log {which}"),
        };
        let (before, after) = (
            left_out(from, "before"),
            left_out(lines.len() - to, "after"),
        );
        let shown = lines[from..to].iter().map(String::as_str);
        let all = [before.as_str()]
            .into_iter()
            .chain(shown)
            .chain([after.as_str()]);
        self.page.log(all.filter(|line| !line.is_empty()))
    }

    /// A section at the end: tests with something to say about each.
    fn section(
        &mut self,
        title: &str,
        tests: &[Judged],
        say: impl Fn(&Verdict) -> Option<String>,
    ) -> io::Result<()> {
        // Tests with the same thing to say stand together, where the first of them stood.
        let mut entries: Vec<(String, Vec<&Judged>)> = Vec::new();
        for judged in tests {
            let Some(text) = say(&judged.verdict) else {
                continue;
            };
            match entries.iter_mut().find(|(known, _)| *known == text) {
                Some((_, same)) => same.push(judged),
                None => entries.push((text, vec![judged])),
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.page.line("")?;
        self.page.line(style(title).bold())?;
        for (text, same) in entries {
            for judged in same {
                self.page
                    .line(format!("  {}{}", mark(&judged.verdict), judged.test.name))?;
            }
            self.page.text(&text)?;
        }
        Ok(())
    }
}

impl<W: Write> Output for Table<W> {
    fn begin(&mut self, environment: &Environment, total: usize) -> io::Result<()> {
        self.total = total;
        let Environment {
            release,
            kernel,
            qemu,
            accel,
            accel_reason,
            memory_mib,
            cpus,
            ..
        } = environment;
        let plural = if *cpus == 1 { "" } else { "s" };
        let machine = format!(
            "QEMU {qemu}, {}, {memory_mib} MiB, {cpus} CPU{plural}",
            accel_name(*accel)
        );
        let baseline = match &environment.baseline {
            Some(kernel) => format!("images/baselines, of {kernel}"),
            None => "none, so the kernel is held to correctness".to_owned(),
        };
        let mut head = |name: &str, value: &str| {
            self.page
                .line(format!("{} {value}", style(format!("{name:<9}")).dim()))
        };
        head(
            "kernel",
            &format!("Linux {}", release.as_ref().unwrap_or(kernel)),
        )?;
        head("machine", &machine)?;
        if let Some(why) = accel_reason {
            head("not KVM", why)?;
        }
        head("baseline", &baseline)
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        self.page
            .now(format!("{}/{} {name}", self.ended + 1, self.total));
        Ok(())
    }

    fn verdict(&mut self, judged: &Judged) -> io::Result<()> {
        self.ended += 1;
        let (group, name) = parts(&judged.test.name);
        if self.group.as_deref() != Some(group) {
            self.group = Some(group.to_owned());
            self.page.line("")?;
            self.page.line(style(group).bold())?;
        }
        let padding = " ".repeat(self.names.saturating_sub(measure_text_width(name)));
        let seconds = |ms| Duration::from_millis(ms).as_secs_f64();
        let time = judged
            .duration_ms
            .map_or(String::new(), |ms| format!("{:>6.2} s", seconds(ms)));
        self.page.line(format!(
            "  {}{name}{padding} {}",
            mark(&judged.verdict),
            style(time).dim()
        ))?;
        if let Verdict::Fail { findings, expected } = &judged.verdict {
            self.failure(judged, findings, expected.as_deref())?;
        }
        if self.verbose {
            for note in &judged.notes {
                self.page.titled(style("note").dim(), note)?;
            }
        }
        Ok(())
    }

    fn console(&mut self, line: &str) -> io::Result<()> {
        match self.verbose {
            true => self.page.line(style(format!("console  {line}")).dim()),
            false => Ok(()),
        }
    }

    fn end(&mut self, record: &Record) -> io::Result<()> {
        self.page.still();
        self.section(
            "Known on this kernel",
            &record.tests,
            |verdict| match verdict {
                Verdict::Xfail {
                    reason, reference, ..
                } => Some(format!("{reason} ({reference})")),
                Verdict::Skip {
                    reason,
                    expected: true,
                } => Some(reason.clone()),
                _ => None,
            },
        )?;
        let title = match record.environment.baseline {
            Some(_) => "Other than the baseline says",
            None => "Other than correct",
        };
        self.section(title, &record.tests, |verdict| match verdict {
            Verdict::Fail { findings, .. } => findings
                .first()
                .map(|finding| format!("{}: {}", eye(finding), finding.text)),
            Verdict::Fixed { reason } => Some(format!(
                "it passes; take it out of the baseline, which says: {reason}"
            )),
            Verdict::Skip {
                reason,
                expected: false,
            } => Some(reason.clone()),
            // After another end they are many, and all have the same reason.
            Verdict::Missing { reason } if record.end == End::Done => Some(reason.clone()),
            _ => None,
        })?;
        if let Some(explanation) = explain(record, &self.rerun) {
            for (title, lines) in &explanation.evidence {
                self.page.line("")?;
                self.page.line(style(title).bold())?;
                self.page.log(lines.iter().map(String::as_str))?;
            }
            self.page.line("")?;
            self.page
                .line(style(printable(&explanation.what)).red().bold())?;
            self.page
                .line(format!("{} {}", style("next:").bold(), explanation.next))?;
            let missing = |judged: &&Judged| matches!(judged.verdict, Verdict::Missing { .. });
            let (missing, all) = (
                record.tests.iter().filter(missing).count(),
                record.tests.len(),
            );
            if missing > 0 {
                self.page.line(format!(
                    "{missing} of {all} results are missing, and count as failed"
                ))?;
            }
        }
        self.page.line("")?;
        let colour = if record.exit == 0 {
            Style::new().green()
        } else {
            Style::new().red()
        };
        self.page.line(colour.bold().apply_to(record.counts))
    }
}

/// How several kernels did, a line for each, after the tables of their own.
pub fn summary(out: &mut impl Write, records: &[Record]) -> io::Result<()> {
    let width = records
        .iter()
        .map(|record| measure_text_width(record.name()))
        .max()
        .unwrap_or(0);
    writeln!(out, "\n{}", style("All kernels").bold())?;
    for record in records {
        let (word, colour) = match (record.exit, &record.end) {
            (0, _) => ("green", Style::new().green()),
            (_, End::Done) => ("RED", Style::new().red().bold()),
            (_, End::NotProvided { .. }) => ("NO KERNEL", Style::new().red().bold()),
            _ => ("BAD END", Style::new().red().bold()),
        };
        let time =
            Duration::from_millis(record.times.ended.saturating_sub(record.times.qemu_started));
        writeln!(
            out,
            "  {:width$}  {}  {}  {}",
            record.name(),
            colour.apply_to(format!("{word:<9}")),
            record.counts,
            style(format!("{:.0} s", time.as_secs_f64())).dim()
        )?;
    }
    Ok(())
}

/// The group and the rest of a name.
fn parts(name: &str) -> (&str, &str) {
    name.split_once("::").unwrap_or(("", name))
}

/// The verdict's name in its colour; louder if it differs.
fn mark(verdict: &Verdict) -> String {
    let mut name = format!("{:<7}", verdict.name());
    let mut colour = match verdict {
        Verdict::Pass => Style::new().green(),
        Verdict::Xfail { .. } => Style::new().yellow(),
        Verdict::Fixed { .. } => Style::new().magenta(),
        Verdict::Skip { expected: true, .. } => Style::new().cyan(),
        Verdict::Skip { .. } | Verdict::Fail { .. } | Verdict::Missing { .. } => Style::new().red(),
    };
    if verdict.differs() {
        name.make_ascii_uppercase();
        colour = colour.bold();
    }
    colour.apply_to(name).to_string()
}

/// Findings without repetitions, and how often each is there.
fn distinct(findings: &[Finding]) -> Vec<(&Finding, usize)> {
    let mut distinct: Vec<(&Finding, usize)> = Vec::new();
    for finding in findings {
        match distinct.iter_mut().find(|(known, _)| *known == finding) {
            Some((_, times)) => *times += 1,
            None => distinct.push((finding, 1)),
        }
    }
    distinct
}

/// The eye of a finding, as people read it.
pub fn eye(finding: &Finding) -> &'static str {
    match finding.eye {
        Eye::Cpu => "cpu",
        Eye::Device => "device",
        Eye::Placement => "placement",
        Eye::Aftermath => "aftermath",
        Eye::Harness => "harness",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn shown(record: &Record) -> String {
        console::set_colors_enabled(false);
        let mut out = Vec::new();
        let names = record.tests.iter().map(|judged| judged.test.name.as_str());
        let mut table = Table::new(
            &mut out,
            names,
            false,
            Box::new(|test| format!("pinbed run {test}")),
        );
        samples::tell(record, &mut table);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_last_line_counts() {
        assert_eq!(
            shown(&samples::mixed()).lines().last(),
            Some("2 passed, 3 failed, 1 skipped")
        );
        assert_eq!(
            shown(&samples::green()).lines().last(),
            Some("1 passed, 0 failed")
        );
    }

    #[test]
    fn a_failure_says_what_was_seen_what_is_correct_and_how_to_see_it_again() {
        let shown = shown(&samples::mixed());
        for line in [
            "  FAIL   unknown_failure   0.02 s",
            "         cpu       byte 0 is 1, expected 2 (2 times)",
            "         correct   The device reads what the process wrote.",
            "         source    a thread",
            "         WARNING: CPU: 0 PID: 1 at mm/gup.c:1",
            "         again     pinbed run group::unknown_failure",
        ] {
            assert!(
                shown.lines().any(|it| it == line),
                "lacks {line:?}:\n{shown}"
            );
        }
    }

    #[test]
    fn what_is_known_and_what_differs_is_listed_with_reasons() {
        let shown = shown(&samples::mixed());
        for part in [
            "Known on this kernel\n  xfail  group::known_failure\n         it never worked (a commit)\n",
            "  skip   group::lacking\n         no heap\n",
            "Other than the baseline says\n  FAIL   group::unknown_failure\n         cpu: byte 0 is 1, expected 2\n",
            "  FIXED  other::works_now\n         it passes; take it out of the baseline, which says: broken\n",
            "  SKIP   other::gone\n         no /dev/video0\n",
        ] {
            assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
        }
    }

    #[test]
    fn a_reason_that_several_tests_share_is_said_once() {
        let mut record = samples::mixed();
        let mut again = record.tests[2].clone();
        again.test.name = "other::known_too".into();
        record.tests.push(again);
        let shown = shown(&record);
        assert!(
            shown.contains(
                "  xfail  group::known_failure\n  xfail  other::known_too\n         it never worked (a commit)\n  skip   group::lacking\n"
            ),
            "{shown}"
        );
        assert_eq!(shown.matches("it never worked").count(), 1, "{shown}");
    }

    #[test]
    fn a_bad_end_comes_with_its_evidence_and_what_to_do_next() {
        let shown = shown(&samples::panicked());
        for part in [
            "the console's last lines\n         Kernel panic - not syncing: x\n",
            "the guest kernel panicked during group::passes: Kernel panic - not syncing: x\n\
             next: run it alone with its logs kept: pinbed run group::passes --keep\n\
             1 of 1 results are missing, and count as failed\n",
        ] {
            assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
        }
    }

    #[test]
    fn the_summary_has_a_line_for_each_kernel() {
        let mut out = Vec::new();
        summary(&mut out, &[samples::mixed(), samples::not_provided()]).unwrap();
        let shown = console::strip_ansi_codes(&String::from_utf8(out).unwrap()).into_owned();
        for line in [
            "  6.12  RED        2 passed, 3 failed, 1 skipped  0 s\n",
            "  7.3   NO KERNEL  0 passed, 1 failed  0 s\n",
        ] {
            assert!(shown.contains(line), "lacks {line:?}:\n{shown}");
        }
    }
}
