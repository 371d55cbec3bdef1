// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exit codes of what goes wrong before a guest is started: 2 where the command line is to blame, 3 where the machine is.

use std::path::Path;
use std::process::{Command, Stdio};

/// Sees that `pinbed` ends with this code and says this. `environment` is set for it.
fn ends(code: i32, says: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let output = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
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
