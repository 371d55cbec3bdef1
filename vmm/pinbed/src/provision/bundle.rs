// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cache as one file, for a machine without a network: what was fetched and built, without what is work in progress.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::cache::{Cache, Entry, STARTS, create_dir};
use super::child::Run;
use super::inventory::Depth;
use super::progress::Unit;
use super::{Context, Error};

/// Writes all complete entries to a tarball; its name says how it is compressed (.tar, .tar.gz, .tar.zst). Returns their names.
///
/// # Errors
/// When an entry is damaged, there is none, or the file cannot be written.
pub fn export(context: &Context, file: &Path) -> Result<Vec<String>, Error> {
    let cache = &context.cache;
    let is_wanted =
        |entry: &Entry| entry.is_complete() && !entry.name().starts_with(&format!("{STARTS}/"));
    let complete = cache.all().into_iter().filter(is_wanted);
    let mut names = Vec::new();
    for entry in complete {
        if let Some(why) = entry.damage(Depth::Sizes) {
            return Err(Error::Damaged {
                what: entry.name(),
                why,
            });
        }
        names.push(entry.name());
    }
    let (parent, name) = match (file.parent(), file.file_name()) {
        (Some(parent), Some(name)) => (parent, name.to_string_lossy()),
        _ => (Path::new("."), "".into()),
    };
    // There as a whole or not at all; the end of the name is tar's to see.
    let partial = parent.join(format!(".partial-{name}"));
    let partial = std::path::absolute(&partial).map_err(|e| Error::io("write", file, e))?;
    let mut task = context
        .progress
        .start(format!("writing {}", file.display()), Unit::Bytes, None);
    let mut tar = Command::new("tar");
    tar.args(["--create", "--auto-compress", "--file"])
        .arg(&partial)
        .arg("--directory")
        .arg(cache.root())
        .args(&names);
    let written = Run::new("tar", tar)
        .errors(|line| line.starts_with("tar: "))
        .checked(|_| task.set(partial.metadata().map_or(0, |file| file.len())));
    if let Err(error) = written {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    fs::rename(&partial, file).map_err(|e| Error::io("write", file, e))?;
    task.finish(&format!("wrote {}", file.display()));
    Ok(names)
}

/// Takes in the entries of such a file that are not here yet, each checked against its list. Returns their names.
///
/// # Errors
/// When the file cannot be read, or an entry in it is damaged.
pub fn import(context: &Context, file: &Path) -> Result<Vec<String>, Error> {
    let root = context.cache.root();
    create_dir(root)?;
    let staging = tempfile::Builder::new().prefix("import-").tempdir_in(root);
    let staging = staging.map_err(|e| Error::io("write", root, e))?;
    let mut task = context.progress.start(
        format!("reading {}", file.display()),
        Unit::Count("entries"),
        None,
    );
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--file"])
        .arg(file)
        .arg("--directory")
        .arg(staging.path());
    Run::new("tar", tar)
        .errors(|line| line.starts_with("tar: "))
        .checked(|_| task.tick())?;
    let mut taken = Vec::new();
    for entry in Cache::at(staging.path().to_owned()).all() {
        if !entry.is_complete() {
            continue;
        }
        let name = entry.name();
        if let Some(why) = entry.damage(Depth::Contents) {
            let what = format!("{name} in {}", file.display());
            return Err(Error::Damaged { what, why });
        }
        let Some((kind, key)) = name.split_once('/') else {
            continue;
        };
        let place = context.cache.entry(kind, key);
        let work = place.lock(&context.progress)?;
        if place.is_complete() && place.damage(Depth::Sizes).is_none() {
            continue;
        }
        let replace = || {
            fs::remove_dir_all(work.dir())?;
            fs::rename(entry.dir(), work.dir())
        };
        replace().map_err(|e| Error::io("write", place.dir(), e))?;
        taken.push(name);
        task.inc();
    }
    task.finish(&format!("took in {} entries", taken.len()));
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::inventory::Check;
    use crate::provision::progress::Progress;

    fn context(root: &Path) -> Context {
        Context {
            cache: Cache::at(root.to_owned()),
            progress: Progress::new(),
        }
    }

    fn make(context: &Context, kind: &str, complete: bool) {
        let work = context
            .cache
            .entry(kind, "x")
            .lock(&context.progress)
            .unwrap();
        fs::write(work.dir().join("file"), kind).unwrap();
        if complete {
            work.publish(&1, Check::EachUse, &[]).unwrap();
        }
    }

    #[test]
    fn what_is_exported_can_be_imported_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (
            context(&directory.path().join("here")),
            context(&directory.path().join("there")),
        );
        for kind in ["qemu", "source"] {
            make(&here, kind, true);
        }
        make(&here, "build", false);
        make(&here, STARTS, true);
        make(&there, "qemu", true);
        let file = directory.path().join("cache.tar.gz");
        assert_eq!(export(&here, &file).unwrap(), ["qemu/x", "source/x"]);
        assert_eq!(import(&there, &file).unwrap(), ["source/x"]);
        let entry = there.cache.entry("source", "x");
        assert_eq!(entry.record(), Some(1));
        assert_eq!(fs::read(entry.dir().join("file")).unwrap(), b"source");
        let left = |name: &str| name.starts_with("import-") || name.starts_with(".partial");
        for root in [directory.path(), there.cache.root()] {
            let names = fs::read_dir(root).unwrap().flatten();
            let mut names = names.map(|file| file.file_name().into_string().unwrap());
            assert!(!names.any(|name| left(&name)));
        }
    }

    #[test]
    fn a_file_that_was_damaged_on_the_way_is_not_taken_in() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (
            context(&directory.path().join("here")),
            context(&directory.path().join("there")),
        );
        make(&here, "source", true);
        // As long as before, so that only its sum tells.
        fs::write(here.cache.entry("source", "x").dir().join("file"), "sourse").unwrap();
        let file = directory.path().join("cache.tar");
        export(&here, &file).unwrap();
        let error = import(&there, &file).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(!there.cache.entry("source", "x").is_complete());
    }
}
