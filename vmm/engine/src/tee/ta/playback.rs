// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Secure playback: decrypts a stream into memory that only the device's engines can read.
