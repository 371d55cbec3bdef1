// SPDX-License-Identifier: Apache-2.0 OR MIT
//! kernels.toml: which kernels there are. Its own comments say what each field means.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use origin::Origin;

use super::origin;
use crate::provision::Error;

/// The file.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    text: Text,
    /// The name of the newest kernel, once it has been looked for.
    newest: Option<String>,
    /// Kernels that the file does not have.
    extra: Vec<Recipe>,
}

/// The name for the newest kernel that the suites have.
pub const NEWEST: &str = "newest";
/// What the names of packages with kernels' sources begin with.
pub const PACKAGE: &str = "linux-source-";

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
    /// Where its source comes from; the first that has it is taken.
    pub sources: Vec<Origin>,
    /// What baselines call it, where that is not the name.
    #[serde(skip)]
    pub baseline: Option<String>,
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

    /// Checks the file's text; `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
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
            if recipe.sources.is_empty() {
                return Err(bad(format!("kernel {} has no sources", recipe.name)));
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
            newest: None,
            extra: Vec::new(),
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

    /// Takes in the newest kernel that there is, for [`NEWEST`] to name: the entry of its version, else a new one like that of the next
    /// older, whose baseline it is held to.
    ///
    /// # Errors
    /// When the package is not of a kernel.
    pub fn add_newest(&mut self, package: &str, suites: &[String]) -> Result<(), Error> {
        let name = package.strip_prefix(PACKAGE).unwrap_or(package);
        if version(name).is_none() {
            return Err(self.unknown(package));
        }
        self.newest = Some(name.to_owned());
        if self.named(name).is_ok() {
            return Ok(());
        }
        let older = self.nearest(name)?;
        let recipe = Recipe {
            name: name.to_owned(),
            sources: vec![Origin::debian(package, suites)],
            baseline: Some(older.name.clone()),
            ..older.clone()
        };
        self.extra.push(recipe);
        Ok(())
    }

    /// The suites in which [`NEWEST`] is looked for: all that the file names of the host's own mirrors.
    pub fn suites(&self) -> Vec<String> {
        let mut suites: Vec<String> = Vec::new();
        for origin in self.recipes().iter().flat_map(|recipe| &recipe.sources) {
            for suite in origin.host_suites() {
                if !suites.contains(suite) {
                    suites.push(suite.clone());
                }
            }
        }
        suites
    }

    /// The kernel of this name.
    pub fn named(&self, name: &str) -> Result<&Recipe, Error> {
        let name = match (name, &self.newest) {
            (NEWEST, Some(newest)) => newest,
            _ => name,
        };
        self.recipes()
            .iter()
            .chain(&self.extra)
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
            "[[kernel]]\nname = \"{name}\"\nsources = [{{ package = \"p\", suites = [\"s\"] }}]\nfragments = []\nsteps = 1\n"
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
    fn the_newest_is_an_entry_or_one_like_the_next_older() {
        let text = ["6.12", "7.3"].map(entry).concat();
        let mut manifest = parse(&format!("default = \"6.12\"\n{text}")).unwrap();
        assert!(manifest.named(NEWEST).is_err());
        assert_eq!(manifest.suites(), ["s"]);
        manifest.add_newest("linux-source-7.3", &[]).unwrap();
        let newest = manifest.named(NEWEST).unwrap();
        assert_eq!((newest.name.as_str(), &newest.baseline), ("7.3", &None));
        manifest.add_newest("linux-source-7.10", &[]).unwrap();
        let newest = manifest.named(NEWEST).unwrap();
        assert_eq!(newest.name, "7.10");
        assert_eq!(newest.baseline.as_deref(), Some("7.3"));
        assert_eq!(manifest.names(), ["6.12", "7.3"], "\"all\" is the file's");
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
