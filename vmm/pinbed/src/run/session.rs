// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The session of a kernel: while tests are left, guests are booted and run them; each result is judged and told.
//!
//! After a bad end the verdict goes to the test that the kernel's first report, or else the end itself, belongs to, and a fresh guest
//! runs what is left. Boots run on threads of their own; all decisions are made here, on one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::Result;
use pinbed_abi::report::{Eye, Finding, Memory, Message, Outcome, TestInfo};

use crate::exit::Exit;
use crate::judge::baseline::Baseline;
use crate::judge::verdict::{Counts, Verdict};
use crate::machine::boot::{self, Ended, Heard};
use crate::machine::events::{self, Happening};
use crate::machine::watch::{End, Evidence, Limits};
use crate::report::event::What;
use crate::report::record::{Boot, Environment, Judged, StartedBy, Summary, Times};
use crate::report::{Error, Reporters};
use crate::run::plan::{Entry, Plan};
use crate::run::setup::Guest;

/// How many boots of a session may end badly before it is given up.
const BAD_BOOTS: usize = 25;
/// How many of them in a row may end without a result.
const FRUITLESS: usize = 2;

/// How a session is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many guests run at the same time.
    pub jobs: usize,
    /// How often a test that differs from the baseline is tried again.
    pub retries: u32,
    /// Whether each test has a boot of its own.
    pub isolate: bool,
    /// Whether the first verdict that differs ends the session.
    pub until_fail: bool,
    /// Whether the tests come in another order than their own, in which those that may leave something come after those that mind.
    pub shuffled: bool,
}

/// Makes guests that run tests with these names; from a saved state, if there is one and that is allowed.
pub type Guests<'a> = &'a dyn Fn(&[String], bool) -> Result<Guest>;

/// A session under way.
pub struct Session<'a> {
    session: usize,
    baseline: Option<Baseline>,
    options: Options,
    reporters: &'a mut Reporters,
    plan: Plan,
    counts: Counts,
    times: Times,
    running: BTreeMap<usize, Running>,
    /// Boots so far, those that ended badly, and those in a row without a result.
    boots: usize,
    bad: usize,
    fruitless: usize,
    /// Whether guests may start from a saved state. Not after one could not.
    may_be_warm: bool,
    /// The worst exit of a boot so far, and the end behind it.
    worst: Option<(Exit, End)>,
    /// Why no more boots are started.
    over: Option<&'static str>,
}

/// A boot that goes on.
struct Running {
    thread: thread::JoinHandle<()>,
    stop: Sender<Happening>,
    guest: Guest,
    /// What it has still to run; the first of them may be under way.
    part: VecDeque<Entry>,
    /// Whether the guest has reported in.
    up: bool,
    started_ms: Option<u64>,
    /// Tests that failed here as the baseline says.
    known: BTreeSet<String>,
    results: usize,
    /// What the guest said that it should not have.
    unexpected: Option<String>,
    /// What the machine looked like when the test that runs timed out.
    hang: Option<Box<Evidence>>,
}

/// What a boot's thread says.
enum Said {
    Heard(Heard),
    Ended(Result<Ended>),
}

impl<'a> Session<'a> {
    /// A session that has not begun, the first being number 0.
    pub fn new(
        session: usize,
        plan: Plan,
        baseline: Option<Baseline>,
        options: Options,
        reporters: &'a mut Reporters,
    ) -> Self {
        Session {
            session,
            baseline,
            options,
            reporters,
            plan,
            counts: Counts::default(),
            times: Times::default(),
            running: BTreeMap::new(),
            boots: 0,
            bad: 0,
            fruitless: 0,
            may_be_warm: true,
            worst: None,
            over: None,
        }
    }

    /// Ends before it began, as there is no kernel to boot. Its `environment` is told first.
    pub fn without_kernel(
        mut self,
        environment: Environment,
        tests: Vec<TestInfo>,
        reason: String,
    ) -> Exit {
        self.begin(environment, tests);
        self.over = Some("there is no kernel to boot");
        self.note_end(Exit::Provisioning, End::NotProvided { reason });
        self.finish()
    }

    fn begin(&mut self, environment: Environment, plan: Vec<TestInfo>) {
        self.reporters.tell(What::SessionStarted {
            session: self.session,
            environment: Box::new(environment),
            plan,
        });
    }

    /// Runs the tests; `tests` are those of one repetition. `guests` makes what is booted, and `limits` says how long it may take.
    ///
    /// # Errors
    /// When a guest cannot be made or started. What was judged until then has been told.
    pub fn run(
        mut self,
        environment: Environment,
        tests: Vec<TestInfo>,
        guests: Guests,
        limits: &Limits,
    ) -> Result<Exit> {
        self.begin(environment, tests);
        let (to, said) = mpsc::channel();
        let result = self.boots(guests, limits, &to, &said);
        if result.is_err() {
            self.stop("the session failed");
            // Their threads end, and take the machines along.
            for (_, running) in std::mem::take(&mut self.running) {
                let _ = running.thread.join();
                self.plan.give_back(running.part);
            }
        }
        let exit = self.finish();
        result.map(|()| exit)
    }

    /// The boot loop.
    fn boots(
        &mut self,
        guests: Guests,
        limits: &Limits,
        to: &Sender<(usize, Said)>,
        said: &Receiver<(usize, Said)>,
    ) -> Result<()> {
        loop {
            let idle = self.options.jobs - self.running.len();
            if self.over.is_none() && idle > 0 {
                // A new repetition begins when all of the last one has ended.
                for part in self.plan.parts(idle, self.options.isolate) {
                    self.start(part, guests, limits, to)?;
                }
            }
            if self.running.is_empty() {
                return Ok(());
            }
            // We hold a sender ourselves.
            let Ok((boot, said)) = said.recv() else {
                return Ok(());
            };
            match said {
                Said::Heard(heard) => self.heard(boot, heard),
                Said::Ended(ended) => self.ended(boot, ended)?,
            }
            if let Some(Error::ClosedPipe) = self.reporters.failure()
                && self.over.is_none()
            {
                self.stop("the reader of standard output has gone");
                self.note_end(Exit::ClosedPipe, End::Stopped);
            }
        }
    }

    fn start(
        &mut self,
        part: VecDeque<Entry>,
        guests: Guests,
        limits: &Limits,
        to: &Sender<(usize, Said)>,
    ) -> Result<()> {
        let names: Vec<_> = part.iter().map(|entry| entry.test.name.clone()).collect();
        let guest = match guests(&names, self.may_be_warm) {
            Ok(guest) => guest,
            Err(error) => {
                self.plan.give_back(part);
                return Err(error);
            }
        };
        let boot = self.boots;
        self.boots += 1;
        self.reporters.tell(What::BootStarted {
            session: self.session,
            boot,
            tests: names.len(),
        });
        let now = self.reporters.elapsed_ms();
        self.times.qemu_started.get_or_insert(now);
        let channel = events::stream();
        let stop = channel.0.clone();
        let (machine, qemu, files) = guest.parts();
        let (limits, to) = (limits.clone(), to.clone());
        let thread = thread::spawn(move || {
            // The session may have failed, and nobody listens any more.
            let mut hear = |heard| drop(to.send((boot, Said::Heard(heard))));
            let ended = boot::run(&machine, qemu, &files, limits, channel, &mut hear);
            let _ = to.send((boot, Said::Ended(ended)));
        });
        let running = Running {
            thread,
            stop,
            guest,
            part,
            up: false,
            started_ms: None,
            known: BTreeSet::new(),
            results: 0,
            unexpected: None,
            hang: None,
        };
        self.running.insert(boot, running);
        Ok(())
    }

    /// Ends all boots, and starts no more.
    fn stop(&mut self, why: &'static str) {
        self.over.get_or_insert(why);
        for running in self.running.values() {
            // If nobody listens any more, the boot is over.
            let _ = running.stop.send(Happening::Stop);
        }
    }

    fn heard(&mut self, boot: usize, heard: Heard) {
        let session = self.session;
        let message = match heard {
            Heard::Console(line) => {
                self.reporters.tell(What::Console {
                    session,
                    boot,
                    line,
                });
                return;
            }
            Heard::TimedOut(seen) => {
                if let Some(running) = self.running.get_mut(&boot) {
                    running.hang = Some(Box::new(seen));
                }
                return;
            }
            Heard::Report(message) => message,
        };
        let now = self.reporters.elapsed_ms();
        let Some(running) = self.running.get_mut(&boot) else {
            return;
        };
        match message {
            Message::Hello {
                release,
                version,
                regions,
            } => {
                running.up = true;
                self.times.hello.get_or_insert(now);
                self.reporters.tell(What::GuestUp {
                    session,
                    boot,
                    release,
                    version,
                    regions,
                    start: running.guest.start(),
                });
            }
            Message::Start { name } => {
                if running
                    .part
                    .front()
                    .is_none_or(|next| next.test.name != name)
                {
                    running.unexpected = Some(format!(
                        "the guest ran {name}, which is not what the plan says"
                    ));
                    // As above.
                    let _ = running.stop.send(Happening::Stop);
                    return;
                }
                running.started_ms = Some(now);
                self.reporters.tell(What::TestStarted {
                    session,
                    boot,
                    name,
                });
            }
            Message::End {
                outcome,
                duration_ms,
                notes,
                dmesg,
                memory,
                ..
            } if running.unexpected.is_none() => {
                // Its name was checked when it began; that it ends what began is the watch's to see.
                let (Some(entry), started_ms) =
                    (running.part.pop_front(), running.started_ms.take())
                else {
                    return;
                };
                running.results += 1;
                let hang = running.hang.take();
                let name = entry.test.name.clone();
                let leaves = leaves_something(&outcome);
                let known = self.judge(
                    entry,
                    outcome,
                    Ran {
                        boot,
                        started_ms,
                        duration_ms: Some(duration_ms),
                        notes,
                        dmesg,
                        memory,
                        hang,
                    },
                );
                let Some(running) = self.running.get_mut(&boot) else {
                    return;
                };
                if known {
                    running.known.insert(name);
                }
                if leaves && self.options.shuffled && !running.part.is_empty() {
                    // Verdicts do not depend on what ran before: a fresh guest goes on.
                    let _ = running.stop.send(Happening::Stop);
                }
            }
            Message::Ready
            | Message::Hotplug { .. }
            | Message::Late
            | Message::TimedOut { .. }
            | Message::Freeze { .. }
            | Message::End { .. }
            | Message::Done
            | Message::Broken { .. } => {}
        }
    }

    /// Judges an outcome and tells of it. Says whether it is a failure that the baseline knows.
    fn judge(&mut self, entry: Entry, outcome: Outcome, ran: Ran) -> bool {
        let now = self.reporters.elapsed_ms();
        self.times.first_result.get_or_insert(now);
        let verdict = Verdict::of(&entry.test.name, outcome, self.baseline.as_ref());
        let differs = verdict.differs();
        // Verdicts do not depend on what ran before: a premise that did not hold gets another boot's memory, once.
        let attempts = self.options.retries.max(verdict.shows_nothing().into());
        let retried = differs && entry.attempt <= attempts;
        let known = matches!(verdict, Verdict::Xfail { .. });
        if retried {
            self.plan.retry(entry.clone());
        } else {
            self.counts.add(&verdict, entry.attempt > 1);
        }
        self.reporters.tell(What::TestFinished {
            session: self.session,
            judged: Box::new(Judged {
                test: entry.test,
                verdict,
                repetition: entry.repetition,
                attempt: entry.attempt,
                retried,
                boot: Some(ran.boot),
                started_ms: ran.started_ms,
                duration_ms: ran.duration_ms,
                notes: ran.notes,
                dmesg: ran.dmesg,
                memory: ran.memory,
                hang: ran.hang,
            }),
        });
        if differs && self.options.until_fail {
            self.stop("the first difference ends the session");
        }
        known
    }

    fn ended(&mut self, boot: usize, ended: Result<Ended>) -> Result<()> {
        let Some(mut running) = self.running.remove(&boot) else {
            return Ok(());
        };
        // It has said its last word.
        let _ = running.thread.join();
        if running.guest.start() == StartedBy::Warm && !running.up && !was_stopped(&ended) {
            let why = match &ended {
                Ok(ended) => in_words(&ended.end, None),
                Err(error) => format!("{error:#}"),
            };
            say!("pinbed: the saved start is of no use ({why}); booting");
            running.guest.clear_start();
            self.may_be_warm = false;
            self.plan.give_back(running.part);
            self.reporters.tell(What::BootFinished {
                session: self.session,
                ended: Box::new(Boot::new(boot, End::Stopped)),
            });
            return Ok(());
        }
        let mut ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.plan.give_back(running.part);
                return Err(error);
            }
        };
        running.guest.over();
        if let (End::Stopped, Some(reason)) = (&ended.end, running.unexpected.take()) {
            ended.end = End::Unexpected { reason };
        }
        let mut record = Boot {
            evidence: ended.evidence,
            ..Boot::new(boot, ended.end.clone())
        };
        match &ended.end {
            End::Done | End::Stopped => {}
            End::Interrupted { .. } => {
                self.stop("interrupted");
                self.note_end(Exit::Interrupted, ended.end.clone());
            }
            end => {
                record.headline = ended.trouble.as_ref().map(|trouble| trouble.line.clone());
                let before = ended
                    .trouble
                    .as_ref()
                    .filter(|trouble| trouble.test != ended.test);
                if ended.test.is_some()
                    && let Some(mut entry) = running.part.pop_front()
                {
                    match before {
                        // The kernel was broken before this test began.
                        Some(trouble) if !entry.innocent => {
                            record.culprit.clone_from(&trouble.test);
                            record.known = trouble
                                .test
                                .as_ref()
                                .is_some_and(|test| running.known.contains(test));
                            entry.innocent = true;
                            running.part.push_front(entry);
                        }
                        _ => {
                            record.culprit = Some(entry.test.name.clone());
                            let ran = Ran {
                                boot,
                                started_ms: running.started_ms,
                                duration_ms: None,
                                notes: Vec::new(),
                                dmesg: std::mem::take(&mut ended.said),
                                memory: None,
                                hang: running.hang.take(),
                            };
                            let finding = Finding {
                                eye: Eye::Harness,
                                text: in_words(end, record.headline.as_deref()),
                            };
                            record.known = self.judge(entry, Outcome::Fail(vec![finding]), ran);
                        }
                    }
                }
                let fruitful = running.results > 0 || record.culprit.is_some();
                self.fruitless = if fruitful { 0 } else { self.fruitless + 1 };
                self.bad += usize::from(!record.known);
                if !record.known {
                    self.note_end(end.exit().unwrap_or(Exit::Internal), end.clone());
                }
                if self.times.first_result.is_none() || self.fruitless >= FRUITLESS {
                    self.stop("the guest did not get to run it");
                } else if self.bad >= BAD_BOOTS {
                    self.stop("too many guests ended badly");
                }
            }
        }
        self.plan.give_back(running.part);
        self.reporters.tell(What::BootFinished {
            session: self.session,
            ended: Box::new(record),
        });
        Ok(())
    }

    fn note_end(&mut self, exit: Exit, end: End) {
        if self.worst.as_ref().is_none_or(|(worst, _)| *worst < exit) {
            self.worst = Some((exit, end));
        }
    }

    /// Tells what did not run, and what the session comes to.
    fn finish(mut self) -> Exit {
        let why = self
            .over
            .unwrap_or("the session ended before its turn came");
        let left = self.plan.abandon();
        // After the first difference there is nothing more that should have run.
        let left = if self.options.until_fail && self.counts.failed > 0 {
            Vec::new()
        } else {
            left
        };
        for entry in left {
            let verdict = Verdict::NotRun {
                reason: why.to_owned(),
            };
            self.counts.add(&verdict, false);
            self.reporters.tell(What::TestFinished {
                session: self.session,
                judged: Box::new(Judged {
                    test: entry.test,
                    verdict,
                    repetition: entry.repetition,
                    attempt: entry.attempt,
                    retried: false,
                    boot: None,
                    started_ms: None,
                    duration_ms: None,
                    notes: Vec::new(),
                    dmesg: Vec::new(),
                    memory: None,
                    hang: None,
                }),
            });
        }
        let (exit, end) = match self.worst.take() {
            Some((exit, end)) => (exit, end),
            None if self.counts.failed == 0 && self.counts.not_run == 0 => (Exit::Green, End::Done),
            None => (Exit::Differs, End::Done),
        };
        self.times.ended = self.reporters.elapsed_ms();
        self.reporters.tell(What::SessionFinished {
            session: self.session,
            summary: Summary {
                exit: exit as u8,
                end,
                counts: self.counts,
                times: self.times,
            },
        });
        exit
    }
}

/// A test that ran, perhaps not to its end.
struct Ran {
    boot: usize,
    started_ms: Option<u64>,
    duration_ms: Option<u64>,
    notes: Vec<String>,
    dmesg: Vec<String>,
    memory: Option<Box<Memory>>,
    hang: Option<Box<Evidence>>,
}

/// Whether something of a test is still in the guest after it: memory, a reference, or a kernel that has complained.
fn leaves_something(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Fail(findings) => findings.iter().any(|it| it.eye == Eye::Aftermath),
        _ => false,
    }
}

/// Whether a boot ended because we wanted it to.
fn was_stopped(ended: &Result<Ended>) -> bool {
    ended
        .as_ref()
        .is_ok_and(|ended| matches!(ended.end, End::Stopped | End::Interrupted { .. }))
}

/// What a bad end is to the test that it came in.
fn in_words(end: &End, headline: Option<&str>) -> String {
    let text = match end {
        End::Panic { line, .. } => format!("the guest kernel panicked: {line}"),
        End::Hang { reason, .. } => format!("the guest hangs: {reason}"),
        End::DeviceDied { status, .. } => format!("the device process died: {status}"),
        End::QemuDied { status, .. } => format!("QEMU died: {status}"),
        End::Broken { reason }
        | End::NeverUp { reason }
        | End::NotProvided { reason }
        | End::Unexpected { reason } => reason.clone(),
        End::AccelBroken => "the accelerator stopped the guest with an internal error".to_owned(),
        End::Done | End::Stopped | End::Interrupted { .. } => "the run ended".to_owned(),
    };
    match headline {
        Some(headline) if !text.contains(headline) => format!("{headline}; then {text}"),
        _ => text,
    }
}
