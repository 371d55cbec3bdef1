// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pages that are to be moved away: for larger free blocks, to another node, out of memory that is unplugged or that a driver wants.
//! What the device holds stays, and is in nobody's way.

use super::stage::Stage;
use crate::tests::pin::longterm::{SEARCH, hold_in_pipe, in_cma_among};
use crate::tests::sources::TEE_LONGTERM;
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::WaitStatus;
use nix::unistd::read;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::compaction::compact;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::memory_block::{self, Block};
use pinbed_guest::memory::numa;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::v4l2::Queue::Output;
use std::ops::Range;

const COMPACTION: &str =
    "mm/compaction.c, isolate_migratepages_block(): 'Avoid balloon or pinned pages'";
const MOVE_PAGES: &str =
    "man 2 move_pages, EBUSY: 'another kernel subsystem holds a reference to the page'";
const MBIND: &str = "man 2 mbind, MPOL_MF_STRICT and EIO";
const HOTPLUG: &str =
    "Documentation/admin-guide/mm/memory-hotplug.rst, Memory Offlining and ZONE_MOVABLE";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::compaction_moves_other_pages", compaction, COMPACTION,
        "Compaction moves other pages, and leaves those that the device holds, while it writes to them."),
    test("lifecycle::move_pages_moves_other_pages", move_pages, MOVE_PAGES,
        "move_pages(2) moves other pages to another node, and says that it did not move those that the device holds."),
    test("lifecycle::migrate_pages_moves_other_pages", migrate_pages, MOVE_PAGES,
        "migrate_pages(2) moves a whole process to another node but for the pages that the device holds."),
    test("lifecycle::mbind_strict_is_refused", mbind_strict, MBIND,
        "mbind(2) that is to move pages is refused with EIO where the device holds them, and moves none of them."),
    Test { timeout_s: 60, ..test("lifecycle::memory_goes_offline_beside_a_pin", goes_offline, HOTPLUG,
        "A block of movable memory can be taken offline while the device writes to a buffer whose pages were there before QBUF.") },
    Test { timeout_s: 60, ..test("lifecycle::memory_in_use_does_not_go_offline", in_use_does_not_go_offline, HOTPLUG,
        "A block of memory with a page that is held for a short time goes offline when it is let go, and not before.") },
    test("lifecycle::cma_is_emptied_around_a_pin", cma_is_emptied, TEE_LONGTERM,
        "All of a CMA region full of pages can be had while the device writes to a buffer that was among them; the others keep their contents."),
];

/// The frames of a mapping's pages; `None` for one that is not there.
fn places(mapping: &Mapping) -> Result<Vec<Option<u64>>, Error> {
    let entries = pagemap::entries(mapping.address(), mapping.len())?;
    Ok(entries.iter().map(|entry| entry.frame()).collect())
}

/// How many pages are elsewhere than they were.
fn moved(before: &[Option<u64>], now: &[Option<u64>]) -> usize {
    let pairs = before.iter().zip(now);
    pairs
        .filter(|(before, now)| before.is_some() && before != now)
        .count()
}

/// Memory with much free memory above it, to which compaction moves what it can: of many pages those with the lowest frames; and the
/// rest, in which a page of eight stays: compaction takes no page out of a block that is free as a whole.
fn low(length: usize) -> TestResult<(Mapping, [Mapping; 2])> {
    const PIECES: usize = 8;
    let space = Mapping::anon(PIECES * length)?;
    // Another node's memory would do for the process, too.
    space.bind(numa::HOME)?;
    // Where transparent huge pages are always on it would be made of them, and compaction leaves them where they are. A kernel without them
    // says EINVAL.
    let _ = space.advise(0..space.len(), MmapAdvise::MADV_NOHUGEPAGE);
    for page in (0..space.len()).step_by(PAGE) {
        space.write(page, &[1]);
    }
    let frames = places(&space)?;
    let heights = frames
        .chunks(length / PAGE)
        .map(|piece| piece.iter().flatten().sum::<u64>());
    let lowest = heights.enumerate().min_by_key(|(_, height)| *height);
    let (below, rest) = space.split(lowest.map_or(0, |(piece, _)| piece * length));
    let (low, above) = rest.split(length);
    for mapping in [&below, &above] {
        for page in (0..mapping.len()).step_by(8 * PAGE) {
            mapping.advise(page + PAGE..page + 8 * PAGE, MmapAdvise::MADV_DONTNEED)?;
        }
    }
    Ok((low, [below, above]))
}

fn compaction(t: &mut Ctx) -> TestResult {
    // Whether compaction moves pages is up to where they are, and where there are free ones: it gets memory of several places.
    const PLACES: usize = 8;
    let mut useless = Vec::new();
    for _ in 0..PLACES {
        match compact_around_buffers(t)? {
            Ok(mut stage) => return stage.judge(t, "compaction"),
            Err(space) => useless.push(space),
        }
    }
    premise(false, || {
        format!("compaction moves no page that nobody holds, of {PLACES} times {SPACE} bytes")
    })
}

/// Memory that compaction is to mend, in bytes.
const SPACE: usize = 2 << 20;

/// Compacts memory in which every other page is free, around two buffers. Returns the buffers, or the memory if none of its pages moved.
fn compact_around_buffers(t: &mut Ctx) -> TestResult<Result<Stage, [Mapping; 4]>> {
    let (space, [below, above]) = low(SPACE)?;
    let pages = FRAME.size().next_multiple_of(PAGE);
    let (before, rest) = space.split(SPACE / 2);
    let (src, rest) = rest.split(pages);
    let (dst, after) = rest.split(pages);
    for mapping in [&before, &after] {
        for page in (0..mapping.len()).step_by(2 * PAGE) {
            mapping.advise(page..page + PAGE, MmapAdvise::MADV_DONTNEED)?;
        }
    }
    let window = 0..FRAME.size();
    let (src, dst) = (Area::user(src, window.clone()), Area::user(dst, window));
    let stage = Stage::of(t, src, dst)?;
    let others = [places(&before)?, places(&after)?];
    let pages_left = others.iter().flatten().flatten().count();
    let moved = stage.while_copying(t, |_| {
        let mut count = 0;
        until(LIMIT / 10, || {
            compact()?;
            count = moved(&others[0], &places(&before)?) + moved(&others[1], &places(&after)?);
            Ok(count > pages_left / 8)
        })?;
        Ok(count)
    })?;
    t.note(format!("{moved} of {pages_left} other pages were moved"));
    Ok(match moved {
        0 => Err([before, after, below, above]),
        _ => Ok(stage),
    })
}

/// A page's worth of memory that nobody holds, on the first node.
fn other(t: &mut Ctx) -> TestResult<Area> {
    let mut other = Area::anon(0, FRAME.size())?;
    other.fill(t)?;
    let at = numa::places(&other.mapping)?;
    premise(at.iter().all(|node| *node == numa::HOME as i32), || {
        format!("new memory is on nodes {at:?}")
    })?;
    Ok(other)
}

/// The node that all of an area's pages are on.
fn judge_node(t: &mut Ctx, what: &str, area: &Area, node: u32) -> TestResult {
    let at = numa::places(&area.mapping)?;
    t.equal(
        Eye::Placement,
        &format!("the nodes that {what} is on"),
        &at,
        &vec![node as i32; at.len()],
    );
    Ok(())
}

fn move_pages(t: &mut Ctx) -> TestResult {
    numa::need_moves()?;
    let mut stage = Stage::anon(t)?;
    let other = other(t)?;
    let (status, left) = numa::move_to(&other.mapping, numa::MOVABLE).map_err(
        pinbed_guest::harness::error::Error::call("move_pages of memory that nobody holds"),
    )?;
    premise(
        left == 0 && status.iter().all(|node| *node == numa::MOVABLE as i32),
        || format!("move_pages of memory that nobody holds: {left} left, {status:?}"),
    )?;
    stage.while_copying(t, |t| {
        for area in stage.areas() {
            let result = numa::move_to(&area.mapping, numa::MOVABLE);
            // A kernel may count them, say EBUSY for each, or fail the call.
            let told = match &result {
                Ok((status, left)) => *left > 0 || status.contains(&-(Errno::EBUSY as i32)),
                Err(errno) => *errno == Errno::EBUSY,
            };
            t.check(Eye::Cpu, told, || {
                format!("move_pages of pages that are held does not say so: {result:?}")
            });
            judge_node(t, "a buffer", area, numa::HOME)?;
        }
        Ok(())
    })?;
    stage.judge(t, "move_pages")?;
    Ok(other.judge_untouched(t, "what was moved")?)
}

fn migrate_pages(t: &mut Ctx) -> TestResult {
    numa::need_moves()?;
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    let other = other(t)?;
    let pages: usize = stage
        .areas()
        .iter()
        .map(|area| area.mapping.len() / PAGE)
        .sum();
    let left = numa::migrate_all(numa::HOME, numa::MOVABLE)
        .map_err(pinbed_guest::harness::error::Error::call("migrate_pages"))?;
    judge_node(t, "memory that nobody holds", &other, numa::MOVABLE)?;
    t.check(Eye::Cpu, left >= pages, || {
        format!("migrate_pages says that it left {left} pages, where {pages} are held")
    });
    for area in stage.areas() {
        judge_node(t, "a buffer", area, numa::HOME)?;
    }
    stage.judge(t, "migrate_pages")?;
    Ok(other.judge_untouched(t, "what was moved")?)
}

fn mbind_strict(t: &mut Ctx) -> TestResult {
    numa::need_moves()?;
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    let other = other(t)?;
    let result = numa::bind_and_move(&other.mapping, numa::MOVABLE);
    premise(result.is_ok(), || {
        format!("mbind of memory that nobody holds: {result:?}")
    })?;
    judge_node(t, "memory that nobody holds", &other, numa::MOVABLE)?;
    for area in stage.areas() {
        let result = numa::bind_and_move(&area.mapping, numa::MOVABLE);
        t.refused("mbind of pages that are held", result, &[Errno::EIO]);
        judge_node(t, "a buffer", area, numa::HOME)?;
    }
    stage.judge(t, "mbind")
}

/// A block of memory that is brought online when this is dropped.
struct Away<'a>(&'a Block);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if self.0.is_offline().unwrap_or(false) {
            // What fails here is found before the next test.
            let _ = self.0.bring_online();
        }
    }
}

/// Memory on the movable node, filled.
fn in_block(t: &mut Ctx, block: &Block, offset: usize) -> TestResult<Area> {
    let mut area = Area::anon(offset, FRAME.size())?;
    area.mapping.bind(numa::MOVABLE)?;
    area.fill(t)?;
    // What is allocated from now on must not wait for the block.
    area.mapping.bind(numa::HOME)?;
    let inside = inside(&area, &block.frames)?;
    premise(inside == area.mapping.len() / PAGE, || {
        format!("{inside} pages of the area are in the block that is to go offline")
    })?;
    Ok(area)
}

/// How many of an area's pages are in these frames.
fn inside(area: &Area, range: &Range<u64>) -> TestResult<usize> {
    let places = places(&area.mapping)?;
    Ok(places
        .iter()
        .flatten()
        .filter(|frame| range.contains(frame))
        .count())
}

/// A child that takes the block offline, on its turn: the kernel tries until it succeeds, or until the child is killed.
fn taker(block: &Block) -> TestResult<Child> {
    Ok(Child::fork(|| match block.take_offline() {
        Ok(()) => b"done".to_vec(),
        Err(error) => error.to_string().into_bytes(),
    })?)
}

/// Whether the child gets its block. Where the kernel has failed so many times to move a page it fails for ever.
fn succeeds(child: &mut Child) -> TestResult<bool> {
    const FAILURES: i64 = 1000;
    let before = vmstat::counter("pgmigrate_fail")?;
    let mut status = None;
    until(LIMIT, || {
        status = child.ended()?;
        Ok(status.is_some() || vmstat::counter("pgmigrate_fail")? - before > FAILURES)
    })?;
    Ok(matches!(status, Some(WaitStatus::Exited(_, 0))))
}

fn goes_offline(t: &mut Ctx) -> TestResult {
    numa::need_both()?;
    let block = memory_block::movable()?;
    let (src, dst) = (in_block(t, &block, 100)?, in_block(t, &block, 0)?);
    let mut stage = Stage::as_they_are(t, src, dst)?;
    let away = Away(&block);
    stage.while_copying(t, |t| {
        let mut child = taker(&block)?;
        child.start()?;
        let ended = succeeds(&mut child)?;
        t.check(Eye::Placement, ended && block.is_offline()?, || {
            "the block does not go offline while the buffers are queued".into()
        });
        drop(child);
        Ok(())
    })?;
    drop(away);
    t.check(Eye::Harness, !block.is_offline()?, || {
        "the block does not come online again".into()
    });
    stage.judge(t, "the memory where the buffers were went offline")
}

fn in_use_does_not_go_offline(t: &mut Ctx) -> TestResult {
    numa::need_both()?;
    let block = memory_block::movable()?;
    let area = in_block(t, &block, 0)?;
    let (reader, _writer) = hold_in_pipe(&area)?;
    let away = Away(&block);
    let failed = vmstat::counter("pgmigrate_fail")?;
    let mut child = taker(&block)?;
    child.start()?;
    let tried = until(LIMIT, || Ok(vmstat::counter("pgmigrate_fail")? > failed))?;
    premise(tried, || {
        "the kernel does not try to move the page that is held".into()
    })?;
    t.check(Eye::Placement, !block.is_offline()?, || {
        "the block is offline while a pipe holds a page of it".into()
    });
    let mut held = vec![0; PAGE];
    let length = read(&reader, &mut held)
        .map_err(pinbed_guest::harness::error::Error::call("reading a pipe"))?;
    t.same_bytes(
        Eye::Cpu,
        "what the pipe held",
        &held[..length],
        &area.contents()?[..PAGE],
    );
    let ended = succeeds(&mut child)?;
    t.check(Eye::Placement, ended && block.is_offline()?, || {
        "the block does not go offline when nothing is held any more".into()
    });
    drop(away);
    t.check(Eye::Harness, !block.is_offline()?, || {
        "the block does not come online again".into()
    });
    Ok(area.judge_untouched(t, "memory that was in the block")?)
}

fn cma_is_emptied(t: &mut Ctx) -> TestResult {
    const NEIGHBOURS: usize = 64;
    let (src, region, others) = in_cma_among(t, Mapping::anon(SEARCH)?, NEIGHBOURS)?;
    let mut dst = Area::anon(0, FRAME.size())?;
    dst.fill(t)?;
    let mut others = Area::user(others, 0..NEIGHBOURS * PAGE);
    others.fill(t)?;
    let mut stage = Stage::as_they_are(t, src, dst)?;
    stage.while_copying(t, |t| {
        let pages = region.longest_free()?;
        let taken = region.take(pages);
        t.check(Eye::Placement, taken.is_ok(), || {
            format!("{pages} pages of CMA cannot be allocated while the buffers are queued")
        });
        let left = inside(&others, &region.frames)?;
        t.equal(
            Eye::Placement,
            "pages of others in CMA when all of it is allocated",
            left,
            if taken.is_ok() { 0 } else { left },
        );
        Ok(())
    })?;
    others.judge_untouched(t, "neighbours in CMA")?;
    let held = stage.held(t, Output)?;
    let inside = frames(&held).filter(|frame| region.frames.contains(frame));
    t.equal(
        Eye::Placement,
        "pages of the buffer in CMA",
        inside.count(),
        0,
    );
    stage.judge(t, "all of CMA was allocated")
}
