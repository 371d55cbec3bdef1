// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a process may do, which can only become less.

use crate::harness::error::Error;
use nix::errno::Errno;

/// Bytes that a process may lock from now on.
pub fn limit_locked_memory(bytes: usize) -> Result<(), Error> {
    let limit = libc::rlimit {
        rlim_cur: bytes as u64,
        rlim_max: bytes as u64,
    };
    // SAFETY: the argument is a struct that the call reads.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
    Errno::result(limited).map_err(Error::call("setrlimit of RLIMIT_MEMLOCK"))?;
    Ok(())
}

/// Takes all privileges away, CAP_IPC_LOCK among them.
pub fn become_nobody() -> Result<(), Error> {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: no memory is involved.
    let nobody = unsafe { libc::setuid(NOBODY) };
    Errno::result(nobody).map_err(Error::call("setuid"))?;
    Ok(())
}
