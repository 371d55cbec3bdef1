// SPDX-License-Identifier: Apache-2.0 OR MIT
//! docs/pin-matrix.md says what the tests and the baselines say.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const BLESS: &str = "PINBED_BLESS=1 cargo test -p pinbed --test matrix";

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pin-matrix.md");
    let made = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .arg("matrix")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    if env::var_os("PINBED_BLESS").is_some() {
        fs::write(&path, &made.stdout).unwrap();
    }
    let page = fs::read(&path).unwrap_or_default();
    assert!(
        page == made.stdout,
        "docs/pin-matrix.md is not what the tests and baselines say; run `{BLESS}` and commit the result"
    );
}
