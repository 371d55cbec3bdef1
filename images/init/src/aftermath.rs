// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The aftermath eye: what the system holds before a test, and whether it holds no more after it.

use crate::holders;
use crate::news::News;
use pinbed_abi::report::{Eye, Finding, Holdings};
use pinbed_abi::wire::INJECT_NONE;
use pinbed_guest::dmabuf::{self, Alive};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::ksm;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::memory_block;
use pinbed_guest::memory::swap;
use pinbed_guest::module;
use pinbed_guest::observe::cma::{self, Region};
use pinbed_guest::observe::device::{Device, Held};
use pinbed_guest::observe::dma;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::observe::pagemap;
use pinbed_guest::observe::vmstat::{self, Counters};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long what a test left may take to go away by itself: files are closed, and their memory freed, some time after the last
/// process that had them is gone.
const SETTLE: Duration = Duration::from_secs(3);
/// After so long without a change nothing is going away any more.
const STILL: Duration = Duration::from_millis(500);

/// How a finding begins that the device holds memory.
pub const HELD: &str = "the device still holds";

/// What is known of the system from test to test.
pub struct Witness {
    regions: Vec<Region>,
    /// Pages that are taken so that tests do not get them; see [`Witness::drain`].
    parked: Option<Mapping>,
    /// What the next test finds, if it is known: what the last one left, all of it as it was before.
    before: Option<Snapshot>,
}

/// What the system holds.
#[derive(Clone, Default)]
struct Snapshot {
    counters: Counters,
    /// What drivers hold of each region, in pages.
    cma_used: Vec<u64>,
    held: Vec<Held>,
    /// DMA mappings of all devices.
    mappings: i64,
    /// The TEE's.
    sessions: u64,
    calls: u64,
    dmabufs: Vec<Alive>,
}

/// A kernel without a thing cannot leak it.
fn unless_absent<T: Default>(view: Result<T, Error>) -> Result<T, Error> {
    match view {
        Err(Error::Absent { .. }) => Ok(T::default()),
        other => other,
    }
}

impl Witness {
    /// Gets to know the system.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            regions: unless_absent(cma::regions())?,
            parked: None,
            before: None,
        })
    }

    /// Makes the kernel and the device ready to be judged afresh. Says what is held.
    pub fn before_test(&mut self) -> Result<Holdings, Error> {
        // What is warned of once per boot would be blamed on the first test only. Absent without debugfs.
        let _ = fs::write("/sys/kernel/debug/clear_warn_once", "1");
        let device = match Device::open() {
            // A test that ended between rmmod and insmod, or unbind and bind, has left no driver.
            Err(_) => {
                module::restore()?;
                Device::open()?
            }
            Ok(device) => device,
        };
        device.inject(INJECT_NONE, 0, 0)?;
        // A test that was killed did not come to this.
        memory_block::all_online()?;
        ksm::stop()?;
        swap::off()?;
        if self.before.is_none() {
            self.drain()?;
            self.before = Some(self.look()?);
        }
        Ok(self
            .before
            .as_ref()
            .map(Snapshot::holdings)
            .unwrap_or_default())
    }

    /// Judges what a test left, once it has settled, and says what is held; notes say by whom, where something is left.
    pub fn after_test(&mut self) -> Result<(Vec<Finding>, Vec<String>, Holdings), Error> {
        let before = self.before.take().unwrap_or_default();
        module::wait_until_alone()?;
        let start = Instant::now();
        let lost = match Device::open() {
            Ok(_) => None,
            Err(error) => {
                module::restore()?;
                Some(format!(
                    "the driver was without a device, or had given it up, until it was bound again: {error}"
                ))
            }
        };
        let mut now = self.look()?;
        let mut leaks = now.leaks_since(&before, &self.regions);
        let mut changed = Instant::now();
        while !leaks.is_empty() && changed.elapsed() < STILL && start.elapsed() < SETTLE {
            thread::sleep(Duration::from_millis(5));
            now = self.look()?;
            let still = now.leaks_since(&before, &self.regions);
            if still != leaks {
                leaks = still;
                changed = Instant::now();
            }
        }
        let mut clean = leaks.is_empty();
        let notes = match now.keeps_more_than(&before) {
            true => holders::notes(&now.held, &now.dmabufs),
            false => Vec::new(),
        };
        if !self.cma_is_free(now.counters, &now.cma_used)? && !self.drain()? {
            // Users' pages are there, or pages that are lost. They are users' if they can be moved out of the way.
            clean = false;
            for region in &self.regions {
                if let Err(error) = region.whole_can_be_had() {
                    leaks.push(format!(
                        "not all free pages of CMA region {} can be had any more: {error}",
                        region.name
                    ));
                }
            }
        }
        let holdings = now.holdings();
        self.before = clean.then_some(now);
        let findings = lost.into_iter().chain(leaks).map(|text| Finding {
            eye: Eye::Aftermath,
            text,
        });
        Ok((findings.collect(), notes, holdings))
    }

    /// Looks at the system as it is.
    fn look(&self) -> Result<Snapshot, Error> {
        let device = Device::open()?;
        let status = device.status()?;
        Ok(Snapshot {
            counters: vmstat::counters()?,
            cma_used: self.cma_used()?,
            held: match status.buffers.get() {
                0 => Vec::new(),
                _ => device.list()?,
            },
            mappings: unless_absent(dma::mappings())?,
            sessions: status.sessions.get(),
            calls: status.calls.get(),
            dmabufs: unless_absent(dmabuf::alive())?,
        })
    }

    fn cma_used(&self) -> Result<Vec<u64>, Error> {
        self.regions.iter().map(Region::used).collect()
    }

    /// Whether every page of CMA is a driver's, parked here, or free: then all that is free can be had, and nobody has kept a
    /// reference to it. What this cannot tell from a lost page are users' pages and those in the CPUs' lists.
    fn cma_is_free(&self, counters: Counters, used: &[u64]) -> Result<bool, Error> {
        let all: u64 = self.regions.iter().map(Region::pages).sum();
        let missing = all as i64 - counters.free_cma - used.iter().sum::<u64>() as i64;
        Ok(missing == 0 || missing == self.parked_in_cma()?)
    }

    fn parked_in_cma(&self) -> Result<i64, Error> {
        let Some(parked) = &self.parked else {
            return Ok(0);
        };
        let entries = unless_absent(pagemap::entries(parked.address(), parked.len()))?;
        let in_cma = |frame| self.regions.iter().any(|r| r.frames.contains(&frame));
        let frames = entries.iter().filter_map(|entry| entry.frame());
        Ok(frames.filter(|frame| in_cma(*frame)).count() as i64)
    }

    /// Empties the lists of each CPU's in which pages wait that were freed lately, so that a test gets no page in CMA by chance, and
    /// says whether all of CMA is free then.
    ///
    /// An allocation in CMA empties these lists first. When it is given back its own page is in such a list, and parked.
    fn drain(&mut self) -> Result<bool, Error> {
        self.parked = None;
        // It fails where drivers hold the whole region, or none of its pages can be moved; then the count says so.
        let taken: Vec<_> = self.regions.iter().map(|region| region.take(1)).collect();
        let free = self.cma_is_free(vmstat::counters()?, &self.cma_used()?)?;
        drop(taken);
        let parked = Mapping::anon(4 * PAGE)?;
        for page in (0..parked.len()).step_by(PAGE) {
            parked.write(page, &[1]);
        }
        self.parked = Some(parked);
        Ok(free)
    }
}

impl Snapshot {
    /// Whether memory is pinned, mapped for a device, held by it or by a dma-buf that was not.
    fn keeps_more_than(&self, before: &Self) -> bool {
        self.counters.pins > before.counters.pins
            || self.mappings > before.mappings
            || self.held.len() > before.held.len()
            || self.dmabufs.len() > before.dmabufs.len()
    }

    /// For a picture of guest memory.
    fn holdings(&self) -> Holdings {
        let held = self.held.iter().flat_map(|held| frames(&held.segments));
        Holdings {
            pinned: self.counters.pins,
            cma_free: self.counters.free_cma,
            cma_used: self.cma_used.iter().sum(),
            held: held.collect(),
        }
    }

    /// What there is now that was not there before: one sentence for each.
    fn leaks_since(&self, before: &Self, regions: &[Region]) -> Vec<String> {
        let mut leaks = Vec::new();
        let (pins, former) = (self.counters.pins, before.counters.pins);
        if pins != former {
            let (count, side) = match pins - former {
                left @ 1.. => (left, "left"),
                lost => (-lost, "too many released"),
            };
            leaks.push(format!(
                "{count} pins {side}: nr_foll_pin_acquired - nr_foll_pin_released went from {former} to {pins}"
            ));
        }
        for ((region, used), former) in regions.iter().zip(&self.cma_used).zip(&before.cma_used) {
            if used != former {
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
            leaks.push(format!("{HELD} {held}"));
        }
        if self.mappings != before.mappings {
            let (count, side) = match self.mappings - before.mappings {
                left @ 1.. => (left, "left"),
                lost => (-lost, "too many undone"),
            };
            leaks.push(format!(
                "{count} DMA mappings {side}: there are {}, {} before",
                self.mappings, before.mappings
            ));
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
            counters: Counters {
                pins: 2,
                free_cma: 0,
            },
            held: vec![Held {
                handle: 7,
                length: 4096,
                direction: pinbed_abi::wire::DIRECTION_WRITE,
                flags: 0,
                segments: vec![],
            }],
            mappings: 4,
            sessions: 1,
            calls: 3,
            dmabufs: vec![Alive {
                size: 8192,
                exporter: "system".into(),
                inode: 12,
                attached: vec![],
            }],
            ..Snapshot::default()
        };
        assert_eq!(
            after.leaks_since(&before, &[]),
            [
                "2 pins left: nr_foll_pin_acquired - nr_foll_pin_released went from 0 to 2",
                "the device still holds handle 7: 4096 bytes, write",
                "4 DMA mappings left: there are 4, 0 before",
                "TEE sessions: 1, 0 before",
                "TEE calls: 3, 0 before",
                "dma-buf 12 of 8192 bytes from system is left",
            ]
        );
        assert!(after.leaks_since(&after, &[]).is_empty());
        assert_eq!(
            before.leaks_since(&after, &[])[0],
            "2 pins too many released: nr_foll_pin_acquired - nr_foll_pin_released went from 2 to 0"
        );
    }
}
