// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that is the TEE's: of the kernel's heap for it, or, on kernels that have none, of the driver's exporter.

use crate::dmabuf;
use crate::harness::error::Error;
use crate::observe::device::{Device, Held};
use crate::observe::extent::Extent;
use crate::observe::physical;
use crate::tee::client::{Shm, Tee, value_in};
use nix::errno::Errno;
use pinbed_abi::tee::Param;
use pinbed_abi::{uapi, wire};
use std::os::fd::OwnedFd;

/// A dma-buf of protected memory that a TEE client can name.
pub struct Protected {
    /// The dma-buf.
    pub fd: OwnedFd,
    /// Where it is.
    pub place: Extent,
    /// By which the device knows it.
    pub handle: u64,
    /// What the TEE client has of it, where the kernel's TEE subsystem can register a dma-buf.
    pub shm: Option<Shm>,
}

impl Protected {
    /// Memory of `length` bytes, which need not be whole pages, for this client. ENOMEM where there is no such memory.
    pub fn new(device: &Device, tee: &Tee, length: usize) -> Result<Self, Error> {
        let failed = Error::call(format!("allocating {length} bytes of protected memory"));
        match dmabuf::protected_heap(length).map_err(failed)? {
            None => Self::of_driver(device, length),
            Some(fd) => Self::of_heap(device, tee, fd),
        }
    }

    fn of_driver(device: &Device, length: usize) -> Result<Self, Error> {
        let exported = device.try_export(length, uapi::EXPORT_PROTECTED);
        let (fd, export) = exported.map_err(Error::call(format!(
            "allocating {length} bytes of protected memory"
        )))?;
        let held = device.query(export.handle)?.ok_or_else(nowhere)?;
        Self::held(fd, held, None)
    }

    /// The newest protected buffer is the one that was made last.
    fn of_heap(device: &Device, tee: &Tee, fd: OwnedFd) -> Result<Self, Error> {
        let shm = tee
            .register_dmabuf(&fd)
            .map_err(Error::call("TEE_IOC_SHM_REGISTER_FD"))?;
        let mut all = device.list()?.into_iter();
        let held = all.rfind(|held| held.flags & wire::ATTACH_PROTECTED != 0);
        Self::held(fd, held.ok_or_else(nowhere)?, Some(shm))
    }

    fn held(fd: OwnedFd, held: Held, shm: Option<Shm>) -> Result<Self, Error> {
        match held.segments[..] {
            [place] => Ok(Self {
                fd,
                place,
                handle: held.handle,
                shm,
            }),
            _ => Err(Error::Format {
                source_name: "the device".into(),
                text: format!("{:?} as one piece of protected memory", held.segments),
            }),
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.place.length as usize
    }

    /// Whether there are none, which never is.
    pub fn is_empty(&self) -> bool {
        self.place.length == 0
    }

    /// All of it, as a trusted application that may have protected memory takes it; `attr` is that of a memref.
    pub fn all(&self, attr: u64) -> Param {
        match &self.shm {
            Some(shm) => shm.all(attr),
            None => value_in(self.handle, 0),
        }
    }

    /// What the CPU reads in its place.
    pub fn seen_by_cpu(&self) -> Result<Vec<u8>, Error> {
        physical::read(self.place)
    }
}

fn nowhere() -> Error {
    Error::Call {
        what: "finding protected memory among what the device holds".into(),
        errno: Errno::ENOENT,
    }
}
