// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Builds a kernel out of tree, in its cache entry: configure, check, make. Interrupted, it goes on where it stopped, by
//! make's own bookkeeping.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use super::config::Wish;
use super::source::Source;
use super::{Kernel, Recipe};
use crate::progress::Unit;
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::{Event, Run};
use crate::provision::{Context, Error};

/// The space an object directory takes; the debug fragment makes it several times as large.
const SPACE: u64 = 500 << 20;
const SPACE_DEBUG: u64 = 3000 << 20;

/// Variables that would change what make does.
const FOREIGN: [&str; 10] = [
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "GNUMAKEFLAGS",
    "ARCH",
    "SUBARCH",
    "CROSS_COMPILE",
    "LLVM",
    "O",
    "V",
];

/// The record of a built kernel.
#[derive(Serialize, Deserialize)]
struct Built {
    fingerprint: String,
    release: String,
}

/// Finds it in the cache, or builds it.
pub fn provide(
    context: &Context,
    recipe: &Recipe,
    source: &Source,
    wish: &Wish,
) -> Result<Kernel, Error> {
    let fingerprint = Fingerprint::default()
        .add("source", &source.identity)
        .add("configuration", wish.text())
        .add("compiler", compiler()?)
        .finish();
    // A user's tree changes with every edit: one entry for the tree, that make brings up to date. Debian's do not.
    let key = if source.of_user {
        let place = Fingerprint::default()
            .add("tree", source.dir.as_os_str().as_encoded_bytes())
            .add("fragments", wish.fragments().join(" "));
        format!("{}-tree-{}", source.version, place.finish())
    } else {
        format!("{}-{fingerprint}", recipe.name)
    };
    let entry = context.cache.entry("kernel", &key);
    let built = match found(&entry, &fingerprint) {
        Some(built) => built,
        None => {
            let work = entry.lock(&context.progress)?;
            match found(&entry, &fingerprint) {
                Some(built) => built,
                None => build(context, recipe, source, wish, &work, fingerprint)?,
            }
        }
    };
    let objects = entry.dir().join("objects");
    Ok(Kernel {
        name: recipe.name.clone(),
        baseline: recipe.baseline.clone(),
        release: built.release,
        image: objects.join("arch/x86/boot/bzImage"),
        vmlinux: objects.join("vmlinux"),
        config: objects.join(".config"),
        objects,
        source: source.dir.clone(),
        fingerprint: built.fingerprint,
    })
}

fn found(entry: &Entry, fingerprint: &str) -> Option<Built> {
    let built: Built = entry.record()?;
    let image = entry.dir().join("objects/arch/x86/boot/bzImage");
    (built.fingerprint == fingerprint && image.exists()).then_some(built)
}

fn build(
    context: &Context,
    recipe: &Recipe,
    source: &Source,
    wish: &Wish,
    work: &Locked,
    fingerprint: String,
) -> Result<Built, Error> {
    let kernel = &source.version;
    let debug = wish.fragments().iter().any(|name| name == "debug");
    context
        .cache
        .require_free(if debug { SPACE_DEBUG } else { SPACE })?;
    work.retract()?;
    let objects = work.dir().join("objects");
    fs::create_dir_all(&objects).map_err(|e| Error::io("create", &objects, e))?;
    configure(source, wish, &objects)?;

    let log = work.dir().join("build.log");
    let jobs = available_parallelism().map_or(1, usize::from);
    let mut command = make(&source.dir, &objects);
    command
        .arg(format!("-j{jobs}"))
        .args(["bzImage", "modules"]);
    let mut task = context.progress.start(
        format!("building kernel {kernel}, {jobs} at a time"),
        Unit::Count("steps"),
        Some(recipe.steps),
    );
    let mut steps = 0;
    Run::new("the kernel build", command)
        .log(log)
        .checked(is_error, |event| match event {
            Event::Line(line) if is_step(line) => {
                steps += 1;
                task.set(steps);
            }
            _ => task.tick(),
        })?;

    let path = objects.join("include/config/kernel.release");
    let release = fs::read_to_string(&path)
        .map_err(|e| Error::io("read", &path, e))?
        .trim()
        .to_owned();
    let built = Built {
        fingerprint,
        release,
    };
    work.publish(&built)?;
    task.finish(&format!("built kernel {kernel}, {steps} steps"));
    Ok(built)
}

/// tinyconfig with the wish on top, every other choice answered "no"; then looks whether the wish came true.
fn configure(source: &Source, wish: &Wish, objects: &Path) -> Result<(), Error> {
    let mut wanted = String::new();
    for tiny in [
        "kernel/configs/tiny-base.config",
        "kernel/configs/tiny.config",
        "arch/x86/configs/tiny.config",
    ] {
        // Older kernels have fewer of these.
        wanted += &fs::read_to_string(source.dir.join(tiny)).unwrap_or_default();
    }
    // The last line about a symbol is the one that counts.
    wanted += &wish.text();
    let path = objects.join("wanted.config");
    fs::write(&path, wanted).map_err(|e| Error::io("write", &path, e))?;
    let mut command = make(&source.dir, objects);
    command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &path);
    Run::new("the kernel's configuration", command).checked(is_error, |_| {})?;

    let path = objects.join(".config");
    let config = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let missing = wish.missing_in(&config);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::MissingSymbols {
            kernel: source.version.clone(),
            missing,
        })
    }
}

/// make for a kernel tree, in an environment that is the same for everyone.
pub(super) fn make(source: &Path, objects: &Path) -> Command {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(source)
        .arg(prefixed("O=", objects))
        .current_dir(objects);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("KBUILD_") || text.starts_with("KCONFIG_") || FOREIGN.contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    // LOCALVERSION also keeps the build from asking git how dirty a user's tree is. No byte code in a user's tree.
    command.envs([
        ("LOCALVERSION", "-pinbed"),
        ("KBUILD_BUILD_USER", "pinbed"),
        ("KBUILD_BUILD_HOST", "pinbed"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ]);
    command
}

/// `NAME=path` as an argument.
pub(super) fn prefixed(name: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(name);
    argument.push(path);
    argument
}

/// Which compiler the kernel's makefiles use.
fn compiler() -> Result<String, Error> {
    let mut version = String::new();
    let mut command = Command::new("gcc");
    command.arg("--version");
    Run::new("gcc --version", command).checked(
        |_| false,
        |event| {
            if let Event::Line(line) = event {
                version.push_str(line);
            }
        },
    )?;
    Ok(version)
}

/// Whether a line of make's output is one step: "  CC      mm/gup.o".
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Whether a line says what is wrong.
pub(super) fn is_error(line: &str) -> bool {
    [
        "error:",
        "Error ",
        "*** ",
        "undefined reference",
        "multiple definition",
        "ERROR: ",
    ]
    .iter()
    .any(|m| line.contains(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_errors_are_told_from_the_rest() {
        assert!(is_step("  CC      mm/gup.o"));
        assert!(!is_step("make[1]: Entering directory '/x'"));
        assert!(!is_step("   10 |  int x"));
        assert!(is_error("mm/gup.c:12:3: error: unknown type name 'x'"));
        assert!(is_error(
            "make[3]: *** [scripts/Makefile.build:229: mm/gup.o] Error 1"
        ));
        assert!(!is_error("  CC      lib/errname.o"));
    }
}
