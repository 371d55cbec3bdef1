// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tests of the command share: the program, what it says, a kernel's image, and caches and kernel trees to try things on.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

pub mod tree;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `pinbed` with these arguments and nothing on standard input.
pub fn pinbed(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinbed"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// All that was printed: standard output, then standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The checkout.
pub fn top() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.join("../..").canonicalize().unwrap()
}

/// The vmlinux of a kernel of kernels.toml, which is built if it is not there.
pub fn vmlinux(kernel: &str) -> PathBuf {
    let setup = pinbed(&["setup", "--accel", "tcg", "--kernel", kernel]).output();
    let setup = setup.unwrap();
    let said = said(&setup);
    assert!(setup.status.success(), "{said}");
    let line = said.lines().find(|line| line.ends_with("/vmlinux"));
    let line = line.unwrap_or_else(|| panic!("no vmlinux in {said}"));
    PathBuf::from(line.trim())
}

/// A cache that has what the user's has, but for some kinds of entries, which it begins without. It is XDG_CACHE_HOME.
pub fn cache_without(kinds: &[&str]) -> tempfile::TempDir {
    let of_user = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
        PathBuf::from,
    );
    let home = tempfile::tempdir().unwrap();
    let ours = home.path().join("pinbed");
    fs::create_dir(&ours).unwrap();
    let entries = fs::read_dir(of_user.join("pinbed"));
    for kind in entries.into_iter().flatten().flatten() {
        let name = kind.file_name();
        if !kinds.iter().any(|without| name == *without) {
            symlink(kind.path(), ours.join(name)).unwrap();
        }
    }
    home
}
