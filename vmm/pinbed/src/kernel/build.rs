// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds a kernel out of tree: configure, check, make.
//!
//! make works in one place for each source tree, whatever the configuration, so that a build that was interrupted, a changed fragment or
//! an edited tree cost what they must and no more. (A fragment such as `dwarf`, with which every file is compiled anew, has a place of its
//! own beside it, so that both stay warm.) kbuild's own tools contain their path: the place cannot move.
//! What is used of a built kernel is then copied into an entry that never changes again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};
use walkdir::{DirEntry, WalkDir};

use super::config::{Config, Wish};
use super::make::{LOCALVERSION, is_error, is_fatal, is_of_object, is_step, make};
use super::module::{Kit, MEM2MEM};
use super::patch::Held;
use super::source::Source;
use super::{Kernel, SourceBuild, compiler};
use crate::provision::cache::{Entry, Fingerprint, Locked, create_dir};
use crate::provision::child::{Event, Run};
use crate::provision::inventory::Check;
use crate::provision::progress::Unit;
use crate::provision::{Context, Error};

/// The space an object directory takes; the debug fragment makes it several times as large.
const SPACE: u64 = 500 << 20;
const SPACE_DEBUG: u64 = 3000 << 20;

/// How many kernels of a recipe or a tree are kept, so that going back to an earlier fragment costs nothing.
const KEPT: usize = 4;

/// The record of a built kernel.
#[derive(Serialize, Deserialize)]
struct Built {
    release: String,
}

/// Finds it in the cache, or builds it.
pub fn provide(
    context: &Context,
    request: &SourceBuild,
    source: Source,
    wish: &Wish,
) -> Result<Kernel, Error> {
    let fingerprint = Fingerprint::default()
        .add("source", &source.identity)
        .add("configuration", wish.text())
        .add("compiler", compiler::version(&context.cache)?);
    let fingerprint = request
        .patches
        .iter()
        .fold(fingerprint, |print, patch| print.add("patch", &patch.text))
        .finish();
    // What is made in one place, and what is kept together.
    let variant = request.variant();
    let (place, family) = match source.entry {
        Some(_) => (
            format!("{}{variant}", request.recipe.name),
            format!("{}{variant}", request.name()),
        ),
        None => {
            let path = source.dir.as_os_str().as_encoded_bytes();
            let tree = Fingerprint::default().add("tree", path).finish();
            let tree = format!("tree{tree}{variant}");
            (tree.clone(), tree)
        }
    };
    let entry = context
        .cache
        .entry("kernel", &format!("{family}-{fingerprint}"));
    let built = match entry.record() {
        Some(built) => built,
        None => {
            let place = workplace(context, &place, &source)?;
            match entry.record() {
                Some(built) => built,
                None => {
                    let release = build(context, request, &source, wish, &place)?;
                    let built = keep(context, &place, &entry, Built { release })?;
                    context.cache.keep("kernel", &format!("{family}-"), KEPT)?;
                    built
                }
            }
        }
    };
    let objects = entry.dir().join("objects");
    let config = Config::read(&objects.join(".config"))?;
    let mem2mem = (!config.has("V4L2_MEM2MEM_DEV")).then(|| source.dir.join(MEM2MEM));
    Ok(Kernel {
        name: request.recipe.name.clone(),
        baseline: (request.recipe.baseline.as_ref())
            .unwrap_or(&request.recipe.name)
            .clone(),
        patches: request.patches.clone(),
        release: built.release,
        image: objects.join("vmlinux"),
        config,
        modules: wish.has_base().then(|| objects.clone()),
        kit: Kit {
            make: source.dir.clone(),
            objects,
            arguments: Vec::new(),
            mem2mem,
            tree: Some(source),
        },
        fingerprint,
    })
}

/// Where make works on this source, locked. Debian's source has its times from the package, so make cannot tell a new package
/// from an old one by them: a new package is a new place, and the old one goes.
fn workplace(context: &Context, family: &str, source: &Source) -> Result<Locked, Error> {
    let key = match source.entry {
        None => family.to_owned(),
        Some(_) => format!(
            "{family}-{}",
            Fingerprint::default()
                .add("source", &source.identity)
                .finish()
        ),
    };
    let place = context.cache.entry("build", &key);
    for other in context.cache.entries("build", &format!("{family}-")) {
        if other.dir() != place.dir() {
            other.remove()?;
        }
    }
    place.lock(&context.progress)
}

/// Configures and runs make. Returns the kernel's release.
fn build(
    context: &Context,
    request: &SourceBuild,
    source: &Source,
    wish: &Wish,
    place: &Locked,
) -> Result<String, Error> {
    let _source = Held::new(context, source, &request.patches)?;
    let objects = place.dir().join("objects");
    if !objects.exists() {
        let debug = wish.has_base() || wish.text().contains("CONFIG_DEBUG_INFO_DWARF");
        context
            .cache
            .require_free(if debug { SPACE_DEBUG } else { SPACE })?;
    }
    // What a killed build was writing may look whole to make.
    let unfinished = place.dir().join("unfinished");
    let is_suspect = unfinished.exists();
    create_dir(&objects)?;
    fs::write(&unfinished, "").map_err(|e| Error::io("write", &unfinished, e))?;
    let made = make_all(context, request, source, wish, place);
    let made = match made {
        Err(Error::Command { lines, .. })
            if is_suspect && lines.iter().any(|line| is_of_object(line)) =>
        {
            let what = "an earlier build was cut off; building from the beginning";
            context.progress.say(what);
            place.fresh("objects")?;
            make_all(context, request, source, wish, place)
        }
        made => made,
    };
    // An interrupted one has been cut off, too.
    if !matches!(made, Err(Error::Interrupted)) {
        fs::remove_file(&unfinished).map_err(|e| Error::io("delete", &unfinished, e))?;
    }
    made
}

/// Runs make for the configuration and for everything else. Returns the kernel's release.
fn make_all(
    context: &Context,
    request: &SourceBuild,
    source: &Source,
    wish: &Wish,
    place: &Locked,
) -> Result<String, Error> {
    let suffix = request.suffix();
    let kernel = format!("{}{suffix}", source.version);
    let objects = place.dir().join("objects");
    let is_first = !objects.join(".config").exists();
    configure(source, wish, &objects)?;
    let has_gdb_scripts = Config::read(&objects.join(".config"))?.has("GDB_SCRIPTS");

    let log = place.dir().join("build.log");
    let jobs = available_parallelism().map_or(1, usize::from);
    let mut command = make(&source.dir, &objects);
    command
        .arg(format!("-j{jobs}"))
        .args(["vmlinux", "modules"])
        .args(has_gdb_scripts.then_some("scripts_gdb"))
        .env("LOCALVERSION", local_version(&suffix));
    let mut task = context.progress.start(
        format!("building kernel {kernel}, {jobs} at a time"),
        Unit::Count("steps"),
        // How many of them are left of an earlier build, make alone knows; and of a whole configuration it is others.
        (is_first && !wish.has_base()).then_some(request.recipe.steps),
    );
    let mut steps = 0;
    Run::new("the kernel build", command)
        .log(log)
        .errors(is_error)
        .stop_at(is_fatal)
        .checked(|event| match event {
            Event::Line(line) if is_step(line) => {
                steps += 1;
                task.set(steps);
            }
            _ => task.tick(),
        })?;
    task.finish(&format!("built kernel {kernel}, {steps} steps"));
    let path = objects.join("include/config/kernel.release");
    let release = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    Ok(release.trim().to_owned())
}

/// What stands behind the version in the kernel's release, of which the kernel keeps 64 bytes: the patches, or how many there are.
fn local_version(suffix: &str) -> String {
    match suffix.len() {
        ..=40 => format!("{LOCALVERSION}{suffix}"),
        _ => format!("{LOCALVERSION}+{}-patches", suffix.matches('+').count()),
    }
}

/// Copies what is used of a built kernel: vmlinux, and what a module is built against.
fn keep(context: &Context, place: &Locked, entry: &Entry, built: Built) -> Result<Built, Error> {
    let work = entry.lock(&context.progress)?;
    let (from, to) = (place.dir().join("objects"), work.fresh("objects")?);
    for file in WalkDir::new(&from)
        .min_depth(1)
        .into_iter()
        .filter_entry(|file| is_used(&from, file))
    {
        let file = file.map_err(|e| Error::io("read", &from, e.into()))?;
        // Below `from`, so there is always a rest.
        let target = to.join(file.path().strip_prefix(&from).unwrap_or(file.path()));
        let copied = if file.file_type().is_dir() {
            fs::create_dir(&target)
        } else if file.file_type().is_symlink() {
            fs::read_link(file.path()).and_then(|link| symlink(link, &target))
        } else {
            fs::copy(file.path(), &target).map(drop)
        };
        copied.map_err(|e| Error::io("write", &target, e))?;
    }
    work.publish(&built, Check::EachUse, &[])?;
    Ok(built)
}

/// Whether a file of the object directory is of use once the kernel is linked.
fn is_used(objects: &Path, file: &DirEntry) -> bool {
    let name = file.file_name().to_string_lossy();
    if ["vmlinux", "Module.symvers", ".config"]
        .iter()
        .any(|path| file.path() == objects.join(path))
    {
        return true;
    }
    let of_no_use = [
        ".o", ".a", ".cmd", ".bin", ".gz", ".order", ".mod", ".mod.c", ".builtin", ".symvers",
    ];
    !(name.starts_with(".tmp")
        || name.starts_with("vmlinux.")
        || of_no_use.iter().any(|end| name.ends_with(end)))
}

/// Makes the choices of the wish; answers every other one "no", or as its base and the kernel's defaults do; then looks whether the wish came true.
fn configure(source: &Source, wish: &Wish, objects: &Path) -> Result<(), Error> {
    let name = if wish.has_base() {
        ".config"
    } else {
        "wanted.config"
    };
    let path = objects.join(name);
    fs::write(&path, wish.text()).map_err(|e| Error::io("write", &path, e))?;
    let mut command = make(&source.dir, objects);
    if wish.has_base() {
        command.arg("olddefconfig");
    } else {
        command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &path);
    }
    Run::new("the kernel's configuration", command)
        .errors(is_error)
        .checked(|_| {})?;

    let path = objects.join(".config");
    let config = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let missing = wish.missing_in(&config);
    if missing.is_empty() && wish.has_base() {
        // Now, and not when all of it is built.
        Config::parse(&config).check("--config", true, true)
    } else if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::MissingSymbols {
            kernel: source.version.clone(),
            missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_fits_the_kernels_64_bytes() {
        assert_eq!(local_version("+tee-dirty"), "-pinbed+tee-dirty");
        assert_eq!(
            local_version(&"+tee-longterm".repeat(12)),
            "-pinbed+12-patches"
        );
    }

    #[test]
    fn what_modules_need_is_kept_and_objects_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let used = |path: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            let mut found = WalkDir::new(dir.path()).into_iter().flatten();
            is_used(
                dir.path(),
                &found.find(|entry| entry.path() == file).unwrap(),
            )
        };
        for path in [
            "vmlinux",
            ".config",
            "Module.symvers",
            "include/config/auto.conf",
            "include/generated/autoconf.h",
            "scripts/module.lds",
            "scripts/mod/modpost",
            "tools/objtool/objtool",
        ] {
            assert!(used(path), "{path}");
        }
        for path in [
            "vmlinux.o",
            ".tmp_vmlinux1",
            "mm/gup.o",
            "mm/.gup.o.cmd",
            "mm/built-in.a",
            "drivers/Module.symvers",
        ] {
            assert!(!used(path), "{path}");
        }
    }
}
