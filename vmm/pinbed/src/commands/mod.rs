// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The subcommands, a file each.

pub mod bisect;
pub mod cache;
pub mod compare;
pub mod completions;
pub mod debug;
pub mod device;
pub mod doctor;
pub mod endure;
pub mod known;
pub mod list;
pub mod man;
pub mod matrix;
pub mod merge;
pub mod mutants;
mod on_fail;
pub mod plan;
pub mod report;
pub mod run;
pub mod runs;
pub mod setup;
pub mod shell;
pub mod trace;

use std::process::{ExitCode, Stdio, Termination};

use anyhow::Result;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::judge::{self, baseline};
use crate::provision::{self, programs};
use crate::report as reports;
use crate::run::{additions, environments, extras, suite};
use crate::settings;

/// Carries out a subcommand.
///
/// # Errors
/// Those of the subcommand; [`exit_of`] has the exit code.
pub fn execute(cli: &Cli) -> Result<ExitCode> {
    if let Some(directory) = &cli.workspace {
        provision::choose_workspace(directory)?;
    }
    if cli.offline {
        provision::stay_offline();
    }
    let exit = match &cli.command {
        // What runs in the guest decides.
        Command::Shell(args) => return shell::shell(args),
        Command::Run(args) => run::run(args),
        Command::Trace(args) => trace::trace(args),
        Command::List(args) => list::list(args),
        Command::Known(args) => known::known(args),
        Command::Runs => runs::runs(),
        Command::Plan(args) => plan::plan(args),
        Command::Merge(args) => merge::merge(args),
        Command::Report(args) => report::report(args),
        Command::Compare(args) => compare::compare(args),
        Command::Bisect(args) => bisect::bisect(args),
        Command::Completions(args) => completions::completions(args),
        Command::Man(args) => man::man(args),
        Command::Matrix(args) => matrix::matrix(args),
        Command::Debug(args) => debug::debug(args, Stdio::inherit()),
        Command::Mutants(args) => mutants::mutants(args),
        Command::Endure(args) => endure::endure(args),
        Command::Setup(args) => setup::setup(args),
        Command::Cache { command } => cache::cache(command),
        Command::Doctor => doctor::doctor(),
        Command::Device(args) => device::device(args),
    };
    exit.map(Exit::report)
}

/// The exit code of an error.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(error) = error.downcast_ref::<provision::Error>() {
        error.exit()
    } else if let Some(extras::Error::Provision(error)) = error.downcast_ref() {
        error.exit()
    } else if error.is::<suite::Error>()
        || error.is::<baseline::Error>()
        || error.is::<judge::mutants::Error>()
        || error.is::<additions::Error>()
        || error.is::<shell::SeveralKernels>()
        || error.is::<debug::Error>()
        || error.is::<extras::Error>()
        || error.is::<environments::Error>()
        || error.is::<run::SharedStdout>()
        || error.is::<merge::Unfit>()
        || error.is::<bisect::Error>()
        || error.is::<reports::result::Error>()
        || error.is::<settings::Error>()
        || error.is::<run::Unwritable>()
    {
        Exit::Usage
    } else if error.is::<mutants::NotGreen>() {
        Exit::Differs
    } else if error.is::<programs::BuildFailed>() || error.is::<reports::Error>() {
        Exit::Provisioning
    } else if error.chain().any(|cause| cause.is::<std::io::Error>()) {
        // The system refuses a file, a process or space: nothing is wrong in here.
        Exit::Provisioning
    } else {
        Exit::Internal
    }
}
