// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tests that a session has still to run, and how they are shared out among machines.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pinbed_abi::report::TestInfo;

/// What a test whose duration is not known is taken to need.
const TYPICAL: Duration = Duration::from_millis(40);

/// How many tests are queued at once; the repetitions of a run without end are queued as it goes on.
const QUEUE: usize = 5000;

/// A test that is to run once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The test.
    pub test: TestInfo,
    /// Which repetition of the plan this is, from 1.
    pub repetition: u32,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Whether a guest that was broken already when it began took it down once.
    pub innocent: bool,
}

/// The tests that are left.
#[derive(Debug, Default)]
pub struct Plan {
    tests: Vec<TestInfo>,
    /// The repetition that was queued last, and the last there is to be.
    repetition: u32,
    repetitions: u32,
    pending: VecDeque<Entry>,
    retries: Vec<Entry>,
    durations: BTreeMap<String, Duration>,
}

impl Plan {
    /// These tests, in this order, `repetitions` times. `durations` is what is known of how long tests take.
    pub fn new(
        tests: Vec<TestInfo>,
        repetitions: u32,
        durations: BTreeMap<String, Duration>,
    ) -> Self {
        Plan {
            tests,
            repetitions,
            durations,
            ..Plan::default()
        }
    }

    /// Queues what comes next, if the queue is empty: repetitions, or else the tests that are to be tried again.
    fn refill(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        let room = |queued: usize| queued == 0 || queued + self.tests.len() <= QUEUE;
        while self.repetition < self.repetitions
            && !self.tests.is_empty()
            && room(self.pending.len())
        {
            self.repetition += 1;
            let repetition = self.repetition;
            self.pending.extend(self.tests.iter().map(|test| Entry {
                test: test.clone(),
                repetition,
                attempt: 1,
                innocent: false,
            }));
        }
        if self.pending.is_empty() {
            self.pending.extend(self.retries.drain(..));
        }
    }

    /// Shares out what is queued: at most so many parts, none empty, each in the order of the plan; none once all is done. With
    /// `isolate` each part is one test.
    pub fn parts(&mut self, most: usize, isolate: bool) -> Vec<VecDeque<Entry>> {
        self.refill();
        if isolate {
            let count = most.min(self.pending.len());
            return self
                .pending
                .drain(..count)
                .map(|entry| [entry].into())
                .collect();
        }
        let mut parts: Vec<(Duration, VecDeque<Entry>)> = vec![Default::default(); most];
        for entry in self.pending.drain(..) {
            let time = self.durations.get(&entry.test.name).copied();
            // The first of those that have the least to do.
            if let Some((load, part)) = parts.iter_mut().min_by_key(|(load, _)| *load) {
                *load += time.unwrap_or(TYPICAL);
                part.push_back(entry);
            }
        }
        let parts = parts.into_iter().map(|(_, part)| part);
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Takes back what a machine did not come to.
    pub fn give_back(&mut self, part: VecDeque<Entry>) {
        for entry in part.into_iter().rev() {
            self.pending.push_front(entry);
        }
    }

    /// Queues another attempt, after all that is queued now.
    pub fn retry(&mut self, entry: Entry) {
        self.retries.push(Entry {
            attempt: entry.attempt + 1,
            innocent: false,
            ..entry
        });
    }

    /// All that is left, and nothing remains: of repetitions that were not begun, too, if there are not too many to name.
    pub fn abandon(&mut self) -> Vec<Entry> {
        let mut left = Vec::new();
        loop {
            self.refill();
            if self.pending.is_empty() || left.len() > 20 * QUEUE {
                break;
            }
            left.extend(self.pending.drain(..));
        }
        self.repetitions = 0;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str) -> TestInfo {
        TestInfo {
            name: name.to_owned(),
            correct: String::new(),
            source: String::new(),
            timeout_s: 0,
        }
    }

    fn plan(names: &[&str], repetitions: u32) -> Plan {
        Plan::new(
            names.iter().map(|name| test(name)).collect(),
            repetitions,
            BTreeMap::from([("long".to_owned(), Duration::from_secs(1))]),
        )
    }

    fn names(parts: &[VecDeque<Entry>]) -> Vec<Vec<String>> {
        let name = |entry: &Entry| format!("{}{}", entry.test.name, entry.attempt);
        parts
            .iter()
            .map(|part| part.iter().map(name).collect())
            .collect()
    }

    #[test]
    fn machines_share_the_work_in_the_order_of_the_plan() {
        let mut plan = plan(&["long", "a", "b", "c"], 1);
        assert_eq!(
            names(&plan.parts(2, false)),
            [vec!["long1"], vec!["a1", "b1", "c1"]]
        );
        assert!(plan.parts(2, false).is_empty());
    }

    #[test]
    fn there_are_no_empty_parts() {
        assert_eq!(plan(&["a"], 1).parts(8, false).len(), 1);
        assert!(plan(&[], 3).parts(2, false).is_empty());
    }

    #[test]
    fn isolated_tests_have_a_part_each() {
        let mut plan = plan(&["a", "b", "c"], 1);
        assert_eq!(names(&plan.parts(2, true)), [["a1"], ["b1"]]);
        assert_eq!(names(&plan.parts(2, true)), [["c1"]]);
    }

    #[test]
    fn what_is_given_back_comes_first_and_retries_last() {
        let mut plan = plan(&["a", "b", "c"], 2);
        let mut part = plan.parts(1, false).remove(0);
        plan.retry(part.pop_front().unwrap());
        plan.give_back(part);
        let left = ["b1", "c1", "a1", "b1", "c1"];
        assert_eq!(names(&plan.parts(1, false)), [left]);
        assert_eq!(names(&plan.parts(1, false)), [["a2"]]);
        assert!(plan.parts(1, false).is_empty());
    }

    #[test]
    fn what_is_abandoned_is_all_that_is_left() {
        let mut plan = plan(&["a", "b"], 3);
        let mut part = plan.parts(1, false).remove(0);
        part.pop_front();
        plan.give_back(part);
        assert_eq!(plan.abandon().len(), 5);
        assert!(plan.abandon().is_empty() && plan.parts(1, false).is_empty());
    }
}
