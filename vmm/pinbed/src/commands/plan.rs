// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed plan`: how the tests are shared out among machines.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::exit::Exit;
use crate::provision::{programs, workspace};
use crate::run::suite::{self, Selection, Shard};

/// The JSON document. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Plan {
    /// One for each kernel and shard.
    jobs: Vec<Job>,
}

/// What a machine is to run.
#[derive(Debug, Serialize)]
struct Job {
    /// The kernel; none for the one that `pinbed run` takes by itself.
    kernel: Option<String>,
    /// As `--shard` takes it.
    shard: String,
    /// The arguments of `pinbed run`.
    arguments: Vec<String>,
    /// The names of the tests.
    tests: Vec<String>,
}

/// Prints the jobs, a line each, or as JSON.
///
/// # Errors
/// When the guest's programs cannot be built, a filter matches nothing, or the output cannot be written.
pub fn plan(args: &PlanArgs) -> Result<Exit> {
    let all = programs::list(&programs::build(&workspace()?)?)?;
    let kernels = match args.kernels.as_slice() {
        [] => vec![None],
        kernels => kernels.iter().cloned().map(Some).collect(),
    };
    let mut jobs = Vec::new();
    for kernel in kernels {
        for index in 1..=args.shards {
            let shard = Shard {
                index,
                of: args.shards,
            };
            let selection = Selection {
                filters: &args.filters,
                skip: &args.skip,
                shard: Some(shard),
                ..Selection::default()
            };
            let tests = suite::select(&all, &selection)?;
            let mut arguments = args.filters.clone();
            let options = args.skip.iter().map(|skip| ("--skip", skip.clone()));
            let options = options
                .chain(kernel.iter().map(|kernel| ("--kernel", kernel.clone())))
                .chain([("--shard", shard.to_string())]);
            for (name, value) in options {
                arguments.extend([name.to_owned(), value]);
            }
            jobs.push(Job {
                kernel: kernel.clone(),
                shard: shard.to_string(),
                arguments,
                tests: tests.into_iter().map(|test| test.name).collect(),
            });
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &Plan { jobs })?;
        writeln!(out)?;
    } else {
        for job in jobs {
            let words = job.arguments.iter().map(String::as_str);
            // Fails only for a NUL, which no argument can have.
            let words = shlex::try_join(words).unwrap_or_default();
            writeln!(out, "pinbed run {words}  # {} tests", job.tests.len())?;
        }
    }
    Ok(Exit::Green)
}
