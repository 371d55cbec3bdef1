// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Answers to byte slices.

use pinbed_abi::{tee, wire};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::decode::Request;
use crate::access::Piece;

/// What the device says to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Bytes to write to the request's writable room, and no more than that. Empty if there is no room for a
    /// [`wire::ResponseHeader`] or the request is too short to have one.
    pub bytes: Vec<u8>,
    /// Events that the request caused. They are to reach the driver before the answer does.
    pub events: Vec<wire::Event>,
}

/// The fixed part of an answer.
pub(crate) trait Response: FromZeros + IntoBytes + Immutable {
    fn header_mut(&mut self) -> &mut wire::ResponseHeader;
}

impl Response for wire::ResponseHeader {
    fn header_mut(&mut self) -> &mut wire::ResponseHeader {
        self
    }
}

macro_rules! response {
    ($($name:path),*) => {
        $(impl Response for $name {
            fn header_mut(&mut self) -> &mut wire::ResponseHeader {
                &mut self.header
            }
        })*
    };
}

response!(
    wire::StatusResponse,
    wire::AttachResponse,
    wire::QueryResponse,
    wire::ChecksumResponse,
    wire::JobResponse,
    tee::CallResponse,
    tee::ResultResponse
);

/// Header of an answer with this status; [`Request::answer`] adds the cookie.
pub(crate) fn status(status: u32) -> wire::ResponseHeader {
    wire::ResponseHeader {
        status: status.into(),
        ..Default::default()
    }
}

impl Request<'_> {
    /// Runs an operation and encodes its answer: an `R` and segments, or a refusal's status and an otherwise empty `R`. The
    /// operation is not run when its answer would not fit.
    pub fn answer<R: Response>(
        &self,
        run: impl FnOnce() -> Result<(R, Vec<Piece>), u32>,
    ) -> Vec<u8> {
        if self.room < size_of::<R>() {
            return self.refuse(wire::STATUS_INVALID);
        }
        let (mut response, pieces) = run().unwrap_or_else(|refusal| {
            let mut response = R::new_zeroed();
            response.header_mut().status = refusal.into();
            (response, Vec::new())
        });
        response.header_mut().cookie = self.header.cookie;
        let mut bytes = response.as_bytes().to_vec();
        bytes.reserve_exact(pieces.len() * size_of::<wire::Segment>());
        for piece in pieces {
            bytes.extend_from_slice(wire::Segment::from(piece).as_bytes());
        }
        bytes
    }

    /// As [`Request::answer`], of an operation whose answer has no segments.
    pub fn reply<R: Response>(&self, run: impl FnOnce() -> Result<R, u32>) -> Vec<u8> {
        self.answer(|| Ok((run()?, Vec::new())))
    }

    /// An answer of a status alone, if there is room for one.
    pub fn refuse(&self, refusal: u32) -> Vec<u8> {
        let header = wire::ResponseHeader {
            cookie: self.header.cookie,
            ..status(refusal)
        };
        if self.room < size_of_val(&header) {
            return Vec::new();
        }
        header.as_bytes().to_vec()
    }

    /// Segments that fit behind an `R`.
    pub fn room_for_segments<R>(&self) -> usize {
        self.room.saturating_sub(size_of::<R>()) / size_of::<wire::Segment>()
    }
}
