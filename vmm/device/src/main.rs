// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `pinbed-device`: serves one front end and ends with it.

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::Arg::{Long, Short};

const USAGE: &str = "\
pinbed's device, a vhost-user back end

Usage: pinbed-device --socket-path <PATH>

Options:
  -s, --socket-path <PATH>  Where to listen; a front end connects there once, and the device ends when it leaves
  -h, --help                Print help
  -V, --version             Print version";

/// What the command line asks for.
enum Request {
    Serve(PathBuf),
    Help,
    Version,
}

fn main() -> ExitCode {
    env_logger::init();
    let socket = match parse() {
        Ok(Request::Serve(socket)) => socket,
        Ok(Request::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Request::Version) => {
            println!("pinbed-device {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("pinbed-device: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    match pinbed_device::serve(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinbed-device: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut socket = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('s') | Long("socket-path") => socket = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            other => return Err(other.unexpected()),
        }
    }
    let missing = || lexopt::Error::Custom("--socket-path is missing".into());
    socket.map(Request::Serve).ok_or_else(missing)
}

/// An error and its causes, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
