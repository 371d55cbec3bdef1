// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed compare`: what changed between two results, on one screen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use anyhow::Result;
use console::Style;

use crate::cli::CompareArgs;
use crate::exit::Exit;
use crate::judge::verdict::Verdict;
use crate::report::record::{Judged, Session};
use crate::report::result::{self, Named};

/// How many tests of a kind of change are shown, unless all are asked for.
const SHOWN: usize = 8;
/// A duration that changed by less says nothing: tests wait for timers, and hosts are busy.
const SLOWER_BY_MS: u64 = 500;
/// Nor does one that changed by a smaller factor.
const SLOWER_TIMES: u64 = 3;

/// Compares them: exit code 0 if each test came to the same on both sides, else 1.
///
/// # Errors
/// When a result cannot be read, or the output cannot be written.
pub fn compare(args: &CompareArgs) -> Result<Exit> {
    let (a, b) = (result::find(&args.a)?, result::find(&args.b)?);
    let mut out = io::stdout().lock();
    let changes = Changes::between(&a, &b);
    let most = if args.all { usize::MAX } else { SHOWN };
    changes.show(&a, &b, most, &mut out)?;
    Ok(match changes.is_empty() {
        true => Exit::Green,
        false => Exit::Differs,
    })
}

/// What a test came to: the worst of its repetitions.
#[derive(Clone, Debug)]
struct Came<'a> {
    verdict: &'a Verdict,
    duration_ms: Option<u64>,
}

impl Came<'_> {
    /// How a failure shows: who saw what, numbers left aside, since addresses and counts differ from run to run.
    fn symptoms(&self) -> BTreeSet<String> {
        match self.verdict {
            Verdict::Fail { findings, .. } | Verdict::Xfail { findings, .. } => findings
                .iter()
                .map(|found| format!("{:?}: {}", found.eye, without_numbers(&found.text)))
                .collect(),
            _ => BTreeSet::new(),
        }
    }

    /// The first thing that there is to say of it.
    fn detail(&self) -> String {
        match self.verdict {
            Verdict::Fail { findings, .. } | Verdict::Xfail { findings, .. } => {
                findings.first().map_or(String::new(), |found| {
                    let eye = format!("{:?}", found.eye).to_lowercase();
                    format!("{eye}: {}", found.text)
                })
            }
            Verdict::Skip { reason, .. } | Verdict::NotRun { reason } => reason.clone(),
            Verdict::Pass | Verdict::Fixed { .. } => String::new(),
        }
    }
}

/// Text with each number, decimal or hexadecimal, as "#", and with lists left out: how many pieces a buffer is in differs, too.
fn without_numbers(text: &str) -> String {
    let mut depth = 0_u32;
    let text: String = text
        .chars()
        .filter(|c| {
            let inside = depth > 0;
            match c {
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            !inside || depth == 0
        })
        .collect();
    let mut plain = String::with_capacity(text.len());
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_number = end.starts_with(|c: char| c.is_ascii_digit())
            || end.len() >= 6 && end.chars().all(|c| c.is_ascii_hexdigit());
        match is_number {
            true => plain = plain + "#" + &word[end.len()..],
            false => plain += word,
        }
    }
    plain
}

/// The tests of a session by name; of repetitions the worst counts.
fn tests(session: &Session) -> BTreeMap<&str, Came<'_>> {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Fail { .. } => 0,
        Verdict::NotRun { .. } => 1,
        Verdict::Xfail { .. } => 2,
        Verdict::Fixed { .. } => 3,
        Verdict::Skip { .. } => 4,
        Verdict::Pass => 5,
    };
    let mut tests: BTreeMap<&str, Came> = BTreeMap::new();
    let last = session.results().map(|(last, _)| last);
    for Judged {
        test,
        verdict,
        duration_ms,
        ..
    } in last
    {
        let came = Came {
            verdict,
            duration_ms: *duration_ms,
        };
        let known = tests.entry(&test.name).or_insert_with(|| came.clone());
        if rank(verdict) < rank(known.verdict) {
            *known = came;
        }
    }
    tests
}

/// A test that changed, of a kernel if there are several.
#[derive(Debug)]
struct Changed {
    name: String,
    detail: String,
}

/// All that differs.
#[derive(Debug, Default)]
struct Changes {
    /// By kind: "pass -> fail".
    verdicts: BTreeMap<(u8, String), Vec<Changed>>,
    /// Kernels or tests that one side alone has.
    alone: Vec<String>,
    /// Ends of sessions.
    ends: Vec<String>,
    /// Durations, the greatest change first; no difference by themselves.
    durations: Vec<(u64, String)>,
    same: usize,
}

impl Changes {
    fn between(a: &Named, b: &Named) -> Self {
        let mut changes = Changes::default();
        let (ours, theirs) = (&a.run.sessions, &b.run.sessions);
        if let ([one], [other]) = (ours.as_slice(), theirs.as_slice()) {
            changes.sessions(one, other, "");
            return changes;
        }
        for session in ours {
            match theirs.iter().find(|other| other.name() == session.name()) {
                Some(other) => changes.sessions(session, other, &format!("{}: ", session.name())),
                None => changes
                    .alone
                    .push(format!("kernel {} is in A only", session.name())),
            }
        }
        for other in theirs {
            if ours.iter().all(|session| session.name() != other.name()) {
                changes
                    .alone
                    .push(format!("kernel {} is in B only", other.name()));
            }
        }
        changes
    }

    fn sessions(&mut self, a: &Session, b: &Session, prefix: &str) {
        let (end_a, end_b) = (
            format!("{:?}", a.summary.end),
            format!("{:?}", b.summary.end),
        );
        let how = |text: &str| text.split([' ', '{']).next().unwrap_or_default().to_owned();
        if how(&end_a) != how(&end_b) {
            self.ends.push(format!("{prefix}{end_a} -> {end_b}"));
        }
        let (a, b) = (tests(a), tests(b));
        let mut only: [Vec<&str>; 2] = Default::default();
        for (name, was) in &a {
            let Some(is) = b.get(name) else {
                only[0].push(name);
                continue;
            };
            self.test(&format!("{prefix}{name}"), was, is);
        }
        only[1].extend(b.keys().filter(|name| !a.contains_key(*name)));
        for (side, names) in ["A", "B"].iter().zip(only) {
            if let Some(first) = names.first() {
                let count = names.len();
                let tests = if count == 1 { "test is" } else { "tests are" };
                self.alone.push(format!(
                    "{prefix}{count} {tests} in {side} only, such as {first}"
                ));
            }
        }
    }

    fn test(&mut self, name: &str, was: &Came, is: &Came) {
        let (before, now) = (was.verdict.name(), is.verdict.name());
        let kind = if before != now {
            // What got worse comes first.
            let rank = match is.verdict {
                Verdict::Fail { .. } => 0,
                Verdict::NotRun { .. } => 1,
                Verdict::Xfail { .. } => 2,
                Verdict::Skip { .. } => 4,
                Verdict::Pass | Verdict::Fixed { .. } => 5,
            };
            Some((rank, format!("{before} -> {now}")))
        } else if was.symptoms() != is.symptoms() {
            Some((3, format!("{now}, in another way")))
        } else {
            None
        };
        match kind {
            Some(kind) => self.verdicts.entry(kind).or_default().push(Changed {
                name: name.to_owned(),
                detail: is.detail(),
            }),
            None => self.same += 1,
        }
        if let (Some(before), Some(now)) = (was.duration_ms, is.duration_ms) {
            let (less, more) = (before.min(now), before.max(now));
            if more - less >= SLOWER_BY_MS && more >= less.saturating_mul(SLOWER_TIMES) {
                let text = format!("{name}: {} -> {}", seconds(before), seconds(now));
                self.durations.push((more - less, text));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.verdicts.is_empty() && self.alone.is_empty() && self.ends.is_empty()
    }

    fn show(&self, a: &Named, b: &Named, most: usize, out: &mut impl Write) -> io::Result<()> {
        let bold = Style::new().bold();
        for (side, named) in [("A", a), ("B", b)] {
            writeln!(out, "{side}  {}", bold.apply_to(&named.name))?;
            for session in &named.run.sessions {
                let release = session.environment.release.as_deref();
                writeln!(
                    out,
                    "   {}, {}: {}",
                    session.name(),
                    release.unwrap_or("not booted"),
                    session.summary.counts
                )?;
            }
        }
        writeln!(out)?;
        for end in &self.ends {
            writeln!(out, "{} {end}", bold.apply_to("ended otherwise:"))?;
        }
        for ((_, kind), tests) in &self.verdicts {
            writeln!(out, "{}  {}", bold.apply_to(kind), tests.len())?;
            let name = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
            for Changed { name: test, detail } in tests.iter().take(most) {
                let detail = detail.lines().next().unwrap_or_default();
                let line = format!("  {test:<width$}  {detail}", width = name.min(60));
                let line = console::truncate_str(line.trim_end(), 140, "…");
                writeln!(out, "{line}")?;
            }
            if tests.len() > most {
                writeln!(out, "  and {} more; --all shows them", tests.len() - most)?;
            }
        }
        for alone in &self.alone {
            writeln!(out, "{alone}")?;
        }
        let mut durations: Vec<_> = self.durations.iter().collect();
        durations.sort_by(|a, b| b.cmp(a));
        if !durations.is_empty() {
            writeln!(
                out,
                "durations that changed {SLOWER_TIMES} times or more, for information  {}",
                durations.len()
            )?;
        }
        for (_, text) in durations.iter().take(most.min(5)) {
            writeln!(out, "  {text}")?;
        }
        let changed: usize = self.verdicts.values().map(Vec::len).sum();
        let same = self.same;
        match self.is_empty() {
            true => writeln!(out, "same: {same} tests"),
            false => writeln!(out, "{changed} tests changed, {same} are the same"),
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::record::Run;
    use crate::report::samples;
    use pinbed_abi::report::{Eye, Finding};

    fn named(name: &str, run: Run) -> Named {
        Named {
            name: name.to_owned(),
            run,
        }
    }

    fn shown(a: Run, b: Run) -> (bool, String) {
        let (a, b) = (named("a.json", a), named("b.json", b));
        let changes = Changes::between(&a, &b);
        let mut out = Vec::new();
        changes.show(&a, &b, SHOWN, &mut out).unwrap();
        (changes.is_empty(), String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_result_is_the_same_as_itself_and_as_one_with_other_numbers() {
        let mut other = samples::mixed();
        let Verdict::Xfail { findings, .. } = &mut other.sessions[0].tests[2].verdict else {
            panic!();
        };
        findings[0].text = "byte 12 is 0x3, expected 7".to_owned();
        other.sessions[0].tests[0].duration_ms = Some(9_000);
        let (same, text) = shown(samples::mixed(), other);
        assert!(same, "{text}");
        assert!(text.contains("group::passes: 0.02 s -> 9.00 s"), "{text}");
        assert!(text.ends_with("same: 6 tests\n"), "{text}");
    }

    #[test]
    fn what_got_worse_comes_first_with_its_finding() {
        let mut other = samples::mixed();
        let tests = &mut other.sessions[0].tests;
        tests[0].verdict = tests[1].verdict.clone();
        tests[1].verdict = Verdict::Pass;
        let Verdict::Xfail { findings, .. } = &mut tests[2].verdict else {
            panic!();
        };
        findings.push(Finding {
            eye: Eye::Aftermath,
            text: "1 pins left".to_owned(),
        });
        tests.pop();
        let (same, text) = shown(samples::mixed(), other);
        assert!(!same);
        let order: Vec<_> = [
            "pass -> fail",
            "xfail, in another way",
            "fail -> pass",
            "1 test is in A only, such as other::gone",
        ]
        .map(|part| {
            text.find(part)
                .unwrap_or_else(|| panic!("lacks {part}: {text}"))
        })
        .into();
        assert!(order.is_sorted(), "{text}");
        assert!(
            text.contains("group::passes  cpu: byte 0 is 1, expected 2"),
            "{text}"
        );
    }

    #[test]
    fn kernels_are_compared_by_name_unless_each_side_has_one() {
        let mut both = samples::green();
        both.sessions.extend(samples::not_provided().sessions);
        let (same, text) = shown(both.clone(), samples::green());
        assert!(!same && text.contains("kernel 7.3 is in A only"), "{text}");
        let (same, text) = shown(samples::green(), samples::not_provided());
        assert!(!same && text.contains("pass -> not_run"), "{text}");
        assert!(
            text.contains("ended otherwise: Done -> NotProvided"),
            "{text}"
        );
    }

    #[test]
    fn numbers_are_left_aside() {
        assert_eq!(
            without_numbers(
                "5 pages at 0x1b400 [0x1+0x2, [3]] of region cma-1, frame deadbeef: add"
            ),
            "# pages at # [] of region cma-#, frame #: add"
        );
    }
}
