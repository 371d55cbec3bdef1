// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One run of a guest: its machine is started, watched and torn down, and what it reports is judged and shown.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Result;
use pinbed_abi::report::{Message, TestInfo};

use crate::exit::Exit;
use crate::judge::baseline::Baseline;
use crate::judge::verdict::{Counts, Verdict};
use crate::machine::events::{self, Happening, Interrupts};
use crate::machine::qmp::{Monitor, Said};
use crate::machine::vm::{self, Files, Machine, Vm};
use crate::machine::watch::{End, Event, Limits, Watch};
use crate::provision::{self, interrupt};
use crate::report::Output;
use crate::report::record::{Environment, Evidence, FORMAT, Judged, Record, Times};
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
/// How long a serial break takes to arrive.
const BREAK: Duration = Duration::from_millis(50);

/// A run, its results so far, and who is told of it.
pub struct Session<'a> {
    plan: Vec<TestInfo>,
    baseline: Option<Baseline>,
    environment: Environment,
    output: &'a mut dyn Output,
    began: Instant,
    output_began: bool,
    tests: Vec<Judged>,
    times: Times,
    console: VecDeque<String>,
}

impl<'a> Session<'a> {
    /// A run of these tests, in this order, that has not begun. `began` is when the command did.
    pub fn new(
        plan: Vec<TestInfo>,
        baseline: Option<Baseline>,
        environment: Environment,
        output: &'a mut dyn Output,
        began: Instant,
    ) -> Self {
        let (tests, times, console) = (Vec::new(), Times::default(), VecDeque::new());
        Session {
            plan,
            baseline,
            environment,
            output,
            began,
            output_began: false,
            tests,
            times,
            console,
        }
    }

    /// Ends before it began, as there is no kernel to boot.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn without_kernel(mut self, reason: String) -> Result<(Record, Exit)> {
        self.times.ended = self.elapsed();
        self.finish(End::NotProvided { reason }, Evidence::default())
    }

    /// Runs the tests on a machine; `qemu` is the command without arguments.
    ///
    /// # Errors
    /// When the machine cannot be started, or the output cannot be written. Nothing is left running.
    pub fn run(
        mut self,
        machine: &Machine,
        qemu: Command,
        files: &Files,
        limits: Limits,
    ) -> Result<(Record, Exit)> {
        let (to, happenings) = events::stream();
        let interrupts = Interrupts::listen(&to)?;
        if interrupt::requested() {
            return Err(provision::Error::Interrupted.into());
        }
        let (mut vm, sources) = vm::start(machine, qemu, files)?;
        self.times.qemu_started = self.elapsed();
        // If it fails, QEMU has just died, and we shall hear of that.
        let mut monitor = Monitor::new(sources.qmp.try_clone()?).ok();
        let console = sources
            .console
            .as_ref()
            .map(|(console, _)| console.try_clone())
            .transpose()?;
        events::listen(sources, &to);

        let end = self.watch(limits, &happenings, &mut vm, &mut monitor)?;
        let registers = match (&end, monitor, console) {
            // If one of these fails, QEMU has died meanwhile: there is no more to see.
            (End::Hang { .. }, Some(monitor), Some(console)) => {
                self.examine(monitor, console, &happenings).unwrap_or(None)
            }
            _ => None,
        };
        drop(vm);
        drop(interrupts);
        self.times.ended = self.elapsed();

        let mut evidence = Evidence::default();
        if end != End::Done {
            evidence = Evidence {
                console: self.console.iter().cloned().collect(),
                registers,
                qemu: last_lines(&files.qemu_log()),
                device: last_lines(&files.device_log()),
            };
        }
        self.finish(end, evidence)
    }

    fn watch(
        &mut self,
        limits: Limits,
        happenings: &Receiver<Happening>,
        vm: &mut Vm,
        monitor: &mut Option<Monitor>,
    ) -> Result<End> {
        let mut watch = Watch::new(limits, Instant::now());
        loop {
            let left = watch.deadline().saturating_duration_since(Instant::now());
            let event = match happenings.recv_timeout(left) {
                Ok(Happening::Report(Ok(message))) => Event::Report(message),
                Ok(Happening::Report(Err(why))) => Event::Garbled(why),
                Ok(Happening::Console(line)) => {
                    self.keep(line.clone());
                    self.output.console(&line)?;
                    Event::Console(line)
                }
                Ok(Happening::Qemu(Said::Stopped)) => {
                    // If it fails, QEMU has just died, and we shall hear of that.
                    let _ = monitor.as_mut().map(Monitor::ask_run_state);
                    continue;
                }
                Ok(Happening::Qemu(Said::RunState(state))) => Event::RunState(state),
                Ok(Happening::Qemu(Said::Shutdown { reset })) => Event::Shutdown { reset },
                Ok(Happening::Qemu(Said::Registers(_))) => continue,
                Ok(Happening::QemuEnded) => Event::QemuExited(vm.qemu.reap()?),
                Ok(Happening::DeviceEnded) => Event::DeviceExited(vm.device.reap()?),
                Ok(Happening::Signal(signal)) => Event::Signal(signal),
                Err(RecvTimeoutError::Timeout) => return Ok(watch.expired()),
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(End::Unexpected {
                        reason: "nothing can happen any more".to_owned(),
                    });
                }
            };
            if let Some(end) = watch.on(&event, Instant::now()) {
                return Ok(end);
            }
            if let Event::Report(message) = event
                && let Some(reason) = self.heard(message)?
            {
                return Ok(End::Unexpected { reason });
            }
        }
    }

    fn keep(&mut self, line: String) {
        if self.console.len() == CONSOLE {
            self.console.pop_front();
        }
        self.console.push_back(line);
    }

    /// Looks at a guest that hangs: all CPUs' registers, if QEMU answers; and, if the kernel does, backtraces on the console.
    fn examine(
        &mut self,
        mut monitor: Monitor,
        mut console: UnixStream,
        happenings: &Receiver<Happening>,
    ) -> io::Result<Option<String>> {
        monitor.ask_registers()?;
        let registers = self.listen(REGISTERS, happenings, true);
        for (key, time) in SYSRQ {
            monitor.send_break()?;
            self.listen(BREAK, happenings, false);
            console.write_all(&[key])?;
            self.listen(time, happenings, false);
        }
        Ok(registers)
    }

    /// Keeps what the console shows for a time, or until the registers come.
    fn listen(
        &mut self,
        time: Duration,
        happenings: &Receiver<Happening>,
        for_registers: bool,
    ) -> Option<String> {
        let deadline = Instant::now() + time;
        loop {
            match happenings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Happening::Qemu(Said::Registers(text))) if for_registers => return Some(text),
                Ok(Happening::Console(line)) => self.keep(line),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Takes note of a message that came in turn; says what is wrong if it does not fit the plan.
    fn heard(&mut self, message: Message) -> Result<Option<String>> {
        let elapsed = self.elapsed();
        match message {
            Message::Hello { release, version } => {
                self.times.hello = Some(elapsed);
                self.environment.release = Some(release);
                self.environment.version = Some(version);
                self.begin_output()?;
            }
            Message::Start { name } => self.output.start(&name)?,
            Message::End {
                name,
                outcome,
                duration_ms,
                notes,
                dmesg,
            } => {
                let Some(test) = self
                    .plan
                    .get(self.tests.len())
                    .filter(|test| test.name == name)
                else {
                    return Ok(Some(format!(
                        "the guest ran {name}, which is not what the plan says"
                    )));
                };
                self.times.first_result.get_or_insert(elapsed);
                let verdict = Verdict::of(&name, outcome, self.baseline.as_ref());
                let judged = Judged {
                    test: test.clone(),
                    verdict,
                    duration_ms: Some(duration_ms),
                    notes,
                    dmesg,
                };
                self.output.verdict(&judged)?;
                self.tests.push(judged);
            }
            Message::Done | Message::Broken { .. } => {}
        }
        Ok(None)
    }

    fn begin_output(&mut self) -> Result<()> {
        self.output_began = true;
        Ok(self.output.begin(&self.environment, self.plan.len())?)
    }

    fn finish(mut self, end: End, evidence: Evidence) -> Result<(Record, Exit)> {
        if !self.output_began {
            self.begin_output()?;
        }
        for (at, test) in self.plan.iter().enumerate().skip(self.tests.len()) {
            let reason = match at == self.tests.len() {
                true => "the run ended before its result came",
                false => "the run ended before its turn came",
            };
            self.tests.push(Judged {
                test: test.clone(),
                verdict: Verdict::Missing {
                    reason: reason.to_owned(),
                },
                duration_ms: None,
                notes: Vec::new(),
                dmesg: Vec::new(),
            });
        }
        let counts = Counts::of(self.tests.iter().map(|judged| &judged.verdict));
        let exit = end.exit().unwrap_or(if counts.failed == 0 {
            Exit::Green
        } else {
            Exit::Differs
        });
        let record = Record {
            format: FORMAT,
            pinbed: env!("CARGO_PKG_VERSION"),
            exit: exit as u8,
            end,
            counts,
            environment: self.environment,
            times: self.times,
            tests: self.tests,
            evidence,
        };
        self.output.end(&record)?;
        Ok((record, exit))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn last_lines(log: &Path) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(printable).collect();
    lines[lines.len().saturating_sub(LOG)..].to_vec()
}
