// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting for what the kernel does in its own time.

use crate::harness::error::Error;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that is going to happen at all, under emulation on a machine that is busy with other things, too.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Asks again and again until the answer is yes; whether it was, within this time.
pub fn until(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let start = Instant::now();
    loop {
        if done()? {
            return Ok(true);
        }
        if start.elapsed() > limit {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1));
    }
}
