// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registering memory with the TEE: ranges that can be had, to the byte, and ranges that cannot, of which nothing stays behind.

use super::stage::{close, judge_checksum, judge_placement, register, registered};
use crate::tests::sources::{MLOCK, PARTIAL_PIN, TEE_ID, TEE_LENGTH, TEE_MMAP, TEE_SHM, TEE_UAPI};
use crate::tests::test::{REFUSED, Test, test};
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::tee::*;
use pinbed_guest::harness::attempt::{Attempt, attempt};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::{
    Allocation, NONE, Registration, Session, Tee, VALUE_OUT, request, value_in,
};
use zerocopy::IntoBytes;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_memory::every_start_and_length_is_exact", every_start_and_length_is_exact, TEE_SHM,
        "Memory is shared to the byte wherever in a page it starts and ends: the application sees all of it, and writes nothing around it."),
    test("tee_memory::a_megabyte_is_shared", a_megabyte_is_shared, TEE_SHM,
        "The device holds all pages of a large registration where the process has them, and each can be written."),
    test("tee_memory::ranges_may_overlap", ranges_may_overlap, TEE_SHM,
        "The same pages can be registered several times, in part; each registration pins them and sees what was written through another."),
    test("tee_memory::no_length_is_refused", no_length_is_refused, TEE_LENGTH,
        "Registering no bytes in the middle of a page is refused, and leaves nothing behind."),
    test("tee_memory::length_that_wraps_around_is_refused", length_that_wraps_around_is_refused, TEE_LENGTH,
        "A length that goes past the end of the address space or wraps around it is refused, and leaves nothing behind."),
    test("tee_memory::huge_length_is_refused_quietly", huge_length_is_refused_quietly, TEE_LENGTH,
        "A length of gigabytes where the process has no memory is refused without a complaint of the kernel's."),
    test("tee_memory::length_of_too_many_pages_is_refused", length_of_too_many_pages_is_refused, TEE_LENGTH,
        "A length whose number of pages does not fit in 32 bits is refused, and not taken for its remainder."),
    test("tee_memory::wild_address_is_refused", wild_address_is_refused, TEE_SHM,
        "NULL, unmapped, non-canonical and kernel addresses are refused with EFAULT, and leave nothing behind."),
    test("tee_memory::partly_pinned_memory_is_released", partly_pinned_memory_is_released, PARTIAL_PIN,
        "Memory with a hole behind it is refused, and every page that was pinned before the hole is unpinned."),
    test("tee_memory::unaligned_partly_pinned_memory_is_released", unaligned_partly_pinned_memory_is_released, PARTIAL_PIN,
        "The same where the memory does not start on a page."),
    test("tee_memory::allocation_of_too_much_is_refused_quietly", allocation_of_too_much_is_refused_quietly, TEE_UAPI,
        "Allocating more than there can be is refused without a complaint of the kernel's."),
    test("tee_memory::full_descriptor_table_leaves_nothing", full_descriptor_table_leaves_nothing, TEE_SHM,
        "Where no descriptor is free, registering and allocating fail with EMFILE and leave nothing behind."),
    test("tee_memory::unwritable_argument_leaves_nothing", unwritable_argument_leaves_nothing, TEE_UAPI,
        "Where the answer cannot be written, registering and allocating fail with EFAULT and leave nothing behind."),
    test("tee_memory::unknown_flags_are_refused", unknown_flags_are_refused, TEE_UAPI,
        "Registering and allocating with flags that nobody knows are refused."),
    test("tee_memory::registered_memory_cannot_be_mapped", registered_memory_cannot_be_mapped, TEE_SHM,
        "The descriptor of registered memory cannot be mapped; that of allocated memory can, but not past its end."),
    test("tee_memory::mapping_begins_where_it_is_asked_to", mapping_begins_where_it_is_asked_to, TEE_MMAP,
        "A mapping of allocated memory from its second page on shows the second page."),
    test("tee_memory::memory_is_its_clients_own", memory_is_its_clients_own, TEE_UAPI,
        "A call with memory of another client's, of none, or that was closed is refused with EINVAL."),
    test("tee_memory::name_is_read_in_full", name_is_read_in_full, TEE_ID,
        "A memref that names memory by a number of 64 bits whose lower half is a good name is refused with EINVAL."),
    test("tee_memory::privilege_lifts_the_limit", privilege_lifts_the_limit, MLOCK,
        "A process with CAP_IPC_LOCK may register more memory than RLIMIT_MEMLOCK lets others lock."),
    test("tee_memory::limit_is_for_what_is_registered_now", limit_is_for_what_is_registered_now, MLOCK,
        "What a process without privileges registers within RLIMIT_MEMLOCK it may register again and again, as long as it closes it."),
    test("tee_memory::limit_is_for_the_user", limit_is_for_the_user, MLOCK,
        "Once a process without privileges has registered what RLIMIT_MEMLOCK lets it lock, a child of its cannot register as much again."),
];

/// Tests that a kernel may not survive whole: they come last.
#[rustfmt::skip]
pub const LAST: &[Test] = &[
    test("tee_memory::no_length_at_a_page_start_is_refused", no_length_at_a_page_start_is_refused, TEE_LENGTH,
        "Registering no bytes at the start of a page is refused, and leaves nothing behind."),
];

/// What is neither pinned, held nor named any more once an attempt has failed.
struct Clean<'a> {
    tee: &'a Tee,
    device: Device,
    area: Area,
    pins: i64,
    held: usize,
    id: i32,
}

impl<'a> Clean<'a> {
    fn look(t: &mut Ctx, tee: &'a Tee) -> TestResult<Self> {
        let (area, shm) = registered(t, tee)?;
        let id = shm.id();
        drop(shm);
        let device = Device::open()?;
        Ok(Self {
            tee,
            pins: vmstat::pinned_pages()?,
            held: device.list()?.len(),
            device,
            area,
            id,
        })
    }

    /// An attempt is refused and leaves nothing.
    fn refuse<T: std::fmt::Debug>(
        &self,
        t: &mut Ctx,
        what: &str,
        errnos: &[Errno],
        attempt: impl FnOnce(&Tee) -> Result<T, Errno>,
    ) -> TestResult {
        t.refused(what, attempt(self.tee), errnos);
        self.judge(t, what)
    }

    fn refuse_range(
        &self,
        t: &mut Ctx,
        what: &str,
        address: usize,
        length: usize,
        errnos: &[Errno],
    ) -> TestResult {
        self.refuse(t, &format!("registering {what}"), errnos, |tee| {
            tee.register(address, length).map(|shm| shm.size)
        })
    }

    fn judge(&self, t: &mut Ctx, what: &str) -> TestResult {
        let (pins, held) = (vmstat::pinned_pages()?, self.device.list()?.len());
        t.equal(
            Eye::Aftermath,
            &format!("pages pinned after {what}"),
            pins - self.pins,
            0,
        );
        t.equal(
            Eye::Device,
            &format!("buffers that the device holds after {what}"),
            held,
            self.held,
        );
        // The kernel gives out the smallest number that is free.
        let again = register(self.tee, &self.area)?;
        t.equal(
            Eye::Cpu,
            &format!("the name of the next memory after {what}"),
            again.id(),
            self.id,
        );
        Ok(())
    }

    /// The device still serves this client.
    fn finish(self, t: &mut Ctx) -> TestResult {
        let session = self.tee.session(pin::UUID)?;
        let shm = register(self.tee, &self.area)?;
        judge_checksum(t, self.tee, session, &shm, self.area.written())?;
        drop(shm);
        close(self.tee, session)
    }
}

fn fill(tee: &Tee, session: Session, memref: Param, pattern: u64) -> TestResult {
    let params = [memref, value_in(pattern, 0), NONE, NONE];
    tee.invoke(session, pin::FILL, params)?.ok("FILL")?;
    Ok(())
}

fn every_start_and_length_is_exact(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    for start in [0, 1, PAGE - 8, PAGE - 1] {
        for length in [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE] {
            let mut area = Area::anon(start, length)?;
            area.fill(t)?;
            let shm = register(&tee, &area)?;
            t.equal(Eye::Cpu, "the registered size", shm.size, length as u64);
            judge_placement(t, &device, &area)?;
            judge_checksum(t, &tee, session, &shm, area.written())?;
            fill(&tee, session, shm.all(PARAM_MEMREF_OUTPUT), 0x5a5a_5a5a)?;
            let what = format!("{length} bytes at {start} after FILL");
            area.judge(t, &what, &vec![0x5a; length])?;
        }
    }
    Ok(())
}

fn a_megabyte_is_shared(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let mut area = Area::anon(24, 1 << 20)?;
    area.fill(t)?;
    let shm = register(&tee, &area)?;
    judge_placement(t, &device, &area)?;
    judge_checksum(t, &tee, session, &shm, area.written())?;
    fill(&tee, session, shm.all(PARAM_MEMREF_OUTPUT), 0)?;
    Ok(area.judge(t, "the megabyte after FILL", &vec![0; area.len()])?)
}

fn ranges_may_overlap(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let mut area = Area::anon(0, 4 * PAGE)?;
    area.fill(t)?;
    let pins = vmstat::pinned_pages()?;
    let whole = register(&tee, &area)?;
    let part = tee.register(area.address() + PAGE + 100, PAGE);
    let part = part.map_err(Error::call("registering a part of registered memory"))?;
    t.equal(
        Eye::Aftermath,
        "pages pinned by both",
        vmstat::pinned_pages()? - pins,
        4 + 2,
    );
    fill(&tee, session, part.all(PARAM_MEMREF_OUTPUT), 0x3c3c_3c3c)?;
    let mut expected = area.written().to_vec();
    expected[PAGE + 100..2 * PAGE + 100].fill(0x3c);
    area.judge(t, "the memory after FILL of the part", &expected)?;
    judge_checksum(t, &tee, session, &whole, &expected)?;
    drop(whole);
    t.equal(
        Eye::Aftermath,
        "pages pinned by the part",
        vmstat::pinned_pages()? - pins,
        2,
    );
    let left = &expected[PAGE + 100..2 * PAGE + 100];
    judge_checksum(t, &tee, session, &part, left)
}

/// How registering no bytes may fail.
const NO_BYTES: &[Errno] = &[Errno::EINVAL, Errno::ENOMEM, Errno::EFAULT];

fn no_length_is_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let memory = Mapping::anon(2 * PAGE)?;
    memory.write(0, &[1]);
    let address = memory.address();
    for (what, start) in [
        ("no bytes in the middle of a page", address + 123),
        (
            "no bytes of a page that was never touched",
            address + PAGE + 1,
        ),
        ("no bytes of no page", 8),
    ] {
        clean.refuse_range(t, what, start, 0, NO_BYTES)?;
    }
    clean.finish(t)
}

fn no_length_at_a_page_start_is_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let memory = Mapping::anon(2 * PAGE)?;
    memory.write(0, &[1]);
    for (what, start) in [
        ("no bytes at the start of a page", memory.address()),
        (
            "no bytes of a page that was never touched",
            memory.address() + PAGE,
        ),
        ("no bytes at NULL", 0),
    ] {
        clean.refuse_range(t, what, start, 0, NO_BYTES)?;
    }
    clean.finish(t)
}

fn length_that_wraps_around_is_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let mut area = Area::anon(100, PAGE)?;
    area.fill(t)?;
    let address = area.address();
    for length in [
        usize::MAX,
        usize::MAX - PAGE + 1,
        usize::MAX - address,
        // One byte more, and the end is address 0, or a page behind it.
        usize::MAX - address + 1,
        usize::MAX - address + 1 + PAGE,
        1 << 63,
        1 << 62,
    ] {
        let what = format!("{length:#x} bytes of memory");
        clean.refuse_range(t, &what, address, length, &[Errno::EFAULT, Errno::EINVAL])?;
    }
    area.judge_untouched(t, "the memory")?;
    clean.finish(t)
}

fn huge_length_is_refused_quietly(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let mut area = Area::anon(0, PAGE)?;
    area.fill(t)?;
    for length in [4 << 30, 1 << 40] {
        let what = format!("{length:#x} bytes of which there is a page");
        let errnos = &[Errno::EFAULT, Errno::ENOMEM, Errno::EINVAL];
        clean.refuse_range(t, &what, area.address(), length, errnos)?;
    }
    clean.finish(t)
}

fn length_of_too_many_pages_is_refused(t: &mut Ctx) -> TestResult {
    const PAGES_IN_32_BITS: usize = (1 << 32) * PAGE;
    /// So low that so much more is still in the user's half of the addresses.
    const LOW: usize = 1 << 36;
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let mut area = Area::user(Mapping::anon_at(LOW, 2 * PAGE)?, 0..2 * PAGE);
    area.fill(t)?;
    let (address, length) = (area.address(), PAGES_IN_32_BITS + area.len());
    let errnos = &[Errno::EFAULT, Errno::ENOMEM];
    clean.refuse_range(t, "2 pages and 2^32 more", address, length, errnos)?;
    clean.finish(t)
}

fn wild_address_is_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let unmapped = Mapping::anon(PAGE)?.address();
    for (what, address) in [
        ("a page at NULL", 0),
        ("a page that is mapped no more", unmapped),
        ("the last page of the user's half", 0x7fff_ffff_f000),
        ("a page at a non-canonical address", 0x8000_0000_0000),
        ("a page of the kernel's direct map", 0xffff_8880_0010_0000),
        ("a page of the kernel's code", 0xffff_ffff_8100_0000),
        ("the last page of all", 0usize.wrapping_sub(PAGE)),
    ] {
        clean.refuse_range(t, what, address, PAGE, &[Errno::EFAULT])?;
    }
    clean.finish(t)
}

/// Registers memory that begins `start` bytes into its first page and goes on over a hole behind `pages`.
fn over_a_hole(t: &mut Ctx, clean: &Clean, start: usize, pages: usize) -> TestResult {
    let (memory, behind) = Mapping::anon((pages + 2) * PAGE)?.split(pages * PAGE);
    drop(behind);
    memory.write(0, &vec![1; memory.len()]);
    let what = format!("{pages} pages from byte {start} on, and a hole");
    let (address, length) = (memory.address() + start, (pages + 1) * PAGE - start);
    clean.refuse_range(t, &what, address, length, REFUSED)
}

fn partly_pinned_memory_is_released(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    for pages in [1, 2, 5] {
        over_a_hole(t, &clean, 0, pages)?;
    }
    clean.finish(t)
}

fn unaligned_partly_pinned_memory_is_released(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    for (start, pages) in [(123, 1), (PAGE - 1, 3)] {
        over_a_hole(t, &clean, start, pages)?;
    }
    clean.finish(t)
}

fn allocation_of_too_much_is_refused_quietly(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    for size in [1 << 30, 1 << 40, 1 << 44, usize::MAX - PAGE + 1, usize::MAX] {
        let errnos = &[Errno::ENOMEM, Errno::EINVAL];
        clean.refuse(t, &format!("allocating {size:#x} bytes"), errnos, |tee| {
            tee.allocate(size).map(|shm| shm.size)
        })?;
    }
    clean.finish(t)
}

fn full_descriptor_table_leaves_nothing(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let memory = Mapping::anon(PAGE)?;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the argument is a struct that the call fills.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    Errno::result(got).map_err(Error::call("getrlimit of RLIMIT_NOFILE"))?;
    let set = |current| {
        let limit = libc::rlimit {
            rlim_cur: current,
            ..limit
        };
        // SAFETY: the argument is a struct that the call reads.
        Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
            .map_err(Error::call("setrlimit of RLIMIT_NOFILE"))
    };
    // Descriptors that are open stay so.
    set(0)?;
    let register = tee.register(memory.address(), PAGE).map(|shm| shm.size);
    let allocate = tee.allocate(PAGE).map(|shm| shm.size);
    set(limit.rlim_cur)?;
    t.refused(
        "registering with no descriptor free",
        register,
        &[Errno::EMFILE],
    );
    t.refused(
        "allocating with no descriptor free",
        allocate,
        &[Errno::EMFILE],
    );
    clean.judge(t, "the attempts with no descriptor free")?;
    clean.finish(t)
}

/// A struct in memory of its own, behind which nothing else is.
fn lone(bytes: &[u8]) -> TestResult<Mapping> {
    let mapping = Mapping::anon(bytes.len())?;
    mapping.write(0, bytes);
    Ok(mapping)
}

fn unwritable_argument_leaves_nothing(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let memory = Mapping::anon(3 * PAGE)?;
    let registration = Registration {
        address: memory.address() as u64,
        length: memory.len() as u64,
        ..Default::default()
    };
    let allocation = Allocation {
        size: PAGE as u64,
        ..Default::default()
    };
    for (what, request, argument) in [
        (
            "registering",
            request::SHM_REGISTER,
            lone(registration.as_bytes())?,
        ),
        (
            "allocating",
            request::SHM_ALLOC,
            lone(allocation.as_bytes())?,
        ),
    ] {
        let address = argument.address();
        argument.protect(0..PAGE, ProtFlags::PROT_READ)?;
        let what_ro = format!("{what} with a read-only argument");
        clean.refuse(t, &what_ro, &[Errno::EFAULT], |tee| {
            tee.raw(request, address)
        })?;
        argument.protect(0..PAGE, ProtFlags::PROT_NONE)?;
        let what_none = format!("{what} with an unreadable argument");
        clean.refuse(t, &what_none, &[Errno::EFAULT], |tee| {
            tee.raw(request, address)
        })?;
    }
    clean.finish(t)
}

fn unknown_flags_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let clean = Clean::look(t, &tee)?;
    let memory = Mapping::anon(PAGE)?;
    for flags in [1, 4, 1 << 31] {
        let registration = Registration {
            address: memory.address() as u64,
            length: PAGE as u64,
            flags,
            ..Default::default()
        };
        let allocation = Allocation {
            size: PAGE as u64,
            flags,
            ..Default::default()
        };
        for (what, request, argument) in [
            (
                "registering",
                request::SHM_REGISTER,
                lone(registration.as_bytes())?,
            ),
            (
                "allocating",
                request::SHM_ALLOC,
                lone(allocation.as_bytes())?,
            ),
        ] {
            let what = format!("{what} with flags {flags:#x}");
            let address = argument.address();
            clean.refuse(t, &what, &[Errno::EINVAL], |tee| tee.raw(request, address))?;
        }
    }
    clean.finish(t)
}

fn registered_memory_cannot_be_mapped(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let (area, shm) = registered(t, &tee)?;
    let errno = |mapped: Result<Mapping, Error>| match mapped {
        Ok(mapping) => Ok(mapping.len()),
        Err(Error::Call { errno, .. }) => Err(errno),
        Err(_) => Err(Errno::UnknownErrno),
    };
    let invalid = &[Errno::EINVAL];
    t.refused(
        "mapping registered memory",
        errno(Mapping::shared(&shm.file, PAGE, READ_WRITE)),
        invalid,
    );
    let allocated = tee.allocate(2 * PAGE);
    let allocated = allocated.map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    t.refused(
        "mapping more than was allocated",
        errno(Mapping::shared(&allocated.file, 3 * PAGE, READ_WRITE)),
        invalid,
    );
    t.refused(
        "mapping what is behind allocated memory",
        errno(Mapping::shared_at(
            &allocated.file,
            2 * PAGE as i64,
            PAGE,
            READ_WRITE,
        )),
        invalid,
    );
    // VM_PFNMAP: nobody can keep its pages from going away.
    let mapping = Mapping::shared(&allocated.file, 2 * PAGE, READ_WRITE)?;
    t.refused(
        "registering the mapping of allocated memory",
        tee.register(mapping.address(), mapping.len())
            .map(|shm| shm.size),
        &[Errno::EFAULT],
    );
    Ok(area.judge_untouched(t, "the registered memory")?)
}

fn mapping_begins_where_it_is_asked_to(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let shm = tee.allocate(2 * PAGE);
    let shm = shm.map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    for (page, pattern) in [(0, 0x1111_1111), (1, 0x2222_2222)] {
        let memref = shm.part(PARAM_MEMREF_OUTPUT, page * PAGE as u64, PAGE as u64);
        fill(&tee, session, memref, pattern)?;
    }
    let second = Mapping::shared_at(&shm.file, PAGE as i64, PAGE, READ_WRITE)?;
    t.same_bytes(
        Eye::Cpu,
        "the second page, mapped alone",
        &second.read(0..PAGE),
        &[0x22; PAGE],
    );
    Ok(())
}

/// A call whose memory is refused.
fn refuse_memref(t: &mut Ctx, what: &str, tee: &Tee, session: Session, memref: Param) {
    let call = tee.try_invoke(session, pin::CHECKSUM, &[memref, VALUE_OUT, NONE, NONE], 0);
    t.refused(what, call, &[Errno::EINVAL]);
}

fn memory_is_its_clients_own(t: &mut Ctx) -> TestResult {
    let (tee, other) = (Tee::open()?, Tee::open()?);
    let session = tee.session(pin::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let (_others, foreign) = registered(t, &other)?;
    let all = PARAM_MEMREF_INPUT;
    refuse_memref(
        t,
        "a call with another client's memory",
        &tee,
        session,
        foreign.all(all),
    );
    let unknown = pinbed_guest::tee::client::value(all, 0, 1, foreign.id() as u64 + 1000);
    refuse_memref(
        t,
        "a call with memory that nobody has",
        &tee,
        session,
        unknown,
    );
    let none = pinbed_guest::tee::client::value(all, 0, 1, 0);
    refuse_memref(t, "a call with memory number 0", &tee, session, none);
    // Together with good memory, which must not be let go of for it.
    let both = [shm.all(all), foreign.all(all), VALUE_OUT, NONE];
    let call = tee.try_invoke(session, pin::DESCRIBE, &both, 0);
    t.refused(
        "a call with good and another client's memory",
        call,
        &[Errno::EINVAL],
    );
    judge_checksum(t, &tee, session, &shm, area.written())?;
    let memref = shm.all(all);
    drop(shm);
    refuse_memref(
        t,
        "a call with memory that was closed",
        &tee,
        session,
        memref,
    );
    Ok(())
}

fn name_is_read_in_full(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (_area, shm) = registered(t, &tee)?;
    let name = shm.id() as u64 + (1 << 32);
    let memref = pinbed_guest::tee::client::value(PARAM_MEMREF_INPUT, 0, 1, name);
    refuse_memref(
        t,
        "a call with memory named by 2^32 more",
        &tee,
        session,
        memref,
    );
    Ok(())
}

/// Bytes to which the tests limit themselves.
pub const LIMIT: usize = 16 * PAGE;

fn privilege_lifts_the_limit(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    limit_locked_memory(LIMIT)?;
    let mut area = Area::anon(0, 4 * LIMIT)?;
    area.fill(t)?;
    // There is a limit to lift.
    let other = attempt(|| {
        become_nobody().map_err(|_| Errno::ENOTRECOVERABLE)?;
        tee.register(area.address(), area.len()).map(drop)
    })?;
    let refused = matches!(other, Attempt::Returned(Err(Errno::ENOMEM | Errno::EPERM)));
    t.check(Eye::Cpu, refused, || {
        format!("registering 4 times RLIMIT_MEMLOCK without privileges: {other}")
    });
    let shm = tee.register(area.address(), area.len()).map_err(|errno| {
        Stop::finding(
            Eye::Cpu,
            format!(
                "a process with CAP_IPC_LOCK cannot register 4 times RLIMIT_MEMLOCK: {errno:?}"
            ),
        )
    })?;
    judge_placement(t, &device, &area)?;
    drop(shm);
    Ok(())
}

fn limit_is_for_what_is_registered_now(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let (memory, behind) = Mapping::anon(LIMIT + PAGE)?.split(LIMIT);
    drop(behind);
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    for round in 0..8 {
        let half = |at| tee.register(memory.address() + at, LIMIT / 2);
        for registered in [half(0).map(drop), half(LIMIT / 2).map(drop)] {
            t.check(Eye::Cpu, registered.is_ok(), || {
                format!("registering half of the limit in round {round}: {registered:?}")
            });
        }
        let first = half(0).map_err(Error::call("registering half of the limit"))?;
        t.refused(
            "registering all of the limit beside half of it",
            tee.register(memory.address(), LIMIT).map(|shm| shm.size),
            &[Errno::ENOMEM, Errno::EPERM],
        );
        drop(first);
        // A refused attempt must not count either.
        t.refused(
            "registering memory with a hole behind it",
            tee.register(memory.address(), LIMIT + 1)
                .map(|shm| shm.size),
            REFUSED,
        );
    }
    Ok(())
}

fn limit_is_for_the_user(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let memory = Mapping::anon(LIMIT)?;
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    let register = || tee.register(memory.address(), LIMIT);
    let first = register().map_err(Error::call("registering the limit"))?;
    // What is counted for a process is counted from nothing in its child.
    let second = attempt(|| register().map(drop))?.returned("registering in a child")?;
    t.refused(
        "registering the limit again in a child",
        second,
        &[Errno::ENOMEM, Errno::EPERM],
    );
    drop(first);
    Ok(())
}
