// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loading and unloading pinbed.ko.

use crate::harness::error::Error;
use crate::observe::device;
use crate::video::v4l2;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the runner puts the driver.
pub const PATH: &str = "/lib/pinbed.ko";
/// How long the nodes may take to appear once the driver is in: the kernel probes while it loads, so they are there already.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the nodes are there.
pub fn is_ready() -> bool {
    let node = |memop| v4l2::find(memop).is_ok_and(|node| node.exists());
    Path::new(device::PATH).exists() && v4l2::Memop::ALL.into_iter().all(node)
}

/// The driver's parameters on the kernel's command line, `pinbed.NAME=VALUE`, as modprobe passes them on.
fn parameters() -> Result<CString, Error> {
    const WHERE: &str = "/proc/cmdline";
    let line = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
    let ours: Vec<_> = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("pinbed."))
        .collect();
    CString::new(ours.join(" ")).map_err(|_| Error::Format {
        source_name: WHERE.into(),
        text: line,
    })
}

/// insmod: loads the driver and waits for its nodes.
pub fn load() -> Result<(), Error> {
    let file = File::open(PATH).map_err(|_| Error::Absent {
        what: PATH.into(),
        remedy: "build the driver against this kernel and put it into the initramfs".into(),
    })?;
    match finit_module(&file, &parameters()?, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => (),
        Err(errno) => {
            return Err(Error::call(format!(
                "loading {PATH} (the kernel log says why)"
            ))(errno));
        }
    }
    let start = Instant::now();
    while !is_ready() {
        if start.elapsed() > PATIENCE {
            return Err(Error::Call {
                what: format!(
                    "waiting for {} and the video nodes; the driver found no device, see the kernel log",
                    device::PATH
                ),
                errno: Errno::ETIMEDOUT,
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// rmmod, without waiting for users to go away.
pub fn unload() -> Result<(), Errno> {
    delete_module(c"pinbed", DeleteModuleFlags::O_NONBLOCK)
}
