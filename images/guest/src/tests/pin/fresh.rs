// SPDX-License-Identifier: Apache-2.0 OR MIT
//! New memory that drivers give to processes: it has nothing of its pages' last owner in it.

use crate::tests::sources::ZEROED;
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::Capture;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("fresh::sg_buffers_are_zero", |t| buffers(t, DmaSg), ZEROED,
        "New buffers of the dma-sg node are zero, whoever had their pages before."),
    test("fresh::contig_buffers_are_zero", |t| buffers(t, DmaContig), ZEROED,
        "New buffers of the dma-contig node are zero, whoever had their pages before."),
    test("fresh::vmalloc_buffers_are_zero", |t| buffers(t, Vmalloc), ZEROED,
        "New buffers of the vmalloc node are zero, whoever had their pages before."),
    test("fresh::system_heap_is_zero", |t| heap(t, "system heap", dmabuf::system_heap), ZEROED,
        "New buffers of the system heap are zero, whoever had their pages before."),
    test("fresh::cma_heap_is_zero", |t| heap(t, "CMA heap", dmabuf::cma_heap), ZEROED,
        "New buffers of the heap on CMA are zero, whoever had their pages before."),
];

/// Bytes of pages that get a new owner.
const USED: usize = 32 << 20;
/// A buffer of 1 MiB.
const IMAGE: Image = Image::grey(1024, 1024);

/// Writes to all pages of much memory, and frees it.
fn leave_pages_dirty() -> TestResult {
    cpu::stay()?;
    let used = Mapping::anon(USED)?;
    let piece = vec![0xa5; IMAGE.size()];
    for start in (0..USED).step_by(piece.len()) {
        used.write(start, &piece);
    }
    Ok(())
}

fn judge(t: &mut Ctx, what: &str, area: &Area) -> TestResult {
    let bytes = area.contents()?;
    let count = bytes.iter().filter(|byte| **byte != 0).count();
    t.equal(
        Eye::Cpu,
        &format!("bytes of {what}, which is new: those that are not zero"),
        count,
        0,
    );
    Ok(())
}

fn buffers(t: &mut Ctx, memop: Memop) -> TestResult {
    const COUNT: u32 = 4;
    let m2m = M2m::copier_on(memop, IMAGE)?;
    leave_pages_dirty()?;
    // The second time they may have the pages of the first, which were written to as well.
    for _ in 0..2 {
        m2m.request(Capture, Memory::Mmap, COUNT)?;
        for index in 0..COUNT {
            let mut area = m2m.map(Capture, index)?;
            judge(t, &format!("a {} buffer", memop.node()), &area)?;
            area.put(&vec![0xa5; IMAGE.size()])?;
        }
        m2m.request(Capture, Memory::Mmap, 0)?;
    }
    Ok(())
}

fn heap(
    t: &mut Ctx,
    what: &str,
    make: fn(usize) -> Result<std::os::fd::OwnedFd, pinbed_guest::harness::error::Error>,
) -> TestResult {
    leave_pages_dirty()?;
    for _ in 0..3 {
        let size = IMAGE.size();
        let mut area = Area::dmabuf(make(size)?, size, size)?;
        judge(t, &format!("a buffer of the {what}"), &area)?;
        area.put(&vec![0xa5; size])?;
    }
    Ok(())
}
