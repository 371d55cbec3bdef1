// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device in the hands of a test: taken from the kernel, with memory for DMA, and driven by virtqueues of virtio-drivers or by
//! rings written by hand.

use pinbed_abi::report::Eye;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Stop, TestResult};
use pinbed_guest::memory::hugetlb::Pool;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::device::{header, range};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::pagemap;
use pinbed_raw::dma::{self, Process};
use pinbed_raw::function::Function;
use pinbed_raw::region::Region;
use pinbed_raw::ring::{F_WRITE, Ring, poll};
use pinbed_raw::virtio_drivers::queue::VirtQueue;
use pinbed_raw::virtio_drivers::transport::pci::PciTransport;
use pinbed_raw::virtio_drivers::transport::{DeviceStatus, Transport};
use std::ptr::NonNull;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a page, as the device counts them.
pub const PAGE64: u64 = PAGE as u64;
/// VIRTIO_F_INDIRECT_DESC
pub const INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1
pub const VERSION_1: u64 = 1 << 32;
/// The device's own features.
pub const OWN: u64 = 1 << wire::F_TEE | 1 << wire::F_PROTECTED | 1 << wire::F_SABOTAGE;
/// Queues that take requests.
pub const QUEUES: [u32; 3] = [wire::QUEUE_CONTROL, wire::QUEUE_VIDEO, wire::QUEUE_TEE];
/// All that the device offers.
pub const OFFERED: u64 = INDIRECT | EVENT_IDX | VERSION_1 | OWN;

/// Bytes of a huge page, which is the pool of rings and requests.
const POOL: usize = 2 << 20;

/// The device's function, and memory for DMA. Drivers of it are to be dropped before.
pub struct Stage {
    pub function: Function,
    _memory: Mapping,
    _huge: Pool,
}

impl Stage {
    /// Takes the device from the kernel.
    pub fn take() -> TestResult<Self> {
        Self::with_huge_pages(1)
    }

    /// As [`Stage::take`], with more huge pages than the one that is the DMA pool.
    pub fn with_huge_pages(pages: usize) -> TestResult<Self> {
        let huge = Pool::of(pages)?;
        let memory = Mapping::hugetlb(POOL)?;
        memory.write(0, &[0]);
        let missing = |at| {
            Stop::finding(
                Eye::Harness,
                format!("the huge page at {at:#x} is not there"),
            )
        };
        let extents = pagemap::extents(memory.address(), POOL)?.map_err(missing)?;
        let [extent] = extents[..] else {
            return Err(Stop::finding(
                Eye::Harness,
                format!("a huge page in pieces: {extents:?}"),
            ));
        };
        let base = NonNull::new(memory.address() as *mut u8);
        let base = base.expect("nothing is mapped at address 0");
        // SAFETY: a huge page of this process's own, which is not moved while the pool of huge pages is as it is; only the DMA pool uses
        // it, and what is taken from that is dropped before the stage is.
        unsafe { dma::set_pool(base, extent.address, POOL) };
        Ok(Self {
            function: Function::take()?,
            _memory: memory,
            _huge: huge,
        })
    }

    /// A driver that has negotiated these features, with queues of virtio-drivers of `N` descriptors.
    pub fn lanes<const N: usize>(&self, features: u64) -> TestResult<Lanes<N>> {
        let mut transport = self.function.transport()?;
        negotiate(&mut transport, features)?;
        let (indirect, event_index) = (features & INDIRECT != 0, features & EVENT_IDX != 0);
        let mut queues = Vec::new();
        for queue in 0..wire::QUEUE_COUNT as u16 {
            let queue = VirtQueue::new(&mut transport, queue, indirect, event_index);
            queues.push(queue.map_err(pinbed_raw::Error::Queue)?);
        }
        transport.finish_init();
        Ok(Lanes { transport, queues })
    }

    /// A driver that has negotiated these features, with rings written by hand, and `events` buffers for events.
    pub fn hand(&self, features: u64, size: u16, events: u16) -> TestResult<Hand> {
        self.hand_with(features, size, events, |_| Ok(()))
    }

    /// As [`Stage::hand`]; `prepare` runs before the device does.
    pub fn hand_with(
        &self,
        features: u64,
        size: u16,
        events: u16,
        prepare: impl FnOnce(&mut Hand) -> TestResult,
    ) -> TestResult<Hand> {
        let mut transport = self.function.transport()?;
        negotiate(&mut transport, features)?;
        let mut rings = Vec::new();
        for queue in 0..wire::QUEUE_COUNT as u16 {
            rings.push(Ring::set_up(&mut transport, queue, size)?);
        }
        let mut hand = Hand {
            transport,
            rings,
            requests: region(4 * REQUEST)?,
            events: region(usize::from(size) * EVENT)?,
        };
        for index in 0..events {
            hand.post_event_buffer(index);
        }
        prepare(&mut hand)?;
        hand.transport.finish_init();
        Ok(hand)
    }
}

/// Resets the device and negotiates these features, which it must offer.
pub fn negotiate(transport: &mut PciTransport, features: u64) -> TestResult {
    reset(transport)?;
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    transport.write_driver_features(features);
    let chosen = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    transport.set_status(chosen);
    match transport.get_status() == chosen {
        true => Ok(()),
        false => Err(Stop::finding(
            Eye::Device,
            format!("the device does not take features {features:#x}"),
        )),
    }
}

/// Resets the device, and waits until it says that it is.
pub fn reset(transport: &mut PciTransport) -> TestResult {
    transport.set_status(DeviceStatus::empty());
    let done = || (transport.get_status() == DeviceStatus::empty()).then_some(());
    Ok(poll(0, done)?)
}

/// A piece of the DMA pool.
pub fn region(length: usize) -> TestResult<Region> {
    Ok(Region::new(length).map_err(pinbed_raw::Error::Queue)?)
}

/// Who sends requests.
pub trait Driver {
    /// Sends a request with `room` for the answer, and returns what the device wrote of that.
    fn exchange(&mut self, queue: u32, request: &[u8], room: usize) -> TestResult<Vec<u8>>;

    /// An answer's fixed part.
    fn ask<Q, A>(&mut self, queue: u32, request: &Q) -> TestResult<A>
    where
        Q: IntoBytes + Immutable + ?Sized,
        A: FromBytes + KnownLayout + Immutable,
    {
        let answer = self.exchange(queue, request.as_bytes(), size_of::<A>())?;
        A::read_from_bytes(&answer).map_err(|_| {
            Stop::finding(
                Eye::Device,
                format!(
                    "an answer of {} bytes where {} were expected",
                    answer.len(),
                    size_of::<A>()
                ),
            )
        })
    }

    /// The status alone.
    fn status_of<Q: IntoBytes + Immutable + ?Sized>(
        &mut self,
        queue: u32,
        request: &Q,
    ) -> TestResult<u32> {
        let answer = self.exchange(queue, request.as_bytes(), 4096)?;
        Ok(status_in(&answer))
    }

    /// OP_STATUS.
    fn status(&mut self) -> TestResult<wire::StatusResponse> {
        self.ask(wire::QUEUE_CONTROL, &header(wire::OP_STATUS))
    }

    /// OP_ATTACH: the handle, or the status.
    fn try_attach(
        &mut self,
        direction: u32,
        flags: u32,
        segments: &[(u64, u64)],
    ) -> TestResult<Result<u64, u32>> {
        let request = attach(direction, flags, segments);
        let answer: wire::AttachResponse = self.ask(wire::QUEUE_CONTROL, &request[..])?;
        Ok(match answer.header.status.get() {
            wire::STATUS_OK => Ok(answer.handle.get()),
            status => Err(status),
        })
    }

    /// OP_ATTACH of what can be attached.
    fn attach(&mut self, direction: u32, segments: &[(u64, u64)]) -> TestResult<u64> {
        self.try_attach(direction, 0, segments)?.map_err(|status| {
            Stop::finding(
                Eye::Device,
                format!("ATTACH is answered with status {status}"),
            )
        })
    }

    /// OP_DETACH: the status.
    fn detach(&mut self, handle: u64) -> TestResult<u32> {
        let request = wire::DetachRequest {
            header: header(wire::OP_DETACH),
            handle: handle.into(),
        };
        self.status_of(wire::QUEUE_CONTROL, &request)
    }

    /// OP_CHECKSUM.
    fn checksum(
        &mut self,
        handle: u64,
        offset: u64,
        length: u64,
    ) -> TestResult<wire::ChecksumResponse> {
        let request = wire::ChecksumRequest {
            header: header(wire::OP_CHECKSUM),
            range: range(handle, offset, length),
        };
        self.ask(wire::QUEUE_CONTROL, &request)
    }

    /// A job.
    fn job(&mut self, request: &wire::JobRequest) -> TestResult<wire::JobResponse> {
        self.ask(wire::QUEUE_VIDEO, request)
    }

    /// OP_INJECT: the status.
    fn inject(&mut self, kind: u32, count: u32, argument: u64) -> TestResult<u32> {
        self.status_of(wire::QUEUE_CONTROL, &inject(kind, count, argument))
    }
}

/// The status in an answer, or [`NO_ANSWER`].
pub fn status_in(answer: &[u8]) -> u32 {
    let status = answer.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    status.unwrap_or(NO_ANSWER)
}

/// In place of a status: the chain was given back with used length 0.
pub const NO_ANSWER: u32 = u32::MAX;

/// An ATTACH.
pub fn attach(direction: u32, flags: u32, segments: &[(u64, u64)]) -> Vec<u8> {
    let sum = segments.iter().fold(0u64, |sum, it| sum.wrapping_add(it.1));
    let request = wire::AttachRequest {
        header: header(wire::OP_ATTACH),
        direction: direction.into(),
        segment_count: (segments.len() as u32).into(),
        length: sum.into(),
        flags: flags.into(),
        reserved: 0.into(),
    };
    let mut bytes = request.as_bytes().to_vec();
    for (address, length) in segments {
        bytes.extend_from_slice(&address.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
    }
    bytes
}

/// An INJECT.
pub fn inject(kind: u32, count: u32, argument: u64) -> wire::InjectRequest {
    wire::InjectRequest {
        header: header(wire::OP_INJECT),
        kind: kind.into(),
        count: count.into(),
        argument: argument.into(),
    }
}

/// A driver on virtqueues of virtio-drivers. The transport is first: it resets the device before memory goes.
pub struct Lanes<const N: usize> {
    pub transport: PciTransport,
    queues: Vec<VirtQueue<Process, N>>,
}

impl<const N: usize> Driver for Lanes<N> {
    fn exchange(&mut self, queue: u32, request: &[u8], room: usize) -> TestResult<Vec<u8>> {
        let mut answer = vec![0; room];
        let lane = &mut self.queues[queue as usize];
        // SAFETY: both live until `pop_used` below. Where it is not reached the device is reset before the memory is used again, which is
        // the DMA pool's in any case: virtio-drivers has copied the request there.
        let token = unsafe { lane.add(&[request], &mut [&mut answer]) };
        let token = token.map_err(pinbed_raw::Error::Queue)?;
        // Always: `should_notify` compares indices without regard to their wrapping around.
        self.transport.notify(queue as u16);
        poll(queue as u16, || lane.can_pop().then_some(()))?;
        // SAFETY: these are the buffers of `add`.
        let used = unsafe { lane.pop_used(token, &[request], &mut [&mut answer]) };
        let used = used.map_err(pinbed_raw::Error::Queue)? as usize;
        if used > room {
            return Err(Stop::finding(
                Eye::Device,
                format!("a used length of {used} bytes with room for {room}"),
            ));
        }
        answer.truncate(used);
        Ok(answer)
    }
}

/// Bytes of each queue's place for a request, and behind it for the answer.
pub const REQUEST: usize = 0x8000;
/// Where in that the answer goes.
pub const ANSWER: usize = 0x4000;
/// Bytes of each event buffer.
const EVENT: usize = size_of::<wire::Event>();

/// A driver on rings written by hand.
pub struct Hand {
    pub transport: PciTransport,
    pub rings: Vec<Ring>,
    /// A place of [`REQUEST`] bytes for each queue.
    pub requests: Region,
    events: Region,
}

impl Hand {
    /// The ring of a queue, and the way to notify the device.
    pub fn ring(&mut self, queue: u32) -> &mut Ring {
        &mut self.rings[queue as usize]
    }

    /// Notifies the device.
    pub fn notify(&mut self, queue: u32) {
        self.transport.notify(queue as u16);
    }

    /// Makes room for an event in descriptor `index`.
    pub fn post_event_buffer(&mut self, index: u16) {
        let place = self.events.physical(usize::from(index) * EVENT);
        let ring = &mut self.rings[wire::QUEUE_EVENT as usize];
        ring.chain(index, &[(place, EVENT as u32, F_WRITE)]);
        ring.offer(index);
    }

    /// The next event, if there is one already; its buffer is not made available again.
    pub fn poll_event(&mut self) -> Option<(wire::Event, u32)> {
        let (head, length) = self.rings[wire::QUEUE_EVENT as usize].poll_used()?;
        let at = head as usize * EVENT;
        let event = wire::Event::read_from_bytes(&self.events.read(at..at + EVENT)).ok()?;
        Some((event, length))
    }

    /// Where the used rings are: physical addresses and bytes.
    pub fn used_rings(&self) -> Vec<(u64, u64)> {
        let place = |ring: &Ring| (ring.used.physical(0), ring.used.len() as u64);
        self.rings.iter().map(place).collect()
    }

    /// Where event buffers are: physical address and bytes.
    pub fn event_room(&self) -> (u64, u64) {
        (self.events.physical(0), self.events.len() as u64)
    }

    /// Writes a request to the queue's place and makes a chain of it in descriptors 0 and 1, with room behind it. It is not offered.
    pub fn write_request(&mut self, queue: u32, request: &[u8], room: usize) {
        let at = queue as usize * REQUEST;
        self.requests.write(at, request);
        let (from, to) = (
            self.requests.physical(at),
            self.requests.physical(at + ANSWER),
        );
        let ring = &mut self.rings[queue as usize];
        let pieces = [(from, request.len() as u32, 0), (to, room as u32, F_WRITE)];
        ring.chain(0, &pieces);
    }

    /// What stands in the queue's room for an answer.
    pub fn answer(&self, queue: u32, length: usize) -> Vec<u8> {
        let at = queue as usize * REQUEST + ANSWER;
        self.requests.read(at..at + length)
    }

    /// Offers the chain that begins at `head`, and returns what comes back: head and used length.
    pub fn serve(&mut self, queue: u32, head: u16) -> TestResult<(u32, u32)> {
        let (transport, ring) = (&mut self.transport, &mut self.rings[queue as usize]);
        Ok(ring.serve(transport, head)?)
    }
}

/// An answer that has not all of its fixed part.
pub fn short() -> Stop {
    Stop::finding(Eye::Device, "the answer is too short")
}

impl Driver for Hand {
    fn exchange(&mut self, queue: u32, request: &[u8], room: usize) -> TestResult<Vec<u8>> {
        self.write_request(queue, request, room);
        match self.serve(queue, 0)? {
            (0, used) if used as usize <= room => Ok(self.answer(queue, used as usize)),
            (head, used) => Err(Stop::finding(
                Eye::Device,
                format!(
                    "chain {head} comes back with used length {used}, of chain 0 with room for {room}"
                ),
            )),
        }
    }
}
