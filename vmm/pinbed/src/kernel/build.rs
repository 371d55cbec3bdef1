// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds a kernel out of tree: configure, check, make.
//!
//! make works in one place for each source tree, whatever the configuration, so that a build that was interrupted, a changed fragment or
//! an edited tree cost what they must and no more. (A fragment such as `dwarf`, with which every file is compiled anew, has a place of its
//! own beside it, so that both stay warm.) kbuild's own tools contain their path: the place cannot move.
//! Where ccache is installed, it is used, in a place of its own for that.
//! What is used of a built kernel is then copied into an entry that never changes again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use walkdir::{DirEntry, WalkDir};

use super::ccache::{self, Ccache};
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
use crate::provision::{Context, Error, packages};

/// The space an object directory takes; the debug fragment makes it several times as large.
const SPACE: u64 = 500 << 20;
const SPACE_DEBUG: u64 = 3000 << 20;

/// How many kernels of a recipe or a tree are kept, so that going back to an earlier fragment costs nothing.
const KEPT: usize = 6;
/// CPU time that one of make's steps takes, as measured where 6.12 has 1850 of them.
const STEP: Duration = Duration::from_millis(400);

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
    let mut variant = request.variant();
    let family = match source.entry {
        Some(_) => short(format!("{}{variant}", request.name())),
        None => tree_name(&source, &variant),
    };
    // Debug information has the paths of sources in it, which are to be those of the tree.
    let with_ccache = ccache::is_there() && !wish.has_debug_info();
    if with_ccache {
        variant += ccache::SUFFIX;
    }
    let place = match source.entry {
        Some(_) => format!("{}{variant}", request.recipe.name),
        None => tree_name(&source, &variant),
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
                    let work = Work::new(&place, &source, with_ccache)?;
                    let release = build(context, request, &source, wish, &work)?;
                    let built = keep(context, &work.objects, &entry, Built { release })?;
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

/// A name that fits into a file's with a fingerprint and more behind it, however many patches a kernel has.
fn short(name: String) -> String {
    const LONGEST: usize = 160;
    let Some(start) = name.get(..LONGEST) else {
        return name;
    };
    let all = Fingerprint::default().add("name", &name).finish();
    format!("{start}~{all}")
}

/// What is made of a user's own tree is called so.
fn tree_name(source: &Source, variant: &str) -> String {
    let path = source.dir.as_os_str().as_encoded_bytes();
    let tree = Fingerprint::default().add("tree", path).finish();
    format!("tree{tree}{variant}")
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

/// How make works in a place.
struct Work<'a> {
    place: &'a Locked,
    /// Where it starts: the source, or links to what that has.
    start: PathBuf,
    objects: PathBuf,
    ccache: Option<Ccache>,
}

impl<'a> Work<'a> {
    fn new(place: &'a Locked, source: &Source, with_ccache: bool) -> Result<Self, Error> {
        let directory = place.dir();
        if !with_ccache {
            return Ok(Work {
                place,
                start: source.dir.clone(),
                objects: directory.join("objects"),
                ccache: None,
            });
        }
        let start = directory.join("tree");
        Ok(Work {
            place,
            objects: ccache::links(&source.dir, &start)?,
            start,
            ccache: Some(Ccache::new(directory.join("ccache.log"))?),
        })
    }

    fn make(&self) -> Command {
        let mut make = make(&self.start, &self.objects);
        if let Some(ccache) = &self.ccache {
            ccache.tell(&mut make);
        }
        make
    }

    /// Throws away what is built.
    fn begin_anew(&self) -> Result<(), Error> {
        let objects = self.objects.strip_prefix(self.place.dir());
        let objects = objects.unwrap_or(&self.objects).to_string_lossy();
        self.place.fresh(&objects).map(drop)
    }
}

/// Configures and runs make. Returns the kernel's release.
fn build(
    context: &Context,
    request: &SourceBuild,
    source: &Source,
    wish: &Wish,
    work: &Work<'_>,
) -> Result<String, Error> {
    if wish.asks_for("DEBUG_INFO_BTF") {
        // Without it the kernel's configuration would only say that the symbol cannot be set.
        packages::ensure(context, [packages::PAHOLE])?;
    }
    let _source = Held::new(context, source, &request.patches)?;
    if !work.objects.join(".config").exists() {
        let debug = wish.has_base() || wish.has_debug_info();
        context
            .cache
            .require_free(if debug { SPACE_DEBUG } else { SPACE })?;
    }
    // What a killed build was writing may look whole to make.
    let unfinished = work.place.dir().join("unfinished");
    let is_suspect = unfinished.exists();
    create_dir(&work.objects)?;
    fs::write(&unfinished, "").map_err(|e| Error::io("write", &unfinished, e))?;
    let made = make_all(context, request, source, wish, work);
    let made = match made {
        Err(Error::Command { lines, .. })
            if is_suspect && lines.iter().any(|line| is_of_object(line)) =>
        {
            let what = "an earlier build was cut off; building from the beginning";
            context.progress.say(what);
            work.begin_anew()?;
            make_all(context, request, source, wish, work)
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
    work: &Work<'_>,
) -> Result<String, Error> {
    let suffix = request.suffix();
    let kernel = titled(&source.version, &suffix, &request.fragments);
    let is_first = !work.objects.join(".config").exists();
    let log = work.place.dir().join("build.log");
    let jobs = available_parallelism().map_or(1, usize::from);
    // How many of them are left of an earlier build, make alone knows; and of a whole configuration it is others.
    let steps = (is_first && !wish.has_base()).then_some(request.recipe.steps);
    if let Some(steps) = steps {
        context.progress.say(&first_build(&kernel, steps, jobs));
    }
    let mut task = context.progress.start(
        format!("building kernel {kernel}, {jobs} at a time"),
        Unit::Count("steps"),
        steps,
    );
    // That can take half a minute where the host is busy.
    configure(source, wish, work)?;
    let has_gdb_scripts = Config::read(&work.objects.join(".config"))?.has("GDB_SCRIPTS");
    let mut command = work.make();
    command
        .arg(format!("-j{jobs}"))
        .args(["vmlinux", "modules"])
        .args(has_gdb_scripts.then_some("scripts_gdb"))
        .env("LOCALVERSION", local_version(&suffix));
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
    let hits = match &work.ccache {
        Some(ccache) => {
            let (hits, all) = ccache.hits();
            format!(", {hits} of {all} compilations out of ccache")
        }
        None => String::new(),
    };
    task.finish(&format!("built kernel {kernel}, {steps} steps{hits}"));
    let path = work.objects.join("include/config/kernel.release");
    let release = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    Ok(release.trim().to_owned())
}

/// A kernel as messages name it, with its patches and the fragments that were added: "6.12.117+tee-dirty with dwarf".
fn titled(version: &str, suffix: &str, fragments: &[String]) -> String {
    match fragments {
        [] => format!("{version}{suffix}"),
        some => format!("{version}{suffix} with {}", some.join(", ")),
    }
}

/// What to expect of a build from the beginning.
fn first_build(kernel: &str, steps: u64, jobs: usize) -> String {
    let minutes = (steps * STEP.as_millis() as u64 / jobs as u64).div_ceil(60_000);
    format!(
        "kernel {kernel} is built here for the first time: {steps} steps, about {minutes} min if the host has nothing else to do; the result is \
         kept, and a build that was interrupted goes on"
    )
}

/// What stands behind the version in the kernel's release, of which the kernel keeps 64 bytes: the patches, or how many there are.
fn local_version(suffix: &str) -> String {
    match suffix.len() {
        ..=40 => format!("{LOCALVERSION}{suffix}"),
        _ => format!("{LOCALVERSION}+{}-patches", suffix.matches('+').count()),
    }
}

/// Copies what is used of a built kernel: vmlinux, and what a module is built against.
fn keep(context: &Context, from: &Path, entry: &Entry, built: Built) -> Result<Built, Error> {
    let work = entry.lock(&context.progress)?;
    let to = work.fresh("objects")?;
    for file in WalkDir::new(from)
        .min_depth(1)
        .into_iter()
        .filter_entry(|file| is_used(from, file))
    {
        let file = file.map_err(|e| Error::io("read", from, e.into()))?;
        // Below `from`, so there is always a rest.
        let target = to.join(file.path().strip_prefix(from).unwrap_or(file.path()));
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
fn configure(source: &Source, wish: &Wish, work: &Work<'_>) -> Result<(), Error> {
    let name = if wish.has_base() {
        ".config"
    } else {
        "wanted.config"
    };
    let path = work.objects.join(name);
    fs::write(&path, wish.text()).map_err(|e| Error::io("write", &path, e))?;
    let mut command = work.make();
    if wish.has_base() {
        command.arg("olddefconfig");
    } else {
        command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &path);
    }
    Run::new("the kernel's configuration", command)
        .errors(is_error)
        .checked(|_| {})?;

    let path = work.objects.join(".config");
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
    fn a_kernel_with_many_patches_has_a_place_of_its_own() {
        let many = |last| format!("6.12{}{last}", "+tee-mmap-offset".repeat(20));
        assert_eq!(short("6.12+tee-dirty".into()), "6.12+tee-dirty");
        assert!(short(many("+a")).len() < 200);
        assert_ne!(short(many("+a")), short(many("+b")));
    }

    #[test]
    fn a_build_is_announced_with_its_fragments_and_its_length() {
        let kernel = titled("6.12.117", "+tee-dirty", &["trace".to_owned()]);
        assert_eq!(kernel, "6.12.117+tee-dirty with trace");
        assert_eq!(titled("6.12.117", "", &[]), "6.12.117");
        assert_eq!(
            first_build(&kernel, 1850, 2),
            "kernel 6.12.117+tee-dirty with trace is built here for the first time: 1850 steps, about 7 min if the host has nothing else to do; \
             the result is kept, and a build that was interrupted goes on"
        );
    }

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
