// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The vhost-user back end.
//!
//! Control, video and TEE queue have a worker thread each, so that the control queue is never blocked by a job. The event
//! queue has none: its buffers are taken when there is an event, by the worker whose request caused it, before that request
//! is answered. So whoever has seen the answer can see the event, or its absence in [`StatusResponse::events_lost`].
//! The TEE queue's worker does not run calls itself, which may block: see `calls`.
//!
//! # What a reset of the device looks like from here
//!
//! QEMU does not tell a back end that the guest has reset the device. It stops the rings (GET_VRING_BASE), as it also does
//! when the virtual machine is paused, by a user or a debugger's breakpoint, and then all that is attached must stay. The two
//! differ when the rings start again: after a pause the control ring goes on where it stopped, after a reset it begins at
//! zero. So the decision falls before the first request after a stop is served: unless the control ring is where it was
//! left, the engine is reset. One case is left, a ring stopped at zero, or at a multiple of 65,536 requests: there, that the
//! configuration space was read in between says that a driver has begun anew, since a paused guest reads nothing.
//!
//! [`StatusResponse::events_lost`]: pinbed_abi::wire::StatusResponse::events_lost

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pinbed_abi::wire;
use pinbed_engine::{Answer, DEFAULT_LIMITS, Engine, Submitted};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use zerocopy::IntoBytes;

use crate::calls::{Calls, Place};
use crate::chain::Chain;

pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(crate) type Ring = VringMutex<Memory>;
pub(crate) type Snapshot = GuestMemoryLoadGuard<GuestMemoryMmap>;

/// Queues that have a worker, by its number.
const WORKERS: [u32; 3] = [wire::QUEUE_CONTROL, wire::QUEUE_VIDEO, wire::QUEUE_TEE];

/// The device of one connection.
pub(crate) struct Backend {
    pub engine: Arc<Engine>,
    memory: Memory,
    calls: Arc<Calls>,
    /// One for each worker, which holds it while it serves its ring.
    serving: [Mutex<()>; WORKERS.len()],
    life: Mutex<Life>,
    spoken_to: AtomicBool,
}

/// What is needed to tell a reset from a pause; see the module's documentation.
#[derive(Debug, Default)]
struct Life {
    /// Where the control ring is, after the last request that was taken from it.
    control_at: u16,
    /// The control ring has not run since it was stopped, so it is not decided yet what that meant.
    stopped: bool,
    /// The configuration space was read since.
    config_read: bool,
}

/// The rings that a worker sees, as [`Backend::queues_per_thread`] sets them out.
struct Rings<'a> {
    control: &'a Ring,
    own: &'a Ring,
    event: &'a Ring,
}

impl<'a> Rings<'a> {
    /// Rings come in the queues' order: control first, event last, and the worker's own, which may be control, before that.
    fn of_worker(rings: &'a [Ring]) -> Option<Self> {
        match rings {
            [control, .., event] => Some(Self {
                control,
                own: &rings[rings.len() - 2],
                event,
            }),
            _ => None,
        }
    }
}

impl Backend {
    pub fn new(memory: Memory) -> Self {
        let engine = Arc::new(Engine::new(DEFAULT_LIMITS));
        Self {
            calls: Arc::new(Calls::new(Arc::clone(&engine), memory.clone())),
            engine,
            memory,
            serving: Default::default(),
            life: Mutex::new(Life {
                stopped: true,
                ..Life::default()
            }),
            spoken_to: AtomicBool::new(false),
        }
    }

    /// Whether the peer has sent a message that a front end sends.
    pub fn spoken_to(&self) -> bool {
        self.spoken_to.load(Ordering::Relaxed)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, once after each stop, whether the device was reset.
    fn begin_life(&self, control: &Ring) {
        let mut life = self.life();
        if !life.stopped || !is_running(&control.get_ref()) {
            return;
        }
        let at = control.queue_next_avail();
        let goes_on = at == life.control_at && !(at == 0 && life.config_read);
        log::debug!(
            "control ring stopped at {} and goes on at {at}: {}",
            life.control_at,
            if goes_on { "a pause" } else { "a reset" }
        );
        if !goes_on {
            self.engine.reset();
        }
        self.calls.go_on(!goes_on);
        *life = Life {
            control_at: at,
            ..Life::default()
        };
    }

    /// Serves what is in a worker's ring.
    fn serve(&self, worker: usize, rings: &Rings) {
        let Some(serving) = self.serving.get(worker) else {
            return;
        };
        let _serving = serving.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin_life(rings.control);
        self.calls.send();
        if let Err(error) = self.drain(WORKERS[worker], rings) {
            log::warn!(
                "ring {}: {error}; it rests until the next kick",
                WORKERS[worker]
            );
        }
    }

    fn drain(&self, queue: u32, rings: &Rings) -> Result<(), virtio_queue::Error> {
        // A ring whose index says more than can be taken from it would be asked again and again.
        let mut vain = 0;
        while vain < 2 {
            want_kicks(rings.own, false)?;
            vain += 1;
            while let Some(chain) = pop(rings.own, &self.memory.memory())? {
                vain = 0;
                if queue == wire::QUEUE_CONTROL {
                    // Not asked of the ring, which the front end may have stopped and set elsewhere since.
                    let mut life = self.life();
                    life.control_at = life.control_at.wrapping_add(1);
                }
                self.serve_chain(queue, chain, rings)?;
            }
            if !want_kicks(rings.own, true)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn serve_chain(
        &self,
        queue: u32,
        chain: DescriptorChain<Snapshot>,
        rings: &Rings,
    ) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        let head = chain.head_index();
        if self.engine.is_silent() {
            return Ok(());
        }
        let written = match Chain::read(chain, self.engine.longest_request() + 1) {
            Ok(chain) => {
                let Some((chain, answer)) = self.ask(queue, &memory, head, chain, rings) else {
                    return Ok(());
                };
                post(&self.engine, rings.event, &memory, &answer.events);
                chain.write(&*memory, &answer.bytes)
            }
            Err(error) => {
                log::warn!("queue {queue}: malformed chain at descriptor {head}: {error}");
                0
            }
        };
        give_back(&mut rings.own.get_mut(), head, written)
    }

    /// The answer, or nothing if it comes later.
    fn ask(
        &self,
        queue: u32,
        memory: &Snapshot,
        head: u16,
        chain: Chain,
        rings: &Rings,
    ) -> Option<(Chain, Answer)> {
        let (request, room) = (&chain.request, chain.room());
        let answer = match queue {
            wire::QUEUE_CONTROL => self.engine.control(&**memory, request, room),
            wire::QUEUE_VIDEO => self.engine.video(&**memory, request, room),
            _ => match self.engine.tee(request, room) {
                Submitted::Answer(answer) => answer,
                Submitted::Call(call) => {
                    let place = Place {
                        head,
                        chain,
                        own: rings.own.clone(),
                        event: rings.event.clone(),
                    };
                    self.calls.start(place, call);
                    return None;
                }
            },
        };
        Some((chain, answer))
    }
}

/// Posts events, and counts those for which the driver has no room.
pub(crate) fn post(engine: &Engine, ring: &Ring, memory: &Snapshot, events: &[wire::Event]) {
    for event in events {
        if !deliver(ring, memory, event) {
            log::warn!("event lost: the driver has posted no buffer for it");
            engine.count_lost_events(1);
        }
    }
}

/// Puts an event into the next fit buffer of the event ring; false if there is none.
fn deliver(ring: &Ring, memory: &Snapshot, event: &wire::Event) -> bool {
    let mut ring = ring.get_mut();
    for _ in 0..ring.get_queue().size() {
        let Ok(Some(chain)) = pop_locked(&mut ring, memory) else {
            return false;
        };
        let head = chain.head_index();
        let written = match Chain::read(chain, 0) {
            Ok(chain) if chain.room() >= size_of_val(event) => {
                chain.write(&**memory, event.as_bytes())
            }
            Ok(_) => 0,
            Err(error) => {
                log::warn!("event queue: malformed chain at descriptor {head}: {error}");
                0
            }
        };
        if give_back(&mut ring, head, written).is_err() {
            return false;
        }
        if written != 0 {
            return true;
        }
        log::warn!("event queue: buffer at descriptor {head} cannot take an event");
    }
    false
}

/// A ring runs between SET_VRING_KICK and GET_VRING_BASE, while it is enabled. Outside, its memory is not touched.
pub(crate) fn is_running(ring: &VringState<Memory>) -> bool {
    ring.is_enabled() && ring.get_queue().ready()
}

fn pop(
    ring: &Ring,
    memory: &Snapshot,
) -> Result<Option<DescriptorChain<Snapshot>>, virtio_queue::Error> {
    pop_locked(&mut ring.get_mut(), memory)
}

fn pop_locked(
    ring: &mut VringState<Memory>,
    memory: &Snapshot,
) -> Result<Option<DescriptorChain<Snapshot>>, virtio_queue::Error> {
    if !is_running(ring) {
        return Ok(None);
    }
    Ok(ring.get_queue_mut().iter(memory.clone())?.next())
}

/// Puts a chain into the used ring and notifies the driver if it wants that.
pub(crate) fn give_back(
    ring: &mut VringState<Memory>,
    head: u16,
    written: u32,
) -> Result<(), virtio_queue::Error> {
    ring.add_used(head, written)?;
    if ring.needs_notification()?
        && let Err(error) = ring.signal_used_queue()
    {
        log::error!("cannot notify the driver: {error}");
    }
    Ok(())
}

/// Asks the driver to kick, or not to; true if the ring has got more meanwhile.
fn want_kicks(ring: &Ring, want: bool) -> Result<bool, virtio_queue::Error> {
    let mut ring = ring.get_mut();
    if !is_running(&ring) {
        return Ok(false);
    }
    if want {
        return ring.enable_notification();
    }
    ring.disable_notification()?;
    Ok(false)
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
        self.engine.reset();
        self.calls.go_on(true);
    }

    /// Exactly `size` bytes, as vhost-user wants; zero past the end of [`wire::Config`].
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut life = self.life();
        life.config_read |= life.stopped;
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

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    /// A bit for each queue whose ring a worker sees; a queue's kicks go to the first worker that sees it. Each sees the
    /// control ring, for [`Backend::begin_life`], its own, and the event ring.
    fn queues_per_thread(&self) -> Vec<u64> {
        let shared = 1 << wire::QUEUE_CONTROL | 1 << wire::QUEUE_EVENT;
        WORKERS.map(|queue| shared | 1 << queue).to_vec()
    }

    fn exit_event(&self, _worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .inspect_err(|error| log::error!("cannot make an eventfd: {error}"))
            .ok()
    }

    /// Returns when the queue's worker has answered what it had begun, without the delays that a test injected.
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let _hurry = self.engine.hurry();
        let Some(worker) = WORKERS.iter().position(|of| *of == queue) else {
            return Ok(());
        };
        let _idle = self.serving[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if queue == wire::QUEUE_CONTROL {
            let mut life = self.life();
            life.stopped = true;
            life.config_read = false;
            self.calls.halt();
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
        if let Some(rings_of_worker) = Rings::of_worker(rings)
            && usize::from(ring) + 2 == rings.len()
        {
            self.serve(worker, &rings_of_worker);
        }
        Ok(())
    }
}

/// What a worker thread is given; [`VhostUserBackend`] wants it to be cheap to clone.
pub(crate) type Shared = Arc<Backend>;
