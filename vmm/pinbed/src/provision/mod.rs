// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine needs before anything can run: packages, a QEMU with the device, and the ways to get them from Debian.

pub mod answers;
pub mod apt;
pub mod cache;
pub mod child;
pub mod compliance;
pub mod disk;
pub mod error;
pub mod inventory;
pub mod packages;
pub mod programs;
pub mod progress;
pub mod qemu;
pub mod scratch;
pub mod sources;
mod workspace;

pub use error::Error;
pub use workspace::{choose as choose_workspace, target, workspace};

use cache::Cache;

use progress::Progress;

/// Where things are kept and where progress is shown: what every step needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// The user's cache.
    pub cache: Cache,
    /// Where progress is shown.
    pub progress: Progress,
}

impl Context {
    /// The user's cache and standard error.
    pub fn of_user() -> Result<Self, Error> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Error::Architecture {
                arch: std::env::consts::ARCH,
            });
        }
        Ok(Context {
            cache: Cache::of_user()?,
            progress: Progress::new(),
        })
    }
}
