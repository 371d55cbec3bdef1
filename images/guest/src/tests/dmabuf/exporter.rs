// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs of memory that has no struct pages: shared between consumers, and moved or taken away under them.

use super::orders::{self, needs_moves};
use crate::tests::sources::{FRAME_VEC, UNSAFE_FOLLOW_PFN};
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use pinbed_abi::report::Eye;
use pinbed_abi::{uapi, wire};
use pinbed_guest::dmabuf::{self, Access};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device::{Device, copy};
use pinbed_guest::observe::extent::{Extent, PAGE, merged};
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{DmaContig, DmaSg};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use std::thread;

const FENCES: &str = "Documentation/driver-api/dma-buf.rst; include/linux/dma-resv.h, DMA_RESV_USAGE_KERNEL; drivers/dma-buf/dma-buf.c, dma_buf_map_attachment()";
const CPU_ACCESS: &str = "drivers/dma-buf/dma-buf.c, dma_buf_begin_cpu_access(): 'Wait on any implicit rendering fences'";
const PEERS: &str = "include/linux/dma-buf.h, struct dma_buf_attach_ops, allow_peer2peer";
const MOVE: &str = "drivers/dma-buf/dma-buf.c, dynamic importers and exporters";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("exporter::carveout_is_shared_without_pages", carveout_is_shared_without_pages, FRAME_VEC,
        "What one video node writes into a carveout without struct pages another reads, and a third consumer and the CPU see it."),
    test("exporter::importer_follows_a_move", importer_follows_a_move, MOVE,
        "The device lets go of a buffer that moves before its old place is used for something else, and then holds the new one."),
    test("exporter::pinned_buffer_stays", pinned_buffer_stays, MOVE,
        "A buffer that a V4L2 queue imported can be neither moved nor revoked (EBUSY) until the queue has let go of it."),
    test("exporter::mapping_follows_a_move", mapping_follows_a_move, UNSAFE_FOLLOW_PFN,
        "After a move the process reads and writes the new place through the mapping that it has."),
    test("exporter::kept_frame_number_is_stale_after_a_move", kept_frame_number_is_stale_after_a_move, UNSAFE_FOLLOW_PFN,
        "Who kept a mapping's frame number has the wrong memory after a move, where an importer of the dma-buf has the right one."),
    test("exporter::job_at_a_moving_buffer_faults", job_at_a_moving_buffer_faults, MOVE,
        "A job that the device begins after its buffer moved is a DMA fault, and writes neither the old place nor the new one."),
    test("exporter::revoked_buffer_is_gone_for_all", revoked_buffer_is_gone_for_all, MOVE,
        "After a revocation the device holds nothing, another import is refused with ENODEV, and access to the mapping is SIGBUS."),
    test("exporter::importer_waits_for_bytes_that_move_behind_a_fence", importer_waits_for_bytes_that_move_behind_a_fence, FENCES,
        "After a move whose bytes follow behind a fence, the device and the CPU get to see the new place when the bytes are there."),
    test("exporter::cpu_access_waits_for_a_fence", cpu_access_waits_for_a_fence, CPU_ACCESS,
        "DMA_BUF_IOCTL_SYNC that begins an access of the CPU returns when the fences of the buffer are signalled, not before."),
    test("exporter::video_import_waits_for_bytes_that_move_behind_a_fence", video_import_waits_for_bytes_that_move_behind_a_fence, FENCES,
        "A V4L2 queue that imports a buffer whose bytes are behind a fence reads the bytes, not what was there before."),
    test("exporter::no_stray_dma_in_any_order", orders::no_stray_dma, MOVE,
        "Whatever the order in which buffers are imported, pinned, moved, revoked, closed and used by jobs, good and stale ones: the device holds them where they are, and no byte elsewhere changes."),
];

/// Leaves dma-bufs behind where videobuf2 forgets its reference, and with them the driver in memory.
pub const LAST: &[Test] = &[test(
    "exporter::pageless_buffer_is_for_importers_that_can_take_it",
    pageless_buffer_is_for_importers_that_can_take_it,
    PEERS,
    "A buffer without struct pages is refused to importers that do not say peer2peer, as videobuf2, and given to those that do.",
)];

/// A carveout buffer for a FRAME, filled, that V4L2 may import; where it is.
fn exported(t: &mut Ctx, device: &Device, flags: u32) -> TestResult<(Area, u64)> {
    let pages = FRAME.size().next_multiple_of(PAGE);
    // What has no kernel address cannot be bounced.
    swiotlb::unless_forced()?;
    let (fd, address) = device.export(pages, flags | uapi::EXPORT_ANY_IMPORTER)?;
    let mut area = Area::dmabuf(fd, pages, FRAME.size())?;
    area.fill(t)?;
    Ok((area, address))
}

fn import(device: &Device, area: &Area, direction: u32) -> TestResult<u64> {
    device
        .import(area.fd()?, direction)
        .map_err(Error::call("importing a dma-buf into the device"))
        .map_err(Stop::from)
}

fn relocate(device: &Device, area: &Area) -> TestResult<u64> {
    device
        .relocate(area.fd()?, 0)
        .map_err(Error::call("moving a dma-buf's memory"))
        .map_err(Stop::from)
}

/// The device holds the buffer as one piece at this address.
fn judge_place(t: &mut Ctx, device: &Device, handle: u64, area: &Area, address: u64) -> TestResult {
    let expected = vec![Extent {
        address,
        length: area.mapping.len() as u64,
    }];
    let held = device.query(handle)?.map(|held| merged(held.segments));
    t.equal(
        Eye::Device,
        "where the device has the buffer",
        held,
        Some(expected),
    );
    Ok(())
}

/// The device sees the image that the CPU wrote last.
fn judge_bytes(t: &mut Ctx, device: &Device, handle: u64, area: &Area) -> TestResult {
    t.equal(
        Eye::Device,
        "CRC32C that the device sees",
        device.checksum(handle, 0, FRAME.size() as u64)?,
        crc(area.written()),
    );
    Ok(())
}

fn carveout_is_shared_without_pages(t: &mut Ctx) -> TestResult {
    let third = Device::open()?;
    let (carveout, address) = exported(t, &third, 0)?;
    let iomem = std::fs::read_to_string("/proc/iomem").map_err(Error::io("reading /proc/iomem"))?;
    let ram = iomem
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" : System RAM")?.split_once('-'))
        .filter_map(|(start, end)| {
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(number(start)?..=number(end)?)
        });
    t.check(
        Eye::Placement,
        !ram.into_iter().any(|range| range.contains(&address)),
        || format!("the carveout at {address:#x} is memory that the kernel manages"),
    );

    let writer = M2m::copier_on(DmaSg, FRAME)?;
    let reader = M2m::copier_on(DmaContig, FRAME)?;
    let mut bitstream = writer.with(Output, Area::anon(100, FRAME.size())?)?;
    let mut carveout = writer.with(Capture, carveout)?;
    writer.copy(t, &mut bitstream, &mut carveout)?;
    judge_place(t, &third, writer.handle(Capture, 0)?, &carveout, address)?;

    carveout.adopt()?;
    reader.request_for(Output, &carveout, 1)?;
    let mut screen = reader.own(Capture)?;
    screen.fill(t)?;
    reader.queue(t, Output, 0, &carveout)?;
    reader.queue(t, Capture, 0, &screen)?;
    reader.stream_on()?;
    reader.finish(
        t,
        &carveout,
        bitstream.written(),
        &screen,
        bitstream.written(),
    )?;

    let handle = import(&third, &carveout, wire::DIRECTION_READ)?;
    judge_place(t, &third, handle, &carveout, address)?;
    judge_bytes(t, &third, handle, &carveout)
}

fn importer_follows_a_move(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let device = Device::open()?;
    let (mut area, mut address) = exported(t, &device, uapi::EXPORT_MOVING)?;
    for _ in 0..3 {
        let handle = import(&device, &area, wire::DIRECTION_BOTH)?;
        judge_place(t, &device, handle, &area, address)?;
        judge_bytes(t, &device, handle, &area)?;

        let new = relocate(&device, &area)?;
        t.check(Eye::Placement, new != address, || {
            format!("the buffer is still at {address:#x} after a move")
        });
        t.check(Eye::Device, device.query(handle)?.is_none(), || {
            "the device still holds the place that the buffer has left".into()
        });
        let handle = import(&device, &area, wire::DIRECTION_BOTH)?;
        judge_place(t, &device, handle, &area, new)?;
        judge_bytes(t, &device, handle, &area)?;
        area.fill(t)?;
        judge_bytes(t, &device, handle, &area)?;
        address = new;
    }
    Ok(())
}

fn pinned_buffer_stays(t: &mut Ctx) -> TestResult {
    for memop in [DmaSg, DmaContig] {
        let m2m = M2m::copier_on(memop, FRAME)?;
        let (area, address) = exported(t, &m2m.device, uapi::EXPORT_MOVING)?;
        let mut src = m2m.own(Output)?;
        let mut dst = m2m.with(Capture, area)?;
        m2m.copy(t, &mut src, &mut dst)?;
        for (what, flags) in [("moving", 0), ("revoking", uapi::MOVE_REVOKE)] {
            let result = m2m.device.relocate(dst.fd()?, flags);
            t.refused(&format!("{what} a pinned buffer"), result, &[Errno::EBUSY]);
        }
        judge_place(t, &m2m.device, m2m.handle(Capture, 0)?, &dst, address)?;
        dst.judge(t, "the pinned buffer", src.written())?;
        m2m.stream_off()?;
        m2m.request(Capture, Memory::Dmabuf, 0)?;
        relocate(&m2m.device, &dst)?;
        dst.judge(t, "the buffer after its move", src.written())?;
    }
    Ok(())
}

fn mapping_follows_a_move(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let device = Device::open()?;
    let (mut area, _) = exported(t, &device, uapi::EXPORT_MOVING)?;
    for _ in 0..3 {
        relocate(&device, &area)?;
        area.judge(
            t,
            "the buffer through its mapping after a move",
            area.written(),
        )?;
        area.fill(t)?;
        let handle = import(&device, &area, wire::DIRECTION_READ)?;
        judge_bytes(t, &device, handle, &area)?;
    }
    Ok(())
}

fn kept_frame_number_is_stale_after_a_move(t: &mut Ctx) -> TestResult {
    let device = Device::open()?;
    let (area, address) = exported(t, &device, uapi::EXPORT_MOVING)?;
    let at = Extent {
        address,
        length: area.mapping.len() as u64,
    };
    // As by who looked up the frame once and holds nothing: what the threads call an unsafe follow_pfn.
    let kept = device.attach_frames(wire::DIRECTION_READ, at)?;
    judge_bytes(t, &device, kept, &area)?;
    relocate(&device, &area)?;
    let stale = device.checksum(kept, 0, FRAME.size() as u64)?;
    t.check(Eye::Device, stale != crc(area.written()), || {
        "the old place still has the buffer's bytes, so nobody would notice that it moved".into()
    });
    device.detach(kept)?;
    let followed = import(&device, &area, wire::DIRECTION_READ)?;
    judge_bytes(t, &device, followed, &area)
}

/// How much later the device begins a job, in microseconds: ample for a move under emulation.
const LATE_US: u64 = 500_000;

fn job_at_a_moving_buffer_faults(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let (device, other) = (Device::open()?, Device::open()?);
    let (source, _) = exported(t, &device, 0)?;
    let (sink, address) = exported(t, &other, uapi::EXPORT_MOVING)?;
    let src = import(&device, &source, wire::DIRECTION_READ)?;
    let dst = import(&other, &sink, wire::DIRECTION_WRITE)?;
    let old = Extent {
        address,
        length: sink.mapping.len() as u64,
    };
    device.inject(wire::INJECT_DELAY, 1, LATE_US)?;
    let (answer, before) = thread::scope(|scope| -> TestResult<_> {
        let job = scope.spawn(|| device.job(&copy(src, dst, FRAME.size() as u64)));
        relocate(&other, &sink)?;
        let kept = other.attach_frames(wire::DIRECTION_READ, old)?;
        let before = other.checksum(kept, 0, old.length)?;
        let answer = job
            .join()
            .map_err(|_| Stop::finding(Eye::Harness, "the thread with the job panicked"))??;
        let after = other.checksum(kept, 0, old.length)?;
        other.detach(kept)?;
        Ok((answer, (before, after)))
    })?;
    t.equal(
        Eye::Device,
        "status of the job",
        answer.header.status.get(),
        wire::STATUS_DMA_FAULT,
    );
    t.equal(
        Eye::Device,
        "CRC32C of the old place after the job",
        before.1,
        before.0,
    );
    Ok(sink.judge_untouched(t, "the buffer in its new place")?)
}

fn revoked_buffer_is_gone_for_all(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let device = Device::open()?;
    let (area, _) = exported(t, &device, uapi::EXPORT_MOVING)?;
    let handle = import(&device, &area, wire::DIRECTION_BOTH)?;
    device
        .relocate(area.fd()?, uapi::MOVE_REVOKE)
        .map_err(Error::call("revoking a dma-buf's memory"))?;
    t.check(Eye::Device, device.query(handle)?.is_none(), || {
        "the device still holds memory that was revoked".into()
    });
    let again = device.import(area.fd()?, wire::DIRECTION_BOTH);
    t.refused("importing it again", again, &[Errno::ENODEV]);
    let moved = device.relocate(area.fd()?, 0);
    t.refused("moving it", moved, &[Errno::ENODEV]);
    // SAFETY: this process has one thread; the child only reads memory and exits.
    match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Child => {
            area.mapping.read(0..1);
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let end = waitpid(child, None).map_err(Error::call("waitpid"))?;
            t.check(
                Eye::Cpu,
                matches!(end, WaitStatus::Signaled(_, Signal::SIGBUS, _)),
                || format!("a process that reads the mapping ends as {end:?}, expected SIGBUS"),
            );
        }
    }
    Ok(())
}

fn relocate_fenced(device: &Device, area: &Area) -> TestResult<u64> {
    let moved = device.relocate(area.fd()?, uapi::MOVE_FENCED);
    Ok(moved.map_err(Error::call("moving a dma-buf behind a fence"))?)
}

fn importer_waits_for_bytes_that_move_behind_a_fence(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let device = Device::open()?;
    let (mut area, _) = exported(t, &device, uapi::EXPORT_MOVING)?;
    for _ in 0..2 {
        let new = relocate_fenced(&device, &area)?;
        let handle = import(&device, &area, wire::DIRECTION_READ)?;
        judge_place(t, &device, handle, &area, new)?;
        judge_bytes(t, &device, handle, &area)?;
        relocate_fenced(&device, &area)?;
        area.judge(t, "the buffer through its mapping", area.written())?;
        area.fill(t)?;
    }
    // A second move waits for the first one's bytes.
    relocate_fenced(&device, &area)?;
    relocate(&device, &area)?;
    area.judge(t, "the buffer after two moves", area.written())?;
    Ok(())
}

/// Whether what writes to the buffer has come to its end: poll(2) of the dma-buf.
fn is_ready(area: &Area) -> TestResult<bool> {
    let mut set = [PollFd::new(area.fd()?, PollFlags::POLLIN)];
    let ready = poll(&mut set, PollTimeout::ZERO).map_err(Error::call("poll of a dma-buf"))?;
    Ok(ready > 0)
}

fn cpu_access_waits_for_a_fence(t: &mut Ctx) -> TestResult {
    const TRIES: usize = 20;
    needs_moves()?;
    let device = Device::open()?;
    let (area, _) = exported(t, &device, uapi::EXPORT_MOVING)?;
    for _ in 0..TRIES {
        relocate_fenced(&device, &area)?;
        // A busy host may come too late.
        if is_ready(&area)? {
            continue;
        }
        let ready = dmabuf::with_cpu_access(area.fd()?, Access::Read, || is_ready(&area))??;
        t.check(Eye::Cpu, ready, || {
            "DMA_BUF_IOCTL_SYNC returns before the buffer's fence is signalled".into()
        });
        return Ok(());
    }
    let text = format!("in {TRIES} moves the bytes are always there at once");
    Err(Stop::finding(Eye::Harness, text))
}

fn video_import_waits_for_bytes_that_move_behind_a_fence(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(DmaSg, FRAME)?;
    let (area, _) = exported(t, &m2m.device, uapi::EXPORT_MOVING)?;
    let src = m2m.with(Output, area)?;
    let mut dst = m2m.own(Capture)?;
    dst.fill(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    relocate_fenced(&m2m.device, &src)?;
    m2m.enqueue(Output, 0, &src)
        .map_err(Error::call("QBUF of a dma-buf that moves"))?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

fn pageless_buffer_is_for_importers_that_can_take_it(t: &mut Ctx) -> TestResult {
    let pages = FRAME.size().next_multiple_of(PAGE);
    for flags in [0, uapi::EXPORT_MOVING] {
        for memop in [DmaSg, DmaContig] {
            let m2m = M2m::copier_on(memop, FRAME)?;
            // What has no kernel address cannot be bounced.
            swiotlb::unless_forced()?;
            let (fd, _) = m2m.device.export(pages, flags)?;
            let area = m2m.with(Output, Area::dmabuf(fd, pages, FRAME.size())?)?;
            let queued = m2m.enqueue(Output, 0, &area);
            t.refused(
                "QBUF of a buffer without pages",
                queued,
                &[Errno::EOPNOTSUPP],
            );
            import(&m2m.device, &area, wire::DIRECTION_READ)?;
        }
    }
    Ok(())
}
