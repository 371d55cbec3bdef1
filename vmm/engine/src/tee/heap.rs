// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The memory that trusted applications share for what they work on as a whole.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of all applications together.
pub const HEAP: usize = 32 << 20;

/// How much of the heap is taken.
#[derive(Debug, Default)]
pub struct Heap(Arc<AtomicUsize>);

/// Bytes on the heap, which go back to it when dropped.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    taken: Arc<AtomicUsize>,
}

impl Heap {
    /// Zero bytes; `None` if the heap has not that many left.
    pub fn take(&self, length: usize) -> Option<Block> {
        let more = |taken: usize| taken.checked_add(length).filter(|taken| *taken <= HEAP);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, more).ok()?;
        Some(Block {
            bytes: vec![0; length],
            taken: Arc::clone(&self.0),
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_so_much_and_takes_it_back() {
        let heap = Heap::default();
        let half = heap.take(HEAP / 2).unwrap();
        let rest = heap.take(HEAP - half.len()).unwrap();
        assert!(heap.take(1).is_none());
        drop(rest);
        assert!(heap.take(usize::MAX).is_none());
        assert_eq!(heap.take(1).unwrap().len(), 1);
        drop(half);
        assert!(heap.take(HEAP).is_some());
    }
}
