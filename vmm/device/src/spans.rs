// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lines of the log, at level trace, for the beginning and the end of the work on a request: `begin QUEUE OP COOKIE` and `end QUEUE STATUS
//! COOKIE`, each number in hexadecimal. The work of one request is on one thread; a trusted application's call is another span than its
//! being taken off the queue. `pinbed trace` reads them.

use pinbed_abi::wire::{RequestHeader, ResponseHeader};
use zerocopy::FromBytes;

/// The work on a request begins.
pub(crate) fn begin(queue: u32, request: &[u8]) {
    if let Ok((header, _)) = RequestHeader::read_from_prefix(request) {
        log::trace!("begin {queue:x} {:x} {:x}", header.op, header.cookie);
    }
}

/// It ends with this answer, which has not been sent yet.
pub(crate) fn end(queue: u32, answer: &[u8]) {
    match ResponseHeader::read_from_prefix(answer) {
        Ok((header, _)) => log::trace!("end {queue:x} {:x} {:x}", header.status, header.cookie),
        // Taken off the queue, to be answered later; or not answered at all.
        Err(_) => log::trace!("end {queue:x} - 0"),
    }
}
