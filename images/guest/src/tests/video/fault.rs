// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the device must not be talked into: jobs behind the driver's back on memory that it was not given.

use crate::tests::sources::DEVICE;
use crate::tests::test::{FRAME, Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::wire::{self, JobRequest};
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("fault::detached_memory_is_not_read", detached_memory_is_not_read, DEVICE,
        "A job that reads a buffer after the driver took it back is a DMA fault, raises an event, and writes nothing."),
    test("fault::detached_memory_is_not_written", detached_memory_is_not_written, DEVICE,
        "A job that writes a buffer after the driver took it back is a DMA fault, raises an event, and leaves the memory alone."),
    test("fault::unknown_handle_faults", unknown_handle_faults, DEVICE,
        "A job that names a handle that was never given out is a DMA fault, raises an event, and writes nothing."),
    test("fault::out_of_bounds_faults", out_of_bounds_faults, DEVICE,
        "A job that goes past a buffer's end, also by wrapping around, is a DMA fault, raises an event, and writes nothing."),
    test("fault::wrong_direction_faults", wrong_direction_faults, DEVICE,
        "A job that writes an OUTPUT buffer or reads a CAPTURE buffer is a DMA fault, raises an event, and writes nothing."),
];

/// A user-memory buffer on each queue, filled and with the device; not streaming.
struct Stage {
    m2m: M2m,
    src: Area,
    dst: Area,
}

impl Stage {
    fn set(t: &mut Ctx) -> TestResult<Self> {
        let m2m = M2m::copier(FRAME)?;
        let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
        let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
        src.fill(t)?;
        dst.fill(t)?;
        m2m.queue(t, Output, 0, &src)?;
        m2m.queue(t, Capture, 0, &dst)?;
        Ok(Self { m2m, src, dst })
    }

    fn handles(&self) -> TestResult<(u64, u64)> {
        Ok((self.m2m.handle(Output, 0)?, self.m2m.handle(Capture, 0)?))
    }

    /// Sends a job and expects this fault, the same as an event, and no byte changed anywhere.
    fn expect_fault(
        &self,
        t: &mut Ctx,
        what: &str,
        job: &JobRequest,
        reason: u32,
        access: u32,
        range: wire::Range,
    ) -> TestResult {
        let faults = self.m2m.device.status()?.faults.get();
        let answer = self.m2m.device.job(job)?;
        t.equal(
            Eye::Device,
            &format!("{what}: status"),
            answer.header.status.get(),
            wire::STATUS_DMA_FAULT,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: reason"),
            answer.fault.reason.get(),
            reason,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: access"),
            answer.fault.access.get(),
            access,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: range"),
            answer.fault.range,
            range,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: bytes written"),
            answer.bytes_written.get(),
            0,
        );
        t.equal(
            Eye::Device,
            &format!("{what}: faults counted"),
            self.m2m.device.status()?.faults.get() - faults,
            1,
        );
        match self.m2m.device.next_event(5_000)? {
            None => t.find(Eye::Device, format!("{what}: no event after 5 s")),
            Some(event) => {
                t.equal(
                    Eye::Device,
                    &format!("{what}: the event's kind"),
                    event.kind.get(),
                    wire::EVENT_DMA_FAULT,
                );
                t.equal(
                    Eye::Device,
                    &format!("{what}: the event's cookie"),
                    event.cookie.get(),
                    job.header.cookie.get(),
                );
                t.equal(
                    Eye::Device,
                    &format!("{what}: the event's fault"),
                    event.fault,
                    answer.fault,
                );
            }
        }
        self.src
            .judge_untouched(t, &format!("{what}: the OUTPUT buffer's memory"))?;
        Ok(self
            .dst
            .judge_untouched(t, &format!("{what}: the CAPTURE buffer's memory"))?)
    }

    /// The same job on what the device does hold works: it was refused for its fault alone.
    fn expect_success(&self, t: &mut Ctx) -> TestResult {
        let (src, dst) = self.handles()?;
        let answer = self.m2m.device.job(&device::copy(src, dst, LENGTH))?;
        t.equal(
            Eye::Device,
            "status of a good job",
            answer.header.status.get(),
            wire::STATUS_OK,
        );
        Ok(self
            .dst
            .judge(t, "the CAPTURE buffer after a good job", self.src.written())?)
    }
}

const LENGTH: u64 = (FRAME.width * FRAME.height) as u64;

fn detached_memory_is_not_read(t: &mut Ctx) -> TestResult {
    let stage = Stage::set(t)?;
    let (src, dst) = stage.handles()?;
    stage.m2m.request(Output, Memory::Userptr, 0)?;
    let job = device::copy(src, dst, LENGTH);
    stage.expect_fault(
        t,
        "a job that reads detached memory",
        &job,
        wire::FAULT_NOT_ATTACHED,
        wire::DIRECTION_READ,
        job.src,
    )
}

fn detached_memory_is_not_written(t: &mut Ctx) -> TestResult {
    let stage = Stage::set(t)?;
    let (src, dst) = stage.handles()?;
    stage.m2m.request(Capture, Memory::Userptr, 0)?;
    let job = device::copy(src, dst, LENGTH);
    stage.expect_fault(
        t,
        "a job that writes detached memory",
        &job,
        wire::FAULT_NOT_ATTACHED,
        wire::DIRECTION_WRITE,
        job.dst,
    )
}

fn unknown_handle_faults(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let stage = Stage::set(t)?;
    let (src, dst) = stage.handles()?;
    for unknown in [0, dst.max(src) + 1_000_000, u64::MAX] {
        let job = device::copy(unknown, dst, LENGTH);
        stage.expect_fault(
            t,
            &format!("a job that reads handle {unknown:#x}"),
            &job,
            wire::FAULT_NOT_ATTACHED,
            wire::DIRECTION_READ,
            job.src,
        )?;
        let job = device::copy(src, unknown, LENGTH);
        stage.expect_fault(
            t,
            &format!("a job that writes handle {unknown:#x}"),
            &job,
            wire::FAULT_NOT_ATTACHED,
            wire::DIRECTION_WRITE,
            job.dst,
        )?;
    }
    stage.expect_success(t)
}

fn out_of_bounds_faults(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let stage = Stage::set(t)?;
    let (src, dst) = stage.handles()?;
    for (offset, length) in [(1, LENGTH), (LENGTH, 1), (u64::MAX - 4, 8)] {
        let mut job = device::copy(src, dst, LENGTH);
        job.src = device::range(src, offset, length);
        job.dst = device::range(dst, 0, length.min(LENGTH));
        stage.expect_fault(
            t,
            &format!("a job that reads {length} bytes at {offset}"),
            &job,
            wire::FAULT_OUT_OF_BOUNDS,
            wire::DIRECTION_READ,
            job.src,
        )?;
        job.src = device::range(src, 0, length.min(LENGTH));
        job.dst = device::range(dst, offset, length);
        stage.expect_fault(
            t,
            &format!("a job that writes {length} bytes at {offset}"),
            &job,
            wire::FAULT_OUT_OF_BOUNDS,
            wire::DIRECTION_WRITE,
            job.dst,
        )?;
    }
    stage.expect_success(t)
}

fn wrong_direction_faults(t: &mut Ctx) -> TestResult {
    // The device and the CPU use the memory at the same time.
    swiotlb::unless_forced()?;
    let stage = Stage::set(t)?;
    let (src, dst) = stage.handles()?;
    let job = device::copy(dst, dst, LENGTH);
    stage.expect_fault(
        t,
        "a job that reads a CAPTURE buffer",
        &job,
        wire::FAULT_PERMISSION,
        wire::DIRECTION_READ,
        job.src,
    )?;
    let job = device::copy(src, src, LENGTH);
    stage.expect_fault(
        t,
        "a job that writes an OUTPUT buffer",
        &job,
        wire::FAULT_PERMISSION,
        wire::DIRECTION_WRITE,
        job.dst,
    )?;
    stage.expect_success(t)
}
