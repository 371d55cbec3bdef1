// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is known of kernels: which tests fail or cannot run on which of them, and why. Every other test passes.
//!
//! It stands in `images/baselines/<group>.toml`, a file for each group of tests, in the form that the README beside them describes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glob::Pattern;
use pinbed_abi::report::{Eye, Finding, TestInfo};
use serde::Deserialize;
use toml::Spanned;

use crate::judge::closest;
use crate::kernel::{self, Config, Manifest, Patch};
use crate::machine::environments::{self, Common, Definition};

/// What is known of all kernels.
#[derive(Debug, Default)]
pub struct Baselines {
    /// By kernel, by test.
    known: BTreeMap<String, BTreeMap<String, Known>>,
}

/// What is known of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// By test.
    known: BTreeMap<String, Known>,
    /// Its configuration, which may lack what a test needs.
    config: Config,
    /// Parts of the reasons for skips that the environment and the modules in the guest explain.
    lacks: Vec<String>,
    /// Findings that many tests have in the environment.
    common: Vec<Common>,
}

/// What is known of a test on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What the kernel does instead of the correct thing, or what it lacks.
    pub reason: String,
    /// What becomes of the test.
    pub expected: Expected,
    /// The defect behind it, by its name in `images/defects.toml`; none for a skip.
    pub defect: Option<String>,
    /// Patches under which it passes.
    pub fixed_by: Vec<String>,
    /// Symbols without which the failure is not seen.
    seen_with: Vec<String>,
}

/// What becomes of a test that does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It fails.
    Xfail {
        /// Where that is known from.
        reference: String,
        /// What the failure looks like; never empty.
        findings: Vec<Look>,
    },
    /// It cannot run.
    Skip,
    /// It passes in an environment, though not elsewhere.
    Pass,
}

/// What a known finding looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Who sees it.
    pub eye: Eye,
    /// Its whole text, with * for any.
    pub text: String,
    pattern: Pattern,
    /// It is not seen in every run.
    sometimes: bool,
    /// It is not seen on a kernel whose configuration lacks this symbol.
    with: Option<String>,
    /// It is not seen on a kernel whose configuration has this symbol.
    without: Option<String>,
}

/// A look as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LookText {
    eye: Eye,
    text: String,
    #[serde(default)]
    sometimes: bool,
    with: Option<String>,
    without: Option<String>,
}

/// A file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    known: Vec<Spanned<Entry>>,
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    tests: Vec<String>,
    kernels: Vec<String>,
    verdict: Word,
    defect: Option<String>,
    reason: String,
    reference: Option<String>,
    #[serde(default)]
    findings: Vec<LookText>,
    #[serde(default)]
    fixed_by: Vec<String>,
    #[serde(default)]
    seen_with: Vec<String>,
    #[serde(default)]
    environments: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Xfail,
    Skip,
    Pass,
}

/// Why the baselines cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, or their directory, cannot be read.
    #[error("cannot read the baseline {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not what a baseline looks like.
    #[error("the baseline {path} is not valid")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: toml::de::Error,
    },
    /// An entry is well-formed and does not make sense.
    #[error("the baseline {path} is not valid: the entry at line {line} {what}")]
    Sense {
        /// Which file.
        path: PathBuf,
        /// Where the entry begins.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// The names that entries may use.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// All tests.
    pub tests: Vec<String>,
    /// All kernels.
    pub kernels: Vec<String>,
    /// All patches that fix something, with the kernel that they are for: "tee-longterm-6.12".
    pub fixes: Vec<String>,
    /// All environments.
    pub environments: Vec<String>,
}

impl Names {
    /// Those of the checkout at `workspace`, with these tests.
    pub fn of_checkout(workspace: &Path, manifest: &Manifest, tests: &[TestInfo]) -> Self {
        let fixes = workspace.join("guest-kernel-config").join(kernel::FIXES);
        let kernels = manifest.names();
        let of_kernel = |kernel: &String| {
            let names = Patch::names(&fixes, kernel).into_iter();
            names
                .map(|name| format!("{name}-{kernel}"))
                .collect::<Vec<_>>()
        };
        // Where their file cannot be read, who asks for one is told so.
        let environments = environments::read(workspace).unwrap_or_default();
        let environments = environments.into_iter().map(|it| it.name).collect();
        Names {
            tests: tests.iter().map(|test| test.name.clone()).collect(),
            fixes: kernels.iter().flat_map(of_kernel).collect(),
            kernels,
            environments,
        }
    }
}

impl Baselines {
    /// Those of the checkout at `workspace`.
    ///
    /// # Errors
    /// As [`Baselines::read`].
    pub fn of_checkout(workspace: &Path, names: &Names) -> Result<Self, Error> {
        Baselines::read(&workspace.join("images/baselines"), names)
    }

    /// Reads all files of a directory and holds them against what there is.
    ///
    /// # Errors
    /// When a file cannot be read or parsed, or an entry names what does not exist, gives no reason, or says what another says already.
    pub fn read(directory: &Path, names: &Names) -> Result<Self, Error> {
        let unreadable = |path: &Path, source| Error::Read {
            path: path.into(),
            source,
        };
        let files = fs::read_dir(directory)
            .and_then(|files| {
                files
                    .map(|file| Ok(file?.path()))
                    .collect::<io::Result<BTreeSet<_>>>()
            })
            .map_err(|source| unreadable(directory, source))?;
        let mut baselines = Baselines::default();
        for path in files
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        {
            let text = fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
            baselines.add(path, &text, names)?;
        }
        Ok(baselines)
    }

    /// Adds what a file with this text says; its name has the group, and is for errors.
    ///
    /// # Errors
    /// As [`Baselines::read`].
    pub fn add(&mut self, path: &Path, text: &str, names: &Names) -> Result<(), Error> {
        let group = path.file_stem().unwrap_or_default().to_string_lossy();
        let file: Text = toml::from_str(text).map_err(|source| Error::Parse {
            path: path.into(),
            source,
        })?;
        for entry in file.known {
            let line = 1 + text[..entry.span().start].matches('\n').count();
            let nonsense = |what| Error::Sense {
                path: path.into(),
                line,
                what,
            };
            let entry = entry.into_inner();
            let tests = entry.tests(&group, &names.tests).map_err(nonsense)?;
            let known = entry.known(names).map_err(nonsense)?;
            let places = entry.kernels.iter().flat_map(|kernel| {
                let of = |environment: &String| place(kernel, Some(environment));
                match entry.environments.as_slice() {
                    [] => vec![place(kernel, None)],
                    environments => environments.iter().map(of).collect(),
                }
            });
            for kernel in places {
                let of_kernel = self.known.entry(kernel.clone()).or_default();
                for test in &tests {
                    if of_kernel
                        .insert((*test).to_owned(), known.clone())
                        .is_some()
                    {
                        return Err(nonsense(format!(
                            "says what another says already: what {test} does on {kernel}"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a file of this name and text, of these tests.
    #[cfg(test)]
    pub fn add_for_tests(&mut self, file: &str, text: &str, tests: &[&str]) {
        self.add(Path::new(file), text, &tests::names(tests))
            .unwrap();
    }

    /// What is known of a kernel.
    pub fn of(&self, kernel: &str) -> Baseline {
        Baseline {
            known: self.known.get(kernel).cloned().unwrap_or_default(),
            ..Baseline::default()
        }
    }

    /// All that is said of a kernel: what holds everywhere, and what in each of these environments alone, with its name.
    pub fn parts<'a>(
        &self,
        kernel: &str,
        environments: &'a [String],
    ) -> Vec<(Option<&'a str>, Baseline)> {
        let names = environments.iter().map(|name| Some(name.as_str()));
        std::iter::once(None)
            .chain(names)
            .map(|name| (name, self.of(&place(kernel, name))))
            .collect()
    }

    /// What is known of a kernel in an environment, where what is said of that counts more.
    pub fn of_environment(&self, kernel: &str, environment: &Definition) -> Baseline {
        let mut baseline = self.of(kernel);
        let own = self.known.get(&place(kernel, Some(&environment.name)));
        for (test, known) in own.into_iter().flatten() {
            match known.expected {
                Expected::Pass => baseline.known.remove(test),
                _ => baseline.known.insert(test.clone(), known.clone()),
            };
        }
        baseline.lacks = environment.lacks.clone();
        let common = environment.known.iter();
        let of_kernel = |common: &&Common| common.kernels.iter().any(|name| name == kernel);
        baseline.common = common.filter(of_kernel).cloned().collect();
        baseline
    }
}

/// Whether a text has this part, with * for any.
fn has_part(text: &str, part: &str) -> bool {
    let mut rest = Some(text);
    for piece in part.split('*') {
        rest = rest.and_then(|it| it.split_once(piece)).map(|it| it.1);
    }
    rest.is_some()
}

/// The name of what is known of a kernel: in an environment, or in all that say nothing else.
fn place(kernel: &str, environment: Option<&str>) -> String {
    match environment {
        Some(environment) => format!("{kernel},{environment}"),
        None => kernel.to_owned(),
    }
}

impl Entry {
    /// The tests that it names, out of all there are.
    fn tests<'a>(&self, group: &str, all: &'a [String]) -> Result<BTreeSet<&'a str>, String> {
        let mut named = BTreeSet::new();
        for text in &self.tests {
            if text
                .split_once("::")
                .is_none_or(|(first, _)| first != group)
            {
                return Err(format!(
                    "names \"{text}\", which is not in the group {group} that the file is for; move it to its group's file"
                ));
            }
            let pattern = Pattern::new(text).map_err(|error| {
                format!("names \"{text}\", which is not a pattern: {}", error.msg)
            })?;
            let before = named.len();
            named.extend(
                all.iter()
                    .map(String::as_str)
                    .filter(|test| pattern.matches(test)),
            );
            if named.len() == before {
                let close = closest(text, all.iter().map(String::as_str));
                let hint = close
                    .first()
                    .map(|close| format!("; did you mean \"{close}\"?"));
                return Err(format!(
                    "names \"{text}\", which is no test, or one that it has named already{}",
                    hint.unwrap_or_default()
                ));
            }
        }
        match named.is_empty() {
            true => Err("names no tests".to_owned()),
            false => Ok(named),
        }
    }

    /// What it says of them.
    fn known(&self, names: &Names) -> Result<Known, String> {
        if self.kernels.is_empty() {
            return Err("names no kernels".to_owned());
        }
        if let Some(unknown) = self
            .kernels
            .iter()
            .find(|kernel| !names.kernels.contains(kernel))
        {
            let known = names.kernels.join(", ");
            return Err(format!(
                "names the kernel {unknown}, and kernels.toml has only {known}"
            ));
        }
        let is_unknown = |patch: &&String| {
            let mut of_kernels = self
                .kernels
                .iter()
                .map(|kernel| format!("{patch}-{kernel}"));
            !of_kernels.any(|file| names.fixes.contains(&file))
        };
        if let Some(unknown) = self.fixed_by.iter().find(is_unknown) {
            return Err(format!(
                "names the patch {unknown}, which is there for none of its kernels; there are {}",
                names.fixes.join(", ")
            ));
        }
        let is_unknown = |name: &&String| !names.environments.contains(name);
        if let Some(unknown) = self.environments.iter().find(is_unknown) {
            return Err(format!(
                "names the environment {unknown}, and environments.toml has only {}",
                names.environments.join(", ")
            ));
        }
        if self.reason.trim().is_empty() {
            return Err("has an empty reason".to_owned());
        }
        let expected = match self.verdict {
            Word::Xfail => self.xfail()?,
            Word::Skip => self.skip()?,
            Word::Pass => self.pass()?,
        };
        Ok(Known {
            reason: self.reason.clone(),
            expected,
            defect: self.defect.clone(),
            fixed_by: self.fixed_by.clone(),
            seen_with: self.seen_with.clone(),
        })
    }

    /// What it says of a failure.
    fn xfail(&self) -> Result<Expected, String> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let reference = given(&self.reference).ok_or("has no reference")?;
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(LookText::look)
            .collect::<Result<_, _>>()?;
        match findings.iter().all(|look| look.sometimes) {
            false => Ok(Expected::Xfail {
                reference,
                findings,
            }),
            true => Err("lists no finding that is seen in every run".to_owned()),
        }
    }

    /// What it says of a skip.
    fn skip(&self) -> Result<Expected, String> {
        let is_bare =
            self.reference.is_none() && self.findings.is_empty() && self.seen_with.is_empty();
        match is_bare {
            true => Ok(Expected::Skip),
            false => Err(
                "is of a skip, which has neither a reference nor findings nor seen_with".to_owned(),
            ),
        }
    }

    fn pass(&self) -> Result<Expected, String> {
        match (self.environments.is_empty(), self.skip()) {
            (false, Ok(_)) => Ok(Expected::Pass),
            _ => Err(
                "is of a pass, which is said of environments only, without reference or findings"
                    .to_owned(),
            ),
        }
    }
}

impl LookText {
    fn look(&self) -> Result<Look, String> {
        if self.text.trim().is_empty() {
            return Err("lists a finding without a text".to_owned());
        }
        // Only * is special; what a kernel says is full of brackets.
        let parts: Vec<_> = self.text.split('*').map(Pattern::escape).collect();
        let pattern = Pattern::new(&parts.join("*")).map_err(|error| {
            format!(
                "lists \"{}\", which is not a pattern: {}",
                self.text, error.msg
            )
        })?;
        Ok(Look {
            eye: self.eye,
            text: self.text.clone(),
            pattern,
            sometimes: self.sometimes,
            with: self.with.clone(),
            without: self.without.clone(),
        })
    }
}

impl Look {
    fn is(&self, finding: &Finding) -> bool {
        self.eye == finding.eye && self.pattern.matches(&finding.text)
    }

    /// Whether a kernel with this configuration can be seen to fail so.
    fn is_of(&self, config: &Config) -> bool {
        let has = |symbol: &String| config.has(symbol);
        self.with.as_ref().is_none_or(has) && !self.without.as_ref().is_some_and(has)
    }
}

impl Baseline {
    /// What is known of a test; nothing if it passes.
    pub fn get(&self, test: &str) -> Option<&Known> {
        self.known.get(test)
    }

    /// Whether the kernel's configuration is the reason for a skip, as the guest says.
    pub fn explains_skip(&self, reason: &str) -> bool {
        self.config.confirms(reason) || self.lacks.iter().any(|part| reason.contains(part))
    }

    /// Takes out those findings that many tests have here for one cause; returns that, if there is one.
    pub fn without_common(&self, findings: &mut Vec<Finding>) -> Option<&Common> {
        let mut cause = None;
        findings.retain(|finding| {
            let is_it = |common: &&Common| {
                let texts = &mut common.texts.iter();
                finding.eye == Eye::Aftermath && texts.any(|text| has_part(&finding.text, text))
            };
            let found = self.common.iter().find(is_it);
            cause = cause.or(found);
            found.is_none()
        });
        cause
    }

    /// What is known of the same kernel with this configuration: failures that only an option shows are not seen without it.
    pub fn configured(mut self, config: Config) -> Self {
        self.known
            .retain(|_, known| known.seen_with.iter().all(|symbol| config.has(symbol)));
        for known in self.known.values_mut() {
            if let Expected::Xfail { findings, .. } = &mut known.expected {
                findings.retain(|look| look.is_of(&config));
            }
        }
        self.config = config;
        self
    }

    /// What is known of the same kernel without these: parts of reasons for skips.
    pub fn lacking(mut self, parts: impl IntoIterator<Item = String>) -> Self {
        self.lacks.extend(parts);
        self
    }

    /// What is known of the same kernel with patches.
    pub fn patched(mut self, patches: &[String]) -> Self {
        self.known
            .retain(|_, known| !known.fixed_by.iter().any(|patch| patches.contains(patch)));
        self
    }
}

impl Known {
    /// How these findings differ from the known failure; nothing if they are just that: each of them is listed, and each that is listed
    /// is there, but those that are only seen sometimes.
    pub fn differences(&self, found: &[Finding]) -> Vec<String> {
        let Expected::Xfail { findings, .. } = &self.expected else {
            return vec!["the baseline expects a skip".to_owned()];
        };
        let unlisted = found
            .iter()
            .filter(|finding| !findings.iter().any(|look| look.is(finding)))
            .map(|finding| format!("not in the baseline: {}", finding.text));
        let unseen = findings
            .iter()
            .filter(|look| !look.sometimes && !found.iter().any(|finding| look.is(finding)))
            .map(|look| format!("in the baseline, and not seen: {}", look.text));
        unlisted.chain(unseen).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::error::Error as _;

    const TESTS: [&str; 4] = [
        "cma::page_leaves",
        "cma::page_stays",
        "cma::region_is_whole",
        "heap::import_works",
    ];

    pub fn names(tests: &[&str]) -> Names {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Names {
            tests: owned(tests),
            kernels: owned(&["5.10", "6.12"]),
            fixes: owned(&["one-6.12", "two-6.12", "three-5.10"]),
            environments: owned(&["swiotlb"]),
        }
    }

    /// What a file of this name and text says of 6.12.
    pub fn known_of_6_12(file: &str, text: &str, tests: &[&str]) -> Baseline {
        let mut baselines = Baselines::default();
        baselines.add(Path::new(file), text, &names(tests)).unwrap();
        baselines.of("6.12")
    }

    fn load(text: &str) -> Result<Baselines, String> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cma.toml"), text).unwrap();
        fs::write(directory.path().join("cma.toml~"), "no baseline").unwrap();
        Baselines::read(directory.path(), &names(&TESTS)).map_err(|error| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
    }

    fn entry(tests: &str, kernels: &str) -> String {
        format!(
            "[[known]]\ntests = [{tests}]\nkernels = [{kernels}]\nverdict = \"xfail\"\nreason = \"r\"\nreference = \"f\"\nfindings = [{{ eye = \"cpu\", text = \"t\" }}]\n"
        )
    }

    const ENTRY: &str = "[[known]]\ntests = [\"cma::page_leaves\"]\nkernels = [\"6.12\"]\n";

    #[test]
    fn a_part_of_a_text_has_its_pieces_in_order() {
        let text = "failslab: f < vb2_dc_attach_dmabuf: dma-buf 7 of 4096 bytes is left";
        assert!(has_part(text, "_attach_dmabuf*: dma-buf * is left"));
        assert!(has_part(text, "dma-buf 7"));
        assert!(!has_part(text, "is left*_attach_dmabuf"));
        assert!(!has_part(text, "_attach_dmabuf* pins left"));
    }

    #[test]
    fn an_empty_file_expects_everything_to_pass() {
        assert_eq!(load("").unwrap().of("6.12"), Baseline::default());
    }

    #[test]
    fn an_entry_is_for_the_tests_and_kernels_that_it_names() {
        let baselines = load(&entry("\"cma::page_*\"", "\"5.10\"")).unwrap();
        let known = baselines.of("5.10");
        assert_eq!(known.get("cma::page_stays").unwrap().reason, "r");
        assert!(known.get("cma::page_leaves").is_some());
        assert!(known.get("cma::region_is_whole").is_none());
        assert_eq!(baselines.of("6.12"), Baseline::default());
    }

    #[test]
    fn a_patch_takes_away_what_it_fixes_and_no_more() {
        let fixed = entry("\"cma::page_leaves\"", "\"6.12\"") + "fixed_by = [\"one\", \"two\"]\n";
        let known = load(&(fixed + &entry("\"cma::page_stays\"", "\"6.12\"")))
            .unwrap()
            .of("6.12");
        let left = |patch: &str| {
            let patched = known.clone().patched(&[patch.to_owned()]);
            ["cma::page_leaves", "cma::page_stays"].map(|test| patched.get(test).is_some())
        };
        assert_eq!(left("two"), [false, true]);
        assert_eq!(left("three"), [true, true]);
    }

    #[test]
    fn a_finding_is_held_to_kernels_that_can_have_it() {
        let looks = [
            ("dies", "with", "DEBUG_VM"),
            ("miscounts", "without", "DEBUG_VM"),
            ("fails", "with", "SMP"),
        ];
        let looks = looks.map(|(text, word, symbol)| {
            format!("{{ eye = \"cpu\", text = \"{text}\", {word} = \"{symbol}\" }}")
        });
        let text = format!(
            "{ENTRY}verdict = \"xfail\"\nreason = \"r\"\nreference = \"f\"\nfindings = [{}]\n",
            looks.join(", ")
        );
        let left = |config: &str| {
            let baseline = load(&text)
                .unwrap()
                .of("6.12")
                .configured(Config::parse(config));
            match &baseline.get("cma::page_leaves").unwrap().expected {
                Expected::Xfail { findings, .. } => findings
                    .iter()
                    .map(|look| look.text.clone())
                    .collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(left("CONFIG_DEBUG_VM=y\nCONFIG_SMP=y\n"), ["dies", "fails"]);
        assert_eq!(left("# CONFIG_DEBUG_VM is not set\n"), ["miscounts"]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let whole = entry("\"cma::page_leaves\"", "\"6.12\"");
        for (text, why) in [
            (
                entry("\"cma::page_leavs\"", "\"6.12\""),
                "did you mean \"cma::page_leaves\"?",
            ),
            (
                entry("\"cma::pages_*\"", "\"6.12\""),
                "\"cma::pages_*\", which is no test",
            ),
            (
                entry("\"cma::page_*\", \"cma::page_stays\"", "\"6.12\""),
                "has named already",
            ),
            (entry("\"cma::***\"", "\"6.12\""), "not a pattern"),
            (
                entry("\"heap::import_works\"", "\"6.12\""),
                "not in the group cma",
            ),
            (entry("", "\"6.12\""), "names no tests"),
            (
                entry("\"cma::page_leaves\"", "\"6.11\""),
                "the kernel 6.11, and kernels.toml has only 5.10, 6.12",
            ),
            (entry("\"cma::page_leaves\"", ""), "names no kernels"),
            (
                whole.replace("reason = \"r\"", "reason = \" \""),
                "empty reason",
            ),
            (
                whole.replace("reason = \"r\"\n", ""),
                "missing field `reason`",
            ),
            (
                whole.replace("reference = \"f\"", "reference = \"\""),
                "no reference",
            ),
            (whole.replace("reference = \"f\"\n", ""), "no reference"),
            (
                whole.replace("\"t\" }", "\"t\", sometimes = true }"),
                "no finding that is seen in every run",
            ),
            (
                whole.replace("findings = [{ eye = \"cpu\", text = \"t\" }]\n", ""),
                "no finding that is seen in every run",
            ),
            (
                whole.replace("\"t\" }", "\" \" }"),
                "a finding without a text",
            ),
            (
                whole.replace("\"t\" }", "\"a**b\" }"),
                "lists \"a**b\", which is not a pattern",
            ),
            (
                whole.replace("\"xfail\"", "\"skip\""),
                "neither a reference nor findings",
            ),
            (
                whole.replace("\"xfail\"", "\"fail\""),
                "unknown variant `fail`",
            ),
            (
                whole.clone() + "fixed_by = [\"three\"]",
                "the patch three, which is there for none of its kernels",
            ),
            (whole.clone() + "why = \"\"", "unknown field `why`"),
            (
                whole.replace("\"cpu\"", "\"nose\""),
                "unknown variant `nose`",
            ),
            (
                format!("{ENTRY}verdict = \"skip\"\nreason = \"\""),
                "empty reason",
            ),
            (
                format!("# first\n{whole}\n{whole}"),
                "line 10 says what another says already: what cma::page_leaves does on 6.12",
            ),
            (
                format!("{whole}{}", entry("\"cma::*\"", "\"5.10\", \"6.12\"")),
                "cma::page_leaves does on 6.12",
            ),
        ] {
            let error = load(&text).expect_err(&text);
            assert!(error.contains(why), "{error}\nlacks {why}");
            assert!(error.contains("cma.toml"), "{error}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Baselines::read(Path::new("/nonexistent"), &Names::default()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"));
    }
}
