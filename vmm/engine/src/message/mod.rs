// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bytes to requests, and answers to bytes.

mod decode;
mod encode;

pub use encode::Answer;
pub(crate) use {decode::Request, encode::status};
