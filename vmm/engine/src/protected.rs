// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Protected memory: whose it is, and what stands in it.
//!
//! Protection goes by address, not by buffer, as in a bus firewall: memory that one buffer protects is protected whichever
//! buffer names it. An [`Agent`] that may not reach it faults.
//!
//! What agents write to protected memory is enciphered on its way, and deciphered on the way back, as by a memory
//! encryption engine: the CPU, which no firewall of this device stops, sees ciphertext. It also shows where the kernel moved
//! the memory, since a byte deciphers at its own address only. The cipher is AES in counter mode, the counter being the
//! address: unlike a real engine's it repeats when a byte is written again, which a guest that is its own adversary may do
//! with its own bytes.

use std::collections::BTreeMap;

use aes::Aes128;
use cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use ctr::Ctr128BE;
use vm_memory::Permissions;

use crate::dma::{Access, Direction, Piece};

/// Spans that a guest can make of its memory; each takes some 60 bytes.
const MAX_SPANS: usize = 1 << 18;

/// Who reaches for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The control queue.
    Control,
    /// The video engine.
    Video,
    /// A trusted application.
    Tee {
        /// It may have protected memory.
        secure: bool,
    },
}

/// Why memory was not protected, or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Some of it is protected already.
    #[error("memory is protected already")]
    Twice,
    /// It is in too many pieces.
    #[error("protected memory is in too many pieces")]
    Limit,
    /// Not all of it is protected.
    #[error("memory is not protected")]
    NotProtected,
    /// The system has no random bytes for a key.
    #[error("the system has no random bytes")]
    NoKey,
}

/// Protected memory from one address on.
#[derive(Clone, Copy, Debug)]
struct Span {
    end: u64,
    /// The buffer that protects it.
    handle: u64,
    /// What the video engine may do.
    video: Permissions,
}

/// All protected memory.
#[derive(Default)]
pub struct Protected {
    /// By first address; no two overlap.
    spans: BTreeMap<u64, Span>,
    key: Option<[u8; 16]>,
}

impl std::fmt::Debug for Protected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.spans).finish()
    }
}

impl Protected {
    /// Protects the memory of a buffer.
    pub fn add(&mut self, handle: u64, pieces: &[Piece]) -> Result<(), Refusal> {
        if self.key.is_none() {
            let mut key = [0; 16];
            getrandom::fill(&mut key).map_err(|_| Refusal::NoKey)?;
            self.key = Some(key);
        }
        if self.spans.len() + pieces.len() > MAX_SPANS {
            return Err(Refusal::Limit);
        }
        for piece in pieces {
            if self.overlapping(*piece).next().is_some() {
                self.remove(handle);
                return Err(Refusal::Twice);
            }
            let span = Span {
                end: piece.address + piece.length,
                handle,
                video: Permissions::No,
            };
            self.spans.insert(piece.address, span);
        }
        Ok(())
    }

    /// Protects the memory of a buffer no more.
    pub fn remove(&mut self, handle: u64) {
        self.spans.retain(|_, span| span.handle != handle);
    }

    /// Protects nothing.
    pub fn clear(&mut self) {
        self.spans.clear();
    }

    /// Whether `agent` may reach for `piece`.
    pub fn admits(&self, agent: Agent, access: Access, piece: Piece) -> bool {
        let mut spans = self.overlapping(piece);
        match agent {
            Agent::Tee { secure: true } => true,
            Agent::Tee { secure: false } | Agent::Control => spans.next().is_none(),
            Agent::Video => spans.all(|(_, span)| span.video.allow(access.of_memory())),
        }
    }

    /// Whether all of `pieces` is protected.
    pub fn covers(&self, pieces: &[Piece]) -> bool {
        pieces.iter().all(|piece| {
            let mut at = piece.address;
            for (start, span) in self.overlapping(*piece) {
                if start > at {
                    return false;
                }
                at = span.end;
            }
            at >= piece.address + piece.length
        })
    }

    /// Sets what the video engine may do with `pieces`.
    pub fn allow_video(
        &mut self,
        pieces: &[Piece],
        direction: Option<Direction>,
    ) -> Result<(), Refusal> {
        if !self.covers(pieces) {
            return Err(Refusal::NotProtected);
        }
        if self.spans.len() + 2 * pieces.len() > MAX_SPANS {
            return Err(Refusal::Limit);
        }
        let video = direction.map_or(Permissions::No, Direction::permissions);
        for piece in pieces {
            let end = piece.address + piece.length;
            self.split(piece.address);
            self.split(end);
            for (_, span) in self.spans.range_mut(piece.address..end) {
                span.video = video;
            }
        }
        Ok(())
    }

    /// Enciphers bytes on their way to `pieces`, or deciphers those that come from there; those of memory that is not
    /// protected stay as they are.
    pub fn cipher(&self, pieces: &[Piece], mut bytes: &mut [u8]) {
        let Some(key) = self.key.filter(|_| !self.spans.is_empty()) else {
            return;
        };
        let mut stream = Ctr128BE::<Aes128>::new(&key.into(), &[0; 16].into());
        for piece in pieces {
            let (now, later) = bytes.split_at_mut(bytes.len().min(piece.length as usize));
            for (start, span) in self.overlapping(*piece) {
                let from = start.max(piece.address);
                let to = span.end.min(piece.address + piece.length);
                let part = (from - piece.address) as usize..(to - piece.address) as usize;
                stream.seek(from);
                stream.apply_keystream(&mut now[part]);
            }
            bytes = later;
        }
    }

    /// Whether [`Protected::cipher`] changes bytes of `pieces`.
    pub fn touches(&self, pieces: &[Piece]) -> bool {
        pieces
            .iter()
            .any(|piece| self.overlapping(*piece).next().is_some())
    }

    /// Spans that share bytes with `piece`, with their first addresses.
    fn overlapping(&self, piece: Piece) -> impl Iterator<Item = (u64, &Span)> {
        let before = self.spans.range(..piece.address).next_back();
        let before = before.filter(|(_, span)| span.end > piece.address);
        let within = self
            .spans
            .range(piece.address..piece.address + piece.length);
        before
            .into_iter()
            .chain(within)
            .map(|(start, span)| (*start, span))
    }

    /// Has no span go across `at`.
    fn split(&mut self, at: u64) {
        if let Some((_, span)) = self.spans.range_mut(..at).next_back()
            && span.end > at
        {
            let rest = *span;
            span.end = at;
            self.spans.insert(at, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECURE: Agent = Agent::Tee { secure: true };
    const OTHERS: [Agent; 3] = [Agent::Control, Agent::Video, Agent::Tee { secure: false }];

    fn piece(address: u64, length: u64) -> Piece {
        Piece { address, length }
    }

    #[test]
    fn keeps_others_out_of_each_byte() {
        let mut protected = Protected::default();
        protected
            .add(1, &[piece(100, 10), piece(110, 5), piece(200, 1)])
            .unwrap();
        for (other, inside) in [
            (piece(99, 1), false),
            (piece(90, 11), true),
            (piece(104, 2), true),
            (piece(114, 1), true),
            (piece(115, 85), false),
            (piece(115, 86), true),
            (piece(0, 1000), true),
            (piece(201, 1), false),
        ] {
            for access in [Access::Read, Access::Write, Access::Inspect] {
                assert!(protected.admits(SECURE, access, other));
                for agent in OTHERS {
                    assert_eq!(protected.admits(agent, access, other), !inside, "{other:?}");
                }
            }
        }
        protected.remove(2);
        assert!(!protected.admits(Agent::Video, Access::Read, piece(200, 1)));
        protected.remove(1);
        assert!(protected.admits(Agent::Video, Access::Read, piece(0, 1000)));
    }

    #[test]
    fn knows_what_is_protected_as_a_whole() {
        let mut protected = Protected::default();
        protected.add(1, &[piece(100, 10), piece(110, 5)]).unwrap();
        protected.add(2, &[piece(115, 5)]).unwrap();
        for (whole, covered) in [
            (piece(100, 20), true),
            (piece(105, 12), true),
            (piece(99, 2), false),
            (piece(119, 2), false),
        ] {
            assert_eq!(protected.covers(&[whole]), covered, "{whole:?}");
            assert!(!protected.covers(&[whole, piece(0, 1)]));
        }
        protected.remove(1);
        assert!(!protected.covers(&[piece(110, 10)]));
    }

    #[test]
    fn opens_to_the_video_engine_what_it_is_told_to() {
        let mut protected = Protected::default();
        protected.add(1, &[piece(100, 100)]).unwrap();
        let refused = protected.allow_video(&[piece(150, 51)], Some(Direction::Read));
        assert_eq!(refused, Err(Refusal::NotProtected));
        protected
            .allow_video(&[piece(120, 20)], Some(Direction::Read))
            .unwrap();
        let video =
            |protected: &Protected, access, piece| protected.admits(Agent::Video, access, piece);
        assert!(video(&protected, Access::Read, piece(120, 20)));
        assert!(!video(&protected, Access::Write, piece(120, 20)));
        for edge in [piece(119, 2), piece(139, 2)] {
            assert!(!video(&protected, Access::Read, edge));
        }
        for agent in [Agent::Control, Agent::Tee { secure: false }] {
            assert!(!protected.admits(agent, Access::Read, piece(125, 1)));
        }
        protected
            .allow_video(&[piece(130, 20)], Some(Direction::Both))
            .unwrap();
        assert!(video(&protected, Access::Read, piece(120, 30)));
        assert!(video(&protected, Access::Write, piece(130, 20)));
        assert!(!video(&protected, Access::Write, piece(129, 2)));
        protected.allow_video(&[piece(125, 10)], None).unwrap();
        assert!(!video(&protected, Access::Read, piece(120, 30)));
        assert!(video(&protected, Access::Read, piece(120, 5)));
        protected.remove(1);
        assert!(protected.spans.is_empty());
    }

    #[test]
    fn protects_no_memory_twice_and_then_none_of_it() {
        let mut protected = Protected::default();
        protected.add(1, &[piece(100, 10)]).unwrap();
        let twice = protected.add(2, &[piece(50, 10), piece(109, 2)]);
        assert_eq!(twice, Err(Refusal::Twice));
        assert!(protected.admits(Agent::Control, Access::Read, piece(50, 10)));
        assert!(!protected.admits(Agent::Control, Access::Read, piece(100, 10)));
        let itself = protected.add(3, &[piece(0, 10), piece(5, 10)]);
        assert_eq!(itself, Err(Refusal::Twice));
    }

    #[test]
    fn enciphers_by_address_and_only_what_is_protected() {
        let mut protected = Protected::default();
        protected
            .add(1, &[piece(100, 50), piece(1000, 50)])
            .unwrap();
        let pieces = [piece(80, 40), piece(1040, 30)];
        let plain: Vec<u8> = (0..70).collect();
        let mut bytes = plain.clone();
        protected.cipher(&pieces, &mut bytes);
        assert_eq!(bytes[..20], plain[..20]);
        assert_eq!(bytes[50..], plain[50..]);
        assert_ne!(bytes[20..40], plain[20..40]);
        assert_ne!(bytes[40..50], plain[40..50]);
        assert!(protected.touches(&pieces) && !protected.touches(&[piece(80, 20)]));
        // Byte by byte, and under another division into pieces, it is the same.
        for (n, address) in (80..120).chain(1040..1070).enumerate() {
            protected.cipher(&[piece(address, 1)], &mut bytes[n..n + 1]);
        }
        assert_eq!(bytes, plain);
        // What was enciphered in one place is garbage in another, and stays readable whoever else may read it.
        for (from, to) in [(100, 101), (100, 1000)] {
            let mut moved = plain[..20].to_vec();
            protected.cipher(&[piece(from, 20)], &mut moved);
            protected.cipher(&[piece(to, 20)], &mut moved);
            assert_ne!(moved, plain[..20]);
        }
        let mut bytes = plain[..20].to_vec();
        protected.cipher(&[piece(100, 20)], &mut bytes);
        protected
            .allow_video(&[piece(105, 5)], Some(Direction::Read))
            .unwrap();
        protected.cipher(&[piece(100, 20)], &mut bytes);
        assert_eq!(bytes, plain[..20]);
    }
}
