// SPDX-License-Identifier: Apache-2.0 OR MIT
//! All tests, and what several groups of them share.
//!
//! Each group is a file with a table: name, what a correct kernel does, where that is from, the function.

mod compliance;
mod convert;
mod dmabuf;
mod driver;
mod exporter;
mod fault;
mod hold;
mod kinds;
mod lifecycle;
mod longterm;
mod memop;
mod mmaps;
mod orders;
mod playback;
mod sources;
mod stream;
mod tee;
mod tee_client;
mod tee_hold;
mod tee_input;
mod tee_kinds;
mod tee_memory;
mod tee_place;
mod tee_race;
mod userptr;

use nix::errno::Errno;
use pinbed_abi::report::{Eye, TestInfo};
use pinbed_guest::area::Area;
use pinbed_guest::ctx::{Ctx, TestResult};
use pinbed_guest::image::Image;
use pinbed_guest::m2m::{M2m, describe};
use pinbed_guest::v4l2::{self, Queue};
use pinbed_guest::vmstat;

/// A test.
pub struct Test {
    /// `group::what_a_correct_kernel_does`.
    pub name: &'static str,
    /// One sentence: what a correct kernel does.
    pub correct: &'static str,
    /// Where that is from.
    pub source: &'static str,
    /// Seconds it needs, if more than the plan gives.
    pub timeout_s: u64,
    /// The test.
    pub run: fn(&mut Ctx) -> TestResult,
}

impl Test {
    /// What `list` shows.
    pub fn info(&self) -> TestInfo {
        TestInfo {
            name: self.name.into(),
            correct: self.correct.into(),
            source: self.source.into(),
            timeout_s: self.timeout_s,
        }
    }
}

/// A test that is content with the plan's timeout.
const fn test(
    name: &'static str,
    run: fn(&mut Ctx) -> TestResult,
    source: &'static str,
    correct: &'static str,
) -> Test {
    Test {
        name,
        correct,
        source,
        timeout_s: 0,
        run,
    }
}

/// All tests, in the order in which they are best run: what others build on comes first.
pub fn all() -> impl Iterator<Item = &'static Test> {
    [
        userptr::TESTS,
        dmabuf::TESTS,
        memop::TESTS,
        exporter::TESTS,
        convert::TESTS,
        longterm::TESTS,
        kinds::TESTS,
        hold::TESTS,
        lifecycle::fork::TESTS,
        lifecycle::protect::TESTS,
        lifecycle::remap::TESTS,
        lifecycle::reclaim::TESTS,
        lifecycle::merge::TESTS,
        lifecycle::huge::TESTS,
        lifecycle::migrate::TESTS,
        lifecycle::poison::TESTS,
        fault::TESTS,
        stream::TESTS,
        tee::TESTS,
        tee_memory::TESTS,
        tee_kinds::TESTS,
        tee_place::TESTS,
        tee_hold::TESTS,
        tee_client::TESTS,
        tee_input::TESTS,
        tee_race::TESTS,
        compliance::TESTS,
        playback::TESTS,
        driver::TESTS,
        tee_memory::LAST,
    ]
    .into_iter()
    .chain(mmaps::TESTS.iter().copied())
    .chain([dmabuf::LAST])
    .flatten()
}

/// Five pages, the last of them not full.
const FRAME: Image = Image::grey(160, 120);

/// How vb2-dma-sg refuses memory that it cannot pin: with ENOMEM, whatever the reason was, where the other allocators and the
/// manual page have EFAULT.
const REFUSED: &[Errno] = &[Errno::EFAULT, Errno::ENOMEM];

/// QBUF is refused, and neither a pin nor an attached buffer stays behind.
fn refuse(
    t: &mut Ctx,
    m2m: &M2m,
    what: &str,
    buffer: v4l2::Buffer,
    errnos: &[Errno],
) -> TestResult {
    refuse_by(t, m2m, what, errnos, || m2m.node.enqueue(buffer)).map(drop)
}

/// As [`refuse`], of a QBUF that is done here. Whether it was refused.
fn refuse_by(
    t: &mut Ctx,
    m2m: &M2m,
    what: &str,
    errnos: &[Errno],
    enqueue: impl FnOnce() -> Result<(), Errno>,
) -> TestResult<bool> {
    let (pins, held) = (vmstat::pinned_pages()?, m2m.device.list()?.len());
    let result = enqueue();
    let refused = result.is_err();
    t.refused(what, result, errnos);
    if !refused {
        return Ok(false);
    }
    t.equal(
        Eye::Aftermath,
        &format!("pinned pages after {what}"),
        vmstat::pinned_pages()?,
        pins,
    );
    t.equal(
        Eye::Device,
        &format!("buffers that the device holds after {what}"),
        m2m.device.list()?.len(),
        held,
    );
    Ok(true)
}

/// As [`refuse`], of user memory, on a queue that takes it.
fn refuse_area(t: &mut Ctx, m2m: &M2m, queue: Queue, what: &str, area: &Area) -> TestResult {
    let what = format!("QBUF of {what} on {queue:?}");
    m2m.request_for(queue, area, 1)?;
    refuse(t, m2m, &what, describe(queue, 0, area), REFUSED)
}

#[cfg(test)]
mod checks {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_entry_is_complete_and_its_name_unique() {
        let mut names = HashSet::new();
        for test in all() {
            assert!(names.insert(test.name), "{} is there twice", test.name);
            let (group, what) = test.name.split_once("::").expect("a name is group::what");
            let plain = |part: &str| {
                part.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            };
            assert!(
                plain(group) && plain(what) && !what.is_empty(),
                "{}",
                test.name
            );
            // It may begin with a system call's name, and so with a small letter.
            assert!(test.correct.ends_with('.'), "{}", test.name);
            assert!(!test.source.is_empty(), "{}", test.name);
        }
    }
}
