// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A test, and what the groups of tests share.

use nix::errno::Errno;
use pinbed_abi::report::{Eye, TestInfo};
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::vmstat;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::{M2m, describe};
use pinbed_guest::video::v4l2::{self, Queue};

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
pub const fn test(
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

/// Five pages, the last of them not full.
pub const FRAME: Image = Image::grey(160, 120);

/// How vb2-dma-sg refuses memory that it cannot pin: with ENOMEM, whatever the reason was, where the other allocators and the
/// manual page have EFAULT.
pub const REFUSED: &[Errno] = &[Errno::EFAULT, Errno::ENOMEM];

/// QBUF is refused, and neither a pin nor an attached buffer stays behind.
pub fn refuse(
    t: &mut Ctx,
    m2m: &M2m,
    what: &str,
    buffer: v4l2::Buffer,
    errnos: &[Errno],
) -> TestResult {
    refuse_by(t, m2m, what, errnos, || m2m.node.enqueue(buffer)).map(drop)
}

/// As [`refuse`], of a QBUF that is done here. Whether it was refused.
pub fn refuse_by(
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
pub fn refuse_area(t: &mut Ctx, m2m: &M2m, queue: Queue, what: &str, area: &Area) -> TestResult {
    let what = format!("QBUF of {what} on {queue:?}");
    m2m.request_for(queue, area, 1)?;
    refuse(t, m2m, &what, describe(queue, 0, area), REFUSED)
}
