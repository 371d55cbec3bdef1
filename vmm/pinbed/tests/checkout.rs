// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which checkout the command works on, that it need not be writable, and that ci/run leaves a caller's directory and arguments alone.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{cache_without, said, top};

fn pinbed(program: &Path, current: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(current)
        .env_remove("PINBED_WORKSPACE")
        .output()
        .unwrap()
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_copied_program_says_which_checkout_it_works_on() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("pinbed");
    fs::copy(env!("CARGO_BIN_EXE_pinbed"), &copy).unwrap();
    let listed = pinbed(&copy, directory.path(), &["list", "userptr::malloc"]);
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success(), "{said}");
    let expected = format!("working on the checkout {} ", top().display());
    assert!(said.contains(&expected), "{said}");

    let asked = format!("--workspace={}", top().display());
    let listed = pinbed(
        &copy,
        directory.path(),
        &["list", "userptr::malloc", &asked],
    );
    let said = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success(), "{said}");
    assert!(!said.contains("checkout"), "it was asked for it: {said}");
}

#[test]
fn a_directory_that_is_no_checkout_is_wrong_usage() {
    let directory = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_pinbed"));
    let said = pinbed(program, directory.path(), &["list", "--workspace", "."]);
    assert_eq!(said.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&said.stderr).contains("not the top of a checkout"));
}

/// With programs in the place of cargo and of pinbed that say where they are.
#[test]
fn ci_run_leaves_the_directory_and_the_arguments_to_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().canonicalize().unwrap();
    script(
        &here.join("bin/cargo"),
        "echo \"cargo in $PWD for $CARGO_TARGET_DIR\"",
    );
    script(
        &here.join("objects/x86_64-unknown-linux-gnu/release/pinbed"),
        "echo \"pinbed in $PWD on $PINBED_WORKSPACE: $*\"",
    );
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(top().join("ci/run"))
        .args(["--json", "out.json", "--kernel-src", "."])
        .current_dir(&here)
        .env("PATH", format!("{}:{path}", here.join("bin").display()))
        .env("CARGO_TARGET_DIR", "objects")
        .output()
        .unwrap();
    let (top, here) = (top(), here.display());
    let expected = format!(
        "cargo in {top} for {here}/objects\npinbed in {here} on {top}: run --json out.json --kernel-src .\n",
        top = top.display()
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A checkout on a file system that cannot be written, as an image or another user's: what is built of it is built in the cache, and where
/// its directory for that is another file system's, there.
#[test]
fn a_checkout_that_cannot_be_written_works() {
    let directory = tempfile::tempdir().unwrap();
    // So that cargo is asked.
    let cache = cache_without(&["answers", "target"]);
    let chosen = directory.path().join("chosen");
    script(
        &directory.path().join("cargo"),
        &format!("echo $CARGO_TARGET_DIR >{}; false", chosen.display()),
    );
    fs::create_dir(directory.path().join("built")).unwrap();
    let mounts = r#"set -e
        mount --bind "$BUILT" built
        mount --bind "$TOP" "$TOP"
        mount -o remount,bind,ro "$TOP"
        if touch "$TOP/written" 2>/dev/null; then exit 99; fi
        unset CARGO_TARGET_DIR
        run="$PINBED run --accel tcg userptr::malloc_is_decoder_input"
        if CARGO=$PWD/cargo $run; then exit 98; fi
        case $BUILT in
        "$TOP"/*) mount --bind built "$BUILT" ;;
        *) export CARGO_TARGET_DIR=$BUILT ;;
        esac
        exec $run"#;
    let built = Path::new(env!("CARGO_BIN_EXE_pinbed")).ancestors().nth(2);
    // The superuser of a namespace of one's own may mount as well.
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .args(["--mount", "bash", "-c", mounts])
        .current_dir(directory.path())
        .env("TOP", top())
        .env("BUILT", built.unwrap())
        .env("XDG_CACHE_HOME", cache.path())
        .env("PINBED", env!("CARGO_BIN_EXE_pinbed"))
        .env("PINBED_WORKSPACE", top())
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed, 0 failed"), "{said}");
    let chosen = fs::read_to_string(chosen).unwrap();
    let of_cache = cache.path().join("pinbed/target");
    assert!(Path::new(&chosen).starts_with(of_cache), "{chosen}");
}
