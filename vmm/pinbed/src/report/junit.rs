// SPDX-License-Identifier: Apache-2.0 OR MIT
//! JUnit XML, valid against the schema of Jenkins' xUnit plugin (junit-10.xsd): a suite for each group of tests, with several kernels for
//! each group on each.
//!
//! It counts as all other forms do: a failure that the baseline knows is a success, and its reason is in the case's output; a test that
//! did not run is an error. What the schema has no place for (the times of cases and attempts, properties of cases) is in the JSON file.

use std::io;

use chrono::{DateTime, TimeDelta, Utc};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::explain;
use super::record::{Judged, Run, Session};
use super::table::eye;
use crate::judge::verdict::Verdict;
use crate::text::printable;

type Xml = Writer<Vec<u8>>;

/// A run as a document.
///
/// # Errors
/// When it cannot be written as XML.
pub fn document(run: &Run) -> Result<Vec<u8>, String> {
    let suites = suites(run);
    let counts = counts(suites.iter().flat_map(|suite| &suite.cases));
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    let written = xml
        .write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))
        .and_then(|()| {
            xml.create_element("testsuites")
                .with_attribute(("name", "pinbed"))
                .with_attributes(attributes(&counts))
                .write_inner_content(|xml| suites.iter().try_for_each(|suite| suite.write(xml)))
                .map(drop)
        })
        .and_then(|()| xml.write_indent());
    written.map_err(|error| error.to_string())?;
    Ok(xml.into_inner())
}

/// A group of tests on a kernel.
struct Suite {
    name: String,
    properties: Vec<(&'static str, String)>,
    began: DateTime<Utc>,
    cases: Vec<Case>,
}

/// A test.
struct Case {
    name: String,
    class: String,
    duration_ms: u64,
    outcome: Option<Outcome>,
    earlier: Vec<Outcome>,
    out: Vec<String>,
}

/// What a case has other than success.
struct Outcome {
    /// `failure`, `error` or `skipped`.
    element: &'static str,
    /// The verdict.
    kind: &'static str,
    message: String,
    text: String,
}

/// The suites in the order their first tests ended.
fn suites(run: &Run) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Vec::new();
    for session in &run.sessions {
        for (judged, earlier) in session.results() {
            let (group, name) = super::parts(&judged.test.name);
            let group = match run.sessions.len() {
                1 => group.to_owned(),
                _ => format!("{}::{group}", session.name()),
            };
            let case = Case::new(name, &group, judged, &earlier);
            let ms = judged.started_ms.unwrap_or(0).cast_signed();
            let began = run.started + TimeDelta::milliseconds(ms);
            match suites.iter_mut().find(|suite| suite.name == group) {
                Some(suite) => suite.cases.push(case),
                None => suites.push(Suite {
                    name: group,
                    properties: properties(run, session),
                    began,
                    cases: vec![case],
                }),
            }
        }
    }
    if let Some(error) = &run.error {
        // Or a run that came to nothing would look like one that went well.
        suites.push(Suite {
            name: "pinbed".to_owned(),
            properties: Vec::new(),
            began: run.started,
            cases: vec![Case {
                name: "run".to_owned(),
                class: "pinbed".to_owned(),
                duration_ms: 0,
                outcome: Some(Outcome {
                    element: "error",
                    kind: "error",
                    message: error.clone(),
                    text: String::new(),
                }),
                earlier: Vec::new(),
                out: Vec::new(),
            }],
        });
    }
    suites
}

/// What the tests of a session ran on.
fn properties(run: &Run, session: &Session) -> Vec<(&'static str, String)> {
    let environment = &session.environment;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let all = [
        ("kernel", environment.kernel.clone()),
        ("release", text(&environment.release)),
        ("fingerprint", text(&environment.fingerprint)),
        ("tree_revision", text(&environment.tree_revision)),
        ("fragments", environment.fragments.join(" ")),
        ("append", environment.append.clone()),
        ("faults", environment.faults.join(" ")),
        ("baseline", text(&environment.baseline)),
        ("qemu", environment.qemu.clone()),
        ("accel", super::accel_name(environment.accel).to_owned()),
        ("memory_mib", environment.memory_mib.to_string()),
        ("cpus", environment.cpus.to_string()),
        ("pinbed", run.pinbed.clone()),
        ("pinbed_revision", text(&run.revision)),
    ];
    let all = all.into_iter();
    all.filter(|(_, value)| !value.is_empty()).collect()
}

/// The attributes that count cases and add up their times.
fn counts<'a>(cases: impl Iterator<Item = &'a Case>) -> [(&'static str, String); 4] {
    let (mut tests, mut failures, mut errors, mut ms) = (0, 0, 0, 0);
    for case in cases {
        tests += 1;
        failures += usize::from(case.is("failure"));
        errors += usize::from(case.is("error"));
        ms += case.duration_ms;
    }
    [
        ("tests", tests.to_string()),
        ("failures", failures.to_string()),
        ("errors", errors.to_string()),
        ("time", seconds(ms)),
    ]
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

fn attributes<'a>(pairs: &'a [(&'static str, String)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    pairs.iter().map(|(name, value)| (*name, value.as_str()))
}

impl Suite {
    fn write(&self, xml: &mut Xml) -> io::Result<()> {
        let counts = counts(self.cases.iter());
        let skipped = self.cases.iter().filter(|case| case.is("skipped")).count();
        // In UTC, without a zone, as readers of JUnit expect it.
        let began = self.began.format("%Y-%m-%dT%H:%M:%S").to_string();
        xml.create_element("testsuite")
            .with_attribute(("name", clean(&self.name).as_str()))
            .with_attributes(attributes(&counts))
            .with_attribute(("skipped", skipped.to_string().as_str()))
            .with_attribute(("timestamp", began.as_str()))
            .write_inner_content(|xml| {
                if !self.properties.is_empty() {
                    xml.create_element("properties")
                        .write_inner_content(|xml| {
                            self.properties.iter().try_for_each(|(name, value)| {
                                xml.create_element("property")
                                    .with_attribute(("name", *name))
                                    .with_attribute(("value", clean(value).as_str()))
                                    .write_empty()
                                    .map(drop)
                            })
                        })?;
                }
                self.cases.iter().try_for_each(|case| case.write(xml))
            })
            .map(drop)
    }
}

impl Case {
    fn new(name: &str, class: &str, judged: &Judged, earlier: &[&Judged]) -> Self {
        let mut out = judged.notes.clone();
        let hang = judged.hang.as_deref().map(explain::evidence);
        for (title, lines) in hang.unwrap_or_default() {
            out.extend(lines.iter().map(|line| format!("{title}: {line}")));
        }
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
        Case {
            name: match judged.repetition {
                1 => name.to_owned(),
                repetition => format!("{name} (repetition {repetition})"),
            },
            class: class.to_owned(),
            duration_ms: judged.duration_ms.unwrap_or(0),
            outcome: Outcome::of(judged),
            earlier: earlier.iter().filter_map(|one| Outcome::of(one)).collect(),
            out,
        }
    }

    fn is(&self, element: &str) -> bool {
        self.outcome
            .as_ref()
            .is_some_and(|outcome| outcome.element == element)
    }

    fn write(&self, xml: &mut Xml) -> io::Result<()> {
        let element = xml
            .create_element("testcase")
            .with_attribute(("name", clean(&self.name).as_str()))
            .with_attribute(("classname", clean(&self.class).as_str()))
            .with_attribute(("time", seconds(self.duration_ms).as_str()));
        if self.outcome.is_none() && self.earlier.is_empty() && self.out.is_empty() {
            return element.write_empty().map(drop);
        }
        element
            .write_inner_content(|xml| {
                if let Some(outcome) = &self.outcome {
                    outcome.write(outcome.element, xml)?;
                }
                let failed = self.is("failure") || self.is("error");
                for attempt in &self.earlier {
                    let element = match (failed, attempt.element) {
                        (true, "error") => "rerunError",
                        (true, _) => "rerunFailure",
                        (false, "error") => "flakyError",
                        (false, _) => "flakyFailure",
                    };
                    attempt.write(element, xml)?;
                }
                if !self.out.is_empty() {
                    xml.create_element("system-out")
                        .write_text_content(BytesText::new(&clean(&self.out.join("\n"))))?;
                }
                Ok(())
            })
            .map(drop)
    }
}

impl Outcome {
    /// Of a verdict that is not a success.
    fn of(judged: &Judged) -> Option<Self> {
        let (element, message, text) = match &judged.verdict {
            Verdict::Fail { findings, .. } => {
                let lines = findings
                    .iter()
                    .map(|finding| format!("{}: {}", eye(finding), finding.text));
                let lines: Vec<_> = lines.chain(judged.dmesg.iter().cloned()).collect();
                let message = lines.first().cloned().unwrap_or_default();
                ("failure", message, lines.join("\n"))
            }
            Verdict::Fixed { reason } => {
                let message = "passes, and the baseline says that it does not";
                ("failure", message.to_owned(), reason.clone())
            }
            Verdict::Skip {
                reason,
                expected: false,
            } => {
                let message = "skipped, and the baseline does not say so";
                ("failure", message.to_owned(), reason.clone())
            }
            Verdict::Skip {
                reason,
                expected: true,
            } => ("skipped", reason.clone(), String::new()),
            Verdict::NotRun { reason } => ("error", format!("not run: {reason}"), String::new()),
            Verdict::Pass | Verdict::Xfail { .. } => return None,
        };
        Some(Outcome {
            element,
            kind: judged.verdict.name(),
            message,
            text,
        })
    }

    fn write(&self, element: &str, xml: &mut Xml) -> io::Result<()> {
        let element = xml
            .create_element(element)
            .with_attribute(("message", clean(&self.message).as_str()))
            .with_attribute(("type", self.kind));
        if self.text.is_empty() {
            element.write_empty().map(drop)
        } else {
            let text = clean(&self.text);
            element.write_text_content(BytesText::new(&text)).map(drop)
        }
    }
}

/// Text without the characters that XML 1.0 cannot have.
fn clean(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(printable).collect();
    lines.join("\n").replace(['\u{fffe}', '\u{ffff}'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn shown(run: &Run) -> String {
        String::from_utf8(document(run).unwrap()).unwrap()
    }

    /// What junit-10.xsd allows of what is written here: for each element its attributes (those with "!" have to be there) and children.
    const SCHEMA: &[(&str, &[&str], &[&str])] = &[
        (
            "testsuites",
            &["name", "tests", "failures", "errors", "time"],
            &["testsuite"],
        ),
        (
            "testsuite",
            &[
                "name!",
                "tests!",
                "failures!",
                "errors!",
                "time",
                "skipped",
                "timestamp",
            ],
            &["properties", "testcase"],
        ),
        ("properties", &[], &["property"]),
        ("property", &["name!", "value!"], &[]),
        (
            "testcase",
            &["name!", "classname", "time"],
            &[
                "skipped",
                "error",
                "failure",
                "rerunFailure",
                "rerunError",
                "flakyFailure",
                "flakyError",
                "system-out",
            ],
        ),
        ("skipped", &["type", "message"], &[]),
        ("error", &["type", "message"], &[]),
        ("failure", &["type", "message"], &[]),
        ("rerunFailure", &["type!", "message"], &[]),
        ("rerunError", &["type!", "message"], &[]),
        ("flakyFailure", &["type!", "message"], &[]),
        ("flakyError", &["type!", "message"], &[]),
        ("system-out", &[], &[]),
    ];

    fn assert_valid(document: &str) {
        let mut reader = quick_xml::Reader::from_str(document);
        let mut open: Vec<String> = Vec::new();
        loop {
            let (element, empty) = match reader.read_event().unwrap() {
                Event::Start(element) => (element, false),
                Event::Empty(element) => (element, true),
                Event::End(_) => {
                    open.pop();
                    continue;
                }
                Event::Eof => break,
                _ => continue,
            };
            let name = String::from_utf8(element.name().as_ref().to_vec()).unwrap();
            let of = |name: &str| SCHEMA.iter().find(|(of, ..)| *of == name).unwrap();
            match open.last() {
                Some(parent) => {
                    assert!(of(parent).2.contains(&name.as_str()), "{name} in {parent}")
                }
                None => assert_eq!(name, "testsuites"),
            }
            let allowed = of(&name).1;
            let mut has = Vec::new();
            for attribute in element.attributes() {
                let key = String::from_utf8(attribute.unwrap().key.as_ref().to_vec()).unwrap();
                assert!(
                    allowed
                        .iter()
                        .any(|allowed| allowed.trim_end_matches('!') == key),
                    "{key} of {name}"
                );
                has.push(key);
            }
            for needed in allowed.iter().filter_map(|name| name.strip_suffix('!')) {
                assert!(has.iter().any(|has| has == needed), "{name} lacks {needed}");
            }
            if !empty {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{document}");
    }

    /// Documents of runs of every kind; with PINBED_JUNIT_XSD=FILE xmllint checks them against that schema, too.
    #[test]
    fn documents_are_valid_against_the_schema_of_jenkins() {
        let mut odd = samples::flaky();
        odd.error = Some("a <b> & \"c\" \u{1b}[1m\u{0}\u{fffe}".to_owned());
        let mut failed_twice = samples::flaky();
        failed_twice.sessions[0].tests[1].verdict =
            failed_twice.sessions[0].tests[0].verdict.clone();
        let all = [
            samples::mixed(),
            samples::green(),
            samples::not_provided(),
            samples::panicked(),
            samples::interrupted(),
            odd,
            failed_twice,
        ];
        for run in all {
            let document = shown(&run);
            assert_valid(&document);
            if let Some(schema) = std::env::var_os("PINBED_JUNIT_XSD") {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                io::Write::write_all(&mut file, document.as_bytes()).unwrap();
                let mut xmllint = std::process::Command::new("xmllint");
                xmllint
                    .args(["--noout", "--schema"])
                    .arg(schema)
                    .arg(file.path());
                assert!(xmllint.status().unwrap().success(), "{document}");
            }
        }
    }

    #[test]
    fn the_document_counts_as_the_run_does() {
        let document = shown(&samples::mixed());
        for part in [
            "<testsuites name=\"pinbed\" tests=\"6\" failures=\"3\" errors=\"0\" time=\"0.120\"",
            "<testsuite name=\"group\" tests=\"4\" failures=\"1\" errors=\"0\" time=\"0.080\" skipped=\"1\"",
            "timestamp=\"2023-11-14T22:13:21\"",
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
            "<testsuite name=\"7.3::group\" tests=\"1\" failures=\"0\" errors=\"1\"",
            "classname=\"7.3::group\"",
        ] {
            assert!(document.contains(part), "lacks {part}:\n{document}");
        }
    }

    #[test]
    fn an_attempt_that_was_retried_is_a_flaky_failure() {
        let document = shown(&samples::flaky());
        assert!(
            document.contains("<flakyFailure message=\"cpu: byte 0 is 1"),
            "{document}"
        );
        assert!(
            document.contains("tests=\"1\" failures=\"0\""),
            "{document}"
        );
    }
}
