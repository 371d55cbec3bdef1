// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a device wrote is there still when the kernel has taken the memory for something else in between: whoever unpins pages that a
//! device may have written marks them dirty, since no page table entry says so.

use super::kinds::image;
use crate::tests::sources::{LAZY, PIN_USER_PAGES, UDMABUF_DIRTY};
use crate::tests::test::{Test, test};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::pagemap;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use std::time::Duration;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("dirty::sg_writes_to_clean_shared_memory_survive_eviction", |t| captured(t, DmaSg, Clean::Shared), PIN_USER_PAGES,
        "What the device wrote to shared memory that was only read before is there after the memory was evicted (dma-sg)."),
    test("dirty::contig_writes_to_clean_shared_memory_survive_eviction", |t| captured(t, DmaContig, Clean::Shared), PIN_USER_PAGES,
        "What the device wrote to shared memory that was only read before is there after the memory was evicted (dma-contig)."),
    test("dirty::vmalloc_writes_to_clean_shared_memory_survive_eviction", |t| captured(t, Vmalloc, Clean::Shared), PIN_USER_PAGES,
        "What the device wrote to shared memory that was only read before is there after the memory was evicted (vmalloc)."),
    test("dirty::sg_writes_to_lazily_freed_memory_survive_eviction", |t| captured(t, DmaSg, Clean::Lazy), LAZY,
        "What the device wrote to private memory after its process said MADV_FREE is there after the memory was evicted (dma-sg)."),
    test("dirty::contig_writes_to_lazily_freed_memory_survive_eviction", |t| captured(t, DmaContig, Clean::Lazy), LAZY,
        "What the device wrote to private memory after its process said MADV_FREE is there after the memory was evicted (dma-contig)."),
    test("dirty::vmalloc_writes_to_lazily_freed_memory_survive_eviction", |t| captured(t, Vmalloc, Clean::Lazy), LAZY,
        "What the device wrote to private memory after its process said MADV_FREE is there after the memory was evicted (vmalloc)."),
    test("dirty::writes_to_a_udmabuf_survive_eviction", udmabuf, UDMABUF_DIRTY,
        "What the device wrote to a dma-buf made of a memfd that was never written is in the memfd after the memory was evicted."),
];

/// How long the kernel may take to evict memory that it is asked to.
const EVICTION: Duration = Duration::from_secs(5);

/// Memory that the kernel sees no reason to keep, for all that its page tables say.
#[derive(Clone, Copy)]
pub enum Clean {
    /// A hole of a memfd that was only read.
    Shared,
    /// Private memory under MADV_FREE.
    Lazy,
}

impl Clean {
    /// Such memory, of these bytes. What is lazily freed has to be told so by [`Clean::forget`], once it is pinned.
    pub fn memory(self, t: &mut Ctx, length: usize) -> TestResult<Area> {
        let pages = length.next_multiple_of(PAGE);
        match self {
            Clean::Shared => {
                let mapping = Mapping::shared(dmabuf::memfd(pages)?, pages, READ_WRITE)?;
                mapping.read(0..pages);
                Ok(Area::user(mapping, 0..length).holding(vec![0; pages]))
            }
            Clean::Lazy => {
                let mut area = Area::anon(0, length)?;
                area.fill(t)?;
                Ok(area)
            }
        }
    }

    /// The process does not need what is in it.
    pub fn forget(self, area: &Area) -> TestResult {
        match self {
            Clean::Shared => Ok(()),
            Clean::Lazy => Ok(area
                .mapping
                .advise(0..area.mapping.len(), MmapAdvise::MADV_FREE)?),
        }
    }
}

/// Has the kernel evict all of the memory, which nobody holds; that it does is the premise.
pub fn evict(area: &Area) -> TestResult {
    let mut left = 0;
    let evicted = patience::until(EVICTION, || {
        area.mapping
            .advise(0..area.mapping.len(), MmapAdvise::MADV_PAGEOUT)?;
        left = resident(&area.mapping)?;
        Ok(left == 0)
    })?;
    match evicted {
        true => Ok(()),
        false => Err(Stop::finding(
            Eye::Harness,
            format!(
                "{left} pages that nobody holds are not evicted within {} s",
                EVICTION.as_secs()
            ),
        )),
    }
}

/// How many pages are in memory, mapped or in the page cache.
fn resident(mapping: &Mapping) -> Result<usize, Error> {
    let entries = pagemap::entries(mapping.address(), mapping.len())?;
    let mut cached = vec![0_u8; entries.len()];
    // SAFETY: the mapping has these bytes, and the vector a byte for each of its pages.
    let done = unsafe {
        libc::mincore(
            mapping.address() as *mut libc::c_void,
            mapping.len(),
            cached.as_mut_ptr(),
        )
    };
    Errno::result(done).map_err(Error::call("mincore"))?;
    let both = entries.iter().zip(cached);
    Ok(both
        .filter(|(entry, cached)| entry.present() || cached & 1 != 0)
        .count())
}

fn captured(t: &mut Ctx, memop: Memop, clean: Clean) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let m2m = M2m::copier_on(memop, image(memop))?;
    let dst = m2m.with(Capture, clean.memory(t, image(memop).size())?)?;
    let mut src = m2m.own(Output)?;
    src.fill(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    clean.forget(&dst)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())?;
    let data = src.written().to_vec();
    drop(src);
    drop(m2m);
    evict(&dst)?;
    Ok(dst.judge(t, "what the device wrote, after eviction", &data)?)
}

fn udmabuf(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let image = image(DmaSg);
    let pages = image.size().next_multiple_of(PAGE);
    let (buffer, file) = dmabuf::udmabuf(pages)?;
    let m2m = M2m::copier_on(DmaSg, image)?;
    let dst = m2m.with(Capture, Area::dmabuf(buffer, pages, image.size())?)?;
    let mut src = m2m.own(Output)?;
    src.fill(t)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.stream_on()?;
    m2m.dequeue_pair(&src, &dst)?;
    let data = src.written().to_vec();
    drop(src);
    drop(m2m);
    drop(dst);
    let mapping = Mapping::shared(&file, pages, READ_WRITE)?;
    let here = Area::user(mapping, 0..image.size()).holding(vec![0; pages]);
    here.judge(t, "what the device wrote", &data)?;
    evict(&here)?;
    Ok(here.judge(t, "what the device wrote, after eviction", &data)?)
}
