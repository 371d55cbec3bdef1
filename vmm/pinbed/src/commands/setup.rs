// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed setup`: provides all that a run needs, and shows it.

use std::io::{self, Write};

use anyhow::Result;

use crate::cli::SetupArgs;
use crate::exit::Exit;
use crate::run::setup;

/// Provides what a run needs on each kernel, and prints where it is.
///
/// # Errors
/// When something cannot be provided.
pub fn setup(args: &SetupArgs) -> Result<Exit> {
    let host = setup::Host::new(&args.vm)?;
    for request in &host.requests {
        writeln!(
            io::stdout(),
            "{}",
            setup::Setup::new(&host, &args.vm, request)?
        )?;
    }
    Ok(Exit::Green)
}
