// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory as the CPU reads it at a physical address, whoever has it mapped or not: /dev/mem.

use crate::harness::error::Error;
use crate::observe::extent::Extent;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The bytes there now.
pub fn read(at: Extent) -> Result<Vec<u8>, Error> {
    let absent = |_| Error::Absent {
        what: format!("/dev/mem at {:#x}", at.address),
        remedy: "build the kernel with CONFIG_DEVMEM and without CONFIG_STRICT_DEVMEM".into(),
    };
    let mut bytes = vec![0; at.length as usize];
    let memory = File::open("/dev/mem").map_err(absent)?;
    memory
        .read_exact_at(&mut bytes, at.address)
        .map_err(absent)?;
    Ok(bytes)
}
