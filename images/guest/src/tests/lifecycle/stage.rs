// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A buffer of user memory on each queue, held by the device while something happens to it.

use crate::tests::test::FRAME;
use pinbed_abi::report::Eye;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device::{Device, copy};
use pinbed_guest::observe::extent::{Extent, merged};
use pinbed_guest::observe::frame;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

/// What a held job waits at most, in microseconds: longer than any test takes.
const WAIT_US: u64 = 10_000_000;

/// An open node with a buffer on each queue, which the device holds.
pub struct Stage {
    pub m2m: M2m,
    pub src: Area,
    pub dst: Area,
    /// Whether both buffers came back from a job; the device holds them still.
    pub idle: bool,
}

impl Stage {
    /// Anonymous pages on both queues; the images do not begin with their first pages.
    pub fn anon(t: &mut Ctx) -> TestResult<Self> {
        Self::of(
            t,
            Area::anon(100, FRAME.size())?,
            Area::anon(0, FRAME.size())?,
        )
    }

    /// These areas, filled and queued.
    pub fn of(t: &mut Ctx, mut src: Area, mut dst: Area) -> TestResult<Self> {
        src.fill(t)?;
        dst.fill(t)?;
        Self::as_they_are(t, src, dst)
    }

    /// These areas, queued, with what is in them.
    pub fn as_they_are(t: &mut Ctx, src: Area, dst: Area) -> TestResult<Self> {
        let m2m = M2m::copier(FRAME)?;
        let (src, dst) = (m2m.with(Output, src)?, m2m.with(Capture, dst)?);
        m2m.queue(t, Output, 0, &src)?;
        m2m.queue(t, Capture, 0, &dst)?;
        Ok(Self {
            m2m,
            src,
            dst,
            idle: false,
        })
    }

    /// Both areas.
    pub fn areas(&self) -> [&Area; 2] {
        [&self.src, &self.dst]
    }

    /// Where a queue's buffer is, as the device holds it.
    pub fn held(&self, t: &mut Ctx, queue: Queue) -> TestResult<Vec<Extent>> {
        let held = self.m2m.held(t, queue, 0)?;
        Ok(held.map_or(Vec::new(), |held| merged(held.segments)))
    }

    /// CRC32C of what the device sees in a queue's buffer now.
    pub fn seen(&self, queue: Queue) -> TestResult<u32> {
        let size = self.m2m.image(queue).size() as u64;
        let handle = self.m2m.handle(queue, 0)?;
        Ok(self.m2m.device.checksum(handle, 0, size)?)
    }

    /// The device begins a job on both buffers, and has it wait until [`Stage::judge`].
    pub fn begin(&self) -> TestResult {
        self.m2m.device.inject(wire::INJECT_DELAY, 1, WAIT_US)?;
        self.m2m.stream_on()
    }

    /// The job gets done, the one that waits or a new one.
    pub fn job(&mut self, t: &mut Ctx) -> TestResult {
        let (src, dst) = (&self.src, &self.dst);
        if self.idle {
            self.m2m.queue(t, Output, 0, src)?;
            self.m2m.queue(t, Capture, 0, dst)?;
        }
        self.m2m.device.inject(wire::INJECT_NONE, 0, 0)?;
        self.m2m.stream_on()?;
        self.idle = true;
        self.m2m.finish(t, src, src.written(), dst, src.written())?;
        self.m2m.judge_placement(t, Output, 0, src)?;
        self.m2m.judge_placement(t, Capture, 0, dst)
    }

    /// The device copies the OUTPUT buffer to the CAPTURE buffer again and again while something happens, each time other bytes, so that
    /// no write of either side can be lost unseen. For a stage where no job has begun; both buffers have the image that was there before
    /// in the end.
    pub fn while_copying<T>(
        &self,
        t: &mut Ctx,
        event: impl FnOnce(&mut Ctx) -> TestResult<T>,
    ) -> TestResult<T> {
        self.meanwhile(t, true, event)
    }

    /// As [`Stage::while_copying`], of memory that the process must not touch meanwhile: always the same bytes.
    pub fn while_copying_untouched<T>(
        &self,
        t: &mut Ctx,
        event: impl FnOnce(&mut Ctx) -> TestResult<T>,
    ) -> TestResult<T> {
        self.meanwhile(t, false, event)
    }

    fn meanwhile<T>(
        &self,
        t: &mut Ctx,
        touch: bool,
        event: impl FnOnce(&mut Ctx) -> TestResult<T>,
    ) -> TestResult<T> {
        // The device works on the memory behind videobuf2's back, which would sync it.
        swiotlb::unless_forced()?;
        let (src, dst) = (self.m2m.handle(Output, 0)?, self.m2m.handle(Capture, 0)?);
        let held = [self.held(t, Output)?, self.held(t, Capture)?];
        let length = self.src.len() as u64;
        let device = Device::open()?;
        let stop = AtomicBool::new(false);
        let (tell, first) = mpsc::channel();
        // A page that is not present is no matter: reclaim takes a page out of the page tables before it finds that it is held.
        let places = || -> Result<Option<String>, Error> {
            for (area, held) in self.areas().into_iter().zip(&held) {
                if let Some(Ok(here)) = area.extents()?
                    && here != *held
                {
                    return Ok(Some(frame::difference(held, &here)));
                }
            }
            Ok(None)
        };
        let job = |bytes: &[u8]| -> Result<Option<String>, Error> {
            if touch {
                self.src.mapping.write(self.src.window.start, bytes);
            }
            let answer = device.job(&copy(src, dst, length))?;
            if answer.header.status != wire::STATUS_OK {
                return Err(Error::Device {
                    operation: "COPY",
                    status: answer.header.status.get(),
                });
            }
            if !touch {
                return Ok(None);
            }
            let came = self.dst.contents()?;
            let wrong = came.iter().zip(bytes).filter(|(a, b)| a != b).count();
            Ok((wrong > 0).then(|| format!("{wrong} of {length} bytes are not the job's")))
        };
        let (result, jobs) = thread::scope(|scope| {
            let worker = scope.spawn(|| -> Result<(u64, Vec<String>, Option<String>), Error> {
                // Goes when the worker ends.
                let tell = tell;
                let (mut jobs, mut wrong, mut elsewhere) = (0_u64, Vec::new(), None);
                while jobs < 2 || !stop.load(Ordering::Acquire) {
                    let bytes = vec![jobs as u8; self.src.len()];
                    wrong.extend(job(&bytes)?.map(|text| format!("job {jobs}: {text}")));
                    if touch && elsewhere.is_none() {
                        elsewhere = places()?.map(|text| format!("after job {jobs} {text}"));
                    }
                    jobs += 1;
                    // Nobody listens after the first.
                    let _ = tell.send(());
                }
                Ok((jobs, wrong, elsewhere))
            });
            // An error means that the first job failed, which the worker says.
            let _ = first.recv();
            let result = event(t);
            stop.store(true, Ordering::Release);
            let jobs = worker.join().unwrap_or(Err(Error::Format {
                source_name: "the thread that sends jobs".into(),
                text: "panic".into(),
            }));
            (result, jobs)
        });
        let result = result?;
        let (jobs, wrong, elsewhere) = jobs?;
        t.note(format!("{jobs} jobs meanwhile"));
        if let Some(first) = wrong.first() {
            let count = wrong.len();
            t.find(
                Eye::Cpu,
                format!("{count} jobs left other bytes in the CAPTURE buffer than the process had put in the OUTPUT buffer; {first}"),
            );
        }
        if let Some(text) = elsewhere {
            t.find(Eye::Placement, format!("while jobs ran: {text}"));
        }
        let last = job(self.src.written())?;
        t.check(Eye::Cpu, last.is_none(), || {
            format!("after the last job {}", last.unwrap_or_default())
        });
        self.dst
            .judge(t, "what the device copied meanwhile", self.src.written())?;
        Ok(result)
    }

    /// Both sides look at the same page frames still; each sees what the other writes, at once unless there is a bounce buffer between
    /// them; and a job gets done.
    pub fn judge(&mut self, t: &mut Ctx, after: &str) -> TestResult {
        self.judge_both(t, after)?;
        if !swiotlb::is_forced()? {
            self.src.fill(t)?;
            self.dst.fill(t)?;
            // What the process writes it must not write to copies.
            self.judge_both(t, &format!("{after} and a write"))?;
        }
        self.job(t)
    }

    fn judge_both(&self, t: &mut Ctx, after: &str) -> TestResult {
        for (queue, area) in [(Output, &self.src), (Capture, &self.dst)] {
            self.m2m.judge_placement(t, queue, 0, area)?;
            if swiotlb::is_forced()? {
                continue;
            }
            t.equal(
                Eye::Device,
                &format!("CRC32C of the {queue:?} buffer after {after}"),
                self.seen(queue)?,
                crc(&area.contents()?),
            );
        }
        self.src
            .judge_untouched(t, &format!("the OUTPUT buffer after {after}"))?;
        Ok(())
    }

    /// The device still sees what the process wrote last, whatever the process has at the address now.
    pub fn judge_device(&self, t: &mut Ctx, after: &str) -> TestResult {
        for (queue, area) in [(Output, &self.src), (Capture, &self.dst)] {
            t.equal(
                Eye::Device,
                &format!("CRC32C of the {queue:?} buffer after {after}"),
                self.seen(queue)?,
                crc(area.written()),
            );
        }
        Ok(())
    }
}
