// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed shell`: a guest with the driver and the device, and its console on this terminal.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, ensure};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use pinbed_abi::report::{Message, Plan};
use signal_hook::consts::SIGINT;

use crate::cli::ShellArgs;
use crate::exit::Exit;
use crate::interrupt;
use crate::machine::events::{self, Happening};
use crate::machine::qmp::{Monitor, Said};
use crate::machine::vm::{self, Console};
use crate::machine::watch::describe;
use crate::run::additions;
use crate::run::setup::{Directory, Host, Setup};

/// A shell is one guest's.
#[derive(Debug, thiserror::Error)]
#[error("a shell is in one guest, and the command line names several kernels; give one --kernel")]
pub struct SeveralKernels;

/// Standard input is no terminal.
#[derive(Debug, thiserror::Error)]
#[error("a shell needs a terminal on standard input; `pinbed run` needs none")]
pub struct NoTerminal;

/// Runs a shell in a guest until it ends.
///
/// # Errors
/// When there is no terminal, or the guest cannot be started.
pub fn shell(args: &ShellArgs) -> Result<Exit> {
    ensure!(io::stdin().is_terminal(), NoTerminal);
    let additions = additions::entries(&args.additions)?;
    let host = Host::new(&args.vm)?;
    let requests = &host.requests;
    let [request] = requests.as_slice() else {
        return Err(SeveralKernels.into());
    };
    let setup = Setup::new(&host, &args.vm, request)?;
    let directory = Directory::new(false)?;
    let machine = setup.machine(
        &args.vm,
        Console::Person,
        directory.files(),
        &Plan::Shell,
        additions,
    )?;
    say!("pinbed: the guest powers off when the shell ends; Ctrl-A X ends it at once");

    let (to, happenings) = events::stream();
    let signals = to.clone();
    let _subscription =
        interrupt::subscribe(move |signal| drop(signals.send(Happening::Signal(signal))));
    let _terminal = Terminal::save()?;
    let (mut vm, sources) = vm::start(&machine, host.qemu.command(), directory.files())?;
    // Without it QEMU tells of no events.
    let _monitor = Monitor::new(sources.qmp.try_clone()?)?;
    events::listen(sources, &to);
    let mut reset = false;
    for happening in happenings {
        match happening {
            Happening::Qemu(Said::Shutdown { reset: by_reset }) => reset |= by_reset,
            Happening::QemuEnded => {
                let status = vm.qemu.reap()?;
                if status.success() && reset {
                    say!("\r\npinbed: the guest reset itself, as a kernel does that panics");
                    return Ok(Exit::Panic);
                }
                if status.success() {
                    return Ok(Exit::Green);
                }
                let said =
                    std::fs::read_to_string(directory.files().qemu_log()).unwrap_or_default();
                say!(
                    "\r\npinbed: QEMU died ({}): {}",
                    describe(status),
                    said.trim()
                );
                return Ok(Exit::QemuDied);
            }
            Happening::DeviceEnded(_) => {
                let status = vm.device.reap()?;
                // It leaves when QEMU does.
                if !status.success() {
                    say!(
                        "\r\npinbed: the device process died ({}); the guest ends with it\r",
                        describe(status)
                    );
                    return Ok(Exit::DeviceDied);
                }
            }
            Happening::Report(Ok(Message::Broken { reason })) => {
                say!("\r\npinbed: the guest says: {reason}\r")
            }
            // The terminal is the guest's: Ctrl-C reaches it as a key.
            Happening::Signal(SIGINT) => {}
            Happening::Signal(_) => return Ok(Exit::Interrupted),
            _ => {}
        }
    }
    Ok(Exit::Green)
}

/// The terminal's settings as they were, restored when this is dropped: QEMU changes them, and may not come to restore them.
struct Terminal(Termios);

impl Terminal {
    fn save() -> Result<Self> {
        tcgetattr(io::stdin())
            .map(Terminal)
            .context("cannot read the terminal's settings")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
