// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which kernel this is.

use crate::harness::error::Error;
use nix::sys::utsname::uname;

/// Its major and minor version.
///
/// # Errors
/// When its release does not begin with them.
pub fn release() -> Result<(u32, u32), Error> {
    let name = uname().map_err(Error::call("uname"))?;
    let release = name.release().to_string_lossy();
    parse(&release).ok_or_else(|| Error::Format {
        source_name: "uname".into(),
        text: release.into_owned(),
    })
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_numbers_count() {
        assert_eq!(parse("6.12.117-pinbed"), Some((6, 12)));
        assert_eq!(parse("7.3+"), Some((7, 3)));
        assert_eq!(parse("next"), None);
    }
}
