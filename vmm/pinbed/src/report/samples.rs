// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs for the reporters' tests, and a way to tell a reporter of them.

use chrono::DateTime;
use pinbed_abi::report::{Eye, Finding, TestInfo};

use super::Reporter;
use super::record::{Boot, Environment, FORMAT, Judged, Run, Session, Summary, Times};
use crate::judge::verdict::{Counts, Verdict};
use crate::machine::accel::Accel;
use crate::machine::watch::{End, Evidence};

pub fn finding() -> Finding {
    Finding {
        eye: Eye::Cpu,
        text: "byte 0 is 1, expected 2".to_owned(),
    }
}

pub fn judged(name: &str, verdict: Verdict) -> Judged {
    let ran = !matches!(verdict, Verdict::NotRun { .. });
    Judged {
        test: TestInfo {
            name: name.to_owned(),
            correct: "The device reads what the process wrote.".to_owned(),
            source: "a thread".to_owned(),
            timeout_s: 0,
        },
        verdict,
        repetition: 1,
        attempt: 1,
        retried: false,
        boot: ran.then_some(0),
        started_ms: ran.then_some(1000),
        duration_ms: ran.then_some(20),
        notes: vec!["a fact".to_owned()],
        dmesg: vec![
            "fine".to_owned(),
            "WARNING: CPU: 0 PID: 1 at mm/gup.c:1".to_owned(),
        ],
        memory: None,
        hang: None,
    }
}

pub fn session(exit: u8, end: End, boots: Vec<Boot>, tests: Vec<Judged>) -> Session {
    let mut counts = Counts::default();
    for judged in tests.iter().filter(|judged| !judged.retried) {
        counts.add(&judged.verdict, judged.attempt > 1);
    }
    Session {
        environment: Environment {
            release: Some("6.12.1".to_owned()),
            kernel: "6.12".to_owned(),
            qemu: "11.1.3".to_owned(),
            accel: Some(Accel::Tcg),
            memory_mib: 512,
            cpus: 2,
            baseline: Some("6.12".to_owned()),
            ..Environment::default()
        },
        summary: Summary {
            exit,
            end,
            counts,
            times: Times::default(),
        },
        boots,
        tests,
    }
}

pub fn boot(end: End) -> Boot {
    Boot {
        boot: 0,
        end,
        culprit: None,
        headline: None,
        known: false,
        evidence: Evidence::default(),
    }
}

pub fn run(sessions: Vec<Session>) -> Run {
    let exits = sessions.iter().map(|session| session.summary.exit);
    Run {
        format: FORMAT,
        pinbed: "0".to_owned(),
        revision: Some("0123456789ab".to_owned()),
        started: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        command: vec!["pinbed".to_owned(), "run".to_owned()],
        exit: exits.max(),
        error: None,
        sessions,
    }
}

pub fn green() -> Run {
    let tests = vec![judged("group::passes", Verdict::Pass)];
    run(vec![session(0, End::Done, vec![boot(End::Done)], tests)])
}

/// Of another kernel than the others.
pub fn not_provided() -> Run {
    let not_run = Verdict::NotRun {
        reason: "there is no kernel to boot".to_owned(),
    };
    let end = End::NotProvided {
        reason: "there is no network".to_owned(),
    };
    let mut session = session(3, end, vec![], vec![judged("group::passes", not_run)]);
    session.environment.kernel = "7.3".to_owned();
    session.environment.release = None;
    run(vec![session])
}

/// The first test ends the guest, and the second runs in another boot.
pub fn panicked() -> Run {
    let line = "Kernel panic - not syncing: x".to_owned();
    let end = End::Panic {
        line: line.clone(),
        test: Some("group::ends_it".to_owned()),
    };
    let first = Boot {
        culprit: Some("group::ends_it".to_owned()),
        headline: Some("kernel BUG at mm/gup.c:1!".to_owned()),
        evidence: Evidence {
            console: vec![line],
            ..Evidence::default()
        },
        ..boot(end.clone())
    };
    let failed = Verdict::Fail {
        findings: vec![Finding {
            eye: Eye::Harness,
            text: "kernel BUG at mm/gup.c:1!".to_owned(),
        }],
        expected: None,
    };
    let tests = vec![
        judged("group::ends_it", failed),
        judged("group::passes", Verdict::Pass),
    ];
    run(vec![session(5, end, vec![first, boot(End::Done)], tests)])
}

pub fn interrupted() -> Run {
    let end = End::Interrupted { signal: 2 };
    let not_run = || Verdict::NotRun {
        reason: "interrupted".to_owned(),
    };
    let tests = vec![
        judged("group::passes", Verdict::Pass),
        judged("group::second", not_run()),
        judged("group::third", not_run()),
    ];
    run(vec![session(130, end.clone(), vec![boot(end)], tests)])
}

pub fn mixed() -> Run {
    let (reason, reference) = ("it never worked".to_owned(), "a commit".to_owned());
    let skip = |reason: &str, expected| Verdict::Skip {
        reason: reason.to_owned(),
        expected,
    };
    let tests = vec![
        judged("group::passes", Verdict::Pass),
        judged(
            "group::unknown_failure",
            Verdict::Fail {
                findings: vec![finding(); 2],
                expected: None,
            },
        ),
        judged(
            "group::known_failure",
            Verdict::Xfail {
                findings: vec![finding()],
                reason,
                reference,
            },
        ),
        judged("group::lacking", skip("no heap", true)),
        judged(
            "other::works_now",
            Verdict::Fixed {
                reason: "broken".to_owned(),
            },
        ),
        judged("other::gone", skip("no /dev/video0", false)),
    ];
    run(vec![session(1, End::Done, vec![boot(End::Done)], tests)])
}

/// A test that fails once and then passes.
pub fn flaky() -> Run {
    let failed = Verdict::Fail {
        findings: vec![finding()],
        expected: None,
    };
    let mut first = judged("group::flaky", failed);
    first.retried = true;
    let mut second = judged("group::flaky", Verdict::Pass);
    second.attempt = 2;
    run(vec![session(
        0,
        End::Done,
        vec![boot(End::Done)],
        vec![first, second],
    )])
}

/// Tells a reporter of a run.
pub fn tell(run: &Run, reporter: &mut dyn Reporter) {
    for event in run.events() {
        reporter.hear(&event).unwrap();
    }
}

#[test]
fn a_collector_rebuilds_a_run_from_its_events() {
    for run in [mixed(), panicked(), not_provided(), interrupted(), flaky()] {
        let mut collector = super::collect::Collector::default();
        for event in run.events() {
            collector.hear(&event);
        }
        let rebuilt = serde_json::to_value(collector.run().unwrap()).unwrap();
        assert_eq!(rebuilt, serde_json::to_value(&run).unwrap());
        let read: Run = serde_json::from_value(rebuilt.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), rebuilt);
    }
}
