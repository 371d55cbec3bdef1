// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed known`: the known failures and skips of kernels, with the reasons; or the page of the defects behind them.

use std::io::{self, Write};

use anyhow::Result;
use console::{Style, style};

use crate::cli::KnownArgs;
use crate::exit::Exit;
use crate::judge::baseline::{Baselines, Expected, Names};
use crate::judge::defects;
use crate::kernel::Manifest;
use crate::provision::{programs, workspace};
use crate::run::suite::{self, Selection};

/// Prints them, by kernel, where tests with the same reason stand together; or the page.
///
/// # Errors
/// When the guest's programs cannot be built, the baselines are not valid, or a kernel or a filter names nothing.
pub fn known(args: &KnownArgs) -> Result<Exit> {
    let top = workspace()?;
    let tests = programs::list(&programs::build(&top)?)?;
    let manifest = Manifest::read(&top.join("guest-kernel-config/kernels.toml"))?;
    let names = Names::of_checkout(&top, &manifest, &tests);
    for asked in args.kernels.iter().filter(|name| *name != "all") {
        // An unknown one is an error, as in a run.
        manifest.named(asked.split('+').next().unwrap_or(asked))?;
    }
    let baselines = Baselines::of_checkout(&top, &names)?;
    if args.page {
        print!("{}", defects::page(&top, &names, &baselines)?);
        return Ok(Exit::Green);
    }
    let chosen = suite::select(
        &tests,
        &Selection {
            filters: &args.filters,
            ..Selection::default()
        },
    )?;
    let mut out = io::stdout().lock();
    for kernel in &names.kernels {
        let wanted = |name: &String| {
            let stock = name.split('+').next().unwrap_or(name);
            stock == kernel || name == "all"
        };
        if !args.kernels.is_empty() && !args.kernels.iter().any(wanted) {
            continue;
        }
        let patches: Vec<_> = args
            .kernels
            .iter()
            .filter(|name| wanted(name))
            .flat_map(|name| name.split('+').skip(1).map(str::to_owned))
            .collect();
        let baseline = baselines.of(kernel).patched(&patches);
        let mut entries: Vec<(String, String, Vec<&str>)> = Vec::new();
        for test in &chosen {
            let Some(known) = baseline.get(&test.name) else {
                continue;
            };
            let (word, reference) = match &known.expected {
                Expected::Xfail { reference, .. } => ("xfail", reference.clone()),
                Expected::Skip => ("skip", String::new()),
                Expected::Pass => continue,
            };
            let text = match reference.is_empty() {
                true => known.reason.clone(),
                false => format!("{}\n{reference}", known.reason),
            };
            let same = entries.iter_mut().find(|(w, t, _)| w == word && *t == text);
            match same {
                Some((_, _, names)) => names.push(&test.name),
                None => entries.push((word.to_owned(), text, vec![&test.name])),
            }
        }
        let count: usize = entries.iter().map(|(_, _, names)| names.len()).sum();
        writeln!(out, "{}", style(format!("{kernel}: {count} tests")).bold())?;
        let width = console::Term::stdout()
            .size_checked()
            .map_or(100, |(_, columns)| usize::from(columns).clamp(40, 120));
        let options = textwrap::Options::new(width)
            .initial_indent("         ")
            .subsequent_indent("         ");
        for (word, text, names) in entries {
            let colour = match word.as_str() {
                "xfail" => Style::new().yellow(),
                _ => Style::new().cyan(),
            };
            for name in names {
                writeln!(out, "  {} {name}", colour.apply_to(format!("{word:<6}")))?;
            }
            for line in text.lines().flat_map(|line| textwrap::wrap(line, &options)) {
                writeln!(out, "{}", style(line).dim())?;
            }
        }
    }
    Ok(Exit::Green)
}
