// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The multi-planar V4L2 interface (include/uapi/linux/videodev2.h, x86-64) of pinbed's node that copies NV12M: a plane of luma and one of
//! chroma. As [`super::v4l2`], it keeps no test from sending malformed values.

use super::v4l2::{self, Buffer, FIELD_NONE, Memory, Queue, find_named, ioctls};
use crate::harness::error::Error;
use nix::errno::Errno;
use pinbed_abi::uapi;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The name of the node.
pub const NAME: &str = "pinbed-dma-sg-mplane";
/// Planes of a buffer.
pub const PLANES: usize = 2;
/// `V4L2_PIX_FMT_NV12M`.
pub const NV12M: u32 = u32::from_le_bytes(*b"NM12");

/// `enum v4l2_buf_type` of a queue.
pub const fn kind(queue: Queue) -> u32 {
    match queue {
        Queue::Output => 10,
        Queue::Capture => 9,
    }
}

/// `struct v4l2_plane_pix_format`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct PlanePixFormat {
    pub sizeimage: u32,
    pub bytesperline: u32,
    pub reserved: [u16; 6],
}

/// `struct v4l2_format` with the `pix_mp` member of its union.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct Format {
    pub kind: u32,
    /// The union is aligned to 8 bytes, since some of its members have pointers.
    pub padding: u32,
    pub width: u32,
    pub height: u32,
    pub pixelformat: u32,
    pub field: u32,
    pub colorspace: u32,
    pub plane_fmt: [PlanePixFormat; 8],
    pub num_planes: u8,
    pub flags: u8,
    pub ycbcr_enc: u8,
    pub quantization: u8,
    pub xfer_func: u8,
    pub reserved: [u8; 7],
    pub rest: [u8; 8],
}

/// `struct v4l2_plane`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in videodev2.h")]
pub struct Plane {
    pub bytesused: u32,
    pub length: u32,
    /// `mem_offset`, `userptr` or `fd`.
    pub m: u64,
    pub data_offset: u32,
    pub reserved: [u32; 11],
}

// The others have the same numbers as those of [`super::v4l2`].
mod s_fmt {
    nix::ioctl_readwrite!(s_fmt, b'V', 5, super::Format);
}

/// The node, open.
pub struct Node {
    node: v4l2::Node,
}

impl Node {
    /// Opens the node, without blocking.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            node: v4l2::Node::open_at(&find_named(NAME)?)?,
        })
    }

    /// VIDIOC_S_FMT of NV12M with lines without padding: what the driver made of it.
    pub fn set_format(&self, queue: Queue, width: u32, height: u32) -> Result<Format, Errno> {
        let mut format = Format {
            kind: kind(queue),
            padding: 0,
            width,
            height,
            pixelformat: NV12M,
            field: FIELD_NONE,
            colorspace: 0,
            plane_fmt: [PlanePixFormat::default(); 8],
            num_planes: PLANES as u8,
            flags: 0,
            ycbcr_enc: 0,
            quantization: 0,
            xfer_func: 0,
            reserved: [0; 7],
            rest: [0; 8],
        };
        // SAFETY: the descriptor is open and the argument is the struct that this ioctl reads and fills.
        unsafe { s_fmt::s_fmt(self.as_fd().as_raw_fd(), &mut format) }?;
        Ok(format)
    }

    /// VIDIOC_REQBUFS: how many the driver gave.
    pub fn request(&self, queue: Queue, memory: Memory, count: u32) -> Result<u32, Errno> {
        self.node.request_kind(kind(queue), memory, count)
    }

    /// VIDIOC_QUERYBUF: the planes.
    pub fn query(&self, queue: Queue, index: u32) -> Result<[Plane; PLANES], Errno> {
        let mut planes = [Plane::default(); PLANES];
        let mut buffer = Buffer {
            kind: kind(queue),
            index,
            m: planes.as_mut_ptr() as u64,
            length: PLANES as u32,
            ..Default::default()
        };
        // SAFETY: as in `set_format`; the planes live.
        unsafe { ioctls::querybuf(self.as_fd().as_raw_fd(), &mut buffer) }?;
        Ok(planes)
    }

    /// VIDIOC_QBUF of these planes, with whatever the caller put there.
    pub fn enqueue(
        &self,
        queue: Queue,
        memory: Memory,
        index: u32,
        planes: &[Plane],
    ) -> Result<(), Errno> {
        // The kernel writes them back.
        let mut planes = planes.to_vec();
        let mut buffer = Buffer {
            kind: kind(queue),
            index,
            field: FIELD_NONE,
            memory: memory as u32,
            m: planes.as_mut_ptr() as u64,
            length: planes.len() as u32,
            ..Default::default()
        };
        // SAFETY: as in `set_format`; the planes live. A USERPTR in them lets the device at that memory until the buffer is released;
        // only `Mapping`s, of which no references exist, are handed over.
        unsafe { ioctls::qbuf(self.as_fd().as_raw_fd(), &mut buffer) }.map(drop)
    }

    /// VIDIOC_DQBUF: the buffer and its planes; EAGAIN if none is done.
    pub fn dequeue(
        &self,
        queue: Queue,
        memory: Memory,
    ) -> Result<(Buffer, [Plane; PLANES]), Errno> {
        let mut planes = [Plane::default(); PLANES];
        let mut buffer = Buffer {
            kind: kind(queue),
            memory: memory as u32,
            m: planes.as_mut_ptr() as u64,
            length: PLANES as u32,
            ..Default::default()
        };
        // SAFETY: as in `query`.
        unsafe { ioctls::dqbuf(self.as_fd().as_raw_fd(), &mut buffer) }?;
        Ok((buffer, planes))
    }

    /// VIDIOC_EXPBUF of a plane, for reading and writing.
    pub fn export(&self, queue: Queue, index: u32, plane: u32) -> Result<OwnedFd, Errno> {
        self.node.export_kind(kind(queue), index, plane)
    }

    /// VIDIOC_STREAMON.
    pub fn stream_on(&self, queue: Queue) -> Result<(), Errno> {
        self.node.stream_on_kind(kind(queue))
    }

    /// The device's side of a plane: the driver's own ioctl.
    pub fn report(&self, queue: Queue, index: u32, plane: u32) -> Result<uapi::Buffer, Errno> {
        self.node.report_kind(kind(queue), index, plane)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Plane>(), 64);
        assert_eq!(size_of::<PlanePixFormat>(), 20);
        assert_eq!(size_of::<Format>(), 208);
    }
}
