// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pin matrix: each kind of memory on each queue of each memop, taken or refused. What a kind is made of is in `memory`.
//!
//! On dma-contig an image is no longer than a page, since memory of more than one page is contiguous by chance only: so a
//! kind is taken or refused there for what it is. Kinds that are more than a page by nature are made of pages that are no
//! neighbours, which dma-contig has to refuse.

use super::memory::{self, Make};
use crate::tests::sources::{
    DAX, DMA_CONTIG, DMABUF_PFNMAP, FOLLOW_PFN, FRAME_VEC, FRAME_VECTOR, GUARD, PIN_USER_PAGES,
    QBUF, SECRETMEM, UNSHARE, USERP, WRITABLE_FILE,
};
use crate::tests::test::{REFUSED, Test, refuse_by, test};
use nix::errno::Errno;
use pinbed_abi::report::{Eye, Finding};
use pinbed_guest::harness::ctx::{Ctx, TestResult, tell_from_anywhere};
use pinbed_guest::harness::patience::Watch;
use pinbed_guest::harness::progress::Progress;
use pinbed_guest::memory::area::Area;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// A kind's tests: its name, which is also that of the function that makes it; what the OUTPUT and the CAPTURE queue do, and
/// those of dma-contig where it differs; where that is from; what it is.
macro_rules! kind {
    ($kind:ident, $output:ident $capture:ident, $source:expr, $what:literal) => {
        kind!($kind, $output $capture, contig $output $capture, $source, $what)
    };
    ($kind:ident, $output:ident $capture:ident, contig $contig_output:ident $contig_capture:ident, $source:expr, $what:literal) => {
        [
            kind!(@ sg DmaSg "dma-sg", output Output "OUTPUT", $output, $kind, $source, $what),
            kind!(@ sg DmaSg "dma-sg", capture Capture "CAPTURE", $capture, $kind, $source, $what),
            kind!(@ contig DmaContig "dma-contig", output Output "OUTPUT", $contig_output, $kind, $source, $what),
            kind!(@ contig DmaContig "dma-contig", capture Capture "CAPTURE", $contig_capture, $kind, $source, $what),
            kind!(@ vmalloc Vmalloc "vmalloc", output Output "OUTPUT", $output, $kind, $source, $what),
            kind!(@ vmalloc Vmalloc "vmalloc", capture Capture "CAPTURE", $capture, $kind, $source, $what),
        ]
    };
    (@ $memop:ident $Memop:ident $node:literal, $queue:ident $Queue:ident $QUEUE:literal, $answer:ident, $kind:ident, $source:expr, $what:literal) => {
        test(
            concat!("kinds::", stringify!($memop), "_", stringify!($queue), "_", stringify!($answer), "_", stringify!($kind)),
            |t| $answer(t, $Memop, $Queue, memory::$kind),
            $source,
            concat!("On its ", $QUEUE, " queue the ", $node, " node ", stringify!($answer), " ", $what, "."),
        )
    };
}

/// The tests, six for each kind.
pub const TESTS: &[Test] = KINDS.as_flattened();

#[rustfmt::skip]
const KINDS: &[[Test; 6]] = &[
    kind!(anon_touched, takes takes, FRAME_VEC, "private anonymous memory that was written to"),
    kind!(anon_untouched, takes takes, UNSHARE, "private anonymous memory that was never touched, as zeros in pages of its own"),
    kind!(anon_unaligned, takes takes, USERP, "private anonymous memory with an odd start and an odd length"),
    kind!(scattered, takes takes, contig refuses refuses, DMA_CONTIG, "memory of pages that are no neighbours in physical memory"),
    kind!(thp, takes takes, FRAME_VEC, "part of a transparent huge page"),
    kind!(hugetlb, takes takes, FRAME_VEC, "part of a private hugetlb page"),
    kind!(hugetlb_read_only, takes refuses, FRAME_VECTOR, "part of a private hugetlb page that the process may only read"),
    kind!(memfd, takes takes, FRAME_VEC, "shared memory of a memfd"),
    kind!(memfd_read_only, takes refuses, FRAME_VECTOR, "shared memory of a memfd that the process may only read"),
    kind!(memfd_private, takes takes, UNSHARE, "a private mapping of a memfd, as a copy that the file does not see"),
    kind!(ext4_private, takes takes, UNSHARE, "a private mapping of a file on ext4, as a copy that the file does not see"),
    kind!(ext4_private_read_only, takes refuses, FRAME_VECTOR, "a private mapping of a file on ext4 that the process may only read"),
    kind!(ext4_shared, takes refuses, WRITABLE_FILE, "a shared mapping of a file on ext4"),
    kind!(ext4_shared_read_only, takes refuses, FRAME_VECTOR, "a shared mapping of a file on ext4 that the process may only read"),
    kind!(anon_read_only, takes refuses, FRAME_VECTOR, "private anonymous memory that the process may only read"),
    kind!(anon_inaccessible, refuses refuses, FRAME_VECTOR, "private anonymous memory that is PROT_NONE"),
    kind!(memfd_inaccessible, refuses refuses, FRAME_VECTOR, "shared memory of a memfd that is PROT_NONE"),
    kind!(dax, refuses refuses, DAX, "a shared mapping of a file on ext4 with DAX"),
    kind!(anon_then_dax, refuses refuses, DAX, "private anonymous memory that goes on in a mapping of a file with DAX"),
    kind!(dax_then_anon, refuses refuses, DAX, "a mapping of a file with DAX that goes on in private anonymous memory"),
    kind!(dev_mem, refuses refuses, FOLLOW_PFN, "a mapping of /dev/mem, which is VM_PFNMAP"),
    kind!(carveout, refuses refuses, FOLLOW_PFN, "a VM_PFNMAP mapping of memory without struct pages"),
    kind!(anon_then_carveout, refuses refuses, FRAME_VEC, "private anonymous memory that goes on in a VM_PFNMAP mapping"),
    kind!(carveout_then_anon, refuses refuses, FRAME_VEC, "a VM_PFNMAP mapping that goes on in private anonymous memory"),
    kind!(special_ptes, refuses refuses, FOLLOW_PFN, "a VM_MIXEDMAP mapping with special entries, which have no struct pages"),
    kind!(system_heap, refuses refuses, DMABUF_PFNMAP, "the mapping of a dma-buf from the system heap"),
    kind!(cma_heap, refuses refuses, DMABUF_PFNMAP, "the mapping of a dma-buf from the heap on CMA"),
    kind!(udmabuf, refuses refuses, DMABUF_PFNMAP, "the mapping of a dma-buf made of a memfd"),
    kind!(sg_buffer, takes takes, FRAME_VEC, "the mapping of a dma-sg queue's own buffer"),
    kind!(vmalloc_buffer, takes takes, FRAME_VEC, "the mapping of a vmalloc queue's own buffer"),
    kind!(contig_buffer, refuses refuses, FOLLOW_PFN, "the mapping of a dma-contig queue's own buffer, which is VM_PFNMAP"),
    kind!(sg_buffer_of_a_node_on_ext4, takes takes, WRITABLE_FILE, "the mapping of a dma-sg queue's own buffer, through a device node on ext4: nothing of it is ever written back"),
    kind!(secretmem, refuses refuses, SECRETMEM, "memory of memfd_secret"),
    kind!(guard, refuses refuses, GUARD, "memory with a guard page in it"),
    kind!(hole, refuses refuses, USERP, "memory with a hole in it"),
    kind!(anon_then_memfd, takes takes, contig refuses refuses, FRAME_VEC, "private anonymous memory that goes on in shared memory of a memfd"),
    kind!(memfd_then_anon, takes takes, contig refuses refuses, FRAME_VEC, "shared memory of a memfd that goes on in private anonymous memory"),
    kind!(anon_then_ext4_shared, takes refuses, contig refuses refuses, WRITABLE_FILE, "private anonymous memory that goes on in a shared mapping of a file on ext4"),
    kind!(ext4_shared_then_anon, takes refuses, contig refuses refuses, WRITABLE_FILE, "a shared mapping of a file on ext4 that goes on in private anonymous memory"),
    kind!(anon_then_read_only, takes refuses, contig refuses refuses, FRAME_VECTOR, "private anonymous memory of which the process may only read the end"),
    kind!(anon_then_inaccessible, refuses refuses, FRAME_VECTOR, "private anonymous memory the end of which is PROT_NONE"),
    kind!(one_byte_too_few, refuses refuses, QBUF, "a buffer that is one byte shorter than the image"),
    kind!(no_bytes, refuses refuses, QBUF, "a buffer of no bytes"),
    kind!(anon_in_cma, takes takes, PIN_USER_PAGES, "private anonymous memory in CMA, once it is moved out of there"),
    kind!(memfd_in_cma, takes takes, PIN_USER_PAGES, "shared memory of a memfd in CMA, once it is moved out of there"),
    kind!(anon_in_zone_movable, takes takes, PIN_USER_PAGES, "private anonymous memory in ZONE_MOVABLE, once it is moved out of there"),
    kind!(memfd_in_zone_movable, takes takes, PIN_USER_PAGES, "shared memory of a memfd in ZONE_MOVABLE, once it is moved out of there"),
    kind!(thp_in_zone_movable, takes takes, PIN_USER_PAGES, "part of a transparent huge page in ZONE_MOVABLE, once it is moved out of there"),
    kind!(hugetlb_in_zone_movable, takes takes, PIN_USER_PAGES, "part of a hugetlb page in ZONE_MOVABLE, once it is moved out of there"),
];

/// Five pages of an odd length; less than one for dma-contig.
pub fn image(memop: Memop) -> Image {
    match memop {
        DmaContig => Image::grey(63, 47),
        DmaSg | Vmalloc => Image::grey(157, 121),
    }
}

/// The device reads or writes the memory in place: what it held before, then what the process puts there next.
fn takes(t: &mut Ctx, memop: Memop, queue: Queue, make: Make) -> TestResult {
    let m2m = M2m::copier_on(memop, image(memop))?;
    let mut sample = make(t, image(memop))?;
    m2m.request_for(queue, &sample.area, 1)?;
    let mut other = m2m.own(queue.other())?;
    other.fill(t)?;
    copy(t, &m2m, queue, &sample.area, &other)?;
    if sample.rewrite(t)? || queue == Capture {
        other.refresh(t)?;
        copy(t, &m2m, queue, &sample.area, &other)?;
    }
    sample.judge_backing(t)
}

/// QBUF fails; the memory is neither pinned, nor held, nor touched; and the queue takes other memory in its place.
fn refuses(t: &mut Ctx, memop: Memop, queue: Queue, make: Make) -> TestResult {
    let m2m = M2m::copier_on(memop, image(memop))?;
    let sample = make(t, image(memop))?;
    m2m.request(queue, Memory::Userptr, 1)?;
    let mut buffer = describe(queue, 0, &sample.area);
    buffer.length = sample.claim as u32;
    buffer.bytesused = buffer.bytesused.min(buffer.length);
    let mut errnos = sample.errnos.to_vec();
    if memop == DmaSg && !errnos.contains(&Errno::EINVAL) {
        // That it is one of these whatever the reason was is a test of its own: memop::sg_refuses_with_efault.
        errnos.retain(|errno| !REFUSED.contains(errno));
        errnos.extend(REFUSED);
    }
    let what = format!("QBUF on {queue:?}");
    let patience = Watch::this_thread()?;
    let refused = refuse_by(t, &m2m, &what, &errnos, || {
        unless_it_hangs(patience, &what, || m2m.node.enqueue(buffer))
    })?;
    if !refused {
        use_all_the_same(t, &m2m, queue, &sample.area)?;
    }
    sample.reveal()?;
    sample.area.judge_untouched(t, "the memory")?;
    sample.judge_backing(t)?;

    let mut other = Area::anon(0, image(memop).size())?;
    other.fill(t)?;
    let mut own = m2m.own(queue.other())?;
    own.fill(t)?;
    copy(t, &m2m, queue, &other, &own)
}

/// One copy through the memory's queue and the other one.
fn copy(t: &mut Ctx, m2m: &M2m, queue: Queue, area: &Area, other: &Area) -> TestResult {
    match queue {
        Output => m2m.copy_as_is(t, area, other),
        Capture => m2m.copy_as_is(t, other, area),
    }
}

/// What comes of memory that should not have been taken: the device works with it.
fn use_all_the_same(t: &mut Ctx, m2m: &M2m, queue: Queue, area: &Area) -> TestResult {
    let mut other = m2m.own(queue.other())?;
    other.fill(t)?;
    m2m.queue(t, queue.other(), 0, &other)?;
    m2m.stream_on()?;
    match queue {
        Output => m2m.dequeue_pair(area, &other)?,
        Capture => m2m.dequeue_pair(&other, area)?,
    };
    m2m.stream_off()
}

/// How often the watch looks.
const LOOK: Duration = Duration::from_millis(50);

/// Does what may take for ever: then the test ends here, with a finding, and the kernel ends what is under way if it can.
fn unless_it_hangs<T>(patience: Watch, what: &str, work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    let (ready, begin) = mpsc::channel();
    let what = what.to_owned();
    let watch = thread::spawn(move || {
        // The work may hold the lock on the process's mappings, so what takes memory is done before it begins.
        let eye = Eye::Cpu;
        let text = format!("{what} does not return");
        let last_words = [Progress::Finding(Finding { eye, text }), Progress::Finished];
        let _ = ready.send(());
        while wait.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if patience.is_over() {
                last_words.iter().for_each(tell_from_anywhere);
                // SAFETY: it ends all threads, and so no one sees what they leave behind. (exit(3) would need that lock.)
                unsafe { libc::_exit(1) };
            }
        }
    });
    // Neither side panics.
    let _ = begin.recv();
    let result = work();
    drop(done);
    let _ = watch.join();
    result
}
