// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel samepage merging: what the device holds is shared with no page that is equal by chance.

use super::stage::Stage;
use crate::tests::sources::{PIN_USER_PAGES, UNSHARE};
use crate::tests::test::{FRAME, Test, test};
use nix::sys::mman::MmapAdvise;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, TestResult, premise};
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::ksm::Ksm;
use pinbed_guest::observe::extent::{PAGE, frames};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    Test { timeout_s: 60, ..test("lifecycle::ksm_merges_no_page_that_is_held", merges_no_page_that_is_held, PIN_USER_PAGES,
        "Samepage merging leaves pages alone that the device holds, whatever is equal to them.") },
    Test { timeout_s: 60, ..test("lifecycle::ksm_page_is_copied_before_the_pin", page_is_copied_before_the_pin, UNSHARE,
        "QBUF of merged pages gives each buffer pages of its own, which are not merged again while the device holds them.") },
];

/// Memory with these contents that may be merged.
fn equal(contents: &[u8]) -> TestResult<Area> {
    let mut area = Area::anon(0, contents.len())?;
    area.put(contents)?;
    area.mapping
        .advise(0..area.mapping.len(), MmapAdvise::MADV_MERGEABLE)?;
    Ok(area)
}

/// How many page frames two areas have in common.
fn shared(one: &Area, other: &Area) -> TestResult<usize> {
    let at = |area: &Area| -> TestResult<Vec<u64>> {
        let extents = area.extents()?.and_then(Result::ok).unwrap_or_default();
        Ok(frames(&extents).collect())
    };
    let others = at(other)?;
    Ok(at(one)?
        .iter()
        .filter(|frame| others.contains(frame))
        .count())
}

fn judge_apart(t: &mut Ctx, stage: &Stage, equals: &[Area], when: &str) -> TestResult {
    for area in stage.areas() {
        let mut common = 0;
        for equal in equals {
            common += shared(area, equal)?;
        }
        t.equal(
            Eye::Placement,
            &format!("page frames that a buffer shares with equal memory {when}"),
            common,
            0,
        );
    }
    t.equal(
        Eye::Placement,
        &format!("page frames that both buffers share {when}"),
        shared(&stage.src, &stage.dst)?,
        0,
    );
    Ok(())
}

fn merges_no_page_that_is_held(t: &mut Ctx) -> TestResult {
    let ksm = Ksm::run()?;
    let data = t.random(FRAME.size());
    let equals = [equal(&data)?, equal(&data)?];
    let mut stage = Stage::as_they_are(t, equal(&data)?, equal(&data)?)?;
    stage.begin()?;
    // Equal to a page that is held nothing may be merged at all, if the daemon comes to that first.
    let data = t.random(FRAME.size());
    let others = [equal(&data)?, equal(&data)?];
    ksm.scan()?;
    let merged = shared(&others[0], &others[1])?;
    premise(merged == others[0].mapping.len() / PAGE, || {
        format!("{merged} equal pages that nobody holds are merged")
    })?;
    judge_apart(t, &stage, &equals, "after a scan")?;
    stage.judge(t, "samepage merging")
}

fn page_is_copied_before_the_pin(t: &mut Ctx) -> TestResult {
    let ksm = Ksm::run()?;
    let data = t.random(FRAME.size());
    let equals = [equal(&data)?, equal(&data)?];
    let (src, dst) = (equal(&data)?, equal(&data)?);
    ksm.scan()?;
    let merged = (shared(&src, &equals[0])?, shared(&dst, &equals[0])?);
    premise(merged.0 > 0 && merged.0 == merged.1, || {
        format!("{merged:?} equal pages are merged before the pin")
    })?;
    let mut stage = Stage::as_they_are(t, src, dst)?;
    judge_apart(t, &stage, &equals, "after QBUF")?;
    stage.begin()?;
    ksm.scan()?;
    judge_apart(t, &stage, &equals, "after QBUF and a scan")?;
    stage.judge(t, "samepage merging before and after QBUF")?;
    for equal in &equals {
        equal.judge_untouched(t, "equal memory")?;
    }
    Ok(())
}
