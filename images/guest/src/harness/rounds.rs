// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How often a race is tried: `pinbed_rounds=N` on the kernel's command line, which the environment smp says, has it tried N times as often.

use crate::harness::cmdline;
use crate::harness::error::Error;

/// Times that a race is tried in this guest, which elsewhere is tried `usual` times.
pub fn rounds(usual: usize) -> Result<usize, Error> {
    Ok(usual * factor(&cmdline::read()?)?)
}

fn factor(line: &str) -> Result<usize, Error> {
    let Some(value) = cmdline::value(line, "pinbed_rounds=") else {
        return Ok(1);
    };
    match value.parse() {
        Ok(factor @ 1..=1000) => Ok(factor),
        _ => Err(Error::Format {
            source_name: "the kernel's command line".into(),
            text: format!("pinbed_rounds={value} is no number from 1 to 1000"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_how_often() {
        let asked = |line| factor(line).ok();
        assert_eq!(asked("quiet"), Some(1));
        assert_eq!(asked("pinbed_rounds=5 quiet pinbed_rounds=7"), Some(7));
        for bad in [
            "pinbed_rounds=",
            "pinbed_rounds=0",
            "pinbed_rounds=1001",
            "pinbed_rounds=x",
        ] {
            assert_eq!(asked(bad), None, "{bad}");
        }
    }
}
