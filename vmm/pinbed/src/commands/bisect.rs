// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed bisect`: the first commit of a kernel tree at which a test comes to something else.
//!
//! git does the bisection, in a checkout of pinbed's own that borrows the objects of the user's repository and writes nothing to it.
//! The checkout and its builds are kept in the cache, so each step costs what make finds to do. So are the outcomes: the same command,
//! given again after an interruption, asks git the same questions and has the answers.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use pinbed_abi::report::Finding;
use serde::{Deserialize, Serialize};

use crate::cli::{BisectArgs, VmArgs};
use crate::commands::run::guest_options;
use crate::exit::Exit;
use crate::interrupt;
use crate::judge::verdict::Verdict;
use crate::machine::watch::End;
use crate::provision::cache::{Fingerprint, Locked};
use crate::provision::{self, Context, workspace};
use crate::report::record::Run;
use crate::run::environments;
use crate::run::setup::{Host, Setup};

/// A source tree and a build of it.
const SPACE: u64 = 2500 << 20;

/// Why there is nothing to bisect, or git cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree is no git repository, or has no such commit.
    #[error("{}: git knows no commit {revision} ({why}); give a revision of the repository in --tree", tree.display())]
    Revision {
        /// The tree.
        tree: PathBuf,
        /// What was asked for.
        revision: String,
        /// What git says.
        why: String,
    },
    /// Both ends are alike.
    #[error(
        "{tests} {outcome} at {good} and at {bad}: there is no change between them to find; `pinbed run {tests} --kernel-src DIR` shows what \
         a tree does"
    )]
    Alike {
        /// The tests.
        tests: String,
        /// What they come to.
        outcome: &'static str,
        /// One end.
        good: String,
        /// The other one.
        bad: String,
    },
    /// An end cannot be tested.
    #[error("{revision} cannot be tested: {why}; give another revision to begin with")]
    Untestable {
        /// The end.
        revision: String,
        /// Why not.
        why: String,
    },
    /// git refuses.
    #[error("git {command} fails: {why}")]
    Git {
        /// The command.
        command: String,
        /// What git says.
        why: String,
    },
}

/// What the tests come to at a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
enum Outcome {
    /// All that ran pass.
    Passes,
    /// One fails, whether a baseline knows that or not.
    Fails {
        /// The first finding, with who saw it.
        finding: String,
    },
    /// The commit says nothing: it does not build, or boot, or lacks what the tests need.
    Untestable {
        /// Why.
        why: String,
    },
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Passes => "passes",
            Outcome::Fails { .. } => "fails",
            Outcome::Untestable { .. } => "cannot be tested",
        }
    }

    /// The rest of what there is to say.
    fn detail(&self) -> &str {
        match self {
            Outcome::Passes => "",
            Outcome::Fails { finding } => finding,
            Outcome::Untestable { why } => why,
        }
    }

    /// What a run of one kernel says of its commit.
    fn of(run: &Run) -> Self {
        let mut finding: Option<String> = None;
        let mut passes = false;
        let mut reason = run.error.clone();
        for session in &run.sessions {
            if let End::NeverUp { reason } = &session.summary.end {
                return Outcome::Untestable {
                    why: format!("the guest never came up: {reason}"),
                };
            }
            for (judged, _) in session.results() {
                match &judged.verdict {
                    Verdict::Fail { findings, .. } | Verdict::Xfail { findings, .. } => {
                        finding.get_or_insert_with(|| in_words(findings));
                    }
                    Verdict::Pass | Verdict::Fixed { .. } => passes = true,
                    Verdict::Skip { reason: why, .. } | Verdict::NotRun { reason: why } => {
                        reason.get_or_insert_with(|| why.clone());
                    }
                }
            }
        }
        match (finding, passes) {
            (Some(finding), _) => Outcome::Fails { finding },
            (None, true) => Outcome::Passes,
            (None, false) => Outcome::Untestable {
                why: reason.unwrap_or_else(|| "no test ran".to_owned()),
            },
        }
    }
}

fn in_words(findings: &[Finding]) -> String {
    findings.first().map_or(String::new(), |finding| {
        let eye = format!("{:?}", finding.eye).to_lowercase();
        format!("{eye}: {}", finding.text)
    })
}

/// An outcome as it is kept: of a commit, and of a question.
#[derive(Serialize, Deserialize)]
struct Kept {
    commit: String,
    question: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Finds the commit.
///
/// # Errors
/// When the ends are alike or cannot be tested, git refuses, something cannot be provided, or on a signal.
pub fn bisect(args: &BisectArgs) -> Result<Exit> {
    interrupt::install().context("cannot watch for signals")?;
    find(args).map_err(|error| match interrupt::requested() {
        // Whatever the signal ended, such as git.
        true => provision::Error::Interrupted.into(),
        false => error,
    })
}

fn find(args: &BisectArgs) -> Result<Exit> {
    let began = Instant::now();
    let tree = args.tree.canonicalize().unwrap_or(args.tree.clone());
    let good = commit_of(&tree, &args.good)?;
    let bad = commit_of(&tree, &args.bad)?;
    let bisection = Bisection::new(args, &tree)?;
    let mut out = io::stdout().lock();

    let mut known = bisection.known();
    let mut ends = Vec::new();
    for (revision, commit) in [(&args.good, &good), (&args.bad, &bad)] {
        let outcome = bisection.answer(commit, &mut known, &mut out)?;
        if let Outcome::Untestable { why } = outcome {
            return Err(Error::Untestable {
                revision: revision.clone(),
                why,
            }
            .into());
        }
        ends.push(outcome);
    }
    ensure!(
        ends[0].word() != ends[1].word(),
        Error::Alike {
            tests: args.tests.join(" "),
            outcome: ends[0].word(),
            good: args.good.clone(),
            bad: args.bad.clone(),
        }
    );

    let checkout = &bisection.checkout;
    git(checkout, &["bisect", "reset"])?;
    git(checkout, &["bisect", "start", &bad, &good])?;
    let mut first = bisection.found()?;
    while first.is_none() {
        let commit = commit_of(checkout, "HEAD")?;
        let outcome = bisection.answer(&commit, &mut known, &mut out)?;
        let word = match outcome.word() {
            word if word == ends[0].word() => "good",
            word if word == ends[1].word() => "bad",
            _ => "skip",
        };
        let said = git(checkout, &["bisect", word]);
        first = bisection.found()?;
        if let (None, Err(error)) = (&first, said) {
            return Err(error.into());
        }
    }
    let first = first.unwrap_or_default();
    let took = began.elapsed().as_secs();
    writeln!(
        out,
        "\n{} {} since {}, of the {} commits from {} to {}; found in {}:{:02} minutes.\n",
        args.tests.join(" "),
        ends[1].word(),
        match first.len() {
            1 => "this commit",
            _ => "one of these commits, of which some cannot be tested",
        },
        git(
            checkout,
            &["rev-list", "--count", &format!("{good}..{bad}")]
        )?
        .trim(),
        args.good,
        args.bad,
        took / 60,
        took % 60,
    )?;
    for commit in &first {
        let format = "--format=commit %H%nAuthor: %an <%ae>%nDate:   %ad%n%n%w(0,4,4)%B";
        let shown = git(checkout, &["show", "--stat", format, commit])?;
        writeln!(out, "{}\n", shown.trim_end())?;
    }
    if let Outcome::Fails { finding } = &ends[1] {
        writeln!(out, "What it comes to at {}: {finding}", args.bad)?;
    }
    // Left where the user can look at it, and where the next bisection goes on from.
    git(checkout, &["bisect", "reset", &first[0]])?;
    writeln!(out, "The tree at that commit is in {}", checkout.display())?;
    Ok(match first.len() {
        1 => Exit::Green,
        _ => Exit::Differs,
    })
}

/// A checkout to bisect in, and the question that is asked of each commit.
struct Bisection<'a> {
    args: &'a BisectArgs,
    /// The guest, of the checkout's kernel.
    vm: VmArgs,
    checkout: PathBuf,
    /// The outcomes so far, a JSON object a line.
    log: PathBuf,
    /// What tells this question from others that were asked of the same commits.
    question: String,
    _lock: Locked,
}

impl<'a> Bisection<'a> {
    fn new(args: &'a BisectArgs, tree: &Path) -> Result<Self> {
        let context = Context::of_user()?;
        let key = Fingerprint::default()
            .add("tree", tree.as_os_str().as_encoded_bytes())
            .finish();
        let entry = context.cache.entry("bisect", &key);
        let lock = entry.lock(&context.progress)?;
        let checkout = entry.dir().join("tree");
        if !checkout.join(".git").exists() {
            context.cache.require_free(SPACE)?;
        }
        borrow(tree, &checkout)?;
        let mut vm = environments::one(&args.vm, &workspace()?)?;
        vm.kernel_src = Some(checkout.clone());
        let question = args
            .tests
            .iter()
            .fold(Fingerprint::default(), |print, test| {
                print.add("test", test)
            });
        let question = question
            .add("repeat", args.repeat.to_string())
            .add("options", guest_options(&vm).join("\0"))
            .finish();
        Ok(Bisection {
            args,
            vm,
            checkout,
            log: entry.dir().join("outcomes.jsonl"),
            question,
            _lock: lock,
        })
    }

    /// What is known of commits from before.
    fn known(&self) -> BTreeMap<String, Outcome> {
        let text = match self.args.afresh {
            true => String::new(),
            false => fs::read_to_string(&self.log).unwrap_or_default(),
        };
        text.lines()
            .filter_map(|line| serde_json::from_str::<Kept>(line).ok())
            .filter(|kept| kept.question == self.question)
            .map(|kept| (kept.commit, kept.outcome))
            .collect()
    }

    /// What the tests come to at a commit: as it is known, or by a run. Shows it on a line.
    fn answer(
        &self,
        commit: &str,
        known: &mut BTreeMap<String, Outcome>,
        out: &mut impl Write,
    ) -> Result<Outcome> {
        let subject = git(
            &self.checkout,
            &["log", "-1", "--format=%h %s", "--abbrev=12", commit],
        )?;
        let began = Instant::now();
        let (outcome, time) = match known.get(commit) {
            Some(outcome) => (outcome.clone(), "known".to_owned()),
            None => {
                let outcome = self.ask(commit)?;
                self.keep(commit, &outcome)?;
                known.insert(commit.to_owned(), outcome.clone());
                (outcome, format!("{} s", began.elapsed().as_secs()))
            }
        };
        writeln!(
            out,
            "{:<16}  {:>6}  {}",
            outcome.word(),
            time,
            subject.trim()
        )?;
        if outcome.word() != "passes" {
            let line = outcome.detail().lines().next().unwrap_or_default();
            writeln!(out, "{:26}{line}", "")?;
        }
        out.flush()?;
        Ok(outcome)
    }

    fn keep(&self, commit: &str, outcome: &Outcome) -> Result<()> {
        let kept = Kept {
            commit: commit.to_owned(),
            question: self.question.clone(),
            outcome: outcome.clone(),
        };
        let line = serde_json::to_string(&kept)? + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&self.log);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write {}", self.log.display()))
    }

    /// Checks a commit out, builds it, and runs the tests.
    fn ask(&self, commit: &str) -> Result<Outcome> {
        git(
            &self.checkout,
            &["checkout", "--quiet", "--force", "--detach", commit],
        )?;
        let vm = &self.vm;
        // First alone, for its error: that a commit does not build is an answer, that there is no compiler is none.
        let host = Host::new(vm)?;
        for request in &host.requests {
            if let Err(error) = Setup::new(&host, vm, request) {
                return match error.downcast_ref::<provision::Error>() {
                    Some(provision::Error::Command { what, lines, .. }) => {
                        let is_error = |line: &&String| line.contains("error");
                        let line = lines.iter().find(is_error).or(lines.first());
                        let line = line.map_or(String::new(), |line| format!(": {line}"));
                        Ok(Outcome::Untestable {
                            why: format!("{what} failed{line}"),
                        })
                    }
                    _ => Err(error),
                };
            }
        }
        let result = tempfile::NamedTempFile::new()?;
        let mut run = Command::new(std::env::current_exe()?);
        run.arg("run").args(&self.args.tests);
        run.args(guest_options(vm));
        run.args(["--repeat", &self.args.repeat.to_string(), "--json"])
            .arg(result.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let workspace = provision::workspace()?;
        let status = run.env("PINBED_WORKSPACE", workspace).status()?;
        if interrupt::requested() {
            return Err(provision::Error::Interrupted.into());
        }
        let text = fs::read(result.path())?;
        let run: Run = serde_json::from_slice(&text)
            .with_context(|| format!("`pinbed run` gave no result ({status})"))?;
        match run.exit.and_then(Exit::of) {
            Some(Exit::Interrupted) => Err(provision::Error::Interrupted.into()),
            Some(Exit::Usage | Exit::Provisioning | Exit::Internal) | None => {
                let why = run.error.unwrap_or_else(|| "see above".to_owned());
                Err(anyhow::anyhow!("`pinbed run` ends with {status}: {why}"))
            }
            Some(_) => Ok(Outcome::of(&run)),
        }
    }

    /// The commit that git has found, or all that are left where some cannot be tested.
    fn found(&self) -> Result<Option<Vec<String>>, Error> {
        let log = git(&self.checkout, &["bisect", "log"])?;
        Ok(found_in(&log))
    }
}

fn found_in(log: &str) -> Option<Vec<String>> {
    let after = |prefix: &'static str| {
        log.lines().filter_map(move |line| {
            let (commit, _) = line.strip_prefix(prefix)?.split_once(']')?;
            Some(commit.to_owned())
        })
    };
    let first: Vec<_> = after("# first bad commit: [").collect();
    if !first.is_empty() {
        return Some(first);
    }
    let possible: Vec<_> = after("# possible first bad commit: [").collect();
    (!possible.is_empty()).then_some(possible)
}

/// A repository at `checkout` that has the objects of `tree`'s.
fn borrow(tree: &Path, checkout: &Path) -> Result<(), Error> {
    let failed = |command: &str, error: io::Error| Error::Git {
        command: command.to_owned(),
        why: error.to_string(),
    };
    // Of the repository: a worktree has a directory of its own beside it.
    let common = git(tree, &["rev-parse", "--git-common-dir"])?;
    let common = tree.join(common.trim_end_matches('\n'));
    let common = common.canonicalize().unwrap_or(common);
    if !checkout.join(".git").exists() {
        fs::create_dir_all(checkout).map_err(|error| failed("init", error))?;
        git(checkout, &["init", "--quiet"])?;
    }
    let to = checkout.join(".git");
    let alternates = format!("{}\n", common.join("objects").display());
    fs::write(to.join("objects/info/alternates"), alternates)
        .map_err(|error| failed("init", error))?;
    // Of a shallow clone git would miss the parents of its oldest commits.
    match fs::copy(common.join("shallow"), to.join("shallow")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("init", error)),
        _ => Ok(()),
    }
}

/// The commit that a revision means.
fn commit_of(tree: &Path, revision: &str) -> Result<String, Error> {
    let name = format!("{revision}^{{commit}}");
    let found = git(tree, &["rev-parse", "--verify", "--end-of-options", &name]);
    match found {
        Ok(commit) => Ok(commit.trim().to_owned()),
        Err(Error::Git { why, .. }) => Err(Error::Revision {
            tree: tree.to_owned(),
            revision: revision.to_owned(),
            why,
        }),
        Err(other) => Err(other),
    }
}

/// Runs git in a directory, untouched by variables that mean another one. Returns what it says.
fn git(directory: &Path, arguments: &[&str]) -> Result<String, Error> {
    let failed = |why: String| Error::Git {
        command: arguments.join(" "),
        why,
    };
    let mut command = Command::new("git");
    for variable in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_COMMON_DIR",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    ] {
        command.env_remove(variable);
    }
    let output = command
        .args([
            "-c",
            "advice.detachedHead=false",
            "-c",
            "core.hooksPath=/dev/null",
            "-C",
        ])
        .arg(directory)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{error}; install git")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(match error.is_empty() {
        true => said.trim().to_owned(),
        false => error,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn a_run_says_whether_its_commit_passes() {
        assert_eq!(Outcome::of(&samples::green()), Outcome::Passes);
        assert_eq!(
            Outcome::of(&samples::mixed()),
            Outcome::Fails {
                finding: "cpu: byte 0 is 1, expected 2".to_owned()
            }
        );
        assert_eq!(Outcome::of(&samples::panicked()).word(), "fails");
        let mut known = samples::mixed();
        known.sessions[0].tests.truncate(3);
        known.sessions[0].tests.remove(1);
        assert_eq!(
            Outcome::of(&known).word(),
            "fails",
            "a known failure is one"
        );
        let mut skipped = samples::mixed();
        skipped.sessions[0].tests = skipped.sessions[0].tests.split_off(5);
        assert_eq!(
            Outcome::of(&skipped),
            Outcome::Untestable {
                why: "no /dev/video0".to_owned()
            }
        );
        let mut dark = samples::green();
        dark.sessions[0].summary.end = End::NeverUp {
            reason: "no Hello".to_owned(),
        };
        assert_eq!(Outcome::of(&dark).word(), "cannot be tested");
    }

    #[test]
    fn what_git_has_found_is_read_from_its_log() {
        let log = "git bisect start 'b' 'a'\n# good: [aa] x\n# bad: [bb] y\n";
        assert_eq!(found_in(log), None);
        let one = format!("{log}# first bad commit: [bb] y\n");
        assert_eq!(found_in(&one), Some(vec!["bb".to_owned()]));
        let several = format!(
            "{log}# only skipped commits left to test\n# possible first bad commit: [cc] z\n# possible first bad commit: [bb] y\n"
        );
        assert_eq!(
            found_in(&several),
            Some(vec!["cc".to_owned(), "bb".to_owned()])
        );
    }

    #[test]
    fn a_checkout_borrows_the_objects_and_leaves_the_repository_alone() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        git(&tree, &["init", "--quiet"]).unwrap();
        let identity = ["-c", "user.name=x", "-c", "user.email=x@x.example"];
        let commit = |text: &str| {
            fs::write(tree.join("file"), text).unwrap();
            git(&tree, &["add", "file"]).unwrap();
            git(
                &tree,
                &[&identity[..], &["commit", "--quiet", "-m", text]].concat(),
            )
            .unwrap();
            commit_of(&tree, "HEAD").unwrap()
        };
        let (first, second) = (commit("one"), commit("two"));
        fs::write(tree.join("file"), "not committed").unwrap();
        let before = listing(&tree);
        let checkout = place.path().join("checkout");
        for commit in [&first, &second, &first] {
            borrow(&tree, &checkout).unwrap();
            git(&checkout, &["checkout", "--quiet", "--detach", commit]).unwrap();
        }
        assert_eq!(fs::read_to_string(checkout.join("file")).unwrap(), "one");
        assert_eq!(listing(&tree), before);
        let error = commit_of(&tree, "nosuch").unwrap_err().to_string();
        assert!(error.contains("git knows no commit nosuch"), "{error}");
    }

    /// Every file with its time of change.
    fn listing(directory: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
        let files = walkdir::WalkDir::new(directory).sort_by_file_name();
        files
            .into_iter()
            .flatten()
            .map(|file| {
                let changed = file.metadata().unwrap().modified().unwrap();
                (file.into_path(), changed)
            })
            .collect()
    }
}
