// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The engine behind the driver's back, through /dev/pinbed.

use crate::harness::error::Error;
use crate::observe::extent::Extent;
use crate::observe::swiotlb;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::read;
use pinbed_abi::{uapi, wire};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The driver's node.
pub const PATH: &str = "/dev/pinbed";

mod ioctls {
    use pinbed_abi::uapi;

    nix::ioctl_readwrite!(exec, uapi::IOC_MAGIC, uapi::NR_EXEC, uapi::Exec);
    nix::ioctl_readwrite!(ballast, uapi::IOC_MAGIC, uapi::NR_BALLAST, uapi::Ballast);
    nix::ioctl_readwrite!(export, uapi::IOC_MAGIC, uapi::NR_EXPORT, uapi::Export);
    nix::ioctl_readwrite!(relocate, uapi::IOC_MAGIC, uapi::NR_MOVE, uapi::Move);
    nix::ioctl_readwrite!(import, uapi::IOC_MAGIC, uapi::NR_IMPORT, uapi::Import);
}

/// An open /dev/pinbed. While it is open the driver cannot be unloaded.
pub struct Device {
    file: OwnedFd,
    /// What was attached behind the driver's back: nobody else ends that.
    attached: Mutex<Vec<u64>>,
}

impl Drop for Device {
    /// Also where a test cannot go on.
    fn drop(&mut self) {
        // The lock ends with this line: detach() takes it, too.
        let left = std::mem::take(&mut *self.attached());
        for handle in left {
            // Refused where the device is gone, and what it held with it.
            let _ = self.detach(handle);
        }
    }
}

/// A buffer that the device holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Held {
    /// The device's name for it.
    pub handle: u64,
    /// Bytes.
    pub length: u64,
    /// `DIRECTION_…`.
    pub direction: u32,
    /// `ATTACH_…`.
    pub flags: u32,
    /// Where it is, as it was attached.
    pub segments: Vec<Extent>,
}

impl Held {
    /// The device is given bounce buffers in the place of the pages.
    ///
    /// # Errors
    /// When the pool of bounce buffers cannot be found.
    pub fn is_bounced(&self) -> Result<bool, Error> {
        swiotlb::holds(&self.segments)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "handle {}: {} bytes, {}",
            self.handle,
            self.length,
            direction_name(self.direction)
        )
    }
}

/// "read", "write" or "read and write", from the device's side.
pub fn direction_name(direction: u32) -> &'static str {
    match direction {
        wire::DIRECTION_READ => "read",
        wire::DIRECTION_WRITE => "write",
        wire::DIRECTION_BOTH => "read and write",
        _ => "no known direction",
    }
}

/// A new cookie at each call, so that an answer or event can be told from any other.
fn cookie() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    (u64::from(std::process::id()) << 32) + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The header of a request.
pub fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        reserved: 0.into(),
        cookie: cookie().into(),
    }
}

impl Device {
    /// Opens /dev/pinbed.
    pub fn open() -> Result<Self, Error> {
        Self::open_at(PATH)
    }

    /// Opens the node of any device.
    pub fn open_at(path: &str) -> Result<Self, Error> {
        let file = open(
            path,
            OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(Error::call(format!("opening {path}")))?;
        Ok(Self {
            file,
            attached: Mutex::default(),
        })
    }

    fn attached(&self) -> MutexGuard<'_, Vec<u64>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and returns the answer's fixed part and what follows it, at most `more` bytes.
    pub fn ask<Q, A>(&self, queue: u32, request: &Q, more: usize) -> Result<(A, Vec<u8>), Error>
    where
        Q: IntoBytes + Immutable,
        A: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let mut answer = vec![0; size_of::<A>() + more];
        let mut exec = uapi::Exec {
            request: request.as_bytes().as_ptr() as u64,
            response: answer.as_mut_ptr() as u64,
            request_length: size_of_val(request) as u32,
            response_length: answer.len() as u32,
            queue,
            reserved: 0,
        };
        // SAFETY: the descriptor is open; the argument points at a live request and at room for the answer, with their lengths.
        unsafe { ioctls::exec(self.file.as_raw_fd(), &mut exec) }
            .map_err(Error::call("sending a request to the device"))?;
        answer.truncate(exec.response_length as usize);
        match A::read_from_prefix(&answer) {
            Ok((fixed, rest)) => Ok((fixed, rest.to_vec())),
            Err(_) => Err(Error::Format {
                source_name: "the device".into(),
                text: format!(
                    "{} bytes where {} were expected",
                    answer.len(),
                    size_of::<A>()
                ),
            }),
        }
    }

    /// OP_STATUS.
    pub fn status(&self) -> Result<wire::StatusResponse, Error> {
        let (status, _): (wire::StatusResponse, _) =
            self.ask(wire::QUEUE_CONTROL, &header(wire::OP_STATUS), 0)?;
        ok("STATUS", &status.header)?;
        Ok(status)
    }

    /// One buffer by handle, or `None` if the device does not hold it.
    pub fn query(&self, handle: u64) -> Result<Option<Held>, Error> {
        self.query_with(handle, 0)
    }

    /// All buffers that the device holds.
    pub fn list(&self) -> Result<Vec<Held>, Error> {
        let mut all = Vec::new();
        let mut last = 0;
        while let Some(held) = self.query_with(last, wire::QUERY_NEXT)? {
            last = held.handle;
            all.push(held);
        }
        Ok(all)
    }

    fn query_with(&self, handle: u64, flags: u32) -> Result<Option<Held>, Error> {
        let mut held: Option<Held> = None;
        loop {
            let already = held.as_ref().map_or(0, |held| held.segments.len());
            let request = wire::QueryRequest {
                header: header(wire::OP_QUERY),
                handle: held.as_ref().map_or(handle, |held| held.handle).into(),
                flags: if held.is_some() { 0 } else { flags }.into(),
                first_segment: (already as u32).into(),
            };
            let room = wire::QUEUE_SIZE as usize * size_of::<wire::Segment>();
            let (answer, rest): (wire::QueryResponse, _) =
                self.ask(wire::QUEUE_CONTROL, &request, room)?;
            if answer.header.status == wire::STATUS_NO_BUFFER {
                return Ok(None);
            }
            ok("QUERY", &answer.header)?;
            let held = held.get_or_insert_with(|| Held {
                handle: answer.handle.get(),
                length: answer.length.get(),
                direction: answer.direction.get(),
                flags: answer.flags.get(),
                segments: Vec::new(),
            });
            let segments = <[wire::Segment]>::ref_from_bytes(
                &rest[..rest.len() / size_of::<wire::Segment>() * size_of::<wire::Segment>()],
            )
            .unwrap_or_default();
            held.segments.extend(
                segments
                    .iter()
                    .take(answer.returned.get() as usize)
                    .map(Extent::from),
            );
            if held.segments.len() >= answer.segment_count.get() as usize || answer.returned == 0 {
                return Ok(Some(held.clone()));
            }
        }
    }

    /// OP_CHECKSUM: the CRC32C of what the device sees there now.
    pub fn checksum(&self, handle: u64, offset: u64, length: u64) -> Result<u32, Error> {
        let request = wire::ChecksumRequest {
            header: header(wire::OP_CHECKSUM),
            range: range(handle, offset, length),
        };
        let (answer, _): (wire::ChecksumResponse, _) =
            self.ask(wire::QUEUE_CONTROL, &request, 0)?;
        ok("CHECKSUM", &answer.header)?;
        Ok(answer.crc.get())
    }

    /// A raw job on the video queue. The answer is the caller's to judge.
    pub fn job(&self, request: &wire::JobRequest) -> Result<wire::JobResponse, Error> {
        Ok(self.ask(wire::QUEUE_VIDEO, request, 0)?.0)
    }

    /// OP_INJECT.
    pub fn inject(&self, kind: u32, count: u32, argument: u64) -> Result<(), Error> {
        let request = wire::InjectRequest {
            header: header(wire::OP_INJECT),
            kind: kind.into(),
            count: count.into(),
            argument: argument.into(),
        };
        let (answer, _): (wire::ResponseHeader, _) = self.ask(wire::QUEUE_CONTROL, &request, 0)?;
        ok("INJECT", &answer)
    }

    /// Takes memory out of the way until `leave` bytes outside CMA are free. Held until this is dropped.
    pub fn ballast(&self, leave: u64) -> Result<u64, Error> {
        let mut ballast = uapi::Ballast { leave, held: 0 };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
        unsafe { ioctls::ballast(self.file.as_raw_fd(), &mut ballast) }
            .map_err(Error::call("taking ballast"))?;
        Ok(ballast.held)
    }

    /// A dma-buf of carveout memory, and its physical address; `flags` are `EXPORT_…`.
    pub fn export(&self, length: usize, flags: u32) -> Result<(OwnedFd, u64), Error> {
        match self.try_export(length, flags) {
            Ok((fd, export)) => Ok((fd, export.address)),
            Err(Errno::ENODEV) => Err(Error::Absent {
                what: "a carveout".into(),
                remedy: "boot with memmap=4M$256M pinbed.carveout=4M@256M".into(),
            }),
            Err(errno) => Err(Error::call(format!("exporting {length} bytes"))(errno)),
        }
    }

    /// A dma-buf of the driver's own, and what the driver says of it.
    pub fn try_export(&self, length: usize, flags: u32) -> Result<(OwnedFd, uapi::Export), Errno> {
        let mut export = uapi::Export {
            length: length as u64,
            flags,
            ..Default::default()
        };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
        let fd = unsafe { ioctls::export(self.file.as_raw_fd(), &mut export) }?;
        // SAFETY: the kernel has just given us this descriptor.
        Ok((unsafe { OwnedFd::from_raw_fd(fd) }, export))
    }

    /// Moves the memory of an export, or revokes it; `flags` are `MOVE_…`. Returns its new physical address.
    pub fn relocate(&self, buffer: impl AsFd, flags: u32) -> Result<u64, Errno> {
        let mut relocate = uapi::Move {
            fd: buffer.as_fd().as_raw_fd() as u32,
            flags,
            address: 0,
        };
        // SAFETY: as in `export`.
        unsafe { ioctls::relocate(self.file.as_raw_fd(), &mut relocate) }?;
        Ok(relocate.address)
    }

    /// Has the device hold a dma-buf where it is now, and follow it: one for each [`Device`]. Returns the handle.
    pub fn import(&self, buffer: impl AsFd, direction: u32) -> Result<u64, Errno> {
        let mut import = uapi::Import {
            fd: buffer.as_fd().as_raw_fd() as u32,
            direction,
            handle: 0,
        };
        // SAFETY: as in `export`.
        unsafe { ioctls::import(self.file.as_raw_fd(), &mut import) }?;
        Ok(import.handle)
    }

    /// OP_ATTACH of physical memory behind the driver's back, which nothing keeps in place, until [`Device::detach`] or the end of this.
    /// Returns the handle.
    pub fn attach_frames(&self, direction: u32, at: Extent) -> Result<u64, Error> {
        #[derive(IntoBytes, Immutable)]
        #[repr(C)]
        struct Request {
            attach: wire::AttachRequest,
            segment: wire::Segment,
        }
        let request = Request {
            attach: wire::AttachRequest {
                header: header(wire::OP_ATTACH),
                direction: direction.into(),
                segment_count: 1.into(),
                length: at.length.into(),
                ..Default::default()
            },
            segment: wire::Segment {
                address: at.address.into(),
                length: at.length.into(),
            },
        };
        let (answer, _): (wire::AttachResponse, _) = self.ask(wire::QUEUE_CONTROL, &request, 0)?;
        ok("ATTACH", &answer.header)?;
        self.attached().push(answer.handle.get());
        Ok(answer.handle.get())
    }

    /// OP_DETACH behind the driver's back.
    pub fn detach(&self, handle: u64) -> Result<(), Error> {
        self.attached().retain(|it| *it != handle);
        let request = wire::DetachRequest {
            header: header(wire::OP_DETACH),
            handle: handle.into(),
        };
        let (answer, _): (wire::ResponseHeader, _) = self.ask(wire::QUEUE_CONTROL, &request, 0)?;
        ok("DETACH", &answer)
    }

    /// The oldest event since this was opened that was not read yet, waiting for one at most so long.
    pub fn next_event(&self, timeout_ms: u16) -> Result<Option<wire::Event>, Error> {
        let mut set = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        poll(&mut set, PollTimeout::from(timeout_ms))
            .map_err(Error::call(format!("poll of {PATH}")))?;
        let mut bytes = [0; size_of::<wire::Event>()];
        match read(&self.file, &mut bytes) {
            Ok(length) if length == bytes.len() => Ok(wire::Event::read_from_bytes(&bytes).ok()),
            Ok(length) => Err(Error::Format {
                source_name: PATH.into(),
                text: format!("{length} bytes as an event"),
            }),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::call(format!("reading {PATH}"))(errno)),
        }
    }
}

/// A piece of a buffer, for requests.
pub fn range(handle: u64, offset: u64, length: u64) -> wire::Range {
    wire::Range {
        handle: handle.into(),
        offset: offset.into(),
        length: length.into(),
    }
}

/// A COPY of `length` bytes.
pub fn copy(src: u64, dst: u64, length: u64) -> wire::JobRequest {
    wire::JobRequest {
        header: header(wire::OP_COPY),
        src: range(src, 0, length),
        dst: range(dst, 0, length),
        ..Default::default()
    }
}

fn ok(operation: &'static str, header: &wire::ResponseHeader) -> Result<(), Error> {
    match header.status.get() {
        wire::STATUS_OK => Ok(()),
        status => Err(Error::Device { operation, status }),
    }
}
