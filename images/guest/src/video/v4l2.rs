// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The V4L2 interface as the kernel has it (include/uapi/linux/videodev2.h, x86-64), single-planar, and nothing that would keep a
//! test from sending malformed values. Errors are errnos, since they are what tests judge.

use crate::harness::error::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use pinbed_abi::uapi;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `enum v4l2_buf_type`, as far as a mem2mem node has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The device reads.
    Output = 2,
    /// The device writes.
    Capture = 1,
}

impl Queue {
    /// The one at the device's other side.
    pub fn other(self) -> Self {
        match self {
            Self::Output => Self::Capture,
            Self::Capture => Self::Output,
        }
    }
}

/// `enum v4l2_memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The driver's own.
    Mmap = 1,
    /// The process's.
    Userptr = 2,
    /// Another driver's.
    Dmabuf = 4,
}

/// `V4L2_BUF_FLAG_QUEUED`.
pub const FLAG_QUEUED: u32 = 0x2;
/// `V4L2_BUF_FLAG_DONE`.
pub const FLAG_DONE: u32 = 0x4;
/// `V4L2_BUF_FLAG_ERROR`.
pub const FLAG_ERROR: u32 = 0x40;
/// `V4L2_PIX_FMT_PRIV_MAGIC`: [`PixFormat`]'s members after `private` mean something.
pub const PIX_FMT_PRIV_MAGIC: u32 = 0xfeed_cafe;
/// `V4L2_PIX_FMT_FLAG_SET_CSC`
pub const PIX_FMT_FLAG_SET_CSC: u32 = 2;
/// `V4L2_COLORSPACE_…`
pub const COLORSPACE_SMPTE170M: u32 = 1;
/// `V4L2_COLORSPACE_…`
pub const COLORSPACE_REC709: u32 = 3;
/// `V4L2_COLORSPACE_…`
pub const COLORSPACE_JPEG: u32 = 7;
/// `V4L2_COLORSPACE_…`
pub const COLORSPACE_SRGB: u32 = 8;
/// `V4L2_YCBCR_ENC_…`
pub const YCBCR_ENC_601: u32 = 1;
/// `V4L2_YCBCR_ENC_…`
pub const YCBCR_ENC_709: u32 = 2;
/// `V4L2_YCBCR_ENC_…`
pub const YCBCR_ENC_BT2020: u32 = 6;
/// `V4L2_QUANTIZATION_…`
pub const QUANTIZATION_FULL_RANGE: u32 = 1;
/// `V4L2_QUANTIZATION_…`
pub const QUANTIZATION_LIM_RANGE: u32 = 2;
/// `V4L2_FIELD_NONE`.
pub const FIELD_NONE: u32 = 1;

/// `struct v4l2_capability`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct Capability {
    pub driver: [u8; 16],
    pub card: [u8; 32],
    pub bus_info: [u8; 32],
    pub version: u32,
    pub capabilities: u32,
    pub device_caps: u32,
    pub reserved: [u32; 3],
}

/// `struct v4l2_pix_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct PixFormat {
    pub width: u32,
    pub height: u32,
    pub pixelformat: u32,
    pub field: u32,
    pub bytesperline: u32,
    pub sizeimage: u32,
    pub colorspace: u32,
    pub private: u32,
    pub flags: u32,
    pub ycbcr_enc: u32,
    pub quantization: u32,
    pub xfer_func: u32,
}

/// `struct v4l2_format` with the `pix` member of its union.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct Format {
    pub kind: u32,
    /// The union is aligned to 8 bytes, since some of its members have pointers.
    pub padding: u32,
    pub pix: PixFormat,
    pub rest: [u8; 200 - size_of::<PixFormat>()],
}

/// `struct v4l2_requestbuffers`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct RequestBuffers {
    pub count: u32,
    pub kind: u32,
    pub memory: u32,
    pub capabilities: u32,
    pub flags: u8,
    pub reserved: [u8; 3],
}

/// `struct v4l2_buffer`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct Buffer {
    pub index: u32,
    pub kind: u32,
    pub bytesused: u32,
    pub flags: u32,
    pub field: u32,
    pub padding: u32,
    pub timestamp: [i64; 2],
    pub timecode: [u32; 4],
    pub sequence: u32,
    pub memory: u32,
    /// `offset`, `userptr` or `fd`, depending on `memory`.
    pub m: u64,
    pub length: u32,
    pub reserved2: u32,
    pub request_fd: i32,
    pub padding2: u32,
}

/// `struct v4l2_exportbuffer`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct ExportBuffer {
    pub kind: u32,
    pub index: u32,
    pub plane: u32,
    pub flags: u32,
    pub fd: i32,
    pub reserved: [u32; 11],
}

pub(super) mod ioctls {
    use super::{Buffer, Capability, ExportBuffer, Format, RequestBuffers};
    use pinbed_abi::uapi;

    nix::ioctl_read!(querycap, b'V', 0, Capability);
    nix::ioctl_readwrite!(g_fmt, b'V', 4, Format);
    nix::ioctl_readwrite!(s_fmt, b'V', 5, Format);
    nix::ioctl_readwrite!(reqbufs, b'V', 8, RequestBuffers);
    nix::ioctl_readwrite!(querybuf, b'V', 9, Buffer);
    nix::ioctl_readwrite!(qbuf, b'V', 15, Buffer);
    nix::ioctl_readwrite!(expbuf, b'V', 16, ExportBuffer);
    nix::ioctl_readwrite!(dqbuf, b'V', 17, Buffer);
    nix::ioctl_write_ptr!(streamon, b'V', 18, i32);
    nix::ioctl_write_ptr!(streamoff, b'V', 19, i32);
    nix::ioctl_readwrite!(report, b'V', uapi::NR_BUFFER, uapi::Buffer);
}

/// An open video node. Opened without blocking, so that a job that never ends is the test's to judge.
pub struct Node {
    file: OwnedFd,
}

/// How videobuf2 gets at the memory of a node's buffers (drivers/media/common/videobuf2). The driver has a node for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memop {
    /// vb2-dma-sg: the device is given any pages.
    DmaSg,
    /// vb2-dma-contig: the device is given one contiguous piece.
    DmaContig,
    /// vb2-vmalloc: the driver copies with the CPU, between the buffer and memory of its own that the device is given.
    Vmalloc,
}

impl Memop {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DmaSg, Self::DmaContig, Self::Vmalloc];

    /// The name of its node.
    pub fn node(self) -> String {
        self.node_of("pinbed")
    }

    /// The same, of the device whose nodes' names begin so.
    fn node_of(self, device: &str) -> String {
        let name = match self {
            Self::DmaSg => "dma-sg",
            Self::DmaContig => "dma-contig",
            Self::Vmalloc => "vmalloc",
        };
        format!("{device}-{name}")
    }
}

/// The node that pinbed's driver offers for a memop, wherever the kernel put it among others.
pub fn find(memop: Memop) -> Result<PathBuf, Error> {
    find_of("pinbed", memop)
}

/// The same, of the device whose nodes' names begin so.
pub fn find_of(device: &str, memop: Memop) -> Result<PathBuf, Error> {
    find_named(&memop.node_of(device))
}

/// The video node of this name, wherever the kernel put it among others.
pub fn find_named(wanted: &str) -> Result<PathBuf, Error> {
    for entry in std::fs::read_dir("/sys/class/video4linux")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == wanted {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(Error::Call {
        what: format!("looking for the video node named {wanted} in /sys/class/video4linux"),
        errno: Errno::ENOENT,
    })
}

impl Node {
    /// Opens pinbed's node for a memop.
    pub fn open(memop: Memop) -> Result<Self, Error> {
        Self::open_at(&find(memop)?)
    }

    /// Opens a video node by another name.
    pub fn open_at(path: &Path) -> Result<Self, Error> {
        let file = open(
            path,
            OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(Error::call(format!("opening {}", path.display())))?;
        Ok(Self { file })
    }

    /// VIDIOC_QUERYCAP.
    pub fn capability(&self) -> Result<Capability, Errno> {
        let mut capability = Capability {
            driver: [0; 16],
            card: [0; 32],
            bus_info: [0; 32],
            version: 0,
            capabilities: 0,
            device_caps: 0,
            reserved: [0; 3],
        };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl fills.
        unsafe { ioctls::querycap(self.file.as_raw_fd(), &mut capability) }?;
        Ok(capability)
    }

    /// VIDIOC_S_FMT: what the driver made of it.
    pub fn set_format(&self, queue: Queue, pix: PixFormat) -> Result<PixFormat, Errno> {
        let mut format = Format {
            kind: queue as u32,
            padding: 0,
            pix,
            rest: [0; _],
        };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
        unsafe { ioctls::s_fmt(self.file.as_raw_fd(), &mut format) }?;
        Ok(format.pix)
    }

    /// VIDIOC_G_FMT.
    pub fn format(&self, queue: Queue) -> Result<PixFormat, Errno> {
        let mut format = Format {
            kind: queue as u32,
            padding: 0,
            pix: PixFormat::default(),
            rest: [0; _],
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::g_fmt(self.file.as_raw_fd(), &mut format) }?;
        Ok(format.pix)
    }

    /// VIDIOC_REQBUFS: how many the driver gave.
    pub fn request(&self, queue: Queue, memory: Memory, count: u32) -> Result<u32, Errno> {
        self.request_kind(queue as u32, memory, count)
    }

    /// As [`Node::request`], by `enum v4l2_buf_type`.
    pub(super) fn request_kind(&self, kind: u32, memory: Memory, count: u32) -> Result<u32, Errno> {
        let mut request = RequestBuffers {
            count,
            kind,
            memory: memory as u32,
            ..Default::default()
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::reqbufs(self.file.as_raw_fd(), &mut request) }?;
        Ok(request.count)
    }

    /// VIDIOC_QUERYBUF.
    pub fn query(&self, queue: Queue, index: u32) -> Result<Buffer, Errno> {
        let mut buffer = Buffer {
            kind: queue as u32,
            index,
            ..Default::default()
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::querybuf(self.file.as_raw_fd(), &mut buffer) }?;
        Ok(buffer)
    }

    /// VIDIOC_QBUF, with whatever the caller put there.
    pub fn enqueue(&self, mut buffer: Buffer) -> Result<(), Errno> {
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads. A USERPTR in it lets the device read
        // or write that memory until the buffer is released; only `Mapping`s, of which no references exist, are handed over.
        unsafe { ioctls::qbuf(self.file.as_raw_fd(), &mut buffer) }.map(drop)
    }

    /// VIDIOC_DQBUF; EAGAIN if no buffer is done.
    pub fn dequeue(&self, queue: Queue, memory: Memory) -> Result<Buffer, Errno> {
        let mut buffer = Buffer {
            kind: queue as u32,
            memory: memory as u32,
            ..Default::default()
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::dqbuf(self.file.as_raw_fd(), &mut buffer) }?;
        Ok(buffer)
    }

    /// VIDIOC_EXPBUF, for reading and writing.
    pub fn export(&self, queue: Queue, index: u32) -> Result<OwnedFd, Errno> {
        self.export_kind(queue as u32, index, 0)
    }

    /// As [`Node::export`], by `enum v4l2_buf_type`, of one of several planes.
    pub(super) fn export_kind(&self, kind: u32, index: u32, plane: u32) -> Result<OwnedFd, Errno> {
        let flags = (libc::O_CLOEXEC | libc::O_RDWR) as u32;
        let mut export = ExportBuffer {
            kind,
            index,
            plane,
            flags,
            ..Default::default()
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::expbuf(self.file.as_raw_fd(), &mut export) }?;
        // SAFETY: the kernel has just given us this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
    }

    /// VIDIOC_STREAMON.
    pub fn stream_on(&self, queue: Queue) -> Result<(), Errno> {
        self.stream_on_kind(queue as u32)
    }

    /// As [`Node::stream_on`], by `enum v4l2_buf_type`.
    pub(super) fn stream_on_kind(&self, kind: u32) -> Result<(), Errno> {
        // SAFETY: the descriptor is open and the argument an int that this ioctl reads.
        unsafe { ioctls::streamon(self.file.as_raw_fd(), &(kind as i32)) }.map(drop)
    }

    /// VIDIOC_STREAMOFF.
    pub fn stream_off(&self, queue: Queue) -> Result<(), Errno> {
        // SAFETY: as in `stream_on`.
        unsafe { ioctls::streamoff(self.file.as_raw_fd(), &(queue as i32)) }.map(drop)
    }

    /// The device's side of a buffer: the driver's own ioctl.
    pub fn report(&self, queue: Queue, index: u32) -> Result<uapi::Buffer, Errno> {
        self.report_kind(queue as u32, index, 0)
    }

    /// As [`Node::report`], by `enum v4l2_buf_type`, of one of several planes.
    pub(super) fn report_kind(
        &self,
        kind: u32,
        index: u32,
        plane: u32,
    ) -> Result<uapi::Buffer, Errno> {
        let mut report = uapi::Buffer {
            kind,
            index,
            plane,
            ..Default::default()
        };
        // SAFETY: as in `set_format`.
        unsafe { ioctls::report(self.file.as_raw_fd(), &mut report) }?;
        Ok(report)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{request_code_read, request_code_readwrite};

    /// The numbers are what `strace -e raw=ioctl` shows for a C program: they hold the direction, size, type and number.
    #[test]
    fn sizes_are_those_in_the_ioctl_numbers() {
        assert_eq!(
            request_code_read!(b'V', 0, size_of::<Capability>()),
            0x8068_5600
        );
        assert_eq!(
            request_code_readwrite!(b'V', 5, size_of::<Format>()),
            0xc0d0_5605
        );
        assert_eq!(
            request_code_readwrite!(b'V', 8, size_of::<RequestBuffers>()),
            0xc014_5608
        );
        assert_eq!(
            request_code_readwrite!(b'V', 9, size_of::<Buffer>()),
            0xc058_5609
        );
        assert_eq!(
            request_code_readwrite!(b'V', 15, size_of::<Buffer>()),
            0xc058_560f
        );
        assert_eq!(
            request_code_readwrite!(b'V', 16, size_of::<ExportBuffer>()),
            0xc040_5610
        );
    }

    #[test]
    fn the_unions_are_where_the_kernel_has_them() {
        assert_eq!(std::mem::offset_of!(Format, pix), 8);
        assert_eq!(std::mem::offset_of!(Buffer, m), 64);
        assert_eq!(std::mem::offset_of!(Buffer, request_fd), 80);
    }
}
