// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which tests there are, and which of them a person means.

use std::collections::BTreeSet;

use pinbed_abi::report::TestInfo;

use crate::judge::closest;
use crate::report::record::Session;
use crate::report::recorder::Kept;

/// Why the tests that were asked for cannot be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A filter that no test's name matches.
    #[error(
        "no test matches \"{filter}\"{}. `pinbed list` shows them all",
        suggestion(close)
    )]
    NoMatch {
        /// The filter.
        filter: String,
        /// Names that are close to it.
        close: Vec<String>,
    },
    /// No test is left to run.
    #[error("--skip leaves no test to run")]
    AllSkipped,
    /// `--failed` has nothing to choose.
    #[error(
        "of the tests that were asked for, none failed in the last run; `pinbed runs` lists the runs"
    )]
    NoneFailed,
    /// `--failed` without a run.
    #[error("no run is kept that --failed could go by; `pinbed runs` lists the runs")]
    NoRun,
    /// A filter that is not a glob.
    #[error("\"{filter}\" is not a pattern: {what}")]
    Pattern {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

fn suggestion(close: &[String]) -> String {
    if close.is_empty() {
        String::new()
    } else {
        format!("; close ones are {}", close.join(", "))
    }
}

/// Which tests a command line means.
#[derive(Clone, Debug, Default)]
pub struct Selection<'a> {
    /// Tests that match any of these; all without one.
    pub filters: &'a [String],
    /// But none that matches any of these.
    pub skip: &'a [String],
    /// Only tests with these names.
    pub failed: Option<BTreeSet<String>>,
    /// Of the rest only this share.
    pub shard: Option<Shard>,
    /// Shuffled with this seed.
    pub shuffle: Option<u64>,
}

/// A share of the tests: every `of`-th, from the `index`-th on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which share, from 1.
    pub index: usize,
    /// How many shares there are.
    pub of: usize,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, of)| {
            Some(Shard {
                index: index.parse().ok()?,
                of: of.parse().ok()?,
            })
        });
        parsed
            .filter(|shard| (1..=shard.of).contains(&shard.index))
            .ok_or_else(|| "not a share such as 1/4, the first of four".to_owned())
    }
}

/// The tests that are meant: in the order of `tests`, unless they are to be shuffled.
///
/// # Errors
/// When a filter matches nothing, or nothing is left.
pub fn select(tests: &[TestInfo], selection: &Selection) -> Result<Vec<TestInfo>, Error> {
    let wanted = matching(tests, selection.filters)?;
    let skipped = match selection.skip {
        [] => BTreeSet::new(),
        skip => {
            let skipped = matching(tests, skip)?.into_iter();
            skipped.map(|test| test.name.clone()).collect()
        }
    };
    let is_failed = |test: &&TestInfo| {
        let failed = selection.failed.as_ref();
        failed.is_none_or(|failed| failed.contains(&test.name))
    };
    let mut chosen: Vec<_> = wanted
        .into_iter()
        .filter(|test| !skipped.contains(&test.name))
        .filter(is_failed)
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Err(match &selection.failed {
            Some(_) => Error::NoneFailed,
            None => Error::AllSkipped,
        });
    }
    if let Some(Shard { index, of }) = selection.shard {
        // Interleaved, since neighbours take about as long.
        chosen = chosen.into_iter().skip(index - 1).step_by(of).collect();
    }
    if let Some(seed) = selection.shuffle {
        fastrand::Rng::with_seed(seed).shuffle(&mut chosen);
    }
    Ok(chosen)
}

/// A seed for an order that nobody has asked for by number.
pub fn seed() -> u64 {
    fastrand::u64(..1_000_000)
}

/// The tests of the newest run that is kept which did not end as its baseline says, or did not run.
///
/// # Errors
/// When no run is kept that came to its end.
pub fn failed_in(kept: &[Kept]) -> Result<BTreeSet<String>, Error> {
    let run = kept.iter().find_map(Kept::run).ok_or(Error::NoRun)?;
    let tests = run.sessions.iter().flat_map(Session::results);
    Ok(tests
        .filter(|(last, _)| last.verdict.differs())
        .map(|(last, _)| last.test.name.clone())
        .collect())
}

/// The tests that match any of the filters, in the order of `tests`; all of them without a filter.
fn matching<'a>(tests: &'a [TestInfo], filters: &[String]) -> Result<Vec<&'a TestInfo>, Error> {
    let mut chosen = vec![filters.is_empty(); tests.len()];
    for filter in filters {
        let pattern = match filter.contains(['*', '?', '[']) {
            true => Some(glob::Pattern::new(filter).map_err(|error| Error::Pattern {
                filter: filter.clone(),
                what: error.msg,
            })?),
            false => None,
        };
        let is_name = tests.iter().any(|test| test.name == *filter);
        let mut matched = false;
        for (test, chosen) in tests.iter().zip(&mut chosen) {
            let matches = match &pattern {
                Some(pattern) => pattern.matches(&test.name),
                // A whole name means that test alone, though it be a part of another's name.
                None if is_name => test.name == *filter,
                None => test.name.contains(filter),
            };
            *chosen |= matches;
            matched |= matches;
        }
        if !matched {
            let close = closest(filter, tests.iter().map(|test| test.name.as_str()));
            return Err(Error::NoMatch {
                filter: filter.clone(),
                close,
            });
        }
    }
    Ok(tests
        .iter()
        .zip(chosen)
        .filter(|(_, chosen)| *chosen)
        .map(|(test, _)| test)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests() -> Vec<TestInfo> {
        [
            "userptr::malloc_is_read",
            "userptr::leaves_cma",
            "heap::import_works",
            "heap::import_works_twice",
        ]
        .map(|name| TestInfo {
            name: name.to_owned(),
            correct: String::new(),
            source: String::new(),
            timeout_s: 0,
        })
        .into()
    }

    fn chosen(filters: &[&str]) -> Result<Vec<String>, Error> {
        let filters: Vec<_> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        chosen_by(&Selection {
            filters: &filters,
            ..Selection::default()
        })
    }

    fn chosen_by(selection: &Selection) -> Result<Vec<String>, Error> {
        Ok(select(&tests(), selection)?
            .into_iter()
            .map(|test| test.name)
            .collect())
    }

    #[test]
    fn filters_are_parts_or_globs_of_the_name() {
        assert_eq!(chosen(&[]).unwrap().len(), 4);
        assert_eq!(chosen(&["cma"]).unwrap(), ["userptr::leaves_cma"]);
        assert_eq!(
            chosen(&["userptr::*"]).unwrap(),
            ["userptr::malloc_is_read", "userptr::leaves_cma"]
        );
        assert_eq!(
            chosen(&["*cma", "twice"]).unwrap(),
            ["userptr::leaves_cma", "heap::import_works_twice"]
        );
        assert_eq!(
            chosen(&["twice", "twice", "tr::m"]).unwrap(),
            ["userptr::malloc_is_read", "heap::import_works_twice"]
        );
        assert_eq!(chosen(&["heap::import"]).unwrap().len(), 2);
        assert_eq!(
            chosen(&["heap::import_works"]).unwrap(),
            ["heap::import_works"],
            "a whole name"
        );
    }

    #[test]
    fn each_filter_has_to_match_something() {
        let error = chosen(&["heap", "userptr::leave_cma"]).unwrap_err();
        assert_eq!(
            error,
            Error::NoMatch {
                filter: "userptr::leave_cma".to_owned(),
                close: vec!["userptr::leaves_cma".to_owned()]
            }
        );
        assert!(
            error
                .to_string()
                .contains("close ones are userptr::leaves_cma")
        );
        assert!(
            chosen(&["zzzzzzzz"])
                .unwrap_err()
                .to_string()
                .contains("pinbed list")
        );
        assert!(matches!(chosen(&["userp*["]), Err(Error::Pattern { .. })));
    }

    #[test]
    fn some_are_skipped_and_the_rest_is_shared_out() {
        let skip = ["heap".to_owned()];
        let skipped = Selection {
            skip: &skip,
            ..Selection::default()
        };
        assert_eq!(
            chosen_by(&skipped).unwrap(),
            ["userptr::malloc_is_read", "userptr::leaves_cma"]
        );
        let all = ["*".to_owned()];
        let nothing = Selection {
            skip: &all,
            ..Selection::default()
        };
        assert_eq!(chosen_by(&nothing), Err(Error::AllSkipped));
        let share = |shard: &str| {
            chosen_by(&Selection {
                shard: Some(shard.parse().unwrap()),
                ..Selection::default()
            })
            .unwrap()
        };
        assert_eq!(
            share("1/2"),
            ["userptr::malloc_is_read", "heap::import_works"]
        );
        let mut both = [share("1/3"), share("2/3"), share("3/3")].concat();
        both.sort();
        let mut all = chosen(&[]).unwrap();
        all.sort();
        assert_eq!(both, all);
        for bad in ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_seed_decides_the_order() {
        let order = |seed| {
            chosen_by(&Selection {
                shuffle: Some(seed),
                ..Selection::default()
            })
            .unwrap()
        };
        assert_eq!(order(1), order(1));
        assert!((2..20).any(|seed| order(seed) != order(1)));
        let (mut shuffled, mut all) = (order(3), chosen(&[]).unwrap());
        shuffled.sort();
        all.sort();
        assert_eq!(shuffled, all);
    }

    #[test]
    fn the_failed_tests_of_the_last_run_are_chosen() {
        let failed = Some(BTreeSet::from(["userptr::leaves_cma".to_owned()]));
        let selection = Selection {
            failed,
            ..Selection::default()
        };
        assert_eq!(chosen_by(&selection).unwrap(), ["userptr::leaves_cma"]);
        let none = Selection {
            failed: Some(BTreeSet::new()),
            ..Selection::default()
        };
        assert_eq!(chosen_by(&none), Err(Error::NoneFailed));
        assert_eq!(failed_in(&[]), Err(Error::NoRun));
    }
}
