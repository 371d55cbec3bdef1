// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A front end and a driver in one: a real socket, shared memory, and rings written by hand, so that they may be wrong.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pinbed_abi::wire;
use pinbed_device::{Error, Options, serve_until};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// No single thing here takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// No test takes longer. The front end's messages wait for their answers without end, so a thread watches.
const LIFETIME: Duration = Duration::from_secs(240);

pub const RING_SIZE: u16 = 128;
/// Memory is `[0, MEMORY_END)` less a hole.
pub const MEMORY_END: u64 = 16 << 20;
pub const HOLE: std::ops::Range<u64> = 8 << 20..12 << 20;
/// From here on memory is free for tests.
pub const FREE: u64 = 1 << 20;

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// The device in a thread, or its program.
pub struct Device {
    pub socket: PathBuf,
    stop: EventFd,
    thread: Option<JoinHandle<Result<(), Error>>>,
    child: Option<Child>,
    dir: tempfile::TempDir,
}

impl Device {
    /// One that is allowed to misbehave.
    pub fn start() -> Self {
        Self::start_with(Options {
            allow_sabotage: true,
            ..Options::default()
        })
    }

    pub fn start_with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("device");
        let stop = EventFd::new(EFD_CLOEXEC).unwrap();
        let (path, fd) = (socket.clone(), stop.try_clone().unwrap());
        let thread = thread::spawn(move || {
            // SAFETY: `fd` is moved into this closure and lives as long as the borrow.
            let stop = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
            serve_until(&path, options, stop)
        });
        let device = Self {
            socket,
            stop,
            thread: Some(thread),
            child: None,
            dir,
        };
        eventually("the socket file", || device.socket.exists().then_some(()));
        device
    }

    /// The device's program.
    pub fn spawn() -> Self {
        Self::spawn_with(&[])
    }

    /// The device's program, with more arguments.
    pub fn spawn_with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("device");
        let child = Command::new(env!("CARGO_BIN_EXE_pinbed-device"))
            .arg("--socket-path")
            .arg(&socket)
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let device = Self {
            socket,
            stop: EventFd::new(EFD_CLOEXEC).unwrap(),
            thread: None,
            child: Some(child),
            dir,
        };
        eventually("the socket file", || device.socket.exists().then_some(()));
        device
    }

    /// How the program ended, if it has.
    pub fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// How the program ends.
    pub fn exit(&mut self) -> ExitStatus {
        eventually("the program's end", || self.ended_by_itself())
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What the program has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub fn stop(&self) {
        self.stop.write(1).unwrap();
    }

    /// Waits until it has returned by itself.
    pub fn ended(&mut self) -> Result<(), Error> {
        let thread = self.thread.as_ref().unwrap();
        eventually("the device's end", || thread.is_finished().then_some(()));
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if self.thread.is_some() && !thread::panicking() {
            self.stop();
            self.ended().unwrap();
        }
    }
}

/// The driver's side of a ring.
pub struct Ring {
    queue: usize,
    base: u64,
    /// Where the available ring is.
    pub avail_at: u64,
    avail: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    /// Chains that the device has not given back.
    pub fn pending(&self) -> u16 {
        self.avail.wrapping_sub(self.used)
    }
}

pub struct Host {
    pub device: Device,
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    pub rings: Vec<Ring>,
    event_idx: bool,
    _watched: Sender<()>,
}

impl Host {
    /// A device with all rings running.
    pub fn new(event_idx: bool) -> Self {
        let mut host = Self::connect(event_idx);
        host.begin_rings();
        host
    }

    /// A device that a front end is connected to, as QEMU at start-up.
    pub fn connect(event_idx: bool) -> Self {
        Self::connect_to(Device::start(), event_idx)
    }

    pub fn connect_to(device: Device, event_idx: bool) -> Self {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY_END).unwrap();
        let region = |range: std::ops::Range<u64>| {
            let file = FileOffset::new(file.try_clone().unwrap(), range.start);
            let length = (range.end - range.start) as usize;
            (GuestAddress(range.start), length, Some(file))
        };
        let memory = GuestMemoryMmap::from_ranges_with_files([
            region(0..HOLE.start),
            region(HOLE.end..MEMORY_END),
        ])
        .unwrap();
        let (watched, watch) = mpsc::channel();
        thread::spawn(move || {
            if watch.recv_timeout(LIFETIME) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test hangs: the device has not answered a vhost-user message");
                std::process::abort();
            }
        });
        let mut frontend = Frontend::connect(&device.socket, 4).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_ne!(
            offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            0
        );
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(!protocol.contains(VhostUserProtocolFeatures::STATUS));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), 4);
        let rings = (0..4)
            .map(|queue| Ring {
                queue,
                base: 0x10000 * (queue as u64 + 1),
                avail_at: 0x10000 * (queue as u64 + 1) + 0x1000,
                avail: 0,
                used: 0,
                kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
                call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            })
            .collect();
        Self {
            device,
            frontend,
            memory,
            rings,
            event_idx,
            _watched: watched,
        }
    }

    /// For the rings' begin: descriptors that block. Two rings that one thread serves share a kick; the calls have no room for a notification.
    pub fn take_descriptors_that_block(&mut self) {
        for ring in &mut self.rings {
            ring.kick = EventFd::new(EFD_CLOEXEC).unwrap();
            ring.call = EventFd::new(EFD_CLOEXEC).unwrap();
            ring.call.write(u64::MAX - 1).unwrap();
        }
        let kick = &self.rings[wire::QUEUE_CONTROL as usize].kick;
        self.rings[wire::QUEUE_EVENT as usize].kick = kick.try_clone().unwrap();
    }

    /// What QEMU sends when a driver sets DRIVER_OK: fresh rings that begin at zero.
    pub fn begin_rings(&mut self) {
        self.start_rings(None, |_| {});
    }

    /// What QEMU sends when a paused guest goes on: the rings as they were, at `base`.
    pub fn resume_rings(&mut self, base: [u16; 4]) {
        self.start_rings(Some(base), |_| {});
    }

    /// `prepare` runs when the rings are set up and not yet enabled.
    pub fn start_rings(&mut self, base: Option<[u16; 4]>, prepare: impl FnOnce(&mut Self)) {
        let mut features = self.frontend.get_features().unwrap();
        if !self.event_idx {
            features &= !(1 << 29);
        }
        self.frontend.set_features(features).unwrap();
        let regions: Vec<_> = self
            .memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        self.frontend.set_mem_table(&regions).unwrap();
        let fresh = base.is_none();
        for (ring, base) in self.rings.iter_mut().zip(base.unwrap_or_default()) {
            if fresh {
                let zeros = vec![0; 0x4000];
                self.memory
                    .write_slice(&zeros, GuestAddress(ring.base))
                    .unwrap();
                (ring.avail, ring.used) = (0, 0);
            }
            let host = |at| self.memory.get_host_address(GuestAddress(at)).unwrap() as u64;
            let queue = ring.queue;
            self.frontend.set_vring_num(queue, RING_SIZE).unwrap();
            self.frontend.set_vring_base(queue, base).unwrap();
            let config = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: host(ring.base),
                avail_ring_addr: host(ring.avail_at),
                used_ring_addr: host(ring.base + 0x2000),
                log_addr: None,
            };
            self.frontend.set_vring_addr(queue, &config).unwrap();
            self.frontend.set_vring_kick(queue, &ring.kick).unwrap();
            self.frontend.set_vring_call(queue, &ring.call).unwrap();
        }
        prepare(self);
        for queue in 0..4 {
            self.frontend.set_vring_enable(queue, true).unwrap();
        }
    }

    /// What QEMU sends when the guest's memory after the hole is unplugged. The file stays as it is.
    pub fn unplug_high_memory(&mut self) {
        let low = self.memory.iter().next().unwrap();
        let low = VhostUserMemoryRegionInfo::from_guest_region(low).unwrap();
        self.frontend.set_mem_table(&[low]).unwrap();
    }

    /// What QEMU sends when the guest resets the device or is paused; returns where the rings stopped.
    pub fn stop_rings(&mut self) -> [u16; 4] {
        for queue in 0..4 {
            self.frontend.set_vring_enable(queue, false).unwrap();
        }
        [0, 1, 2, 3].map(|queue| self.frontend.get_vring_base(queue).unwrap() as u16)
    }

    pub fn read_config(&mut self, size: u32) -> Vec<u8> {
        let buffer = vec![0; size as usize];
        let (_, bytes) = self
            .frontend
            .get_config(0, size, VhostUserConfigFlags::empty(), &buffer)
            .unwrap();
        bytes
    }

    pub fn write_config(&mut self, bytes: &[u8]) {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend.set_config(0, flags, bytes).unwrap();
    }

    pub fn descriptor(
        &self,
        queue: u32,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.rings[queue as usize].base + 16 * u64::from(index);
        self.put_descriptor(at, address, length, flags, next);
    }

    pub fn put_descriptor(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &length.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Makes a chain available without a kick.
    pub fn offer(&mut self, queue: u32, head: u16) {
        let ring = &mut self.rings[queue as usize];
        let entry = ring.avail_at + 4 + 2 * u64::from(ring.avail % RING_SIZE);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        self.set_avail_index(queue, self.rings[queue as usize].avail);
    }

    pub fn set_avail_index(&self, queue: u32, index: u16) {
        let at = GuestAddress(self.rings[queue as usize].avail_at + 2);
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    pub fn kick(&self, queue: u32) {
        self.rings[queue as usize].kick.write(1).unwrap();
    }

    pub fn used_flags(&self, queue: u32) -> u16 {
        let at = GuestAddress(self.rings[queue as usize].base + 0x2000);
        u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
    }

    fn used_index(&self, queue: u32) -> u16 {
        let at = GuestAddress(self.rings[queue as usize].base + 0x2002);
        u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
    }

    /// The next used chain's head and length, if there is one already.
    pub fn poll_used(&mut self, queue: u32) -> Option<(u32, u32)> {
        let index = self.used_index(queue);
        let ring = &mut self.rings[queue as usize];
        if index == ring.used {
            return None;
        }
        let entry = ring.base + 0x2004 + 8 * u64::from(ring.used % RING_SIZE);
        ring.used = ring.used.wrapping_add(1);
        if self.event_idx {
            // The driver's used_event: notify about the very next one.
            let at = ring.avail_at + 4 + 2 * u64::from(RING_SIZE);
            self.memory
                .write_obj(ring.used.to_le(), GuestAddress(at))
                .unwrap();
        }
        let read = |at| u32::from_le(self.memory.read_obj(GuestAddress(at)).unwrap());
        Some((read(entry), read(entry + 4)))
    }

    /// The next used chain, as a driver learns of it: by a notification, which may also be a belated one.
    pub fn used(&mut self, queue: u32) -> (u32, u32) {
        let call = self.rings[queue as usize].call.try_clone().unwrap();
        eventually("a notification of a used chain", || {
            call.read().ok().and_then(|_| self.poll_used(queue))
        })
    }

    /// Kicks, and waits until the device has given back everything.
    pub fn await_idle(&mut self, queue: u32) {
        self.kick(queue);
        eventually("the ring's end", || {
            while self.poll_used(queue).is_some() {}
            (self.rings[queue as usize].pending() == 0).then_some(())
        });
    }

    /// Sends a request and returns what the device wrote of `room` bytes.
    pub fn request(&mut self, queue: u32, request: &[u8], room: u32) -> Vec<u8> {
        let at = FREE - 0x40000 + 0x10000 * u64::from(queue);
        self.request_at(at, queue, request, room)
    }

    /// Sends a request from `at`, and returns where the answer will be.
    pub fn send_at(&mut self, at: u64, queue: u32, request: &[u8], room: u32) -> u64 {
        let answer = at + (request.len() as u64).next_multiple_of(0x8000);
        self.write(at, request);
        self.descriptor(queue, 0, at, request.len() as u32, F_NEXT, 1);
        self.descriptor(queue, 1, answer, room, F_WRITE, 0);
        self.offer(queue, 0);
        self.kick(queue);
        answer
    }

    fn request_at(&mut self, at: u64, queue: u32, request: &[u8], room: u32) -> Vec<u8> {
        let answer = self.send_at(at, queue, request, room);
        let (head, length) = self.used(queue);
        assert_eq!(head, 0);
        assert!(length <= room);
        self.read(answer, length as usize)
    }

    /// As [`Host::request`], and sleeps until the device says that it is done; for measuring.
    #[allow(dead_code, reason = "benches use it")]
    pub fn prompt(&mut self, queue: u32, request: &[u8]) {
        let at = FREE - 0x40000 + 0x10000 * u64::from(queue);
        self.write(at, request);
        self.descriptor(queue, 0, at, request.len() as u32, F_NEXT, 1);
        self.descriptor(queue, 1, at + 0x8000, 0x1000, F_WRITE, 0);
        self.offer(queue, 0);
        self.kick(queue);
        while self.poll_used(queue).is_none() {
            let call = &self.rings[queue as usize].call;
            // SAFETY: `call` is open for as long as the borrow.
            let call = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
            poll(&mut [PollFd::new(call, PollFlags::POLLIN)], 5000u16).unwrap();
            let _ = self.rings[queue as usize].call.read();
        }
        let status = self.read(at + 0x8000, size_of::<u32>());
        assert_eq!(status, wire::STATUS_OK.to_le_bytes());
    }

    pub fn ask<Q: IntoBytes + Immutable, R: FromBytes>(&mut self, queue: u32, request: &Q) -> R {
        let answer = self.request(queue, request.as_bytes(), 0x1000);
        R::read_from_prefix(&answer).expect("an answer too short").0
    }

    pub fn status(&mut self) -> wire::StatusResponse {
        self.ask(wire::QUEUE_CONTROL, &header(wire::OP_STATUS))
    }

    /// Attaches `segments` and returns the handle.
    pub fn attach(&mut self, direction: u32, segments: &[(u64, u64)]) -> u64 {
        self.try_attach(direction, 0, segments).unwrap()
    }

    /// Attaches `segments` and returns the handle, or the answer's status.
    pub fn try_attach(
        &mut self,
        direction: u32,
        flags: u32,
        segments: &[(u64, u64)],
    ) -> Result<u64, u32> {
        let mut request = wire::AttachRequest {
            header: header(wire::OP_ATTACH),
            direction: direction.into(),
            segment_count: (segments.len() as u32).into(),
            length: segments.iter().map(|segment| segment.1).sum::<u64>().into(),
            flags: flags.into(),
            ..Default::default()
        }
        .as_bytes()
        .to_vec();
        for (address, length) in segments {
            request.extend_from_slice(&address.to_le_bytes());
            request.extend_from_slice(&length.to_le_bytes());
        }
        // A long request goes where there is room for it.
        let answer = match request.len() < 0x8000 {
            true => self.request(wire::QUEUE_CONTROL, &request, 0x1000),
            false => self.request_at(FREE + 0x20_0000, wire::QUEUE_CONTROL, &request, 0x1000),
        };
        let answer = wire::AttachResponse::read_from_bytes(&answer).unwrap();
        match answer.header.status.get() {
            wire::STATUS_OK => Ok(answer.handle.get()),
            status => Err(status),
        }
    }

    pub fn detach(&mut self, handle: u64) {
        let request = wire::DetachRequest {
            header: header(wire::OP_DETACH),
            handle: handle.into(),
        };
        let answer: wire::ResponseHeader = self.ask(wire::QUEUE_CONTROL, &request);
        assert_eq!(answer.status.get(), wire::STATUS_OK);
    }

    /// Plans sabotage, and returns the answer's status.
    pub fn inject(&mut self, kind: u32, count: u32, argument: u64) -> u32 {
        let request = wire::InjectRequest {
            header: header(wire::OP_INJECT),
            kind: kind.into(),
            count: count.into(),
            argument: argument.into(),
        };
        let answer: wire::ResponseHeader = self.ask(wire::QUEUE_CONTROL, &request);
        answer.status.get()
    }

    pub fn copy(&mut self, src: u64, dst: u64, length: u64) -> wire::JobResponse {
        self.ask(wire::QUEUE_VIDEO, &copy(src, dst, length))
    }

    /// Posts a buffer for an event and returns its address.
    pub fn post_event_buffer(&mut self, index: u16) -> u64 {
        let at = FREE - 0x40000 + 0x30000 + 0x100 * u64::from(index);
        let length = size_of::<wire::Event>() as u32;
        self.descriptor(wire::QUEUE_EVENT, index, at, length, F_WRITE, 0);
        self.offer(wire::QUEUE_EVENT, index);
        at
    }
}

/// What a stop may take: a second, and what a busy host adds to it, which makes round trips long too.
pub fn stop_limit(host: &mut Host) -> Duration {
    let begin = Instant::now();
    for _ in 0..50 {
        host.status();
    }
    Duration::from_secs(1) + begin.elapsed()
}

pub fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        cookie: 0x5eed.into(),
        ..Default::default()
    }
}

pub fn copy(src: u64, dst: u64, length: u64) -> wire::JobRequest {
    let range = |handle: u64| wire::Range {
        handle: handle.into(),
        offset: 0.into(),
        length: length.into(),
    };
    wire::JobRequest {
        header: header(wire::OP_COPY),
        src: range(src),
        dst: range(dst),
        ..Default::default()
    }
}

/// Waits for something, and fails loudly where it hangs.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_micros(200));
    }
}
