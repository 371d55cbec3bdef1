// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the process does to its address space while a trusted application holds on to registered memory: process and application keep
//! looking at the same bytes, or the application keeps the old ones.

use super::stage::{LENGTH, call_begins, judge_placement, register, registered};
use crate::tests::lifecycle::hold::fork_viewer;
use crate::tests::lifecycle::poison::{HARD, heal, poison};
use crate::tests::pin::dirty::evict;
use crate::tests::sources::{EARLY_COW, PIN_USER_PAGES, PROTECT_PINNED, TEE_SHM};
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::sys::mman::{MmapAdvise, ProtFlags};
use nix::unistd::ftruncate;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::tee::*;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::memory::reuse::Control;
use pinbed_guest::memory::swap::Swap;
use pinbed_guest::module;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::{NONE, Session, Shm, Tee, VALUE_OUT, value_in};
use std::time::{Duration, Instant};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_hold::munmap_leaves_the_application_its_bytes", munmap_leaves_the_application_its_bytes, PIN_USER_PAGES,
        "After munmap the application still reads and writes the bytes that were registered, and nobody else gets their pages."),
    test("tee_hold::madv_dontneed_parts_process_and_application", madv_dontneed_parts_process_and_application, PIN_USER_PAGES,
        "After MADV_DONTNEED the application has the old bytes, the process new pages, and neither sees what the other writes."),
    test("tee_hold::truncation_leaves_the_application_its_bytes", truncation_leaves_the_application_its_bytes, PIN_USER_PAGES,
        "After a memfd is truncated and grown again the application has the old bytes, and the file zeros."),
    test("tee_hold::mremap_moves_no_page", mremap_moves_no_page, PIN_USER_PAGES,
        "After mremap the pages at the new address are those that the application reads and writes."),
    test("tee_hold::madv_pageout_moves_no_page", madv_pageout_moves_no_page, PIN_USER_PAGES,
        "MADV_PAGEOUT swaps other pages out, and leaves registered pages where they are."),
    test("tee_hold::mprotect_and_back_moves_no_page", mprotect_and_back_moves_no_page, PROTECT_PINNED,
        "What the process writes to registered memory that was read-only for a while, the application reads."),
    test("tee_hold::application_writes_what_became_read_only", application_writes_what_became_read_only, PIN_USER_PAGES,
        "What the application writes to memory that the process has made read-only for itself, the process reads."),
    test("tee_hold::fork_child_writes_its_own_copy", fork_child_writes_its_own_copy, EARLY_COW,
        "What a forked child writes is seen neither by its parent nor by the application."),
    test("tee_hold::fork_parent_keeps_the_registered_page", fork_parent_keeps_the_registered_page, EARLY_COW,
        "What the parent writes after fork the application reads, and the child does not see."),
    test("tee_hold::fork_leaves_the_parent_what_the_application_writes", fork_leaves_the_parent_what_the_application_writes, EARLY_COW,
        "What the application writes after fork the parent reads, and the child does not see."),
    test("tee_hold::poisoned_page_stays_the_applications", poisoned_page_stays_the_applications, HARD,
        "After MADV_HWPOISON of a registered page the process gets SIGBUS there, and the application reads the page as it was; after the release nobody uses it."),
    test("tee_hold::last_descriptor_keeps_the_memory", last_descriptor_keeps_the_memory, TEE_SHM,
        "A child that has inherited the memory's descriptor keeps it pinned and held after its parent has closed it, until it ends."),
    Test { timeout_s: 60, ..test("tee_hold::call_that_cannot_be_interrupted_keeps_the_memory", call_that_cannot_be_interrupted_keeps_the_memory, TEE_SHM,
        "A client that is killed in a call that waits uninterruptibly, as OP-TEE's do, stays, and its memory pinned and held, until the call ends.") },
];

/// Memory that a trusted application holds between calls.
pub struct Stage {
    tee: Tee,
    session: Session,
    /// What to write from.
    source: (Area, Shm),
    _shm: Shm,
    held: u64,
}

impl Stage {
    /// Fills the memory, registers it, and gives it to an application.
    fn of(t: &mut Ctx, area: &mut Area) -> TestResult<Self> {
        area.fill(t)?;
        Self::as_it_is(t, area)
    }

    /// Registers the memory, with what is in it, and gives it to an application.
    pub fn as_it_is(t: &mut Ctx, area: &Area) -> TestResult<Self> {
        let tee = Tee::open()?;
        let session = tee.session(pin::UUID)?;
        let source = registered(t, &tee)?;
        let shm = register(&tee, area)?;
        let params = [shm.all(PARAM_MEMREF_INOUT), VALUE_OUT, NONE, NONE];
        let held = tee
            .invoke(session, pin::HOLD, params)?
            .ok("HOLD")?
            .value(1)
            .0;
        Ok(Self {
            tee,
            session,
            source,
            _shm: shm,
            held,
        })
    }

    /// The application reads these bytes.
    fn judge_seen(&self, t: &mut Ctx, when: &str, expected: &[u8]) -> TestResult {
        let all = value_in(0, expected.len() as u64);
        let params = [value_in(self.held, 0), all, VALUE_OUT, NONE];
        let reply = self.tee.invoke(self.session, pin::HELD_CHECKSUM, params)?;
        let seen = reply.ok("HELD_CHECKSUM")?.value(2).0;
        let what = format!("CRC32C in the application {when}");
        t.equal(Eye::Device, &what, seen, crc(expected).into());
        Ok(())
    }

    /// The application writes all of the memory; what, is returned.
    pub fn write(&mut self, t: &mut Ctx) -> TestResult<Vec<u8>> {
        let (source, shm) = &mut self.source;
        source.refresh(t)?;
        let params = [
            value_in(self.held, 0),
            shm.all(PARAM_MEMREF_INPUT),
            NONE,
            NONE,
        ];
        self.tee
            .invoke(self.session, pin::HELD_WRITE, params)?
            .ok("HELD_WRITE")?;
        Ok(source.written().to_vec())
    }
}

/// Memory as long as what the application writes, not aligned.
fn anon() -> Result<Area, Error> {
    Area::anon(100, LENGTH)
}

fn munmap_leaves_the_application_its_bytes(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let data = area.written().to_vec();
    let pins = vmstat::pinned_pages()?;
    cpu::stay()?;
    let control = Control::new()?;
    drop(area);
    let now = vmstat::pinned_pages()?;
    t.equal(Eye::Aftermath, "pinned pages after munmap", now, pins);
    let others = control.reused(t)?;
    stage.judge_seen(t, "after munmap", &data)?;
    let data = stage.write(t)?;
    stage.judge_seen(t, "after it wrote", &data)?;
    for other in others {
        other.judge_untouched(t, "memory that was mapped since")?;
    }
    Ok(())
}

fn madv_dontneed_parts_process_and_application(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let data = area.written().to_vec();
    let all = 0..area.mapping.len();
    area.mapping.advise(all, MmapAdvise::MADV_DONTNEED)?;
    let now = area.contents()?;
    t.same_bytes(Eye::Cpu, "the process's memory", &now, &[0; LENGTH]);
    stage.judge_seen(t, "after MADV_DONTNEED", &data)?;
    area.fill(t)?;
    stage.judge_seen(t, "after the process wrote its new pages", &data)?;
    stage.write(t)?;
    Ok(area.judge_untouched(t, "the process's memory after the application wrote")?)
}

fn truncation_leaves_the_application_its_bytes(t: &mut Ctx) -> TestResult {
    let pages = LENGTH.next_multiple_of(PAGE);
    let file = dmabuf::memfd(pages)?;
    let mapping = Mapping::shared(&file, pages, READ_WRITE)?;
    let mut area = Area::user(mapping, 0..LENGTH);
    let mut stage = Stage::of(t, &mut area)?;
    let data = area.written().to_vec();
    for length in [0, pages] {
        ftruncate(&file, length as i64).map_err(Error::call("ftruncate of a memfd"))?;
        stage.judge_seen(t, &format!("after truncation to {length} bytes"), &data)?;
    }
    stage.write(t)?;
    let now = area.contents()?;
    t.same_bytes(Eye::Cpu, "the file", &now, &[0; LENGTH]);
    Ok(())
}

fn mremap_moves_no_page(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let (window, written) = (area.window.clone(), area.written().to_vec());
    let mut area = Area::user(area.mapping.moved()?, window);
    let now = area.contents()?;
    t.same_bytes(Eye::Cpu, "the memory at its new address", &now, &written);
    area.fill(t)?;
    stage.judge_seen(
        t,
        "after the process wrote at the new address",
        area.written(),
    )?;
    let data = stage.write(t)?;
    Ok(area.judge(t, "the memory after the application wrote", &data)?)
}

fn madv_pageout_moves_no_page(t: &mut Ctx) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let mut other = anon()?;
    other.fill(t)?;
    // That nobody holds.
    evict(&other)?;
    let before = area.extents()?;
    let all = 0..area.mapping.len();
    area.mapping.advise(all, MmapAdvise::MADV_PAGEOUT)?;
    t.equal(
        Eye::Placement,
        "where the memory is",
        area.extents()?,
        before,
    );
    area.fill(t)?;
    stage.judge_seen(t, "after MADV_PAGEOUT and a write", area.written())?;
    let data = stage.write(t)?;
    Ok(area.judge(t, "the memory after the application wrote", &data)?)
}

fn mprotect_and_back_moves_no_page(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let all = 0..area.mapping.len();
    area.mapping.protect(all.clone(), ProtFlags::PROT_READ)?;
    area.mapping.protect(all, READ_WRITE)?;
    area.fill(t)?;
    stage.judge_seen(t, "after the process wrote", area.written())?;
    let data = stage.write(t)?;
    Ok(area.judge(t, "the memory after the application wrote", &data)?)
}

fn application_writes_what_became_read_only(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let all = 0..area.mapping.len();
    area.mapping.protect(all, ProtFlags::PROT_READ)?;
    let data = stage.write(t)?;
    Ok(area.judge(t, "the memory after the application wrote", &data)?)
}

fn fork_child_writes_its_own_copy(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let stage = Stage::of(t, &mut area)?;
    let childs = t.random(LENGTH);
    let child = fork_viewer(&area, |area| area.mapping.write(area.window.start, &childs))?;
    child.must_see(t, &childs)?;
    area.judge_untouched(t, "the parent's memory after the child wrote")?;
    stage.judge_seen(t, "after the child wrote", area.written())
}

fn fork_parent_keeps_the_registered_page(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let stage = Stage::of(t, &mut area)?;
    let before = area.written().to_vec();
    let child = fork_viewer(&area, |_| ())?;
    area.fill(t)?;
    stage.judge_seen(t, "after the parent wrote", area.written())?;
    child.must_see(t, &before)
}

fn fork_leaves_the_parent_what_the_application_writes(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let mut stage = Stage::of(t, &mut area)?;
    let before = area.written().to_vec();
    let child = fork_viewer(&area, |_| ())?;
    let data = stage.write(t)?;
    area.judge(t, "the parent's memory after the application wrote", &data)?;
    child.must_see(t, &before)
}

fn last_descriptor_keeps_the_memory(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let (tee, device) = (Tee::open()?, Device::open()?);
    let (area, shm) = registered(t, &tee)?;
    let first = area.address() / PAGE;
    let pages = ((area.address() + area.len()).div_ceil(PAGE) - first) as i64;
    let child = Child::fork(Vec::new)?;
    drop((shm, tee));
    before.judge(t, "while a child has the descriptor", 1, pages)?;
    judge_placement(t, &device, &area)?;
    child.go()?;
    before.judge(t, "after the child has ended", 0, 0)?;
    Ok(area.judge_untouched(t, "the memory")?)
}

fn call_that_cannot_be_interrupted_keeps_the_memory(t: &mut Ctx) -> TestResult {
    // Without a TEE the driver has no such parameter.
    drop(Tee::open()?);
    let _never = module::parameter("tee_killable", "0")?;
    // Longer than it takes to look, which on a busy host may be long.
    for wait_ms in [1_500, 6_000, 24_000] {
        if uninterruptible_call(t, wait_ms)? {
            return Ok(());
        }
    }
    Err(Stop::finding(
        Eye::Harness,
        "the host is too busy: a call of 24 s has ended before it was looked at",
    ))
}

fn poisoned_page_stays_the_applications(t: &mut Ctx) -> TestResult {
    let mut area = anon()?;
    let stage = Stage::of(t, &mut area)?;
    let Some(frame) = area.frames()?.get(1).copied() else {
        return Err(Stop::finding(Eye::Harness, "the memory has one page only"));
    };
    poison(t, &area.mapping, PAGE)?;
    stage.judge_seen(t, "after MADV_HWPOISON", area.written())?;
    drop(stage);
    heal(t, frame)
}

/// Kills a client in a call that takes so long. False, and nothing is judged, if the call had ended before all was looked at.
fn uninterruptible_call(t: &mut Ctx, wait_ms: u64) -> TestResult<bool> {
    // A client that SIGKILL woke does not sleep any more.
    const LOOK: Duration = Duration::from_millis(200);
    let before = Before::look()?;
    let device = Device::open()?;
    let area = anon()?;
    let mut client = Child::fork(|| {
        let called = Tee::open().map_err(Stop::from).and_then(|tee| {
            let session = tee.session(pin::UUID)?;
            let shm = register(&tee, &area)?;
            // The cancellation that comes with the client's end is not heeded.
            let params = [
                value_in(wait_ms, 1),
                shm.all(PARAM_MEMREF_INPUT),
                NONE,
                NONE,
            ];
            tee.invoke(session, pin::WAIT, params)?;
            Ok(())
        });
        vec![u8::from(called.is_ok())]
    })?;
    let start = Instant::now();
    client.start()?;
    let called = call_begins(&device)?;
    t.check(Eye::Device, called, || "the call does not begin".into());
    let gone = client.kill_within(LOOK)?;
    let state = if gone { 'X' } else { client.state()? };
    let held = device.list()?.len();
    // Since before the call began.
    let in_time = start.elapsed() < Duration::from_millis(wait_ms);
    if in_time {
        t.check(Eye::Cpu, state == 'D', || {
            format!("the client of a running call is in state {state} after SIGKILL, expected D")
        });
        let what = "buffers that the device holds while the call runs";
        t.equal(Eye::Device, what, held, 1);
    }
    let ended = gone || patience::until(patience::LIMIT * 2, || Ok(client.ended()?.is_some()))?;
    t.check(Eye::Cpu, ended, || {
        "the client is still there after its call has ended".into()
    });
    before.judge(t, "after the call has ended", 0, 0)?;
    Ok(in_time)
}
