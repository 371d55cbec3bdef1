// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Text for people: messages on standard error, and text from a guest made safe for a terminal.

/// Writes a line to standard error, as `eprintln!` does; but that its reader has gone is no reason to panic.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

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
