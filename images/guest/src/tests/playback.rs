// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Secure playback: the TEE decrypts a clip from registered memory into memory that only it and, as it allows, the video engine
//! get at, and the video engine shows it. The clip is a counter-mode ciphertext of random frames.

use crate::tests::driver::needs_module;
use crate::tests::pin::longterm::{in_cma, judge_inside};
use crate::tests::sources::{MODULE, PROTECTED, TEE_LONGTERM};
use crate::tests::tee::stage::register;
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{aes, pin, playback};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::compaction::compact;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::module;
use pinbed_guest::observe::cma;
use pinbed_guest::observe::device::Device;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::tee::client::{NONE, Reply, Session, Shm, Tee, VALUE_OUT, value_in};
use pinbed_guest::tee::protected::Protected;
use pinbed_guest::video::image::{Image, Pixels};
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use pinbed_guest::video::v4l2::{self, Memop, Memory};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("playback::protected_memory_is_not_mapped", protected_memory_is_not_mapped, PROTECTED,
        "Protected memory is a dma-buf that cannot be mapped, neither itself nor as the TEE has it, nor by a node that copies with the CPU."),
    test("playback::only_protected_memory_is_registered_by_descriptor", only_protected_memory_is_registered_by_descriptor, PROTECTED,
        "TEE_IOC_SHM_REGISTER_FD takes a dma-buf of the TEE's own heap, whole, and refuses any other."),
    test("playback::cpu_does_not_see_what_is_decrypted", cpu_does_not_see_what_is_decrypted, PROTECTED,
        "What is decrypted into protected memory is seen neither by the CPU at its physical address nor by an application without the right."),
    test("playback::plain_bytes_go_to_protected_memory_only", plain_bytes_go_to_protected_memory_only, PROTECTED,
        "A protected stream is not decrypted into memory that is not protected, which stays as it was."),
    test("playback::video_reads_what_it_is_allowed_to", video_reads_what_it_is_allowed_to, PROTECTED,
        "A video node that imports protected memory reads it while the TEE allows that, and not before, after, or to write it."),
    test("playback::screen_can_be_protected", screen_can_be_protected, PROTECTED,
        "From protected memory into protected memory the video engine converts what the TEE sees, and the CPU does not."),
    test("playback::killed_player_leaves_nothing", killed_player_leaves_nothing, PROTECTED,
        "A process killed with protected memory leaves none, and the next one can have it."),
    test("playback::unload_is_refused_while_memory_is_protected", unload_is_refused_while_memory_is_protected, MODULE,
        "Unloading is refused while protected memory exists, and works when the last of it is gone."),
    test("playback::protected_memory_is_had_beside_registered_memory", protected_memory_is_had_beside_registered_memory, TEE_LONGTERM,
        "Protected memory as large as CMA is can be allocated while memory is registered whose pages were in CMA."),
    Test { timeout_s: 180, ..test("playback::clear_clip_plays", clear_clip_plays, PROTECTED,
        "300 encrypted frames are decrypted into memory that the CPU sees and shown without an error, under memory pressure.") },
    Test { timeout_s: 180, ..test("playback::protected_clip_plays", protected_clip_plays, PROTECTED,
        "300 encrypted frames are decrypted into protected memory and shown without an error, under memory pressure, unseen by the CPU.") },
];

/// A frame of the clip.
pub const MOVIE: Image = Image::grey(64, 48).with(Pixels::Nv12);
/// As it is shown.
const SCREEN: Image = MOVIE.with(Pixels::Yuyv);
/// Frames of a clip that is played to its end.
const FRAMES: usize = 300;
/// Buffers on each of the video node's queues.
const DEPTH: usize = 3;
/// Bytes of a cipher block, and of a key.
const BLOCK: u64 = 16;

/// A clip in registered memory, and its player.
pub struct Player {
    pub tee: Tee,
    session: Session,
    plain: Vec<u8>,
    /// What keeps the ciphertext.
    _area: Area,
    shm: Shm,
}

impl Player {
    /// `policy` is a `POLICY_…`.
    pub fn new(t: &mut Ctx, frames: usize, policy: u64) -> TestResult<Self> {
        let tee = Tee::open()?;
        let session = tee.session(playback::UUID)?;
        let key = Key::new(t, &tee)?;
        let [secret, counter] = key.parts();
        let params = [secret, counter, value_in(policy, 0), NONE];
        tee.invoke(session, playback::SET_KEY, params)?
            .ok("SET_KEY")?;
        let mut area = Area::anon(24, frames * MOVIE.size())?;
        area.fill(t)?;
        let plain = area.written().to_vec();
        let shm = register(&tee, &area)?;
        key.encrypt(&tee, &shm)?;
        let coded = area.contents()?;
        t.check(Eye::Harness, coded != plain, || {
            "the clip is not encrypted".into()
        });
        Ok(Self {
            tee,
            session,
            plain,
            _area: area,
            shm,
        })
    }

    /// A frame as it is decrypted.
    pub fn frame(&self, number: usize) -> &[u8] {
        &self.plain[number * MOVIE.size()..][..MOVIE.size()]
    }

    /// Decrypts a frame, which is the next one of the stream.
    fn try_decrypt(&self, number: usize, to: Param) -> TestResult<Reply> {
        let (at, size) = (number * MOVIE.size(), MOVIE.size());
        let from = self.shm.part(PARAM_MEMREF_INPUT, at as u64, size as u64);
        let params = [from, to, VALUE_OUT, NONE];
        Ok(self.tee.invoke(self.session, playback::DECRYPT, params)?)
    }

    /// Decrypts the next frame, and has the TEE say that it is the right one.
    pub fn decrypt(&self, t: &mut Ctx, number: usize, to: Param) -> TestResult {
        let reply = self.try_decrypt(number, to)?.ok("DECRYPT")?;
        let end = ((number + 1) * MOVIE.size()) as u64;
        t.equal(
            Eye::Device,
            &format!("CRC32C of frame {number} and the stream's position as the TEE has them"),
            reply.value(2),
            (crc(self.frame(number)).into(), end, 0),
        );
        Ok(())
    }

    /// The TEE's checksum of protected memory, all of it.
    pub fn checksum(&self, of: &Protected) -> TestResult<u64> {
        let params = [of.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
        let reply = self.tee.invoke(self.session, playback::CHECKSUM, params)?;
        Ok(reply.ok("CHECKSUM")?.value(1).0)
    }

    /// Lets the video engine at protected memory in this direction; zero for none.
    pub fn allow_video(&self, memory: &Protected, direction: u32) -> TestResult {
        let memory = memory.all(PARAM_MEMREF_INOUT);
        let params = [memory, value_in(direction.into(), 0), NONE, NONE];
        let reply = self
            .tee
            .invoke(self.session, playback::ALLOW_VIDEO, params)?;
        reply.ok("ALLOW_VIDEO").map(drop)
    }
}

/// A clip's key and its first counter, for whoever makes the clip and whoever plays it.
struct Key {
    _area: Area,
    shm: Shm,
}

impl Key {
    fn new(t: &mut Ctx, tee: &Tee) -> TestResult<Self> {
        let mut area = Area::malloc(2 * BLOCK as usize)?;
        area.fill(t)?;
        let shm = register(tee, &area)?;
        Ok(Self { _area: area, shm })
    }

    fn parts(&self) -> [Param; 2] {
        [0, BLOCK].map(|offset| self.shm.part(PARAM_MEMREF_INPUT, offset, BLOCK))
    }

    /// Encrypts memory in place, as the clip's maker does: with an application that knows AES.
    fn encrypt(&self, tee: &Tee, memory: &Shm) -> TestResult {
        let session = tee.session(aes::UUID)?;
        let [secret, counter] = self.parts();
        let value = |value: u32| value_in(value.into(), 0);
        let (algorithm, encode) = (value(aes::ALGORITHM_CTR), value(aes::MODE_ENCODE));
        let (from, to) = (
            memory.all(PARAM_MEMREF_INPUT),
            memory.all(PARAM_MEMREF_OUTPUT),
        );
        for (function, params) in [
            (aes::PREPARE, [algorithm, value_in(BLOCK, 0), encode, NONE]),
            (aes::SET_KEY, [secret, NONE, NONE, NONE]),
            (aes::SET_IV, [counter, NONE, NONE, NONE]),
            (aes::CIPHER, [from, to, NONE, NONE]),
        ] {
            let what = format!("AES function {function}");
            tee.invoke(session, function, params)?.ok(&what)?;
        }
        Ok(())
    }
}

/// A frame as it is shown: the luma that it has, and for each pair of pixels the chroma of their group.
fn shown(movie: &[u8]) -> Vec<u8> {
    let (luma, chroma) = movie.split_at(MOVIE.width * MOVIE.height);
    let pairs = |line: usize| {
        let luma = luma[line * MOVIE.width..][..MOVIE.width].chunks(2);
        luma.zip(chroma[line / 2 * MOVIE.width..].chunks(2))
    };
    (0..MOVIE.height)
        .flat_map(pairs)
        .flat_map(|(luma, chroma)| [luma[0], chroma[0], luma[1], chroma[1]])
        .collect()
}

/// The CPU eye on protected memory: no more bytes are the plain ones than chance has it, which is one in 256.
pub fn judge_hidden(t: &mut Ctx, what: &str, memory: &Protected, plain: &[u8]) -> TestResult {
    let seen = memory.seen_by_cpu()?;
    let same = seen.iter().zip(plain).filter(|(a, b)| a == b).count();
    t.check(Eye::Cpu, same < plain.len() / 64, || {
        format!(
            "{what}: the CPU reads {same} of {} plain bytes in protected memory",
            plain.len()
        )
    });
    Ok(())
}

/// Protected memory of every kind that this kernel has for a frame, with its name.
fn kinds(device: &Device, tee: &Tee) -> TestResult<Vec<(&'static str, OwnedFd, Option<Shm>)>> {
    let size = MOVIE.size();
    let mut kinds = Vec::new();
    let best = Protected::new(device, tee, size)?;
    if best.shm.is_some() {
        let own = device.try_export(size, pinbed_abi::uapi::EXPORT_PROTECTED);
        let (fd, _) = own.map_err(Error::call("exporting protected memory"))?;
        kinds.push(("the kernel's heap", best.fd, best.shm));
        kinds.push(("the driver's exporter", fd, None));
    } else {
        kinds.push(("the driver's exporter", best.fd, None));
    }
    Ok(kinds)
}

fn is_mapped(file: impl AsFd) -> Result<usize, Errno> {
    match Mapping::shared(file, PAGE, READ_WRITE) {
        Ok(mapping) => Ok(mapping.address()),
        Err(Error::Call { errno, .. }) => Err(errno),
        Err(_) => Err(Errno::EIO),
    }
}

/// `struct v4l2_buffer` for QBUF of a dma-buf that cannot be mapped.
fn describe(queue: Queue, index: u32, fd: BorrowedFd, length: usize) -> v4l2::Buffer {
    v4l2::Buffer {
        index,
        kind: queue as u32,
        bytesused: match queue {
            Output => MOVIE.size() as u32,
            Capture => 0,
        },
        field: v4l2::FIELD_NONE,
        memory: Memory::Dmabuf as u32,
        m: fd.as_raw_fd() as u64,
        length: length as u32,
        ..Default::default()
    }
}

fn protected_memory_is_not_mapped(t: &mut Ctx) -> TestResult {
    let (device, tee) = (Device::open()?, Tee::open()?);
    for (kind, fd, shm) in kinds(&device, &tee)? {
        let invalid = &[Errno::EINVAL];
        t.refused(
            &format!("mmap of a dma-buf of {kind}"),
            is_mapped(&fd),
            invalid,
        );
        if let Some(shm) = &shm {
            let what = format!("mmap of what the TEE has of {kind}");
            t.refused(&what, is_mapped(&shm.file), invalid);
        }
        let node = M2m::copier_on(Memop::Vmalloc, MOVIE)?;
        for queue in [Output, Capture] {
            node.request(queue, Memory::Dmabuf, 1)?;
            let length = MOVIE.size().next_multiple_of(PAGE);
            let queued = node.node.enqueue(describe(queue, 0, fd.as_fd(), length));
            let what = format!("QBUF of a dma-buf of {kind} on {queue:?} of vb2-vmalloc");
            t.refused(&what, queued, &[Errno::EFAULT, Errno::EINVAL]);
        }
    }
    Ok(())
}

fn only_protected_memory_is_registered_by_descriptor(t: &mut Ctx) -> TestResult {
    let (device, tee) = (Device::open()?, Tee::open()?);
    let memory = Protected::new(&device, &tee, MOVIE.size())?;
    let Some(shm) = &memory.shm else {
        return Err(Error::Absent {
            what: dmabuf::PROTECTED_HEAP.into(),
            remedy: "run a kernel whose TEE subsystem has heaps (CONFIG_TEE_DMABUF_HEAPS)".into(),
        }
        .into());
    };
    t.equal(
        Eye::Cpu,
        "the size that was registered",
        shm.size,
        memory.place.length,
    );
    let own = device.try_export(PAGE, pinbed_abi::uapi::EXPORT_PROTECTED);
    let (own, _) = own.map_err(Error::call("exporting protected memory"))?;
    let heap = dmabuf::system_heap(PAGE)?;
    let (udmabuf, file) = dmabuf::udmabuf(PAGE)?;
    for (what, fd) in [
        ("a dma-buf of the driver's exporter", &own),
        ("a dma-buf of the system heap", &heap),
        ("a udmabuf", &udmabuf),
        ("a file that is no dma-buf", &file),
    ] {
        let what = format!("registering {what}");
        t.refused(&what, tee.register_dmabuf(fd), &[Errno::EINVAL]);
    }
    Ok(())
}

fn cpu_does_not_see_what_is_decrypted(t: &mut Ctx) -> TestResult {
    let device = Device::open()?;
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let memory = Protected::new(&device, &player.tee, MOVIE.size())?;
    player.decrypt(t, 0, memory.all(PARAM_MEMREF_OUTPUT))?;
    judge_hidden(t, "after it was decrypted", &memory, player.frame(0))?;
    let outsider = player.tee.session(pin::UUID)?;
    let params = [memory.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
    let reply = player.tee.invoke(outsider, pin::CHECKSUM, params)?;
    t.equal(
        Eye::Device,
        "what an application without the right gets",
        reply.result,
        TEEC_ERROR_BAD_PARAMETERS,
    );
    let control = device.checksum(memory.handle, 0, MOVIE.size() as u64);
    t.check(
        Eye::Device,
        matches!(
            control,
            Err(Error::Device {
                status: wire::STATUS_DMA_FAULT,
                ..
            })
        ),
        || format!("a checksum through the control queue is answered {control:?}"),
    );
    // The plain bytes are there, for those who may see them.
    let mut whole = player.frame(0).to_vec();
    let rest = memory.len() - whole.len();
    t.check(Eye::Harness, rest < PAGE, || {
        format!("{rest} bytes are too many")
    });
    if rest == 0 {
        t.equal(
            Eye::Device,
            "the TEE's CRC32C",
            player.checksum(&memory)?,
            crc(&whole).into(),
        );
    } else {
        // What follows the frame deciphers to garbage, until it is written.
        let before = player.checksum(&memory)?;
        whole.resize(memory.len(), 0);
        t.check(Eye::Device, before != u64::from(crc(&whole)), || {
            "fresh protected memory reads as zero to the TEE: it is not enciphered".into()
        });
    }
    Ok(())
}

fn plain_bytes_go_to_protected_memory_only(t: &mut Ctx) -> TestResult {
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let mut clear = Area::anon(8, MOVIE.size())?;
    clear.fill(t)?;
    let shm = register(&player.tee, &clear)?;
    let reply = player.try_decrypt(0, shm.all(PARAM_MEMREF_OUTPUT))?;
    t.equal(
        Eye::Device,
        "result and origin",
        reply.verdict(),
        (TEEC_ERROR_ACCESS_DENIED, TEEC_ORIGIN_TRUSTED_APP),
    );
    clear.judge_untouched(t, "memory that is not protected")?;
    Ok(())
}

/// One job from protected memory to a screen: whether it failed, and what the device said of it.
pub fn show(m2m: &M2m, memory: &Protected) -> TestResult<(bool, u32, u32)> {
    let buffer = describe(Output, 0, memory.fd.as_fd(), memory.len());
    let queued = m2m.node.enqueue(buffer);
    queued.map_err(Error::call("QBUF of protected memory on OUTPUT"))?;
    let queued = m2m.node.enqueue(screen(0));
    queued.map_err(Error::call("QBUF of a screen on CAPTURE"))?;
    let read = m2m.dequeue(Output, Memory::Dmabuf)?;
    let wrote = m2m.dequeue(Capture, Memory::Mmap)?;
    let failed = read.is_error() && wrote.is_error();
    Ok((failed, read.report.job_status, read.report.job_crc))
}

/// `struct v4l2_buffer` for QBUF of the CAPTURE queue's own buffer.
fn screen(index: u32) -> v4l2::Buffer {
    v4l2::Buffer {
        index,
        kind: Capture as u32,
        field: v4l2::FIELD_NONE,
        memory: Memory::Mmap as u32,
        ..Default::default()
    }
}

fn video_reads_what_it_is_allowed_to(t: &mut Ctx) -> TestResult {
    // A bounce buffer is not protected.
    swiotlb::unless_forced()?;
    t.expect_log(": DMA fault");
    for memop in [Memop::DmaSg, Memop::DmaContig] {
        let m2m = M2m::open_on(memop, MOVIE, SCREEN)?;
        let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
        let memory = Protected::new(&m2m.device, &player.tee, MOVIE.size())?;
        player.decrypt(t, 0, memory.all(PARAM_MEMREF_OUTPUT))?;
        m2m.request(Output, Memory::Dmabuf, 1)?;
        let mut screen = m2m.own(Capture)?;
        screen.fill(t)?;
        m2m.stream_on()?;
        let denied = (true, wire::STATUS_DMA_FAULT, 0);
        let what = |when: &str| format!("{}, {when}", memop.node());
        let dark = |t: &mut Ctx, screen: &Area, when: &str| -> TestResult {
            let got = show(&m2m, &memory)?;
            t.equal(Eye::Device, &what(when), got, denied);
            match m2m.device.next_event(5_000)? {
                None => t.find(Eye::Device, format!("{}: no event after 5 s", what(when))),
                Some(event) => {
                    t.equal(
                        Eye::Device,
                        &what("the fault's reason"),
                        event.fault.reason.get(),
                        wire::FAULT_PROTECTED,
                    );
                }
            }
            screen.judge_untouched(t, "the screen")?;
            Ok(())
        };
        dark(t, &screen, "before it is allowed")?;
        player.allow_video(&memory, wire::DIRECTION_WRITE)?;
        dark(t, &screen, "while it may only write")?;
        player.allow_video(&memory, wire::DIRECTION_READ)?;
        let got = show(&m2m, &memory)?;
        let good = (false, wire::STATUS_OK, crc(player.frame(0)));
        t.equal(Eye::Device, &what("while it may read"), got, good);
        screen.judge(t, "the screen", &shown(player.frame(0)))?;
        judge_hidden(t, "while video may read", &memory, player.frame(0))?;
        screen.fill(t)?;
        player.allow_video(&memory, 0)?;
        dark(t, &screen, "after it was forbidden")?;
        cannot_write(t, memop, &player, &memory)?;
    }
    Ok(())
}

/// Who may read protected memory may not write it.
fn cannot_write(t: &mut Ctx, memop: Memop, player: &Player, memory: &Protected) -> TestResult {
    player.allow_video(memory, wire::DIRECTION_READ)?;
    let before = player.checksum(memory)?;
    let m2m = M2m::copier_on(memop, MOVIE)?;
    let mut source = m2m.own(Output)?;
    source.fill(t)?;
    m2m.request(Capture, Memory::Dmabuf, 1)?;
    m2m.queue(t, Output, 0, &source)?;
    let buffer = describe(Capture, 0, memory.fd.as_fd(), memory.len());
    let queued = m2m.node.enqueue(buffer);
    queued.map_err(Error::call("QBUF of protected memory on CAPTURE"))?;
    m2m.stream_on()?;
    let wrote = m2m.dequeue(Capture, Memory::Dmabuf)?;
    t.equal(
        Eye::Device,
        "writing protected memory that may be read",
        (wrote.is_error(), wrote.report.job_status),
        (true, wire::STATUS_DMA_FAULT),
    );
    let after = player.checksum(memory)?;
    t.equal(Eye::Device, "the TEE's CRC32C after that", after, before);
    Ok(())
}

fn screen_can_be_protected(t: &mut Ctx) -> TestResult {
    // A bounce buffer is not protected.
    swiotlb::unless_forced()?;
    let m2m = M2m::open(MOVIE, SCREEN)?;
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let movie = Protected::new(&m2m.device, &player.tee, MOVIE.size())?;
    let screen = Protected::new(&m2m.device, &player.tee, SCREEN.size())?;
    player.decrypt(t, 0, movie.all(PARAM_MEMREF_OUTPUT))?;
    player.allow_video(&movie, wire::DIRECTION_READ)?;
    player.allow_video(&screen, wire::DIRECTION_WRITE)?;
    for (queue, memory) in [(Output, &movie), (Capture, &screen)] {
        m2m.request(queue, Memory::Dmabuf, 1)?;
        let buffer = describe(queue, 0, memory.fd.as_fd(), memory.len());
        let queued = m2m.node.enqueue(buffer);
        queued.map_err(Error::call(format!(
            "QBUF of protected memory on {queue:?}"
        )))?;
    }
    m2m.stream_on()?;
    let read = m2m.dequeue(Output, Memory::Dmabuf)?;
    let wrote = m2m.dequeue(Capture, Memory::Dmabuf)?;
    let expected = shown(player.frame(0));
    t.equal(
        Eye::Device,
        "status and CRC32Cs of the job",
        (
            wrote.report.job_status,
            read.report.job_crc,
            wrote.report.job_crc,
        ),
        (wire::STATUS_OK, crc(player.frame(0)), crc(&expected)),
    );
    judge_hidden(t, "the screen", &screen, &expected)
}

fn killed_player_leaves_nothing(t: &mut Ctx) -> TestResult {
    // The child could not say that there is none.
    drop(Tee::open()?);
    let before = Before::look()?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let child = match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _held = Player::new(t, 1, playback::POLICY_PROTECTED).and_then(|player| {
                let device = Device::open()?;
                Ok((Protected::new(&device, &player.tee, MOVIE.size())?, player))
            });
            thread::sleep(Duration::from_secs(60));
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { libc::_exit(1) }
        }
    };
    // The clip, and protected memory.
    let is_protected = patience::until(patience::LIMIT, || {
        let mut all = before.device.list()?.into_iter();
        Ok(all.any(|held| held.flags & wire::ATTACH_PROTECTED != 0))
    })?;
    t.check(Eye::Harness, is_protected, || {
        "the child does not come to have protected memory".into()
    });
    kill(child, Signal::SIGKILL).map_err(Error::call("killing the child"))?;
    waitpid(child, None).map_err(Error::call("waitpid"))?;
    before.judge(t, "after the player was killed", 0, 0)?;
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let memory = Protected::new(&before.device, &player.tee, MOVIE.size())?;
    player.decrypt(t, 0, memory.all(PARAM_MEMREF_OUTPUT))
}

fn unload_is_refused_while_memory_is_protected(t: &mut Ctx) -> TestResult {
    needs_module()?;
    let kinds = {
        let (device, tee) = (Device::open()?, Tee::open()?);
        kinds(&device, &tee)?
    };
    for (kind, fd, shm) in kinds {
        // What the TEE has of it goes first, and is not what keeps the driver.
        drop(shm);
        let what = format!("rmmod with protected memory of {kind}");
        t.refused(&what, module::unload(), &[Errno::EAGAIN]);
        drop(fd);
    }
    module::unload().map_err(|errno| {
        let text = format!("rmmod fails with {errno:?} when no memory is protected");
        Stop::finding(Eye::Cpu, text)
    })?;
    module::load()?;
    let player = Player::new(t, 1, playback::POLICY_PROTECTED)?;
    let memory = Protected::new(&Device::open()?, &player.tee, MOVIE.size())?;
    player.decrypt(t, 0, memory.all(PARAM_MEMREF_OUTPUT))
}

/// Bytes by which an allocation of nearly all of CMA is made smaller: the alignment of a large one.
const STEP: usize = 1 << 20;

/// The most protected memory that can be had at a time, and who has it, while nothing else is going on.
fn largest(device: &Device, tee: &Tee, region: &cma::Region) -> TestResult<Protected> {
    let free = region.longest_free()? as usize * PAGE;
    let mut length = free / STEP * STEP;
    loop {
        match Protected::new(device, tee, length) {
            Err(Error::Call {
                errno: Errno::ENOMEM,
                ..
            }) if length > free / 2 => length -= STEP,
            result => return Ok(result?),
        }
    }
}

fn protected_memory_is_had_beside_registered_memory(t: &mut Ctx) -> TestResult {
    let (device, tee) = (Device::open()?, Tee::open()?);
    let session = tee.session(pin::UUID)?;
    let memory = largest(&device, &tee, &cma::largest()?)?;
    let (length, place) = (memory.len(), memory.place);
    drop(memory);
    let (area, region) = in_cma(t)?;
    judge_inside(t, &area, &region, true)?;
    t.note(format!(
        "{length} bytes of protected memory fit at {place:?}"
    ));
    let shm = register(&tee, &area)?;
    match Protected::new(&device, &tee, length) {
        Ok(_secure) => {
            let params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
            let reply = tee.invoke(session, pin::CHECKSUM, params)?;
            t.equal(
                Eye::Device,
                "CRC32C of the registered memory",
                reply.ok("CHECKSUM")?.value(1).0,
                crc(area.written()).into(),
            );
        }
        Err(Error::Call {
            errno: Errno::ENOMEM,
            ..
        }) => t.find(
            Eye::Placement,
            format!("{length} bytes of protected memory cannot be had while memory is registered"),
        ),
        Err(error) => return Err(error.into()),
    }
    drop(shm);
    if let Err(error) = Protected::new(&device, &tee, length) {
        t.find(Eye::Aftermath, format!("nor after close: {error}"));
    }
    Ok(())
}

/// Where a frame is decrypted to, and the video engine reads it.
enum Reel {
    Protected(Protected),
    /// A dma-buf, the memory behind it, and the TEE's share of that.
    Clear(OwnedFd, Mapping, Shm),
}

impl Reel {
    fn protected(player: &Player, device: &Device) -> TestResult<Self> {
        let memory = Protected::new(device, &player.tee, MOVIE.size())?;
        player.allow_video(&memory, wire::DIRECTION_READ)?;
        Ok(Self::Protected(memory))
    }

    fn clear(player: &Player, _: &Device) -> TestResult<Self> {
        let length = MOVIE.size().next_multiple_of(PAGE);
        let (fd, file) = dmabuf::udmabuf(length)?;
        let mapping = Mapping::shared(file, length, READ_WRITE)?;
        let shm = player.tee.register(mapping.address(), length);
        let shm = shm.map_err(Error::call("TEE_IOC_SHM_REGISTER of a memfd"))?;
        Ok(Self::Clear(fd, mapping, shm))
    }

    fn buffer(&self, index: usize) -> v4l2::Buffer {
        let (fd, length) = match self {
            Self::Protected(memory) => (&memory.fd, memory.len()),
            Self::Clear(fd, mapping, _) => (fd, mapping.len()),
        };
        describe(Output, index as u32, fd.as_fd(), length)
    }

    fn memory(&self) -> Param {
        match self {
            Self::Protected(memory) => memory.all(PARAM_MEMREF_OUTPUT),
            Self::Clear(_, _, shm) => shm.all(PARAM_MEMREF_OUTPUT),
        }
    }

    /// The CPU eye: it sees the plain bytes, or it does not.
    fn judge(&self, t: &mut Ctx, what: &str, plain: &[u8]) -> TestResult {
        match self {
            Self::Protected(memory) => judge_hidden(t, what, memory, plain),
            Self::Clear(_, mapping, _) => {
                t.same_bytes(Eye::Cpu, what, &mapping.read(0..plain.len()), plain);
                Ok(())
            }
        }
    }
}

/// All that is needed to play a clip.
struct Theatre {
    m2m: M2m,
    player: Player,
    reels: Vec<Reel>,
    screens: Vec<Area>,
}

impl Theatre {
    fn open(
        t: &mut Ctx,
        policy: u64,
        make: fn(&Player, &Device) -> TestResult<Reel>,
    ) -> TestResult<Self> {
        let m2m = M2m::open(MOVIE, SCREEN)?;
        let player = Player::new(t, FRAMES, policy)?;
        m2m.request(Output, Memory::Dmabuf, DEPTH as u32)?;
        m2m.request(Capture, Memory::Mmap, DEPTH as u32)?;
        let (mut reels, mut screens) = (Vec::new(), Vec::new());
        for index in 0..DEPTH {
            reels.push(make(&player, &m2m.device)?);
            screens.push(m2m.map(Capture, index as u32)?);
        }
        m2m.stream_on()?;
        Ok(Self {
            m2m,
            player,
            reels,
            screens,
        })
    }

    /// Plays the clip to its end. All buffers are in use: while one frame is shown, the next are decrypted.
    fn play(&self, t: &mut Ctx) -> TestResult<Duration> {
        let start = Instant::now();
        for number in 0..FRAMES + DEPTH {
            if let Some(done) = number.checked_sub(DEPTH) {
                self.judge_frame(t, done)?;
            }
            if number < FRAMES {
                self.project(t, number)?;
            }
        }
        Ok(start.elapsed())
    }

    /// Decrypts a frame and has it shown.
    fn project(&self, t: &mut Ctx, number: usize) -> TestResult {
        let index = number % DEPTH;
        let reel = &self.reels[index];
        self.player.decrypt(t, number, reel.memory())?;
        for (queue, buffer) in [
            (Output, reel.buffer(index)),
            (Capture, screen(index as u32)),
        ] {
            let what = format!("QBUF of frame {number} on {queue:?}");
            self.m2m.node.enqueue(buffer).map_err(Error::call(what))?;
        }
        Ok(())
    }

    /// The next frame comes back from the video engine, and is what it should be for everybody.
    fn judge_frame(&self, t: &mut Ctx, number: usize) -> TestResult {
        let (index, plain) = (number % DEPTH, self.player.frame(number));
        let read = self.m2m.dequeue(Output, Memory::Dmabuf)?;
        let wrote = self.m2m.dequeue(Capture, Memory::Mmap)?;
        let findings = t.findings();
        let what = format!("frame {number}");
        t.equal(
            Eye::Cpu,
            &format!("{what}: indices and errors of its buffers"),
            [&read, &wrote].map(|done| (done.buffer.index as usize, done.is_error())),
            [(index, false); 2],
        );
        let expected = crc(&shown(plain));
        t.equal(
            Eye::Device,
            &format!("{what}: CRC32Cs of what the video engine read and wrote"),
            (read.report.job_crc, wrote.report.job_crc),
            (crc(plain), expected),
        );
        t.equal(
            Eye::Cpu,
            &format!("{what}: CRC32C of the screen"),
            crc(&self.screens[index].contents()?),
            expected,
        );
        self.reels[index].judge(t, &what, plain)?;
        match t.findings() - findings {
            0 => Ok(()),
            _ => Err(Stop::finding(
                Eye::Harness,
                format!("playing ends with frame {number}, which is wrong"),
            )),
        }
    }
}

/// What goes on beside a clip until it has ended.
struct Beside<'a>(&'a AtomicBool);

impl Beside<'_> {
    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Registers other memory, has it read by the TEE, and lets go of it. Returns how often.
    fn registrations(&self) -> TestResult<u32> {
        let tee = Tee::open()?;
        let session = tee.session(pin::UUID)?;
        let mut count = 0u32;
        while !self.is_over() {
            count += 1;
            let mapping = Mapping::anon(8 * PAGE)?;
            let bytes = vec![count as u8; 8 * PAGE];
            mapping.write(0, &bytes);
            let shm = tee.register(mapping.address(), bytes.len());
            let shm = shm.map_err(Error::call("TEE_IOC_SHM_REGISTER beside the clip"))?;
            let params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
            let reply = tee.invoke(session, pin::CHECKSUM, params)?;
            let seen = reply.ok("CHECKSUM beside the clip")?.value(1).0;
            if seen != u64::from(crc(&bytes)) {
                let text = format!("the TEE reads other bytes in registration {count}");
                return Err(Stop::finding(Eye::Device, text));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(count)
    }

    /// Leaves little memory free, wants more than that again and again, and has the kernel move pages about. Returns how often.
    fn pressure(&self) -> TestResult<u32> {
        const LEAVE: u64 = 32 << 20;
        const WANT: usize = 40 << 20;
        let device = Device::open()?;
        device.ballast(vmstat::reserve()? + LEAVE)?;
        let mut count = 0u32;
        while !self.is_over() {
            count += 1;
            let memory = Mapping::anon(WANT)?;
            for page in (0..WANT).step_by(PAGE) {
                memory.write(page, &[count as u8]);
                if self.is_over() {
                    break;
                }
            }
            // Without compaction there is nothing to be asked of it.
            let _ = compact();
            thread::sleep(Duration::from_millis(20));
        }
        Ok(count)
    }
}

fn join<T>(work: thread::ScopedJoinHandle<'_, TestResult<T>>) -> TestResult<T> {
    let panicked = |_| Stop::finding(Eye::Harness, "a thread beside the clip panicked");
    work.join().map_err(panicked)?
}

fn play_under_pressure(
    t: &mut Ctx,
    policy: u64,
    make: fn(&Player, &Device) -> TestResult<Reel>,
) -> TestResult {
    let theatre = Theatre::open(t, policy, make)?;
    let over = AtomicBool::new(false);
    let (played, registrations, pressure) = thread::scope(|scope| {
        let registrations = scope.spawn(|| Beside(&over).registrations());
        let pressure = scope.spawn(|| Beside(&over).pressure());
        let played = theatre.play(t);
        over.store(true, Ordering::Relaxed);
        (played, join(registrations), join(pressure))
    });
    let (played, registrations, pressure) = (played?, registrations?, pressure?);
    t.note(format!(
        "{FRAMES} frames in {} ms, beside {registrations} registrations and {pressure} times all memory",
        played.as_millis()
    ));
    t.check(Eye::Harness, registrations > 0 && pressure > 0, || {
        "nothing went on beside the clip".into()
    });
    Ok(())
}

fn clear_clip_plays(t: &mut Ctx) -> TestResult {
    // A bounce buffer is not protected.
    swiotlb::unless_forced()?;
    play_under_pressure(t, playback::POLICY_CLEAR, Reel::clear)
}

fn protected_clip_plays(t: &mut Ctx) -> TestResult {
    // A bounce buffer is not protected.
    swiotlb::unless_forced()?;
    play_under_pressure(t, playback::POLICY_PROTECTED, Reel::protected)
}
