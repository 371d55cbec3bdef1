// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ccache, where it is installed: a tree that equals another one but for its path, or nearly, is compiled out of its cache.
//!
//! The compiler's command line must not have the path of the tree in it for that. kbuild writes ".." for the source where the object
//! directory lies in it, so make works in a directory of links to what the source has, and the object directory is there.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::provision::Error;
use crate::provision::cache::create_dir;

/// What the name of a place ends with where make works so.
pub const SUFFIX: &str = ".ccache";

/// What a source has that make is not to find.
const HIDDEN: &str = ".git";

/// The object directory, beside the links.
const OBJECTS: &str = "objects";

/// Whether ccache is to be used: it is installed, and CCACHE_DISABLE does not forbid it.
pub fn is_there() -> bool {
    env::var_os("CCACHE_DISABLE").is_none() && which::which("ccache").is_ok()
}

/// How make compiles with it.
pub struct Ccache {
    /// Where ccache says what came of each call.
    log: PathBuf,
}

impl Ccache {
    /// `log` is a file of a build's own.
    ///
    /// # Errors
    /// When the file of an earlier build cannot be removed.
    pub fn new(log: PathBuf) -> Result<Self, Error> {
        match fs::remove_file(&log) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("delete", &log, e)),
            _ => Ok(Ccache { log }),
        }
    }

    /// Has make use it.
    pub fn tell(&self, make: &mut Command) {
        make.args(["CC=ccache gcc", "HOSTCC=ccache gcc"])
            .env("CCACHE_STATSLOG", &self.log);
    }

    /// How many compilations came out of the cache, and how many there were.
    pub fn hits(&self) -> (usize, usize) {
        counted(&fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// The log has a comment with the file's name for each call, and the counters that the call adds to, a line each.
fn counted(log: &str) -> (usize, usize) {
    let count = |counters: &[&str]| log.lines().filter(|line| counters.contains(line)).count();
    let hits = count(&["direct_cache_hit", "preprocessed_cache_hit"]);
    (hits, hits + count(&["cache_miss"]))
}

/// Makes links in `directory` to what is at the top of a source, and an object directory beside them.
///
/// # Errors
/// When a link cannot be made.
pub fn links(source: &Path, directory: &Path) -> Result<PathBuf, Error> {
    let objects = directory.join(OBJECTS);
    create_dir(&objects)?;
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).map_err(|e| Error::io("read", directory, e))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        Ok::<_, Error>(names.filter(|name| name != OBJECTS && name != HIDDEN))
    };
    for name in names(directory)? {
        let link = directory.join(&name);
        if fs::read_link(&link).ok() != Some(source.join(&name)) || !link.exists() {
            fs::remove_file(&link).map_err(|e| Error::io("delete", &link, e))?;
        }
    }
    for name in names(source)? {
        link(source, directory, &name)?;
    }
    Ok(objects)
}

fn link(source: &Path, directory: &Path, name: &OsStr) -> Result<(), Error> {
    let link = directory.join(name);
    match symlink(source.join(name), &link) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(Error::io("write", &link, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_the_source() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two, place] = ["one", "two", "place"].map(|name| directory.path().join(name));
        for tree in [&one, &two] {
            fs::create_dir_all(tree.join("mm")).unwrap();
            fs::create_dir_all(tree.join(".git")).unwrap();
            fs::write(tree.join("Makefile"), tree.to_str().unwrap()).unwrap();
        }
        fs::write(one.join("COPYING"), "").unwrap();
        let read = |name: &str| fs::read_to_string(place.join(name)).ok();
        let objects = links(&one, &place).unwrap();
        fs::write(objects.join("vmlinux"), "").unwrap();
        assert_eq!(read("Makefile").as_deref(), one.to_str());
        assert_eq!(read("COPYING").as_deref(), Some(""));
        assert!(!place.join(".git").exists());
        links(&two, &place).unwrap();
        assert_eq!(read("Makefile").as_deref(), two.to_str());
        assert!(place.join("COPYING").symlink_metadata().is_err());
        fs::remove_file(two.join("Makefile")).unwrap();
        links(&two, &place).unwrap();
        assert!(place.join("Makefile").symlink_metadata().is_err());
        assert_eq!(read("objects/vmlinux").as_deref(), Some(""));
    }

    #[test]
    fn hits_are_counted_of_both_kinds() {
        let log = "# ../mm/gup.c\ndirect_cache_hit\nlocal_storage_hit\n# ../mm/a.c\ncache_miss\ndirect_cache_miss\n\
                   # ../mm/b.c\ndirect_cache_miss\npreprocessed_cache_hit\n# conftest.c\ncalled_for_link\n";
        assert_eq!(counted(log), (2, 3));
        assert_eq!(counted(""), (0, 0));
    }
}
