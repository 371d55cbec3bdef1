// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed known --page`: the defects of kernels that the tests have found or confirmed, a paragraph each. What a defect is stands in
//! `images/defects.toml`; kernels, tests, references and fixes are those of the baselines' entries that name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::judge::baseline::{Baselines, Expected, Names};
use crate::judge::{BLESS, few};

/// Places in the kernel that the page names.
const PLACES: usize = 3;

/// The file's form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    defect: Vec<Defect>,
}

/// A defect, as the file describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defect {
    name: String,
    part: String,
    title: String,
    trigger: String,
    effect: String,
    reach: String,
    upstream: String,
}

/// What the baselines say of a defect.
#[derive(Default)]
struct Found {
    kernels: BTreeSet<String>,
    tests: BTreeSet<String>,
    references: BTreeSet<String>,
    /// Whether it shows without an environment, in which every kernel is run.
    is_ordinary: bool,
    /// Patches with the kernel that they are for.
    fixes: BTreeSet<(String, String)>,
}

/// The page, in Markdown.
///
/// # Errors
/// When the file cannot be read, or it and the baselines do not name the same defects.
pub fn page(workspace: &Path, names: &Names, baselines: &Baselines) -> Result<String> {
    let path = workspace.join("images/defects.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text: Text =
        toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
    let mut found = found(names, baselines)?;
    let mut table = table_head(&names.kernels);
    let mut paragraphs = String::new();
    let mut part = "";
    for defect in &text.defect {
        let Some(found) = found.remove(&defect.name) else {
            bail!(
                "{} describes the defect {}, which no entry of images/baselines names",
                path.display(),
                defect.name
            );
        };
        if part != defect.part {
            part = &defect.part;
            write!(paragraphs, "## {part}\n\n")?;
        }
        table.push_str(&row(defect, &found, &names.kernels));
        paragraphs.push_str(&paragraph(defect, &found, &names.kernels));
    }
    if let Some((name, found)) = found.into_iter().next() {
        let test = found.tests.into_iter().next().unwrap_or_default();
        bail!(
            "the baseline of {test} names the defect {name}, which {} does not describe",
            path.display()
        );
    }
    Ok(format!(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->\n\
         <!-- Made by `pinbed known --page` from images/defects.toml and the baselines: {BLESS} -->\n\
         # Defects of kernels\n\n\
         What the tests have found, or confirmed, in the kernels that pinbed knows. ✗ is a kernel that has the defect, ✓ one on which the \
         same tests pass, ? one that was not looked at: the defect shows in an environment only. `pinbed run TEST` shows it; `pinbed run --kernel 6.12+FIX TEST` shows it mended. The patches of the fixes are in \
         [guest-kernel-config/patches/fixes](../guest-kernel-config/patches/fixes/README.md).\n\n{table}\n{}\n",
        paragraphs.trim_end()
    ))
}

/// What the baselines say, by defect.
fn found(names: &Names, baselines: &Baselines) -> Result<BTreeMap<String, Found>> {
    let mut all: BTreeMap<String, Found> = BTreeMap::new();
    for kernel in &names.kernels {
        for (environment, baseline) in baselines.parts(kernel, &names.environments) {
            for test in &names.tests {
                let Some(known) = baseline.get(test) else {
                    continue;
                };
                let Expected::Xfail { reference, .. } = &known.expected else {
                    continue;
                };
                let Some(defect) = &known.defect else {
                    bail!(
                        "the baseline of {test} on {kernel} names no defect of images/defects.toml"
                    );
                };
                let found = all.entry(defect.clone()).or_default();
                found.kernels.insert(kernel.clone());
                found.is_ordinary |= environment.is_none();
                // As `pinbed run` takes it.
                found.tests.insert(match environment {
                    Some(environment) => format!("{test} --env {environment}"),
                    None => test.clone(),
                });
                found.references.insert(reference.clone());
                let there = known
                    .fixed_by
                    .iter()
                    .filter(|patch| names.fixes.contains(&format!("{patch}-{kernel}")));
                found
                    .fixes
                    .extend(there.map(|patch| (patch.clone(), kernel.clone())));
            }
        }
    }
    Ok(all)
}

fn table_head(kernels: &[String]) -> String {
    let lines = "|---".repeat(kernels.len());
    format!(
        "| defect | {} | fix |\n|---{lines}|---|\n",
        kernels.join(" | ")
    )
}

fn row(defect: &Defect, found: &Found, kernels: &[String]) -> String {
    let marks: Vec<_> = kernels
        .iter()
        .map(|kernel| match found.kernels.contains(kernel) {
            true => "✗",
            false if found.is_ordinary => "✓",
            false => "?",
        })
        .collect();
    let fixes: BTreeSet<_> = found
        .fixes
        .iter()
        .map(|(patch, _)| patch.as_str())
        .collect();
    let fixes: Vec<_> = fixes.into_iter().collect();
    format!(
        "| [{}](#{}) | {} | {} |\n",
        defect.title,
        anchor(&defect.title),
        marks.join(" | "),
        fixes.join(", ")
    )
}

/// What a heading's link is on the pages that show Markdown.
fn anchor(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn paragraph(defect: &Defect, found: &Found, kernels: &[String]) -> String {
    let on: Vec<_> = kernels
        .iter()
        .filter(|kernel| found.kernels.contains(*kernel))
        .map(String::as_str)
        .collect();
    let mut fixes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (patch, kernel) in &found.fixes {
        fixes
            .entry(patch)
            .or_default()
            .push(format!("`{kernel}+{patch}`"));
    }
    let fixes: Vec<_> = fixes.into_values().flatten().collect();
    let tests = few(found.tests.iter().map(String::as_str));
    let references: Vec<_> = found
        .references
        .iter()
        .take(PLACES)
        .map(String::as_str)
        .collect();
    format!(
        "### {}\n\n\
         - **Kernels**: {}\n\
         - **Trigger**: {}\n\
         - **Effect**: {}\n\
         - **Within reach of**: {}\n\
         - **Upstream**: {}\n\
         - **Fix**: {}\n\
         - **Tests**: {}\n\
         - **Where**: {}\n\n",
        defect.title,
        on.join(", "),
        defect.trigger,
        defect.effect,
        defect.reach,
        defect.upstream,
        match fixes.is_empty() {
            true => "none here".to_owned(),
            false => fixes.join(", "),
        },
        tests.join(", "),
        references.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use super::anchor;

    #[test]
    fn headings_are_linked_as_they_are_shown() {
        assert_eq!(
            anchor("A udmabuf is mapped in the CPU's first, 64-bit access"),
            "a-udmabuf-is-mapped-in-the-cpus-first-64-bit-access"
        );
    }
}
