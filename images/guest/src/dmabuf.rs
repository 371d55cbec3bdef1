// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs from exporters other than V4L2, CPU access to them, and who is alive (Documentation/driver-api/dma-buf.rst).

use crate::error::Error;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct dma_heap_allocation_data`.
#[repr(C)]
struct HeapAllocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

/// `struct udmabuf_create_item`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct UdmabufItem {
    memfd: u32,
    padding: u32,
    offset: u64,
    size: u64,
}

/// Parts that [`udmabuf_of`] takes.
pub const UDMABUF_PARTS: usize = 16;

/// `struct udmabuf_create_list` with room for items behind it.
#[repr(C)]
struct UdmabufCreateList {
    flags: u32,
    count: u32,
    list: [UdmabufItem; UDMABUF_PARTS],
}

mod ioctls {
    nix::ioctl_readwrite!(heap_alloc, b'H', 0, super::HeapAllocation);
    // The number has the size of the list without its items.
    nix::ioctl_write_ptr_bad!(
        udmabuf_create_list,
        nix::request_code_write!(b'u', 0x43, 8),
        super::UdmabufCreateList
    );
    nix::ioctl_write_ptr!(sync, b'b', 0, u64);
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
        remedy: "build the kernel with CONFIG_DMABUF_HEAPS_CMA and boot it with cma=64M".into(),
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

/// A memfd of this many bytes.
pub fn memfd(length: usize) -> Result<OwnedFd, Error> {
    let file = memfd_create(
        "pinbed",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .map_err(Error::call("memfd_create"))?;
    ftruncate(&file, length as i64).map_err(Error::call("ftruncate of a memfd"))?;
    Ok(file)
}

/// A dma-buf made of a memfd's pages, and the memfd.
pub fn udmabuf(length: usize) -> Result<(OwnedFd, OwnedFd), Error> {
    let file = memfd(length)?;
    Ok((udmabuf_of(&file, std::slice::from_ref(&(0..length)))?, file))
}

/// A dma-buf made of these parts of a memfd, in this order; at most [`UDMABUF_PARTS`].
pub fn udmabuf_of(file: &OwnedFd, parts: &[Range<usize>]) -> Result<OwnedFd, Error> {
    let path = "/dev/udmabuf";
    let device =
        open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|_| Error::Absent {
            what: path.into(),
            remedy: "build the kernel with CONFIG_UDMABUF".into(),
        })?;
    fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
        .map_err(Error::call("sealing a memfd"))?;
    assert!(parts.len() <= UDMABUF_PARTS, "too many parts: {parts:?}");
    let mut create = UdmabufCreateList {
        flags: 1,
        count: parts.len() as u32,
        list: [UdmabufItem::default(); UDMABUF_PARTS],
    };
    for (item, part) in create.list.iter_mut().zip(parts) {
        *item = UdmabufItem {
            memfd: file.as_raw_fd() as u32,
            padding: 0,
            offset: part.start as u64,
            size: part.len() as u64,
        };
    }
    // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads, with `count` items (checked above).
    // `flags` 1 is close-on-exec.
    let fd = unsafe { ioctls::udmabuf_create_list(device.as_raw_fd(), &create) }
        .map_err(Error::call(format!("making a udmabuf of {parts:?}")))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// A dma-buf somewhere in the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Bytes.
    pub size: u64,
    /// Who exported it.
    pub exporter: String,
    /// Its inode: a name for it.
    pub inode: u64,
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "dma-buf {} of {} bytes from {}",
            self.inode, self.size, self.exporter
        )
    }
}

/// All dma-bufs of the system.
pub fn alive() -> Result<Vec<Alive>, Error> {
    const WHERE: &str = "/sys/kernel/debug/dma_buf/bufinfo";
    let text = fs::read_to_string(WHERE).map_err(|_| Error::Absent {
        what: WHERE.into(),
        remedy: "build the kernel with CONFIG_DEBUG_FS and dma-buf support".into(),
    })?;
    parse(&text).map_err(|line| Error::Format {
        source_name: WHERE.into(),
        text: line,
    })
}

/// Objects are the lines that begin with a digit: size, flags, mode, count, exporter, inode, name; tabs between.
fn parse(bufinfo: &str) -> Result<Vec<Alive>, String> {
    bufinfo
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
        .map(|line| {
            let fields: Vec<_> = line.split('\t').map(str::trim).collect();
            let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
            match (number(0), fields.get(4), number(5)) {
                (Some(size), Some(exporter), Some(inode)) => Ok(Alive {
                    size,
                    exporter: (*exporter).into(),
                    inode,
                }),
                _ => Err(line.to_owned()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bufinfo_lists_objects_among_other_lines() {
        let text = "\nDma-buf Objects:\nsize    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n\
                    00004096\t00000002\t00080007\t00000002\tsystem\t00000012\t<none>\n\
                    \tAttached Devices:\n\tvirtio0\nTotal 1 devices attached\n\n\nTotal 1 objects, 4096 bytes\n";
        assert_eq!(
            parse(text).unwrap(),
            [Alive {
                size: 4096,
                exporter: "system".into(),
                inode: 12
            }]
        );
        assert!(parse("12 34\n").is_err());
    }
}
