// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The three ways in which vb2 gets at memory, each with a node of its own: what each takes, and what its device is given.
//! The other groups use dma-sg.

use crate::tests::sources::{DMABUF, EXPBUF, FRAME_VEC, QBUF};
use crate::tests::test::{FRAME, Test, refuse, test};
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::hugetlb::Pool;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::reuse::Control;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::{M2m, describe, judge_job};
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};

const CONTIG: &str = "drivers/media/common/videobuf2/videobuf2-dma-contig.c";
const VMALLOC: &str = "drivers/media/common/videobuf2/videobuf2-vmalloc.c";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("memop::contig_buffers_are_one_piece", contig_buffers_are_one_piece, CONTIG,
        "The buffers that dma-contig makes are one contiguous piece each, and the device copies between them."),
    test("memop::contig_takes_a_huge_page", contig_takes_a_huge_page, FRAME_VEC,
        "The dma-contig node takes user memory within one hugetlb page, with an odd start, and the device reads and writes it in place."),
    test("memop::contig_takes_a_transparent_huge_page", contig_takes_a_transparent_huge_page, FRAME_VEC,
        "The dma-contig node takes user memory within one transparent huge page, and the device reads and writes it in place."),
    test("memop::contig_takes_neighbouring_small_pages", contig_takes_neighbouring_small_pages, FRAME_VEC,
        "The dma-contig node takes user memory of small pages that are neighbours in physical memory."),
    test("memop::contig_refuses_scattered_memory", contig_refuses_scattered_memory, FRAME_VEC,
        "The dma-contig node refuses user memory that is not contiguous with EFAULT, with no pin left behind."),
    test("memop::contig_imports_the_cma_heap", contig_imports_the_cma_heap, DMABUF,
        "The dma-contig node imports buffers of the heap on CMA on both queues."),
    test("memop::contig_refuses_a_scattered_import", contig_refuses_a_scattered_import, DMABUF,
        "The dma-contig node refuses a dma-buf that is not contiguous with EFAULT, and the same buffer works on dma-sg."),
    test("memop::vmalloc_copies_its_own_buffers", vmalloc_copies_its_own_buffers, VMALLOC,
        "On vmalloc the driver copies between the queue's own buffers and the only memory that the device sees."),
    test("memop::vmalloc_copies_user_memory", vmalloc_copies_user_memory, FRAME_VEC,
        "On vmalloc the driver copies user memory with an odd start to the byte, and the device sees none of its pages."),
    test("memop::vmalloc_copies_no_more_than_the_payload", vmalloc_copies_no_more_than_the_payload, QBUF,
        "On vmalloc the driver copies bytesused bytes in and what the device wrote out, and nothing behind these."),
    test("memop::vmalloc_reads_pinned_memory_after_munmap", vmalloc_reads_pinned_memory_after_munmap, FRAME_VEC,
        "On vmalloc the driver still copies from the pages it was given after the process unmapped them."),
    test("memop::vmalloc_imports", vmalloc_imports, DMABUF,
        "The vmalloc node imports buffers of the system heap, the CMA heap and udmabuf through their kernel mappings."),
    test("memop::sg_imports_what_each_node_exports", |t| imports_exports(t, DmaSg), EXPBUF,
        "The dma-sg node imports on both queues what each of the nodes exports with EXPBUF."),
    test("memop::contig_imports_what_each_node_exports", |t| imports_exports(t, DmaContig), EXPBUF,
        "The dma-contig node imports on both queues what each of the nodes exports with EXPBUF, if it is contiguous."),
    test("memop::vmalloc_imports_what_each_node_exports", |t| imports_exports(t, Vmalloc), EXPBUF,
        "The vmalloc node imports on both queues what each of the nodes exports with EXPBUF."),
    test("memop::sg_refuses_with_efault", |t| refuses_with_efault(t, DmaSg), QBUF,
        "The dma-sg node refuses user memory that cannot be pinned with EFAULT, not as if memory were short."),
    test("memop::contig_refuses_with_efault", |t| refuses_with_efault(t, DmaContig), QBUF,
        "The dma-contig node refuses user memory that cannot be pinned with EFAULT."),
    test("memop::vmalloc_refuses_with_efault", |t| refuses_with_efault(t, Vmalloc), QBUF,
        "The vmalloc node refuses user memory that cannot be pinned with EFAULT."),
];

/// One copy between areas that are handed to the queues here.
fn copy(t: &mut Ctx, m2m: &M2m, src: Area, dst: Area) -> TestResult {
    let (mut src, mut dst) = (m2m.with(Output, src)?, m2m.with(Capture, dst)?);
    m2m.copy(t, &mut src, &mut dst)
}

/// The device holds a queue's first buffer as one piece.
fn judge_contiguous(t: &mut Ctx, m2m: &M2m, queue: Queue) -> TestResult {
    if let Some(held) = m2m.held(t, queue, 0)? {
        t.equal(
            Eye::Device,
            &format!("pieces of the {queue:?} buffer"),
            held.segments.len(),
            1,
        );
    }
    Ok(())
}

fn contig_buffers_are_one_piece(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let (mut src, mut dst) = (m2m.own(Output)?, m2m.own(Capture)?);
    m2m.copy(t, &mut src, &mut dst)?;
    judge_contiguous(t, &m2m, Output)?;
    judge_contiguous(t, &m2m, Capture)
}

fn contig_takes_a_huge_page(t: &mut Ctx) -> TestResult {
    let _pool = Pool::of(2)?;
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let src = Area::hugetlb(3 * PAGE + 123, FRAME.size())?;
    copy(t, &m2m, src, Area::hugetlb(PAGE - 8, FRAME.size())?)?;
    judge_contiguous(t, &m2m, Output)?;
    judge_contiguous(t, &m2m, Capture)
}

fn contig_takes_a_transparent_huge_page(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let src = Area::huge(3 * PAGE + 123, FRAME.size())?;
    copy(t, &m2m, src, Area::huge(PAGE - 8, FRAME.size())?)
}

fn contig_takes_neighbouring_small_pages(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let small = || -> TestResult<Area> {
        let huge = Area::huge(PAGE + 8, FRAME.size())?;
        let pages = (PAGE + 8 + FRAME.size()).next_multiple_of(PAGE);
        // What is left of a huge page without its other half is mapped as small pages.
        let (kept, gone) = huge.mapping.split(pages);
        drop(gone);
        Ok(Area::user(kept, huge.window))
    };
    copy(t, &m2m, small()?, small()?)
}

fn contig_refuses_scattered_memory(t: &mut Ctx) -> TestResult {
    // Bounce buffers are contiguous.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let mut area = Area::scattered(FRAME.size())?;
    area.fill(t)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Userptr, 1)?;
        let what = format!("QBUF of scattered memory on {queue:?}");
        let buffer = describe(queue, 0, &area);
        refuse(t, &m2m, &what, buffer, &[Errno::EFAULT])?;
    }
    Ok(area.judge_untouched(t, "the scattered memory")?)
}

fn contig_imports_the_cma_heap(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    let src = Area::cma_heap(FRAME.size())?;
    copy(t, &m2m, src, Area::cma_heap(FRAME.size())?)?;
    judge_contiguous(t, &m2m, Output)?;
    judge_contiguous(t, &m2m, Capture)
}

fn contig_refuses_a_scattered_import(t: &mut Ctx) -> TestResult {
    // Bounce buffers are contiguous.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier_on(DmaContig, FRAME)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Dmabuf, 1)?;
        let area = Area::scattered_dmabuf(FRAME.size())?;
        let what = format!("QBUF of a scattered udmabuf on {queue:?}");
        refuse(t, &m2m, &what, describe(queue, 0, &area), &[Errno::EFAULT])?;
    }
    let m2m = M2m::copier(FRAME)?;
    let src = Area::scattered_dmabuf(FRAME.size())?;
    copy(t, &m2m, src, Area::scattered_dmabuf(FRAME.size())?)
}

fn vmalloc_copies_its_own_buffers(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(Vmalloc, FRAME)?;
    let (mut src, mut dst) = (m2m.own(Output)?, m2m.own(Capture)?);
    m2m.copy(t, &mut src, &mut dst)
}

fn vmalloc_copies_user_memory(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(Vmalloc, FRAME)?;
    let src = Area::anon(0x123, FRAME.size())?;
    copy(t, &m2m, src, Area::anon(PAGE - 8, FRAME.size())?)
}

fn vmalloc_copies_no_more_than_the_payload(t: &mut Ctx) -> TestResult {
    const PAYLOAD: usize = PAGE + 100;
    let m2m = M2m::copier_on(Vmalloc, FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    src.fill(t)?;
    dst.fill(t)?;
    let mut buffer = describe(Output, 0, &src);
    buffer.bytesused = PAYLOAD as u32;
    m2m.node
        .enqueue(buffer)
        .map_err(pinbed_guest::harness::error::Error::call(
            "QBUF of a short payload",
        ))?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    let (read, wrote) = m2m.dequeue_pair(&src, &dst)?;
    let payload = &src.written()[..PAYLOAD];
    judge_job(t, "OUTPUT", &read, payload);
    judge_job(t, "CAPTURE", &wrote, payload);
    let mut expected = payload.to_vec();
    expected.extend(&dst.written()[PAYLOAD..]);
    dst.judge(t, "the CAPTURE buffer", &expected)?;

    let behind = FRAME.size() - PAYLOAD;
    t.equal(
        Eye::Device,
        "CRC32C of what the device has behind the payload",
        m2m.device
            .checksum(read.report.handle, PAYLOAD as u64, behind as u64)?,
        crc(&vec![0; behind]),
    );
    Ok(())
}

fn vmalloc_reads_pinned_memory_after_munmap(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier_on(Vmalloc, FRAME)?;
    let mut src = m2m.with(Output, Area::anon(100, FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    let data = src.written().to_vec();
    cpu::stay()?;
    let control = Control::new()?;
    drop(src);
    let others = control.reused(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &others[0], &data, &dst, &data)
}

fn vmalloc_imports(t: &mut Ctx) -> TestResult {
    let size = FRAME.size();
    for make in [Area::heap, Area::cma_heap, Area::udmabuf] {
        let m2m = M2m::copier_on(Vmalloc, FRAME)?;
        copy(t, &m2m, make(size)?, make(size)?)?;
    }
    Ok(())
}

fn imports_exports(t: &mut Ctx, importer: Memop) -> TestResult {
    for exporter in Memop::ALL {
        t.note(format!("from {}", exporter.node()));
        let (from, m2m) = (
            M2m::copier_on(exporter, Image::PAGE)?,
            M2m::copier_on(importer, Image::PAGE)?,
        );
        // As in a pipeline: what one node wrote the next reads, and what one reads the one before wrote.
        from.request(Capture, Memory::Mmap, 1)?;
        from.request(Output, Memory::Mmap, 1)?;
        copy(t, &m2m, from.export(Capture)?, from.export(Output)?)?;
    }
    Ok(())
}

fn refuses_with_efault(t: &mut Ctx, memop: Memop) -> TestResult {
    let m2m = M2m::copier_on(memop, FRAME)?;
    // Contiguous, lest dma-contig refuses it for another reason; so is the next one but one.
    let inaccessible = Area::huge(0, FRAME.size())?;
    inaccessible
        .mapping
        .protect(0..inaccessible.mapping.len(), ProtFlags::PROT_NONE)?;
    let pages = FRAME.size().next_multiple_of(PAGE);
    let (holed, gone) = Mapping::anon(pages)?.split(PAGE);
    drop(gone);
    let contig = M2m::copier_on(DmaContig, FRAME)?;
    contig.request(Capture, Memory::Mmap, 1)?;
    let pfnmap = contig.export(Capture)?;
    for (what, address) in [
        ("PROT_NONE memory", inaccessible.address()),
        ("memory with a hole", holed.address()),
        ("a VM_PFNMAP mapping", pfnmap.address()),
    ] {
        for queue in [Output, Capture] {
            m2m.request(queue, Memory::Userptr, 1)?;
            let mut buffer = describe(queue, 0, &inaccessible);
            buffer.m = address as u64;
            let what = format!("QBUF of {what} on {queue:?}");
            refuse(t, &m2m, &what, buffer, &[Errno::EFAULT])?;
        }
    }
    Ok(())
}
