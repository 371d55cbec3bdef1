// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who pins how: every system call of the suite that takes user pages, asked the same questions. What a correct kernel answers follows from
//! how long user space keeps the pages: who may keep them for long has to say so, has to move them out of ZONE_MOVABLE, and has to count
//! them for the user.

mod gup_test;
mod iommufd;
mod kvm;
mod pinner;
mod races;
mod rdma;
mod sockets;
mod vfio;
mod vhost;

use self::pinner::Pinner;
use crate::tests::pin::longterm::in_cma;
use crate::tests::sources::{MLOCK, TEE_LONGTERM, WRITABLE_FILE};
use crate::tests::test::{Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::attempt::{Prepared, attempt};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::privilege::limit_locked_memory;
use pinbed_guest::memory::disk::Disk;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::numa;
use pinbed_guest::observe::audit::{Audit, Taking, Watched, list};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::{cma, mm, movable};

/// A test of who takes pages: what is asked of it.
#[rustfmt::skip]
macro_rules! question {
    (is_for_long, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_says_that_it_is_for_long"), |t| says(t, $pinner, $by), $by,
            concat!($who, " pins the page, and says that it is for long (FOLL_LONGTERM, or memfd_pin_folios())."))
    };
    (is_short, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_does_not_say_that_it_is_for_long"), |t| says(t, $pinner, $by), $by,
            concat!($who, " takes the page without FOLL_LONGTERM, which would move it for nothing."))
    };
    (cma, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_leaves_cma"), |t| leaves_cma(t, $pinner), TEE_LONGTERM,
            concat!("The page leaves CMA before ", $who, " has it."))
    };
    (movable, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_leaves_zone_movable"), |t| leaves_zone_movable(t, $pinner), TEE_LONGTERM,
            concat!("The page leaves ZONE_MOVABLE before ", $who, " has it."))
    };
    (file, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_refuses_a_file"), |t| refuses_a_file(t, $pinner), WRITABLE_FILE,
            concat!($who, " refuses a page of a shared mapping of a file on ext4, which it would write behind the file system's back."))
    };
    (limit, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_is_limited"), |t| is_limited(t, $pinner), MLOCK,
            concat!("A process without privileges that may lock no memory (RLIMIT_MEMLOCK) gets no page pinned by ", $who, "."))
    };
    (user, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_is_limited_for_the_user"), |t| is_limited_for_the_user(t, $pinner), MLOCK,
            concat!("Once a process has what RLIMIT_MEMLOCK lets it lock pinned by ", $who, ", a child of its gets no more."))
    };
    (users, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_leaves_other_users_their_limit"), |t| leaves_other_users_their_limit(t, $pinner), MLOCK,
            concat!("What a user has pinned by ", $who, " does not count against another user's RLIMIT_MEMLOCK."))
    };
    (report, $name:ident, $pinner:expr, $who:literal, $by:literal) => {
        test(concat!("pinners::", stringify!($name), "_is_reported"), |t| is_reported(t, $pinner), MLOCK,
            concat!("What ", $who, " pins is in VmPin or VmLck of the process's /proc/PID/status."))
    };
}

macro_rules! questions {
    ($name:ident, $pinner:expr, $who:literal, $by:literal, $($question:ident)*) => {
        &[$(question!($question, $name, $pinner, $who, $by)),*]
    };
}

/// One that keeps pages for as long as user space likes.
macro_rules! long {
    ($($who:tt)*) => { questions!($($who)*, is_for_long cma movable file limit user users report) };
}

/// As `long`, of a memfd's pages only, which no other file's can be.
macro_rules! long_of_memfds {
    ($($who:tt)*) => { questions!($($who)*, is_for_long movable limit user users report) };
}

/// As `long`, of one whose device only one process can have, so that the user is not asked for.
macro_rules! long_of_a_process {
    ($($who:tt)*) => { questions!($($who)*, is_for_long cma movable file limit report) };
}

/// As `long`, of one that only root can use, and which counts for nobody.
macro_rules! long_of_tests {
    ($($who:tt)*) => { questions!($($who)*, is_for_long cma movable file) };
}

/// One that lets go before the system call returns, or that keeps pages without a pin.
macro_rules! short {
    ($($who:tt)*) => { questions!($($who)*, is_short) };
}

/// What to do about a kernel without this symbol.
fn remedy(symbol: &str) -> String {
    format!("build the kernel with {symbol}, as the fragment pinners does")
}

/// The kernel has no such thing, for want of this symbol.
fn absent(what: &str, symbol: &str) -> Error {
    Error::Absent {
        what: what.into(),
        remedy: remedy(symbol),
    }
}

#[rustfmt::skip]
pub const TESTS: &[&[Test]] = &[
    long!(vb2_sg, Pinner::VB2_SG, "QBUF of USERPTR on vb2-dma-sg", "pin_user_pages_locked(), since 5.12 pin_user_pages_fast()"),
    long!(vb2_contig, Pinner::VB2_CONTIG, "QBUF of USERPTR on vb2-dma-contig", "pin_user_pages_locked(), since 5.12 pin_user_pages_fast()"),
    long!(vb2_vmalloc, Pinner::VB2_VMALLOC, "QBUF of USERPTR on vb2-vmalloc", "pin_user_pages_locked(), since 5.12 pin_user_pages_fast()"),
    long!(tee, Pinner::TEE, "TEE_IOC_SHM_REGISTER", "pin_user_pages_fast()"),
    long_of_memfds!(udmabuf, Pinner::Udmabuf, "UDMABUF_CREATE", "memfd_pin_folios(), since 6.11; before, shmem_read_mapping_page(), which pins nothing"),
    long!(io_uring, Pinner::IO_URING, "IORING_REGISTER_BUFFERS", "pin_user_pages(), later pin_user_pages_fast()"),
    long!(xdp, Pinner::Xdp, "XDP_UMEM_REG of AF_XDP", "pin_user_pages()"),
    long!(rdma, Pinner::Rdma, "REG_MR of RDMA (rxe)", "pin_user_pages(), later pin_user_pages_fast()"),
    long!(iommufd, Pinner::Iommufd, "IOMMU_IOAS_MAP of iommufd", "pin_user_pages_fast(), pin_user_pages_remote()"),
    long_of_a_process!(vfio, Pinner::Vfio, "VFIO_IOMMU_MAP_DMA", "pin_user_pages_remote()"),
    long_of_tests!(gup_test, Pinner::GupTest(false), "PIN_LONGTERM_TEST_START of gup_test", "pin_user_pages()"),
    long_of_tests!(gup_test_fast, Pinner::GupTest(true), "PIN_LONGTERM_TEST_START of gup_test, fast,", "pin_user_pages_fast()"),
    short!(direct_read, Pinner::DIRECT_READ, "read(2) with O_DIRECT", "get_user_pages_fast(), later pin_user_pages_fast()"),
    short!(direct_write, Pinner::DIRECT_WRITE, "write(2) with O_DIRECT", "get_user_pages_fast(), later pin_user_pages_fast()"),
    short!(vmsplice, Pinner::VMSPLICE, "vmsplice(2)", "get_user_pages_fast()"),
    short!(process_vm_readv, Pinner::PROCESS_READ, "process_vm_readv(2)", "pin_user_pages_remote()"),
    short!(process_vm_writev, Pinner::PROCESS_WRITE, "process_vm_writev(2)", "pin_user_pages_remote()"),
    short!(proc_mem, Pinner::ProcMem, "write(2) to /proc/PID/mem", "get_user_pages_remote()"),
    short!(zerocopy, Pinner::ZeroCopy, "send(2) with MSG_ZEROCOPY", "get_user_pages_fast()"),
    short!(vhost, Pinner::VhostLog, "vhost, for its log of dirty memory,", "pin_user_pages_fast()"),
    short!(kvm, Pinner::Kvm, "KVM, for a guest's page fault,", "get_user_pages_fast_only()"),
    short!(futex, Pinner::Futex, "FUTEX_WAIT on shared memory", "get_user_pages_fast()"),
    &[test("pinners::userfaultfd_copy_takes_no_page", copies, "man 2 UFFDIO_COPY",
        "UFFDIO_COPY copies the page, and neither pins it nor keeps a reference.")],
    races::TESTS,
];

/// `by` names the functions that take the pages, on all kernels.
fn says(t: &mut Ctx, pinner: Pinner, by: &str) -> TestResult {
    let memory = pinner.memory()?;
    memory.write(0, &t.random(PAGE));
    let mut taker = pinner.ready(t, &memory)?;
    let accounts = match pinner.is_long() {
        true => Some(Audit::of(Watched::Accountants)?),
        false => None,
    };
    let audit = Audit::begin()?;
    let taken = taker.take(memory.address());
    let takings = audit.end()?;
    taken.map_err(Error::call("taking the page"))?;
    if let Some(accounts) = accounts {
        drop(taker);
        note_accounts(t, &accounts.end()?, takings.last());
    }
    let of_page: Vec<_> = takings
        .iter()
        .filter(|taking| taking.includes(memory.address()))
        .collect();
    for taking in &of_page {
        t.note(taking.to_string());
    }
    if pinner.is_long() {
        let pins = of_page
            .iter()
            .any(|taking| taking.function.contains("pin_"));
        t.check(Eye::Placement, pins, || {
            format!("nothing pins the page; taken meanwhile: {}", list(&takings))
        });
    } else {
        t.check(Eye::Placement, !of_page.is_empty(), || {
            format!(
                "nothing takes the page; taken meanwhile: {}",
                list(&takings)
            )
        });
    }
    for taking in of_page {
        t.check(Eye::Placement, by.contains(&taking.function), || {
            format!("{}() takes the page, which is not {by}", taking.function)
        });
        let (is, should) = (taking.is_long_term()?, pinner.is_long());
        t.check(Eye::Placement, is == should, || match should {
            true => format!("{}() is asked without FOLL_LONGTERM", taking.function),
            false => format!("{}() is asked with FOLL_LONGTERM", taking.function),
        });
    }
    Ok(())
}

fn copies(t: &mut Ctx) -> TestResult {
    let pinner = Pinner::UserfaultCopy;
    let memory = pinner.memory()?;
    let bytes = t.random(PAGE);
    memory.write(0, &bytes);
    let mut taker = pinner.ready(t, &memory)?;
    let audit = Audit::begin()?;
    let copied = taker.take(memory.address());
    let takings = audit.end()?;
    copied.map_err(Error::call("UFFDIO_COPY"))?;
    let takes = takings
        .iter()
        .any(|taking| taking.includes(memory.address()));
    t.check(Eye::Placement, !takes, || {
        format!("the page is taken: {}", list(&takings))
    });
    let copy = taker.seen()?;
    t.equal(
        Eye::Cpu,
        "the copy's CRC32C",
        copy,
        Some(crc32c::crc32c(&bytes)),
    );
    Ok(())
}

/// Notes who counts the page, and when it is let go after it was taken.
fn note_accounts(t: &mut Ctx, calls: &[Taking], taken: Option<&Taking>) {
    for call in calls {
        let after = taken.map_or(0, |taken| call.at.saturating_sub(taken.at));
        t.note(format!(
            "{}() {after} us after the page was asked for",
            call.function
        ));
    }
}

fn leaves_cma(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let mut taker = pinner.ready(t, &pinner.memory()?)?;
    // Pages that an earlier test freed are on lists of the CPUs, where they do not count as free, and are given out before those in CMA. To
    // allocate in CMA empties these lists.
    drop(cma::largest()?.take(1)?);
    let memory = in_cma(t)?.0.mapping;
    let page = memory.read(0..PAGE);
    let in_cma = movable::count_in(memory.address(), PAGE)?;
    premise(in_cma == 1, || "the page is in CMA".into())?;
    taker
        .take(memory.address())
        .map_err(Error::call("taking the page"))?;
    let after = movable::count_in(memory.address(), PAGE)?;
    t.equal(Eye::Placement, "pages in CMA or ZONE_MOVABLE", after, 0);
    t.same_bytes(Eye::Cpu, "the memory", &memory.read(0..PAGE), &page);
    Ok(())
}

fn refuses_a_file(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let mut taker = pinner.ready(t, &pinner.memory()?)?;
    let file = Disk::ext4()?.file(PAGE)?;
    let memory = Mapping::shared(file, PAGE, READ_WRITE)?;
    memory.write(0, &t.random(PAGE));
    t.refused(
        "a page of a file that is mapped shared",
        taker.take(memory.address()),
        pinner.refusals_of_files(),
    );
    Ok(())
}

fn is_reported(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let memory = pinner.memory()?;
    memory.write(0, &[1; PAGE]);
    limit_locked_memory(ROOM)?;
    let mut taker = pinner.ready_as_nobody(t, &memory)?;
    let before = mm::charges()?;
    let taken = taker.take(memory.address());
    let after = mm::charges()?;
    taken.map_err(Error::call("taking the page"))?;
    let (pinned, locked) = (after.pinned - before.pinned, after.locked - before.locked);
    t.note(format!("VmPin grew by {pinned} KiB, VmLck by {locked} KiB"));
    let of_page = PAGE as i64 / 1024;
    t.equal(
        Eye::Cpu,
        "KiB in VmPin and VmLck for a page",
        pinned + locked,
        of_page,
    );
    Ok(())
}

fn leaves_zone_movable(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let memory = pinner.memory()?;
    let bytes = t.random(PAGE);
    numa::fill_in_movable(&memory, &bytes)?;
    let mut taker = pinner.ready(t, &memory)?;
    taker
        .take(memory.address())
        .map_err(Error::call("taking the page"))?;
    // A page of a file is in the page tables only once it was touched.
    t.same_bytes(Eye::Cpu, "the memory", &memory.read(0..PAGE), &bytes);
    let after = movable::count_in(memory.address(), PAGE)?;
    t.equal(Eye::Placement, "pages in CMA or ZONE_MOVABLE", after, 0);
    Ok(())
}

/// What a ring of io_uring takes by itself before 5.12, and more.
const ROOM: usize = 64 * PAGE;

fn is_limited(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let memory = pinner.memory()?;
    memory.write(0, &[1; PAGE]);
    limit_locked_memory(ROOM)?;
    let mut taker = pinner.ready_as_nobody(t, &memory)?;
    limit_locked_memory(0)?;
    t.refused(
        "a page pinned where none may be",
        taker.take(memory.address()),
        pinner.refusals(),
    );
    Ok(())
}

fn is_limited_for_the_user(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let memory = pinner.memory()?;
    memory.write(0, &[1; PAGE]);
    limit_locked_memory(ROOM)?;
    let mut second = pinner.ready(t, &memory)?;
    let mut first = pinner.ready_as_nobody(t, &memory)?;
    if pinner.counts_for_its_maker() {
        second = pinner.ready(t, &memory)?;
    }
    first
        .take(memory.address())
        .map_err(Error::call("taking the page"))?;
    // What is counted for a process is counted from nothing in its child.
    let again = attempt(|| {
        limit_locked_memory(PAGE).map_err(|_| Errno::EIO)?;
        second.take(memory.address())
    })?;
    let again = again.returned("pinning in a child")?;
    t.refused("a second page pinned in a child", again, pinner.refusals());
    Ok(())
}

/// A user without privileges who has nothing pinned. So are the users below, who show how much a user needs.
const OTHER: libc::uid_t = 60_000;

fn leaves_other_users_their_limit(t: &mut Ctx, pinner: Pinner) -> TestResult {
    let memory = pinner.memory()?;
    memory.write(0, &[1; PAGE]);
    // A kernel without it is told here.
    drop(pinner.ready(t, &memory)?);
    let pin_as = |t: &mut Ctx, user, limit| -> Result<(), Errno> {
        limit_locked_memory(limit).map_err(|_| Errno::EIO)?;
        let taker = pinner.ready_as(user, t, &memory);
        taker.map_err(|_| Errno::EIO)?.take(memory.address())
    };
    // A ring of io_uring counts, too, before 5.12.
    let mut least = None;
    for pages in 1..=ROOM / PAGE {
        let limit = pages * PAGE;
        let alone = attempt(|| pin_as(t, OTHER - pages as libc::uid_t, limit))?;
        if alone.returned("pinning by a user")?.is_ok() {
            least = Some(limit);
            break;
        }
    }
    let limit = least.ok_or_else(|| {
        let text = format!("no page pinned by a user who may lock {ROOM} bytes");
        Stop::finding(Eye::Cpu, text)
    })?;
    let other = Prepared::new(|| pin_as(t, OTHER, limit))?;
    limit_locked_memory(ROOM)?;
    let mut first = pinner.ready_as_nobody(t, &memory)?;
    first
        .take(memory.address())
        .map_err(Error::call("taking the page"))?;
    let pinned = other.make()?.returned("pinning by another user")?;
    if let Err(errno) = pinned {
        t.find(Eye::Cpu, format!("a page pinned by another user, within that user's limit of {limit} bytes: refused with {errno:?}"));
    }
    Ok(())
}
