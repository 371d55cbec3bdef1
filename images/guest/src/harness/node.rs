// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files of the kernel's that it has or has not, by its configuration.

use crate::harness::error::Error;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Opens one for reading and writing.
///
/// # Errors
/// [`Error::Absent`] with this remedy.
pub fn open_node(path: impl AsRef<Path>, remedy: impl Into<String>) -> Result<OwnedFd, Error> {
    let path = path.as_ref();
    open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|_| Error::Absent {
        what: path.display().to_string(),
        remedy: remedy.into(),
    })
}
