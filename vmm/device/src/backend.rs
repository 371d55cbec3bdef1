// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The vhost-user back end.
//!
//! Control, video and TEE queue have a worker thread each, so that the control queue is never blocked by a job. The event
//! queue has none: its buffers are taken when there is an event, by the worker whose request caused it, before that request
//! is answered. So whoever has seen the answer can see the event, or its absence in [`StatusResponse::events_lost`].
//! The TEE queue's worker does not run calls itself, which may block: see `calls`.
//! What the device is doing, and how work in hand stops, is `life`'s.
//!
//! [`StatusResponse::events_lost`]: pinbed_abi::wire::StatusResponse::events_lost

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pinbed_abi::wire;
use pinbed_engine::{Answer, DEFAULT_LIMITS, Delivery, Engine, Submitted};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error, QueueT};
use vm_memory::{
    GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use zerocopy::IntoBytes;

use crate::calls::{Calls, Place};
use crate::chain::Chain;
use crate::events::post;
use crate::life::{Life, Next, Worker};
use crate::ring::{Memory, Ring, Snapshot};
use crate::{Options, ring, spans};

/// Queues that have a worker, by its number.
const WORKERS: [u32; 3] = [wire::QUEUE_CONTROL, wire::QUEUE_VIDEO, wire::QUEUE_TEE];

/// Bytes of a request's header.
const HEADER: usize = size_of::<wire::RequestHeader>();

/// The device of one connection.
pub(crate) struct Backend {
    engine: Arc<Engine>,
    /// What was announced last and is whole: no worker touches other memory. Else rings that run would be served in a map before it is looked at.
    memory: Memory,
    life: Arc<Life>,
    calls: Arc<Calls>,
    workers: [Worker; WORKERS.len()],
    spoken_to: AtomicBool,
    /// A video job's answer that is held back until the next has gone out, as a test injected.
    late: Mutex<Option<Ready>>,
    /// What tells each worker to end: vhost-user-backend 0.24 takes the descriptor for its epoll set, and never closes it.
    exits: Mutex<Vec<OwnedFd>>,
}

/// An answer that is to go out.
struct Ready {
    life: u64,
    head: u16,
    chain: Chain,
    bytes: Vec<u8>,
}

impl Ready {
    fn send(&self, ring: &Ring, memory: &Memory) -> Result<(), Error> {
        ring::answer(ring, memory, self.head, &self.chain, &self.bytes)
    }
}

/// A worker, and the rings that it sees as [`Backend::queues_per_thread`] sets them out.
#[derive(Clone, Copy)]
struct Desk<'a> {
    queue: u32,
    worker: &'a Worker,
    control: &'a Ring,
    own: &'a Ring,
    event: &'a Ring,
}

impl Backend {
    pub fn new(memory: Memory, options: &Options) -> Self {
        let engine = Engine::new(DEFAULT_LIMITS);
        let engine = match options.allow_sabotage {
            true => engine.allow_sabotage(),
            false => engine,
        };
        let faults = options.faults.iter().copied();
        let engine = Arc::new(faults.fold(engine, Engine::misbehave));
        let life = Arc::new(Life::new(Arc::clone(&engine)));
        Self {
            calls: Calls::new(Arc::clone(&engine), Arc::clone(&life), memory.clone()),
            engine,
            memory,
            life,
            workers: Default::default(),
            spoken_to: AtomicBool::new(false),
            late: Mutex::default(),
            exits: Mutex::default(),
        }
    }

    /// The device model.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Whether the peer has sent a message that a front end sends.
    pub fn spoken_to(&self) -> bool {
        self.spoken_to.load(Ordering::Relaxed)
    }

    /// Ends the device: abandons all work, and takes up none.
    pub fn stop(&self) {
        self.life.stop();
        self.calls.stop();
    }

    /// Rings come in the queues' order: control first, event last, and the worker's own, which may be control, before that.
    fn desk<'a>(&'a self, worker: usize, rings: &'a [Ring]) -> Option<Desk<'a>> {
        match rings {
            [control, .., event] => Some(Desk {
                queue: *WORKERS.get(worker)?,
                worker: self.workers.get(worker)?,
                control,
                own: &rings[rings.len() - 2],
                event,
            }),
            _ => None,
        }
    }

    /// Serves what is in a worker's ring, once the device runs.
    fn serve(&self, desk: Desk) {
        desk.worker.works(|| {
            while !self.life.is_running(desk.control) {
                if self.life.is_stopping() || !ring::runs(desk.own) {
                    return;
                }
                desk.worker.parks(|| self.life.wait_a_moment());
            }
            self.calls.send();
            if let Err(error) = self.drain(desk) {
                log::warn!("ring {}: {error}; it rests until the next kick", desk.queue);
                // Which must not be forbidden. What cannot be read may not be written either.
                let _ = ring::want_kicks(desk.own, &self.memory, true);
            }
        });
    }

    fn drain(&self, desk: Desk) -> Result<(), Error> {
        // A ring whose index says more than can be taken from it would be asked again and again.
        let mut vain = 0;
        while vain < 2 {
            ring::want_kicks(desk.own, &self.memory, false)?;
            vain += 1;
            while self.life.is_running(desk.control)
                && let Some(chain) = ring::pop(desk.own, &self.memory.memory())?
            {
                vain = 0;
                if desk.queue == wire::QUEUE_CONTROL {
                    self.life.control_taken();
                }
                self.serve_chain(chain, desk)?;
            }
            if !ring::want_kicks(desk.own, &self.memory, true)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn serve_chain(&self, chain: DescriptorChain<Snapshot>, desk: Desk) -> Result<(), Error> {
        let life = self.life.number();
        let head = chain.head_index();
        if self.engine.is_silent() {
            return Ok(());
        }
        let size = desk.own.get_ref().get_queue().size();
        match Chain::read(chain, size, self.engine.longest_request() + 1) {
            Ok(chain) => {
                spans::begin(desk.queue, &chain.request);
                let asked = self.ask(life, head, chain, desk);
                let answer = asked.as_ref().map_or(&[][..], |(_, answer)| &answer.bytes);
                spans::end(desk.queue, answer);
                let Some((chain, answer)) = asked else {
                    return Ok(());
                };
                if self.life.look(life, desk.control, desk.own) == Next::Abandon {
                    log::debug!("queue {}: a request is abandoned", desk.queue);
                    return Ok(());
                }
                post(&self.engine, desk.event, &self.memory, &answer.events);
                let answer = Ready {
                    life,
                    head,
                    chain,
                    bytes: answer.bytes,
                };
                match desk.queue {
                    wire::QUEUE_VIDEO => self.deliver(desk.own, answer),
                    wire::QUEUE_CONTROL if self.engine.is_unanswered() => Ok(()),
                    _ => answer.send(desk.own, &self.memory),
                }
            }
            Err(error) => {
                log::warn!(
                    "queue {}: malformed chain at descriptor {head}: {error}",
                    desk.queue
                );
                ring::give_back(desk.own, &self.memory, head)
            }
        }
    }

    /// Answers a video job, as it should be or as a test injected.
    fn deliver(&self, ring: &Ring, answer: Ready) -> Result<(), Error> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        match self.engine.delivery() {
            Delivery::Never => return Ok(()),
            // One answer is held at a time: that of the job after it brings it along.
            Delivery::Late if late.as_ref().is_none_or(|held| held.life != answer.life) => {
                *late = Some(answer);
                return Ok(());
            }
            Delivery::Twice => answer.send(ring, &self.memory)?,
            Delivery::Once | Delivery::Late => (),
        }
        answer.send(ring, &self.memory)?;
        match late.take() {
            Some(late) if late.life == answer.life => late.send(ring, &self.memory),
            _ => Ok(()),
        }
    }

    /// The answer, or nothing if it comes later.
    fn ask(&self, life: u64, head: u16, chain: Chain, desk: Desk) -> Option<(Chain, Answer)> {
        let (request, room, memory) = (&chain.request, chain.room(), self.memory.clone());
        let go_on = || {
            loop {
                match self.life.look(life, desk.control, desk.own) {
                    Next::GoOn => return true,
                    Next::Abandon => return false,
                    Next::Wait => desk.worker.parks(|| self.life.wait_a_moment()),
                }
            }
        };
        let answer = match desk.queue {
            wire::QUEUE_CONTROL => self.engine.control(memory, request, room, &go_on),
            wire::QUEUE_VIDEO => self.engine.video(memory, request, room, &go_on),
            _ => match self.engine.tee(request, room) {
                Submitted::Answer(answer) => answer,
                Submitted::Call(call) => {
                    let place = Place {
                        life,
                        head,
                        request: chain.request.iter().copied().take(HEADER).collect(),
                        chain: chain.without_request(),
                        control: desk.control.clone(),
                        own: desk.own.clone(),
                        event: desk.event.clone(),
                    };
                    self.calls.start(place, call);
                    return None;
                }
            },
        };
        Some((chain, answer))
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        wire::QUEUE_COUNT as usize
    }

    fn max_queue_size(&self) -> usize {
        wire::QUEUE_SIZE as usize
    }

    /// No packed ring, since virtio-queue has split rings only; no ACCESS_PLATFORM, since the vhost crates have no IOTLB
    /// messages and QEMU aborts behind a vIOMMU.
    fn features(&self) -> u64 {
        self.spoken_to.store(true, Ordering::Relaxed);
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | self.engine.features()
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// No STATUS: QEMU aborts when the generic device's back end offers it.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// A front end that sends RESET_DEVICE says plainly what QEMU does not.
    fn reset_device(&self) {
        let _hurry = self.engine.hurry();
        self.life.reset();
        for worker in &self.workers {
            worker.await_rest();
        }
    }

    /// Exactly `size` bytes, as vhost-user wants; zero past the end of [`wire::Config`].
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.life.config_read();
        let config = self.engine.config();
        let mut bytes: Vec<u8> = config
            .as_bytes()
            .iter()
            .skip(offset as usize)
            .take(size as usize)
            .copied()
            .collect();
        bytes.resize(size as usize, 0);
        bytes
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        log::warn!("the driver wrote to the configuration space, which is read-only");
        Ok(())
    }

    /// Returns when no access is under way to memory that is no more. Of a memory map that a file is too short for nothing is used: an
    /// access past the file's end would kill the process (SIGBUS).
    fn update_memory(&self, announced: Memory) -> io::Result<()> {
        let map = announced.memory();
        let whole = map.iter().all(is_whole);
        let map = match whole {
            true => GuestMemoryMmap::clone(&map),
            false => GuestMemoryMmap::new(),
        };
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.replace(map);
        self.engine.settle();
        match whole {
            true => Ok(()),
            false => Err(io::Error::other(
                "a region of guest memory goes past the end of its file",
            )),
        }
    }

    /// A bit for each queue whose ring a worker sees; a queue's kicks go to the first worker that sees it. Each sees the
    /// control ring, for [`Life::is_running`], its own, and the event ring.
    fn queues_per_thread(&self) -> Vec<u64> {
        let shared = 1 << wire::QUEUE_CONTROL | 1 << wire::QUEUE_EVENT;
        WORKERS.map(|queue| shared | 1 << queue).to_vec()
    }

    fn exit_event(&self, _worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) =
            new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
                .inspect_err(|error| log::error!("cannot make an eventfd: {error}"))
                .ok()?;
        // SAFETY: whom the consumer goes to takes the descriptor out of it (IntoRawFd) and closes it never, so this is its one owner. It
        // lives until the last worker, which has the back end, is gone.
        let exit = unsafe { OwnedFd::from_raw_fd(consumer.as_raw_fd()) };
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        exits.push(exit);
        Some((consumer, notifier))
    }

    /// Returns when the queue's worker has answered what it had begun, or has parked it; without the delays that a test injected.
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let _hurry = self.engine.hurry();
        if queue == wire::QUEUE_CONTROL {
            self.life.control_stopped();
        }
        if let Some(worker) = WORKERS.iter().position(|of| *of == queue) {
            self.workers[worker].await_rest();
        }
        Ok(())
    }

    /// Never an error: that would end the worker for good.
    fn handle_event(
        &self,
        ring: u16,
        _events: EventSet,
        rings: &[Ring],
        worker: usize,
    ) -> io::Result<()> {
        // A kick of the event ring says that there are buffers, which are taken when there is an event.
        if let Some(desk) = self.desk(worker, rings)
            && usize::from(ring) + 2 == rings.len()
        {
            self.serve(desk);
        }
        Ok(())
    }
}

/// Whether a region's file, if it is a regular one, is as long as the region wants it.
fn is_whole(region: &GuestRegionMmap) -> bool {
    let Some(place) = region.file_offset() else {
        return true;
    };
    let end = place.start().checked_add(region.len());
    let file = place.file().metadata();
    file.is_ok_and(|file| !file.is_file() || end.is_some_and(|end| end <= file.len()))
}

/// What a worker thread is given; [`VhostUserBackend`] wants it to be cheap to clone.
pub(crate) type Shared = Arc<Backend>;
