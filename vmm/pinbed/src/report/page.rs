// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lines for people: wrapped at the terminal's width, with a live last line on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use console::{Style, StyledObject, Term, truncate_str};
use indicatif::{ProgressBar, ProgressStyle};

use crate::text::printable;

/// Where what belongs to a line begins under it.
pub const INDENT: &str = "         ";
/// How wide the titles of paragraphs are.
const TITLE: usize = 10;
/// Narrower terminals have to wrap.
const NARROWEST: usize = 40;
/// Below this there is no room for a bar.
const NARROW: usize = 70;
/// Wider lines are harder to read.
const WIDEST: usize = 120;
/// Where there is no terminal.
const WIDTH: usize = 100;

/// Where lines go. The live line goes to standard error.
pub struct Page<W> {
    out: W,
    width: usize,
    live: Option<ProgressBar>,
}

impl<W: Write> Page<W> {
    /// A page on `out`, as wide as the terminal, live if standard error is one.
    pub fn new(out: W, terminal: &Term) -> Self {
        let columns = terminal
            .size_checked()
            .map_or(WIDTH, |(_, columns)| columns.into());
        let live = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let width = columns.clamp(NARROWEST, WIDEST);
        let page = Page { out, width, live };
        page.template("{spinner} {wide_msg:.dim}");
        page
    }

    /// As if the terminal were so wide.
    #[cfg(test)]
    pub fn set_width(&mut self, width: usize) {
        self.width = width;
    }

    fn template(&self, template: &str) {
        if let (Some(bar), Ok(style)) = (&self.live, ProgressStyle::with_template(template)) {
            bar.set_style(style.progress_chars("=> "));
        }
    }

    /// From now on the live line counts to `total`.
    pub fn count_to(&self, total: usize) {
        self.template(match self.width {
            ..NARROW => "{spinner} {pos}/{len} {elapsed} {wide_msg:.dim}",
            _ => "{spinner} [{bar:20}] {pos}/{len}  {elapsed}  {wide_msg:.dim}",
        });
        if let Some(bar) = &self.live {
            bar.set_length(total as u64);
            bar.set_position(0);
            bar.reset();
        }
    }

    /// One more is done.
    pub fn count(&self) {
        if let Some(bar) = &self.live {
            // Before the first one nobody knows how long the rest will take.
            if bar.position() == 0 && self.width >= NARROW {
                self.template(
                    "{spinner} [{bar:20}] {pos}/{len}  {elapsed}, {eta} left  {wide_msg:.dim}",
                );
            }
            bar.inc(1);
        }
    }

    /// The columns there are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Shows what goes on now in the live line.
    pub fn now(&self, what: String) {
        if let Some(bar) = &self.live {
            bar.set_message(what);
        }
    }

    /// Takes the live line away for good.
    pub fn still(&mut self) {
        if let Some(bar) = self.live.take() {
            bar.finish_and_clear();
        }
    }

    /// A line.
    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        let Page { out, live, .. } = self;
        let line = line.to_string();
        // Flushed, since who waits for a test's verdict may read through a pipe.
        let mut print = || writeln!(out, "{}", line.trim_end()).and_then(|()| out.flush());
        match live {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// A paragraph under a line, with a title to its left.
    pub fn titled(&mut self, title: StyledObject<&str>, text: &str) -> io::Result<()> {
        let title = format!("{INDENT}{title:<TITLE$}");
        self.beside(&title, INDENT.len() + TITLE, text)
    }

    /// A paragraph beside what stands on its first line alone and is so wide.
    pub fn beside(&mut self, first: &str, width: usize, text: &str) -> io::Result<()> {
        let indent = " ".repeat(width);
        let mut left = first;
        for line in self.wrap(text, width) {
            self.line(format!("{left}{line}"))?;
            left = &indent;
        }
        Ok(())
    }

    /// A paragraph under a line.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        self.wrap(text, INDENT.len())
            .into_iter()
            .try_for_each(|line| self.line(format!("{INDENT}{line}")))
    }

    /// Lines of a log as they are, but cut where they are too long.
    pub fn log<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let dim = Style::new().dim();
        lines.into_iter().try_for_each(|line| {
            let line = printable(&line.replace('\t', " "));
            let line = truncate_str(&line, self.width - INDENT.len(), "…");
            self.line(format!("{INDENT}{}", dim.apply_to(line)))
        })
    }

    /// Lines that fit beside or under something so wide.
    fn wrap(&self, text: &str, indent: usize) -> Vec<String> {
        let mut lines = Vec::new();
        // A path or a name stays whole.
        let options = textwrap::Options::new(self.width - indent).break_words(false);
        for line in text.lines().map(printable) {
            let parts = textwrap::wrap(&line, &options);
            lines.extend(parts.into_iter().map(|part| part.into_owned()));
        }
        lines
    }
}
