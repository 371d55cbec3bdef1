// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers over time: many jobs, failed jobs, and every way to stop.

use crate::tests::sources::{PIN_USER_PAGES, QBUF, REQBUFS, STREAMON, USERP};
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pause, pipe, read, write};
use pinbed_abi::report::Eye;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::{M2m, judge_job};
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use pinbed_guest::video::v4l2::{FLAG_DONE, FLAG_QUEUED, Memory};
use std::time::{Duration, Instant};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("stream::buffers_come_back_in_order", buffers_come_back_in_order, QBUF,
        "Four queued pairs come back in the order in which they were queued, each with its own data."),
    Test { timeout_s: 180, ..test("stream::thousand_cycles_pin_once", thousand_cycles_pin_once, USERP,
        "A thousand QBUF and DQBUF of the same user memory pin it once, move each cycle's data, and leave the counters balanced.") },
    Test { timeout_s: 180, ..test("stream::thousand_repins_leave_nothing_pinned", thousand_repins_leave_nothing_pinned, PIN_USER_PAGES,
        "A thousand QBUF of ever other user memory release the former pin each time, and leave the counters balanced.") },
    test("stream::failed_job_returns_its_buffers", failed_job_returns_its_buffers, QBUF,
        "A job that fails in the device returns both buffers with V4L2_BUF_FLAG_ERROR and writes nothing; the next job works."),
    test("stream::streamoff_returns_queued_buffers", streamoff_returns_queued_buffers, STREAMON,
        "STREAMOFF takes every queued buffer back; they can be queued again and work."),
    test("stream::streamoff_outlasts_the_job_in_flight", streamoff_outlasts_the_job_in_flight, STREAMON,
        "When STREAMOFF returns the device is done with the buffers, even if a job was in flight: none changes later."),
    test("stream::reqbufs_of_none_unpins_queued_buffers", reqbufs_of_none_unpins_queued_buffers, REQBUFS,
        "REQBUFS of no buffers takes queued buffers back from the device and unpins them."),
    test("stream::close_unpins_queued_buffers", close_unpins_queued_buffers, REQBUFS,
        "Closing the node takes queued buffers back from the device and unpins them."),
    test("stream::killed_process_leaves_nothing", killed_process_leaves_nothing, PIN_USER_PAGES,
        "A process killed with queued buffers leaves no pin and no attached buffer."),
    test("stream::process_killed_mid_job_leaves_nothing", process_killed_mid_job_leaves_nothing, PIN_USER_PAGES,
        "A process killed while a job is in flight leaves no pin and no attached buffer."),
];

/// Less than a page.
const SMALL: Image = Image::grey(64, 48);

fn buffers_come_back_in_order(t: &mut Ctx) -> TestResult {
    const COUNT: u32 = 4;
    let m2m = M2m::copier(FRAME)?;
    m2m.request(Output, Memory::Userptr, COUNT)?;
    m2m.request(Capture, Memory::Mmap, COUNT)?;
    let mut pairs = Vec::new();
    for index in 0..COUNT {
        let (mut src, mut dst) = (
            Area::anon(index as usize * 40, FRAME.size())?,
            m2m.map(Capture, index)?,
        );
        src.fill(t)?;
        dst.fill(t)?;
        m2m.queue(t, Output, index, &src)?;
        m2m.queue(t, Capture, index, &dst)?;
        pairs.push((src, dst));
    }
    m2m.stream_on()?;
    for (index, (src, dst)) in pairs.iter().enumerate() {
        let (read, wrote) = m2m.dequeue_pair(src, dst)?;
        for (what, done) in [("OUTPUT", &read), ("CAPTURE", &wrote)] {
            t.equal(
                Eye::Cpu,
                &format!("{what}: index"),
                done.buffer.index as usize,
                index,
            );
            t.equal(
                Eye::Cpu,
                &format!("{what}: sequence"),
                done.buffer.sequence as usize,
                index,
            );
            judge_job(t, what, done, src.written());
        }
        dst.judge(t, &format!("CAPTURE buffer {index}"), src.written())?;
    }
    Ok(())
}

/// A thousand jobs, each with other data, between the areas that `pick` chooses among two of each queue.
fn thousand(t: &mut Ctx, pick: fn(usize) -> usize) -> TestResult {
    let m2m = M2m::copier(SMALL)?;
    let pins = vmstat::pinned_pages()?;
    let mut sources = [Area::anon(8, SMALL.size())?, Area::anon(80, SMALL.size())?];
    let mut sinks = [Area::anon(0, SMALL.size())?, Area::anon(1, SMALL.size())?];
    m2m.request(Output, Memory::Userptr, 1)?;
    m2m.request(Capture, Memory::Userptr, 1)?;
    for area in sources.iter_mut().chain(&mut sinks) {
        area.fill(t)?;
    }
    m2m.stream_on()?;
    for cycle in 0..1000 {
        let (src, dst) = (&mut sources[pick(cycle)], &sinks[pick(cycle)]);
        src.refresh(t)?;
        // Looking at the placement takes longer than all the rest.
        if cycle % 50 < 2 {
            m2m.queue(t, Output, 0, src)?;
            m2m.queue(t, Capture, 0, dst)?;
        } else {
            for (queue, area) in [(Output, &*src), (Capture, dst)] {
                let queued = m2m.enqueue(queue, 0, area);
                queued.map_err(|errno| {
                    Stop::finding(Eye::Cpu, format!("QBUF fails with {errno:?}"))
                })?;
            }
        }
        m2m.finish(t, src, src.written(), dst, src.written())?;
        if t.findings() > 0 {
            t.note(format!("given up after cycle {cycle}"));
            break;
        }
    }
    // Each area is on one page.
    t.equal(
        Eye::Aftermath,
        "pinned pages after the last DQBUF",
        vmstat::pinned_pages()? - pins,
        2,
    );
    m2m.stream_off()?;
    m2m.request(Output, Memory::Userptr, 0)?;
    m2m.request(Capture, Memory::Userptr, 0)?;
    t.equal(
        Eye::Aftermath,
        "pinned pages after REQBUFS of none",
        vmstat::pinned_pages()? - pins,
        0,
    );
    Ok(())
}

fn thousand_cycles_pin_once(t: &mut Ctx) -> TestResult {
    thousand(t, |_| 0)
}

fn thousand_repins_leave_nothing_pinned(t: &mut Ctx) -> TestResult {
    thousand(t, |cycle| cycle % 2)
}

fn failed_job_returns_its_buffers(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.device.inject(wire::INJECT_FAIL, 1, 0)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.stream_on()?;
    let (read, wrote) = m2m.dequeue_pair(&src, &dst)?;
    for (what, done) in [("OUTPUT", read), ("CAPTURE", wrote)] {
        t.check(Eye::Cpu, done.is_error(), || {
            format!("the {what} buffer of a failed job comes back without V4L2_BUF_FLAG_ERROR")
        });
        t.equal(
            Eye::Device,
            &format!("{what}: the failed job's status"),
            done.report.job_status,
            wire::STATUS_ERROR,
        );
    }
    dst.judge_untouched(t, "the CAPTURE buffer of a failed job")?;
    m2m.copy(t, &mut src, &mut dst)
}

fn streamoff_returns_queued_buffers(t: &mut Ctx) -> TestResult {
    const COUNT: u32 = 3;
    let m2m = M2m::copier(FRAME)?;
    m2m.request(Output, Memory::Userptr, COUNT)?;
    let mut dst = m2m.own(Capture)?;
    let mut sources = Vec::new();
    for index in 0..COUNT {
        let mut src = Area::anon(8, FRAME.size())?;
        src.fill(t)?;
        m2m.queue(t, Output, index, &src)?;
        sources.push(src);
    }
    // No CAPTURE buffer is queued, so none of them is used up.
    m2m.stream_on()?;
    m2m.stream_off()?;
    for index in 0..COUNT {
        let flags = m2m
            .node
            .query(Output, index)
            .map_err(|errno| Stop::finding(Eye::Cpu, format!("QUERYBUF fails with {errno:?}")))?
            .flags;
        t.equal(
            Eye::Cpu,
            &format!("QUEUED and DONE flags of OUTPUT buffer {index}"),
            flags & (FLAG_QUEUED | FLAG_DONE),
            0,
        );
    }
    t.refused(
        "DQBUF after STREAMOFF",
        m2m.node.dequeue(Output, Memory::Userptr),
        &[Errno::EINVAL],
    );
    m2m.copy(t, &mut sources[0], &mut dst)
}

fn streamoff_outlasts_the_job_in_flight(t: &mut Ctx) -> TestResult {
    const DELAY: Duration = Duration::from_millis(150);
    let m2m = M2m::copier(FRAME)?;
    let mut src = m2m.with(Output, Area::anon(0, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    src.fill(t)?;
    dst.fill(t)?;
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    m2m.device
        .inject(wire::INJECT_DELAY, 1, DELAY.as_micros() as u64)?;
    let jobs = m2m.device.status()?.jobs.get();
    m2m.stream_on()?;
    let start = Instant::now();
    m2m.stream_off()?;
    t.note(format!(
        "STREAMOFF returned after {:?}, {} jobs were answered by then",
        start.elapsed(),
        m2m.device.status()?.jobs.get() - jobs
    ));

    let after_off = dst.contents()?;
    let either = [dst.written().to_vec(), src.written().to_vec()];
    t.check(Eye::Cpu, either.contains(&after_off), || {
        "after STREAMOFF the CAPTURE buffer is neither as before nor as copied".into()
    });
    // The queue is in order: once this job is done, nothing of the former one is outstanding.
    let other = M2m::copier(FRAME)?;
    let (mut from, mut to) = (other.own(Output)?, other.own(Capture)?);
    other.copy(t, &mut from, &mut to)?;
    t.same_bytes(
        Eye::Cpu,
        "the CAPTURE buffer some time after STREAMOFF",
        &dst.contents()?,
        &after_off,
    );
    m2m.copy(t, &mut src, &mut dst)
}

/// Two buffers of user memory on each queue, queued, with only OUTPUT streaming so that nothing uses them up.
fn queued(t: &mut Ctx) -> TestResult<(M2m, Vec<Area>)> {
    let m2m = M2m::copier(FRAME)?;
    let mut areas = Vec::new();
    for queue in [Output, Capture] {
        m2m.request(queue, Memory::Userptr, 2)?;
        for index in 0..2 {
            let mut area = Area::anon(index as usize * 100, FRAME.size())?;
            area.fill(t)?;
            m2m.queue(t, queue, index, &area)?;
            areas.push(area);
        }
    }
    m2m.node
        .stream_on(Output)
        .map_err(|errno| Stop::finding(Eye::Cpu, format!("STREAMON fails with {errno:?}")))?;
    Ok((m2m, areas))
}

/// What the system held before a test took anything.
pub struct Before {
    pub device: Device,
    held: i64,
    pins: i64,
}

impl Before {
    pub fn look() -> TestResult<Self> {
        let device = Device::open()?;
        Ok(Self {
            held: device.list()?.len() as i64,
            pins: vmstat::pinned_pages()?,
            device,
        })
    }

    /// Judges that `held` buffers and `pins` pages are held on top of what was there, now: REQBUFS, close and munmap have let go of what
    /// they let go of when they return, and a process's end when it can be waited for.
    pub fn judge(&self, t: &mut Ctx, when: &str, held: i64, pins: i64) -> TestResult {
        let now = vmstat::pinned_pages()? - self.pins;
        t.equal(Eye::Aftermath, &format!("pages pinned {when}"), now, pins);
        let now = self.device.list()?.len() as i64 - self.held;
        let what = format!("buffers that the device holds {when}");
        t.equal(Eye::Device, &what, now, held);
        Ok(())
    }
}

fn pages_of(areas: &[Area]) -> i64 {
    areas
        .iter()
        .map(|area| (area.mapping.len() / pinbed_guest::observe::extent::PAGE) as i64)
        .sum()
}

fn reqbufs_of_none_unpins_queued_buffers(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let (m2m, areas) = queued(t)?;
    before.judge(t, "while buffers are queued", 4, pages_of(&areas))?;
    m2m.stream_off()?;
    // Queued again, now on a queue that does not stream.
    for (queue, index, area) in [(Output, 0, &areas[0]), (Capture, 0, &areas[2])] {
        m2m.queue(t, queue, index, area)?;
    }
    m2m.request(Output, Memory::Userptr, 0)?;
    m2m.request(Capture, Memory::Userptr, 0)?;
    before.judge(t, "after REQBUFS of none", 0, 0)
}

fn close_unpins_queued_buffers(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let (m2m, areas) = queued(t)?;
    before.judge(t, "while buffers are queued", 4, pages_of(&areas))?;
    drop(m2m);
    before.judge(t, "after close", 0, 0)?;
    for area in &areas {
        area.judge_untouched(t, "a buffer's memory after close")?;
    }
    Ok(())
}

/// Forks a child that does as told, keeps what that returns, and waits to be killed; kills it once it has, and waits for its end.
/// `killed` comes in between.
fn kill_after(
    t: &mut Ctx,
    act: impl FnOnce(&mut Ctx) -> TestResult<(M2m, Vec<Area>)>,
    killed: impl FnOnce(&mut Ctx) -> TestResult,
) -> TestResult<i64> {
    let (wait, ready) = pipe().map_err(Error::call("pipe"))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(wait);
            match act(t) {
                Ok((_m2m, areas)) => {
                    let _ = write(&ready, &pages_of(&areas).to_le_bytes());
                    loop {
                        pause();
                    }
                }
                Err(Stop::Finding(finding)) => t.find(finding.eye, finding.text),
                Err(Stop::Skip(reason)) => t.find(Eye::Harness, reason),
            }
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(1) }
        }
    };
    drop(ready);
    let mut pages = [0; 8];
    let length = read(&wait, &mut pages).map_err(Error::call("hearing from the child"))?;
    kill(child, Signal::SIGKILL).map_err(Error::call("killing the child"))?;
    killed(t)?;
    match waitpid(child, None).map_err(Error::call("waitpid"))? {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) if length == pages.len() => {
            Ok(i64::from_le_bytes(pages))
        }
        other => Err(Stop::finding(
            Eye::Harness,
            format!("the child that was to be killed ended with {other:?}"),
        )),
    }
}

fn killed_process_leaves_nothing(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let pages = kill_after(t, queued, |_| Ok(()))?;
    t.note(format!(
        "{pages} pages were pinned when the process was killed"
    ));
    before.judge(t, "after the process was killed", 0, 0)
}

fn process_killed_mid_job_leaves_nothing(t: &mut Ctx) -> TestResult {
    let before = Before::look()?;
    let jobs = before.device.status()?.jobs.get();
    before.device.inject(wire::INJECT_DELAY, 1, 10_000_000)?;
    let begun = |t: &mut Ctx| {
        let (m2m, areas) = queued(t)?;
        m2m.stream_on()?;
        let count = || Ok(m2m.device.status()?.jobs.get());
        premise(until(LIMIT, || Ok(count()? > jobs))?, || {
            "no job begins".into()
        })?;
        Ok((m2m, areas))
    };
    // The job that the process has begun waits until it is killed.
    kill_after(t, begun, |_| {
        Ok(before.device.inject(wire::INJECT_NONE, 0, 0)?)
    })?;
    before.judge(t, "after the process was killed", 0, 0)
}
