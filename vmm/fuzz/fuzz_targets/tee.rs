// SPDX-License-Identifier: Apache-2.0 OR MIT
//! See `vmm/engine/tests/corpus/tee.rs`.
//!
//!     ci/fuzz 60
#![no_main]

#[path = "../../engine/tests/corpus/tee.rs"]
mod tee;

libfuzzer_sys::fuzz_target!(init: pinbed_engine::tee::quiet_applications(), |data: &[u8]| tee::run(data));
