// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The wire format of the TEE queue.
//!
//! A request carries a call of GlobalPlatform's *TEE Client API* (v1.0) as Linux's TEE subsystem hands it to a driver
//! (`include/uapi/linux/tee.h`). Two layers of result stay apart: the status in [`ResponseHeader`] says whether the
//! device understood the request at all ([`crate::wire::STATUS_INVALID`], [`crate::wire::STATUS_UNSUPPORTED`]); with
//! [`crate::wire::STATUS_OK`] the call was made and `result` and `origin` are what the client gets to see.
//!
//! Memory: a memref names a buffer that was attached through the control queue
//! ([`crate::wire::DIRECTION_BOTH`], since the TEE's clients choose a direction anew in each call). It may stay named by a
//! trusted application after the call; once the buffer is detached such an access is a DMA fault.
//!
//! Calls are answered out of order: one that blocks does not keep others from being answered.
//!
//! Names that begin with `TEEC_` are those of the TEE Client API.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{Fault, RequestHeader, ResponseHeader, wire_struct};

/// Open a session with a trusted application. [`OpenSessionRequest`] → [`CallResponse`].
pub const OP_OPEN_SESSION: u32 = 0x0300;
/// Call a function of a trusted application. [`InvokeRequest`] → [`CallResponse`].
pub const OP_INVOKE: u32 = 0x0301;
/// Ask an open or invoke that is under way to end. [`CancelRequest`] → [`ResultResponse`], at once: the call that is
/// cancelled answers for itself, with [`TEEC_ERROR_CANCEL`] if it does not run yet, or its trusted application has unmasked
/// cancellation and waits.
pub const OP_CANCEL: u32 = 0x0302;
/// Close a session. [`CloseSessionRequest`] → [`ResultResponse`], when the calls under way in the session have ended: they are
/// cancelled, and answer for themselves; no call begins in the session any more.
pub const OP_CLOSE_SESSION: u32 = 0x0303;
/// The client is gone. [`CloseContextRequest`] → [`ResultResponse`], at once: closes all sessions of the context and ends
/// its calls, also those that mask cancellation. A context that has no session is no error.
pub const OP_CLOSE_CONTEXT: u32 = 0x0304;

/// Parameters of a call.
pub const PARAM_COUNT: u32 = 4;

/// [`Param::attr`]: not used (`TEE_IOCTL_PARAM_ATTR_TYPE_NONE`).
pub const PARAM_NONE: u64 = 0;
/// [`Param::attr`]: a value that the trusted application reads (`…_VALUE_INPUT`).
pub const PARAM_VALUE_INPUT: u64 = 1;
/// [`Param::attr`]: a value that it writes (`…_VALUE_OUTPUT`).
pub const PARAM_VALUE_OUTPUT: u64 = 2;
/// [`Param::attr`]: a value that it reads and writes (`…_VALUE_INOUT`).
pub const PARAM_VALUE_INOUT: u64 = 3;
/// [`Param::attr`]: memory that it reads (`…_MEMREF_INPUT`).
pub const PARAM_MEMREF_INPUT: u64 = 5;
/// [`Param::attr`]: memory that it writes (`…_MEMREF_OUTPUT`).
pub const PARAM_MEMREF_OUTPUT: u64 = 6;
/// [`Param::attr`]: memory that it reads and writes (`…_MEMREF_INOUT`).
pub const PARAM_MEMREF_INOUT: u64 = 7;

/// Done.
pub const TEEC_SUCCESS: u32 = 0;
/// No reason can be given.
pub const TEEC_ERROR_GENERIC: u32 = 0xffff_0000;
/// Not allowed for this client.
pub const TEEC_ERROR_ACCESS_DENIED: u32 = 0xffff_0001;
/// The call was cancelled.
pub const TEEC_ERROR_CANCEL: u32 = 0xffff_0002;
/// Parameters of the wrong kind or with impossible contents; also: no such session.
pub const TEEC_ERROR_BAD_PARAMETERS: u32 = 0xffff_0006;
/// Not in this state.
pub const TEEC_ERROR_BAD_STATE: u32 = 0xffff_0007;
/// No such trusted application, or object.
pub const TEEC_ERROR_ITEM_NOT_FOUND: u32 = 0xffff_0008;
/// The trusted application has no such function, algorithm or size.
pub const TEEC_ERROR_NOT_SUPPORTED: u32 = 0xffff_000a;
/// A bound on memory or on a number of things is reached.
pub const TEEC_ERROR_OUT_OF_MEMORY: u32 = 0xffff_000c;
/// Too many calls at a time, or a second session with a trusted application that takes one.
pub const TEEC_ERROR_BUSY: u32 = 0xffff_000d;
/// The way to the TEE is broken; for the driver's use.
pub const TEEC_ERROR_COMMUNICATION: u32 = 0xffff_000e;
/// A memref goes past its buffer's end, or memory went away under a call; [`CallResponse::fault`] says which.
pub const TEEC_ERROR_SECURITY: u32 = 0xffff_000f;
/// The output does not fit; the memref's size says what is needed.
pub const TEEC_ERROR_SHORT_BUFFER: u32 = 0xffff_0010;
/// The trusted application has panicked; its sessions can only be closed.
pub const TEEC_ERROR_TARGET_DEAD: u32 = 0xffff_3024;
/// The trusted application's storage is full.
pub const TEEC_ERROR_STORAGE_NO_SPACE: u32 = 0xffff_3041;
/// A message is not the one that its tag was made for.
pub const TEE_ERROR_MAC_INVALID: u32 = 0xffff_3071;
/// A ciphertext cannot be decrypted (RSA padding).
pub const TEE_ERROR_CIPHERTEXT_INVALID: u32 = 0xf010_0006;

/// [`CallResponse::origin`]: on the way to the TEE; for the driver's use.
pub const TEEC_ORIGIN_COMMS: u32 = 2;
/// [`CallResponse::origin`]: the TEE itself.
pub const TEEC_ORIGIN_TEE: u32 = 3;
/// [`CallResponse::origin`]: the trusted application.
pub const TEEC_ORIGIN_TRUSTED_APP: u32 = 4;

wire_struct! {
    /// A parameter; laid out as `struct tee_ioctl_param`.
    pub struct Param {
        /// `PARAM_…`; no other bit may be set.
        pub attr: U64,
        /// First part of a value; a memref's offset into its buffer, in bytes.
        pub a: U64,
        /// Second part of a value; a memref's size in bytes.
        pub b: U64,
        /// Third part of a value; the handle of a memref's buffer, zero for the NULL memref (offset and size are then
        /// without meaning).
        pub c: U64,
    }
}

wire_struct! {
    /// [`OP_OPEN_SESSION`].
    pub struct OpenSessionRequest {
        /// `op` is [`OP_OPEN_SESSION`].
        pub header: RequestHeader,
        /// The client, as the driver tells them apart: one for each open of the TEE's device node. A session belongs to
        /// the context that opened it.
        pub context: U64,
        /// The trusted application: 16 octets in the order of RFC 4122.
        pub uuid: [u8; 16],
        /// The client's UUID as the kernel computed it for `client_login`.
        pub client_uuid: [u8; 16],
        /// `TEE_IOCTL_LOGIN_…`.
        pub client_login: U32,
        /// By which [`CancelRequest`] finds the call.
        pub cancel_id: U32,
        /// For the trusted application.
        pub params: [Param; 4],
    }
}

wire_struct! {
    /// [`OP_INVOKE`].
    pub struct InvokeRequest {
        /// `op` is [`OP_INVOKE`].
        pub header: RequestHeader,
        /// The client.
        pub context: U64,
        /// One of its sessions.
        pub session: U32,
        /// The function; each trusted application has its own.
        pub function: U32,
        /// By which [`CancelRequest`] finds the call.
        pub cancel_id: U32,
        /// Zero.
        pub reserved: U32,
        /// For the trusted application.
        pub params: [Param; 4],
    }
}

wire_struct! {
    /// [`OP_CANCEL`]: every call of this context, session and cancel id that has not been answered.
    pub struct CancelRequest {
        /// `op` is [`OP_CANCEL`].
        pub header: RequestHeader,
        /// The client.
        pub context: U64,
        /// Of an invoke: its session. Of an open: zero.
        pub session: U32,
        /// The call's.
        pub cancel_id: U32,
    }
}

wire_struct! {
    /// [`OP_CLOSE_SESSION`].
    pub struct CloseSessionRequest {
        /// `op` is [`OP_CLOSE_SESSION`].
        pub header: RequestHeader,
        /// The client.
        pub context: U64,
        /// One of its sessions.
        pub session: U32,
        /// Zero.
        pub reserved: U32,
    }
}

wire_struct! {
    /// [`OP_CLOSE_CONTEXT`].
    pub struct CloseContextRequest {
        /// `op` is [`OP_CLOSE_CONTEXT`].
        pub header: RequestHeader,
        /// The client. Afterwards the driver may use the number for another.
        pub context: U64,
    }
}

wire_struct! {
    /// Answer to [`OpenSessionRequest`] and [`InvokeRequest`].
    pub struct CallResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// The first memory access of the call that missed, if one did; it is also sent as an event.
        pub fault: Fault,
        /// `TEEC_SUCCESS`, `TEEC_ERROR_…`, or what else the trusted application chose to return.
        pub result: U32,
        /// `TEEC_ORIGIN_…`.
        pub origin: U32,
        /// OPEN_SESSION with [`TEEC_SUCCESS`]: the new session; never zero. INVOKE: the request's. Else zero.
        pub session: U32,
        /// Zero.
        pub reserved: U32,
        /// The request's, with output values and the sizes of output memrefs as the trusted application left them; also
        /// where the result is an error.
        pub params: [Param; 4],
    }
}

wire_struct! {
    /// Answer to [`CancelRequest`], [`CloseSessionRequest`], [`CloseContextRequest`].
    pub struct ResultResponse {
        /// Status and cookie.
        pub header: ResponseHeader,
        /// [`TEEC_SUCCESS`], or [`TEEC_ERROR_BAD_PARAMETERS`]: the context has no such session.
        pub result: U32,
        /// [`TEEC_ORIGIN_TEE`].
        pub origin: U32,
    }
}
