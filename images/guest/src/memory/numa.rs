// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which NUMA node a process's pages are on, and moving them (man 2 mbind, move_pages, migrate_pages).

use crate::harness::ctx::{TestResult, premise};
use crate::harness::error::Error;
use crate::memory::mapping::Mapping;
use crate::observe::extent::PAGE;
use crate::observe::{movable, zones};
use nix::errno::Errno;
use std::path::Path;
use std::ptr;

/// The node where the kernel and all processes live.
pub const HOME: u32 = 0;
/// The node that is in ZONE_MOVABLE whole.
pub const MOVABLE: u32 = 1;

/// Writes to a mapping while its pages come from ZONE_MOVABLE, and binds it to [`HOME`] afterwards, so that who moves the pages does not
/// move them within that zone.
///
/// # Errors
/// When there is no such zone, or a page is not in it.
pub fn fill_in_movable(mapping: &Mapping, bytes: &[u8]) -> TestResult {
    zones::movable_node()?;
    mapping.bind(MOVABLE)?;
    mapping.write(0, bytes);
    mapping.bind(HOME)?;
    let inside = movable::count_in(mapping.address(), bytes.len())?;
    premise(inside == bytes.len().div_ceil(PAGE), || {
        format!("{inside} pages of the memory are in ZONE_MOVABLE")
    })
}

const MPOL_MF_STRICT: u32 = 1;
const MPOL_MF_MOVE: u32 = 2;

/// [`Error::Absent`] unless there are both nodes.
pub fn need_both() -> Result<(), Error> {
    match Path::new("/sys/devices/system/node/node1").exists() {
        true => Ok(()),
        false => Err(Error::Absent {
            what: "NUMA node 1".into(),
            remedy: "build the kernel with CONFIG_NUMA and let the runner make the machine".into(),
        }),
    }
}

/// [`Error::Absent`] unless there are both nodes, and processes may move pages between them.
pub fn need_moves() -> Result<(), Error> {
    need_both()?;
    match migrate_all(MOVABLE, MOVABLE) {
        Err(Errno::ENOSYS) => Err(Error::Absent {
            what: "migrate_pages(2)".into(),
            remedy: "build the kernel with CONFIG_MIGRATION, and from 7.3 on CONFIG_NUMA_MIGRATION"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// As [`Mapping::bind`], and pages that are elsewhere are moved; an error if one cannot be.
pub fn bind_and_move(mapping: &Mapping, node: u32) -> Result<(), Errno> {
    let mask = 1u64 << node;
    // SAFETY: the range is a mapping, whose contents this leaves alone; the mask is 64 bits long.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            mapping.address(),
            mapping.len(),
            libc::MPOL_BIND,
            &mask,
            u64::BITS as usize + 1,
            MPOL_MF_MOVE | MPOL_MF_STRICT,
        )
    };
    Errno::result(done).map(drop)
}

/// The nodes that a mapping's pages are on, page by page; a negative errno for what is not present.
pub fn places(mapping: &Mapping) -> Result<Vec<i32>, Error> {
    let (status, _) = move_pages(mapping, None).map_err(Error::call("asking where pages are"))?;
    Ok(status)
}

/// Moves all of a mapping's pages to a node: where they are then, or why not, page by page, as far as the kernel says; and how many
/// were not moved.
pub fn move_to(mapping: &Mapping, node: u32) -> Result<(Vec<i32>, usize), Errno> {
    move_pages(mapping, Some(node))
}

fn move_pages(mapping: &Mapping, node: Option<u32>) -> Result<(Vec<i32>, usize), Errno> {
    let pages: Vec<usize> = (0..mapping.len())
        .step_by(PAGE)
        .map(|at| mapping.address() + at)
        .collect();
    let nodes: Vec<u32> = node
        .iter()
        .flat_map(|node| vec![*node; pages.len()])
        .collect();
    // The kernel says nothing about pages that it did not come to.
    let mut status = vec![-(Errno::EAGAIN as i32); pages.len()];
    let wanted = match node {
        Some(_) => nodes.as_ptr(),
        None => ptr::null(),
    };
    // SAFETY: all three arrays have as many elements as said. Moving a page leaves its contents alone.
    let left = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            wanted,
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    Errno::result(left).map(|left| (status, left as usize))
}

/// Moves all pages of this process from one node to another; how many could not be.
pub fn migrate_all(from: u32, to: u32) -> Result<usize, Errno> {
    let (from, to) = (1u64 << from, 1u64 << to);
    // SAFETY: both masks are 64 bits long. Moving a page leaves its contents alone.
    let left = unsafe {
        libc::syscall(
            libc::SYS_migrate_pages,
            0,
            u64::BITS as usize + 1,
            &from,
            &to,
        )
    };
    Errno::result(left).map(|left| left as usize)
}
