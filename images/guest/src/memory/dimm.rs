// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The memory of the second NUMA node, which is a DIMM that the host can take out of the machine and put in again
//! (Documentation/admin-guide/mm/memory-hotplug.rst).

use crate::harness::ctx::{needs_host, tell_from_anywhere};
use crate::harness::error::Error;
use crate::harness::patience::{LIMIT, until};
use crate::harness::progress::Progress;
use crate::harness::setting;
use crate::memory::memory_block::{self, Block};
use crate::observe::zones::{self, Zone};
use nix::errno::Errno;
use pinbed_abi::report::Part;

/// The DIMM, which the host was asked to take out. When this is dropped the host is asked to put it in, and the kernel has it again.
pub struct Leaving {
    zone: Zone,
}

impl Leaving {
    /// Asks the host to take it out. The kernel then moves all pages away, and lets go of the DIMM when it has.
    ///
    /// # Errors
    /// [`Error::Absent`] without a host that hears it, or without such memory.
    pub fn begin() -> Result<Self, Error> {
        needs_host()?;
        let zone = zones::movable_node()?;
        tell_from_anywhere(&Progress::Hotplug {
            part: Part::Memory,
            plugged: false,
        });
        Ok(Self { zone })
    }

    /// Whether the kernel is about to take it out of use.
    pub fn is_tried(&self) -> Result<bool, Error> {
        self.block()?.map_or(Ok(false), |block| block.is_going())
    }

    /// Whether it is out of the machine: the kernel has no such memory any more, and has ejected the DIMM.
    pub fn is_out(&self) -> Result<bool, Error> {
        Ok(self.block()?.is_none() && !is_present()?)
    }

    fn block(&self) -> Result<Option<Block>, Error> {
        let mut blocks = memory_block::all()?.into_iter();
        Ok(blocks.find(|it| it.frames.start == self.zone.frames.start))
    }

    /// Has the host put it in again, and waits until the kernel uses it.
    pub fn back(self) -> Result<(), Error> {
        self.put_in()?;
        std::mem::forget(self);
        Ok(())
    }

    fn put_in(&self) -> Result<(), Error> {
        if self.block()?.is_none() {
            // The kernel looks at the firmware itself once it has ejected the DIMM, and makes nothing of one that has come back by then.
            until(LIMIT, || self.is_out())?;
            memory_block::wait_for_hotplug()?;
        }
        tell_from_anywhere(&Progress::Hotplug {
            part: Part::Memory,
            plugged: true,
        });
        let there = || self.block()?.map_or(Ok(false), |block| block.is_online());
        match until(LIMIT, there)? {
            true => Ok(()),
            false => Err(Error::Call {
                what: "waiting for the DIMM to come back".into(),
                errno: Errno::ETIMEDOUT,
            }),
        }
    }
}

/// What the firmware says of the machine's only place for a DIMM: _STA, of which the first bit is "present".
fn is_present() -> Result<bool, Error> {
    const STATUS: &str = "/sys/bus/acpi/devices/PNP0C80:00/status";
    Ok(setting::number(STATUS)? & 1 == 1)
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Without it the tests that need ZONE_MOVABLE say so.
        let _ = self.put_in();
    }
}
