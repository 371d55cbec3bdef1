// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device's wire format.
//!
//! The device is a virtio 1.x device with split rings and four queues. On the control, video and TEE queues a descriptor
//! chain is one request: device-readable bytes that begin with a [`RequestHeader`], followed by device-writable room for
//! an answer that begins with a [`ResponseHeader`]. On the event queue the driver posts device-writable buffers of
//! `size_of::<Event>()` bytes and the device fills one for each event.
//!
//! All integers are little-endian; sizes and offsets are in bytes; addresses are DMA addresses as the driver got them
//! from the kernel's DMA API (guest-physical addresses where no IOMMU translates).
//!
//! The device *holds on* to memory: [`AttachRequest`] hands it a scatterlist which it keeps until [`DetachRequest`]. Jobs
//! name attached buffers by handle, never raw addresses. A handle is never given out twice, so a stale one cannot alias
//! a newer buffer. An access to something that is not attached, out of bounds, against the buffer's direction, or not
//! backed by guest memory moves no byte there: the answer says [`STATUS_DMA_FAULT`] with a [`Fault`], and the same fault is
//! sent as an event.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Virtio device id. 21 has a name in QEMU's table (else QEMU aborts) and no driver in Linux claims it.
pub const VIRTIO_ID: u32 = 21;
/// Value of [`Config::magic`]: "PINB".
pub const MAGIC: u32 = 0x424e_4950;
/// Value of [`Config::version`]; a driver refuses a device of another version. It goes up whenever a structure changes its size or
/// meaning.
pub const VERSION: u32 = 2;

/// Feature bit: the device has a TEE, and serves [`QUEUE_TEE`].
pub const F_TEE: u32 = 0;
/// Feature bit: the device protects memory ([`ATTACH_PROTECTED`]).
pub const F_PROTECTED: u32 = 1;
/// Feature bit: the device misbehaves when asked to ([`OP_INJECT`]). Offered only where the host allows it.
pub const F_SABOTAGE: u32 = 2;

/// Queue on which buffers are attached and detached, and the device is asked about itself.
pub const QUEUE_CONTROL: u32 = 0;
/// Queue of video jobs.
pub const QUEUE_VIDEO: u32 = 1;
/// Queue of TEE calls.
pub const QUEUE_TEE: u32 = 2;
/// Queue of device events.
pub const QUEUE_EVENT: u32 = 3;
/// Number of queues.
pub const QUEUE_COUNT: u32 = 4;
/// Descriptors in each queue. An ATTACH takes one for each page of its scatterlist, so this bounds its length.
pub const QUEUE_SIZE: u32 = 1024;

/// Control: what does the device hold? [`RequestHeader`] → [`StatusResponse`].
pub const OP_STATUS: u32 = 0x0100;
/// Control: hold this scatterlist. [`AttachRequest`] + [`Segment`]s → [`AttachResponse`].
pub const OP_ATTACH: u32 = 0x0101;
/// Control: let go of it. [`DetachRequest`] → [`ResponseHeader`].
pub const OP_DETACH: u32 = 0x0102;
/// Control: describe an attached buffer. [`QueryRequest`] → [`QueryResponse`] + [`Segment`]s.
pub const OP_QUERY: u32 = 0x0103;
/// Control: CRC32C of an attached buffer as the device sees it now. [`ChecksumRequest`] → [`ChecksumResponse`].
pub const OP_CHECKSUM: u32 = 0x0104;
/// Control: misbehave on purpose; [`STATUS_UNSUPPORTED`] without [`F_SABOTAGE`]. [`InjectRequest`] → [`ResponseHeader`].
pub const OP_INJECT: u32 = 0x0105;
/// Video: copy `src` to `dst`, byte for byte. [`JobRequest`] → [`JobResponse`] + [`Segment`]s.
pub const OP_COPY: u32 = 0x0200;
/// Video: fill `dst` with the four bytes of [`JobRequest::pattern`], in memory order. Answers as [`OP_COPY`].
pub const OP_FILL: u32 = 0x0201;
/// Video: convert the image in `src` to the pixel format, encoding and quantization of `dst` (equal width and height).
/// Answers as [`OP_COPY`]. Two formats other than RGB have the same encoding, else [`STATUS_INVALID`].
///
/// Between formats other than RGB with equal quantization, luma is moved unchanged; chroma is moved, repeated for two lines,
/// averaged over two lines and rounded up, or 128 where the source is GREY. Between quantizations, luma and chroma are
/// rounded to the nearest value.
///
/// From RGB, luma and chroma differ from the encoding's formula by at most 2; chroma is that of the mean of the pixels that
/// share it. To RGB, a channel differs by at most 4; luma below black (16 in limited range) may count as black. How it is
/// rounded within that is the implementation's choice, and [`JobResponse::dst_crc`] is that of the bytes it wrote.
pub const OP_CONVERT: u32 = 0x0202;

/// Done.
pub const STATUS_OK: u32 = 0;
/// The device does not know this operation, or does not have it yet.
pub const STATUS_UNSUPPORTED: u32 = 1;
/// The request is too short, too long, or contradicts itself.
pub const STATUS_INVALID: u32 = 2;
/// No buffer has this handle (control operations; a job with such a handle is a DMA fault).
pub const STATUS_NO_BUFFER: u32 = 3;
/// An access missed what is attached; see [`Fault`].
pub const STATUS_DMA_FAULT: u32 = 4;
/// A limit of [`Config`] would be exceeded.
pub const STATUS_LIMIT: u32 = 5;
/// The engine failed (today: because [`INJECT_FAIL`] asked it to).
pub const STATUS_ERROR: u32 = 6;

/// [`AttachRequest::direction`]: the device reads the buffer (V4L2 OUTPUT, `DMA_TO_DEVICE`).
pub const DIRECTION_READ: u32 = 1;
/// [`AttachRequest::direction`]: the device writes the buffer (V4L2 CAPTURE, `DMA_FROM_DEVICE`).
pub const DIRECTION_WRITE: u32 = 2;
/// [`AttachRequest::direction`]: both (`DMA_BIDIRECTIONAL`).
pub const DIRECTION_BOTH: u32 = 3;

/// [`Fault::reason`]: no fault.
pub const FAULT_NONE: u32 = 0;
/// [`Fault::reason`]: the handle names nothing that is attached (never was, or is detached).
pub const FAULT_NOT_ATTACHED: u32 = 1;
/// [`Fault::reason`]: offset + length goes past the buffer's end.
pub const FAULT_OUT_OF_BOUNDS: u32 = 2;
/// [`Fault::reason`]: the buffer's direction forbids the access.
pub const FAULT_PERMISSION: u32 = 3;
/// [`Fault::reason`]: a segment's address is not guest memory.
pub const FAULT_NO_MEMORY: u32 = 4;
/// [`Fault::reason`]: the memory is protected ([`ATTACH_PROTECTED`]) from whoever asked.
pub const FAULT_PROTECTED: u32 = 5;
/// [`Fault::reason`]: what was to be written may go to protected memory only, and this is not.
pub const FAULT_NOT_PROTECTED: u32 = 6;

/// [`Format::quantization`]: full range, `V4L2_QUANTIZATION_FULL_RANGE`. RGB always has it.
pub const QUANTIZATION_FULL: u32 = 1;
/// [`Format::quantization`]: limited range, `V4L2_QUANTIZATION_LIM_RANGE`: luma 16 to 235, chroma 16 to 240.
pub const QUANTIZATION_LIMITED: u32 = 2;
/// [`Format::encoding`]: RGB has no Y'CbCr encoding.
pub const ENCODING_NONE: u32 = 0;
/// [`Format::encoding`]: ITU-R BT.601, `V4L2_YCBCR_ENC_601`.
pub const ENCODING_BT601: u32 = 1;
/// [`Format::encoding`]: ITU-R BT.709, `V4L2_YCBCR_ENC_709`.
pub const ENCODING_BT709: u32 = 2;
/// [`Format::encoding`]: ITU-R BT.2020, not constant luminance, `V4L2_YCBCR_ENC_BT2020`.
pub const ENCODING_BT2020: u32 = 6;
/// [`Format::encoding`]: SMPTE 240M, `V4L2_YCBCR_ENC_SMPTE240M`.
pub const ENCODING_SMPTE240M: u32 = 8;

/// [`AttachRequest::flags`]: from now on, and until DETACH, the memory is the TEE's, whichever buffer names it. The first
/// session that accesses it of a trusted application with the right to protected memory owns it for as long as the session lives;
/// the video engine accesses it as far as the owner allows; all other accesses are a [`FAULT_PROTECTED`], [`OP_CHECKSUM`] too.
/// What the device writes there stands in memory encrypted, with a random key for each attachment and owner, so that the
/// CPU cannot read it; what stood there before reads as garbage. Memory that is protected already cannot be protected again
/// ([`STATUS_INVALID`]).
pub const ATTACH_PROTECTED: u32 = 1;

/// [`QueryRequest::flags`]: describe the attached buffer with the smallest handle that is greater than
/// [`QueryRequest::handle`], so that a loop from 0 lists all; [`STATUS_NO_BUFFER`] ends the list.
pub const QUERY_NEXT: u32 = 1;

/// [`InjectRequest::kind`]: take everything injected back.
pub const INJECT_NONE: u32 = 0;
/// [`InjectRequest::kind`]: a video job starts `argument` microseconds (at most 10,000,000) late; the control queue goes on meanwhile.
pub const INJECT_DELAY: u32 = 1;
/// [`InjectRequest::kind`]: a video job moves nothing and answers [`STATUS_ERROR`].
pub const INJECT_FAIL: u32 = 2;
/// [`InjectRequest::kind`]: the device process aborts at the next video job, as broken hardware falls off the bus.
pub const INJECT_DIE: u32 = 3;
/// [`InjectRequest::kind`]: a DETACH answers [`STATUS_ERROR`], and the device goes on holding the buffer.
pub const INJECT_KEEP: u32 = 4;
/// [`InjectRequest::kind`]: after this request the device takes requests and answers none, until it is reset. Any count but zero
/// will do.
pub const INJECT_SILENCE: u32 = 5;
/// [`InjectRequest::kind`]: a video job is carried out, and never answered.
pub const INJECT_LOSE: u32 = 6;
/// [`InjectRequest::kind`]: a video job is answered twice.
pub const INJECT_TWICE: u32 = 7;
/// [`InjectRequest::kind`]: a video job is answered after the next one.
pub const INJECT_REORDER: u32 = 8;
/// [`InjectRequest::kind`]: a COPY or FILL moves the first half of its bytes, says so, and answers [`STATUS_OK`].
pub const INJECT_SHORT: u32 = 9;
/// [`InjectRequest::kind`]: a video job is carried out and answered with status `argument`.
pub const INJECT_STATUS: u32 = 10;
/// [`InjectRequest::kind`]: a COPY writes `argument` bytes (at most 1 MiB) behind where it is to write, whether that is attached or not,
/// and answers as if it had not.
pub const INJECT_ASTRAY: u32 = 11;
/// [`InjectRequest::kind`]: the device goes on using what a DETACH that it has answered took away: with the next [`OP_STATUS`] it fills
/// the buffer with the low byte of `argument`.
pub const INJECT_STALE: u32 = 12;
/// [`InjectRequest::kind`]: the device process aborts when it has carried out an ATTACH, before it answers.
pub const INJECT_DIE_ATTACHED: u32 = 13;
/// [`InjectRequest::kind`]: an ATTACH is carried out, and never answered.
pub const INJECT_LOSE_ATTACH: u32 = 14;
/// [`InjectRequest::kind`]: the device process aborts in a call of the TEE queue.
pub const INJECT_DIE_IN_CALL: u32 = 15;
/// [`InjectRequest::kind`]: a call of the TEE queue is carried out, and never answered.
pub const INJECT_LOSE_CALL: u32 = 16;
/// [`InjectRequest::kind`]: a call of the TEE queue is answered twice.
pub const INJECT_TWICE_CALL: u32 = 17;
/// [`InjectRequest::kind`]: a call of the TEE queue is carried out and answered with status `argument`.
pub const INJECT_STATUS_CALL: u32 = 18;

/// [`Event::kind`]: an access faulted; [`Event::fault`] says which.
pub const EVENT_DMA_FAULT: u32 = 1;

macro_rules! wire_struct {
    ($(#[$m:meta])* pub struct $name:ident { $($(#[$fm:meta])* pub $f:ident : $t:ty,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$fm])* pub $f: $t,)* }
    };
}
pub(crate) use wire_struct;

wire_struct! {
    /// The device's configuration space.
    pub struct Config {
        /// [`MAGIC`].
        pub magic: U32,
        /// [`VERSION`].
        pub version: U32,
        /// Buffers that can be attached at a time.
        pub max_buffers: U32,
        /// Segments in one ATTACH.
        pub max_segments: U32,
        /// Bytes in one ATTACH.
        pub max_length: U64,
        /// Segments of all attached buffers together.
        pub max_total_segments: U32,
        /// Pieces of protected memory: segments that were attached with [`ATTACH_PROTECTED`], and parts of these that the
        /// video engine is let at differently from the rest.
        pub max_protected_pieces: U32,
        /// Bytes that a job reads whose source and destination share memory.
        pub max_overlap: U32,
        /// Pixels or lines of an image's side.
        pub max_side: U32,
        /// Microseconds of an [`INJECT_DELAY`].
        pub max_delay_us: U32,
        /// TEE sessions that are open at a time.
        pub max_sessions: U32,
        /// TEE calls that are under way at a time.
        pub max_calls: U32,
        /// Bytes of all objects in the TEE's storage together.
        pub max_storage: U32,
    }
}

wire_struct! {
    /// Begins every request.
    pub struct RequestHeader {
        /// `OP_…`.
        pub op: U32,
        /// Zero.
        pub reserved: U32,
        /// Chosen by the driver; comes back in the answer, and in events that the request causes.
        pub cookie: U64,
    }
}

wire_struct! {
    /// Begins every answer. Where the status is not [`STATUS_OK`], the rest of the answer is zero, but for [`JobResponse::fault`].
    pub struct ResponseHeader {
        /// `STATUS_…`.
        pub status: U32,
        /// Zero.
        pub reserved: U32,
        /// The request's.
        pub cookie: U64,
    }
}

wire_struct! {
    /// One contiguous piece of memory.
    pub struct Segment {
        /// DMA address of the first byte.
        pub address: U64,
        /// Length in bytes; not zero.
        pub length: U64,
    }
}

wire_struct! {
    /// [`OP_ATTACH`]; `segment_count` [`Segment`]s follow, in the buffer's order.
    pub struct AttachRequest {
        /// `op` is [`OP_ATTACH`].
        pub header: RequestHeader,
        /// `DIRECTION_…`.
        pub direction: U32,
        /// Number of segments that follow, at least 1.
        pub segment_count: U32,
        /// Sum of the segments' lengths.
        pub length: U64,
        /// `ATTACH_…` bits.
        pub flags: U32,
        /// Zero.
        pub reserved: U32,
    }
}

wire_struct! {
    /// Answer to [`AttachRequest`].
    pub struct AttachResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// The buffer's name from now on; never zero, never used again.
        pub handle: U64,
    }
}

wire_struct! {
    /// [`OP_DETACH`].
    pub struct DetachRequest {
        /// `op` is [`OP_DETACH`].
        pub header: RequestHeader,
        /// The buffer to let go of.
        pub handle: U64,
    }
}

wire_struct! {
    /// [`OP_QUERY`].
    pub struct QueryRequest {
        /// `op` is [`OP_QUERY`].
        pub header: RequestHeader,
        /// The buffer, see also [`QUERY_NEXT`].
        pub handle: U64,
        /// `QUERY_…` bits.
        pub flags: U32,
        /// Index of the first segment to return.
        pub first_segment: U32,
    }
}

wire_struct! {
    /// Answer to [`QueryRequest`]; `returned` [`Segment`]s follow: as many from `first_segment` on as there is room for.
    pub struct QueryResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// The buffer described.
        pub handle: U64,
        /// Its length in bytes.
        pub length: U64,
        /// Its direction.
        pub direction: U32,
        /// Number of its segments, exactly as they were attached.
        pub segment_count: U32,
        /// Number of segments that follow.
        pub returned: U32,
        /// The `ATTACH_…` bits it was attached with.
        pub flags: U32,
    }
}

wire_struct! {
    /// [`OP_CHECKSUM`]. Reads through the same translation as a job, but whatever the buffer's direction.
    pub struct ChecksumRequest {
        /// `op` is [`OP_CHECKSUM`].
        pub header: RequestHeader,
        /// What to read.
        pub range: Range,
    }
}

wire_struct! {
    /// Answer to [`ChecksumRequest`].
    pub struct ChecksumResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// Set if the status is [`STATUS_DMA_FAULT`].
        pub fault: Fault,
        /// CRC32C (Castagnoli) of the bytes read.
        pub crc: U32,
        /// Zero.
        pub reserved: U32,
    }
}

wire_struct! {
    /// [`OP_INJECT`]: the device misbehaves at the next `count` video jobs, or as the kind says.
    pub struct InjectRequest {
        /// `op` is [`OP_INJECT`].
        pub header: RequestHeader,
        /// `INJECT_…`.
        pub kind: U32,
        /// How many times; zero takes this kind back.
        pub count: U32,
        /// Depends on the kind.
        pub argument: U64,
    }
}

wire_struct! {
    /// Answer to [`RequestHeader`] with [`OP_STATUS`].
    pub struct StatusResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// Buffers attached now.
        pub buffers: U64,
        /// Bytes attached now.
        pub bytes: U64,
        /// ATTACHs since the device was reset.
        pub attached: U64,
        /// Video jobs begun since the device was reset; requests refused as invalid do not count.
        pub jobs: U64,
        /// DMA faults since the device was reset.
        pub faults: U64,
        /// Events lost since the device was reset because the driver had posted no buffer.
        pub events_lost: U64,
        /// TEE sessions that are open now, or being opened.
        pub sessions: U64,
        /// TEE calls under way now.
        pub calls: U64,
    }
}

wire_struct! {
    /// Part of an attached buffer.
    pub struct Range {
        /// The buffer's handle.
        pub handle: U64,
        /// First byte.
        pub offset: U64,
        /// Length in bytes.
        pub length: U64,
    }
}

wire_struct! {
    /// An image's layout in memory and its colours, as V4L2 defines the format (`struct v4l2_pix_format`).
    pub struct Format {
        /// `V4L2_PIX_FMT_…`: GREY, NV12, YUYV or RGB3 (RGB24).
        pub fourcc: U32,
        /// Width in pixels.
        pub width: U32,
        /// Height in lines.
        pub height: U32,
        /// Bytes from one line to the next (of the first plane, for NV12; its second plane has the same).
        pub stride: U32,
        /// `ENCODING_…`; [`ENCODING_NONE`] for RGB24 only.
        pub encoding: U32,
        /// `QUANTIZATION_…`; [`QUANTIZATION_FULL`] for RGB24.
        pub quantization: U32,
    }
}

wire_struct! {
    /// [`OP_COPY`], [`OP_FILL`], [`OP_CONVERT`].
    pub struct JobRequest {
        /// `op` is one of these.
        pub header: RequestHeader,
        /// Read; all zero for FILL. COPY moves `src.length` bytes.
        pub src: Range,
        /// Written. COPY and FILL want `length` bytes of it, CONVERT at most `length`.
        pub dst: Range,
        /// CONVERT: the layout of `src`.
        pub src_format: Format,
        /// CONVERT: the layout of `dst`.
        pub dst_format: Format,
        /// FILL: four bytes, in memory order when seen as little-endian.
        pub pattern: U32,
        /// Zero.
        pub reserved: U32,
    }
}

wire_struct! {
    /// Where an access went wrong.
    pub struct Fault {
        /// `FAULT_…`; [`FAULT_NONE`] in an answer without fault.
        pub reason: U32,
        /// [`DIRECTION_READ`] or [`DIRECTION_WRITE`].
        pub access: U32,
        /// The access that was asked for.
        pub range: Range,
        /// The DMA address that missed, for [`FAULT_NO_MEMORY`]; else zero.
        pub address: U64,
    }
}

wire_struct! {
    /// Answer to [`JobRequest`]; `src_returned` + `dst_returned` [`Segment`]s follow: the pieces of memory that the job
    /// read, then those that it wrote, adjacent ones merged, as many of each as fit into half of the room there is.
    pub struct JobResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// Set if the status is [`STATUS_DMA_FAULT`].
        pub fault: Fault,
        /// Bytes read from `src`.
        pub bytes_read: U64,
        /// Bytes written to `dst`.
        pub bytes_written: U64,
        /// CRC32C of the bytes read, in order.
        pub src_crc: U32,
        /// CRC32C of the bytes written, in order.
        pub dst_crc: U32,
        /// Pieces of memory read.
        pub src_segments: U32,
        /// Pieces of memory written.
        pub dst_segments: U32,
        /// Segments that follow, of `src`.
        pub src_returned: U32,
        /// Segments that follow after these, of `dst`.
        pub dst_returned: U32,
    }
}

wire_struct! {
    /// What the device tells unasked.
    pub struct Event {
        /// `EVENT_…`.
        pub kind: U32,
        /// Zero.
        pub reserved: U32,
        /// Cookie of the request that caused it.
        pub cookie: U64,
        /// The fault, for [`EVENT_DMA_FAULT`].
        pub fault: Fault,
    }
}
