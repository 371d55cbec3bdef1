// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of every kind: a function for each, named as in the matrix, that makes some for an image and puts known bytes there.

use super::longterm::{SEARCH, in_cma, in_cma_of};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::mman::ProtFlags;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::ftruncate;
use pinbed_abi::report::Eye;
use pinbed_abi::uapi;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::{Area, HUGE};
use pinbed_guest::memory::disk::Disk;
use pinbed_guest::memory::hugetlb::Pool;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::release::release;
use pinbed_guest::observe::zones;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::{self, Memop, Node, Queue};
use std::any::Any;
use std::fs::{self, File};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Makes memory of a kind for one image.
pub type Make = fn(&mut Ctx, Image) -> TestResult<Sample>;

/// Where an image begins that has to lie on more than one page, however short it is.
const ACROSS: usize = PAGE - 96;

/// Memory of a kind.
pub struct Sample {
    /// The memory; what is in it is known.
    pub area: Area,
    /// Bytes that QBUF is told.
    pub claim: usize,
    /// How it is refused, if it is.
    pub errnos: &'static [Errno],
    writer: Writer,
    veil: Veil,
    /// A file that a private mapping is of, and what it holds whatever is written to the mapping.
    backing: Option<(File, Vec<u8>)>,
    /// What has to be there for as long as the memory is.
    _keep: Vec<Box<dyn Any>>,
}

/// Who can put other bytes there after it was pinned.
enum Writer {
    Process,
    /// Who writes this file.
    File(File),
    Nobody,
}

/// What keeps the process from looking at it.
enum Veil {
    None,
    Inaccessible,
    /// Guards from the second page on.
    Guards,
}

impl Sample {
    fn of(area: Area) -> Self {
        Self {
            claim: area.len(),
            area,
            errnos: &[Errno::EFAULT],
            writer: Writer::Process,
            veil: Veil::None,
            backing: None,
            _keep: Vec::new(),
        }
    }

    fn keeping(mut self, thing: impl Any) -> Self {
        self._keep.push(Box::new(thing));
        self
    }

    /// Puts other bytes into the image, if anyone can.
    pub fn rewrite(&mut self, t: &mut Ctx) -> TestResult<bool> {
        match &self.writer {
            Writer::Process => self.area.refresh(t)?,
            Writer::File(file) => {
                let image = t.random(self.area.len());
                file.write_all_at(&image, self.area.window.start as u64)
                    .map_err(Error::io("writing the file behind a mapping"))?;
                self.area.adopt()?;
                t.same_bytes(
                    Eye::Cpu,
                    "the mapping of a file that was written",
                    self.area.written(),
                    &image,
                );
            }
            Writer::Nobody => return Ok(false),
        }
        Ok(true)
    }

    /// Lets the process look.
    pub fn reveal(&self) -> TestResult {
        let all = 0..self.area.mapping.len();
        match self.veil {
            Veil::None => (),
            Veil::Inaccessible => self.area.mapping.protect(all, ProtFlags::PROT_READ)?,
            Veil::Guards => self.area.mapping.guard(PAGE..all.end, false)?,
        }
        Ok(())
    }

    /// What was done to a private mapping is not in its file.
    pub fn judge_backing(&self, t: &mut Ctx) -> TestResult {
        if let Some((file, written)) = &self.backing {
            let mut bytes = vec![0; written.len()];
            file.read_exact_at(&mut bytes, 0)
                .map_err(Error::io("reading the file behind a mapping"))?;
            t.same_bytes(
                Eye::Cpu,
                "the file behind the private mapping",
                &bytes,
                written,
            );
        }
        Ok(())
    }
}

/// Bytes of the pages that an image needs.
fn pages(image: Image) -> usize {
    image.size().next_multiple_of(PAGE)
}

fn filled(t: &mut Ctx, mut area: Area) -> TestResult<Sample> {
    area.fill(t)?;
    Ok(Sample::of(area))
}

/// The process wrote it, and may only read it from now on.
fn read_only(t: &mut Ctx, area: Area) -> TestResult<Sample> {
    let sample = filled(t, area)?;
    let mapping = &sample.area.mapping;
    mapping.protect(0..mapping.len(), ProtFlags::PROT_READ)?;
    Ok(Sample {
        writer: Writer::Nobody,
        ..sample
    })
}

fn inaccessible(t: &mut Ctx, area: Area) -> TestResult<Sample> {
    let sample = filled(t, area)?;
    let mapping = &sample.area.mapping;
    mapping.protect(0..mapping.len(), ProtFlags::PROT_NONE)?;
    Ok(Sample {
        veil: Veil::Inaccessible,
        ..sample
    })
}

/// The mapping of a file, or of something that has a descriptor, filled by the process.
fn mapped(t: &mut Ctx, image: Image, file: &OwnedFd) -> TestResult<Sample> {
    let mapping = Mapping::shared(file, image.size(), READ_WRITE)?;
    filled(t, Area::user(mapping, 0..image.size()))
}

/// Writes a file's pages, and says what.
fn write_file(t: &mut Ctx, file: OwnedFd, image: Image) -> TestResult<(File, Vec<u8>)> {
    let file = File::from(file);
    let bytes = t.random(pages(image));
    file.write_all_at(&bytes, 0)
        .map_err(Error::io("writing a file"))?;
    Ok((file, bytes))
}

/// A private mapping that nobody has touched yet.
fn private(t: &mut Ctx, image: Image, file: OwnedFd, protection: ProtFlags) -> TestResult<Sample> {
    let (file, bytes) = write_file(t, file, image)?;
    let mapping = Mapping::private(&file, bytes.len(), protection)?;
    let area = Area::user(mapping, 0..image.size()).holding(bytes.clone());
    Ok(Sample {
        writer: if protection == READ_WRITE {
            Writer::Process
        } else {
            Writer::Nobody
        },
        backing: Some((file, bytes)),
        ..Sample::of(area)
    })
}

/// A shared mapping that may only be read, of what was written to the file.
fn shared_read_only(t: &mut Ctx, image: Image, file: OwnedFd) -> TestResult<Sample> {
    let (file, bytes) = write_file(t, file, image)?;
    let mapping = Mapping::shared(&file, bytes.len(), ProtFlags::PROT_READ)?;
    let area = Area::user(mapping, 0..image.size()).holding(bytes);
    Ok(Sample {
        writer: Writer::File(file),
        ..Sample::of(area)
    })
}

/// Anonymous memory, with another kind's from its second page on.
fn anon_then(image: Image, file: &OwnedFd) -> TestResult<Area> {
    let mapping = Mapping::anon(ACROSS + image.size())?;
    mapping.map_over(PAGE, file, 0)?;
    Ok(Area::user(mapping, ACROSS..ACROSS + image.size()))
}

/// The other way round.
fn then_anon(image: Image, file: &OwnedFd) -> TestResult<Area> {
    let mapping = Mapping::anon(ACROSS + image.size())?;
    // A file can only be laid over the end of a mapping.
    mapping.map_over(0, file, 0)?;
    mapping.map_anon_over(PAGE)?;
    Ok(Area::user(mapping, ACROSS..ACROSS + image.size()))
}

/// Bytes that a file needs for [`anon_then`] and [`then_anon`].
fn joint(image: Image) -> usize {
    (ACROSS + image.size()).next_multiple_of(PAGE)
}

/// Makes untouched memory until its pages, once touched, are no neighbours in physical memory.
fn apart(make: impl Fn() -> TestResult<Area>) -> TestResult<Area> {
    let mut others = Vec::new();
    for attempt in 0..32 {
        let area = make()?;
        let mut pages: Vec<_> = (0..area.mapping.len()).step_by(PAGE).collect();
        if attempt % 2 == 1 {
            pages.reverse();
        }
        for page in pages {
            area.mapping.write(page, &[1]);
        }
        let at = pagemap::extents(area.address(), area.len())?;
        if at.is_ok_and(|pieces| pieces.len() > 1) {
            return Ok(area);
        }
        others.push(area);
    }
    let text = format!(
        "{} times the kernel gave neighbouring pages only",
        others.len()
    );
    Err(Stop::finding(Eye::Harness, text))
}

pub fn anon_touched(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    filled(t, Area::anon(0, image.size())?)
}

pub fn anon_untouched(_: &mut Ctx, image: Image) -> TestResult<Sample> {
    Ok(Sample::of(Area::anon(0, image.size())?.holding(vec![
        0;
        pages(
            image
        )
    ])))
}

pub fn anon_unaligned(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    filled(t, Area::anon(0x123, image.size())?)
}

pub fn scattered(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let area = apart(|| Ok(Area::anon(ACROSS, image.size())?))?;
    filled(t, area)
}

pub fn thp(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    filled(t, Area::huge(3 * PAGE, image.size())?)
}

pub fn hugetlb(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let pool = Pool::of(1)?;
    Ok(filled(t, Area::hugetlb(3 * PAGE, image.size())?)?.keeping(pool))
}

pub fn hugetlb_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let pool = Pool::of(1)?;
    Ok(read_only(t, Area::hugetlb(3 * PAGE, image.size())?)?.keeping(pool))
}

pub fn memfd(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    mapped(t, image, &dmabuf::memfd(pages(image))?)
}

pub fn memfd_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    shared_read_only(t, image, dmabuf::memfd(pages(image))?)
}

pub fn memfd_private(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    private(t, image, dmabuf::memfd(pages(image))?, READ_WRITE)
}

pub fn ext4_private(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    private(t, image, Disk::ext4()?.file(pages(image))?, READ_WRITE)
}

pub fn ext4_private_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    private(
        t,
        image,
        Disk::ext4()?.file(pages(image))?,
        ProtFlags::PROT_READ,
    )
}

pub fn ext4_shared(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    mapped(t, image, &Disk::ext4()?.file(pages(image))?)
}

pub fn ext4_shared_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    shared_read_only(t, image, Disk::ext4()?.file(pages(image))?)
}

pub fn anon_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    read_only(t, Area::anon(0, image.size())?)
}

pub fn anon_inaccessible(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    inaccessible(t, Area::anon(0, image.size())?)
}

pub fn memfd_inaccessible(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    inaccessible(t, Area::memfd(0, image.size())?)
}

pub fn dax(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let sample = mapped(t, image, &Disk::dax()?.file(pages(image))?)?;
    Ok(Sample {
        errnos: &[Errno::EOPNOTSUPP],
        ..sample
    })
}

pub fn anon_then_dax(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let file = Disk::dax()?.file(joint(image))?;
    filled(t, anon_then(image, &file)?)
}

pub fn dax_then_anon(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let file = Disk::dax()?.file(joint(image))?;
    let sample = filled(t, then_anon(image, &file)?)?;
    Ok(Sample {
        errnos: &[Errno::EOPNOTSUPP],
        ..sample
    })
}

/// A carveout buffer by its physical address: the kernel lets nobody map its own memory so.
pub fn dev_mem(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    const WHERE: &str = "/dev/mem";
    let (buffer, address) = Device::open()?.export(pages(image), 0)?;
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = open(WHERE, flags, Mode::empty()).map_err(|_| Error::Absent {
        what: WHERE.into(),
        remedy: "build the kernel with CONFIG_DEVMEM and without CONFIG_STRICT_DEVMEM".into(),
    })?;
    let mapping = Mapping::shared_at(&file, address as i64, image.size(), READ_WRITE)?;
    let sample = filled(t, Area::user(mapping, 0..image.size()))?;
    let same = Mapping::shared(&buffer, image.size(), READ_WRITE)?.read(0..image.size());
    t.same_bytes(
        Eye::Harness,
        "what /dev/mem maps",
        &same,
        sample.area.written(),
    );
    Ok(sample.keeping(buffer))
}

/// Carveout memory's mapping; `flags` are `EXPORT_…`.
fn exported(t: &mut Ctx, image: Image, flags: u32) -> TestResult<Sample> {
    let (file, _) = Device::open()?.export(pages(image), flags)?;
    mapped(t, image, &file)
}

pub fn carveout(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    exported(t, image, 0)
}

pub fn anon_then_carveout(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let (file, _) = Device::open()?.export(joint(image), 0)?;
    filled(t, anon_then(image, &file)?)
}

pub fn carveout_then_anon(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let (file, _) = Device::open()?.export(joint(image), 0)?;
    filled(t, then_anon(image, &file)?)
}

/// Before 'mm/gup: follow_pfn_pte(): -EEXIST cleanup' (5.18) the kernel counts such a page as pinned and leaves
/// its entry in the array of pages as it was: whatever is there is used and unpinned.
pub fn special_ptes(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    if release()? < (5, 18) {
        return Err(Stop::Skip(
            "before 5.18 the kernel takes what is in uninitialised memory for the page, and may crash".into(),
        ));
    }
    let sample = exported(t, image, uapi::EXPORT_MIXEDMAP)?;
    Ok(Sample {
        errnos: &[Errno::EFAULT, Errno::EEXIST],
        ..sample
    })
}

pub fn system_heap(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    mapped(t, image, &dmabuf::system_heap(pages(image))?)
}

pub fn cma_heap(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    mapped(t, image, &dmabuf::cma_heap(pages(image))?)
}

pub fn udmabuf(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let (buffer, memfd) = dmabuf::udmabuf(pages(image))?;
    // Kernels that map the memfd's own pages have to find them unmapped when the memfd goes.
    Ok(mapped(t, image, &buffer)?.keeping(memfd))
}

/// A buffer of a queue's own. Of an OUTPUT queue: DMA-API debugging objects to memory that two mappings let the device write.
fn buffer(t: &mut Ctx, image: Image, m2m: M2m) -> TestResult<Sample> {
    let own = m2m.own(Queue::Output)?;
    Ok(filled(t, Area::user(own.mapping, 0..image.size()))?.keeping(m2m))
}

pub fn sg_buffer(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    buffer(t, image, M2m::copier_on(Memop::DmaSg, image)?)
}

pub fn vmalloc_buffer(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    buffer(t, image, M2m::copier_on(Memop::Vmalloc, image)?)
}

pub fn contig_buffer(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    buffer(t, image, M2m::copier_on(Memop::DmaContig, image)?)
}

pub fn sg_buffer_of_a_node_on_ext4(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let device = v4l2::find(Memop::DmaSg)?;
    let number = fs::metadata(&device)
        .map_err(Error::io(format!("looking at {}", device.display())))?
        .rdev();
    let path = Disk::ext4()?.root().join("video");
    mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number)
        .map_err(Error::call("mknod on ext4"))?;
    let node = Node::open_at(&path);
    fs::remove_file(&path).map_err(Error::io("removing a device node"))?;
    let device = Device::open()?;
    let m2m = M2m::over((device, node?), Memop::DmaSg, image, image)?;
    buffer(t, image, m2m)
}

pub fn secretmem(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    // SAFETY: it takes flags, of which there are none, and no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_memfd_secret, 0 as libc::c_ulong) });
    let fd = fd.map_err(|_| Error::Absent {
        what: "memfd_secret".into(),
        remedy: "build the kernel (5.14 or newer) with CONFIG_SECRETMEM and boot it with secretmem.enable=1".into(),
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    let file = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    ftruncate(&file, pages(image) as i64).map_err(Error::call("ftruncate of secret memory"))?;
    mapped(t, image, &file)
}

pub fn guard(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let mapping = Mapping::anon(ACROSS + image.size())?;
    let mut bytes = vec![0; mapping.len()];
    bytes[..PAGE].copy_from_slice(&t.random(PAGE));
    mapping.write(0, &bytes[..PAGE]);
    mapping.guard(PAGE..mapping.len(), true)?;
    let area = Area::user(mapping, ACROSS..ACROSS + image.size()).holding(bytes);
    Ok(Sample {
        veil: Veil::Guards,
        ..Sample::of(area)
    })
}

pub fn hole(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let (head, rest) = Mapping::anon(ACROSS + image.size())?.split(PAGE);
    let (hole, tail) = rest.split(PAGE);
    let sample = filled(t, Area::user(head, ACROSS..PAGE))?.keeping(tail);
    drop(hole);
    Ok(Sample {
        claim: image.size(),
        ..sample
    })
}

pub fn anon_then_memfd(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let area = apart(|| anon_then(image, &dmabuf::memfd(joint(image))?))?;
    filled(t, area)
}

pub fn memfd_then_anon(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let area = apart(|| then_anon(image, &dmabuf::memfd(joint(image))?))?;
    filled(t, area)
}

pub fn anon_then_ext4_shared(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let disk = Disk::ext4()?;
    let area = apart(|| anon_then(image, &disk.file(joint(image))?))?;
    filled(t, area)
}

pub fn ext4_shared_then_anon(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let disk = Disk::ext4()?;
    let area = apart(|| then_anon(image, &disk.file(joint(image))?))?;
    filled(t, area)
}

/// All but its first page is protected. A page that is copied for the device is no neighbour of the first one either: the frame next to
/// that is taken.
fn ending(t: &mut Ctx, image: Image, protection: ProtFlags) -> TestResult<Sample> {
    const PAGES: usize = 256;
    // Prime to it: pages that are touched one after the other, and may get neighbouring frames, are no neighbours themselves.
    const STRIDE: usize = 101;
    let length = (ACROSS + image.size()).next_multiple_of(PAGE);
    let mut others = Vec::new();
    for _ in 0..8 {
        let space = Mapping::anon(PAGES * PAGE)?;
        for turn in 0..PAGES {
            space.write(turn * STRIDE % PAGES * PAGE, &[1]);
        }
        let frames: Vec<_> = pagemap::entries(space.address(), space.len())?
            .iter()
            .map(|entry| entry.frame())
            .collect();
        let fits = |first: &usize| {
            let next = frames[*first].map(|frame| frame + 1);
            next != frames[first + 1] && next.is_some() && frames.contains(&next)
        };
        let Some(first) = (0..=PAGES - length / PAGE).find(fits) else {
            others.push(space);
            continue;
        };
        let (before, rest) = space.split(first * PAGE);
        let (mapping, after) = rest.split(length);
        let sample = filled(t, Area::user(mapping, ACROSS..ACROSS + image.size()))?;
        let mapping = &sample.area.mapping;
        mapping.protect(PAGE..mapping.len(), protection)?;
        let sample = Sample {
            writer: Writer::Nobody,
            ..sample
        };
        return Ok(sample.keeping(before).keeping(after));
    }
    Err(Stop::finding(
        Eye::Harness,
        format!(
            "in {} times {PAGES} pages there are no neighbours in physical memory but pages that follow each other",
            others.len()
        ),
    ))
}

pub fn anon_then_read_only(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    ending(t, image, ProtFlags::PROT_READ)
}

pub fn anon_then_inaccessible(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let sample = ending(t, image, ProtFlags::PROT_NONE)?;
    Ok(Sample {
        veil: Veil::Inaccessible,
        ..sample
    })
}

pub fn one_byte_too_few(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let sample = anon_touched(t, image)?;
    Ok(Sample {
        claim: image.size() - 1,
        errnos: &[Errno::EINVAL],
        ..sample
    })
}

pub fn no_bytes(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let sample = anon_touched(t, image)?;
    Ok(Sample {
        claim: 0,
        errnos: &[Errno::EINVAL],
        ..sample
    })
}

pub fn anon_in_cma(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let (area, _) = in_cma(t)?;
    filled(t, Area::user(area.mapping, 0..image.size()))
}

pub fn memfd_in_cma(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let file = dmabuf::memfd(SEARCH)?;
    let (area, _) = in_cma_of(t, Mapping::shared(&file, SEARCH, READ_WRITE)?)?;
    filled(t, Area::user(area.mapping, 0..image.size()))
}

/// Untouched memory becomes that of ZONE_MOVABLE, by way of a node that has no other.
fn in_zone_movable(
    t: &mut Ctx,
    mapping: Mapping,
    make: impl FnOnce(Mapping) -> TestResult<Area>,
) -> TestResult<Sample> {
    let zone = zones::movable_node()?;
    mapping.bind(zone.node)?;
    let sample = filled(t, make(mapping)?)?;
    let at = pagemap::extents(sample.area.address(), sample.area.len())?;
    let inside = at.is_ok_and(|pieces| frames(&pieces).all(|frame| zone.frames.contains(&frame)));
    match inside {
        true => Ok(sample),
        false => Err(Stop::finding(
            Eye::Harness,
            format!("not all pages came from node {}'s ZONE_MOVABLE", zone.node),
        )),
    }
}

pub fn anon_in_zone_movable(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    in_zone_movable(t, Mapping::anon(image.size())?, |mapping| {
        Ok(Area::user(mapping, 0..image.size()))
    })
}

pub fn memfd_in_zone_movable(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    let mapping = Mapping::shared(dmabuf::memfd(pages(image))?, image.size(), READ_WRITE)?;
    in_zone_movable(t, mapping, |mapping| {
        Ok(Area::user(mapping, 0..image.size()))
    })
}

pub fn thp_in_zone_movable(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    in_zone_movable(t, Mapping::anon_aligned(HUGE, HUGE)?, |mapping| {
        Area::huge_of(mapping, 3 * PAGE, image.size())
    })
}

pub fn hugetlb_in_zone_movable(t: &mut Ctx, image: Image) -> TestResult<Sample> {
    // One to begin with, and one to move to.
    let pools = (Pool::on(zones::movable_node()?.node, 1)?, Pool::of(1)?);
    let start = 3 * PAGE;
    let make = |mapping| Ok(Area::user(mapping, start..start + image.size()));
    Ok(in_zone_movable(t, Mapping::hugetlb(HUGE)?, make)?.keeping(pools))
}
