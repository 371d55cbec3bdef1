// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From a plan of tests to a record of verdicts: what is set up, booted, heard and judged.

pub mod additions;
pub mod environments;
pub mod extras;
pub mod plan;
pub mod revision;
pub mod session;
pub mod setup;
pub mod suite;
pub mod warm;
