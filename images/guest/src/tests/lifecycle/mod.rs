// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can happen to memory while a device holds it: afterwards process and device look at the same bytes still, in the same page
//! frames, or the device is left its own. The simplest of it is in [`hold`].

pub mod fork;
pub mod hold;
pub mod huge;
pub mod merge;
pub mod migrate;
pub mod poison;
pub mod protect;
pub mod reclaim;
pub mod remap;
mod stage;
