// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The HTML report: one file with no links to others. It carries the results once, as JSON, and a script that shows them; whatever a guest
//! said reaches the page as text, never as markup.

use std::collections::{BTreeMap, HashMap};

use maud::{DOCTYPE, PreEscaped, html};
use pinbed_abi::report::{Memory, TestInfo};
use serde::Serialize;

use super::again;
use super::record::{Boot, Environment, Judged, Run, Session, Summary};
use super::result::Named;
use crate::judge::verdict::Verdict;
use crate::machine::watch::Evidence;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Why the page may load and run nothing but what is in it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// What the script is given.
#[derive(Serialize)]
struct Page<'a> {
    /// Version of pinbed that made the page.
    pinbed: &'static str,
    /// The runs it is of.
    runs: Vec<RunHead<'a>>,
    /// A session each.
    columns: Vec<Column<'a>>,
    /// Every test of any session, in the order they were listed.
    tests: Vec<&'a TestInfo>,
    /// For each test what it came to in each column: a cell for each repetition.
    cells: Vec<Vec<Vec<Cell<'a>>>>,
    /// Lines of kernel logs, which repeat; others refer to them by their place here.
    lines: Vec<&'a str>,
}

#[derive(Serialize)]
struct RunHead<'a> {
    name: &'a str,
    pinbed: &'a str,
    revision: &'a Option<String>,
    started: String,
    command: String,
    exit: Option<u8>,
    error: &'a Option<String>,
}

#[derive(Serialize)]
struct Column<'a> {
    /// How it is named beside the others.
    label: String,
    /// The place of its run.
    run: usize,
    #[serde(flatten)]
    environment: &'a Environment,
    #[serde(flatten)]
    summary: &'a Summary,
    boots: &'a [Boot],
    /// What `pinbed run` and a test's name need to run the test again.
    again: String,
}

#[derive(Serialize)]
struct Cell<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    /// Whether the run is not green because of it.
    differs: bool,
    #[serde(skip_serializing_if = "is_one")]
    repetition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dmesg: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<&'a Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hang: Option<&'a Evidence>,
    /// Attempts that were retried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Cell<'a>>,
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

/// Gives each line one place.
#[derive(Default)]
struct Lines<'a> {
    all: Vec<&'a str>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Lines<'a> {
    fn place(&mut self, line: &'a str) -> usize {
        *self.places.entry(line).or_insert_with(|| {
            self.all.push(line);
            self.all.len() - 1
        })
    }

    fn cell(&mut self, judged: &'a Judged, earlier: &[&'a Judged]) -> Cell<'a> {
        Cell {
            verdict: &judged.verdict,
            differs: judged.verdict.differs(),
            repetition: judged.repetition,
            boot: judged.boot,
            started_ms: judged.started_ms,
            duration_ms: judged.duration_ms,
            notes: &judged.notes,
            dmesg: judged.dmesg.iter().map(|line| self.place(line)).collect(),
            memory: judged.memory.as_deref(),
            hang: judged.hang.as_deref(),
            earlier: earlier.iter().map(|one| self.cell(one, &[])).collect(),
        }
    }
}

/// How sessions are told apart: by the kernel, by what was added to it, and if that is the same by the run.
fn labels(results: &[Named]) -> Vec<String> {
    let short = |session: &Session| {
        let of = &session.environment;
        let name = match of.kernel.rsplit_once('/') {
            Some((_, last)) if of.kernel.starts_with('/') => last,
            _ => of.kernel.as_str(),
        };
        let added = of.fragments.iter().map(|fragment| format!(" +{fragment}"));
        let shard = of.shard.iter().map(|shard| format!(" [{shard}]"));
        let append = match of.append.is_empty() {
            true => String::new(),
            false => format!(" {}", of.append),
        };
        let faults = of.faults.iter().map(|fault| format!(" --fault {fault}"));
        format!(
            "{name}{}{append}{}{}",
            added.collect::<String>(),
            faults.collect::<String>(),
            shard.collect::<String>()
        )
    };
    let all = |of: &dyn Fn(&Named, &Session) -> String| -> Vec<String> {
        let each = results
            .iter()
            .flat_map(|named| named.run.sessions.iter().map(move |s| (named, s)));
        each.map(|(named, session)| of(named, session)).collect()
    };
    let names = all(&|_, session| short(session));
    let mut seen: BTreeMap<&String, usize> = BTreeMap::new();
    for name in &names {
        *seen.entry(name).or_default() += 1;
    }
    let long = all(&|named, session| format!("{} ({})", short(session), named.name));
    let both = names.iter().zip(long);
    both.map(|(name, long)| match seen[name] {
        1 => name.clone(),
        _ => long,
    })
    .collect()
}

fn page(results: &[Named]) -> Page<'_> {
    let mut tests: Vec<&TestInfo> = Vec::new();
    let mut rows: HashMap<&str, usize> = HashMap::new();
    let sessions = || results.iter().flat_map(|named| &named.run.sessions);
    for judged in sessions().flat_map(|session| &session.tests) {
        rows.entry(&judged.test.name).or_insert_with(|| {
            tests.push(&judged.test);
            tests.len() - 1
        });
    }
    let count = sessions().count();
    let mut cells: Vec<Vec<Vec<Cell>>> = (0..tests.len())
        .map(|_| (0..count).map(|_| Vec::new()).collect())
        .collect();
    let mut lines = Lines::default();
    for (column, session) in sessions().enumerate() {
        for (last, earlier) in session.results() {
            let row = rows[last.test.name.as_str()];
            cells[row][column].push(lines.cell(last, &earlier));
        }
    }
    let mut labels = labels(results).into_iter();
    let columns = results.iter().enumerate().flat_map(|(run, named)| {
        let sessions = named.run.sessions.iter();
        sessions.map(move |session| (run, session))
    });
    Page {
        pinbed: env!("CARGO_PKG_VERSION"),
        runs: results.iter().map(|named| head(named)).collect(),
        columns: columns
            .map(|(run, session)| Column {
                label: labels.next().unwrap_or_default(),
                run,
                environment: &session.environment,
                summary: &session.summary,
                boots: &session.boots,
                again: again_options(&session.environment),
            })
            .collect(),
        tests,
        cells,
        lines: lines.all,
    }
}

fn again_options(environment: &Environment) -> String {
    let options = again::options(environment);
    // Fails only for a NUL, which no argument can have.
    shlex::try_join(options.iter().map(String::as_str)).unwrap_or_default()
}

fn head(named: &Named) -> RunHead<'_> {
    let run = &named.run;
    let command = run.command.iter().skip(1).map(String::as_str);
    RunHead {
        name: &named.name,
        pinbed: &run.pinbed,
        revision: &run.revision,
        started: run.started.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        command: format!("pinbed {}", shlex::try_join(command).unwrap_or_default()),
        exit: run.exit,
        error: &run.error,
    }
}

/// The page of these results.
///
/// # Errors
/// Never, for results that were read or collected.
pub fn document(results: &[Named]) -> Result<Vec<u8>, String> {
    let json = serde_json::to_string(&page(results)).map_err(|error| error.to_string())?;
    // What would end the element, or begin a comment in it, is in strings only.
    let json = json.replace('<', "\\u003c");
    let kernels: Vec<_> = results
        .iter()
        .flat_map(|named| named.run.sessions.iter().map(Session::name))
        .collect();
    let title = match kernels.len() {
        0 => "pinbed".to_owned(),
        1..=4 => format!("pinbed: {}", kernels.join(", ")),
        many => format!("pinbed: {many} kernels"),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header #top {
                    h1 { "pinbed" }
                    p #verdict role="status" {}
                    nav {
                        a href="#tests" { "Tests" }
                        a href="#kernels" { "Kernels" }
                        a href="#runs" { "Runs" }
                    }
                }
                main {
                    noscript { p { "This page shows its results by a script, which is off. They are in it as JSON." } }
                    section #tests aria-label="Tests" {
                        form #controls role="search" onsubmit="return false" {
                            label .search {
                                span { "Search" }
                                input #search type="search" placeholder="name, finding, log line  ( / )" autocomplete="off" spellcheck="false";
                            }
                            fieldset #filter { legend { "Verdicts" } }
                            label .inline { input #differing type="checkbox"; " kernels differ" }
                            label .inline {
                                "Order "
                                select #order {
                                    option value="listed" { "by group" }
                                    option value="slow" { "slowest first" }
                                }
                            }
                            button #fold type="button" { "Open all" }
                            output #shown {}
                        }
                        div .scroll tabindex="-1" { table #matrix {} }
                        p .hint { "Keys: / searches, j and k go from test to test, Enter opens, Esc closes." }
                    }
                    section #kernels aria-label="Kernels" { h2 { "Kernels" } }
                    section #runs aria-label="Runs" { h2 { "Runs" } }
                }
                dialog #detail tabindex="-1" aria-labelledby="detail-name" {}
                script #data type="application/json" { (PreEscaped(json)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string().into_bytes())
}

/// The page of one run, for `pinbed run --html`.
///
/// # Errors
/// As [`document`].
pub fn of_run(run: &Run) -> Result<Vec<u8>, String> {
    document(&[Named {
        name: run.started.format("%Y-%m-%d %H:%M:%S").to_string(),
        run: run.clone(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;
    use pinbed_abi::report::{Eye, Finding, Holdings, Moment, Region, RegionKind, Sighting};

    fn named(name: &str, run: Run) -> Named {
        Named {
            name: name.to_owned(),
            run,
        }
    }

    fn text(results: &[Named]) -> String {
        String::from_utf8(document(results).unwrap()).unwrap()
    }

    /// What the script reads.
    fn data(page: &str) -> serde_json::Value {
        let (_, rest) = page.split_once("type=\"application/json\">").unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_page_has_every_test_of_every_session_once() {
        let results = [
            named("a", samples::mixed()),
            named("b", samples::flaky()),
            named("c", samples::not_provided()),
        ];
        let data = data(&text(&results));
        let labels: Vec<_> = data["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["label"].as_str().unwrap())
            .collect();
        assert_eq!(labels, ["6.12 (a)", "6.12 (b)", "7.3"]);
        let tests: Vec<_> = data["tests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        assert_eq!(tests.len(), 7);
        assert_eq!(tests[0], "group::passes");
        let cells = &data["cells"];
        assert_eq!(cells[0][0][0]["verdict"], "pass");
        assert_eq!(cells[0][1], serde_json::json!([]), "it did not run there");
        assert_eq!(cells[0][2][0]["verdict"], "not_run");
        assert_eq!(
            cells[1][0][0]["findings"][0]["text"],
            "byte 0 is 1, expected 2"
        );
        let flaky = &cells[6][1][0];
        assert_eq!(flaky["verdict"], "pass");
        assert_eq!(flaky["earlier"][0]["verdict"], "fail");
        // A line that many tests have is there once.
        assert_eq!(
            data["lines"],
            serde_json::json!(["fine", "WARNING: CPU: 0 PID: 1 at mm/gup.c:1"])
        );
        assert_eq!(cells[0][0][0]["dmesg"], serde_json::json!([0, 1]));
    }

    #[test]
    fn nothing_that_a_guest_says_is_markup() {
        let mut run = samples::mixed();
        let evil = "</script><script>alert(1)</script><!--";
        let test = &mut run.sessions[0].tests[0];
        test.dmesg = vec![evil.to_owned()];
        test.notes = vec![evil.to_owned()];
        test.test.name = format!("group::{evil}");
        run.sessions[0].environment.kernel = evil.to_owned();
        let page = text(&[named(evil, run)]);
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<!--"));
        assert_eq!(data(&page)["lines"][0], evil);
        assert!(!SCRIPT.contains("innerHTML") && !SCRIPT.contains("</"));
    }

    /// What a person does, by keys; it leaves what it saw in the document.
    const PROBE: &str = r##"
        (async () => {
            const seen = { ready: document.documentElement.dataset.ready };
            const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
            const turn = () => new Promise(done => setTimeout(done, 50));
            const names = () => [...document.querySelectorAll("#matrix tr.test a")].map(a => a.textContent);
            seen.first = names();
            press("/");
            seen.focus = document.activeElement.id;
            document.activeElement.value = "GUP.C";
            document.activeElement.dispatchEvent(new Event("input"));
            seen.found = document.getElementById("shown").textContent;
            document.activeElement.value = "in_movable";
            document.activeElement.dispatchEvent(new Event("input"));
            press("Escape");
            press("j");
            document.activeElement.click();
            await turn();
            const detail = document.getElementById("detail");
            seen.open = detail.open;
            seen.name = document.getElementById("detail-name").textContent;
            seen.wrong = detail.querySelectorAll(".strip .page.wrong").length;
            seen.pages = [...detail.querySelectorAll(".strip .mono")].map(line => line.textContent);
            seen.rows = [...detail.querySelectorAll(".holdings tbody tr")].map(row => row.textContent);
            seen.legend = [detail.querySelectorAll(".legend").length];
            seen.width = document.documentElement.scrollWidth <= innerWidth;
            detail.querySelector("[title^=Close]").click();
            await turn();
            seen.closed = `${detail.open} ${location.hash}`;
            document.getElementById("search").value = "over_nothing";
            document.getElementById("search").dispatchEvent(new Event("input"));
            location.hash = document.querySelector("#matrix tr.test a").hash;
            await turn();
            seen.legend.push(document.getElementById("detail-name").textContent, detail.querySelectorAll(".legend").length);
            document.body.replaceChildren(JSON.stringify(seen));
        })().catch(error => document.body.replaceChildren(String(error.stack)));
    "##;

    fn with_memory() -> Run {
        let frames = |of: std::ops::Range<u64>| of.collect();
        let seen = |moment, of| Sighting {
            buffer: "OUTPUT 0".to_owned(),
            moment,
            frames: frames(of),
        };
        let memory = Memory {
            sightings: vec![
                seen(Moment::Before, 0x1b400..0x1b403),
                seen(Moment::Held, 0x100000..0x100003),
            ],
            after: Holdings {
                pinned: 3,
                ..Holdings::default()
            },
            ..Memory::default()
        };
        let region = |name: &str, kind, first, pages| Region {
            name: name.to_owned(),
            kind,
            first,
            pages,
        };
        let failed = Verdict::Fail {
            findings: vec![Finding {
                eye: Eye::Placement,
                text: "3 pages are pinned in ZONE_MOVABLE".to_owned(),
            }],
            expected: None,
        };
        let mut run = samples::mixed();
        let session = &mut run.sessions[0];
        session.environment.regions = vec![
            region("Node 0 DMA32", RegionKind::Zone, 1, 131_039),
            region("Node 1 Movable", RegionKind::Movable, 0x100000, 32_768),
            region("reserved", RegionKind::Cma, 0x1b400, 16_384),
        ];
        let counted = Memory {
            sightings: Vec::new(),
            ..memory.clone()
        };
        for (name, memory) in [
            ("pin::stays_in_movable", memory),
            ("pin::hands_over_nothing", counted),
        ] {
            let mut judged = samples::judged(name, failed.clone());
            judged.memory = Some(Box::new(memory));
            session.tests.push(judged);
        }
        run
    }

    /// In a real browser, where there is one, at a phone's width and at a desk's.
    #[test]
    fn a_browser_shows_the_page_and_keys_work() {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let Some(browser) = names.iter().find_map(|name| which::which(name).ok()) else {
            println!("skipped: there is no {}", names.join(", nor "));
            return;
        };
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("page.html");
        let page = text(&[named("a.json", with_memory())]);
        let page = page.replace("</body>", &format!("<script>{PROBE}</script></body>"));
        std::fs::write(&path, page).unwrap();
        for width in [390, 1400] {
            let output = std::process::Command::new("timeout")
                .arg("120")
                .arg(&browser)
                .args([
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--virtual-time-budget=4000",
                ])
                .arg(format!(
                    "--user-data-dir={}",
                    place.path().join("profile").display()
                ))
                .arg(format!("--window-size={width},900"))
                .arg("--dump-dom")
                .arg(format!("file://{}", path.display()))
                .output()
                .unwrap();
            let dom = String::from_utf8_lossy(&output.stdout);
            let (_, body) = dom
                .split_once("<body>")
                .unwrap_or_else(|| panic!("{output:?}"));
            let (body, _) = body.split_once("</body>").unwrap();
            let seen: serde_json::Value =
                serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
            assert!(seen["ready"].is_string(), "{seen}");
            let news = ["unknown_failure", "works_now", "gone", "stays_in_movable"];
            for name in news {
                assert!(
                    seen["first"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|row| row == name),
                    "{seen}"
                );
            }
            assert_eq!(seen["focus"], "search");
            assert_eq!(seen["found"], "8 of 8", "each has that line in its log");
            assert_eq!(
                (&seen["open"], &seen["name"]),
                (&true.into(), &"pin::stays_in_movable".into())
            );
            assert_eq!(seen["wrong"], 3);
            assert_eq!(
                seen["pages"],
                serde_json::json!([
                    "3 in CMA region reserved: 1b400-1b402",
                    "3 in ZONE_MOVABLE: 100000-100002"
                ])
            );
            assert_eq!(seen["rows"][0], "pinned pages03");
            assert_eq!(
                seen["legend"],
                serde_json::json!([1, "pin::hands_over_nothing", 0]),
                "a legend is of a picture"
            );
            assert_eq!(seen["width"], true, "at {width} pixels");
            assert_eq!(seen["closed"], "false #tests");
        }
    }

    #[test]
    fn the_page_refers_to_nothing_outside_it() {
        let page = text(&[named("a", samples::panicked())]);
        let (shell, _) = page.split_once("<script id=\"data\"").unwrap();
        for outside in ["http:", "https:", "src=\"", "url(", "@import", "<link"] {
            assert!(!shell.contains(outside), "{outside}");
            assert!(outside == "http:" || !SCRIPT.contains(outside), "{outside}");
        }
        assert!(page.contains("Content-Security-Policy"));
    }
}
