// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed completions`: a script that completes arguments in a shell.

use std::io::{self, Write};

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs};
use crate::exit::Exit;

/// Prints the script.
///
/// # Errors
/// When it cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pinbed", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Exit::Green)
}
