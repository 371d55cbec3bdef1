// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pins beside each other, beside who wants the memory, and beside a fork.

use crate::tests::dmabuf::taker::{Call, Taker};
use crate::tests::pin::longterm::in_cma;
use crate::tests::sources::{PIN_USER_PAGES, TEE_LONGTERM};
use crate::tests::test::{Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::harness::rounds::rounds;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::{movable, swiotlb};
use pinbed_guest::video::v4l2::{Memop, Queue};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("pinners::long_pins_race_for_a_page_in_cma", long_pins_race, TEE_LONGTERM,
        "A page in CMA that two rings of io_uring pin for long at the same moment leaves CMA; both have it then, at once or when they try again."),
    test("pinners::short_pins_leave_cma_to_be_allocated", short_pins_and_cma, TEE_LONGTERM,
        "All of a CMA region can be allocated while a disk reads and writes pages in it by O_DIRECT, which pins them for moments."),
    test("pinners::pin_races_a_fork", pin_races_a_fork, PIN_USER_PAGES,
        "A page that is pinned while the process forks stays the parent's: the device sees what the parent writes then."),
];

/// The device reads, and can tell what it sees.
const OUTPUT: Call = Call::Userptr(Memop::DmaSg, Queue::Output);

/// A pin that comes too late to move the page, or too early, says so: the other one has a reference meanwhile.
const BUSY: &[Errno] = &[Errno::ENOMEM, Errno::EFAULT, Errno::EAGAIN];

fn long_pins_race(t: &mut Ctx) -> TestResult {
    let (area, _) = in_cma(t)?;
    for page in (0..area.mapping.len()).step_by(PAGE) {
        let address = area.address() + page;
        premise(movable::count_in(address, PAGE)? == 1, || {
            "the page is in CMA".into()
        })?;
        let mut pins = [Call::IoUring.ready(t)?, Call::IoUring.ready(t)?];
        let start = Barrier::new(pins.len());
        let results: Vec<_> = thread::scope(|scope| {
            let takings: Vec<_> = pins
                .iter_mut()
                .map(|pin| {
                    scope.spawn(|| {
                        start.wait();
                        pin.take(address)
                    })
                })
                .collect();
            takings
                .into_iter()
                .map(|it| it.join().unwrap_or(Err(Errno::EIO)))
                .collect()
        });
        for (pin, result) in pins.iter_mut().zip(results) {
            let result = match result {
                Err(errno) if BUSY.contains(&errno) => {
                    t.note(format!(
                        "one of two pins was refused with {errno:?} at first"
                    ));
                    pin.take(address)
                }
                result => result,
            };
            result.map_err(Error::call("pinning a page that was in CMA"))?;
        }
        let left = movable::count_in(address, PAGE)?;
        t.equal(Eye::Placement, "pages in CMA or ZONE_MOVABLE", left, 0);
        judge_seen(t, &mut pins, &area.mapping, page)?;
    }
    Ok(())
}

fn short_pins_and_cma(t: &mut Ctx) -> TestResult {
    let (area, region) = in_cma(t)?;
    let mut ways = [Call::DirectRead.ready(t)?, Call::DirectWrite.ready(t)?];
    let pages: Vec<_> = (0..area.mapping.len()).step_by(PAGE).collect();
    let stop = AtomicBool::new(false);
    let start = Barrier::new(2);
    let (moved, could) = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut moved = 0_u64;
            start.wait();
            while !stop.load(Ordering::Acquire) {
                for (way, page) in ways.iter_mut().zip(&pages) {
                    way.take(area.address() + page)?;
                    moved += 1;
                }
            }
            Ok::<_, Errno>(moved)
        });
        start.wait();
        let could = until(LIMIT, || Ok(region.whole_can_be_had().is_ok()));
        stop.store(true, Ordering::Release);
        (worker.join().unwrap_or(Err(Errno::EIO)), could)
    });
    let moved = moved.map_err(Error::call("transferring pages by O_DIRECT"))?;
    t.note(format!("{moved} transfers meanwhile"));
    premise(moved > 0, || "no page was transferred".into())?;
    t.check(Eye::Placement, could?, || {
        format!(
            "CMA region {} cannot be allocated within {LIMIT:?}",
            region.name
        )
    });
    let left = movable::count_in(area.address(), area.mapping.len())?;
    t.equal(Eye::Placement, "pages left in CMA or ZONE_MOVABLE", left, 0);
    Ok(())
}

fn pin_races_a_fork(t: &mut Ctx) -> TestResult {
    const ROUNDS: usize = 30;
    swiotlb::unless_forced()?;
    for _ in 0..rounds(ROUNDS)? {
        let memory = Mapping::anon(PAGE)?;
        memory.write(0, &t.random(PAGE));
        let mut pins = [OUTPUT.ready(t)?];
        let (address, start) = (memory.address(), Barrier::new(2));
        let taken = thread::scope(|scope| {
            let pin = scope.spawn(|| {
                start.wait();
                pins[0].take(address)
            });
            start.wait();
            // It lives until the page is pinned, so that the page is shared with it if it can be.
            let child = Child::fork(Vec::new)?;
            let taken = pin.join().unwrap_or(Err(Errno::EIO));
            child.go()?;
            Ok::<_, Stop>(taken)
        })?;
        taken.map_err(Error::call("pinning the page"))?;
        memory.write(0, &t.random(PAGE));
        judge_seen(t, &mut pins, &memory, 0)?;
    }
    Ok(())
}

/// All have the page that the process has.
fn judge_seen(
    t: &mut Ctx,
    pins: &mut [Box<dyn Taker>],
    memory: &Mapping,
    page: usize,
) -> TestResult {
    let expected = crc(&memory.read(page..page + PAGE));
    for pin in pins {
        t.equal(
            Eye::Device,
            "CRC32C of the pinned page",
            pin.seen()?,
            Some(expected),
        );
    }
    Ok(())
}
