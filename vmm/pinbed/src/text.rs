// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Text from a guest, made safe for a terminal.

/// A line without what would control a terminal.
pub fn printable(line: &str) -> String {
    console::strip_ansi_codes(line)
        .chars()
        .filter(|&c| c == '\t' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_control_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\x07c\td\r"), "abc\td");
    }
}
