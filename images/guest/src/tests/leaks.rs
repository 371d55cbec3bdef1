// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel memory that is lost a little at a time: what is done and undone many times leaves nothing that grows with it. What is refused
//! leaves nothing either.

use crate::tests::sources::{DMABUF, LEAK, TEE_SHM};
use crate::tests::test::{FRAME, REFUSED, Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::kconfig;
use pinbed_guest::harness::patience::until;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::mm::{Charges, charges};
use pinbed_guest::observe::slab::{self, Caches};
use pinbed_guest::observe::{vmstat, zones};
use pinbed_guest::tee::client::Tee;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("leaks::sg_user_memory", |t| user_memory(t, DmaSg), LEAK,
        "Taking user memory and letting go of it leaves no kernel memory behind (dma-sg)."),
    test("leaks::contig_user_memory", |t| user_memory(t, DmaContig), LEAK,
        "Taking user memory and letting go of it leaves no kernel memory behind (dma-contig)."),
    test("leaks::vmalloc_user_memory", |t| user_memory(t, Vmalloc), LEAK,
        "Taking user memory and letting go of it leaves no kernel memory behind (vmalloc)."),
    test("leaks::sg_refused_memory", |t| refused_memory(t, DmaSg), LEAK,
        "User memory that is refused leaves no kernel memory behind (dma-sg)."),
    test("leaks::contig_refused_memory", |t| refused_memory(t, DmaContig), LEAK,
        "User memory that is refused leaves no kernel memory behind (dma-contig)."),
    test("leaks::vmalloc_refused_memory", |t| refused_memory(t, Vmalloc), LEAK,
        "User memory that is refused leaves no kernel memory behind (vmalloc)."),
    test("leaks::imported_buffers", imported_buffers, DMABUF,
        "Importing a buffer of the system heap and letting go of it leaves no kernel memory behind."),
    test("leaks::exported_buffers", exported_buffers, DMABUF,
        "Exporting a buffer, mapping and closing it leaves no kernel memory behind."),
    test("leaks::mapped_buffers", mapped_buffers, DMABUF,
        "Mapping dma-bufs of the heaps and touching them leaves neither kernel memory nor resident memory behind when they are unmapped."),
    test("leaks::udmabufs", udmabufs, DMABUF,
        "Making a udmabuf of a memfd, importing and closing it leaves no kernel memory behind."),
    test("leaks::refused_udmabufs", refused_udmabufs, DMABUF,
        "A udmabuf that is refused leaves no kernel memory behind."),
    test("leaks::registered_memory", registered_memory, TEE_SHM,
        "Registering memory with the TEE and closing it leaves no kernel memory behind."),
    test("leaks::refused_registration", refused_registration, TEE_SHM,
        "Memory whose registration with the TEE is refused leaves no kernel memory behind."),
    test("leaks::sessions", sessions, TEE_SHM,
        "Opening the TEE and a session, a call, and closing both leaves no kernel memory behind."),
];

/// Times over. What is lost each time is seen by growth of at least half as many: other work of the kernel's does not come to that three
/// times in a row, and free objects that a CPU keeps and that the count before had as objects in use do not hide it.
const ROUNDS: usize = 200;
/// Rounds before that, in which caches fill.
const WARM_UP: usize = 10;
/// Something has to grow so many times, one after the other. Each time what is on its way to be freed may take so long; most of what grows
/// at first is kept for later use, and is not waited for.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_secs(2),
    Duration::from_secs(2),
];

/// What RCU frees is free after this: some grace periods.
const RCU: Duration = Duration::from_millis(50);

/// Addresses of vmalloc are freed in batches only, once 64 MiB of them wait. What is lost of vmalloc is lost pages, too.
const ADDRESSES: &str = "vmap_area";
/// Caches of what is freed with them: kmemleak has an object for each.
const IN_BATCHES: [&str; 2] = [ADDRESSES, "kmemleak_scan_area"];
/// Pages of KASAN's shadow of such addresses, which wait with them: that of the addresses, and of its page table.
const SHADOW: i64 = 2;

/// More of something.
struct Growth {
    /// Of what.
    what: String,
    /// "100 objects more".
    more: String,
    /// The slab cache that it is in.
    cache: Option<String>,
}

/// What the kernel uses.
struct Use {
    slab: BTreeMap<String, i64>,
    /// Pages that nobody is known to use, or that the process and files have.
    pages: i64,
    charges: Charges,
}

impl Use {
    fn look(caches: &mut Caches) -> Result<Self, Error> {
        let counter = vmstat::all()?;
        let pages = [
            "nr_free_pages",
            "nr_inactive_anon",
            "nr_active_anon",
            "nr_inactive_file",
            "nr_active_file",
            "nr_unevictable",
            "nr_slab_reclaimable",
            "nr_slab_unreclaimable",
            "nr_page_table_pages",
        ];
        Ok(Self {
            slab: caches.objects()?,
            pages: pages
                .iter()
                .map(|name| counter(name))
                .sum::<Result<i64, _>>()?
                + zones::waiting()?,
            charges: charges()?,
        })
    }

    /// What there is more of than before by at least so much.
    fn growth(&self, before: &Self, least: i64) -> Vec<Growth> {
        let mut growth: Vec<_> = self
            .slab
            .iter()
            .filter(|(cache, _)| !IN_BATCHES.contains(&cache.as_str()))
            .filter_map(|(cache, now)| {
                let more = now - before.slab.get(cache).unwrap_or(&0);
                (more >= least).then(|| Growth {
                    what: format!("slab {cache}"),
                    more: format!("{more} objects more"),
                    cache: Some(cache.clone()),
                })
            })
            .collect();
        let objects = |of: &Self| of.slab.get(ADDRESSES).copied().unwrap_or(0);
        let waiting = match kconfig::reason("without CONFIG_KASAN_VMALLOC") {
            Some(_) => SHADOW * (objects(self) - objects(before)).max(0),
            None => 0,
        };
        let lost = before.pages - self.pages - waiting;
        let (now, then) = (&self.charges, &before.charges);
        let counted = [
            ("pages that are lost", lost, 2 * least),
            ("VmLck in KiB", now.locked - then.locked, 1),
            ("VmPin in KiB", now.pinned - then.pinned, 1),
            ("VmRSS in KiB", now.resident - then.resident, 4 * least),
            ("open descriptors", now.descriptors - then.descriptors, 1),
        ];
        let counted = counted.iter().filter(|(_, more, least)| more >= least);
        growth.extend(counted.map(|(what, more, _)| Growth {
            what: (*what).into(),
            more: format!("{more} more"),
            cache: None,
        }));
        growth
    }
}

/// Does something many times, and judges what that leaves.
fn many_times(t: &mut Ctx, mut round: impl FnMut() -> TestResult) -> TestResult {
    // What is freed goes to the lists of the CPU that frees it.
    cpu::stay()?;
    let mut caches = Caches::open()?;
    for _ in 0..WARM_UP {
        round()?;
    }
    // The first look maps pages of this program, and begins to free what waits for RCU.
    Use::look(&mut caches)?;
    thread::sleep(RCU);
    let mut before = Use::look(&mut caches)?;
    let mut leaks: Option<Vec<Growth>> = None;
    for patience in PATIENCE {
        let (after, growth) = grow(&before, &mut caches, &mut round, patience)?;
        before = after;
        // What grows once is kept for later use; what is lost grows each time.
        let is_old = |new: &Growth| {
            leaks
                .as_ref()
                .is_none_or(|old| old.iter().any(|old| old.what == new.what))
        };
        let again: Vec<_> = growth.into_iter().filter(is_old).collect();
        for growth in &again {
            t.note(format!(
                "{}: {}, which counts if it comes again",
                growth.what, growth.more
            ));
        }
        if again.is_empty() {
            return Ok(());
        }
        leaks = Some(again);
    }
    for leak in leaks.into_iter().flatten() {
        t.find(
            Eye::Aftermath,
            format!("{}: {} after {ROUNDS} times", leak.what, leak.more),
        );
    }
    Ok(())
}

/// What the kernel uses more of after a number of rounds.
fn grow(
    before: &Use,
    caches: &mut Caches,
    round: &mut impl FnMut() -> TestResult,
    patience: Duration,
) -> TestResult<(Use, Vec<Growth>)> {
    for _ in 0..ROUNDS {
        round()?;
    }
    let least = (ROUNDS / 2) as i64;
    let mut after = Use::look(caches)?;
    // What RCU and work queues are to free takes its time.
    until(patience, || {
        let growth = after.growth(before, least);
        growth
            .iter()
            .filter_map(|growth| growth.cache.as_deref())
            .for_each(slab::shrink);
        if !growth.is_empty() {
            after = Use::look(caches)?;
        }
        Ok(growth.is_empty())
    })?;
    let growth = after.growth(before, least);
    Ok((after, growth))
}

fn user_memory(t: &mut Ctx, memop: Memop) -> TestResult {
    let image = crate::tests::pin::kinds::image(memop);
    let area = Area::anon(0, image.size())?;
    many_times(t, || {
        let m2m = M2m::copier_on(memop, image)?;
        m2m.request(Capture, Memory::Userptr, 1)?;
        let taken = m2m.enqueue(Capture, 0, &area);
        Ok(taken.map_err(Error::call("QBUF"))?)
    })
}

/// The second half of the memory is not there.
fn refused_memory(t: &mut Ctx, memop: Memop) -> TestResult {
    let image = crate::tests::pin::kinds::image(memop);
    let pages = image.size().next_multiple_of(PAGE);
    let (memory, behind) = Mapping::anon(pages + PAGE)?.split(pages);
    let area = Area::user(memory, pages - image.size()..pages);
    drop(behind);
    let mut buffer = describe(Capture, 0, &area);
    buffer.length += PAGE as u32;
    let m2m = M2m::copier_on(memop, image)?;
    m2m.request(Capture, Memory::Userptr, 1)?;
    let mut refused = true;
    many_times(t, || {
        refused &= m2m
            .node
            .enqueue(buffer)
            .is_err_and(|errno| REFUSED.contains(&errno));
        Ok(())
    })?;
    premise(refused, || "memory with a hole is not refused".into())
}

fn import(area: &Area, memop: Memop) -> TestResult {
    let m2m = M2m::copier_on(memop, FRAME)?;
    m2m.request(Output, Memory::Dmabuf, 1)?;
    let taken = m2m.enqueue(Output, 0, area);
    Ok(taken.map_err(Error::call("QBUF"))?)
}

fn imported_buffers(t: &mut Ctx) -> TestResult {
    many_times(t, || import(&Area::heap(FRAME.size())?, DmaSg))
}

fn exported_buffers(t: &mut Ctx) -> TestResult {
    many_times(t, || {
        let m2m = M2m::copier_on(DmaSg, FRAME)?;
        m2m.request(Capture, Memory::Mmap, 1)?;
        drop(m2m.export(Capture)?);
        Ok(())
    })
}

fn mapped_buffers(t: &mut Ctx) -> TestResult {
    const LENGTH: usize = 8 * PAGE;
    many_times(t, || {
        for buffer in [dmabuf::system_heap(LENGTH)?, dmabuf::cma_heap(LENGTH)?] {
            let mapping = Mapping::shared(&buffer, LENGTH, READ_WRITE)?;
            for page in (0..LENGTH).step_by(PAGE) {
                mapping.write(page, &[1]);
            }
        }
        Ok(())
    })
}

fn udmabufs(t: &mut Ctx) -> TestResult {
    many_times(t, || import(&Area::udmabuf(FRAME.size())?, DmaSg))
}

fn refused_udmabufs(t: &mut Ctx) -> TestResult {
    let file = dmabuf::memfd(4 * PAGE)?;
    let mut refused = true;
    // It may shrink; and the second part is behind its end.
    many_times(t, || {
        refused &= dmabuf::try_udmabuf(&file, &[0..PAGE, 4 * PAGE..5 * PAGE])?.is_err();
        Ok(())
    })?;
    let sealed = dmabuf::memfd(4 * PAGE)?;
    drop(dmabuf::udmabuf_of(
        &sealed,
        std::slice::from_ref(&(0..PAGE)),
    )?);
    many_times(t, || {
        refused &= dmabuf::try_udmabuf(&sealed, &[0..PAGE, 4 * PAGE..5 * PAGE])?.is_err();
        Ok(())
    })?;
    premise(refused, || {
        "a udmabuf of what is not there is not refused".into()
    })
}

fn registered_memory(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let memory = Mapping::anon(5 * PAGE)?;
    many_times(t, || {
        let shm = tee.register(memory.address(), memory.len());
        drop(shm.map_err(Error::call("TEE_IOC_SHM_REGISTER"))?);
        Ok(())
    })
}

fn refused_registration(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let (memory, behind) = Mapping::anon(6 * PAGE)?.split(5 * PAGE);
    drop(behind);
    let mut refused = true;
    many_times(t, || {
        let shm = tee.register(memory.address(), 6 * PAGE);
        refused &= shm.is_err_and(|errno| [Errno::EFAULT, Errno::ENOMEM].contains(&errno));
        Ok(())
    })?;
    premise(refused, || "memory with a hole is not refused".into())
}

fn sessions(t: &mut Ctx) -> TestResult {
    many_times(t, || {
        let tee = Tee::open()?;
        let session = tee.session(pin::UUID)?;
        let params = [pinbed_guest::tee::client::NONE; 4];
        tee.try_invoke(session, pin::RETURN, &params, 0)
            .map_err(Error::call("TEE_IOC_INVOKE"))?;
        let closed = tee.close_session(session);
        closed.map_err(|errno| {
            Stop::finding(Eye::Cpu, format!("closing a session fails with {errno:?}"))
        })
    })
}
