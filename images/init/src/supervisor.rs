// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs tests one after the other, each in a process of its own, and says what each came to.

use crate::aftermath::{self, Witness};
use crate::bounded::Allowance;
use crate::failing::{self, Failing};
use crate::limit::Limit;
use crate::news::News;
use crate::port::Port;
use crate::trace::Trace;
use crate::{Broken, bounded, processes};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, pipe2, read};
use pinbed_abi::report::{Eye, Finding, Holdings, Memory, Message, Outcome, Part, Sighting};
use pinbed_guest::harness::ctx::SIGHTINGS;
use pinbed_guest::harness::progress::{FD, Progress};
use pinbed_guest::module;
use pinbed_guest::observe::kmsg::Log;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The tests' binary.
const GUEST: &CStr = c"/bin/pinbed-guest";
/// Where tests are run.
const DIRECTORY: &str = "/tmp";
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(5);
/// How long it may take to make the system ready for a test, the driver loaded again if need be.
const PREPARE: Duration = Duration::from_secs(30);
/// How long it may take to set a trace up.
const TRACE: Duration = Duration::from_secs(30);
/// How long looking at the system after a test may take, settling included.
const LOOK: Duration = Duration::from_secs(10);

/// Runs all tests, or those up to one that leaves a process which SIGKILL does not end.
pub fn run_all(
    port: &mut Port,
    log: &mut Log,
    names: &[String],
    timeout: Duration,
) -> Result<(), Broken> {
    std::env::set_current_dir(DIRECTORY)
        .map_err(|error| Broken(format!("tests cannot be run in {DIRECTORY}: {error}")))?;
    let trace = bounded::run("setting the trace up", TRACE, Trace::begin)??;
    let witness = bounded::run("looking at the system", LOOK, Witness::new)??;
    let failing = Failing::asked()?;
    let limit = Limit::asked()?;
    let mut news = News::default();
    news.read(log);
    let mut at_load = aftermath::complaints(&news);
    for finding in &mut at_load {
        finding.text.insert_str(
            0,
            "while the kernel booted and the driver was loaded, before this test, ",
        );
    }
    let mut bench = Bench {
        port,
        log,
        timeout,
        trace,
        witness,
        limit,
        blind: false,
        stuck: Vec::new(),
    };
    for name in names {
        // What a process keeps that does not die, later tests would be blamed for: the runner boots a fresh guest for them.
        if !bench.stuck.is_empty() || bench.blind {
            break;
        }
        let before;
        (bench, before) = bench.prepare()?;
        bench.port.send(&Message::Start { name: name.clone() });
        let start = Instant::now();
        let mut case = Case::default();
        case.findings.append(&mut at_load);
        if let Some(failing) = &failing {
            failing.count()?;
        }
        let (mut news, after);
        (bench, (news, after)) = bench.round(name, &mut case, failing.is_some())?;
        if let Some(failing) = &failing {
            let allocated = failing.counted()?;
            for round in 1..=failing.rounds {
                if !case.passes() || allocated == 0 || !bench.stuck.is_empty() {
                    break;
                }
                let more;
                (bench, more) = bench.failing_round(name, failing, round, allocated, &mut case)?;
                news.append(more);
            }
        }
        let outcome = case.outcome();
        let after = after.unwrap_or_else(|| before.clone());
        let memory = case.memory(before, after);
        bench.port.send(&Message::End {
            name: name.clone(),
            outcome,
            duration_ms: start.elapsed().as_millis() as u64,
            notes: case.notes,
            dmesg: news.into_lines(),
            memory: memory.map(Box::new),
        });
    }
    Ok(())
}

/// What tests are run with and judged by.
struct Bench<'a> {
    port: &'a mut Port,
    log: &'a mut Log,
    timeout: Duration,
    trace: Option<Trace>,
    witness: Witness,
    /// Of the memory that a test may use.
    limit: Option<Limit>,
    /// Whether what a test left could not be looked at: the runner boots a fresh guest for the rest.
    blind: bool,
    /// The processes that would not die.
    stuck: Vec<i32>,
}

impl Bench<'_> {
    /// Makes the system ready for a test. Says what is held.
    fn prepare(mut self) -> Result<(Self, Holdings), Broken> {
        let (mut witness, port) = (self.witness, &mut *self.port);
        let before;
        (witness, before) = bounded::run_with(
            "looking at the system before a test",
            PREPARE,
            || port.delay(),
            || witness.before_test().map(|before| (witness, before)),
        )??;
        self.witness = witness;
        Ok((self, before))
    }

    /// Runs a test once, and says what the kernel said and what is held after it.
    fn round(
        mut self,
        name: &str,
        case: &mut Case,
        may_fail: bool,
    ) -> Result<(Self, (News, Option<Holdings>)), Broken> {
        let mut news = News::default();
        if let Some(trace) = &mut self.trace {
            trace.start(name);
        }
        let hear = (&mut *self.log, &mut news);
        let stuck = &mut self.stuck;
        let narrow = Narrow {
            may_fail,
            limit: self.limit.as_ref(),
        };
        run_one(name, self.timeout, case, &narrow, stuck, self.port, hear)?;
        if let Some(trace) = &mut self.trace {
            trace.stop();
        }
        let (mut witness, port) = (self.witness, &mut *self.port);
        let seen;
        (witness, seen) = bounded::run_with(
            "looking at the system after a test",
            LOOK,
            || port.delay(),
            || {
                let seen = witness.after_test();
                (witness, seen)
            },
        )?;
        self.witness = witness;
        let after = match seen {
            Ok((leaks, holders, after)) => {
                case.findings.extend(leaks);
                case.notes.extend(holders);
                Some(after)
            }
            // What the test found is not lost by that.
            Err(why) => {
                case.findings.push(Finding {
                    eye: Eye::Aftermath,
                    text: format!("nobody can see what the test left: {why}"),
                });
                self.blind = true;
                None
            }
        };
        news.read(self.log);
        news.excuse(&case.expected);
        case.findings.extend(aftermath::complaints(&news));
        Ok((self, (news, after)))
    }

    /// Runs a test that passes once more, with an allocation that fails, and adds what counts then.
    fn failing_round(
        self,
        name: &str,
        failing: &Failing,
        round: u32,
        allocated: u32,
        case: &mut Case,
    ) -> Result<(Self, News), Broken> {
        let point = failing.point(name, round, allocated);
        let (bench, _) = self.prepare()?;
        let mut other = Case::default();
        failing.fail(point)?;
        let (bench, (news, _)) = bench.round(name, &mut other, true)?;
        let failed = failing.failed()?;
        let note = match failed {
            true => failing.note(point, allocated, news.lines()),
            false => format!("round {round}, in which no allocation failed"),
        };
        let counts = |finding: &Finding| !failed || failing::counts(&note, finding);
        let findings = std::mem::take(&mut other.findings);
        let (wrong, right): (Vec<_>, Vec<_>) = findings.into_iter().partition(counts);
        if right.iter().any(|finding| finding.eye == Eye::Aftermath) {
            // What no file owns only a reset of the device ends. No other test is to meet it.
            bounded::run("resetting the device", PREPARE, module::restore)??;
        }
        case.findings
            .extend(wrong.into_iter().map(|finding| Finding {
                text: format!("{note}: {}", finding.text),
                ..finding
            }));
        let came = match (right.first(), other.skip) {
            (Some(finding), _) => format!("refused: {}", finding.text),
            (None, Some(reason)) => format!("skipped: {reason}"),
            (None, None) => "no difference".into(),
        };
        case.notes.push(format!("{note}: {came}"));
        Ok((bench, news))
    }
}

/// What is known of a test.
#[derive(Default)]
struct Case {
    findings: Vec<Finding>,
    notes: Vec<String>,
    sightings: Vec<Sighting>,
    skip: Option<String>,
    /// Parts of kernel log lines that the test causes itself.
    expected: Vec<String>,
    /// What it asks the host for, not passed on yet.
    asked: Vec<Message>,
    /// What it asked the host to take away, and what it asked for that is not in the machine otherwise.
    displaced: BTreeSet<Part>,
    finished: bool,
    timeout: Duration,
}

impl Case {
    fn harness(&mut self, text: impl Into<String>) {
        self.findings.push(Finding {
            eye: Eye::Harness,
            text: text.into(),
        });
    }

    fn passes(&self) -> bool {
        self.findings.is_empty() && self.skip.is_none()
    }

    fn outcome(&mut self) -> Outcome {
        let findings = std::mem::take(&mut self.findings);
        match self.skip.take() {
            _ if !findings.is_empty() => Outcome::Fail(findings),
            Some(reason) => Outcome::Skip(reason),
            None => Outcome::Pass,
        }
    }

    /// What the test did with guest memory; nothing if it is not known to have touched any.
    fn memory(&mut self, before: Holdings, after: Holdings) -> Option<Memory> {
        let mut sightings = std::mem::take(&mut self.sightings);
        let more = sightings.len() > SIGHTINGS;
        sightings.truncate(SIGHTINGS);
        (!sightings.is_empty() || before != after).then_some(Memory {
            before,
            sightings,
            more,
            after,
        })
    }

    /// Takes in a line from the test.
    fn hear(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(Progress::Begin { timeout_s }) => {
                self.timeout = self.timeout.max(Duration::from_secs(timeout_s))
            }
            Ok(Progress::Note(note)) => self.notes.push(note),
            Ok(Progress::Finding(finding)) => self.findings.push(finding),
            Ok(Progress::Sighting(sighting)) => self.sightings.push(sighting),
            Ok(Progress::Expected(text)) => self.expected.push(text),
            Ok(Progress::Hotplug { part, plugged }) => {
                match plugged == part.is_in_at_rest() {
                    true => self.displaced.remove(&part),
                    false => self.displaced.insert(part),
                };
                self.asked.push(Message::Hotplug { part, plugged });
            }
            Ok(Progress::Freeze { mailbox }) => self.asked.push(Message::Freeze { mailbox }),
            Ok(Progress::Skip(reason)) => self.skip = Some(reason),
            Ok(Progress::Finished) => self.finished = true,
            Err(error) => self.harness(format!(
                "the test said '{line}', which is not a line of its protocol: {error}"
            )),
        }
    }

    /// Passes on what the test asks of the host.
    fn ask(&mut self, port: &mut Port) {
        for message in self.asked.drain(..) {
            port.send(&message);
        }
    }

    /// Judges how the process ended, which matters if it did not say how the test did.
    fn ended(&mut self, status: WaitStatus) {
        match status {
            WaitStatus::Exited(_, _) if self.finished || self.skip.is_some() => (),
            WaitStatus::Exited(_, code) => self.harness(format!(
                "the test ended without a judgement, with exit code {code}"
            )),
            WaitStatus::Signaled(_, signal, _) => {
                self.harness(format!("the test was ended by {signal}"))
            }
            other => self.harness(format!(
                "the test ended in a way that no process does: {other:?}"
            )),
        }
    }
}

/// A test's lines so far, and the rest that is no whole line yet.
struct Ears {
    pipe: OwnedFd,
    rest: Vec<u8>,
}

impl Ears {
    /// Hears all there is; does not wait.
    fn listen(&mut self, case: &mut Case) {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = read(&self.pipe, &mut bytes) {
            self.rest.extend_from_slice(&bytes[..length]);
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                case.hear(String::from_utf8_lossy(&line).trim_end());
            }
        }
    }
}

fn spawn(name: &str) -> Result<(Pid, Ears), Broken> {
    // The read end must not block PID 1; the write end does no harm if it does not block either.
    let (hear, tell) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&hear, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut files = PosixSpawnFileActions::init()?;
    files.add_dup2(tell.as_raw_fd(), FD)?;
    // Not the standard library's Command, which forks where a session of its own is wanted: copying PID 1's page tables takes
    // milliseconds under emulation.
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::from_bits_retain(libc::POSIX_SPAWN_SETSID.into()),
    )?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Ignored by Rust programs, and inherited if it is.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    let arguments = [GUEST, c"run", &CString::new(name)?];
    let environment: [&CStr; 0] = [];
    let pid =
        posix_spawn(GUEST, &files, &attributes, &arguments, &environment).map_err(|error| {
            Broken(format!(
                "{} cannot be run: {error}",
                GUEST.to_string_lossy()
            ))
        })?;
    Ok((
        pid,
        Ears {
            pipe: hear,
            rest: Vec::new(),
        },
    ))
}

/// What of an environment is a test's process's own.
struct Narrow<'a> {
    /// Its allocations may fail.
    may_fail: bool,
    limit: Option<&'a Limit>,
}

/// Runs one test to its end, or to its limit, and keeps up with the kernel log meanwhile. `stuck` are the processes that would not
/// die.
fn run_one(
    name: &str,
    timeout: Duration,
    case: &mut Case,
    narrow: &Narrow<'_>,
    stuck: &mut Vec<i32>,
    port: &mut Port,
    (log, news): (&mut Log, &mut News),
) -> Result<(), Broken> {
    let signals = child_signals()?;
    case.timeout = timeout;
    let mut allowance = Allowance::of(timeout);
    if narrow.may_fail {
        failing::mark(true)?;
    }
    let (pid, mut ears) = spawn(name)?;
    if narrow.may_fail {
        failing::mark(false)?;
    }
    if let Some(limit) = narrow.limit {
        limit.holds(pid)?;
    }
    let mut status = None;
    while status.is_none() {
        allowance.limit = case.timeout;
        let left = allowance.left();
        if left.is_zero() && !allowance.grows(&mut || port.delay())? {
            case.harness(format!("timed out after {} s", case.timeout.as_secs()));
            port.show(processes::blocked(&fresh(stuck)), news.cpus(log))?;
            break;
        }
        wait(&signals, &[ears.pipe.as_fd(), log.as_fd()], left)?;
        ears.listen(case);
        case.ask(port);
        news.read(log);
        status = processes::reap(pid);
    }
    ears.listen(case);
    if let Some(status) = status {
        case.ended(status);
    }
    clear_away(pid, &signals, case, stuck)?;
    ears.listen(case);
    // The next test is to find the machine whole.
    case.ask(port);
    for part in std::mem::take(&mut case.displaced) {
        let plugged = part.is_in_at_rest();
        port.send(&Message::Hotplug { part, plugged });
    }
    Ok(())
}

/// Kills all that a test left and waits for it to be gone, for a while.
fn clear_away(
    main: Pid,
    signals: &SignalFd,
    case: &mut Case,
    stuck: &mut Vec<i32>,
) -> Result<(), Broken> {
    let start = Instant::now();
    processes::kill_all();
    loop {
        processes::reap(main);
        let left = fresh(stuck);
        if left.is_empty() {
            return Ok(());
        }
        let patience = DEATH.saturating_sub(start.elapsed());
        if patience.is_zero() {
            for note in processes::stuck_notes(&left) {
                case.harness(format!(
                    "SIGKILL does not end it after {} s: {note}",
                    DEATH.as_secs()
                ));
            }
            stuck.extend(left);
            return Ok(());
        }
        // Not all are PID 1's children yet, so their ends are not all signalled to it.
        wait(signals, &[], patience.min(Duration::from_millis(20)))?;
    }
}

/// Processes that are not known to be stuck.
fn fresh(stuck: &[i32]) -> Vec<i32> {
    if processes::are_all_gone() {
        return Vec::new();
    }
    processes::others()
        .into_iter()
        .filter(|pid| !stuck.contains(pid))
        .collect()
}

/// A descriptor that tells of ended children.
pub fn child_signals() -> Result<SignalFd, Broken> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Waits until a child ended, one of the others has something to read, or the time is over.
fn wait(signals: &SignalFd, others: &[BorrowedFd], limit: Duration) -> Result<(), Broken> {
    let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut set = vec![readable(signals.as_fd())];
    set.extend(others.iter().copied().map(readable));
    // Rounded up, lest the last millisecond is spent in a busy loop.
    let limit = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut set, limit) {
        Ok(_) | Err(Errno::EINTR) => (),
        Err(error) => return Err(error.into()),
    }
    while let Ok(Some(_)) = signals.read_signal() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &[&str], status: WaitStatus) -> Outcome {
        let mut case = Case::default();
        for line in lines {
            case.hear(line);
        }
        case.ended(status);
        case.outcome()
    }

    fn exited(code: i32) -> WaitStatus {
        WaitStatus::Exited(Pid::from_raw(9), code)
    }

    const FINISHED: &str = "\"finished\"";
    const FINDING: &str = r#"{"finding":{"eye":"cpu","text":"5, expected 6"}}"#;

    #[test]
    fn the_worst_that_is_known_decides() {
        assert_eq!(judged(&[FINISHED], exited(0)), Outcome::Pass);
        assert_eq!(
            judged(&[r#"{"skip":"no THP"}"#], exited(0)),
            Outcome::Skip("no THP".into())
        );
        let Outcome::Fail(findings) = judged(&[FINDING, r#"{"skip":"no THP"}"#], exited(0)) else {
            panic!("a finding outweighs a skip")
        };
        assert_eq!(
            findings,
            [Finding {
                eye: Eye::Cpu,
                text: "5, expected 6".into()
            }]
        );
    }

    #[test]
    fn a_test_that_says_nothing_fails() {
        for status in [
            exited(0),
            exited(3),
            WaitStatus::Signaled(Pid::from_raw(9), Signal::SIGSEGV, false),
        ] {
            let Outcome::Fail(findings) = judged(&[], status) else {
                panic!("{status:?} passes")
            };
            assert_eq!(findings[0].eye, Eye::Harness);
        }
        assert!(matches!(
            judged(&["garbage", FINISHED], exited(0)),
            Outcome::Fail(_)
        ));
    }

    #[test]
    fn a_test_may_ask_for_more_time_but_not_for_less() {
        let mut case = Case {
            timeout: Duration::from_secs(10),
            ..Case::default()
        };
        case.hear(r#"{"begin":{"timeout_s":0}}"#);
        assert_eq!(case.timeout, Duration::from_secs(10));
        case.hear(r#"{"begin":{"timeout_s":60}}"#);
        assert_eq!(case.timeout, Duration::from_secs(60));
    }
}
