// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The log of dirty memory of vhost-vsock, a back end of virtio devices in the kernel: to write a bit of it, vhost pins its page.

use super::remedy;
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::extent::PAGE;
use std::os::fd::{AsRawFd, OwnedFd};

/// Of linux/vhost.h.
const SET_FEATURES: libc::c_ulong = nix::request_code_write!(0xaf, 0x00, 8);
const SET_OWNER: libc::c_ulong = nix::request_code_none!(0xaf, 0x01);
/// The size is that of the struct without its regions.
const SET_MEM_TABLE: libc::c_ulong = nix::request_code_write!(0xaf, 0x03, 8);
const SET_LOG_BASE: libc::c_ulong = nix::request_code_write!(0xaf, 0x04, 8);
const SET_VRING_NUM: libc::c_ulong = nix::request_code_write!(0xaf, 0x10, size_of::<State>());
const SET_VRING_ADDR: libc::c_ulong = nix::request_code_write!(0xaf, 0x11, size_of::<Ring>());
const VSOCK_SET_RUNNING: libc::c_ulong = nix::request_code_write!(0xaf, 0x61, 4);
const F_LOG_ALL: u64 = 1 << 26;
const VRING_F_LOG: u32 = 1;
const RINGS: u32 = 2;

/// One region.
#[repr(C)]
struct Table {
    regions: u32,
    padding: u32,
    place: u64,
    length: u64,
    address: u64,
    flags: u64,
}

#[repr(C)]
struct State {
    ring: u32,
    number: u32,
}

#[repr(C)]
struct Ring {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// Two rings of one entry each, which nobody drives.
pub struct Backend {
    file: OwnedFd,
    _rings: Mapping,
}

impl Backend {
    /// Ready to begin, but for the log.
    ///
    /// # Errors
    /// Where the kernel has no vhost-vsock.
    pub fn open() -> Result<Self, Error> {
        let file = open_node("/dev/vhost-vsock", remedy("CONFIG_VHOST_VSOCK"))?;
        let rings = Mapping::anon(PAGE)?;
        rings.write(0, &[0; PAGE]);
        // SAFETY: the descriptor is open, and the call has no argument.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), SET_OWNER, 0) })
            .map_err(Error::call("VHOST_SET_OWNER"))?;
        call(&file, SET_FEATURES, &F_LOG_ALL).map_err(Error::call("VHOST_SET_FEATURES"))?;
        // The log's page has a bit for each page of it: this is the first.
        let table = Table {
            regions: 1,
            padding: 0,
            place: 0,
            length: PAGE as u64,
            address: rings.address() as u64,
            flags: 0,
        };
        call(&file, SET_MEM_TABLE, &table).map_err(Error::call("VHOST_SET_MEM_TABLE"))?;
        for ring in 0..RINGS {
            let start = (ring as usize * PAGE / 2 + rings.address()) as u64;
            let state = State { ring, number: 1 };
            call(&file, SET_VRING_NUM, &state).map_err(Error::call("VHOST_SET_VRING_NUM"))?;
            let addresses = Ring {
                ring,
                flags: VRING_F_LOG,
                descriptors: start,
                used: start + 256,
                available: start + 512,
                log: 0,
            };
            call(&file, SET_VRING_ADDR, &addresses).map_err(Error::call("VHOST_SET_VRING_ADDR"))?;
        }
        Ok(Self {
            file,
            _rings: rings,
        })
    }
}

impl Taker for Backend {
    /// A ring that begins has its flags written, which goes to the log.
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        call(&self.file, SET_LOG_BASE, &(address as u64))?;
        call(&self.file, VSOCK_SET_RUNNING, &1_i32)?;
        call(&self.file, VSOCK_SET_RUNNING, &0_i32)
    }
}

fn call<T>(file: &OwnedFd, command: libc::c_ulong, argument: &T) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; the argument is what this command reads. Pages that it names are those of mappings, of which no
    // references exist.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command, &raw const *argument) }).map(drop)
}
