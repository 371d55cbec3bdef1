// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of vgem, a graphics driver without hardware, as dma-bufs (include/uapi/drm/drm.h and drm_mode.h).

use crate::harness::error::Error;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct drm_version`.
#[repr(C)]
struct Version {
    major: i32,
    minor: i32,
    patchlevel: i32,
    padding: u32,
    name_length: usize,
    name: u64,
    date_length: usize,
    date: u64,
    description_length: usize,
    description: u64,
}

/// `struct drm_mode_create_dumb`.
#[derive(Default)]
#[repr(C)]
struct CreateDumb {
    height: u32,
    width: u32,
    bits_per_pixel: u32,
    flags: u32,
    handle: u32,
    pitch: u32,
    size: u64,
}

/// `struct drm_prime_handle`.
#[repr(C)]
struct PrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

mod ioctls {
    nix::ioctl_readwrite!(version, b'd', 0, super::Version);
    nix::ioctl_readwrite!(create_dumb, b'd', 0xb2, super::CreateDumb);
    nix::ioctl_readwrite!(prime_handle_to_fd, b'd', 0x2d, super::PrimeHandle);
}

/// A dma-buf of `length` bytes, a multiple of the page size.
pub fn buffer(length: usize) -> Result<OwnedFd, Error> {
    let card = open_card()?;
    let mut dumb = CreateDumb {
        height: 1,
        width: length as u32,
        bits_per_pixel: 8,
        ..Default::default()
    };
    // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
    unsafe { ioctls::create_dumb(card.as_raw_fd(), &mut dumb) }
        .map_err(Error::call(format!("making {length} bytes of vgem")))?;
    let mut prime = PrimeHandle {
        handle: dumb.handle,
        flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        fd: -1,
    };
    // SAFETY: as above.
    unsafe { ioctls::prime_handle_to_fd(card.as_raw_fd(), &mut prime) }
        .map_err(Error::call("exporting a buffer of vgem"))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
}

/// The card whose driver is vgem.
fn open_card() -> Result<OwnedFd, Error> {
    for entry in fs::read_dir("/dev/dri").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("card") {
            continue;
        }
        let card = open(
            &entry.path(),
            OFlag::O_RDWR | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(Error::call(format!("opening {}", entry.path().display())))?;
        if driver(&card)? == *b"vgem" {
            return Ok(card);
        }
    }
    Err(Error::Absent {
        what: "a card of vgem in /dev/dri".into(),
        remedy: "build the kernel with CONFIG_DRM_VGEM".into(),
    })
}

/// The first four letters of the name of a card's driver.
fn driver(card: &OwnedFd) -> Result<[u8; 4], Error> {
    let mut name = [0; 4];
    let mut version = Version {
        major: 0,
        minor: 0,
        patchlevel: 0,
        padding: 0,
        name_length: name.len(),
        name: name.as_mut_ptr() as u64,
        date_length: 0,
        date: 0,
        description_length: 0,
        description: 0,
    };
    // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills; `name` has the room it names.
    unsafe { ioctls::version(card.as_raw_fd(), &mut version) }
        .map_err(Error::call("asking a card for its driver"))?;
    Ok(name)
}
