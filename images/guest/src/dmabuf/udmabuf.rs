// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs made of a memfd's pages (include/uapi/linux/udmabuf.h).

use crate::harness::error::Error;
use crate::harness::node::open_node;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

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
    // The number has the size of the list without its items.
    nix::ioctl_write_ptr_bad!(
        udmabuf_create_list,
        nix::request_code_write!(b'u', 0x43, 8),
        super::UdmabufCreateList
    );
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

/// Adds seals to a memfd. One that may shrink makes no udmabuf.
pub fn seal(file: &OwnedFd, seals: SealFlag) -> Result<(), Error> {
    let sealed = fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop);
    sealed.map_err(Error::call("sealing a memfd"))
}

/// A dma-buf made of a memfd's pages, and the memfd.
pub fn udmabuf(length: usize) -> Result<(OwnedFd, OwnedFd), Error> {
    let file = memfd(length)?;
    Ok((udmabuf_of(&file, std::slice::from_ref(&(0..length)))?, file))
}

/// A dma-buf made of these parts of a memfd, in this order; at most [`UDMABUF_PARTS`].
pub fn udmabuf_of(file: &OwnedFd, parts: &[Range<usize>]) -> Result<OwnedFd, Error> {
    seal(file, SealFlag::F_SEAL_SHRINK)?;
    let made = try_udmabuf(file, parts)?;
    made.map_err(Error::call(format!("making a udmabuf of {parts:?}")))
}

/// As [`udmabuf_of`], of a memfd with the seals that it has.
pub fn try_udmabuf(
    file: &OwnedFd,
    parts: &[Range<usize>],
) -> Result<Result<OwnedFd, Errno>, Error> {
    Ok(udmabuf_on(&udmabuf_device()?, file, parts))
}

/// The device that makes udmabufs.
pub fn udmabuf_device() -> Result<OwnedFd, Error> {
    open_node("/dev/udmabuf", "build the kernel with CONFIG_UDMABUF")
}

/// As [`try_udmabuf`], with the device open already.
pub fn udmabuf_on(
    device: &OwnedFd,
    file: &OwnedFd,
    parts: &[Range<usize>],
) -> Result<OwnedFd, Errno> {
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
    let fd = unsafe { ioctls::udmabuf_create_list(device.as_raw_fd(), &create) };
    // SAFETY: the kernel has just given us this descriptor.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
