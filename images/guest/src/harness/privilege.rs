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

/// The user that has nothing.
pub const NOBODY: libc::uid_t = 65534;

/// Takes all privileges away, CAP_IPC_LOCK among them.
pub fn become_nobody() -> Result<(), Error> {
    become_user(NOBODY)
}

/// As [`become_nobody`], for another user without privileges.
pub fn become_user(user: libc::uid_t) -> Result<(), Error> {
    // SAFETY: no memory is involved.
    let changed = unsafe { libc::setuid(user) };
    Errno::result(changed).map_err(Error::call("setuid"))?;
    Ok(())
}
