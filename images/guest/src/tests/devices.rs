// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Two devices, as a board has a video engine and a TEE, or two video engines: each has nodes and buffers of its own, they share memory by
//! dma-bufs, and what becomes of one is nothing to the other.

use super::dmabuf::orders::needs_moves;
use super::playback::{MOVIE, Player, judge_hidden, show};
use super::sources::{DMABUF, EXPBUF, TEE_UAPI};
use super::tee::stage::{judge_checksum, register};
use super::test::{FRAME, Test, test};
use super::unplug::{errno, given_up, no_device};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{pin, playback};
use pinbed_abi::tee::{PARAM_MEMREF_OUTPUT, Param};
use pinbed_abi::{uapi, wire};
use pinbed_guest::dmabuf::Access;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::module;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::{Extent, PAGE, frames, merged};
use pinbed_guest::observe::swiotlb;
use pinbed_guest::second::Second;
use pinbed_guest::tee::client::{NONE, Tee, value_in};
use pinbed_guest::tee::protected::Protected;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memop::{self, DmaContig, DmaSg};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const DRIVER_MODEL: &str = "Documentation/driver-api/driver-model/driver.rst, probe() and remove()";
const DYNAMIC: &str = "include/linux/dma-buf.h, struct dma_buf_attach_ops";
const PROTECTED: &str = "include/linux/tee_core.h, struct tee_protmem_pool; drivers/tee/tee_heap.c, tee_shm_register_fd()";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("devices::each_has_nodes_and_buffers_of_its_own", each_has_nodes_and_buffers_of_its_own, DRIVER_MODEL,
        "Two devices have a control node, video nodes and a TEE each; what one holds the other does not, and a job that one fails the other does not."),
    test("devices::carveout_is_shared_from_video_to_video", carveout_is_shared_from_video_to_video, DMABUF,
        "A carveout that one device exports is written by its video engine and read by the other's, in the same place, with both holding it."),
    test("devices::carveout_is_exported_once", carveout_is_exported_once, DMABUF,
        "What two devices export of the same carveout does not overlap."),
    test("devices::heap_buffer_is_shared_from_video_to_video", heap_buffer_is_shared_from_video_to_video, DMABUF,
        "A heap buffer that one device's video engine writes the other's reads, in the same pages, with both holding it."),
    test("devices::exported_buffer_is_shared_from_video_to_video", exported_buffer_is_shared_from_video_to_video, EXPBUF,
        "A CAPTURE buffer that one device's node exports with EXPBUF the other device's node reads as an import."),
    test("devices::memory_is_shared_between_video_and_tee", memory_is_shared_between_video_and_tee, TEE_UAPI,
        "Memory that one device's video engine has as a udmabuf and the other's TEE as registered memory is the same for both, each way."),
    test("devices::carveout_is_no_memory_for_the_other_tee", carveout_is_no_memory_for_the_other_tee, TEE_UAPI,
        "A mapping of a carveout that one device exports and holds is refused with EFAULT when it is registered with the other's TEE."),
    test("devices::heap_buffer_is_no_memory_for_the_other_tee", heap_buffer_is_no_memory_for_the_other_tee, TEE_UAPI,
        "A heap buffer that one device's video engine has is refused by the other's TEE, its mapping with EFAULT and its descriptor with EINVAL, and the engine goes on reading it."),
    test("devices::protected_memory_is_its_own_tees", protected_memory_is_its_own_tees, PROTECTED,
        "Protected memory that one device's TEE decrypts into is not registered with the other's TEE, and the other's video engine imports it and reads what the CPU reads."),
    test("devices::importer_follows_a_move_by_the_other", importer_follows_a_move_by_the_other, DYNAMIC,
        "When one device moves a buffer that the other has imported, the other lets go of it and finds it in its new place."),
    test("devices::import_outlives_its_exporter", import_outlives_its_exporter, DMABUF,
        "A buffer that one device exported the other goes on reading after the first has left the machine."),
    test("devices::death_of_one_leaves_the_others_buffers", death_of_one_leaves_the_others_buffers, DRIVER_MODEL,
        "When one device is reset because it does not let go of a buffer, the other still holds the same memory, pinned, and works."),
    test("devices::unbind_of_one_leaves_the_other_streaming", unbind_of_one_leaves_the_other_streaming, DRIVER_MODEL,
        "While one device is unbound and bound again the other does jobs, without an error and without losing a byte."),
];

/// The video engine of one device writes a buffer, and that of the other reads it, while both hold it.
fn write_and_read(t: &mut Ctx, writer: &M2m, reader: &M2m, shared: Area) -> TestResult {
    let mut bitstream = writer.own(Output)?;
    let mut shared = writer.with(Capture, shared)?;
    writer.copy(t, &mut bitstream, &mut shared)?;
    shared.adopt()?;
    reader.request_for(Output, &shared, 1)?;
    let mut screen = reader.own(Capture)?;
    screen.fill(t)?;
    reader.queue(t, Output, 0, &shared)?;
    if let (Some(written), Some(read)) = (writer.held(t, Capture, 0)?, reader.held(t, Output, 0)?)
        && !written.is_bounced()?
        && !read.is_bounced()?
    {
        let copies = |m2m: &M2m| m2m.memop == Memop::Vmalloc;
        t.check(
            Eye::Placement,
            copies(writer)
                || copies(reader)
                || frames(&written.segments).eq(frames(&read.segments)),
            || format!("one device writes {written}, the other reads {read}, in other pages"),
        );
    }
    reader.queue(t, Capture, 0, &screen)?;
    reader.stream_on()?;
    let expected = bitstream.written();
    reader.finish(t, &shared, expected, &screen, expected)
}

fn first(memop: Memop) -> TestResult<M2m> {
    M2m::copier_on(memop, FRAME)
}

/// A carveout buffer for a FRAME that V4L2 may import; where it is.
fn carveout(device: &Device, flags: u32) -> TestResult<(Area, u64)> {
    // What has no kernel address cannot be bounced.
    swiotlb::unless_forced()?;
    let pages = FRAME.size().next_multiple_of(PAGE);
    let (fd, address) = device.export(pages, flags | uapi::EXPORT_ANY_IMPORTER)?;
    Ok((Area::dmabuf(fd, pages, FRAME.size())?, address))
}

fn holds(t: &mut Ctx, whose: &str, device: &Device, expected: usize) -> TestResult {
    let held = device.list()?.len();
    t.equal(
        Eye::Device,
        &format!("buffers that {whose} holds"),
        held,
        expected,
    );
    Ok(())
}

fn each_has_nodes_and_buffers_of_its_own(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    t.equal(
        Eye::Cpu,
        "names of the second device's nodes begin with",
        second.name(),
        "pinbed1",
    );
    let (one, other) = (first(DmaSg)?, second.copier(DmaSg, FRAME)?);
    let bus = |m2m: &M2m| {
        let capability = m2m.node.capability();
        capability
            .map(|it| (it.card, it.bus_info))
            .map_err(Error::call("QUERYCAP"))
    };
    let (here, there) = (bus(&one)?, bus(&other)?);
    t.check(Eye::Cpu, here.0 != there.0 && here.1 != there.1, || {
        "two devices say that they are the same card, or in the same place".into()
    });

    let mut src = one.with(Output, Area::anon(8, FRAME.size())?)?;
    src.fill(t)?;
    one.queue(t, Output, 0, &src)?;
    holds(t, "the device that was given a buffer", &one.device, 1)?;
    holds(t, "the other one", &other.device, 0)?;
    let mut dst = one.own(Capture)?;
    dst.fill(t)?;
    // The next job of the other one, not of this.
    other.device.inject(wire::INJECT_FAIL, 1, 0)?;
    one.queue(t, Capture, 0, &dst)?;
    one.stream_on()?;
    one.finish(t, &src, src.written(), &dst, src.written())?;

    let mut from = other.own(Output)?;
    let mut to = other.own(Capture)?;
    from.fill(t)?;
    to.fill(t)?;
    other.queue(t, Output, 0, &from)?;
    other.queue(t, Capture, 0, &to)?;
    other.stream_on()?;
    let (read, wrote) = other.dequeue_pair(&from, &to)?;
    t.check(Eye::Device, read.is_error() && wrote.is_error(), || {
        "the job that the second device was to fail succeeds".into()
    });
    other.stream_off()?;
    other.copy(t, &mut from, &mut to)?;

    let (tee, secure) = (Tee::open()?, second.tee()?);
    let session = secure.session(pin::UUID)?;
    let sessions = |device: &Device| Ok::<_, Error>(device.status()?.sessions.get());
    t.equal(
        Eye::Device,
        "sessions of the second device's TEE",
        sessions(&other.device)?,
        1,
    );
    t.equal(
        Eye::Device,
        "sessions of the first one's",
        sessions(&one.device)?,
        0,
    );
    let stranger = tee.try_invoke(session, pin::RETURN, &[NONE; 4], 0);
    t.check(
        Eye::Cpu,
        !stranger.is_ok_and(|reply| reply.result == 0),
        || "one TEE takes the other's session for its own".into(),
    );
    Ok(())
}

fn carveout_is_shared_from_video_to_video(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    for memop in [DmaSg, DmaContig] {
        let (one, other) = (first(memop)?, second.copier(memop, FRAME)?);
        let (buffer, _) = carveout(&one.device, 0)?;
        write_and_read(t, &one, &other, buffer)?;
        let (one, other) = (first(memop)?, second.copier(memop, FRAME)?);
        let (buffer, _) = carveout(&one.device, 0)?;
        write_and_read(t, &other, &one, buffer)?;
    }
    Ok(())
}

fn carveout_is_exported_once(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    let (one, other) = (Device::open()?, second.control()?);
    let mut places = Vec::new();
    for device in [&one, &other, &one, &other] {
        places.push(carveout(device, 0)?);
    }
    let mut starts: Vec<_> = places.iter().map(|(_, address)| *address).collect();
    starts.sort_unstable();
    let length = FRAME.size().next_multiple_of(PAGE) as u64;
    let apart = starts.windows(2).all(|pair| pair[0] + length <= pair[1]);
    t.check(Eye::Placement, apart, || {
        format!("buffers of {length} bytes that two devices export are at {starts:x?}")
    });
    Ok(())
}

fn heap_buffer_is_shared_from_video_to_video(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    for memop in [DmaSg, Memop::Vmalloc] {
        write_and_read(
            t,
            &first(memop)?,
            &second.copier(memop, FRAME)?,
            Area::heap(FRAME.size())?,
        )?;
        write_and_read(
            t,
            &second.copier(memop, FRAME)?,
            &first(memop)?,
            Area::heap(FRAME.size())?,
        )?;
    }
    Ok(())
}

fn exported_buffer_is_shared_from_video_to_video(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    for memop in Memop::ALL {
        let (one, other) = (first(memop)?, second.copier(memop, FRAME)?);
        for (writer, reader) in [(&one, &other), (&other, &one)] {
            let mut bitstream = writer.own(Output)?;
            let mut made = writer.own(Capture)?;
            writer.copy(t, &mut bitstream, &mut made)?;
            let shared = reader.with(Output, writer.export(Capture)?)?;
            let mut screen = reader.own(Capture)?;
            screen.fill(t)?;
            reader.queue(t, Output, 0, &shared)?;
            reader.queue(t, Capture, 0, &screen)?;
            reader.stream_on()?;
            let expected = bitstream.written();
            reader.finish(t, &shared, expected, &screen, expected)?;
            // Each is the other's exporter next.
            reader.stream_off()?;
            writer.stream_off()?;
            reader.request(Output, Memory::Dmabuf, 0)?;
            drop((shared, screen, made, bitstream));
            reader.request(Capture, Memory::Mmap, 0)?;
            writer.request(Capture, Memory::Mmap, 0)?;
            writer.request(Output, Memory::Mmap, 0)?;
        }
    }
    Ok(())
}

/// What the application's fill writes, four bytes again and again.
const PATTERN: u32 = 0x3c5a_96e1;

fn filled() -> Vec<u8> {
    let pattern = PATTERN.to_le_bytes();
    pattern.into_iter().cycle().take(FRAME.size()).collect()
}

/// `video` and `tee` are different devices'.
fn video_and_tee(t: &mut Ctx, video: &M2m, tee: &Tee) -> TestResult {
    let (shared, registered) = Area::udmabuf_and_memfd(FRAME.size())?;
    let shm = register(tee, &registered)?;
    let session = tee.session(pin::UUID)?;

    // The video engine writes, the TEE reads.
    let mut bitstream = video.own(Output)?;
    let mut shared = video.with(Capture, shared)?;
    video.copy(t, &mut bitstream, &mut shared)?;
    shared.access(Access::Both, || {
        judge_checksum(t, tee, session, &shm, bitstream.written())
    })??;

    // The TEE writes, the video engine reads.
    let fill: [Param; 4] = [
        shm.all(PARAM_MEMREF_OUTPUT),
        value_in(PATTERN.into(), 0),
        NONE,
        NONE,
    ];
    shared.access(Access::Both, || {
        tee.invoke(session, pin::FILL, fill)?.ok("FILL")
    })??;
    shared.adopt()?;
    t.same_bytes(Eye::Cpu, "what the TEE wrote", shared.written(), &filled());
    video.stream_off()?;
    video.request(Output, Memory::Mmap, 0)?;
    drop(bitstream);
    video.request(Capture, Memory::Dmabuf, 0)?;
    video.request_for(Output, &shared, 1)?;
    let mut screen = video.own(Capture)?;
    screen.fill(t)?;
    video.copy_as_is(t, &shared, &screen)
}

fn memory_is_shared_between_video_and_tee(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let second = Second::plug()?;
    video_and_tee(t, &first(DmaSg)?, &second.tee()?)?;
    video_and_tee(t, &second.copier(DmaSg, FRAME)?, &tee)
}

fn carveout_is_no_memory_for_the_other_tee(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let second = Second::plug()?;
    let others = second.tee()?;
    for (device, tee) in [(Device::open()?, others), (second.control()?, tee)] {
        let (mut buffer, _) = carveout(&device, 0)?;
        buffer.fill(t)?;
        let handle = device
            .import(buffer.fd()?, wire::DIRECTION_BOTH)
            .map_err(Error::call("importing a carveout"))?;
        let registered = tee.register(buffer.address(), PAGE).map(drop);
        t.refused(
            "registering a carveout's mapping",
            registered,
            &[Errno::EFAULT],
        );
        t.equal(
            Eye::Device,
            "CRC32C that the device sees in the carveout",
            device.checksum(handle, 0, FRAME.size() as u64)?,
            crc(buffer.written()),
        );
    }
    Ok(())
}

fn heap_buffer_is_no_memory_for_the_other_tee(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    let second = Second::plug()?;
    let others = second.tee()?;
    for (video, tee) in [(first(DmaSg)?, others), (second.copier(DmaSg, FRAME)?, tee)] {
        for (heap, buffer) in [
            ("the system heap", Area::heap(FRAME.size())?),
            ("the heap on CMA", Area::cma_heap(FRAME.size())?),
        ] {
            let mut src = video.with(Output, buffer)?;
            src.fill(t)?;
            video.queue(t, Output, 0, &src)?;
            t.refused(
                &format!("registering the mapping of a buffer of {heap}"),
                tee.register(src.address(), src.len()).map(drop),
                &[Errno::EFAULT],
            );
            t.refused(
                &format!("registering the descriptor of a buffer of {heap}"),
                tee.register_dmabuf(src.fd()?).map(drop),
                &[Errno::EINVAL],
            );
            let mut dst = video.own(Capture)?;
            dst.fill(t)?;
            video.queue(t, Capture, 0, &dst)?;
            video.stream_on()?;
            video.finish(t, &src, src.written(), &dst, src.written())?;
            video.stream_off()?;
            video.request(Output, Memory::Dmabuf, 0)?;
            drop((src, dst));
            video.request(Capture, Memory::Mmap, 0)?;
        }
    }
    Ok(())
}

fn protected_memory_is_its_own_tees(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    let (device, other) = (Device::open()?, second.copier(DmaSg, MOVIE)?);
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let memory = Protected::new(&device, &player.tee, MOVIE.size())?;
    if memory.shm.is_some() {
        let registered = second.tee()?.register_dmabuf(&memory.fd).map(drop);
        t.refused(
            "registering the other TEE's memory",
            registered,
            &[Errno::EINVAL],
        );
    }
    player.decrypt(t, 0, memory.all(PARAM_MEMREF_OUTPUT))?;
    // Its own video engine may read it.
    player.allow_video(&memory, wire::DIRECTION_READ)?;
    judge_hidden(t, "in protected memory", &memory, player.frame(0))?;
    let seen = memory.seen_by_cpu()?[..MOVIE.size()].to_vec();
    let before = player.checksum(&memory)?;

    other.request(Output, Memory::Dmabuf, 1)?;
    let mut screen = other.own(Capture)?;
    screen.fill(t)?;
    other.stream_on()?;
    t.equal(
        Eye::Device,
        "whether a job of the other device's video engine failed, its status, and the CRC32C of what it read",
        show(&other, &memory)?,
        (false, wire::STATUS_OK, crc(&seen)),
    );
    screen.judge(t, "what the other device's video engine shows", &seen)?;
    t.equal(
        Eye::Device,
        "CRC32C of the protected memory as its TEE has it",
        player.checksum(&memory)?,
        before,
    );
    Ok(())
}

fn importer_follows_a_move_by_the_other(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let second = Second::plug()?;
    let (one, other) = (Device::open()?, second.control()?);
    for (exporter, importer) in [(&one, &other), (&other, &one)] {
        let (mut buffer, address) = carveout(exporter, uapi::EXPORT_MOVING)?;
        buffer.fill(t)?;
        let import = || {
            let handle = importer.import(buffer.fd()?, wire::DIRECTION_BOTH);
            Ok::<_, Stop>(handle.map_err(Error::call("importing a dma-buf"))?)
        };
        let handle = import()?;
        let new = exporter
            .relocate(buffer.fd()?, 0)
            .map_err(Error::call("moving a dma-buf"))?;
        premise(new != address, || {
            format!("the buffer is still at {address:#x}")
        })?;
        t.check(Eye::Device, importer.query(handle)?.is_none(), || {
            "a device still holds the place that a buffer has left".into()
        });
        let handle = import()?;
        let place = Extent {
            address: new,
            length: buffer.mapping.len() as u64,
        };
        let held = importer.query(handle)?.map(|held| merged(held.segments));
        t.equal(
            Eye::Device,
            "where the device has the buffer",
            held,
            Some(vec![place]),
        );
        t.equal(
            Eye::Device,
            "CRC32C that the device sees",
            importer.checksum(handle, 0, FRAME.size() as u64)?,
            crc(buffer.written()),
        );
    }
    Ok(())
}

fn import_outlives_its_exporter(t: &mut Ctx) -> TestResult {
    let second = Second::plug()?;
    let (exporter, importer) = (second.copier(DmaSg, FRAME)?, first(DmaSg)?);
    let mut bitstream = exporter.own(Output)?;
    let mut made = exporter.own(Capture)?;
    exporter.copy(t, &mut bitstream, &mut made)?;
    let expected = bitstream.written().to_vec();
    let shared = importer.with(Output, exporter.export(Capture)?)?;
    let mut screen = importer.own(Capture)?;
    screen.fill(t)?;
    importer.queue(t, Output, 0, &shared)?;

    second.unplug()?;
    no_device(t, "QUERYCAP", exporter.node.capability().map(drop));
    no_device(t, "a request", errno(exporter.device.status()).map(drop));
    drop((bitstream, made, exporter));
    let handle = importer.handle(Output, 0)?;
    t.equal(
        Eye::Device,
        "CRC32C of the import after its exporter has left",
        importer.device.checksum(handle, 0, FRAME.size() as u64)?,
        crc(&expected),
    );
    importer.queue(t, Capture, 0, &screen)?;
    importer.stream_on()?;
    importer.finish(t, &shared, &expected, &screen, &expected)
}

fn death_of_one_leaves_the_others_buffers(t: &mut Ctx) -> TestResult {
    t.expect_log("given up until it is bound again");
    let second = Second::plug()?;
    let (dying, living) = (second.copier(DmaSg, FRAME)?, first(DmaSg)?);
    // The same memory, twice pinned.
    let mut src = living.with(Output, Area::anon(8, FRAME.size())?)?;
    dying.request_for(Output, &src, 1)?;
    src.fill(t)?;
    living.queue(t, Output, 0, &src)?;
    dying.queue(t, Output, 0, &src)?;
    dying.device.inject(wire::INJECT_KEEP, 1, 0)?;
    dying.request(Output, Memory::Userptr, 0)?;
    given_up(t, &dying.device, || second.control());

    holds(t, "the other device", &living.device, 1)?;
    living.judge_placement(t, Output, 0, &src)?;
    let mut dst = living.own(Capture)?;
    dst.fill(t)?;
    living.queue(t, Capture, 0, &dst)?;
    living.stream_on()?;
    living.finish(t, &src, src.written(), &dst, src.written())
}

/// Streams on `busy` while `idle` makes a device go and come back, and sees that no job fails.
fn streaming(t: &mut Ctx, busy: &M2m, mut again: impl FnMut() -> TestResult + Send) -> TestResult {
    const ROUNDS: usize = 3;
    let mut src = busy.with(Output, Area::anon(8, FRAME.size())?)?;
    let mut dst = busy.own(Capture)?;
    let rounds = AtomicUsize::new(0);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let result = (0..ROUNDS).try_for_each(|_| {
                again()?;
                rounds.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Stop>(())
            });
            rounds.store(ROUNDS, Ordering::Relaxed);
            result
        });
        let mut result = Ok(());
        while rounds.load(Ordering::Relaxed) < ROUNDS && result.is_ok() {
            result = busy.copy(t, &mut src, &mut dst);
        }
        let other = other
            .join()
            .map_err(|_| Stop::finding(Eye::Harness, "a thread of the test panicked"))?;
        result.and(other)
    })?;
    busy.copy(t, &mut src, &mut dst)
}

fn unbind_of_one_leaves_the_other_streaming(t: &mut Ctx) -> TestResult {
    let mut second = Second::plug()?;
    streaming(t, &first(DmaSg)?, || {
        second.unbind()?;
        Ok(second.bind()?)
    })?;
    let busy = second.copier(DmaSg, FRAME)?;
    streaming(t, &busy, || {
        module::unbind()?;
        Ok(module::bind()?)
    })?;
    // The first one has its names again, which the second one's nodes do not take meanwhile.
    t.equal(
        Eye::Cpu,
        "names of the second device's nodes begin with",
        second.name(),
        "pinbed1",
    );
    let mut src = Area::anon(8, FRAME.size())?;
    let one = first(DmaSg)?;
    one.request_for(Output, &src, 1)?;
    let mut dst = one.own(Capture)?;
    one.copy(t, &mut src, &mut dst)
}
