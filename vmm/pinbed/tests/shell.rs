// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How `pinbed shell` ends, with a real guest on a terminal, which script(1) provides.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Opens a shell, types a line at its prompt, and waits for the end. Returns the exit code and what the terminal showed.
fn typed(line: &str) -> (Option<i32>, String) {
    let command = format!(
        "{} shell --kernel 6.12 --accel tcg",
        env!("CARGO_BIN_EXE_pinbed")
    );
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let (mut shown, mut bytes) = (Vec::new(), [0; 4096]);
    let mut typed = false;
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        shown.extend_from_slice(&bytes[..count]);
        if !typed && String::from_utf8_lossy(&shown).contains("pinbed:/# ") {
            keys.write_all(line.as_bytes()).unwrap();
            typed = true;
        }
    }
    let status = script.wait().unwrap();
    (status.code(), String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn a_shell_that_is_left_ends_well_and_one_whose_kernel_panics_does_not() {
    let (code, shown) = typed("exit\n");
    assert_eq!(code, Some(0), "{shown}");
    let (code, shown) = typed("echo c > /proc/sysrq-trigger\n");
    assert_eq!(code, Some(5), "{shown}");
    assert!(shown.contains("Kernel panic"), "{shown}");
}
