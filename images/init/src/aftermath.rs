// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The aftermath eye: what the system holds before a test, and whether it holds no more after it.

use crate::kmsg::News;
use pinbed_abi::report::{Eye, Finding};
use pinbed_guest::cma::{self, Region};
use pinbed_guest::device::{Device, Held};
use pinbed_guest::dmabuf::{self, Alive};
use pinbed_guest::error::Error;
use pinbed_guest::vmstat;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long what a test left may take to go away by itself: files are closed, and their memory freed, some time after the last
/// process that had them is gone.
const SETTLE: Duration = Duration::from_secs(3);

/// What the system holds.
#[derive(Default)]
pub struct Snapshot {
    pins: i64,
    /// Regions with what drivers hold of them, in pages.
    cma: Vec<(Region, u64)>,
    held: Vec<Held>,
    dmabufs: Vec<Alive>,
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
        Ok(Self {
            pins: vmstat::pinned_pages()?,
            cma,
            held: Device::open()?.list()?,
            dmabufs: unless_absent(dmabuf::alive())?,
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
    Snapshot::take()
}

/// Judges what a test left, once it has settled.
pub fn after_test(before: &Snapshot) -> Result<Vec<Finding>, Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut findings = loop {
        let leaks = Snapshot::take()?.leaks_since(before);
        if leaks.is_empty() || start.elapsed() > SETTLE {
            break leaks;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    };
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

/// What the kernel itself complained of. Lines that differ in their numbers only are one finding.
pub fn complaints(news: &News) -> Vec<Finding> {
    let mut kinds: Vec<(String, &str, usize)> = Vec::new();
    for line in news.complaints() {
        let shape = shape(line);
        match kinds.iter_mut().find(|(other, _, _)| *other == shape) {
            Some((_, _, count)) => *count += 1,
            None => kinds.push((shape, line, 1)),
        }
    }
    let mut texts: Vec<String> = kinds
        .into_iter()
        .map(|(_, line, count)| match count {
            1 => format!("the kernel log says: {line}"),
            _ => format!("the kernel log says, {count} times with other numbers: {line}"),
        })
        .collect();
    if news.lost {
        texts.push(
            "part of the kernel log was overwritten before it was read; boot with log_buf_len=1M"
                .into(),
        );
    }
    texts
        .into_iter()
        .map(|text| Finding {
            eye: Eye::Aftermath,
            text,
        })
        .collect()
}

/// A line without its numbers, decimal or hexadecimal.
fn shape(line: &str) -> String {
    line.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| {
            if word.contains(|c: char| c.is_ascii_digit()) {
                "#"
            } else {
                word
            }
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
                "dma-buf 12 of 8192 bytes from system is left",
            ]
        );
        assert!(after.leaks_since(&after).is_empty());
        assert_eq!(
            before.leaks_since(&after)[0],
            "2 pins too many released: nr_foll_pin_acquired - nr_foll_pin_released went from 2 to 0"
        );
    }

    #[test]
    fn complaints_that_differ_in_numbers_are_one() {
        let line = |address: &str| {
            format!("DMA-API: virtio-pci 0000:00:02.0: overlap [address={address}]")
        };
        let news = News {
            lines: vec![line("0x27e5000"), line("0x929000"), "BUG: other".into()],
            lost: false,
        };
        let texts: Vec<_> = complaints(&news)
            .into_iter()
            .map(|finding| finding.text)
            .collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("2 times") && texts[0].contains("0x27e5000"));
    }
}
