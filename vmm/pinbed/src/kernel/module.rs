// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds the driver as an external module, from a copy: nothing is written in the checkout. Beside it v4l2-mem2mem is built for
//! kernels without it, of their own source.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use super::Kernel;
use super::make::{is_error, make, prefixed};
use super::patch::Held;
use super::source::Source;
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::Run;
use crate::provision::inventory::Check;
use crate::provision::progress::Unit;
use crate::provision::{Context, Error};

/// The module's file name.
const MODULE: &str = "pinbed.ko";

/// The module of V4L2 that kernels leave out when no driver of theirs uses it.
const MEM2MEM_KO: &str = "v4l2-mem2mem.ko";

/// Its source in a kernel's tree, a file of that name alone.
pub const MEM2MEM: &str = "drivers/media/v4l2-core/v4l2-mem2mem.c";

/// What modules for a kernel are built against.
#[derive(Clone, Debug)]
pub struct Kit {
    /// Where make starts: the source, or the object directory itself where its own Makefile leads there.
    pub make: PathBuf,
    /// The object directory, or headers in its place.
    pub objects: PathBuf,
    /// What else make is told.
    pub arguments: Vec<String>,
    /// The kernel's v4l2-mem2mem.c, if it was built without.
    pub mem2mem: Option<PathBuf>,
    /// The tree of the source, if it is one that patches change.
    pub tree: Option<Source>,
}

/// What is built for a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// pinbed.ko.
    pub module: PathBuf,
    /// v4l2-mem2mem.ko, if the kernel itself has none.
    pub mem2mem: Option<PathBuf>,
}

/// The record of a built module.
#[derive(Serialize, Deserialize)]
struct Built {
    fingerprint: String,
}

/// Finds the driver for this kernel in the cache, or builds it. `driver` is its source directory.
pub fn provide(context: &Context, kernel: &Kernel, driver: &Path) -> Result<Driver, Error> {
    let mut sources = sources(driver)?;
    if let Some(path) = &kernel.kit.mem2mem {
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        sources.insert("v4l2-mem2mem.c".into(), text);
    }
    let fingerprint = sources
        .iter()
        .fold(
            Fingerprint::default().add("kernel", &kernel.fingerprint),
            |print, (name, text)| print.add(&name.to_string_lossy(), text),
        )
        .finish();
    // One entry for each kernel and checkout, so that an edit recompiles what it must and no more.
    let place = Fingerprint::default()
        .add("objects", kernel.kit.objects.as_os_str().as_encoded_bytes())
        .add("make", kernel.kit.make.as_os_str().as_encoded_bytes())
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
    Ok(Driver {
        module: entry.dir().join(MODULE),
        mem2mem: kernel
            .kit
            .mem2mem
            .is_some()
            .then(|| entry.dir().join(MEM2MEM_KO)),
    })
}

fn found(entry: &Entry, fingerprint: &str) -> bool {
    let right =
        |built: Built| built.fingerprint == fingerprint && entry.dir().join(MODULE).exists();
    entry.record().is_some_and(right)
}

/// Whether a person wrote the file. modpost writes .mod.c, once, and a build that was interrupted after it needs that.
fn is_source(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    (name.ends_with(".c") || name.ends_with(".h")) && !name.ends_with(".mod.c")
}

/// The driver's files by name, without what an editor or an earlier build left.
fn sources(driver: &Path) -> Result<BTreeMap<OsString, Vec<u8>>, Error> {
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(driver).map_err(|e| Error::io("read", driver, e))? {
        let entry = entry.map_err(|e| Error::io("read", driver, e))?;
        let (name, path) = (entry.file_name(), entry.path());
        if is_source(&name) || name == "Kbuild" {
            let text = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            sources.insert(name, text);
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
        let entry = entry.map_err(|e| Error::io("read", dir, e))?;
        let (name, path) = (entry.file_name(), entry.path());
        if is_source(&name) && !sources.contains_key(&name) {
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
    let kit = &kernel.kit;
    let _held = match &kit.tree {
        Some(tree) => Some(Held::new(context, tree, &kernel.patches)?),
        None => None,
    };
    let mut command = make(&kit.make, &kit.objects);
    command
        .args(&kit.arguments)
        .arg(format!(
            "-j{}",
            available_parallelism().map_or(1, usize::from)
        ))
        .arg(prefixed("M=", &dir))
        .arg("modules")
        .current_dir(&dir);
    Run::new("the driver's build", command)
        .log(work.dir().join("build.log"))
        .errors(is_error)
        .checked(|_| task.tick())?;
    for module in [MODULE]
        .into_iter()
        .chain(kit.mem2mem.as_ref().map(|_| MEM2MEM_KO))
    {
        let (from, to) = (dir.join(module), work.dir().join(module));
        fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?;
    }
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
        for made in ["a.o", "a.mod.c"] {
            fs::write(dir.path().join(made), "made").unwrap();
        }
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
        for made in ["a.o", "a.mod.c"] {
            assert!(dir.path().join(made).exists(), "{made}");
        }
        assert_eq!(fs::read(dir.path().join("c.h")).unwrap(), b"2");
    }
}
