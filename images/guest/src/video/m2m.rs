// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The video node as a device between two queues. QBUF and DQBUF bring the placement and the device eye with them, unasked.

use crate::harness::ctx::{Ctx, Stop, TestResult, crc};
use crate::harness::error::Error;
use crate::memory::area::{Area, Share};
use crate::memory::mapping::{Mapping, READ_WRITE};
use crate::observe::device::{Device, direction_name};
use crate::observe::extent::{Extent, PAGE, frames, merged};
use crate::observe::frame;
use crate::observe::movable;
use crate::observe::pagemap;
use crate::video::image::Image;
use crate::video::v4l2::{self, FLAG_ERROR, Memop, Memory, Node, Queue};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinbed_abi::report::{Eye, Moment};
use pinbed_abi::{uapi, wire};
use std::os::fd::AsFd;

/// How long a job may take, in milliseconds: a thousand times what it takes under emulation on a busy machine.
const PATIENCE_MS: u16 = 5_000;

/// An open node with both formats set.
pub struct M2m {
    /// The node, for what this wrapper does not offer.
    pub node: Node,
    /// How its buffers come by their memory.
    pub memop: Memop,
    /// The engine behind the driver's back.
    pub device: Device,
    /// What the OUTPUT queue takes.
    pub source: Image,
    /// What the CAPTURE queue gives.
    pub sink: Image,
}

/// A buffer that came back.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// V4L2's side.
    pub buffer: v4l2::Buffer,
    /// The device's side.
    pub report: uapi::Buffer,
}

impl Done {
    /// Whether V4L2 calls the buffer's contents bad.
    pub fn is_error(&self) -> bool {
        self.buffer.flags & FLAG_ERROR != 0
    }
}

fn failed(what: String) -> impl FnOnce(Errno) -> Stop {
    move |errno| Stop::finding(Eye::Cpu, format!("{what} fails with {errno:?}"))
}

impl M2m {
    /// Opens the node on vb2-dma-sg and sets both formats.
    pub fn open(source: Image, sink: Image) -> TestResult<Self> {
        Self::open_on(Memop::DmaSg, source, sink)
    }

    /// Opens a node and sets both formats.
    pub fn open_on(memop: Memop, source: Image, sink: Image) -> TestResult<Self> {
        Self::over((Device::open()?, Node::open(memop)?), memop, source, sink)
    }

    /// Sets both formats of an open node; also given is the engine behind it.
    pub fn over(
        (device, node): (Device, Node),
        memop: Memop,
        source: Image,
        sink: Image,
    ) -> TestResult<Self> {
        let m2m = Self {
            node,
            memop,
            device,
            source,
            sink,
        };
        for (queue, image) in [(Queue::Output, source), (Queue::Capture, sink)] {
            let got = m2m
                .node
                .set_format(queue, image.to_v4l2())
                .map_err(failed(format!("S_FMT of {image:?} on {queue:?}")))?;
            let asked = (
                image.width,
                image.height,
                image.pixels.fourcc(),
                image.stride(),
                image.size(),
            );
            let given = (
                got.width as usize,
                got.height as usize,
                got.pixelformat,
                got.bytesperline as usize,
                got.sizeimage as usize,
            );
            if given != asked {
                let text = format!(
                    "S_FMT on {queue:?} made (width, height, fourcc, stride, size) {given:?} of {asked:?}; use a size it leaves alone"
                );
                return Err(Stop::finding(Eye::Harness, text));
            }
        }
        Ok(m2m)
    }

    /// A byte copier for images of this size.
    pub fn copier(image: Image) -> TestResult<Self> {
        Self::open(image, image)
    }

    /// As [`M2m::copier`], on another node than vb2-dma-sg's.
    pub fn copier_on(memop: Memop, image: Image) -> TestResult<Self> {
        Self::open_on(memop, image, image)
    }

    /// What a queue's buffers hold.
    pub fn image(&self, queue: Queue) -> Image {
        match queue {
            Queue::Output => self.source,
            Queue::Capture => self.sink,
        }
    }

    /// REQBUFS, which must give as many buffers as asked.
    pub fn request(&self, queue: Queue, memory: Memory, count: u32) -> TestResult {
        let given = self
            .node
            .request(queue, memory, count)
            .map_err(failed(format!(
                "REQBUFS of {count} {memory:?} on {queue:?}"
            )))?;
        if given == count {
            Ok(())
        } else {
            Err(Stop::finding(
                Eye::Cpu,
                format!("REQBUFS on {queue:?} gives {given} {memory:?} buffers, expected {count}"),
            ))
        }
    }

    /// Makes a queue take this kind of area.
    pub fn request_for(&self, queue: Queue, area: &Area, count: u32) -> TestResult {
        self.request(queue, memory(area), count)
    }

    /// An area for the only buffer of a queue.
    pub fn with(&self, queue: Queue, area: Area) -> TestResult<Area> {
        self.request_for(queue, &area, 1)?;
        Ok(area)
    }

    /// A buffer of the queue's own, mapped. The queue must have been asked for MMAP buffers.
    pub fn map(&self, queue: Queue, index: u32) -> TestResult<Area> {
        let buffer = self
            .node
            .query(queue, index)
            .map_err(failed(format!("QUERYBUF of {queue:?} {index}")))?;
        let mapping = Mapping::shared_at(
            &self.node,
            buffer.m as i64,
            buffer.length as usize,
            READ_WRITE,
        )?;
        let area = Area::mmap(mapping, self.image(queue).size());
        Ok(match self.memop {
            // VM_PFNMAP, of memory that may have no struct page.
            Memop::DmaContig => area.hidden(),
            Memop::DmaSg | Memop::Vmalloc => area,
        })
    }

    /// One buffer of the queue's own, mapped.
    pub fn own(&self, queue: Queue) -> TestResult<Area> {
        self.request(queue, Memory::Mmap, 1)?;
        self.map(queue, 0)
    }

    /// EXPBUF of a queue's only buffer, and its mapping.
    pub fn export(&self, queue: Queue) -> TestResult<Area> {
        let fd = self
            .node
            .export(queue, 0)
            .map_err(failed(format!("EXPBUF of {queue:?}")))?;
        let size = self.image(queue).size();
        Ok(Area::dmabuf(fd, size.next_multiple_of(PAGE), size)?)
    }

    /// QBUF of an area as V4L2 wants it.
    pub fn enqueue(&self, queue: Queue, index: u32, area: &Area) -> Result<(), Errno> {
        self.node.enqueue(describe(queue, index, area))
    }

    /// QBUF, judged by the placement eye.
    pub fn queue(&self, t: &mut Ctx, queue: Queue, index: u32, area: &Area) -> TestResult {
        if t.sees_more() {
            t.sight(&label(queue as u32, index), Moment::Before, area.frames()?);
        }
        self.enqueue(queue, index, area).map_err(failed(format!(
            "QBUF of {queue:?} {index} ({:?})",
            memory(area)
        )))?;
        self.judge_placement(t, queue, index, area)
    }

    /// The placement eye: the device was given exactly the page frames under the process's addresses, to the byte, in this
    /// queue's direction; or none of them, where the driver or the kernel (swiotlb) copies. User memory that the kernel holds on to is in no place that
    /// it should have been moved out of.
    pub fn judge_placement(
        &self,
        t: &mut Ctx,
        queue: Queue,
        index: u32,
        area: &Area,
    ) -> TestResult {
        let what = format!("{queue:?} buffer {index}");
        let Some(held) = self.held(t, queue, index)? else {
            return Ok(());
        };
        let direction = match queue {
            Queue::Output => wire::DIRECTION_READ,
            Queue::Capture => wire::DIRECTION_WRITE,
        };
        t.equal(
            Eye::Device,
            &format!("{what}: the device's direction"),
            direction_name(held.direction),
            direction_name(direction),
        );
        let bounced = held.is_bounced()?;
        let held = merged(held.segments);
        let bytes: u64 = held.iter().map(|piece| piece.length).sum();
        let shared = area.shared_range().len() as u64;
        t.equal(
            Eye::Device,
            &format!("{what}: bytes that the device holds"),
            bytes,
            shared,
        );
        let copies = self.report(queue, index)?.flags & uapi::BUFFER_BOUNCE != 0;
        t.equal(
            Eye::Device,
            &format!("{what}: whether the driver copies"),
            copies,
            self.memop == Memop::Vmalloc,
        );
        let name = label(queue as u32, index);
        t.sight(&name, Moment::Held, frames(&held));
        match area.extents()? {
            None => {
                t.blind(format!(
                    "the process's mapping of {what} shows no page frames"
                ));
                Ok(())
            }
            Some(Err(address)) => {
                let swapped = pagemap::entries(address, 1)?[0].swapped();
                t.find(
                    Eye::Placement,
                    match swapped {
                        true => format!("{what}: the page at {address:#x} is swapped out while the kernel holds it"),
                        false => format!("{what}: no page is present at {address:#x} while the kernel holds it"),
                    },
                );
                Ok(())
            }
            Some(Ok(here)) => {
                // What the bytes say is that the bounce buffer is this buffer's; the pages are judged by where they are.
                let is_apart = copies || bounced;
                let good = if is_apart {
                    !frames(&held).any(|frame| frames(&here).any(|other| frame == other))
                } else {
                    here == held
                };
                t.check(Eye::Placement, good, || {
                    match is_apart {
                        true => format!("{what}: the device holds {held:?}, which is not apart from the process's {here:?}"),
                        false => format!("{what}: {}", frame::difference(&held, &here)),
                    }
                });
                if here != held {
                    t.sight(&name, Moment::Process, frames(&here));
                }
                match area.is_users() {
                    true => judge_places(t, &what, &here),
                    false => Ok(()),
                }
            }
        }
    }

    /// What the device holds for a buffer; a finding if nothing.
    pub fn held(
        &self,
        t: &mut Ctx,
        queue: Queue,
        index: u32,
    ) -> TestResult<Option<crate::observe::device::Held>> {
        let report = self.report(queue, index)?;
        let held = match report.flags & uapi::BUFFER_ATTACHED {
            0 => None,
            _ => self.device.query(report.handle)?,
        };
        t.check(Eye::Device, held.is_some(), || {
            format!("the device does not hold {queue:?} buffer {index}")
        });
        Ok(held)
    }

    /// The handle of a buffer.
    pub fn handle(&self, queue: Queue, index: u32) -> TestResult<u64> {
        Ok(self.report(queue, index)?.handle)
    }

    /// The driver's report of a buffer.
    pub fn report(&self, queue: Queue, index: u32) -> TestResult<uapi::Buffer> {
        self.node.report(queue, index).map_err(failed(format!(
            "the driver's report of {queue:?} buffer {index}"
        )))
    }

    /// STREAMON on both queues.
    pub fn stream_on(&self) -> TestResult {
        for queue in [Queue::Output, Queue::Capture] {
            self.node
                .stream_on(queue)
                .map_err(failed(format!("STREAMON of {queue:?}")))?;
        }
        Ok(())
    }

    /// STREAMOFF on both queues.
    pub fn stream_off(&self) -> TestResult {
        for queue in [Queue::Output, Queue::Capture] {
            self.node
                .stream_off(queue)
                .map_err(failed(format!("STREAMOFF of {queue:?}")))?;
        }
        Ok(())
    }

    /// Waits for a buffer and takes it back, good or bad.
    pub fn dequeue(&self, queue: Queue, memory: Memory) -> TestResult<Done> {
        let wanted = match queue {
            Queue::Output => PollFlags::POLLOUT,
            Queue::Capture => PollFlags::POLLIN,
        };
        let buffer = loop {
            match self.node.dequeue(queue, memory) {
                Ok(buffer) => break buffer,
                Err(Errno::EAGAIN) => (),
                Err(errno) => return Err(failed(format!("DQBUF of {queue:?}"))(errno)),
            }
            let mut set = [PollFd::new(self.node.as_fd(), wanted)];
            if poll(&mut set, PollTimeout::from(PATIENCE_MS))
                .map_err(Error::call("poll of the video node"))?
                == 0
            {
                return Err(Stop::finding(
                    Eye::Device,
                    format!("no {queue:?} buffer is done after {PATIENCE_MS} ms"),
                ));
            }
        };
        Ok(Done {
            buffer,
            report: self.report(queue, buffer.index)?,
        })
    }

    /// Waits for one job's two buffers and takes them back.
    pub fn dequeue_pair(&self, src: &Area, dst: &Area) -> TestResult<(Done, Done)> {
        Ok((
            self.dequeue(Queue::Output, memory(src))?,
            self.dequeue(Queue::Capture, memory(dst))?,
        ))
    }

    /// Waits for one job and judges it: the device read `expected_src`, wrote `expected_dst`, and the CPU sees just that in
    /// `dst` and nothing new around it.
    pub fn finish(
        &self,
        t: &mut Ctx,
        src: &Area,
        expected_src: &[u8],
        dst: &Area,
        expected_dst: &[u8],
    ) -> TestResult {
        let (read, wrote) = self.dequeue_pair(src, dst)?;
        judge_job(t, "OUTPUT", &read, expected_src);
        judge_job(t, "CAPTURE", &wrote, &dst.contents()?);
        t.equal(
            Eye::Device,
            "the job that wrote",
            wrote.report.job_cookie,
            read.report.job_cookie,
        );
        t.equal(
            Eye::Cpu,
            "bytesused of the CAPTURE buffer",
            wrote.buffer.bytesused as usize,
            expected_dst.len(),
        );
        dst.judge(t, "the CAPTURE buffer", expected_dst)?;
        Ok(())
    }

    /// One copy from `src` to `dst`, with fresh data in both, judged in all respects.
    pub fn copy(&self, t: &mut Ctx, src: &mut Area, dst: &mut Area) -> TestResult {
        src.fill(t)?;
        dst.fill(t)?;
        self.copy_as_is(t, src, dst)
    }

    /// One copy from `src` to `dst`, whose contents are known already, judged in all respects. Begins to stream, if need be.
    pub fn copy_as_is(&self, t: &mut Ctx, src: &Area, dst: &Area) -> TestResult {
        self.queue(t, Queue::Output, 0, src)?;
        self.queue(t, Queue::Capture, 0, dst)?;
        self.stream_on()?;
        self.finish(t, src, src.written(), dst, src.written())?;
        src.judge_untouched(t, "the OUTPUT buffer")?;
        self.judge_placement(t, Queue::Output, 0, src)?;
        self.judge_placement(t, Queue::Capture, 0, dst)
    }
}

/// What a queue's buffer is called where sightings are shown: "OUTPUT 0".
fn label(queue: u32, index: u32) -> String {
    match queue == Queue::Output as u32 {
        true => format!("OUTPUT {index}"),
        false => format!("CAPTURE {index}"),
    }
}

/// The device eye: what the engine says it moved is what the process expects.
pub fn judge_job(t: &mut Ctx, what: &str, done: &Done, expected: &[u8]) {
    t.check(Eye::Cpu, !done.is_error(), || {
        format!("the {what} buffer comes back with V4L2_BUF_FLAG_ERROR")
    });
    if !t.check(
        Eye::Device,
        done.report.flags & uapi::BUFFER_JOB != 0,
        || format!("no job used the {what} buffer"),
    ) {
        return;
    }
    if done.report.job_bytes > 0 {
        t.sight_dma(&label(done.buffer.kind, done.buffer.index));
    }
    t.equal(
        Eye::Device,
        &format!("{what}: the job's status"),
        done.report.job_status,
        wire::STATUS_OK,
    );
    t.equal(
        Eye::Device,
        &format!("{what}: bytes that the device moved"),
        done.report.job_bytes,
        expected.len() as u64,
    );
    let expected = crc(expected);
    t.check(Eye::Device, done.report.job_crc == expected, || {
        format!(
            "{what}: the device saw bytes with CRC32C {:#010x}, the process has {expected:#010x}",
            done.report.job_crc
        )
    });
}

/// No frame lies where the kernel should have moved it out of.
pub fn judge_places(t: &mut Ctx, what: &str, held: &[Extent]) -> TestResult {
    if let Some(why) = movable::blind()? {
        t.blind(why);
    }
    for place in movable::places()? {
        let inside: Vec<_> = frames(held)
            .filter(|frame| place.frames.contains(frame))
            .collect();
        t.check(Eye::Placement, inside.is_empty(), || {
            format!(
                "{what}: {} pages are pinned in {}, the first is frame {:#x}",
                inside.len(),
                place.name,
                inside[0]
            )
        });
    }
    Ok(())
}

/// How an area is handed over.
pub fn memory(area: &Area) -> Memory {
    match area.share {
        Share::Userptr => Memory::Userptr,
        Share::Dmabuf(_) => Memory::Dmabuf,
        Share::Mmap => Memory::Mmap,
    }
}

/// The `struct v4l2_buffer` for QBUF.
pub fn describe(queue: Queue, index: u32, area: &Area) -> v4l2::Buffer {
    use std::os::fd::AsRawFd;
    let (m, length) = match &area.share {
        Share::Userptr => (area.address() as u64, area.len()),
        Share::Dmabuf(fd) => (fd.as_raw_fd() as u64, area.mapping.len()),
        Share::Mmap => (0, 0),
    };
    v4l2::Buffer {
        index,
        kind: queue as u32,
        bytesused: if queue == Queue::Output {
            area.len() as u32
        } else {
            0
        },
        field: v4l2::FIELD_NONE,
        memory: memory(area) as u32,
        m,
        length: length as u32,
        ..Default::default()
    }
}
