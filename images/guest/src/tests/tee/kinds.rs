// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pin matrix's kinds of memory, registered with the TEE: taken or refused. A trusted application may read and write what is
//! registered, for as long as a client likes: so what a CAPTURE queue refuses is to be refused here, too. Mappings of dma-bufs are
//! `mmaps`' part.

use super::stage::{REGISTERED, judge_checksum, register, registered};
use crate::tests::pin::memory::{self, Make};
use crate::tests::sources::{
    DAX, FOLLOW_PFN, GUARD, PIN_USER_PAGES, SECRETMEM, TEE_SHM, UNSHARE, WRITABLE_FILE,
};
use crate::tests::test::{REFUSED, Test, test};
use nix::errno::Errno;
use pinbed_abi::report::{Eye, Moment};
use pinbed_abi::ta::pin;
use pinbed_abi::tee::PARAM_MEMREF_OUTPUT;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{PAGE, frames, merged};
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::{NONE, Tee, value_in};
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::judge_places;

/// A kind's test: what is done with it, its name, which is also that of the function that makes it, where that is from, what it is.
macro_rules! kind {
    ($answer:ident $kind:ident, $source:expr, $what:literal) => {
        test(
            concat!("tee_kinds::", stringify!($answer), "_", stringify!($kind)),
            |t| $answer(t, memory::$kind),
            $source,
            concat!("The TEE ", stringify!($answer), " ", $what, "."),
        )
    };
}

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    kind!(takes anon_untouched, UNSHARE, "private anonymous memory that was never touched, as zeros in pages of its own"),
    kind!(takes scattered, TEE_SHM, "memory of pages that are no neighbours in physical memory"),
    kind!(takes thp, TEE_SHM, "part of a transparent huge page"),
    kind!(takes hugetlb, TEE_SHM, "part of a private hugetlb page"),
    kind!(takes memfd, TEE_SHM, "shared memory of a memfd"),
    kind!(takes memfd_private, UNSHARE, "a private mapping of a memfd, as a copy that the file does not see"),
    kind!(takes ext4_private, UNSHARE, "a private mapping of a file on ext4, as a copy that the file does not see"),
    kind!(takes sg_buffer, TEE_SHM, "the mapping of a dma-sg queue's own buffer"),
    kind!(takes vmalloc_buffer, TEE_SHM, "the mapping of a vmalloc queue's own buffer"),
    kind!(takes anon_then_memfd, TEE_SHM, "private anonymous memory that goes on in shared memory of a memfd"),
    kind!(takes memfd_then_anon, TEE_SHM, "shared memory of a memfd that goes on in private anonymous memory"),
    kind!(takes memfd_in_cma, PIN_USER_PAGES, "shared memory of a memfd in CMA, once it is moved out of there"),
    kind!(takes memfd_in_zone_movable, PIN_USER_PAGES, "shared memory of a memfd in ZONE_MOVABLE, once it is moved out of there"),
    kind!(takes thp_in_zone_movable, PIN_USER_PAGES, "part of a transparent huge page in ZONE_MOVABLE, once it is moved out of there"),
    kind!(takes hugetlb_in_zone_movable, PIN_USER_PAGES, "part of a hugetlb page in ZONE_MOVABLE, once it is moved out of there"),
    kind!(refuses hugetlb_read_only, TEE_SHM, "part of a private hugetlb page that the process may only read"),
    kind!(refuses memfd_read_only, TEE_SHM, "shared memory of a memfd that the process may only read"),
    kind!(refuses ext4_private_read_only, TEE_SHM, "a private mapping of a file on ext4 that the process may only read"),
    kind!(refuses ext4_shared, WRITABLE_FILE, "a shared mapping of a file on ext4"),
    kind!(refuses ext4_shared_read_only, TEE_SHM, "a shared mapping of a file on ext4 that the process may only read"),
    kind!(refuses anon_read_only, TEE_SHM, "private anonymous memory that the process may only read"),
    kind!(refuses anon_inaccessible, TEE_SHM, "private anonymous memory that is PROT_NONE"),
    kind!(refuses memfd_inaccessible, TEE_SHM, "shared memory of a memfd that is PROT_NONE"),
    kind!(refuses dax, DAX, "a shared mapping of a file on ext4 with DAX"),
    kind!(refuses anon_then_dax, DAX, "private anonymous memory that goes on in a mapping of a file with DAX"),
    kind!(refuses dax_then_anon, DAX, "a mapping of a file with DAX that goes on in private anonymous memory"),
    kind!(refuses dev_mem, FOLLOW_PFN, "a mapping of /dev/mem, which is VM_PFNMAP"),
    kind!(refuses carveout, FOLLOW_PFN, "a VM_PFNMAP mapping of memory without struct pages"),
    kind!(refuses anon_then_carveout, FOLLOW_PFN, "private anonymous memory that goes on in a VM_PFNMAP mapping"),
    kind!(refuses carveout_then_anon, FOLLOW_PFN, "a VM_PFNMAP mapping that goes on in private anonymous memory"),
    kind!(refuses special_ptes, FOLLOW_PFN, "a VM_MIXEDMAP mapping with special entries, which have no struct pages"),
    kind!(refuses contig_buffer, FOLLOW_PFN, "the mapping of a dma-contig queue's own buffer, which is VM_PFNMAP"),
    kind!(refuses secretmem, SECRETMEM, "memory of memfd_secret"),
    kind!(refuses guard, GUARD, "memory with a guard page in it"),
    kind!(refuses anon_then_ext4_shared, WRITABLE_FILE, "private anonymous memory that goes on in a shared mapping of a file on ext4"),
    kind!(refuses ext4_shared_then_anon, WRITABLE_FILE, "a shared mapping of a file on ext4 that goes on in private anonymous memory"),
    kind!(refuses anon_then_read_only, TEE_SHM, "private anonymous memory of which the process may only read the end"),
    kind!(refuses anon_then_inaccessible, TEE_SHM, "private anonymous memory the end of which is PROT_NONE"),
];

/// Five pages, of an odd length.
const IMAGE: Image = Image::grey(157, 121);

/// The application reads the memory and writes it where it is, and the process sees that.
fn takes(t: &mut Ctx, make: Make) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let mut sample = make(t, IMAGE)?;
    // A queue's own buffer is held already.
    let before = device.list()?;
    t.sight(REGISTERED, Moment::Before, sample.area.frames()?);
    let shm = register(&tee, &sample.area)?;
    let mut held = device.list()?;
    held.retain(|held| !before.contains(held));
    let held: Vec<_> = held.into_iter().flat_map(|held| held.segments).collect();
    let held = merged(held);
    t.sight(REGISTERED, Moment::Held, frames(&held));
    judge_places(t, REGISTERED, &held)?;
    if let Some(Ok(here)) = sample.area.extents()? {
        t.equal(Eye::Placement, "where the device holds it", held, here);
    }
    judge_checksum(t, &tee, session, &shm, sample.area.written())?;
    if sample.rewrite(t)? {
        judge_checksum(t, &tee, session, &shm, sample.area.written())?;
    }
    let params = [
        shm.all(PARAM_MEMREF_OUTPUT),
        value_in(0x6d6d_6d6d, 0),
        NONE,
        NONE,
    ];
    tee.invoke(session, pin::FILL, params)?.ok("FILL")?;
    let expected = vec![0x6d; sample.area.len()];
    sample.area.judge(t, "the memory after FILL", &expected)?;
    sample.judge_backing(t)
}

/// Registering fails; the memory is neither pinned, nor held, nor touched; and other memory can be registered.
fn refuses(t: &mut Ctx, make: Make) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let sample = make(t, IMAGE)?;
    let errnos: Vec<Errno> = [sample.errnos, REFUSED].concat();
    let before = (vmstat::pinned_pages()?, device.list()?.len());
    // From its page's start on: what some kernels do to the pins of memory that begins elsewhere is a test of its own,
    // tee_memory::unaligned_partly_pinned_memory_is_released.
    let start = sample.area.address() / PAGE * PAGE;
    let length = sample.area.address() + sample.claim - start;
    let attempt = tee.register(start, length).map(|shm| shm.size);
    t.refused("registering it", attempt, &errnos);
    let now = (vmstat::pinned_pages()?, device.list()?.len());
    t.equal(Eye::Aftermath, "pages pinned, buffers held", now, before);
    sample.reveal()?;
    sample.area.judge_untouched(t, "the memory")?;
    sample.judge_backing(t)?;
    let (other, shm) = registered(t, &tee)?;
    judge_checksum(t, &tee, session, &shm, other.written())
}
