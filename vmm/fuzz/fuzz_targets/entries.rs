// SPDX-License-Identifier: Apache-2.0 OR MIT
//! See `pinbed::fuzzing::entries`.
//!
//!     ci/fuzz 60
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinbed::fuzzing::entries(data));
