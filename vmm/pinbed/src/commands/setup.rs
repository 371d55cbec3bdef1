// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed setup`: provides all that a run needs, and shows it.

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
        println!("{}", setup::Setup::new(&host, &args.vm, request)?);
    }
    Ok(Exit::Green)
}
