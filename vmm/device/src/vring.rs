// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ring that the vhost crates drive: theirs, but no descriptor of the front end's can make the device wait.
//!
//! `VringMutex` reads a kick and writes a call under the ring's lock. A kick that somebody else has read meanwhile (one descriptor for two rings, a
//! front end that reads it back) would keep the lock for good, and with it whoever sets the ring up, so that the device could not even end.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::MutexGuard;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

use crate::ring::Memory;

/// A virtqueue, shared by the threads that serve it.
#[derive(Clone)]
pub(crate) struct Ring(VringMutex<Memory>);

/// The descriptor, which reads and writes from now on refuse to wait for. One that cannot be like that is not used.
fn never_waits(file: Option<File>) -> Option<File> {
    let file = file?;
    let set = fcntl(&file, FcntlArg::F_GETFL).and_then(|flags| {
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(flags))
    });
    set.inspect_err(|errno| log::error!("a kick or call cannot be O_NONBLOCK: {errno}"))
        .ok()?;
    Some(file)
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Ring {
    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(never_waits(file));
    }
    fn set_call(&self, file: Option<File>) {
        self.0.set_call(never_waits(file));
    }
    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            // Somebody else has read it. A look at the ring costs little.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(self.get_ref().is_enabled()),
            read => read,
        }
    }

    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }
    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.get_ref()
    }
    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.0.get_mut()
    }
    fn add_used(&self, head: u16, length: u32) -> Result<(), Error> {
        self.0.add_used(head, length)
    }
    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }
    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }
    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }
    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }
    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }
    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        self.0.set_queue_info(table, available, used)
    }
    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }
    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }
    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }
    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }
    fn set_queue_size(&self, size: u16) {
        self.0.set_queue_size(size);
    }
    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }
    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }
    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}
