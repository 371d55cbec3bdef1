// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs from the heaps in /dev/dma_heap (include/uapi/linux/dma-heap.h).

use crate::harness::error::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct dma_heap_allocation_data`.
#[repr(C)]
struct HeapAllocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

mod ioctls {
    nix::ioctl_readwrite!(heap_alloc, b'H', 0, super::HeapAllocation);
}

/// A dma-buf of `length` bytes, a multiple of the page size, from the system heap.
pub fn system_heap(length: usize) -> Result<OwnedFd, Error> {
    let path = "/dev/dma_heap/system";
    heap(path, length)?.ok_or_else(|| Error::Absent {
        what: path.into(),
        remedy: "build the kernel with CONFIG_DMABUF_HEAPS_SYSTEM".into(),
    })
}

/// A contiguous dma-buf of `length` bytes, a multiple of the page size, from the heap on CMA, whose name differs between kernels.
pub fn cma_heap(length: usize) -> Result<OwnedFd, Error> {
    for name in ["default_cma_region", "reserved", "cma-reserved"] {
        if let Some(buffer) = heap(&format!("/dev/dma_heap/{name}"), length)? {
            return Ok(buffer);
        }
    }
    Err(Error::Absent {
        what: "a heap on CMA in /dev/dma_heap".into(),
        remedy:
            "build the kernel with CONFIG_CMA and CONFIG_DMABUF_HEAPS_CMA, and boot it with cma=64M"
                .into(),
    })
}

/// The TEE's heap for what it decrypts; Linux has it since 6.18.
pub const PROTECTED_HEAP: &str = "/dev/dma_heap/protected,secure-video";

/// A dma-buf of protected memory, or `None` if the kernel has no such heap.
pub fn protected_heap(length: usize) -> Result<Option<OwnedFd>, Errno> {
    allocate(PROTECTED_HEAP, length)
}

/// A dma-buf from a heap, or `None` if there is no such heap.
fn heap(path: &str, length: usize) -> Result<Option<OwnedFd>, Error> {
    allocate(path, length).map_err(Error::call(format!(
        "allocating {length} bytes from {path}"
    )))
}

fn allocate(path: &str, length: usize) -> Result<Option<OwnedFd>, Errno> {
    let Ok(heap) = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    let mut allocation = HeapAllocation {
        len: length as u64,
        fd: 0,
        fd_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        heap_flags: 0,
    };
    // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
    unsafe { ioctls::heap_alloc(heap.as_raw_fd(), &mut allocation) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(allocation.fd as i32) }))
}
