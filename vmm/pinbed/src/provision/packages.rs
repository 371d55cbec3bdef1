// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What must be installed on the host, found by looking for what is used rather than for packages: another way to install it
//! is as good. What is missing is installed with apt by root; anyone else is told the exact line.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use super::child::{Event, OnInterrupt, Run};
use super::{Context, Error};
use crate::provision::progress::Unit;

/// One thing a build uses.
#[derive(Clone, Copy)]
pub struct Need {
    what: &'static str,
    found_by: Mark,
    package: &'static str,
}

/// What `pinbed debug` starts.
pub const GDB: Need = Need::program("gdb", "gdb", "gdb, for `pinbed debug`");
/// What makes BTF of DWARF in a kernel build.
pub const PAHOLE: Need = Need::program("pahole", "dwarves", "pahole, for the fragment trace");
/// What makes a root of Debian, and what writes its image.
pub const MMDEBSTRAP: Need = Need::program(
    "mmdebstrap",
    "mmdebstrap",
    "mmdebstrap, for `shell --rootfs debian`",
);
pub const GENEXT2FS: Need = Need::program(
    "genext2fs",
    "genext2fs",
    "genext2fs, for `shell --rootfs debian`",
);

/// The commands of a guest that has a shell.
pub const BUSYBOX: Need = Need {
    what: "a statically linked busybox, for `pinbed shell`",
    found_by: Mark::StaticProgram("busybox"),
    package: "busybox-static",
};

/// What only some commands need. It is installed when the first of them runs.
pub const EXTRAS: [Need; 5] = [GDB, PAHOLE, MMDEBSTRAP, GENEXT2FS, BUSYBOX];

/// What shows that it is there.
#[derive(Clone, Copy)]
enum Mark {
    Program(&'static str),
    /// A program that needs no libraries.
    StaticProgram(&'static str),
    File(&'static str),
}

/// What it takes to build a kernel, a module, and the guest's file system.
pub fn needs() -> impl Iterator<Item = Need> {
    include_str!("../../needs").lines().filter_map(Need::parse)
}

/// A program in PATH, or where the system's administrator has it: that is in no other user's PATH on Debian.
pub fn find(name: &str) -> Option<PathBuf> {
    let system = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    which::which(name)
        .ok()
        .or_else(|| system.into_iter().find(|path| path.exists()))
}

/// A program in PATH that needs no libraries, so that it runs in a guest that has none.
fn find_static(name: &str) -> Option<PathBuf> {
    let is_static = |path: &PathBuf| {
        fs::read(path)
            .is_ok_and(|program| !program.windows(LOADER.len()).any(|bytes| bytes == LOADER))
    };
    which::which_all(name).ok()?.find(is_static)
}

/// A program that needs libraries names who loads them.
const LOADER: &[u8] = b"/ld-linux-x86-64.so";

impl Need {
    const fn program(name: &'static str, package: &'static str, what: &'static str) -> Self {
        Need {
            what,
            found_by: Mark::Program(name),
            package,
        }
    }

    /// A line of the file: how it is found, by what, the package, what people call it. None of a comment.
    fn parse(line: &'static str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let (name, rest) = rest.trim_start().split_once(' ')?;
        let (package, what) = rest.trim_start().split_once(' ')?;
        let found_by = match kind {
            "program" => Mark::Program(name),
            "file" => Mark::File(name),
            _ => return None,
        };
        Some(Need {
            what: what.trim_start(),
            found_by,
            package,
        })
    }

    /// Where it is; none if it is missing.
    fn path(&self) -> Option<PathBuf> {
        match self.found_by {
            Mark::Program(name) => find(name),
            Mark::StaticProgram(name) => find_static(name),
            Mark::File(path) => Some(PathBuf::from(path)).filter(|path| path.exists()),
        }
    }

    fn met(&self) -> bool {
        self.path().is_some()
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// What is missing of `needs`, for people, and the line that installs it; none when all are there.
pub fn lacking(needs: impl IntoIterator<Item = Need>) -> Option<(String, String)> {
    let missing: Vec<Need> = needs.into_iter().filter(|need| !need.met()).collect();
    (!missing.is_empty()).then(|| (names(&missing), install_line(&packages(&missing))))
}

/// Makes sure of all of `needs`; does nothing, and takes no time, when all are there.
///
/// # Errors
/// When something is missing and cannot be installed here; the error has the line that installs it.
pub fn ensure(context: &Context, needs: impl IntoIterator<Item = Need>) -> Result<(), Error> {
    let mut missing: Vec<Need> = needs.into_iter().filter(|need| !need.met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if which::which("apt-get").is_err() {
        return Err(Error::NoApt {
            missing: names(&missing),
        });
    }
    if !Uid::effective().is_root() || super::is_offline() {
        return Err(Error::MissingPackages {
            missing: names(&missing),
            line: install_line(&packages(&missing)),
        });
    }
    // apt-get does not wait for another that updates its lists.
    let _alone = context
        .cache
        .entry("packages", "apt")
        .lock(&context.progress)?;
    missing.retain(|need| !need.met());
    if missing.is_empty() {
        return Ok(());
    }
    install(context, &packages(&missing))?;
    match missing.iter().find(|need| !need.met()) {
        None => Ok(()),
        Some(need) => Err(Error::Command {
            what: format!("installing {}", need.package),
            status: format!("apt-get succeeded, but {need} is still not found"),
            lines: Vec::new(),
            log: None,
        }),
    }
}

/// Makes sure of one thing; where it is.
///
/// # Errors
/// As [`ensure`].
pub fn provide(context: &Context, need: Need) -> Result<PathBuf, Error> {
    ensure(context, [need])?;
    need.path().ok_or_else(|| missing(need.what, need.package))
}

fn names(needs: &[Need]) -> String {
    let names: Vec<_> = needs.iter().map(|need| need.what).collect();
    names.join(", ")
}

fn packages(needs: &[Need]) -> Vec<&'static str> {
    needs.iter().map(|need| need.package).collect()
}

/// That one thing is missing, which not every run needs.
pub fn missing(what: &str, package: &str) -> Error {
    Error::MissingPackages {
        missing: what.to_owned(),
        line: install_line(&[package]),
    }
}

fn install_line(packages: &[&str]) -> String {
    format!(
        "sudo apt-get update && sudo apt-get install --yes --no-install-recommends {}",
        packages.join(" ")
    )
}

fn install(context: &Context, packages: &[&str]) -> Result<(), Error> {
    let progress = context.progress;
    progress.say(&format!(
        "installing {} with apt-get, as this machine lacks them",
        packages.join(" ")
    ));
    let mut task = progress.start("apt-get update", Unit::Count("lists"), None);
    Run::new("apt-get update", apt_get(&["update"]))
        .errors(complaint)
        .checked(|_| task.tick())?;
    task.finish("updated apt's package lists");

    let mut task = progress.start("downloading packages", Unit::Count("packages"), None);
    let mut download = apt_get(&[
        "install",
        "--yes",
        "--no-install-recommends",
        "--download-only",
    ]);
    download.args(packages);
    Run::new("apt-get install --download-only", download)
        .errors(complaint)
        .checked(|_| task.tick())?;
    task.finish("downloaded packages");

    // dpkg is not stopped half way: that would leave the host's packages broken.
    let mut task = progress.start("installing packages", Unit::Count("packages"), None);
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    install.args(packages);
    let mut installed = Vec::new();
    Run::new("apt-get install", install)
        .on_interrupt(OnInterrupt::Finish)
        .errors(complaint)
        .checked(|event| {
            task.tick();
            if let Event::Line(line) = event
                && let Some(name) = line.strip_prefix("Setting up ")
            {
                installed.push(name.split([' ', ':']).next().unwrap_or(name).to_owned());
            }
        })?;
    task.finish(&format!("installed {}", installed.join(" ")));
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn complaint(line: &str) -> bool {
    line.starts_with("E: ") || line.starts_with("Err:") || line.starts_with("dpkg: error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_file_is_a_need() {
        let text = include_str!("../../needs").lines();
        let lines = text.filter(|line| !line.starts_with('#')).count();
        assert_eq!(needs().count(), lines);
        assert!(needs().any(|need| need.package == "flex"));
        assert!(needs().any(|need| matches!(
            need.found_by,
            Mark::Program(crate::provision::disk::PROGRAM)
        )));
    }

    #[test]
    fn what_is_missing_is_noticed() {
        let need = |found_by| Need {
            what: "x",
            found_by,
            package: "x",
        };
        assert!(need(Mark::Program("sh")).met());
        assert!(need(Mark::Program("ldconfig")).met(), "in /sbin");
        assert!(!need(Mark::Program("no-such-program-anywhere")).met());
        assert!(need(Mark::File("/proc/self/status")).met());
        assert!(!need(Mark::File("/nonexistent")).met());
    }

    #[test]
    fn the_line_to_run_names_every_package() {
        let line = install_line(&["flex", "bison"]);
        assert!(
            line.ends_with("apt-get install --yes --no-install-recommends flex bison"),
            "{line}"
        );
    }
}
