// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The baseline of a kernel: which tests are known to fail or to be skipped on it, and why. Everything else passes.
//!
//! ```toml
//! [xfail."group::what_a_correct_kernel_does"]
//! reason = "One sentence: what this kernel does instead."
//! reference = "The thread, commit or kernel file where that is known from."
//! # Optional: the failure is the known one only if each of its findings is among these. `text` is a part of the finding's text.
//! findings = [{ eye = "placement", text = "in CMA" }]
//!
//! [skip."group::another_one"]
//! reason = "What this kernel lacks."
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pinbed_abi::report::{Eye, Finding};
use serde::Deserialize;

/// What is known of one kernel.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Tests that fail there.
    #[serde(default)]
    pub xfail: BTreeMap<String, Xfail>,
    /// Tests that cannot run there.
    #[serde(default)]
    pub skip: BTreeMap<String, Skip>,
}

/// A test that is known to fail.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xfail {
    /// What the kernel does instead of the correct thing.
    pub reason: String,
    /// Where that is known from.
    pub reference: String,
    /// What the failure looks like; empty for any finding of an eye.
    #[serde(default)]
    pub findings: Vec<Pattern>,
}

/// What a known finding looks like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// Who sees it.
    pub eye: Eye,
    /// A part of its text; empty for any.
    #[serde(default)]
    pub text: String,
}

/// A test that is known not to run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    /// What the kernel lacks.
    pub reason: String,
}

/// Why a baseline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the baseline {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not what a baseline looks like.
    #[error("the baseline {path} is not valid")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: toml::de::Error,
    },
    /// The file is well-formed and does not make sense.
    #[error("the baseline {path} is not valid: {what}")]
    Sense {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Baseline {
    /// Reads a baseline and checks it against the names of all tests there are.
    ///
    /// # Errors
    /// When the file cannot be read, parsed, or names what does not exist, gives no reason, or contradicts itself.
    pub fn load<'a>(path: &Path, tests: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let baseline: Baseline = toml::from_str(&text).map_err(|source| Error::Parse {
            path: path.into(),
            source,
        })?;
        match baseline.nonsense(&tests.into_iter().collect()) {
            Some(what) => Err(Error::Sense {
                path: path.into(),
                what,
            }),
            None => Ok(baseline),
        }
    }

    /// The first thing that does not make sense.
    fn nonsense(&self, tests: &BTreeSet<&str>) -> Option<String> {
        let named = self
            .xfail
            .keys()
            .map(|name| ("xfail", name))
            .chain(self.skip.keys().map(|name| ("skip", name)));
        for (table, name) in named {
            if !tests.contains(name.as_str()) {
                let close = crate::suite::closest(name, tests.iter().copied());
                let hint = close
                    .first()
                    .map(|close| format!("; did you mean \"{close}\"?"))
                    .unwrap_or_default();
                return Some(format!("[{table}.\"{name}\"] names no test{hint}"));
            }
        }
        for (name, xfail) in &self.xfail {
            if self.skip.contains_key(name) {
                return Some(format!("\"{name}\" is both in xfail and in skip"));
            }
            for (field, value) in [("reason", &xfail.reason), ("reference", &xfail.reference)] {
                if value.trim().is_empty() {
                    return Some(format!("[xfail.\"{name}\"] has an empty {field}"));
                }
            }
        }
        let (name, _) = self
            .skip
            .iter()
            .find(|(_, skip)| skip.reason.trim().is_empty())?;
        Some(format!("[skip.\"{name}\"] has an empty reason"))
    }
}

impl Xfail {
    /// Whether these findings are the known failure. A finding of the harness (the test crashed, timed out, could not set itself up) is
    /// only if it is listed: it means that nothing was judged.
    pub fn explains(&self, findings: &[Finding]) -> bool {
        findings
            .iter()
            .all(|finding| match self.findings.as_slice() {
                [] => finding.eye != Eye::Harness,
                patterns => patterns.iter().any(|pattern| {
                    pattern.eye == finding.eye && finding.text.contains(&pattern.text)
                }),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    const TESTS: [&str; 3] = [
        "cma::page_leaves",
        "cma::region_is_whole",
        "heap::import_works",
    ];

    fn load(text: &str) -> Result<Baseline, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Baseline::load(file.path(), TESTS).map_err(|error| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
    }

    fn refused(text: &str, why: &str) {
        let error = load(text).expect_err(text);
        assert!(error.contains(why), "{error}\nlacks {why}");
    }

    #[test]
    fn an_empty_file_expects_everything_to_pass() {
        assert_eq!(load(""), Ok(Baseline::default()));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        refused(
            "[xfail.\"cma::page_leavs\"]\nreason = \"r\"\nreference = \"f\"",
            "did you mean \"cma::page_leaves\"?",
        );
        refused("[skip.\"cma::page_leaves\"]\n", "missing field `reason`");
        refused(
            "[xfail.\"cma::page_leaves\"]\nreason = \"r\"",
            "missing field `reference`",
        );
        refused(
            "[xfail.\"cma::page_leaves\"]\nreason = \" \"\nreference = \"f\"",
            "empty reason",
        );
        refused(
            "[xfail.\"cma::page_leaves\"]\nreason = \"r\"\nreference = \"\"",
            "empty reference",
        );
        refused("[skip.\"cma::page_leaves\"]\nreason = \"\"", "empty reason");
        refused(
            "[fail.\"cma::page_leaves\"]\nreason = \"r\"",
            "unknown field `fail`",
        );
        refused(
            "[skip.\"cma::page_leaves\"]\nreason = \"r\"\nwhy = \"\"",
            "unknown field `why`",
        );
        refused(
            "[xfail.\"cma::page_leaves\"]\nreason = \"r\"\nreference = \"f\"\n[skip.\"cma::page_leaves\"]\nreason = \"r\"",
            "both in xfail and in skip",
        );
        refused(
            "[xfail.\"cma::page_leaves\"]\nreason=\"r\"\nreference=\"f\"\nfindings=[{eye=\"nose\"}]",
            "unknown variant `nose`",
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Baseline::load(Path::new("/nonexistent/6.12.toml"), TESTS).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/6.12.toml"));
    }
}
