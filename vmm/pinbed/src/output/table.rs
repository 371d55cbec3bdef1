// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table for people: a line for each test as it ends, failures in full, and at the end what differs and what is known.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use console::{Style, Term, measure_text_width, truncate_str};
use indicatif::{ProgressBar, ProgressStyle};
use pinbed_abi::report::Finding;

use super::Output;
use super::explain::explain;
use crate::events::printable;
use crate::record::{Environment, Judged, Record};
use crate::verdict::Verdict;
use crate::watch::End;

/// Where the details of a verdict begin.
const INDENT: &str = "         ";
/// Findings shown under a failure.
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
/// Narrower terminals have to wrap.
const NARROWEST: usize = 40;
/// Wider lines are harder to read.
const WIDEST: usize = 120;

/// The table, on standard output.
pub struct Table {
    width: usize,
    name_width: usize,
    live: Option<ProgressBar>,
    group: Option<String>,
    total: usize,
    ended: usize,
    verbose: bool,
    rerun: Box<dyn Fn(&str) -> String>,
}

impl Table {
    /// A table of tests with these names; `rerun` makes the command that runs one test again.
    pub fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        verbose: bool,
        rerun: Box<dyn Fn(&str) -> String>,
    ) -> Self {
        let width = Term::stdout()
            .size_checked()
            .map_or(100, |(_, columns)| usize::from(columns))
            .clamp(NARROWEST, WIDEST);
        let longest = names
            .into_iter()
            .map(|name| last_part(name).len())
            .max()
            .unwrap_or(0);
        let live = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message("booting");
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg:.dim} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let name_width = longest.min(width.saturating_sub(INDENT.len() + 10));
        Table {
            width,
            name_width,
            live,
            group: None,
            total: 0,
            ended: 0,
            verbose,
            rerun,
        }
    }

    fn line(&self, line: &str) -> io::Result<()> {
        // Not console's own, which takes a closed pipe for a success.
        let print = || writeln!(io::stdout(), "{}", line.trim_end());
        match &self.live {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// A titled paragraph under a verdict.
    fn detail(&self, title: &str, style: &Style, text: &str) -> io::Result<()> {
        let title = format!("{title:<10}");
        let indent = format!("{INDENT}{}", " ".repeat(title.len()));
        let options = textwrap::Options::new(self.width)
            .initial_indent(&indent)
            .subsequent_indent(&indent);
        let text = text.lines().map(printable).collect::<Vec<_>>().join("\n");
        for (at, line) in textwrap::wrap(&text, options).iter().enumerate() {
            match at {
                0 => self.line(&format!(
                    "{INDENT}{}{}",
                    style.apply_to(&title),
                    &line[indent.len().min(line.len())..]
                ))?,
                _ => self.line(line)?,
            }
        }
        Ok(())
    }

    /// Lines of a log as they are, but no longer than ours.
    fn log(&self, lines: &[String]) -> io::Result<()> {
        let dim = Style::new().dim();
        for line in lines {
            let line = printable(&line.replace('\t', " "));
            let line = truncate_str(&line, self.width - INDENT.len(), "…");
            self.line(&format!("{INDENT}{}", dim.apply_to(line)))?;
        }
        Ok(())
    }

    /// The part of a kernel log that is worth a look: from the first complaint on, else the end.
    fn dmesg(&self, lines: &[String]) -> io::Result<()> {
        let complaint = lines
            .iter()
            .position(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
        let from = complaint.unwrap_or(lines.len().saturating_sub(DMESG));
        let to = lines.len().min(from + DMESG);
        let left_out = |count: usize, which: &str| match count {
            0 => Ok(()),
            _ => self.log(&[format!("… {count} lines of the kernel log {which}")]),
        };
        left_out(from, "before")?;
        self.log(&lines[from..to])?;
        left_out(lines.len() - to, "after")
    }

    /// Findings, equal ones once.
    fn findings(&self, findings: &[Finding], style: &Style) -> io::Result<()> {
        let mut distinct: Vec<(&Finding, usize)> = Vec::new();
        for finding in findings {
            match distinct.iter_mut().find(|(known, _)| *known == finding) {
                Some((_, times)) => *times += 1,
                None => distinct.push((finding, 1)),
            }
        }
        for (finding, times) in distinct.iter().take(FINDINGS) {
            let times = if *times > 1 {
                format!(" ({times} times)")
            } else {
                String::new()
            };
            self.detail(eye(finding), style, &format!("{}{times}", finding.text))?;
        }
        match distinct.len().saturating_sub(FINDINGS) {
            0 => Ok(()),
            more => self.line(&format!("{INDENT}… {more} more; --json FILE has them all")),
        }
    }

    /// A section at the end: tests with something to say about each.
    fn section<'a>(
        &self,
        title: &str,
        entries: impl Iterator<Item = (&'a Judged, String)>,
    ) -> io::Result<()> {
        for (at, (judged, text)) in entries.enumerate() {
            if at == 0 {
                self.line("")?;
                self.line(title)?;
            }
            let mark = Style::new().apply_to(format!("{:<7}", judged.verdict.name()));
            self.line(&format!(
                "  {}{}",
                style_of(&judged.verdict).apply_to(mark),
                judged.test.name
            ))?;
            let options = textwrap::Options::new(self.width)
                .initial_indent(INDENT)
                .subsequent_indent(INDENT);
            for line in textwrap::wrap(&printable(&text), options) {
                self.line(&line)?;
            }
        }
        Ok(())
    }
}

impl Output for Table {
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
        let kernel = release.as_ref().unwrap_or(kernel);
        let baseline = environment
            .baseline
            .as_deref()
            .unwrap_or("none, so the kernel is held to correctness");
        let dim = Style::new().dim();
        let head = |name: &str, value: &str| {
            self.line(&format!("{} {value}", dim.apply_to(format!("{name:<9}"))))
        };
        head("kernel", &format!("Linux {kernel}"))?;
        let why = accel_reason
            .as_ref()
            .map(|why| format!(", not KVM: {why}"))
            .unwrap_or_default();
        head(
            "machine",
            &format!(
                "QEMU {qemu}, {}, {memory_mib} MiB, {cpus} CPU{}",
                accel.name(),
                if *cpus == 1 { "" } else { "s" }
            ),
        )?;
        if !why.is_empty() {
            head("", why.trim_start_matches(", "))?;
        }
        head("baseline", baseline)
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        if let Some(bar) = &self.live {
            bar.reset_elapsed();
            bar.set_message(format!("{}/{} {name}", self.ended + 1, self.total));
        }
        Ok(())
    }

    fn verdict(&mut self, judged: &Judged) -> io::Result<()> {
        self.ended += 1;
        let group = judged
            .test
            .name
            .split_once("::")
            .map_or("", |(group, _)| group);
        if self.group.as_deref() != Some(group) {
            self.line("")?;
            self.line(&Style::new().bold().apply_to(group).to_string())?;
            self.group = Some(group.to_owned());
        }
        let style = style_of(&judged.verdict);
        let name = last_part(&judged.test.name);
        let padding = " ".repeat(self.name_width.saturating_sub(measure_text_width(name)));
        let mark = if judged.verdict.differs() {
            judged.verdict.name().to_uppercase()
        } else {
            judged.verdict.name().to_owned()
        };
        let time = judged
            .duration_ms
            .map(|ms| format!("{:>6.2} s", Duration::from_millis(ms).as_secs_f64()))
            .unwrap_or_default();
        self.line(&format!(
            "  {}{name}{padding} {}",
            style.apply_to(format!("{mark:<7}")),
            Style::new().dim().apply_to(time)
        ))?;
        if let Verdict::Fail { findings, expected } = &judged.verdict {
            let dim = Style::new().dim();
            self.findings(findings, &style)?;
            if let Some(expected) = expected {
                self.detail(
                    "expected",
                    &dim,
                    &format!("to fail differently: {expected}"),
                )?;
            }
            self.detail("correct", &dim, &judged.test.correct)?;
            self.detail("source", &dim, &judged.test.source)?;
            self.dmesg(&judged.dmesg)?;
            self.detail("again", &dim, &(self.rerun)(&judged.test.name))?;
        }
        if self.verbose {
            for note in &judged.notes {
                self.detail("note", &Style::new().dim(), note)?;
            }
        }
        Ok(())
    }

    fn console(&mut self, line: &str) -> io::Result<()> {
        if self.verbose {
            self.line(
                &Style::new()
                    .dim()
                    .apply_to(format!("console  {line}"))
                    .to_string(),
            )
        } else {
            Ok(())
        }
    }

    fn end(&mut self, record: &Record) -> io::Result<()> {
        if let Some(bar) = self.live.take() {
            bar.finish_and_clear();
        }
        self.section(
            "Known on this kernel",
            record
                .tests
                .iter()
                .filter_map(|judged| match &judged.verdict {
                    Verdict::Xfail {
                        reason, reference, ..
                    } => Some((judged, format!("{reason} ({reference})"))),
                    Verdict::Skip {
                        reason,
                        expected: true,
                    } => Some((judged, reason.clone())),
                    _ => None,
                }),
        )?;
        self.section(
            "Other than the baseline says",
            record
                .tests
                .iter()
                .filter_map(|judged| match &judged.verdict {
                    Verdict::Fail { findings, .. } => Some((
                        judged,
                        findings
                            .first()
                            .map(|finding| format!("{}: {}", eye(finding), finding.text))
                            .unwrap_or_default(),
                    )),
                    Verdict::Fixed { reason } => Some((
                        judged,
                        format!("it passes; take it out of the baseline, which says: {reason}"),
                    )),
                    Verdict::Skip {
                        reason,
                        expected: false,
                    } => Some((judged, reason.clone())),
                    Verdict::Missing { reason } if record.end == End::Done => {
                        Some((judged, reason.clone()))
                    }
                    _ => None,
                }),
        )?;
        if let Some(explanation) = explain(record, &self.rerun) {
            let (red, bold) = (Style::new().red().bold(), Style::new().bold());
            for (title, lines) in &explanation.evidence {
                self.line("")?;
                self.line(&bold.apply_to(title).to_string())?;
                self.log(lines)?;
            }
            self.line("")?;
            self.line(&red.apply_to(printable(&explanation.what)).to_string())?;
            self.line(&format!("{} {}", bold.apply_to("next:"), explanation.next))?;
            let missing = record
                .tests
                .iter()
                .filter(|judged| matches!(judged.verdict, Verdict::Missing { .. }))
                .count();
            if missing > 0 {
                self.line(&format!(
                    "{missing} of {} results are missing, and count as failed",
                    record.tests.len()
                ))?;
            }
        }
        self.line("")?;
        let style = if record.exit == 0 {
            Style::new().green().bold()
        } else {
            Style::new().red().bold()
        };
        self.line(&style.apply_to(record.counts).to_string())
    }
}

fn last_part(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_, last)| last)
}

/// The eye of a finding, as people read it.
pub fn eye(finding: &Finding) -> &'static str {
    use pinbed_abi::report::Eye;
    match finding.eye {
        Eye::Cpu => "cpu",
        Eye::Device => "device",
        Eye::Placement => "placement",
        Eye::Aftermath => "aftermath",
        Eye::Harness => "harness",
    }
}

fn style_of(verdict: &Verdict) -> Style {
    let style = Style::new();
    match verdict {
        Verdict::Pass => style.green(),
        Verdict::Xfail { .. } => style.yellow(),
        Verdict::Skip { expected: true, .. } => style.cyan(),
        Verdict::Fail { .. } | Verdict::Missing { .. } | Verdict::Skip { .. } => style.red().bold(),
        Verdict::Fixed { .. } => style.magenta().bold(),
    }
}
