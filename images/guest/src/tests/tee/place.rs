// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that is registered for as long as a client likes must not sit where others were promised memory, in CMA or ZONE_MOVABLE; and
//! what the TEE and a video device do to the same pages.

use super::stage::{judge_checksum, register};
use crate::tests::pin::longterm::{hold_in_pipe, in_cma};
use crate::tests::sources::{PIN_USER_PAGES, TEE_LONGTERM, TEE_OFFLINE};
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::patience::{self, until};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::memory_block::{self, Block};
use pinbed_guest::memory::numa;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{PAGE, frames, merged};
use pinbed_guest::observe::movable::MovablePlace;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::Tee;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::Output;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_place::registered_memory_leaves_zone_movable", registered_memory_leaves_zone_movable, TEE_LONGTERM,
        "Pages in ZONE_MOVABLE are moved out of it before they are registered, with their contents."),
    test("tee_place::memory_goes_offline_while_it_is_registered", memory_goes_offline_while_it_is_registered, TEE_OFFLINE,
        "A block of ZONE_MOVABLE can be taken offline while memory is registered whose pages were in it."),
    test("tee_place::memory_goes_offline_after_close", memory_goes_offline_after_close, TEE_OFFLINE,
        "A block of ZONE_MOVABLE can be taken offline once the memory that was registered there is closed, with its contents."),
    test("tee_place::page_that_cannot_leave_cma_is_refused", page_that_cannot_leave_cma_is_refused, TEE_LONGTERM,
        "A page in CMA that someone else holds on to is not registered where it is; once it is free to move, it is registered."),
    test("tee_place::page_that_cannot_leave_zone_movable_is_refused", page_that_cannot_leave_zone_movable_is_refused, TEE_LONGTERM,
        "The same of a page in ZONE_MOVABLE."),
    test("tee_place::registered_in_cma_then_queued", registered_in_cma_then_queued, PIN_USER_PAGES,
        "Memory in CMA that is registered with the TEE can be queued to a video device, too, and both hold the same pages."),
    test("tee_place::registered_in_zone_movable_then_queued", registered_in_zone_movable_then_queued, PIN_USER_PAGES,
        "The same of memory in ZONE_MOVABLE."),
    test("tee_place::queued_in_cma_then_registered", queued_in_cma_then_registered, PIN_USER_PAGES,
        "Memory in CMA that is queued to a video device can be registered with the TEE, too, and both hold the same pages."),
    test("tee_place::queued_in_zone_movable_then_registered", queued_in_zone_movable_then_registered, PIN_USER_PAGES,
        "The same of memory in ZONE_MOVABLE."),
];

/// Memory for a FRAME, filled, whose pages were put where they must not be pinned.
struct Placed {
    area: Area,
    place: MovablePlace,
}

impl Placed {
    fn in_cma(t: &mut Ctx) -> TestResult<Self> {
        let (area, region) = in_cma(t)?;
        let place = MovablePlace {
            name: "CMA".into(),
            frames: region.frames,
        };
        Self { area, place }.checked()
    }

    fn in_zone_movable(t: &mut Ctx) -> TestResult<Self> {
        numa::need_both()?;
        let block = memory_block::movable()?;
        let mut area = Area::anon(0, FRAME.size())?;
        area.mapping.bind(numa::MOVABLE)?;
        area.fill(t)?;
        let place = MovablePlace {
            name: "ZONE_MOVABLE".into(),
            frames: block.frames,
        };
        Self { area, place }.checked()
    }

    fn checked(self) -> TestResult<Self> {
        match self.inside()? {
            pages if pages == FRAME.size().div_ceil(PAGE) => Ok(self),
            pages => Err(Stop::finding(
                Eye::Harness,
                format!(
                    "only {pages} pages of the memory are in {}",
                    self.place.name
                ),
            )),
        }
    }

    /// Pages that are there.
    fn inside(&self) -> TestResult<usize> {
        match self.area.extents()? {
            Some(Ok(at)) => Ok(frames(&at)
                .filter(|frame| self.place.frames.contains(frame))
                .count()),
            other => Err(Stop::finding(
                Eye::Harness,
                format!("not all pages of the memory are present: {other:?}"),
            )),
        }
    }

    /// None is there any more.
    fn judge_outside(&self, t: &mut Ctx) -> TestResult {
        let what = format!("pages of the memory in {}", self.place.name);
        t.equal(Eye::Placement, &what, self.inside()?, 0);
        Ok(())
    }

    /// All that hold it hold it where it is.
    fn judge_held(&self, t: &mut Ctx, device: &Device, holders: usize) -> TestResult {
        let held = device.list()?;
        t.equal(Eye::Device, "who holds the memory", held.len(), holders);
        for held in held {
            let here = self.area.extents()?.and_then(Result::ok);
            let what = format!("where {held} is");
            t.equal(Eye::Placement, &what, Some(merged(held.segments)), here);
        }
        Ok(())
    }
}

fn registered_memory_leaves_zone_movable(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let placed = Placed::in_zone_movable(t)?;
    let shm = register(&tee, &placed.area)?;
    placed.judge_outside(t)?;
    placed.judge_held(t, &device, 1)?;
    judge_checksum(t, &tee, session, &shm, placed.area.written())
}

/// A block that goes offline. It comes back online when this is dropped.
struct Going<'a> {
    block: &'a Block,
    /// The kernel tries without end while a page cannot be moved, until the process that asked is killed.
    child: Option<Child>,
}

impl<'a> Going<'a> {
    /// Whether it gets there, before the kernel has failed so often to move a page that it will go on failing.
    fn start(block: &'a Block) -> TestResult<(Self, bool)> {
        const FAILURES: i64 = 200;
        let failed = vmstat::counter("pgmigrate_fail")?;
        let mut child = Child::fork(|| {
            let done = block.take_offline();
            done.err()
                .map(|error| error.to_string())
                .unwrap_or_default()
                .into()
        })?;
        child.start()?;
        until(patience::LIMIT, || {
            Ok(child.ended()?.is_some() || vmstat::counter("pgmigrate_fail")? > failed + FAILURES)
        })?;
        let offline = block.is_offline()?;
        let child = Some(child);
        Ok((Self { block, child }, offline))
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.child = None;
        if self.block.is_offline().unwrap_or(false) {
            // A block that stays offline is what the next test that needs it finds.
            let _ = self.block.bring_online();
        }
    }
}

fn memory_goes_offline_while_it_is_registered(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let placed = Placed::in_zone_movable(t)?;
    let block = memory_block::movable()?;
    let shm = register(&tee, &placed.area)?;
    let (going, offline) = Going::start(&block)?;
    t.check(Eye::Placement, offline, || {
        "memory cannot be taken offline while pages of it are registered".into()
    });
    judge_checksum(t, &tee, session, &shm, placed.area.written())?;
    drop(going);
    Ok(placed.area.judge_untouched(t, "the memory")?)
}

fn memory_goes_offline_after_close(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let placed = Placed::in_zone_movable(t)?;
    let block = memory_block::movable()?;
    drop(register(&tee, &placed.area)?);
    let (going, offline) = Going::start(&block)?;
    t.check(Eye::Placement, offline, || {
        "memory cannot be taken offline after pages of it were registered".into()
    });
    placed.judge_outside(t)?;
    placed
        .area
        .judge_untouched(t, "the memory while its block is offline")?;
    drop(going);
    t.check(Eye::Harness, !block.is_offline()?, || {
        "the block does not come online again".into()
    });
    Ok(())
}

fn page_that_cannot_leave_cma_is_refused(t: &mut Ctx) -> TestResult {
    let placed = Placed::in_cma(t)?;
    page_that_cannot_leave_is_refused(t, &placed)
}

fn page_that_cannot_leave_zone_movable_is_refused(t: &mut Ctx) -> TestResult {
    let placed = Placed::in_zone_movable(t)?;
    page_that_cannot_leave_is_refused(t, &placed)
}

fn page_that_cannot_leave_is_refused(t: &mut Ctx, placed: &Placed) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let pins = vmstat::pinned_pages()?;
    let pipe = hold_in_pipe(&placed.area)?;
    t.refused(
        "registering a page that a pipe holds",
        tee.register(placed.area.address(), placed.area.len())
            .map(|shm| shm.size),
        &[Errno::ENOMEM],
    );
    let left = vmstat::pinned_pages()? - pins;
    t.equal(Eye::Aftermath, "pages pinned after that", left, 0);
    drop(pipe);
    let shm = register(&tee, &placed.area)?;
    placed.judge_outside(t)?;
    placed.judge_held(t, &device, 1)?;
    judge_checksum(t, &tee, session, &shm, placed.area.written())
}

fn registered_in_cma_then_queued(t: &mut Ctx) -> TestResult {
    let placed = Placed::in_cma(t)?;
    registered_then_queued(t, placed)
}

fn registered_in_zone_movable_then_queued(t: &mut Ctx) -> TestResult {
    let placed = Placed::in_zone_movable(t)?;
    registered_then_queued(t, placed)
}

fn registered_then_queued(t: &mut Ctx, placed: Placed) -> TestResult {
    let (m2m, tee) = (M2m::copier(FRAME)?, Tee::open()?);
    let session = tee.session(pin::UUID)?;
    m2m.request_for(Output, &placed.area, 1)?;
    let shm = register(&tee, &placed.area)?;
    m2m.queue(t, Output, 0, &placed.area)?;
    judge_both(t, &m2m, &placed)?;
    judge_checksum(t, &tee, session, &shm, placed.area.written())
}

fn queued_in_cma_then_registered(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let placed = Placed::in_cma(t)?;
    queued_then_registered(t, placed)
}

fn queued_in_zone_movable_then_registered(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let placed = Placed::in_zone_movable(t)?;
    queued_then_registered(t, placed)
}

fn queued_then_registered(t: &mut Ctx, placed: Placed) -> TestResult {
    let (m2m, tee) = (M2m::copier(FRAME)?, Tee::open()?);
    let session = tee.session(pin::UUID)?;
    m2m.request_for(Output, &placed.area, 1)?;
    m2m.queue(t, Output, 0, &placed.area)?;
    let shm = register(&tee, &placed.area)?;
    judge_both(t, &m2m, &placed)?;
    judge_checksum(t, &tee, session, &shm, placed.area.written())
}

/// The video device and the TEE hold the same pages, outside of where they were.
fn judge_both(t: &mut Ctx, m2m: &M2m, placed: &Placed) -> TestResult {
    placed.judge_outside(t)?;
    placed.judge_held(t, &m2m.device, 2)?;
    let handle = m2m.handle(Output, 0)?;
    let seen = m2m.device.checksum(handle, 0, FRAME.size() as u64)?;
    let expected = crc(placed.area.written());
    t.equal(Eye::Device, "CRC32C at the video device", seen, expected);
    Ok(())
}
