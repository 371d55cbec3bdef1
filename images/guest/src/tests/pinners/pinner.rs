// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What takes user pages, each with a page of the memory that it can take.

use super::gup_test::GupTest;
use super::iommufd::Ioas;
use super::kvm::Machine;
use super::rdma::Domain;
use super::sockets::{Umem, ZeroCopy};
use super::vfio::Container;
use super::vhost::Backend;
use crate::tests::dmabuf::taker::{Call, Taker};
use nix::errno::Errno;
use nix::fcntl::SealFlag;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::privilege::{NOBODY, become_user};
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::userfault::Userfault;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::video::v4l2::{Memop, Queue};
use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Who takes pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinner {
    /// A call of the table that mappings of dma-bufs meet.
    Call(Call),
    /// UDMABUF_CREATE of a memfd's page.
    Udmabuf,
    /// write(2) to /proc/self/mem.
    ProcMem,
    /// FUTEX_WAIT: the key of a futex in shared memory is its page's.
    Futex,
    /// UFFDIO_COPY, which copies and takes no page.
    UserfaultCopy,
    /// The kernel's own test of pins; whether by pin_user_pages_fast().
    GupTest(bool),
    /// XDP_UMEM_REG of AF_XDP.
    Xdp,
    /// send(2) with MSG_ZEROCOPY.
    ZeroCopy,
    /// A memory region of RDMA.
    Rdma,
    /// IOMMU_IOAS_MAP of iommufd.
    Iommufd,
    /// VFIO_IOMMU_MAP_DMA.
    Vfio,
    /// The log of dirty memory of vhost.
    VhostLog,
    /// A page of a virtual machine of KVM.
    Kvm,
}

#[rustfmt::skip]
impl Pinner {
    pub const VB2_SG: Self = Self::Call(Call::Userptr(Memop::DmaSg, Queue::Capture));
    pub const VB2_CONTIG: Self = Self::Call(Call::Userptr(Memop::DmaContig, Queue::Capture));
    pub const VB2_VMALLOC: Self = Self::Call(Call::Userptr(Memop::Vmalloc, Queue::Capture));
    pub const TEE: Self = Self::Call(Call::TeeRegister);
    pub const IO_URING: Self = Self::Call(Call::IoUring);
    pub const DIRECT_READ: Self = Self::Call(Call::DirectRead);
    pub const DIRECT_WRITE: Self = Self::Call(Call::DirectWrite);
    pub const VMSPLICE: Self = Self::Call(Call::Vmsplice);
    pub const PROCESS_READ: Self = Self::Call(Call::ProcessRead);
    pub const PROCESS_WRITE: Self = Self::Call(Call::ProcessWrite);
}

impl Pinner {
    /// Whether it keeps pages for as long as user space likes.
    pub fn is_long(self) -> bool {
        matches!(
            self,
            Self::Udmabuf
                | Self::GupTest(_)
                | Self::Xdp
                | Self::Rdma
                | Self::Iommufd
                | Self::Vfio
                | Self::Call(Call::Userptr(..) | Call::TeeRegister | Call::IoUring)
        )
    }

    /// Whether what it takes counts for the process that made it ready.
    pub fn counts_for_its_maker(self) -> bool {
        self == Self::IO_URING
    }

    /// How it says that no more may be locked.
    pub fn refusals(self) -> &'static [Errno] {
        match self {
            Self::Xdp => &[Errno::ENOBUFS],
            _ => &[Errno::ENOMEM, Errno::EPERM],
        }
    }

    /// How it says that a page is of a file.
    pub fn refusals_of_files(self) -> &'static [Errno] {
        match self {
            Self::Call(call) => call.refusals(),
            _ => &[Errno::EFAULT],
        }
    }

    /// A page that it can take.
    pub fn memory(self) -> TestResult<Page> {
        Ok(match self {
            Self::Udmabuf => {
                let file = dmabuf::memfd(PAGE)?;
                let mapping = Mapping::shared(&file, PAGE, READ_WRITE)?;
                Page {
                    mapping,
                    file: Some(file),
                }
            }
            Self::Futex => Page {
                mapping: Mapping::shared(dmabuf::memfd(PAGE)?, PAGE, READ_WRITE)?,
                file: None,
            },
            _ => Page {
                mapping: Mapping::anon(PAGE)?,
                file: None,
            },
        })
    }

    /// All that it needs, so that taking the page is one system call.
    pub fn ready(self, t: &mut Ctx, page: &Page) -> TestResult<Box<dyn Taker>> {
        Ok(match self {
            Self::Call(call) => call.ready(t)?,
            Self::Udmabuf => Box::new(Maker {
                file: page.duplicate()?,
                device: dmabuf::udmabuf_device()?,
                made: None,
            }),
            Self::ProcMem => Box::new(ProcMem(
                OpenOptions::new()
                    .write(true)
                    .open("/proc/self/mem")
                    .map_err(Error::io("opening /proc/self/mem"))?,
            )),
            Self::Futex => Box::new(Futex),
            Self::UserfaultCopy => Box::new(Copier::open()?),
            Self::GupTest(fast) => Box::new(GupTest::open(fast)?),
            Self::Xdp => Box::new(Umem::open()?),
            Self::ZeroCopy => Box::new(ZeroCopy::open()?),
            Self::Rdma => Box::new(Domain::open()?),
            Self::Iommufd => Box::new(Ioas::open()?),
            Self::Vfio => Box::new(Container::open()?),
            Self::VhostLog => Box::new(Backend::open()?),
            Self::Kvm => Box::new(Machine::open()?),
        })
    }

    /// The same in a process that has no privileges any more: what needs them comes before, and what counts for its maker after.
    pub fn ready_as_nobody(self, t: &mut Ctx, page: &Page) -> TestResult<Box<dyn Taker>> {
        self.ready_as(NOBODY, t, page)
    }

    /// As [`Pinner::ready_as_nobody`], for another user without privileges.
    pub fn ready_as(
        self,
        user: libc::uid_t,
        t: &mut Ctx,
        page: &Page,
    ) -> TestResult<Box<dyn Taker>> {
        if self.counts_for_its_maker() {
            become_user(user)?;
            return self.ready(t, page);
        }
        let taker = self.ready(t, page)?;
        become_user(user)?;
        Ok(taker)
    }
}

/// A page, and its memfd where it has one that is asked for.
pub struct Page {
    mapping: Mapping,
    file: Option<OwnedFd>,
}

impl Page {
    /// Its memfd, once more, sealed as a udmabuf wants it.
    fn duplicate(&self) -> Result<OwnedFd, Error> {
        let file = self.file.as_ref().ok_or_else(|| Error::Absent {
            what: "the memfd of the page".into(),
            remedy: "ask Pinner::memory() for it".into(),
        })?;
        dmabuf::seal(file, SealFlag::F_SEAL_SHRINK)?;
        file.try_clone().map_err(Error::io("duplicating a memfd"))
    }
}

impl Deref for Page {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

/// Makes a udmabuf of the memfd's page, which has no address there.
struct Maker {
    file: OwnedFd,
    device: OwnedFd,
    made: Option<OwnedFd>,
}

impl Taker for Maker {
    fn take(&mut self, _address: usize) -> Result<(), Errno> {
        let whole = 0..PAGE;
        let parts = std::slice::from_ref(&whole);
        self.made = Some(dmabuf::udmabuf_on(&self.device, &self.file, parts)?);
        Ok(())
    }
}

/// /proc/self/mem.
struct ProcMem(File);

impl Taker for ProcMem {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        match self.0.write_at(&[0x5a; PAGE], address as u64) {
            Ok(PAGE) => Ok(()),
            Ok(_) => Err(Errno::EIO),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

/// A userfaultfd, and the empty page that it fills.
struct Copier {
    fault: Userfault,
    to: Mapping,
}

impl Copier {
    fn open() -> Result<Self, Error> {
        let (fault, to) = (Userfault::open(0)?, Mapping::anon(PAGE)?);
        fault.register_empty(&to)?;
        Ok(Self { fault, to })
    }
}

impl Taker for Copier {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        self.fault.copy(address, &self.to)
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        Ok(Some(crc32c::crc32c(&self.to.read(0..PAGE))))
    }
}

/// A futex whose value is never the one that is waited for.
struct Futex;

impl Taker for Futex {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let futex = address as *const u32;
        // SAFETY: the address is that of a mapping's page, of which no references exist; the kernel compares the value and returns.
        let waited = unsafe {
            libc::syscall(
                libc::SYS_futex,
                futex,
                libc::FUTEX_WAIT,
                futex.read_volatile().wrapping_add(1),
                std::ptr::null::<libc::timespec>(),
            )
        };
        match Errno::result(waited) {
            Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
            Ok(_) => Err(Errno::EIO),
        }
    }
}
