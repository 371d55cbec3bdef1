// SPDX-License-Identifier: Apache-2.0 OR MIT
//! See `vmm/engine/tests/corpus/requests.rs`.
//!
//!     ci/fuzz 60
#![no_main]

#[path = "../../engine/tests/corpus/requests.rs"]
mod requests;

libfuzzer_sys::fuzz_target!(|data: &[u8]| requests::run(data));
