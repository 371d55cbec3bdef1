// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mutants: defects that a patch builds into a kernel, one of which its command line chooses; and whether the suite found one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glob::Pattern;
use pinbed_abi::report::Finding;
use serde::Deserialize;

use crate::judge::verdict::Verdict;

/// The patch's name: a kernel with it is `6.12+mutants`.
pub const PATCH: &str = "mutants";
/// The list of the defects, beside the patch.
const LIST: &str = "mutants.toml";

/// Why the list of mutants is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// It is no list of mutants.
    #[error("{path} is not valid: {why}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: toml::de::Error,
    },
    /// It and the patch do not agree, or an entry makes no sense.
    #[error("{path} is not valid: {what}")]
    Sense {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A mutant was asked for that there is not.
    #[error("there is no mutant \"{0}\"; `pinbed mutants --list` shows them all")]
    Unknown(String),
}

/// A defect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// Its name, as in the patch.
    pub name: String,
    /// What the kernel does wrong.
    pub defect: String,
    /// Texts of findings that name the cause, with * for any text.
    pub causes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    mutant: Vec<Mutant>,
}

/// Reads the list in `directory` and holds it against the patch's text.
///
/// # Errors
/// When it cannot be read, or does not name just what the patch has.
pub fn read(directory: &Path, patch: &str) -> Result<Vec<Mutant>, Error> {
    let path = directory.join(LIST);
    let text = fs::read_to_string(&path).map_err(|why| Error::Read {
        path: path.clone(),
        why,
    })?;
    let list = toml::from_str::<Text>(&text).map_err(|why| Error::Parse {
        path: path.clone(),
        why,
    })?;
    let nonsense = |what| Error::Sense {
        path: path.clone(),
        what,
    };
    let mut named = BTreeSet::new();
    for mutant in &list.mutant {
        if !named.insert(mutant.name.as_str()) {
            return Err(nonsense(format!("it names {} twice", mutant.name)));
        }
        for cause in &mutant.causes {
            Pattern::new(cause)
                .map_err(|why| nonsense(format!("the cause of {}: {why}", mutant.name)))?;
        }
    }
    let built = in_patch(patch);
    let differ: Vec<_> = named.symmetric_difference(&built).copied().collect();
    match differ.is_empty() {
        true => Ok(list.mutant),
        false => Err(nonsense(format!(
            "it and the patch do not have the same mutants: {}",
            differ.join(", ")
        ))),
    }
}

/// The names that lines added by a patch ask for.
fn in_patch(patch: &str) -> BTreeSet<&str> {
    let added = patch.lines().filter_map(|line| line.strip_prefix('+'));
    added
        .flat_map(|line| line.split("mutant(\"").skip(1))
        .filter_map(|rest| rest.split_once("\")").map(|(name, _)| name))
        .collect()
}

/// Those of `all` with these names; all without any.
///
/// # Errors
/// When one is not there.
pub fn choose(all: Vec<Mutant>, names: &[String]) -> Result<Vec<Mutant>, Error> {
    let is_known = |name: &&String| all.iter().any(|mutant| mutant.name == **name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        return Err(Error::Unknown(unknown.clone()));
    }
    let is_wanted = |mutant: &Mutant| names.is_empty() || names.contains(&mutant.name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

impl Mutant {
    /// The first of these findings that names the cause.
    pub fn names_cause<'a>(&self, findings: &[&'a Finding]) -> Option<&'a Finding> {
        let causes: Vec<_> = self.causes.iter().flat_map(|it| Pattern::new(it)).collect();
        let names = |finding: &&Finding| causes.iter().any(|cause| cause.matches(&finding.text));
        findings.iter().copied().find(names)
    }
}

/// What a verdict says of a mutant that is held to the baseline of the kernel without it: the findings if it shows the defect (none if a
/// failure that the baseline knows is gone).
pub fn shows(verdict: &Verdict) -> Option<&[Finding]> {
    match verdict {
        Verdict::Fail { findings, .. } => Some(findings),
        Verdict::Fixed { .. } => Some(&[]),
        Verdict::Pass | Verdict::Xfail { .. } | Verdict::Skip { .. } | Verdict::NotRun { .. } => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinbed_abi::report::Eye;

    const ONE: &str = "[[mutant]]\nname = \"one\"\ndefect = \"d\"\ncauses = [\"* pins left\"]\n";

    fn directory(list: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(LIST), list).unwrap();
        directory
    }

    #[test]
    fn the_list_and_the_patch_have_the_same_mutants() {
        let place = directory(ONE);
        let read = |patch| read(place.path(), patch);
        assert_eq!(read("+\tif (mutant(\"one\"))\n").unwrap().len(), 1);
        let error = read("+\tif (mutant(\"one\") || mutant(\"two\"))\n").unwrap_err();
        assert!(error.to_string().ends_with("two"), "{error}");
        let error = read("-\tif (mutant(\"one\"))\n").unwrap_err();
        assert!(error.to_string().ends_with("one"), "{error}");
    }

    #[test]
    fn the_checkouts_list_and_patch_agree() {
        let place =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config/patches/mutants");
        for patch in fs::read_dir(&place).unwrap().flatten() {
            let path = patch.path();
            if path.extension().is_some_and(|end| end == "patch") {
                read(&place, &fs::read_to_string(path).unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn a_cause_is_named_by_the_whole_text_of_a_finding() {
        let place = directory(ONE);
        let mutant = &read(place.path(), "+mutant(\"one\")").unwrap()[0];
        let finding = |text: &str| Finding {
            eye: Eye::Aftermath,
            text: text.to_owned(),
        };
        let (other, cause) = (finding("2 pins left over"), finding("2 pins left"));
        assert!(mutant.names_cause(&[&other]).is_none());
        assert!(mutant.names_cause(&[&other, &cause]).is_some());
    }
}
