// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that can be taken away from a running system, block by block (Documentation/admin-guide/mm/memory-hotplug.rst).

use crate::harness::error::Error;
use crate::harness::setting::write;
use crate::observe::extent::PAGE;
use crate::observe::zones;
use nix::errno::Errno;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

const ROOT: &str = "/sys/devices/system/memory";

/// One block.
#[derive(Clone, Debug)]
pub struct Block {
    path: PathBuf,
    /// Its page frames.
    pub frames: Range<u64>,
}

/// All blocks, whether they are online or not. None in a kernel without memory hotplug.
pub fn all() -> Result<Vec<Block>, Error> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Ok(Vec::new());
    };
    let size = hexadecimal(&PathBuf::from(ROOT).join("block_size_bytes"))? / PAGE as u64;
    let mut blocks = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("memory"));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            let path = entry.path();
            let first = match hexadecimal(&path.join("phys_index")) {
                // It has left the machine just now, or is about to: its files are taken away one by one.
                Err(Error::Call {
                    errno: Errno::ENOENT | Errno::ENODEV,
                    ..
                }) => continue,
                index => index? * size,
            };
            blocks.push(Block {
                path,
                frames: first..first + size,
            });
        }
    }
    Ok(blocks)
}

/// A block that lies in ZONE_MOVABLE whole.
pub fn movable() -> Result<Block, Error> {
    let zones = zones::movable()?;
    let whole = |block: &Block| {
        zones.iter().any(|zone| {
            zone.frames.start <= block.frames.start && block.frames.end <= zone.frames.end
        })
    };
    all()?.into_iter().find(whole).ok_or_else(|| Error::Absent {
        what: "a block of memory in ZONE_MOVABLE".into(),
        remedy: "build the kernel with CONFIG_MEMORY_HOTPLUG and give the machine memory that can be unplugged".into(),
    })
}

impl Block {
    /// Whether it is out of use. It is not yet while the kernel tries to take it out.
    pub fn is_offline(&self) -> Result<bool, Error> {
        self.is("offline")
    }

    /// Whether it is in use.
    pub fn is_online(&self) -> Result<bool, Error> {
        self.is("online")
    }

    /// Whether the kernel tries to take it out of use.
    pub fn is_going(&self) -> Result<bool, Error> {
        self.is("going-offline")
    }

    fn is(&self, state: &str) -> Result<bool, Error> {
        let path = self.path.join("state");
        match fs::read_to_string(&path) {
            Ok(now) => Ok(now.trim() == state),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // It has left the machine, or is about to.
                Some(Errno::ENOENT | Errno::ENODEV) => Ok(false),
                _ => Err(Error::io(format!("reading {}", path.display()))(error)),
            },
        }
    }

    /// Takes it out of use. The kernel moves all pages away, and tries again until it succeeds or the caller gets a signal.
    pub fn take_offline(&self) -> Result<(), Error> {
        write(self.path.join("state"), "offline")
    }

    /// Puts it back into ZONE_MOVABLE.
    pub fn bring_online(&self) -> Result<(), Error> {
        write(self.path.join("state"), "online_movable")
    }
}

/// Waits until the kernel has done what it is doing to blocks, or whole DIMMs: it takes a lock for that, and so does this.
pub fn wait_for_hotplug() -> Result<(), Error> {
    let Some(block) = all()?
        .into_iter()
        .find(|it| it.is_online().unwrap_or(false))
    else {
        return Ok(());
    };
    // EINVAL: it is online already.
    let _ = write(block.path.join("state"), "online");
    Ok(())
}

/// Brings all blocks online.
pub fn all_online() -> Result<(), Error> {
    for block in all()? {
        if block.is_offline()? {
            match block.bring_online() {
                // EINVAL: the kernel was about to do it by itself.
                Err(_) if !block.is_offline()? => (),
                done => done?,
            }
        }
    }
    Ok(())
}

fn hexadecimal(path: &PathBuf) -> Result<u64, Error> {
    let text =
        fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    u64::from_str_radix(text.trim(), 16).map_err(|_| Error::Format {
        source_name: path.display().to_string(),
        text,
    })
}
