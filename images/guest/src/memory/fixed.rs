// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Fixed buffers of io_uring, which pins them for as long as the ring lives or they are registered.

use crate::harness::error::Error;
use io_uring::IoUring;
use nix::errno::Errno;

/// A ring with room for one request.
pub fn ring() -> Result<IoUring, Error> {
    IoUring::new(1).map_err(|_| Error::Absent {
        what: "io_uring".into(),
        remedy: "build the kernel with CONFIG_IO_URING".into(),
    })
}

/// IORING_REGISTER_BUFFERS: registers `length` bytes at `address` as the ring's only fixed buffer. They are to be of a
/// [`crate::memory::mapping::Mapping`], of which no references exist.
pub fn register(ring: &IoUring, address: usize, length: usize) -> Result<(), Errno> {
    let buffer = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: the ring pins the pages, so that they outlive their mapping; nobody has references to them, whoever writes them.
    unsafe { ring.submitter().register_buffers(&[buffer]) }
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}
