// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Protected memory: which memory it is, whose, and what stands in it.
//!
//! Protection goes by address, not by buffer, as in a bus firewall: memory that one attachment protects is protected whichever
//! buffer names it. An [`Agent`] that may not access it faults.
//!
//! An attachment has an owner: the first session of a trusted application with the right to protected memory that accesses it.
//! No other session accesses it while the owner lives. The next owner finds another key, so that it cannot read what the last
//! one left, and no permission for the video engine.
//!
//! What agents write to protected memory is encrypted on its way, and decrypted on the way back, as by a memory
//! encryption engine: the CPU, which no firewall of this device stops, sees ciphertext. Each attachment has a random key of its
//! own, so that memory which is protected again reads as garbage. A byte decrypts at its own address only, which shows where the
//! kernel moved the memory. The cipher is AES-128 in counter mode, the counter being the address: unlike a real engine's, the
//! key stream repeats when a byte is written again, so that who sees two ciphertexts of one owner's byte sees their difference.

use std::collections::BTreeMap;
use std::sync::Weak;

use aes::Aes128;
use cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use ctr::Ctr128BE;
use vm_memory::Permissions;

use crate::access::{Access, Agent, Direction, Owner, Piece};

/// Reasons not to protect memory, or not to open it to the video engine.
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
    /// The attachment that protects it.
    handle: u64,
    /// What the video engine may do, while the owner lives.
    video: Permissions,
}

struct Attachment {
    key: [u8; 16],
    owner: Weak<()>,
}

impl Attachment {
    fn new() -> Result<Self, Refusal> {
        Ok(Self {
            key: fresh_key()?,
            owner: Weak::new(),
        })
    }

    fn is_owned(&self) -> bool {
        self.owner.strong_count() > 0
    }
}

fn fresh_key() -> Result<[u8; 16], Refusal> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| Refusal::NoKey)?;
    Ok(key)
}

/// All protected memory.
pub struct Protected {
    /// By first address; no two overlap.
    spans: BTreeMap<u64, Span>,
    /// By handle.
    attachments: BTreeMap<u64, Attachment>,
    max_spans: usize,
}

impl std::fmt::Debug for Protected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.spans).finish()
    }
}

impl Protected {
    /// Protects nothing yet, and never more than `max_spans` pieces.
    pub fn new(max_spans: u32) -> Self {
        Self {
            spans: BTreeMap::new(),
            attachments: BTreeMap::new(),
            max_spans: max_spans as usize,
        }
    }

    /// Protects the memory of an attachment.
    pub fn add(&mut self, handle: u64, pieces: &[Piece]) -> Result<(), Refusal> {
        if self.spans.len() + pieces.len() > self.max_spans {
            return Err(Refusal::Limit);
        }
        self.attachments.insert(handle, Attachment::new()?);
        for piece in pieces {
            if self.touches(*piece) {
                self.remove(handle);
                return Err(Refusal::Twice);
            }
            let span = Span {
                end: piece.end(),
                handle,
                video: Permissions::No,
            };
            self.spans.insert(piece.address, span);
        }
        Ok(())
    }

    /// Protects the memory of an attachment no more.
    pub fn remove(&mut self, handle: u64) {
        if self.attachments.remove(&handle).is_some() {
            self.spans.retain(|_, span| span.handle != handle);
        }
    }

    /// Protects nothing.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.attachments.clear();
    }

    /// Whether `agent` may access `piece`.
    pub fn admits(&self, agent: Agent, access: Access, piece: Piece) -> bool {
        self.overlapping(piece).all(|(_, span)| {
            let Some(attachment) = self.attachments.get(&span.handle) else {
                return false;
            };
            match agent {
                Agent::Control | Agent::Tee => false,
                Agent::Video => attachment.is_owned() && span.video.allow(access.of_memory()),
                Agent::SecureTee(owner) => owner.is(&attachment.owner),
            }
        })
    }

    /// Whether some of `piece` is protected and has no owner.
    pub fn is_vacant(&self, piece: Piece) -> bool {
        self.overlapping(piece).any(|(_, span)| {
            let attachment = self.attachments.get(&span.handle);
            attachment.is_some_and(|attachment| !attachment.is_owned())
        })
    }

    /// Makes `owner` the owner of what is vacant of `piece`: of the whole attachments that protect it. What stands there
    /// reads as garbage from now on.
    pub fn claim(&mut self, owner: &Owner, piece: Piece) -> Result<(), Refusal> {
        let handles: Vec<u64> = self
            .overlapping(piece)
            .map(|(_, span)| span.handle)
            .collect();
        for handle in handles {
            let Some(attachment) = self.attachments.get_mut(&handle) else {
                continue;
            };
            if attachment.is_owned() {
                continue;
            }
            attachment.key = fresh_key()?;
            attachment.owner = owner.downgrade();
            let spans = self.spans.values_mut();
            for span in spans.filter(|span| span.handle == handle) {
                span.video = Permissions::No;
            }
        }
        Ok(())
    }

    /// Whether all of `piece` is protected.
    pub fn covers(&self, piece: Piece) -> bool {
        let mut at = piece.address;
        for (start, span) in self.overlapping(piece) {
            if start > at {
                return false;
            }
            at = span.end;
        }
        at >= piece.end()
    }

    /// Sets what the video engine may do with `pieces`, which its caller may access.
    pub fn allow_video(
        &mut self,
        pieces: &[Piece],
        direction: Option<Direction>,
    ) -> Result<(), Refusal> {
        if !pieces.iter().all(|piece| self.covers(*piece)) {
            return Err(Refusal::NotProtected);
        }
        if self.spans.len() + 2 * pieces.len() > self.max_spans {
            return Err(Refusal::Limit);
        }
        let video = direction.map_or(Permissions::No, Direction::permissions);
        for piece in pieces {
            self.split(piece.address);
            self.split(piece.end());
            for (_, span) in self.spans.range_mut(piece.address..piece.end()) {
                span.video = video;
            }
        }
        Ok(())
    }

    /// Encrypts bytes on their way to `piece`, or decrypts those that come from there; those of memory that is not
    /// protected stay as they are.
    pub fn cipher(&self, piece: Piece, bytes: &mut [u8]) {
        for (start, span) in self.overlapping(piece) {
            let Some(attachment) = self.attachments.get(&span.handle) else {
                continue;
            };
            let from = start.max(piece.address);
            let to = span.end.min(piece.end());
            let part = (from - piece.address) as usize..(to - piece.address) as usize;
            let mut stream = Ctr128BE::<Aes128>::new(&attachment.key.into(), &[0; 16].into());
            stream.seek(from);
            stream.apply_keystream(&mut bytes[part]);
        }
    }

    /// Whether some of `piece` is protected, so that [`Protected::cipher`] changes its bytes.
    pub fn touches(&self, piece: Piece) -> bool {
        self.overlapping(piece).next().is_some()
    }

    /// Spans that share bytes with `piece`, with their first addresses.
    fn overlapping(&self, piece: Piece) -> impl Iterator<Item = (u64, &Span)> {
        let before = self.spans.range(..piece.address).next_back();
        let before = before.filter(|(_, span)| span.end > piece.address);
        let within = self.spans.range(piece.address..piece.end());
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

    const OTHERS: [Agent; 3] = [Agent::Control, Agent::Video, Agent::Tee];
    const SPANS: u32 = 64;

    fn piece(address: u64, length: u64) -> Piece {
        Piece { address, length }
    }

    #[test]
    fn keeps_others_out_of_each_byte() {
        let mut protected = Protected::new(SPANS);
        protected
            .add(1, &[piece(100, 10), piece(110, 5), piece(200, 1)])
            .unwrap();
        let owner = Owner::default();
        protected.claim(&owner, piece(100, 1)).unwrap();
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
                assert!(protected.admits(Agent::SecureTee(&owner), access, other));
                let stranger = Owner::default();
                assert_eq!(
                    protected.admits(Agent::SecureTee(&stranger), access, other),
                    !inside
                );
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
        let mut protected = Protected::new(SPANS);
        protected.add(1, &[piece(100, 10), piece(110, 5)]).unwrap();
        protected.add(2, &[piece(115, 5)]).unwrap();
        for (whole, covered) in [
            (piece(100, 20), true),
            (piece(105, 12), true),
            (piece(99, 2), false),
            (piece(119, 2), false),
        ] {
            assert_eq!(protected.covers(whole), covered, "{whole:?}");
        }
        protected.remove(1);
        assert!(!protected.covers(piece(110, 10)));
    }

    #[test]
    fn opens_to_the_video_engine_what_it_is_told_to() {
        let mut protected = Protected::new(SPANS);
        protected.add(1, &[piece(100, 100)]).unwrap();
        let owner = Owner::default();
        protected.claim(&owner, piece(100, 100)).unwrap();
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
        for agent in [Agent::Control, Agent::Tee] {
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
        // What the owner allowed ends with it, and does not come back with the next.
        drop(owner);
        assert!(!video(&protected, Access::Read, piece(120, 5)));
        let next = Owner::default();
        protected.claim(&next, piece(100, 1)).unwrap();
        assert!(!video(&protected, Access::Read, piece(120, 5)));
        protected.remove(1);
        assert!(protected.spans.is_empty() && protected.attachments.is_empty());
    }

    #[test]
    fn protects_no_memory_twice_and_then_none_of_it() {
        let mut protected = Protected::new(SPANS);
        protected.add(1, &[piece(100, 10)]).unwrap();
        let twice = protected.add(2, &[piece(50, 10), piece(109, 2)]);
        assert_eq!(twice, Err(Refusal::Twice));
        assert!(protected.admits(Agent::Control, Access::Read, piece(50, 10)));
        assert!(!protected.admits(Agent::Control, Access::Read, piece(100, 10)));
        let itself = protected.add(3, &[piece(0, 10), piece(5, 10)]);
        assert_eq!(itself, Err(Refusal::Twice));
    }

    #[test]
    fn takes_so_many_pieces_and_no_more() {
        let mut protected = Protected::new(3);
        let owner = Owner::default();
        assert_eq!(protected.add(1, &[piece(0, 1); 4]), Err(Refusal::Limit));
        protected.add(1, &[piece(0, 10), piece(10, 10)]).unwrap();
        protected.claim(&owner, piece(0, 20)).unwrap();
        let motley = protected.allow_video(&[piece(3, 3)], None);
        assert_eq!(motley, Err(Refusal::Limit));
    }

    #[test]
    fn encrypts_by_address_and_only_what_is_protected() {
        let mut protected = Protected::new(SPANS);
        protected
            .add(1, &[piece(100, 50), piece(1000, 50)])
            .unwrap();
        for (at, clear, hidden) in [(80, 0..20, 20..40), (1040, 10..30, 0..10)] {
            let length = clear.end.max(hidden.end);
            let plain: Vec<u8> = (0..length as u8).collect();
            let mut bytes = plain.clone();
            protected.cipher(piece(at, length as u64), &mut bytes);
            assert_eq!(bytes[clear.clone()], plain[clear]);
            assert_ne!(bytes[hidden.clone()], plain[hidden]);
            // Byte by byte it is the same.
            for (n, byte) in bytes.iter_mut().enumerate() {
                protected.cipher(piece(at + n as u64, 1), std::slice::from_mut(byte));
            }
            assert_eq!(bytes, plain);
        }
        assert!(protected.touches(piece(80, 21)) && !protected.touches(piece(80, 20)));
        // What was encrypted in one place is garbage in another.
        let plain: Vec<u8> = (0..20).collect();
        for (from, to) in [(100, 101), (100, 1000)] {
            let mut moved = plain.clone();
            protected.cipher(piece(from, 20), &mut moved);
            protected.cipher(piece(to, 20), &mut moved);
            assert_ne!(moved, plain);
        }
    }

    #[test]
    fn each_attachment_and_each_owner_has_a_key_of_its_own() {
        let mut protected = Protected::new(SPANS);
        let all = piece(100, 64);
        protected.add(1, &[all]).unwrap();
        let coded = |protected: &Protected| {
            let mut bytes = [0; 64];
            protected.cipher(all, &mut bytes);
            bytes
        };
        let unowned = coded(&protected);
        let owner = Owner::default();
        protected.claim(&owner, all).unwrap();
        let first = coded(&protected);
        assert_ne!(first, unowned);
        protected.claim(&Owner::default(), all).unwrap();
        assert_eq!(coded(&protected), first, "an owner that lives was ousted");
        drop(owner);
        assert!(protected.is_vacant(all));
        protected.claim(&Owner::default(), all).unwrap();
        assert_ne!(coded(&protected), first);
        protected.remove(1);
        protected.add(2, &[all]).unwrap();
        assert_ne!(coded(&protected), first);
    }
}
