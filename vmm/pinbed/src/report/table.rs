// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table for people: a line for each group of tests with its counts and time, whatever differs from the baseline in full, and known
//! failures as a count. With `verbose` a line for each test, its notes, the console and the reasons of known failures.

use std::io::{self, Write};
use std::time::Duration;

use console::{Style, Term, measure_text_width, style};
use pinbed_abi::report::{Eye, Finding, TestInfo};

use super::again::Rerun;
use super::collect::Collector;
use super::event::{Event, What};
use super::page::{INDENT, Page};
use super::record::{Environment, Judged, Session, StartedBy};
use super::{Error, Reporter, accel_name, explain, parts};
use crate::judge::verdict::{Counts, Verdict};
use crate::machine::watch::End;
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
/// What a note begins with that says who holds what is left.
const HOLDER: &str = "holder: ";
/// How wide a duration is.
const DURATION: usize = 10;
/// How wide a count is in the line of a group, and how wide the time.
const CELL: usize = 12;
const TIME: usize = 9;
/// How many names a list of tests has before it is cut.
const NAMES: usize = 20;

/// The table.
pub struct Table<W: Write> {
    page: Page<W>,
    verbose: bool,
    rerun: Rerun,
    collector: Collector,
    kernels: usize,
    groups: Vec<Group>,
    /// How wide names of groups are, or of tests if each has a line.
    names: usize,
    /// The boots that go on, and the test that runs in each.
    running: Vec<(usize, String)>,
}

/// The tests of a group in this session.
#[derive(Default)]
struct Group {
    name: String,
    left: usize,
    counts: Counts,
    time_ms: u64,
    shown: bool,
}

impl<W: Write> Table<W> {
    /// A table on `out`, which is this terminal, if it is one; `rerun` makes the command that runs one test again.
    pub fn new(out: W, terminal: &Term, verbose: bool, rerun: Rerun) -> Self {
        let page = Page::new(out, terminal);
        Table {
            page,
            verbose,
            rerun,
            collector: Collector::default(),
            kernels: 1,
            groups: Vec::new(),
            names: 0,
            running: Vec::new(),
        }
    }

    /// What the tests run on, and which there are.
    fn begin(&mut self, environment: &Environment, plan: &[TestInfo]) -> io::Result<()> {
        self.groups.clear();
        for test in plan {
            let (name, _) = parts(&test.name);
            match self.groups.iter_mut().find(|group| group.name == name) {
                Some(group) => group.left += 1,
                None => self.groups.push(Group {
                    name: name.to_owned(),
                    left: 1,
                    ..Group::default()
                }),
            }
        }
        let widths = plan.iter().map(|test| match self.verbose {
            true => measure_text_width(&test.name),
            false => measure_text_width(parts(&test.name).0),
        });
        let most = self.page.width() - INDENT.len() - DURATION;
        self.names = widths.max().unwrap_or(0).min(most);
        if self.kernels > 1 {
            self.page.line("")?;
        }
        let plural = if environment.cpus == 1 { "" } else { "s" };
        let machine = format!(
            "QEMU {}, {}, {} MiB, {} CPU{plural}{}",
            environment.qemu,
            accel_name(environment.accel),
            environment.memory_mib,
            environment.cpus,
            match environment.start {
                Some(StartedBy::Warm) => ", warm start",
                Some(StartedBy::Cold) | None => "",
            }
        );
        let baseline = match &environment.baseline {
            Some(kernel) => format!("images/baselines, of {kernel}"),
            None => "none, so the kernel is held to correctness".to_owned(),
        };
        let release = environment.release.as_ref();
        let mut kernel = release.map_or(environment.kernel.clone(), |r| format!("Linux {r}"));
        if release.is_some_and(|release| !release.starts_with(&environment.kernel)) {
            kernel += &format!(", {}", environment.kernel);
        }
        if let Some(revision) = &environment.tree_revision {
            kernel += &format!(", {revision}");
        }
        self.head("kernel", &kernel)?;
        self.head("machine", &machine)?;
        if let Some(name) = &environment.env {
            self.head("env", name)?;
        }
        if !environment.faults.is_empty() {
            self.head("faults", &environment.faults.join(" "))?;
        }
        if let Some(why) = &environment.accel_reason {
            self.head("not KVM", why)?;
        }
        self.head("baseline", &baseline)?;
        if let Some(seed) = environment.shuffle {
            self.head("order", &format!("shuffled; --shuffle={seed} repeats it"))?;
        }
        self.page.line("")?;
        self.page.count_to(plan.len());
        self.page.now("booting".to_owned());
        Ok(())
    }

    fn head(&mut self, name: &str, value: &str) -> io::Result<()> {
        let name = format!("{name:<9} ");
        self.page
            .beside(&style(&name).dim().to_string(), name.len(), value)
    }

    /// Shows what runs now.
    fn now(&self) {
        let names: Vec<_> = self.running.iter().map(|(_, name)| name.as_str()).collect();
        self.page.now(names.join("  "));
    }

    fn verdict(&mut self, judged: &Judged) -> io::Result<()> {
        let differs = judged.verdict.differs();
        let ran = judged.duration_ms.is_some() || judged.boot.is_some();
        if self.verbose || ran && (differs || judged.attempt > 1) {
            self.test(judged)?;
        }
        if let Verdict::Fail { findings, expected } = &judged.verdict {
            self.failure(judged, findings, expected.as_deref())?;
        } else if differs
            && ran
            && let Some(text) = differs_because(&judged.verdict)
        {
            self.page.text(&text)?;
        }
        if self.verbose {
            for note in &judged.notes {
                self.page.titled(style("note").dim(), note)?;
            }
        }
        if judged.retried {
            return Ok(());
        }
        self.page.count();
        let (name, _) = parts(&judged.test.name);
        let Some(at) = self.groups.iter().position(|group| group.name == name) else {
            return Ok(());
        };
        let group = &mut self.groups[at];
        group.left = group.left.saturating_sub(1);
        group.counts.add(&judged.verdict, judged.attempt > 1);
        group.time_ms += judged.duration_ms.unwrap_or(0);
        if group.left == 0 {
            self.group(at)?;
        }
        Ok(())
    }

    /// The line of a test.
    fn test(&mut self, judged: &Judged) -> io::Result<()> {
        let name = &judged.test.name;
        let padding = " ".repeat(self.names.saturating_sub(measure_text_width(name)));
        let time = judged.duration_ms.map_or(String::new(), seconds);
        let attempt = match (judged.retried, judged.attempt) {
            (true, attempt) => format!("  attempt {attempt}, is tried again"),
            (false, 2..) => format!("  flaky: attempt {}", judged.attempt),
            (false, _) => String::new(),
        };
        self.page.line(format!(
            "  {}{name}{padding} {}{attempt}",
            mark(&judged.verdict),
            style(time).dim()
        ))
    }

    /// The line of a group that has all its verdicts.
    fn group(&mut self, at: usize) -> io::Result<()> {
        let group = &mut self.groups[at];
        if std::mem::replace(&mut group.shown, true) || self.verbose {
            return Ok(());
        }
        let counts = group.counts;
        let plain = Style::new;
        let cells = [
            (counts.passed - counts.known, "passed", plain().green()),
            (counts.known, "known", plain().yellow()),
            (counts.skipped, "skipped", plain().cyan()),
        ];
        let time = seconds(group.time_ms).trim().to_owned();
        let bad = [
            (counts.failed, "FAILED", plain().red().bold()),
            (counts.not_run, "NOT RUN", plain().red()),
        ];
        let text = |count: usize, what: &str| match count {
            0 => String::new(),
            _ => format!("{count} {what}"),
        };
        let counted = |(count, what, colour): (usize, &str, Style)| (text(count, what), colour);
        let narrow = self.page.width() < 2 + self.names + 2 + CELL * cells.len() + TIME;
        let pad = |(text, colour): (String, Style)| match narrow {
            true => (text, colour),
            false => (format!("{text:<cell$}", cell = CELL - 2), colour),
        };
        let time = match narrow {
            true => time,
            false => format!("{time:>width$}", width = TIME),
        };
        let cells = (cells.into_iter().map(counted).map(pad))
            .chain([(time, plain().dim())])
            .chain(bad.into_iter().map(counted))
            .filter(|(text, _)| !text.is_empty());

        let indent = 2 + self.names + 2;
        let mut line = format!("  {:names$}", group.name, names = self.names);
        let mut width = indent - 2;
        for (text, colour) in cells {
            let columns = 2 + measure_text_width(&text);
            if width + columns > self.page.width() && width > indent {
                self.page.line(&line)?;
                (line, width) = (" ".repeat(indent - 2), indent - 2);
            }
            line += &format!("  {}", colour.apply_to(text));
            width += columns;
        }
        self.page.line(line)
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
        let notes = judged.notes.iter().filter(|_| !self.verbose);
        for holder in notes.filter_map(|note| note.strip_prefix(HOLDER)) {
            self.page.titled(style("holder").dim(), holder)?;
        }
        let hang = judged.hang.as_deref().map(explain::evidence);
        for (title, lines) in hang.unwrap_or_default() {
            self.page.text(&format!("{title} when it timed out"))?;
            let lines: Vec<_> = lines.iter().map(|line| format!("  {line}")).collect();
            self.page.log(lines.iter().map(String::as_str))?;
        }
        self.dmesg(&judged.dmesg)?;
        let Some(session) = self.collector.session() else {
            return Ok(());
        };
        let again = (self.rerun)(&session.environment, &judged.test.name);
        self.page.titled(style("again").dim(), &again.run)?;
        self.page.titled(style("debug").dim(), &again.debug)
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

    /// What ended badly.
    fn explain(&mut self, explanation: Option<explain::Explanation>) -> io::Result<()> {
        let Some(explanation) = explanation else {
            return Ok(());
        };
        for (title, lines) in &explanation.evidence {
            self.page.line("")?;
            self.page.line(style(title).bold())?;
            self.page.log(lines.iter().map(String::as_str))?;
        }
        self.page.line("")?;
        for what in &explanation.what {
            self.page.line(style(printable(what)).red().bold())?;
        }
        // Not wrapped: there is a command in it.
        self.page
            .line(format!("{} {}", style("next:").bold(), explanation.next))?;
        self.page.line("")
    }

    /// What there is to say at the end of a session.
    fn end(&mut self, session: &Session) -> io::Result<()> {
        for at in 0..self.groups.len() {
            self.group(at)?;
        }
        let explanation = explain::session(session, self.rerun.as_ref());
        self.explain(explanation)?;
        if self.verbose {
            self.known(session)?;
        }
        let differing: Vec<_> = session
            .results()
            .filter(|(last, _)| last.verdict.differs() && last.boot.is_some())
            .map(|(last, _)| last)
            .collect();
        if !differing.is_empty() {
            let title = match session.environment.baseline {
                Some(_) => "Other than the baseline says",
                None => "Other than correct",
            };
            self.page.line("")?;
            self.page.line(style(title).bold())?;
            for judged in differing.iter().take(NAMES) {
                let name = &judged.test.name;
                self.page
                    .line(format!("  {}{name}", mark(&judged.verdict)))?;
                if let Some(text) = differs_because(&judged.verdict) {
                    self.page.text(&text)?;
                }
            }
            if let Some(more @ 1..) = differing.len().checked_sub(NAMES) {
                self.page
                    .line(format!("  … {more} more; --json FILE has them all"))?;
            }
        }
        self.page.line("")?;
        let counts = session.summary.counts;
        if counts.known > 0 && !self.verbose {
            let kernel = session.environment.baseline.as_deref().unwrap_or_default();
            let (known, them, reasons) = match counts.known {
                1 => ("is a known failure", "it", "its reason"),
                _ => ("are known failures", "them", "reasons"),
            };
            let text = format!(
                "{} of those that passed {known} of this kernel; `pinbed known --kernel {kernel}` lists {them} with {reasons}",
                counts.known
            );
            self.page.beside("", 0, &text)?;
        }
        if counts.flaky > 0 {
            self.page.line(format!(
                "{} passed only when tried again: flaky",
                counts.flaky
            ))?;
        }
        let colour = if session.summary.exit == 0 {
            Style::new().green()
        } else {
            Style::new().red()
        };
        self.page.line(colour.bold().apply_to(counts))
    }

    /// Known failures and skips with their reasons; tests with the same reason stand together, where the first of them stood.
    fn known(&mut self, session: &Session) -> io::Result<()> {
        let mut entries: Vec<(String, Vec<&Judged>)> = Vec::new();
        for (judged, _) in session.results() {
            let text = match &judged.verdict {
                Verdict::Xfail {
                    reason, reference, ..
                } => format!("{reason} ({reference})"),
                Verdict::Skip {
                    reason,
                    expected: true,
                } => reason.clone(),
                _ => continue,
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
        self.page.line(style("Known on this kernel").bold())?;
        for (text, same) in entries {
            for judged in same {
                let name = &judged.test.name;
                self.page
                    .line(format!("  {}{name}", mark(&judged.verdict)))?;
            }
            self.page.text(&text)?;
        }
        Ok(())
    }

    fn write(&mut self, what: &What) -> io::Result<()> {
        match what {
            What::RunStarted { kernels, .. } => {
                self.kernels = kernels.len();
                Ok(())
            }
            What::SessionStarted {
                environment, plan, ..
            } => self.begin(environment, plan),
            What::BootStarted { .. } => Ok(()),
            What::GuestUp { .. } => Ok(()),
            What::TestStarted { boot, name, .. } => {
                self.running.retain(|(of, _)| of != boot);
                self.running.push((*boot, name.clone()));
                self.now();
                Ok(())
            }
            What::Console { line, .. } => match self.verbose {
                true => self.page.line(style(format!("console  {line}")).dim()),
                false => Ok(()),
            },
            What::TestFinished { judged, .. } => self.verdict(judged),
            What::BootFinished { ended, .. } => {
                self.running.retain(|(of, _)| *of != ended.boot);
                self.now();
                // A known end is evidence of nothing new.
                let explanation = match ended.known && !self.verbose {
                    true => None,
                    false => self.collector.session().and_then(|session| {
                        explain::boot(ended, &session.environment, self.rerun.as_ref())
                    }),
                };
                self.explain(explanation)
            }
            What::SessionFinished { .. } => {
                // Taken out while it is shown.
                let collector = std::mem::take(&mut self.collector);
                let result = match collector.session() {
                    Some(session) => self.end(session),
                    None => Ok(()),
                };
                self.collector = collector;
                result
            }
            What::RunFinished { .. } => {
                self.page.still();
                let collector = std::mem::take(&mut self.collector);
                match collector.run() {
                    Some(run) if self.kernels > 1 => self.summary(&run.sessions),
                    _ => Ok(()),
                }
            }
        }
    }

    /// How several kernels did, a line for each.
    fn summary(&mut self, sessions: &[Session]) -> io::Result<()> {
        let width = sessions
            .iter()
            .map(|session| measure_text_width(session.name()))
            .max()
            .unwrap_or(0);
        self.page.line("")?;
        self.page.line(style("All kernels").bold())?;
        for session in sessions {
            let summary = &session.summary;
            let (word, colour) = match (summary.exit, &summary.end) {
                (0, _) => ("green", Style::new().green()),
                (_, End::Done) => ("RED", Style::new().red().bold()),
                (_, End::NotProvided { .. }) => ("NO KERNEL", Style::new().red().bold()),
                (_, End::Interrupted { .. }) => ("STOPPED", Style::new().red().bold()),
                _ => ("BAD END", Style::new().red().bold()),
            };
            let began = summary.times.qemu_started.unwrap_or(summary.times.ended);
            let time = Duration::from_millis(summary.times.ended.saturating_sub(began));
            self.page.line(format!(
                "  {:width$}  {}  {}  {}",
                session.name(),
                colour.apply_to(format!("{word:<9}")),
                summary.counts,
                style(format!("{:.0} s", time.as_secs_f64())).dim()
            ))?;
        }
        Ok(())
    }
}

impl<W: Write> Reporter for Table<W> {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        self.collector.hear(event);
        self.write(&event.what).map_err(Error::stdout)
    }
}

/// Why a verdict other than a failure, whose findings say it, differs from the baseline; of a failure, its first finding.
fn differs_because(verdict: &Verdict) -> Option<String> {
    match verdict {
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
        _ => None,
    }
}

fn seconds(ms: u64) -> String {
    format!("{:>6.2} s", Duration::from_millis(ms).as_secs_f64())
}

/// The verdict's name in its colour; louder if it differs.
fn mark(verdict: &Verdict) -> String {
    let mut name = format!("{:<8}", verdict.name().replace('_', " "));
    let mut colour = match verdict {
        Verdict::Pass => Style::new().green(),
        Verdict::Xfail { .. } => Style::new().yellow(),
        Verdict::Fixed { .. } => Style::new().magenta(),
        Verdict::Skip { expected: true, .. } => Style::new().cyan(),
        Verdict::Skip { .. } | Verdict::Fail { .. } | Verdict::NotRun { .. } => Style::new().red(),
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
        Eye::Premise => "premise",
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::report::record::Run;
    use crate::report::samples;

    fn shown_as(run: &Run, verbose: bool) -> String {
        shown_at(run, verbose, None)
    }

    fn shown_at(run: &Run, verbose: bool, width: Option<usize>) -> String {
        console::set_colors_enabled(false);
        let mut out = Vec::new();
        let rerun: Rerun =
            Rc::new(|_, test| super::super::again::Again::new("pinbed", test, &[], &[]));
        // Not a terminal in a test.
        let mut table = Table::new(&mut out, &Term::stdout(), verbose, rerun);
        if let Some(width) = width {
            table.page.set_width(width);
        }
        samples::tell(run, &mut table);
        drop(table);
        String::from_utf8(out).unwrap()
    }

    fn shown(run: &Run) -> String {
        shown_as(run, false)
    }

    #[test]
    fn the_last_line_counts() {
        for (run, line) in [
            (samples::mixed(), "2 passed, 3 failed, 1 skipped"),
            (samples::green(), "1 passed, 0 failed"),
            (samples::interrupted(), "1 passed, 0 failed, 2 not run"),
        ] {
            assert_eq!(shown(&run).lines().last(), Some(line));
        }
    }

    #[test]
    fn a_green_run_has_a_line_for_each_group() {
        let shown = shown(&samples::green());
        let expected =
            "\n  group  1 passed                               0.02 s\n\n1 passed, 0 failed\n";
        assert!(shown.ends_with(expected), "{shown}");
        assert!(!shown.contains("group::passes"), "{shown}");
        let verbose = shown_as(&samples::green(), true);
        assert!(verbose.contains("  pass    group::passes"), "{verbose}");
        assert!(verbose.contains("note      a fact"), "{verbose}");
    }

    #[test]
    fn on_a_narrow_terminal_no_line_but_a_name_is_wider() {
        for run in [samples::mixed(), samples::green(), samples::flaky()] {
            for width in [40, 60] {
                for verbose in [false, true] {
                    let shown = shown_at(&run, verbose, Some(width));
                    for line in shown.lines().filter(|line| !line.contains("::")) {
                        let columns = measure_text_width(line);
                        assert!(columns <= width, "{columns} of {width}: {line}\n{shown}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_failure_says_what_was_seen_what_is_correct_and_how_to_see_it_again() {
        let shown = shown(&samples::mixed());
        for line in [
            "  FAIL    group::unknown_failure   0.02 s",
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
    fn what_is_known_is_counted_and_what_differs_is_listed_with_reasons() {
        let shown = shown(&samples::mixed());
        for part in [
            "1 of those that passed is a known failure of this kernel; `pinbed known --kernel 6.12` lists it",
            "Other than the baseline says\n  FAIL    group::unknown_failure\n         cpu: byte 0 is 1, expected 2\n",
            "  FIXED   other::works_now\n         it passes; take it out of the baseline, which says: broken\n",
            "  SKIP    other::gone\n         no /dev/video0\n",
        ] {
            assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
        }
        assert!(!shown.contains("it never worked"), "{shown}");
        let verbose = shown_as(&samples::mixed(), true);
        let known = "Known on this kernel\n  xfail   group::known_failure\n         it never worked (a commit)\n";
        assert!(verbose.contains(known), "{verbose}");
    }

    #[test]
    fn the_first_report_is_the_headline_of_a_bad_end() {
        let shown = shown(&samples::panicked());
        for part in [
            "the console's last lines\n         Kernel panic - not syncing: x\n",
            "\nkernel BUG at mm/gup.c:1! during group::ends_it\n\
             the guest kernel panicked: Kernel panic - not syncing: x\n\
             next: run it alone with its logs kept: pinbed run group::ends_it --keep; or in a debugger: pinbed debug group::ends_it\n",
            "1 passed, 1 failed\n",
        ] {
            assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
        }
    }

    #[test]
    fn an_attempt_that_is_tried_again_is_shown() {
        let shown = shown(&samples::flaky());
        for part in [
            "FAIL    group::flaky   0.02 s  attempt 1, is tried again\n",
            "pass    group::flaky   0.02 s  flaky: attempt 2\n",
            "1 passed only when tried again: flaky\n",
        ] {
            assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
        }
    }

    #[test]
    fn the_summary_has_a_line_for_each_kernel() {
        let mut both = samples::mixed();
        both.sessions.extend(samples::not_provided().sessions);
        let shown = shown(&both);
        for line in [
            "  6.12  RED        2 passed, 3 failed, 1 skipped  0 s\n",
            "  7.3   NO KERNEL  0 passed, 0 failed, 1 not run  0 s\n",
        ] {
            assert!(shown.contains(line), "lacks {line:?}:\n{shown}");
        }
    }
}
