// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which revision of a git tree something is made from.

use std::path::Path;
use std::process::{Command, Stdio};

/// `git describe --always --dirty` of a tree; none where it is no git tree, or there is no git. Nothing is written to it.
pub fn of(tree: &Path) -> Option<String> {
    let output = Command::new("git")
        .args(["--no-optional-locks", "-C"])
        .arg(tree)
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
