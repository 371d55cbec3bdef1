// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed shell`: a shell or one command in a guest with the driver and the device.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pinbed_abi::report::{Message, Plan};
use pinbed_abi::shell::HISTORY_PATH;
use signal_hook::consts::SIGINT;

use crate::cli::ShellArgs;
use crate::exit::Exit;
use crate::interrupt;
use crate::kernel;
use crate::machine::events::{self, Happening};
use crate::machine::initramfs::Content;
use crate::machine::person::{self, Raw};
use crate::machine::qmp::{Monitor, Said};
use crate::machine::stall::{Stall, TICK};
use crate::machine::vm::{self, Files, Vm};
use crate::machine::watch::{describe, is_trouble, without_timestamp};
use crate::provision::workspace;
use crate::report::recorder;
use crate::run::additions;
use crate::run::environments;
use crate::run::extras::{self, Extras};
use crate::run::setup::{Directory, Host, Setup};

/// The fragment with a network.
const NETWORK: &str = "net";
/// How long a guest may take to report in, not counting what it waits for a CPU.
const BOOT: Duration = Duration::from_secs(60);
/// How long the kernel's last words may take to come when the guest ends by itself.
const SETTLE: Duration = Duration::from_secs(2);
/// How many of the console's last lines are shown when the guest ends badly.
const CONSOLE: usize = 40;

/// A shell is one guest's.
#[derive(Debug, thiserror::Error)]
#[error("a shell is in one guest, and the command line names several kernels; give one --kernel")]
pub struct SeveralKernels;

/// Runs a shell or a command in a guest until it ends.
///
/// # Errors
/// When the guest cannot be started.
pub fn shell(args: &ShellArgs) -> Result<ExitCode> {
    let mut additions = additions::entries(&args.additions)?;
    extras::fit(&additions, args.vm.memory)?;
    let mut extras = Extras::new(&args.extras)?;
    let is_terminal = person::has_terminal();
    extras.session.command = command(&args.command);
    extras.session.terminal = is_terminal.then(person::terminal);
    let keeps_history = is_terminal && args.command.is_empty();
    if keeps_history {
        additions.extend(history());
    }
    let mut vm_args = environments::one(&args.vm, &workspace()?)?;
    if args.extras.network {
        let image = vm_args.kernel_image.as_deref();
        kernel::with_fragment(&vm_args.kernels, image, &mut vm_args.fragments, NETWORK);
    }
    let host = Host::new(&vm_args)?;
    let [request] = host.requests.as_slice() else {
        return Err(SeveralKernels.into());
    };
    let mut setup = Setup::new(&host, &vm_args, request)?;
    setup.equip(&extras)?;
    let directory = Directory::new(false)?;
    let files = directory.files();
    let plan = Plan::Shell(extras.session.clone());
    let machine = setup.machine(&vm_args, files, &plan, additions)?;

    let (to, happenings) = events::stream();
    let signals = to.clone();
    let _subscription =
        interrupt::subscribe(move |signal| drop(signals.send(Happening::Signal(signal))));
    let (vm, mut sources) = vm::start(&machine, host.qemu.command(), files)?;
    // Without it QEMU tells of no events.
    let _monitor = Monitor::new(sources.qmp.try_clone()?)?;
    let port = sources
        .shell
        .take()
        .context("the guest has no port for a shell")?;
    events::listen(sources, &to);
    if keeps_history {
        say!("pinbed: the guest ends with the shell; Ctrl-A X ends it at once");
        say!(
            "pinbed: 'pinbed-guest run NAME' runs a test, 'pinbed-guest list' lists them, 'dmesg' has what the kernel says"
        );
    }
    let raw = is_terminal
        .then(Raw::set)
        .transpose()
        .context("cannot set the terminal")?;
    // Who listens ends with the guest, and then nothing is left to tell.
    person::attach(port, is_terminal, move |said| {
        let _ = to.send(Happening::Person(said));
    })?;
    let mut watch = Watch {
        vm,
        happenings,
        console: VecDeque::new(),
        show_console: args.console,
    };
    let left = watch.until_left()?;
    drop(raw);
    Ok(watch.explain(left, files))
}

/// What the guest is to run: one argument alone is a line for the shell.
fn command(words: &[String]) -> Vec<String> {
    match words {
        [line] => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        words => words.to_vec(),
    }
}

/// Where the history of shells is kept.
fn history_file() -> Option<PathBuf> {
    Some(recorder::state()?.join("shell_history"))
}

/// The history for the guest's root.
fn history() -> Vec<(String, Content)> {
    let bytes = history_file().and_then(|file| fs::read(file).ok());
    let path = HISTORY_PATH.trim_start_matches('/');
    let directory = path.split('/').next().unwrap_or_default();
    vec![
        (directory.to_owned(), Content::Directory),
        (path.to_owned(), Content::Bytes(bytes.unwrap_or_default())),
    ]
}

/// Keeps it for the next shell. It is a convenience: that it cannot be kept is no reason to fail.
fn keep_history(history: &[u8]) {
    let Some(file) = history_file() else {
        return;
    };
    let made = file.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(error) = made.and_then(|()| fs::write(&file, history)) {
        log::warn!("cannot keep the shell's history: {error}");
    }
}

/// How a person's guest was left.
enum Left {
    /// The command ended with this code.
    Code(u8),
    /// The person ended the guest.
    Escape,
    /// By a bad end: its exit code, and what to say.
    Badly(Exit, String),
    /// For a reason that needs no words.
    Quietly(Exit),
}

/// A guest with a person's command in it.
struct Watch {
    vm: Vm,
    happenings: Receiver<Happening>,
    /// The console's last lines.
    console: VecDeque<String>,
    show_console: bool,
}

impl Watch {
    fn until_left(&mut self) -> Result<Left> {
        let mut reset = false;
        let mut boots = Some(Instant::now() + BOOT);
        let mut stall = Stall::new();
        loop {
            let happening = match &mut boots {
                None => self.happenings.recv().map_err(RecvTimeoutError::from),
                Some(deadline) => {
                    let before = stall.total();
                    stall.look(&[self.vm.qemu.pid()]);
                    *deadline += stall.total() - before;
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.happenings.recv_timeout(left.min(TICK))
                }
            };
            let happening = match happening {
                Ok(happening) => happening,
                Err(RecvTimeoutError::Disconnected) => return Ok(Left::Quietly(Exit::Internal)),
                Err(RecvTimeoutError::Timeout) => {
                    if boots.is_some_and(|deadline| Instant::now() < deadline) {
                        continue;
                    }
                    let why = format!("the guest did not report in within {} s", BOOT.as_secs());
                    return Ok(Left::Badly(Exit::NeverUp, why));
                }
            };
            match happening {
                Happening::Console(line) => self.hear(line),
                Happening::Report(Ok(Message::Hello { .. })) => boots = None,
                Happening::Report(Ok(Message::Broken { reason })) => {
                    let why = format!("the guest says: {reason}");
                    return Ok(Left::Badly(Exit::Provisioning, why));
                }
                Happening::Person(person::Said::Ended(code)) => return Ok(Left::Code(code)),
                Happening::Person(person::Said::Escape) => return Ok(Left::Escape),
                Happening::Person(person::Said::History(history)) => keep_history(&history),
                Happening::Person(person::Said::Unheard) => {
                    return Ok(Left::Quietly(Exit::ClosedPipe));
                }
                Happening::Person(person::Said::Garbled(what)) => {
                    return Ok(Left::Badly(
                        Exit::Internal,
                        format!("the guest sent {what}, which it never should"),
                    ));
                }
                Happening::Qemu(Said::Shutdown { reset: by_reset }) => reset |= by_reset,
                Happening::QemuEnded => return self.qemu_ended(reset),
                Happening::DeviceEnded(_) => {
                    let status = self.vm.device.reap()?;
                    // It leaves when QEMU does.
                    if !status.success() {
                        return Ok(Left::Badly(
                            Exit::DeviceDied,
                            format!(
                                "the device process died ({}); the guest ends with it",
                                describe(status)
                            ),
                        ));
                    }
                }
                // A terminal in raw mode sends Ctrl-C as a key.
                Happening::Signal(SIGINT) if self.is_raw() => {}
                Happening::Signal(_) => return Ok(Left::Quietly(Exit::Interrupted)),
                _ => {}
            }
        }
    }

    fn is_raw(&self) -> bool {
        person::has_terminal()
    }

    fn qemu_ended(&mut self, reset: bool) -> Result<Left> {
        let status = self.vm.qemu.reap()?;
        // Frames come by another thread than QEMU's end.
        let deadline = Instant::now() + SETTLE;
        while status.success()
            && !reset
            && let Ok(happening) = self
                .happenings
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if let Happening::Person(person::Said::Ended(code)) = happening {
                return Ok(Left::Code(code));
            }
        }
        Ok(if status.success() && reset {
            let why = "the guest reset itself, as a kernel does that panics";
            Left::Badly(Exit::Panic, why.to_owned())
        } else if status.success() {
            // By poweroff.
            Left::Quietly(Exit::Green)
        } else {
            let why = format!("QEMU died ({})", describe(status));
            Left::Badly(Exit::QemuDied, why)
        })
    }

    fn hear(&mut self, line: String) {
        if self.show_console {
            say!("{line}\r");
        } else if is_trouble(&line) {
            say!(
                "\r\npinbed: the kernel says: {}\r",
                without_timestamp(&line)
            );
        }
        if self.console.len() == CONSOLE {
            self.console.pop_front();
        }
        self.console.push_back(line);
    }

    /// Says how the guest was left, and gives the exit code.
    fn explain(self, left: Left, files: &Files) -> ExitCode {
        match left {
            Left::Code(code) => ExitCode::from(code),
            Left::Escape => {
                say!("\npinbed: the guest is ended");
                Exit::Green.report()
            }
            Left::Quietly(exit) => exit.report(),
            Left::Badly(exit, why) => {
                if !self.show_console && exit != Exit::Provisioning {
                    for line in &self.console {
                        say!("  {line}");
                    }
                }
                say!("pinbed: {why}");
                let said = fs::read_to_string(files.qemu_log()).unwrap_or_default();
                if !said.trim().is_empty() {
                    say!("pinbed: QEMU says: {}", said.trim());
                }
                exit.report()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_argument_is_a_line_for_the_shell_and_several_are_a_program() {
        let of = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            command(&words)
        };
        assert_eq!(of(&["ls | wc"]), ["/bin/sh", "-c", "ls | wc"]);
        assert_eq!(of(&["ls", "a b"]), ["ls", "a b"]);
        assert!(of(&[]).is_empty());
    }
}
