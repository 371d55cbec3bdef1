// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel source trees: Debian's, unpacked into the cache, or a user's own, left as it is.

use std::fs::{self, File};
use std::io::Seek;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::Recipe;
use crate::provision::apt::{self, Apt};
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::Run;
use crate::provision::inventory::{Check, Depth};
use crate::provision::progress::Unit;
use crate::provision::{Context, Error};

/// The space that a package, the tarball in it and the unpacked tree take at the same time.
const SPACE: u64 = 2300 << 20;

/// A tree to build from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its top.
    pub dir: PathBuf,
    /// The kernel's version, "6.12.117".
    pub version: String,
    /// What tells its content from another's.
    pub identity: String,
    /// Its entry in the cache; none of a user's own, which may change between two runs.
    pub entry: Option<Entry>,
}

/// The record of an unpacked Debian package.
#[derive(Serialize, Deserialize)]
struct Unpacked {
    package: String,
    version: String,
    sha256: String,
}

impl Source {
    /// The recipe's package out of Debian; fetched once, and the same from then on.
    pub fn of_debian(context: &Context, recipe: &Recipe) -> Result<Self, Error> {
        let entry = context.cache.entry("source", &recipe.name);
        let unpacked = match entry.record::<Unpacked>() {
            Some(unpacked) => unpacked,
            None => {
                let work = entry.lock(&context.progress)?;
                match entry.record::<Unpacked>() {
                    Some(unpacked) => unpacked,
                    None => fetch(context, recipe, &work)?,
                }
            }
        };
        let dir = entry.dir().join("tree");
        Ok(Source {
            version: version(&dir)?,
            dir,
            identity: format!(
                "{} {} {}",
                unpacked.package, unpacked.version, unpacked.sha256
            ),
            entry: Some(entry),
        })
    }

    /// A user's own tree. It must be clean enough to be built out of tree.
    pub fn of_user(dir: &Path) -> Result<Self, Error> {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        for lacks in ["Makefile", "Kconfig", "mm/gup.c"] {
            if !dir.join(lacks).is_file() {
                return Err(Error::NotAKernelTree { path: dir, lacks });
            }
        }
        // What the top Makefile looks for before it builds out of tree.
        for product in [".config", "include/config", "arch/x86/include/generated"] {
            if dir.join(product).exists() {
                return Err(Error::BuiltInPlace {
                    path: dir,
                    product: product.to_owned(),
                });
            }
        }
        Ok(Source {
            version: version(&dir)?,
            identity: state(&dir)?,
            dir,
            entry: None,
        })
    }
}

/// Takes a source away that has lost files, so that it is fetched again. Whether it has.
pub fn heal(context: &Context, recipe: &Recipe) -> Result<bool, Error> {
    let entry = context.cache.entry("source", &recipe.name);
    heal_entry(context, &entry)
}

/// Takes an entry away that has lost files. Whether it has.
pub fn heal_entry(context: &Context, entry: &Entry) -> Result<bool, Error> {
    let Some(why) = entry.damage(Depth::Sizes) else {
        return Ok(false);
    };
    context.progress.say(&format!(
        "{} is damaged: {why}; fetching it again",
        entry.dir().display()
    ));
    entry.lock(&context.progress)?.retract()?;
    Ok(true)
}

/// Names, sizes and times of all files: tells an edited tree from an unedited one in a fraction of a second.
fn state(dir: &Path) -> Result<String, Error> {
    let mut print = Fingerprint::default();
    let files = WalkDir::new(dir)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.file_name() != ".git");
    for file in files {
        let found = file.and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = found.map_err(|e| {
            let path = e.path().unwrap_or(dir).to_owned();
            Error::io("read", &path, e.into())
        })?;
        if !metadata.is_dir() {
            let mark = format!(
                "{} {} {}",
                metadata.size(),
                metadata.mtime(),
                metadata.mtime_nsec()
            );
            print = print.add(&file.path().to_string_lossy(), mark);
        }
    }
    Ok(print.finish())
}

/// VERSION, PATCHLEVEL, SUBLEVEL and EXTRAVERSION at the head of the top Makefile.
fn version(dir: &Path) -> Result<String, Error> {
    let path = dir.join("Makefile");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let field = |name: &str| {
        let line = text
            .lines()
            .take(20)
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.unwrap_or_default().trim().to_owned()
    };
    Ok(format!(
        "{}.{}.{}{}",
        field("VERSION"),
        field("PATCHLEVEL"),
        field("SUBLEVEL"),
        field("EXTRAVERSION")
    ))
}

fn fetch(context: &Context, recipe: &Recipe, work: &Locked) -> Result<Unpacked, Error> {
    context.cache.require_free(SPACE)?;
    let apt = Apt::open(context, &recipe.suites)?;
    let deb = apt.package(&recipe.package)?;
    let what = format!("{} {}", deb.package, deb.version);
    let files = apt.download(&what, std::slice::from_ref(&deb))?;
    let package = work.fresh("package")?;
    for file in &files {
        apt::unpack(file, &package, |_| {})?;
    }
    let tarball = package
        .join("usr/src")
        .join(format!("{}.tar.xz", recipe.package));
    let tree = work.fresh("tree")?;
    let file = File::open(&tarball).map_err(|e| Error::io("read", &tarball, e))?;
    let size = file
        .metadata()
        .map_err(|e| Error::io("read", &tarball, e))?
        .len();
    // tar reads from a descriptor whose position we share, which is how far it is.
    let mut position = file
        .try_clone()
        .map_err(|e| Error::io("read", &tarball, e))?;
    let mut task = context.progress.start(
        format!("unpacking {}", recipe.package),
        Unit::Bytes,
        Some(size),
    );
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--strip-components=1", "--file=-"])
        .current_dir(&tree);
    Run::new("tar", tar)
        .stdin(file)
        .checked(|_| task.set(position.stream_position().unwrap_or_default()))?;
    let unpacked = Unpacked {
        package: deb.package,
        version: deb.version,
        sha256: deb.sha256,
    };
    work.publish(
        &unpacked,
        Check::OnFailure,
        &["package", "originals", "patching"],
    )?;
    task.finish(&format!("unpacked {what}"));
    // Only now: an unpacking that is interrupted must not cost the download again.
    fs::remove_dir_all(&package).map_err(|e| Error::io("delete", &package, e))?;
    for file in &files {
        fs::remove_file(file).map_err(|e| Error::io("delete", file, e))?;
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Manifest;
    use crate::provision::cache::Cache;
    use crate::provision::progress::Progress;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mm")).unwrap();
        for (name, text) in [
            (
                "Makefile",
                "# SPDX\nVERSION = 6\nPATCHLEVEL = 13\nSUBLEVEL = 0\nEXTRAVERSION = -rc4\nNAME = x\n",
            ),
            ("Kconfig", ""),
            ("mm/gup.c", ""),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_users_tree_is_recognised() {
        let dir = tree();
        let source = Source::of_user(dir.path()).unwrap();
        assert_eq!(source.version, "6.13.0-rc4");
        fs::remove_file(dir.path().join("mm/gup.c")).unwrap();
        assert!(matches!(
            Source::of_user(dir.path()),
            Err(Error::NotAKernelTree {
                lacks: "mm/gup.c",
                ..
            })
        ));
    }

    #[test]
    fn a_tree_built_in_place_is_refused() {
        let dir = tree();
        fs::write(dir.path().join(".config"), "").unwrap();
        let error = Source::of_user(dir.path()).unwrap_err();
        assert!(
            matches!(&error, Error::BuiltInPlace { product, .. } if product == ".config"),
            "{error}"
        );
    }

    #[test]
    fn an_edit_changes_the_identity_and_git_does_not() {
        let dir = tree();
        let before = Source::of_user(dir.path()).unwrap().identity;
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".git/index"), "x").unwrap();
        assert_eq!(Source::of_user(dir.path()).unwrap().identity, before);
        fs::write(dir.path().join("mm/gup.c"), "x").unwrap();
        assert_ne!(Source::of_user(dir.path()).unwrap().identity, before);
    }

    #[test]
    fn a_source_that_lost_a_file_is_fetched_again() {
        let directory = tempfile::tempdir().unwrap();
        let context = Context {
            cache: Cache::at(directory.path().to_owned()),
            progress: Progress::new(),
        };
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config");
        let manifest = Manifest::read(&config.join("kernels.toml")).unwrap();
        let recipe = manifest.default().unwrap();
        let entry = context.cache.entry("source", &recipe.name);
        let work = entry.lock(&context.progress).unwrap();
        let header = work.fresh("tree").unwrap().join("mm.h");
        fs::write(&header, "").unwrap();
        work.publish(&"", Check::OnFailure, &[]).unwrap();
        drop(work);
        assert!(!heal(&context, recipe).unwrap());
        assert!(entry.record::<String>().is_some());
        fs::remove_file(header).unwrap();
        assert!(
            entry.record::<String>().is_some(),
            "it is not checked on use"
        );
        assert!(heal(&context, recipe).unwrap());
        assert!(entry.record::<String>().is_none());
    }
}
