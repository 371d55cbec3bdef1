// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of every kind that a V4L2 buffer can be made of, with the bytes around it under watch.

use crate::dmabuf::{self, Access};
use crate::harness::ctx::{Ctx, Stop, TestResult};
use crate::harness::error::Error;
use crate::memory::compaction::until_whole;
use crate::memory::mapping::{Mapping, READ_WRITE};
use crate::observe::extent::{Extent, PAGE};
use crate::observe::pagemap;
use crate::observe::{smaps, swiotlb};
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes in a huge page.
pub const HUGE: usize = 2 << 20;

/// How an [`Area`] is handed to a queue.
pub enum Share {
    /// By address.
    Userptr,
    /// By file descriptor.
    Dmabuf(OwnedFd),
    /// Not at all: the queue made it.
    Mmap,
}

/// Memory for one buffer: the pages mapped here, and the window of them that holds the image. What lies around the window belongs to
/// nobody else and must never change.
pub struct Area {
    /// The pages.
    pub mapping: Mapping,
    /// The image's bytes in them.
    pub window: Range<usize>,
    /// How to hand it over.
    pub share: Share,
    /// Another mapping of the same pages, where the kernel shows no page frames for the first: it does not for VM_PFNMAP.
    witness: Option<Mapping>,
    /// Whether the CPU comes to this dma-buf as reader and writer at once, whatever it does.
    as_both: bool,
    /// Whether the kernel shows no page frames for it.
    hidden: bool,
    /// What the CPU wrote last, to all of the mapping.
    written: Vec<u8>,
}

impl Area {
    fn new(mapping: Mapping, window: Range<usize>, share: Share) -> Self {
        assert!(
            window.end <= mapping.len(),
            "the window {window:?} is not within {} bytes",
            mapping.len()
        );
        Self {
            mapping,
            window,
            share,
            witness: None,
            as_both: false,
            hidden: false,
            written: Vec::new(),
        }
    }

    /// Memory from malloc(3), on the heap among the process's other things.
    pub fn malloc(length: usize) -> Result<Self, Error> {
        const AROUND: usize = 64;
        Ok(Self::new(
            Mapping::malloc(length + 2 * AROUND)?,
            AROUND..AROUND + length,
            Share::Userptr,
        ))
    }

    /// Anonymous pages; the image begins `offset` bytes after the first page's start.
    pub fn anon(offset: usize, length: usize) -> Result<Self, Error> {
        Ok(Self::new(
            Mapping::anon(offset + length)?,
            offset..offset + length,
            Share::Userptr,
        ))
    }

    /// The dma-buf that it is.
    pub fn fd(&self) -> TestResult<BorrowedFd<'_>> {
        match &self.share {
            Share::Dmabuf(fd) => Ok(fd.as_fd()),
            _ => Err(Stop::finding(Eye::Harness, "the area is no dma-buf")),
        }
    }

    /// Any mapping, as user memory.
    pub fn user(mapping: Mapping, window: Range<usize>) -> Self {
        Self::new(mapping, window, Share::Userptr)
    }

    /// Transparent huge pages, as smaps confirms; skips where the kernel gives none.
    pub fn huge(offset: usize, length: usize) -> TestResult<Self> {
        let mapping = Mapping::anon_aligned((offset + length).next_multiple_of(HUGE), HUGE)?;
        Self::huge_of(mapping, offset, length)
    }

    /// As [`Area::huge`], of an untouched anonymous mapping that has the size and alignment of huge pages.
    pub fn huge_of(mapping: Mapping, offset: usize, length: usize) -> TestResult<Self> {
        let lacking = |why: String| Error::Absent {
            what: why,
            remedy: "build the kernel with CONFIG_TRANSPARENT_HUGEPAGE".into(),
        };
        let all = 0..mapping.len();
        mapping
            .advise(all.clone(), MmapAdvise::MADV_HUGEPAGE)
            .map_err(|error| lacking(format!("a huge page ({error})")))?;
        let mut huge = 0;
        let whole = until_whole(|| {
            mapping.advise(all.clone(), MmapAdvise::MADV_DONTNEED)?;
            for page in all.clone().step_by(HUGE) {
                mapping.write(page, &[1]);
            }
            huge = huge_bytes(mapping.address())?;
            Ok::<_, Error>(huge >= mapping.len())
        })?;
        if !whole {
            return Err(lacking(format!(
                "a huge page ({huge} of {} bytes are in one)",
                mapping.len()
            ))
            .into());
        }
        Ok(Self::new(mapping, offset..offset + length, Share::Userptr))
    }

    /// hugetlb pages, of which the kernel must have enough: see [`crate::memory::hugetlb::Pool`].
    pub fn hugetlb(offset: usize, length: usize) -> Result<Self, Error> {
        let mapping = Mapping::hugetlb((offset + length).next_multiple_of(HUGE))?;
        Ok(Self::new(mapping, offset..offset + length, Share::Userptr))
    }

    /// Shared pages of a memfd that are not neighbours in physical memory, by address.
    pub fn scattered(length: usize) -> Result<Self, Error> {
        let (mapping, _, _) = scattered(length.next_multiple_of(PAGE))?;
        Ok(Self::new(mapping, 0..length, Share::Userptr))
    }

    /// A dma-buf of such pages.
    pub fn scattered_dmabuf(length: usize) -> Result<Self, Error> {
        let pages = length.next_multiple_of(PAGE);
        let (witness, file, order) = scattered(pages)?;
        let fd = dmabuf::udmabuf_of(&file, &order)?;
        Ok(Self {
            witness: Some(witness),
            as_both: true,
            ..Self::dmabuf(fd, pages, length)?
        })
    }

    /// A contiguous dma-buf from the heap on CMA.
    pub fn cma_heap(length: usize) -> Result<Self, Error> {
        let pages = length.next_multiple_of(PAGE);
        Self::dmabuf(dmabuf::cma_heap(pages)?, pages, length)
    }

    /// Shared pages of a memfd, by address.
    pub fn memfd(offset: usize, length: usize) -> Result<Self, Error> {
        let pages = (offset + length).next_multiple_of(PAGE);
        let mapping = Mapping::shared(dmabuf::memfd(pages)?, pages, READ_WRITE)?;
        Ok(Self::new(mapping, offset..offset + length, Share::Userptr))
    }

    /// A dma-buf, and its mapping for the CPU.
    pub fn dmabuf(fd: OwnedFd, pages: usize, length: usize) -> Result<Self, Error> {
        let mapping = Mapping::shared(&fd, pages, READ_WRITE)?;
        Ok(Self::new(mapping, 0..length, Share::Dmabuf(fd)))
    }

    /// A dma-buf from the system heap.
    pub fn heap(length: usize) -> Result<Self, Error> {
        let pages = length.next_multiple_of(PAGE);
        Self::dmabuf(dmabuf::system_heap(pages)?, pages, length)
    }

    /// A dma-buf made of a memfd's pages.
    ///
    /// The kernel keeps the direction of the first CPU access for all later ones, which DMA-API debugging objects to where they
    /// differ. That is a test of its own (`dmabuf::cpu_reads_what_it_wrote_to_a_udmabuf`), so the CPU comes as both here.
    pub fn udmabuf(length: usize) -> Result<Self, Error> {
        Ok(Self::udmabuf_and_memfd(length)?.0)
    }

    /// As [`Area::udmabuf`], and the same pages as shared user memory.
    pub fn udmabuf_and_memfd(length: usize) -> Result<(Self, Self), Error> {
        let pages = length.next_multiple_of(PAGE);
        let (fd, file) = dmabuf::udmabuf(pages)?;
        let witness = Mapping::shared(&file, pages, READ_WRITE)?;
        let of_file = Mapping::shared(&file, pages, READ_WRITE)?;
        let area = Self {
            witness: Some(witness),
            as_both: true,
            ..Self::dmabuf(fd, pages, length)?
        };
        Ok((area, Self::user(of_file, 0..length)))
    }

    /// A buffer that a queue made, mapped.
    pub fn mmap(mapping: Mapping, length: usize) -> Self {
        Self::new(mapping, 0..length, Share::Mmap)
    }

    /// Of which the process knows what is in it although it did not write it here: in a file, or zeros.
    pub fn holding(self, written: Vec<u8>) -> Self {
        assert_eq!(written.len(), self.mapping.len(), "all of the mapping");
        Self { written, ..self }
    }

    /// Of an exporter, or a queue, that hides its page frames.
    pub fn hidden(self) -> Self {
        Self {
            hidden: true,
            ..self
        }
    }

    /// Whether it is user memory, which the kernel places, and not a driver's, which may have come from CMA.
    pub fn is_users(&self) -> bool {
        matches!(self.share, Share::Userptr) || self.witness.is_some()
    }

    /// Bytes of the image.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Virtual address of the image.
    pub fn address(&self) -> usize {
        self.mapping.address() + self.window.start
    }

    /// What the device is to hold: all of a dma-buf, else the image.
    pub fn shared_range(&self) -> Range<usize> {
        match self.share {
            Share::Userptr | Share::Mmap => self.window.clone(),
            Share::Dmabuf(_) => 0..self.mapping.len(),
        }
    }

    /// Where [`Area::shared_range`] is in physical memory, or the virtual address of the first page that is not present. `None`
    /// where page frames are hidden: for VM_PFNMAP.
    pub fn extents(&self) -> Result<Option<Result<Vec<Extent>, usize>>, Error> {
        let (range, length) = (self.shared_range(), self.shared_range().len());
        let shown = self.witness.as_ref().unwrap_or(&self.mapping);
        if self.witness.is_some() {
            // A page is in the page tables only once it was touched.
            shown.read(range.clone());
        }
        let found = pagemap::extents(shown.address() + range.start, length)?;
        let may_hide =
            self.hidden || self.witness.is_none() && matches!(self.share, Share::Dmabuf(_));
        Ok(match found {
            Err(_) if may_hide => None,
            found => Some(found),
        })
    }

    /// The page frames of [`Area::shared_range`] that the process's page table shows now; nothing is touched for it.
    pub fn frames(&self) -> Result<Vec<u64>, Error> {
        let range = self.shared_range();
        let shown = self.witness.as_ref().unwrap_or(&self.mapping);
        let entries = pagemap::entries(shown.address() + range.start, range.len())?;
        Ok(entries.iter().filter_map(|entry| entry.frame()).collect())
    }

    /// Whatever uses the memory as the CPU does: the process, or a TEE that has it registered. A dma-buf is synced around it.
    pub fn access<T>(&self, access: Access, work: impl FnOnce() -> T) -> Result<T, Error> {
        match &self.share {
            Share::Dmabuf(fd) if self.as_both => dmabuf::with_cpu_access(fd, Access::Both, work),
            Share::Dmabuf(fd) => dmabuf::with_cpu_access(fd, access, work),
            Share::Userptr | Share::Mmap => Ok(work()),
        }
    }

    /// The CPU writes fresh random bytes to every page.
    pub fn fill(&mut self, t: &mut Ctx) -> Result<(), Error> {
        let bytes = t.random(self.mapping.len());
        self.access(Access::Write, || self.mapping.write(0, &bytes))?;
        self.written = bytes;
        Ok(())
    }

    /// The CPU writes a fresh image and leaves what is around it.
    pub fn refresh(&mut self, t: &mut Ctx) -> Result<(), Error> {
        let image = t.random(self.len());
        self.put(&image)
    }

    /// The CPU writes this image.
    pub fn put(&mut self, image: &[u8]) -> Result<(), Error> {
        assert_eq!(image.len(), self.window.len(), "an image of another size");
        self.access(Access::Write, || {
            self.mapping.write(self.window.start, image)
        })?;
        self.written.resize(self.mapping.len(), 0);
        self.written[self.window.clone()].copy_from_slice(image);
        Ok(())
    }

    /// What the CPU sees now is as good as written by it: a device's result becomes the next one's source.
    pub fn adopt(&mut self) -> Result<(), Error> {
        self.written = self.access(Access::Read, || self.mapping.read(0..self.mapping.len()))?;
        Ok(())
    }

    /// The image as the CPU wrote it last.
    pub fn written(&self) -> &[u8] {
        &self.written[self.window.clone()]
    }

    /// The image as the CPU sees it now.
    pub fn contents(&self) -> Result<Vec<u8>, Error> {
        self.access(Access::Read, || self.mapping.read(self.window.clone()))
    }

    /// The CPU eye: the image is `expected`, and all around it is as the CPU wrote it.
    pub fn judge(&self, t: &mut Ctx, what: &str, expected: &[u8]) -> Result<(), Error> {
        let all = self.access(Access::Read, || self.mapping.read(0..self.mapping.len()))?;
        t.same_bytes(Eye::Cpu, what, &all[self.window.clone()], expected);
        let (start, end) = (self.window.start, self.window.end);
        let (before, behind) = (&self.written[..start], &self.written[end..]);
        t.same_bytes(
            Eye::Cpu,
            &format!("{what}, bytes before it"),
            &all[..start],
            before,
        );
        // They are in the mapped buffer, too, where it is the kernel's: syncing a bounce buffer for the CPU brings back what was there.
        if !matches!(self.share, Share::Userptr) && swiotlb::is_forced()? {
            return Ok(());
        }
        t.same_bytes(
            Eye::Cpu,
            &format!("{what}, bytes behind it"),
            &all[end..],
            behind,
        );
        Ok(())
    }

    /// The CPU eye on what no device may write: all is as the CPU wrote it.
    ///
    /// The CPU is such a buffer's writer, and comes as one: some exporters pass a reader's direction on to the DMA API for a
    /// buffer that is mapped for the device to read, which DMA-API debugging objects to. That is a test of its own
    /// (`dmabuf::cpu_reads_what_the_device_reads`).
    pub fn judge_untouched(&self, t: &mut Ctx, what: &str) -> Result<(), Error> {
        let all = self.access(Access::Write, || self.mapping.read(0..self.mapping.len()))?;
        t.same_bytes(Eye::Cpu, what, &all, &self.written);
        Ok(())
    }
}

/// A memfd's pages mapped in an order in which they are not contiguous; the memfd, and the order.
fn scattered(length: usize) -> Result<(Mapping, OwnedFd, Vec<Range<usize>>), Error> {
    let file = dmabuf::memfd(length)?;
    let mapping = Mapping::shared(&file, length, READ_WRITE)?;
    let mut order: Vec<_> = (0..length).step_by(PAGE).map(|at| at..at + PAGE).collect();
    mapping.write(0, &vec![1; length]);
    if pagemap::extents(mapping.address(), length)?.is_ok_and(|pieces| pieces.len() == 1) {
        order.reverse();
        for (page, part) in order.iter().enumerate() {
            mapping.map_over(page * PAGE, &file, part.start as i64)?;
        }
    }
    Ok((mapping, file, order))
}

/// Bytes of the mapping at `address` that are in anonymous huge pages.
pub fn huge_bytes(address: usize) -> Result<usize, Error> {
    let field = smaps::field(address, "AnonHugePages")?;
    let kilobytes = field.and_then(|text| text.strip_suffix("kB")?.trim().parse::<usize>().ok());
    Ok(kilobytes.unwrap_or(0) * 1024)
}
