// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed matrix`: the page of what each kernel does with each kind of memory, the one of who pins how, or the one of which tests ran in
//! which environments.

use anyhow::Result;

use crate::cli::MatrixArgs;
use crate::exit::Exit;
use crate::judge::{baseline, matrix, pinners};
use crate::kernel;
use crate::provision::{programs, workspace};
use crate::report::{coverage, result};

/// Prints the page, in Markdown.
///
/// # Errors
/// When the guest's programs cannot be built, the baselines are not valid, or a result cannot be read.
pub fn matrix(args: &MatrixArgs) -> Result<Exit> {
    if !args.environments.is_empty() {
        let found = args.environments.iter().map(|name| result::find(name));
        let results: Vec<_> = found.collect::<Result<_, _>>()?;
        let sessions: Vec<_> = results.iter().flat_map(|it| &it.run.sessions).collect();
        print!("{}", coverage::page(&sessions));
        return Ok(Exit::Green);
    }
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
