// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The memory of rings and requests, and the registers: virtio-drivers' view of the machine, [`Hal`].
//!
//! A process has one pool, since `Hal` has no instance: contiguous physical memory that its owner keeps in place, such as a huge
//! page. Buffers that virtio-drivers shares with the device are copied into the pool, and back.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The pool, and BARs that are mapped.
#[derive(Default)]
struct Machine {
    base: usize,
    physical: PhysAddr,
    taken: Vec<bool>,
    bars: Vec<Bar>,
}

/// A BAR's registers: physical address, bytes, and where they are mapped.
#[derive(Clone, Copy)]
pub(crate) struct Bar {
    pub physical: PhysAddr,
    pub length: usize,
    pub address: usize,
}

static MACHINE: Mutex<Machine> = Mutex::new(Machine {
    base: 0,
    physical: 0,
    taken: Vec::new(),
    bars: Vec::new(),
});

fn machine() -> MutexGuard<'static, Machine> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives this process its pool: `length` bytes at `base`, at the physical address `physical`, all three multiples of a page. What was
/// taken from a former pool must have been given back.
///
/// # Safety
/// The memory is mapped for reading and writing, nobody else uses it, and it stays mapped there, on the same page frames, for as long
/// as anything of it is in use.
pub unsafe fn set_pool(base: NonNull<u8>, physical: PhysAddr, length: usize) {
    let mut machine = machine();
    assert!(
        !machine.taken.contains(&true),
        "the former pool is still in use"
    );
    machine.base = base.as_ptr() as usize;
    machine.physical = physical;
    machine.taken = vec![false; length / PAGE_SIZE];
}

/// Replaces the registers that are mapped.
pub(crate) fn set_bars(bars: Vec<Bar>) -> Vec<Bar> {
    std::mem::replace(&mut machine().bars, bars)
}

/// [`Hal`] for a process of Linux.
#[derive(Debug)]
pub struct Process;

// SAFETY: pages come from the pool, each is given out once until it is given back, and its owner has promised that they stay in
// place; registers are mapped as long as the function is taken.
unsafe impl Hal for Process {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let mut machine = machine();
        let free = machine
            .taken
            .windows(pages)
            .position(|it| !it.contains(&true));
        let Some(at) = free.filter(|_| pages > 0) else {
            // As the trait has it: address 0 is a failure.
            return (0, NonNull::dangling());
        };
        machine.taken[at..at + pages].fill(true);
        let address = machine.base + at * PAGE_SIZE;
        let pointer = NonNull::new(address as *mut u8).expect("a pool is not at address 0");
        // SAFETY: these pages are mapped (`set_pool`) and nobody else's.
        unsafe { pointer.write_bytes(0, pages * PAGE_SIZE) };
        (machine.physical + (at * PAGE_SIZE) as u64, pointer)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let mut machine = machine();
        let at = (vaddr.as_ptr() as usize - machine.base) / PAGE_SIZE;
        machine.taken[at..at + pages].fill(false);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        let machine = machine();
        let inside = |bar: &&Bar| {
            paddr >= bar.physical && paddr + size as u64 <= bar.physical + bar.length as u64
        };
        let bar = machine.bars.iter().find(inside);
        let bar = bar.expect("the registers are in a BAR of the function");
        NonNull::new((bar.address + (paddr - bar.physical) as usize) as *mut u8)
            .expect("nothing is mapped at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let (physical, copy) = Self::dma_alloc(buffer.len().div_ceil(PAGE_SIZE), direction);
        assert!(
            physical != 0,
            "the DMA pool has no room for {} bytes",
            buffer.len()
        );
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller vouches for the buffer, and the copy has at least as many bytes.
            unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        physical
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let copy = {
            let machine = machine();
            NonNull::new((machine.base + (paddr - machine.physical) as usize) as *mut u8)
        };
        let copy = copy.expect("a pool is not at address 0");
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`.
            unsafe { copy.copy_to_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        // SAFETY: `share` allocated them.
        unsafe { Self::dma_dealloc(paddr, copy, buffer.len().div_ceil(PAGE_SIZE)) };
    }
}
