// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VFIO_IOMMU_MAP_DMA: a container of VFIO with QEMU's PCI test device, which the environment `iommu` puts behind an IOMMU.

use super::remedy;
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::harness::setting;
use pinbed_guest::observe::extent::PAGE;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Of linux/vfio.h.
const SET_IOMMU: libc::c_ulong = nix::request_code_none!(b';', 100 + 2);
const GROUP_SET_CONTAINER: libc::c_ulong = nix::request_code_none!(b';', 100 + 4);
const MAP_DMA: libc::c_ulong = nix::request_code_none!(b';', 100 + 13);
const SYMBOL: &str = "CONFIG_VFIO_PCI";
const TYPE1V2: libc::c_ulong = 3;
const READ: u32 = 1;
const WRITE: u32 = 2;

#[repr(C)]
struct Map {
    size: u32,
    flags: u32,
    address: u64,
    iova: u64,
    length: u64,
}

/// A container with the device's group, both open.
pub struct Container {
    file: OwnedFd,
    _group: OwnedFd,
}

impl Container {
    /// Gives the device to VFIO.
    ///
    /// # Errors
    /// Where the kernel has no VFIO, or the machine no such device or no IOMMU.
    pub fn open() -> Result<Self, Error> {
        let file = open_node("/dev/vfio/vfio", remedy(SYMBOL))?;
        let device = test_device()?.ok_or_else(|| Error::Absent {
            what: "a PCI device behind an IOMMU".into(),
            remedy: "run in the environment iommu".into(),
        })?;
        let group = fs::read_link(device.join("iommu_group")).map_err(|_| Error::Absent {
            what: "an IOMMU in front of the PCI test device".into(),
            remedy: "run in the environment iommu".into(),
        })?;
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let group = Path::new("/dev/vfio").join(name(&group));
        if !group.exists() {
            setting::write(device.join("driver_override"), "vfio-pci")?;
            setting::write("/sys/bus/pci/drivers_probe", &name(&device))?;
        }
        until(LIMIT, || Ok(group.exists()))?;
        let group = open_node(&group, remedy(SYMBOL))?;
        let container = file.as_raw_fd();
        // SAFETY: both descriptors are open, and the argument is a descriptor that the call reads.
        Errno::result(unsafe {
            libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, &raw const container)
        })
        .map_err(Error::call("VFIO_GROUP_SET_CONTAINER"))?;
        // SAFETY: the descriptor is open, and the argument is a number.
        Errno::result(unsafe { libc::ioctl(container, SET_IOMMU, TYPE1V2) })
            .map_err(Error::call("VFIO_SET_IOMMU"))?;
        Ok(Self {
            file,
            _group: group,
        })
    }
}

impl Taker for Container {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let map = Map {
            size: size_of::<Map>() as u32,
            flags: READ | WRITE,
            address: address as u64,
            iova: 0,
            length: PAGE as u64,
        };
        // SAFETY: the descriptor is open, and the argument is a struct that the call reads. The page is that of a mapping, of which no
        // references exist.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), MAP_DMA, &raw const map) })?;
        Ok(())
    }
}

/// QEMU's pci-testdev.
fn test_device() -> Result<Option<PathBuf>, Error> {
    let failed = || Error::io("reading /sys/bus/pci/devices");
    for entry in fs::read_dir("/sys/bus/pci/devices").map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let id = |file| fs::read_to_string(path.join(file)).map_err(failed());
        if (id("vendor")?.trim(), id("device")?.trim()) == ("0x1b36", "0x0005") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
