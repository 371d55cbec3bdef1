// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of two planes: each plane is memory of its own, which the kernel holds on to and lets go of with the other.

use crate::tests::test::{Test, test};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinbed_abi::report::Eye;
use pinbed_abi::{uapi, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::{Area, Share};
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::device::{Device, Held};
use pinbed_guest::observe::extent::{PAGE, merged};
use pinbed_guest::observe::frame;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::mplane::{Node, PLANES, Plane};
use pinbed_guest::video::v4l2::FLAG_ERROR;
use pinbed_guest::video::v4l2::Memory::{self, Dmabuf, Userptr};
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

const PREPARE_USERPTR: &str =
    "drivers/media/common/videobuf2/videobuf2-core.c, __prepare_userptr()";
const PREPARE_DMABUF: &str = "drivers/media/common/videobuf2/videobuf2-core.c, __prepare_dmabuf()";
const PLANE: &str = "Documentation/userspace-api/media/v4l/buffer.rst, struct v4l2_plane";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("mplane::user_memory_is_copied_plane_by_plane", user_memory_is_copied_plane_by_plane, PLANE,
        "The device is given the pages of each plane, and copies each plane to the one of the same number."),
    test("mplane::dmabufs_are_copied_plane_by_plane", dmabufs_are_copied_plane_by_plane, PLANE,
        "As user memory, where each plane is a dma-buf of its own."),
    test("mplane::data_begins_at_its_offset", data_begins_at_its_offset, PLANE,
        "Of an OUTPUT plane with a data_offset the device reads the bytes from there on."),
    test("mplane::bad_pointer_in_the_second_plane_pins_nothing", bad_pointer_in_the_second_plane_pins_nothing, PREPARE_USERPTR,
        "QBUF with a second plane that is no memory is refused, the first plane is not pinned, and a good QBUF works afterwards."),
    test("mplane::short_second_plane_pins_nothing", short_second_plane_pins_nothing, PREPARE_USERPTR,
        "QBUF with a second plane that is too short is refused with EINVAL, and the first plane is not pinned."),
    test("mplane::bad_descriptor_in_the_second_plane_attaches_nothing", bad_descriptor_in_the_second_plane_attaches_nothing, PREPARE_DMABUF,
        "QBUF with a second plane that is closed, no dma-buf or too short is refused, and the first plane's dma-buf is let go of."),
    test("mplane::one_dmabuf_for_both_planes", one_dmabuf_for_both_planes, PREPARE_DMABUF,
        "A dma-buf given for both planes is read from its beginning for each, and let go of with the buffer."),
    test("mplane::another_second_plane_leaves_the_first_where_it_is", another_second_plane_leaves_the_first_where_it_is, PREPARE_USERPTR,
        "QBUF with other memory in the second plane unpins the old one, pins the new one, and the device has all the right bytes."),
    test("mplane::another_second_dmabuf_lets_go_of_the_old_one", another_second_dmabuf_lets_go_of_the_old_one, PREPARE_DMABUF,
        "As with user memory, with dma-bufs."),
    test("mplane::bad_change_of_the_second_plane_lets_go_of_both", bad_change_of_the_second_plane_lets_go_of_both, PREPARE_USERPTR,
        "QBUF that replaces the second plane by what is no memory is refused; neither plane is pinned or held afterwards."),
];

const WIDTH: u32 = 256;
const HEIGHT: u32 = 64;
/// Bytes of each plane.
const SIZES: [usize; PLANES] = [(WIDTH * HEIGHT) as usize, (WIDTH * HEIGHT / 2) as usize];
/// How long a job may take, in milliseconds.
const PATIENCE_MS: u16 = 5_000;

/// The node with both formats set, and the memory of a buffer on each queue.
struct Stage {
    node: Node,
    device: Device,
    src: [Area; PLANES],
    dst: [Area; PLANES],
}

type Maker = fn(usize) -> TestResult<Area>;

/// User memory that begins within a page.
fn anon(length: usize) -> TestResult<Area> {
    Ok(Area::anon(72, length)?)
}

fn udmabuf(length: usize) -> TestResult<Area> {
    Ok(Area::udmabuf(length)?)
}

fn both(make: Maker) -> TestResult<[Area; PLANES]> {
    Ok([make(SIZES[0])?, make(SIZES[1])?])
}

fn memory(area: &Area) -> Memory {
    match area.share {
        Share::Userptr => Userptr,
        Share::Dmabuf(_) => Dmabuf,
        Share::Mmap => Memory::Mmap,
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(Errno) -> Stop {
    let what = what.into();
    move |errno| Stop::finding(Eye::Cpu, format!("{what} fails with {errno:?}"))
}

/// A plane as QBUF wants it.
fn describe(queue: Queue, area: &Area) -> Plane {
    let (m, length) = match &area.share {
        Share::Userptr => (area.address() as u64, area.len()),
        Share::Dmabuf(fd) => (fd.as_raw_fd() as u64, area.mapping.len()),
        Share::Mmap => (0, 0),
    };
    Plane {
        bytesused: match queue {
            Output => area.len() as u32,
            Capture => 0,
        },
        length: length as u32,
        m,
        ..Default::default()
    }
}

fn describe_all(queue: Queue, areas: &[Area; PLANES]) -> [Plane; PLANES] {
    [describe(queue, &areas[0]), describe(queue, &areas[1])]
}

impl Stage {
    /// Asks for a buffer on each queue; nothing is queued.
    fn set(t: &mut Ctx, make: Maker) -> TestResult<Self> {
        let node = Node::open()?;
        for queue in [Output, Capture] {
            let format = node
                .set_format(queue, WIDTH, HEIGHT)
                .map_err(failed(format!("S_FMT of {queue:?}")))?;
            let sizes = [0, 1].map(|plane| format.plane_fmt[plane].sizeimage as usize);
            t.equal(Eye::Cpu, "bytes of the planes of S_FMT", sizes, SIZES);
        }
        let mut stage = Self {
            node,
            device: Device::open()?,
            src: both(make)?,
            dst: both(make)?,
        };
        for plane in stage.src.iter_mut().chain(&mut stage.dst) {
            plane.fill(t)?;
        }
        for (queue, area) in [(Output, &stage.src[0]), (Capture, &stage.dst[0])] {
            stage.request(queue, memory(area), 1)?;
        }
        Ok(stage)
    }

    fn request(&self, queue: Queue, memory: Memory, count: u32) -> TestResult {
        self.node
            .request(queue, memory, count)
            .map(drop)
            .map_err(failed(format!("REQBUFS of {count} on {queue:?}")))
    }

    fn areas(&self, queue: Queue) -> &[Area; PLANES] {
        match queue {
            Output => &self.src,
            Capture => &self.dst,
        }
    }

    fn try_queue(&self, queue: Queue, planes: &[Plane]) -> Result<(), Errno> {
        self.node
            .enqueue(queue, memory(&self.areas(queue)[0]), 0, planes)
    }

    /// QBUF of a queue's areas. The device is given just their pages.
    fn queue(&self, t: &mut Ctx, queue: Queue) -> TestResult {
        let areas = self.areas(queue);
        self.try_queue(queue, &describe_all(queue, areas))
            .map_err(failed(format!("QBUF of {queue:?}")))?;
        for (plane, area) in areas.iter().enumerate() {
            let Some(held) = self.held(queue, plane)? else {
                t.find(
                    Eye::Device,
                    format!("the device does not hold plane {plane} of {queue:?}"),
                );
                continue;
            };
            let bounced = held.is_bounced()?;
            let held = merged(held.segments);
            if let Some(Ok(here)) = area.extents()? {
                t.check(Eye::Placement, here == held || bounced, || {
                    format!(
                        "plane {plane} of {queue:?}: {}",
                        frame::difference(&held, &here)
                    )
                });
            }
        }
        Ok(())
    }

    fn held(&self, queue: Queue, plane: usize) -> TestResult<Option<Held>> {
        let report = self
            .node
            .report(queue, 0, plane as u32)
            .map_err(failed("the driver's report of a plane"))?;
        match report.flags & uapi::BUFFER_ATTACHED {
            0 => Ok(None),
            _ => Ok(self.device.query(report.handle)?),
        }
    }

    fn stream_on(&self) -> TestResult {
        for queue in [Output, Capture] {
            self.node
                .stream_on(queue)
                .map_err(failed(format!("STREAMON of {queue:?}")))?;
        }
        Ok(())
    }

    fn dequeue(&self, t: &mut Ctx, queue: Queue) -> TestResult<[Plane; PLANES]> {
        let wanted = match queue {
            Output => PollFlags::POLLOUT,
            Capture => PollFlags::POLLIN,
        };
        loop {
            match self.node.dequeue(queue, memory(&self.areas(queue)[0])) {
                Ok((buffer, planes)) => {
                    t.check(Eye::Cpu, buffer.flags & FLAG_ERROR == 0, || {
                        format!("the {queue:?} buffer comes back with V4L2_BUF_FLAG_ERROR")
                    });
                    return Ok(planes);
                }
                Err(Errno::EAGAIN) => (),
                Err(errno) => return Err(failed(format!("DQBUF of {queue:?}"))(errno)),
            }
            let mut set = [PollFd::new(self.node.as_fd(), wanted)];
            let ready = poll(&mut set, PollTimeout::from(PATIENCE_MS))
                .map_err(Error::call("poll of the video node"))?;
            if ready == 0 {
                let text = format!("no {queue:?} buffer is done after {PATIENCE_MS} ms");
                return Err(Stop::finding(Eye::Device, text));
            }
        }
    }

    /// Takes both buffers back: the device read `expected` of each plane and wrote it, and so sees the CPU.
    fn finish(&self, t: &mut Ctx, expected: [&[u8]; PLANES]) -> TestResult {
        self.dequeue(t, Output)?;
        let planes = self.dequeue(t, Capture)?;
        for (plane, bytes) in expected.into_iter().enumerate() {
            t.equal(
                Eye::Cpu,
                &format!("bytesused of plane {plane}"),
                planes[plane].bytesused as usize,
                bytes.len(),
            );
            for queue in [Output, Capture] {
                let report = self
                    .node
                    .report(queue, 0, plane as u32)
                    .map_err(failed("the driver's report of a plane"))?;
                let seen = (report.job_status, report.job_bytes, report.job_crc);
                let right = (wire::STATUS_OK, bytes.len() as u64, crc(bytes));
                let what = format!("(status, bytes, CRC32C) of plane {plane} of {queue:?}");
                t.equal(Eye::Device, &what, seen, right);
            }
            self.dst[plane].judge(t, &format!("plane {plane} of CAPTURE"), bytes)?;
        }
        Ok(())
    }

    /// One copy of all planes, judged in all respects.
    fn copy(&self, t: &mut Ctx) -> TestResult {
        self.queue(t, Output)?;
        self.queue(t, Capture)?;
        self.stream_on()?;
        self.finish(t, [self.src[0].written(), self.src[1].written()])
    }

    /// The device holds so many buffers.
    fn judge_held(&self, t: &mut Ctx, when: &str, count: usize) -> TestResult {
        let held = self.device.list()?.len();
        let what = format!("buffers that the device holds {when}");
        t.equal(Eye::Device, &what, held, count);
        Ok(())
    }
}

fn user_memory_is_copied_plane_by_plane(t: &mut Ctx) -> TestResult {
    let stage = Stage::set(t, anon)?;
    stage.copy(t)?;
    stage.judge_held(t, "of two buffers with two planes", 4)
}

fn dmabufs_are_copied_plane_by_plane(t: &mut Ctx) -> TestResult {
    let stage = Stage::set(t, udmabuf)?;
    stage.copy(t)?;
    stage.judge_held(t, "of two buffers with two planes", 4)
}

fn data_begins_at_its_offset(t: &mut Ctx) -> TestResult {
    const OFFSET: usize = 100;
    let stage = Stage::set(t, anon)?;
    let mut planes = describe_all(Output, &stage.src);
    planes[1].data_offset = OFFSET as u32;
    stage
        .try_queue(Output, &planes)
        .map_err(failed("QBUF with a data_offset"))?;
    stage.queue(t, Capture)?;
    stage.stream_on()?;
    stage.dequeue(t, Output)?;
    let done = stage.dequeue(t, Capture)?;
    let expected = [
        stage.src[0].written(),
        &stage.src[1].written()[OFFSET..SIZES[1]],
    ];
    for (plane, bytes) in expected.into_iter().enumerate() {
        let used = done[plane].bytesused as usize;
        t.equal(Eye::Cpu, "bytesused of CAPTURE", used, bytes.len());
        let seen = &stage.dst[plane].contents()?[..bytes.len()];
        t.same_bytes(Eye::Cpu, &format!("plane {plane}"), seen, bytes);
    }
    Ok(())
}

/// QBUF of OUTPUT with these planes is refused with one of these errors, and nothing is held or pinned; then the good ones work.
fn nothing_stays(
    t: &mut Ctx,
    stage: &Stage,
    idle: i64,
    bad: &[(&str, [Plane; PLANES], &[Errno])],
) -> TestResult {
    for (what, planes, errnos) in bad {
        t.refused(what, stage.try_queue(Output, planes), errnos);
        stage.judge_held(t, &format!("after QBUF with {what}"), 0)?;
        t.equal(
            Eye::Aftermath,
            &format!("pages pinned after QBUF with {what}"),
            vmstat::pinned_pages()?,
            idle,
        );
    }
    stage.copy(t)
}

/// Two pages, the second of which is not there.
fn edge() -> TestResult<Mapping> {
    let edge = Mapping::anon(2 * PAGE)?;
    edge.take_away(PAGE..2 * PAGE)?;
    Ok(edge)
}

fn bad_pointer_in_the_second_plane_pins_nothing(t: &mut Ctx) -> TestResult {
    // vb2-dma-sg says ENOMEM of whatever kept it from pinning.
    const BAD: &[Errno] = &[Errno::EFAULT, Errno::ENOMEM];
    let idle = vmstat::pinned_pages()?;
    let stage = Stage::set(t, anon)?;
    let edge = edge()?;
    let good = describe_all(Output, &stage.src);
    let at = |m: u64| [good[0], Plane { m, ..good[1] }];
    let bad = [
        ("a second plane at NULL", at(0), BAD),
        ("a second plane in the kernel", at(1 << 63), BAD),
        (
            "a second plane that is not all there",
            at(edge.address() as u64),
            BAD,
        ),
    ];
    nothing_stays(t, &stage, idle, &bad)
}

fn short_second_plane_pins_nothing(t: &mut Ctx) -> TestResult {
    const BAD: &[Errno] = &[Errno::EINVAL];
    let idle = vmstat::pinned_pages()?;
    let stage = Stage::set(t, anon)?;
    let good = describe_all(Output, &stage.src);
    let long = |length: u32| {
        let bytesused = good[1].bytesused.min(length);
        let second = Plane {
            length,
            bytesused,
            ..good[1]
        };
        [good[0], second]
    };
    let bad = [
        (
            "a second plane of a byte too few",
            long(SIZES[1] as u32 - 1),
            BAD,
        ),
        ("a second plane of one byte", long(1), BAD),
    ];
    nothing_stays(t, &stage, idle, &bad)?;
    let one = stage.try_queue(Output, &good[..1]);
    t.refused("QBUF with one plane", one, BAD);
    Ok(())
}

fn bad_descriptor_in_the_second_plane_attaches_nothing(t: &mut Ctx) -> TestResult {
    // Not the errno of dma_buf_get().
    const BAD: &[Errno] = &[Errno::EINVAL];
    let stage = Stage::set(t, udmabuf)?;
    let null = File::open("/dev/null").map_err(Error::io("opening /dev/null"))?;
    let short = Area::udmabuf(PAGE)?;
    // Newer kernels' udmabuf itself pins.
    let idle = vmstat::pinned_pages()?;
    let good = describe_all(Output, &stage.src);
    let with = |m: u64, length: u32| {
        [
            good[0],
            Plane {
                m,
                length,
                ..good[1]
            },
        ]
    };
    let short_fd = short.fd()?.as_raw_fd() as u64;
    let bad = [
        (
            "a closed descriptor in the second plane",
            with(1 << 20, good[1].length),
            BAD,
        ),
        (
            "no dma-buf in the second plane",
            with(null.as_raw_fd() as u64, good[1].length),
            BAD,
        ),
        (
            "a short dma-buf in the second plane",
            with(short_fd, 0),
            BAD,
        ),
    ];
    nothing_stays(t, &stage, idle, &bad)
}

fn one_dmabuf_for_both_planes(t: &mut Ctx) -> TestResult {
    let idle = vmstat::pinned_pages()?;
    let stage = Stage::set(t, udmabuf)?;
    let first = describe(Output, &stage.src[0]);
    let second = Plane {
        bytesused: SIZES[1] as u32,
        ..first
    };
    stage
        .try_queue(Output, &[first, second])
        .map_err(failed("QBUF of one dma-buf for both planes"))?;
    stage.queue(t, Capture)?;
    stage.stream_on()?;
    let bytes = stage.src[0].written();
    stage.finish(t, [bytes, &bytes[..SIZES[1]]])?;
    // Another buffer in its place: the dma-buf is let go of as often as it was taken.
    stage.queue(t, Output)?;
    stage.judge_held(t, "after QBUF of two dma-bufs", 4)?;
    drop(stage);
    t.equal(
        Eye::Aftermath,
        "pages pinned after close",
        vmstat::pinned_pages()?,
        idle,
    );
    Ok(())
}

/// Copies, replaces the second plane of OUTPUT, and copies again.
fn change_second_plane(t: &mut Ctx, make: Maker) -> TestResult {
    let mut stage = Stage::set(t, make)?;
    stage.copy(t)?;
    let pinned = vmstat::pinned_pages()?;
    let first = stage.src[0].extents()?;
    let mut other = make(SIZES[1])?;
    other.fill(t)?;
    let old = std::mem::replace(&mut stage.src[1], other);
    stage.queue(t, Output)?;
    stage.judge_held(t, "after another second plane", 4)?;
    t.check(
        Eye::Placement,
        format!("{:?}", stage.src[0].extents()?) == format!("{first:?}"),
        || "the first plane has moved".into(),
    );
    // Nobody has the old plane any more. (A udmabuf of newer kernels pins as long as it lives.)
    drop(old);
    t.equal(
        Eye::Aftermath,
        "pages pinned after another second plane",
        vmstat::pinned_pages()?,
        pinned,
    );
    for plane in &mut stage.dst {
        plane.refresh(t)?;
    }
    stage.queue(t, Capture)?;
    stage.finish(t, [stage.src[0].written(), stage.src[1].written()])
}

fn another_second_plane_leaves_the_first_where_it_is(t: &mut Ctx) -> TestResult {
    change_second_plane(t, anon)
}

fn another_second_dmabuf_lets_go_of_the_old_one(t: &mut Ctx) -> TestResult {
    change_second_plane(t, udmabuf)
}

fn bad_change_of_the_second_plane_lets_go_of_both(t: &mut Ctx) -> TestResult {
    let idle = vmstat::pinned_pages()?;
    let stage = Stage::set(t, anon)?;
    stage.copy(t)?;
    let edge = edge()?;
    let good = describe_all(Output, &stage.src);
    let bad = Plane {
        m: edge.address() as u64,
        ..good[1]
    };
    let before = stage.device.list()?.len();
    t.refused(
        "QBUF with a second plane that is not all there",
        stage.try_queue(Output, &[good[0], bad]),
        &[Errno::EFAULT, Errno::ENOMEM],
    );
    stage.judge_held(t, "after the bad QBUF", before - PLANES)?;
    // What CAPTURE has is 4 KiB pages, each plane begun within one.
    let capture: usize = SIZES.iter().map(|size| (size + 72).div_ceil(PAGE)).sum();
    t.equal(
        Eye::Aftermath,
        "pages pinned after the bad QBUF",
        vmstat::pinned_pages()?,
        idle + capture as i64,
    );
    // The next one has both pinned and held anew.
    stage.queue(t, Output)
}
