// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Faults of the device by name, as the host asks for them: `pinbed run --fault NAME[=N]`.
//!
//! Each is a kind of [`crate::wire::INJECT_NONE`] and its kin, with an argument, for one request: the Nth job, ATTACH, DETACH or call
//! of a device's life. A device that takes the place of another counts anew; a reset changes nothing.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;

use crate::wire;

/// A fault that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// `wire::INJECT_…`.
    pub kind: u32,
    /// The kind's argument.
    pub argument: u64,
    /// What the device does.
    pub text: &'static str,
}

const fn named(name: &'static str, kind: u32, argument: u64, text: &'static str) -> Named {
    Named {
        name,
        kind,
        argument,
        text,
    }
}

/// All of them.
#[rustfmt::skip]
pub const FAULTS: &[Named] = &[
    named("late", wire::INJECT_DELAY, 1_000_000, "the Nth video job begins 1 s late"),
    named("fail", wire::INJECT_FAIL, 0, "the Nth video job moves nothing and is answered with an error"),
    named("lost", wire::INJECT_LOSE, 0, "the Nth video job is never answered"),
    named("twice", wire::INJECT_TWICE, 0, "the Nth video job is answered twice"),
    named("reordered", wire::INJECT_REORDER, 0, "the Nth video job is answered after the next"),
    named("short", wire::INJECT_SHORT, 0, "the Nth video job moves half of its bytes, without an error"),
    named("status", wire::INJECT_STATUS, 77, "the Nth video job is answered with a status that is not defined"),
    named("astray", wire::INJECT_ASTRAY, 4096, "the Nth video job writes 4096 bytes behind its destination"),
    named("stall", wire::INJECT_SILENCE, 0, "after the Nth video job nothing is answered until a reset"),
    named("death", wire::INJECT_DIE, 0, "the device dies at the Nth video job"),
    named("stale", wire::INJECT_STALE, 0x5a, "what the Nth DETACH took away is written at the next STATUS"),
    named("kept", wire::INJECT_KEEP, 0, "the Nth DETACH is refused"),
    named("attach-lost", wire::INJECT_LOSE_ATTACH, 0, "the Nth ATTACH is never answered"),
    named("attach-death", wire::INJECT_DIE_ATTACHED, 0, "the device dies between the Nth ATTACH and its answer"),
    named("call-lost", wire::INJECT_LOSE_CALL, 0, "the Nth call of the TEE is never answered"),
    named("call-twice", wire::INJECT_TWICE_CALL, 0, "the Nth call of the TEE is answered twice"),
    named("call-status", wire::INJECT_STATUS_CALL, 77, "the Nth call of the TEE is answered with a status that is not defined"),
    named("call-death", wire::INJECT_DIE_IN_CALL, 0, "the device dies in the Nth call of the TEE"),
];

/// A fault, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub named: Named,
    /// At which request, from 1.
    pub nth: NonZeroU32,
}

/// Why a text is no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No fault has this name.
    Name,
    /// What stands behind `=` is no number from 1 on.
    Number,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => {
                write!(f, "no fault has this name; there are")?;
                FAULTS.iter().try_for_each(|it| write!(f, " {}", it.name))
            }
            Self::Number => write!(f, "behind '=' comes a number from 1 on, as in lost=3"),
        }
    }
}

impl core::error::Error for ParseError {}

/// `NAME` or `NAME=N`.
impl FromStr for Fault {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, nth) = text.split_once('=').unwrap_or((text, "1"));
        let named = FAULTS.iter().find(|it| it.name == name);
        Ok(Self {
            named: *named.ok_or(ParseError::Name)?,
            nth: nth.parse().map_err(|_| ParseError::Number)?,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.named.name, self.nth)
    }
}
