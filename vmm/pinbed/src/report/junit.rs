// SPDX-License-Identifier: Apache-2.0 OR MIT
//! JUnit XML: a suite for each group of tests, with several kernels for each group on each. What is as the baseline says is a success or, with its reason, skipped.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::table::eye;
use crate::judge::verdict::Verdict;
use crate::report::record::{Judged, Record};

/// Runs as a document.
///
/// # Errors
/// When it cannot be written as XML.
pub fn document(records: &[Record]) -> Result<String, quick_junit::SerializeError> {
    let mut suites: Vec<TestSuite> = Vec::new();
    for record in records {
        for test in &record.tests {
            let whole = &test.test.name;
            let (group, name) = whole.split_once("::").unwrap_or(("", whole));
            let group = match records.len() {
                1 => group.to_owned(),
                _ => format!("{}::{group}", record.name()),
            };
            let case = case(name, &group, test);
            match suites.iter_mut().find(|suite| suite.name.as_str() == group) {
                Some(suite) => suite.add_test_case(case),
                None => {
                    let mut suite = TestSuite::new(group);
                    suite.add_test_case(case);
                    suites.push(suite);
                    continue;
                }
            };
        }
    }
    let mut report = Report::new("pinbed");
    // Only now: the report counts what the suites have.
    report.add_test_suites(suites);
    report.to_string()
}

fn case(name: &str, group: &str, judged: &Judged) -> TestCase {
    let failure = |kind, message: &str, description: String| {
        let mut status = TestCaseStatus::non_success(kind);
        status
            .set_message(message)
            .set_type(judged.verdict.name())
            .set_description(description);
        status
    };
    let skipped = |message: String| {
        let mut status = TestCaseStatus::skipped();
        status.set_message(message).set_type(judged.verdict.name());
        status
    };
    let status = match &judged.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Fail { findings, .. } => {
            let lines = findings
                .iter()
                .map(|finding| format!("{}: {}", eye(finding), finding.text));
            let lines: Vec<_> = lines.chain(judged.dmesg.iter().cloned()).collect();
            let message = lines.first().cloned().unwrap_or_default();
            failure(NonSuccessKind::Failure, &message, lines.join("\n"))
        }
        Verdict::Xfail {
            reason, reference, ..
        } => skipped(format!("known to fail: {reason} ({reference})")),
        Verdict::Fixed { reason } => failure(
            NonSuccessKind::Failure,
            "passes, and the baseline says that it does not",
            reason.clone(),
        ),
        Verdict::Skip {
            reason,
            expected: true,
        } => skipped(reason.clone()),
        Verdict::Skip {
            reason,
            expected: false,
        } => failure(
            NonSuccessKind::Failure,
            "skipped, and the baseline does not say so",
            reason.clone(),
        ),
        Verdict::Missing { reason } => failure(NonSuccessKind::Error, reason, String::new()),
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(group);
    if let Some(ms) = judged.duration_ms {
        case.set_time(Duration::from_millis(ms));
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn the_document_counts_as_the_run_does() {
        let document = document(&[samples::mixed()]).unwrap();
        for part in [
            "<testsuites name=\"pinbed\" tests=\"6\" failures=\"3\" errors=\"0\">",
            "<testsuite name=\"group\" tests=\"4\"",
            "<failure message=\"cpu: byte 0 is 1, expected 2\" type=\"fail\">",
            "<skipped message=\"known to fail: it never worked (a commit)\" type=\"xfail\"/>",
        ] {
            assert!(document.contains(part), "lacks {part}:\n{document}");
        }
    }

    #[test]
    fn groups_of_several_kernels_are_told_apart() {
        let document = document(&[samples::green(), samples::not_provided()]).unwrap();
        for part in [
            "<testsuite name=\"6.12::group\" tests=\"1\"",
            "<testsuite name=\"7.3::group\" tests=\"1\" disabled=\"0\" errors=\"1\"",
            "classname=\"7.3::group\"",
        ] {
            assert!(document.contains(part), "lacks {part}:\n{document}");
        }
    }
}
