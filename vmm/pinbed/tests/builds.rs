// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How kernels are built: what a build that was killed leaves to the next one, and that ccache is used where it is there. The tree is a
//! small one that behaves as the kernel's.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{cache_without, pinbed, said, tree};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How long processes may take to come or to go on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cache with no kernel in it, and what is built there.
struct Builds {
    cache: tempfile::TempDir,
    directory: tempfile::TempDir,
}

impl Builds {
    fn new() -> Self {
        // What takes long and is not of a kernel comes first.
        let list = pinbed(&["list"]).output().unwrap();
        assert!(list.status.success(), "{}", said(&list));
        Builds {
            cache: cache_without(&["build", "kernel", "module"]),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// `pinbed setup` of a tree.
    fn setup(&self, tree: &Path) -> Command {
        let mut command = pinbed(&["setup", "--accel", "tcg", "--kernel-src"]);
        command
            .arg(tree)
            .env("XDG_CACHE_HOME", self.cache.path())
            .env("CCACHE_DIR", self.directory.path().join("ccache"));
        command
    }

    /// Files below a kind's entries that have this name.
    fn files(&self, kind: &str, name: &str) -> Vec<PathBuf> {
        let top = self.cache.path().join("pinbed").join(kind);
        let files = walkdir::WalkDir::new(top).into_iter().flatten();
        let named = files.filter(|file| file.file_name() == name);
        named.map(|file| file.path().to_owned()).collect()
    }
}

/// The steps of a build that `pinbed setup` says it took, which must have succeeded.
#[track_caller]
fn steps(setup: &Output) -> usize {
    let said = said(setup);
    assert!(setup.status.success(), "{said}");
    let (before, _) = said
        .split_once(" steps")
        .unwrap_or_else(|| panic!("no build: {said}"));
    let number = before.rsplit(' ').next().unwrap();
    number.parse().unwrap()
}

/// Processes other than zombies with this in their command lines.
fn processes(part: &str) -> Vec<String> {
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|file| file.file_name().to_str()?.parse::<u32>().ok());
    let line = |id: u32| fs::read_to_string(format!("/proc/{id}/cmdline")).ok();
    let found = ids.filter_map(|id| Some(format!("{id} {}", line(id)?.replace('\0', " "))));
    found.filter(|line| line.contains(part)).collect()
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_build_that_is_killed_leaves_no_process_and_no_kernel_and_the_next_goes_on() {
    let builds = Builds::new();
    let top = builds.directory.path().join("linux");
    // Compilers, two at a time, of which each waits for leave.
    let slow = format!(
        "while [ -d {0} ] && ! [ -e {0}.go ]; do sleep 0.01; [ $@ = mm/gup.o ] && break; done",
        top.display()
    );
    tree::make(&top, &slow);
    let marked = top.display().to_string() + ".go";
    for with_make in [false, true] {
        let mut building = builds
            .setup(&top)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let compilers = || processes(&marked);
        wait_until("no compiler came", || {
            !builds.files("build", "gup.o").is_empty() && !compilers().is_empty()
        });
        let pinbed = Pid::from_raw(building.id().cast_signed());
        if with_make {
            // The leader of the compilers' group, which pinbed has started.
            let id = compilers()[0].split(' ').next().unwrap().parse().unwrap();
            let leader = nix::unistd::getpgid(Some(Pid::from_raw(id))).unwrap();
            assert_ne!(leader, nix::unistd::getpgrp());
            kill(pinbed, Signal::SIGKILL).unwrap();
            kill(leader, Signal::SIGKILL).unwrap();
            // Whoever watches over the group is in it.
            assert!(killpg(leader, None).is_ok() || compilers().is_empty());
        } else {
            kill(pinbed, Signal::SIGKILL).unwrap();
        }
        building.wait().unwrap();
        wait_until("compilers are left", || compilers().is_empty());
        let kernels = builds.files("kernel", "entry.json");
        assert!(kernels.is_empty(), "{kernels:?}");
    }
    fs::write(&marked, "").unwrap();
    let next = builds.setup(&top).output().unwrap();
    // All files but the one that was compiled, and the link.
    assert_eq!(steps(&next), tree::FILES - 1 + 1, "{}", said(&next));
    let kernels = builds.files("kernel", "entry.json");
    assert_eq!(kernels.len(), 1, "{kernels:?}");
}

#[test]
fn a_tree_that_equals_another_but_for_its_path_comes_out_of_ccache() {
    if Command::new("ccache").arg("--version").output().is_err() {
        eprintln!("skipped: there is no ccache; apt-get install ccache");
        return;
    }
    let builds = Builds::new();
    let compilations = |place: &str| {
        let top = builds.directory.path().join(place);
        tree::make(&top, ":");
        let setup = builds.setup(&top).output().unwrap();
        assert_eq!(steps(&setup), tree::FILES + 1);
        let said = said(&setup);
        let (_, rest) = said.split_once(" steps, ").unwrap_or_default();
        rest.split(" out of").next().unwrap_or_default().to_owned()
    };
    let all = tree::FILES;
    assert_eq!(compilations("a"), format!("0 of {all} compilations"));
    assert_eq!(compilations("b/c"), format!("{all} of {all} compilations"));
}
