// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can keep the harness from doing its part.

use nix::errno::Errno;
use std::io;

/// Why a view of the kernel could not be had. None of these is a judgement on the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed that the harness itself relies on.
    #[error("{what}: {errno}")]
    Call {
        /// What was tried, as a noun phrase.
        what: String,
        /// How it failed.
        errno: Errno,
    },
    /// The kernel or the machine lacks something that a test needs.
    #[error("{what} is not there; {remedy}")]
    Absent {
        /// What is lacking.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// The kernel said something this harness does not understand.
    #[error(
        "{source_name} says '{text}', which this harness cannot read; teach it this kernel's format"
    )]
    Format {
        /// File or answer.
        source_name: String,
        /// The part that was not understood.
        text: String,
    },
    /// The device answered a request of the harness with something other than OK.
    #[error(
        "the device answered {operation} with status {status}; see STATUS_… in the wire format"
    )]
    Device {
        /// The request.
        operation: &'static str,
        /// `STATUS_…`.
        status: u32,
    },
}

impl Error {
    /// For `map_err` behind a nix call.
    pub fn call(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let what = what.into();
        move |errno| Self::Call { what, errno }
    }

    /// For `map_err` behind a std call.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Call {
            what,
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        }
    }
}
