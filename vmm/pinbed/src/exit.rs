// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one table of exit codes: what a script learns from `pinbed` without reading a line of its output.

use std::process::{ExitCode, Termination};

/// How a run of `pinbed` ended; of several runs the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(dead_code, reason = "the table is whole before all of the command is")]
pub enum Exit {
    /// Every verdict is as the baseline says, or the command did what it was asked.
    Green = 0,
    /// At least one verdict differs from the baseline.
    Differs = 1,
    /// The command line asks for something that does not exist or makes no sense.
    Usage = 2,
    /// A package, QEMU, the kernel or the driver could not be had or built.
    Provisioning = 3,
    /// QEMU runs, but the guest never reported in.
    NeverUp = 4,
    /// The guest kernel panicked.
    Panic = 5,
    /// The guest stopped answering.
    Hang = 6,
    /// The device process died.
    DeviceDied = 7,
    /// QEMU died.
    QemuDied = 8,
    /// An error in `pinbed` itself.
    Internal = 9,
    /// Stopped by Ctrl-C, SIGTERM or SIGHUP: 128 + SIGINT, as shells have it.
    Interrupted = 130,
    /// The reader of standard output has gone: 128 + SIGPIPE, as shells have it.
    ClosedPipe = 141,
}

impl Exit {
    /// The one with this code.
    pub fn of(code: u8) -> Option<Self> {
        use Exit::*;
        [
            Green,
            Differs,
            Usage,
            Provisioning,
            NeverUp,
            Panic,
            Hang,
            DeviceDied,
            QemuDied,
            Internal,
            Interrupted,
            ClosedPipe,
        ]
        .into_iter()
        .find(|exit| *exit as u8 == code)
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
