// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed matrix --environments`: in which environments each test ran, by the results of runs, as a page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::record::Session;
use crate::judge::verdict::Verdict;

/// A test is to run in so many environments besides the ordinary machine, or to say why not.
const ENOUGH: usize = 6;
/// How many tests are named that are not there for one reason.
const NAMED: usize = 4;

/// What is known of a test.
#[derive(Default)]
struct Seen<'a> {
    ran: BTreeSet<&'a str>,
    /// By environment.
    reasons: BTreeMap<&'a str, &'a str>,
}

/// The page, in Markdown: for each kernel what each environment came to, and which tests ran in fewer than [`ENOUGH`].
pub fn page(sessions: &[&Session]) -> String {
    let mut page = String::from(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->\n<!-- Made by `pinbed matrix --environments` from the results of runs -->\n# Where the tests ran\n",
    );
    let mut kernels: BTreeMap<&str, Vec<&Session>> = BTreeMap::new();
    for session in sessions {
        let name = session.name();
        let kernel = name.split_once(',').map_or(name, |it| it.0);
        kernels.entry(kernel).or_default().push(session);
    }
    for (kernel, sessions) in kernels {
        let release = sessions
            .iter()
            .find_map(|it| it.environment.release.as_ref());
        let release = release.map_or(String::new(), |it| format!(" ({it})"));
        let _ = write!(
            page,
            "\n## {kernel}{release}\n\n| environment | passed | known failures among them | failed | skipped | not run |\n|---|---|---|---|---|---|\n",
        );
        for (environment, [passed, known, failed, skipped, not_run]) in rows(&sessions) {
            let _ = writeln!(
                page,
                "| {environment} | {passed} | {known} | {failed} | {skipped} | {not_run} |"
            );
        }
        count(&mut page, &sessions);
    }
    page
}

/// What each environment came to, in the order of the results: one row for all shards of a run.
fn rows<'a>(sessions: &[&'a Session]) -> Vec<(&'a str, [usize; 5])> {
    let mut rows: Vec<(&str, [usize; 5])> = Vec::new();
    for session in sessions {
        let name = environment(session);
        let of = &session.summary.counts;
        let counts = [of.passed, of.known, of.failed, of.skipped, of.not_run];
        match rows.iter_mut().find(|row| row.0 == name) {
            Some((_, sums)) => sums.iter_mut().zip(counts).for_each(|(sum, it)| *sum += it),
            None => rows.push((name, counts)),
        }
    }
    rows
}

fn environment(session: &Session) -> &str {
    session.environment.env.as_deref().unwrap_or("none")
}

/// Counts environments by test.
fn count(page: &mut String, sessions: &[&Session]) {
    let mut tests: BTreeMap<&str, Seen> = BTreeMap::new();
    for session in sessions.iter().filter(|it| it.environment.env.is_some()) {
        for (judged, _) in session.results() {
            let seen = tests.entry(&judged.test.name).or_default();
            match &judged.verdict {
                Verdict::Skip { reason, .. } | Verdict::NotRun { reason } => {
                    seen.reasons.insert(environment(session), reason);
                }
                _ => {
                    seen.ran.insert(environment(session));
                }
            }
        }
    }
    let enough = tests.values().filter(|it| it.ran.len() >= ENOUGH).count();
    let _ = write!(
        page,
        "\nOf {} tests {enough} ran in at least {ENOUGH} environments.\n\n| environments | tests that ran in so many |\n|---|---|\n",
        tests.len()
    );
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for seen in tests.values() {
        *sizes.entry(seen.ran.len()).or_default() += 1;
    }
    for (size, tests) in sizes.iter().rev() {
        let _ = writeln!(page, "| {size} | {tests} |");
    }
    // By where they did not run and why, those that go together.
    let mut few: BTreeMap<Vec<(&str, &str)>, Vec<&str>> = BTreeMap::new();
    for (test, seen) in tests.iter().filter(|it| it.1.ran.len() < ENOUGH) {
        let reasons = seen.reasons.iter().filter(|it| !seen.ran.contains(*it.0));
        let reasons = reasons.map(|(environment, reason)| (*environment, *reason));
        few.entry(reasons.collect()).or_default().push(test);
    }
    if few.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "\nThe others, and why they did not run:\n\n| tests | not in | why |\n|---|---|---|\n"
    );
    for (reasons, tests) in few {
        let named: Vec<_> = tests
            .iter()
            .take(NAMED)
            .map(|it| format!("`{it}`"))
            .collect();
        let more = match tests.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(", {more} more"),
        };
        let places: Vec<_> = reasons.iter().map(|it| it.0).collect();
        let mut whys: Vec<_> = reasons.iter().map(|it| it.1).collect();
        let mut met = BTreeSet::new();
        whys.retain(|why| met.insert(*why));
        if whys.is_empty() {
            whys.push("these results have no more environments");
        }
        let _ = writeln!(
            page,
            "| {}{more} | {} | {} |",
            named.join(", "),
            places.join(", "),
            whys.join("; ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn tests_are_counted_by_the_environments_that_they_ran_in() {
        let session = |env: &str, skips: bool| {
            let mut session = samples::green().sessions.remove(0);
            session.environment.kernel = format!("7.3,{env}");
            session.environment.env = Some(env.to_owned());
            session.tests.truncate(1);
            let mut other = session.tests[0].clone();
            other.test.name = "b::c".to_owned();
            if skips {
                other.verdict = Verdict::Skip {
                    reason: "no CMA".to_owned(),
                    expected: true,
                };
            }
            session.tests.push(other);
            session
        };
        let mut all: Vec<_> = ["1", "2", "3", "4", "5"]
            .map(|it| session(it, false))
            .into();
        all.push(session("nocma", true));
        // Again in the same environment is no other one.
        all.push(session("nocma", true));
        let page = page(&all.iter().collect::<Vec<_>>());
        assert!(
            page.contains("Of 2 tests 1 ran in at least 6 environments"),
            "{page}"
        );
        assert!(page.contains("| 6 | 1 |\n| 5 | 1 |"), "{page}");
        assert!(page.contains("| `b::c` | nocma | no CMA |"), "{page}");
        // And has no row of its own: these are its shards.
        assert_eq!(page.matches("\n| nocma | ").count(), 1, "{page}");
    }
}
