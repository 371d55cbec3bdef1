// SPDX-License-Identifier: Apache-2.0 OR MIT
//! IOMMU_IOAS_MAP: an address space of iommufd, with the selftests' mock device behind it, without which nothing is pinned.

use super::remedy;
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::kconfig;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::observe::extent::PAGE;
use std::os::fd::{AsRawFd, OwnedFd};

const IOAS_ALLOC: libc::c_ulong = nix::request_code_none!(b';', 0x81);
const IOAS_MAP: libc::c_ulong = nix::request_code_none!(b';', 0x85);
/// IOMMU_TEST_CMD of drivers/iommu/iommufd/iommufd_test.h.
const TEST: libc::c_ulong = nix::request_code_none!(b';', 0x80 + 32);
const MOCK_DOMAIN: u32 = 2;
const WRITEABLE: u32 = 2;
const READABLE: u32 = 4;

#[repr(C)]
struct Alloc {
    size: u32,
    flags: u32,
    ioas: u32,
}

/// Its union, and room for that of other kernels.
#[repr(C)]
struct Test {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    union: [u64; 14],
}

#[repr(C)]
struct Map {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    address: u64,
    length: u64,
    iova: u64,
}

/// An address space with a mock device.
pub struct Ioas {
    file: OwnedFd,
    id: u32,
}

impl Ioas {
    /// Without mappings.
    ///
    /// # Errors
    /// Where the kernel has no iommufd, or not its selftests.
    pub fn open() -> Result<Self, Error> {
        let file = open_node("/dev/iommu", remedy("CONFIG_IOMMUFD"))?;
        kconfig::unless_off("IOMMUFD_TEST", "the mock device of iommufd")?;
        let mut made = Alloc {
            size: size_of::<Alloc>() as u32,
            flags: 0,
            ioas: 0,
        };
        call(&file, IOAS_ALLOC, &mut made).map_err(Error::call("IOMMU_IOAS_ALLOC"))?;
        let mut mock = Test {
            size: size_of::<Test>() as u32,
            op: MOCK_DOMAIN,
            id: made.ioas,
            reserved: 0,
            union: [0; 14],
        };
        call(&file, TEST, &mut mock).map_err(Error::call("IOMMU_TEST_OP_MOCK_DOMAIN"))?;
        Ok(Self {
            file,
            id: made.ioas,
        })
    }
}

impl Taker for Ioas {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let mut map = Map {
            size: size_of::<Map>() as u32,
            flags: READABLE | WRITEABLE,
            ioas: self.id,
            reserved: 0,
            address: address as u64,
            length: PAGE as u64,
            iova: 0,
        };
        call(&self.file, IOAS_MAP, &mut map)
    }
}

fn call<T>(file: &OwnedFd, command: libc::c_ulong, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; the argument is the struct of this command, with its size, which the call reads and writes. A page
    // that it names is that of a mapping, of which no references exist.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command, &raw mut *argument) }).map(drop)
}
