// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The mapping of a dma-buf is not normal memory: its exporter owns the pages, so no system call may take one through it. Every
//! exporter meets every such call.

use super::taker::Call::{self, *};
use crate::tests::sources::DMABUF_PFNMAP;
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::uapi;
use pinbed_guest::dmabuf::vgem;
use pinbed_guest::harness::attempt::{Attempt, attempt};
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::cma;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::smaps;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

/// The tests of one exporter: what its mapping is, who is refused, and what would come of it otherwise.
macro_rules! of_exporter {
    ($exporter:ident, $buffer:literal, $keepers:expr, { $($taker:ident: $calls:expr, $taking:literal;)* }) => {
        &[
            test(concat!("mmaps::", stringify!($exporter), "_maps_frames_not_pages"),
                |t| maps_frames_not_pages(t, $exporter), DMABUF_PFNMAP,
                concat!("The mapping of ", $buffer, " is VM_PFNMAP, which keeps get_user_pages() out.")),
            $(test(concat!("mmaps::", stringify!($taker), "_refuses_", stringify!($exporter)),
                |t| refuses(t, $exporter, $calls), DMABUF_PFNMAP,
                concat!("The mapping of ", $buffer, " is refused by ", $taking, ", and nothing stays pinned or is changed.")),)*
            test(concat!("mmaps::nobody_keeps_", stringify!($exporter)),
                |t| nobody_keeps(t, $exporter, $keepers), DMABUF_PFNMAP,
                concat!("Once ", $buffer, " is gone nobody sees what was in it, and its memory can be had again.")),
        ]
    };
}

/// The tests of the takers by themselves.
macro_rules! of_takers {
    ({ $($taker:ident: $calls:expr, $taking:literal;)* }) => {
        &[$(test(concat!("mmaps::", stringify!($taker), "_takes_shared_memory"),
            |t| takes(t, $calls), DMABUF_PFNMAP,
            concat!("A shared mapping of a memfd, which is normal memory, is taken by ", $taking, ".")),)*]
    };
}

macro_rules! tests {
    ({ $($exporter:ident: $buffer:literal, $keepers:expr;)* } $takers:tt) => {
        &[of_takers!($takers), $(of_exporter!($exporter, $buffer, $keepers, $takers)),*]
    };
}

/// Who keeps a page when its exporter thinks that it is free.
const KEEPERS: &[Call] = &[Vmsplice, TeeRegister, Userptr(DmaSg, Output)];
/// Those of them that do not try to move it out of CMA first: where they cannot, some kernels try for ever, which is `refuses`'s to see.
const SHORT_TERM: &[Call] = &[Vmsplice, TeeRegister];

#[rustfmt::skip]
pub const TESTS: &[&[Test]] = tests! {
    {
        system_heap: "a buffer of the system heap", KEEPERS;
        udmabuf: "a udmabuf", KEEPERS;
        vgem: "a buffer of vgem", KEEPERS;
        sg_export: "a buffer that dma-sg exported", KEEPERS;
        contig_export: "a buffer that dma-contig exported", KEEPERS;
        vmalloc_export: "a buffer that vmalloc exported", KEEPERS;
        carveout: "a buffer of a carveout", KEEPERS;
        moving: "a buffer that can move", KEEPERS;
        cma_heap: "a buffer of the heap on CMA", SHORT_TERM;
    } {
        direct_read: &[DirectRead], "an O_DIRECT read into it";
        direct_write: &[DirectWrite], "an O_DIRECT write from it";
        vmsplice: &[Vmsplice], "vmsplice";
        process_vm_readv: &[ProcessRead], "process_vm_readv from it";
        process_vm_writev: &[ProcessWrite], "process_vm_writev into it";
        tee_register: &[TeeRegister], "TEE_IOC_SHM_REGISTER";
        userptr_on_sg: &[Userptr(DmaSg, Output), Userptr(DmaSg, Capture)], "QBUF of user memory on dma-sg, on both queues";
        userptr_on_contig: &[Userptr(DmaContig, Output), Userptr(DmaContig, Capture)], "QBUF of user memory on dma-contig, on both queues";
        userptr_on_vmalloc: &[Userptr(Vmalloc, Output), Userptr(Vmalloc, Capture)], "QBUF of user memory on vmalloc, on both queues";
        io_uring: &[IoUring], "IORING_REGISTER_BUFFERS";
    }
};

/// A dma-buf of one page, mapped, and what must live as long as it is exported.
type Exported = (Area, Option<M2m>);

fn system_heap() -> TestResult<Exported> {
    Ok((Area::heap(PAGE)?, None))
}

fn cma_heap() -> TestResult<Exported> {
    Ok((Area::cma_heap(PAGE)?, None))
}

fn udmabuf() -> TestResult<Exported> {
    Ok((Area::udmabuf(PAGE)?, None))
}

fn vgem() -> TestResult<Exported> {
    Ok((Area::dmabuf(vgem::buffer(PAGE)?, PAGE, PAGE)?, None))
}

fn exported_by(memop: Memop) -> TestResult<Exported> {
    let m2m = M2m::copier_on(memop, Image::PAGE)?;
    m2m.request(Capture, Memory::Mmap, 1)?;
    Ok((m2m.export(Capture)?, Some(m2m)))
}

fn sg_export() -> TestResult<Exported> {
    exported_by(DmaSg)
}

fn contig_export() -> TestResult<Exported> {
    exported_by(DmaContig)
}

fn vmalloc_export() -> TestResult<Exported> {
    exported_by(Vmalloc)
}

fn of_carveout(flags: u32) -> TestResult<Exported> {
    let (fd, _) = Device::open()?.export(PAGE, flags)?;
    Ok((Area::dmabuf(fd, PAGE, PAGE)?, None))
}

fn carveout() -> TestResult<Exported> {
    of_carveout(0)
}

fn moving() -> TestResult<Exported> {
    of_carveout(uapi::EXPORT_MOVING)
}

fn takes(t: &mut Ctx, calls: &[Call]) -> TestResult {
    for call in calls {
        let mut area = Area::memfd(0, PAGE)?;
        area.fill(t)?;
        let mut taker = call.ready(t)?;
        let before = vmstat::pinned_pages()?;
        taker
            .take(area.address())
            .map_err(Error::call(format!("{call} of shared memory")))?;
        let what = format!("{call}: what the other end sees");
        match taker.seen()? {
            Some(seen) => t.equal(Eye::Cpu, &what, seen, crc(&area.contents()?)),
            None => t.equal(
                Eye::Aftermath,
                &format!("{call}: pages pinned"),
                vmstat::pinned_pages()? - before,
                1,
            ),
        };
    }
    Ok(())
}

fn maps_frames_not_pages(t: &mut Ctx, exporter: fn() -> TestResult<Exported>) -> TestResult {
    let (area, _exporter) = exporter()?;
    let flags = smaps::field(area.address(), "VmFlags")?.unwrap_or_default();
    t.check(
        Eye::Placement,
        flags.split(' ').any(|flag| flag == "pf"),
        || format!("the mapping has the VmFlags '{flags}', expected pf (VM_PFNMAP) among them"),
    );
    Ok(())
}

fn refuses(t: &mut Ctx, exporter: fn() -> TestResult<Exported>, calls: &[Call]) -> TestResult {
    let (mut area, _exporter) = exporter()?;
    area.fill(t)?;
    let device = Device::open()?;
    let mut let_in = false;
    for call in calls {
        let what = format!("{call} of the mapping");
        let mut taker = call.ready(t)?;
        let before = (vmstat::pinned_pages()?, device.list()?.len(), taker.seen()?);
        match attempt(|| taker.take(area.address()))? {
            Attempt::Returned(result) => {
                if !t.refused(&what, result, call.refusals()) {
                    let_in = true;
                    continue;
                }
            }
            endless => {
                t.find(Eye::Cpu, format!("{what} {endless}"));
                return match endless {
                    Attempt::Stuck(child) => release(t, child),
                    _ => Ok(()),
                };
            }
        }
        let after = (vmstat::pinned_pages()?, device.list()?.len(), taker.seen()?);
        let what = format!(
            "pinned pages, buffers of the device, and CRC32C at the other end after {what}"
        );
        t.equal(Eye::Aftermath, &what, after, before);
    }
    match let_in {
        true => Ok(()),
        false => Ok(area.judge_untouched(t, "the buffer")?),
    }
}

/// Ends a call that SIGKILL does not end, since it takes a CPU from all tests to come.
///
/// The kernel goes round in it for as long as the page is in CMA, which it takes from the type of the block of pages around it. An
/// allocation next to the page changes that type for a moment.
fn release(t: &mut Ctx, mut child: Child) -> TestResult {
    for region in cma::regions()? {
        // What comes of it does not matter.
        let _ = region.whole_can_be_had();
    }
    let gone = child.kill()?;
    t.note(format!(
        "whether an allocation in CMA ended the call: {gone}"
    ));
    Ok(())
}

fn nobody_keeps(
    t: &mut Ctx,
    exporter: fn() -> TestResult<Exported>,
    keepers: &[Call],
) -> TestResult {
    for call in keepers {
        let (mut area, exporter) = exporter()?;
        area.fill(t)?;
        let mut taker = call.ready(t)?;
        if let Err(errno) = taker.take(area.address()) {
            // Then there is nothing to keep.
            t.refused::<()>(&call.to_string(), Err(errno), call.refusals());
            continue;
        }
        let was = crc(area.written());
        drop((area, exporter));
        for region in cma::regions()? {
            if let Err(error) = region.whole_can_be_had() {
                let what = format!("{call}: the memory of the buffer cannot be had again: {error}");
                t.find(Eye::Placement, what);
            }
        }
        let seen = taker.seen()?;
        t.check(Eye::Aftermath, seen != Some(was), || {
            format!("{call}: what was in the buffer is still seen when the buffer is gone")
        });
    }
    Ok(())
}
