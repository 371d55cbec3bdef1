// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting to be told what to do: here a guest's state is saved, and from here on guests differ that start from it.

use crate::port::Port;
use crate::{Broken, bounded};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use pinbed_abi::report::{Errand, Message, Plan};
use pinbed_guest::module;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Gets ready, says so, and waits for an errand. Sets the clock by it and mixes its random bytes into the kernel's.
pub fn wait(port: &mut Port) -> Result<Plan, Broken> {
    bounded::run("loading the driver", Duration::from_secs(30), || {
        module::insert(module::PATH, "")
    })??;
    port.send(&Message::Ready);
    let line = port.receive()?;
    let errand: Errand = serde_json::from_str(&line)
        .map_err(|error| Broken(format!("the host sent no errand but '{line}': {error}")))?;
    let now = Duration::from_nanos(errand.realtime_ns);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now))?;
    reseed(&errand.seed)?;
    Ok(errand.plan)
}

/// Has the kernel's random numbers depend on these bytes from now on, each CPU's buffered ones included.
fn reseed(seed: &[u8]) -> Result<(), Broken> {
    nix::ioctl_none!(reseed_crng, b'R', 0x07);
    let told = |error: io::Error| Broken(format!("/dev/urandom: {error}"));
    let mut random = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .map_err(told)?;
    random.write_all(seed).map_err(told)?;
    // SAFETY: RNDRESEEDCRNG (linux/random.h) takes no argument.
    match unsafe { reseed_crng(random.as_raw_fd()) } {
        // A generator that has never been seeded takes up what was written when it is.
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(errno) => Err(told(errno.into())),
    }
}
