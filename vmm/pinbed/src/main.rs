// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command `pinbed`: boots a kernel beside the device, runs the tests in it, and judges them.

mod accel;
mod additions;
mod baseline;
mod cli;
mod events;
mod exit;
mod guest;
mod initramfs;
mod kernel;
mod matrix;
mod output;
mod process;
mod progress;
mod provision;
mod qmp;
mod record;
mod run;
mod session;
mod setup;
mod shell;
mod suite;
mod verdict;
mod vm;
mod watch;

use std::io::{self, Write};

use anyhow::Result;
use clap::Parser;
use console::Style;

use crate::cli::{Cli, Command, ListArgs, SetupArgs};
use crate::exit::Exit;

fn main() -> Exit {
    env_logger::init();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::List(args) => list(&args),
        Command::Matrix => matrix(),
        Command::Shell(args) => shell::shell(&args),
        Command::Setup(args) => setup(&args),
        Command::Device(args) => pinbed_device::serve(&args.socket_path)
            .map(|()| Exit::Green)
            .map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        if is_closed_pipe(&error) {
            return Exit::Internal;
        }
        eprintln!(
            "{} {error:#}",
            Style::new().for_stderr().red().bold().apply_to("pinbed:")
        );
        exit_of(&error)
    })
}

/// `pinbed setup`.
fn setup(args: &SetupArgs) -> Result<Exit> {
    let host = setup::Host::new(&args.vm)?;
    for request in host.requests(&args.vm)? {
        println!("{}", setup::Setup::new(&host, &args.vm, &request)?);
    }
    Ok(Exit::Green)
}

/// `pinbed list`.
fn list(args: &ListArgs) -> Result<Exit> {
    let all = guest::list(&guest::build(&setup::workspace())?)?;
    let chosen = suite::select(&all, &args.filters)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &chosen)?;
        writeln!(out)?;
        return Ok(Exit::Green);
    }
    let width = console::Term::stdout()
        .size_checked()
        .map_or(100, |(_, columns)| usize::from(columns));
    let options = textwrap::Options::new(width.min(120))
        .initial_indent("    ")
        .subsequent_indent("    ");
    for test in chosen {
        writeln!(out, "{}", Style::new().bold().apply_to(&test.name))?;
        for line in textwrap::wrap(&test.correct, &options) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(Exit::Green)
}

/// `pinbed matrix`.
fn matrix() -> Result<Exit> {
    let tests = guest::list(&guest::build(&setup::workspace())?)?;
    let manifest =
        kernel::Manifest::read(&setup::workspace().join("guest-kernel-config/kernels.toml"))?;
    let names = baseline::Names::of_checkout(&manifest, &tests);
    let baselines = baseline::Baselines::of_checkout(&names)?;
    print!("{}", matrix::page(&tests, &names.kernels, &baselines));
    Ok(Exit::Green)
}

/// Whether who reads our output has had enough, as `head` does: nothing to complain of.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let of = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(of)
        || error
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
}

/// The exit code of an error.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(error) = error.downcast_ref::<provision::Error>() {
        error.exit()
    } else if error.is::<suite::Error>()
        || error.is::<baseline::Error>()
        || error.is::<additions::Error>()
        || error.is::<shell::SeveralKernels>()
    {
        Exit::Usage
    } else if error.is::<guest::BuildFailed>() {
        Exit::Provisioning
    } else {
        Exit::Internal
    }
}
