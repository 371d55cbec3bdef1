// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Clients that do wrong, and clients that die: they are told what was wrong, and by whom, and the next client is served.

use super::stage::{close, judge_checksum, registered};
use crate::tests::sources::{TEE_CLIENT_API, TEE_SHM, TEE_UAPI};
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{Uuid, hello_world, pin, secure_storage};
use pinbed_abi::tee::*;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::tee::client::{
    Arguments, Invoke, LOGIN_APPLICATION, LOGIN_GROUP, LOGIN_KERNEL, LOGIN_USER, MAX_ARGUMENTS,
    NO_PARAMS, NONE, OpenSession, Session, Tee, VALUE_OUT, request, value, value_in,
};
use zerocopy::IntoBytes;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_input::arguments_of_another_size_are_refused", arguments_of_another_size_are_refused, TEE_UAPI,
        "Calls whose arguments are shorter or longer than their parameters ask for, or than 1024 bytes, are refused with EINVAL."),
    test("tee_input::arguments_that_are_nowhere_are_refused", arguments_that_are_nowhere_are_refused, TEE_UAPI,
        "Calls whose arguments are at addresses where nothing can be read are refused with EFAULT."),
    test("tee_input::answer_that_cannot_be_written_is_no_leak", answer_that_cannot_be_written_is_no_leak, TEE_UAPI,
        "Where the answer to a call cannot be written the call fails with EFAULT, and a session that it opened is closed again."),
    test("tee_input::unknown_parameter_kinds_are_refused", unknown_parameter_kinds_are_refused, TEE_UAPI,
        "Parameters of a kind that does not exist, or with attributes that nobody knows, are refused with EINVAL."),
    test("tee_input::unknown_requests_are_refused", unknown_requests_are_refused, TEE_UAPI,
        "Requests that do not exist, or that are for a helper that this TEE does not have, are refused with EINVAL."),
    test("tee_input::logins_are_checked_by_the_kernel", logins_are_checked_by_the_kernel, TEE_UAPI,
        "A client may log in as its user and as a group that it is in, not as another group, as the kernel, or as what Linux cannot tell."),
    test("tee_input::unknown_function_is_the_applications_to_refuse", unknown_function_is_the_applications_to_refuse, TEE_CLIENT_API,
        "An unknown function is answered NOT_SUPPORTED, and parameters of the wrong kinds BAD_PARAMETERS, both by the trusted application."),
    test("tee_input::sessions_that_are_not_open_are_refused", sessions_that_are_not_open_are_refused, TEE_CLIENT_API,
        "A call in a session that was never open, was closed, or did not open is answered BAD_PARAMETERS by the TEE; closing it is EINVAL."),
    test("tee_input::second_session_with_a_single_instance_is_busy", second_session_with_a_single_instance_is_busy, TEE_CLIENT_API,
        "A second session with an application that takes one at a time is answered BUSY by the TEE, until the first one is closed."),
    test("tee_input::sessions_run_out_cleanly", sessions_run_out_cleanly, TEE_CLIENT_API,
        "Opening sessions without end is answered OUT_OF_MEMORY by the TEE at last; closing the client closes them all."),
    test("tee_input::memory_of_a_panicked_application_is_its_clients", memory_of_a_panicked_application_is_its_clients, TEE_CLIENT_API,
        "An application that panics with memory in its hands is TARGET_DEAD by the TEE's word; the memory stays its client's, and is given back."),
    test("tee_input::object_name_that_is_too_long_is_a_panic", object_name_that_is_too_long_is_a_panic, TEE_CLIENT_API,
        "An object's name of more than 64 bytes makes the storage application panic; the objects that there are stay."),
    test("tee_input::memory_that_goes_away_is_a_fault", memory_that_goes_away_is_a_fault, TEE_SHM,
        "What an application still holds of memory that its client closed is answered SECURITY by the TEE, and touches the page's next owner in no way."),
    test("tee_input::memory_is_held_as_it_was_given", memory_is_held_as_it_was_given, TEE_CLIENT_API,
        "An application cannot read memory that it was given for writing, write what it was given for reading, nor reach past the part it was given."),
    test("tee_input::client_that_exits_leaves_nothing", client_that_exits_leaves_nothing, TEE_SHM,
        "A process that ends with sessions open and memory registered, allocated and held by an application leaves nothing of them."),
];

/// The device still serves whoever comes next.
fn serves(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    judge_checksum(t, &tee, session, &shm, area.written())?;
    close(&tee, session)
}

/// A call's arguments in memory of their own, ending where a page does, and the struct that says where they are.
struct Call {
    page: Mapping,
    at: usize,
    arguments: Mapping,
}

impl Call {
    fn of(bytes: &[u8]) -> TestResult<Self> {
        let page = Mapping::anon(bytes.len())?;
        let at = page.len() - bytes.len();
        page.write(at, bytes);
        let call = Self {
            page,
            at,
            arguments: Mapping::anon(PAGE)?,
        };
        call.point(call.page.address() + at, bytes.len() as u64);
        Ok(call)
    }

    fn point(&self, address: usize, length: u64) {
        let arguments = Arguments {
            address: address as u64,
            length,
        };
        self.arguments.write(0, arguments.as_bytes());
    }

    /// Says that they are as long as this.
    fn of_length(&self, length: u64) -> &Self {
        self.point(self.page.address() + self.at, length);
        self
    }

    fn make(&self, tee: &Tee, request: libc::c_ulong) -> Result<i32, Errno> {
        tee.raw(request, self.arguments.address())
    }
}

/// A call of ECHO with so many parameters, as many of them there as fit.
fn echo(session: Session, param_count: u32) -> Invoke {
    Invoke {
        function: pin::ECHO,
        session: session.0,
        param_count,
        params: [
            value_in(1, 2),
            VALUE_OUT,
            value(PARAM_VALUE_INOUT, 0, 0, 0),
            NONE,
            NONE,
        ],
        ..Default::default()
    }
}

/// Bytes of a call with four parameters.
const INVOKE: usize = size_of::<Invoke>() - size_of::<Param>();

fn arguments_of_another_size_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let invalid = &[Errno::EINVAL];
    let good = echo(session, 4);
    let call = Call::of(&good.as_bytes()[..INVOKE])?;
    let whole = INVOKE as u64;
    let lengths = [0, 1, 23, 24, whole - 1, whole + 1, MAX_ARGUMENTS as u64 + 1];
    for length in lengths.into_iter().chain([u64::from(u32::MAX), u64::MAX]) {
        let made = call.of_length(length).make(&tee, request::INVOKE);
        t.refused(&format!("a call of {length} bytes"), made, invalid);
        let made = call.make(&tee, request::OPEN_SESSION);
        t.refused(&format!("an opening of {length} bytes"), made, invalid);
    }
    // The kernel multiplies the count by 32 bytes: these give the right size where it does so in 32 bits.
    for count in [0, 3, 5, 4 + (1 << 27), 4 + (1 << 31), u32::MAX] {
        let bytes = echo(session, count);
        let call = Call::of(&bytes.as_bytes()[..INVOKE])?;
        let made = call.make(&tee, request::INVOKE);
        t.refused(
            &format!("a call of {whole} bytes with {count} parameters"),
            made,
            invalid,
        );
    }
    let made = call.of_length(whole).make(&tee, request::INVOKE);
    t.equal(Eye::Cpu, "the same call with its own size", made, Ok(0));
    serves(t)
}

fn arguments_that_are_nowhere_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let fault = &[Errno::EFAULT];
    let call = Call::of(&echo(session, 4).as_bytes()[..INVOKE])?;
    let unmapped = Mapping::anon(PAGE)?.address();
    let page_end = call.page.address() + call.page.len();
    let inaccessible = Mapping::anon(PAGE)?;
    inaccessible.protect(0..PAGE, ProtFlags::PROT_NONE)?;
    for (what, address) in [
        ("at NULL", 0),
        ("where nothing is mapped", unmapped),
        ("in memory that cannot be read", inaccessible.address()),
        ("in the kernel's memory", 0xffff_8880_0010_0000),
        ("at the end of all addresses", 0usize.wrapping_sub(8)),
        // The head of them can be read.
        ("half behind a page's end", page_end - 64),
    ] {
        let made = tee.raw(request::INVOKE, address);
        if address != page_end - 64 {
            t.refused(&format!("a call with its struct {what}"), made, fault);
        }
        call.point(address, INVOKE as u64);
        for (name, request) in [
            ("a call", request::INVOKE),
            ("an opening", request::OPEN_SESSION),
        ] {
            // What is half there may not look like a call either.
            let errnos: &[_] = match address == page_end - 64 || request == request::OPEN_SESSION {
                true => &[Errno::EFAULT, Errno::EINVAL],
                false => fault,
            };
            t.refused(
                &format!("{name} with arguments {what}"),
                call.make(&tee, request),
                errnos,
            );
        }
    }
    serves(t)
}

fn answer_that_cannot_be_written_is_no_leak(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(hello_world::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let open = OpenSession {
        uuid: pin::UUID,
        param_count: PARAM_COUNT,
        params: NO_PARAMS,
        ..Default::default()
    };
    let opening = Call::of(open.as_bytes())?;
    opening.page.protect(0..PAGE, ProtFlags::PROT_READ)?;
    let made = opening.make(&tee, request::OPEN_SESSION);
    t.refused(
        "opening with arguments that cannot be written",
        made,
        &[Errno::EFAULT],
    );
    let sessions = device.status()?.sessions.get();
    t.equal(Eye::Device, "sessions after that", sessions, 1);

    let pin = tee.session(pin::UUID)?;
    let mut checksum = echo(pin, 4);
    checksum.function = pin::CHECKSUM;
    checksum.params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE, NONE];
    let call = Call::of(&checksum.as_bytes()[..INVOKE])?;
    call.page.protect(0..PAGE, ProtFlags::PROT_READ)?;
    let made = call.make(&tee, request::INVOKE);
    t.refused(
        "a call with arguments that cannot be written",
        made,
        &[Errno::EFAULT],
    );
    judge_checksum(t, &tee, pin, &shm, area.written())?;
    close(&tee, session)
}

fn unknown_parameter_kinds_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (_area, shm) = registered(t, &tee)?;
    for attr in (8..16).chain([4, 0x1f, 0x80, 0x100, 0x1001, 1 << 32, 1 << 63, u64::MAX]) {
        for good in [NONE, shm.all(PARAM_MEMREF_INOUT)] {
            let params = [good, value(attr, 0, 0, 0), NONE, NONE];
            let call = tee.try_invoke(session, pin::ECHO, &params, 0);
            t.refused(
                &format!("a parameter of kind {attr:#x}"),
                call,
                &[Errno::EINVAL],
            );
        }
        let opened = tee.try_open(pin::UUID, [value(attr, 0, 0, 0), NONE, NONE, NONE]);
        t.refused(
            &format!("opening with a parameter of kind {attr:#x}"),
            opened.map(|(session, _)| session),
            &[Errno::EINVAL],
        );
    }
    serves(t)
}

fn unknown_requests_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let call = Call::of(&[0; 64])?;
    for (what, request) in [
        ("a request of no number", request::UNKNOWN),
        ("a helper's request", request::SUPPL_RECV),
        ("a terminal's request", libc::TCGETS as libc::c_ulong),
    ] {
        t.refused(what, call.make(&tee, request), &[Errno::EINVAL]);
    }
    serves(t)
}

fn logins_are_checked_by_the_kernel(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let group = |number: u32| {
        let mut uuid = Uuid::default();
        uuid[..4].copy_from_slice(&number.to_ne_bytes());
        uuid
    };
    let log_in = |login, client| tee.open_as(login, client, pin::UUID, NO_PARAMS);
    for (what, login, client) in [
        ("a user", LOGIN_USER, group(0)),
        ("a member of its group", LOGIN_GROUP, group(0)),
    ] {
        let (session, reply) =
            log_in(login, client).map_err(Error::call(format!("login as {what}")))?;
        t.equal(
            Eye::Cpu,
            &format!("login as {what}"),
            reply.result,
            TEEC_SUCCESS,
        );
        close(&tee, session)?;
    }
    for (what, login, client, errno) in [
        ("another group", LOGIN_GROUP, group(4711), Errno::EPERM),
        ("no group", LOGIN_GROUP, group(u32::MAX), Errno::EPERM),
        ("the kernel", LOGIN_KERNEL, group(0), Errno::EPERM),
        ("a program", LOGIN_APPLICATION, group(0), Errno::EINVAL),
        ("nobody knows what", 77, group(0), Errno::EINVAL),
    ] {
        let opened = log_in(login, client).map(|(session, _)| session);
        t.refused(&format!("login as {what}"), opened, &[errno]);
    }
    serves(t)
}

fn unknown_function_is_the_applications_to_refuse(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let by_application = |result| (result, TEEC_ORIGIN_TRUSTED_APP);
    for function in [4711, u32::MAX] {
        let reply = tee.invoke(session, function, NO_PARAMS)?;
        let wanted = by_application(TEEC_ERROR_NOT_SUPPORTED);
        t.equal(Eye::Cpu, "an unknown function", reply.verdict(), wanted);
    }
    let (_area, shm) = registered(t, &tee)?;
    for (what, function, params) in [
        (
            "values where memory is due",
            pin::CHECKSUM,
            [value_in(1, 1), VALUE_OUT, NONE, NONE],
        ),
        (
            "memory where a value is due",
            pin::RETURN,
            [shm.all(PARAM_MEMREF_INPUT), NONE, NONE, NONE],
        ),
        (
            "one parameter too many",
            pin::RETURN,
            [value_in(0, 0), NONE, NONE, value_in(0, 0)],
        ),
        ("no parameter", pin::ECHO, NO_PARAMS),
    ] {
        let reply = tee.invoke(session, function, params)?;
        let wanted = by_application(TEEC_ERROR_BAD_PARAMETERS);
        t.equal(Eye::Cpu, what, reply.verdict(), wanted);
    }
    // What the application returns comes through, whatever it is.
    for code in [1, 0x7fff_ffff, 0xffff_3024, u32::MAX] {
        let params = [value_in(code.into(), 0), NONE, NONE, NONE];
        let reply = tee.invoke(session, pin::RETURN, params)?;
        t.equal(
            Eye::Cpu,
            "what it returns",
            reply.verdict(),
            by_application(code),
        );
    }
    let (_, reply) = tee
        .try_open(pin::UUID, [value_in(1, 2), NONE, NONE, NONE])
        .map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
    let wanted = by_application(TEEC_ERROR_BAD_PARAMETERS);
    t.equal(
        Eye::Cpu,
        "opening with a parameter",
        reply.verdict(),
        wanted,
    );
    let sessions = Device::open()?.status()?.sessions.get();
    t.equal(Eye::Device, "sessions that are open", sessions, 1);
    Ok(())
}

fn sessions_that_are_not_open_are_refused(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let closed = tee.session(pin::UUID)?;
    close(&tee, closed)?;
    let (unopened, _) = tee
        .try_open([0x5a; 16], NO_PARAMS)
        .map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
    let by_tee = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TEE);
    for (what, session) in [
        ("session 0", Session(0)),
        ("a session that was closed", closed),
        ("a session that did not open", unopened),
        ("a session that never was", Session(closed.0 + 1000)),
        ("the last of all sessions", Session(u32::MAX)),
    ] {
        let reply = tee.invoke(session, pin::ECHO, NO_PARAMS)?;
        t.equal(
            Eye::Cpu,
            &format!("a call in {what}"),
            reply.verdict(),
            by_tee,
        );
        let closing = tee.close_session(session);
        t.refused(&format!("closing {what}"), closing, &[Errno::EINVAL]);
    }
    serves(t)
}

fn second_session_with_a_single_instance_is_busy(t: &mut Ctx) -> TestResult {
    let (tee, other) = (Tee::open()?, Tee::open()?);
    let first = tee.session(secure_storage::UUID)?;
    for client in [&tee, &other] {
        let opened = client.try_open(secure_storage::UUID, NO_PARAMS);
        let (_, reply) = opened.map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
        let wanted = (TEEC_ERROR_BUSY, TEEC_ORIGIN_TEE);
        t.equal(Eye::Cpu, "a second session", reply.verdict(), wanted);
    }
    close(&tee, first)?;
    close(&other, other.session(secure_storage::UUID)?)
}

fn sessions_run_out_cleanly(t: &mut Ctx) -> TestResult {
    /// More than any TEE has.
    const MANY: usize = 1 << 14;
    let (tee, before) = (Tee::open()?, Before::look()?);
    let mut opened = 0;
    let reply = loop {
        let answer = tee.try_open(hello_world::UUID, NO_PARAMS);
        let (_, reply) = answer.map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
        if reply.result != TEEC_SUCCESS || opened == MANY {
            break reply;
        }
        opened += 1;
    };
    let wanted = (TEEC_ERROR_OUT_OF_MEMORY, TEEC_ORIGIN_TEE);
    t.equal(
        Eye::Cpu,
        "the session that is too many",
        reply.verdict(),
        wanted,
    );
    t.note(format!("{opened} sessions were opened"));
    let sessions = before.device.status()?.sessions.get();
    t.equal(Eye::Device, "open sessions", sessions, opened as u64);
    drop(tee);
    let sessions = before.device.status()?.sessions.get();
    t.equal(Eye::Device, "sessions of a closed client", sessions, 0);
    serves(t)
}

fn memory_of_a_panicked_application_is_its_clients(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let params = [shm.all(PARAM_MEMREF_INOUT), VALUE_OUT, NONE, NONE];
    tee.invoke(session, pin::HOLD, params)?.ok("HOLD")?;
    let dead = (TEEC_ERROR_TARGET_DEAD, TEEC_ORIGIN_TEE);
    let reply = tee.invoke(session, pin::PANIC, NO_PARAMS)?;
    t.equal(Eye::Cpu, "the call that panics", reply.verdict(), dead);
    let params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
    let reply = tee.invoke(session, pin::CHECKSUM, params)?;
    t.equal(Eye::Cpu, "the next call with memory", reply.verdict(), dead);
    let next = tee.session(pin::UUID)?;
    judge_checksum(t, &tee, next, &shm, area.written())?;
    let params = [value_in(1, 0), shm.all(PARAM_MEMREF_OUTPUT), NONE, NONE];
    let reply = tee.invoke(next, pin::HELD_READ, params)?;
    let forgotten = (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(
        Eye::Cpu,
        "what the dead instance held",
        reply.verdict(),
        forgotten,
    );
    close(&tee, session)?;
    drop(shm);
    before.judge(t, "after the memory was closed", 0, 0)
}

fn object_name_that_is_too_long_is_a_panic(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(secure_storage::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let name = |length| shm.part(PARAM_MEMREF_INPUT, 0, length);
    let contents = shm.part(PARAM_MEMREF_INPUT, 100, 1000);
    let write = [name(64), contents, NONE, NONE];
    tee.invoke(session, secure_storage::WRITE, write)?
        .ok("WRITE")?;
    let reply = tee.invoke(
        session,
        secure_storage::WRITE,
        [name(65), contents, NONE, NONE],
    )?;
    let dead = (TEEC_ERROR_TARGET_DEAD, TEEC_ORIGIN_TEE);
    t.equal(Eye::Cpu, "a name of 65 bytes", reply.verdict(), dead);
    close(&tee, session)?;
    let session = tee.session(secure_storage::UUID)?;
    let room = shm.part(PARAM_MEMREF_OUTPUT, 2000, 1000);
    let read = [name(64), room, NONE, NONE];
    let reply = tee
        .invoke(session, secure_storage::READ, read)?
        .ok("READ")?;
    t.equal(Eye::Cpu, "the object's size", reply.size(1), 1000);
    let mut expected = area.written().to_vec();
    expected.copy_within(100..1100, 2000);
    area.judge(t, "the memory after READ", &expected)?;
    tee.invoke(
        session,
        secure_storage::DELETE,
        [name(64), NONE, NONE, NONE],
    )?
    .ok("DELETE")?;
    close(&tee, session)
}

fn memory_that_goes_away_is_a_fault(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    let (area, shm) = registered(t, &tee)?;
    let size = shm.size;
    let params = [shm.all(PARAM_MEMREF_INOUT), VALUE_OUT, NONE, NONE];
    let held = tee
        .invoke(session, pin::HOLD, params)?
        .ok("HOLD")?
        .value(1)
        .0;
    drop(shm);
    let (other, source) = registered(t, &tee)?;
    let faults = device.status()?.faults.get();
    let fault = (TEEC_ERROR_SECURITY, TEEC_ORIGIN_TEE);
    let read = [value_in(held, 0), value_in(0, size), VALUE_OUT, NONE];
    let reply = tee.invoke(session, pin::HELD_CHECKSUM, read)?;
    t.equal(
        Eye::Cpu,
        "reading memory that was closed",
        reply.verdict(),
        fault,
    );
    let write = [
        value_in(held, 0),
        source.all(PARAM_MEMREF_INPUT),
        NONE,
        NONE,
    ];
    let reply = tee.invoke(session, pin::HELD_WRITE, write)?;
    t.equal(
        Eye::Cpu,
        "writing memory that was closed",
        reply.verdict(),
        fault,
    );
    area.judge_untouched(t, "the memory that was closed")?;
    let faults = device.status()?.faults.get() - faults;
    t.equal(Eye::Device, "DMA faults", faults, 2);
    judge_checksum(t, &tee, session, &source, other.written())
}

fn memory_is_held_as_it_was_given(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let ((area, shm), (to, sink)) = (registered(t, &tee)?, registered(t, &tee)?);
    let hold = |attr| {
        let params = [shm.part(attr, 100, 200), VALUE_OUT, NONE, NONE];
        let reply = tee.invoke(session, pin::HOLD, params)?.ok("HOLD")?;
        TestResult::Ok(reply.value(1).0)
    };
    let (for_reading, for_writing) = (hold(PARAM_MEMREF_INPUT)?, hold(PARAM_MEMREF_OUTPUT)?);
    let read = |held, offset, length| {
        let params = [
            value_in(held, offset),
            sink.part(PARAM_MEMREF_OUTPUT, 0, length),
            NONE,
            NONE,
        ];
        tee.invoke(session, pin::HELD_READ, params)
    };
    let write = |held, offset, length| {
        let params = [
            value_in(held, offset),
            sink.part(PARAM_MEMREF_INPUT, 0, length),
            NONE,
            NONE,
        ];
        tee.invoke(session, pin::HELD_WRITE, params)
    };
    let refused = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
    for (what, reply) in [
        (
            "reading what was given for writing",
            read(for_writing, 0, 1)?,
        ),
        (
            "writing what was given for reading",
            write(for_reading, 0, 1)?,
        ),
        ("reading past the end", read(for_reading, 199, 2)?),
        ("writing past the end", write(for_writing, 0, 201)?),
        (
            "reading from past all ends",
            read(for_reading, u64::MAX, 2)?,
        ),
    ] {
        t.equal(Eye::Cpu, what, reply.verdict(), refused);
    }
    area.judge_untouched(t, "the memory that was given")?;
    to.judge_untouched(t, "the memory to read into")?;
    let from = sink.part(PARAM_MEMREF_INPUT, 1, 1);
    let last = [value_in(for_writing, 199), from, NONE, NONE];
    tee.invoke(session, pin::HELD_WRITE, last)?
        .ok("writing the last byte")?;
    let mut expected = area.written().to_vec();
    expected[299] = to.written()[1];
    Ok(area.judge(t, "the memory after its last byte was written", &expected)?)
}

/// Leaves all that a client can leave.
fn take_all(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let (session, second) = (tee.session(pin::UUID)?, tee.session(secure_storage::UUID)?);
    let (area, shm) = registered(t, &tee)?;
    let params = [shm.all(PARAM_MEMREF_INOUT), VALUE_OUT, NONE, NONE];
    tee.invoke(session, pin::HOLD, params)?.ok("HOLD")?;
    let allocated = tee
        .allocate(3 * PAGE)
        .map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    std::mem::forget((tee, second, area, shm, allocated));
    Ok(())
}

fn client_that_exits_leaves_nothing(t: &mut Ctx) -> TestResult {
    // The child could not say that there is none.
    drop(Tee::open()?);
    let before = Before::look()?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let status = i32::from(take_all(t).is_err());
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(status) }
        }
    };
    let ended = waitpid(child, None).map_err(Error::call("waitpid"))?;
    t.check(
        Eye::Harness,
        matches!(ended, WaitStatus::Exited(_, 0)),
        || format!("the client ended with {ended:?}"),
    );
    before.judge(t, "after the client has exited", 0, 0)?;
    let sessions = before.device.status()?.sessions.get();
    t.equal(Eye::Device, "the exited client's sessions", sessions, 0);
    // The application that takes one session at a time takes the next one.
    let tee = Tee::open()?;
    close(&tee, tee.session(secure_storage::UUID)?)?;
    serves(t)
}
