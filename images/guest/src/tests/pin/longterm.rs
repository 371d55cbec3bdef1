// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A pin that user space holds for as long as it likes must not sit in memory that others were promised: CMA.

use crate::tests::sources::{PIN_USER_PAGES, TEE_LONGTERM};
use crate::tests::test::{FRAME, Test, refuse_by, test};
use nix::errno::Errno;
use nix::unistd::pipe;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::cma::{self, Region};
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{Extent, PAGE, frames};
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::vmstat;
use pinbed_guest::observe::zones;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use std::os::fd::{AsRawFd, OwnedFd};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("longterm::cma_is_whole_while_a_buffer_is_queued", cma_is_whole_while_a_buffer_is_queued, TEE_LONGTERM,
        "All of a CMA region can be allocated while buffers are queued whose pages were in it."),
    test("longterm::page_that_cannot_leave_cma_is_refused", page_that_cannot_leave_cma_is_refused, PIN_USER_PAGES,
        "A page in CMA that someone else holds on to is refused, not pinned where it is; once it is free to move, it is accepted."),
    test("longterm::every_page_is_counted_as_pinned", every_page_is_counted_as_pinned, PIN_USER_PAGES,
        "QBUF of user memory pins each page it touches once, and the pins last until the buffer is released, not until DQBUF."),
];

/// Bytes outside CMA that ballast leaves above the kernel's own reserve, below which only movable pages are given out: enough for the
/// system to live and for pages that leave CMA.
const LEAVE: u64 = 16 << 20;
/// Bytes to touch in search of pages in CMA.
pub const SEARCH: usize = 16 << 20;

/// Memory for a FRAME with each page in CMA, and the region.
pub fn in_cma(t: &mut Ctx) -> TestResult<(Area, Region)> {
    in_cma_of(t, Mapping::anon(SEARCH)?)
}

/// As [`in_cma`], of other memory, [`SEARCH`] bytes that were not touched.
pub fn in_cma_of(t: &mut Ctx, space: Mapping) -> TestResult<(Area, Region)> {
    let (area, region, _) = in_cma_among(t, space, 0)?;
    Ok((area, region))
}

/// As [`in_cma_of`], with so many other pages before it that are in CMA, too.
pub fn in_cma_among(
    t: &mut Ctx,
    space: Mapping,
    others: usize,
) -> TestResult<(Area, Region, Mapping)> {
    if zones::movable()?.iter().any(|zone| zone.node == 0) {
        let what = "a way to have pages in CMA (movable pages come from ZONE_MOVABLE first)".into();
        let remedy = "boot without movablecore= and kernelcore=".into();
        return Err(Error::Absent { what, remedy }.into());
    }
    let region = cma::largest()?;
    let device = Device::open()?;
    // Movable pages come out of CMA while more than half of the free memory is there.
    let held = device.ballast(vmstat::reserve()? + LEAVE)?;
    let pages = FRAME.size().div_ceil(PAGE);
    let mut run = 0;
    for page in 0..SEARCH / PAGE {
        space.write(page * PAGE, &[1]);
        let here = pagemap::entries(space.address() + page * PAGE, 1)?;
        let inside = here
            .first()
            .and_then(|entry| entry.frame())
            .is_some_and(|frame| region.frames.contains(&frame));
        run = if inside { run + 1 } else { 0 };
        if run == others + pages {
            let (_before, rest) = space.split((page + 1 - run) * PAGE);
            let (others, rest) = rest.split(others * PAGE);
            let (wanted, _after) = rest.split(pages * PAGE);
            let mut area = Area::user(wanted, 0..FRAME.size());
            area.fill(t)?;
            let at = extents(&area)?;
            t.note(format!(
                "{held} bytes of ballast put page {page} in CMA region {}: {at:?}",
                region.name
            ));
            return Ok((area, region, others));
        }
    }
    Err(Stop::finding(
        Eye::Premise,
        format!(
            "{held} bytes of ballast put no {pages} neighbouring pages in CMA region {}; boot with a larger cma=",
            region.name
        ),
    ))
}

fn extents(area: &Area) -> TestResult<Vec<Extent>> {
    match area.extents()? {
        Some(Ok(at)) => Ok(at),
        _ => Err(Stop::finding(
            Eye::Harness,
            "not all pages of the buffer are present",
        )),
    }
}

/// The area's pages are all in, or all out of, the region.
pub fn judge_inside(t: &mut Ctx, area: &Area, region: &Region, expected: bool) -> TestResult {
    let at = extents(area)?;
    let inside = frames(&at)
        .filter(|frame| region.frames.contains(frame))
        .count();
    let all = frames(&at).count();
    t.equal(
        Eye::Placement,
        "pages of the buffer in CMA",
        inside,
        if expected { all } else { 0 },
    );
    Ok(())
}

fn cma_is_whole_while_a_buffer_is_queued(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, region) = in_cma(t)?;
    let (src, dst) = (m2m.with(Output, src)?, m2m.with(Capture, in_cma(t)?.0)?);
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    let pages = region.longest_free()?;
    match region.take(pages) {
        Ok(taken) => {
            // A secure-playback buffer, as it were, beside a device at work.
            m2m.stream_on()?;
            m2m.finish(t, &src, src.written(), &dst, src.written())?;
            drop(taken);
        }
        Err(Error::Call {
            errno: Errno::ENOMEM | Errno::EBUSY,
            ..
        }) => {
            t.find(
                Eye::Placement,
                format!("{pages} pages of CMA cannot be allocated while the buffers are queued"),
            );
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// vmsplice(2) of the area's first page into a pipe, which holds on to the page until it is read.
pub fn hold_in_pipe(area: &Area) -> TestResult<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe().map_err(Error::call("pipe"))?;
    let vector = libc::iovec {
        iov_base: area.address() as *mut _,
        iov_len: PAGE,
    };
    // SAFETY: the vector names one page of a mapping, of which no references exist.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, 0) };
    Errno::result(spliced).map_err(Error::call("vmsplice"))?;
    Ok((reader, writer))
}

fn page_that_cannot_leave_cma_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, region) = in_cma(t)?;
    m2m.request(Output, Memory::Userptr, 1)?;
    let pipe = hold_in_pipe(&src)?;
    let before = frames(&extents(&src)?).next();
    let what = "QBUF of a page in CMA that a pipe holds";
    let buffer = describe(Output, 0, &src);
    let refused = refuse_by(t, &m2m, what, &[Errno::ENOMEM], || m2m.node.enqueue(buffer))?;
    if !refused {
        // It is queued, and is not to be queued again. The process has what the device has.
        let after = frames(&extents(&src)?).next();
        t.find(
            Eye::Placement,
            match after == before {
                true => "a page that a pipe holds is pinned where it is, in CMA".into(),
                false => format!(
                    "a page that a pipe holds was moved from frame {before:x?} to {after:x?}"
                ),
            },
        );
        return Ok(());
    }
    drop(pipe);
    m2m.queue(t, Output, 0, &src)?;
    judge_inside(t, &src, &region, false)?;
    let seen = m2m
        .device
        .checksum(m2m.handle(Output, 0)?, 0, FRAME.size() as u64)?;
    t.equal(
        Eye::Device,
        "CRC32C of the buffer once its page could move",
        seen,
        crc(src.written()),
    );
    Ok(())
}

fn every_page_is_counted_as_pinned(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(PAGE - 8, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    let before = vmstat::pinned_pages()?;
    m2m.copy(t, &mut src, &mut dst)?;
    let pages = (src.mapping.len() + dst.mapping.len()) / PAGE;
    t.equal(
        Eye::Aftermath,
        "pinned pages after DQBUF",
        vmstat::pinned_pages()? - before,
        pages as i64,
    );
    m2m.stream_off()?;
    t.equal(
        Eye::Aftermath,
        "pinned pages after STREAMOFF",
        vmstat::pinned_pages()? - before,
        pages as i64,
    );
    release(&m2m, Output)?;
    release(&m2m, Capture)?;
    t.equal(
        Eye::Aftermath,
        "pinned pages after REQBUFS of none",
        vmstat::pinned_pages()? - before,
        0,
    );
    Ok(())
}

fn release(m2m: &M2m, queue: Queue) -> TestResult {
    m2m.request(queue, Memory::Userptr, 0)
}
