// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed device`: becomes the device's own program.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cli::DeviceArgs;
use crate::exit::Exit;
use crate::provision::programs;

/// Runs the device in place of this process.
///
/// # Errors
/// When the device cannot be built, or started.
pub fn device(args: &DeviceArgs) -> Result<Exit> {
    let program = programs::device()?;
    let error = Command::new(&program)
        .arg("--socket-path")
        .arg(&args.socket_path)
        .args(args.allow_sabotage.then_some("--allow-sabotage"))
        .args(args.unconfined.then_some("--unconfined"))
        .exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
