// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests from byte slices.

use pinbed_abi::wire;
use zerocopy::FromBytes;

/// A request whose header is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub header: wire::RequestHeader,
    bytes: &'a [u8],
    /// Bytes that the answer may take up.
    pub room: usize,
}

impl<'a> Request<'a> {
    /// `None` if `bytes` are shorter than a header.
    pub fn parse(bytes: &'a [u8], room: usize) -> Option<Self> {
        let (header, _) = wire::RequestHeader::read_from_prefix(bytes).ok()?;
        Some(Self {
            header,
            bytes,
            room,
        })
    }

    pub fn op(&self) -> u32 {
        self.header.op.get()
    }

    /// A `Q`, and what follows it.
    pub fn with_rest<Q: FromBytes>(&self) -> Result<(Q, &'a [u8]), u32> {
        match Q::read_from_prefix(self.bytes) {
            Ok(decoded) if self.header.reserved.get() == 0 => Ok(decoded),
            _ => Err(wire::STATUS_INVALID),
        }
    }

    /// A `Q`, which nothing follows.
    pub fn exactly<Q: FromBytes>(&self) -> Result<Q, u32> {
        match self.with_rest()? {
            (request, []) => Ok(request),
            _ => Err(wire::STATUS_INVALID),
        }
    }
}
