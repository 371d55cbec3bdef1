// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed endure`, a short one: what it looks at is there, and does not grow.

use std::process::Command;

#[test]
fn a_short_course_sees_all_processes() {
    let endure = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["endure", "resets=20", "--accel", "tcg"])
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&endure.stdout),
        String::from_utf8_lossy(&endure.stderr),
    );
    assert!(endure.status.success(), "{out}\n{err}");
    assert!(
        out.starts_with("resets: 20, by 20 runs of "),
        "{out}\n{err}"
    );
    for seen in [
        "\n  pinbed: ",
        "\n  QEMU: ",
        "\n  the device: ",
        "\n  guest: 0 pages pinned",
    ] {
        assert!(out.contains(seen), "{out}\n{err}");
    }
}
