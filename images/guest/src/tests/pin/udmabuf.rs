// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a udmabuf does with the memfd's pages that it is made of: it pins those that were meant, for long.

use super::dirty::evict;
use super::longterm::{SEARCH, in_cma_of};
use crate::tests::sources::{
    DMABUF_MMAP, MLOCK, PIN_USER_PAGES, TEE_LONGTERM, UDMABUF_FOLIOS, UDMABUF_HUGETLB,
    UDMABUF_SEALS, UDMABUF_VMAP,
};
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::fcntl::SealFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::MmapAdvise;
use nix::unistd::ftruncate;
use pinbed_abi::report::Eye;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::kconfig;
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::harness::setting::Setting;
use pinbed_guest::memory::area::{Area, HUGE};
use pinbed_guest::memory::compaction::until_whole;
use pinbed_guest::memory::hugetlb::{self, Pool};
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::numa;
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::observe::extent::{PAGE, merged};
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::zones::Zone;
use pinbed_guest::observe::{frame, movable, pagemap, zones};
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{self, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("udmabuf::leaves_zone_movable", leaves_zone_movable, TEE_LONGTERM,
        "The pages of a memfd leave ZONE_MOVABLE before a udmabuf pins them for long."),
    test("udmabuf::leaves_cma", leaves_cma, TEE_LONGTERM,
        "The pages of a memfd leave CMA before a udmabuf pins them for long, and the device reads them where they went."),
    test("udmabuf::hugetlb_page_leaves_zone_movable_and_stays", |t| large(t, hugetlb_page), TEE_LONGTERM,
        "A hugetlb page leaves ZONE_MOVABLE before a udmabuf pins a part of it for long, and mbind(2) moves it nowhere afterwards."),
    test("udmabuf::large_folio_leaves_zone_movable_and_stays", |t| large(t, large_folio), TEE_LONGTERM,
        "A huge page of shared memory leaves ZONE_MOVABLE before a udmabuf pins a part of it for long, and mbind(2) moves it nowhere afterwards."),
    test("udmabuf::migration_moves_no_page", migration, PIN_USER_PAGES,
        "move_pages(2) of the memfd leaves the pages of a udmabuf where the device has them, and moves those of another memfd."),
    test("udmabuf::locked_memory_limit_holds", locked_memory_limit_holds, MLOCK,
        "A process without privileges cannot make a udmabuf of more memory than RLIMIT_MEMLOCK lets it lock."),
    test("udmabuf::device_reads_the_part_of_a_huge_page_that_is_meant", |t| part_of_a_huge_page(t, DmaSg), UDMABUF_FOLIOS,
        "A device reads those pages of a hugetlb memfd that a udmabuf was made of, wherever in a huge page they are."),
    test("udmabuf::cpu_reads_the_part_of_a_huge_page_that_is_meant", |t| part_of_a_huge_page(t, Vmalloc), UDMABUF_VMAP,
        "The kernel's own mapping of a udmabuf shows those pages of a hugetlb memfd that it was made of."),
    test("udmabuf::pageout_moves_no_page", pageout, PIN_USER_PAGES,
        "MADV_PAGEOUT of the memfd leaves the pages of a udmabuf where the device has them."),
    test("udmabuf::memfd_that_may_shrink_is_refused", unsealed, UDMABUF_SEALS,
        "A udmabuf of a memfd that may shrink, or that is sealed against writing, is refused with EINVAL."),
    test("udmabuf::mapping_past_the_end_is_refused", past_the_end, DMABUF_MMAP,
        "A mapping of more than a dma-buf has is refused with EINVAL, as is one that begins inside and ends behind it."),
];

/// Tests that a kernel may not survive whole: they come last.
#[rustfmt::skip]
pub const LAST: &[Test] = &[
    test("udmabuf::huge_pages_that_nobody_touched_are_taken_or_refused", untouched_huge_pages, UDMABUF_HUGETLB,
        "A udmabuf of a hugetlb memfd that was never mapped gets pages of its own, which are zero, or is refused with an error."),
];

/// How many pages of a memfd's mapping are in CMA or ZONE_MOVABLE.
fn in_movable_places(mapping: &Mapping) -> TestResult<usize> {
    // A page is in the page tables only once it was touched.
    mapping.read(0..mapping.len());
    Ok(movable::count_in(mapping.address(), mapping.len())?)
}

fn leaves_zone_movable(t: &mut Ctx) -> TestResult {
    const LENGTH: usize = 8 * PAGE;
    let file = dmabuf::memfd(LENGTH)?;
    let mapping = Mapping::shared(&file, LENGTH, READ_WRITE)?;
    let bytes = t.random(LENGTH);
    numa::fill_in_movable(&mapping, &bytes)?;
    let _buffer = dmabuf::udmabuf_of(&file, std::slice::from_ref(&(0..LENGTH)))?;
    t.equal(
        Eye::Placement,
        "pages of the udmabuf in CMA or ZONE_MOVABLE",
        in_movable_places(&mapping)?,
        0,
    );
    t.same_bytes(Eye::Cpu, "the memfd", &mapping.read(0..LENGTH), &bytes);
    Ok(())
}

fn leaves_cma(t: &mut Ctx) -> TestResult {
    let length = FRAME.size().next_multiple_of(PAGE);
    let file = dmabuf::memfd(SEARCH)?;
    let space = Mapping::shared(&file, SEARCH, READ_WRITE)?;
    let base = space.address();
    let (area, _) = in_cma_of(t, space)?;
    // The part that is in CMA, in the memfd.
    let start = area.mapping.address() - base;
    let buffer = dmabuf::udmabuf_of(&file, std::slice::from_ref(&(start..start + length)))?;
    t.equal(
        Eye::Placement,
        "pages of the udmabuf in CMA or ZONE_MOVABLE",
        in_movable_places(&area.mapping)?,
        0,
    );
    let m2m = M2m::copier_on(DmaSg, FRAME)?;
    let src = m2m.with(Output, Area::dmabuf(buffer, length, FRAME.size())?)?;
    m2m.queue(t, Output, 0, &src)?;
    t.equal(
        Eye::Device,
        "CRC32C that the device sees",
        m2m.device
            .checksum(m2m.handle(Output, 0)?, 0, FRAME.size() as u64)?,
        crc(area.written()),
    );
    Ok(())
}

fn migration(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    numa::need_moves()?;
    let length = FRAME.size().next_multiple_of(PAGE);
    let (buffer, file) = dmabuf::udmabuf(length)?;
    let mut here = Area::user(Mapping::shared(&file, length, READ_WRITE)?, 0..FRAME.size());
    here.fill(t)?;
    let m2m = M2m::copier_on(DmaSg, FRAME)?;
    let src = m2m.with(Output, Area::dmabuf(buffer, length, FRAME.size())?)?;
    m2m.queue(t, Output, 0, &src)?;
    // That nobody holds.
    let other = Mapping::shared(dmabuf::memfd(length)?, length, READ_WRITE)?;
    other.write(0, &vec![1; length]);
    let moved = numa::move_to(&other, numa::MOVABLE);
    let all = matches!(&moved, Ok((status, 0)) if status.iter().all(|node| *node == numa::MOVABLE as i32));
    premise(all, || {
        format!("move_pages of a memfd that nobody holds: {moved:?}")
    })?;
    let before = here.frames()?;
    let moved = numa::move_to(&here.mapping, numa::MOVABLE);
    t.note(format!("move_pages of what the udmabuf has: {moved:?}"));
    let frames = here.frames()?;
    t.check(Eye::Placement, frames == before, || {
        format!(
            "the memfd's pages were in frames {before:x?}, and are in {frames:x?} after move_pages"
        )
    });
    here.fill(t)?;
    t.equal(
        Eye::Device,
        "CRC32C that the device sees after move_pages and a write to the memfd",
        m2m.device
            .checksum(m2m.handle(Output, 0)?, 0, FRAME.size() as u64)?,
        crc(here.written()),
    );
    Ok(())
}

fn locked_memory_limit_holds(t: &mut Ctx) -> TestResult {
    const LIMIT: usize = 16 * PAGE;
    let file = dmabuf::memfd(4 * LIMIT)?;
    dmabuf::seal(&file, SealFlag::F_SEAL_SHRINK)?;
    drop(dmabuf::udmabuf_device()?);
    // Whoever opens it: only the limit is to be in the way.
    std::fs::set_permissions("/dev/udmabuf", std::fs::Permissions::from_mode(0o666))
        .map_err(Error::io("chmod of /dev/udmabuf"))?;
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    let made = dmabuf::try_udmabuf(&file, std::slice::from_ref(&(0..4 * LIMIT)))?;
    let what = "a udmabuf of 4 times RLIMIT_MEMLOCK";
    t.refused(what, made, &[Errno::ENOMEM, Errno::EPERM]);
    Ok(())
}

/// A memfd of huge pages.
fn huge_memfd(length: usize) -> TestResult<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
    let file = memfd_create("pinbed", flags).map_err(Error::call("memfd_create of huge pages"))?;
    ftruncate(&file, length as i64).map_err(Error::call("ftruncate of a hugetlb memfd"))?;
    dmabuf::seal(&file, SealFlag::F_SEAL_SHRINK)?;
    Ok(file)
}

fn part_of_a_huge_page(t: &mut Ctx, memop: Memop) -> TestResult {
    let image = Image::grey(160, 120);
    let length = image.size().next_multiple_of(PAGE);
    let start = HUGE - 2 * PAGE;
    let _pool = Pool::of(4)?;
    let file = huge_memfd(2 * HUGE)?;
    let mapping = Mapping::shared(&file, 2 * HUGE, READ_WRITE)?;
    let bytes = t.random(2 * HUGE);
    mapping.write(0, &bytes);
    // From one huge page into the next.
    let buffer = match dmabuf::udmabuf_of(&file, std::slice::from_ref(&(start..start + length))) {
        Err(Error::Call { what, errno }) if errno == Errno::EBADFD => {
            return Err(Stop::Skip(format!(
                "{what}: {errno:?}, since this kernel makes no udmabuf of hugetlb pages"
            )));
        }
        made => made?,
    };
    let m2m = M2m::copier_on(memop, image)?;
    let src = m2m.with(Output, Area::dmabuf(buffer, length, image.size())?)?;
    let mut dst = m2m.own(Capture)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.dequeue_pair(&src, &dst)?;
    Ok(dst.judge(
        t,
        "the copy of the part that the udmabuf was made of",
        &bytes[start..start + image.size()],
    )?)
}

/// 2 MiB of a memfd in one piece, and what has to be there as long as it is.
type Huge = (OwnedFd, Box<dyn Any>);

/// One page for each that [`large`] makes, on both nodes.
fn hugetlb_page(zone: &Zone) -> TestResult<Huge> {
    let pools = (Pool::on(zone.node, 2)?, Pool::of(2)?);
    Ok((huge_memfd(HUGE)?, Box::new(pools)))
}

fn large_folio(_: &Zone) -> TestResult<Huge> {
    const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let remedy = "build the kernel with CONFIG_TRANSPARENT_HUGEPAGE";
    let always = Setting::set(ENABLED, "always", remedy)?;
    Ok((dmabuf::memfd(HUGE)?, Box::new(always)))
}

/// A mapping of it, written to while its pages come from a node's memory, and bound to [`numa::HOME`] afterwards.
fn filled(t: &mut Ctx, file: &OwnedFd, node: u32) -> TestResult<Mapping> {
    let mapping = Mapping::shared(file, HUGE, READ_WRITE)?;
    mapping.bind(node)?;
    let bytes = t.random(HUGE);
    let whole = until_whole(|| {
        // The pages of an attempt that came in pieces.
        mapping.advise(0..HUGE, MmapAdvise::MADV_REMOVE)?;
        // The kernel then compacts memory itself, too. A mapping of hugetlb pages may refuse it, and needs it not.
        let _ = mapping.try_advise(0..HUGE, MmapAdvise::MADV_HUGEPAGE as i32);
        mapping.write(0, &bytes);
        match pagemap::extents(mapping.address(), HUGE)?.as_deref() {
            Ok([piece]) => frame::is_huge(piece.address / PAGE as u64),
            _ => Ok(false),
        }
    })?;
    mapping.bind(numa::HOME)?;
    if !whole {
        // 6.1 has none in the page cache then: its tree's nodes are too small.
        kconfig::unless_off("BASE_FULL", "a huge page in the page cache")?;
    }
    premise(whole, || "the memfd is not in one huge page".into())?;
    Ok(mapping)
}

fn large(t: &mut Ctx, make: fn(&Zone) -> TestResult<Huge>) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    numa::need_moves()?;
    let zone = zones::movable_node()?;
    let (file, _needs) = make(&zone)?;
    let mapping = filled(t, &file, zone.node)?;
    let before = in_movable_places(&mapping)?;
    premise(before == HUGE / PAGE, || {
        format!("{before} of the memfd's pages are in ZONE_MOVABLE")
    })?;
    let length = FRAME.size().next_multiple_of(PAGE);
    let start = 3 * PAGE;
    let part = start..start + length;
    let buffer = match dmabuf::udmabuf_of(&file, std::slice::from_ref(&part)) {
        Err(Error::Call { what, errno }) if errno == Errno::EBADFD => {
            return Err(Stop::Skip(format!(
                "{what}: {errno:?}, since this kernel makes no udmabuf of hugetlb pages"
            )));
        }
        made => made?,
    };
    t.equal(
        Eye::Placement,
        "pages of the udmabuf in CMA or ZONE_MOVABLE",
        movable::count_in(mapping.address() + start, length)?,
        0,
    );
    let m2m = M2m::copier_on(DmaSg, FRAME)?;
    let src = m2m.with(Output, Area::dmabuf(buffer, length, FRAME.size())?)?;
    m2m.queue(t, Output, 0, &src)?;
    if let Some(held) = m2m.held(t, Output, 0)?
        && !held.is_bounced()?
    {
        let held = merged(held.segments);
        let meant = pagemap::extents(mapping.address() + start, length)?.unwrap_or_default();
        t.check(Eye::Placement, held == meant, || {
            format!(
                "of the huge page the device holds {held:x?}, the udmabuf was made of {meant:x?}"
            )
        });
    }

    // That nobody holds.
    let (other_file, _needs) = make(&zone)?;
    let other = filled(t, &other_file, zone.node)?;
    let moved = numa::bind_and_move(&other, numa::HOME);
    let left = movable::count_in(other.address(), HUGE)?;
    premise(moved.is_ok() && left == 0, || {
        format!("mbind of a huge page that nobody holds: {moved:?}, {left} of its pages are left")
    })?;
    drop((other, other_file));
    let here = pagemap::extents(mapping.address(), HUGE)?;
    let moved = numa::bind_and_move(&mapping, numa::MOVABLE);
    t.note(format!("mbind of what the udmabuf has: {moved:?}"));
    let now = pagemap::extents(mapping.address(), HUGE)?;
    t.check(Eye::Placement, now == here, || {
        format!("the memfd's pages were at {here:x?}, and are at {now:x?} after mbind")
    });
    let bytes = t.random(HUGE);
    mapping.write(0, &bytes);
    let size = FRAME.size();
    t.equal(
        Eye::Device,
        "CRC32C that the device sees after mbind and a write to the memfd",
        m2m.device
            .checksum(m2m.handle(Output, 0)?, 0, size as u64)?,
        crc(&bytes[start..start + size]),
    );
    Ok(())
}

fn untouched_huge_pages(t: &mut Ctx) -> TestResult {
    let _pool = Pool::outside_cma(2)?;
    let before = hugetlb::reserved()?;
    let file = huge_memfd(HUGE)?;
    match dmabuf::try_udmabuf(&file, std::slice::from_ref(&(0..HUGE)))? {
        Err(errno) => t.note(format!("refused with {errno:?}")),
        Ok(buffer) => {
            // Without DMA_BUF_IOCTL_SYNC: no device has it.
            let bytes = Mapping::shared(&buffer, HUGE, READ_WRITE)?.read(0..HUGE);
            let count = bytes.iter().filter(|byte| **byte != 0).count();
            t.equal(Eye::Cpu, "bytes that are not zero", count, 0);
            // When the memfd goes, 6.12 adds what it took too much.
            t.equal(
                Eye::Aftermath,
                "reserved huge pages (HugePages_Rsvd) while the udmabuf has one that was free",
                hugetlb::reserved()?,
                before,
            );
        }
    }
    Ok(())
}

fn pageout(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    cpu::stay()?;
    let _swap = Swap::on()?;
    let image = Image::grey(160, 120);
    let length = image.size().next_multiple_of(PAGE);
    let (buffer, file) = dmabuf::udmabuf(length)?;
    let mapping = Mapping::shared(&file, length, READ_WRITE)?;
    let mut here = Area::user(mapping, 0..image.size());
    here.fill(t)?;
    let m2m = M2m::copier_on(DmaSg, image)?;
    let src = m2m.with(Output, Area::dmabuf(buffer, length, image.size())?)?;
    m2m.queue(t, Output, 0, &src)?;
    // That nobody holds.
    let mut other = Area::user(
        Mapping::shared(dmabuf::memfd(length)?, length, READ_WRITE)?,
        0..length,
    );
    other.fill(t)?;
    evict(&other)?;
    for _ in 0..3 {
        let all = 0..here.mapping.len();
        here.mapping.advise(all, MmapAdvise::MADV_PAGEOUT)?;
    }
    here.judge_untouched(t, "the memfd after MADV_PAGEOUT")?;
    here.fill(t)?;
    let handle = m2m.handle(Output, 0)?;
    t.equal(
        Eye::Device,
        "CRC32C that the device sees after MADV_PAGEOUT and a write to the memfd",
        m2m.device.checksum(handle, 0, image.size() as u64)?,
        crc(here.written()),
    );
    Ok(())
}

fn unsealed(t: &mut Ctx) -> TestResult {
    let part = std::slice::from_ref(&(0..PAGE));
    let open = dmabuf::memfd(PAGE)?;
    let made = dmabuf::try_udmabuf(&open, part)?;
    t.refused(
        "a udmabuf of a memfd that may shrink",
        made,
        &[Errno::EINVAL],
    );
    let read_only = dmabuf::memfd(PAGE)?;
    dmabuf::seal(&read_only, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)?;
    let made = dmabuf::try_udmabuf(&read_only, part)?;
    let what = "a udmabuf of a memfd that nobody may write";
    t.refused(what, made, &[Errno::EINVAL]);
    Ok(())
}

fn past_the_end(t: &mut Ctx) -> TestResult {
    const LENGTH: usize = 2 * PAGE;
    let buffers = [
        ("a udmabuf", dmabuf::udmabuf(LENGTH)?.0),
        ("a buffer of the system heap", dmabuf::system_heap(LENGTH)?),
        ("a buffer of the CMA heap", dmabuf::cma_heap(LENGTH)?),
    ];
    for (what, buffer) in &buffers {
        for (offset, length) in [(0, LENGTH + PAGE), (PAGE, LENGTH), (LENGTH, PAGE)] {
            let mapped = Mapping::shared_at(buffer, offset as i64, length, READ_WRITE);
            let result = match mapped {
                Ok(_) => Ok(()),
                Err(Error::Call { errno, .. }) => Err(errno),
                Err(other) => return Err(other.into()),
            };
            t.refused(
                &format!("a mapping of {what} past its end"),
                result,
                &[Errno::EINVAL],
            );
        }
    }
    Ok(())
}
