// SPDX-License-Identifier: Apache-2.0 OR MIT
//! JUnit XML: a suite for each group of tests, with several kernels for each group on each.
//!
//! It counts as all other forms do: a failure that the baseline knows is a success, and its reason is in the case's output; a test that
//! did not run is an error.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::record::{Judged, Run, Session};
use super::table::eye;
use crate::judge::verdict::Verdict;

/// A run as a document.
///
/// # Errors
/// When it cannot be written as XML.
pub fn document(run: &Run) -> Result<Vec<u8>, String> {
    let mut suites: Vec<TestSuite> = Vec::new();
    for session in &run.sessions {
        for (judged, earlier) in session.results() {
            let (group, name) = super::parts(&judged.test.name);
            let group = match run.sessions.len() {
                1 => group.to_owned(),
                _ => format!("{}::{group}", session.name()),
            };
            let case = case(name, &group, judged, &earlier, run.started);
            let at = suites
                .iter()
                .position(|suite| suite.name.as_str() == group)
                .unwrap_or_else(|| {
                    suites.push(suite(&group, run, session));
                    suites.len() - 1
                });
            suites[at].add_test_case(case);
        }
    }
    if let Some(error) = &run.error {
        // Or a run that came to nothing would look like one that went well.
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(error).set_type("error");
        let mut case = TestCase::new("run", status);
        case.set_classname("pinbed");
        let mut suite = TestSuite::new("pinbed");
        suite.add_test_case(case);
        suites.push(suite);
    }
    for suite in &mut suites {
        let time = suite.test_cases.iter().filter_map(|case| case.time).sum();
        suite.set_time(time);
    }
    let mut report = Report::new("pinbed");
    report.set_timestamp(run.started);
    report.set_time(suites.iter().filter_map(|suite| suite.time).sum());
    // Only now: the report counts what the suites have.
    report.add_test_suites(suites);
    report
        .to_string()
        .map(String::into_bytes)
        .map_err(|error| error.to_string())
}

/// A suite without cases, with what its tests ran on.
fn suite(group: &str, run: &Run, session: &Session) -> TestSuite {
    let mut suite = TestSuite::new(group);
    suite.set_timestamp(run.started);
    let environment = &session.environment;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    for (name, value) in [
        ("kernel", environment.kernel.clone()),
        ("release", text(&environment.release)),
        ("fingerprint", text(&environment.fingerprint)),
        ("tree_revision", text(&environment.tree_revision)),
        ("fragments", environment.fragments.join(" ")),
        ("append", environment.append.clone()),
        ("baseline", text(&environment.baseline)),
        ("qemu", environment.qemu.clone()),
        ("accel", super::accel_name(environment.accel).to_owned()),
        ("memory_mib", environment.memory_mib.to_string()),
        ("cpus", environment.cpus.to_string()),
        ("pinbed", run.pinbed.clone()),
        ("pinbed_revision", text(&run.revision)),
    ] {
        if !value.is_empty() {
            suite.add_property((name, value.as_str()));
        }
    }
    suite
}

fn case(
    name: &str,
    group: &str,
    judged: &Judged,
    earlier: &[&Judged],
    began: DateTime<Utc>,
) -> TestCase {
    let mut status = match (failure(judged), &judged.verdict) {
        (Some((kind, message, description)), _) => {
            let mut status = TestCaseStatus::non_success(kind);
            status
                .set_message(message)
                .set_type(judged.verdict.name())
                .set_description(description);
            status
        }
        (None, Verdict::Skip { reason, .. }) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason).set_type(judged.verdict.name());
            status
        }
        (None, _) => TestCaseStatus::success(),
    };
    for attempt in earlier {
        let Some((kind, message, description)) = failure(attempt) else {
            continue;
        };
        let mut rerun = TestRerun::new(kind);
        rerun
            .set_message(message)
            .set_type(attempt.verdict.name())
            .set_description(description);
        if let Some(ms) = attempt.duration_ms {
            rerun.set_time(Duration::from_millis(ms));
        }
        status.add_rerun(rerun);
    }
    let name = match judged.repetition {
        1 => name.to_owned(),
        repetition => format!("{name} (repetition {repetition})"),
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(group);
    if let Some(ms) = judged.duration_ms {
        case.set_time(Duration::from_millis(ms));
    }
    if let Some(ms) = judged.started_ms {
        case.set_timestamp(began + TimeDelta::milliseconds(ms.cast_signed()));
    }
    let mut out = judged.notes.clone();
    if let Verdict::Xfail {
        findings,
        reason,
        reference,
    } = &judged.verdict
    {
        out.push(format!("known failure: {reason} ({reference})"));
        out.extend(
            findings
                .iter()
                .map(|found| format!("{}: {}", eye(found), found.text)),
        );
    }
    if !out.is_empty() {
        case.set_system_out(out.join("\n"));
    }
    case
}

/// The kind, message and text of a verdict that is other than the baseline says.
fn failure(judged: &Judged) -> Option<(NonSuccessKind, String, String)> {
    let failed = |message: &str, text: &str| {
        Some((NonSuccessKind::Failure, message.to_owned(), text.to_owned()))
    };
    match &judged.verdict {
        Verdict::Fail { findings, .. } => {
            let lines = findings
                .iter()
                .map(|finding| format!("{}: {}", eye(finding), finding.text));
            let lines: Vec<_> = lines.chain(judged.dmesg.iter().cloned()).collect();
            failed(lines.first().map_or("", String::as_str), &lines.join("\n"))
        }
        Verdict::Fixed { reason } => {
            failed("passes, and the baseline says that it does not", reason)
        }
        Verdict::Skip {
            reason,
            expected: false,
        } => failed("skipped, and the baseline does not say so", reason),
        Verdict::NotRun { reason } => Some((
            NonSuccessKind::Error,
            format!("not run: {reason}"),
            String::new(),
        )),
        Verdict::Pass | Verdict::Xfail { .. } | Verdict::Skip { expected: true, .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn shown(run: &Run) -> String {
        String::from_utf8(document(run).unwrap()).unwrap()
    }

    #[test]
    fn the_document_counts_as_the_run_does() {
        let document = shown(&samples::mixed());
        for part in [
            "<testsuites name=\"pinbed\" tests=\"6\" failures=\"3\" errors=\"0\"",
            "<testsuite name=\"group\" tests=\"4\" disabled=\"1\" errors=\"0\" failures=\"1\"",
            "<failure message=\"cpu: byte 0 is 1, expected 2\" type=\"fail\">",
            "known failure: it never worked (a commit)",
            "<property name=\"kernel\" value=\"6.12\"/>",
        ] {
            assert!(document.contains(part), "lacks {part}:\n{document}");
        }
    }

    #[test]
    fn groups_of_several_kernels_are_told_apart() {
        let mut both = samples::green();
        both.sessions.extend(samples::not_provided().sessions);
        let document = shown(&both);
        for part in [
            "<testsuite name=\"6.12::group\" tests=\"1\"",
            "<testsuite name=\"7.3::group\" tests=\"1\" disabled=\"0\" errors=\"1\"",
            "classname=\"7.3::group\"",
        ] {
            assert!(document.contains(part), "lacks {part}:\n{document}");
        }
    }

    #[test]
    fn an_attempt_that_was_retried_is_a_flaky_failure() {
        let document = shown(&samples::flaky());
        assert!(document.contains("<flakyFailure"), "{document}");
        assert!(
            document.contains("tests=\"1\" failures=\"0\""),
            "{document}"
        );
    }
}
