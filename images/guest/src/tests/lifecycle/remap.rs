// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Addresses that lose their pages while the device holds these, and get others.

use super::stage::Stage;
use crate::tests::sources::{PIN_USER_PAGES, USERP};
use crate::tests::test::{FRAME, Test, test};
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::munmap_while_the_device_writes", munmap_while_the_device_writes, PIN_USER_PAGES,
        "A job that waits while its buffers are unmapped and their addresses used again moves the old pages' bytes, and harms no other."),
    test("lifecycle::mremap_leaves_the_old_address_to_others", mremap_leaves_the_old_address, PIN_USER_PAGES,
        "After mremap the device shares the new address's pages, and has nothing to do with what is mapped at the old address since."),
    test("lifecycle::mremap_dontunmap_leaves_the_old_address_new_pages", mremap_dontunmap, PIN_USER_PAGES,
        "After MREMAP_DONTUNMAP the device shares the new address's pages, and the old address has new ones."),
    test("lifecycle::partial_munmap_leaves_the_device_the_rest", partial_munmap, PIN_USER_PAGES,
        "After munmap of a buffer's middle page the device has the page still, and shares those around it with the process."),
    test("lifecycle::requeue_after_munmap_and_mmap_reads_the_new_pages", requeue_reads_after_mmap, USERP,
        "QBUF of an address that was unmapped and mapped again since DQBUF hands over the pages that are there now, on OUTPUT."),
    test("lifecycle::requeue_after_munmap_and_mmap_writes_the_new_pages", requeue_writes_after_mmap, USERP,
        "QBUF of an address that was unmapped and mapped again since DQBUF hands over the pages that are there now, on CAPTURE."),
    test("lifecycle::requeue_after_dontneed_hands_over_the_new_pages", requeue_after_dontneed, USERP,
        "QBUF of an address that was given up with MADV_DONTNEED since DQBUF hands over the pages that are there now."),
    test("lifecycle::requeue_after_mremap_hands_over_the_new_pages", requeue_after_mremap, USERP,
        "QBUF of an address whose pages were moved away since DQBUF hands over the pages that are there now."),
    test("lifecycle::requeue_of_unmapped_memory_is_refused", requeue_of_unmapped, USERP,
        "QBUF of an address that was unmapped since DQBUF is refused."),
    test("lifecycle::requeue_with_another_length_hands_over_the_new_pages", requeue_with_another_length, USERP,
        "QBUF of the same address with another length hands over the pages that are there now."),
];

fn munmap_while_the_device_writes(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    let data = stage.src.written().to_vec();
    // Mapped over: the addresses are never free for anything else.
    for area in stage.areas() {
        area.mapping.map_anon_over(0)?;
    }
    stage.judge_device(t, "munmap and mmap")?;
    stage.src.fill(t)?;
    stage.dst.fill(t)?;
    t.equal(
        Eye::Device,
        "CRC32C of the OUTPUT buffer after the process wrote its new pages",
        stage.seen(Output)?,
        crc(&data),
    );
    stage
        .m2m
        .device
        .inject(pinbed_abi::wire::INJECT_NONE, 0, 0)?;
    let (read, wrote) = stage.m2m.dequeue_pair(&stage.src, &stage.dst)?;
    pinbed_guest::video::m2m::judge_job(t, "OUTPUT", &read, &data);
    pinbed_guest::video::m2m::judge_job(t, "CAPTURE", &wrote, &data);
    t.equal(
        Eye::Device,
        "CRC32C of the pages that the device kept",
        stage.seen(Capture)?,
        crc(&data),
    );
    stage
        .src
        .judge_untouched(t, "the process's new OUTPUT memory")?;
    Ok(stage
        .dst
        .judge_untouched(t, "the process's new CAPTURE memory")?)
}

/// Both areas at new addresses. What is returned is at the old ones.
fn move_away(
    t: &mut Ctx,
    stage: Stage,
    move_one: impl Fn(Area) -> TestResult<(Area, Area)>,
) -> TestResult<(Stage, [Area; 2])> {
    let Stage {
        m2m,
        src,
        dst,
        idle,
    } = stage;
    let (written_src, written_dst) = (src.written().to_vec(), dst.written().to_vec());
    let ((src, mut old_src), (dst, mut old_dst)) = (move_one(src)?, move_one(dst)?);
    for (area, written) in [(&src, written_src), (&dst, written_dst)] {
        t.same_bytes(
            Eye::Cpu,
            "the memory at its new address",
            &area.contents()?,
            &written,
        );
    }
    old_src.fill(t)?;
    old_dst.fill(t)?;
    let mut stage = Stage {
        m2m,
        src,
        dst,
        idle,
    };
    stage.src.adopt()?;
    stage.dst.adopt()?;
    Ok((stage, [old_src, old_dst]))
}

fn judge_moved(t: &mut Ctx, mut stage: Stage, old: [Area; 2]) -> TestResult {
    stage.judge(t, "mremap")?;
    for area in &old {
        area.judge_untouched(t, "what is at the old address")?;
    }
    Ok(())
}

fn mremap_leaves_the_old_address(t: &mut Ctx) -> TestResult {
    let stage = Stage::anon(t)?;
    stage.begin()?;
    let (stage, old) = move_away(t, stage, |area| {
        let (address, window) = (area.mapping.address(), area.window.clone());
        let length = area.mapping.len();
        let moved = Area::user(area.mapping.moved()?, window.clone());
        let other = pinbed_guest::memory::mapping::Mapping::anon_at(address, length)?;
        Ok((moved, Area::user(other, window)))
    })?;
    judge_moved(t, stage, old)
}

fn mremap_dontunmap(t: &mut Ctx) -> TestResult {
    let stage = Stage::anon(t)?;
    stage.begin()?;
    let (stage, old) = move_away(t, stage, |area| {
        let window = area.window.clone();
        let moved = area.mapping.moved_out()?;
        let old = Area::user(area.mapping, window.clone());
        Ok((Area::user(moved, window), old))
    })?;
    judge_moved(t, stage, old)
}

fn partial_munmap(t: &mut Ctx) -> TestResult {
    // The CPU writes what the device has been given.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(100, FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    let mut image = src.written().to_vec();
    let window = src.window.clone();
    let (before, rest) = src.mapping.split(2 * PAGE);
    let (middle, after) = rest.split(PAGE);
    drop(middle);
    // The process writes what it has still; the image's part of it begins behind the offset.
    let first = t.random(before.len() - window.start);
    before.write(window.start, &first);
    image[..first.len()].copy_from_slice(&first);
    let last = t.random(window.end - 3 * PAGE);
    after.write(0, &last);
    let from = 3 * PAGE - window.start;
    image[from..].copy_from_slice(&last);
    let handle = m2m.handle(Output, 0)?;
    t.equal(
        Eye::Device,
        "CRC32C of what is left and what the process wrote around it",
        m2m.device.checksum(handle, 0, image.len() as u64)?,
        crc(&image),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    let empty = Area::anon(0, PAGE)?;
    m2m.finish(t, &empty, &image, &dst, &image)
}

/// A buffer of user memory on one queue that has done a job, and the queue's own on the other.
struct Done {
    m2m: M2m,
    queue: Queue,
    user: Area,
    other: Area,
}

impl Done {
    fn on(t: &mut Ctx, queue: Queue) -> TestResult<Self> {
        let m2m = M2m::copier(FRAME)?;
        let user = m2m.with(queue, Area::anon(100, FRAME.size())?)?;
        let other = m2m.own(match queue {
            Output => Capture,
            Capture => Output,
        })?;
        let mut done = Self {
            m2m,
            queue,
            user,
            other,
        };
        done.job(t)?;
        Ok(done)
    }

    /// A copy with new data, judged in all respects, of the placement too: what QBUF handed over is what is there.
    fn job(&mut self, t: &mut Ctx) -> TestResult {
        match self.queue {
            Output => self.m2m.copy(t, &mut self.user, &mut self.other),
            Capture => self.m2m.copy(t, &mut self.other, &mut self.user),
        }
    }
}

fn requeue_reads_after_mmap(t: &mut Ctx) -> TestResult {
    let mut done = Done::on(t, Output)?;
    done.user.mapping.map_anon_over(0)?;
    done.job(t)
}

fn requeue_writes_after_mmap(t: &mut Ctx) -> TestResult {
    let mut done = Done::on(t, Capture)?;
    done.user.mapping.map_anon_over(0)?;
    done.job(t)
}

fn requeue_after_dontneed(t: &mut Ctx) -> TestResult {
    let mut done = Done::on(t, Output)?;
    let mapping = &done.user.mapping;
    mapping.advise(0..mapping.len(), MmapAdvise::MADV_DONTNEED)?;
    done.job(t)
}

fn requeue_after_mremap(t: &mut Ctx) -> TestResult {
    let mut done = Done::on(t, Output)?;
    let away = done.user.mapping.moved_out()?;
    done.job(t)?;
    drop(away);
    Ok(())
}

fn requeue_of_unmapped(t: &mut Ctx) -> TestResult {
    let done = Done::on(t, Output)?;
    let buffer = pinbed_guest::video::m2m::describe(Output, 0, &done.user);
    drop(done.user);
    t.refused(
        "QBUF of an address where nothing is mapped any more",
        done.m2m.node.enqueue(buffer),
        crate::tests::test::REFUSED,
    );
    Ok(())
}

fn requeue_with_another_length(t: &mut Ctx) -> TestResult {
    let mut done = Done::on(t, Output)?;
    done.user.mapping.map_anon_over(0)?;
    done.user.window.end += 64;
    done.user.fill(t)?;
    done.other.fill(t)?;
    let Done {
        m2m, user, other, ..
    } = &done;
    m2m.queue(t, Output, 0, user)?;
    let image = user.written()[..FRAME.size()].to_vec();
    t.equal(
        Eye::Device,
        "CRC32C of what was queued with another length",
        m2m.device
            .checksum(m2m.handle(Output, 0)?, 0, FRAME.size() as u64)?,
        crc(&image),
    );
    m2m.queue(t, Capture, 0, other)
}
