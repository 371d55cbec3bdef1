// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pieces of the pool that the device may change at any time: accessed by copies and atomics only.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE};

use crate::dma::Process;

/// Contiguous physical memory of whole pages, zero at first.
pub struct Region {
    physical: u64,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its pages, and the device may change them under any thread.
unsafe impl Send for Region {}

impl Region {
    /// At least this many bytes.
    pub fn new(length: usize) -> Result<Self, Error> {
        let pages = length.div_ceil(PAGE_SIZE).max(1);
        match Process::dma_alloc(pages, BufferDirection::Both) {
            (0, _) => Err(Error::DmaError),
            (physical, base) => Ok(Self {
                physical,
                base,
                length: pages * PAGE_SIZE,
            }),
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The physical address of the byte at `offset`, which may be outside.
    pub fn physical(&self, offset: usize) -> u64 {
        self.physical + offset as u64
    }

    /// Copies bytes out.
    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        self.check(&range);
        let mut bytes = vec![0; range.len()];
        // SAFETY: the range is in the region (checked), which lives as long as `self`, and `bytes` is another place.
        unsafe {
            let from = self.base.add(range.start);
            from.copy_to_nonoverlapping(NonNull::from(&mut bytes[..]).cast(), range.len());
        }
        bytes
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(&(offset..offset + bytes.len()));
        // SAFETY: as in `read`.
        unsafe {
            let to = self.base.add(offset);
            to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
    }

    /// Reads a little-endian index that the device writes.
    pub fn load(&self, offset: usize) -> u16 {
        u16::from_le(self.index(offset).load(Ordering::Acquire))
    }

    /// Writes a little-endian index that the device reads.
    pub fn store(&self, offset: usize, value: u16) {
        self.index(offset).store(value.to_le(), Ordering::SeqCst);
    }

    fn index(&self, offset: usize) -> &AtomicU16 {
        self.check(&(offset..offset + 2));
        assert!(offset.is_multiple_of(2), "an index is aligned");
        // SAFETY: in the region and aligned (checked); the region begins at a page and lives as long as the reference.
        unsafe { self.base.add(offset).cast::<AtomicU16>().as_ref() }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "{range:?} is not within {} bytes",
            self.length
        );
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let pages = self.length / PAGE_SIZE;
        // SAFETY: `new` allocated them, and gave them to nobody else.
        unsafe { Process::dma_dealloc(self.physical, self.base, pages) };
    }
}
