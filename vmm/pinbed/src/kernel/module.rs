// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds the driver as an external module, from a copy: nothing is written in the checkout.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Kernel;
use super::build::{is_error, make, prefixed};
use super::patch::Held;
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::Run;
use crate::provision::inventory::Check;
use crate::provision::progress::Unit;
use crate::provision::{Context, Error};

/// The module's file name.
const MODULE: &str = "pinbed.ko";

/// The record of a built module.
#[derive(Serialize, Deserialize)]
struct Built {
    fingerprint: String,
}

/// Finds the driver for this kernel in the cache, or builds it. `driver` is its source directory.
///
/// Returns the path of pinbed.ko.
pub fn provide(context: &Context, kernel: &Kernel, driver: &Path) -> Result<PathBuf, Error> {
    let sources = sources(driver)?;
    let fingerprint = sources
        .iter()
        .fold(
            Fingerprint::default().add("kernel", &kernel.fingerprint),
            |print, (name, text)| print.add(&name.to_string_lossy(), text),
        )
        .finish();
    // One entry for each kernel and checkout, so that an edit recompiles what it must and no more.
    let place = Fingerprint::default()
        .add("objects", kernel.objects.as_os_str().as_encoded_bytes())
        .add("driver", driver.as_os_str().as_encoded_bytes())
        .finish();
    let entry = context
        .cache
        .entry("module", &format!("{}-{place}", kernel.name));
    if !found(&entry, &fingerprint) {
        let work = entry.lock(&context.progress)?;
        if !found(&entry, &fingerprint) {
            build(context, kernel, &sources, &work, fingerprint)?;
        }
    }
    Ok(entry.dir().join(MODULE))
}

fn found(entry: &Entry, fingerprint: &str) -> bool {
    let right =
        |built: Built| built.fingerprint == fingerprint && entry.dir().join(MODULE).exists();
    entry.record().is_some_and(right)
}

/// The driver's files by name, without what an editor or an earlier build left.
fn sources(driver: &Path) -> Result<BTreeMap<OsString, Vec<u8>>, Error> {
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(driver).map_err(|e| Error::io("read", driver, e))? {
        let path = entry.map_err(|e| Error::io("read", driver, e))?.path();
        let (Some(name), extension) = (path.file_name(), path.extension().and_then(|e| e.to_str()))
        else {
            continue;
        };
        let wanted = matches!(extension, Some("c" | "h")) || name == "Kbuild";
        if wanted && !name.to_string_lossy().ends_with(".mod.c") {
            sources.insert(
                name.to_owned(),
                fs::read(&path).map_err(|e| Error::io("read", &path, e))?,
            );
        }
    }
    if sources.contains_key(Path::new("Kbuild").as_os_str()) {
        Ok(sources)
    } else {
        Err(Error::NoDriver {
            path: driver.to_owned(),
        })
    }
}

/// Makes `dir` hold the same sources. What is the same already keeps its time, which is what make goes by.
fn mirror(sources: &BTreeMap<OsString, Vec<u8>>, dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))? {
        let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
        let is_source = matches!(path.extension().and_then(|e| e.to_str()), Some("c" | "h"));
        let stale = path
            .file_name()
            .is_some_and(|name| !sources.contains_key(name));
        if is_source && stale {
            fs::remove_file(&path).map_err(|e| Error::io("delete", &path, e))?;
        }
    }
    for (name, text) in sources {
        let path = dir.join(name);
        if fs::read(&path).ok().as_ref() != Some(text) {
            fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        }
    }
    Ok(())
}

fn build(
    context: &Context,
    kernel: &Kernel,
    sources: &BTreeMap<OsString, Vec<u8>>,
    work: &Locked,
    fingerprint: String,
) -> Result<(), Error> {
    work.retract()?;
    let dir = work.dir().join("source");
    mirror(sources, &dir)?;
    let mut task = context.progress.start(
        format!("building {MODULE} for kernel {}", kernel.release),
        Unit::Count("steps"),
        None,
    );
    // A patch may change headers.
    let _source = Held::new(context, &kernel.source, &kernel.patches)?;
    let mut command = make(&kernel.source.dir, &kernel.objects);
    command
        .arg(prefixed("M=", &dir))
        .arg("modules")
        .current_dir(&dir);
    Run::new("the driver's build", command)
        .log(work.dir().join("build.log"))
        .errors(is_error)
        .checked(|_| task.tick())?;
    let (from, to) = (dir.join(MODULE), work.dir().join(MODULE));
    fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?;
    work.publish(
        &Built { fingerprint },
        Check::EachUse,
        &["source", "build.log"],
    )?;
    task.finish(&format!("built {MODULE} for kernel {}", kernel.release));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_are_taken_and_a_kbuild_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a.c",
            "a.h",
            "a.o",
            "pinbed.mod.c",
            "Module.symvers",
            "a.c~",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert!(matches!(sources(dir.path()), Err(Error::NoDriver { .. })));
        fs::write(dir.path().join("Kbuild"), "obj-m := pinbed.o").unwrap();
        let names: Vec<_> = sources(dir.path()).unwrap().into_keys().collect();
        assert_eq!(names, ["Kbuild", "a.c", "a.h"]);
    }

    #[test]
    fn the_copy_follows_the_checkout_and_leaves_the_unchanged_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(n, t)| (OsString::from(n), t.as_bytes().to_vec()))
                .collect()
        };
        mirror(&files(&[("a.c", "1"), ("b.h", "1")]), dir.path()).unwrap();
        fs::write(dir.path().join("a.o"), "object").unwrap();
        let time = |name: &str| {
            fs::metadata(dir.path().join(name))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = time("a.c");
        mirror(&files(&[("a.c", "1"), ("c.h", "2")]), dir.path()).unwrap();
        assert_eq!(time("a.c"), before);
        assert!(!dir.path().join("b.h").exists());
        assert!(dir.path().join("a.o").exists());
        assert_eq!(fs::read(dir.path().join("c.h")).unwrap(), b"2");
    }
}
