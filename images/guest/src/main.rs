// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's tests.
//!
//! - `pinbed-guest list`: all tests, as a JSON array of `TestInfo`; works on any machine.
//! - `pinbed-guest run NAME`: runs one test in this process, telling its supervisor on descriptor 3, or a person on stdout.

mod tests;

use pinbed_abi::report::{Eye, Finding, TestInfo};
use pinbed_guest::harness::ctx::{Ctx, Stop, tell_from_anywhere};
use pinbed_guest::harness::progress::Progress;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => list(),
        ["run", name] => run(name),
        _ => {
            eprintln!("usage: pinbed-guest list | pinbed-guest run NAME");
            ExitCode::from(2)
        }
    }
}

fn list() -> ExitCode {
    let tests: Vec<TestInfo> = tests::all().map(|test| test.info()).collect();
    let mut out = std::io::stdout().lock();
    match serde_json::to_writer_pretty(&mut out, &tests)
        .map_err(std::io::Error::from)
        .and_then(|()| writeln!(out))
    {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the list of tests cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> ExitCode {
    let Some(test) = tests::all().find(|test| test.name == name) else {
        eprintln!("there is no test '{name}'; see pinbed-guest list");
        return ExitCode::from(2);
    };
    std::panic::set_hook(Box::new(|panic| {
        let finding = Finding {
            eye: Eye::Harness,
            text: format!("the test itself is wrong: {panic}"),
        };
        tell_from_anywhere(&Progress::Finding(finding));
        // Of whatever thread or child it is: nothing that comes after would be a result.
        std::process::abort();
    }));
    let mut t = Ctx::new(name);
    t.tell(&Progress::Begin {
        timeout_s: test.timeout_s,
    });
    match (test.run)(&mut t) {
        Ok(()) => t.tell(&Progress::Finished),
        Err(Stop::Skip(reason)) => t.tell(&Progress::Skip(reason)),
        Err(Stop::Finding(finding)) => {
            t.find(finding.eye, finding.text);
            t.tell(&Progress::Finished);
        }
    }
    if t.findings() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
