// SPDX-License-Identifier: Apache-2.0 OR MIT
//! V4L2_MEMORY_USERPTR: memory that the process got from wherever it likes.

use crate::tests::sources::{
    DMABUF_PFNMAP, FOLLOW_PFN, FRAME_VEC, FRAME_VECTOR, MLOCK, PREPARE_USERPTR, QBUF, UNSHARE,
    USERP,
};
use crate::tests::test::{FRAME, REFUSED, Test, refuse, refuse_area, test};
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use pinbed_abi::report::Eye;
use pinbed_abi::uapi;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::bar;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::frame;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Memop::{DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("userptr::malloc_is_decoder_input", malloc_is_decoder_input, FRAME_VEC,
        "The device reads malloc'd memory as the process wrote it, as a decoder reads its bitstream."),
    test("userptr::malloc_is_encoder_output", malloc_is_encoder_output, FRAME_VEC,
        "The device writes malloc'd memory and the process reads it, as an encoder writes its bitstream."),
    test("userptr::malloc_on_both_queues", malloc_on_both_queues, FRAME_VEC,
        "The device copies from malloc'd memory to malloc'd memory."),
    test("userptr::unaligned_start_and_odd_length", unaligned_start_and_odd_length, USERP,
        "The device reads and writes exactly the bytes of buffers with an odd start and an odd length, and none around them."),
    test("userptr::starts_8_bytes_before_a_page_ends", starts_8_bytes_before_a_page_ends, USERP,
        "A buffer that has only 8 bytes on its first page is read and written to the byte."),
    test("userptr::transparent_huge_page_on_both_queues", transparent_huge_page_on_both_queues, FRAME_VEC,
        "The device reads and writes parts of transparent huge pages, and no bytes around them."),
    test("userptr::memfd_on_both_queues", memfd_on_both_queues, FRAME_VEC,
        "The device reads and writes shared memory of a memfd."),
    test("userptr::untouched_memory_reads_as_zeros", untouched_memory_reads_as_zeros, UNSHARE,
        "Anonymous memory that was never touched is pinned for reading as pages of its own that hold zeros."),
    test("userptr::read_only_memory_is_readable", read_only_memory_is_readable, FRAME_VECTOR,
        "The device reads memory that the process may only read."),
    test("userptr::read_only_shared_memory_is_readable", read_only_shared_memory_is_readable, FRAME_VECTOR,
        "The device reads shared memory of a memfd that the process may only read."),
    test("userptr::read_only_memory_is_not_writable", read_only_memory_is_not_writable, FRAME_VECTOR,
        "A CAPTURE buffer in memory that the process may only read is refused, with no pin left behind."),
    test("userptr::inaccessible_memory_is_refused", inaccessible_memory_is_refused, FRAME_VECTOR,
        "A buffer in PROT_NONE memory is refused on both queues, with no pin left behind."),
    test("userptr::hole_is_refused", hole_is_refused, USERP,
        "A buffer that begins in memory and goes on over a hole is refused, and the pins taken before the hole are released."),
    test("userptr::wild_pointer_is_refused", wild_pointer_is_refused, USERP,
        "NULL, unmapped, kernel and wrapping addresses are refused, with no pin left behind."),
    test("userptr::too_short_is_refused", too_short_is_refused, QBUF,
        "A buffer shorter than the image is refused with EINVAL before anything is pinned."),
    test("userptr::refused_requeue_unpins_nothing_that_is_held", refused_requeue_unpins_nothing_that_is_held, PREPARE_USERPTR,
        "When a buffer is queued anew and refused, its earlier memory stays pinned, or the device lets go of it before it is unpinned."),
    test("userptr::pfnmap_is_refused", pfnmap_is_refused, FOLLOW_PFN,
        "A VM_PFNMAP mapping, here of a udmabuf, is refused, with no pin left behind."),
    test("userptr::pfnmap_after_memory_is_refused", pfnmap_after_memory_is_refused, FRAME_VEC,
        "A range that begins in normal memory and ends in a VM_PFNMAP mapping is refused, and the pins on its head are released."),
    test("userptr::pci_bar_is_refused", pci_bar_is_refused, FOLLOW_PFN,
        "A mapping of a PCI device's BAR, which is no memory, is refused, and the device is not touched."),
    test("userptr::locked_memory_limit_holds", locked_memory_limit_holds, MLOCK,
        "A process without privileges cannot queue more user memory, which is pinned for long, than RLIMIT_MEMLOCK lets it lock."),
    test("userptr::memory_after_pfnmap_is_refused", memory_after_pfnmap_is_refused, FRAME_VEC,
        "A range that begins in a VM_PFNMAP mapping is refused, and the normal pages behind it are not taken without a pin."),
    test("userptr::dmabuf_mapping_is_refused", dmabuf_mapping_is_refused, DMABUF_PFNMAP,
        "A system heap buffer is refused as USERPTR through its mapping, and the same buffer works as a dma-buf import."),
];

fn malloc_is_decoder_input(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::malloc(FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn malloc_is_encoder_output(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.own(Output)?;
    let mut dst = m2m.with(Capture, Area::malloc(FRAME.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn malloc_on_both_queues(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::malloc(FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::malloc(FRAME.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn unaligned_start_and_odd_length(t: &mut Ctx) -> TestResult {
    let image = Image::grey(127, 91);
    let m2m = M2m::copier(image)?;
    let mut src = m2m.with(Output, Area::anon(0x123, image.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0xabd, image.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn starts_8_bytes_before_a_page_ends(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(PAGE - 8, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(PAGE - 8, FRAME.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn transparent_huge_page_on_both_queues(t: &mut Ctx) -> TestResult {
    let image = Image::grey(640, 480);
    let m2m = M2m::copier(image)?;
    let mut src = m2m.with(Output, Area::huge(3 * PAGE + 123, image.size())?)?;
    let mut dst = m2m.with(Capture, Area::huge(PAGE - 8, image.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn memfd_on_both_queues(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::memfd(40, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::memfd(0, FRAME.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn untouched_memory_reads_as_zeros(t: &mut Ctx) -> TestResult {
    // The CPU writes what the device has been given.
    swiotlb::unless_forced()?;
    let m2m = M2m::copier(FRAME)?;
    let src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut dst = m2m.own(Capture)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    t.equal(
        Eye::Placement,
        "pages of the buffer that are the kernel's zero page",
        frame::zero_pages(src.frames()?)?,
        0,
    );
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    let zeros = vec![0; FRAME.size()];
    m2m.finish(t, &src, &zeros, &dst, &zeros)?;

    // What the process writes after the pin is what the device reads: the zeros were no longer the shared zero page.
    let data = t.random(FRAME.size());
    src.mapping.write(0, &data);
    let handle = m2m.handle(Output, 0)?;
    let seen = m2m.device.checksum(handle, 0, FRAME.size() as u64)?;
    t.equal(
        Eye::Device,
        "CRC32C of what the process wrote after the pin",
        seen,
        pinbed_guest::harness::ctx::crc(&data),
    );
    Ok(())
}

/// The device reads what the process filled and then gave up the right to write.
fn read_only(t: &mut Ctx, area: Area) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, area)?;
    let mut dst = m2m.own(Capture)?;
    src.fill(t)?;
    dst.fill(t)?;
    src.mapping
        .protect(0..src.mapping.len(), ProtFlags::PROT_READ)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())
}

fn read_only_memory_is_readable(t: &mut Ctx) -> TestResult {
    read_only(t, Area::anon(0, FRAME.size())?)
}

fn read_only_shared_memory_is_readable(t: &mut Ctx) -> TestResult {
    read_only(t, Area::memfd(0, FRAME.size())?)
}

fn read_only_memory_is_not_writable(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut private = Area::anon(0, FRAME.size())?;
    private.fill(t)?;
    private
        .mapping
        .protect(0..private.mapping.len(), ProtFlags::PROT_READ)?;
    refuse_area(t, &m2m, Capture, "private read-only memory", &private)?;
    private.judge_untouched(t, "the read-only memory")?;

    let mut shared = Area::memfd(0, FRAME.size())?;
    shared.fill(t)?;
    shared
        .mapping
        .protect(0..shared.mapping.len(), ProtFlags::PROT_READ)?;
    refuse_area(t, &m2m, Capture, "shared read-only memory", &shared)?;
    Ok(shared.judge_untouched(t, "the shared read-only memory")?)
}

fn inaccessible_memory_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut area = Area::anon(0, FRAME.size())?;
    area.fill(t)?;
    area.mapping
        .protect(0..area.mapping.len(), ProtFlags::PROT_NONE)?;
    refuse_area(t, &m2m, Output, "PROT_NONE memory", &area)?;
    refuse_area(t, &m2m, Capture, "PROT_NONE memory", &area)
}

fn hole_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Userptr, 1)?;
        let mut area = Area::anon(0, FRAME.size())?;
        area.fill(t)?;
        let buffer = describe(queue, 0, &area);
        let (_head, rest) = area.mapping.split(2 * PAGE);
        let (hole, _tail) = rest.split(PAGE);
        drop(hole);
        refuse(
            t,
            &m2m,
            &format!("QBUF of memory with a hole on {queue:?}"),
            buffer,
            REFUSED,
        )?;
    }
    Ok(())
}

fn wild_pointer_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let end_of_user_space = 0x7fff_ffff_f000u64;
    let beyond = end_of_user_space - PAGE as u64;
    let around = u64::MAX - PAGE as u64 + 1;
    // The memory management's own answer to a range that wraps around, where the memop passes it on.
    const WRAPS: &[Errno] = &[Errno::EFAULT, Errno::ENOMEM, Errno::EOVERFLOW];
    let wild = [
        ("NULL", 0, REFUSED),
        ("an unmapped address", 0x0ead_b000, REFUSED),
        ("a range that leaves user space", beyond, REFUSED),
        ("a kernel address", 0xffff_8880_0000_0000, REFUSED),
        ("a range that wraps around", around, WRAPS),
    ];
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Userptr, 1)?;
        for (what, address, refused_with) in wild {
            let mut buffer = describe(queue, 0, &Area::anon(0, FRAME.size())?);
            buffer.m = address;
            let what = format!("QBUF of {what} on {queue:?}");
            refuse(t, &m2m, &what, buffer, refused_with)?;
        }
    }
    Ok(())
}

fn too_short_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Userptr, 1)?;
        let mut area = Area::anon(0, FRAME.size() - 1)?;
        area.fill(t)?;
        refuse(
            t,
            &m2m,
            &format!("QBUF of one byte too few on {queue:?}"),
            describe(queue, 0, &area),
            &[Errno::EINVAL],
        )?;
    }
    Ok(())
}

fn refused_requeue_unpins_nothing_that_is_held(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    src.fill(t)?;
    let unpinned = vmstat::pinned_pages()?;
    m2m.queue(t, Output, 0, &src)?;
    t.equal(
        Eye::Aftermath,
        "pinned pages after QBUF",
        vmstat::pinned_pages()? - unpinned,
        (src.mapping.len() / PAGE) as i64,
    );
    // Back from the queue, and still pinned and held.
    m2m.stream_off()?;
    let mut short = describe(Output, 0, &src);
    short.length -= 1;
    // A payload longer than the buffer would be refused before videobuf2 looks at the memory.
    short.bytesused = short.length;
    t.refused(
        "QBUF of one byte too few",
        m2m.node.enqueue(short),
        &[Errno::EINVAL],
    );
    let held = m2m.report(Output, 0)?.flags & uapi::BUFFER_ATTACHED != 0;
    let pinned = vmstat::pinned_pages()? - unpinned;
    t.check(Eye::Aftermath, !held || pinned > 0, || {
        "the device still holds the buffer's earlier memory, of which no page is pinned any more"
            .into()
    });
    Ok(())
}

/// Memory for a FRAME, `head` bytes of it anonymous and the others a dma-buf's, or the other way round.
fn neighbours(t: &mut Ctx, dmabuf_first: bool) -> TestResult<Area> {
    let head = 2 * PAGE;
    let pages = FRAME.size().next_multiple_of(PAGE);
    let mapping = Mapping::anon(pages)?;
    let heap = dmabuf::system_heap(pages)?;
    let mut area = if dmabuf_first {
        // A file can only be laid over the end of a mapping: lay it over all, then anonymous memory over its end.
        mapping.map_over(0, &heap, 0)?;
        mapping.map_anon_over(head)?;
        Area::user(mapping, 0..FRAME.size())
    } else {
        mapping.map_over(head, &heap, 0)?;
        Area::user(mapping, 0..FRAME.size())
    };
    area.fill(t)?;
    Ok(area)
}

fn pfnmap_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let pages = FRAME.size().next_multiple_of(PAGE);
    let (buffer, _file) = dmabuf::udmabuf(pages)?;
    let mut area = Area::user(
        Mapping::shared(&buffer, pages, READ_WRITE)?,
        0..FRAME.size(),
    );
    area.fill(t)?;
    for queue in [Output, Capture] {
        refuse_area(t, &m2m, queue, "a udmabuf's mapping", &area)?;
    }
    Ok(area.judge_untouched(t, "the udmabuf")?)
}

fn pci_bar_is_refused(t: &mut Ctx) -> TestResult {
    // Within a page.
    const IMAGE: Image = Image::grey(63, 47);
    let area = Area::user(bar::first_page()?, 0..IMAGE.size());
    for memop in [DmaSg, DmaContig, Vmalloc] {
        let m2m = M2m::copier_on(memop, IMAGE)?;
        for queue in [Output, Capture] {
            refuse_area(t, &m2m, queue, "a PCI BAR's mapping", &area)?;
        }
    }
    Ok(())
}

fn locked_memory_limit_holds(t: &mut Ctx) -> TestResult {
    const LIMIT: usize = 16 * PAGE;
    const LARGE: Image = Image::grey(512, 512);
    let m2m = M2m::copier(LARGE)?;
    let memory = Area::anon(0, LARGE.size())?;
    m2m.request(Output, Memory::Userptr, 1)?;
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    let queued = m2m.enqueue(Output, 0, &memory);
    let what = "QBUF of 4 times RLIMIT_MEMLOCK";
    t.refused(what, queued, &[Errno::ENOMEM, Errno::EPERM]);
    Ok(())
}

fn pfnmap_after_memory_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let area = neighbours(t, false)?;
    for queue in [Output, Capture] {
        refuse_area(
            t,
            &m2m,
            queue,
            "anonymous memory that goes on in a heap buffer's mapping",
            &area,
        )?;
    }
    Ok(area.judge_untouched(t, "the memory")?)
}

fn memory_after_pfnmap_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let area = neighbours(t, true)?;
    for queue in [Output, Capture] {
        refuse_area(
            t,
            &m2m,
            queue,
            "a heap buffer's mapping that goes on in anonymous memory",
            &area,
        )?;
    }
    Ok(area.judge_untouched(t, "the memory")?)
}

fn dmabuf_mapping_is_refused(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    for queue in [Output, Capture] {
        let mut heap = Area::heap(FRAME.size())?;
        heap.fill(t)?;
        let mut buffer = describe(queue, 0, &heap);
        (buffer.memory, buffer.m) = (Memory::Userptr as u32, heap.address() as u64);
        m2m.request(queue, Memory::Userptr, 1)?;
        refuse(
            t,
            &m2m,
            &format!("QBUF of a heap buffer's mapping on {queue:?}"),
            buffer,
            REFUSED,
        )?;
        heap.judge_untouched(t, "the heap buffer")?;

        // The way that replaces it: the very same buffer, by its descriptor.
        m2m.request(queue, Memory::Dmabuf, 1)?;
        let mut own = m2m.own(queue.other())?;
        match queue {
            Output => m2m.copy(t, &mut heap, &mut own)?,
            Capture => m2m.copy(t, &mut own, &mut heap)?,
        }
        m2m.stream_off()?;
        drop(own);
        m2m.request(Output, Memory::Mmap, 0)?;
        m2m.request(Capture, Memory::Mmap, 0)?;
    }
    Ok(())
}
