// SPDX-License-Identifier: Apache-2.0 OR MIT
//! kernels.toml: which kernels there are. Its own comments say what each field means.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::provision::Error;

/// The file.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    text: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    default: String,
    kernel: Vec<Recipe>,
}

/// How one kernel is made.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A version, such as "6.12".
    pub name: String,
    /// The Debian package.
    pub package: String,
    /// The Debian suites to look in.
    pub suites: Vec<String>,
    /// Names of fragments, without ".config".
    pub fragments: Vec<String>,
    /// Symbols the fragments ask for that this kernel does not have, without "CONFIG_".
    #[serde(default)]
    pub lacks: Vec<String>,
    /// About how many steps make takes.
    pub steps: u64,
}

impl Manifest {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Manifest::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Manifest {
            path: path.to_owned(),
            why,
        };
        let text: Text =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
        for (i, recipe) in text.kernel.iter().enumerate() {
            if version(&recipe.name).is_none() {
                return Err(bad(format!(
                    "the name {:?} is not a version such as \"6.12\"",
                    recipe.name
                )));
            }
            if text.kernel[..i]
                .iter()
                .any(|other| other.name == recipe.name)
            {
                return Err(bad(format!("there are two kernels named {}", recipe.name)));
            }
            if recipe.suites.is_empty() {
                return Err(bad(format!("kernel {} has no suites", recipe.name)));
            }
        }
        if !text.kernel.iter().any(|recipe| recipe.name == text.default) {
            return Err(bad(format!(
                "the default, {}, is not one of the kernels",
                text.default
            )));
        }
        Ok(Manifest {
            path: path.to_owned(),
            text,
        })
    }

    /// All entries, in the file's order.
    pub fn recipes(&self) -> &[Recipe] {
        &self.text.kernel
    }

    /// The names of all kernels, in the file's order.
    pub fn names(&self) -> Vec<String> {
        self.recipes()
            .iter()
            .map(|recipe| recipe.name.clone())
            .collect()
    }

    /// The default kernel.
    pub fn default(&self) -> Result<&Recipe, Error> {
        self.named(&self.text.default)
    }

    /// The kernel of this name.
    pub fn named(&self, name: &str) -> Result<&Recipe, Error> {
        self.recipes()
            .iter()
            .find(|recipe| recipe.name == name)
            .ok_or_else(|| self.unknown(name))
    }

    /// For a tree of this version: its entry, else the nearest older one, else the oldest.
    pub fn nearest(&self, tree: &str) -> Result<&Recipe, Error> {
        let wanted = version(tree);
        let mut sorted: Vec<_> = self.recipes().iter().collect();
        sorted.sort_by_key(|recipe| version(&recipe.name));
        let older = sorted
            .iter()
            .rev()
            .find(|recipe| version(&recipe.name) <= wanted);
        older
            .or(sorted.first())
            .copied()
            .ok_or_else(|| self.unknown(tree))
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.names().join(", ");
        Error::UnknownKernel {
            name: name.to_owned(),
            path: self.path.clone(),
            known,
        }
    }
}

/// Major and minor number: "6.12", "6.12.117" and "6.13.0-rc1" all have them.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> String {
        format!(
            "[[kernel]]\nname = \"{name}\"\npackage = \"p\"\nsuites = [\"s\"]\nfragments = []\nsteps = 1\n"
        )
    }

    fn parse(text: &str) -> Result<Manifest, Error> {
        Manifest::parse(Path::new("kernels.toml"), text)
    }

    #[test]
    fn the_checkouts_own_file_is_sound() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config/kernels.toml");
        let manifest = Manifest::read(&path).unwrap();
        assert_eq!(manifest.default().unwrap().name, "6.12");
    }

    #[test]
    fn a_tree_is_matched_with_the_nearest_older_kernel() {
        let text = ["5.10", "7.3", "6.12", "6.1"].map(entry).concat();
        let manifest = parse(&format!("default = \"6.12\"\n{text}")).unwrap();
        let nearest = |tree| manifest.nearest(tree).unwrap().name.clone();
        assert_eq!(nearest("6.12.117"), "6.12");
        assert_eq!(nearest("6.6.1"), "6.1");
        assert_eq!(nearest("6.18.0-rc3"), "6.12");
        assert_eq!(nearest("8.0.0"), "7.3");
        assert_eq!(nearest("4.19.3"), "5.10");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let why = |text: &str| match parse(text).unwrap_err() {
            Error::Manifest { why, .. } => why,
            other => panic!("{other}"),
        };
        assert!(
            why("default = [").contains("line 1"),
            "{}",
            why("default = [")
        );
        assert!(why(&format!("default = \"9.9\"\n{}", entry("6.1"))).contains("9.9"));
        assert!(
            why(&format!(
                "default = \"6.1\"\n{}{}",
                entry("6.1"),
                entry("6.1")
            ))
            .contains("two kernels")
        );
        assert!(why(&format!("default = \"6.1\"\n{}", entry("latest"))).contains("not a version"));
        assert!(
            why(&format!("default = \"6.1\"\n{}colour = 1\n", entry("6.1"))).contains("colour")
        );
        let manifest = parse(&format!("default = \"6.1\"\n{}", entry("6.1"))).unwrap();
        let Err(Error::UnknownKernel { known, .. }) = manifest.named("6.2") else {
            panic!()
        };
        assert_eq!(known, "6.1");
    }
}
