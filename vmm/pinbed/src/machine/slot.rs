// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test may ask to have taken out of the machine while it is in use, and put in: devices in their slots, and the DIMM.
//!
//! QEMU takes a device out when the guest has let go of it, and says so. Then its connection is closed, by which the device process
//! ends. A process serves one front end, so that another device is another process.

use std::io;

use anyhow::Result;
use nix::unistd::Pid;

use crate::machine::process::Process;
use crate::machine::qmp::Monitor;
use crate::machine::vm::{self, Files, Machine, Unit};

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What belongs there.
    Taken,
    /// The guest is to let go of it; then it is put in anew if `again`.
    Leaving { again: bool },
    /// Nothing.
    Empty,
}

impl State {
    /// The guest asks for it, or for none. Returns whether it is to be put in now.
    fn ask(&mut self, plugged: bool, take: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        match (*self, plugged) {
            (State::Taken, false) => {
                *self = State::Leaving { again: false };
                take()?;
            }
            (State::Leaving { .. }, again) => *self = State::Leaving { again },
            (State::Empty, true) => return Ok(true),
            (State::Taken, true) | (State::Empty, false) => {}
        }
        Ok(false)
    }

    /// QEMU has taken it out. Returns as [`State::ask`].
    fn left(&mut self) -> bool {
        let again = *self == State::Leaving { again: true };
        *self = State::Empty;
        again
    }
}

/// The place of the DIMM.
#[derive(Debug)]
pub struct Dimm(State);

impl Dimm {
    /// That of a machine that has just been started.
    pub fn new() -> Self {
        Dimm(State::Taken)
    }

    /// The guest asks for the memory, or for none.
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn ask(&mut self, plugged: bool, monitor: &mut Monitor) -> io::Result<()> {
        match self.0.ask(plugged, || monitor.take_device(vm::DIMM))? {
            true => self.fill(monitor),
            false => Ok(()),
        }
    }

    /// QEMU has taken it out.
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn left(&mut self, monitor: &mut Monitor) -> io::Result<()> {
        match self.0.left() {
            true => self.fill(monitor),
            false => Ok(()),
        }
    }

    fn fill(&mut self, monitor: &mut Monitor) -> io::Result<()> {
        self.0 = State::Taken;
        monitor.add_device(vm::dimm())
    }
}

/// A place for a device, and the processes of those that were put in.
#[derive(Debug)]
pub struct Slot {
    state: State,
    /// The device that is there, or was there last; the zeroth if there was none.
    unit: Unit,
    /// Its process.
    current: Option<Pid>,
    /// The processes that were started here.
    started: Vec<Process>,
}

impl Slot {
    /// The first place of a machine that has just been started with this device process.
    pub fn first(device: Pid) -> Self {
        Slot {
            state: State::Taken,
            unit: Unit::First(1),
            current: Some(device),
            started: Vec::new(),
        }
    }

    /// The second place, which is empty at first.
    pub fn second() -> Self {
        Slot {
            state: State::Empty,
            unit: Unit::Second(0),
            current: None,
            started: Vec::new(),
        }
    }

    /// The id in QEMU of the device that is there.
    pub fn id(&self) -> &'static str {
        self.unit.id()
    }

    /// The process of the device that is there, or was there last.
    pub fn device(&self) -> Option<Pid> {
        self.current
    }

    /// Whether it is no news that this process ended without an error: its device has been taken out.
    pub fn has_left(&self, pid: Pid) -> bool {
        self.current != Some(pid) || self.state != State::Taken
    }

    /// A process that was started here.
    pub fn process(&mut self, pid: Pid) -> Option<&mut Process> {
        self.started.iter_mut().find(|process| process.pid() == pid)
    }

    /// The guest asks for a device or for none. Returns whether another device is to be put in now; see [`Slot::fill`].
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn ask(&mut self, plugged: bool, monitor: &mut Monitor) -> io::Result<bool> {
        self.state
            .ask(plugged, || monitor.take_device(self.unit.id()))
    }

    /// QEMU has taken the device out. Returns as [`Slot::ask`].
    ///
    /// # Errors
    /// When the connection to QEMU is closed.
    pub fn left(&mut self, monitor: &mut Monitor) -> io::Result<bool> {
        let again = self.state.left();
        monitor.remove_chardev(&self.unit.chardev())?;
        Ok(again)
    }

    /// Puts another device in. Returns its process.
    ///
    /// # Errors
    /// When the device process cannot be started.
    pub fn fill(&mut self, machine: &Machine, files: &Files, monitor: &mut Monitor) -> Result<Pid> {
        self.unit = self.unit.next();
        let process = vm::start_device(machine, files, self.unit)?;
        let pid = process.pid();
        self.current = Some(pid);
        self.started.push(process);
        // If it fails, QEMU has just died, and we shall hear of that.
        let _ = monitor
            .add_socket(&self.unit.chardev(), &files.socket(self.unit))
            .and_then(|()| monitor.add_device(vm::device_in_slot(self.unit)));
        self.state = State::Taken;
        Ok(pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// What the slot tells QEMU, by command.
    fn told(from: &mut UnixStream) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = match from.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            read => read.unwrap(),
        };
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let command = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["execute"], line["arguments"]["id"])
        };
        text.lines().map(command).collect()
    }

    #[test]
    fn another_device_waits_until_the_last_has_left() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        told(&mut theirs);
        let device = Pid::from_raw(7);
        let mut slot = Slot::first(device);
        assert!(!slot.ask(true, &mut monitor).unwrap() && told(&mut theirs).is_empty());
        assert!(!slot.has_left(device) && slot.has_left(Pid::from_raw(8)));

        assert!(!slot.ask(false, &mut monitor).unwrap());
        assert_eq!(told(&mut theirs), [r#""device_del" "pinbed""#]);
        assert!(slot.has_left(device));
        assert!(!slot.ask(true, &mut monitor).unwrap() && told(&mut theirs).is_empty());
        assert!(slot.left(&mut monitor).unwrap());
        assert_eq!(told(&mut theirs), [r#""chardev-remove" "device1""#]);

        slot.state = State::Taken;
        slot.ask(false, &mut monitor).unwrap();
        assert!(!slot.left(&mut monitor).unwrap());
        assert!(slot.ask(true, &mut monitor).unwrap());
    }

    #[test]
    fn the_second_place_is_empty_until_a_device_is_asked_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        told(&mut theirs);
        let mut slot = Slot::second();
        assert_eq!(slot.device(), None);
        assert!(!slot.ask(false, &mut monitor).unwrap());
        assert!(slot.ask(true, &mut monitor).unwrap());
        slot.state = State::Taken;
        slot.unit = slot.unit.next();
        assert!(!slot.ask(false, &mut monitor).unwrap());
        assert!(!slot.left(&mut monitor).unwrap());
        assert_eq!(
            told(&mut theirs),
            [r#""device_del" "pinbed2""#, r#""chardev-remove" "second1""#]
        );
    }

    #[test]
    fn the_dimm_comes_back_when_it_has_left() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        told(&mut theirs);
        let mut dimm = Dimm::new();
        dimm.ask(false, &mut monitor).unwrap();
        assert_eq!(told(&mut theirs), [r#""device_del" "pinbed-dimm""#]);
        dimm.ask(true, &mut monitor).unwrap();
        assert!(told(&mut theirs).is_empty());
        dimm.left(&mut monitor).unwrap();
        assert_eq!(told(&mut theirs), [r#""device_add" "pinbed-dimm""#]);
        dimm.ask(true, &mut monitor).unwrap();
        assert!(told(&mut theirs).is_empty());
    }
}
