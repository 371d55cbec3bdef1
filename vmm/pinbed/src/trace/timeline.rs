// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tracks of a timeline, made of what the guest and the device recorded: one for the tests, one for each task of the guest with its
//! system calls, functions and events, one for each CPU's interrupts, one for the pages that are pinned, and one for each of the device's
//! threads.

use std::collections::BTreeMap;

use pinbed_abi::wire;

use crate::machine::tsc;
use crate::trace::clock::{self, Journey};
use crate::trace::device::{Line, Said};
use crate::trace::ftrace::{self, Event, Recording, Value};
use crate::trace::names::{self, Names};

/// Ticks in a millisecond where the host's frequency is not known: a guess that keeps the order.
const SOME_KHZ: u64 = 2_500_000;
/// Between two boots whose order alone is known, in nanoseconds.
const GAP: u64 = 1_000_000;
/// Between the process numbers of two boots.
const BOOT: i32 = 1 << 24;

/// A part of the timeline that is shown in a line of its own.
#[derive(Debug)]
pub struct Track {
    pub name: String,
    pub kind: TrackKind,
    /// The track that it belongs to, by its place.
    pub parent: Option<usize>,
    pub events: Vec<TrackEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackKind {
    Process { pid: i32 },
    Thread { pid: i32, tid: i32 },
    Plain,
    Counter { unit: &'static str },
}

/// What happened on a track.
#[derive(Debug)]
pub struct TrackEvent {
    pub time_ns: u64,
    pub what: What,
    pub arguments: Vec<(String, Argument)>,
    /// Ties events of several tracks together.
    pub flow: Option<u64>,
}

#[derive(Debug)]
pub enum What {
    Begin {
        name: String,
        category: &'static str,
    },
    End,
    Instant {
        name: String,
        category: &'static str,
    },
    Value(i64),
}

/// A fact about an event.
#[derive(Debug)]
pub enum Argument {
    Signed(i64),
    Unsigned(u64),
    Address(u64),
    Text(String),
}

/// The whole timeline.
#[derive(Debug, Default)]
pub struct Tracks {
    tracks: Vec<Track>,
    boots: i32,
    end_ns: u64,
    /// The host's counter at time 0.
    origin: Option<i128>,
    pub uncertainty_ns: Option<u64>,
    pub lost: bool,
}

impl Tracks {
    pub fn all(&self) -> &[Track] {
        &self.tracks
    }

    /// How many slices, instants and values there are.
    pub fn events(&self) -> usize {
        let of = |track: &Track| {
            let ends = |event: &&TrackEvent| matches!(event.what, What::End);
            track.events.len() - track.events.iter().filter(ends).count()
        };
        self.tracks.iter().map(of).sum()
    }

    fn add(&mut self, name: impl Into<String>, kind: TrackKind, parent: Option<usize>) -> usize {
        self.tracks.push(Track {
            name: name.into(),
            kind,
            parent,
            events: Vec::new(),
        });
        self.tracks.len() - 1
    }

    fn push(&mut self, track: usize, event: TrackEvent) {
        self.end_ns = self.end_ns.max(event.time_ns);
        self.tracks[track].events.push(event);
    }
}

/// From ticks to nanoseconds of the timeline.
#[derive(Clone, Copy, Debug)]
struct Clock {
    origin: i128,
    khz: u64,
    /// To the guest's ticks.
    difference: i128,
}

impl Clock {
    fn of_host(&self, ticks: u64) -> u64 {
        self.of(i128::from(ticks))
    }

    fn of_guest(&self, ticks: u64) -> u64 {
        self.of(i128::from(ticks) + self.difference)
    }

    fn of(&self, ticks: i128) -> u64 {
        let passed = (ticks - self.origin).max(0);
        (passed * 1_000_000 / i128::from(self.khz)) as u64
    }
}

/// Adds what was recorded in one boot.
pub fn add_boot(tracks: &mut Tracks, guest: &Recording, device: &[Line], names: &Names) {
    let journeys = journeys(guest, device);
    let found = clock::difference(&journeys);
    let khz = tsc::khz().unwrap_or(SOME_KHZ);
    let Some(first) = guest.events.first().map(|event| event.time) else {
        return;
    };
    let mut clock = Clock {
        origin: 0,
        khz,
        difference: found.map_or(0, |found| found.ticks),
    };
    clock.origin = match (tracks.origin, found) {
        (Some(origin), Some(_)) => origin,
        // After all that is there.
        (Some(_), None) => {
            i128::from(first) - i128::from(tracks.end_ns + GAP) * i128::from(khz) / 1_000_000
        }
        (None, _) => i128::from(first) + clock.difference,
    };
    if found.is_some() {
        tracks.origin.get_or_insert(clock.origin);
    }
    let uncertainty = found.map(|found| found.uncertainty * 1_000_000 / khz);
    tracks.uncertainty_ns = tracks.uncertainty_ns.max(uncertainty);
    tracks.lost |= guest.lost;
    tracks.boots += 1;
    let mut boot = Boot {
        base: BOOT * (tracks.boots - 1),
        label: match tracks.boots {
            1 => String::new(),
            boot => format!(" (boot {boot})"),
        },
        clock,
        names,
        guest,
        tests: None,
        pins: None,
        all_interrupts: None,
        interrupts: BTreeMap::new(),
        tasks: BTreeMap::new(),
        processes: BTreeMap::new(),
        pinned: 0,
        tracks,
    };
    boot.add_guest();
    boot.add_device(device, uncertainty);
}

/// When each request was where.
fn journeys(guest: &Recording, device: &[Line]) -> BTreeMap<u64, Journey> {
    let mut journeys: BTreeMap<u64, Journey> = BTreeMap::new();
    for event in &guest.events {
        let is_request = match event.format.name.as_str() {
            "pinbed_request" => true,
            "pinbed_answer" => false,
            _ => continue,
        };
        let journey = journeys.entry(event.number("cookie")).or_default();
        match is_request {
            true => journey.sent = Some(event.time),
            false => journey.answered = Some(event.time),
        }
    }
    for line in device {
        match line.said {
            Said::Begin { cookie, .. } => {
                if let Some(journey) = journeys.get_mut(&cookie) {
                    journey.began.get_or_insert(line.time);
                }
            }
            Said::End {
                status: Some(_),
                cookie,
            } => {
                if let Some(journey) = journeys.get_mut(&cookie) {
                    journey.ended = Some(line.time);
                }
            }
            _ => {}
        }
    }
    journeys
}

/// A slice that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Call,
    Function(u64),
}

/// A task's track, and the slices that are open on it.
#[derive(Debug)]
struct Task {
    track: usize,
    open: Vec<Open>,
}

/// The work on one boot.
struct Boot<'a> {
    tracks: &'a mut Tracks,
    /// Added to the numbers of processes, which are other processes in other boots.
    base: i32,
    label: String,
    clock: Clock,
    names: &'a Names<'a>,
    guest: &'a Recording,
    tests: Option<usize>,
    pins: Option<usize>,
    all_interrupts: Option<usize>,
    interrupts: BTreeMap<u32, Task>,
    tasks: BTreeMap<i32, Task>,
    processes: BTreeMap<i32, usize>,
    pinned: i64,
}

impl Boot<'_> {
    fn add_guest(&mut self) {
        let guest = self.guest;
        // They are no process's, so that a reader sees them first, and at once.
        let tests = format!("tests{}", self.label);
        self.tests = Some(self.tracks.add(tests, TrackKind::Plain, None));
        let pins = format!("pages pinned by these tests{}", self.label);
        let unit = TrackKind::Counter { unit: "pages" };
        self.pins = Some(self.tracks.add(pins, unit, None));
        // An event's stack follows it in the same CPU's buffer.
        let mut stacks: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut last: BTreeMap<u32, usize> = BTreeMap::new();
        for (index, event) in guest.events.iter().enumerate() {
            match event.format.name.as_str() {
                "kernel_stack" => {
                    if let (Some(of), Some(Value::Words(words))) =
                        (last.get(&event.cpu), event.value(ftrace::STACK))
                    {
                        stacks.insert(*of, words);
                    }
                }
                "funcgraph_entry" | "funcgraph_exit" => {}
                _ => drop(last.insert(event.cpu, index)),
            }
        }
        for (index, event) in guest.events.iter().enumerate() {
            let stack = stacks.get(&index).map_or(&[][..], Vec::as_slice);
            self.add(event, stack);
        }
        let end = guest.events.last().map_or(0, |event| event.time);
        let end = self.clock.of_guest(end);
        let tasks: Vec<_> = self
            .tasks
            .values_mut()
            .chain(self.interrupts.values_mut())
            .collect();
        for task in tasks {
            for _ in task.open.drain(..) {
                self.tracks.push(task.track, plain(end, What::End));
            }
        }
    }

    fn add(&mut self, event: &Event, stack: &[u64]) {
        let time = self.clock.of_guest(event.time);
        let name = event.format.name.as_str();
        match name {
            "kernel_stack" => {}
            "print" => self.mark(time, event),
            "sys_enter" => {
                let arguments = match event.value("args") {
                    Some(Value::Words(words)) => words,
                    _ => Vec::new(),
                };
                let name = names::system_call(event.number("id"), &arguments);
                // What is in the other registers is no argument.
                let known = if name.starts_with("ioctl") { 3 } else { 6 };
                let named = arguments.iter().enumerate().take(known);
                let begin = TrackEvent {
                    arguments: named
                        .map(|(index, value)| (format!("arg{index}"), Argument::Address(*value)))
                        .collect(),
                    ..plain(
                        time,
                        What::Begin {
                            name,
                            category: "syscall",
                        },
                    )
                };
                self.begin(event, Open::Call, begin);
            }
            "sys_exit" => {
                let returned = event.number("ret").cast_signed();
                let mut end = plain(time, What::End);
                end.arguments
                    .push(("returned".to_owned(), returned_value(returned)));
                self.end(event, Open::Call, end);
            }
            "funcgraph_entry" => {
                let function = event.number("func");
                let name = self.names.entered(function);
                let category = if name.starts_with("pinbed") {
                    "driver"
                } else {
                    "function"
                };
                let begin = plain(time, What::Begin { name, category });
                self.begin(event, Open::Function(function), begin);
            }
            "funcgraph_exit" => {
                let mut end = plain(time, What::End);
                if let Some(value) = event.value("retval") {
                    let Value::Unsigned(value) = value else {
                        return;
                    };
                    end.arguments
                        .push(("returned".to_owned(), Argument::Address(value)));
                }
                self.end(event, Open::Function(event.number("func")), end);
            }
            _ => self.instant(time, event, stack),
        }
    }

    /// A test begins or ends.
    fn mark(&mut self, time: u64, event: &Event) {
        let (Some(Value::Text(text)), Some(track)) = (event.value("buf"), self.tests) else {
            return;
        };
        let what = match text.strip_prefix("begin ") {
            Some(test) => What::Begin {
                name: test.to_owned(),
                category: "test",
            },
            None => What::End,
        };
        self.tracks.push(track, plain(time, what));
    }

    fn instant(&mut self, time: u64, event: &Event, stack: &[u64]) {
        let kind = event.format.name.as_str();
        let mut name = kind.to_owned();
        let (mut category, mut flow) = ("event", None);
        let mut arguments: Vec<_> = event
            .values()
            .map(|(name, value)| (name.to_owned(), argument(name, value)))
            .collect();
        if let Some(function) = kind.strip_suffix("_returns") {
            let pinned = event.number("pinned").cast_signed();
            name = format!("{function} returned {pinned}");
            category = "pin";
            self.count(time, pinned.max(0));
        } else if kind.starts_with("pin_user") || kind == "memfd_pin_folios" {
            category = "pin";
            let flags = self.names.pin_flags(event.number("flags"));
            name = match kind {
                "memfd_pin_folios" => kind.to_owned(),
                _ => format!("pin {} {flags}", pages(event.number("pages"))),
            };
            arguments.push(("flags in words".to_owned(), Argument::Text(flags)));
        } else if kind.starts_with("unpin_") {
            category = "pin";
            let count = match kind {
                "unpin_user_page" => 1,
                _ => event.number("pages"),
            };
            name = format!("unpin {}", pages(count));
            // Without dirtying these call unpin_user_pages(), which is counted.
            let is_wrapper = event.value("dirty") == Some(Value::Unsigned(0));
            if !(is_wrapper && kind == "unpin_user_pages_dirty_lock") {
                self.count(time, -count.cast_signed());
            }
        } else if kind == "pinbed_request" || kind == "pinbed_answer" {
            category = "driver";
            flow = Some(event.number("cookie"));
            let queue = names::queue(event.number("queue") as u32);
            name = match kind {
                "pinbed_request" => {
                    format!(
                        "send {} ({queue})",
                        names::operation(event.number("op") as u32)
                    )
                }
                _ => format!("answer ({queue})"),
            };
        } else if kind.starts_with("pinbed_") {
            category = "driver";
            let handle = event.number("handle");
            name = match kind {
                "pinbed_hold" => format!("the device holds buffer {handle}"),
                _ => format!("the device has let go of buffer {handle}"),
            };
        }
        if !stack.is_empty() {
            let mut lines: Vec<_> = stack
                .iter()
                .take_while(|address| **address != u64::MAX)
                .map(|address| self.names.function(*address))
                .collect();
            // Above the probed function are those that make the probe work.
            if let Some(at) = lines.iter().position(|line| line.starts_with(kind)) {
                lines.drain(..at);
            }
            arguments.push(("stack".to_owned(), Argument::Text(lines.join("\n"))));
        }
        let track = self.task(event).track;
        self.tracks.push(
            track,
            TrackEvent {
                time_ns: time,
                what: What::Instant { name, category },
                arguments,
                flow: flow.map(|cookie| self.flow(cookie)),
            },
        );
    }

    /// Cookies come again in the next boot.
    fn flow(&self, cookie: u64) -> u64 {
        cookie | u64::from(self.base.unsigned_abs()) << 32
    }

    fn count(&mut self, time: u64, more: i64) {
        if let (Some(track), true) = (self.pins, more != 0) {
            self.pinned += more;
            self.tracks
                .push(track, plain(time, What::Value(self.pinned)));
        }
    }

    fn begin(&mut self, event: &Event, open: Open, begin: TrackEvent) {
        let task = self.task(event);
        task.open.push(open);
        let track = task.track;
        self.tracks.push(track, begin);
    }

    /// Ends the slice, and those that began in it and whose end is not there. An end without a beginning is of something that began
    /// before the trace.
    fn end(&mut self, event: &Event, open: Open, end: TrackEvent) {
        let task = self.task(event);
        let Some(at) = task.open.iter().rposition(|it| *it == open) else {
            return;
        };
        let (track, inner) = (task.track, task.open.len() - at - 1);
        task.open.truncate(at);
        for _ in 0..inner {
            self.tracks.push(track, plain(end.time_ns, What::End));
        }
        self.tracks.push(track, end);
    }

    /// The track of the task that an event happened in, or of its CPU's interrupts.
    fn task(&mut self, event: &Event) -> &mut Task {
        let tracks = &mut *self.tracks;
        let new = |track| Task {
            track,
            open: Vec::new(),
        };
        if event.in_interrupt() {
            let (all, label) = (&mut self.all_interrupts, &self.label);
            return self.interrupts.entry(event.cpu).or_insert_with(|| {
                let all = all.get_or_insert_with(|| {
                    tracks.add(format!("interrupts{label}"), TrackKind::Plain, None)
                });
                let name = format!("CPU {}", event.cpu);
                new(tracks.add(name, TrackKind::Plain, Some(*all)))
            });
        }
        let (guest, base, label) = (self.guest, self.base, &self.label);
        let tid = event.pid();
        let processes = &mut self.processes;
        self.tasks.entry(tid).or_insert_with(|| {
            let name = |pid: i32| match guest.tasks.get(&pid) {
                Some(name) => name.clone(),
                None if pid == 0 => "idle".to_owned(),
                None => format!("task {pid}"),
            };
            let pid = guest.processes.get(&tid).copied().unwrap_or(tid);
            processes.entry(pid).or_insert_with(|| {
                let kind = TrackKind::Process { pid: base + pid };
                tracks.add(format!("{}{label}", name(pid)), kind, None)
            });
            let kind = TrackKind::Thread {
                pid: base + pid,
                tid: base + tid,
            };
            new(tracks.add(name(tid), kind, None))
        })
    }

    fn add_device(&mut self, lines: &[Line], uncertainty_ns: Option<u64>) {
        // Before the device's first request there is nothing to place it by.
        let (Some(uncertainty), false) = (uncertainty_ns, lines.is_empty()) else {
            return;
        };
        let name = format!(
            "pinbed-device{} (its clock is known to {:.1} µs)",
            self.label,
            uncertainty as f64 / 1000.0
        );
        let group = self.tracks.add(name, TrackKind::Plain, None);
        let mut threads: BTreeMap<u32, (usize, Vec<u64>)> = BTreeMap::new();
        // Tests that were not traced are not wanted.
        let (mut since, mut until) = (u64::MAX, 0);
        for event in self
            .guest
            .events
            .iter()
            .filter(|it| it.format.name == "print")
        {
            since = since.min(self.clock.of_guest(event.time));
            until = until.max(self.clock.of_guest(event.time));
        }
        for line in lines {
            let time = self.clock.of_host(line.time);
            if !(since..=until).contains(&time) {
                continue;
            }
            let (track, open) = threads.entry(line.thread).or_insert_with(|| {
                let name = match &line.said {
                    Said::Begin { queue, .. } => format!("{} queue", names::queue(*queue)),
                    _ => format!("thread {}", line.thread),
                };
                (
                    self.tracks.add(name, TrackKind::Plain, Some(group)),
                    Vec::new(),
                )
            });
            let mut event = plain(time, What::End);
            match &line.said {
                Said::Begin { op, cookie, .. } => {
                    open.push(*cookie);
                    event.flow = Some(self.flow(*cookie));
                    event.what = What::Begin {
                        name: names::operation(*op),
                        category: "device",
                    };
                }
                Said::End { status, .. } => {
                    if open.pop().is_none() {
                        continue;
                    }
                    let words = match status {
                        Some(wire::STATUS_OK) => "OK".to_owned(),
                        Some(status) => format!("status {status}"),
                        None => "answered later, or not at all".to_owned(),
                    };
                    event
                        .arguments
                        .push(("answer".to_owned(), Argument::Text(words)));
                }
                Said::Access {
                    writes,
                    address,
                    length,
                } => {
                    let what = if *writes { "DMA write" } else { "DMA read" };
                    event.what = What::Instant {
                        name: what.to_owned(),
                        category: "dma",
                    };
                    event.arguments = vec![
                        ("address".to_owned(), Argument::Address(*address)),
                        ("page frame".to_owned(), Argument::Address(*address >> 12)),
                        ("length".to_owned(), Argument::Unsigned(*length)),
                    ];
                }
                Said::Text(text) => {
                    event.what = What::Instant {
                        name: text.clone(),
                        category: "device",
                    };
                }
            }
            self.tracks.push(*track, event);
        }
        let end = self.tracks.end_ns;
        for (track, open) in threads.into_values() {
            for _ in open {
                self.tracks.push(track, plain(end, What::End));
            }
        }
    }
}

fn plain(time_ns: u64, what: What) -> TrackEvent {
    TrackEvent {
        time_ns,
        what,
        arguments: Vec::new(),
        flow: None,
    }
}

fn pages(count: u64) -> String {
    match count {
        1 => "1 page".to_owned(),
        count => format!("{count} pages"),
    }
}

fn argument(name: &str, value: Value) -> Argument {
    match value {
        Value::Signed(number) => Argument::Signed(number),
        Value::Unsigned(number) if name.contains("address") => Argument::Address(number),
        Value::Unsigned(number) => Argument::Unsigned(number),
        Value::Text(text) => Argument::Text(text),
        Value::Words(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("{word:#x}")).collect();
            Argument::Text(words.join(" "))
        }
    }
}

/// What a system call returned: an error has its name.
fn returned_value(returned: i64) -> Argument {
    match i32::try_from(returned) {
        Ok(error @ -4095..=-1) => {
            let errno = nix::errno::Errno::from_raw(-error);
            Argument::Text(format!("{errno:?} ({returned})"))
        }
        _ => Argument::Signed(returned),
    }
}
