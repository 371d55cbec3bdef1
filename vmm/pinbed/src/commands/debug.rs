// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed debug`: one test in a guest that gdb has stopped where the test gives memory to the kernel.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;

use anyhow::{Context, Result};
use pinbed_abi::report::{Message, Outcome, Plan, TestInfo};
use signal_hook::consts::SIGINT;

use crate::cli::{DebugArgs, VmArgs};
use crate::commands::shell::SeveralKernels;
use crate::exit::Exit;
use crate::interrupt;
use crate::kernel;
use crate::machine::events::{self, Happening};
use crate::machine::process::wait_without_reaping;
use crate::machine::qmp::Monitor;
use crate::machine::vm::{self, Files};
use crate::provision::{cache::Cache, packages, programs, workspace};
use crate::run::environments;
use crate::run::extras::Extras;
use crate::run::setup::{Directory, Host, Setup};
use crate::run::suite::{self, Selection};

/// The fragment with line numbers and types.
const FRAGMENT: &str = "dwarf";
/// Fragments of ours that have them, too.
const WITH_DWARF: [&str; 2] = [FRAGMENT, "debug"];
/// gdb's commands that know pinbed.
const COMMANDS: &str = include_str!("../../gdb/pinbed.py");
/// What an editor sources.
const EDITOR_SCRIPT: &str = "editor.gdb";
/// Seconds that a test may take in a guest that stands still most of the time.
const NO_LIMIT: u64 = 86_400;

/// A debugger has one guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter that names more than one test.
    #[error("\"{filter}\" names {count} tests, and a debugger has one: {first}, {second} ...")]
    SeveralTests {
        filter: String,
        count: usize,
        first: String,
        second: String,
    },
    /// A kernel that others built, without DWARF.
    #[error(
        "there is no vmlinux with DWARF for {kernel}: looked at {}; give --kernel with a version, or --kernel-build with the directory that the kernel was built in", path.display()
    )]
    NoSymbols { kernel: String, path: PathBuf },
}

/// Debugs one test; what gdb says goes to `output`.
///
/// # Errors
/// When the test, gdb or the guest cannot be had.
pub fn debug(args: &DebugArgs, output: Stdio) -> Result<Exit> {
    let gdb = debugger(&args.gdb)?;
    let mut vm_args = environments::one(&args.vm, &workspace()?)?;
    add_dwarf(&mut vm_args);
    let host = Host::new(&vm_args)?;
    let test = one_test(&programs::list(&host.programs)?, &args.test)?;
    let [request] = host.requests.as_slice() else {
        return Err(SeveralKernels.into());
    };
    let mut setup = Setup::new(&host, &vm_args, request)?;
    let symbols = setup.symbols().ok_or_else(|| Error::NoSymbols {
        kernel: request.name(),
        path: setup.vmlinux(),
    })?;
    let directory = Directory::new(false)?;
    let files = directory.files();
    let target = Target::new(args.attach, files)?;
    setup.equip(&Extras {
        arguments: [target.arguments(), args.qemu_arguments.clone()].concat(),
        ..Extras::default()
    })?;
    let plan = Plan::Tests {
        names: vec![test.name.clone()],
        timeout_s: NO_LIMIT,
    };
    let machine = setup.machine(&vm_args, files, &plan, Vec::new())?;
    let script = write_script(args, &setup, &symbols, &target, files)?;

    let (to, happenings) = events::stream();
    let signals = to.clone();
    let _subscription =
        interrupt::subscribe(move |signal| drop(signals.send(Happening::Signal(signal))));
    let (vm, sources) = vm::start(&machine, host.qemu.command(), files)?;
    let _monitor = Monitor::new(sources.qmp.try_clone()?)?;
    events::listen(sources, &to);
    say!(
        "pinbed: {} stops where it first gives memory to the kernel; 'pinbed holds', 'pinbed page ADDRESS', 'lx-dmesg'",
        test.name
    );
    let exit = if args.attach {
        tell_how_to_attach(&gdb, &script, &target, &symbols);
        until_over(&happenings, None)
    } else {
        let mut command = Command::new(&gdb);
        command
            .arg("-q")
            .arg("-x")
            .arg(&script)
            .args(&args.gdb_arguments)
            .stdout(output);
        let mut debugger = command
            .spawn()
            .with_context(|| format!("cannot start {}", gdb.display()))?;
        let pid = nix::unistd::Pid::from_raw(debugger.id().cast_signed());
        let ended = to.clone();
        // Its end is one more thing that happens.
        thread::spawn(move || {
            let _ = wait_without_reaping(pid);
            let _ = ended.send(Happening::Stop);
        });
        let exit = until_over(&happenings, Some(&mut debugger));
        let _ = debugger.wait();
        exit
    };
    drop(vm);
    Ok(exit)
}

/// Finds the debugger.
///
/// # Errors
/// When it is not there.
pub fn debugger(gdb: &Path) -> Result<PathBuf> {
    let missing = |_| packages::missing(&format!("the debugger {}", gdb.display()), "gdb");
    Ok(which::which(gdb).map_err(missing)?)
}

/// Has a kernel that we build come with DWARF.
fn add_dwarf(args: &mut VmArgs) {
    let has_it = |name: &String| WITH_DWARF.contains(&name.as_str());
    if !args.fragments.iter().any(has_it) {
        let image = args.kernel_image.as_deref();
        kernel::with_fragment(&args.kernels, image, &mut args.fragments, FRAGMENT);
    }
}

/// The test that is meant: the one of this name, or the only one that the filter matches.
pub(super) fn one_test(all: &[TestInfo], filter: &str) -> Result<TestInfo> {
    if let Some(test) = all.iter().find(|test| test.name == filter) {
        return Ok(test.clone());
    }
    let filters = [filter.to_owned()];
    let selection = Selection {
        filters: &filters,
        ..Selection::default()
    };
    let chosen = suite::select(all, &selection)?;
    match chosen.as_slice() {
        [test] => Ok(test.clone()),
        [first, second, ..] => Err(Error::SeveralTests {
            filter: filter.to_owned(),
            count: chosen.len(),
            first: first.name.clone(),
            second: second.name.clone(),
        }
        .into()),
        [] => Err(suite::Error::NoneFailed.into()),
    }
}

/// Where QEMU's gdb stub listens.
enum Target {
    Socket(PathBuf),
    Port(u16),
}

impl Target {
    fn new(attach: bool, files: &Files) -> Result<Self> {
        if !attach {
            return Ok(Target::Socket(files.gdb()));
        }
        // An editor wants a port. It is free a moment later, too, unless somebody hurries.
        let free = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
        Ok(Target::Port(free.local_addr()?.port()))
    }

    /// For QEMU, which stops before the guest's first instruction.
    fn arguments(&self) -> Vec<String> {
        let stub = match self {
            Target::Socket(path) => {
                let path = vm::doubled(path);
                format!("socket,id=gdb,path={path},server=on,wait=off")
            }
            Target::Port(port) => {
                format!("socket,id=gdb,host=127.0.0.1,port={port},server=on,wait=off,nodelay=on")
            }
        };
        ["-S", "-chardev", &stub, "-gdb", "chardev:gdb"]
            .map(str::to_owned)
            .to_vec()
    }

    /// For gdb.
    fn name(&self) -> String {
        match self {
            Target::Socket(path) => path.display().to_string(),
            Target::Port(port) => format!("127.0.0.1:{port}"),
        }
    }
}

/// Writes what gdb is to do, and the commands that it gets: all but to connect into a script for editors, which do that themselves, and the rest
/// into one that begins with it. Returns the path of the latter.
fn write_script(
    args: &DebugArgs,
    setup: &Setup,
    symbols: &Path,
    target: &Target,
    files: &Files,
) -> Result<PathBuf> {
    let directory = files.directory();
    let commands = directory.join("pinbed.py");
    fs::write(&commands, COMMANDS).context("cannot write to the run's directory")?;
    let index = Cache::of_user()?.root().join("gdb-index");
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let places: Vec<_> = args
        .breaks
        .iter()
        .map(|place| format!("{place:?}"))
        .collect();
    let mut text = String::new();
    // Reading the DWARF of a kernel takes seconds, an index of it none.
    let _ = write!(
        text,
        "set confirm off\n\
         set pagination off\n\
         set print pretty on\n\
         python\n\
         for words in ('set index-cache directory {index}', 'set index-cache enabled on'):\n    \
             try:\n        gdb.execute(words, to_string=True)\n    \
             except gdb.error:\n        pass\n\
         PINBED_MODULE = {module}\n\
         PINBED_INSPECT = {inspect}\n\
         PINBED_CONSOLE = {console}\n\
         end\n\
         add-auto-load-safe-path {objects}\n\
         add-auto-load-safe-path {source}\n\
         file {symbols}\n\
         source {commands}\n",
        index = index.display(),
        module = quoted(setup.driver()),
        inspect = quoted(&files.inspect()),
        console = quoted(&files.console()),
        objects = symbols.parent().unwrap_or(symbols).display(),
        source = setup.source().display(),
        symbols = symbols.display(),
        commands = commands.display(),
    );
    let for_editors = directory.join(EDITOR_SCRIPT);
    let text = text + "python follow_modules()\n";
    fs::write(&for_editors, text).context("cannot write to the run's directory")?;
    let text = format!(
        "source {}\ntarget remote {}\npython start([{}])\nset confirm on\n",
        for_editors.display(),
        target.name(),
        places.join(", "),
    );
    let script = directory.join("pinbed.gdb");
    fs::write(&script, text).context("cannot write to the run's directory")?;
    Ok(script)
}

fn tell_how_to_attach(gdb: &Path, script: &Path, target: &Target, symbols: &Path) {
    say!("pinbed: the guest waits for a debugger; Ctrl-C ends it. In another terminal:");
    println!("{} -q -x {}", gdb.display(), script.display());
    say!(
        "pinbed: or in an editor: server {}, program {}, and source {} at the start (docs/debug.md has a launch.json)",
        target.name(),
        symbols.display(),
        script.with_file_name(EDITOR_SCRIPT).display()
    );
}

/// Tells what the guest reports until the debugger has ended, or the guest where there is none of ours.
fn until_over(
    happenings: &Receiver<Happening>,
    debugger: Option<&mut std::process::Child>,
) -> Exit {
    let attached = debugger.is_none();
    let mut exit = Exit::Green;
    for happening in happenings {
        match happening {
            Happening::Report(Ok(Message::End { name, outcome, .. })) => {
                exit = tell(&name, &outcome);
            }
            Happening::Report(Ok(Message::Broken { reason })) => {
                say!("pinbed: the guest says: {reason}");
                exit = Exit::Provisioning;
            }
            Happening::QemuEnded if attached => return exit,
            // The debugger has ended.
            Happening::Stop => return exit,
            // Ctrl-C is for the debugger.
            Happening::Signal(SIGINT) if !attached => {}
            Happening::Signal(_) => {
                if let Some(debugger) = debugger {
                    let _ = debugger.kill();
                }
                return Exit::Interrupted;
            }
            _ => {}
        }
    }
    exit
}

/// Says what a test came to, before any baseline.
fn tell(name: &str, outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::Pass => {
            say!("\npinbed: {name} passed");
            Exit::Green
        }
        Outcome::Skip(why) => {
            say!("\npinbed: {name} was skipped: {why}");
            Exit::Green
        }
        Outcome::Fail(findings) => {
            say!("\npinbed: {name} failed");
            for finding in findings {
                say!("  {:?}: {}", finding.eye, finding.text);
            }
            Exit::Differs
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_one_test_or_is_refused() {
        let test = |name: &str| TestInfo {
            name: name.to_owned(),
            correct: String::new(),
            source: String::new(),
            timeout_s: 0,
        };
        let all = [test("a::one"), test("a::one_more"), test("b::two")];
        assert_eq!(one_test(&all, "a::one").unwrap().name, "a::one");
        assert_eq!(one_test(&all, "two").unwrap().name, "b::two");
        let error = one_test(&all, "one").unwrap_err().to_string();
        assert!(error.contains("names 2 tests"), "{error}");
        assert!(one_test(&all, "three").is_err());
    }
}
