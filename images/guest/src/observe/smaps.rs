// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel says of one of this process's mappings: /proc/self/smaps (Documentation/filesystems/proc.rst).

use crate::harness::error::Error;
use std::fs;

/// A field of the mapping that holds this address, such as `VmFlags`, or `None` where there is no such mapping or field.
pub fn field(address: usize, name: &str) -> Result<Option<String>, Error> {
    const WHERE: &str = "/proc/self/smaps";
    let smaps = fs::read_to_string(WHERE).map_err(Error::io(format!("reading {WHERE}")))?;
    Ok(find(&smaps, address, name).map(str::to_owned))
}

/// A mapping begins with a line that says its range in hexadecimal digits; the names of fields have none or a colon behind them.
fn find<'a>(smaps: &'a str, address: usize, name: &str) -> Option<&'a str> {
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    };
    smaps
        .lines()
        .skip_while(|line| !range(line).is_some_and(|range| range.contains(&address)))
        .skip(1)
        .take_while(|line| range(line).is_none())
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_that_of_the_mapping_asked_for() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0\nAnonHugePages:      4 kB\nVmFlags: rd wr \n\
                     3000-4000 rw-s 00000000 00:0a 7 /dmabuf:\nVmFlags: rd wr io pf \n";
        assert_eq!(find(smaps, 0x2fff, "AnonHugePages"), Some("4 kB"));
        assert_eq!(find(smaps, 0x3000, "VmFlags"), Some("rd wr io pf"));
        assert_eq!(find(smaps, 0x3000, "AnonHugePages"), None);
        assert_eq!(find(smaps, 0x4000, "VmFlags"), None);
    }
}
