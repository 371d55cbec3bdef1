// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed matrix`: the page of what each kernel does with each kind of memory, or the one of who pins how.

use anyhow::Result;

use crate::cli::MatrixArgs;
use crate::exit::Exit;
use crate::judge::{baseline, matrix, pinners};
use crate::kernel;
use crate::provision::{programs, workspace};

/// Prints the page, in Markdown.
///
/// # Errors
/// When the guest's programs cannot be built, or the baselines are not valid.
pub fn matrix(args: &MatrixArgs) -> Result<Exit> {
    let tests = programs::list(&programs::build(&workspace()?)?)?;
    let manifest = kernel::Manifest::read(&workspace()?.join("guest-kernel-config/kernels.toml"))?;
    let names = baseline::Names::of_checkout(&workspace()?, &manifest, &tests);
    let baselines = baseline::Baselines::of_checkout(&workspace()?, &names)?;
    let page = match args.pinners {
        true => pinners::page,
        false => matrix::page,
    };
    print!("{}", page(&tests, &names.kernels, &baselines));
    Ok(Exit::Green)
}
