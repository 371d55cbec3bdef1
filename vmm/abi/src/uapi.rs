// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's own ioctls, for tests. Everything else it offers is stock V4L2.
//!
//! Host-endian, naturally aligned, without padding. The ioctl type is [`IOC_MAGIC`] on `/dev/pinbed`;
//! [`NR_BUFFER`] is a V4L2 private ioctl (type `V`) on the video nodes.
//!
//! `read(2)` on `/dev/pinbed` returns whole [`crate::wire::Event`]s, oldest first, that came after this open, of
//! which the driver keeps the last 64; it blocks unless O_NONBLOCK, and `poll(2)` works.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// ioctl type on `/dev/pinbed`.
pub const IOC_MAGIC: u32 = 0xb7;
/// `_IOWR(IOC_MAGIC, 0, Exec)` on `/dev/pinbed`: send one raw request and wait for its answer.
pub const NR_EXEC: u32 = 0;
/// `_IOWR(IOC_MAGIC, 1, Ballast)` on `/dev/pinbed`: take memory out of the way.
pub const NR_BALLAST: u32 = 1;
/// `_IOWR('V', 192, Buffer)` on a video node: the device's side of a V4L2 buffer.
pub const NR_BUFFER: u32 = 192;

/// Largest request or answer of [`Exec`] in bytes.
pub const EXEC_MAX: u32 = 65536;

/// [`NR_EXEC`]. Errors: EINVAL for a queue that takes no requests, for lengths of zero or beyond [`EXEC_MAX`]; EIO when the
/// device is broken or gone. The request is sent as it is: this is how tests speak to the device behind the driver's back.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exec {
    /// In: address of the request.
    pub request: u64,
    /// In: address of the room for the answer.
    pub response: u64,
    /// In: length of the request.
    pub request_length: u32,
    /// In: length of the room. Out: bytes that the device answered.
    pub response_length: u32,
    /// In: `QUEUE_CONTROL`, `QUEUE_VIDEO` or `QUEUE_TEE`.
    pub queue: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`NR_BALLAST`]: allocate unmovable memory (GFP_KERNEL, so neither CMA nor ZONE_MOVABLE) until only
/// `leave` bytes of memory outside CMA are free, so that the next movable page comes out of CMA. Held until the
/// file is closed; a second call adds. Needs CAP_SYS_ADMIN.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ballast {
    /// In: free bytes to leave outside CMA.
    pub leave: u64,
    /// Out: bytes this file now holds.
    pub held: u64,
}

/// [`Buffer::flags`]: the device holds the buffer; `handle` is valid.
pub const BUFFER_ATTACHED: u32 = 1;
/// [`Buffer::flags`]: a job used the buffer since it was attached; the job fields are valid.
pub const BUFFER_JOB: u32 = 2;
/// [`Buffer::flags`]: what the device holds is the driver's own memory, to and from which the driver copies with the CPU; the
/// buffer's memory is unknown to the device.
pub const BUFFER_BOUNCE: u32 = 4;

/// [`NR_BUFFER`]. Errors: EINVAL for a type or index that does not exist.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Buffer {
    /// In: `V4L2_BUF_TYPE_VIDEO_OUTPUT` or `…_CAPTURE`.
    pub kind: u32,
    /// In: the buffer's index.
    pub index: u32,
    /// Out: `BUFFER_…` bits.
    pub flags: u32,
    /// Out: `STATUS_…` of the last job that used the buffer.
    pub job_status: u32,
    /// Out: the device's handle.
    pub handle: u64,
    /// Out: the last job's cookie, the same on the buffer it read and the one it wrote.
    pub job_cookie: u64,
    /// Out: bytes the last job moved in this buffer.
    pub job_bytes: u64,
    /// Out: CRC32C of these bytes, as the engine saw them.
    pub job_crc: u32,
    /// Zero.
    pub reserved: u32,
}
