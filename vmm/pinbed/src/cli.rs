// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line.

use std::path::PathBuf;

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use pinbed_abi::fault::{FAULTS, Fault, Named};

use crate::machine::environments::Definition;
use crate::machine::{DEFAULT_CPUS, DEFAULT_MEMORY};
use crate::report::kcidb;
use crate::run::suite::Shard;

/// How many seconds a test may take unless something else is asked for.
pub const DEFAULT_TIMEOUT: u64 = 30;

/// Tests what a Linux kernel does with memory that is pinned for a device.
///
/// pinbed boots a kernel in QEMU beside an emulated DMA engine and asks, test by test: do the process and the device keep looking at the
/// same bytes, and does the kernel get its memory back?
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The checkout of pinbed to work on [default: the one that the current directory is in, else the one that this program was built
    /// from]
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "PINBED_WORKSPACE",
        hide_env_values = true
    )]
    pub workspace: Option<PathBuf>,
    /// Fetch nothing: use what is in the cache, and name what is not
    #[arg(long, global = true, env = "PINBED_OFFLINE", hide_env_values = true)]
    pub offline: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the kernel and run the tests
    ///
    /// Exit codes: 0 every verdict is as the baseline says; 1 a verdict differs; 2 wrong usage; 3 something could not be provided or
    /// built; 4 the guest never came up; 5 kernel panic; 6 hang; 7 the device process died; 8 QEMU died; 9 internal error;
    /// 130 interrupted; 141 the reader of standard output has gone.
    Run(Box<RunArgs>),
    /// Show the tests, and what a correct kernel does in each
    List(ListArgs),
    /// Show the known failures and skips of kernels, with the reasons
    Known(KnownArgs),
    /// List the runs that are kept, the newest first
    Runs,
    /// Show how `run --shard` shares the tests out among machines, and the arguments of each
    Plan(PlanArgs),
    /// Make one run of the results of several: of shards, or of several kernels
    ///
    /// Exit codes are those of `run`, for the whole; 2 if the results do not belong together, and at least 3 if a shard is missing.
    Merge(MergeArgs),
    /// Write one HTML page of one or many results
    ///
    /// A result is a file that `run --json` wrote, "last", "last~1" for the run before it, or the name of a run that `pinbed runs` shows;
    /// RESULT@KERNEL is that of one kernel alone.
    Report(HtmlArgs),
    /// Show what changed between two results, or between two kernels of one
    ///
    /// Results are named as for `report`; a kernel's name alone is that kernel in the last run. Exit codes: 0 each test came to the same;
    /// 1 something differs; 2 there is no such result. Durations are shown where they changed much, and count for nothing.
    Compare(CompareArgs),
    /// Find the commit of a kernel tree since which a test fails, or passes
    ///
    /// git bisects a checkout in the cache; the tree itself is not touched. A commit that does not build or boot is skipped. Given
    /// again after an interruption, the command goes on where it was.
    ///
    /// Exit codes: 0 one commit was found; 1 several are left, since some cannot be tested; 2 the ends are alike, or there is no such
    /// commit; 3 something could not be provided; 130 interrupted.
    Bisect(Box<BisectArgs>),
    /// Print a script that completes arguments in a shell
    Completions(CompletionsArgs),
    /// Write the man pages
    Man(ManArgs),
    /// Print what each kernel does with each kind of memory, from the tests and the baselines: docs/pin-matrix.md
    Matrix(MatrixArgs),
    /// Run tests, and write one timeline of what kernel, driver and device did meanwhile, for https://ui.perfetto.dev
    ///
    /// It has system calls, the functions of a pin's path, pins and unpins with their stacks, the driver's events and the device's
    /// accesses to memory, on one clock. The same as `run --trace FILE` with a FILE of its own: pinbed.pftrace here, unless --trace says
    /// otherwise. Exit codes are those of `run`.
    Trace(Box<RunArgs>),
    /// Run the tests on a kernel with each of many built-in defects, to see that they find it
    ///
    /// Exit codes are those of `run`; 1 if a defect goes unnoticed.
    Mutants(Box<MutantsArgs>),
    /// Attach, reset, unplug and boot thousands of times, and see whether anything grows
    ///
    /// Looks at the memory, descriptors and threads of pinbed, QEMU and the device, and at what the guest's kernel has pinned and the
    /// device holds. Takes half an hour, unless other counts are given. Exit codes are those of `run`; 1 if something grows.
    Endure(Box<EndureArgs>),
    /// Boot the kernel with the driver and the device, and open a shell in it, or run a command
    ///
    /// The exit code is the command's, 128 + N if signal N ended it; what ends the guest before has the exit code of `run`, and says so.
    Shell(Box<ShellArgs>),
    /// Run one test in a guest that gdb has stopped where the test first gives memory to the kernel
    ///
    /// gdb has the kernel's symbols and scripts (lx-dmesg, lx-ps), the driver's symbols, and commands of pinbed's: `pinbed holds`, `pinbed page
    /// ADDRESS`. Nothing times out while the guest stands still. The exit code is 0 if the test passed or did not end, 1 if it failed.
    Debug(Box<DebugArgs>),
    /// Run the device alone, for any vhost-user front end
    Device(DeviceArgs),
    /// Provide all that a run needs (packages, QEMU, kernel, driver, guest programs), and show it
    Setup(Box<SetupArgs>),
    /// Show, check and clear what is kept between runs, or carry it to another machine
    Cache {
        /// What to do with it.
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Show what a run finds on this machine and what it lacks, with a line each to mend it; fetches nothing
    Doctor,
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show the entries, their sizes, and when they were last used
    List,
    /// Hold every file against its checksum; what is damaged is made anew by the next run that needs it
    Verify,
    /// Remove what was not used for a while
    Prune {
        /// How many days
        #[arg(long = "unused", value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=36_500))]
        days: u64,
    },
    /// Write what was fetched and built to a tarball, for a machine without a network
    Export {
        /// The file: .tar, .tar.gz, .tar.zst
        file: PathBuf,
    },
    /// Take in such a tarball
    Import {
        /// The file
        file: PathBuf,
    },
}

/// Arguments of `pinbed run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Only tests whose name contains this, or matches it where it has one of *?[ (several: any of them)
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    #[command(flatten)]
    pub vm: VmArgs,
    /// Seconds one test may take, unless the test itself asks for more; 8 times as many on a kernel with CONFIG_KASAN
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Leave out tests whose name contains this, or matches it where it has one of *?[ (may be repeated)
    #[arg(long, value_name = "FILTER")]
    pub skip: Vec<String>,
    /// Only tests that differed from the baseline, or did not run, in the last run
    #[arg(long)]
    pub failed: bool,
    /// Only the i-th of n shares of the tests, such as 1/4
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Run the tests in an order that this seed decides, or a new one. A fresh guest goes on after a test that leaves something
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true)]
    pub shuffle: Option<Option<u64>>,
    /// Run the tests this many times over
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: Option<u32>,
    /// Stop at the first verdict that differs from the baseline; until then run the tests over and over, at most --repeat times
    #[arg(long)]
    pub until_fail: bool,
    /// Try a test that differs from the baseline again, this many times; one that then passes is reported as flaky
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100), conflicts_with = "until_fail")]
    pub retries: u32,
    /// Run this many guests at the same time, which share the tests [default: one for each 100 tests, at most one for each CPU of the
    /// host; one with --shuffle]
    #[arg(short, long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Boot a fresh guest for each test
    #[arg(long)]
    pub isolate: bool,
    /// Boot the guest even for a few tests, and do not start it from the saved state of one that booted before
    #[arg(long)]
    pub cold: bool,
    /// Save the state of the booted guest for later runs, and run nothing
    #[arg(long, hide = true)]
    pub save_start: bool,
    /// Keep the directory with the console log, the guest's report and QEMU's command line
    #[arg(long)]
    pub keep: bool,
    /// Trace the tests, and write one timeline of what kernel, driver and device did to this file, for https://ui.perfetto.dev. A kernel
    /// that is built here is built with the fragment "trace"
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// After the run take the first test that failed: run it again in a debugger, as `pinbed debug` does, or with a trace, GROUP-TEST.pftrace
    #[arg(long, value_name = "WHAT", conflicts_with = "trace")]
    pub on_fail: Option<OnFail>,
    #[command(flatten)]
    pub reports: ReportArgs,
}

impl Default for RunArgs {
    /// What `pinbed run` without an argument means.
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("run")).get_matches_from(["run"]);
        Self::from_arg_matches(&matches).expect("no argument is required")
    }
}

/// `--on-fail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFail {
    /// `pinbed debug`
    Debug,
    /// `pinbed trace`
    Trace,
}

/// What is reported of a run, and where.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Reports")]
pub struct ReportArgs {
    /// Print KTAP version 1 on standard output, and nothing else there
    #[arg(long)]
    pub ktap: bool,
    /// Write the run as JSON to this file; "-" is standard output, and the table then goes to standard error
    #[arg(short = 'o', long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the verdicts as JUnit XML to this file; "-" is standard output
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the results for KCIDB to this file, by its schema 5; "-" is standard output
    #[arg(long, value_name = "FILE")]
    pub kcidb: Option<PathBuf>,
    /// The name of this CI system in KCIDB: small letters, digits and _
    #[arg(long, value_name = "NAME", default_value = kcidb::ORIGIN, value_parser = kcidb::parse_origin)]
    pub kcidb_origin: String,
    /// Write the run as an HTML page to this file; "-" is standard output
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each event of the run to this file as it comes, a JSON object a line; "-" is standard output
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Show a line for each test, the facts that it noted, the guest's console, and the reasons of known failures
    #[arg(short, long)]
    pub verbose: bool,
}

/// Arguments of `pinbed plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Only tests whose name contains this, or matches it where it has one of *?[ (several: any of them)
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Leave out tests whose name contains this, or matches it where it has one of *?[ (may be repeated)
    #[arg(long, value_name = "FILTER")]
    pub skip: Vec<String>,
    /// How many machines share the tests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_shards)]
    pub shards: usize,
    /// A kernel to test, as for `pinbed run` (may be repeated); each has jobs of its own
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pinbed merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// What `pinbed run --json` wrote
    #[arg(value_name = "RESULT", required = true)]
    pub results: Vec<PathBuf>,
    #[command(flatten)]
    pub reports: ReportArgs,
}

/// Arguments of `pinbed report`.
#[derive(Debug, Args)]
pub struct HtmlArgs {
    /// The results
    #[arg(value_name = "RESULT", required = true)]
    pub results: Vec<String>,
    /// Where to write the page; "-" is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Arguments of `pinbed compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The earlier result: a file, "last~1", a run of `pinbed runs`, RESULT@KERNEL, or a kernel of the last run
    #[arg(value_name = "A")]
    pub a: String,
    /// The later one
    #[arg(value_name = "B")]
    pub b: String,
    /// Show every test that changed
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `pinbed bisect`.
#[derive(Debug, Args)]
pub struct BisectArgs {
    /// The tests, as for `pinbed run`: the commit passes if each of them does
    #[arg(value_name = "TEST", required = true)]
    pub tests: Vec<String>,
    /// A revision at which the tests come to one thing
    #[arg(long, value_name = "REV")]
    pub good: String,
    /// A later revision at which they come to another
    #[arg(long, value_name = "REV")]
    pub bad: String,
    /// The kernel's source tree, a git repository
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel_src", "kernel_image"])]
    pub tree: PathBuf,
    /// Run the tests this many times at each commit; one failure is a failure
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Forget what earlier bisections of the same tests came to at each commit
    #[arg(long)]
    pub afresh: bool,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// Arguments of `pinbed completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `pinbed man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to write them; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Arguments of `pinbed list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only tests whose name contains this, or matches it where it has one of *?[ (several: any of them)
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// As a JSON array of objects with name, correct and source
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pinbed matrix`.
#[derive(Debug, Args)]
pub struct MatrixArgs {
    /// Who pins how, instead: docs/pinners.md
    #[arg(long)]
    pub pinners: bool,
    /// In which environments each test ran, instead, by these results: files that `pinbed run --json` wrote, or runs as `pinbed runs` names
    /// them
    #[arg(long, value_name = "RESULT", num_args = 1.., conflicts_with = "pinners")]
    pub environments: Vec<String>,
}

/// Arguments of `pinbed known`.
#[derive(Debug, Args)]
pub struct KnownArgs {
    /// Only tests whose name contains this, or matches it where it has one of *?[ (several: any of them)
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Only of this kernel of guest-kernel-config/kernels.toml (may be repeated) [default: all]
    #[arg(long = "kernel", value_name = "VERSION")]
    pub kernels: Vec<String>,
    /// The page of all defects behind them, in Markdown (docs/defects.md)
    #[arg(long, conflicts_with_all = ["filters", "kernels"])]
    pub page: bool,
}

/// Arguments of `pinbed shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// Run this in the guest in the place of a shell; one argument alone is a line for sh. Standard input, output and error are those of
    /// pinbed, each for itself
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<String>,
    /// Put this file, or this directory with all that is in it, into the guest's root directory (may be repeated)
    #[arg(long = "add", value_name = "PATH", conflicts_with = "rootfs")]
    pub additions: Vec<PathBuf>,
    #[command(flatten)]
    pub extras: ExtrasArgs,
    /// Show the kernel's console on standard error
    #[arg(long)]
    pub console: bool,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// What is added to a guest.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Files and devices")]
pub struct ExtrasArgs {
    /// Share this directory of the host: the guest reads and writes it at /host, or at PLACE; with :ro it only reads (may be repeated)
    #[arg(long = "share", value_name = "DIR[:/PLACE][:ro]")]
    pub shares: Vec<String>,
    /// Take this directory, or the file system in this image, as the guest's root; what the guest writes there stays in its memory. "debian" is
    /// a Debian with gdb, strace, perf, bpftrace, trace-cmd, v4l-utils and GStreamer, which mmdebstrap makes once
    #[arg(long, value_name = "DIR|IMAGE|debian")]
    pub rootfs: Option<PathBuf>,
    /// Add this disk, raw or qcow2, as /dev/vda and so on; with :ro the guest only reads it (may be repeated)
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    pub disks: Vec<String>,
    /// Connect the guest to the host's networks by QEMU's user networking
    #[arg(long = "net")]
    pub network: bool,
    /// Give QEMU this argument, too (may be repeated): --qemu-arg=-device --qemu-arg=virtio-rng-pci
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arguments: Vec<String>,
}

/// Arguments of `pinbed debug`.
#[derive(Debug, Args)]
pub struct DebugArgs {
    /// The test: its name, or a part that no other test's name has
    #[arg(value_name = "TEST")]
    pub test: String,
    /// Stop there and not where the test first gives memory to the kernel, in the kernel or the driver: a function, FILE:LINE, or whatever
    /// gdb takes (may be repeated)
    #[arg(short, long = "break", value_name = "SYMBOL|FILE:LINE")]
    pub breaks: Vec<String>,
    /// Start no gdb, but wait for one, and print the line that starts it
    #[arg(long)]
    pub attach: bool,
    /// The debugger
    #[arg(long, value_name = "PROGRAM", default_value = "gdb")]
    pub gdb: PathBuf,
    /// More arguments for gdb, such as -batch -ex bt
    #[arg(value_name = "GDB_ARGUMENT", last = true)]
    pub gdb_arguments: Vec<String>,
    /// Give QEMU this argument, too (may be repeated): --qemu-arg=-device --qemu-arg=virtio-rng-pci
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arguments: Vec<String>,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// Arguments of `pinbed mutants`.
#[derive(Debug, Args)]
pub struct MutantsArgs {
    /// Only these mutants
    #[arg(value_name = "MUTANT")]
    pub names: Vec<String>,
    /// Show the mutants, and what each does wrong
    #[arg(long)]
    pub list: bool,
    /// Only tests whose name contains this, or matches it where it has one of *?[ (may be repeated)
    #[arg(long = "test", value_name = "FILTER")]
    pub tests: Vec<String>,
    /// Go on to the next mutant after the first test that finds one
    #[arg(long)]
    pub first: bool,
    /// Run this many guests at the same time, which share the tests [default: as for `pinbed run`]
    #[arg(short, long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Write all results as JSON to this file
    #[arg(short = 'o', long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the page of what was found to this file
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Run nothing: take the results of an earlier run, which --json wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "tests", "jobs", "list"])]
    pub read: Option<PathBuf>,
    /// Say which mutants came to something else in this earlier run, which --json wrote; one that did is a failure
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// Arguments of `pinbed endure`.
#[derive(Debug, Args)]
pub struct EndureArgs {
    /// What to do, and how many times [default: attachments=100000 resets=1000 unplugs=1000 guests=200]
    #[arg(value_name = "WHAT[=COUNT]")]
    pub courses: Vec<Course>,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Memory is attached to the device and detached.
    Attachments,
    /// The driver resets the device.
    Resets,
    /// The device is taken out of the machine while it is in use, and another put in.
    Unplugs,
    /// A guest boots, runs a test, and powers off.
    Guests,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            self.to_possible_value()
                .as_ref()
                .map_or("", |value| value.get_name()),
        )
    }
}

/// What to do, and how many times.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// What.
    pub kind: Kind,
    /// How many times, at least.
    pub count: u32,
}

impl From<Kind> for Course {
    fn from(kind: Kind) -> Self {
        let count = match kind {
            Kind::Attachments => 100_000,
            Kind::Resets | Kind::Unplugs => 1000,
            Kind::Guests => 200,
        };
        Course { kind, count }
    }
}

impl std::str::FromStr for Course {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = match text.split_once('=') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let kind = Kind::from_str(name, false).map_err(|_| {
            "not one of attachments, resets, unplugs and guests, with =COUNT or without".to_owned()
        })?;
        let mut course = Course::from(kind);
        if let Some(count) = count {
            course.count = match count.parse() {
                Ok(count @ 1..=10_000_000) => count,
                _ => return Err("the count is not a number from 1 to 10000000".to_owned()),
            };
        }
        Ok(course)
    }
}

/// Arguments of `pinbed setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    #[command(flatten)]
    pub vm: VmArgs,
}

/// Arguments of `pinbed device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to listen; a front end connects there once, and the device ends when it leaves
    #[arg(short, long, value_name = "PATH")]
    pub socket_path: PathBuf,

    /// Let the guest have the device misbehave: delay and fail jobs, and abort the process
    #[arg(long)]
    pub allow_sabotage: bool,

    /// Keep the process's rights (seccomp, Landlock, limits): for debuggers, tracers and coverage
    #[arg(long)]
    pub unconfined: bool,
}

/// What the virtual machine is made of.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Virtual machine")]
pub struct VmArgs {
    /// The kernel to test, one of guest-kernel-config/kernels.toml, or all of them, one after the other (may be repeated); 6.12+PATCH is
    /// 6.12 with a patch of guest-kernel-config/patches/fixes; newest is the newest that Debian has the source of; deb:SUITE is Debian's kernel as it is in the packages of a suite
    /// (deb:trixie, deb:trixie-backports), deb:SUITE/PACKAGE another one of that suite, deb:FILE a package with its headers beside it
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Build and test this kernel source tree instead; it is not changed (--kernel says whose configuration fits it, if not that of the
    /// next older version)
    #[arg(long, value_name = "DIR")]
    pub kernel_src: Option<PathBuf>,
    /// Test this kernel, which is built already: a bzImage (vmlinuz), or a vmlinux with CONFIG_PVH
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "kernel_src", "fragments"])]
    pub kernel_image: Option<PathBuf>,
    /// The directory that kernel was built in, or its headers, to build the driver against [default: one above the image that it was
    /// built in, else /lib/modules/RELEASE/build]
    #[arg(long, value_name = "DIR", requires = "kernel_image")]
    pub kernel_build: Option<PathBuf>,
    /// Its modules, where it has any: a directory such as `make modules_install` fills [default: the directory it was built in, else
    /// /lib/modules/RELEASE]
    #[arg(long, value_name = "DIR", requires = "kernel_image")]
    pub modules: Option<PathBuf>,
    /// Build with this .config in the place of pinbed's own fragments; choices that it does not make have the kernel's defaults
    #[arg(long, value_name = "FILE", conflicts_with = "kernel_image")]
    pub config: Option<PathBuf>,
    /// Add to the configuration (may be repeated): a fragment of guest-kernel-config/fragments, such as debug, the path of one, or a
    /// setting, CONFIG_X=y
    #[arg(long = "fragment", value_name = "NAME|PATH|CONFIG_X=y")]
    pub fragments: Vec<String>,
    /// The QEMU to use, 10.2 or newer [default: the system's if it will do, else a private copy]
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Who runs the guest's code: auto takes KVM where it is shown to work
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// The guest's memory, in MiB or with one of the units M and G
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_MEMORY, value_parser = parse_memory)]
    pub memory: u64,
    /// Add to the kernel's command line, such as "slub_debug=FZPU panic_on_warn=1"
    #[arg(
        long,
        value_name = "ARGUMENTS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub append: String,
    /// Run the tests in an environment of guest-kernel-config/environments.toml, or in all of them; "stock" is the machine without one (may
    /// be repeated)
    #[arg(long = "env", value_name = "NAME")]
    pub environments: Vec<String>,
    /// Have the device misbehave once, at the Nth request of the fault's kind [default: the first] (may be repeated); --help has the
    /// faults
    #[arg(long = "fault", value_name = "NAME[=N]", long_help = fault_help())]
    pub faults: Vec<Fault>,
    /// The environment that these arguments have the form of.
    #[arg(skip)]
    pub environment: Option<Definition>,
    /// The guest's CPUs
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CPUS, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub cpus: u8,
}

/// What --help says of `--fault`.
fn fault_help() -> String {
    let start = "Have the device misbehave once, at the Nth request of the fault's kind [default: the first] (may be repeated). Tests are held \
        to the same baseline, so those that meet it fail: it shows what a kernel makes of it. Each device of a run counts anew.\n\nFaults:";
    let line = |it: &Named| format!("\n- {}: {}", it.name, it.text);
    start.to_owned() + &FAULTS.iter().map(line).collect::<String>()
}

/// Parses a number of shards.
fn parse_shards(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(shards @ 1..=1000) => Ok(shards),
        _ => Err("not a number of shards from 1 to 1000".to_owned()),
    }
}

/// Parses a number of guests.
fn parse_jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("not a number of guests from 1 to 64".to_owned()),
    }
}

/// `--accel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM where it works, else TCG
    Auto,
    /// KVM, or nothing
    Kvm,
    /// QEMU's own emulation
    Tcg,
}

impl std::fmt::Display for AccelArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            self.to_possible_value()
                .as_ref()
                .map_or("", |value| value.get_name()),
        )
    }
}

/// Parses a memory size into MiB.
fn parse_memory(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1024),
        _ => (text, 1),
    };
    let mib = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor));
    match mib {
        Some(mib @ 192..=1_048_576) => Ok(mib),
        Some(mib) => Err(format!(
            "{mib} MiB is out of range: from 192M (the tests need that much) to 1024G"
        )),
        None => Err("not a size such as 512M or 2G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_sizes_have_units_and_bounds() {
        assert_eq!(parse_memory("512"), Ok(512));
        assert_eq!(parse_memory("768M"), Ok(768));
        assert_eq!(parse_memory("2G"), Ok(2048));
        for bad in [
            "",
            "M",
            "1.5G",
            "-1",
            "64M",
            "18014398509481984G",
            "5T",
            "ü",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
