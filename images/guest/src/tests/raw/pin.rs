// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a pin is worth: a driver in user space gives the device the page frames that /proc/self/pagemap shows of memory that it took in
//! one of several ways, and the kernel is made to move pages. Which memory may a device rely on?
//!
//! Where pages moved, the device has frames that are no longer the process's: its CRC32C is not that of the bytes which the process
//! has written since. It only reads: a write would go to whoever has the frame now.

use super::stage::{Driver, Lanes, OFFERED, Stage};
use crate::tests::test::{Test, test};
use nix::sys::mman::{MmapAdvise, mlock};
use pinbed_abi::report::{Eye, Moment};
use pinbed_abi::wire;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::compaction::compact;
use pinbed_guest::memory::fixed;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::numa;
use pinbed_guest::memory::reuse::Control;
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::observe::extent::{Extent, PAGE};
use pinbed_guest::observe::pagemap;
use std::any::Any;

const LOCKED: &str =
    "Documentation/mm/unevictable-lru.rst, Migrating MLOCKED Folios, Compacting MLOCKED Folios";
const PINNED: &str = "Documentation/core-api/pin_user_pages.rst, CASE 2: RDMA, and CASE 5: pinning in order to write to the data within the page";
const HUGE: &str =
    "Documentation/mm/hugetlbfs_reserv.rst; mm/hugetlb.c, alloc_migrate_hugetlb_folio()";
const SHARED: &str =
    "drivers/dma-buf/udmabuf.c; mm/migrate.c, folio_migrate_mapping(): expected references";

/// A test: memory, what it does, what happens to it.
macro_rules! way {
    ($way:ident $does:ident $event:ident, $source:expr, $what:literal, $when:literal) => {
        test(
            concat!("raw_pin::", stringify!($way), "_", stringify!($does), "_under_", stringify!($event)),
            |t| judge(t, $way, Fate::$does, $event),
            $source,
            concat!($what, " ", way!(@ $does), " under ", $when, "."),
        )
    };
    (@ stays) => { "stays where the device has it" };
    (@ moves) => { "moves away from where the device has it" };
    (@ wanders) => { "may move away from where the device has it" };
}

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    way!(plain wanders compaction, LOCKED, "Memory that was only written to", "compaction"),
    way!(plain moves migration, LOCKED, "Memory that was only written to", "migration (move_pages)"),
    way!(plain moves pageout, LOCKED, "Memory that was only written to", "reclaim (MADV_PAGEOUT with swap)"),
    way!(locked wanders compaction, LOCKED, "Memory under mlock", "compaction"),
    way!(locked moves migration, LOCKED, "Memory under mlock", "migration (move_pages)"),
    way!(locked stays pageout, LOCKED, "Memory under mlock", "reclaim (MADV_PAGEOUT with swap)"),
    way!(hugetlb stays compaction, HUGE, "A hugetlb page", "compaction"),
    way!(hugetlb moves migration, HUGE, "A hugetlb page", "migration (move_pages)"),
    way!(hugetlb stays pageout, HUGE, "A hugetlb page", "reclaim (MADV_PAGEOUT with swap)"),
    way!(udmabuf stays compaction, SHARED, "A memfd that a udmabuf was made of", "compaction"),
    way!(udmabuf stays migration, SHARED, "A memfd that a udmabuf was made of", "migration (move_pages)"),
    way!(udmabuf stays pageout, SHARED, "A memfd that a udmabuf was made of", "reclaim (MADV_PAGEOUT with swap)"),
    way!(fixed_buffer stays compaction, PINNED, "A fixed buffer of io_uring", "compaction"),
    way!(fixed_buffer stays migration, PINNED, "A fixed buffer of io_uring", "migration (move_pages)"),
    way!(fixed_buffer stays pageout, PINNED, "A fixed buffer of io_uring", "reclaim (MADV_PAGEOUT with swap)"),
];

/// Bytes of the memory that the device has.
const LENGTH: usize = 16 * PAGE;

/// Memory, and what keeps it as it is.
type Way = fn() -> TestResult<(Mapping, Box<dyn Any>)>;
/// What the kernel is made to do.
type Event = fn(&mut Ctx, &Mapping) -> TestResult<Box<dyn Any>>;

/// What becomes of the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "they are the words of the tests' names"
)]
enum Fate {
    stays,
    moves,
    wanders,
}

fn plain() -> TestResult<(Mapping, Box<dyn Any>)> {
    Ok((Mapping::anon(LENGTH)?, Box::new(())))
}

fn locked() -> TestResult<(Mapping, Box<dyn Any>)> {
    let memory = Mapping::anon(LENGTH)?;
    memory.write(0, &[1; LENGTH]);
    let base = std::ptr::NonNull::new(memory.address() as *mut _);
    let base = base.expect("nothing is mapped at address 0");
    // SAFETY: the range is the mapping's own; that it is locked changes nothing that anyone can see.
    unsafe { mlock(base, LENGTH) }.map_err(Error::call("mlock"))?;
    Ok((memory, Box::new(())))
}

fn hugetlb() -> TestResult<(Mapping, Box<dyn Any>)> {
    Ok((Mapping::hugetlb(2 << 20)?, Box::new(())))
}

fn udmabuf() -> TestResult<(Mapping, Box<dyn Any>)> {
    let (buffer, file) = dmabuf::udmabuf(LENGTH)?;
    let memory = Mapping::shared(&file, LENGTH, READ_WRITE)?;
    Ok((memory, Box::new((buffer, file))))
}

fn fixed_buffer() -> TestResult<(Mapping, Box<dyn Any>)> {
    let memory = Mapping::anon(LENGTH)?;
    memory.write(0, &[1; LENGTH]);
    let ring = fixed::ring()?;
    fixed::register(&ring, memory.address(), memory.len())
        .map_err(Error::call("IORING_REGISTER_BUFFERS"))?;
    Ok((memory, Box::new(ring)))
}

fn compaction(_: &mut Ctx, _: &Mapping) -> TestResult<Box<dyn Any>> {
    // Holes, for compaction to mend.
    let holes = Mapping::anon(4 << 20)?;
    for page in (0..holes.len()).step_by(PAGE) {
        holes.write(page, &[1]);
    }
    for page in (0..holes.len()).step_by(2 * PAGE) {
        holes.advise(page..page + PAGE, MmapAdvise::MADV_DONTNEED)?;
    }
    for _ in 0..3 {
        compact()?;
    }
    Ok(Box::new(holes))
}

fn migration(t: &mut Ctx, memory: &Mapping) -> TestResult<Box<dyn Any>> {
    /// The node whose memory is ZONE_MOVABLE.
    const NODE: u32 = numa::MOVABLE;
    numa::need_both()?;
    numa::need_moves()?;
    // Pages that wait in a CPU's list for an LRU cannot be moved, so it is asked for more than once.
    for _ in 0..5 {
        if let Err(errno) = numa::move_to(memory, NODE) {
            t.note(format!("move_pages: {errno:?}"));
        }
    }
    Ok(Box::new(()))
}

fn pageout(t: &mut Ctx, memory: &Mapping) -> TestResult<Box<dyn Any>> {
    let swap = Swap::on()?;
    let control = Control::new()?;
    for _ in 0..5 {
        // Refused for what cannot be paged out.
        let _ = memory.try_advise(0..memory.len(), libc::MADV_PAGEOUT);
    }
    let reused = control.reused(t)?;
    Ok(Box::new((reused, swap)))
}

fn places(memory: &Mapping) -> TestResult<Vec<Extent>> {
    let missing = |at| Stop::finding(Eye::Harness, format!("no page is at {at:#x}"));
    pagemap::extents(memory.address(), LENGTH)?.map_err(missing)
}

fn judge(t: &mut Ctx, way: Way, fate: Fate, event: Event) -> TestResult {
    // Until reclaim has seen the pages.
    cpu::stay()?;
    // The first is the DMA pool.
    let stage = Stage::with_huge_pages(2)?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let (memory, _kept) = way()?;
    memory.write(0, &t.random(LENGTH));
    let before = places(&memory)?;
    let segments: Vec<_> = before.iter().map(|it| (it.address, it.length)).collect();
    let handle = lanes.attach(wire::DIRECTION_READ, &segments)?;
    let frames =
        |places: &[Extent]| pinbed_guest::observe::extent::frames(places).collect::<Vec<_>>();
    t.sight("the raw driver's memory", Moment::Held, frames(&before));
    let _event = event(t, &memory)?;
    // What the process writes now is what the device is to see.
    let bytes = t.random(LENGTH);
    memory.write(0, &bytes);
    let after = places(&memory)?;
    let answer = lanes.checksum(handle, 0, LENGTH as u64)?;
    t.sight("the raw driver's memory", Moment::Process, frames(&after));
    let pairs = frames(&before).into_iter().zip(frames(&after));
    let moved = pairs.filter(|(before, after)| before != after).count();
    let sees = answer.crc.get() == crc(&bytes);
    t.note(format!(
        "{moved} of {} pages moved; the device {} what the process has written since",
        LENGTH / PAGE,
        if sees { "sees" } else { "does not see" }
    ));
    // Both eyes see the same: that is what they are for.
    t.equal(
        Eye::Device,
        "whether the device sees what the process writes",
        sees,
        moved == 0,
    );
    match fate {
        Fate::stays => t.equal(Eye::Placement, "pages that moved", moved, 0),
        Fate::moves => t.check(Eye::Placement, moved > 0, || "no page moved".into()),
        Fate::wanders => true,
    };
    Ok(())
}
