// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Compaction: free pages that lie apart are put together (Documentation/admin-guide/sysctl/vm.rst, compact_memory).

use crate::harness::error::Error;
use crate::harness::setting;

/// How often something that needs free memory in one piece is tried.
const ATTEMPTS: usize = 5;

/// Compacts the memory of all nodes, once.
pub fn compact() -> Result<(), Error> {
    setting::write("/proc/sys/vm/compact_memory", "1")
}

/// Repeats what needs free memory in one piece until it is done, and compacts memory between two attempts: what ran before may have left the
/// free pages apart. Returns whether it was done.
pub fn until_whole<E: From<Error>>(
    mut attempt: impl FnMut() -> Result<bool, E>,
) -> Result<bool, E> {
    for _ in 1..ATTEMPTS {
        if attempt()? {
            return Ok(true);
        }
        // A kernel without compaction does what it can without it.
        let _ = compact();
    }
    attempt()
}
