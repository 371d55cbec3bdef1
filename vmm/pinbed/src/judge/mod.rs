// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a test's outcome means: the known failures of each kernel, and verdicts against them.

pub mod baseline;
mod closest;
pub mod defects;
pub mod matrix;
pub mod mutants;
pub mod pinners;
pub mod verdict;

pub use closest::closest;
