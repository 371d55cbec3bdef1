// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a fuzzer does with the runner, and what has to hold: `ci/fuzz` runs it with coverage, tests of this file run the corpora.

use std::path::Path;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use chrono::DateTime;
use console::Term;
use pinbed_abi::report::{Eye, Finding, Message, Outcome, TestInfo};

use crate::exit::Exit;
use crate::judge::baseline::{Baseline, Baselines, Expected, Names};
use crate::judge::verdict::{Counts, Verdict};
use crate::kernel::Manifest;
use crate::machine::environments;
use crate::machine::events;
use crate::machine::watch::{End, Event as Happened, Evidence, Limits, Watch};
use crate::report::again::{Again, Rerun};
use crate::report::collect::Collector;
use crate::report::event::{Event, What};
use crate::report::ktap::Ktap;
use crate::report::record::{Boot, Environment, FORMAT, Judged, Run, StartedBy, Summary, Times};
use crate::report::table::Table;
use crate::report::{Reporter, html, junit};
use crate::text::printable;

const TESTS: [&str; 4] = [
    "cma::page_leaves",
    "cma::page_stays",
    "cma::region_is_whole",
    "heap::import_works",
];

/// What the baseline knows: the second and third test.
const BASELINE: &str = r#"
[[known]]
tests = ["cma::page_stays"]
kernels = ["6.12"]
verdict = "xfail"
reason = "it stays"
reference = "a commit"
findings = [{ eye = "cpu", text = "page * stays" }, { eye = "device", text = "*", sometimes = true }]

[[known]]
tests = ["cma::region_is_whole"]
kernels = ["6.12"]
verdict = "skip"
reason = "no CMA"
"#;

fn names() -> Names {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Names {
        tests: owned(&TESTS),
        kernels: owned(&["5.10", "6.12"]),
        fixes: owned(&["one-6.12", "two-5.10"]),
        environments: owned(&["swiotlb"]),
    }
}

/// What a guest says on the report port and on its console, a line each; the first byte says which report of the run is looked at.
///
/// The boot comes to an end; no test passes that the guest said had failed; and the reports that people and machines read have as many
/// tests as ended, and nothing of the guest's but text.
pub fn report(data: &[u8]) {
    static KNOWN: LazyLock<Baseline> = LazyLock::new(|| {
        console::set_colors_enabled(false);
        let mut baselines = Baselines::default();
        let known = baselines.add(Path::new("cma.toml"), BASELINE, &names());
        known.expect("a baseline");
        baselines.of("6.12")
    });
    let Some((which, lines)) = data.split_first() else {
        return;
    };
    let mut runner = Runner::new(KNOWN.clone());
    let end = lines
        .split(|byte| *byte == b'\n')
        .find_map(|line| runner.hear(line));
    let end = end.unwrap_or_else(|| runner.watch.expired());
    runner.finish(end);
    match which % 5 {
        0 => runner.check_ktap(),
        1 => runner.check_junit(),
        2 => runner.check_json(),
        3 => runner.check_page(),
        _ => runner.check_table(),
    }
}

/// What the guest says, in short: the first byte is what, the rest is text. Anything else is a line as it is.
fn expand(line: &[u8]) -> Result<Message, String> {
    let text = |rest: &[u8]| String::from_utf8_lossy(rest).replace('\u{b}', "\n");
    let finding = |rest: &[u8], eye| Finding {
        eye,
        text: text(rest),
    };
    let end = |name: u8, outcome, said: &[u8]| Message::End {
        name: TESTS[usize::from(name) % TESTS.len()].to_owned(),
        outcome,
        duration_ms: 3,
        notes: vec![text(said)],
        dmesg: vec![text(said)],
        memory: None,
    };
    Ok(match line {
        [1, rest @ ..] => Message::Hello {
            release: text(rest),
            version: text(rest),
            regions: Vec::new(),
        },
        [2, name, ..] => Message::Start {
            name: TESTS[usize::from(*name) % TESTS.len()].to_owned(),
        },
        [3, name, rest @ ..] => end(*name, Outcome::Pass, rest),
        [4, name, rest @ ..] => end(*name, Outcome::Skip(text(rest)), b""),
        [5, name, rest @ ..] => {
            let eyes = [Eye::Cpu, Eye::Device, Eye::Aftermath];
            let found = rest.split(|byte| *byte == b'|').zip(eyes);
            let findings = found.map(|(rest, eye)| finding(rest, eye));
            end(*name, Outcome::Fail(findings.collect()), rest)
        }
        [6, name] => end(*name, Outcome::Fail(Vec::new()), b""),
        [7, rest @ ..] => Message::Broken { reason: text(rest) },
        [8, ..] => Message::Late,
        [9, ..] => Message::Done,
        line => return events::message(String::from_utf8_lossy(line).trim_end_matches(['\r'])),
    })
}

/// The runner as far as a guest's words reach: the watch, the judge, and the reporters.
struct Runner {
    watch: Watch,
    baseline: Baseline,
    /// The tests that have not ended, the next one last.
    left: Vec<&'static str>,
    /// What the guest said of those that have.
    outcomes: Vec<Outcome>,
    counts: Counts,
    console: Vec<String>,
    events: Vec<Event>,
}

impl Runner {
    fn new(baseline: Baseline) -> Self {
        let second = Duration::from_secs(1);
        let limits = Limits {
            boot: second,
            between: second,
            test: second,
            slow_tests: Default::default(),
            power_off: second,
            settle: second,
        };
        let mut runner = Runner {
            watch: Watch::new(limits, Instant::now()),
            baseline,
            left: TESTS.into_iter().rev().collect(),
            outcomes: Vec::new(),
            counts: Counts::default(),
            console: Vec::new(),
            events: Vec::new(),
        };
        runner.tell(What::RunStarted {
            format: FORMAT,
            pinbed: "0".to_owned(),
            revision: None,
            command: Vec::new(),
            kernels: vec!["6.12".to_owned()],
        });
        runner.tell(What::SessionStarted {
            session: 0,
            environment: Box::new(Environment {
                kernel: "6.12".to_owned(),
                ..Environment::default()
            }),
            plan: TESTS.map(test).into(),
        });
        runner
    }

    fn tell(&mut self, what: What) {
        self.events.push(Event {
            time: DateTime::UNIX_EPOCH,
            elapsed_ms: 0,
            what,
        });
    }

    /// A line of the port, or after a '>' of the console; an end, if it comes to one.
    fn hear(&mut self, line: &[u8]) -> Option<End> {
        let event = match line {
            [b'>', line @ ..] => {
                let line = events::lines(line).next()?;
                self.console.push(line.clone());
                Happened::Console(line)
            }
            line => match expand(line) {
                // What was told in short is told as a guest does.
                Ok(message) => {
                    let line = message.to_line().expect("a message is JSON");
                    let read = events::message(&line);
                    assert_eq!(read.as_ref(), Ok(&message));
                    Happened::Report(message)
                }
                Err(why) => Happened::Garbled(why),
            },
        };
        if let Some(end) = self.watch.on(&event, Instant::now()) {
            return Some(end);
        }
        match event {
            Happened::Report(Message::Hello {
                release,
                version,
                regions,
            }) => self.tell(What::GuestUp {
                session: 0,
                boot: 0,
                release,
                version,
                regions,
                start: StartedBy::Cold,
            }),
            // As the session does with what is not in the plan.
            Happened::Report(Message::Start { name }) if self.left.last() != Some(&&*name) => {
                return Some(End::Stopped);
            }
            Happened::Report(Message::End {
                name,
                outcome,
                notes,
                dmesg,
                memory,
                ..
            }) => {
                let next = self.left.pop().expect("it began");
                assert_eq!(name, next, "the watch let another test end");
                self.judge(next, outcome, notes, dmesg, memory);
            }
            _ => {}
        }
        None
    }

    fn judge(
        &mut self,
        name: &str,
        outcome: Outcome,
        notes: Vec<String>,
        dmesg: Vec<String>,
        memory: Option<Box<pinbed_abi::report::Memory>>,
    ) {
        self.outcomes.push(outcome.clone());
        let failed = matches!(outcome, Outcome::Fail(_));
        let verdict = Verdict::of(name, outcome, Some(&self.baseline));
        if failed && !verdict.differs() {
            let known = self.baseline.get(name).map(|known| &known.expected);
            let is_known = matches!(known, Some(Expected::Xfail { .. }));
            assert!(is_known, "{name} failed, and is {verdict:?}");
        }
        self.counts.add(&verdict, false);
        self.tell(What::TestFinished {
            session: 0,
            judged: Box::new(Judged {
                test: test(name),
                verdict,
                repetition: 1,
                attempt: 1,
                retried: false,
                boot: Some(0),
                started_ms: Some(0),
                duration_ms: Some(3),
                notes,
                dmesg,
                memory,
                hang: None,
            }),
        });
    }

    fn finish(&mut self, end: End) {
        let evidence = Evidence {
            console: std::mem::take(&mut self.console),
            ..Evidence::default()
        };
        self.tell(What::BootFinished {
            session: 0,
            ended: Box::new(Boot {
                culprit: self.watch.test().map(str::to_owned),
                headline: self.watch.trouble().map(|trouble| trouble.line.clone()),
                evidence,
                ..Boot::new(0, end.clone())
            }),
        });
        let summary = Summary {
            exit: end.exit().unwrap_or(Exit::Green) as u8,
            end,
            counts: self.counts,
            times: Times::default(),
        };
        self.tell(What::SessionFinished {
            session: 0,
            summary,
        });
        self.tell(What::RunFinished {
            exit: 0,
            error: None,
        });
    }

    fn run(&self) -> Run {
        let mut collector = Collector::default();
        self.events.iter().for_each(|event| collector.hear(event));
        collector.run().expect("it began").clone()
    }

    /// Each line is one that a parser of KTAP expects, and there is a result for each test.
    fn check_ktap(&self) {
        let mut out = Vec::new();
        let mut ktap = Ktap::new(&mut out, rerun());
        for event in &self.events {
            // Bad ends it says on standard error, too, which nobody reads here.
            if !matches!(
                event.what,
                What::BootFinished { .. } | What::SessionFinished { .. }
            ) {
                ktap.hear(event).expect("KTAP");
            }
        }
        drop(ktap);
        let ktap = String::from_utf8(out).expect("UTF-8");
        let mut results = 0;
        for (n, line) in ktap.lines().enumerate() {
            assert_eq!(printable(line), line, "{ktap}");
            let result = line.strip_prefix("not ").unwrap_or(line);
            match (n, result.strip_prefix("ok ")) {
                (0, _) => assert_eq!(line, "KTAP version 1"),
                (1, _) => assert_eq!(line, format!("1..{}", TESTS.len())),
                (_, Some(rest)) => {
                    let named = format!("{} {}", results + 1, TESTS[results]);
                    assert!(rest.starts_with(&named), "{ktap}");
                    results += 1;
                }
                (_, None) => assert!(line.starts_with("# "), "{ktap}"),
            }
        }
        assert_eq!(results, self.outcomes.len(), "{ktap}");
    }

    /// XML, of characters that XML may have, with a case for each test.
    fn check_junit(&self) {
        let xml = junit::document(&self.run()).expect("a document");
        let xml = String::from_utf8(xml).expect("UTF-8");
        let legal = |c: char| matches!(c, '\n' | '\t' | ' '..'\u{fffe}' | '\u{10000}'..);
        assert!(xml.chars().all(legal), "{xml:?}");
        let mut reader = quick_xml::Reader::from_str(&xml);
        let mut cases = 0;
        loop {
            use quick_xml::events::Event;
            match reader.read_event().expect("XML") {
                Event::Eof => break,
                Event::Start(element) | Event::Empty(element) => {
                    cases += usize::from(element.name().as_ref() == b"testcase");
                }
                _ => {}
            }
        }
        assert_eq!(cases, self.outcomes.len(), "{xml}");
    }

    /// A run that is read is the one that was written.
    fn check_json(&self) {
        let json = serde_json::to_string(&self.run()).expect("a run is JSON");
        let read: Run = serde_json::from_str(&json).expect("a run");
        let again = serde_json::to_string(&read).expect("a run is JSON");
        assert_eq!(json, again);
        assert_eq!(read.sessions[0].tests.len(), self.outcomes.len());
    }

    /// Of the guest's words nothing can become markup.
    fn check_page(&self) {
        let page = html::of_run(&self.run()).expect("a page");
        let page = String::from_utf8(page).expect("UTF-8");
        let data = page.split_once("type=\"application/json\">");
        let data = data.and_then(|(_, rest)| rest.split_once("</script>"));
        let (data, _) = data.expect("data in the page");
        assert!(!data.contains('<'), "{data}");
        serde_json::from_str::<serde_json::Value>(data).expect("JSON in the page");
    }

    /// A guest does not control the terminal.
    fn check_table(&self) {
        let mut shown = Vec::new();
        let mut table = Table::new(&mut shown, &Term::stdout(), true, rerun());
        for event in &self.events {
            table.hear(event).expect("a table");
        }
        drop(table);
        let shown = String::from_utf8(shown).expect("UTF-8");
        for line in shown.lines() {
            assert_eq!(printable(line), line, "{shown:?}");
        }
    }
}

fn test(name: &str) -> TestInfo {
    TestInfo {
        name: name.to_owned(),
        correct: "It is correct.".to_owned(),
        source: "a thread".to_owned(),
        timeout_s: 0,
    }
}

fn rerun() -> Rerun {
    Rc::new(Again::recorded)
}

/// A file of the checkout that people write: the first byte says which, the rest is its text. Few inputs are entries; [`entries`] makes those.
///
/// It is taken, or refused with an error that names the file; what a baseline says is of tests and kernels that there are.
pub fn files(data: &[u8]) {
    if let Some((which, text)) = data.split_first() {
        check_file(*which, &String::from_utf8_lossy(text));
    }
}

/// As [`files`], with a byte for each line: which of [`LINES`] it is.
pub fn entries(data: &[u8]) {
    if let Some((which, rest)) = data.split_first() {
        let lines = LINES[usize::from(which % 3)];
        let chosen = rest
            .iter()
            .map(|byte| lines[usize::from(*byte) % lines.len()]);
        let text: String = chosen.flat_map(|line| [line, "\n"]).collect();
        check_file(*which, &text);
    }
}

fn check_file(which: u8, text: &str) {
    let path = Path::new("cma.toml");
    let error = match which % 3 {
        0 => {
            let mut baselines = Baselines::default();
            let added = baselines.add(path, text, &names());
            if added.is_ok() {
                for kernel in ["5.10", "6.12"] {
                    check_baseline(&baselines.of(kernel));
                }
            }
            added.err().map(|error| error.to_string())
        }
        1 => match Manifest::parse(path, text) {
            Ok(manifest) => {
                let default = manifest.default().expect("its default is there");
                let named = manifest.named(&default.name).expect("it is there");
                assert_eq!(named.name, default.name);
                manifest.nearest("6.13.1").expect("some kernel");
                None
            }
            Err(error) => Some(error.to_string()),
        },
        _ => {
            let _ = environments::parse(text);
            None
        }
    };
    if let Some(error) = error {
        assert!(error.contains("cma.toml"), "{error}");
    }
}

/// Lines of a baseline, of kernels.toml and of environments.toml, right and wrong ones.
const LINES: [&[&str]; 3] = [
    &[
        "[[known]]",
        "tests = ['cma::page_leaves']",
        "tests = ['cma::page_stays', 'cma::*']",
        "tests = ['cma::*', 'cma::page_stays']",
        "tests = ['heap::import_works']",
        "tests = ['cma::\u{e4}[']",
        "tests = []",
        "kernels = ['6.12']",
        "kernels = ['5.10', '6.12']",
        "kernels = ['9.9']",
        "kernels = []",
        "verdict = 'xfail'",
        "verdict = 'skip'",
        "verdict = 'pass'",
        "reason = 'it stays \u{e4}'",
        "reason = ''",
        "reason = ' \u{2003}\t'",
        "reference = 'a commit'",
        "reference = ' '",
        "findings = []",
        "findings = [{ eye = 'cpu', text = 'page * \u{e4}' }]",
        "findings = [{ eye = 'cpu', text = '' }]",
        "findings = [{ eye = 'device', text = '*', sometimes = true }]",
        "findings = [{ eye = 'cpu', text = 'p', with = 'CMA' }, { eye = 'aftermath', text = '\u{e4}*', without = 'CMA' }]",
        "fixed_by = ['one']",
        "fixed_by = ['\u{e4}']",
        "seen_with = ['CMA']",
        "environments = ['swiotlb']",
        "environments = ['\u{e4}']",
        "defect = 'd'",
    ],
    &[
        "default = '6.12'",
        "default = '\u{e4}'",
        "default = 'newest'",
        "[[kernel]]",
        "name = '6.12'",
        "name = '5.10'",
        "name = '6.\u{e4}'",
        "name = '4294967296.1'",
        "sources = []",
        "sources = [{ package = 'linux-source-6.12', suites = ['trixie'] }]",
        "sources = [{ package = '\u{e4}', suites = [] }, { directory = '/' }]",
        "sources = [{ tarball = 'file:///\u{e4}', sha256 = 'f' }]",
        "sources = [{ git = 'g', tag = 't', commit = '' }]",
        "fragments = ['base']",
        "lacks = ['CMA']",
        "steps = 1",
        "steps = -1",
    ],
    &[
        "[[environment]]",
        "name = 'swiotlb'",
        "name = ''",
        "what = '\u{e4}'",
        "append = 'swiotlb=force'",
        "memory = 0",
        "memory = 512",
        "cpus = 255",
        "cpus = 256",
        "parallel = true",
        "fragments = []",
        "slower = 2",
        "qemu = ['']",
        "lacks = ['\u{e4}*']",
        "[[environment.known]]",
        "kernels = ['6.12']",
        "reason = ' '",
        "reference = 'a commit'",
        "texts = ['*']",
    ],
];

/// A failure that is known is one that was described, and no other.
fn check_baseline(baseline: &Baseline) {
    for test in TESTS {
        let Some(known) = baseline.get(test) else {
            continue;
        };
        assert!(!known.reason.trim().is_empty());
        let foreign = Finding {
            eye: Eye::Harness,
            text: "\u{0}".to_owned(),
        };
        let verdict = Verdict::of(test, Outcome::Fail(Vec::new()), Some(baseline));
        assert!(
            verdict.differs(),
            "{test} fails without a finding: {known:?}"
        );
        if let Expected::Xfail {
            findings,
            reference,
        } = &known.expected
        {
            assert!(!reference.trim().is_empty());
            assert!(!findings.is_empty());
            assert!(findings.iter().all(|look| !look.text.trim().is_empty()));
            continue;
        }
        let verdict = Verdict::of(test, Outcome::Fail(vec![foreign]), Some(baseline));
        assert!(verdict.differs(), "{test} may fail: {known:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::replay;

    #[test]
    fn the_corpus_of_reports_breaks_nothing() {
        replay("report", report);
    }

    #[test]
    fn the_corpus_of_files_breaks_nothing() {
        replay("files", files);
    }

    #[test]
    fn the_corpus_of_entries_breaks_nothing() {
        replay("entries", entries);
    }
}
