// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Swap on a disk in memory. The area's header is that of include/linux/swap.h, union swap_header.

use crate::harness::error::Error;
use crate::observe::extent::PAGE;
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// The second disk in memory (CONFIG_BLK_DEV_RAM_COUNT); the first is for a file system.
const DISK: &str = "/dev/ram1";
/// Pages that are used of it.
const PAGES: u32 = 1024;

/// Swap that is on; off again when this is dropped, with all that is in it brought back.
pub struct Swap(());

impl Swap {
    /// Writes a new header and turns swap on.
    pub fn on() -> Result<Self, Error> {
        let absent = |what: String| {
            Error::Absent {
            what,
            remedy: "build the kernel with CONFIG_SWAP, CONFIG_BLK_DEV_RAM and CONFIG_BLK_DEV_RAM_COUNT=2".into(),
        }
        };
        let disk = File::options()
            .write(true)
            .open(DISK)
            .map_err(|_| absent(DISK.into()))?;
        disk.write_all_at(&header(), 0)
            .map_err(Error::io(format!("writing to {DISK}")))?;
        drop(disk);
        let path = path();
        // SAFETY: the argument is a path that ends with a NUL.
        match Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) }) {
            Ok(_) => Ok(Self(())),
            Err(Errno::ENOSYS) => Err(absent("swap".into())),
            Err(errno) => Err(Error::call(format!("swapon {DISK}"))(errno)),
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // What fails here is found by `off`, before the next test.
        let _ = off();
    }
}

/// Turns the swap off that a test was killed with.
pub fn off() -> Result<(), Error> {
    // Absent in kernels without swap.
    if !fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(DISK)) {
        return Ok(());
    }
    let path = path();
    // SAFETY: as in `on`.
    Errno::result(unsafe { libc::swapoff(path.as_ptr()) })
        .map(drop)
        .map_err(Error::call(format!("swapoff {DISK}")))
}

fn path() -> CString {
    // The path is a constant without a NUL.
    CString::new(DISK).unwrap_or_default()
}

/// The first page of a swap area of this many pages.
fn header() -> Vec<u8> {
    const BOOT_BITS: usize = 1024;
    const VERSION: u32 = 1;
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let mut page = vec![0; PAGE];
    page[BOOT_BITS..BOOT_BITS + 4].copy_from_slice(&VERSION.to_le_bytes());
    page[BOOT_BITS + 4..BOOT_BITS + 8].copy_from_slice(&(PAGES - 1).to_le_bytes());
    page[PAGE - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}
