// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a trusted application wrote is there still when the kernel has taken the memory for something else in between.

use super::hold::Stage;
use super::stage::LENGTH;
use crate::tests::pin::dirty::{Clean, evict};
use crate::tests::sources::TEE_DIRTY;
use crate::tests::test::{Test, test};
use pinbed_guest::harness::cpu;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::memory::swap::Swap;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_dirty::writes_to_clean_shared_memory_survive_eviction", |t| written(t, Clean::Shared), TEE_DIRTY,
        "What an application wrote to registered shared memory that was only read before is there after the memory was evicted."),
    test("tee_dirty::writes_to_lazily_freed_memory_survive_eviction", |t| written(t, Clean::Lazy), TEE_DIRTY,
        "What an application wrote to registered private memory after its process said MADV_FREE is there after the memory was evicted."),
];

fn written(t: &mut Ctx, clean: Clean) -> TestResult {
    cpu::stay()?;
    let _swap = Swap::on()?;
    let area = clean.memory(t, LENGTH)?;
    let mut stage = Stage::as_it_is(t, &area)?;
    clean.forget(&area)?;
    let data = stage.write(t)?;
    area.judge(t, "what the application wrote", &data)?;
    drop(stage);
    evict(&area)?;
    Ok(area.judge(t, "what the application wrote, after eviction", &data)?)
}
