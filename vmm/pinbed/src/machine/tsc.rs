// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The frequency of the host's time stamp counter, which under TCG is the guest's: QEMU's cpu_get_host_ticks() reads the host's.
//!
//! A guest measures it against the PIT or the PM timer of QEMU, and on a busy host gets it wrong, by a factor of ten where it was seen: all
//! clocks of the guest then run ten times too fast, and tests time out. So the guest is told.

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The least time between two readings that a frequency is made of. A reading is off by some 50 ns, which makes 5 parts in a million;
/// getting ready to boot takes longer than this.
const SPAN: Duration = Duration::from_millis(20);
/// How often a reading is tried; the one that nothing came into the way of counts.
const TRIES: usize = 8;

/// The first reading.
static FIRST: OnceLock<Reading> = OnceLock::new();

/// The counter at a moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    time: Duration,
}

impl Reading {
    fn now() -> nix::Result<Self> {
        let mut best = None;
        for _ in 0..TRIES {
            // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
            let before = unsafe { _rdtsc() };
            // Not adjusted to an outside clock while it is measured.
            let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_RAW)?);
            // SAFETY: as above.
            let width = unsafe { _rdtsc() }.saturating_sub(before);
            let ticks = before + width / 2;
            if best.is_none_or(|(least, _)| width < least) {
                best = Some((width, Reading { ticks, time }));
            }
        }
        // There are tries.
        best.map(|(_, reading)| reading)
            .ok_or(nix::errno::Errno::EAGAIN)
    }

    /// Ticks in a millisecond since an earlier reading; none if no time has passed.
    fn khz_since(self, first: Self) -> Option<u64> {
        let ticks = u128::from(self.ticks.checked_sub(first.ticks)?);
        let time = self.time.checked_sub(first.time)?.as_nanos();
        u64::try_from((ticks * 1_000_000).checked_div(time)?).ok()
    }
}

/// Takes the first reading, so that [`khz`] need not wait later.
pub fn begin() {
    // Where this fails, so does the next, which says that the frequency is not known.
    if let Ok(reading) = Reading::now() {
        FIRST.get_or_init(|| reading);
    }
}

/// The frequency in kHz, if it can be had.
pub fn khz() -> Option<u64> {
    begin();
    let first = *FIRST.get()?;
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?);
    thread::sleep(SPAN.saturating_sub(now.saturating_sub(first.time)));
    Reading::now().ok()?.khz_since(first).filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_agree() {
        let first = Reading::now().unwrap();
        let (one, two) = (khz().unwrap(), khz().unwrap());
        thread::sleep(SPAN);
        let three = Reading::now().unwrap().khz_since(first).unwrap();
        for other in [two, three] {
            assert!(one.abs_diff(other) < one / 1000, "{one} {two} {three}");
        }
    }

    #[test]
    fn a_frequency_is_ticks_by_time() {
        let at = |ticks, milliseconds| Reading {
            ticks,
            time: Duration::from_millis(milliseconds),
        };
        assert_eq!(at(52_000_500, 120).khz_since(at(500, 100)), Some(2_600_000));
        assert_eq!(at(1, 100).khz_since(at(1, 100)), None);
    }
}
