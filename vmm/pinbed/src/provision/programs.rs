// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's programs: built by cargo, which knows when there is nothing to do, and asked for their list of tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pinbed_abi::report::TestInfo;

use crate::provision::{self, interrupt};

/// The one target that guests are built for. Named even where it is the host's, so that RUSTFLAGS stay off build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest's programs, statically linked.
#[derive(Debug)]
pub struct Programs {
    /// PID 1.
    pub init: PathBuf,
    /// The tests.
    pub tests: PathBuf,
}

/// Cargo cannot build the guest's programs. It has said why.
#[derive(Debug, thiserror::Error)]
#[error("the guest's programs cannot be built; cargo's messages above say why")]
pub struct BuildFailed;

/// Builds the programs from the workspace at `workspace`. Cargo's messages go to standard error: its progress the first time, which
/// takes a minute, and later what is wrong.
///
/// # Errors
/// [`BuildFailed`], or when cargo cannot be started.
pub fn build(workspace: &Path) -> Result<Programs> {
    let cache = provision::cache::Cache::of_user()?;
    let target = provision::target(workspace, &cache).join("guest");
    let built = target.join(TARGET).join("guest");
    let programs = Programs {
        init: built.join("pinbed-init"),
        tests: built.join("pinbed-guest"),
    };
    let quiet = programs.tests.exists().then_some("--quiet");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--profile", "guest", "--target", TARGET, "-p", "pinbed-init", "-p", "pinbed-guest"])
        .args(quiet)
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", &target)
        // Theirs, not the caller's: another set would be another build each time.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot start cargo, which builds the guest's programs; install Rust, or put cargo into PATH")?;
    if interrupt::requested() {
        // It reached cargo, too.
        return Err(provision::Error::Interrupted.into());
    }
    ensure!(status.success(), BuildFailed);
    Ok(programs)
}

/// The tests that the guest has. Its program lists them on any Linux.
///
/// # Errors
/// When the program fails, or says something else than a list.
pub fn list(programs: &Programs) -> Result<Vec<TestInfo>> {
    let program = programs.tests.display();
    let output = Command::new(&programs.tests)
        .arg("list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} list failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{program} list does not print a list of tests"))
}
