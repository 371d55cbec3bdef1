// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A shell on the console, with job control.

use crate::{Broken, processes};
use nix::unistd::{Pid, setsid};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const BUSYBOX: &str = "/bin/busybox";

nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// Runs the shell to its end.
pub fn run() -> Result<(), Broken> {
    if !Path::new(BUSYBOX).exists() {
        return Err(Broken(format!(
            "there is no {BUSYBOX} for a shell; install a static busybox where the runner looks for it"
        )));
    }
    // /dev/console itself cannot be a controlling terminal, the terminal behind it can.
    let consoles = fs::read_to_string("/sys/class/tty/console/active")?;
    let name = consoles.split_whitespace().last().ok_or(Broken(
        "the kernel has no console; boot it with console=ttyS0".into(),
    ))?;
    let terminal = Path::new("/dev").join(name);
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&terminal)
            .map_err(|error| Broken(format!("{}: {error}", terminal.display())))
    };
    let (input, output, errors) = (open()?, open()?, open()?);
    let installed = Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status();
    if !installed.is_ok_and(|status| status.success()) {
        eprintln!(
            "pinbed-init: busybox cannot install its commands in /bin; use them as 'busybox COMMAND'"
        );
    }
    let mut command = Command::new(BUSYBOX);
    command
        .args(["sh", "-l"])
        .current_dir("/")
        .env("PATH", "/bin")
        .env("HOME", "/")
        .env("TERM", std::env::var("TERM").unwrap_or("vt100".into()))
        .env("PS1", "pinbed:\\w# ")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(errors));
    // SAFETY: setsid and ioctl are safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            set_controlling_terminal(0, 0).map_err(io::Error::from)?;
            Ok(())
        });
    }
    println!(
        "pinbed: a test runs with 'pinbed-guest run NAME', their names are in 'pinbed-guest list'; the shell's end powers off"
    );
    let shell = command.spawn()?;
    let shell = Pid::from_raw(shell.id() as i32);
    while processes::reap(shell).is_none() {
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
