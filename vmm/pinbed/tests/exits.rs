// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exit codes of what goes wrong before a guest is started: 2 where the command line is to blame, 3 where the machine is.

mod common;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::pinbed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sees that `pinbed` ends with this code and says this. `environment` is set for it.
fn ends(code: i32, says: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let output = pinbed(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(says), "{arguments:?}: {said}");
}

#[test]
fn what_the_command_line_gets_wrong_is_2() {
    let directory = tempfile::tempdir().unwrap();
    let built = directory.path().join("built");
    for file in ["Makefile", "Kconfig", "mm/gup.c", ".config"] {
        let file = built.join(file);
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(file, "").unwrap();
    }
    let built = built.to_str().unwrap();
    for (arguments, says) in [
        (&["run", "--qemu", "/nonexistent/qemu"][..], "--qemu"),
        (&["run", "--qemu", "/bin/true"], "not a QEMU that runs"),
        (
            &["run", "--kernel-src", "/nonexistent"],
            "not a Linux source tree",
        ),
        (&["run", "--kernel-src", built], "built in place"),
        (&["run", "--kernel", "9.9"], "there is no kernel 9.9"),
        (
            &["run", "--kernel", "6.12+nonsuch"],
            "there is no patch nonsuch",
        ),
        (&["run", "--fragment", "nonsuch"], "there is no fragment"),
    ] {
        ends(2, says, arguments, &[]);
    }
}

#[test]
fn what_the_machine_refuses_is_3() {
    let arguments = ["run", "--accel", "tcg", "userptr::malloc_is_decoder_input"];
    // Where nothing is built yet, since cargo is not asked while nothing has changed.
    let empty = tempfile::tempdir().unwrap();
    let empty = ("CARGO_TARGET_DIR", empty.path().to_str().unwrap());
    for (environment, says) in [
        (&[("TMPDIR", "/nonexistent")][..], "directory for the run"),
        (
            &[("CARGO", "/nonexistent/cargo"), empty],
            "cannot start cargo",
        ),
        (
            &[("XDG_CACHE_HOME", "/proc/nonexistent")],
            "/proc/nonexistent",
        ),
    ] {
        ends(3, says, &arguments, environment);
    }
}

#[test]
fn a_signal_ends_the_build_of_the_guests_programs() {
    let directory = tempfile::tempdir().unwrap();
    let (cargo, began) = (
        directory.path().join("cargo"),
        directory.path().join("began"),
    );
    let script = format!("#!/bin/sh\ntouch {}\nsleep 1000\n", began.display());
    std::fs::write(&cargo, script).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut run = pinbed(&["run", "--accel", "tcg"])
        .env("CARGO", &cargo)
        .env("CARGO_TARGET_DIR", directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !began.exists() {
        assert!(Instant::now() < deadline, "cargo never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).unwrap();
    // It ends when all that it started has, which has its standard error, too.
    let mut said = String::new();
    run.stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130), "{said}");
    assert!(Instant::now() < deadline, "{said}");
}
