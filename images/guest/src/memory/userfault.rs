// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory whose faults this process handles itself (include/uapi/linux/userfaultfd.h).

use crate::harness::error::Error;
use crate::memory::mapping::Mapping;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_FEATURE_MOVE`, since 6.8.
pub const FEATURE_MOVE: u64 = 1 << 16;

const API: u64 = 0xAA;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// `sizeof(struct uffd_msg)`.
const MESSAGE: usize = 32;

#[repr(C)]
struct Hello {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    length: u64,
    mode: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Move {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    moved: i64,
}

mod ioctls {
    use super::{Copy, Hello, Move, Register, WriteProtect};

    nix::ioctl_readwrite!(api, 0xAA, 0x3F, Hello);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, Register);
    nix::ioctl_readwrite!(copy, 0xAA, 0x03, Copy);
    nix::ioctl_readwrite!(move_pages, 0xAA, 0x05, Move);
    nix::ioctl_readwrite!(write_protect, 0xAA, 0x06, WriteProtect);
}

/// A userfaultfd. All it protects is freed of that when it is closed.
pub struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Opens one with these features, or [`Error::Absent`].
    pub fn open(features: u64) -> Result<Self, Error> {
        let absent = |what: &str| Error::Absent {
            what: what.into(),
            remedy: "build a newer kernel, with CONFIG_USERFAULTFD".into(),
        };
        // SAFETY: the system call takes flags only.
        let raw =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let raw = Errno::result(raw).map_err(|_| absent("userfaultfd"))?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        let mut hello = Hello {
            api: API,
            features,
            ioctls: 0,
        };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
        unsafe { ioctls::api(fd.as_raw_fd(), &mut hello) }
            .map_err(|_| absent(&format!("userfaultfd with the features {features:#x}")))?;
        Ok(Self { fd })
    }

    /// Hears of writes to a mapping that is write-protected.
    pub fn register(&self, mapping: &Mapping) -> Result<(), Error> {
        self.register_for(mapping, REGISTER_MODE_WP)
    }

    /// Fills a mapping that has no pages, by [`Userfault::copy`].
    pub fn register_empty(&self, mapping: &Mapping) -> Result<(), Error> {
        self.register_for(mapping, REGISTER_MODE_MISSING)
    }

    fn register_for(&self, mapping: &Mapping, mode: u64) -> Result<(), Error> {
        let mut register = Register {
            start: mapping.address() as u64,
            length: mapping.len() as u64,
            mode,
            ioctls: 0,
        };
        // SAFETY: as in `open`. What faults from now on is no reference, and waits until it is handled.
        unsafe { ioctls::register(self.fd.as_raw_fd(), &mut register) }
            .map(drop)
            .map_err(Error::call("UFFDIO_REGISTER"))
    }

    /// Protects a registered mapping against writes, or lets them go on.
    pub fn protect(&self, mapping: &Mapping, on: bool) -> Result<(), Error> {
        let mut protect = WriteProtect {
            start: mapping.address() as u64,
            length: mapping.len() as u64,
            mode: if on { WRITEPROTECT_MODE_WP } else { 0 },
        };
        // SAFETY: as in `register`.
        unsafe { ioctls::write_protect(self.fd.as_raw_fd(), &mut protect) }
            .map(drop)
            .map_err(Error::call("UFFDIO_WRITEPROTECT"))
    }

    /// UFFDIO_COPY: a mapping that is registered and has no pages gets copies of those that begin at an address, which must be a mapping's
    /// of which no references exist.
    pub fn copy(&self, from: usize, to: &Mapping) -> Result<(), Errno> {
        let mut request = Copy {
            to: to.address() as u64,
            from: from as u64,
            length: to.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: as in `register`.
        unsafe { ioctls::copy(self.fd.as_raw_fd(), &mut request) }.map(drop)
    }

    /// UFFDIO_MOVE: the pages of one mapping become those of another of the same length, which is registered and has none.
    pub fn move_pages(&self, from: &Mapping, to: &Mapping) -> Result<(), Errno> {
        let mut request = Move {
            to: to.address() as u64,
            from: from.address() as u64,
            length: from.len() as u64,
            mode: 0,
            moved: 0,
        };
        // SAFETY: as in `register`; both mappings are our own, and no reference into them can exist.
        unsafe { ioctls::move_pages(self.fd.as_raw_fd(), &mut request) }.map(drop)
    }

    /// The address of the next fault, waiting for one at most so long.
    pub fn fault(&self, timeout_ms: u16) -> Result<Option<u64>, Error> {
        let mut set = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut set, PollTimeout::from(timeout_ms))
            .map_err(Error::call("poll of a userfaultfd"))?;
        let mut message = [0; MESSAGE];
        match read(&self.fd, &mut message) {
            Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                let [.., a, b, c, d, e, f, g, h] = *message.first_chunk::<24>().unwrap_or(&[0; 24]);
                Ok(Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])))
            }
            Ok(_) => Err(Error::Format {
                source_name: "userfaultfd".into(),
                text: format!("{message:?}"),
            }),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::call("reading a userfaultfd")(errno)),
        }
    }
}
