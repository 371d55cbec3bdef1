// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtqueue as the device sees it: chains come off it and go back to it, under its lock, while it runs.
//!
//! All of it is in memory that the caller names, not in that of the ring's own state, where the vhost crates put what a front end announces
//! before the back end is asked.

use std::sync::atomic::Ordering;

use pinbed_abi::wire;
use vhost_user_backend::{VringState, VringT};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard,
    GuestMemoryMmap,
};
use zerocopy::IntoBytes;

use crate::chain::Chain;
pub(crate) use crate::vring::Ring;

pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(crate) type Snapshot = GuestMemoryLoadGuard<GuestMemoryMmap>;

pub(crate) fn no_memory() -> Memory {
    Memory::new(GuestMemoryMmap::new())
}

/// A ring that runs, with no memory of its own.
#[cfg(any(test, fuzzing))]
pub(crate) fn running(size: u16, table: u64, available: u64, used: u64) -> Ring {
    let ring = Ring::new(no_memory(), wire::QUEUE_SIZE as u16).expect("a size that is fine");
    ring.set_queue_size(size);
    let set = ring.set_queue_info(table, available, used);
    set.expect("aligned addresses");
    ring.set_queue_ready(true);
    ring.set_enabled(true);
    ring
}

/// A ring runs between SET_VRING_KICK and GET_VRING_BASE, while it is enabled. Outside, its memory is not touched.
pub(crate) fn runs(ring: &Ring) -> bool {
    runs_locked(&ring.get_ref())
}

fn runs_locked(ring: &VringState<Memory>) -> bool {
    ring.is_enabled() && ring.get_queue().ready()
}

/// The next chain, if there is one and the ring runs.
pub(crate) fn pop(
    ring: &Ring,
    memory: &Snapshot,
) -> Result<Option<DescriptorChain<Snapshot>>, Error> {
    pop_locked(&mut ring.get_mut(), memory)
}

fn pop_locked(
    ring: &mut VringState<Memory>,
    memory: &Snapshot,
) -> Result<Option<DescriptorChain<Snapshot>>, Error> {
    if !runs_locked(ring) {
        return Ok(None);
    }
    Ok(ring.get_queue_mut().iter(memory.clone())?.next())
}

/// Asks the driver to kick, or not to; true if the ring has got more meanwhile.
pub(crate) fn want_kicks(ring: &Ring, memory: &Memory, want: bool) -> Result<bool, Error> {
    let mut ring = ring.get_mut();
    if !runs_locked(&ring) {
        return Ok(false);
    }
    let (queue, memory) = (ring.get_queue_mut(), memory.memory());
    if want {
        return queue.enable_notification(&*memory);
    }
    queue.disable_notification(&*memory)?;
    Ok(false)
}

/// Writes an answer to its chain and puts that into the used ring.
pub(crate) fn answer(
    ring: &Ring,
    memory: &Memory,
    head: u16,
    chain: &Chain,
    bytes: &[u8],
) -> Result<(), Error> {
    let mut ring = ring.get_mut();
    let memory = memory.memory();
    let written = chain.write(&*memory, bytes);
    give_back_locked(&mut ring, &memory, head, written)
}

/// As [`answer`], if the ring runs and `first`, which is asked while nobody can stop or start the ring, says so; false otherwise.
pub(crate) fn answer_if_running(
    ring: &Ring,
    memory: &Memory,
    head: u16,
    chain: &Chain,
    bytes: &[u8],
    first: impl FnOnce() -> bool,
) -> Result<bool, Error> {
    let mut ring = ring.get_mut();
    if !runs_locked(&ring) || !first() {
        return Ok(false);
    }
    let memory = memory.memory();
    let written = chain.write(&*memory, bytes);
    give_back_locked(&mut ring, &memory, head, written)?;
    Ok(true)
}

/// Puts a chain into the used ring as it is.
pub(crate) fn give_back(ring: &Ring, memory: &Memory, head: u16) -> Result<(), Error> {
    give_back_locked(&mut ring.get_mut(), &memory.memory(), head, 0)
}

/// Puts a chain into the used ring and notifies the driver if it wants that.
fn give_back_locked(
    ring: &mut VringState<Memory>,
    memory: &Snapshot,
    head: u16,
    written: u32,
) -> Result<(), Error> {
    ring.get_queue_mut().add_used(&**memory, head, written)?;
    if wants_interrupt(ring, memory)?
        && let Err(error) = ring.signal_used_queue()
    {
        log::error!("cannot notify the driver: {error}");
    }
    Ok(())
}

/// Whether the driver wants to be told of what was used last. virtio-queue does not look at VRING_AVAIL_F_NO_INTERRUPT, which
/// counts without EVENT_IDX (virtio 1.3, 2.7.7.2).
fn wants_interrupt(ring: &mut VringState<Memory>, memory: &Snapshot) -> Result<bool, Error> {
    if !ring.get_queue_mut().needs_notification(&**memory)? {
        return Ok(false);
    }
    let queue = ring.get_queue();
    if queue.event_idx_enabled() {
        return Ok(true);
    }
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Acquire)
        .map_err(Error::GuestMemory)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Puts an event into the next fit buffer of the event ring; false if there is none.
pub(crate) fn deliver(ring: &Ring, memory: &Memory, event: &wire::Event) -> bool {
    let memory = memory.memory();
    let mut ring = ring.get_mut();
    for _ in 0..ring.get_queue().size() {
        let Ok(Some(chain)) = pop_locked(&mut ring, &memory) else {
            return false;
        };
        let head = chain.head_index();
        let size = ring.get_queue().size();
        let written = match Chain::read(chain, size, 0) {
            Ok(chain) if chain.room() >= size_of_val(event) => {
                chain.write(&*memory, event.as_bytes())
            }
            Ok(_) => 0,
            Err(error) => {
                log::warn!("event queue: malformed chain at descriptor {head}: {error}");
                0
            }
        };
        if give_back_locked(&mut ring, &memory, head, written).is_err() {
            return false;
        }
        if written != 0 {
            return true;
        }
        log::warn!("event queue: buffer at descriptor {head} cannot take an event");
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;

    #[test]
    fn a_ring_is_in_the_memory_that_the_caller_names() {
        let ranges = [(GuestAddress(0), 0x4000)];
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let ring = running(16, 0, AVAILABLE, USED);
        let guest = memory.memory();
        let write = |value: u16, at: u64| guest.write_obj(value, GuestAddress(at)).unwrap();
        write(1, AVAILABLE + 2);
        assert!(!want_kicks(&ring, &memory, false).unwrap());
        assert_eq!(pop(&ring, &guest).unwrap().unwrap().head_index(), 0);
        give_back(&ring, &memory, 0).unwrap();
        write(2, AVAILABLE + 2);
        assert!(want_kicks(&ring, &memory, true).unwrap());
        let used: u16 = guest.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, 1);
    }
}
