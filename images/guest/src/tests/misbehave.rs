// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device that answers wrongly, late, twice or never, or writes where it must not: the driver gives every buffer back, with an error
//! where there was one, and works again; what was written astray is seen.

use crate::tests::test::{FRAME, Test, test};
use crate::tests::unplug::{errno, no_device, works};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::memory::area::Area;
use pinbed_guest::module;
use pinbed_guest::observe::cma;
use pinbed_guest::observe::device::{Device, copy};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::{NONE, Reply, Session, Tee, value_in};
use pinbed_guest::tee::protected::Protected;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use pinbed_guest::video::v4l2::{FLAG_ERROR, Memop, Memory};
use std::thread;
use std::time::Duration;

const INJECT: &str = "docs/device.md, 5.1 Control, OP_INJECT";

/// A test for each video node.
macro_rules! each {
    ($run:ident, $name:literal, $correct:literal) => {
        [
            each!(@ $run, DmaSg, "sg", $name, "dma-sg", $correct),
            each!(@ $run, DmaContig, "contig", $name, "dma-contig", $correct),
            each!(@ $run, Vmalloc, "vmalloc", $name, "vmalloc", $correct),
        ]
    };
    (@ $run:ident, $memop:ident, $short:literal, $name:literal, $node:literal, $correct:literal) => {
        test(
            concat!("fault::", $short, "_", $name),
            |t| $run(t, Memop::$memop),
            INJECT,
            concat!("On the ", $node, " node, ", $correct),
        )
    };
}

#[rustfmt::skip]
pub const TESTS: [&[Test]; 5] = [
    &[test("fault::lost_completions_give_the_device_up", lost, INJECT,
        "Jobs of the dma-sg, dma-contig and vmalloc nodes, and one on imported dma-bufs, that are never answered end with an error when timeout_s is over, and the device works when it is bound again.")],
    &each!(twice, "second_completion_gives_the_device_up",
        "a job that is answered twice breaks the ring: requests end with ENODEV, and the device works when it is bound again."),
    &each!(short, "short_transfer_is_an_error",
        "both buffers of a copy that moved half of its bytes come back with V4L2_BUF_FLAG_ERROR, and the next job is good."),
    &each!(wrong, "wrong_status_is_an_error",
        "both buffers of a job that is answered with a status of error, or one that is not defined, come back with V4L2_BUF_FLAG_ERROR."),
    &[
        test("fault::imports_come_back_with_an_error", imports, INJECT,
            "Both imported dma-bufs of a copy that moved half of its bytes, or is answered with a wrong status, come back with V4L2_BUF_FLAG_ERROR, and the next job is good."),
        test("fault::lost_attach_gives_the_device_up", lost_attach, INJECT,
            "A QBUF whose ATTACH is carried out and never answered fails when timeout_s is over; the memory is unpinned after a reset, and the device works when it is bound again."),
        test("fault::refused_detach_of_protected_memory_resets_the_device", kept_protected, INJECT,
            "When the device does not let go of protected memory the driver resets it before the memory is free again."),
        test("fault::wrong_status_is_an_error_of_the_call", wrong_call, INJECT,
            "A call of the TEE that is answered with a status of error, or one that is not defined, fails, and the next one in the session does not."),
        test("fault::second_answer_to_a_call_gives_the_device_up", twice_call, INJECT,
            "A call of the TEE that is answered twice breaks the ring: requests end with ENODEV, and the device works when it is bound again."),
        test("fault::lost_call_ends_with_the_binding", lost_call, INJECT,
            "A call of the TEE that is never answered waits while the device is alive, and ends with an error when it is unbound."),
        test("fault::reordered_completions_find_their_jobs", reordered, INJECT,
            "Jobs of two nodes whose answers come in the other order end with the bytes that are theirs."),
        test("fault::write_to_the_wrong_page_is_seen", astray, INJECT,
            "Where the device writes beside the buffer and says that it did not, the CPU does not see the bytes that the device reports."),
        test("fault::write_after_detach_is_seen", stale, INJECT,
            "Where the device writes to user memory after DETACH, the process sees it, and the kernel goes on."),
        test("fault::write_after_detach_is_seen_through_the_tee", stale_tee, INJECT,
            "Where the device writes to registered memory after DETACH, the process sees it, and the kernel goes on."),
    ],
];

/// Both queues' own buffers, which each node has.
fn stage(memop: Memop) -> TestResult<(M2m, Area, Area)> {
    let m2m = M2m::copier_on(memop, FRAME)?;
    let (src, dst) = (m2m.own(Output)?, m2m.own(Capture)?);
    Ok((m2m, src, dst))
}

/// A job with what is injected.
fn start(t: &mut Ctx, m2m: &M2m, src: &mut Area, dst: &mut Area) -> TestResult {
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, src)?;
    m2m.queue(t, Capture, 0, dst)?;
    m2m.stream_on()
}

/// The device is given up: DQBUF ends with an error, all else with ENODEV, and a new binding works. `answered` if the jobs may have
/// ended before that.
fn given_up(t: &mut Ctx, stages: Vec<(M2m, Area, Area)>, answered: bool) -> TestResult {
    for (m2m, ..) in &stages {
        fcntl(&m2m.node, FcntlArg::F_SETFL(OFlag::O_RDWR)).map_err(Error::call("F_SETFL"))?;
        for queue in [Output, Capture] {
            let _ = match m2m.node.dequeue(queue, Memory::Mmap) {
                Ok(buffer) => t.check(Eye::Cpu, answered || buffer.flags & FLAG_ERROR != 0, || {
                    format!("{queue:?} comes back without V4L2_BUF_FLAG_ERROR")
                }),
                Err(errno) => t.check(
                    Eye::Cpu,
                    [Errno::EIO, Errno::ENODEV].contains(&errno),
                    || format!("DQBUF of {queue:?} ends with {errno:?}, expected EIO or ENODEV"),
                ),
            };
        }
    }
    let gone = || Ok(Device::open().is_err());
    let given_up = patience::until(patience::LIMIT, gone)?;
    t.check(Eye::Cpu, given_up, || "the device is not given up".into());
    for (m2m, ..) in &stages {
        no_device(t, "a request", errno(m2m.device.status()).map(drop));
    }
    drop(stages);
    module::restore()?;
    works(t)
}

/// What the driver says when it gives a device up.
const GIVEN_UP: &str = "given up until it is bound again";

fn lost(t: &mut Ctx) -> TestResult {
    t.expect_log(GIVEN_UP);
    let _timeout = module::parameter("timeout_s", "1")?;
    let memops = [Memop::DmaSg, Memop::DmaContig, Memop::Vmalloc];
    let mut stages = memops
        .map(stage)
        .into_iter()
        .collect::<TestResult<Vec<_>>>()?;
    stages.push(import()?);
    for (m2m, src, dst) in &mut stages {
        m2m.device.inject(wire::INJECT_LOSE, 1, 0)?;
        start(t, m2m, src, dst)?;
    }
    given_up(t, stages, false)
}

fn twice(t: &mut Ctx, memop: Memop) -> TestResult {
    t.expect_log(GIVEN_UP);
    // virtio's own words.
    t.expect_log("is not a head");
    let (m2m, mut src, mut dst) = stage(memop)?;
    m2m.device.inject(wire::INJECT_TWICE, 1, 0)?;
    start(t, &m2m, &mut src, &mut dst)?;
    given_up(t, vec![(m2m, src, dst)], true)
}

/// Both buffers come back with an error, and the next job is a good one.
fn judge_error(t: &mut Ctx, m2m: &M2m, src: &mut Area, dst: &mut Area) -> TestResult {
    t.expect_log(": malformed answer");
    start(t, m2m, src, dst)?;
    let (read, wrote) = m2m.dequeue_pair(src, dst)?;
    for (what, done) in [("OUTPUT", read), ("CAPTURE", wrote)] {
        t.check(Eye::Cpu, done.is_error(), || {
            format!("the {what} buffer comes back without V4L2_BUF_FLAG_ERROR")
        });
    }
    m2m.copy(t, src, dst)
}

fn short(t: &mut Ctx, memop: Memop) -> TestResult {
    let (m2m, mut src, mut dst) = stage(memop)?;
    m2m.device.inject(wire::INJECT_SHORT, 1, 0)?;
    judge_error(t, &m2m, &mut src, &mut dst)
}

fn wrong(t: &mut Ctx, memop: Memop) -> TestResult {
    let (m2m, mut src, mut dst) = stage(memop)?;
    for status in [wire::STATUS_LIMIT, wire::STATUS_ERROR, 77, u32::MAX] {
        m2m.device.inject(wire::INJECT_STATUS, 1, status.into())?;
        judge_error(t, &m2m, &mut src, &mut dst)?;
    }
    Ok(())
}

/// Imported dma-bufs on both queues of the dma-sg node.
fn import() -> TestResult<(M2m, Area, Area)> {
    let m2m = M2m::copier(FRAME)?;
    let src = m2m.with(Output, Area::udmabuf(FRAME.size())?)?;
    let dst = m2m.with(Capture, Area::udmabuf(FRAME.size())?)?;
    Ok((m2m, src, dst))
}

fn imports(t: &mut Ctx) -> TestResult {
    let (m2m, mut src, mut dst) = import()?;
    for (kind, argument) in [
        (wire::INJECT_SHORT, 0),
        (wire::INJECT_STATUS, wire::STATUS_ERROR),
        (wire::INJECT_STATUS, 77),
    ] {
        m2m.device.inject(kind, 1, argument.into())?;
        judge_error(t, &m2m, &mut src, &mut dst)?;
        m2m.stream_off()?;
    }
    Ok(())
}

fn lost_attach(t: &mut Ctx) -> TestResult {
    t.expect_log(GIVEN_UP);
    let _timeout = module::parameter("timeout_s", "1")?;
    let idle = vmstat::pinned_pages()?;
    let m2m = M2m::copier(FRAME)?;
    let src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    m2m.device.inject(wire::INJECT_LOSE_ATTACH, 1, 0)?;
    let queued = m2m.enqueue(Output, 0, &src);
    t.check(Eye::Cpu, queued.is_err(), || {
        "QBUF succeeds without an answer to its ATTACH".into()
    });
    no_device(t, "a request", errno(m2m.device.status()).map(drop));
    let pinned = vmstat::pinned_pages()?;
    t.equal(
        Eye::Cpu,
        "pages pinned after a QBUF that failed",
        pinned,
        idle,
    );
    drop((m2m, src));
    module::restore()?;
    works(t)
}

fn kept_protected(t: &mut Ctx) -> TestResult {
    const PAGES: usize = 16;
    t.expect_log(GIVEN_UP);
    let region = cma::largest()?;
    let used = region.used()?;
    let (tee, device) = (Tee::open()?, Device::open()?);
    let memory = Protected::new(&device, &tee, PAGES * PAGE)?;
    device.inject(wire::INJECT_KEEP, 1, 0)?;
    drop(memory);
    let gone = || Ok(errno(device.status()).is_err());
    let reset = patience::until(patience::LIMIT, gone)?;
    t.check(Eye::Device, reset, || {
        "the device is not reset after it refused a DETACH".into()
    });
    drop((tee, device));
    let free = || Ok(region.used()? == used);
    let returned = patience::until(patience::LIMIT, free)?;
    t.check(Eye::Aftermath, returned, || {
        "protected memory is still allocated after the reset".into()
    });
    module::restore()?;
    works(t)
}

/// An INVOKE that returns its argument.
fn call(tee: &Tee, session: Session) -> Result<Reply, Errno> {
    tee.try_invoke(session, pin::RETURN, &[value_in(7, 0), NONE, NONE, NONE], 0)
}

fn wrong_call(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    for status in [wire::STATUS_LIMIT, wire::STATUS_ERROR, 77, u32::MAX] {
        device.inject(wire::INJECT_STATUS_CALL, 1, status.into())?;
        let failed = match call(&tee, session) {
            Ok(reply) => reply.result != 7,
            Err(errno) => errno != Errno::ENODEV,
        };
        t.check(Eye::Cpu, failed, || {
            format!("a call that is answered with status {status} does not fail")
        });
        let reply = call(&tee, session).map_err(Error::call("TEE_IOC_INVOKE"))?;
        t.equal(Eye::Cpu, "the next call's result", reply.result, 7);
    }
    Ok(())
}

fn twice_call(t: &mut Ctx) -> TestResult {
    t.expect_log(GIVEN_UP);
    // virtio's own words.
    t.expect_log("is not a head");
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    device.inject(wire::INJECT_TWICE_CALL, 1, 0)?;
    // It may have ended before the ring broke.
    let _ = call(&tee, session);
    let gone = || Ok(errno(device.status()).is_err());
    let given_up = patience::until(patience::LIMIT, gone)?;
    t.check(Eye::Cpu, given_up, || "the device is not given up".into());
    drop((tee, device));
    module::restore()?;
    works(t)
}

fn lost_call(t: &mut Ctx) -> TestResult {
    let (tee, device) = (Tee::open()?, Device::open()?);
    let session = tee.session(pin::UUID)?;
    device.inject(wire::INJECT_LOSE_CALL, 1, 0)?;
    thread::scope(|scope| {
        let waits = scope.spawn(|| call(&tee, session));
        // Long enough for an answer, were there one.
        thread::sleep(Duration::from_millis(100));
        t.check(Eye::Cpu, !waits.is_finished(), || {
            "a call ends that was not answered".into()
        });
        module::unbind()?;
        let ended = waits
            .join()
            .is_ok_and(|reply| reply.is_ok_and(|it| it.result == 7));
        t.check(Eye::Cpu, !ended, || {
            "a call that was not answered succeeds".into()
        });
        Ok::<_, Stop>(())
    })?;
    drop((tee, device));
    module::restore()?;
    works(t)
}

/// While this lives an answer may be held back; then a job brings it along, whatever the job comes to. Without it a test that ends early
/// would wait for the driver to give the device up.
struct HeldBack<'a>(&'a Device);

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        let _ = self.0.inject(wire::INJECT_NONE, 0, 0);
        let _ = self.0.job(&copy(0, 0, 0));
    }
}

fn reordered(t: &mut Ctx) -> TestResult {
    let (first, mut first_src, mut first_dst) = stage(Memop::DmaSg)?;
    let (second, mut second_src, mut second_dst) = stage(Memop::Vmalloc)?;
    for _ in 0..3 {
        first.device.inject(wire::INJECT_REORDER, 1, 0)?;
        let _held_back = HeldBack(&first.device);
        start(t, &first, &mut first_src, &mut first_dst)?;
        // The answer to this lets the one to the first go.
        start(t, &second, &mut second_src, &mut second_dst)?;
        let (src, dst) = (&second_src, &second_dst);
        second.finish(t, src, src.written(), dst, src.written())?;
        let (src, dst) = (&first_src, &first_dst);
        first.finish(t, src, src.written(), dst, src.written())?;
        first.stream_off()?;
        second.stream_off()?;
    }
    Ok(())
}

fn astray(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    /// Within the huge page.
    const DISTANCE: usize = 1 << 20;
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::huge(0, FRAME.size())?)?;
    m2m.device.inject(wire::INJECT_ASTRAY, 1, DISTANCE as u64)?;
    start(t, &m2m, &mut src, &mut dst)?;
    let (_, wrote) = m2m.dequeue_pair(&src, &dst)?;
    let wanted = src.written().to_vec();
    t.equal(
        Eye::Device,
        "the CRC32C that the device reports",
        wrote.report.job_crc,
        crc(&wanted),
    );
    t.check(Eye::Cpu, dst.contents()? != wanted, || {
        "the CPU sees the bytes in the buffer: the device did not write astray".into()
    });
    t.same_bytes(
        Eye::Cpu,
        "the buffer that the device did not write",
        &dst.contents()?,
        dst.written(),
    );
    let beside = dst.mapping.read(DISTANCE..DISTANCE + wanted.len());
    t.same_bytes(Eye::Cpu, "memory beside the buffer", &beside, &wanted);
    // Not for the judge of the next job, who looks around the buffer.
    dst.mapping.write(DISTANCE, &vec![0; wanted.len()]);
    let mut other = Area::anon(0, FRAME.size())?;
    drop(dst);
    m2m.stream_off()?;
    m2m.request(Capture, Memory::Userptr, 0)?;
    other = m2m.with(Capture, other)?;
    m2m.copy(t, &mut src, &mut other)
}

fn stale(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    const FILL: u8 = 0x5c;
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    src.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.device.inject(wire::INJECT_STALE, 1, FILL.into())?;
    m2m.request(Output, Memory::Userptr, 0)?;
    t.equal(
        Eye::Device,
        "buffers held after REQBUFS",
        m2m.device.list()?.len(),
        0,
    );
    t.same_bytes(
        Eye::Cpu,
        "the memory before",
        &src.contents()?,
        src.written(),
    );
    m2m.device.status()?;
    let now = src.contents()?;
    t.check(Eye::Cpu, now.iter().all(|byte| *byte == FILL), || {
        "the process does not see what the device wrote after DETACH".into()
    });
    drop((m2m, src));
    works(t)
}

fn stale_tee(t: &mut Ctx) -> TestResult {
    const FILL: u8 = 0xa7;
    let (tee, device) = (Tee::open()?, Device::open()?);
    let mut area = Area::anon(0, 4 * PAGE)?;
    area.fill(t)?;
    let registered = tee.register(area.address(), area.len());
    let shm = registered.map_err(Error::call("TEE_IOC_SHM_REGISTER"))?;
    device.inject(wire::INJECT_STALE, 1, FILL.into())?;
    drop(shm);
    t.equal(
        Eye::Device,
        "buffers held after the memory's file was closed",
        device.list()?.len(),
        0,
    );
    t.same_bytes(
        Eye::Cpu,
        "the memory before",
        &area.contents()?,
        area.written(),
    );
    device.status()?;
    let now = area.contents()?;
    t.check(Eye::Cpu, now.iter().all(|byte| *byte == FILL), || {
        "the process does not see what the device wrote after DETACH".into()
    });
    drop((tee, device));
    works(t)
}
