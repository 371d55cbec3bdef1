// SPDX-License-Identifier: Apache-2.0 OR MIT
//! V4L2_MEMORY_DMABUF: buffers that other drivers own, on both queues, and between any two exporters.

use crate::tests::sources::{
    DMABUF, DMABUF_MMAP, DMABUF_SYNC, EXPBUF, FOLLOW_PFN, UDMABUF, UDMABUF_SYNC,
};
use crate::tests::test::{FRAME, Test, refuse, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::reuse::Control;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use pinbed_guest::video::v4l2::{Memop, Memory};
use std::os::fd::AsRawFd;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("dmabuf::heap_on_output", heap_on_output, FOLLOW_PFN,
        "The device reads a buffer of the system heap as the CPU wrote it."),
    test("dmabuf::heap_on_capture", heap_on_capture, FOLLOW_PFN,
        "The device writes a buffer of the system heap and the CPU reads it."),
    test("dmabuf::udmabuf_on_output", udmabuf_on_output, DMABUF,
        "The device reads a udmabuf as the CPU wrote it."),
    test("dmabuf::udmabuf_on_capture", udmabuf_on_capture, DMABUF,
        "The device writes a udmabuf and the CPU reads it."),
    test("dmabuf::expbuf_on_output", expbuf_on_output, EXPBUF,
        "The device reads a buffer that another instance of the node exported with EXPBUF."),
    test("dmabuf::expbuf_on_capture", expbuf_on_capture, EXPBUF,
        "The device writes a buffer that another instance of the node exported with EXPBUF."),
    test("dmabuf::heap_to_heap", heap_to_heap, DMABUF, "The device copies from one heap buffer to another."),
    test("dmabuf::heap_to_udmabuf", heap_to_udmabuf, DMABUF, "The device copies from a heap buffer to a udmabuf."),
    test("dmabuf::heap_to_expbuf", heap_to_expbuf, DMABUF, "The device copies from a heap buffer to an exported one."),
    test("dmabuf::udmabuf_to_heap", udmabuf_to_heap, DMABUF, "The device copies from a udmabuf to a heap buffer."),
    test("dmabuf::udmabuf_to_udmabuf", udmabuf_to_udmabuf, DMABUF, "The device copies from one udmabuf to another."),
    test("dmabuf::udmabuf_to_expbuf", udmabuf_to_expbuf, DMABUF, "The device copies from a udmabuf to an exported buffer."),
    test("dmabuf::expbuf_to_heap", expbuf_to_heap, DMABUF, "The device copies from an exported buffer to a heap buffer."),
    test("dmabuf::expbuf_to_udmabuf", expbuf_to_udmabuf, DMABUF, "The device copies from an exported buffer to a udmabuf."),
    test("dmabuf::expbuf_to_expbuf", expbuf_to_expbuf, DMABUF, "The device copies from one exported buffer to another."),
    test("dmabuf::pipeline_shares_one_buffer", pipeline_shares_one_buffer, EXPBUF,
        "What one instance writes into its CAPTURE buffer another reads as an import on OUTPUT, with no copy between."),
    test("dmabuf::capture_export_is_written_through_other_nodes", capture_export_is_written_through_other_nodes, EXPBUF,
        "What another node writes into an import of a node's CAPTURE buffer is there in that node's own mapping, whole and in its place."),
    test("dmabuf::import_outlives_its_descriptor", import_outlives_its_descriptor, DMABUF,
        "A queued import stays with the device after the process closed the descriptor and its mapping."),
    test("dmabuf::mapping_outlives_its_descriptor", mapping_outlives_its_descriptor, DMABUF_MMAP,
        "A mapping of a dma-buf keeps its bytes after the process closed the descriptor, whoever exported it, and its memory is given to nobody."),
    test("dmabuf::cpu_reads_what_the_device_reads", cpu_reads_what_the_device_reads, DMABUF_SYNC,
        "A process may read, between DMA_BUF_IOCTL_SYNC calls that say so, a heap buffer that is imported for the device to read."),
    test("dmabuf::cpu_reads_what_it_wrote_to_a_udmabuf", cpu_reads_what_it_wrote_to_a_udmabuf, UDMABUF_SYNC,
        "A process may write and then read a udmabuf, between DMA_BUF_IOCTL_SYNC calls that say so."),
    test("dmabuf::refused_import_is_not_kept", refused_import_is_not_kept, DMABUF,
        "A dma-buf that is refused because it is shorter than its QBUF says is gone when its descriptor is closed."),
    test("dmabuf::bad_descriptor_is_refused", bad_descriptor_is_refused, DMABUF,
        "A descriptor that is closed, or of something other than a dma-buf, or of one too small, is refused with EINVAL."),
];

/// A test that a kernel may not survive whole: it comes last.
#[rustfmt::skip]
pub const LAST: &[Test] = &[
    test("dmabuf::udmabuf_outlives_its_memfd", udmabuf_outlives_its_memfd, UDMABUF,
        "A udmabuf that is mapped keeps its bytes when the memfd that it was made of is closed."),
];

/// Where a test's dma-buf comes from. The second part is what must live as long as the buffer is exported.
type Exporter = fn(Queue) -> TestResult<(Area, Option<M2m>)>;

fn heap(_: Queue) -> TestResult<(Area, Option<M2m>)> {
    Ok((Area::heap(FRAME.size())?, None))
}

fn udmabuf(_: Queue) -> TestResult<(Area, Option<M2m>)> {
    Ok((Area::udmabuf(FRAME.size())?, None))
}

/// A buffer for one instance's queue comes out of the opposite queue of another, as in a pipeline: the one that writes it fills
/// the one that reads it.
fn expbuf(queue: Queue) -> TestResult<(Area, Option<M2m>)> {
    let exporter = M2m::copier(FRAME)?;
    let from = match queue {
        Output => Capture,
        Capture => Output,
    };
    exporter.request(from, Memory::Mmap, 1)?;
    let area = exporter.export(from)?;
    Ok((area, Some(exporter)))
}

fn between(t: &mut Ctx, source: Exporter, sink: Exporter) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, _exporter) = source(Output)?;
    let (dst, _exporter_too) = sink(Capture)?;
    let (mut src, mut dst) = (m2m.with(Output, src)?, m2m.with(Capture, dst)?);
    m2m.copy(t, &mut src, &mut dst)
}

fn on_output(t: &mut Ctx, source: Exporter) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (src, _exporter) = source(Output)?;
    let (mut src, mut dst) = (m2m.with(Output, src)?, m2m.own(Capture)?);
    m2m.copy(t, &mut src, &mut dst)
}

fn on_capture(t: &mut Ctx, sink: Exporter) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (dst, _exporter) = sink(Capture)?;
    let (mut src, mut dst) = (m2m.own(Output)?, m2m.with(Capture, dst)?);
    m2m.copy(t, &mut src, &mut dst)
}

fn heap_on_output(t: &mut Ctx) -> TestResult {
    on_output(t, heap)
}

fn heap_on_capture(t: &mut Ctx) -> TestResult {
    on_capture(t, heap)
}

fn udmabuf_on_output(t: &mut Ctx) -> TestResult {
    on_output(t, udmabuf)
}

fn udmabuf_on_capture(t: &mut Ctx) -> TestResult {
    on_capture(t, udmabuf)
}

fn expbuf_on_output(t: &mut Ctx) -> TestResult {
    on_output(t, expbuf)
}

fn expbuf_on_capture(t: &mut Ctx) -> TestResult {
    on_capture(t, expbuf)
}

fn heap_to_heap(t: &mut Ctx) -> TestResult {
    between(t, heap, heap)
}

fn heap_to_udmabuf(t: &mut Ctx) -> TestResult {
    between(t, heap, udmabuf)
}

fn heap_to_expbuf(t: &mut Ctx) -> TestResult {
    between(t, heap, expbuf)
}

fn udmabuf_to_heap(t: &mut Ctx) -> TestResult {
    between(t, udmabuf, heap)
}

fn udmabuf_to_udmabuf(t: &mut Ctx) -> TestResult {
    between(t, udmabuf, udmabuf)
}

fn udmabuf_to_expbuf(t: &mut Ctx) -> TestResult {
    between(t, udmabuf, expbuf)
}

fn expbuf_to_heap(t: &mut Ctx) -> TestResult {
    between(t, expbuf, heap)
}

fn expbuf_to_udmabuf(t: &mut Ctx) -> TestResult {
    between(t, expbuf, udmabuf)
}

fn expbuf_to_expbuf(t: &mut Ctx) -> TestResult {
    between(t, expbuf, expbuf)
}

fn pipeline_shares_one_buffer(t: &mut Ctx) -> TestResult {
    let first = M2m::copier(FRAME)?;
    let second = M2m::copier(FRAME)?;
    let mut bitstream = first.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut middle = first.own(Capture)?;
    let shared = second.with(Output, first.export(Capture)?)?;
    let mut screen = second.with(Capture, Area::anon(0, FRAME.size())?)?;

    first.copy(t, &mut bitstream, &mut middle)?;
    screen.fill(t)?;
    second.queue(t, Output, 0, &shared)?;
    if let (Some(made), Some(taken)) = (first.held(t, Capture, 0)?, second.held(t, Output, 0)?)
        && !taken.is_bounced()?
    {
        t.equal(
            Eye::Placement,
            "the page frames that the second node's device reads what the first node's wrote from",
            frames(&taken.segments).collect::<Vec<_>>(),
            frames(&made.segments).collect::<Vec<_>>(),
        );
    }
    second.queue(t, Capture, 0, &screen)?;
    second.stream_on()?;
    second.finish(
        t,
        &shared,
        bitstream.written(),
        &screen,
        bitstream.written(),
    )
}

fn capture_export_is_written_through_other_nodes(t: &mut Ctx) -> TestResult {
    let owner = M2m::copier_on(Memop::DmaContig, FRAME)?;
    let mut own = owner.own(Capture)?;
    for memop in [Memop::DmaSg, Memop::Vmalloc, Memop::DmaContig] {
        let other = M2m::copier_on(memop, FRAME)?;
        let mut bitstream = other.own(Output)?;
        let mut import = other.with(Capture, owner.export(Capture)?)?;
        own.fill(t)?;
        other.copy(t, &mut bitstream, &mut import)?;
        let seen = own.contents()?;
        t.same_bytes(
            Eye::Cpu,
            &format!("the CAPTURE buffer that {memop:?} wrote, in its owner's mapping"),
            &seen,
            bitstream.written(),
        );
    }
    Ok(())
}

fn import_outlives_its_descriptor(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::heap(FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    let data = src.written().to_vec();
    drop(src);

    // Fresh buffers of the same size would get the pages if they were free.
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut other = Area::heap(FRAME.size())?;
        other.fill(t)?;
        others.push(other);
    }
    let seen = m2m
        .device
        .checksum(m2m.handle(Output, 0)?, 0, FRAME.size() as u64)?;
    t.equal(
        Eye::Device,
        "CRC32C of the import after close and munmap",
        seen,
        crc(&data),
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &others[0], &data, &dst, &data)
}

fn cpu_reads_what_the_device_reads(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::heap(FRAME.size())?)?;
    src.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    Ok(src.judge(t, "the imported buffer", src.written())?)
}

fn cpu_reads_what_it_wrote_to_a_udmabuf(t: &mut Ctx) -> TestResult {
    let pages = FRAME.size().next_multiple_of(PAGE);
    let (fd, _file) = dmabuf::udmabuf(pages)?;
    let mut area = Area::dmabuf(fd, pages, FRAME.size())?;
    area.fill(t)?;
    Ok(area.judge(t, "the udmabuf", area.written())?)
}

fn refused_import_is_not_kept(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Dmabuf, 1)?;
        let heap = Area::heap(FRAME.size())?;
        let mut buffer = describe(queue, 0, &heap);
        buffer.length += PAGE as u32;
        refuse(
            t,
            &m2m,
            &format!("QBUF of more than the dma-buf has on {queue:?}"),
            buffer,
            &[Errno::EFAULT, Errno::EINVAL],
        )?;
    }
    // What is kept, the aftermath sees.
    Ok(())
}

fn bad_descriptor_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let file = dmabuf::memfd(PAGE)?;
    let small = dmabuf::system_heap(FRAME.size() / PAGE * PAGE)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Dmabuf, 1)?;
        let mut buffer = describe(queue, 0, &Area::heap(FRAME.size())?);
        buffer.length = 0;
        for (what, fd) in [
            ("descriptor -1", -1),
            ("a memfd", file.as_raw_fd()),
            ("a dma-buf too small", small.as_raw_fd()),
        ] {
            buffer.m = u64::from(fd as u32);
            refuse(
                t,
                &m2m,
                &format!("QBUF of {what} on {queue:?}"),
                buffer,
                &[Errno::EINVAL],
            )?;
        }
    }
    Ok(())
}

fn mapping_outlives_its_descriptor(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    m2m.request(Capture, Memory::Mmap, 1)?;
    let exported = m2m
        .node
        .export(Capture, 0)
        .map_err(Error::call("VIDIOC_EXPBUF"))?;
    let (udmabuf, _memfd) = dmabuf::udmabuf(PAGE)?;
    let buffers = [
        ("a buffer of the system heap", dmabuf::system_heap(PAGE)?),
        ("a buffer of the CMA heap", dmabuf::cma_heap(PAGE)?),
        ("a udmabuf", udmabuf),
        ("an exported buffer", exported),
    ];
    cpu::stay()?;
    let mut kept = Vec::new();
    for (what, buffer) in buffers {
        let mapping = Mapping::shared(&buffer, PAGE, READ_WRITE)?;
        let bytes = t.random(PAGE);
        mapping.write(0, &bytes);
        kept.push((what, mapping, bytes));
    }
    // Its own file's last reference but the mapping's goes, too.
    drop(m2m);
    let control = Control::new()?;
    let _others = control.reused(t)?;
    for (what, mapping, bytes) in &kept {
        let what = format!("the mapping of {what} that was closed");
        t.same_bytes(Eye::Cpu, &what, &mapping.read(0..PAGE), bytes);
    }
    Ok(())
}

fn udmabuf_outlives_its_memfd(t: &mut Ctx) -> TestResult {
    let (buffer, memfd) = dmabuf::udmabuf(PAGE)?;
    let mapping = Mapping::shared(&buffer, PAGE, READ_WRITE)?;
    let bytes = t.random(PAGE);
    mapping.write(0, &bytes);
    cpu::stay()?;
    let control = Control::new()?;
    drop(memfd);
    let _others = control.reused(t)?;
    t.same_bytes(Eye::Cpu, "the mapping", &mapping.read(0..PAGE), &bytes);
    Ok(())
}
