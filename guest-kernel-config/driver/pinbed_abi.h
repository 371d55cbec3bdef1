/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Written from wire.rs, tee.rs and uapi.rs in vmm/abi/src. Change these, then run
 * PINBED_BLESS=1 cargo test -p pinbed-abi --test header
 */
#ifndef PINBED_ABI_H
#define PINBED_ABI_H

#include <linux/build_bug.h>
#include <linux/types.h>

/*
 * The device's wire format.
 *
 * The device is a virtio 1.x device with split rings and four queues. On the
 * control, video and TEE queues a descriptor chain is one request:
 * device-readable bytes that begin with a struct pinbed_request_header,
 * followed by device-writable room for an answer that begins with a struct
 * pinbed_response_header. On the event queue the driver posts device-writable
 * buffers of size_of::<Event>() bytes and the device fills one for each event.
 *
 * All integers are little-endian; sizes and offsets are in bytes; addresses are
 * DMA addresses as the driver got them from the kernel's DMA API
 * (guest-physical addresses where no IOMMU translates).
 *
 * The device *holds on* to memory: struct pinbed_attach_request hands it a
 * scatterlist which it keeps until struct pinbed_detach_request. Jobs name
 * attached buffers by handle, never raw addresses. A handle is never given out
 * twice, so a stale one cannot alias a newer buffer. An access to something
 * that is not attached, out of bounds, against the buffer's direction, or not
 * backed by guest memory moves no byte there: the answer says
 * PINBED_STATUS_DMA_FAULT with a struct pinbed_fault, and the same fault is
 * sent as an event.
 */

/*
 * Virtio device id. 21 has a name in QEMU's table (else QEMU aborts) and no
 * driver in Linux claims it.
 */
#define PINBED_VIRTIO_ID 21
/* Value of struct pinbed_config.magic: "PINB". */
#define PINBED_MAGIC 0x424e4950
/*
 * Value of struct pinbed_config.version; a driver refuses a device of another
 * version. It goes up whenever a structure changes its size or meaning.
 */
#define PINBED_VERSION 2
/* Feature bit: the device has a TEE, and serves PINBED_QUEUE_TEE. */
#define PINBED_F_TEE 0
/* Feature bit: the device protects memory (PINBED_ATTACH_PROTECTED). */
#define PINBED_F_PROTECTED 1
/*
 * Feature bit: the device misbehaves when asked to (PINBED_OP_INJECT). Offered
 * only where the host allows it.
 */
#define PINBED_F_SABOTAGE 2
/*
 * Queue on which buffers are attached and detached, and the device is asked
 * about itself.
 */
#define PINBED_QUEUE_CONTROL 0
/* Queue of video jobs. */
#define PINBED_QUEUE_VIDEO 1
/* Queue of TEE calls. */
#define PINBED_QUEUE_TEE 2
/* Queue of device events. */
#define PINBED_QUEUE_EVENT 3
/* Number of queues. */
#define PINBED_QUEUE_COUNT 4
/*
 * Descriptors in each queue. An ATTACH takes one for each page of its
 * scatterlist, so this bounds its length.
 */
#define PINBED_QUEUE_SIZE 1024
/*
 * Control: what does the device hold? struct pinbed_request_header -> struct
 * pinbed_status_response.
 */
#define PINBED_OP_STATUS 0x0100
/*
 * Control: hold this scatterlist. struct pinbed_attach_request + struct
 * pinbed_segments -> struct pinbed_attach_response.
 */
#define PINBED_OP_ATTACH 0x0101
/*
 * Control: let go of it. struct pinbed_detach_request -> struct
 * pinbed_response_header.
 */
#define PINBED_OP_DETACH 0x0102
/*
 * Control: describe an attached buffer. struct pinbed_query_request -> struct
 * pinbed_query_response + struct pinbed_segments.
 */
#define PINBED_OP_QUERY 0x0103
/*
 * Control: CRC32C of an attached buffer as the device sees it now. struct
 * pinbed_checksum_request -> struct pinbed_checksum_response.
 */
#define PINBED_OP_CHECKSUM 0x0104
/*
 * Control: misbehave on purpose; PINBED_STATUS_UNSUPPORTED without
 * PINBED_F_SABOTAGE. struct pinbed_inject_request -> struct
 * pinbed_response_header.
 */
#define PINBED_OP_INJECT 0x0105
/*
 * Video: copy src to dst, byte for byte. struct pinbed_job_request -> struct
 * pinbed_job_response + struct pinbed_segments.
 */
#define PINBED_OP_COPY 0x0200
/*
 * Video: fill dst with the four bytes of struct pinbed_job_request.pattern, in
 * memory order. Answers as PINBED_OP_COPY.
 */
#define PINBED_OP_FILL 0x0201
/*
 * Video: convert the image in src to the pixel format, encoding and
 * quantization of dst (equal width and height). Answers as PINBED_OP_COPY. Two
 * formats other than RGB have the same encoding, else PINBED_STATUS_INVALID.
 *
 * Between formats other than RGB with equal quantization, luma is moved
 * unchanged; chroma is moved, repeated for two lines, averaged over two lines
 * and rounded up, or 128 where the source is GREY. Between quantizations, luma
 * and chroma are rounded to the nearest value.
 *
 * From RGB, luma and chroma differ from the encoding's formula by at most 2;
 * chroma is that of the mean of the pixels that share it. To RGB, a channel
 * differs by at most 4; luma below black (16 in limited range) may count as
 * black. How it is rounded within that is the implementation's choice, and
 * struct pinbed_job_response.dst_crc is that of the bytes it wrote.
 */
#define PINBED_OP_CONVERT 0x0202
/* Done. */
#define PINBED_STATUS_OK 0
/* The device does not know this operation, or does not have it yet. */
#define PINBED_STATUS_UNSUPPORTED 1
/* The request is too short, too long, or contradicts itself. */
#define PINBED_STATUS_INVALID 2
/*
 * No buffer has this handle (control operations; a job with such a handle is a
 * DMA fault).
 */
#define PINBED_STATUS_NO_BUFFER 3
/* An access missed what is attached; see struct pinbed_fault. */
#define PINBED_STATUS_DMA_FAULT 4
/* A limit of struct pinbed_config would be exceeded. */
#define PINBED_STATUS_LIMIT 5
/* The engine failed (today: because PINBED_INJECT_FAIL asked it to). */
#define PINBED_STATUS_ERROR 6
/*
 * struct pinbed_attach_request.direction: the device reads the buffer (V4L2
 * OUTPUT, DMA_TO_DEVICE).
 */
#define PINBED_DIRECTION_READ 1
/*
 * struct pinbed_attach_request.direction: the device writes the buffer (V4L2
 * CAPTURE, DMA_FROM_DEVICE).
 */
#define PINBED_DIRECTION_WRITE 2
/* struct pinbed_attach_request.direction: both (DMA_BIDIRECTIONAL). */
#define PINBED_DIRECTION_BOTH 3
/* struct pinbed_fault.reason: no fault. */
#define PINBED_FAULT_NONE 0
/*
 * struct pinbed_fault.reason: the handle names nothing that is attached (never
 * was, or is detached).
 */
#define PINBED_FAULT_NOT_ATTACHED 1
/* struct pinbed_fault.reason: offset + length goes past the buffer's end. */
#define PINBED_FAULT_OUT_OF_BOUNDS 2
/* struct pinbed_fault.reason: the buffer's direction forbids the access. */
#define PINBED_FAULT_PERMISSION 3
/* struct pinbed_fault.reason: a segment's address is not guest memory. */
#define PINBED_FAULT_NO_MEMORY 4
/*
 * struct pinbed_fault.reason: the memory is protected (PINBED_ATTACH_PROTECTED)
 * from whoever asked.
 */
#define PINBED_FAULT_PROTECTED 5
/*
 * struct pinbed_fault.reason: what was to be written may go to protected memory
 * only, and this is not.
 */
#define PINBED_FAULT_NOT_PROTECTED 6
/*
 * struct pinbed_format.quantization: full range, V4L2_QUANTIZATION_FULL_RANGE.
 * RGB always has it.
 */
#define PINBED_QUANTIZATION_FULL 1
/*
 * struct pinbed_format.quantization: limited range,
 * V4L2_QUANTIZATION_LIM_RANGE: luma 16 to 235, chroma 16 to 240.
 */
#define PINBED_QUANTIZATION_LIMITED 2
/* struct pinbed_format.encoding: RGB has no Y'CbCr encoding. */
#define PINBED_ENCODING_NONE 0
/* struct pinbed_format.encoding: ITU-R BT.601, V4L2_YCBCR_ENC_601. */
#define PINBED_ENCODING_BT601 1
/* struct pinbed_format.encoding: ITU-R BT.709, V4L2_YCBCR_ENC_709. */
#define PINBED_ENCODING_BT709 2
/*
 * struct pinbed_format.encoding: ITU-R BT.2020, not constant luminance,
 * V4L2_YCBCR_ENC_BT2020.
 */
#define PINBED_ENCODING_BT2020 6
/* struct pinbed_format.encoding: SMPTE 240M, V4L2_YCBCR_ENC_SMPTE240M. */
#define PINBED_ENCODING_SMPTE240M 8
/*
 * struct pinbed_attach_request.flags: from now on, and until DETACH, the memory
 * is the TEE's, whichever buffer names it. The first session that accesses it
 * of a trusted application with the right to protected memory owns it for as
 * long as the session lives; the video engine accesses it as far as the owner
 * allows; all other accesses are a PINBED_FAULT_PROTECTED, PINBED_OP_CHECKSUM
 * too. What the device writes there stands in memory encrypted, with a random
 * key for each attachment and owner, so that the CPU cannot read it; what stood
 * there before reads as garbage. Memory that is protected already cannot be
 * protected again (PINBED_STATUS_INVALID).
 */
#define PINBED_ATTACH_PROTECTED 1
/*
 * struct pinbed_query_request.flags: describe the attached buffer with the
 * smallest handle that is greater than struct pinbed_query_request.handle, so
 * that a loop from 0 lists all; PINBED_STATUS_NO_BUFFER ends the list.
 */
#define PINBED_QUERY_NEXT 1
/* struct pinbed_inject_request.kind: take everything injected back. */
#define PINBED_INJECT_NONE 0
/*
 * struct pinbed_inject_request.kind: a video job starts argument microseconds
 * (at most 10,000,000) late; the control queue goes on meanwhile.
 */
#define PINBED_INJECT_DELAY 1
/*
 * struct pinbed_inject_request.kind: a video job moves nothing and answers
 * PINBED_STATUS_ERROR.
 */
#define PINBED_INJECT_FAIL 2
/*
 * struct pinbed_inject_request.kind: the device process aborts at the next
 * video job, as broken hardware falls off the bus.
 */
#define PINBED_INJECT_DIE 3
/*
 * struct pinbed_inject_request.kind: a DETACH answers PINBED_STATUS_ERROR, and
 * the device goes on holding the buffer.
 */
#define PINBED_INJECT_KEEP 4
/*
 * struct pinbed_inject_request.kind: after this request the device takes
 * requests and answers none, until it is reset. Any count but zero will do.
 */
#define PINBED_INJECT_SILENCE 5
/*
 * struct pinbed_inject_request.kind: a video job is carried out, and never
 * answered.
 */
#define PINBED_INJECT_LOSE 6
/* struct pinbed_inject_request.kind: a video job is answered twice. */
#define PINBED_INJECT_TWICE 7
/*
 * struct pinbed_inject_request.kind: a video job is answered after the next
 * one.
 */
#define PINBED_INJECT_REORDER 8
/*
 * struct pinbed_inject_request.kind: a COPY or FILL moves the first half of its
 * bytes, says so, and answers PINBED_STATUS_OK.
 */
#define PINBED_INJECT_SHORT 9
/*
 * struct pinbed_inject_request.kind: a video job is carried out and answered
 * with status argument.
 */
#define PINBED_INJECT_STATUS 10
/*
 * struct pinbed_inject_request.kind: a COPY writes argument bytes (at most 1
 * MiB) behind where it is to write, whether that is attached or not, and
 * answers as if it had not.
 */
#define PINBED_INJECT_ASTRAY 11
/*
 * struct pinbed_inject_request.kind: the device goes on using what a DETACH
 * that it has answered took away: with the next PINBED_OP_STATUS it fills the
 * buffer with the low byte of argument.
 */
#define PINBED_INJECT_STALE 12
/*
 * struct pinbed_inject_request.kind: the device process aborts when it has
 * carried out an ATTACH, before it answers.
 */
#define PINBED_INJECT_DIE_ATTACHED 13
/*
 * struct pinbed_inject_request.kind: an ATTACH is carried out, and never
 * answered.
 */
#define PINBED_INJECT_LOSE_ATTACH 14
/*
 * struct pinbed_inject_request.kind: the device process aborts in a call of the
 * TEE queue.
 */
#define PINBED_INJECT_DIE_IN_CALL 15
/*
 * struct pinbed_inject_request.kind: a call of the TEE queue is carried out,
 * and never answered.
 */
#define PINBED_INJECT_LOSE_CALL 16
/*
 * struct pinbed_inject_request.kind: a call of the TEE queue is answered twice.
 */
#define PINBED_INJECT_TWICE_CALL 17
/*
 * struct pinbed_inject_request.kind: a call of the TEE queue is carried out and
 * answered with status argument.
 */
#define PINBED_INJECT_STATUS_CALL 18
/*
 * struct pinbed_event.kind: an access faulted; struct pinbed_event.fault says
 * which.
 */
#define PINBED_EVENT_DMA_FAULT 1

/**
 * struct pinbed_config - The device's configuration space.
 * @magic: PINBED_MAGIC.
 * @version: PINBED_VERSION.
 * @max_buffers: Buffers that can be attached at a time.
 * @max_segments: Segments in one ATTACH.
 * @max_length: Bytes in one ATTACH.
 * @max_total_segments: Segments of all attached buffers together.
 * @max_protected_pieces: Pieces of protected memory: segments that were
 *   attached with PINBED_ATTACH_PROTECTED, and parts of these that the video
 *   engine is let at differently from the rest.
 * @max_overlap: Bytes that a job reads whose source and destination share
 *   memory.
 * @max_side: Pixels or lines of an image's side.
 * @max_delay_us: Microseconds of an PINBED_INJECT_DELAY.
 * @max_sessions: TEE sessions that are open at a time.
 * @max_calls: TEE calls that are under way at a time.
 * @max_storage: Bytes of all objects in the TEE's storage together.
 */
struct pinbed_config {
	__le32 magic;
	__le32 version;
	__le32 max_buffers;
	__le32 max_segments;
	__le64 max_length;
	__le32 max_total_segments;
	__le32 max_protected_pieces;
	__le32 max_overlap;
	__le32 max_side;
	__le32 max_delay_us;
	__le32 max_sessions;
	__le32 max_calls;
	__le32 max_storage;
};

static_assert(sizeof(struct pinbed_config) == 56);

/**
 * struct pinbed_request_header - Begins every request.
 * @op: PINBED_OP_*.
 * @reserved: Zero.
 * @cookie: Chosen by the driver; comes back in the answer, and in events that
 *   the request causes.
 */
struct pinbed_request_header {
	__le32 op;
	__le32 reserved;
	__le64 cookie;
};

static_assert(sizeof(struct pinbed_request_header) == 16);

/**
 * struct pinbed_response_header - Begins every answer. Where the status is not
 * PINBED_STATUS_OK, the rest of the answer is zero, but for struct
 * pinbed_job_response.fault.
 * @status: PINBED_STATUS_*.
 * @reserved: Zero.
 * @cookie: The request's.
 */
struct pinbed_response_header {
	__le32 status;
	__le32 reserved;
	__le64 cookie;
};

static_assert(sizeof(struct pinbed_response_header) == 16);

/**
 * struct pinbed_segment - One contiguous piece of memory.
 * @address: DMA address of the first byte.
 * @length: Length in bytes; not zero.
 */
struct pinbed_segment {
	__le64 address;
	__le64 length;
};

static_assert(sizeof(struct pinbed_segment) == 16);

/**
 * struct pinbed_attach_request - PINBED_OP_ATTACH; segment_count struct
 * pinbed_segments follow, in the buffer's order.
 * @header: op is PINBED_OP_ATTACH.
 * @direction: PINBED_DIRECTION_*.
 * @segment_count: Number of segments that follow, at least 1.
 * @length: Sum of the segments' lengths.
 * @flags: PINBED_ATTACH_* bits.
 * @reserved: Zero.
 */
struct pinbed_attach_request {
	struct pinbed_request_header header;
	__le32 direction;
	__le32 segment_count;
	__le64 length;
	__le32 flags;
	__le32 reserved;
};

static_assert(sizeof(struct pinbed_attach_request) == 40);

/**
 * struct pinbed_attach_response - Answer to struct pinbed_attach_request.
 * @header: Status and cookie.
 * @handle: The buffer's name from now on; never zero, never used again.
 */
struct pinbed_attach_response {
	struct pinbed_response_header header;
	__le64 handle;
};

static_assert(sizeof(struct pinbed_attach_response) == 24);

/**
 * struct pinbed_detach_request - PINBED_OP_DETACH.
 * @header: op is PINBED_OP_DETACH.
 * @handle: The buffer to let go of.
 */
struct pinbed_detach_request {
	struct pinbed_request_header header;
	__le64 handle;
};

static_assert(sizeof(struct pinbed_detach_request) == 24);

/**
 * struct pinbed_query_request - PINBED_OP_QUERY.
 * @header: op is PINBED_OP_QUERY.
 * @handle: The buffer, see also PINBED_QUERY_NEXT.
 * @flags: PINBED_QUERY_* bits.
 * @first_segment: Index of the first segment to return.
 */
struct pinbed_query_request {
	struct pinbed_request_header header;
	__le64 handle;
	__le32 flags;
	__le32 first_segment;
};

static_assert(sizeof(struct pinbed_query_request) == 32);

/**
 * struct pinbed_query_response - Answer to struct pinbed_query_request;
 * returned struct pinbed_segments follow: as many from first_segment on as
 * there is room for.
 * @header: Status and cookie.
 * @handle: The buffer described.
 * @length: Its length in bytes.
 * @direction: Its direction.
 * @segment_count: Number of its segments, exactly as they were attached.
 * @returned: Number of segments that follow.
 * @flags: The PINBED_ATTACH_* bits it was attached with.
 */
struct pinbed_query_response {
	struct pinbed_response_header header;
	__le64 handle;
	__le64 length;
	__le32 direction;
	__le32 segment_count;
	__le32 returned;
	__le32 flags;
};

static_assert(sizeof(struct pinbed_query_response) == 48);

/**
 * struct pinbed_range - Part of an attached buffer.
 * @handle: The buffer's handle.
 * @offset: First byte.
 * @length: Length in bytes.
 */
struct pinbed_range {
	__le64 handle;
	__le64 offset;
	__le64 length;
};

static_assert(sizeof(struct pinbed_range) == 24);

/**
 * struct pinbed_checksum_request - PINBED_OP_CHECKSUM. Reads through the same
 * translation as a job, but whatever the buffer's direction.
 * @header: op is PINBED_OP_CHECKSUM.
 * @range: What to read.
 */
struct pinbed_checksum_request {
	struct pinbed_request_header header;
	struct pinbed_range range;
};

static_assert(sizeof(struct pinbed_checksum_request) == 40);

/**
 * struct pinbed_fault - Where an access went wrong.
 * @reason: PINBED_FAULT_*; PINBED_FAULT_NONE in an answer without fault.
 * @access: PINBED_DIRECTION_READ or PINBED_DIRECTION_WRITE.
 * @range: The access that was asked for.
 * @address: The DMA address that missed, for PINBED_FAULT_NO_MEMORY; else zero.
 */
struct pinbed_fault {
	__le32 reason;
	__le32 access;
	struct pinbed_range range;
	__le64 address;
};

static_assert(sizeof(struct pinbed_fault) == 40);

/**
 * struct pinbed_checksum_response - Answer to struct pinbed_checksum_request.
 * @header: Status and cookie.
 * @fault: Set if the status is PINBED_STATUS_DMA_FAULT.
 * @crc: CRC32C (Castagnoli) of the bytes read.
 * @reserved: Zero.
 */
struct pinbed_checksum_response {
	struct pinbed_response_header header;
	struct pinbed_fault fault;
	__le32 crc;
	__le32 reserved;
};

static_assert(sizeof(struct pinbed_checksum_response) == 64);

/**
 * struct pinbed_inject_request - PINBED_OP_INJECT: the device misbehaves at the
 * next count video jobs, or as the kind says.
 * @header: op is PINBED_OP_INJECT.
 * @kind: PINBED_INJECT_*.
 * @count: How many times; zero takes this kind back.
 * @argument: Depends on the kind.
 */
struct pinbed_inject_request {
	struct pinbed_request_header header;
	__le32 kind;
	__le32 count;
	__le64 argument;
};

static_assert(sizeof(struct pinbed_inject_request) == 32);

/**
 * struct pinbed_status_response - Answer to struct pinbed_request_header with
 * PINBED_OP_STATUS.
 * @header: Status and cookie.
 * @buffers: Buffers attached now.
 * @bytes: Bytes attached now.
 * @attached: ATTACHs since the device was reset.
 * @jobs: Video jobs begun since the device was reset; requests refused as
 *   invalid do not count.
 * @faults: DMA faults since the device was reset.
 * @events_lost: Events lost since the device was reset because the driver had
 *   posted no buffer.
 * @sessions: TEE sessions that are open now, or being opened.
 * @calls: TEE calls under way now.
 */
struct pinbed_status_response {
	struct pinbed_response_header header;
	__le64 buffers;
	__le64 bytes;
	__le64 attached;
	__le64 jobs;
	__le64 faults;
	__le64 events_lost;
	__le64 sessions;
	__le64 calls;
};

static_assert(sizeof(struct pinbed_status_response) == 80);

/**
 * struct pinbed_format - An image's layout in memory and its colours, as V4L2
 * defines the format (struct v4l2_pix_format).
 * @fourcc: V4L2_PIX_FMT_*: GREY, NV12, YUYV or RGB3 (RGB24).
 * @width: Width in pixels.
 * @height: Height in lines.
 * @stride: Bytes from one line to the next (of the first plane, for NV12; its
 *   second plane has the same).
 * @encoding: PINBED_ENCODING_*; PINBED_ENCODING_NONE for RGB24 only.
 * @quantization: PINBED_QUANTIZATION_*; PINBED_QUANTIZATION_FULL for RGB24.
 */
struct pinbed_format {
	__le32 fourcc;
	__le32 width;
	__le32 height;
	__le32 stride;
	__le32 encoding;
	__le32 quantization;
};

static_assert(sizeof(struct pinbed_format) == 24);

/**
 * struct pinbed_job_request - PINBED_OP_COPY, PINBED_OP_FILL,
 * PINBED_OP_CONVERT.
 * @header: op is one of these.
 * @src: Read; all zero for FILL. COPY moves src.length bytes.
 * @dst: Written. COPY and FILL want length bytes of it, CONVERT at most length.
 * @src_format: CONVERT: the layout of src.
 * @dst_format: CONVERT: the layout of dst.
 * @pattern: FILL: four bytes, in memory order when seen as little-endian.
 * @reserved: Zero.
 */
struct pinbed_job_request {
	struct pinbed_request_header header;
	struct pinbed_range src;
	struct pinbed_range dst;
	struct pinbed_format src_format;
	struct pinbed_format dst_format;
	__le32 pattern;
	__le32 reserved;
};

static_assert(sizeof(struct pinbed_job_request) == 120);

/**
 * struct pinbed_job_response - Answer to struct pinbed_job_request;
 * src_returned + dst_returned struct pinbed_segments follow: the pieces of
 * memory that the job read, then those that it wrote, adjacent ones merged, as
 * many of each as fit into half of the room there is.
 * @header: Status and cookie.
 * @fault: Set if the status is PINBED_STATUS_DMA_FAULT.
 * @bytes_read: Bytes read from src.
 * @bytes_written: Bytes written to dst.
 * @src_crc: CRC32C of the bytes read, in order.
 * @dst_crc: CRC32C of the bytes written, in order.
 * @src_segments: Pieces of memory read.
 * @dst_segments: Pieces of memory written.
 * @src_returned: Segments that follow, of src.
 * @dst_returned: Segments that follow after these, of dst.
 */
struct pinbed_job_response {
	struct pinbed_response_header header;
	struct pinbed_fault fault;
	__le64 bytes_read;
	__le64 bytes_written;
	__le32 src_crc;
	__le32 dst_crc;
	__le32 src_segments;
	__le32 dst_segments;
	__le32 src_returned;
	__le32 dst_returned;
};

static_assert(sizeof(struct pinbed_job_response) == 96);

/**
 * struct pinbed_event - What the device tells unasked.
 * @kind: PINBED_EVENT_*.
 * @reserved: Zero.
 * @cookie: Cookie of the request that caused it.
 * @fault: The fault, for PINBED_EVENT_DMA_FAULT.
 */
struct pinbed_event {
	__le32 kind;
	__le32 reserved;
	__le64 cookie;
	struct pinbed_fault fault;
};

static_assert(sizeof(struct pinbed_event) == 56);

/*
 * The wire format of the TEE queue.
 *
 * A request carries a call of GlobalPlatform's *TEE Client API* (v1.0) as
 * Linux's TEE subsystem hands it to a driver (include/uapi/linux/tee.h). Two
 * layers of result stay apart: the status in struct pinbed_response_header says
 * whether the device understood the request at all (PINBED_STATUS_INVALID,
 * PINBED_STATUS_UNSUPPORTED); with PINBED_STATUS_OK the call was made and
 * result and origin are what the client gets to see.
 *
 * Memory: a memref names a buffer that was attached through the control queue
 * (PINBED_DIRECTION_BOTH, since the TEE's clients choose a direction anew in
 * each call). It may stay named by a trusted application after the call; once
 * the buffer is detached such an access is a DMA fault.
 *
 * Calls are answered out of order: one that blocks does not keep others from
 * being answered.
 *
 * Names that begin with TEEC_ are those of the TEE Client API.
 */

/*
 * Open a session with a trusted application. struct pinbed_open_session_request
 * -> struct pinbed_call_response.
 */
#define PINBED_OP_OPEN_SESSION 0x0300
/*
 * Call a function of a trusted application. struct pinbed_invoke_request ->
 * struct pinbed_call_response.
 */
#define PINBED_OP_INVOKE 0x0301
/*
 * Ask an open or invoke that is under way to end. struct pinbed_cancel_request
 * -> struct pinbed_result_response, at once: the call that is cancelled answers
 * for itself, with PINBED_TEEC_ERROR_CANCEL if it does not run yet, or its
 * trusted application has unmasked cancellation and waits.
 */
#define PINBED_OP_CANCEL 0x0302
/*
 * Close a session. struct pinbed_close_session_request -> struct
 * pinbed_result_response, when the calls under way in the session have ended:
 * they are cancelled, and answer for themselves; no call begins in the session
 * any more.
 */
#define PINBED_OP_CLOSE_SESSION 0x0303
/*
 * The client is gone. struct pinbed_close_context_request -> struct
 * pinbed_result_response, at once: closes all sessions of the context and ends
 * its calls, also those that mask cancellation. A context that has no session
 * is no error.
 */
#define PINBED_OP_CLOSE_CONTEXT 0x0304
/* Parameters of a call. */
#define PINBED_PARAM_COUNT 4
/* struct pinbed_param.attr: not used (TEE_IOCTL_PARAM_ATTR_TYPE_NONE). */
#define PINBED_PARAM_NONE 0
/*
 * struct pinbed_param.attr: a value that the trusted application reads
 * (*_VALUE_INPUT).
 */
#define PINBED_PARAM_VALUE_INPUT 1
/* struct pinbed_param.attr: a value that it writes (*_VALUE_OUTPUT). */
#define PINBED_PARAM_VALUE_OUTPUT 2
/*
 * struct pinbed_param.attr: a value that it reads and writes (*_VALUE_INOUT).
 */
#define PINBED_PARAM_VALUE_INOUT 3
/* struct pinbed_param.attr: memory that it reads (*_MEMREF_INPUT). */
#define PINBED_PARAM_MEMREF_INPUT 5
/* struct pinbed_param.attr: memory that it writes (*_MEMREF_OUTPUT). */
#define PINBED_PARAM_MEMREF_OUTPUT 6
/*
 * struct pinbed_param.attr: memory that it reads and writes (*_MEMREF_INOUT).
 */
#define PINBED_PARAM_MEMREF_INOUT 7
/* Done. */
#define PINBED_TEEC_SUCCESS 0
/* No reason can be given. */
#define PINBED_TEEC_ERROR_GENERIC 0xffff0000
/* Not allowed for this client. */
#define PINBED_TEEC_ERROR_ACCESS_DENIED 0xffff0001
/* The call was cancelled. */
#define PINBED_TEEC_ERROR_CANCEL 0xffff0002
/*
 * Parameters of the wrong kind or with impossible contents; also: no such
 * session.
 */
#define PINBED_TEEC_ERROR_BAD_PARAMETERS 0xffff0006
/* Not in this state. */
#define PINBED_TEEC_ERROR_BAD_STATE 0xffff0007
/* No such trusted application, or object. */
#define PINBED_TEEC_ERROR_ITEM_NOT_FOUND 0xffff0008
/* The trusted application has no such function, algorithm or size. */
#define PINBED_TEEC_ERROR_NOT_SUPPORTED 0xffff000a
/* A bound on memory or on a number of things is reached. */
#define PINBED_TEEC_ERROR_OUT_OF_MEMORY 0xffff000c
/*
 * Too many calls at a time, or a second session with a trusted application that
 * takes one.
 */
#define PINBED_TEEC_ERROR_BUSY 0xffff000d
/* The way to the TEE is broken; for the driver's use. */
#define PINBED_TEEC_ERROR_COMMUNICATION 0xffff000e
/*
 * A memref goes past its buffer's end, or memory went away under a call; struct
 * pinbed_call_response.fault says which.
 */
#define PINBED_TEEC_ERROR_SECURITY 0xffff000f
/* The output does not fit; the memref's size says what is needed. */
#define PINBED_TEEC_ERROR_SHORT_BUFFER 0xffff0010
/* The trusted application has panicked; its sessions can only be closed. */
#define PINBED_TEEC_ERROR_TARGET_DEAD 0xffff3024
/* The trusted application's storage is full. */
#define PINBED_TEEC_ERROR_STORAGE_NO_SPACE 0xffff3041
/* A message is not the one that its tag was made for. */
#define PINBED_TEE_ERROR_MAC_INVALID 0xffff3071
/* A ciphertext cannot be decrypted (RSA padding). */
#define PINBED_TEE_ERROR_CIPHERTEXT_INVALID 0xf0100006
/*
 * struct pinbed_call_response.origin: on the way to the TEE; for the driver's
 * use.
 */
#define PINBED_TEEC_ORIGIN_COMMS 2
/* struct pinbed_call_response.origin: the TEE itself. */
#define PINBED_TEEC_ORIGIN_TEE 3
/* struct pinbed_call_response.origin: the trusted application. */
#define PINBED_TEEC_ORIGIN_TRUSTED_APP 4

/**
 * struct pinbed_param - A parameter; laid out as struct tee_ioctl_param.
 * @attr: PINBED_PARAM_*; no other bit may be set.
 * @a: First part of a value; a memref's offset into its buffer, in bytes.
 * @b: Second part of a value; a memref's size in bytes.
 * @c: Third part of a value; the handle of a memref's buffer, zero for the NULL
 *   memref (offset and size are then without meaning).
 */
struct pinbed_param {
	__le64 attr;
	__le64 a;
	__le64 b;
	__le64 c;
};

static_assert(sizeof(struct pinbed_param) == 32);

/**
 * struct pinbed_open_session_request - PINBED_OP_OPEN_SESSION.
 * @header: op is PINBED_OP_OPEN_SESSION.
 * @context: The client, as the driver tells them apart: one for each open of
 *   the TEE's device node. A session belongs to the context that opened it.
 * @uuid: The trusted application: 16 octets in the order of RFC 4122.
 * @client_uuid: The client's UUID as the kernel computed it for client_login.
 * @client_login: TEE_IOCTL_LOGIN_*.
 * @cancel_id: By which struct pinbed_cancel_request finds the call.
 * @params: For the trusted application.
 */
struct pinbed_open_session_request {
	struct pinbed_request_header header;
	__le64 context;
	__u8 uuid[16];
	__u8 client_uuid[16];
	__le32 client_login;
	__le32 cancel_id;
	struct pinbed_param params[4];
};

static_assert(sizeof(struct pinbed_open_session_request) == 192);

/**
 * struct pinbed_invoke_request - PINBED_OP_INVOKE.
 * @header: op is PINBED_OP_INVOKE.
 * @context: The client.
 * @session: One of its sessions.
 * @function: The function; each trusted application has its own.
 * @cancel_id: By which struct pinbed_cancel_request finds the call.
 * @reserved: Zero.
 * @params: For the trusted application.
 */
struct pinbed_invoke_request {
	struct pinbed_request_header header;
	__le64 context;
	__le32 session;
	__le32 function;
	__le32 cancel_id;
	__le32 reserved;
	struct pinbed_param params[4];
};

static_assert(sizeof(struct pinbed_invoke_request) == 168);

/**
 * struct pinbed_cancel_request - PINBED_OP_CANCEL: every call of this context,
 * session and cancel id that has not been answered.
 * @header: op is PINBED_OP_CANCEL.
 * @context: The client.
 * @session: Of an invoke: its session. Of an open: zero.
 * @cancel_id: The call's.
 */
struct pinbed_cancel_request {
	struct pinbed_request_header header;
	__le64 context;
	__le32 session;
	__le32 cancel_id;
};

static_assert(sizeof(struct pinbed_cancel_request) == 32);

/**
 * struct pinbed_close_session_request - PINBED_OP_CLOSE_SESSION.
 * @header: op is PINBED_OP_CLOSE_SESSION.
 * @context: The client.
 * @session: One of its sessions.
 * @reserved: Zero.
 */
struct pinbed_close_session_request {
	struct pinbed_request_header header;
	__le64 context;
	__le32 session;
	__le32 reserved;
};

static_assert(sizeof(struct pinbed_close_session_request) == 32);

/**
 * struct pinbed_close_context_request - PINBED_OP_CLOSE_CONTEXT.
 * @header: op is PINBED_OP_CLOSE_CONTEXT.
 * @context: The client. Afterwards the driver may use the number for another.
 */
struct pinbed_close_context_request {
	struct pinbed_request_header header;
	__le64 context;
};

static_assert(sizeof(struct pinbed_close_context_request) == 24);

/**
 * struct pinbed_call_response - Answer to struct pinbed_open_session_request
 * and struct pinbed_invoke_request.
 * @header: Status and cookie.
 * @fault: The first memory access of the call that missed, if one did; it is
 *   also sent as an event.
 * @result: PINBED_TEEC_SUCCESS, PINBED_TEEC_ERROR_*, or what else the trusted
 *   application chose to return.
 * @origin: PINBED_TEEC_ORIGIN_*.
 * @session: OPEN_SESSION with PINBED_TEEC_SUCCESS: the new session; never zero.
 *   INVOKE: the request's. Else zero.
 * @reserved: Zero.
 * @params: The request's, with output values and the sizes of output memrefs as
 *   the trusted application left them; also where the result is an error.
 */
struct pinbed_call_response {
	struct pinbed_response_header header;
	struct pinbed_fault fault;
	__le32 result;
	__le32 origin;
	__le32 session;
	__le32 reserved;
	struct pinbed_param params[4];
};

static_assert(sizeof(struct pinbed_call_response) == 200);

/**
 * struct pinbed_result_response - Answer to struct pinbed_cancel_request,
 * struct pinbed_close_session_request, struct pinbed_close_context_request.
 * @header: Status and cookie.
 * @result: PINBED_TEEC_SUCCESS, or PINBED_TEEC_ERROR_BAD_PARAMETERS: the
 *   context has no such session.
 * @origin: PINBED_TEEC_ORIGIN_TEE.
 */
struct pinbed_result_response {
	struct pinbed_response_header header;
	__le32 result;
	__le32 origin;
};

static_assert(sizeof(struct pinbed_result_response) == 24);

/*
 * The driver's own ioctls, for tests. Everything else it offers is stock V4L2.
 *
 * Once the device is dead (unbound, or reset because it did not do what it was
 * asked) every call fails with ENODEV. What a file holds is freed when the file
 * is closed.
 *
 * Host-endian, naturally aligned, without padding. The ioctl type is
 * PINBED_IOC_MAGIC on /dev/pinbed; PINBED_NR_BUFFER is a V4L2 private ioctl
 * (type V) on the video nodes.
 *
 * read(2) on /dev/pinbed returns whole struct pinbed_events, oldest first, that
 * came after this open, of which the driver keeps the last 64; it blocks unless
 * O_NONBLOCK, and poll(2) works.
 */

/* ioctl type on /dev/pinbed. */
#define PINBED_IOC_MAGIC 0xb7
/*
 * _IOWR(IOC_MAGIC, 0, Exec) on /dev/pinbed: send one raw request and wait for
 * its answer.
 */
#define PINBED_NR_EXEC 0
/*
 * _IOWR(IOC_MAGIC, 1, Ballast) on /dev/pinbed: allocate unmovable memory until
 * little is free.
 */
#define PINBED_NR_BALLAST 1
/*
 * _IOWR(IOC_MAGIC, 2, Export) on /dev/pinbed: make a dma-buf of carveout or
 * protected memory; returns its descriptor.
 */
#define PINBED_NR_EXPORT 2
/*
 * _IOWR(IOC_MAGIC, 3, Move) on /dev/pinbed: move or revoke the memory of such a
 * dma-buf.
 */
#define PINBED_NR_MOVE 3
/*
 * _IOWR(IOC_MAGIC, 4, Import) on /dev/pinbed: have the device hold a dma-buf,
 * wherever it is.
 */
#define PINBED_NR_IMPORT 4
/*
 * _IOWR('V', 192, Buffer) on a video node: the device's side of a V4L2 buffer.
 */
#define PINBED_NR_BUFFER 192
/* Largest request or answer of struct pinbed_exec in bytes. */
#define PINBED_EXEC_MAX 65536

/**
 * struct pinbed_exec - PINBED_NR_EXEC. Errors: EPERM without CAP_SYS_RAWIO,
 * since a request may name any memory; EINVAL for a queue that takes no
 * requests, for lengths of zero or beyond PINBED_EXEC_MAX. The request is sent
 * as it is: this is how tests speak to the device behind the driver's back.
 * @request: In: address of the request.
 * @response: In: address of the room for the answer.
 * @request_length: In: length of the request.
 * @response_length: In: length of the room. Out: bytes that the device
 *   answered.
 * @queue: In: PINBED_QUEUE_CONTROL, PINBED_QUEUE_VIDEO or PINBED_QUEUE_TEE.
 * @reserved: Zero.
 */
struct pinbed_exec {
	__u64 request;
	__u64 response;
	__u32 request_length;
	__u32 response_length;
	__u32 queue;
	__u32 reserved;
};

static_assert(sizeof(struct pinbed_exec) == 32);

/**
 * struct pinbed_ballast - PINBED_NR_BALLAST: allocate unmovable memory
 * (GFP_KERNEL, so neither CMA nor ZONE_MOVABLE) until only leave bytes of
 * memory outside CMA are free, so that the next movable page comes out of CMA.
 * Held until the file is closed; a second call adds. Needs CAP_SYS_ADMIN.
 * @leave: In: free bytes to leave outside CMA.
 * @held: Out: bytes this file now holds.
 */
struct pinbed_ballast {
	__u64 leave;
	__u64 held;
};

static_assert(sizeof(struct pinbed_ballast) == 16);

/*
 * struct pinbed_export.flags: the memory can be moved and revoked
 * (PINBED_NR_MOVE), unless an importer pins it.
 */
#define PINBED_EXPORT_MOVING 1
/*
 * struct pinbed_export.flags: the memory does not move, and its mapping is
 * VM_MIXEDMAP with special entries, not VM_PFNMAP.
 */
#define PINBED_EXPORT_MIXEDMAP 2
/*
 * struct pinbed_export.flags, with or without those above: importers that do
 * not say that they can do without struct pages (peer2peer), as videobuf2 does
 * not, may attach all the same. Vendors' exporters of carveouts do so; the
 * dma-buf documentation forbids it.
 */
#define PINBED_EXPORT_ANY_IMPORTER 8
/*
 * struct pinbed_export.flags, alone: the memory is not the carveout's but the
 * kernel's, contiguous and so from CMA where it is longer than a page, and the
 * device holds it as PINBED_ATTACH_PROTECTED for as long as the dma-buf lives.
 * The CPU cannot map it. It is what a kernel's own heap for protected memory
 * has, for kernels that have none.
 */
#define PINBED_EXPORT_PROTECTED 4
/* Largest struct pinbed_export.length in bytes: 1 GiB. */
#define PINBED_EXPORT_MAX 0x40000000

/**
 * struct pinbed_export - PINBED_NR_EXPORT: the carveout is memory without
 * struct pages, which the driver's parameter carveout names. Needs
 * CAP_SYS_ADMIN. Errors: ENODEV without a carveout, ENOMEM when it is full (or
 * when the kernel has no such memory to protect), EINVAL for a length of zero
 * or beyond PINBED_EXPORT_MAX, or unknown flags.
 * @length: In: bytes; the dma-buf has whole pages.
 * @address: Out: physical address of the memory.
 * @handle: Out: the device's handle of protected memory, else zero.
 * @flags: In: PINBED_EXPORT_* bits.
 * @reserved: Zero.
 */
struct pinbed_export {
	__u64 length;
	__u64 address;
	__u64 handle;
	__u32 flags;
	__u32 reserved;
};

static_assert(sizeof(struct pinbed_export) == 32);

/* struct pinbed_move.flags: the memory goes away for good. */
#define PINBED_MOVE_REVOKE 1
/*
 * struct pinbed_move.flags: the bytes arrive at the new place
 * PINBED_MOVE_FENCE_MS ms after the call has returned. A fence of the dma-buf's
 * reservation (DMA_RESV_USAGE_KERNEL) says when, as where a DMA engine copies
 * them.
 */
#define PINBED_MOVE_FENCED 2
/* How long PINBED_MOVE_FENCED takes, in milliseconds. */
#define PINBED_MOVE_FENCE_MS 200

/**
 * struct pinbed_move - PINBED_NR_MOVE: importers let go of the old place and
 * mappings of it are taken away before this returns; the bytes are at a new
 * place then, or nowhere, and the old place holds other bytes. It waits for all
 * fences of the dma-buf's reservation. Needs CAP_SYS_ADMIN. Errors: EBUSY while
 * an importer pins the memory, ENODEV when it was revoked, EINVAL for a dma-buf
 * without PINBED_EXPORT_MOVING.
 * @address: Out: physical address of the new place; zero when revoked.
 * @fd: In: the dma-buf.
 * @flags: In: PINBED_MOVE_* bits.
 */
struct pinbed_move {
	__u64 address;
	__u32 fd;
	__u32 flags;
};

static_assert(sizeof(struct pinbed_move) == 16);

/**
 * struct pinbed_import - PINBED_NR_IMPORT: imports all of a dma-buf without
 * pinning it, until the file is closed or another one is imported. While the
 * exporter moves it the device holds nothing; asked again, with the same
 * dma-buf and direction, the device holds the new place. It waits for fences
 * that say the bytes are still on their way. Errors: ENODEV for a dma-buf that
 * was revoked, EINVAL for an unknown direction, E2BIG for a dma-buf that
 * exceeds the device's limits.
 * @handle: Out: the device's handle.
 * @fd: In: the dma-buf.
 * @direction: In: PINBED_DIRECTION_*.
 */
struct pinbed_import {
	__u64 handle;
	__u32 fd;
	__u32 direction;
};

static_assert(sizeof(struct pinbed_import) == 16);

/* struct pinbed_buffer.flags: the device holds the buffer; handle is valid. */
#define PINBED_BUFFER_ATTACHED 1
/*
 * struct pinbed_buffer.flags: a job used the buffer since it was attached; the
 * job fields are valid.
 */
#define PINBED_BUFFER_JOB 2
/*
 * struct pinbed_buffer.flags: what the device holds is the driver's own memory,
 * to and from which the driver copies with the CPU; the buffer's memory is
 * unknown to the device.
 */
#define PINBED_BUFFER_BOUNCE 4

/**
 * struct pinbed_buffer - PINBED_NR_BUFFER. Errors: EINVAL for a type, index or
 * plane that does not exist.
 * @kind: In: the node's V4L2_BUF_TYPE_VIDEO_OUTPUT* or *_CAPTURE*.
 * @index: In: the buffer's index.
 * @flags: Out: PINBED_BUFFER_* bits.
 * @job_status: Out: PINBED_STATUS_* of the last job that used the buffer.
 * @handle: Out: the device's handle.
 * @job_cookie: Out: the last job's cookie, the same on the buffer it read and
 *   the one it wrote.
 * @job_bytes: Out: bytes the last job moved in this buffer.
 * @job_crc: Out: CRC32C of these bytes, as the engine saw them.
 * @plane: In: the plane; all of the above is its.
 */
struct pinbed_buffer {
	__u32 kind;
	__u32 index;
	__u32 flags;
	__u32 job_status;
	__u64 handle;
	__u64 job_cookie;
	__u64 job_bytes;
	__u32 job_crc;
	__u32 plane;
};

static_assert(sizeof(struct pinbed_buffer) == 48);

#endif /* PINBED_ABI_H */
