// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the process does to its address space while the device holds on: process and device keep looking at the same bytes, or
//! the device keeps the old ones.

use crate::tests::pin::dirty::evict;
use crate::tests::sources::{EARLY_COW, PIN_USER_PAGES};
use crate::tests::test::{FRAME, Test, test};
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::reuse::Control;
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::observe::extent::frames;
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("hold::madv_dontneed_leaves_the_device_its_bytes", madv_dontneed_leaves_the_device_its_bytes, PIN_USER_PAGES,
        "After MADV_DONTNEED the device still reads the old bytes of a queued buffer, while the process has new pages."),
    test("hold::madv_dontneed_leaves_the_process_its_new_page", madv_dontneed_leaves_the_process_its_new_page, PIN_USER_PAGES,
        "After MADV_DONTNEED of a queued CAPTURE buffer the device writes the old pages, not those the process has since."),
    test("hold::munmap_leaves_the_device_its_bytes", munmap_leaves_the_device_its_bytes, PIN_USER_PAGES,
        "After munmap the device still reads the old bytes of a queued buffer, whatever the freed address range is used for."),
    test("hold::mremap_moves_no_page", mremap_moves_no_page, PIN_USER_PAGES,
        "After mremap the same page frames are at the new address, and the device and the process share them."),
    test("hold::madv_pageout_moves_no_page", madv_pageout_moves_no_page, PIN_USER_PAGES,
        "MADV_PAGEOUT swaps other pages out, and leaves pinned pages where they are."),
    test("hold::fork_child_writes_its_own_copy", fork_child_writes_its_own_copy, EARLY_COW,
        "What a forked child writes is seen neither by its parent nor by the device: the child has copies."),
    test("hold::fork_parent_keeps_the_pinned_page", fork_parent_keeps_the_pinned_page, EARLY_COW,
        "What the parent writes after fork the device reads, and the child does not see."),
    test("hold::fork_leaves_the_parent_what_the_device_writes", fork_leaves_the_parent_what_the_device_writes, EARLY_COW,
        "What the device writes after fork the parent reads, and the child does not see."),
];

/// What the device sees in a queue's first buffer now.
fn seen(m2m: &M2m, queue: Queue) -> TestResult<u32> {
    Ok(m2m
        .device
        .checksum(m2m.handle(queue, 0)?, 0, m2m.image(queue).size() as u64)?)
}

/// A queued source of user memory, and a filled sink that is not queued yet.
fn queued_source(t: &mut Ctx, m2m: &M2m) -> TestResult<(Area, Area)> {
    let mut src = m2m.with(Output, Area::anon(100, FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    Ok((src, dst))
}

fn madv_dontneed_leaves_the_device_its_bytes(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (mut src, dst) = queued_source(t, &m2m)?;
    let data = src.written().to_vec();
    src.mapping
        .advise(0..src.mapping.len(), MmapAdvise::MADV_DONTNEED)?;
    t.same_bytes(
        Eye::Cpu,
        "the process's memory after MADV_DONTNEED",
        &src.contents()?,
        &vec![0; FRAME.size()],
    );
    t.equal(
        Eye::Device,
        "CRC32C after MADV_DONTNEED",
        seen(&m2m, Output)?,
        crc(&data),
    );
    src.fill(t)?;
    t.equal(
        Eye::Device,
        "CRC32C after the process wrote its new pages",
        seen(&m2m, Output)?,
        crc(&data),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, &data, &dst, &data)
}

fn madv_dontneed_leaves_the_process_its_new_page(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.own(Output)?;
    let mut dst = m2m.with(Capture, Area::anon(100, FRAME.size())?)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    dst.mapping
        .advise(0..dst.mapping.len(), MmapAdvise::MADV_DONTNEED)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.stream_on()?;
    let (read, wrote) = m2m.dequeue_pair(&src, &dst)?;
    pinbed_guest::video::m2m::judge_job(t, "OUTPUT", &read, src.written());
    pinbed_guest::video::m2m::judge_job(t, "CAPTURE", &wrote, src.written());
    t.equal(
        Eye::Device,
        "CRC32C of the pages that the device kept",
        seen(&m2m, Capture)?,
        crc(src.written()),
    );
    Ok(dst.judge_untouched(t, "the process's new memory")?)
}

fn munmap_leaves_the_device_its_bytes(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, dst) = queued_source(t, &m2m)?;
    let data = src.written().to_vec();
    let pins = vmstat::pinned_pages()?;
    cpu::stay()?;
    let control = Control::new()?;
    drop(src);
    t.equal(
        Eye::Aftermath,
        "pinned pages after munmap",
        vmstat::pinned_pages()?,
        pins,
    );

    let others = control.reused(t)?;
    t.equal(
        Eye::Device,
        "CRC32C after munmap",
        seen(&m2m, Output)?,
        crc(&data),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &others[0], &data, &dst, &data)?;
    for other in others {
        other.judge_untouched(t, "memory that was mapped since")?;
    }
    Ok(())
}

fn mremap_moves_no_page(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier(FRAME)?;
    let (src, dst) = queued_source(t, &m2m)?;
    let window = src.window.clone();
    let mut src = Area::user(src.mapping.moved()?, window);
    m2m.judge_placement(t, Output, 0, &src)?;
    src.fill(t)?;
    t.equal(
        Eye::Device,
        "CRC32C of what the process wrote at the new address",
        seen(&m2m, Output)?,
        crc(src.written()),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

fn madv_pageout_moves_no_page(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    cpu::stay()?;
    let _swap = Swap::on()?;
    let m2m = M2m::copier(FRAME)?;
    let (mut src, dst) = queued_source(t, &m2m)?;
    let mut other = Area::anon(0, FRAME.size())?;
    other.fill(t)?;
    // That nobody holds.
    evict(&other)?;
    src.mapping
        .advise(0..src.mapping.len(), MmapAdvise::MADV_PAGEOUT)?;
    m2m.judge_placement(t, Output, 0, &src)?;
    src.fill(t)?;
    m2m.judge_placement(t, Output, 0, &src)?;
    t.equal(
        Eye::Device,
        "CRC32C of what the process wrote afterwards",
        seen(&m2m, Output)?,
        crc(src.written()),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

/// What a forked child sees of memory.
pub struct Seen {
    /// Of its contents.
    pub crc: u32,
    /// Page frames that the child shares with its parent.
    pub shared: u32,
}

/// A child that looks at memory of its parent's.
pub struct Viewer(Child);

/// Forks. On its turn the child does as told, then looks at `area` as it was copied to it.
pub fn fork_viewer(area: &Area, act: impl FnOnce(&Area)) -> TestResult<Viewer> {
    let parents: Vec<u64> = match area.extents()? {
        Some(Ok(at)) => frames(&at).collect(),
        _ => {
            return Err(Stop::finding(
                Eye::Harness,
                "not all pages are present before fork",
            ));
        }
    };
    let look = || {
        act(area);
        let crc = area.contents().map(|bytes| crc(&bytes)).unwrap_or_default();
        let mine = pagemap::entries(area.address(), area.len()).unwrap_or_default();
        let shared = mine
            .iter()
            .filter_map(|entry| entry.frame())
            .filter(|frame| parents.contains(frame));
        [crc, shared.count() as u32]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    };
    Ok(Viewer(Child::fork(look)?))
}

impl Viewer {
    /// Lets the child act, and waits for what it saw.
    pub fn go(self) -> TestResult<Seen> {
        match *self.0.go()? {
            [a, b, c, d, e, f, g, h] => Ok(Seen {
                crc: u32::from_le_bytes([a, b, c, d]),
                shared: u32::from_le_bytes([e, f, g, h]),
            }),
            ref other => Err(Stop::finding(
                Eye::Harness,
                format!("the forked child says {other:?}"),
            )),
        }
    }

    /// Lets the child act; it must see these bytes, in page frames of its own.
    pub fn must_see(self, t: &mut Ctx, bytes: &[u8]) -> TestResult {
        let seen = self.go()?;
        t.equal(
            Eye::Cpu,
            "CRC32C of what the child sees",
            seen.crc,
            crc(bytes),
        );
        t.equal(
            Eye::Placement,
            "page frames that the child shares with its parent",
            seen.shared,
            0,
        );
        Ok(())
    }
}

fn fork_child_writes_its_own_copy(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, dst) = queued_source(t, &m2m)?;
    let childs = t.random(FRAME.size());
    let child = fork_viewer(&src, |area| area.mapping.write(area.window.start, &childs))?;
    child.must_see(t, &childs)?;
    src.judge_untouched(t, "the parent's memory after the child wrote")?;
    t.equal(
        Eye::Device,
        "CRC32C after the child wrote",
        seen(&m2m, Output)?,
        crc(src.written()),
    );
    m2m.judge_placement(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

fn fork_parent_keeps_the_pinned_page(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier(FRAME)?;
    let (mut src, dst) = queued_source(t, &m2m)?;
    let before = src.written().to_vec();
    let child = fork_viewer(&src, |_| ())?;
    src.fill(t)?;
    m2m.judge_placement(t, Output, 0, &src)?;
    t.equal(
        Eye::Device,
        "CRC32C after the parent wrote",
        seen(&m2m, Output)?,
        crc(src.written()),
    );
    child.must_see(t, &before)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

fn fork_leaves_the_parent_what_the_device_writes(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.own(Output)?;
    let mut dst = m2m.with(Capture, Area::anon(100, FRAME.size())?)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    let before = dst.written().to_vec();
    let child = fork_viewer(&dst, |_| ())?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())?;
    m2m.judge_placement(t, Capture, 0, &dst)?;
    child.must_see(t, &before)?;
    Ok(())
}
