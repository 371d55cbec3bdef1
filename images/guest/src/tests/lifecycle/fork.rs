// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Children: none of them gets a page that the device holds, and what they do does not move it.

use super::hold::fork_viewer;
use super::stage::Stage;
use crate::tests::sources::{EARLY_COW, PIN_USER_PAGES};
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::{Area, HUGE};
use pinbed_guest::memory::hugetlb::Pool;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

const MADVISE: &str = "man 2 madvise";
const HUGETLB_COW: &str = "commit 4eae4efa2c29 'hugetlb: do early cow when page pinned on src mm'";
const CLONE: &str = "man 2 clone, CLONE_VM";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::fork_child_exits_first", child_exits_first, EARLY_COW,
        "A child that is gone before its parent writes leaves the parent the pages that the device holds."),
    test("lifecycle::fork_while_the_device_writes", while_the_device_writes, EARLY_COW,
        "A fork while the device writes takes none of its writes from the parent, and gives the child copies."),
    test("lifecycle::fork_copies_every_buffer", copies_every_buffer, EARLY_COW,
        "With many buffers queued, fork leaves the parent all of them, and the child has a copy of each."),
    test("lifecycle::fork_of_a_huge_page", of_a_huge_page, EARLY_COW,
        "Fork leaves the parent a transparent huge page that the device holds a part of, and gives the child a copy."),
    test("lifecycle::fork_of_hugetlb", of_hugetlb, HUGETLB_COW,
        "Fork leaves the parent a hugetlb page that the device holds, and gives the child a copy."),
    test("lifecycle::clone_vm_shares_with_the_device", clone_vm_shares, CLONE,
        "A child that shares its parent's memory (as vfork's does) writes what the device reads, and reads what it writes."),
    test("lifecycle::dontfork_keeps_from_the_child", dontfork, MADVISE,
        "A child has nothing at addresses under MADV_DONTFORK; the parent keeps the pages that the device holds."),
    test("lifecycle::wipeonfork_shows_the_child_zeroes", wipeonfork, MADVISE,
        "A child has zeroes in memory under MADV_WIPEONFORK; the parent keeps the pages that the device holds."),
    test("lifecycle::pages_outlive_their_process", outlive, PIN_USER_PAGES,
        "What a child queued the device still holds, with its contents, when the child is gone, until the buffer is released."),
];

fn child_exits_first(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    let before = stage.src.written().to_vec();
    fork_viewer(&stage.src, |_| ())?.must_see(t, &before)?;
    stage.judge(t, "the child is gone")
}

fn while_the_device_writes(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.while_copying(t, |t| {
        for _ in 0..3 {
            // What a copy has in it depends on the moment.
            let seen = fork_viewer(&stage.dst, |_| ())?.go()?;
            let what = "page frames that the child shares with its parent";
            t.equal(Eye::Placement, what, seen.shared, 0);
        }
        Ok(())
    })?;
    stage.judge(t, "forks")
}

fn copies_every_buffer(t: &mut Ctx) -> TestResult {
    const COUNT: u32 = 4;
    let m2m = M2m::copier(FRAME)?;
    let mut areas = Vec::new();
    for queue in [Output, Capture] {
        for index in 0..COUNT {
            let mut area = Area::anon(100 * index as usize, FRAME.size())?;
            if index == 0 {
                m2m.request_for(queue, &area, COUNT)?;
            }
            area.fill(t)?;
            m2m.queue(t, queue, index, &area)?;
            areas.push((queue, index, area));
        }
    }
    let (sources, sinks) = areas.split_at(COUNT as usize);
    let viewers = areas
        .iter()
        .map(|(_, _, area)| fork_viewer(area, |_| ()))
        .collect::<TestResult<Vec<_>>>()?;
    m2m.stream_on()?;
    for ((_, _, src), (_, _, dst)) in sources.iter().zip(sinks) {
        m2m.finish(t, src, src.written(), dst, src.written())?;
    }
    for (queue, index, area) in &areas {
        m2m.judge_placement(t, *queue, *index, area)?;
    }
    for (viewer, (_, _, area)) in viewers.into_iter().zip(&areas) {
        viewer.must_see(t, area.written())?;
    }
    Ok(())
}

/// The child writes, then the parent, then the device.
fn all_write(t: &mut Ctx, mut stage: Stage) -> TestResult {
    stage.begin()?;
    let childs = t.random(FRAME.size());
    for area in stage.areas() {
        let act = |area: &Area| area.mapping.write(area.window.start, &childs);
        fork_viewer(area, act)?.must_see(t, &childs)?;
    }
    // A child that lives while its parent writes.
    let before = stage.src.written().to_vec();
    let child = fork_viewer(&stage.src, |_| ())?;
    stage.judge(t, "fork")?;
    child.must_see(t, &before)
}

fn of_a_huge_page(t: &mut Ctx) -> TestResult {
    let (src, dst) = (
        Area::huge(5 * PAGE + 100, FRAME.size())?,
        Area::huge(HUGE - 8 * PAGE, FRAME.size())?,
    );
    let stage = Stage::of(t, src, dst)?;
    all_write(t, stage)
}

fn hugetlb(t: &mut Ctx, offset: usize) -> TestResult<Area> {
    let mut area = Area::hugetlb(offset, FRAME.size())?;
    area.fill(t)?;
    Ok(area)
}

fn of_hugetlb(t: &mut Ctx) -> TestResult {
    // Two for the parent, and two for each of two children at a time.
    let _pool = Pool::outside_cma(6)?;
    let (src, dst) = (hugetlb(t, 5 * PAGE)?, hugetlb(t, 0)?);
    let stage = Stage::of(t, src, dst)?;
    all_write(t, stage)
}

/// Runs `act` in a child that shares this process's memory and has its own stack, as vfork does; the parent waits.
fn in_shared_memory(mut act: impl FnMut()) -> TestResult {
    extern "C" fn begin<F: FnMut()>(act: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `act` is the closure below, which the parent keeps while it waits.
        unsafe { (*act.cast::<F>())() };
        0
    }
    fn spawn<F: FnMut()>(act: &mut F, top: usize) -> libc::c_int {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the child has a stack of its own, and runs nothing but `act` while the parent waits for its end.
        unsafe {
            libc::clone(
                begin::<F>,
                top as *mut _,
                flags,
                std::ptr::from_mut(act).cast(),
            )
        }
    }
    let stack = Mapping::anon(64 * PAGE)?;
    let pid = Errno::result(spawn(&mut act, stack.address() + stack.len()))
        .map_err(Error::call("clone with CLONE_VM"))?;
    match waitpid(Pid::from_raw(pid), None).map_err(Error::call("waitpid"))? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(Stop::finding(
            Eye::Harness,
            format!("the child that shares memory ended with {other:?}"),
        )),
    }
}

fn clone_vm_shares(t: &mut Ctx) -> TestResult {
    // The CPU writes what the device has been given.
    swiotlb::unless_forced()?;
    let mut stage = Stage::anon(t)?;
    let childs = t.random(FRAME.size());
    in_shared_memory(|| stage.src.mapping.write(stage.src.window.start, &childs))?;
    stage.src.adopt()?;
    t.same_bytes(
        Eye::Cpu,
        "what the child wrote",
        stage.src.written(),
        &childs,
    );
    stage.begin()?;
    stage.judge(t, "a child wrote to the same memory")
}

fn dontfork(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    for area in stage.areas() {
        area.mapping
            .advise(0..area.mapping.len(), MmapAdvise::MADV_DONTFORK)?;
        let (address, length) = (area.mapping.address(), area.mapping.len());
        let child = Child::fork(|| {
            let mut resident = vec![0; length / PAGE];
            // SAFETY: mincore looks at no memory, and fills one byte for each page.
            let mapped = unsafe { libc::mincore(address as *mut _, length, resident.as_mut_ptr()) };
            vec![u8::from(Errno::result(mapped) == Err(Errno::ENOMEM))]
        })?;
        t.equal(
            Eye::Cpu,
            "whether the child has nothing at the address (1 is yes)",
            child.go()?,
            vec![1],
        );
    }
    stage.judge(t, "a fork without the memory")
}

fn wipeonfork(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    for area in stage.areas() {
        area.mapping
            .advise(0..area.mapping.len(), MmapAdvise::MADV_WIPEONFORK)?;
        fork_viewer(area, |_| ())?.must_see(t, &vec![0; FRAME.size()])?;
    }
    stage.judge(t, "a fork that wiped the child's memory")
}

/// Keeps this process, and its children, on the first CPU: each CPU hands out what was freed on it, last in, first out.
fn stay_on_one_cpu() -> TestResult {
    let first: libc::c_ulong = 1;
    // SAFETY: the mask is a live variable of the length said.
    let done =
        unsafe { libc::sched_setaffinity(0, size_of_val(&first), (&raw const first).cast()) };
    Errno::result(done).map_err(Error::call("sched_setaffinity"))?;
    Ok(())
}

fn outlive(t: &mut Ctx) -> TestResult {
    stay_on_one_cpu()?;
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(100, FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    let childs = t.random(FRAME.size());
    let child = Child::fork(|| {
        src.mapping.write(src.window.start, &childs);
        vec![u8::from(
            m2m.node.enqueue(describe(Output, 0, &src)).is_ok(),
        )]
    })?;
    t.equal(
        Eye::Cpu,
        "whether the child's QBUF works (1 is yes)",
        child.go()?,
        vec![1],
    );
    // The child's memory is free but for what the device holds: these pages would be the buffer's, were that free, too.
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut other = Area::anon(0, FRAME.size())?;
        other.fill(t)?;
        others.push(other);
    }
    let size = FRAME.size() as u64;
    t.equal(
        Eye::Device,
        "CRC32C of what the child queued",
        m2m.device.checksum(m2m.handle(Output, 0)?, 0, size)?,
        crc(&childs),
    );
    let shown = pagemap::entries(src.address(), src.len())?;
    let held = m2m
        .held(t, Output, 0)?
        .map_or(Vec::new(), |held| held.segments);
    t.check(
        Eye::Placement,
        !frames(&held).any(|frame| shown.iter().any(|entry| entry.frame() == Some(frame))),
        || format!("the device holds pages of the parent's: {held:?}"),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, &childs, &dst, &childs)
}
