// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test's outcome means: the known failures of each kernel, and verdicts against them.

pub mod baseline;
mod closest;
pub mod defects;
pub mod matrix;
pub mod mutants;
pub mod pinners;
pub mod verdict;

pub use closest::closest;

/// How a page that is made from tests and baselines is made again.
const BLESS: &str = "PINBED_BLESS=1 cargo test -p pinbed --test pages";

/// Names of tests for a cell or a line of a page: the first few, and how many more there are.
pub fn few<'a>(tests: impl ExactSizeIterator<Item = &'a str>) -> Vec<String> {
    const NAMED: usize = 4;
    let more = tests.len().saturating_sub(NAMED);
    let mut names: Vec<_> = tests.take(NAMED).map(|test| format!("`{test}`")).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names
}
