// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pages of docs that pinbed makes say what the tests, the baselines and images/defects.toml say.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const BLESS: &str = "PINBED_BLESS=1 cargo test -p pinbed --test pages";

fn is_up_to_date(name: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    let made = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(arguments)
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
        "docs/{name} is not what `pinbed {}` says; run `{BLESS}` and commit the result",
        arguments.join(" ")
    );
}

#[test]
fn the_pin_matrix() {
    is_up_to_date("pin-matrix.md", &["matrix"]);
}

#[test]
fn the_defects() {
    is_up_to_date("defects.md", &["known", "--page"]);
}

#[test]
fn who_pins_how() {
    is_up_to_date("pinners.md", &["matrix", "--pinners"]);
}
