// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed mutants`: runs the suite on a kernel with each of the defects that a patch builds into it, to see that the suite finds them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail};
use pinbed_abi::report::Plan as GuestPlan;

use crate::cli::{MutantsArgs, VmArgs};
use crate::commands::run::{begin, end, guests_for, limits};
use crate::commands::shell::SeveralKernels;
use crate::exit::Exit;
use crate::judge::baseline::{Baselines, Names};
use crate::judge::mutants::{self, Mutant, PATCH};
use crate::kernel::{MUTANTS, Patch};
use crate::machine::vm::Start;
use crate::provision::{programs, workspace};
use crate::report::file::{self, Target, Whole};
use crate::report::mutants::Earlier;
use crate::report::result;
use crate::report::{self, Reporter, Reporters};
use crate::run::environments;
use crate::run::plan::Plan;
use crate::run::session::{Options, Session};
use crate::run::setup::{Host, Setup, session_name};
use crate::run::suite::{self, Selection};

/// The kernel that mutants are built into, unless another is asked for.
const DEFAULT: &str = "6.12";
/// Seconds a test may take, unless it asks for more.
const TIMEOUT: u64 = 30;

/// Runs the suite with each mutant; the exit code is that of a verdict that differs where one survives.
///
/// # Errors
/// When the kernel cannot be had, or the suite is not green on it without a defect.
pub fn mutants(args: &MutantsArgs) -> Result<Exit> {
    let place = workspace()?.join("guest-kernel-config").join(MUTANTS);
    let patch = Patch::find(std::slice::from_ref(&place), PATCH, kernel(args)?)?;
    let known = mutants::read(&place, &patch.text)?;
    let earlier = args.against.as_deref().map(|path| earlier(&known, path));
    let earlier = earlier.transpose()?;
    let past = args.read.as_deref().map(|path| self::earlier(&known, path));
    let past = past.transpose()?;
    let chosen = match &past {
        Some(past) => past.mutants.clone(),
        None => mutants::choose(known, &args.names)?,
    };
    if args.list {
        for mutant in &chosen {
            println!("{:<30} {}", mutant.name, mutant.defect);
        }
        return Ok(Exit::Green);
    }
    let wrong = Rc::new(Cell::new(0));
    let mut all: Vec<Box<dyn Reporter>> = Vec::new();
    if let Some(path) = &args.json {
        let target = Target::from(path.clone());
        all.push(Box::new(Whole::new("the JSON report", target, file::json)));
    }
    if let Some(path) = &args.page {
        let (mutants, first) = (chosen.clone(), args.first);
        all.push(Box::new(Whole::new(
            "the page",
            Target::from(path.clone()),
            move |run| report::mutants::page(&mutants, first, run),
        )));
    }
    let lines = report::mutants::Lines::new(io::stdout(), chosen.clone(), earlier, wrong.clone());
    all.push(Box::new(lines));
    let mut reporters = Reporters::new(all, Instant::now());
    let judged = |exit: Exit| match wrong.get() {
        0 => exit,
        _ => exit.max(Exit::Differs),
    };
    let exit = match past {
        Some(past) => {
            reporters.retell(&past.run)?;
            Exit::Green
        }
        None => {
            let result = on_all(args, &chosen, &mut reporters);
            end(reporters, result.map(judged))?
        }
    };
    // What differs from an earlier run is known in the end.
    Ok(judged(exit))
}

/// An earlier run.
fn earlier(known: &[Mutant], path: &Path) -> Result<Earlier> {
    let run = result::read(path)?;
    let mutants = report::mutants::of_run(known, &run).map_err(|why| result::Error::NoMutants {
        path: path.to_owned(),
        why,
    })?;
    Ok(Earlier {
        name: path.display().to_string(),
        mutants,
        run,
    })
}

/// The kernel that the mutants are built into.
fn kernel(args: &MutantsArgs) -> Result<&str> {
    match args.vm.kernels.as_slice() {
        [] => Ok(DEFAULT),
        [kernel] => Ok(kernel),
        _ => Err(SeveralKernels.into()),
    }
}

/// A session without a defect, and one with each.
fn on_all(args: &MutantsArgs, mutants: &[Mutant], reporters: &mut Reporters) -> Result<Exit> {
    let vm = VmArgs {
        kernels: vec![format!("{}+{PATCH}", kernel(args)?)],
        ..environments::one(&args.vm, &workspace()?)?
    };
    let host = Host::new(&vm)?;
    let all = programs::list(&host.programs)?;
    let selection = Selection {
        filters: &args.tests,
        ..Selection::default()
    };
    let tests = suite::select(&all, &selection)?;
    let names = Names::of_checkout(&workspace()?, &host.manifest, &all);
    let baselines = Baselines::of_checkout(&workspace()?, &names)?;
    let [request] = host.requests.as_slice() else {
        bail!("one kernel at a time");
    };
    let setup = Setup::new(&host, &vm, request)?;
    begin(
        reporters,
        vec![session_name(&vm, request); mutants.len() + 1],
    );
    let options = Options {
        jobs: args.jobs.unwrap_or_else(|| guests_for(&tests, None)),
        retries: 0,
        isolate: false,
        until_fail: args.first,
        shuffled: false,
    };
    let timeout = setup.timeout(&vm, TIMEOUT);
    let mut session = |number: usize, append: String| {
        let vm = VmArgs {
            append,
            ..vm.clone()
        };
        let guests = |names: &[String], _| {
            let plan = GuestPlan::Tests {
                names: names.to_vec(),
                timeout_s: timeout,
            };
            setup.guest(&vm, &plan, Start::Cold, false)
        };
        let plan = Plan::new(tests.clone(), 1, BTreeMap::new());
        Session::new(
            number,
            plan,
            setup.baseline(&vm, &baselines),
            options,
            reporters,
        )
        .run(
            setup.environment(&vm, request),
            tests.clone(),
            &guests,
            &limits(timeout, &tests),
        )
    };
    match session(0, vm.append.clone())? {
        Exit::Green => {}
        stopped @ (Exit::Interrupted | Exit::ClosedPipe) => return Ok(stopped),
        _ => bail!(NotGreen(request.name())),
    }
    for (number, mutant) in mutants.iter().enumerate() {
        let append = format!("{} mutant={}", vm.append, mutant.name);
        let exit = session(number + 1, append.trim().to_owned())?;
        if matches!(exit, Exit::Interrupted | Exit::ClosedPipe) {
            return Ok(exit);
        }
    }
    Ok(Exit::Green)
}

/// Without a defect the kernel differs from its baseline, so nothing can be said of mutants.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} differs from its baseline without a defect; `pinbed run --kernel {0}` shows how. Nothing can be said of mutants before that is green"
)]
pub struct NotGreen(String);
