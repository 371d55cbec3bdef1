// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `pinbed-device`: serves one front end and ends with it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// pinbed's device, a vhost-user back end
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen; a front end connects there once, and the device ends when it leaves
    #[arg(short, long, value_name = "PATH")]
    socket_path: PathBuf,
}

fn main() -> ExitCode {
    env_logger::init();
    match pinbed_device::serve(&Args::parse().socket_path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinbed-device: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
