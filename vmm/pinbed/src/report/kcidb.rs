// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KCIDB, the form in which the kernel's CI systems exchange results: version 5 of its schema (the Python package kcidb-io).
//!
//! It tells of the kernel and not of the baseline: a known failure is FAIL, with an incident of the issue that the baseline has for it; a
//! skip is SKIP whether it was expected or not; a test that did not run is MISS. Every attempt is a test of its own.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::record::{Judged, Run, Session};
use super::table::eye;
use crate::judge::verdict::Verdict;

/// The version of the schema.
const MAJOR: u32 = 5;
/// The longest excerpt of a log that the schema allows.
const EXCERPT: usize = 16_384;

/// Who submits a run unless something else is asked for.
pub const ORIGIN: &str = "pinbed";

/// Parses the name of a CI system.
///
/// # Errors
/// When the schema does not allow it.
pub fn parse_origin(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match !text.is_empty() && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err("a name has small letters, digits and _ only".to_owned()),
    }
}

/// A run as a document of this CI system.
///
/// # Errors
/// Never, for runs that a collector made.
pub fn document(run: &Run, origin: &str) -> Result<Vec<u8>, String> {
    let mut lists = Lists::default();
    for (number, session) in run.sessions.iter().enumerate() {
        lists.add(run, number, session, origin);
    }
    let mut document = json!({ "version": { "major": MAJOR, "minor": 0 } });
    for (name, list) in [
        ("checkouts", lists.checkouts),
        ("builds", lists.builds),
        ("tests", lists.tests),
        ("issues", lists.issues),
        ("incidents", lists.incidents),
    ] {
        if !list.is_empty() {
            document[name] = Value::Array(list);
        }
    }
    let mut bytes = serde_json::to_vec_pretty(&document).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The document's lists of objects.
#[derive(Default)]
struct Lists {
    checkouts: Vec<Value>,
    builds: Vec<Value>,
    tests: Vec<Value>,
    issues: Vec<Value>,
    incidents: Vec<Value>,
}

impl Lists {
    fn add(&mut self, run: &Run, number: usize, session: &Session, origin: &str) {
        let environment = &session.environment;
        let time = run.started.to_rfc3339_opts(SecondsFormat::Micros, true);
        // One run on one host at one time: no other one is named so.
        let of_run = id(origin, &format!("{time}\n{:?}\n{}", run.command, host()));
        // The same kernel has the same name in every run.
        let kernel = environment.fingerprint.clone().map_or_else(
            || format!("{of_run}-{number}"),
            |fingerprint| id(origin, &format!("{}\n{fingerprint}", environment.kernel)),
        );
        let provided = session.summary.exit != crate::exit::Exit::Provisioning as u8;
        let mut checkout = object(json!({
            "id": kernel,
            "origin": origin,
            "tree_name": environment.kernel,
        }));
        put(&mut checkout, "git_commit_name", &environment.tree_revision);
        put(&mut checkout, "comment", &environment.release);
        self.checkouts.push(checkout.into());

        let mut build = object(json!({
            "id": kernel,
            "checkout_id": kernel,
            "origin": origin,
            "architecture": "x86_64",
            "status": if provided { "PASS" } else { "ERROR" },
        }));
        let mut misc = Map::new();
        put(&mut misc, "fingerprint", &environment.fingerprint);
        put(&mut misc, "version", &environment.version);
        build.insert("misc".to_owned(), misc.into());
        if !environment.fragments.is_empty() {
            put(
                &mut build,
                "config_name",
                &Some(environment.fragments.join(" ")),
            );
        }
        if let (false, crate::machine::watch::End::NotProvided { reason }) =
            (provided, &session.summary.end)
        {
            put(&mut build, "log_excerpt", &Some(excerpt(reason)));
        }
        self.builds.push(build.into());

        for (at, judged) in session.tests.iter().enumerate() {
            let id = format!("{of_run}-{number}-{at}");
            self.tests
                .push(test(run, session, judged, origin, &id, &kernel));
            self.known(judged, origin, &id);
        }
    }

    /// A known failure, as an issue and its incident.
    fn known(&mut self, judged: &Judged, origin: &str, test: &str) {
        let Verdict::Xfail {
            reason, reference, ..
        } = &judged.verdict
        else {
            return;
        };
        let issue = id(origin, &format!("{reason}\n{reference}"));
        if !self.issues.iter().any(|known| known["id"] == *issue) {
            let mut value = object(json!({
                "id": issue,
                "version": 0,
                "origin": origin,
                "report_subject": line(reason),
                "comment": line(reference),
                "culprit": { "code": true, "tool": false, "harness": false },
            }));
            if reference.starts_with("https://") && !reference.contains(char::is_whitespace) {
                put(&mut value, "report_url", &Some(reference.clone()));
            }
            self.issues.push(value.into());
        }
        self.incidents.push(json!({
            "id": test,
            "origin": origin,
            "issue_id": issue,
            "issue_version": 0,
            "test_id": test,
            "present": true,
        }));
    }
}

fn test(
    run: &Run,
    session: &Session,
    judged: &Judged,
    origin: &str,
    id: &str,
    build: &str,
) -> Value {
    let environment = &session.environment;
    let (status, comment, findings) = match &judged.verdict {
        Verdict::Pass => ("PASS", None, None),
        Verdict::Fixed { .. } => (
            "PASS",
            Some("passes, and the baseline says that it does not".to_owned()),
            None,
        ),
        Verdict::Fail { findings, .. } => ("FAIL", None, Some(findings)),
        Verdict::Xfail {
            findings, reason, ..
        } => ("FAIL", Some(reason.clone()), Some(findings)),
        Verdict::Skip { reason, .. } => ("SKIP", Some(reason.clone()), None),
        Verdict::NotRun { reason } => ("MISS", Some(reason.clone()), None),
    };
    let mut test = object(json!({
        "id": id,
        "build_id": build,
        "origin": origin,
        "path": path(&judged.test.name),
        "status": status,
        "environment": {
            "comment": format!(
                "QEMU {}, {}, {} MiB, {} CPUs",
                environment.qemu,
                super::accel_name(environment.accel),
                environment.memory_mib,
                environment.cpus
            ),
        },
        "misc": {
            "verdict": judged.verdict.name(),
            "correct": judged.test.correct,
            "repetition": judged.repetition,
            "attempt": judged.attempt,
            "retried": judged.retried,
            "append": environment.append,
            "faults": environment.faults,
            "pinbed": run.revision.as_ref().unwrap_or(&run.pinbed),
        },
    }));
    put(&mut test, "comment", &comment.as_deref().map(line));
    if let Some(ms) = judged.started_ms {
        let began: DateTime<Utc> = run.started + TimeDelta::milliseconds(ms.cast_signed());
        let began = began.to_rfc3339_opts(SecondsFormat::Millis, true);
        put(&mut test, "start_time", &Some(began));
    }
    if let Some(ms) = judged.duration_ms {
        // Exact: a test takes days at most.
        test.insert("duration".to_owned(), json!(ms as f64 / 1000.0));
    }
    let findings = findings.into_iter().flatten();
    let lines: Vec<_> = findings
        .map(|finding| format!("{}: {}", eye(finding), finding.text))
        .chain(judged.dmesg.iter().cloned())
        .collect();
    if !lines.is_empty() && status != "PASS" {
        put(&mut test, "log_excerpt", &Some(excerpt(&lines.join("\n"))));
    }
    test.into()
}

/// A name for what is told apart by this text.
fn id(origin: &str, of: &str) -> String {
    let digest = Sha256::digest(of.as_bytes());
    format!(
        "{origin}:{}",
        &crate::provision::inventory::hex(&digest)[..32]
    )
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// A test's name as a path of the schema.
fn path(name: &str) -> String {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    let parts = name
        .split("::")
        .map(|part| part.chars().map(allowed).collect::<String>());
    std::iter::once("pinbed".to_owned())
        .chain(parts)
        .collect::<Vec<_>>()
        .join(".")
}

/// Text that the schema allows.
fn line(text: &str) -> String {
    text.replace('\0', "")
}

/// The end of a text that may be too long, where the last words are.
fn excerpt(text: &str) -> String {
    let text = line(text);
    let over = text.chars().count().saturating_sub(EXCERPT);
    text.chars().skip(over).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The schema has no null.
fn put(object: &mut Map<String, Value>, name: &str, value: &Option<String>) {
    if let Some(value) = value {
        object.insert(name.to_owned(), json!(line(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn shown(run: &Run) -> Value {
        serde_json::from_slice(&document(run, "a_farm").unwrap()).unwrap()
    }

    fn statuses(run: &Run) -> Vec<String> {
        let document = shown(run);
        let tests = document["tests"].as_array().unwrap().iter();
        tests
            .map(|test| test["status"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn each_verdict_has_its_status() {
        assert_eq!(
            statuses(&samples::mixed()),
            ["PASS", "FAIL", "FAIL", "SKIP", "PASS", "SKIP"]
        );
        assert_eq!(statuses(&samples::interrupted()), ["PASS", "MISS", "MISS"]);
        assert_eq!(statuses(&samples::flaky()), ["FAIL", "PASS"]);
        assert_eq!(statuses(&samples::panicked()), ["FAIL", "PASS"]);
        assert_eq!(
            shown(&samples::not_provided())["builds"][0]["status"],
            "ERROR"
        );
    }

    #[test]
    fn a_known_failure_is_an_incident_of_an_issue() {
        let document = shown(&samples::mixed());
        let (issue, incident) = (&document["issues"][0], &document["incidents"][0]);
        assert_eq!(document["issues"].as_array().unwrap().len(), 1);
        assert_eq!(issue["report_subject"], "it never worked");
        assert_eq!(incident["issue_id"], issue["id"]);
        assert_eq!(incident["test_id"], document["tests"][2]["id"]);
    }

    #[test]
    fn objects_refer_to_each_other_and_have_ids_of_their_own() {
        let mut both = samples::mixed();
        both.sessions.extend(samples::not_provided().sessions);
        let document = shown(&both);
        let ids = |list: &str| -> Vec<_> {
            let list = document[list].as_array().unwrap().iter();
            list.map(|object| object["id"].as_str().unwrap()).collect()
        };
        let mut tests = ids("tests");
        assert_eq!(tests.len(), 7);
        assert!(tests.iter().all(|id| id.starts_with("a_farm:")));
        tests.sort_unstable();
        tests.dedup();
        assert_eq!(tests.len(), 7);
        for (number, test) in document["tests"].as_array().unwrap().iter().enumerate() {
            let build = usize::from(number == 6);
            assert_eq!(test["build_id"], ids("builds")[build]);
            assert_eq!(
                document["builds"][build]["checkout_id"],
                ids("checkouts")[build]
            );
        }
        assert_eq!(document["tests"][0]["path"], "pinbed.group.passes");
        assert!(!document.to_string().contains("null,"), "{document}");
    }

    #[test]
    fn origins_and_paths_are_as_the_schema_wants_them() {
        assert!(parse_origin("my_farm2").is_ok());
        for bad in ["", "My", "a:b", "a-b"] {
            assert!(parse_origin(bad).is_err(), "{bad}");
        }
        assert_eq!(path("a::b c/d.e"), "pinbed.a.b_c_d_e");
        assert_eq!(excerpt(&"ü".repeat(20_000)).chars().count(), EXCERPT);
    }
}
