// SPDX-License-Identifier: Apache-2.0 OR MIT
//! See `pinbed_engine::tee::protection`.
//!
//!     ci/fuzz 60
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinbed_engine::tee::protection::run(data));
