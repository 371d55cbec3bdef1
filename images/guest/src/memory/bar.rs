// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A mapping of a PCI device's memory (Documentation/PCI/sysfs-pci.rst). To read it is to operate the device.

use crate::harness::error::Error;
use crate::memory::mapping::{Mapping, READ_WRITE};
use crate::observe::extent::PAGE;
use std::fs::{self, File};
use std::path::Path;

const DEVICES: &str = "/sys/bus/pci/devices";

/// The first page of a BAR, of the first device that has one which can be mapped.
pub fn first_page() -> Result<Mapping, Error> {
    let devices = fs::read_dir(DEVICES).map_err(|_| absent())?;
    for device in devices.flatten() {
        for number in 0..6 {
            let path = device.path().join(format!("resource{number}"));
            if let Some(mapping) = map(&path) {
                return Ok(mapping);
            }
        }
    }
    Err(absent())
}

/// Nothing where there is no such BAR, it is one of ports, or a driver has it for itself alone (CONFIG_IO_STRICT_DEVMEM).
fn map(path: &Path) -> Option<Mapping> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    let length = file.metadata().ok()?.len();
    (length >= PAGE as u64)
        .then(|| Mapping::shared(&file, PAGE, READ_WRITE).ok())
        .flatten()
}

fn absent() -> Error {
    Error::Absent {
        what: format!("a PCI device's memory in {DEVICES} that can be mapped"),
        remedy: "build the kernel with CONFIG_PCI and without CONFIG_IO_STRICT_DEVMEM".into(),
    }
}
