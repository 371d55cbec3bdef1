// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One clock for the guest and the device. Both read time stamp counters, which run at one rate and began at different times. The device
//! works on a request after the driver has sent it and before the driver sees the answer; so each request bounds the difference from both
//! sides, and of many requests the tightest bounds count.

use std::collections::BTreeMap;

/// When a request was where.
#[derive(Clone, Copy, Debug, Default)]
pub struct Journey {
    /// The driver sent it, by the guest's counter.
    pub sent: Option<u64>,
    /// The driver saw the answer.
    pub answered: Option<u64>,
    /// The device began to work on it, by the host's counter.
    pub began: Option<u64>,
    /// The device was done.
    pub ended: Option<u64>,
}

/// The host's counter is the guest's plus this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub ticks: i128,
    /// By how much it may be off.
    pub uncertainty: u64,
}

/// The difference that these requests bound; nothing where they do not.
pub fn difference(journeys: &BTreeMap<u64, Journey>) -> Option<Difference> {
    let between =
        |later: Option<u64>, earlier: Option<u64>| Some(i128::from(later?) - i128::from(earlier?));
    let all = || journeys.values();
    let most = all().filter_map(|it| between(it.began, it.sent)).min()?;
    let least = all()
        .filter_map(|it| between(it.ended, it.answered))
        .max()?;
    Some(Difference {
        ticks: (least + most) / 2,
        uncertainty: u64::try_from((most - least).unsigned_abs().div_ceil(2)).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_bounds_of_all_requests_count() {
        let journey = |sent, began, ended, answered| Journey {
            sent: Some(sent),
            answered: Some(answered),
            began: Some(began),
            ended: Some(ended),
        };
        // The difference is 1000.
        let journeys = [
            (1, journey(10, 1040, 1050, 90)),
            (2, journey(100, 1110, 1150, 190)),
            (3, journey(200, 1280, 1290, 294)),
        ];
        let found = difference(&journeys.into()).unwrap();
        assert!(
            found.ticks.abs_diff(1000) <= u128::from(found.uncertainty),
            "{found:?}"
        );
        assert_eq!((found.ticks, found.uncertainty), (1003, 7));
        assert_eq!(difference(&BTreeMap::new()), None);
    }
}
