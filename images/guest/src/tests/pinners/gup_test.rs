// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's own test of pins (CONFIG_GUP_TEST), which pins user memory until its file is closed.

use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::observe::extent::PAGE;
use std::os::fd::{AsRawFd, OwnedFd};

const PATH: &str = "/sys/kernel/debug/gup_test";

/// struct pin_longterm_test of mm/gup_test.h.
#[repr(C)]
pub struct Start {
    address: u64,
    size: u64,
    flags: u32,
}

const USE_WRITE: u32 = 1;
const USE_FAST: u32 = 2;

nix::ioctl_write_ptr!(start, b'g', 7, Start);
nix::ioctl_none!(stop, b'g', 8);

/// An open file of it.
pub struct GupTest {
    file: OwnedFd,
    flags: u32,
}

impl GupTest {
    /// By pin_user_pages_fast(), or by pin_user_pages().
    ///
    /// # Errors
    /// Where the kernel has it not.
    pub fn open(fast: bool) -> Result<Self, Error> {
        let remedy = "build the kernel with CONFIG_GUP_TEST and CONFIG_DEBUG_FS";
        let file = open_node(PATH, remedy)?;
        let flags = USE_WRITE | if fast { USE_FAST } else { 0 };
        // SAFETY: the descriptor is open, and nothing is pinned yet.
        unsafe { stop(file.as_raw_fd()) }.map_err(|_| Error::Absent {
            what: "PIN_LONGTERM_TEST_START".into(),
            remedy: "take a kernel of 6.2 or later".into(),
        })?;
        Ok(Self { file, flags })
    }
}

impl Taker for GupTest {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let argument = Start {
            address: address as u64,
            size: PAGE as u64,
            flags: self.flags,
        };
        // SAFETY: the descriptor is open, and the argument is a struct that the call reads. The page is that of a mapping, of which no
        // references exist.
        unsafe { start(self.file.as_raw_fd(), &argument) }.map(drop)
    }
}
