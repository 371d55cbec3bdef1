// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Huge pages that come apart and small pages that are put together, while the device holds some of them.

use super::stage::Stage;
use crate::tests::sources::PIN_USER_PAGES;
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use pinbed_abi::report::Eye;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::harness::setting::{self, Setting};
use pinbed_guest::memory::area::{Area, HUGE, huge_bytes};
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::vmstat;

const TRANSHUGE: &str =
    "Documentation/mm/transhuge.rst, Graceful fallback and Refcounts and transparent huge pages";
const COLLAPSE: &str =
    "man 2 madvise, MADV_COLLAPSE; mm/khugepaged.c, __collapse_huge_page_isolate()";
/// `MADV_COLLAPSE`, since 6.1.
const MADV_COLLAPSE: i32 = 25;
const KHUGEPAGED: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::huge_page_loses_a_part", loses_a_part, TRANSHUGE,
        "munmap and MADV_DONTNEED of parts of a huge page leave the device and the process the parts that are in buffers."),
    test("lifecycle::huge_page_is_mapped_in_parts", is_mapped_in_parts, TRANSHUGE,
        "mprotect of parts of a huge page, and back, moves no page of the buffers in it."),
    test("lifecycle::huge_page_that_is_held_is_not_split", is_not_split, TRANSHUGE,
        "A huge page that the device holds a part of is not split, another one is; neither moves a page."),
    test("lifecycle::huge_page_is_swapped_out_around_a_buffer", is_reclaimed, PIN_USER_PAGES,
        "MADV_PAGEOUT of a huge page that the device holds a part of leaves the buffers where they are."),
    Test { timeout_s: 60, ..test("lifecycle::collapse_takes_no_page_that_is_held", collapse, COLLAPSE,
        "Small pages are put together to a huge one, but not where the device holds one of them.") },
];

/// Both images in one huge page each, away from its ends.
fn huge(t: &mut Ctx) -> TestResult<Stage> {
    let (src, dst) = (
        Area::huge(64 * PAGE + 100, FRAME.size())?,
        Area::huge(HUGE - 64 * PAGE, FRAME.size())?,
    );
    let stage = Stage::of(t, src, dst)?;
    stage.begin()?;
    Ok(stage)
}

/// The area without what is before the first page of its image, or without what is behind its last one.
fn cut(t: &mut Ctx, area: Area, before: bool) -> TestResult<Area> {
    let window = area.window.clone();
    let data = area.written().to_vec();
    let (mapping, window) = if before {
        let first = window.start / PAGE * PAGE;
        let (_, rest) = area.mapping.split(first);
        (rest, window.start - first..window.end - first)
    } else {
        let (rest, _) = area.mapping.split(window.end.next_multiple_of(PAGE));
        (rest, window)
    };
    let mut area = Area::user(mapping, window);
    area.adopt()?;
    t.same_bytes(
        Eye::Cpu,
        "what is left of a huge page",
        area.written(),
        &data,
    );
    Ok(area)
}

fn loses_a_part(t: &mut Ctx) -> TestResult {
    let Stage {
        m2m,
        src,
        dst,
        idle,
    } = huge(t)?;
    let (src, dst) = (cut(t, src, true)?, cut(t, dst, false)?);
    let mut stage = Stage {
        m2m,
        src,
        dst,
        idle,
    };
    stage.judge_device(t, "munmap of other parts of the huge pages")?;
    // What lies around the images now: behind the one, before the other.
    let end = stage.src.window.end.next_multiple_of(PAGE);
    let length = stage.src.mapping.len();
    stage
        .src
        .mapping
        .advise(end..length, MmapAdvise::MADV_DONTNEED)?;
    let start = stage.dst.window.start / PAGE * PAGE;
    stage
        .dst
        .mapping
        .advise(0..start, MmapAdvise::MADV_DONTNEED)?;
    stage.src.adopt()?;
    stage.dst.adopt()?;
    stage.judge(t, "parts of the huge pages were given up")
}

fn is_mapped_in_parts(t: &mut Ctx) -> TestResult {
    let mut stage = huge(t)?;
    for area in stage.areas() {
        let first = area.window.start / PAGE * PAGE;
        // A border in the middle of the image.
        let parts = [0..first + 2 * PAGE, first + PAGE..area.mapping.len()];
        for part in parts {
            area.mapping.protect(part.clone(), ProtFlags::PROT_READ)?;
            area.mapping.protect(part, READ_WRITE)?;
        }
    }
    stage.judge(t, "mprotect of parts of the huge pages")
}

/// Splits all huge pages of these mappings that can be split.
fn split(mappings: &[&Mapping]) -> TestResult {
    const WHERE: &str = "/sys/kernel/debug/split_huge_pages";
    for mapping in mappings {
        let (start, end) = (mapping.address(), mapping.address() + mapping.len());
        let request = format!("{},{start:#x},{end:#x}", std::process::id());
        match setting::write(WHERE, &request) {
            // Before 5.13 all that it takes is a 1, for all huge pages that there are.
            Err(Error::Call {
                errno: Errno::EINVAL,
                ..
            }) => setting::write(WHERE, "1")?,
            other => other?,
        }
    }
    Ok(())
}

fn is_not_split(t: &mut Ctx) -> TestResult {
    let mut stage = huge(t)?;
    let mut other = Area::huge(0, FRAME.size())?;
    other.fill(t)?;
    let at = other.extents()?;
    let migrated = vmstat::counter("pgmigrate_success")?;
    let failed = vmstat::counter("thp_split_page_failed")?;
    let done = vmstat::counter("thp_split_page")?;
    split(&[&other.mapping])?;
    premise(vmstat::counter("thp_split_page")? > done, || {
        "a huge page that nobody holds is not split".into()
    })?;
    let moved = other.extents()? != at;
    // A split moves none; compaction does, at any time, and small pages as well.
    premise(
        !moved || vmstat::counter("pgmigrate_success")? == migrated,
        || "the kernel migrated pages while a huge page was split".into(),
    )?;
    t.check(Eye::Placement, !moved, || {
        "pages of a huge page moved when it was split".into()
    });
    let done = vmstat::counter("thp_split_page")?;
    split(&[&stage.src.mapping, &stage.dst.mapping])?;
    t.equal(
        Eye::Placement,
        "huge pages split that the device holds a part of",
        vmstat::counter("thp_split_page")? - done,
        0,
    );
    t.note(format!(
        "refused splits: {}",
        vmstat::counter("thp_split_page_failed")? - failed
    ));
    stage.judge(t, "an attempt to split the huge pages")
}

fn is_reclaimed(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = pinbed_guest::memory::swap::Swap::on()?;
    let mut stage = huge(t)?;
    for _ in 0..2 {
        for area in stage.areas() {
            area.mapping
                .advise(0..area.mapping.len(), MmapAdvise::MADV_PAGEOUT)?;
            // A part, which takes the mapping apart.
            area.mapping
                .advise(PAGE..area.mapping.len(), MmapAdvise::MADV_PAGEOUT)?;
        }
    }
    stage.judge(t, "MADV_PAGEOUT of the huge pages")
}

/// Memory of a huge page's size and alignment in small pages, all of them there. khugepaged leaves it alone until it is told otherwise.
fn small(t: &mut Ctx, offset: usize) -> TestResult<Area> {
    let mapping = Mapping::anon_aligned(HUGE, HUGE)?;
    mapping.advise(0..HUGE, MmapAdvise::MADV_NOHUGEPAGE)?;
    let mut area = Area::user(mapping, offset..offset + FRAME.size());
    area.fill(t)?;
    Ok(area)
}

/// Waits until khugepaged has put `mapping` together, and has then been past everything else, too.
fn wait_for_khugepaged(mapping: &Mapping) -> TestResult {
    let remedy = "build the kernel with CONFIG_TRANSPARENT_HUGEPAGE";
    let mut pace = Vec::new();
    for (file, value) in [
        ("scan_sleep_millisecs", "0"),
        ("alloc_sleep_millisecs", "0"),
        ("pages_to_scan", "65536"),
    ] {
        pace.push(Setting::set(format!("{KHUGEPAGED}/{file}"), value, remedy)?);
    }
    let scans = || setting::number(format!("{KHUGEPAGED}/full_scans"));
    let done = until(LIMIT, || Ok(huge_bytes(mapping.address())? == HUGE))?;
    premise(done, || {
        "khugepaged does not put pages together that nobody holds".into()
    })?;
    let enough = scans()? + 2;
    let done = until(LIMIT, || Ok(scans()? >= enough))?;
    premise(done, || "khugepaged does not scan".into())
}

fn collapse(t: &mut Ctx) -> TestResult {
    let (src, dst) = (small(t, 64 * PAGE + 100)?, small(t, HUGE - 64 * PAGE)?);
    let other = small(t, 0)?;
    let mut stage = Stage::of(t, src, dst)?;
    stage.begin()?;
    // Not before: khugepaged, which is at work at any time, would put together what is not yet held.
    for area in [&other].into_iter().chain(stage.areas()) {
        area.mapping.advise(0..HUGE, MmapAdvise::MADV_HUGEPAGE)?;
    }
    match other.mapping.try_advise(0..HUGE, MADV_COLLAPSE) {
        Ok(()) => {
            for area in stage.areas() {
                let result = area.mapping.try_advise(0..HUGE, MADV_COLLAPSE);
                t.refused(
                    "MADV_COLLAPSE around pages that are held",
                    result,
                    &[Errno::EAGAIN, Errno::EBUSY, Errno::EINVAL],
                );
            }
        }
        Err(Errno::EINVAL) => wait_for_khugepaged(&other.mapping)?,
        Err(errno) => {
            return Err(Error::call("MADV_COLLAPSE of memory that nobody holds")(errno).into());
        }
    }
    premise(huge_bytes(other.mapping.address())? == HUGE, || {
        "small pages that nobody holds are not put together".into()
    })?;
    other.judge_untouched(t, "what was put together")?;
    for area in stage.areas() {
        t.equal(
            Eye::Placement,
            "bytes in huge pages where small ones are held",
            huge_bytes(area.mapping.address())?,
            0,
        );
    }
    stage.judge(t, "small pages were put together")
}
