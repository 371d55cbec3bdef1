// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The locks of code whose interleavings are tested: tests compile that code with shuttle's in their place.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
