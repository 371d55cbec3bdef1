// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed report`: the HTML page of one or many results.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::cli::HtmlArgs;
use crate::commands::run::Unwritable;
use crate::exit::Exit;
use crate::report::file::Target;
use crate::report::{html, result};

/// Reads the results and writes the page.
///
/// # Errors
/// When a result cannot be read, or the page cannot be written.
pub fn report(args: &HtmlArgs) -> Result<Exit> {
    let began = Instant::now();
    let target = Target::from(args.output.clone());
    target
        .check()
        .map_err(|why| Unwritable::new("--output", &args.output, why))?;
    let results = args
        .results
        .iter()
        .map(|name| result::find(name))
        .collect::<Result<Vec<_>, _>>()?;
    let page = html::document(&results).map_err(anyhow::Error::msg)?;
    target
        .write(&page)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    if target != Target::Stdout {
        say!(
            "pinbed: wrote {} ({:.1} MB, {} ms); open it in any browser",
            args.output.display(),
            page.len() as f64 / 1e6,
            began.elapsed().as_millis()
        );
    }
    Ok(Exit::Green)
}
