// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Compares all guest memory while the guest stands still, so that what differs was written by the device: the runner's side of
//! [`pinbed_abi::frozen`].

use std::io;
use std::mem::offset_of;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pinbed_abi::frozen::{
    Mailbox, PHASE_DONE, PHASE_FAILED, PHASE_HELD, PHASE_READY, RANGES, Range,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::machine::memory::Memory;
use crate::machine::threads::{self, Thread};

/// How long each step may take: a process to stop, the guest to fill its rings, the device to be at rest.
const LIMIT: Duration = Duration::from_secs(20);
/// How often to look.
const LOOK: Duration = Duration::from_millis(2);
/// A device that is not at rest after so long on CPUs has work without end.
const ENDLESS: Duration = Duration::from_millis(300);
/// A device is at rest when it was found asleep this often, and used no CPU in between.
const RESTS: u32 = 10;

/// Serves one [`Message::Freeze`], and returns when both processes run again.
///
/// [`Message::Freeze`]: pinbed_abi::report::Message::Freeze
pub fn compare(qemu: Pid, device: Pid, memory: &Memory, mailbox: u64) {
    let end = match try_compare(qemu, device, memory, mailbox) {
        Ok(()) => PHASE_DONE,
        Err(error) => {
            log::warn!("guest memory was not compared: {error}");
            PHASE_FAILED
        }
    };
    // A guest that names no memory gets no answer.
    let _ = write_phase(memory, mailbox, end);
    // An error is the end of one of them, of which we shall hear.
    let _ = kill(device, Signal::SIGCONT);
    let _ = kill(qemu, Signal::SIGCONT);
}

fn try_compare(qemu: Pid, device: Pid, memory: &Memory, mailbox: u64) -> io::Result<()> {
    read(memory, mailbox)?;
    stop(device)?;
    write_phase(memory, mailbox, PHASE_HELD)?;
    until("the guest is ready", || {
        Ok(read(memory, mailbox)?.phase.get() == PHASE_READY)
    })?;
    stop(qemu)?;
    let asked = read(memory, mailbox)?;
    let before = memory.snapshot()?;
    kill(device, Signal::SIGCONT)?;
    rest(device)?;
    // One with work without end, too.
    stop(device)?;
    let after = memory.snapshot()?;

    let count = usize::try_from(asked.allowed_count.get()).unwrap_or(RANGES);
    let allowed = asked.allowed.iter().take(count);
    let mut allowed: Vec<_> = allowed
        .map(|range| {
            let start = range.address.get();
            start..start.saturating_add(range.length.get())
        })
        .collect();
    allowed.sort_by_key(|range| range.start);
    let mut answer = asked;
    let (mut inside, mut outside, mut listed) = (0, 0, 0);
    before.compare(&after, |mut differs| {
        while !differs.is_empty() {
            let covers = allowed.iter().find(|it| it.contains(&differs.start));
            let next = allowed
                .iter()
                .find(|it| it.start > differs.start && !it.is_empty());
            // Up to here all is of one kind.
            let end = match (covers, next) {
                (Some(covers), _) => covers.end,
                (None, Some(next)) => next.start,
                (None, None) => differs.end,
            };
            let part = differs.start..end.min(differs.end);
            let length = part.end - part.start;
            match covers {
                Some(_) => inside += length,
                None => {
                    outside += length;
                    if let Some(found) = answer.found.get_mut(listed) {
                        *found = Range {
                            address: part.start.into(),
                            length: length.into(),
                        };
                        listed += 1;
                    }
                }
            }
            differs.start = part.end;
        }
    });
    answer.inside = inside.into();
    answer.outside = outside.into();
    answer.compared = before.length.into();
    memory.write(mailbox, answer.as_bytes())
}

fn read(memory: &Memory, mailbox: u64) -> io::Result<Mailbox> {
    let mut bytes = [0; size_of::<Mailbox>()];
    memory.read(mailbox, &mut bytes)?;
    Ok(Mailbox::read_from_bytes(&bytes).unwrap_or_else(|_| Mailbox::new_zeroed()))
}

fn write_phase(memory: &Memory, mailbox: u64, phase: u32) -> io::Result<()> {
    let at = mailbox.saturating_add(offset_of!(Mailbox, phase) as u64);
    memory.write(at, &phase.to_le_bytes())
}

/// Stops a process: when this returns, none of its threads runs.
fn stop(pid: Pid) -> io::Result<()> {
    kill(pid, Signal::SIGSTOP)?;
    until("a process stops", || {
        Ok(threads(pid)?.iter().all(|thread| thread.state == b'T'))
    })
}

/// Returns when a process has nothing to do: all its threads sleep, and go on sleeping. Or when it has done enough.
fn rest(pid: Pid) -> io::Result<()> {
    let ran = |threads: &[Thread]| threads.iter().map(|thread| thread.ran).sum::<Duration>();
    let begin = ran(&threads(pid)?);
    let (mut spent, mut rests) = (Duration::ZERO, 0);
    until("the device is at rest", || {
        let threads = threads(pid)?;
        let now = ran(&threads);
        let asleep = threads.iter().all(|thread| thread.state == b'S');
        rests = if asleep && now == spent { rests + 1 } else { 0 };
        spent = now;
        Ok(rests >= RESTS || now > begin + ENDLESS)
    })
}

/// The threads of a process that is there.
fn threads(pid: Pid) -> io::Result<Vec<Thread>> {
    let all = threads::threads(pid)?;
    match all.is_empty() {
        true => Err(io::Error::other("the process has gone")),
        false => Ok(all),
    }
}

fn until(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > LIMIT {
            let limit = LIMIT.as_secs();
            return Err(io::Error::other(format!("not within {limit} s: {what}")));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
