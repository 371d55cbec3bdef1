// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed man`: a man page for the command and for each subcommand.

use std::fs;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, ManArgs};
use crate::exit::Exit;

/// Writes pinbed.1, pinbed-run.1 and so on.
///
/// # Errors
/// When they cannot be written.
pub fn man(args: &ManArgs) -> Result<Exit> {
    let place = &args.directory;
    fs::create_dir_all(place)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), place))
        .with_context(|| format!("cannot write the man pages to {}", place.display()))?;
    Ok(Exit::Green)
}
