// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Write protection that comes and goes: by the process itself, by who tracks its writes, by who handles its faults.

use super::stage::Stage;
use crate::tests::sources::PIN_USER_PAGES;
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc, premise};
use pinbed_guest::harness::setting;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::userfault::{FEATURE_MOVE, Userfault};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::v4l2::Queue::Output;
use std::thread;

const COW: &str = "commit 17839856fd58 'gup: document and work around \"COW can break either way\" issue' and 6c287605fd56 'mm: remember exclusively mapped anonymous pages with PG_anon_exclusive'";
const CLEAR_REFS: &str =
    "commit 9348b73c2e1b 'mm: don't play games with pinned pages in clear_page_refs'";
const SOFT_DIRTY: &str = "Documentation/admin-guide/mm/soft-dirty.rst";
const USERFAULTFD: &str = "Documentation/admin-guide/mm/userfaultfd.rst";
const MOVE: &str = "man 2 UFFDIO_MOVE, EBUSY";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::mprotect_and_back_moves_no_page", mprotect_and_back, COW,
        "A write after mprotect to read-only and back goes to the pages that the device holds, on both queues."),
    test("lifecycle::mprotect_none_and_back_moves_no_page", mprotect_none_and_back, COW,
        "What the device writes while the process has no access the process reads once it has, in the same pages."),
    test("lifecycle::mprotect_while_the_device_writes", mprotect_while_the_device_writes, PIN_USER_PAGES,
        "mprotect is no business of the device, which goes on writing to memory that the process may only read."),
    test("lifecycle::soft_dirty_reset_moves_no_page", soft_dirty_reset, CLEAR_REFS,
        "A write after soft-dirty bits were cleared goes to the pages that the device holds, on both queues."),
    test("lifecycle::device_writes_are_soft_dirty", device_writes_are_soft_dirty, SOFT_DIRTY,
        "Pages that a device may write count as written at all times, so that who saves only what was written loses nothing."),
    test("lifecycle::userfault_write_protection_moves_no_page", userfault_write_protection, USERFAULTFD,
        "A write that waits for a userfaultfd's handler goes to the page that the device holds, which the device writes meanwhile."),
    test("lifecycle::userfault_move_is_refused", userfault_move, MOVE,
        "UFFDIO_MOVE refuses with EBUSY to take pages away that a device holds."),
];

fn protect(stage: &Stage, protection: ProtFlags) -> TestResult {
    for area in stage.areas() {
        area.mapping.protect(0..area.mapping.len(), protection)?;
    }
    Ok(())
}

fn mprotect_and_back(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    for _ in 0..2 {
        protect(&stage, ProtFlags::PROT_READ)?;
        protect(&stage, READ_WRITE)?;
    }
    stage.judge(t, "mprotect to read-only and back")
}

fn mprotect_none_and_back(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.while_copying_untouched(t, |_| {
        protect(&stage, ProtFlags::PROT_NONE)?;
        protect(&stage, READ_WRITE)
    })?;
    stage.judge(t, "mprotect to no access and back")
}

fn mprotect_while_the_device_writes(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    protect(&stage, ProtFlags::PROT_READ)?;
    stage.job(t)?;
    protect(&stage, READ_WRITE)?;
    stage.judge(t, "a job on read-only memory")
}

/// Clears the soft-dirty bits of this process. The kernel protects its pages against writes to learn of the next.
fn clear_soft_dirty() -> TestResult {
    Ok(setting::write("/proc/self/clear_refs", "4")?)
}

fn soft_dirty_reset(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    clear_soft_dirty()?;
    stage.judge(t, "the soft-dirty bits were cleared")
}

fn device_writes_are_soft_dirty(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    let mut other = Area::anon(0, PAGE)?;
    other.fill(t)?;
    clear_soft_dirty()?;
    let dirty = |area: &Area| -> TestResult<(usize, usize)> {
        let entries = pagemap::entries(area.address(), area.len())?;
        let dirty = entries.iter().filter(|entry| entry.soft_dirty());
        Ok((dirty.count(), entries.len()))
    };
    let (others, _) = dirty(&other)?;
    premise(others == 0, || {
        "a page that nobody holds is still soft-dirty; build the kernel with CONFIG_MEM_SOFT_DIRTY"
            .into()
    })?;
    stage.job(t)?;
    let (written, all) = dirty(&stage.dst)?;
    t.equal(
        Eye::Cpu,
        "pages that the device wrote and that are soft-dirty",
        written,
        all,
    );
    stage.judge(t, "the soft-dirty bits were cleared and the device wrote")
}

fn userfault_write_protection(t: &mut Ctx) -> TestResult {
    // The CPU writes what the device has been given.
    swiotlb::unless_forced()?;
    let mut stage = Stage::anon(t)?;
    let fault = Userfault::open(0)?;
    for area in stage.areas() {
        fault.register(&area.mapping)?;
        fault.protect(&area.mapping, true)?;
    }
    let image = t.random(FRAME.size());
    let old = stage.src.written().to_vec();
    let (mapping, start) = (&stage.src.mapping, stage.src.window.start);
    // The thread's write waits until its memory is unprotected, and this thread must not touch it before.
    let waited = thread::scope(|scope| -> TestResult<_> {
        let writer = scope.spawn(|| mapping.write(start, &image));
        let waited = fault.fault(5_000)?;
        stage.m2m.stream_on()?;
        let (src, dst) = (&stage.src, &stage.dst);
        let job = stage.m2m.finish(t, src, &old, dst, &old);
        for area in stage.areas() {
            fault.protect(&area.mapping, false)?;
        }
        let _ = writer.join();
        job.map(|()| waited)
    })?;
    t.equal(
        Eye::Cpu,
        "the page of the first fault",
        waited,
        Some(mapping.address() as u64),
    );
    stage.src.adopt()?;
    t.same_bytes(
        Eye::Cpu,
        "what the thread wrote",
        stage.src.written(),
        &image,
    );
    t.equal(
        Eye::Device,
        "CRC32C of what the thread wrote",
        stage.seen(Output)?,
        crc(&image),
    );
    stage.idle = true;
    stage.judge(t, "write protection by userfaultfd")
}

fn userfault_move(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    let fault = Userfault::open(FEATURE_MOVE)?;
    let mut free = Area::anon(0, FRAME.size())?;
    free.fill(t)?;
    stage.begin()?;
    for (area, pinned) in [(&free, false), (&stage.src, true), (&stage.dst, true)] {
        let to = Mapping::anon(area.mapping.len())?;
        fault.register(&to)?;
        let moved = fault.move_pages(&area.mapping, &to);
        match pinned {
            true => drop(t.refused("UFFDIO_MOVE of pages that are held", moved, &[Errno::EBUSY])),
            false => premise(moved.is_ok(), || {
                format!("UFFDIO_MOVE of pages that nobody holds: {moved:?}")
            })?,
        }
    }
    stage.judge(t, "UFFDIO_MOVE")
}
