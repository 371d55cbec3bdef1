// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's own ioctls, for tests. Everything else it offers is stock V4L2.
//!
//! Once the device is dead (unbound, or reset because it did not do what it was asked) every call fails with ENODEV. What a file
//! holds is freed when the file is closed.
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
/// `_IOWR(IOC_MAGIC, 1, Ballast)` on `/dev/pinbed`: allocate unmovable memory until little is free.
pub const NR_BALLAST: u32 = 1;
/// `_IOWR(IOC_MAGIC, 2, Export)` on `/dev/pinbed`: make a dma-buf of carveout or protected memory; returns its descriptor.
pub const NR_EXPORT: u32 = 2;
/// `_IOWR(IOC_MAGIC, 3, Move)` on `/dev/pinbed`: move or revoke the memory of such a dma-buf.
pub const NR_MOVE: u32 = 3;
/// `_IOWR(IOC_MAGIC, 4, Import)` on `/dev/pinbed`: have the device hold a dma-buf, wherever it is.
pub const NR_IMPORT: u32 = 4;
/// `_IOWR('V', 192, Buffer)` on a video node: the device's side of a V4L2 buffer.
pub const NR_BUFFER: u32 = 192;

/// Largest request or answer of [`Exec`] in bytes.
pub const EXEC_MAX: u32 = 65536;

/// [`NR_EXEC`]. Errors: EPERM without CAP_SYS_RAWIO, since a request may name any memory; EINVAL for a queue that takes no requests,
/// for lengths of zero or beyond [`EXEC_MAX`]. The request is sent as it is: this is how tests speak to the device behind the
/// driver's back.
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

/// [`Export::flags`]: the memory can be moved and revoked ([`NR_MOVE`]), unless an importer pins it.
pub const EXPORT_MOVING: u32 = 1;
/// [`Export::flags`]: the memory does not move, and its mapping is VM_MIXEDMAP with special entries, not VM_PFNMAP.
pub const EXPORT_MIXEDMAP: u32 = 2;
/// [`Export::flags`], with or without those above: importers that do not say that they can do without struct pages (`peer2peer`), as
/// videobuf2 does not, may attach all the same. Vendors' exporters of carveouts do so; the dma-buf documentation forbids it.
pub const EXPORT_ANY_IMPORTER: u32 = 8;
/// [`Export::flags`], alone: the memory is not the carveout's but the kernel's, contiguous and so from CMA where it is longer than a
/// page, and the device holds it as [`crate::wire::ATTACH_PROTECTED`] for as long as the dma-buf lives. The CPU cannot map it. It is
/// what a kernel's own heap for protected memory has, for kernels that have none.
pub const EXPORT_PROTECTED: u32 = 4;

/// Largest [`Export::length`] in bytes: 1 GiB.
pub const EXPORT_MAX: u32 = 0x4000_0000;

/// [`NR_EXPORT`]: the carveout is memory without struct pages, which the driver's parameter `carveout` names. Needs CAP_SYS_ADMIN.
/// Errors: ENODEV without a carveout, ENOMEM when it is full (or when the kernel has no such memory to protect), EINVAL for a length
/// of zero or beyond [`EXPORT_MAX`], or unknown flags.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Export {
    /// In: bytes; the dma-buf has whole pages.
    pub length: u64,
    /// Out: physical address of the memory.
    pub address: u64,
    /// Out: the device's handle of protected memory, else zero.
    pub handle: u64,
    /// In: `EXPORT_…` bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`Move::flags`]: the memory goes away for good.
pub const MOVE_REVOKE: u32 = 1;

/// [`Move::flags`]: the bytes arrive at the new place [`MOVE_FENCE_MS`] ms after the call has returned. A fence of the dma-buf's
/// reservation (DMA_RESV_USAGE_KERNEL) says when, as where a DMA engine copies them.
pub const MOVE_FENCED: u32 = 2;
/// How long [`MOVE_FENCED`] takes, in milliseconds.
pub const MOVE_FENCE_MS: u32 = 200;

/// [`NR_MOVE`]: importers let go of the old place and mappings of it are taken away before this returns; the bytes are at a new
/// place then, or nowhere, and the old place holds other bytes. It waits for
/// all fences of the dma-buf's reservation. Needs CAP_SYS_ADMIN. Errors: EBUSY while an importer pins the memory, ENODEV when it was
/// revoked, EINVAL for a dma-buf without [`EXPORT_MOVING`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Move {
    /// Out: physical address of the new place; zero when revoked.
    pub address: u64,
    /// In: the dma-buf.
    pub fd: u32,
    /// In: `MOVE_…` bits.
    pub flags: u32,
}

/// [`NR_IMPORT`]: imports all of a dma-buf without pinning it, until the file is closed or another one is imported. While the
/// exporter moves it the device holds nothing; asked again, with the same dma-buf and direction, the device holds the new place.
/// It waits for fences that say the bytes are still on their way. Errors: ENODEV for a dma-buf that was revoked, EINVAL for an unknown
/// direction, E2BIG for a dma-buf that exceeds the device's limits.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Import {
    /// Out: the device's handle.
    pub handle: u64,
    /// In: the dma-buf.
    pub fd: u32,
    /// In: `DIRECTION_…`.
    pub direction: u32,
}

/// [`Buffer::flags`]: the device holds the buffer; `handle` is valid.
pub const BUFFER_ATTACHED: u32 = 1;
/// [`Buffer::flags`]: a job used the buffer since it was attached; the job fields are valid.
pub const BUFFER_JOB: u32 = 2;
/// [`Buffer::flags`]: what the device holds is the driver's own memory, to and from which the driver copies with the CPU; the
/// buffer's memory is unknown to the device.
pub const BUFFER_BOUNCE: u32 = 4;

/// [`NR_BUFFER`]. Errors: EINVAL for a type, index or plane that does not exist.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Buffer {
    /// In: the node's `V4L2_BUF_TYPE_VIDEO_OUTPUT…` or `…_CAPTURE…`.
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
    /// In: the plane; all of the above is its.
    pub plane: u32,
}
