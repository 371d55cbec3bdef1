// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The DMA core: what the device holds, and the only way it reaches memory.
//!
//! [`Table::attach`] takes a scatterlist and returns a handle; the table holds it until [`Table::detach`]. An access names a
//! handle and a [`Range`] of the buffer. It happens whole while the caller has the table borrowed, which is a lock's guard in
//! the engine:
//!
//! 1. all of it is checked: is the buffer attached, does the range end inside it, does its direction allow the access, is every
//!    byte backed by memory, may the agent access it, and, if the bytes want that, is their destination protected; else
//!    it is a [`Fault`] and no byte moves;
//! 2. the bytes move, and are encrypted or decrypted where memory is protected.
//!
//! So when DETACH has been answered, no byte of the buffer moves any more, and protection cannot end in the middle of an access.
//! A job that moves much makes many accesses, and another thread may detach between two of them.
//!
//! Segments may have any alignment, overlap each other, and name memory that does not exist: they are only believed when
//! they are used, against the memory of that moment. Guests change memory while it is read; accesses are those of
//! [`vm_memory::VolatileSlice`].
//!
//! # Why not `vm_memory::Iotlb`
//!
//! `vm-memory` has an IOTLB which could hold a buffer as a window of I/O virtual addresses. The table must know each
//! buffer's length, direction and segments *as they were attached* anyway, since QUERY returns them and a fault must tell
//! "not attached" from "out of bounds" from "permission". The IOTLB would keep the same list a second time, merged, behind
//! addresses that nobody sees, with guard gaps and an address allocator to keep windows apart, and it adds
//! `iova + length` unchecked. It also costs more: 1,024 single pages are attached and detached in 3 µs here, in 750 µs
//! there, and the 1,080 lines of a frame translated in 70 µs, backing checked, against 470 µs.
//!
//! An attached buffer is not an IOMMU mapping either, but what the kernel's DMA API gave out on top of one: this module
//! works on any [`GuestMemory`], so a `vm_memory::IommuMemory` fits *below* it.

use std::collections::BTreeMap;

use vm_memory::bitmap::BS;
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::access::{
    Access, Agent, Destination, Direction, Extent, Fault, Owner, Piece, Protection, Range, Reason,
};
use crate::protected::{self, Protected};

/// Bytes that are encrypted at a time on their way to protected memory.
const CIPHER_STEP: usize = 1 << 12;

/// Reasons to reject a scatterlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The list is empty, has an empty segment, or one that wraps around the address space.
    #[error("the scatterlist is not well formed")]
    Malformed,
    /// The list is longer than the table takes.
    #[error("the scatterlist exceeds a limit of the device")]
    Limit,
    /// The memory cannot be protected.
    #[error("the memory cannot be protected")]
    Protection(#[source] protected::Refusal),
}

/// How much a [`Table`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Buffers at a time.
    pub buffers: u32,
    /// Segments of a buffer.
    pub segments: u32,
    /// Length of a buffer in bytes.
    pub length: u64,
    /// Segments of all buffers together.
    pub total_segments: u32,
    /// Pieces of protected memory, of all buffers together.
    pub protected_pieces: u32,
}

/// An attached buffer.
#[derive(Debug)]
pub struct Buffer {
    direction: Direction,
    protected: bool,
    segments: Box<[Piece]>,
    /// Offset of each segment's end in the buffer: a binary search finds an offset's segment.
    ends: Box<[u64]>,
}

impl Buffer {
    /// What the device may do with it.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether its memory is the TEE's.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// Its segments, as they were attached.
    pub fn segments(&self) -> &[Piece] {
        &self.segments
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Calls `with` for each segment's part of `[offset, offset + length)`, which lies inside the buffer.
    fn translate(
        &self,
        offset: u64,
        length: u64,
        mut with: impl FnMut(Piece) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let (mut offset, mut left) = (offset, length);
        let first = self.ends.partition_point(|&end| end <= offset);
        for (segment, &end) in self.segments.iter().zip(&self.ends).skip(first) {
            if left == 0 {
                break;
            }
            let length = left.min(end - offset);
            // The segment ends at `end`, so the part that is wanted begins this far before the segment's own end.
            let address = segment.address + (segment.length - (end - offset));
            with(Piece { address, length })?;
            offset += length;
            left -= length;
        }
        Ok(())
    }
}

/// The buffers that the device holds.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    buffers: BTreeMap<u64, Buffer>,
    /// Survives [`Table::clear`]: a handle from before a reset must not name a buffer from after it.
    last_handle: u64,
    bytes: u64,
    segments: usize,
    protected: Protected,
}

impl Table {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buffers: BTreeMap::new(),
            last_handle: 0,
            bytes: 0,
            segments: 0,
            protected: Protected::new(limits.protected_pieces),
        }
    }

    /// Holds on to a scatterlist and gives its handle: not zero, and never given before.
    pub fn attach(
        &mut self,
        direction: Direction,
        segments: impl ExactSizeIterator<Item = Piece>,
    ) -> Result<u64, AttachError> {
        if segments.len() > self.limits.segments as usize
            || self.buffers.len() >= self.limits.buffers as usize
            || self.segments + segments.len() > self.limits.total_segments as usize
        {
            return Err(AttachError::Limit);
        }
        let segments: Box<[Piece]> = segments.collect();
        let mut ends = Vec::with_capacity(segments.len());
        let mut length = 0u64;
        for segment in &segments {
            // An end of exactly 2^64 is refused too: no memory is there, and every later sum stays below it.
            let fits = segment.address.checked_add(segment.length).is_some();
            if segment.length == 0 || !fits {
                return Err(AttachError::Malformed);
            }
            length = length
                .checked_add(segment.length)
                .ok_or(AttachError::Malformed)?;
            ends.push(length);
        }
        if segments.is_empty() {
            return Err(AttachError::Malformed);
        }
        if length > self.limits.length {
            return Err(AttachError::Limit);
        }
        let handle = self.last_handle.checked_add(1).ok_or(AttachError::Limit)?;
        self.last_handle = handle;
        self.bytes += length;
        self.segments += segments.len();
        let ends = ends.into_boxed_slice();
        self.buffers.insert(
            handle,
            Buffer {
                direction,
                protected: false,
                segments,
                ends,
            },
        );
        Ok(handle)
    }

    /// As [`Table::attach`]; and its memory is the TEE's from now on.
    pub fn attach_protected(
        &mut self,
        direction: Direction,
        segments: impl ExactSizeIterator<Item = Piece>,
    ) -> Result<u64, AttachError> {
        let handle = self.attach(direction, segments)?;
        if let Some(buffer) = self.buffers.get_mut(&handle) {
            buffer.protected = true;
            if let Err(refusal) = self.protected.add(handle, &buffer.segments) {
                self.detach(handle);
                return Err(AttachError::Protection(refusal));
            }
        }
        Ok(handle)
    }

    /// Lets go of a buffer and returns it; `None` if there is none of this handle.
    pub fn detach(&mut self, handle: u64) -> Option<Buffer> {
        let buffer = self.buffers.remove(&handle)?;
        self.bytes -= buffer.length();
        self.segments -= buffer.segments.len();
        if buffer.protected {
            self.protected.remove(handle);
        }
        Some(buffer)
    }

    /// Lets go of all buffers.
    pub fn clear(&mut self) {
        self.buffers.clear();
        self.protected.clear();
        self.bytes = 0;
        self.segments = 0;
    }

    /// The buffer of this handle.
    pub fn get(&self, handle: u64) -> Option<&Buffer> {
        self.buffers.get(&handle)
    }

    /// The buffer with the smallest handle greater than `handle`.
    pub fn next_after(&self, handle: u64) -> Option<(u64, &Buffer)> {
        let first = handle.checked_add(1)?;
        let (handle, buffer) = self.buffers.range(first..).next()?;
        Some((*handle, buffer))
    }

    /// Number of buffers.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Sum of the buffers' lengths.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Calls `with` for each piece of memory of those bytes of `range` that `extents` name, in their order, adjacent pieces
    /// merged. Checks all that the table alone knows: handle, bounds, direction.
    fn each_piece(
        &self,
        range: Range,
        extents: &[Extent],
        access: Access,
        mut with: impl FnMut(Piece) -> Result<(), Reason>,
    ) -> Result<(), Fault> {
        let fault = |reason| Fault {
            reason,
            access,
            range,
        };
        let buffer = self.get(range.handle).ok_or(fault(Reason::NotAttached))?;
        match range.offset.checked_add(range.length) {
            Some(end) if end <= buffer.length() => {}
            _ => return Err(fault(Reason::OutOfBounds)),
        }
        if !buffer.direction.permissions().allow(access.needs()) {
            return Err(fault(Reason::Permission));
        }
        for extent in extents {
            match extent.offset.checked_add(extent.length) {
                Some(end) if end <= range.length => {}
                _ => return Err(fault(Reason::OutOfBounds)),
            }
        }
        let mut last: Option<Piece> = None;
        for extent in extents {
            let offset = range.offset + extent.offset;
            buffer
                .translate(offset, extent.length, |piece| match &mut last {
                    Some(last) if last.end() == piece.address => {
                        last.length += piece.length;
                        Ok(())
                    }
                    _ => last.replace(piece).map_or(Ok(()), &mut with),
                })
                .map_err(fault)?;
        }
        last.map_or(Ok(()), with).map_err(fault)
    }

    /// Checks the whole of an access. Whether memory is there, and whose, is checked for the extents, all else for the range.
    fn check_all<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        extents: &[Extent],
        access: Access,
        destination: Destination,
    ) -> Result<(), Fault> {
        self.each_piece(range, extents, access, |piece| {
            check(memory, piece, access.of_memory())?;
            if !self.protected.admits(agent, access, piece) {
                return Err(Reason::Protected);
            }
            match destination {
                Destination::Protected if !self.protected.covers(piece) => {
                    Err(Reason::NotProtected)
                }
                _ => Ok(()),
            }
        })
    }

    /// Checks an access without making it, and returns the memory that it names, adjacent pieces merged.
    pub fn resolve<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        extents: &[Extent],
        access: Access,
    ) -> Result<Vec<Piece>, Fault> {
        self.check_all(memory, agent, range, extents, access, Destination::Any)?;
        let mut pieces = Vec::new();
        self.each_piece(range, extents, access, |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    /// Checks an access without making it, and returns `most` pieces of its memory after the first `skip`, and how many
    /// there are.
    pub fn describe<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        access: Access,
        skip: usize,
        most: usize,
    ) -> Result<(Vec<Piece>, usize), Fault> {
        self.check(memory, agent, range, access)?;
        let (mut pieces, mut all) = (Vec::new(), 0);
        self.each_piece(range, &range.whole(), access, |piece| {
            if all >= skip && pieces.len() < most {
                pieces.push(piece);
            }
            all += 1;
            Ok(())
        })?;
        Ok((pieces, all))
    }

    /// Checks an access without making it.
    pub fn check<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        access: Access,
    ) -> Result<(), Fault> {
        let whole = range.whole();
        self.check_all(memory, agent, range, &whole, access, Destination::Any)
    }

    /// Reads to `to`, which is as long as the extents are together. `access` is not [`Access::Write`]. Returns whether some
    /// of the bytes come from protected memory.
    pub fn read<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        extents: &[Extent],
        access: Access,
        to: &mut [u8],
    ) -> Result<bool, Fault> {
        self.check_all(memory, agent, range, extents, access, Destination::Any)?;
        let (mut at, mut secret) = (0, false);
        self.each_piece(range, extents, access, |piece| {
            log::trace!("read {:x} {:x}", piece.address, piece.length);
            let start = at;
            for_each_slice(memory, piece, Permissions::Read, |slice| {
                at += slice.copy_to(&mut to[at..]);
            })?;
            if self.protected.touches(piece) {
                secret = true;
                self.protected.cipher(piece, &mut to[start..at]);
            }
            Ok(())
        })?;
        Ok(secret)
    }

    /// Writes `from`, which is as long as the extents are together.
    pub fn write<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
        extents: &[Extent],
        from: &[u8],
        destination: Destination,
    ) -> Result<(), Fault> {
        let access = Access::Write;
        self.check_all(memory, agent, range, extents, access, destination)?;
        let mut left = from;
        self.each_piece(range, extents, access, |piece| {
            let (now, later) = left.split_at(left.len().min(piece.length as usize));
            left = later;
            log::trace!("write {:x} {:x}", piece.address, piece.length);
            if self.protected.touches(piece) {
                self.write_encrypted(memory, piece, now)
            } else {
                write(memory, piece, now)
            }
        })
    }

    fn write_encrypted<M: GuestMemory>(
        &self,
        memory: &M,
        piece: Piece,
        from: &[u8],
    ) -> Result<(), Reason> {
        let mut buffer = [0; CIPHER_STEP];
        let mut address = piece.address;
        for plain in from.chunks(CIPHER_STEP) {
            let piece = Piece {
                address,
                length: plain.len() as u64,
            };
            let bytes = &mut buffer[..plain.len()];
            bytes.copy_from_slice(plain);
            self.protected.cipher(piece, bytes);
            write(memory, piece, bytes)?;
            address = piece.end();
        }
        Ok(())
    }

    /// Whether some memory of `range` is protected and has no owner; a fault says that of the range itself.
    pub fn is_vacant(&self, range: Range) -> Result<bool, Fault> {
        let mut vacant = false;
        self.each_piece(range, &range.whole(), Access::Inspect, |piece| {
            vacant |= self.protected.is_vacant(piece);
            Ok(())
        })?;
        Ok(vacant)
    }

    /// Makes `owner` the owner of protected memory of `range` that has none.
    pub fn claim(&mut self, owner: &Owner, range: Range) -> Result<(), Fault> {
        let mut pieces = Vec::new();
        self.each_piece(range, &range.whole(), Access::Inspect, |piece| {
            if self.protected.is_vacant(piece) {
                pieces.push(piece);
            }
            Ok(())
        })?;
        for piece in pieces {
            // Without random bytes for a key it stays without an owner, and nobody may access it.
            if let Err(refusal) = self.protected.claim(owner, piece) {
                log::error!("protected memory gets no owner: {refusal}");
            }
        }
        Ok(())
    }

    /// How much of `range`, to which `agent` must have access, is protected.
    pub fn protection<M: GuestMemory>(
        &self,
        memory: &M,
        agent: Agent,
        range: Range,
    ) -> Result<Protection, Fault> {
        self.check(memory, agent, range, Access::Inspect)?;
        let (mut some, mut all) = (false, true);
        self.each_piece(range, &range.whole(), Access::Inspect, |piece| {
            some |= self.protected.touches(piece);
            all &= self.protected.covers(piece);
            Ok(())
        })?;
        Ok(match (some, all) {
            (false, _) => Protection::None,
            (true, false) => Protection::Part,
            (true, true) => Protection::Whole,
        })
    }

    /// Sets what the video engine may do with `range`, to which `agent` must have access.
    pub fn allow_video<M: GuestMemory>(
        &mut self,
        memory: &M,
        agent: Agent,
        range: Range,
        direction: Option<Direction>,
    ) -> Result<Result<(), protected::Refusal>, Fault> {
        let whole = range.whole();
        let pieces = self.resolve(memory, agent, range, &whole, Access::Inspect)?;
        Ok(self.protected.allow_video(&pieces, direction))
    }
}

/// Whether memory is at the whole of `piece`; else the first address where there is none.
fn check<M: GuestMemory>(memory: &M, piece: Piece, access: Permissions) -> Result<(), Reason> {
    let mut address = piece.address;
    for_each_slice(memory, piece, access, |slice| address += slice.len() as u64)
        .map_err(|_| Reason::NoMemory(address))
}

fn write<M: GuestMemory>(memory: &M, piece: Piece, from: &[u8]) -> Result<(), Reason> {
    let mut left = from;
    for_each_slice(memory, piece, Permissions::Write, |slice| {
        let (now, later) = left.split_at(slice.len().min(left.len()));
        slice.copy_from(now);
        left = later;
    })
}

/// Calls `with` for each contiguous part of `piece` as the host has it mapped.
fn for_each_slice<'a, M: GuestMemory>(
    memory: &'a M,
    piece: Piece,
    access: Permissions,
    mut with: impl FnMut(VolatileSlice<'a, BS<'a, M::Bitmap>>),
) -> Result<(), Reason> {
    let missing = Reason::NoMemory(piece.address);
    let length = usize::try_from(piece.length).map_err(|_| missing)?;
    let slices = memory
        .get_slices(GuestAddress(piece.address), length, access)
        .map_err(|_| missing)?;
    for slice in slices {
        with(slice.map_err(|_| missing)?);
    }
    Ok(())
}
