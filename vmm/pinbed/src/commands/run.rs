// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed run`: from the command line to the exit code.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::Term;
use pinbed_abi::report::{Plan as GuestPlan, TestInfo};

use crate::cli::{AccelArg, DEFAULT_TIMEOUT, ReportArgs, RunArgs, VmArgs};
use crate::commands::exit_of;
use crate::commands::on_fail::{self, Witness};
use crate::exit::Exit;
use crate::judge::baseline::{Baselines, Names};
use crate::kernel::{self, Request};
use crate::machine::vm::Start;
use crate::machine::watch::Limits;
use crate::machine::{DEFAULT_CPUS, DEFAULT_MEMORY};
use crate::provision::{programs, workspace};
use crate::report::again::{self, Again, Rerun};
use crate::report::event::What;
use crate::report::file::{self, Stream, Target, Whole};
use crate::report::ktap::Ktap;
use crate::report::record::{Environment, FORMAT, StartedBy};
use crate::report::recorder::{self, Kept, Recorder};
use crate::report::table::Table;
use crate::report::{Error as ReportError, Reporter, Reporters, html, junit, kcidb};
use crate::run::environments;
use crate::run::plan::Plan;
use crate::run::revision;
use crate::run::session::{Options, Session};
use crate::run::setup::{Host, Setup, session_name};
use crate::run::suite::{self, Selection};
use crate::run::warm;
use crate::trace::{self, Collector, Written};

/// Runs the tests on each kernel, one after the other.
///
/// # Errors
/// When no run comes to begin, or a report cannot be written. If one of several kernels cannot be had, the others run.
pub fn run(args: &RunArgs) -> Result<Exit> {
    let began = Instant::now();
    if args.save_start {
        return save_start(args);
    }
    args.on_fail.map(on_fail::check).transpose()?;
    let witness = Witness::default();
    let mut all = all_reporters(args)?;
    all.push(Box::new(witness.clone()));
    let exit = told_to(args, Reporters::new(all, began))?;
    if let (Some(what), Some(failure)) = (args.on_fail, witness.failure())
        && !matches!(exit, Exit::Interrupted | Exit::ClosedPipe)
    {
        on_fail::follow(what, &failure, args, |again| {
            let table = Table::new(io::stderr(), &Term::stderr(), false, rerun_command(again));
            told_to(again, Reporters::new(vec![Box::new(table)], Instant::now()))
        })?;
    }
    Ok(exit)
}

/// Runs the tests, tells these reporters, and writes the trace that is asked for.
///
/// # Errors
/// As for [`run`].
pub fn told_to(args: &RunArgs, mut reporters: Reporters) -> Result<Exit> {
    let mut started = false;
    let collector = Collector::default();
    let traced = match &args.trace {
        Some(_) => &with_tracing(args),
        None => args,
    };
    let mut result = on_all(traced, &collector, &mut reporters, &mut started);
    if let (Some(path), true) = (&args.trace, started) {
        match collector.write(path) {
            Ok(Some(written)) => tell_of_trace(&written),
            Ok(None) => say!(
                "pinbed: nothing was traced, so {} is not written",
                path.display()
            ),
            Err(error) => result = result.and(Err(Unwritable::new("--trace", path, error).into())),
        }
    }
    if !started {
        begin(&mut reporters, Vec::new());
    }
    end(reporters, result)
}

/// The arguments with a kernel that can trace, where it is one that we build.
fn with_tracing(args: &RunArgs) -> RunArgs {
    let mut args = args.clone();
    // A saved guest traces nothing.
    args.cold = true;
    let vm = &mut args.vm;
    let image = vm.kernel_image.as_deref();
    kernel::with_fragment(&vm.kernels, image, &mut vm.fragments, trace::FRAGMENT);
    args
}

fn tell_of_trace(written: &Written) {
    say!(
        "pinbed: {} has {} events ({} KiB); open it at https://ui.perfetto.dev",
        written.path.display(),
        written.events,
        written.bytes.div_ceil(1024)
    );
    if written.lost {
        say!("pinbed: its beginning is missing: a test did more than the guest's buffers hold");
    }
    match written.uncertainty_ns {
        Some(ns) => log::info!("the device's clock is known to {ns} ns"),
        None => say!("pinbed: it has nothing of the device, which had no request"),
    }
    for note in &written.notes {
        log::info!("not traced: {note}");
    }
}

/// Saves the start of the run that the other arguments describe.
fn save_start(args: &RunArgs) -> Result<Exit> {
    let host = Host::new(&args.vm)?;
    for (vm, kernel) in places(&host, &environments::each(&args.vm, &workspace()?)?) {
        let setup = Setup::new(&host, vm, &kernel)?;
        warm::Place::of(&setup, vm)?.save(&setup, vm)?;
    }
    Ok(Exit::Green)
}

/// Tells of the run's end.
///
/// # Errors
/// That of the run, or when a report could not be written.
pub fn end(mut reporters: Reporters, result: Result<Exit>) -> Result<Exit> {
    let (exit, error) = match &result {
        Ok(exit) => (*exit, None),
        Err(error) => (exit_of(error), Some(format!("{error:#}"))),
    };
    reporters.tell(What::RunFinished {
        exit: exit as u8,
        error,
    });
    let exit = result?;
    match reporters.finish() {
        // It is not there to be told.
        Ok(()) | Err(ReportError::ClosedPipe) => Ok(exit),
        Err(error) => Err(error.into()),
    }
}

/// Tells of the run's beginning.
pub fn begin(reporters: &mut Reporters, kernels: Vec<String>) {
    reporters.tell(What::RunStarted {
        format: FORMAT,
        pinbed: env!("CARGO_PKG_VERSION").to_owned(),
        revision: workspace().ok().and_then(|top| revision::of(&top)),
        command: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        kernels,
    });
}

/// Each kernel in each environment: the arguments in its form, and the kernel with its fragments.
fn places<'a>(host: &Host, forms: &'a [VmArgs]) -> Vec<(&'a VmArgs, Request)> {
    let mut places = Vec::new();
    for kernel in &host.requests {
        for form in forms {
            places.push((form, kernel.with_fragments(&form.fragments)));
        }
    }
    places
}

/// Runs all sessions; says by `started` whether it has told of the run's beginning.
fn on_all(
    args: &RunArgs,
    collector: &Collector,
    reporters: &mut Reporters,
    started: &mut bool,
) -> Result<Exit> {
    let top = workspace()?;
    let forms = environments::each(&args.vm, &top)?;
    let host = Host::new(&args.vm)?;
    let places = places(&host, &forms);
    let all = programs::list(&host.programs)?;
    ensure!(!all.is_empty(), "the guest has no tests");
    let kept = recorder::directory().map_or_else(Vec::new, |place| Kept::all(&place));
    let selection = Selection {
        filters: &args.filters,
        skip: &args.skip,
        failed: match args.failed {
            true => Some(suite::failed_in(&kept)?),
            false => None,
        },
        shard: args.shard,
        shuffle: args.shuffle.map(|seed| seed.unwrap_or_else(suite::seed)),
    };
    let chosen = suite::select(&all, &selection)?;
    if let (true, Some(shard)) = (chosen.is_empty(), &selection.shard) {
        say!("pinbed: shard {shard} has no test: there are fewer tests than shards");
    }
    let baselines = Baselines::of_checkout(&top, &Names::of_checkout(&top, &host.manifest, &all))?;
    begin(
        reporters,
        places
            .iter()
            .map(|(vm, kernel)| session_name(vm, kernel))
            .collect(),
    );
    *started = true;

    let mut worst = Exit::Green;
    for (session, (vm, kernel)) in places.iter().enumerate() {
        let setup = match Setup::new(&host, vm, kernel) {
            Err(error) if places.len() > 1 && exit_of(&error) == Exit::Provisioning => Err(error),
            setup => Ok(setup?),
        };
        let repetitions = match (args.until_fail, args.repeat) {
            (true, None) => u32::MAX,
            (_, repeat) => repeat.unwrap_or(1),
        };
        let jobs = args
            .jobs
            .unwrap_or_else(|| guests_for(&chosen, selection.shuffle));
        // One machine runs all of them anyway.
        let durations = match jobs {
            1 => BTreeMap::new(),
            _ => durations(&kept, &session_name(vm, kernel)),
        };
        let plan = Plan::new(chosen.clone(), repetitions, durations);
        let options = Options {
            jobs,
            retries: args.retries,
            isolate: args.isolate,
            until_fail: args.until_fail,
            shuffled: selection.shuffle.is_some(),
        };
        // What is shown counts to what is known to come.
        let shown = (0..if repetitions == u32::MAX {
            1
        } else {
            repetitions
        })
            .flat_map(|_| chosen.iter().cloned())
            .collect();
        let exit = match setup {
            Ok(mut setup) => {
                if args.trace.is_some() {
                    setup.trace(collector.clone());
                }
                let mut environment = setup.environment(vm, kernel);
                environment.shuffle = selection.shuffle;
                environment.shard = selection.shard.map(|shard| shard.to_string());
                let baseline = setup.baseline(vm, &baselines);
                let place = match !args.cold && setup.allows_warm(&chosen) {
                    true => Some(warm::Place::of(&setup, vm)?),
                    false => None,
                };
                let saved = place.as_ref().and_then(warm::Place::saved);
                if saved.is_some() {
                    environment.start = Some(StartedBy::Warm);
                }
                let timeout_s = setup.timeout(vm, args.timeout);
                let guests = |names: &[String], may_be_warm: bool| {
                    let plan = GuestPlan::Tests {
                        names: names.to_vec(),
                        timeout_s,
                    };
                    let start = match saved.clone().filter(|_| may_be_warm) {
                        Some(saved) => Start::Warm(saved, plan.clone()),
                        None => Start::Cold,
                    };
                    setup.guest(vm, &plan, start, args.keep)
                };
                let limits = limits(timeout_s, &chosen);
                let exit = Session::new(session, plan, baseline, options, reporters).run(
                    environment,
                    shown,
                    &guests,
                    &limits,
                )?;
                if let (Some(place), None, Exit::Green | Exit::Differs) = (place, saved, exit) {
                    place.booted();
                }
                exit
            }
            Err(error) => Session::new(session, plan, None, options, reporters).without_kernel(
                Environment {
                    shard: selection.shard.map(|shard| shard.to_string()),
                    ..host.environment(vm, kernel)
                },
                shown,
                format!("{error:#}"),
            ),
        };
        worst = worst.max(exit);
        if matches!(exit, Exit::Interrupted | Exit::ClosedPipe) {
            break;
        }
    }
    Ok(worst)
}

/// Everybody who is to hear of the run.
fn all_reporters(args: &RunArgs) -> Result<Vec<Box<dyn Reporter>>> {
    let mut all = reporters(&args.reports, rerun_command(args))?;
    if let Some(path) = &args.trace {
        let target = Target::from(path.clone());
        let checked = match target {
            Target::Stdout => Err(io::Error::other("it is no text, and the table is there")),
            Target::Path(_) => target.check(),
        };
        checked.map_err(|why| Unwritable::new("--trace", path, why))?;
    }
    if let Some(place) = recorder::directory() {
        all.insert(0, Box::new(Recorder::new(place)));
    }
    Ok(all)
}

/// The options that name a report's file.
fn files(args: &ReportArgs) -> [(&'static str, &Option<PathBuf>); 5] {
    [
        ("--json", &args.json),
        ("--junit", &args.junit),
        ("--kcidb", &args.kcidb),
        ("--html", &args.html),
        ("--events", &args.events),
    ]
}

/// The options by which a report goes to standard output.
pub fn on_stdout(args: &ReportArgs) -> Vec<&'static str> {
    let is_there = |path: &PathBuf| Target::from(path.clone()) == Target::Stdout;
    let files = files(args).into_iter();
    let named = files.filter(|(_, path)| path.as_ref().is_some_and(is_there));
    named
        .map(|(option, _)| option)
        .chain(args.ktap.then_some("--ktap"))
        .collect()
}

/// The reports that a command line asks for; `rerun` makes the command that runs one test again.
///
/// # Errors
/// When one of them cannot be written where it is to be, or two are to share standard output.
pub fn reporters(args: &ReportArgs, rerun: Rerun) -> Result<Vec<Box<dyn Reporter>>> {
    let target = |path: &PathBuf| Target::from(path.clone());
    let on_stdout = on_stdout(args);
    ensure!(on_stdout.len() < 2, SharedStdout(on_stdout.join(" and ")));
    for (option, path) in files(args) {
        if let Some(path) = path {
            target(path)
                .check()
                .map_err(|why| Unwritable::new(option, path, why))?;
        }
    }
    // Files first: they are told of what happened before anybody sees it.
    let mut all: Vec<Box<dyn Reporter>> = Vec::new();
    if let Some(path) = &args.events {
        let stream = Stream::new(target(path))
            .with_context(|| format!("cannot create {}", path.display()))?;
        all.push(Box::new(stream));
    }
    if let Some(path) = &args.json {
        all.push(Box::new(Whole::new(
            "the JSON report",
            target(path),
            file::json,
        )));
    }
    if let Some(path) = &args.junit {
        all.push(Box::new(Whole::new(
            "the JUnit report",
            target(path),
            junit::document,
        )));
    }
    if let Some(path) = &args.kcidb {
        let origin = args.kcidb_origin.clone();
        all.push(Box::new(Whole::new(
            "the KCIDB report",
            target(path),
            move |run| kcidb::document(run, &origin),
        )));
    }
    if let Some(path) = &args.html {
        all.push(Box::new(Whole::new(
            "the HTML report",
            target(path),
            html::of_run,
        )));
    }
    all.push(match (args.ktap, on_stdout.is_empty()) {
        (true, _) => Box::new(Ktap::new(io::stdout(), rerun)),
        (false, true) => Box::new(Table::new(
            io::stdout(),
            &Term::stdout(),
            args.verbose,
            rerun,
        )),
        (false, false) => Box::new(Table::new(
            io::stderr(),
            &Term::stderr(),
            args.verbose,
            rerun,
        )),
    });
    Ok(all)
}

/// Two reports cannot share standard output.
#[derive(Debug, thiserror::Error)]
#[error("{0} both write to standard output; give all but one of them a file")]
pub struct SharedStdout(String);

/// A report cannot be written where it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{option} {}: cannot be written ({why}); give another path", path.display())]
pub struct Unwritable {
    option: &'static str,
    path: PathBuf,
    why: io::Error,
}

impl Unwritable {
    /// What an option asks for cannot be written to this path.
    pub fn new(option: &'static str, path: &Path, why: io::Error) -> Self {
        Unwritable {
            option,
            path: path.to_owned(),
            why,
        }
    }
}

/// How long each test took when it last ran on a kernel, as far as the newest runs that are kept know.
fn durations(kept: &[Kept], kernel: &str) -> BTreeMap<String, Duration> {
    let mut durations = BTreeMap::new();
    for run in kept.iter().take(5).filter_map(Kept::run) {
        for session in run
            .sessions
            .iter()
            .filter(|s| s.environment.kernel == kernel)
        {
            for judged in &session.tests {
                if let Some(ms) = judged.duration_ms {
                    durations
                        .entry(judged.test.name.clone())
                        .or_insert(Duration::from_millis(ms));
                }
            }
        }
    }
    durations
}

/// How many guests share the tests unless the user says: a boot takes as long as a hundred tests or so, and an order that was asked for is
/// that of one guest.
pub fn guests_for(tests: &[TestInfo], shuffle: Option<u64>) -> usize {
    const TESTS_WORTH_A_BOOT: usize = 100;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match shuffle {
        Some(_) => 1,
        None => (tests.len() / TESTS_WORTH_A_BOOT).clamp(1, cpus),
    }
}

/// How long things may take, where a test may take `timeout` seconds. A loaded host is slow: these bounds are there to end a run that is
/// lost, not to measure one that goes well.
pub fn limits(timeout: u64, tests: &[TestInfo]) -> Limits {
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

/// The options that make a guest the way these arguments do, but for the kernels of kernels.toml where it is one of those.
pub fn guest_options(vm: &VmArgs) -> Vec<String> {
    let mut options: Vec<(&str, String)> = Vec::new();
    // With a tree or an image it says which one is nearest.
    if is_path(vm) {
        options.extend(vm.kernels.iter().map(|kernel| ("--kernel", kernel.clone())));
    }
    for (option, path) in [
        ("--kernel-src", &vm.kernel_src),
        ("--kernel-image", &vm.kernel_image),
        ("--kernel-build", &vm.kernel_build),
        ("--modules", &vm.modules),
        ("--config", &vm.config),
        ("--qemu", &vm.qemu),
    ] {
        options.extend(path.iter().map(|path| (option, path.display().to_string())));
    }
    options.extend(
        vm.fragments
            .iter()
            .map(|fragment| ("--fragment", fragment.clone())),
    );
    options.extend((vm.accel != AccelArg::Auto).then(|| ("--accel", vm.accel.to_string())));
    options.extend((vm.memory != DEFAULT_MEMORY).then(|| ("--memory", vm.memory.to_string())));
    options.extend((vm.cpus != DEFAULT_CPUS).then(|| ("--cpus", vm.cpus.to_string())));
    options.extend((!vm.append.is_empty()).then(|| ("--append", vm.append.clone())));
    options.extend(vm.faults.iter().map(|fault| ("--fault", fault.to_string())));
    options
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

/// Whether the kernel is none of kernels.toml.
fn is_path(vm: &VmArgs) -> bool {
    vm.kernel_src.is_some() || vm.kernel_image.is_some()
}

/// Makes the commands that take one test again the way this run does.
fn rerun_command(args: &RunArgs) -> Rerun {
    let program = std::env::args().next();
    rerun_with(program.unwrap_or_else(|| "pinbed".to_owned()), args)
}

fn rerun_with(program: String, args: &RunArgs) -> Rerun {
    // The session's own kernel, of several.
    let named = !args.vm.kernels.is_empty() && !is_path(&args.vm);
    let options = guest_options(&args.vm);
    let limits = match args.timeout {
        DEFAULT_TIMEOUT => Vec::new(),
        timeout => vec!["--timeout".to_owned(), timeout.to_string()],
    };
    Rc::new(move |environment, test| {
        let session = match named {
            true => again::session_options(environment),
            false => again::environment_options(environment),
        };
        Again::new(
            &program,
            test,
            &[session, options.clone()].concat(),
            &limits,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn a_test_runs_again_as_it_ran() {
        let words = "pinbed run --kernel all --fault attach-lost --fault=lost=3 --timeout 5 --repeat 2 --env all --memory 1G --json x";
        let Command::Run(args) = Cli::parse_from(words.split(' ')).command else {
            unreachable!("it is `run`");
        };
        let environment = Environment {
            kernel: "6.1,smp".to_owned(),
            env: Some("smp".to_owned()),
            ..Environment::default()
        };
        let again = rerun_with("./pinbed".to_owned(), &args)(&environment, "a::b");
        let machine =
            "a::b --kernel 6.1 --env smp --memory 1024 --fault 'attach-lost=1' --fault 'lost=3'";
        // No limit counts in a debugger.
        assert_eq!(again.debug, format!("./pinbed debug {machine}"));
        assert_eq!(again.run, format!("./pinbed run {machine} --timeout 5"));
    }
}
