// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A descriptor chain, checked once.
//!
//! virtio-queue ends its iteration silently where a chain is broken (index out of range, loop, bad indirect table, more than
//! 4 GiB), which then looks like a shorter chain. [`Chain::read`] tells the two apart, and what it returns is safe to use as
//! it is: the device-readable part copied, so that the guest cannot change it any more, and the device-writable part known to
//! be memory, so that a request is not carried out whose answer could not be delivered.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// What is wrong with a chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "it ends in a descriptor that has a successor: out of range, a loop, or a bad indirect table"
    )]
    Truncated,
    #[error("it has no descriptor: its head is out of range or a bad indirect table")]
    Empty,
    #[error("it has more descriptors than its queue")]
    TooLong,
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("descriptor of {length} bytes at {address:#x} is not memory")]
    NoMemory { address: u64, length: u32 },
}

/// The checked chain.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Bytes of the device-readable descriptors, at most the limit given to [`Chain::read`].
    pub request: Vec<u8>,
    writable: Vec<(GuestAddress, usize)>,
}

impl Chain {
    /// Checks all of a chain, which may have up to `size` descriptors, and copies the first `limit` bytes that are
    /// device-readable.
    pub fn read<M>(chain: DescriptorChain<M>, size: u16, limit: usize) -> Result<Self, Error>
    where
        M: Clone + Deref,
        M::Target: GuestMemory + Sized,
    {
        let descriptors = chain.clone();
        let memory = chain.memory();
        let (mut request, mut writable) = (Vec::new(), Vec::new());
        let mut more = None;
        for (count, descriptor) in descriptors.enumerate() {
            // An indirect table may be longer than the queue, a chain in it not (virtio 1.3, 2.7.5.3.1).
            if count >= size.into() {
                return Err(Error::TooLong);
            }
            more = Some(descriptor.has_next());
            let (address, length) = (descriptor.addr(), descriptor.len() as usize);
            let no_memory = Error::NoMemory {
                address: address.0,
                length: descriptor.len(),
            };
            if descriptor.is_write_only() {
                if !memory.check_range(address, length, Permissions::Write) {
                    return Err(no_memory);
                }
                writable.push((address, length));
                continue;
            }
            if !writable.is_empty() {
                return Err(Error::Order);
            }
            if !memory.check_range(address, length, Permissions::Read) {
                return Err(no_memory);
            }
            let start = request.len();
            request.resize(limit.min(start + length), 0);
            memory
                .read_slice(&mut request[start..], address)
                .map_err(|_| no_memory)?;
        }
        match more {
            None => Err(Error::Empty),
            Some(true) => Err(Error::Truncated),
            Some(false) => Ok(Self { request, writable }),
        }
    }

    /// Only the part that an answer needs.
    pub fn without_request(mut self) -> Self {
        self.request = Vec::new();
        self
    }

    /// Bytes that can be written.
    pub fn room(&self) -> usize {
        // virtio-queue ends a chain at 4 GiB, which a usize counts.
        self.writable.iter().map(|(_, length)| length).sum()
    }

    /// Writes `bytes`, no more than there is room for, and returns how many were written.
    pub fn write<M: GuestMemory>(&self, memory: &M, bytes: &[u8]) -> u32 {
        let (mut left, mut written) = (bytes, 0);
        for (address, length) in &self.writable {
            let (now, later) = left.split_at(left.len().min(*length));
            if memory.write_slice(now, *address).is_err() {
                break;
            }
            left = later;
            written += now.len() as u32;
        }
        written
    }
}
