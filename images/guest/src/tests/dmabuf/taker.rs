// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls that take the page under a user address, for their own time or for as long as user space likes.

use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek, pipe2, read};
use pinbed_abi::ta::pin;
use pinbed_abi::tee::PARAM_MEMREF_INPUT;
use pinbed_guest::dmabuf::memfd;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::fixed;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::tee::client::{NONE, Session, Shm, Tee, VALUE_OUT};
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::{self, Memop, Memory, Queue};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

/// A call, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// read(2) of a disk opened with O_DIRECT: the disk's driver writes the page.
    DirectRead,
    /// write(2) to it: the disk's driver reads the page.
    DirectWrite,
    /// vmsplice(2): a pipe holds the page until it is read.
    Vmsplice,
    /// process_vm_readv(2): the page is another process's, in principle, and is read.
    ProcessRead,
    /// process_vm_writev(2): and is written.
    ProcessWrite,
    /// IORING_REGISTER_BUFFERS: the ring holds the page until it is closed.
    IoUring,
    /// TEE_IOC_SHM_REGISTER: the TEE holds the page until the descriptor is closed.
    TeeRegister,
    /// QBUF of V4L2_MEMORY_USERPTR: the queue holds the page until the buffer is released.
    Userptr(Memop, Queue),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DirectRead => write!(f, "read with O_DIRECT"),
            Self::DirectWrite => write!(f, "write with O_DIRECT"),
            Self::Vmsplice => write!(f, "vmsplice"),
            Self::ProcessRead => write!(f, "process_vm_readv"),
            Self::ProcessWrite => write!(f, "process_vm_writev"),
            Self::IoUring => write!(f, "IORING_REGISTER_BUFFERS"),
            Self::TeeRegister => write!(f, "TEE_IOC_SHM_REGISTER"),
            Self::Userptr(memop, queue) => write!(f, "QBUF on {queue:?} of {}", memop.node()),
        }
    }
}

impl Call {
    /// How it says that a page cannot be had.
    pub fn refusals(self) -> &'static [Errno] {
        match self {
            // vb2-dma-sg says ENOMEM whatever the reason was.
            Self::Userptr(Memop::DmaSg, _) => &[Errno::EFAULT, Errno::ENOMEM],
            // io_uring_register(2): the latter for memory of a file.
            Self::IoUring => &[Errno::EFAULT, Errno::EOPNOTSUPP],
            _ => &[Errno::EFAULT],
        }
    }

    /// All that the call needs, so that taking a page is one system call.
    pub fn ready(self, t: &mut Ctx) -> TestResult<Box<dyn Taker>> {
        Ok(match self {
            Self::DirectRead => Box::new(Disk::open(t, Way::Into)?),
            Self::DirectWrite => Box::new(Disk::open(t, Way::OutOf)?),
            Self::Vmsplice => Box::new(Pipe::open()?),
            Self::ProcessRead => Box::new(Process::open(t, Way::OutOf)?),
            Self::ProcessWrite => Box::new(Process::open(t, Way::Into)?),
            Self::IoUring => Box::new(Ring::open()?),
            Self::TeeRegister => Box::new(Registrar::open()?),
            Self::Userptr(memop, queue) => Box::new(Node::open(memop, queue)?),
        })
    }
}

/// Who makes such a call.
pub trait Taker: Send {
    /// Takes the page at this address, which must be that of a [`Mapping`]'s page, of which no references exist.
    fn take(&mut self, address: usize) -> Result<(), Errno>;

    /// CRC32C of the page as it is at the other end now: of what was copied, or of the page that is still held, even if nothing is at
    /// its address any more. `None` if there is no way to ask, or nothing was taken.
    fn seen(&mut self) -> TestResult<Option<u32>> {
        Ok(None)
    }
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Into the page.
    Into,
    /// Out of it.
    OutOf,
}

fn vector(address: usize) -> libc::iovec {
    libc::iovec {
        iov_base: address as *mut _,
        iov_len: PAGE,
    }
}

/// EIO unless a call moved the whole page.
fn whole(moved: libc::ssize_t) -> Result<(), Errno> {
    match Errno::result(moved)? as usize {
        PAGE => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// The last page of a disk in memory, which nobody else uses for anything that lasts.
struct Disk {
    file: OwnedFd,
    offset: i64,
    way: Way,
    /// For a look at the disk.
    own: Mapping,
}

impl Disk {
    fn open(t: &mut Ctx, way: Way) -> TestResult<Self> {
        let path = "/dev/ram1";
        let flags = OFlag::O_RDWR | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty()).map_err(|_| Error::Absent {
            what: path.into(),
            remedy: "build the kernel with CONFIG_BLK_DEV_RAM and CONFIG_BLK_DEV_RAM_COUNT=2"
                .into(),
        })?;
        let size = lseek(&file, 0, Whence::SeekEnd).map_err(Error::call("lseek of a disk"))?;
        let own = Mapping::anon(PAGE)?;
        own.write(0, &t.random(PAGE));
        let disk = Self {
            file,
            offset: size - PAGE as i64,
            way,
            own,
        };
        disk.transfer(Way::OutOf, disk.own.address())
            .map_err(Error::call("writing to a disk"))?;
        Ok(disk)
    }

    fn transfer(&self, way: Way, address: usize) -> Result<(), Errno> {
        let (file, address) = (self.file.as_raw_fd(), address as *mut libc::c_void);
        // SAFETY: the address is that of a mapping's page, of which no references exist.
        whole(unsafe {
            match way {
                Way::Into => libc::pread(file, address, PAGE, self.offset),
                Way::OutOf => libc::pwrite(file, address, PAGE, self.offset),
            }
        })
    }
}

impl Taker for Disk {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        self.transfer(self.way, address)
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        self.transfer(Way::Into, self.own.address())
            .map_err(Error::call("reading from a disk"))?;
        Ok(Some(crc(&self.own.read(0..PAGE))))
    }
}

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn open() -> Result<Self, Error> {
        let (reader, writer) =
            pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).map_err(Error::call("pipe2"))?;
        Ok(Self { reader, writer })
    }
}

impl Taker for Pipe {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        // SAFETY: the address is that of a mapping's page, of which no references exist.
        whole(unsafe { libc::vmsplice(self.writer.as_raw_fd(), &vector(address), 1, 0) })
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        let mut bytes = vec![0; PAGE];
        match read(&self.reader, &mut bytes) {
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::call("reading a pipe")(errno).into()),
            Ok(length) => Ok(Some(crc(&bytes[..length]))),
        }
    }
}

struct Process {
    way: Way,
    /// The caller's side, shared with a forked caller.
    own: Mapping,
}

impl Process {
    fn open(t: &mut Ctx, way: Way) -> Result<Self, Error> {
        let own = Mapping::shared(memfd(PAGE)?, PAGE, READ_WRITE)?;
        own.write(0, &t.random(PAGE));
        Ok(Self { way, own })
    }
}

impl Taker for Process {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let (own, page) = (vector(self.own.address()), vector(address));
        // SAFETY: both are pages of mappings, of which no references exist. The other process is this one.
        whole(unsafe {
            match self.way {
                Way::Into => libc::process_vm_writev(libc::getpid(), &own, 1, &page, 1, 0),
                Way::OutOf => libc::process_vm_readv(libc::getpid(), &own, 1, &page, 1, 0),
            }
        })
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        Ok(Some(crc(&self.own.read(0..PAGE))))
    }
}

struct Ring {
    ring: IoUring,
    /// The page's address when it was taken, by which the ring still calls it.
    taken: Option<usize>,
}

impl Ring {
    fn open() -> Result<Self, Error> {
        Ok(Self {
            ring: fixed::ring()?,
            taken: None,
        })
    }
}

impl Taker for Ring {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        fixed::register(&self.ring, address, PAGE)?;
        self.taken = Some(address);
        Ok(())
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        let Some(address) = self.taken else {
            return Ok(None);
        };
        let file = memfd(PAGE)?;
        let write =
            opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), address as _, PAGE as u32, 0);
        // SAFETY: the ring reads its own buffer, and the file lives until it is done.
        let full = unsafe { self.ring.submission().push(&write.build()) };
        full.map_err(|_| Error::call("asking a ring")(Errno::EBUSY))?;
        self.ring
            .submit_and_wait(1)
            .map_err(Error::io("waiting for a ring"))?;
        let done = self.ring.completion().next().map(|entry| entry.result());
        whole(done.unwrap_or_default() as libc::ssize_t)
            .map_err(Error::call("writing a ring's buffer to a file"))?;
        let mapping = Mapping::shared(&file, PAGE, READ_WRITE)?;
        Ok(Some(crc(&mapping.read(0..PAGE))))
    }
}

struct Registrar {
    tee: Tee,
    session: Session,
    shm: Option<Shm>,
}

impl Registrar {
    fn open() -> TestResult<Self> {
        let tee = Tee::open()?;
        Ok(Self {
            session: tee.session(pin::UUID)?,
            tee,
            shm: None,
        })
    }
}

impl Taker for Registrar {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        self.shm = Some(self.tee.register(address, PAGE)?);
        Ok(())
    }

    fn seen(&mut self) -> TestResult<Option<u32>> {
        let Some(shm) = &self.shm else {
            return Ok(None);
        };
        let params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
        let reply = self.tee.invoke(self.session, pin::CHECKSUM, params)?;
        let (crc, _, _) = reply.ok("CHECKSUM of registered memory")?.value(1);
        Ok(Some(crc as u32))
    }
}

struct Node {
    m2m: M2m,
    queue: Queue,
    taken: bool,
}

impl Node {
    fn open(memop: Memop, queue: Queue) -> TestResult<Self> {
        let m2m = M2m::copier_on(memop, Image::PAGE)?;
        m2m.request(queue, Memory::Userptr, 1)?;
        Ok(Self {
            m2m,
            queue,
            taken: false,
        })
    }
}

impl Taker for Node {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        self.m2m.node.enqueue(v4l2::Buffer {
            kind: self.queue as u32,
            bytesused: PAGE as u32,
            field: v4l2::FIELD_NONE,
            memory: Memory::Userptr as u32,
            m: address as u64,
            length: PAGE as u32,
            ..Default::default()
        })?;
        self.taken = true;
        Ok(())
    }

    /// On vmalloc the driver alone sees the page.
    fn seen(&mut self) -> TestResult<Option<u32>> {
        if !self.taken || self.m2m.memop == Memop::Vmalloc {
            return Ok(None);
        }
        let handle = self.m2m.handle(self.queue, 0)?;
        Ok(Some(self.m2m.device.checksum(handle, 0, PAGE as u64)?))
    }
}
