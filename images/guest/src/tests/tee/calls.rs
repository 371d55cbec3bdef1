// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE: calls as client libraries make them, and memory that is shared with trusted applications for as long as a client
//! likes.

use super::memory::LIMIT;
use super::stage::{
    LENGTH, call_begins, calls_become, close, judge_checksum, judge_placement, only_held, register,
    registered,
};
use crate::tests::driver::needs_module;
use crate::tests::pin::longterm::{in_cma, judge_inside};
use crate::tests::sources::{MLOCK, MODULE, TEE_CLIENT_API, TEE_LONGTERM, TEE_SHM, TEE_UAPI};
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{hello_world, pin, random};
use pinbed_abi::tee::*;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::module;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{PAGE, frames, merged};
use pinbed_guest::observe::frame;
use pinbed_guest::tee::client::{
    CAP_GP, CAP_MEMREF_NULL, CAP_REG_MEM, NO_PARAMS, NONE, PARAM_META, Session, Tee, VALUE_OUT,
    null, value, value_in,
};
use std::thread;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee::version_names_what_it_can", version_names_what_it_can, TEE_UAPI,
        "The TEE says that it follows GlobalPlatform's API, takes registered memory and the NULL memref."),
    test("tee::application_counts", application_counts, TEE_CLIENT_API,
        "A session with an application opens, calls change a value as the application defines it, and the session closes."),
    test("tee::values_come_through_whole", values_come_through_whole, TEE_UAPI,
        "Values go to the application and come back with all of their bits."),
    test("tee::unknown_application_is_not_found", unknown_application_is_not_found, TEE_CLIENT_API,
        "Opening a session with an application that does not exist is answered ITEM_NOT_FOUND by the TEE."),
    test("tee::bad_calls_are_refused", bad_calls_are_refused, TEE_UAPI,
        "Calls with too many parameters, memory out of bounds or no session are refused, and the next good call works."),
    test("tee::panic_of_an_application_is_its_own", panic_of_an_application_is_its_own, TEE_CLIENT_API,
        "After an application's panic its session answers TARGET_DEAD, and a new session with it works."),
    test("tee::memory_is_shared_where_it_is", memory_is_shared_where_it_is, TEE_SHM,
        "The device holds exactly the bytes of unaligned malloc'd memory that was registered, in the pages that the process has."),
    test("tee::application_reads_and_writes_memory", application_reads_and_writes_memory, TEE_CLIENT_API,
        "An application reads what the process wrote to registered memory, and writes the part that it was given and nothing else."),
    test("tee::random_fills_memory", random_fills_memory, TEE_CLIENT_API,
        "Random bytes of an application appear in the memory that it was given, others each time."),
    test("tee::allocated_memory_is_shared", allocated_memory_is_shared, TEE_UAPI,
        "Memory allocated from the TEE is zero, can be mapped, and is the same for process and application."),
    test("tee::null_memref_has_no_memory", null_memref_has_no_memory, TEE_UAPI,
        "The NULL memref reaches the application as such."),
    test("tee::short_buffer_says_what_is_needed", short_buffer_says_what_is_needed, TEE_CLIENT_API,
        "An application to which too little memory is given says how much it needs, and writes nothing."),
    test("tee::every_page_is_pinned_until_close", every_page_is_pinned_until_close, TEE_SHM,
        "Registered pages are pinned, and held by the device, until the memory's descriptor is closed; also when the client is closed before."),
    test("tee::cancel_ends_a_call", cancel_ends_a_call, TEE_CLIENT_API,
        "A call that waits is answered CANCEL when it is cancelled; cancelling in a session that does not exist is refused."),
    test("tee::killed_client_leaves_nothing", killed_client_leaves_nothing, TEE_SHM,
        "A process killed in the middle of a call that heeds no cancellation is gone at once, and so are its pins, session and call."),
    test("tee::registered_memory_leaves_cma", registered_memory_leaves_cma, TEE_LONGTERM,
        "Pages in CMA are moved out of it before they are registered, with their contents."),
    test("tee::cma_is_whole_while_memory_is_registered", cma_is_whole_while_memory_is_registered, TEE_LONGTERM,
        "All of a CMA region can be allocated while memory is registered whose pages were in it."),
    test("tee::locked_memory_limit_holds", locked_memory_limit_holds, MLOCK,
        "A process without privileges cannot register more memory than RLIMIT_MEMLOCK lets it lock."),
    test("tee::unload_is_refused_while_memory_is_registered", unload_is_refused_while_memory_is_registered, MODULE,
        "Unloading is refused while the TEE is open, and while memory is registered whose client is closed; it works afterwards."),
];

fn version_names_what_it_can(t: &mut Ctx) -> TestResult {
    let version = Tee::open()?.version()?;
    let wanted = CAP_GP | CAP_REG_MEM | CAP_MEMREF_NULL;
    t.equal(Eye::Cpu, "capabilities", version.caps, wanted);
    Ok(())
}

fn application_counts(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(hello_world::UUID)?;
    let status = device.status()?;
    t.equal(Eye::Device, "open sessions", status.sessions.get(), 1);
    for (function, from, to) in [
        (hello_world::INCREMENT, 41, 42),
        (hello_world::DECREMENT, 42, 41),
    ] {
        let params = [value(PARAM_VALUE_INOUT, from, 0, 0), NONE, NONE, NONE];
        let reply = tee.invoke(session, function, params)?.ok("counting")?;
        t.equal(Eye::Cpu, "the value", reply.value(0).0, to);
    }
    close(&tee, session)?;
    let status = device.status()?;
    t.equal(
        Eye::Device,
        "sessions after close",
        status.sessions.get(),
        0,
    );
    Ok(())
}

fn values_come_through_whole(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (a, b, c) = (0x0123_4567_89ab_cdef, u64::MAX, 1 << 63);
    let params = [
        value(PARAM_VALUE_INPUT, a, b, c),
        VALUE_OUT,
        value(PARAM_VALUE_INOUT, a, b, c),
        NONE,
    ];
    let reply = tee.invoke(session, pin::ECHO, params)?.ok("ECHO")?;
    t.equal(Eye::Cpu, "the output value", reply.value(1), (a, b, c));
    t.equal(Eye::Cpu, "the inverted value", reply.value(2), (!a, !b, !c));
    Ok(())
}

fn unknown_application_is_not_found(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let opened = tee.try_open([0x5a; 16], NO_PARAMS);
    let (_, reply) = opened.map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
    let wanted = (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TEE);
    t.equal(Eye::Cpu, "result and origin", reply.verdict(), wanted);
    Ok(())
}

fn bad_calls_are_refused(t: &mut Ctx) -> TestResult {
    let (tee, other) = (Tee::open()?, Tee::open()?);
    let session = tee.session(pin::UUID)?;
    let (_area, shm) = registered(t, &tee)?;
    let whole = shm.size;
    let call = |params: &[Param]| tee.try_invoke(session, pin::CHECKSUM, params, 0);
    let invalid = &[Errno::EINVAL];
    t.refused("a call with five parameters", call(&[NONE; 5]), invalid);
    t.refused(
        "a call with a meta parameter",
        call(&[value(PARAM_META | PARAM_VALUE_INPUT, 0, 0, 0)]),
        invalid,
    );
    for (offset, size) in [(0, whole + 1), (whole, 1), (u64::MAX, 2)] {
        t.refused(
            &format!("a memref of {size} bytes at {offset}"),
            call(&[
                shm.part(PARAM_MEMREF_INPUT, offset, size),
                VALUE_OUT,
                NONE,
                NONE,
            ]),
            invalid,
        );
    }
    let refused = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE);
    let stranger = other.invoke(session, pin::ECHO, NO_PARAMS)?.verdict();
    t.equal(
        Eye::Cpu,
        "a call in another client's session",
        stranger,
        refused,
    );
    t.refused(
        "closing another client's session",
        other.close_session(session),
        invalid,
    );
    let closed = tee.session(pin::UUID)?;
    close(&tee, closed)?;
    let late = tee.invoke(closed, pin::ECHO, NO_PARAMS)?.verdict();
    t.equal(Eye::Cpu, "a call in a closed session", late, refused);
    // Parameters that are not there are as good as unused ones.
    let few = tee.try_invoke(session, pin::RETURN, &[value_in(7, 0)], 0);
    let few = few.map_err(Error::call("TEE_IOC_INVOKE with one parameter"))?;
    t.equal(Eye::Cpu, "a good call's result", few.result, 7);
    Ok(())
}

fn panic_of_an_application_is_its_own(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let (session, bystander) = (tee.session(pin::UUID)?, tee.session(hello_world::UUID)?);
    for call in ["the call that panics", "the next call"] {
        let reply = tee.invoke(session, pin::PANIC, NO_PARAMS)?;
        t.equal(Eye::Cpu, call, reply.result, TEEC_ERROR_TARGET_DEAD);
    }
    close(&tee, session)?;
    tee.session(pin::UUID)?;
    let params = [value(PARAM_VALUE_INOUT, 1, 0, 0), NONE, NONE, NONE];
    tee.invoke(bystander, hello_world::INCREMENT, params)?
        .ok("a call of another application")?;
    Ok(())
}

fn memory_is_shared_where_it_is(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    t.equal(
        Eye::Cpu,
        "the size that was registered",
        shm.size,
        area.len() as u64,
    );
    judge_placement(t, &device, &area)?;
    let seen = device.checksum(only_held(&device)?.handle, 0, shm.size)?;
    t.equal(
        Eye::Device,
        "CRC32C at the device",
        seen,
        crc(area.written()),
    );
    judge_checksum(t, &tee, session, &shm, area.written())?;
    drop(shm);
    t.equal(
        Eye::Device,
        "buffers held after close",
        device.list()?.len(),
        0,
    );
    area.judge_untouched(t, "the memory")?;
    Ok(())
}

fn application_reads_and_writes_memory(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let (mut area, shm) = registered(t, &tee)?;
    for _ in 0..3 {
        area.refresh(t)?;
        judge_checksum(t, &tee, session, &shm, area.written())?;
    }
    // Across a page's end, and not aligned to the pattern.
    let (offset, length) = (PAGE - 77, PAGE + 3);
    let part = shm.part(PARAM_MEMREF_OUTPUT, offset as u64, length as u64);
    let params = [part, value_in(0x4433_2211, 0), NONE, NONE];
    tee.invoke(session, pin::FILL, params)?.ok("FILL")?;
    let mut wanted = area.written().to_vec();
    for (index, byte) in wanted[offset..offset + length].iter_mut().enumerate() {
        *byte = [0x11, 0x22, 0x33, 0x44][index % 4];
    }
    area.judge(t, "the memory after FILL", &wanted)?;
    judge_checksum(t, &tee, session, &shm, &wanted)?;
    judge_placement(t, &device, &area)
}

fn random_fills_memory(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(random::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let mut last = area.contents()?;
    for _ in 0..2 {
        let params = [shm.all(PARAM_MEMREF_OUTPUT), NONE, NONE, NONE];
        let reply = tee.invoke(session, random::GENERATE, params)?;
        let reply = reply.ok("GENERATE")?;
        t.equal(
            Eye::Cpu,
            "bytes generated",
            reply.size(0),
            area.len() as u64,
        );
        let now = area.contents()?;
        area.judge(t, "the memory after GENERATE", &now)?;
        // One in 256 stays as it was.
        let same = now.iter().zip(&last).filter(|(a, b)| a == b).count();
        t.check(Eye::Cpu, same < area.len() / 64, || {
            format!("{same} of {} random bytes are as before", area.len())
        });
        last = now;
    }
    Ok(())
}

fn allocated_memory_is_shared(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    t.refused("allocation of no bytes", tee.allocate(0), &[Errno::EINVAL]);
    let shm = tee.allocate(LENGTH);
    let shm = shm.map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    let size = shm.size as usize;
    t.equal(Eye::Cpu, "its size", size, LENGTH.next_multiple_of(PAGE));
    let mapping = Mapping::shared(&shm.file, size, READ_WRITE)?;
    t.same_bytes(
        Eye::Cpu,
        "fresh memory",
        &mapping.read(0..size),
        &vec![0; size],
    );
    let bytes = t.random(size);
    mapping.write(0, &bytes);
    judge_checksum(t, &tee, session, &shm, &bytes)?;
    let params = [
        shm.all(PARAM_MEMREF_OUTPUT),
        value_in(0x7777_7777, 0),
        NONE,
        NONE,
    ];
    tee.invoke(session, pin::FILL, params)?.ok("FILL")?;
    t.same_bytes(
        Eye::Cpu,
        "what was filled",
        &mapping.read(0..size),
        &vec![0x77; size],
    );
    t.equal(
        Eye::Device,
        "bytes held",
        only_held(&device)?.length,
        size as u64,
    );
    Ok(())
}

fn null_memref_has_no_memory(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (_area, shm) = registered(t, &tee)?;
    for (memref, wanted) in [
        (null(PARAM_MEMREF_INPUT), (0, 0, 1)),
        (shm.part(PARAM_MEMREF_INPUT, 1, 1), (1, 1, 0)),
    ] {
        let params = [memref, shm.all(PARAM_MEMREF_OUTPUT), VALUE_OUT, NONE];
        let reply = tee.invoke(session, pin::DESCRIBE, params)?.ok("DESCRIBE")?;
        t.equal(
            Eye::Device,
            "pieces, size, whether NULL",
            reply.value(2),
            wanted,
        );
    }
    Ok(())
}

fn short_buffer_says_what_is_needed(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let ((from, source), (to, sink)) = (registered(t, &tee)?, registered(t, &tee)?);
    let copy = |room| {
        let params = [
            source.all(PARAM_MEMREF_INPUT),
            sink.part(PARAM_MEMREF_OUTPUT, 0, room),
            NONE,
            NONE,
        ];
        tee.invoke(session, pin::COPY, params)
    };
    let reply = copy(sink.size - 1)?;
    let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(Eye::Cpu, "result and origin", reply.verdict(), short);
    t.equal(Eye::Cpu, "the size needed", reply.size(1), source.size);
    to.judge_untouched(t, "memory that is too short")?;
    let reply = copy(reply.size(1))?.ok("COPY")?;
    t.equal(Eye::Cpu, "the size written", reply.size(1), source.size);
    to.judge(t, "the copy", from.written())?;
    Ok(())
}

fn every_page_is_pinned_until_close(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let tee = Tee::open()?;
    let (area, shm) = registered(t, &tee)?;
    let first = area.address() / PAGE;
    let pages = ((area.address() + area.len()).div_ceil(PAGE) - first) as i64;
    before.judge(t, "while memory is registered", 1, pages)?;
    let again = register(&tee, &area)?;
    before.judge(t, "while it is registered twice", 2, 2 * pages)?;
    drop(shm);
    before.judge(t, "while it is registered once again", 1, pages)?;
    drop(tee);
    before.judge(t, "after the client was closed", 1, pages)?;
    drop(again);
    before.judge(t, "after all was closed", 0, 0)
}

fn cancel_ends_a_call(t: &mut Ctx) -> TestResult {
    const ID: u32 = 7;
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    // Ends in any case, so that a cancellation that does nothing is seen soon.
    let wait = [value_in(2_000, 0), NONE, NONE, NONE];
    let (waiting, cancelled, reply) = thread::scope(|scope| {
        let call = scope.spawn(|| tee.try_invoke(session, pin::WAIT, &wait, ID));
        let waiting = calls_become(&device, 1);
        (waiting, tee.cancel(session, ID), call.join())
    });
    t.check(Eye::Device, waiting?, || "no call is under way".into());
    t.equal(Eye::Cpu, "cancelling", cancelled, Ok(()));
    let reply = reply
        .map_err(|_| Stop::finding(Eye::Harness, "the thread that waits has panicked"))?
        .map_err(Error::call("the call that waits"))?;
    t.equal(Eye::Cpu, "its result", reply.result, TEEC_ERROR_CANCEL);
    t.refused(
        "cancelling in no session",
        tee.cancel(Session(session.0 + 1000), ID),
        &[Errno::EINVAL],
    );
    Ok(())
}

fn killed_client_leaves_nothing(t: &mut Ctx) -> TestResult {
    // The child could not say that there is none.
    drop(Tee::open()?);
    let before = Before::look()?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = wait_for_ever(t);
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(1) }
        }
    };
    let waiting = call_begins(&before.device)?;
    t.check(Eye::Device, waiting, || {
        "the child's call is not under way".into()
    });
    kill(child, Signal::SIGKILL).map_err(Error::call("killing the child"))?;
    let mut ended = WaitStatus::StillAlive;
    patience::until(patience::LIMIT, || {
        let no_wait = Some(WaitPidFlag::WNOHANG);
        ended = waitpid(child, no_wait).map_err(Error::call("waitpid"))?;
        Ok(ended != WaitStatus::StillAlive)
    })?;
    let killed = matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    t.check(Eye::Cpu, killed, || {
        format!("the client is {ended:?} after SIGKILL in a call that does not end")
    });
    // Its call waits without end for whoever waits for it, so that the client is gone means that it did not wait.
    before.judge(t, "after the client was killed", 0, 0)?;
    t.equal(
        Eye::Device,
        "the killed client's sessions",
        before.device.status()?.sessions.get(),
        0,
    );
    // It touches no memory any more, and ends when the device's thread comes to run.
    let ended = patience::until(patience::LIMIT, || {
        Ok(before.device.status()?.calls.get() == 0)
    })?;
    t.check(Eye::Device, ended, || {
        "the killed client's call does not end".into()
    });
    let tee = Tee::open()?;
    close(&tee, tee.session(pin::UUID)?)
}

/// A call with registered memory that does not end, and heeds no cancellation.
fn wait_for_ever(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (_area, shm) = registered(t, &tee)?;
    let params = [value_in(0, 1), shm.all(PARAM_MEMREF_INOUT), NONE, NONE];
    tee.invoke(session, pin::WAIT, params)?;
    Ok(())
}

fn registered_memory_leaves_cma(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let (area, region) = in_cma(t)?;
    judge_inside(t, &area, &region, true)?;
    let shm = register(&tee, &area)?;
    judge_inside(t, &area, &region, false)?;
    judge_placement(t, &device, &area)?;
    judge_checksum(t, &tee, session, &shm, area.written())
}

fn cma_is_whole_while_memory_is_registered(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (area, region) = in_cma(t)?;
    let shm = register(&tee, &area)?;
    let pages = region.longest_free()?;
    match region.take(pages) {
        Ok(_secure) => judge_checksum(t, &tee, session, &shm, area.written())?,
        Err(Error::Call {
            errno: Errno::ENOMEM | Errno::EBUSY,
            ..
        }) => t.find(
            Eye::Placement,
            format!("{pages} pages of CMA cannot be allocated while memory is registered"),
        ),
        Err(error) => return Err(error.into()),
    }
    drop(shm);
    if let Err(error) = region.whole_can_be_had() {
        t.find(
            Eye::Aftermath,
            format!("{pages} pages of CMA cannot be allocated after close: {error}"),
        );
    }
    Ok(())
}

fn locked_memory_limit_holds(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let memory = Mapping::anon(16 * LIMIT)?;
    // Nobody has touched it: an application that writes must not write what all processes share.
    let untouched = tee.register(memory.address(), LIMIT / 2);
    let untouched = untouched.map_err(Error::call("registering untouched memory"))?;
    let held = merged(only_held(&Device::open()?)?.segments);
    t.equal(
        Eye::Placement,
        "pages of registered memory that are the kernel's zero page",
        frame::zero_pages(frames(&held))?,
        0,
    );
    drop(untouched);
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    let small = tee.register(memory.address(), LIMIT / 2);
    let small = small.map_err(Error::call("registering half of the limit"))?;
    t.refused(
        "registering 16 times RLIMIT_MEMLOCK",
        tee.register(memory.address(), memory.len())
            .map(|shm| shm.size),
        &[Errno::ENOMEM, Errno::EPERM],
    );
    drop(small);
    Ok(())
}

fn unload_is_refused_while_memory_is_registered(t: &mut Ctx) -> TestResult {
    needs_module()?;
    let tee = Tee::open()?;
    let busy = &[Errno::EAGAIN];
    t.refused("rmmod with the TEE open", module::unload(), busy);
    let (_area, shm) = registered(t, &tee)?;
    drop(tee);
    t.refused("rmmod with registered memory", module::unload(), busy);
    drop(shm);
    module::unload().map_err(|errno| {
        Stop::finding(Eye::Cpu, format!("rmmod fails with {errno:?} after close"))
    })?;
    t.check(Eye::Cpu, Tee::open().is_err(), || {
        "the TEE is still there after rmmod".into()
    });
    module::load()?;
    let tee = Tee::open()?;
    close(&tee, tee.session(pin::UUID)?)
}
