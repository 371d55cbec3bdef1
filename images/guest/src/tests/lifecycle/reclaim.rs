// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that is wanted back: what the device holds is neither swapped out nor dropped.

use super::stage::Stage;
use crate::tests::sources::{LAZY, PIN_USER_PAGES};
use crate::tests::test::{FRAME, Test, test};
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult, premise};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::observe::pagemap::{self, Entry};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::pageout_with_swap_moves_no_page", pageout_with_swap, PIN_USER_PAGES,
        "MADV_PAGEOUT swaps other pages out, and leaves those that the device holds in memory."),
    test("lifecycle::pageout_while_the_device_writes", pageout_while_the_device_writes, PIN_USER_PAGES,
        "MADV_PAGEOUT while the device writes takes none of its writes away."),
    test("lifecycle::swapped_out_memory_is_brought_back_by_the_pin", swapped_out_is_brought_back, PIN_USER_PAGES,
        "QBUF of memory that is swapped out brings it back with its contents, and there it stays."),
    test("lifecycle::madv_cold_moves_no_page", madv_cold, PIN_USER_PAGES,
        "MADV_COLD leaves pages where they are that the device holds."),
    test("lifecycle::madv_free_drops_no_page_that_is_held", madv_free, LAZY,
        "Pages under MADV_FREE that a device holds are not dropped when memory is wanted back: its writes would be lost."),
];

/// The pages of an area that are as wanted, and how many there are.
fn count(area: &Area, wanted: fn(Entry) -> bool) -> TestResult<(usize, usize)> {
    let entries = pagemap::entries(area.mapping.address(), area.mapping.len())?;
    let count = entries.iter().filter(|entry| wanted(**entry)).count();
    Ok((count, entries.len()))
}

fn advise(area: &Area, advice: MmapAdvise) -> TestResult {
    Ok(area.mapping.advise(0..area.mapping.len(), advice)?)
}

/// Memory that nobody holds, swapped out. A page that is on its way to an LRU list cannot be, so it is asked for more than once.
fn swapped_out(t: &mut Ctx) -> TestResult<Area> {
    let mut area = Area::anon(100, FRAME.size())?;
    area.fill(t)?;
    let mut left = 0;
    for _ in 0..10 {
        advise(&area, MmapAdvise::MADV_PAGEOUT)?;
        let (out, all) = count(&area, Entry::swapped)?;
        left = all - out;
        if left == 0 {
            return Ok(area);
        }
    }
    premise(false, || {
        format!("{left} pages that nobody holds are not swapped out by MADV_PAGEOUT")
    })?;
    Ok(area)
}

/// Has pages swapped out that nobody holds, and tries those of the stage as often.
fn page_out(t: &mut Ctx, stage: &Stage) -> TestResult<Area> {
    let other = swapped_out(t)?;
    for _ in 0..3 {
        for area in stage.areas() {
            advise(area, MmapAdvise::MADV_PAGEOUT)?;
        }
    }
    for area in stage.areas() {
        let (out, _) = count(area, Entry::swapped)?;
        t.equal(
            Eye::Placement,
            "pages swapped out that the device holds",
            out,
            0,
        );
    }
    Ok(other)
}

fn pageout_with_swap(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    let other = page_out(t, &stage)?;
    stage.judge(t, "MADV_PAGEOUT")?;
    other.judge_untouched(t, "what was swapped out")?;
    Ok(())
}

fn pageout_while_the_device_writes(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let mut stage = Stage::anon(t)?;
    stage.while_copying(t, |t| page_out(t, &stage).map(drop))?;
    stage.judge(t, "MADV_PAGEOUT")
}

fn swapped_out_is_brought_back(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let src = swapped_out(t)?;
    let dst = swapped_out(t)?;
    let data = src.written().to_vec();
    let mut stage = Stage::as_they_are(t, src, dst)?;
    t.same_bytes(
        Eye::Cpu,
        "what was swapped out",
        &stage.src.contents()?,
        &data,
    );
    stage.begin()?;
    page_out(t, &stage)?;
    stage.judge(t, "MADV_PAGEOUT")
}

fn madv_cold(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    for area in stage.areas() {
        advise(area, MmapAdvise::MADV_COLD)?;
    }
    page_out(t, &stage)?;
    stage.judge(t, "MADV_COLD and MADV_PAGEOUT")
}

fn madv_free(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    // The kernel drops such pages whatever they hold, and needs no swap for it.
    let mut other = Area::anon(0, FRAME.size())?;
    other.fill(t)?;
    let mut dropped = (0, 0);
    for _ in 0..10 {
        for area in [&other, &stage.src, &stage.dst] {
            advise(area, MmapAdvise::MADV_FREE)?;
            advise(area, MmapAdvise::MADV_PAGEOUT)?;
        }
        dropped = count(&other, |entry| !entry.present())?;
    }
    premise(dropped.0 == dropped.1, || {
        format!(
            "{} of {} pages under MADV_FREE that nobody holds are dropped",
            dropped.0, dropped.1
        )
    })?;
    stage.judge(t, "MADV_FREE and MADV_PAGEOUT")
}
