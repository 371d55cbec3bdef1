// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One boot of a guest: its machine is started, watched and torn down, and what it says is passed on.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pinbed_abi::report::{Delay, Message, Part};

use crate::interrupt;
use crate::machine::events::{self, Happening};
use crate::machine::frozen;
use crate::machine::qmp::{Monitor, Said};
use crate::machine::saved;
use crate::machine::slot::{Dimm, Slot};
use crate::machine::stall::{self, Stall, TICK};
use crate::machine::unwind;
use crate::machine::vm::{self, Files, Machine, Start, Unit, Vm};
use crate::machine::watch::{End, Event, Evidence, Limits, Trouble, Watch};
use crate::text::printable;

/// Lines of the console that are kept as evidence.
const CONSOLE: usize = 400;
/// Lines of a process's log that are kept as evidence.
const LOG: usize = 30;
/// How long QEMU may take to print a hanging guest's registers.
const REGISTERS: Duration = Duration::from_secs(2);
/// SysRq keys for a hanging guest, and how long to listen after each: show all of what follows; where the CPUs are; which tasks are
/// blocked, and where.
const SYSRQ: [(u8, Duration); 3] = [
    (b'9', Duration::from_millis(100)),
    (b'l', Duration::from_millis(500)),
    (b'w', Duration::from_millis(1000)),
];
/// How long a saved guest may take until it reports in.
const WARM: Duration = Duration::from_secs(20);
/// How long a serial break takes to arrive.
const BREAK: Duration = Duration::from_millis(50);

/// What a guest says while it runs.
#[derive(Debug)]
pub enum Heard {
    /// A report that came in its turn.
    Report(Message),
    /// A line on the console.
    Console(String),
    /// The test that runs has timed out, and this is what the machine looked like.
    TimedOut(Evidence),
}

/// A boot that is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// The test that ran then.
    pub test: Option<String>,
    /// What the console showed since that test began.
    pub said: Vec<String>,
    /// The kernel's first report that it is broken.
    pub trouble: Option<Trouble>,
    /// What is known of a bad end.
    pub evidence: Evidence,
}

/// A boot that goes on.
struct Boot<'a> {
    machine: &'a Machine,
    files: &'a Files,
    watch: Watch,
    slots: [Slot; 2],
    dimm: Dimm,
    to: Sender<Happening>,
    happenings: Receiver<Happening>,
    /// What happened while one thing was waited for, and is still to be looked at.
    postponed: VecDeque<Happening>,
    hear: &'a mut dyn FnMut(Heard),
    /// The report port, for the errand of a saved guest and for answers.
    port: UnixStream,
    console: VecDeque<String>,
    /// Time that the host took from the guest.
    stall: Stall,
    /// How much of it there was when the guest last said something that is not [`Message::Late`].
    stalled: Duration,
    /// How much there was when the test began that runs.
    stalled_before_test: Duration,
    /// Lines of `console` that came before the test that runs, or more than all of them.
    before_test: usize,
}

/// Boots a machine and passes on what the guest says until it ends; `qemu` is the command without arguments. `channel` is as
/// [`events::stream`] makes it; who keeps a sender can send [`Happening::Stop`].
///
/// # Errors
/// When the machine cannot be started. Nothing is left running.
pub fn run(
    machine: &Machine,
    qemu: Command,
    files: &Files,
    limits: Limits,
    channel: (Sender<Happening>, Receiver<Happening>),
    hear: &mut dyn FnMut(Heard),
) -> Result<Ended> {
    let (to, happenings) = channel;
    let signals = to.clone();
    // If nobody listens any more, the boot is over.
    let _subscription =
        interrupt::subscribe(move |signal| drop(signals.send(Happening::Signal(signal))));
    let (mut vm, sources) = vm::start(machine, qemu, files)?;
    // If it fails, QEMU has just died, and we shall hear of that.
    let mut monitor = Monitor::new(sources.qmp.try_clone()?).ok();
    let console = sources.console.try_clone()?;
    let port = sources.report.try_clone()?;
    let mut limits = limits;
    if let Start::Warm(saved, _) = &machine.start {
        limits.boot = limits.boot.min(WARM);
        // As above.
        let _ = monitor
            .as_mut()
            .map(|monitor| monitor.restore(&saved.state()));
    }
    events::listen(sources, &to);

    let mut boot = Boot {
        machine,
        files,
        slots: [Slot::first(vm.device.pid()), Slot::second()],
        dimm: Dimm::new(),
        to,
        watch: Watch::new(limits, Instant::now()),
        happenings,
        postponed: VecDeque::new(),
        hear,
        port,
        console: VecDeque::new(),
        stall: Stall::new(),
        stalled: Duration::ZERO,
        stalled_before_test: Duration::ZERO,
        before_test: 0,
    };
    let end = boot.watch(&mut vm, &mut monitor)?;
    let mut seen = Evidence::default();
    if let (End::Hang { .. }, Some(mut monitor)) = (&end, monitor) {
        // If one of these fails, QEMU has died meanwhile: there is no more to see.
        let _ = boot
            .examine(&mut monitor, &mut seen)
            .and_then(|()| boot.ask_the_kernel(monitor, console));
    }
    drop(vm);
    let evidence = match end {
        End::Done | End::Stopped => Evidence::default(),
        _ => Evidence {
            console: boot.explained_console(),
            qemu: last_lines(&files.qemu_log()),
            device: last_lines(&files.device_log()),
            ..seen
        },
    };
    Ok(Ended {
        end,
        test: boot.watch.test().map(str::to_owned),
        said: boot.console.into_iter().skip(boot.before_test).collect(),
        trouble: boot.watch.trouble().cloned(),
        evidence,
    })
}

impl Boot<'_> {
    fn watch(&mut self, vm: &mut Vm, monitor: &mut Option<Monitor>) -> Result<End> {
        loop {
            // No verdict may depend on what else the host has to do.
            if self.stall.due() <= Instant::now() {
                self.look_for_stalls(vm);
            }
            let left = self
                .watch
                .deadline()
                .saturating_duration_since(Instant::now());
            let event = match self.next(left.min(TICK)) {
                Ok(Happening::Report(Ok(message))) => Event::Report(message),
                Ok(Happening::Report(Err(why))) => Event::Garbled(why),
                Ok(Happening::Console(line)) => {
                    self.keep(line.clone());
                    (self.hear)(Heard::Console(line.clone()));
                    Event::Console(line)
                }
                Ok(Happening::Qemu(Said::Stopped)) => {
                    // If it fails, QEMU has just died, and we shall hear of that.
                    let _ = monitor.as_mut().map(Monitor::ask_run_state);
                    continue;
                }
                Ok(Happening::Qemu(Said::RunState(state))) => Event::RunState(state),
                Ok(Happening::Qemu(Said::Shutdown { reset })) => Event::Shutdown { reset },
                Ok(Happening::Qemu(Said::Registers(_) | Said::Memory(_))) => continue,
                Ok(Happening::Qemu(Said::Migrated)) => {
                    self.start_errand(monitor);
                    continue;
                }
                Ok(Happening::Qemu(Said::NotMigrated)) => {
                    return Ok(End::NeverUp {
                        reason: "QEMU does not take up its saved state".to_owned(),
                    });
                }
                Ok(Happening::Qemu(Said::Deleted(id))) => {
                    if let Some(slot) = self.slots.iter().position(|slot| slot.id() == id) {
                        self.device_left(slot, monitor)?;
                    } else if let (vm::DIMM, Some(monitor)) = (id.as_str(), &mut *monitor) {
                        // If it fails, QEMU has just died, and we shall hear of that.
                        let _ = self.dimm.left(monitor);
                    }
                    continue;
                }
                Ok(Happening::QemuEnded) => Event::QemuExited(vm.qemu.reap()?),
                Ok(Happening::DeviceEnded(pid)) => {
                    let mut slots = self.slots.iter_mut();
                    let process = slots.find_map(|slot| slot.process(pid));
                    let status = process.unwrap_or(&mut vm.device).reap()?;
                    // It ends when it has been taken out.
                    if status.success() && self.slots.iter().all(|slot| slot.has_left(pid)) {
                        continue;
                    }
                    Event::DeviceExited(status)
                }
                Ok(Happening::Signal(signal)) => Event::Signal(signal),
                Ok(Happening::Stop) => Event::Stop,
                // Only a shell's boot has one, and it is not watched here.
                Ok(Happening::Person(_)) => continue,
                Err(RecvTimeoutError::Timeout) if self.watch.deadline() <= Instant::now() => {
                    self.look_for_stalls(vm);
                    if self.watch.deadline() <= Instant::now() {
                        return Ok(self.watch.expired());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => continue,
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(End::Unexpected {
                        reason: "nothing can happen any more".to_owned(),
                    });
                }
            };
            if let Some(end) = self.watch.on(&event, Instant::now()) {
                return Ok(end);
            }
            if let Event::Report(Message::Hotplug { part, plugged }) = event {
                match part {
                    Part::Device => self.ask_for_device(0, plugged, monitor)?,
                    Part::SecondDevice => self.ask_for_device(1, plugged, monitor)?,
                    // As for the device.
                    Part::Memory => drop(monitor.as_mut().map(|it| self.dimm.ask(plugged, it))),
                }
            } else if let Event::Report(Message::Late) = event {
                self.look_for_stalls(vm);
                let stalled = self.stall.total() - self.stalled;
                self.answer(stalled);
            } else if let Event::Report(Message::TimedOut { tasks, cpus }) = event {
                let mut seen = Evidence {
                    tasks,
                    ..Evidence::default()
                };
                self.machine.decode(&mut seen.tasks);
                // As for the device.
                let _ = monitor.as_mut().map(|it| self.examine(it, &mut seen));
                // It knows its modules, and what a bzImage does not say.
                if !unwind::are_named(&seen.backtraces) {
                    let mut said = unwind::of_kernel(&cpus);
                    self.machine.decode(&mut said);
                    seen.backtraces.append(&mut said);
                }
                (self.hear)(Heard::TimedOut(seen));
                self.answer(Duration::ZERO);
            } else if let Event::Report(Message::Freeze { mailbox }) = event {
                let device = self.slots[0].device().unwrap_or(vm.device.pid());
                frozen::compare(vm.qemu.pid(), device, &vm.memory, mailbox);
            } else if let Event::Report(mut message) = event {
                if let Message::Start { .. } = message {
                    self.before_test = self.console.len();
                    self.stalled_before_test = self.stall.total();
                }
                if let Message::End { dmesg, outcome, .. } = &mut message {
                    self.machine.decode(dmesg);
                    self.look_for_stalls(vm);
                    stall::excuse(outcome, self.stall.total() - self.stalled_before_test);
                }
                self.stalled = self.stall.total();
                (self.hear)(Heard::Report(message));
            }
        }
    }

    /// What happens next, within a time.
    fn next(&mut self, limit: Duration) -> Result<Happening, RecvTimeoutError> {
        match self.postponed.pop_front() {
            Some(happening) => Ok(happening),
            None => self.happenings.recv_timeout(limit),
        }
    }

    /// Answers the guest.
    fn answer(&mut self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let line = Delay { ms }.to_line().map_err(io::Error::other);
        // If it fails, QEMU has just died, and we shall hear of that.
        let _ = line.and_then(|line| self.port.write_all(line.as_bytes()));
    }

    /// Adds what the guest could not run in to the watch's deadline.
    fn look_for_stalls(&mut self, vm: &Vm) {
        let before = self.stall.total();
        let devices = self.slots.iter().filter_map(Slot::device);
        let all: Vec<_> = devices.chain([vm.qemu.pid()]).collect();
        self.stall.look(&all);
        self.watch.grant(self.stall.total() - before);
    }

    /// The saved state is in place: the device comes in, and the guest goes on with its errand.
    fn start_errand(&mut self, monitor: &mut Option<Monitor>) {
        if let (Start::Warm(_, plan), Some(monitor)) = (&self.machine.start, monitor) {
            // If one of these fails, QEMU has just died, and we shall hear of that.
            let _ = monitor
                .add_device(vm::device_in_slot(Unit::First(1)))
                .and_then(|()| monitor.resume())
                .and_then(|()| saved::send_errand(&mut self.port, plan));
        }
    }

    /// The guest asks for a device in a slot or for none.
    fn ask_for_device(
        &mut self,
        slot: usize,
        plugged: bool,
        monitor: &mut Option<Monitor>,
    ) -> Result<()> {
        // Without it, or if it fails, QEMU has just died, and we shall hear of that. So below.
        let place = &mut self.slots[slot];
        match monitor.as_mut().map(|it| (place.ask(plugged, it), it)) {
            Some((Ok(true), monitor)) => self.fill(slot, monitor),
            _ => Ok(()),
        }
    }

    /// QEMU has taken the device of a slot out.
    fn device_left(&mut self, slot: usize, monitor: &mut Option<Monitor>) -> Result<()> {
        match monitor.as_mut().map(|it| (self.slots[slot].left(it), it)) {
            Some((Ok(true), monitor)) => self.fill(slot, monitor),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, slot: usize, monitor: &mut Monitor) -> Result<()> {
        let filled = self.slots[slot].fill(self.machine, self.files, monitor);
        let device = filled.context("cannot put another device into the machine")?;
        events::listen_to_device(device, &self.to);
        Ok(())
    }

    fn keep(&mut self, line: String) {
        if self.console.len() == CONSOLE {
            self.console.pop_front();
            self.before_test = self.before_test.saturating_sub(1);
        }
        self.console.push_back(line);
    }

    /// Looks at a hang from outside: what the device holds, all CPUs' registers and stacks, if QEMU answers.
    fn examine(&mut self, monitor: &mut Monitor, seen: &mut Evidence) -> io::Result<()> {
        seen.holds = holds(&self.files.inspect());
        monitor.ask_registers()?;
        seen.registers = self.listen(REGISTERS, |said| match said {
            Said::Registers(text) => Some(text),
            _ => None,
        });
        if let Some(registers) = &seen.registers {
            seen.backtraces = self.backtraces(monitor, registers)?;
        }
        Ok(())
    }

    /// Has the kernel of a guest that hangs, if it still can, show backtraces on the console.
    fn ask_the_kernel(&mut self, mut monitor: Monitor, mut console: UnixStream) -> io::Result<()> {
        for (key, time) in SYSRQ {
            monitor.send_break()?;
            self.listen(BREAK, |_| None::<()>);
            console.write_all(&[key])?;
            self.listen(time, |_| None::<()>);
        }
        Ok(())
    }

    /// Where each CPU is, with names as far as the kernel's symbols go.
    fn backtraces(&mut self, monitor: &mut Monitor, registers: &str) -> io::Result<Vec<String>> {
        let machine = self.machine;
        let symbols = machine.kernel_symbols();
        let name =
            |known: Option<String>, address: u64| known.unwrap_or_else(|| format!("{address:#x}"));
        let function = |address| name(symbols.and_then(|it| it.name(address)), address);
        let caller = |address| name(symbols.and_then(|it| it.caller(address)), address);
        let mut lines = Vec::new();
        for cpu in unwind::cpus(registers) {
            let idle = if cpu.halted { ", halted" } else { "" };
            if !cpu.in_kernel() {
                lines.push(format!(
                    "CPU {}: in user space at {:#x}",
                    cpu.index, cpu.rip
                ));
                continue;
            }
            lines.push(format!("CPU {}{idle}: {}", cpu.index, function(cpu.rip)));
            let mut rbp = cpu.rbp;
            for _ in 0..unwind::FRAMES {
                monitor.ask_words(cpu.index, rbp)?;
                let shown = self.listen(REGISTERS, |said| match said {
                    Said::Memory(text) => Some(text),
                    _ => None,
                });
                let Some((next, address)) = shown.and_then(|shown| unwind::frame(rbp, &shown))
                else {
                    break;
                };
                lines.push(format!("  {}", caller(address)));
                rbp = next;
            }
        }
        self.machine.decode(&mut lines);
        Ok(lines)
    }

    /// The console's lines, with source lines where they can be known.
    fn explained_console(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.console.iter().cloned().collect();
        self.machine.decode(&mut lines);
        lines
    }

    /// Keeps what the console shows for a time, or until QEMU says what is wanted. All else is for later.
    fn listen<T>(&mut self, time: Duration, wanted: impl Fn(Said) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.happenings.recv_timeout(left) {
                Ok(Happening::Qemu(said)) => {
                    if let Some(found) = wanted(said) {
                        return Some(found);
                    }
                }
                Ok(Happening::Console(line)) => {
                    self.keep(line.clone());
                    (self.hear)(Heard::Console(line));
                }
                Ok(other) => self.postponed.push_back(other),
                Err(_) => return None,
            }
        }
    }
}

/// What the device holds, by its own account.
fn holds(inspect: &Path) -> Vec<String> {
    let mut text = String::new();
    let read = UnixStream::connect(inspect).and_then(|mut device| {
        device.set_read_timeout(Some(REGISTERS))?;
        device.read_to_string(&mut text)
    });
    if let Err(error) = read {
        log::debug!("the device does not say what it holds: {error}");
    }
    let held = |line: &str| {
        let mut words = line.split(' ');
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        let (handle, length) = (number()?, number()?);
        let (direction, protected) = (words.next()?, words.next()?);
        let protected = if protected == "-" { "" } else { ", protected" };
        let pieces: Vec<_> = words.collect();
        Some(format!(
            "handle {handle}: {length} bytes, {direction}{protected}: {}",
            pieces.join(" ")
        ))
    };
    text.lines().filter_map(held).take(LOG).collect()
}

fn last_lines(log: &Path) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(printable).collect();
    lines[lines.len().saturating_sub(LOG)..].to_vec()
}
