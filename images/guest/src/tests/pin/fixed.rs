// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Fixed buffers of io_uring: pinned for as long as the ring lives, and accounted.

use crate::tests::sources::IO_URING;
use crate::tests::test::{Test, test};
use io_uring::IoUring;
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, TestResult, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::privilege::{become_nobody, limit_locked_memory};
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::numa;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::{movable, zones};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("fixed::buffers_leave_zone_movable", leave_zone_movable, IO_URING,
        "Pages leave ZONE_MOVABLE before io_uring pins them as a fixed buffer."),
    test("fixed::buffers_count_as_locked_memory", count_as_locked, IO_URING,
        "A process without privileges cannot register more fixed buffers than RLIMIT_MEMLOCK lets it lock."),
];

pub fn ring() -> Result<IoUring, Error> {
    IoUring::new(1).map_err(|_| Error::Absent {
        what: "io_uring".into(),
        remedy: "build the kernel with CONFIG_IO_URING".into(),
    })
}

/// Registers memory as the ring's only fixed buffer.
pub fn register(ring: &IoUring, memory: &Mapping) -> Result<(), Errno> {
    let buffer = libc::iovec {
        iov_base: memory.address() as *mut libc::c_void,
        iov_len: memory.len(),
    };
    // SAFETY: the memory is mapped for as long as the caller has it; nothing reads or writes it through the ring.
    unsafe { ring.submitter().register_buffers(&[buffer]) }
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

fn leave_zone_movable(t: &mut Ctx) -> TestResult {
    const LENGTH: usize = 8 * PAGE;
    zones::movable_node()?;
    let ring = ring()?;
    let memory = Mapping::anon(LENGTH)?;
    memory.bind(numa::MOVABLE)?;
    let bytes = t.random(LENGTH);
    memory.write(0, &bytes);
    // Where they go to must not be the same zone.
    memory.bind(numa::HOME)?;
    let before = movable::count_in(memory.address(), LENGTH)?;
    premise(before == LENGTH / PAGE, || {
        format!("{before} pages of the memory are in ZONE_MOVABLE")
    })?;
    register(&ring, &memory).map_err(Error::call("IORING_REGISTER_BUFFERS"))?;
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
        register(&ring, &memory),
        &[Errno::ENOMEM],
    );
    Ok(())
}
