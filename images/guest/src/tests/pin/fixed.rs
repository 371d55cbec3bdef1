// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Fixed buffers of io_uring: pinned for as long as the ring lives, and accounted.

use crate::tests::sources::IO_URING;
use crate::tests::test::{Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::memory::fixed::{register, ring};
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::numa;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::movable;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("fixed::buffers_leave_zone_movable", leave_zone_movable, IO_URING,
        "Pages leave ZONE_MOVABLE before io_uring pins them as a fixed buffer."),
    test("fixed::buffers_count_as_locked_memory", count_as_locked, IO_URING,
        "A process without privileges cannot register more fixed buffers than RLIMIT_MEMLOCK lets it lock."),
];

fn leave_zone_movable(t: &mut Ctx) -> TestResult {
    const LENGTH: usize = 8 * PAGE;
    let ring = ring()?;
    let memory = Mapping::anon(LENGTH)?;
    let bytes = t.random(LENGTH);
    numa::fill_in_movable(&memory, &bytes)?;
    register(&ring, memory.address(), LENGTH).map_err(Error::call("IORING_REGISTER_BUFFERS"))?;
    t.equal(
        Eye::Placement,
        "pages of a fixed buffer in CMA or ZONE_MOVABLE",
        movable::count_in(memory.address(), LENGTH)?,
        0,
    );
    t.same_bytes(Eye::Cpu, "the memory", &memory.read(0..LENGTH), &bytes);
    Ok(())
}

fn count_as_locked(t: &mut Ctx) -> TestResult {
    const LIMIT: usize = 16 * PAGE;
    let memory = Mapping::anon(4 * LIMIT)?;
    memory.write(0, &vec![1; 4 * LIMIT]);
    limit_locked_memory(LIMIT)?;
    become_nobody()?;
    // Made by the process whose limit counts.
    let ring = ring()?;
    t.refused(
        "fixed buffers of 4 times RLIMIT_MEMLOCK",
        register(&ring, memory.address(), memory.len()),
        &[Errno::ENOMEM],
    );
    Ok(())
}
