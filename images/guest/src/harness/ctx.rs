// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What every test is given: a place for findings and notes, and random data of its own.

use crate::harness::error::Error;
use crate::harness::kconfig;
use crate::harness::progress::{FD, Progress};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use pinbed_abi::report::{Eye, Finding, Frames, Moment, Sighting};
use std::fmt::Debug;
use std::os::fd::BorrowedFd;

/// How the driver refuses less memory than a buffer or a registration has, which the kernel itself should have refused (`PINBED_ESHORT`).
const DRIVER_REFUSES: Errno = Errno::EBADR;

/// How many sightings of buffers a test reports; what a long test does comes again and again.
pub const SIGHTINGS: usize = 40;
/// How many runs of page frames of one sighting: a buffer of more is scattered, which so many show as well.
const RUNS: usize = 64;

/// Why a test goes no further. Findings that leave the test something to look at go to [`Ctx::check`] instead.
#[derive(Debug)]
pub enum Stop {
    /// The guest lacks something; the reason says what and how to get it.
    Skip(String),
    /// Something went wrong that the rest of the test builds on.
    Finding(Finding),
}

/// What a test returns. `Ok` means that it looked at all it wanted to see, not that it liked it.
pub type TestResult<T = ()> = Result<T, Stop>;

impl Stop {
    /// A finding of this eye.
    pub fn finding(eye: Eye, text: impl Into<String>) -> Self {
        Self::Finding(Finding {
            eye,
            text: text.into(),
        })
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Absent {
                ref what,
                ref remedy,
            } => Self::Skip(match kconfig::reason(remedy) {
                Some(reason) => format!("{what} is not there: {reason}"),
                None => error.to_string(),
            }),
            other => Self::finding(Eye::Harness, other.to_string()),
        }
    }
}

impl From<pinbed_raw::Error> for Stop {
    fn from(error: pinbed_raw::Error) -> Self {
        match error {
            pinbed_raw::Error::Absent { what, remedy } => Error::Absent { what, remedy }.into(),
            hang @ pinbed_raw::Error::Timeout { .. } => {
                Self::finding(Eye::Device, hang.to_string())
            }
            other => Self::finding(Eye::Harness, other.to_string()),
        }
    }
}

/// The premise of a test: without it the test would show nothing, and the runner tries it again.
pub fn premise(good: bool, text: impl FnOnce() -> String) -> TestResult {
    match good {
        true => Ok(()),
        false => Err(Stop::finding(Eye::Premise, text())),
    }
}

/// A running test.
pub struct Ctx {
    seed: u64,
    /// Whether [`FD`] is a supervisor's pipe; else a person reads stdout.
    supervised: bool,
    findings: Vec<Finding>,
    sightings: Vec<Sighting>,
    /// What an eye does not see.
    blind: Vec<String>,
}

impl Ctx {
    /// The context of the test of this name.
    pub fn new(name: &str) -> Self {
        // FNV-1a: another name, other data.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            seed,
            supervised: is_supervised(),
            findings: Vec::new(),
            sightings: Vec::new(),
            blind: Vec::new(),
        }
    }

    /// Findings so far.
    pub fn findings(&self) -> usize {
        self.findings.len()
    }

    /// Tells the supervisor, or the person at the terminal.
    pub fn tell(&self, progress: &Progress) {
        tell(self.supervised, progress);
    }

    /// Keeps a fact.
    pub fn note(&self, text: impl Into<String>) {
        self.tell(&Progress::Note(text.into()));
    }

    /// Keeps it, once, that the placement eye does not see something.
    pub fn blind(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.blind.contains(&what) {
            self.note(format!("the placement eye is blind: {what}"));
            self.blind.push(what);
        }
    }

    /// Says that the test makes the kernel log lines with this text, which then are no complaints. To be called before.
    pub fn expect_log(&self, text: &str) {
        self.tell(&Progress::Expected(text.into()));
    }

    /// Whether the next sighting is one to report, so that nobody needs to look for others.
    pub fn sees_more(&self) -> bool {
        self.sightings.len() <= SIGHTINGS
    }

    /// Reports where a buffer is, unless it was last seen there.
    pub fn sight(&mut self, buffer: &str, moment: Moment, frames: impl IntoIterator<Item = u64>) {
        if !self.sees_more() {
            return;
        }
        let mut frames: Frames = frames.into_iter().collect();
        frames.0.truncate(RUNS);
        let sighting = Sighting {
            buffer: buffer.into(),
            moment,
            frames,
        };
        if !self.sightings.contains(&sighting) {
            self.tell(&Progress::Sighting(sighting.clone()));
            self.sightings.push(sighting);
        }
    }

    /// Reports that the device has moved bytes of a buffer, where it was last seen to hold it.
    pub fn sight_dma(&mut self, buffer: &str) {
        let held = |seen: &&Sighting| seen.buffer == buffer && seen.moment == Moment::Held;
        if let Some(seen) = self.sightings.iter().rev().find(held) {
            let frames = seen.frames.clone();
            self.sight(buffer, Moment::Dma, frames.0.into_iter().flatten());
        }
    }

    /// Reports what a correct kernel does not do; the test goes on. What is found again, as by an eye that looks before and after
    /// a job, is not reported again.
    pub fn find(&mut self, eye: Eye, text: impl Into<String>) {
        let text = text.into();
        let finding = Finding { eye, text };
        if !self.findings.contains(&finding) {
            self.tell(&Progress::Finding(finding.clone()));
            self.findings.push(finding);
        }
    }

    /// Finds fault unless `good`. Returns `good`.
    pub fn check(&mut self, eye: Eye, good: bool, text: impl FnOnce() -> String) -> bool {
        if !good {
            self.find(eye, text());
        }
        good
    }

    /// Finds fault unless the two are equal.
    pub fn equal<T: PartialEq + Debug>(
        &mut self,
        eye: Eye,
        what: &str,
        actual: T,
        expected: T,
    ) -> bool {
        let good = actual == expected;
        self.check(eye, good, || {
            format!("{what}: {actual:?}, expected {expected:?}")
        })
    }

    /// Finds fault unless the bytes are equal, and says where they first differ.
    pub fn same_bytes(&mut self, eye: Eye, what: &str, actual: &[u8], expected: &[u8]) -> bool {
        match difference(actual, expected) {
            None => true,
            Some(text) => {
                self.find(eye, format!("{what}: {text}"));
                false
            }
        }
    }

    /// Finds fault unless a system call was refused with one of these errors. What it returned goes to the notes.
    pub fn refused<T: Debug>(
        &mut self,
        what: &str,
        result: Result<T, Errno>,
        accepted: &[Errno],
    ) -> bool {
        match result {
            Err(errno) if accepted.contains(&errno) => {
                self.note(format!("{what}: refused with {errno:?}"));
                true
            }
            Err(DRIVER_REFUSES) => {
                self.find(
                    Eye::Cpu,
                    format!(
                        "{what}: accepted by the kernel, and refused by the driver, which is given less memory than that; expected {accepted:?}"
                    ),
                );
                false
            }
            Err(errno) => {
                self.find(
                    Eye::Cpu,
                    format!("{what}: refused with {errno:?}, expected {accepted:?}"),
                );
                false
            }
            Ok(value) => {
                self.find(
                    Eye::Cpu,
                    format!("{what}: accepted ({value:?}), expected {accepted:?}"),
                );
                false
            }
        }
    }

    /// Pseudo-random bytes: the same at each run of this test, others at each call.
    pub fn random(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.next_multiple_of(8)];
        for chunk in bytes.as_chunks_mut::<8>().0 {
            // SplitMix64.
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.seed;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            *chunk = (z ^ z >> 31).to_le_bytes();
        }
        bytes.truncate(length);
        bytes
    }
}

/// As [`Ctx::tell`], for a place that has no context, such as the panic hook.
pub fn tell_from_anywhere(progress: &Progress) {
    tell(is_supervised(), progress);
}

/// Whether [`FD`] is a supervisor's pipe; else a person runs the test by hand.
pub fn is_supervised() -> bool {
    // SAFETY: the descriptor is only borrowed for a question whether it is open at all.
    let fd = unsafe { BorrowedFd::borrow_raw(FD) };
    fcntl(fd, FcntlArg::F_GETFD).is_ok()
}

/// Whether somebody hears what a test asks of the host.
pub fn needs_host() -> Result<(), Error> {
    match is_supervised() {
        true => Ok(()),
        false => Err(Error::Absent {
            what: "a host that takes parts of the machine away".into(),
            remedy: "run the test with `pinbed run`".into(),
        }),
    }
}

fn tell(supervised: bool, progress: &Progress) {
    if !supervised {
        println!("{progress}");
        return;
    }
    let Ok(mut line) = serde_json::to_vec(progress) else {
        return;
    };
    line.push(b'\n');
    // SAFETY: the descriptor is open (checked by the caller) and stays so: nothing in this program closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(FD) };
    // One write, so that lines of forked children do not mix. If nobody listens any more, nobody can be told so.
    let _ = nix::unistd::write(fd, &line);
}

/// CRC32C as the device computes it.
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Whether a finding's text says that bytes are not those that they should be, as the CPU or the device sees them.
pub fn is_about_bytes(text: &str) -> bool {
    text.contains(" bytes differ (") || text.contains("CRC32C")
}

fn difference(actual: &[u8], expected: &[u8]) -> Option<String> {
    if actual.len() != expected.len() {
        return Some(format!(
            "{} bytes, expected {}",
            actual.len(),
            expected.len()
        ));
    }
    let first = actual.iter().zip(expected).position(|(a, b)| a != b)?;
    let count = actual.iter().zip(expected).filter(|(a, b)| a != b).count();
    let zero = actual
        .iter()
        .zip(expected)
        .filter(|(a, b)| a != b && **a == 0)
        .count();
    Some(format!(
        "{count} of {} bytes differ ({zero} of them are zero), the first at {first}: {:#04x}, expected {:#04x}",
        actual.len(),
        actual[first],
        expected[first]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_differs_between_tests_and_calls_but_not_between_runs() {
        let mut a = Ctx::new("a");
        let first = a.random(13);
        assert_eq!(first.len(), 13);
        assert_ne!(first, a.random(13));
        assert_eq!(first, Ctx::new("a").random(13));
        assert_ne!(first, Ctx::new("b").random(13));
    }

    #[test]
    fn a_difference_says_where_and_how_much() {
        assert_eq!(difference(b"abcd", b"abcd"), None);
        let text = difference(b"ab\0x", b"abcd").unwrap();
        assert!(
            text.starts_with("2 of 4 bytes differ (1 of them are zero), the first at 2: 0x00"),
            "{text}"
        );
        assert!(is_about_bytes(&text));
        assert_eq!(difference(b"a", b"ab").unwrap(), "1 bytes, expected 2");
    }

    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }
}
