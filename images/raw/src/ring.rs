// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A split virtqueue by hand (virtio 1.3, 2.7): descriptors, indices and flags are whatever the caller writes.

use std::hint::spin_loop;
use std::thread;
use std::time::{Duration, Instant};

use virtio_drivers::transport::Transport;

use crate::Error;
use crate::region::Region;

/// The chain goes on in `next`.
pub const F_NEXT: u16 = 1;
/// The device may write the buffer; else it may read it.
pub const F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const F_INDIRECT: u16 = 4;
/// In the available ring's flags: the driver wants no interrupts.
pub const NO_INTERRUPT: u16 = 1;

/// How long the device may take, under emulation on a busy host, too.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// `F_…`.
    pub flags: u16,
    /// Index of the chain's next descriptor, with [`F_NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// As it stands in memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Descriptors of a chain, linked in the order of the slice, of which the first has index `first`.
pub fn linked(first: u16, pieces: &[(u64, u32, u16)]) -> impl Iterator<Item = Descriptor> {
    let count = pieces.len();
    pieces.iter().enumerate().map(move |(at, piece)| {
        let (address, length, flags) = *piece;
        let last = at + 1 == count;
        Descriptor {
            address,
            length,
            flags: flags | if last { 0 } else { F_NEXT },
            next: if last { 0 } else { first + at as u16 + 1 },
        }
    })
}

/// Polls until there is something, for [`PATIENCE`] at most.
pub fn poll<T>(queue: u16, mut look: impl FnMut() -> Option<T>) -> Result<T, Error> {
    let start = Instant::now();
    let mut looks = 0;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        looks += 1;
        match looks {
            0..2000 => spin_loop(),
            _ if start.elapsed() > PATIENCE => {
                return Err(Error::Timeout {
                    queue,
                    seconds: PATIENCE.as_secs(),
                });
            }
            // The device is another process of the host: the guest's CPU must not keep it from running.
            _ => thread::sleep(Duration::from_micros(100)),
        }
    }
}

/// The driver's side of a virtqueue.
pub struct Ring {
    queue: u16,
    size: u16,
    /// The descriptor table.
    pub table: Region,
    /// The available ring.
    pub available: Region,
    /// The used ring.
    pub used: Region,
    /// The available ring's index, as the driver counts.
    pub offered: u16,
    /// The used ring's index up to which chains were taken back.
    pub taken: u16,
}

impl Ring {
    /// Sets the queue up with `size` descriptors. The device must not be running yet.
    pub fn set_up(transport: &mut impl Transport, queue: u16, size: u16) -> Result<Self, Error> {
        let ring = Self {
            queue,
            size,
            table: Region::new(16 * usize::from(size))?,
            available: Region::new(6 + 2 * usize::from(size))?,
            used: Region::new(6 + 8 * usize::from(size))?,
            offered: 0,
            taken: 0,
        };
        transport.queue_set(
            queue,
            size.into(),
            ring.table.physical(0),
            ring.available.physical(0),
            ring.used.physical(0),
        );
        Ok(ring)
    }

    /// The queue's index.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Descriptors in the table.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        self.table
            .write(16 * usize::from(index), &descriptor.bytes());
    }

    /// Writes a chain, linked in the order of the slice, from descriptor `first` on.
    pub fn chain(&self, first: u16, pieces: &[(u64, u32, u16)]) {
        for (index, descriptor) in (first..).zip(linked(first, pieces)) {
            self.describe(index, descriptor);
        }
    }

    /// Makes the chain that begins at descriptor `head` available, without a notification.
    pub fn offer(&mut self, head: u16) {
        self.prepare(head);
        self.publish(self.offered);
    }

    /// As [`Ring::offer`], but the index is not written: [`Ring::publish`] does.
    pub fn prepare(&mut self, head: u16) {
        let slot = usize::from(self.offered % self.size);
        self.available.store(4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Writes the available ring's index.
    pub fn publish(&self, index: u16) {
        self.available.store(2, index);
    }

    /// Writes the available ring's flags: 0 or [`NO_INTERRUPT`].
    pub fn set_flags(&self, flags: u16) {
        self.available.store(0, flags);
    }

    /// Writes `used_event`: the device interrupts when it uses the chain at this index.
    pub fn set_used_event(&self, index: u16) {
        self.available.store(4 + 2 * usize::from(self.size), index);
    }

    /// The device's `avail_event`: it wants a notification when the chain at this index is made available.
    pub fn avail_event(&self) -> u16 {
        self.used.load(4 + 8 * usize::from(self.size))
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        self.used.load(2)
    }

    /// The next used chain's head and used length, if there is one already.
    pub fn poll_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.taken {
            return None;
        }
        let entry = 4 + 8 * usize::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        let bytes = self.used.read(entry..entry + 8);
        let (head, length) = bytes.split_at(4);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | u32::from(*byte))
        };
        Some((number(head), number(length)))
    }

    /// The next used chain's head and used length.
    pub fn wait_used(&mut self) -> Result<(u32, u32), Error> {
        poll(self.queue, || self.poll_used())
    }

    /// Offers the chain at `head`, notifies the device, and waits until it gives a chain back.
    pub fn serve(
        &mut self,
        transport: &mut impl Transport,
        head: u16,
    ) -> Result<(u32, u32), Error> {
        self.offer(head);
        transport.notify(self.queue);
        self.wait_used()
    }
}
