// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which tests there are, and which of them a person means.

use pinbed_abi::report::TestInfo;

use crate::judge::closest;

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

/// The tests that match any of the filters, in the order of `tests`; all of them without a filter.
///
/// # Errors
/// When a filter matches nothing.
pub fn select(tests: &[TestInfo], filters: &[String]) -> Result<Vec<TestInfo>, Error> {
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
        .map(|(test, _)| test.clone())
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
        Ok(select(&tests(), &filters)?
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
}
