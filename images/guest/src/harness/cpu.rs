// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which CPU a test runs on.

use crate::harness::error::Error;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this thread, and those it starts from now on, on the CPU it is on. Pages that a CPU has just mapped wait in a list of that
/// CPU's own before they can be evicted, and MADV_PAGEOUT empties the list of the CPU it runs on only.
pub fn stay() -> Result<(), Error> {
    let mut set = CpuSet::new();
    let cpu = sched_getcpu().map_err(Error::call("getcpu"))?;
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(Error::call("sched_setaffinity"))
}
