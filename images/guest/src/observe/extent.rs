// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pieces of physical memory, as the page tables and the device see a buffer.

use pinbed_abi::wire::Segment;
use std::fmt;

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// A contiguous piece of physical memory; addresses and lengths in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Physical address of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.address, self.length)
    }
}

impl From<&Segment> for Extent {
    fn from(segment: &Segment) -> Self {
        Self {
            address: segment.address.get(),
            length: segment.length.get(),
        }
    }
}

/// The same bytes in the same order with the fewest pieces, so that two descriptions of a buffer can be compared.
pub fn merged(pieces: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::new();
    for piece in pieces {
        match result.last_mut() {
            Some(last) if last.address.wrapping_add(last.length) == piece.address => {
                last.length += piece.length
            }
            _ => result.push(piece),
        }
    }
    result
}

/// Page frame numbers that the pieces touch, in order.
pub fn frames(pieces: &[Extent]) -> impl Iterator<Item = u64> + '_ {
    let page = PAGE as u64;
    pieces
        .iter()
        .flat_map(move |piece| piece.address / page..(piece.address + piece.length).div_ceil(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: u64, length: u64) -> Extent {
        Extent { address, length }
    }

    #[test]
    fn only_neighbours_in_order_merge() {
        assert_eq!(
            merged([at(0x1ff8, 8), at(0x2000, 0x1000), at(0x1000, 8)]),
            [at(0x1ff8, 0x1008), at(0x1000, 8)]
        );
    }

    #[test]
    fn frames_cover_partial_pages_at_both_ends() {
        assert_eq!(
            frames(&[at(0x1ff8, 0x10), at(0x9000, 1)]).collect::<Vec<_>>(),
            [1, 2, 9]
        );
    }
}
