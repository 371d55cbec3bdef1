// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed trace`: `pinbed run --trace`, with a name for the file.

use anyhow::Result;

use crate::cli::RunArgs;
use crate::commands::run;
use crate::exit::Exit;

/// What the file is called unless the command line says.
const FILE: &str = "pinbed.pftrace";

/// Runs tests and writes their trace.
///
/// # Errors
/// Those of [`run::run`].
pub fn trace(args: &RunArgs) -> Result<Exit> {
    let mut args = args.clone();
    args.trace.get_or_insert_with(|| FILE.into());
    run::run(&args)
}
