// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed run`: from the command line to the exit code.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pinbed_abi::report::{Plan, TestInfo};

use crate::cli::{AccelArg, DEFAULT_CPUS, DEFAULT_MEMORY, RunArgs};
use crate::commands::exit_of;
use crate::exit::Exit;
use crate::judge::baseline::{Baselines, Names};
use crate::kernel::Request;
use crate::machine::vm::Console;
use crate::machine::watch::Limits;
use crate::provision::{programs, workspace};
use crate::report::ktap::{self, Ktap};
use crate::report::record::{FORMAT, Record, Records};
use crate::report::table::{self, Table};
use crate::report::{Output, junit};
use crate::run::session::Session;
use crate::run::setup::{Directory, Host, Setup};
use crate::run::suite;

/// Runs the tests on each kernel, one after the other.
///
/// # Errors
/// When no run comes to begin, or results cannot be written. If one of several kernels cannot be had, the others run.
pub fn run(args: &RunArgs) -> Result<Exit> {
    let began = Instant::now();
    let host = Host::new(&args.vm)?;
    let kernels = host.requests(&args.vm)?;
    let top = workspace()?;
    let all = programs::list(&host.programs)?;
    ensure!(!all.is_empty(), "the guest has no tests");
    let run = Run {
        args,
        chosen: suite::select(&all, &args.filters)?,
        baselines: Baselines::of_checkout(&top, &Names::of_checkout(&top, &host.manifest, &all))?,
        host,
        several: kernels.len() > 1,
        began,
    };
    // Opened now, so that a path that does not work costs no run.
    let json = create(args.json.as_ref())?;
    let junit = create(args.junit.as_ref())?;

    if run.several && args.ktap {
        ktap::begin_all(&mut io::stdout(), kernels.len())?;
    }
    let mut records = Vec::new();
    let mut worst = Exit::Green;
    for kernel in &kernels {
        let (record, exit) = run.on(kernel)?;
        records.push(record);
        worst = worst.max(exit);
        if run.several && args.ktap {
            ktap::end_one(
                &mut io::stdout(),
                records.len(),
                &records[records.len() - 1],
            )?;
        }
        if exit == Exit::Interrupted {
            break;
        }
    }
    if run.several && !args.ktap {
        table::summary(&mut io::stdout(), &records)?;
    }

    if let Some(file) = json {
        let written = match (records.as_slice(), run.several) {
            ([record], false) => serde_json::to_writer_pretty(file, record),
            (runs, _) => serde_json::to_writer_pretty(
                file,
                &Records {
                    format: FORMAT,
                    pinbed: env!("CARGO_PKG_VERSION"),
                    exit: worst as u8,
                    runs,
                },
            ),
        };
        written.context("cannot write the JSON file")?;
    }
    if let Some(file) = junit {
        io::Write::write_all(&mut &file, junit::document(&records)?.as_bytes())
            .context("cannot write the JUnit file")?;
    }
    Ok(worst)
}

/// What is to be done on each kernel.
struct Run<'a> {
    args: &'a RunArgs,
    host: Host,
    chosen: Vec<TestInfo>,
    baselines: Baselines,
    several: bool,
    began: Instant,
}

impl Run<'_> {
    fn on(&self, kernel: &Request) -> Result<(Record, Exit)> {
        let args = self.args;
        let setup = match Setup::new(&self.host, &args.vm, kernel) {
            Err(error) if self.several && exit_of(&error) == Exit::Provisioning => Err(error),
            setup => Ok(setup?),
        };
        let tests: Vec<TestInfo> = (0..args.repeat)
            .flat_map(|_| self.chosen.iter().cloned())
            .collect();
        let plan = Plan::Tests {
            names: tests.iter().map(|test| test.name.clone()).collect(),
            timeout_s: args.timeout,
        };
        let (baseline, environment) = match &setup {
            Ok(setup) => (
                setup.baseline(&self.baselines),
                setup.environment(&args.vm, kernel),
            ),
            Err(_) => (None, self.host.environment(&args.vm, kernel)),
        };
        let mut output = self.output(kernel);
        let session = Session::new(tests, baseline, environment, output.as_mut(), self.began);
        let setup = match setup {
            Ok(setup) => setup,
            Err(error) => return session.without_kernel(format!("{error:#}")),
        };
        let directory = Directory::new(args.keep)?;
        let machine = setup.machine(
            &args.vm,
            Console::Runner,
            directory.files(),
            &plan,
            Vec::new(),
        )?;
        let ended = session.run(
            &machine,
            self.host.qemu.command(),
            directory.files(),
            limits(args.timeout, &self.chosen),
        )?;
        directory.tell();
        Ok(ended)
    }

    /// Who is told of the run on a kernel.
    fn output(&self, kernel: &Request) -> Box<dyn Output> {
        let rerun = rerun_command(self.args, kernel, self.several);
        if self.args.ktap {
            return Box::new(Ktap::new(io::stdout(), self.several, rerun));
        }
        let names = self.chosen.iter().map(|test| test.name.as_str());
        Box::new(Table::new(io::stdout(), names, self.args.verbose, rerun))
    }
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

/// Makes the command that runs one test on a kernel the way this run does.
fn rerun_command(args: &RunArgs, kernel: &Request, several: bool) -> Box<dyn Fn(&str) -> String> {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "pinbed".to_owned());
    let vm = &args.vm;
    let mut options: Vec<(&str, String)> = Vec::new();
    options.extend((several || !vm.kernels.is_empty()).then(|| ("--kernel", kernel.name())));
    options.extend(
        vm.kernel_src
            .iter()
            .map(|tree| ("--kernel-src", tree.display().to_string())),
    );
    for (option, path) in [
        ("--kernel-image", &vm.kernel_image),
        ("--kernel-build", &vm.kernel_build),
        ("--modules", &vm.modules),
        ("--config", &vm.config),
    ] {
        options.extend(path.iter().map(|path| (option, path.display().to_string())));
    }
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
