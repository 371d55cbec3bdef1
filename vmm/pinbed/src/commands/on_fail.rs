// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed run --on-fail`: what follows a run in which a test failed, with the first of those.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;

use anyhow::Result;

use crate::cli::{DebugArgs, OnFail, RunArgs};
use crate::commands::debug;
use crate::commands::run::on_stdout;
use crate::exit::Exit;
use crate::judge::verdict::Verdict;
use crate::report::event::{Event, What};
use crate::report::record::Environment;
use crate::report::{Error, Reporter};
use crate::run::environments::STOCK;

/// The debugger that is taken.
const GDB: &str = "gdb";

/// A test that failed, and what it ran on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    test: String,
    kernel: String,
    env: Option<String>,
}

/// Remembers the first test that failed.
#[derive(Clone, Debug, Default)]
pub struct Witness(Rc<RefCell<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    environments: Vec<Environment>,
    first: Option<Failure>,
}

impl Witness {
    /// The first test that failed.
    pub fn failure(&self) -> Option<Failure> {
        self.0.borrow().first.clone()
    }
}

impl Reporter for Witness {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        let mut seen = self.0.borrow_mut();
        match &event.what {
            What::SessionStarted { environment, .. } => {
                seen.environments.push((**environment).clone());
            }
            What::TestFinished { session, judged }
                if matches!(judged.verdict, Verdict::Fail { .. }) && !judged.retried =>
            {
                if let (None, Some(environment)) = (&seen.first, seen.environments.get(*session)) {
                    seen.first = Some(Failure {
                        test: judged.test.name.clone(),
                        kernel: environment.kernel_alone().to_owned(),
                        env: environment.env.clone(),
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Sees that what is to follow a failure can, before anything runs.
///
/// # Errors
/// When there is no debugger.
pub fn check(what: OnFail) -> Result<()> {
    match what {
        OnFail::Debug => debug::debugger(GDB.as_ref()).map(drop),
        OnFail::Trace => Ok(()),
    }
}

/// Runs the test again in a debugger, or with a trace. `run` runs tests and shows them to a person: it writes none of the reports that `args`
/// ask for and keeps no run, since those are of the run before, as is the exit code.
///
/// # Errors
/// Those of what follows.
pub fn follow(
    what: OnFail,
    failure: &Failure,
    args: &RunArgs,
    run: impl Fn(&RunArgs) -> Result<Exit>,
) -> Result<()> {
    let mut vm = args.vm.clone();
    // Of several kernels and environments that in which it failed.
    if vm.kernel_src.is_none() && vm.kernel_image.is_none() {
        vm.kernels = vec![failure.kernel.clone()];
    }
    vm.environments = vec![failure.env.clone().unwrap_or_else(|| STOCK.to_owned())];
    match what {
        OnFail::Debug => {
            say!("\npinbed: {} again, in a debugger", failure.test);
            // A report that is on standard output is alone there.
            let output = match on_stdout(&args.reports).as_slice() {
                [] => Stdio::inherit(),
                _ => io::stderr().into(),
            };
            let args = DebugArgs {
                test: failure.test.clone(),
                breaks: Vec::new(),
                attach: false,
                gdb: GDB.into(),
                gdb_arguments: Vec::new(),
                qemu_arguments: Vec::new(),
                vm,
            };
            debug::debug(&args, output)?;
        }
        OnFail::Trace => {
            say!("\npinbed: {} again, with a trace", failure.test);
            run(&RunArgs {
                filters: vec![failure.test.clone()],
                vm,
                skip: Vec::new(),
                failed: false,
                shard: None,
                shuffle: None,
                repeat: None,
                until_fail: false,
                retries: 0,
                jobs: Some(1),
                trace: Some(PathBuf::from(format!(
                    "{}.pftrace",
                    failure.test.replace("::", "-")
                ))),
                on_fail: None,
                ..args.clone()
            })?;
        }
    }
    Ok(())
}
