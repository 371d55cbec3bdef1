// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command `pinbed`: boots a kernel beside the device, runs the tests in it, and judges them. A library for the sake of its fuzz targets
//! only; `main.rs` is the program.

// First, for its macro.
#[macro_use]
mod text;

mod cli;
mod commands;
mod exit;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod interrupt;
mod judge;
mod kernel;
mod machine;
mod provision;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod report;
mod run;
mod settings;
mod trace;

use std::io;
use std::process::{ExitCode, Termination};

use console::Style;

use crate::exit::Exit;

/// What the program does; see [`exit::Exit`] for what it returns.
pub fn main() -> ExitCode {
    env_logger::init();
    let result = settings::parse().and_then(|cli| commands::execute(&cli));
    result.unwrap_or_else(|error| {
        if is_closed_pipe(&error) {
            return Exit::ClosedPipe.report();
        }
        say!(
            "{} {error:#}",
            Style::new().for_stderr().red().bold().apply_to("pinbed:")
        );
        commands::exit_of(&error).report()
    })
}

/// Whether who reads our output has had enough, as `head` does: nothing to complain of.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let of = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(of)
        || error
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
}
