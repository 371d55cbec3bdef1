// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loading and unloading pinbed.ko.

use crate::device;
use crate::error::Error;
use crate::v4l2;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use std::fs::File;
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

/// insmod: loads the driver and waits for its nodes.
pub fn load() -> Result<(), Error> {
    let file = File::open(PATH).map_err(|_| Error::Absent {
        what: PATH.into(),
        remedy: "build the driver against this kernel and put it into the initramfs".into(),
    })?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
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
