// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device model: what the device does with a request, given memory.
//!
//! An [`Engine`] takes a request's bytes and gives an [`Answer`]'s, as [`pinbed_abi::wire`] defines them. It knows no
//! virtqueues, no vhost and no QEMU: memory is any [`GuestMemory`], handed in with each request, and events are handed
//! out with the answer. Whatever bytes come in, it does not panic.
//!
//! - [`dma`]: the buffers that are attached, and the only way to their memory;
//! - [`protected`]: which memory is the TEE's;
//! - [`pixel`]: pixel formats;
//! - [`tee`]: sessions and trusted applications;
//! - `control`, `video`: the operations of the two queues; `inject`: misbehaviour on request; `message`: bytes to requests.
//!
//! Each queue may be served by a thread of its own. A job holds the buffer table for reading while it moves bytes, and not
//! while it waits because a test asked it to be late: so the control queue goes on during a delay, and DETACH returns when
//! no job moves bytes of the buffer any more.
//!
//! One line for each operation is logged: at debug level, or at warning level where an access faulted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pinbed_abi::wire;
use vm_memory::GuestMemory;

mod control;
pub mod dma;
mod inject;
mod message;
pub mod pixel;
pub mod protected;
pub mod tee;
mod video;

pub use dma::Limits;
pub use inject::{Hurry, MAX_DELAY};
pub use message::Answer;
use message::Request;
pub use tee::Submitted;

/// What `pinbed device` offers: 256 MiB in single pages for each of 4,096 buffers.
pub const DEFAULT_LIMITS: Limits = Limits {
    buffers: 4096,
    segments: 65536,
    length: 256 << 20,
};

/// What happened since the device was reset.
#[derive(Debug, Default)]
struct Counters {
    attached: AtomicU64,
    jobs: AtomicU64,
    faults: AtomicU64,
    events_lost: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The device. See the crate's documentation.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    table: RwLock<dma::Table>,
    injector: inject::Injector,
    counters: Counters,
    /// Kept from job to job, since fresh memory costs more than the copy.
    scratch: Mutex<video::Scratch>,
    tee: Arc<tee::Tee>,
}

impl Engine {
    /// A device that holds nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            table: RwLock::new(dma::Table::new(limits)),
            injector: inject::Injector::default(),
            counters: Counters::default(),
            scratch: Mutex::default(),
            tee: Arc::new(tee::Tee::new()),
        }
    }

    /// The configuration space.
    pub fn config(&self) -> wire::Config {
        wire::Config {
            magic: wire::MAGIC.into(),
            version: wire::VERSION.into(),
            max_buffers: self.limits.buffers.into(),
            max_segments: self.limits.segments.into(),
            max_length: self.limits.length.into(),
        }
    }

    /// Bytes of the longest request that is not refused; a transport need not read more than one byte past it.
    pub fn longest_request(&self) -> usize {
        let segments = self.limits.segments as usize * size_of::<wire::Segment>();
        (size_of::<wire::AttachRequest>() + segments).max(size_of::<wire::JobRequest>())
    }

    /// Serves a request of the control queue whose answer may take up `room` bytes.
    pub fn control<M: GuestMemory>(&self, memory: &M, request: &[u8], room: usize) -> Answer {
        match Request::parse(request, room) {
            Some(request) => control::serve(self, memory, &request),
            None => Answer::default(),
        }
    }

    /// Serves a request of the video queue whose answer may take up `room` bytes.
    pub fn video<M: GuestMemory>(&self, memory: &M, request: &[u8], room: usize) -> Answer {
        match Request::parse(request, room) {
            Some(request) => video::serve(self, memory, &request),
            None => Answer::default(),
        }
    }

    /// Takes a request of the TEE queue whose answer may take up `room` bytes. Never blocks; a call that comes of it is then
    /// to be given to [`Engine::run`].
    pub fn tee(&self, request: &[u8], room: usize) -> Submitted {
        match Request::parse(request, room) {
            Some(request) => self.tee.submit(&request),
            None => Submitted::Answer(Answer::default()),
        }
    }

    /// Runs a call of the TEE queue, for as long as it takes; the answer fits into the room that [`Engine::tee`] was told of.
    pub fn run<M: GuestMemory>(&self, memory: &M, call: tee::Call) -> Answer {
        call.run(self, memory)
    }

    /// Counts events that could not be delivered.
    pub fn count_lost_events(&self, lost: u64) {
        count(&self.counters.events_lost, lost);
    }

    /// Whether the device takes requests and answers none, as a test injected: for a transport, which then drops the answers.
    pub fn is_silent(&self) -> bool {
        self.injector.is_silent()
    }

    /// While the guard lives, no job waits for a delay that a test injected: for a transport that must come to a stop.
    pub fn hurry(&self) -> Hurry<'_> {
        self.injector.hurry()
    }

    /// Lets go of every buffer, takes back what is injected and counts from zero, as when the device is reset. Handles go
    /// on where they were.
    pub fn reset(&self) {
        self.tee.reset();
        let mut table = self.table_mut();
        log::debug!("reset: lets go of {} buffers", table.len());
        table.clear();
        drop(table);
        self.injector.clear();
        let Counters {
            attached,
            jobs,
            faults,
            events_lost,
        } = &self.counters;
        for counter in [attached, jobs, faults, events_lost] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    // No operation leaves what a lock guards half changed, so a lock that a panic poisoned guards nothing bad.
    fn table(&self) -> RwLockReadGuard<'_, dma::Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, dma::Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a fault, and makes its event.
    fn fault(&self, fault: &dma::Fault, request: &wire::RequestHeader) -> wire::Event {
        count(&self.counters.faults, 1);
        log::warn!("DMA fault: {fault}");
        wire::Event {
            kind: wire::EVENT_DMA_FAULT.into(),
            cookie: request.cookie,
            fault: (*fault).into(),
            ..Default::default()
        }
    }
}
