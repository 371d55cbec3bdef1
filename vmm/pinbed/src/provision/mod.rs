// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine needs before anything can run: packages, a QEMU with the device, and the ways to get them from Debian.

pub mod answers;
pub mod apt;
pub mod bundle;
pub mod cache;
pub mod child;
pub mod compliance;
pub mod debian;
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

use std::sync::atomic::{AtomicBool, Ordering};

use cache::Cache;

use progress::Progress;

/// Whether nothing may be fetched.
static OFFLINE: AtomicBool = AtomicBool::new(false);

/// From here on nothing is fetched: what is not in the cache is an error.
pub fn stay_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

/// Whether nothing may be fetched.
pub fn is_offline() -> bool {
    OFFLINE.load(Ordering::Relaxed)
}

/// Sees that `what` may be fetched.
///
/// # Errors
/// When the command line says that nothing may be.
pub fn online(what: &str) -> Result<(), Error> {
    match is_offline() {
        true => Err(Error::Offline {
            what: what.to_owned(),
        }),
        false => Ok(()),
    }
}

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
