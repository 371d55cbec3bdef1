// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed run`: from the command line to the exit code.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pinbed_abi::report::{Plan, TestInfo};

use crate::baseline::{Baselines, Names};
use crate::cli::{AccelArg, DEFAULT_CPUS, DEFAULT_MEMORY, RunArgs};
use crate::exit::Exit;
use crate::kernel::Manifest;
use crate::output::ktap::Ktap;
use crate::output::table::Table;
use crate::output::{Output, junit};
use crate::session::Session;
use crate::setup::{Directory, Setup, workspace};
use crate::vm::Console;
use crate::watch::Limits;
use crate::{guest, suite};

/// Runs the tests.
///
/// # Errors
/// When the run does not come to begin, or its results cannot be written.
pub fn run(args: &RunArgs) -> Result<Exit> {
    let began = Instant::now();
    let setup = Setup::new(&args.vm)?;
    let all = guest::list(&setup.programs)?;
    ensure!(!all.is_empty(), "the guest has no tests");
    let chosen = suite::select(&all, &args.filters)?;
    let baselines = baselines(&all)?;
    let baseline = setup.baseline.as_ref().map(|name| baselines.of(name));
    // Opened now, so that a path that does not work costs no run.
    let json = create(args.json.as_ref())?;
    let junit = create(args.junit.as_ref())?;

    let tests: Vec<TestInfo> = (0..args.repeat)
        .flat_map(|_| chosen.iter().cloned())
        .collect();
    let plan = Plan::Tests {
        names: tests.iter().map(|test| test.name.clone()).collect(),
        timeout_s: args.timeout,
    };
    let directory = Directory::new(args.keep)?;
    let machine = setup.machine(
        &args.vm,
        Console::Runner,
        directory.files(),
        &plan,
        Vec::new(),
    )?;

    let rerun = rerun_command(args);
    let mut output: Box<dyn Output> = if args.ktap {
        Box::new(Ktap::new(io::stdout(), rerun))
    } else {
        Box::new(Table::new(
            io::stdout(),
            chosen.iter().map(|test| test.name.as_str()),
            args.verbose,
            rerun,
        ))
    };
    let session = Session::new(
        tests,
        baseline,
        setup.environment(&args.vm),
        output.as_mut(),
        began,
    );
    let (record, exit) = session.run(
        &machine,
        setup.qemu.command(),
        directory.files(),
        limits(args.timeout, &chosen),
    )?;

    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &record).context("cannot write the JSON file")?;
    }
    if let Some(file) = junit {
        io::Write::write_all(&mut &file, junit::document(&record)?.as_bytes())
            .context("cannot write the JUnit file")?;
    }
    directory.tell();
    Ok(exit)
}

/// What is known of all kernels, held against the tests there are.
fn baselines(tests: &[TestInfo]) -> Result<Baselines> {
    let workspace = workspace();
    let manifest = Manifest::read(&workspace.join("guest-kernel-config/kernels.toml"))?;
    let tests: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
    let kernels: Vec<_> = manifest
        .recipes()
        .iter()
        .map(|recipe| recipe.name.as_str())
        .collect();
    let names = Names {
        tests: &tests,
        kernels: &kernels,
    };
    Ok(Baselines::read(&workspace.join("images/baselines"), names)?)
}

/// How long things may take, where a test may take `timeout` seconds. A loaded host is slow: these bounds are there to end a run that is
/// lost, not to measure one that goes well.
fn limits(timeout: u64, tests: &[TestInfo]) -> Limits {
    // The guest ends a test at its time and says so; then it looks at what is left behind, which takes seconds at most.
    let with_judging = |timeout: u64| Duration::from_secs(timeout.saturating_add(15));
    let slow_tests = tests.iter().filter(|test| test.timeout_s > timeout);
    Limits {
        // A host on which tests are slow is slow to boot, too.
        boot: Duration::from_secs(timeout.max(60)),
        // The guest gives the driver 30 s to load.
        between: Duration::from_secs(45),
        test: with_judging(timeout),
        slow_tests: slow_tests
            .map(|test| (test.name.clone(), with_judging(test.timeout_s)))
            .collect(),
        power_off: Duration::from_secs(15),
        settle: Duration::from_secs(2),
    }
}

fn create(path: Option<&PathBuf>) -> Result<Option<File>> {
    path.map(|path| File::create(path).with_context(|| format!("cannot create {}", path.display())))
        .transpose()
}

/// Makes the command that runs one test the way this run does.
fn rerun_command(args: &RunArgs) -> Box<dyn Fn(&str) -> String> {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "pinbed".to_owned());
    let vm = &args.vm;
    let mut options: Vec<(&str, String)> = Vec::new();
    options.extend(vm.kernel.iter().map(|kernel| ("--kernel", kernel.clone())));
    options.extend(
        vm.kernel_src
            .iter()
            .map(|tree| ("--kernel-src", tree.display().to_string())),
    );
    options.extend(
        vm.fragments
            .iter()
            .map(|fragment| ("--fragment", fragment.clone())),
    );
    options.extend(
        vm.qemu
            .iter()
            .map(|qemu| ("--qemu", qemu.display().to_string())),
    );
    options.extend((vm.accel != AccelArg::Auto).then(|| ("--accel", vm.accel.to_string())));
    options.extend((vm.memory != DEFAULT_MEMORY).then(|| ("--memory", vm.memory.to_string())));
    options.extend((vm.cpus != DEFAULT_CPUS).then(|| ("--cpus", vm.cpus.to_string())));
    options.extend((!vm.append.is_empty()).then(|| ("--append", vm.append.clone())));
    let options: Vec<_> = options
        .iter()
        .flat_map(|(name, value)| [*name, value.as_str()])
        .collect();
    // Fails only for a NUL, which no argument can have.
    let options = shlex::try_join(options).unwrap_or_default();
    Box::new(move |test| {
        format!("{program} run {test} {options}")
            .trim_end()
            .to_owned()
    })
}
