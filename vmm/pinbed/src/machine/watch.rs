// SPDX-License-Identifier: Apache-2.0 OR MIT
//! State machine that decides when and how a boot ended, from everything that happens around the guest, in order. It does no I/O and
//! reads no clock, so that scripted boots can test it.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use pinbed_abi::report::Message;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The guest reported this.
    Report(Message),
    /// The guest reported a line that is no message, for this reason.
    Garbled(String),
    /// The guest's console showed this line.
    Console(String),
    /// QEMU says that the guest is in this run state (QMP `RunState`).
    RunState(String),
    /// QEMU says that the guest wants to end: by a reset if `reset`, else by power-off.
    Shutdown {
        /// Reset, triple fault included.
        reset: bool,
    },
    /// QEMU ended.
    QemuExited(ExitStatus),
    /// The device process ended.
    DeviceExited(ExitStatus),
    /// We got this signal.
    Signal(i32),
    /// The runner wants no more of this boot.
    Stop,
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From QEMU's start to Hello.
    pub boot: Duration,
    /// Between two tests, and from Hello to the first: driver and device come up, what settles late settles.
    pub between: Duration,
    /// A test, with its judging: the guest itself ends a test that takes too long, so this is longer than that.
    pub test: Duration,
    /// The same for tests that ask for more.
    pub slow_tests: BTreeMap<String, Duration>,
    /// From Done to the end of QEMU.
    pub power_off: Duration,
    /// From the first sign of an end until all that belongs to it must have been heard: a panic's text, the exit status of the
    /// process that died first.
    pub settle: Duration,
}

impl Limits {
    fn of_test(&self, name: &str) -> Duration {
        self.slow_tests.get(name).copied().unwrap_or(self.test)
    }
}

/// How a boot ended, and with it perhaps the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum End {
    /// The plan was carried out.
    Done,
    /// There was no kernel to boot.
    NotProvided {
        /// Why.
        reason: String,
    },
    /// The guest says that the plan cannot be carried out.
    Broken {
        /// Why, in its words.
        reason: String,
    },
    /// The guest did not report in.
    NeverUp {
        /// What happened instead.
        reason: String,
    },
    /// The guest kernel panicked.
    Panic {
        /// The console line that says so.
        line: String,
        /// The test that ran.
        test: Option<String>,
    },
    /// The guest went silent.
    Hang {
        /// What did not happen.
        reason: String,
        /// The test that ran.
        test: Option<String>,
    },
    /// The device process died.
    DeviceDied {
        /// Its exit status.
        status: String,
        /// The test that ran.
        test: Option<String>,
    },
    /// QEMU died.
    QemuDied {
        /// Its exit status.
        status: String,
        /// The test that ran.
        test: Option<String>,
    },
    /// The accelerator cannot run this guest.
    AccelBroken,
    /// The guest said or did something that it never should.
    Unexpected {
        /// What.
        reason: String,
    },
    /// The runner ended it, since nothing more was to be learnt.
    Stopped,
    /// We were told to stop.
    Interrupted {
        /// By this signal.
        signal: i32,
    },
}

impl End {
    /// The exit code, if the end itself decides it: after [`End::Done`] the verdicts do.
    pub fn exit(&self) -> Option<Exit> {
        match self {
            End::Done | End::Stopped => None,
            End::NeverUp { .. } | End::AccelBroken => Some(Exit::NeverUp),
            End::Panic { .. } => Some(Exit::Panic),
            End::Hang { .. } => Some(Exit::Hang),
            End::DeviceDied { .. } => Some(Exit::DeviceDied),
            End::QemuDied { .. } => Some(Exit::QemuDied),
            End::NotProvided { .. } | End::Broken { .. } => Some(Exit::Provisioning),
            End::Unexpected { .. } => Some(Exit::Internal),
            End::Interrupted { .. } => Some(Exit::Interrupted),
        }
    }
}

/// What is known of a bad end, of a boot or of a test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Evidence {
    /// The last lines on the guest's console.
    pub console: Vec<String>,
    /// All CPUs' registers, if it was a hang.
    pub registers: Option<String>,
    /// Where each CPU was, if it was a hang: a line "CPU N: function+0xoffset/0xsize", then its callers, indented.
    #[serde(default)]
    pub backtraces: Vec<String>,
    /// The test's tasks and all that were blocked, if a test timed out: a line for each, then the functions of its stack, indented.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// What the device held, if it was a hang: a line for each buffer.
    #[serde(default)]
    pub holds: Vec<String>,
    /// The last lines that QEMU wrote to standard error.
    pub qemu: Vec<String>,
    /// The last lines that the device process wrote to standard error.
    pub device: Vec<String>,
}

/// The first line on the console that says that the kernel is broken: an oops, a BUG, a sanitizer's or lockup detector's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The line.
    pub line: String,
    /// The test that ran.
    pub test: Option<String>,
}

#[derive(Debug)]
enum Phase {
    /// QEMU runs, the guest has not reported in.
    Booting,
    /// The guest is up, and no test runs.
    Between,
    /// This test runs.
    Testing(String),
    /// All tests ended; power-off follows.
    Finished,
}

/// The state of a run. The first [`End`] it gives is the last.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    phase: Phase,
    deadline: Instant,
    /// The end has begun, and we wait for what else belongs to it.
    settling: bool,
    /// What the end is, if the guest itself has said so; it says nothing more that counts.
    said: Option<End>,
    reset: bool,
    trouble: Option<Trouble>,
    qemu: Option<ExitStatus>,
    device: Option<ExitStatus>,
    device_was_first: bool,
}

impl Watch {
    /// A run that begins now: QEMU and the device have just been started.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Watch {
            deadline: now + limits.boot,
            limits,
            phase: Phase::Booting,
            settling: false,
            said: None,
            reset: false,
            trouble: None,
            qemu: None,
            device: None,
            device_was_first: false,
        }
    }

    /// When [`Watch::expired`] is due if nothing happens before.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The test that runs, or ran when the end began.
    pub fn test(&self) -> Option<&str> {
        match &self.phase {
            Phase::Testing(test) => Some(test),
            _ => None,
        }
    }

    /// Gives the guest this much more time, since it did not get a CPU for so long.
    pub fn grant(&mut self, time: Duration) {
        self.deadline += time;
    }

    /// The kernel's first report that it is broken, if there was one.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Something happened. What the guest says has to come before the exit of QEMU, through which it said it.
    pub fn on(&mut self, event: &Event, now: Instant) -> Option<End> {
        match event {
            Event::Signal(signal) => return Some(End::Interrupted { signal: *signal }),
            Event::Stop => return Some(End::Stopped),
            Event::Shutdown { reset } => self.reset |= *reset,
            Event::Console(line) if self.trouble.is_none() && is_trouble(line) => {
                self.trouble = Some(Trouble {
                    line: without_timestamp(line).to_owned(),
                    test: self.test().map(str::to_owned),
                });
            }
            Event::QemuExited(status) => {
                self.qemu = Some(*status);
                self.settle(now);
                return self.all_heard().then(|| self.conclude());
            }
            Event::DeviceExited(status) => {
                self.device = Some(*status);
                self.device_was_first = self.qemu.is_none();
                self.settle(now);
                return self.all_heard().then(|| self.conclude());
            }
            _ => {}
        }
        if self.said.is_some() {
            // What was under way when the kernel said its last counts, in its turn; what is cut off does not.
            return match event {
                Event::Report(message) => self.report(message, now).map(|_| self.conclude()),
                _ => None,
            };
        }
        match event {
            Event::Report(message) => return self.report(message, now),
            Event::Garbled(why) => {
                return Some(End::Unexpected {
                    reason: format!("the guest reported a line that is no message: {why}"),
                });
            }
            Event::Console(line) if is_panic(line) => self.panicked(line, now),
            Event::RunState(state) if state == "guest-panicked" => {
                self.panicked("the guest told QEMU that it panicked", now);
            }
            Event::RunState(state) if state == "internal-error" => return Some(End::AccelBroken),
            _ => {}
        }
        None
    }

    /// The deadline has come, and nothing happened before.
    pub fn expired(&self) -> End {
        let seconds = |limit: Duration| format!("{} s", limit.as_secs());
        let reason = match &self.phase {
            _ if self.settling => return self.conclude(),
            Phase::Booting => {
                return End::NeverUp {
                    reason: format!("it did not report in within {}", seconds(self.limits.boot)),
                };
            }
            Phase::Between => format!("no test began for {}", seconds(self.limits.between)),
            Phase::Testing(test) => format!(
                "the test did not end within {}, and the guest did not end it",
                seconds(self.limits.of_test(test))
            ),
            Phase::Finished => format!(
                "the tests ended, but the guest did not power off within {}",
                seconds(self.limits.power_off)
            ),
        };
        End::Hang {
            reason,
            test: self.test().map(str::to_owned),
        }
    }

    fn report(&mut self, message: &Message, now: Instant) -> Option<End> {
        let (phase, limit) = match (&self.phase, message) {
            (Phase::Booting, Message::Hello { .. }) => (Phase::Between, self.limits.between),
            (_, Message::Broken { reason }) => {
                self.said.get_or_insert_with(|| End::Broken {
                    reason: reason.clone(),
                });
                self.settle(now);
                return None;
            }
            (Phase::Between, Message::Start { name }) => {
                (Phase::Testing(name.clone()), self.limits.of_test(name))
            }
            (Phase::Testing(test), Message::End { name, .. }) if test == name => {
                (Phase::Between, self.limits.between)
            }
            // It takes no more time for that.
            (
                Phase::Testing(_),
                Message::Hotplug { .. } | Message::Freeze { .. } | Message::TimedOut { .. },
            ) => return None,
            (Phase::Testing(_) | Phase::Between, Message::Late) => return None,
            (Phase::Between, Message::Done) => (Phase::Finished, self.limits.power_off),
            (_, message) => {
                return Some(End::Unexpected {
                    reason: format!("the guest reported {} out of turn", kind(message)),
                });
            }
        };
        self.phase = phase;
        // The device may end before all is read that the guest said: that counts, and gives it no more time.
        if !self.settling {
            self.deadline = now + limit;
        }
        None
    }

    fn panicked(&mut self, line: &str, now: Instant) {
        let test = self.test().map(str::to_owned);
        self.said = Some(End::Panic {
            line: without_timestamp(line).to_owned(),
            test,
        });
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        if !self.settling {
            self.settling = true;
            self.deadline = now + self.limits.settle;
        }
    }

    /// Whether nothing that is still to come can change the conclusion.
    fn all_heard(&self) -> bool {
        match (&self.said, self.qemu, self.device) {
            (Some(_), qemu, _) => qemu.is_some(),
            (None, Some(_), Some(_)) => true,
            // Whoever killed it did not do so for QEMU's sake.
            (None, _, device) => device.is_some_and(|status| status.signal().is_some()),
        }
    }

    /// What it all comes to. QEMU and the device each take the other along when they end, so their order and statuses tell which of them
    /// to blame.
    fn conclude(&self) -> End {
        if let Some(end) = &self.said {
            return end.clone();
        }
        let test = self.test().map(str::to_owned);
        match (self.device, self.qemu) {
            (Some(device), None) => End::DeviceDied {
                status: describe(device),
                test,
            },
            (Some(device), Some(_))
                if device.signal().is_some() || self.device_was_first && !device.success() =>
            {
                End::DeviceDied {
                    status: describe(device),
                    test,
                }
            }
            (_, Some(qemu)) => self.qemu_ended(qemu, test),
            (None, None) => End::Unexpected {
                reason: "the run ended without a cause".to_owned(),
            },
        }
    }

    fn qemu_ended(&self, qemu: ExitStatus, test: Option<String>) -> End {
        match &self.phase {
            Phase::Finished if qemu.success() => End::Done,
            Phase::Booting if qemu.success() && self.reset => {
                let reason = "it reset itself without a panic message: a triple fault, or no kernel that this machine can start";
                End::NeverUp {
                    reason: reason.to_owned(),
                }
            }
            Phase::Booting if qemu.success() => End::NeverUp {
                reason: "it powered off before it reported in".to_owned(),
            },
            Phase::Booting if qemu.code().is_some() => End::NeverUp {
                reason: format!("QEMU refused to start it ({})", describe(qemu)),
            },
            _ if qemu.success() && self.reset => End::Panic {
                line: "the guest reset itself without a panic message: a triple fault?".to_owned(),
                test,
            },
            _ if qemu.success() => End::Unexpected {
                reason: "the guest powered off before the plan was carried out".to_owned(),
            },
            _ => End::QemuDied {
                status: describe(qemu),
                test,
            },
        }
    }
}

/// How the reports begin after which a kernel cannot be trusted. Warnings are left to the tests' aftermath.
const TROUBLES: [&str; 8] = [
    "kernel BUG at ",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "KASAN: ",
    "UBSAN: ",
    "detected stall",
    "blocked for more than",
];

/// Whether a console line begins a report that the kernel is broken.
pub fn is_trouble(line: &str) -> bool {
    TROUBLES.iter().any(|trouble| line.contains(trouble))
}

/// A console line without the kernel's "[    1.234567] " or "[    1.234567][   T61] ".
pub fn without_timestamp(line: &str) -> &str {
    let mut rest = line;
    while let Some((head, tail)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        if !head
            .trim_start()
            .starts_with(|c: char| c.is_ascii_digit() || "TC".contains(c))
        {
            break;
        }
        rest = tail;
    }
    rest.trim_start()
}

/// Whether a console line says that the kernel is done for.
fn is_panic(line: &str) -> bool {
    line.contains("Kernel panic - not syncing")
}

fn kind(message: &Message) -> String {
    match message {
        Message::Ready => "that it is ready".to_owned(),
        Message::Hello { .. } => "Hello".to_owned(),
        Message::Broken { .. } => "Broken".to_owned(),
        Message::Start { name } => format!("the start of {name}"),
        Message::End { name, .. } => format!("the end of {name}"),
        Message::Hotplug { .. } => "a wish for another machine".to_owned(),
        Message::Late => "that a limit is over".to_owned(),
        Message::TimedOut { .. } => "that a test has timed out".to_owned(),
        Message::Freeze { .. } => "a wish to be frozen".to_owned(),
        Message::Done => "Done".to_owned(),
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinbed_abi::report::Outcome;

    fn limits() -> Limits {
        Limits {
            boot: Duration::from_secs(30),
            between: Duration::from_secs(20),
            test: Duration::from_secs(40),
            slow_tests: BTreeMap::from([("slow".to_owned(), Duration::from_secs(80))]),
            power_off: Duration::from_secs(10),
            settle: Duration::from_secs(2),
        }
    }

    fn code(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn signal(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    fn hello() -> Event {
        Event::Report(Message::Hello {
            release: "6.12.1".to_owned(),
            version: "#1".to_owned(),
            regions: Vec::new(),
        })
    }

    fn start(name: &str) -> Event {
        Event::Report(Message::Start {
            name: name.to_owned(),
        })
    }

    fn end(name: &str) -> Event {
        let (notes, dmesg) = (Vec::new(), Vec::new());
        Event::Report(Message::End {
            name: name.to_owned(),
            outcome: Outcome::Pass,
            duration_ms: 1,
            notes,
            dmesg,
            memory: None,
        })
    }

    fn done() -> Event {
        Event::Report(Message::Done)
    }

    fn panic() -> Event {
        Event::Console("[    1.2] Kernel panic - not syncing: Attempted to kill init!".to_owned())
    }

    /// Plays events a tenth of a second apart. `None` at the end stands for silence.
    fn play(events: &[Option<Event>]) -> Option<End> {
        let mut now = Instant::now();
        let mut watch = Watch::new(limits(), now);
        for event in events {
            let end = match event {
                Some(event) => {
                    now += Duration::from_millis(100);
                    assert!(now < watch.deadline(), "{event:?} comes too late");
                    watch.on(event, now)
                }
                None => Some(watch.expired()),
            };
            if end.is_some() {
                return end;
            }
        }
        None
    }

    fn script(events: impl IntoIterator<Item = Event>) -> Vec<Option<Event>> {
        events.into_iter().map(Some).collect()
    }

    fn then_silence(events: impl IntoIterator<Item = Event>) -> Vec<Option<Event>> {
        events.into_iter().map(Some).chain([None]).collect()
    }

    #[test]
    fn a_plan_that_is_carried_out_is_done_when_both_processes_have_ended() {
        let run = [
            hello(),
            start("a"),
            end("a"),
            start("b"),
            end("b"),
            done(),
            Event::Shutdown { reset: false },
        ];
        assert_eq!(play(&script(run.clone())), None);
        for last in [
            [Event::QemuExited(code(0)), Event::DeviceExited(code(0))],
            [Event::DeviceExited(code(0)), Event::QemuExited(code(0))],
        ] {
            assert_eq!(
                play(&script(run.clone().into_iter().chain(last))),
                Some(End::Done)
            );
        }
    }

    #[test]
    fn what_the_guest_said_counts_if_it_is_read_after_the_device_has_ended() {
        let events = script([
            hello(),
            start("a"),
            end("a"),
            Event::DeviceExited(code(0)),
            done(),
            Event::QemuExited(code(0)),
        ]);
        assert_eq!(play(&events), Some(End::Done));
    }

    #[test]
    fn silence_means_what_did_not_happen() {
        assert!(matches!(play(&then_silence([])), Some(End::NeverUp { .. })));
        assert!(matches!(
            play(&then_silence([hello()])),
            Some(End::Hang { test: None, .. })
        ));
        assert!(
            matches!(play(&then_silence([hello(), start("a")])), Some(End::Hang { test: Some(test), .. }) if test == "a")
        );
        assert!(matches!(
            play(&then_silence([hello(), start("a"), end("a")])),
            Some(End::Hang { test: None, .. })
        ));
        assert!(matches!(
            play(&then_silence([hello(), done()])),
            Some(End::Hang { test: None, .. })
        ));
    }

    #[test]
    fn each_report_starts_its_own_clock() {
        let start_of_run = Instant::now();
        let mut watch = Watch::new(limits(), start_of_run);
        let later = start_of_run + Duration::from_secs(7);
        for (event, limit) in [
            (hello(), limits().between),
            (start("a"), limits().test),
            (end("a"), limits().between),
            (start("slow"), limits().slow_tests["slow"]),
            (end("slow"), limits().between),
            (done(), limits().power_off),
        ] {
            watch.on(&event, later);
            assert_eq!(watch.deadline(), later + limit, "{event:?}");
        }
        let deadline = watch.deadline();
        watch.on(
            &Event::Console("still here".to_owned()),
            later + Duration::from_secs(5),
        );
        assert_eq!(watch.deadline(), deadline, "the console is no progress");
    }

    #[test]
    fn a_panic_is_a_panic_whatever_follows() {
        for events in [
            then_silence([panic()]),
            then_silence([hello(), start("a"), panic()]),
            script([
                hello(),
                start("a"),
                panic(),
                Event::Shutdown { reset: true },
                Event::QemuExited(code(0)),
            ]),
            script([
                hello(),
                start("a"),
                panic(),
                Event::DeviceExited(code(0)),
                Event::QemuExited(code(0)),
            ]),
            then_silence([hello(), start("a"), panic(), Event::DeviceExited(signal(9))]),
            // What was on its way, and then what no guest says.
            then_silence([hello(), start("a"), panic(), end("a")]),
            script([hello(), start("a"), panic(), end("a"), start("b"), end("a")]),
            then_silence([
                hello(),
                start("a"),
                Event::RunState("guest-panicked".to_owned()),
            ]),
        ] {
            assert!(
                matches!(play(&events), Some(End::Panic { .. })),
                "{events:?}"
            );
        }
        let Some(End::Panic { line, test }) = play(&then_silence([hello(), start("a"), panic()]))
        else {
            unreachable!()
        };
        assert!(line.contains("Attempted to kill init!"));
        assert_eq!(test.as_deref(), Some("a"));
    }

    #[test]
    fn a_reset_without_words_is_a_panic_once_the_guest_was_up() {
        let last = [
            Event::Shutdown { reset: true },
            Event::QemuExited(code(0)),
            Event::DeviceExited(code(0)),
        ];
        assert!(matches!(
            play(&script(last.clone())),
            Some(End::NeverUp { .. })
        ));
        let up = [hello(), start("a")].into_iter().chain(last);
        assert!(matches!(
            play(&script(up)),
            Some(End::Panic { test: Some(_), .. })
        ));
    }

    #[test]
    fn the_process_that_ended_badly_is_to_blame() {
        let device_died = |end: &Option<End>| matches!(end, Some(End::DeviceDied { test: Some(test), .. }) if test == "a");
        let qemu_died = |end: &Option<End>| matches!(end, Some(End::QemuDied { test: Some(test), .. }) if test == "a");
        let run = |last: &[Event]| {
            play(&then_silence(
                [hello(), start("a")]
                    .into_iter()
                    .chain(last.iter().cloned()),
            ))
        };

        assert!(device_died(&run(&[Event::DeviceExited(signal(9))])));
        assert!(
            device_died(&run(&[Event::DeviceExited(code(0))])),
            "it left while QEMU needs it"
        );
        assert!(
            device_died(&run(&[
                Event::DeviceExited(code(1)),
                Event::QemuExited(signal(6))
            ])),
            "QEMU aborts when the device leaves"
        );
        assert!(
            device_died(&run(&[
                Event::QemuExited(signal(6)),
                Event::DeviceExited(signal(6))
            ])),
            "heard in the wrong order"
        );
        assert!(qemu_died(&run(&[
            Event::QemuExited(signal(9)),
            Event::DeviceExited(code(0))
        ])));
        assert!(
            qemu_died(&run(&[
                Event::DeviceExited(code(0)),
                Event::QemuExited(signal(9))
            ])),
            "heard in the wrong order"
        );
        assert!(
            qemu_died(&run(&[
                Event::QemuExited(signal(9)),
                Event::DeviceExited(code(1))
            ])),
            "the device trips over QEMU's end"
        );
        assert!(
            qemu_died(&run(&[Event::QemuExited(code(1))])),
            "the device hangs"
        );
    }

    #[test]
    fn a_killed_device_is_reported_at_once() {
        assert!(matches!(
            play(&script([hello(), Event::DeviceExited(signal(9))])),
            Some(End::DeviceDied { .. })
        ));
    }

    #[test]
    fn a_guest_that_qemu_refuses_never_came_up() {
        let refused = play(&script([
            Event::QemuExited(code(1)),
            Event::DeviceExited(code(0)),
        ]));
        assert!(matches!(refused, Some(End::NeverUp { .. })), "{refused:?}");
        let killed = play(&script([
            Event::QemuExited(signal(9)),
            Event::DeviceExited(code(0)),
        ]));
        assert!(matches!(killed, Some(End::QemuDied { .. })), "{killed:?}");
        let off = play(&script([
            Event::QemuExited(code(0)),
            Event::DeviceExited(code(0)),
        ]));
        assert!(matches!(off, Some(End::NeverUp { .. })), "{off:?}");
    }

    #[test]
    fn what_the_guest_should_never_say_is_an_error_of_ours() {
        for events in [
            script([start("a")]),
            script([hello(), hello()]),
            script([hello(), end("a")]),
            script([hello(), start("a"), end("b")]),
            script([hello(), start("a"), done()]),
            script([Event::Garbled("expected value".to_owned())]),
            script([
                hello(),
                Event::Shutdown { reset: false },
                Event::QemuExited(code(0)),
                Event::DeviceExited(code(0)),
            ]),
        ] {
            let end = play(&events);
            assert!(
                matches!(end, Some(End::Unexpected { .. })),
                "{events:?} gives {end:?}"
            );
        }
    }

    #[test]
    fn a_guest_that_gives_up_is_heard_out() {
        let broken = || {
            Event::Report(Message::Broken {
                reason: "no /dev/pinbed".to_owned(),
            })
        };
        let end = Some(End::Broken {
            reason: "no /dev/pinbed".to_owned(),
        });
        assert_eq!(
            play(&script([
                hello(),
                broken(),
                Event::Console("why".to_owned())
            ])),
            None
        );
        assert_eq!(play(&then_silence([hello(), broken()])), end);
        let off = [
            hello(),
            broken(),
            Event::Shutdown { reset: false },
            Event::QemuExited(code(0)),
        ];
        assert_eq!(play(&script(off)), end);
        assert_eq!(
            play(&script([broken(), Event::QemuExited(code(0))])),
            end,
            "before Hello"
        );
    }

    #[test]
    fn a_broken_accelerator_and_a_signal_end_the_run_at_once() {
        assert_eq!(
            play(&script([Event::RunState("internal-error".to_owned())])),
            Some(End::AccelBroken)
        );
        assert_eq!(play(&script([Event::RunState("paused".to_owned())])), None);
        assert_eq!(
            play(&script([hello(), panic(), Event::Signal(2)])),
            Some(End::Interrupted { signal: 2 })
        );
    }

    #[test]
    fn the_first_report_of_the_kernel_and_its_test_are_kept() {
        let trouble = |lines: &[(&str, &str)]| {
            let now = Instant::now();
            let mut watch = Watch::new(limits(), now);
            watch.on(&hello(), now);
            for (test, line) in lines {
                watch.on(&start(test), now);
                watch.on(&Event::Console((*line).to_owned()), now);
                watch.on(&end(test), now);
            }
            watch.trouble().cloned()
        };
        let found = trouble(&[
            ("a", "[    4.0] pinbed virtio1: DETACH of buffer 7"),
            ("b", "[    5.123456][   T61] kernel BUG at mm/gup.c:1!"),
            ("c", "[    6.0] BUG: KASAN: use-after-free in f"),
        ]);
        let expected = Trouble {
            line: "kernel BUG at mm/gup.c:1!".to_owned(),
            test: Some("b".to_owned()),
        };
        assert_eq!(found, Some(expected));
        // Tests judge warnings, which a kernel survives.
        let warning = "[    5.1] WARNING: CPU: 0 PID: 61 at mm/gup.c:1 f+0x1";
        assert_eq!(trouble(&[("a", warning)]), None);
        for line in [
            "BUG: unable to handle page fault for address: ffff",
            "Oops: general protection fault, probably for non-canonical address 0x6b",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [pinbed-guest:61]",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "INFO: task pinbed-guest:61 blocked for more than 122 seconds.",
        ] {
            let found = trouble(&[("a", line)]).unwrap();
            assert_eq!(found.line, line);
        }
    }

    #[test]
    fn a_stopped_boot_has_ended_at_once() {
        let events = script([hello(), start("a"), Event::Stop]);
        assert_eq!(play(&events), Some(End::Stopped));
        assert_eq!(End::Stopped.exit(), None);
    }
}
