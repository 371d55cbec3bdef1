// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed list`: the tests, and what a correct kernel does in each.

use std::io::{self, Write};

use anyhow::Result;
use console::Style;

use crate::cli::ListArgs;
use crate::exit::Exit;
use crate::provision::{programs, workspace};
use crate::run::suite::{self, Selection};

/// Prints the chosen tests.
///
/// # Errors
/// When the guest's programs cannot be built, a filter matches nothing, or the output cannot be written.
pub fn list(args: &ListArgs) -> Result<Exit> {
    let all = programs::list(&programs::build(&workspace()?)?)?;
    let chosen = suite::select(
        &all,
        &Selection {
            filters: &args.filters,
            ..Selection::default()
        },
    )?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &chosen)?;
        writeln!(out)?;
        return Ok(Exit::Green);
    }
    let width = console::Term::stdout()
        .size_checked()
        .map_or(100, |(_, columns)| usize::from(columns));
    let options = textwrap::Options::new(width.min(120))
        .initial_indent("    ")
        .subsequent_indent("    ");
    for test in chosen {
        writeln!(out, "{}", Style::new().bold().apply_to(&test.name))?;
        for line in textwrap::wrap(&test.correct, &options) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(Exit::Green)
}
