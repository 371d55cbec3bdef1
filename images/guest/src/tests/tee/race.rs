// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Threads of one client that get in each other's way, many times over: each call works or is refused, and nothing is lost.

use super::stage::{calls_become, close, judge_checksum, register, registered};
use crate::tests::sources::{TEE_CLIENT_API, TEE_RACE, TEE_SHM};
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::tee::*;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::LIMIT;
use pinbed_guest::harness::rounds::rounds;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::userfault::Userfault;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::tee::client::{NO_PARAMS, NONE, Session, Tee, VALUE_OUT, value_in};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_race::closing_memory_races_a_call", closing_memory_races_a_call, TEE_RACE,
        "A call with memory whose descriptor another thread closes sees all of the memory or is refused; nothing of it is left."),
    test("tee_race::closing_a_session_races_a_call", closing_a_session_races_a_call, TEE_CLIENT_API,
        "A call in a session that another thread closes works, is cancelled, or is answered BAD_PARAMETERS; no session is left."),
    test("tee_race::closing_the_client_races_a_call", closing_the_client_races_a_call, TEE_SHM,
        "A call that is under way when another thread closes the client works; the next one has no descriptor, and nothing is left."),
    test("tee_race::cancelling_races_the_end_of_a_call", cancelling_races_the_end_of_a_call, TEE_CLIENT_API,
        "A call that is cancelled as it ends works or is answered CANCEL, and the next call is not cancelled."),
    test("tee_race::registering_races_registering", registering_races_registering, TEE_SHM,
        "Threads that register the same memory at a time each get memory of their own, whose every page is unpinned at the end."),
    test("tee_race::registering_races_munmap", registering_races_munmap, TEE_SHM,
        "Registering memory that another thread takes away is refused or gives all of it, and leaves no page pinned."),
];

/// Times over, at moments that differ; each test has had each order of events before, by means other than time.
const ROUNDS: usize = 30;
/// Milliseconds of a call that is to be under way when something else happens: it is cancelled then, long before.
const LONG: u64 = 60_000;
/// Its number.
const LONG_ID: u32 = 11;

/// Moments for one thing to happen in the course of others: another each round, over all the time that they take.
struct Moments {
    span: Duration,
    begun: AtomicBool,
}

impl Moments {
    /// While something happens that takes as long as this.
    fn within(something: impl FnOnce() -> TestResult) -> TestResult<Self> {
        let start = Instant::now();
        something()?;
        Ok(Self {
            span: start.elapsed(),
            begun: AtomicBool::new(false),
        })
    }

    /// The other thread begins, soon enough for what comes at the first moment to come before.
    fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        let start = Instant::now();
        while start.elapsed() < self.span / 4 {
            std::hint::spin_loop();
        }
    }

    /// Waits for the other thread to begin, and for this round's moment.
    fn wait(&self, round: usize) {
        const STEPS: usize = 25;
        while !self.begun.swap(false, Ordering::Acquire) {
            thread::yield_now();
        }
        let moment = self.span * (round % STEPS) as u32 / STEPS as u32;
        let start = Instant::now();
        while start.elapsed() < moment {
            thread::yield_now();
        }
    }
}

/// How often each thing happened.
#[derive(Default)]
struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    fn note(&self, t: &Ctx) {
        t.note(format!("{:?}", self.0));
    }
}

fn joined<T>(thread: thread::Result<T>) -> TestResult<T> {
    thread.map_err(|_| Stop::finding(Eye::Harness, "a thread of the test has panicked"))
}

/// What comes of a call and of an event while it is under way, as the device says.
fn during<C: Send, E>(
    device: &Device,
    call: impl FnOnce() -> C + Send,
    event: impl FnOnce() -> TestResult<E>,
) -> TestResult<(C, E)> {
    thread::scope(|scope| {
        let call = scope.spawn(call);
        let begun = calls_become(device, 1)?;
        let event = event()?;
        premise(begun, || "the call does not begin".into())?;
        Ok((joined(call.join())?, event))
    })
}

fn checksum(tee: &Tee, session: Session, memref: Param) -> Result<(u32, u64), Errno> {
    let params = [memref, VALUE_OUT, NONE, NONE];
    let reply = tee.try_invoke(session, pin::CHECKSUM, &params, 0)?;
    Ok((reply.result, reply.value(1).0))
}

fn three_checksums(tee: &Tee, session: Session, memref: Param) -> TestResult {
    for _ in 0..3 {
        checksum(tee, session, memref).map_err(Error::call("TEE_IOC_INVOKE"))?;
    }
    Ok(())
}

fn closing_memory_races_a_call(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let mut area = Area::anon(100, 2 * PAGE)?;
    area.fill(t)?;
    let whole = u64::from(crc(area.written()));
    let mut tally = Tally::default();
    let all = register(&tee, &area)?;
    let memref = all.all(PARAM_MEMREF_INPUT);
    let moments = Moments::within(|| three_checksums(&tee, session, memref))?;
    // In the middle of a call: the memory is there until its end.
    let wait = [value_in(LONG, 0), memref, NONE, NONE];
    let pages = (area.address() % PAGE + area.len()).div_ceil(PAGE) as i64;
    let (reply, ()) = during(
        &before.device,
        || tee.try_invoke(session, pin::WAIT, &wait, LONG_ID),
        || {
            drop(all);
            before.judge(t, "after the close, while the call is under way", 1, pages)?;
            let cancelled = tee.cancel(session, LONG_ID);
            t.equal(Eye::Cpu, "cancelling", cancelled, Ok(()));
            Ok(())
        },
    )?;
    let result = reply.map(|reply| reply.result);
    let what = "the call whose memory was closed";
    t.equal(Eye::Cpu, what, result, Ok(TEEC_ERROR_CANCEL));
    before.judge(t, "after that call", 0, 0)?;
    let after = checksum(&tee, session, memref);
    let what = "a call after the close";
    t.equal(Eye::Cpu, what, after, Err(Errno::EINVAL));
    for round in 0..rounds(ROUNDS)? {
        let shm = register(&tee, &area)?;
        let memref = shm.all(PARAM_MEMREF_INPUT);
        let seen = thread::scope(|scope| {
            let calls = scope.spawn(|| {
                moments.begin();
                [(); 3].map(|()| checksum(&tee, session, memref))
            });
            moments.wait(round);
            drop(shm);
            calls.join()
        });
        for call in joined(seen)? {
            match call {
                Ok((TEEC_SUCCESS, seen)) if seen == whole => tally.count("whole"),
                Err(Errno::EINVAL) => tally.count("refused"),
                other => t.find(
                    Eye::Cpu,
                    format!("a call while its memory is closed: {other:x?}"),
                ),
            }
        }
    }
    tally.note(t);
    before.judge(t, "after the last close", 0, 0)?;
    Ok(area.judge_untouched(t, "the memory")?)
}

fn closing_a_session_races_a_call(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let tee = Tee::open()?;
    let mut tally = Tally::default();
    let session = tee.session(pin::UUID)?;
    let moments = Moments::within(|| {
        tee.invoke(session, pin::RETURN, [value_in(0, 0), NONE, NONE, NONE])?;
        Ok(())
    })?;
    close(&tee, session)?;
    let no_session = Ok((TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE));
    let after = tee.try_invoke(session, pin::RETURN, &[value_in(0, 0), NONE, NONE, NONE], 0);
    let after = after.map(|reply| reply.verdict());
    t.equal(Eye::Cpu, "a call after the close", after, no_session);
    let session = tee.session(pin::UUID)?;
    let wait = [value_in(LONG, 0), NONE, NONE, NONE];
    let (reply, closed) = during(
        &before.device,
        || tee.try_invoke(session, pin::WAIT, &wait, 0),
        || Ok(tee.close_session(session)),
    )?;
    t.equal(Eye::Cpu, "closing it during a call", closed, Ok(()));
    let result = reply.map(|reply| reply.result);
    let what = "the call whose session was closed";
    t.equal(Eye::Cpu, what, result, Ok(TEEC_ERROR_CANCEL));
    for round in 0..rounds(ROUNDS)? {
        let session = tee.session(pin::UUID)?;
        // Every third waits, so that it is under way when the session is closed.
        let (function, params) = match round % 3 {
            0 => (pin::WAIT, [value_in(2_000, 0), NONE, NONE, NONE]),
            _ => (pin::RETURN, [value_in(0, 0), NONE, NONE, NONE]),
        };
        let reply = thread::scope(|scope| {
            let call = scope.spawn(|| {
                moments.begin();
                tee.try_invoke(session, function, &params, 0)
            });
            moments.wait(round);
            let closed = tee.close_session(session);
            (closed, call.join())
        });
        t.equal(Eye::Cpu, "closing the session", reply.0, Ok(()));
        match joined(reply.1)?.map(|reply| reply.verdict()) {
            Ok((TEEC_SUCCESS, _)) if function == pin::RETURN => tally.count("done"),
            Ok((TEEC_ERROR_CANCEL, _)) => tally.count("cancelled"),
            Ok((TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE)) => tally.count("no session"),
            other => t.find(
                Eye::Cpu,
                format!("a call while its session is closed: {other:x?}"),
            ),
        }
    }
    tally.note(t);
    let status = before.device.status()?;
    let left = (status.sessions.get(), status.calls.get());
    t.equal(
        Eye::Device,
        "sessions and calls that are left",
        left,
        (0, 0),
    );
    close(&tee, tee.session(pin::UUID)?)
}

fn closing_the_client_races_a_call(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let mut area = Area::anon(100, 2 * PAGE)?;
    area.fill(t)?;
    let whole = u64::from(crc(area.written()));
    let mut tally = Tally::default();
    let moments = {
        let tee = Tee::open()?;
        let session = tee.session(pin::UUID)?;
        let shm = register(&tee, &area)?;
        let memref = shm.all(PARAM_MEMREF_INPUT);
        Moments::within(|| three_checksums(&tee, session, memref))?
    };
    // In the middle of a call, which keeps the client until its end. It cannot be cancelled, so it ends by itself; too soon on a busy
    // host, and then it takes longer next time.
    let mut length = 200;
    loop {
        let tee = ManuallyDrop::new(Tee::open()?);
        let session = tee.session(pin::UUID)?;
        let shm = register(&tee, &area)?;
        let wait = [value_in(length, 0), shm.all(PARAM_MEMREF_INPUT), NONE, NONE];
        let (reply, under_way) = during(
            &before.device,
            || tee.try_invoke(session, pin::WAIT, &wait, 0),
            || {
                // SAFETY: the descriptor is open, and `tee` does not close it again.
                unsafe { libc::close(tee.as_raw_fd()) };
                Ok(before.device.status()?.calls == 1)
            },
        )?;
        if under_way {
            let result = reply.map(|reply| reply.result);
            let what = "the call whose client was closed";
            t.equal(Eye::Cpu, what, result, Ok(TEEC_SUCCESS));
            break;
        }
        length *= 2;
        premise(length < LONG, || "no call is long enough".into())?;
    }
    for round in 0..rounds(ROUNDS)? {
        // Closed by hand, under the thread that uses it; nothing else in this process opens a file meanwhile.
        let tee = ManuallyDrop::new(Tee::open()?);
        let session = tee.session(pin::UUID)?;
        let shm = register(&tee, &area)?;
        let memref = shm.all(PARAM_MEMREF_INPUT);
        let seen = thread::scope(|scope| {
            let calls = scope.spawn(|| {
                moments.begin();
                [(); 3].map(|()| checksum(&tee, session, memref))
            });
            moments.wait(round);
            // SAFETY: the descriptor is open, and `tee` does not close it again.
            unsafe { libc::close(tee.as_raw_fd()) };
            calls.join()
        });
        for call in joined(seen)? {
            match call {
                Ok((TEEC_SUCCESS, seen)) if seen == whole => tally.count("whole"),
                Err(Errno::EBADF) => tally.count("closed"),
                other => t.find(
                    Eye::Cpu,
                    format!("a call while its client is closed: {other:x?}"),
                ),
            }
        }
    }
    tally.note(t);
    before.judge(t, "after the last close", 0, 0)?;
    let sessions = before.device.status()?.sessions.get();
    t.equal(Eye::Device, "sessions that are left", sessions, 0);
    Ok(())
}

fn cancelling_races_the_end_of_a_call(t: &mut Ctx) -> TestResult {
    const ID: u32 = 9;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let mut tally = Tally::default();
    // A millisecond.
    let wait = [value_in(1, 0), NONE, NONE, NONE];
    let moments = Moments::within(|| {
        tee.invoke(session, pin::WAIT, wait)?;
        Ok(())
    })?;
    t.equal(
        Eye::Cpu,
        "cancelling before",
        tee.cancel(session, ID),
        Ok(()),
    );
    let long = [value_in(LONG, 0), NONE, NONE, NONE];
    let device = Device::open()?;
    let (reply, cancelled) = during(
        &device,
        || tee.try_invoke(session, pin::WAIT, &long, ID),
        || Ok(tee.cancel(session, ID)),
    )?;
    t.equal(Eye::Cpu, "cancelling", cancelled, Ok(()));
    let result = reply.map(|reply| reply.result);
    let what = "the call that was cancelled";
    t.equal(Eye::Cpu, what, result, Ok(TEEC_ERROR_CANCEL));
    for round in 0..rounds(ROUNDS)? {
        let (function, params) = match round % 2 {
            0 => (pin::WAIT, wait),
            _ => (pin::RETURN, [value_in(0, 0), NONE, NONE, NONE]),
        };
        let (cancelled, reply) = thread::scope(|scope| {
            let call = scope.spawn(|| {
                moments.begin();
                tee.try_invoke(session, function, &params, ID)
            });
            moments.wait(round);
            (tee.cancel(session, ID), call.join())
        });
        t.equal(Eye::Cpu, "cancelling", cancelled, Ok(()));
        match joined(reply)?.map(|reply| reply.result) {
            Ok(TEEC_SUCCESS) => tally.count("done"),
            Ok(TEEC_ERROR_CANCEL) => tally.count("cancelled"),
            other => t.find(Eye::Cpu, format!("a call that is cancelled: {other:x?}")),
        }
        let next = tee.try_invoke(session, pin::WAIT, &wait, ID);
        let next = next.map(|reply| reply.result);
        t.equal(
            Eye::Cpu,
            "the next call of the same number",
            next,
            Ok(TEEC_SUCCESS),
        );
    }
    tally.note(t);
    tee.invoke(session, pin::PANIC, NO_PARAMS)?;
    close(&tee, session)
}

fn registering_races_registering(t: &mut Ctx) -> TestResult {
    const THREADS: usize = 4;
    let before = Before::look()?;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let mut area = Area::anon(123, 3 * PAGE)?;
    area.fill(t)?;
    let whole = u64::from(crc(area.written()));
    let (address, length) = (area.address(), area.len());
    let pages = (address % PAGE + length).div_ceil(PAGE) as i64;
    let both = [register(&tee, &area)?, register(&tee, &area)?];
    before.judge(t, "while it is registered twice", 2, 2 * pages)?;
    drop(both);
    let each = rounds(ROUNDS)? / THREADS;
    let seen = thread::scope(|scope| {
        let work = || {
            let mut wrong = Vec::new();
            for _ in 0..each {
                let seen = tee
                    .register(address, length)
                    .and_then(|shm| checksum(&tee, session, shm.all(PARAM_MEMREF_INPUT)));
                if seen != Ok((TEEC_SUCCESS, whole)) {
                    wrong.push(format!("{seen:x?}"));
                }
            }
            wrong
        };
        let threads = [(); THREADS].map(|()| scope.spawn(work));
        threads.map(|thread| thread.join())
    });
    for thread in seen {
        for wrong in joined(thread)? {
            t.find(
                Eye::Cpu,
                format!("registering among others, and reading: {wrong}"),
            );
        }
    }
    before.judge(t, "after the last close", 0, 0)?;
    Ok(area.judge_untouched(t, "the memory")?)
}

fn registering_races_munmap(t: &mut Ctx) -> TestResult {
    const PAGES: usize = 64;
    let before = Before::look()?;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    // Emptied at times, but its own at all times, so that nobody else gets the address.
    let memory = Mapping::anon(PAGES * PAGE)?;
    let (address, length) = (memory.address(), memory.len());
    let fill = || -> Result<u32, Errno> {
        let shm = tee.register(address, length)?;
        let params = [shm.all(PARAM_MEMREF_OUTPUT), value_in(0, 0), NONE, NONE];
        Ok(tee.try_invoke(session, pin::FILL, &params, 0)?.result)
    };
    let moments = Moments::within(|| {
        tee.register(address, length)
            .map_err(Error::call("TEE_IOC_SHM_REGISTER"))?;
        Ok(())
    })?;
    in_the_middle_of_registering(t, &tee)?;
    before.judge(t, "after memory went away while it was registered", 0, 0)?;
    let mut tally = Tally::default();
    for round in 0..rounds(ROUNDS)? {
        memory.advise(0..length, MmapAdvise::MADV_DONTNEED)?;
        let (taken, filled) = thread::scope(|scope| {
            let filling = scope.spawn(|| {
                moments.begin();
                fill()
            });
            moments.wait(round);
            (memory.take_away(PAGES / 2 * PAGE..length), filling.join())
        });
        taken?;
        memory.map_anon_over(PAGES / 2 * PAGE)?;
        match joined(filled)? {
            Ok(TEEC_SUCCESS) => tally.count("all of it"),
            Err(errno @ (Errno::EFAULT | Errno::ENOMEM)) => tally.count(format!("{errno:?}")),
            other => t.find(Eye::Cpu, format!("registering what goes away: {other:x?}")),
        }
    }
    tally.note(t);
    before.judge(t, "after the last close", 0, 0)?;
    let (area, shm) = registered(t, &tee)?;
    judge_checksum(t, &tee, session, &shm, area.written())
}

/// Half of the memory goes away while the kernel waits for a page of the other half.
fn in_the_middle_of_registering(t: &mut Ctx, tee: &Tee) -> TestResult {
    let memory = Mapping::anon(4 * PAGE)?;
    for page in (0..memory.len()).step_by(PAGE) {
        memory.write(page, &[1]);
    }
    let (address, length) = (memory.address(), memory.len());
    let (first, second) = memory.split(2 * PAGE);
    let fault = Userfault::open(0)?;
    fault.register(&first)?;
    fault.protect(&first, true)?;
    let (waited, registered) = thread::scope(|scope| -> TestResult<_> {
        let registering = scope.spawn(|| tee.register(address, length).map(|shm| shm.size));
        let waited = fault.fault(LIMIT.as_millis() as u16)?;
        let gone = second.take_away(0..second.len());
        fault.protect(&first, false)?;
        let registered = joined(registering.join())?;
        gone?;
        second.map_anon_over(0)?;
        Ok((waited, registered))
    })?;
    premise(waited == Some(address as u64), || {
        format!("registering waits for the page {waited:x?}, expected {address:#x}")
    })?;
    let what = "registering memory that goes away meanwhile";
    t.refused(what, registered, &[Errno::EFAULT, Errno::ENOMEM]);
    Ok(())
}
