// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device model: what the device does with a request, given memory.
//!
//! An [`Engine`] takes a request's bytes and gives an [`Answer`]'s, as [`pinbed_abi::wire`] defines them. It knows no
//! virtqueues, no vhost and no QEMU: memory is any [`GuestMemory`], handed in with each request, and events are handed
//! out with the answer. Whatever bytes come in, it does not panic.
//!
//! - [`access`]: the words for an access to memory;
//! - [`protected`]: which memory is the TEE's, and whose there; uses `access`;
//! - [`dma`]: the buffers that are attached, and the only way to their memory; uses `access`, `protected`;
//! - [`pixel`]: pixel formats;
//! - `message`: bytes to requests and answers to bytes; `inject`: sabotage;
//! - `control`, `video`, [`tee`]: the operations of the queues; use all of these.
//!
//! Each queue may be served by a thread of its own. Whatever moves bytes does so in slices of at most 1 MiB, each of which is
//! one access of the DMA core: it locks the buffer table for reading, looks up the memory map, checks, and moves. So the
//! control queue goes on while a job runs, DETACH returns when no byte of the buffer moves any more, and memory that was
//! unplugged is not touched. Between two slices the transport is asked whether to go on ([`GoOn`]).
//!
//! One line for each operation is logged: at debug level, or at warning level where an access faulted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pinbed_abi::fault::Fault;
use pinbed_abi::wire;
use vm_memory::GuestAddressSpace;

pub mod access;
mod control;
pub mod dma;
mod inject;
mod message;
pub mod pixel;
pub mod protected;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod sync;
pub mod tee;
mod video;

pub use dma::Limits;
pub use inject::{Delivery, Hurry, MAX_DELAY};
pub use message::Answer;
use message::Request;
pub use tee::Submitted;

/// What the device process offers: 256 MiB in single pages for each of 4,096 buffers, 4 GiB in single pages for all. The
/// table then takes up 24 MiB of host memory at most, and protected memory 8 MiB.
pub const DEFAULT_LIMITS: Limits = Limits {
    buffers: 4096,
    segments: 65536,
    length: 256 << 20,
    total_segments: 1 << 20,
    protected_pieces: 1 << 16,
};

/// Opens what the engine takes random numbers from, which is a file where the program is linked statically. For a process that will not
/// be able to open files.
pub fn open_random_source() -> bool {
    getrandom::fill(&mut [0]).is_ok()
}

/// Asked between two slices of work whether to go on. May block, for as long as the device is paused: the engine holds no lock
/// then. After `false` what is answered does not matter, since nobody waits for it.
pub type GoOn<'a> = &'a dyn Fn() -> bool;

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
    tee: Arc<tee::Tee>,
    sabotage: bool,
    /// Changed while the table is locked for writing.
    halted: AtomicBool,
}

impl Engine {
    /// A device that holds nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            table: RwLock::new(dma::Table::new(limits)),
            injector: inject::Injector::default(),
            counters: Counters::default(),
            tee: Arc::default(),
            sabotage: false,
            halted: AtomicBool::new(false),
        }
    }

    /// Lets the driver ask for sabotage ([`wire::OP_INJECT`]), which can take the process down.
    pub fn allow_sabotage(mut self) -> Self {
        self.sabotage = true;
        self
    }

    /// The device's feature bits, `wire::F_…`.
    pub fn features(&self) -> u64 {
        let sabotage = match self.sabotage {
            true => 1 << wire::F_SABOTAGE,
            false => 0,
        };
        1 << wire::F_TEE | 1 << wire::F_PROTECTED | sabotage
    }

    /// The configuration space.
    pub fn config(&self) -> wire::Config {
        wire::Config {
            magic: wire::MAGIC.into(),
            version: wire::VERSION.into(),
            max_buffers: self.limits.buffers.into(),
            max_segments: self.limits.segments.into(),
            max_length: self.limits.length.into(),
            max_total_segments: self.limits.total_segments.into(),
            max_protected_pieces: self.limits.protected_pieces.into(),
            max_overlap: video::MAX_OVERLAP.into(),
            max_side: pixel::MAX_SIDE.into(),
            max_delay_us: (MAX_DELAY as u32).into(),
            max_sessions: (tee::MAX_SESSIONS as u32).into(),
            max_calls: (tee::MAX_CALLS as u32).into(),
            max_storage: (tee::MAX_STORAGE as u32).into(),
        }
    }

    /// Bytes of the longest request that is not refused; a transport need not read more than one byte past it.
    pub fn longest_request(&self) -> usize {
        let segments = self.limits.segments as usize * size_of::<wire::Segment>();
        (size_of::<wire::AttachRequest>() + segments).max(size_of::<wire::JobRequest>())
    }

    /// Serves a request of the control queue whose answer may take up `room` bytes.
    pub fn control<S: GuestAddressSpace>(
        &self,
        space: S,
        request: &[u8],
        room: usize,
        go_on: GoOn,
    ) -> Answer {
        match Request::parse(request, room) {
            Some(request) => control::serve(self, space, &request, go_on),
            None => Answer::default(),
        }
    }

    /// Serves a request of the video queue whose answer may take up `room` bytes.
    pub fn video<S: GuestAddressSpace>(
        &self,
        space: S,
        request: &[u8],
        room: usize,
        go_on: GoOn,
    ) -> Answer {
        match Request::parse(request, room) {
            Some(request) => video::serve(self, space, &request, go_on),
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
    pub fn run<S: GuestAddressSpace>(&self, space: S, call: tee::Call, go_on: GoOn) -> Answer {
        let wrong = self.injector.before_call();
        let mut answer = call.run(self, space, go_on);
        // An answer's status comes first.
        if let (Some(status), Some(bytes)) = (wrong, answer.bytes.first_chunk_mut()) {
            *bytes = status.to_le_bytes();
        }
        answer
    }

    /// What is attached, a line each, for a person who debugs a guest that stands still and so cannot be asked:
    /// `HANDLE LENGTH DIRECTION PROTECTED ADDRESS+LENGTH...`. The direction is "read", "write" or "both" as the device does it, protected is
    /// "protected" or "-", and numbers are hexadecimal without a prefix.
    pub fn describe_holds(&self) -> String {
        let table = self.table();
        let mut text = String::new();
        let mut last = 0;
        while let Some((handle, buffer)) = table.next_after(last) {
            last = handle;
            let direction = match buffer.direction().to_wire() {
                wire::DIRECTION_READ => "read",
                wire::DIRECTION_WRITE => "write",
                _ => "both",
            };
            let protected = if buffer.is_protected() {
                "protected"
            } else {
                "-"
            };
            text += &format!("{handle:x} {:x} {direction} {protected}", buffer.length());
            for piece in buffer.segments() {
                text += &format!(" {:x}+{:x}", piece.address, piece.length);
            }
            text.push('\n');
        }
        text
    }

    /// Returns when no access is under way that began before: after a change of the memory map, none uses the old one then.
    pub fn settle(&self) {
        drop(self.table_mut());
    }

    /// Counts events that could not be delivered.
    pub fn count_lost_events(&self, lost: u64) {
        count(&self.counters.events_lost, lost);
    }

    /// Whether the device takes requests and answers none, as a test injected: for a transport, which then drops the answers.
    pub fn is_silent(&self) -> bool {
        self.injector.is_silent()
    }

    /// Has the device misbehave once, as the host wants it, whether the driver may ask for sabotage or not.
    pub fn misbehave(self, fault: Fault) -> Self {
        self.injector.plan_for_host(fault);
        self
    }

    /// Whether the request of the control queue that was served last is not to be answered, as was injected: for a transport.
    pub fn is_unanswered(&self) -> bool {
        self.injector.is_unanswered()
    }

    /// How the next answer to a call of the TEE queue goes out, as was injected: for a transport.
    pub fn call_delivery(&self) -> Delivery {
        self.injector.call_delivery()
    }

    /// How the next answer of the video queue goes out, as a test injected: for a transport.
    pub fn delivery(&self) -> Delivery {
        self.injector.delivery()
    }

    /// While the guard lives, no job waits for a delay that a test injected: for a transport that must come to a stop.
    pub fn hurry(&self) -> Hurry<'_> {
        self.injector.hurry()
    }

    /// Lets go of every buffer, ends all delays, takes back what is injected and counts from zero, as when the device is reset. Handles go
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

    /// While halted, calls of the TEE make no access: they wait until they are asked to go on. When this returns none is under
    /// way.
    pub fn halt(&self, halted: bool) {
        let table = self.table_mut();
        self.halted.store(halted, Ordering::Relaxed);
        drop(table);
    }

    /// Makes one access as a call of the TEE does, which waits while the engine is halted. If it is not to go on after that,
    /// nothing is attached any more, and the access faults.
    fn access_when_running<S: GuestAddressSpace, T>(
        &self,
        space: &S,
        go_on: GoOn,
        with: impl FnOnce(&dma::Table, &S::M) -> T,
    ) -> T {
        let mut table = self.table();
        while self.halted.load(Ordering::Relaxed) {
            drop(table);
            let stays = go_on();
            table = self.table();
            if !stays {
                break;
            }
        }
        let memory = space.memory();
        with(&table, &memory)
    }

    /// Makes one access. The memory map is looked up under the lock that [`Engine::settle`] waits for.
    fn access<S: GuestAddressSpace, T>(
        &self,
        space: &S,
        with: impl FnOnce(&dma::Table, &S::M) -> T,
    ) -> T {
        let table = self.table();
        let memory = space.memory();
        with(&table, &memory)
    }

    // No operation leaves what a lock guards half changed, so a lock that a panic poisoned guards nothing bad.
    fn table(&self) -> RwLockReadGuard<'_, dma::Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, dma::Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a fault, and makes its event.
    fn fault(&self, fault: &access::Fault, request: &wire::RequestHeader) -> wire::Event {
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
