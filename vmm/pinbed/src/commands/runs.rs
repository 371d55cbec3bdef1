// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed runs`: the runs that are kept.

use std::io::{self, Write};

use anyhow::Result;
use chrono::Local;

use crate::exit::Exit;
use crate::report::recorder::{self, Kept};

/// Lists them, the newest first: when, the kernels with their counts, the exit code, the command, and where the JSON document is.
///
/// # Errors
/// When the output cannot be written.
pub fn runs() -> Result<Exit> {
    let mut out = io::stdout().lock();
    let kept = recorder::directory().map_or_else(Vec::new, |place| Kept::all(&place));
    if kept.is_empty() {
        writeln!(out, "no run is kept")?;
    }
    for kept in kept {
        let Some(run) = kept.run() else {
            writeln!(out, "{}  did not end", kept.name)?;
            continue;
        };
        let started = run
            .started
            .with_timezone(&Local)
            .format("%Y-%m-%d %H:%M:%S");
        let command = shlex::try_join(run.command.iter().skip(1).map(String::as_str));
        let exit = run.exit.map_or("-".to_owned(), |exit| exit.to_string());
        writeln!(
            out,
            "{started}  exit {exit:<3}  pinbed {}",
            command.unwrap_or_default()
        )?;
        for session in &run.sessions {
            writeln!(out, "    {}: {}", session.name(), session.summary.counts)?;
        }
        if let Some(error) = &run.error {
            writeln!(out, "    {error}")?;
        }
        writeln!(out, "    {}", kept.path().display())?;
    }
    Ok(Exit::Green)
}
