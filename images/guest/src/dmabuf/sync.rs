// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CPU access to a dma-buf (include/uapi/linux/dma-buf.h).

use crate::harness::error::Error;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

mod ioctls {
    nix::ioctl_write_ptr!(sync, b'b', 0, u64);
}

/// What the CPU is about to do with a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `DMA_BUF_SYNC_READ`: see what devices wrote.
    Read = 1,
    /// `DMA_BUF_SYNC_WRITE`: let devices see what it writes.
    Write = 2,
    /// `DMA_BUF_SYNC_RW`: both.
    Both = 3,
}

/// Brackets CPU access to a dma-buf's mapping with DMA_BUF_IOCTL_SYNC.
pub fn with_cpu_access<T>(
    buffer: impl AsFd,
    access: Access,
    work: impl FnOnce() -> T,
) -> Result<T, Error> {
    const END: u64 = 4;
    let sync = |flags: u64| loop {
        // SAFETY: the descriptor is open and the argument the 64 flag bits that this ioctl reads.
        match unsafe { ioctls::sync(buffer.as_fd().as_raw_fd(), &flags) } {
            Err(Errno::EINTR | Errno::EAGAIN) => (),
            Err(errno) => return Err(Error::call("DMA_BUF_IOCTL_SYNC")(errno)),
            Ok(_) => return Ok(()),
        }
    };
    sync(access as u64)?;
    let result = work();
    sync(access as u64 | END)?;
    Ok(result)
}
