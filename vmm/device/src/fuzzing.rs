// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a fuzzer does with the device, and what has to hold: `ci/fuzz` runs it with coverage, a test of this file runs the corpus.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};
use vmm_sys_util::eventfd::EventFd;

use crate::Options;
use crate::backend::{Backend, Shared};
use crate::ring::{Memory, Ring, no_memory, running};
use crate::serve::serve_peer;

/// Memory that the input fills from 0 on: three rings, and what their descriptors lead to.
const LOW: usize = 0x4000;
/// Memory that no input fills.
const HIGH: u64 = 0x7fff_0000;
const HIGH_LENGTH: usize = 0x4000;
const SIZE: u16 = 16;
/// Where each ring is: control, video, event. Its table, then the available and used ring.
const RINGS: [u64; 3] = [0, 0x200, 0x400];
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x140;
/// How long serving may take: a ring over another may have work without end, which a stop ends.
const LONG: Duration = Duration::from_millis(200);

/// A backend that is told to stop when its time is up.
type Watched = Option<(Instant, Shared)>;
static WATCHED: Mutex<Watched> = Mutex::new(None);

fn watched() -> std::sync::MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_watch() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(LONG / 10);
                let late = |(since, _): &mut (Instant, Shared)| since.elapsed() > LONG;
                if let Some((_, backend)) = watched().take_if(late) {
                    backend.stop();
                }
            }
        });
    });
}

/// Rings and chains of which all is the guest's: the first byte says which features were negotiated, the rest is memory from 0 on.
///
/// It neither panics nor hangs, and writes no memory that the input does not name.
pub fn rings(data: &[u8]) {
    let Some((features, bytes)) = data.split_first() else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(LOW)];
    thread_local! {
        /// One for all inputs. High memory is zero when an input begins: else that input fails.
        static MAP: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), LOW),
            (GuestAddress(HIGH), HIGH_LENGTH),
        ])
        .expect("memory for a guest");
    }
    let map = MAP.with(GuestMemoryMmap::clone);
    let mut low = [0; LOW];
    low[..bytes.len()].copy_from_slice(bytes);
    let written = map.write_slice(&low, GuestAddress(0));
    written.expect("the input fits");
    let memory = Memory::new(map.clone());
    let options = Options {
        allow_sabotage: features & 2 != 0,
        ..Options::default()
    };
    let backend = Arc::new(Backend::new(memory, &options));
    let rings: Vec<Ring> = RINGS
        .iter()
        .map(|at| ring(*at, features & 1 != 0))
        .collect();
    let [control, video, event] = &rings[..] else {
        return;
    };
    start_watch();
    *watched() = Some((Instant::now(), Arc::clone(&backend)));
    // As `Backend::queues_per_thread` has it. The TEE's calls have threads of their own, and so a target of their own.
    let desks = [
        vec![control.clone(), event.clone()],
        vec![control.clone(), video.clone(), event.clone()],
    ];
    for (worker, desk) in desks.iter().enumerate() {
        let own = desk.len() as u16 - 2;
        let served = backend.handle_event(own, EventSet::IN, desk, worker);
        served.expect("what a guest does is no error");
    }
    *watched() = None;
    // An ATTACH may name all memory by any address below.
    let names_high = bytes
        .windows(4)
        .any(|word| word[2..] == [0xff, 0x7f] || word[..] == [0xff; 4]);
    let mut high = [0; HIGH_LENGTH];
    let read = map.read_slice(&mut high, GuestAddress(HIGH));
    read.expect("the memory is there");
    if high != [0; HIGH_LENGTH] {
        assert!(names_high, "memory was written that nobody named");
        let cleared = map.write_slice(&[0; HIGH_LENGTH], GuestAddress(HIGH));
        cleared.expect("the memory is there");
    }
}

fn ring(at: u64, event_idx: bool) -> Ring {
    let ring = running(SIZE, at, at + AVAILABLE, at + USED);
    ring.set_queue_event_idx(event_idx);
    ring
}

/// Bytes of a vhost-user message's header.
const HEADER: usize = 12;

/// Messages that a front end sends before it listens to answers, which have room in the socket.
const MESSAGES: usize = 64;

/// Where each device of the fuzzer listens: one socket for all inputs, without a file.
struct Door {
    listener: Listener,
    address: SocketAddr,
    /// What the front end shares.
    memory: File,
    /// Nobody has it readable.
    stop: EventFd,
}

impl Door {
    fn open() -> Self {
        stay_on_this_cpu();
        let name = format!(
            "pinbed-fuzz-{}-{:?}",
            std::process::id(),
            thread::current().id()
        );
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a name that is free");
        let memory = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        Self {
            listener: listener.into(),
            address,
            memory: memory.into(),
            stop: EventFd::new(0).expect("an eventfd"),
        }
    }
}

/// The threads of an input wait for each other. To wake one on another CPU costs more than to wait for this one.
fn stay_on_this_cpu() {
    let mut here = CpuSet::new();
    let set = sched_getcpu()
        .and_then(|cpu| here.set(cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &here));
    set.expect("the CPU that this runs on");
}

/// A front end whose every message is the input's: the first byte of each is how many descriptors it carries, and of what kind.
///
/// The server returns, whatever comes. One input in eight is served as [`crate::serve`] does it; for the others one worker serves all queues, and
/// nobody waits to stop them: five threads that begin and end for each input took 40 % of its time.
pub fn socket(data: &[u8]) {
    thread_local! {
        static DOOR: RefCell<Door> = RefCell::new(Door::open());
    }
    DOOR.with_borrow_mut(|door| {
        let front = connect(&door.address);
        // Zeros, whatever stood there.
        for length in [0, 1 << 20] {
            door.memory.set_len(length).expect("its size");
        }
        send(&front, data, &door.memory);
        front.shutdown(Shutdown::Write).expect("it is connected");
        // SAFETY: the event lives as long as the borrow.
        let stop = unsafe { BorrowedFd::borrow_raw(door.stop.as_raw_fd()) };
        // An error is its right, a panic is not.
        if data.len().is_multiple_of(8) {
            let _ = serve_peer(&mut door.listener, &Options::default(), None, stop);
        } else {
            let _ = serve_by_one(&mut door.listener);
        }
    });
}

fn serve_by_one(listener: &mut Listener) -> Result<(), vhost_user_backend::Error> {
    let backend = Shared::new(Backend::new(no_memory(), &Options::default()));
    let alone = Alone(Arc::clone(&backend));
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), alone, no_memory())?;
    daemon.start(listener)?;
    let ended = daemon.wait();
    backend.stop();
    ended
}

/// The device with one worker for all queues.
#[derive(Clone)]
struct Alone(Shared);

impl VhostUserBackend for Alone {
    type Bitmap = ();
    type Vring = Ring;

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![(1 << self.0.num_queues()) - 1]
    }

    /// As the worker of its queue sees the rings.
    fn handle_event(
        &self,
        queue: u16,
        events: EventSet,
        rings: &[Ring],
        _worker: usize,
    ) -> io::Result<()> {
        let queue = usize::from(queue);
        let of_all = self.0.queues_per_thread();
        // Kicks of the event queue go to the first that sees it.
        let worker = of_all.iter().position(|it| it >> queue & 1 != 0);
        let worker = worker.expect("a queue that somebody serves");
        let (own, desk): (Vec<_>, Vec<_>) = (rings.iter().cloned().enumerate())
            .filter(|(at, _)| of_all[worker] >> at & 1 != 0)
            .unzip();
        let at = own.iter().position(|it| *it == queue);
        let at = at.expect("one of its rings") as u16;
        self.0.handle_event(at, events, &desk, worker)
    }

    fn num_queues(&self) -> usize {
        self.0.num_queues()
    }
    fn max_queue_size(&self) -> usize {
        self.0.max_queue_size()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.0.protocol_features()
    }
    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_idx(enabled);
    }
    fn reset_device(&self) {
        self.0.reset_device();
    }
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.0.get_config(offset, size)
    }
    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.set_config(offset, bytes)
    }
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.0.update_memory(memory)
    }
    fn exit_event(&self, worker: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.0.exit_event(worker)
    }
    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        self.0.stop_vring(queue)
    }
}

/// libFuzzer's timer interrupts a connect().
fn connect(address: &SocketAddr) -> UnixStream {
    loop {
        match UnixStream::connect_addr(address) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            told => return told.expect("it listens"),
        }
    }
}

fn send(front: &UnixStream, data: &[u8], memory: &File) {
    let event = EventFd::new(0).expect("an eventfd");
    let mut rest = data;
    for _ in 0..MESSAGES {
        let Some((kind, message)) = rest.split_first() else {
            return;
        };
        // The length that its header claims, or all that is left.
        let claimed = message
            .get(8..HEADER)
            .map_or(0, |it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
        let length = message.len().min(HEADER + claimed as usize);
        let (message, later) = message.split_at(length);
        rest = later;
        let fd = match kind & 8 {
            0 => memory.as_raw_fd(),
            _ => event.as_raw_fd(),
        };
        let fds = vec![fd; usize::from(kind & 7)];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(message)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if sendmsg::<()>(front.as_raw_fd(), &parts, rights, flags, None).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::replay;

    #[test]
    fn the_corpus_of_rings_breaks_nothing() {
        replay("rings", rings);
    }

    #[test]
    fn the_corpus_of_front_ends_breaks_nothing() {
        replay("socket", socket);
    }
}
