// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loading modules, and unloading pinbed.ko.

use crate::harness::error::Error;
use crate::observe::device;
use crate::video::v4l2;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use pinbed_abi::report::MODULES_PATH;
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

/// A module's parameters on the kernel's command line, `NAME.PARAMETER=VALUE`, as modprobe passes them on.
fn parameters(module: &str) -> Result<String, Error> {
    const WHERE: &str = "/proc/cmdline";
    let line = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
    let ours: Vec<_> = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(module)?.strip_prefix('.'))
        .collect();
    Ok(ours.join(" "))
}

/// insmod, with these parameters and those on the kernel's command line. A module that is in already is left alone.
pub fn insert(path: &str, given: &str) -> Result<(), Error> {
    let file = File::open(path).map_err(|_| Error::Absent {
        what: path.into(),
        remedy: "build the module for this kernel and put it into the initramfs".into(),
    })?;
    let name = Path::new(path)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let text = format!("{given} {}", parameters(&name)?);
    let parameters = CString::new(text.trim()).map_err(|_| Error::Format {
        source_name: path.into(),
        text,
    })?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::call(format!(
            "loading {path} (the kernel log says why)"
        ))(errno)),
    }
}

/// Loads the kernel's own modules that the runner lists, in its order. Returns those that do not load, with the reasons.
pub fn insert_listed() -> Vec<Error> {
    let list = fs::read_to_string(MODULES_PATH).unwrap_or_default();
    list.lines()
        .filter_map(|line| {
            let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
            insert(path, parameters).err()
        })
        .collect()
}

/// insmod: loads the driver and waits for its nodes.
pub fn load() -> Result<(), Error> {
    insert(PATH, "")?;
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
