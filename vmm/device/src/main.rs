// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `pinbed-device`: serves one front end and ends with it.

mod log_rate;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::Arg::{Long, Short};
use lexopt::ValueExt;
use pinbed_abi::fault::Fault;
use pinbed_device::{Options, serve};

const USAGE: &str = "\
pinbed's device, a vhost-user back end

Usage: pinbed-device --socket-path <PATH>

Options:
  -s, --socket-path <PATH>  Where to listen; a front end connects there once, and the device ends when it leaves
      --inspect <PATH>      Where to listen for debuggers, which are told what is attached
      --trace <FILE>        Add a line to this file for each request, each access to memory and each line of the log, with the
                            host's time stamp counter
      --allow-sabotage      Let the guest have the device misbehave: delay and fail jobs, and abort the process
      --fault <NAME[=N]>    Misbehave once, at the Nth request of the fault's kind; the names are those of `pinbed run --fault`
      --unconfined          Keep the process's rights (seccomp, Landlock, limits): for debuggers, tracers and coverage
  -h, --help                Print help
  -V, --version             Print version";

/// What the command line asks for.
enum Request {
    Serve(PathBuf, Options, Option<PathBuf>),
    Help,
    Version,
}

fn main() -> ExitCode {
    pinbed_engine::tee::quiet_applications();
    let (socket, options, trace) = match parse() {
        Ok(Request::Serve(socket, options, trace)) => (socket, options, trace),
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
    match trace.as_deref().map(trace::File::open).transpose() {
        Ok(trace) => log_rate::install(trace),
        Err(error) => {
            eprintln!("pinbed-device: --trace: {error}");
            return ExitCode::from(2);
        }
    }
    match serve(&socket, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinbed-device: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let (mut socket, mut trace) = (None, None);
    let mut options = Options {
        confined: true,
        ..Options::default()
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('s') | Long("socket-path") => socket = Some(parser.value()?.into()),
            Long("inspect") => options.inspect = Some(parser.value()?.into()),
            Long("trace") => trace = Some(parser.value()?.into()),
            Long("allow-sabotage") => options.allow_sabotage = true,
            Long("fault") => {
                let parse = |text: &str| text.parse::<Fault>();
                options.faults.push(parser.value()?.parse_with(parse)?);
            }
            Long("unconfined") => options.confined = false,
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            other => return Err(other.unexpected()),
        }
    }
    let missing = || lexopt::Error::Custom("--socket-path is missing".into());
    let serve = |socket| Request::Serve(socket, options, trace);
    socket.map(serve).ok_or_else(missing)
}

/// An error and its causes, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
