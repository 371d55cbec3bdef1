// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can keep the driver from having the device.

use std::io;
use virtio_drivers::transport::pci::VirtioPciError;

/// Why the device cannot be driven from here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the kernel lacks something.
    #[error("{what} is not there; {remedy}")]
    Absent {
        /// What is lacking.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// A file of sysfs or a device node could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, as a noun phrase.
        what: String,
        /// How it failed.
        source: io::Error,
    },
    /// The function is not a virtio device as virtio-drivers knows them.
    #[error("the PCI function cannot be used: {0}")]
    Transport(#[from] VirtioPciError),
    /// A virtqueue cannot be used.
    #[error("virtqueue: {0}")]
    Queue(#[from] virtio_drivers::Error),
    /// The device has not given a chain back.
    #[error("queue {queue}: no chain is used within {seconds} s")]
    Timeout {
        /// The queue's index.
        queue: u16,
        /// How long the driver waited.
        seconds: u64,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
