// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed matrix`: what each kernel does with each kind of memory, as a page for people who write media drivers. All of it is from the
//! tests' names and sentences and from the baselines, which a green run has shown to be true.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use pinbed_abi::report::{Eye, TestInfo};

use crate::judge::BLESS;
use crate::judge::baseline::{Baseline, Baselines, Expected, Known};

/// The page, in Markdown.
pub fn page(tests: &[TestInfo], kernels: &[String], baselines: &Baselines) -> String {
    let kernels: Vec<_> = kernels
        .iter()
        .map(|name| (name.as_str(), baselines.of(name)))
        .collect();
    let mut notes = Vec::new();
    let user = table(
        &["memory", "queue", "node"],
        &rows(tests.iter().filter_map(kind)),
        &kernels,
        &mut notes,
    );
    let mapped = table(
        &["mapping of", "taken by"],
        &rows(tests.iter().filter_map(mapping)),
        &kernels,
        &mut notes,
    );
    let raw = table(
        &["memory", "under"],
        &rows(tests.iter().filter_map(fate)),
        &kernels,
        &mut notes,
    );
    let notes: String = notes
        .iter()
        .enumerate()
        .map(|(at, note)| format!("[^{}]: {note}\n", at + 1))
        .collect();
    format!(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->\n\
         <!-- Made by `pinbed matrix` from the tests and the baselines: {BLESS} -->\n\
         # The pin matrix\n\n\
         What each kernel does with user memory that it is to pin for a device. ✓ is what a correct kernel does, which the column before \
         says; ✗ is something else, with what it is and why in the note; – was not tried. `pinbed run kinds mmaps --kernel all` shows all \
         of it, `pinbed list` says where each row is from.\n\n\
         ## User memory as a V4L2 buffer (USERPTR)\n\n\
         The device reads an OUTPUT buffer and writes a CAPTURE buffer.\n\n{user}\n\
         ## Mappings of dma-bufs\n\n\
         A dma-buf's mapping is not normal memory: its exporter, not the count of references to a page, says how long it is there. So \
         whatever takes pages from a process has to refuse it.\n\n{mapped}\n\
         ## What a pin is worth\n\n\
         A driver in user space (UIO, or VFIO without an IOMMU) gives the device the page frames that /proc/self/pagemap shows. The device \
         may rely on memory that stays only: where pages move, it reads and writes what is somebody else's by then. mlock keeps memory \
         from being paged out, and does not pin it. `pinbed run raw_pin --kernel all` shows it.\n\n{raw}\n{notes}"
    )
}

/// What a test says of the matrix: memory, two further words for where it is tried, and what is correct.
struct Entry<'a> {
    test: &'a str,
    memory: String,
    under: String,
    variant: String,
    /// What a correct kernel does.
    correct: &'static str,
}

/// An entry of `kinds::<memop>_<queue>_<takes or refuses>_<kind>`.
fn kind(test: &TestInfo) -> Option<Entry<'_>> {
    let mut words = test.name.strip_prefix("kinds::")?.splitn(4, '_');
    let (memop, queue) = (words.next()?, words.next()?);
    let (correct, kind) = (answer(words.next()?)?, words.next()?);
    let sentence = test
        .correct
        .trim_end_matches('.')
        .split_once(&format!(" {correct} "));
    Some(Entry {
        test: &test.name,
        memory: sentence.map_or_else(|| kind.replace('_', " "), |(_, memory)| memory.to_owned()),
        under: queue.to_uppercase(),
        variant: match memop {
            "sg" => "dma-sg".to_owned(),
            "contig" => "dma-contig".to_owned(),
            other => other.to_owned(),
        },
        correct,
    })
}

/// An entry of `mmaps::<who>_refuses_<exporter>`.
fn mapping(test: &TestInfo) -> Option<Entry<'_>> {
    let (who, exporter) = test.name.strip_prefix("mmaps::")?.split_once("_refuses_")?;
    let sentence = test
        .correct
        .strip_prefix("The mapping of ")
        .and_then(|rest| {
            let (memory, rest) = rest.split_once(" is refused by ")?;
            Some((memory.to_owned(), rest.split_once(", and ")?.0.to_owned()))
        });
    let plain = || (exporter.replace('_', " "), who.replace('_', " "));
    let (memory, variant) = sentence.unwrap_or_else(plain);
    Some(Entry {
        test: &test.name,
        memory,
        under: String::new(),
        variant,
        correct: "refuses",
    })
}

/// An entry of `raw_pin::<memory>_<stays, moves or wanders>_under_<event>`.
fn fate(test: &TestInfo) -> Option<Entry<'_>> {
    test.name.strip_prefix("raw_pin::")?;
    let (what, event) = test.correct.trim_end_matches('.').split_once(" under ")?;
    // "Memory under mlock" has one of its own.
    let (what, event) = match event.split_once(" under ") {
        Some((rest, event)) => (format!("{what} under {rest}"), event),
        None => (what.to_owned(), event),
    };
    let fates = [
        (" stays where", "stays"),
        (" moves away", "moves"),
        (" may move", "may move"),
    ];
    let (memory, correct) = fates.iter().find_map(|(words, correct)| {
        let (memory, _) = what.split_once(words)?;
        Some((memory.to_owned(), *correct))
    })?;
    Some(Entry {
        test: &test.name,
        memory,
        under: String::new(),
        variant: event.to_owned(),
        correct,
    })
}

fn answer(word: &str) -> Option<&'static str> {
    ["refuses", "takes"]
        .into_iter()
        .find(|known| *known == word)
}

/// Entries of the same memory together, in the order in which each is first named.
fn rows<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Vec<Vec<Entry<'a>>> {
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    for entry in entries {
        match rows.iter_mut().find(|row| row[0].memory == entry.memory) {
            Some(row) => row.push(entry),
            None => rows.push(vec![entry]),
        }
    }
    rows
}

/// A table with a line for each row, or more of them where what is done differs between its entries.
fn table(
    heads: &[&str],
    rows: &[Vec<Entry>],
    kernels: &[(&str, Baseline)],
    notes: &mut Vec<String>,
) -> String {
    let mut text = format!("| {} | correct |", heads.join(" | "));
    for (name, _) in kernels {
        let _ = write!(text, " {name} |");
    }
    text += &format!("\n|{}\n", "---|".repeat(heads.len() + 1 + kernels.len()));
    for row in rows {
        // The same at several places is said once: of variants, and then of what they are under.
        let mut lines: Vec<Line> = Vec::new();
        for entry in row {
            let mut cells = format!("{} |", entry.correct);
            for (_, baseline) in kernels {
                cells += &format!(" {} |", cell(entry, baseline.get(entry.test), notes));
            }
            let same = |line: &&mut Line| line.under == [&entry.under] && line.cells == cells;
            match lines.iter_mut().find(same) {
                Some(line) => line.variants.push(&entry.variant),
                None => lines.push(Line {
                    under: vec![&entry.under],
                    variants: vec![&entry.variant],
                    cells,
                }),
            }
        }
        let mut merged: Vec<Line> = Vec::new();
        for line in lines {
            let same = |other: &&mut Line| {
                (&other.variants, &other.cells) == (&line.variants, &line.cells)
            };
            match merged.iter_mut().find(same) {
                Some(other) => other.under.extend(line.under),
                None => merged.push(line),
            }
        }
        let all: BTreeSet<_> = row.iter().map(|entry| &entry.variant).collect();
        for (at, line) in merged.iter().enumerate() {
            let memory = if at == 0 { &row[0].memory } else { "" };
            let variants = match all.len() {
                2.. if line.variants.len() == all.len() => "all".to_owned(),
                _ => line.variants.join(", "),
            };
            let under = line.under.join(", ");
            let places = match heads.len() {
                2 => vec![memory, &variants],
                _ => vec![memory, &under, &variants],
            };
            text += &format!("| {} | {}\n", places.join(" | "), line.cells);
        }
    }
    text
}

/// A line of a table.
struct Line<'a> {
    under: Vec<&'a str>,
    variants: Vec<&'a str>,
    cells: String,
}

/// What a kernel does there.
fn cell(entry: &Entry, known: Option<&Known>, notes: &mut Vec<String>) -> String {
    let Some(known) = known else {
        return "✓".to_owned();
    };
    let (mark, note) = match &known.expected {
        Expected::Skip => ("–".to_owned(), known.reason.clone()),
        Expected::Pass => return "✓".to_owned(),
        Expected::Xfail {
            reference,
            findings,
        } => {
            let says = |eye, part: &str| {
                findings
                    .iter()
                    .any(|look| look.eye == eye && look.text.contains(part))
            };
            let instead = if says(Eye::Harness, "timed out") || says(Eye::Cpu, "does not end") {
                "hangs"
            } else if entry.correct == "refuses" && says(Eye::Cpu, "accepted") {
                "takes"
            } else if entry.correct == "takes"
                && (says(Eye::Cpu, "fails with") || says(Eye::Cpu, "refused"))
            {
                "refuses"
            } else {
                "goes wrong"
            };
            (
                format!("✗ {instead}"),
                format!("{} ({reference})", known.reason),
            )
        }
    };
    let at = notes
        .iter()
        .position(|other| *other == note)
        .unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        });
    format!("{mark}[^{}]", at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::baseline::tests::known_of_6_12;

    fn test(name: &str, correct: &str) -> TestInfo {
        TestInfo {
            name: name.to_owned(),
            correct: correct.to_owned(),
            source: String::new(),
            timeout_s: 0,
        }
    }

    #[test]
    fn nodes_that_do_the_same_share_a_line() {
        let tests: Vec<_> = [
            (
                "sg_output_takes_dax",
                "On its OUTPUT queue the dma-sg node takes a mapping.",
            ),
            (
                "contig_output_refuses_dax",
                "On its OUTPUT queue the dma-contig node refuses a mapping.",
            ),
            (
                "vmalloc_output_takes_dax",
                "On its OUTPUT queue the vmalloc node takes a mapping.",
            ),
            (
                "sg_capture_refuses_dax",
                "On its CAPTURE queue the dma-sg node refuses a mapping.",
            ),
            (
                "contig_capture_refuses_dax",
                "On its CAPTURE queue the dma-contig node refuses a mapping.",
            ),
            (
                "vmalloc_capture_refuses_dax",
                "On its CAPTURE queue the vmalloc node refuses a mapping.",
            ),
            (
                "sg_output_takes_anon",
                "On its OUTPUT queue the dma-sg node takes memory.",
            ),
            (
                "sg_capture_takes_anon",
                "On its CAPTURE queue the dma-sg node takes memory.",
            ),
        ]
        .map(|(name, correct)| test(&format!("kinds::{name}"), correct))
        .into();
        let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
        let known = known_of_6_12(
            "kinds.toml",
            r#"
            [[known]]
            tests = ["kinds::contig_output_refuses_dax"]
            kernels = ["6.12"]
            verdict = "xfail"
            reason = "It is let in."
            reference = "a file"
            findings = [{ eye = "cpu", text = "accepted" }]
            [[known]]
            tests = ["kinds::*_capture_refuses_dax"]
            kernels = ["6.12"]
            verdict = "skip"
            reason = "There is no DAX."
            "#,
            &names,
        );
        let mut notes = Vec::new();
        let kernels = [("6.1", Baseline::default()), ("6.12", known)];
        let shown = table(
            &["memory", "queue", "node"],
            &rows(tests.iter().filter_map(kind)),
            &kernels,
            &mut notes,
        );
        let expected = "| memory | queue | node | correct | 6.1 | 6.12 |\n\
                        |---|---|---|---|---|---|\n\
                        | a mapping | OUTPUT | dma-sg, vmalloc | takes | ✓ | ✓ |\n\
                        |  | OUTPUT | dma-contig | refuses | ✓ | ✗ takes[^1] |\n\
                        |  | CAPTURE | all | refuses | ✓ | –[^2] |\n\
                        | memory | OUTPUT, CAPTURE | dma-sg | takes | ✓ | ✓ |\n";
        assert_eq!(shown, expected);
        assert_eq!(notes, ["It is let in. (a file)", "There is no DAX."]);
    }

    #[test]
    fn a_fate_is_read_from_its_sentence() {
        let sentence =
            "Memory under mlock may move away from where the device has it under compaction.";
        let test = test("raw_pin::locked_wanders_under_compaction", sentence);
        let entry = fate(&test).unwrap();
        assert_eq!(
            (entry.memory.as_str(), entry.variant.as_str(), entry.correct),
            ("Memory under mlock", "compaction", "may move")
        );
    }

    #[test]
    fn a_mapping_is_read_from_its_sentence() {
        let sentence = "The mapping of a udmabuf is refused by vmsplice(), and nothing stays pinned or is changed.";
        let test = test("mmaps::vmsplice_refuses_udmabuf", sentence);
        let entry = mapping(&test).unwrap();
        assert_eq!(
            (entry.memory.as_str(), entry.variant.as_str()),
            ("a udmabuf", "vmsplice()")
        );
    }
}
