// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The aftermath eye: what the system holds before a test, and whether it holds no more after it.

use crate::kmsg::News;
use pinbed_abi::report::{Eye, Finding};
use pinbed_guest::cma::{self, Region};
use pinbed_guest::device::{Device, Held};
use pinbed_guest::dmabuf::{self, Alive};
use pinbed_guest::error::Error;
use pinbed_guest::extent::PAGE;
use pinbed_guest::mapping::Mapping;
use pinbed_guest::vmstat;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long what a test left may take to go away by itself: files are closed, and their memory freed, some time after the last
/// process that had them is gone.
const SETTLE: Duration = Duration::from_secs(3);
/// After so long without a change nothing is going away any more.
const STILL: Duration = Duration::from_millis(500);

/// What the system holds.
#[derive(Default)]
pub struct Snapshot {
    pins: i64,
    /// Regions with what drivers hold of them, in pages.
    cma: Vec<(Region, u64)>,
    held: Vec<Held>,
    /// The TEE's.
    sessions: u64,
    calls: u64,
    dmabufs: Vec<Alive>,
    /// Pages that are taken so that the test does not get them; see [`before_test`].
    _parked: Option<Mapping>,
}

/// A kernel without a thing cannot leak it.
fn unless_absent<T: Default>(view: Result<T, Error>) -> Result<T, Error> {
    match view {
        Err(Error::Absent { .. }) => Ok(T::default()),
        other => other,
    }
}

impl Snapshot {
    /// Looks at the system as it is.
    pub fn take() -> Result<Self, Error> {
        let mut cma = Vec::new();
        for region in unless_absent(cma::regions())? {
            let used = region.used()?;
            cma.push((region, used));
        }
        let device = Device::open()?;
        let status = device.status()?;
        Ok(Self {
            pins: vmstat::pinned_pages()?,
            cma,
            held: device.list()?,
            sessions: status.sessions.get(),
            calls: status.calls.get(),
            dmabufs: unless_absent(dmabuf::alive())?,
            _parked: None,
        })
    }

    /// What there is now that was not there before: one sentence for each.
    fn leaks_since(&self, before: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        if self.pins != before.pins {
            let (count, side) = match self.pins - before.pins {
                left @ 1.. => (left, "left"),
                lost => (-lost, "too many released"),
            };
            leaks.push(format!(
                "{count} pins {side}: nr_foll_pin_acquired - nr_foll_pin_released went from {} to {}",
                before.pins, self.pins
            ));
        }
        for (region, used) in &self.cma {
            let former = before
                .cma
                .iter()
                .find(|(other, _)| other.name == region.name)
                .map_or(0, |(_, used)| *used);
            if *used != former {
                leaks.push(format!(
                    "drivers hold {used} pages of CMA region {}, {former} before",
                    region.name
                ));
            }
        }
        for held in self
            .held
            .iter()
            .filter(|held| !before.held.iter().any(|other| other.handle == held.handle))
        {
            leaks.push(format!("the device still holds {held}"));
        }
        for (what, now, former) in [
            ("sessions", self.sessions, before.sessions),
            ("calls", self.calls, before.calls),
        ] {
            if now > former {
                leaks.push(format!("TEE {what}: {now}, {former} before"));
            }
        }
        for alive in self.dmabufs.iter().filter(|alive| {
            !before
                .dmabufs
                .iter()
                .any(|other| other.inode == alive.inode)
        }) {
            leaks.push(format!("{alive} is left"));
        }
        leaks
    }
}

/// Makes the kernel and the device ready to be judged afresh.
pub fn before_test() -> Result<Snapshot, Error> {
    // What is warned of once per boot would be blamed on the first test only. Absent without debugfs.
    let _ = fs::write("/sys/kernel/debug/clear_warn_once", "1");
    Device::open()?.inject(pinbed_abi::wire::INJECT_NONE, 0, 0)?;

    // Pages that were freed lately wait in lists of each CPU's, out of which the next test would get pages in CMA by chance. An
    // allocation in CMA empties these lists first. When it is given back its own page is in such a list, and parked.
    for region in unless_absent(cma::regions())? {
        drop(region.take(1));
    }
    let parked = Mapping::anon(4 * PAGE)?;
    for page in (0..parked.len()).step_by(PAGE) {
        parked.write(page, &[1]);
    }
    Ok(Snapshot {
        _parked: Some(parked),
        ..Snapshot::take()?
    })
}

/// Judges what a test left, once it has settled.
pub fn after_test(before: &Snapshot) -> Result<Vec<Finding>, Error> {
    let start = Instant::now();
    let mut leaks = Snapshot::take()?.leaks_since(before);
    let mut changed = Instant::now();
    while !leaks.is_empty() && changed.elapsed() < STILL && start.elapsed() < SETTLE {
        thread::sleep(Duration::from_millis(5));
        let now = Snapshot::take()?.leaks_since(before);
        if now != leaks {
            leaks = now;
            changed = Instant::now();
        }
    }
    let mut findings = leaks;
    for (region, _) in &before.cma {
        if let Err(error) = region.whole_can_be_had() {
            findings.push(format!(
                "not all free pages of CMA region {} can be had any more: {error}",
                region.name
            ));
        }
    }
    Ok(findings
        .into_iter()
        .map(|text| Finding {
            eye: Eye::Aftermath,
            text,
        })
        .collect())
}

/// What the kernel itself complained of.
pub fn complaints(news: &News) -> Vec<Finding> {
    let lost =
        "part of the kernel log was overwritten before it was read; boot with log_buf_len=1M";
    news.complaints
        .iter()
        .map(|complaint| match complaint.count {
            1 => format!("the kernel log says: {}", complaint.line),
            count => format!(
                "the kernel log says, {count} times with other numbers: {}",
                complaint.line
            ),
        })
        .chain(news.lost.then(|| lost.into()))
        .map(|text| Finding {
            eye: Eye::Aftermath,
            text,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leak_is_named_with_its_numbers() {
        let before = Snapshot::default();
        let after = Snapshot {
            pins: 2,
            held: vec![Held {
                handle: 7,
                length: 4096,
                direction: pinbed_abi::wire::DIRECTION_WRITE,
                segments: vec![],
            }],
            sessions: 1,
            calls: 3,
            dmabufs: vec![Alive {
                size: 8192,
                exporter: "system".into(),
                inode: 12,
            }],
            ..Snapshot::default()
        };
        assert_eq!(
            after.leaks_since(&before),
            [
                "2 pins left: nr_foll_pin_acquired - nr_foll_pin_released went from 0 to 2",
                "the device still holds handle 7: 4096 bytes, write",
                "TEE sessions: 1, 0 before",
                "TEE calls: 3, 0 before",
                "dma-buf 12 of 8192 bytes from system is left",
            ]
        );
        assert!(after.leaks_since(&after).is_empty());
        assert_eq!(
            before.leaks_since(&after)[0],
            "2 pins too many released: nr_foll_pin_acquired - nr_foll_pin_released went from 2 to 0"
        );
    }
}
