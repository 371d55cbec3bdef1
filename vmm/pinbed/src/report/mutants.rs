// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the suite found of each mutant: a line each on the terminal, and the page docs/mutants.md.
//!
//! The first session of the run is the kernel without a defect, each other one has the mutant of its number.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Write;
use std::rc::Rc;

use pinbed_abi::report::Finding;

use super::collect::Collector;
use super::event::{Event, What};
use super::record::{Boot, Run, Session};
use super::{Error, Reporter};
use crate::judge::few;
use crate::judge::mutants::{Mutant, shows};
use crate::machine::watch::End;

/// A mutant, and what was found of it.
struct Found<'a> {
    mutant: &'a Mutant,
    /// The tests that show it.
    tests: Vec<&'a str>,
    /// A finding that names the cause.
    cause: Option<&'a Finding>,
    /// What the guest came to, where that was a bad end.
    end: Option<&'a str>,
    /// Whether the guest came up.
    tried: bool,
}

impl<'a> Found<'a> {
    fn of(mutant: &'a Mutant, session: &'a Session) -> Self {
        let shown: Vec<_> = session
            .results()
            .filter_map(|(last, _)| Some((last.test.name.as_str(), shows(&last.verdict)?)))
            .collect();
        let findings: Vec<_> = shown.iter().flat_map(|(_, findings)| *findings).collect();
        let is_bad = |end: &End| !matches!(end, End::Done | End::Stopped | End::Interrupted { .. });
        // Without a word of the kernel's, that is the host's doing rather than the mutant's.
        let never_up =
            |boot: &Boot| matches!(boot.end, End::NeverUp { .. }) && boot.headline.is_none();
        let mut boots = session.boots.iter();
        let tried = !boots.clone().any(never_up);
        let bad = boots.find(|boot| is_bad(&boot.end) && !never_up(boot));
        Found {
            mutant,
            cause: mutant.names_cause(&findings),
            tests: shown.into_iter().map(|(name, _)| name).collect(),
            tried,
            end: bad.map(|boot| boot.headline.as_deref().unwrap_or("the guest ended badly")),
        }
    }

    fn killed(&self) -> bool {
        !self.tests.is_empty() || self.end.is_some()
    }

    /// What it came to.
    fn word(&self) -> &'static str {
        match (self.killed(), self.cause.is_some()) {
            (true, true) => "killed",
            (true, false) => "killed, cause not named",
            (false, _) if !self.tried => "NOT TRIED",
            (false, _) => "SURVIVED",
        }
    }

    /// The tests that find it, in a few words.
    fn by(&self) -> String {
        let mut text = match self.tests.as_slice() {
            [] if !self.tried && self.end.is_none() => {
                "no test: the guest did not come up".to_owned()
            }
            [] => self.end.unwrap_or("no test").to_owned(),
            [one] => (*one).to_owned(),
            all => format!("{} tests, as {}", all.len(), all[0]),
        };
        if let Some(cause) = self.cause {
            let _ = write!(text, ": {}", cause.text);
        }
        text
    }
}

/// The mutants whose sessions have ended.
fn all<'a>(mutants: &'a [Mutant], run: &'a Run) -> Vec<Found<'a>> {
    let sessions = run.sessions.iter().skip(1);
    mutants
        .iter()
        .zip(sessions)
        .map(|(mutant, session)| Found::of(mutant, session))
        .collect()
}

/// An earlier run, to compare with.
pub struct Earlier {
    /// Its name.
    pub name: String,
    /// The mutants that it tried, in its order.
    pub mutants: Vec<Mutant>,
    /// What it found.
    pub run: Run,
}

impl Earlier {
    /// The mutants of these that came to something else there, each with what it came to there and here.
    fn differences<'a>(
        &'a self,
        found: &'a [Found<'_>],
    ) -> Vec<(&'a str, &'static str, &'static str)> {
        let there = all(&self.mutants, &self.run);
        let of = |name: &str| there.iter().find(|there| there.mutant.name == name);
        found
            .iter()
            .filter_map(|here| {
                let name = here.mutant.name.as_str();
                let there = of(name).map_or("not in it", Found::word);
                (there != here.word()).then(|| (name, there, here.word()))
            })
            .collect()
    }
}

/// The mutants that the sessions of a run had, by the kernels' command lines.
///
/// # Errors
/// When there is none, or a session has one that `known` lacks.
pub fn of_run(known: &[Mutant], run: &Run) -> Result<Vec<Mutant>, String> {
    let name = |session: &Session| {
        let words = session.environment.append.split_whitespace();
        let mut names = words.filter_map(|word| word.strip_prefix("mutant="));
        names.next_back().unwrap_or_default().to_owned()
    };
    let mutants: Result<Vec<_>, _> = (run.sessions.iter().skip(1).map(name))
        .map(|name| {
            let mutant = known.iter().find(|mutant| mutant.name == name);
            mutant
                .cloned()
                .ok_or_else(|| format!("there is no mutant \"{name}\""))
        })
        .collect();
    match mutants {
        Ok(mutants) if mutants.is_empty() => Err("it tried no mutant".to_owned()),
        mutants => mutants,
    }
}

/// Prints a line for each mutant as its session ends, and in the end those that came to something else in an earlier run.
pub struct Lines<W: Write> {
    out: W,
    mutants: Vec<Mutant>,
    earlier: Option<Earlier>,
    wrong: Rc<Cell<usize>>,
    collector: Collector,
}

impl<W: Write> Lines<W> {
    /// Of these mutants; counts in `wrong` those that no test finds, and those that came to something else in the earlier run.
    pub fn new(
        out: W,
        mutants: Vec<Mutant>,
        earlier: Option<Earlier>,
        wrong: Rc<Cell<usize>>,
    ) -> Self {
        Lines {
            out,
            mutants,
            earlier,
            wrong,
            collector: Collector::default(),
        }
    }

    fn print(&mut self, event: &Event) -> std::io::Result<()> {
        let Some(run) = self.collector.run() else {
            return Ok(());
        };
        match &event.what {
            What::SessionFinished { session: 0, .. } => {
                let session = &run.sessions[0];
                let counts = session.summary.counts;
                writeln!(
                    self.out,
                    "{} without a defect: {} passed, {} failed\n",
                    session.name(),
                    counts.passed,
                    counts.failed
                )
            }
            What::SessionFinished { session, .. } => {
                let (Some(mutant), Some(of)) =
                    (self.mutants.get(session - 1), run.sessions.get(*session))
                else {
                    return Ok(());
                };
                let found = Found::of(mutant, of);
                self.wrong
                    .set(self.wrong.get() + usize::from(!found.killed()));
                let (name, word) = (&mutant.name, found.word());
                writeln!(self.out, "  {name:<30} {word}  by {}", found.by())
            }
            What::RunFinished { error, .. } => {
                let found = all(&self.mutants, run);
                let killed = found.iter().filter(|found| found.killed()).count();
                let named = found.iter().filter(|found| found.cause.is_some()).count();
                writeln!(
                    self.out,
                    "\n{killed} of {} mutants killed, {named} by a finding that names the cause",
                    self.mutants.len()
                )?;
                if let Some(earlier) = &self.earlier {
                    let differ = earlier.differences(&found);
                    self.wrong.set(self.wrong.get() + differ.len());
                    let (name, of) = (&earlier.name, found.len());
                    match differ.len() {
                        0 => writeln!(self.out, "as in {name}: all {of}")?,
                        count => writeln!(self.out, "other than in {name}: {count} of {of}")?,
                    }
                    for (name, there, here) in differ {
                        writeln!(self.out, "  {name:<30} {there} -> {here}")?;
                    }
                }
                match error {
                    Some(error) => writeln!(self.out, "not all were tried: {error}"),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

impl<W: Write> Reporter for Lines<W> {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        self.collector.hear(event);
        self.print(event)
            .and_then(|()| self.out.flush())
            .map_err(Error::stdout)
    }
}

/// The page docs/mutants.md; `first` if each mutant was let go after the first test that found it.
///
/// # Errors
/// When the run did not try all mutants.
pub fn page(mutants: &[Mutant], first: bool, run: &Run) -> Result<Vec<u8>, String> {
    let found = all(mutants, run);
    if found.len() != mutants.len() {
        return Err(format!(
            "only {} of {} mutants were tried",
            found.len(),
            mutants.len()
        ));
    }
    let stock = &run.sessions[0];
    let killed = found.iter().filter(|found| found.killed()).count();
    let named = found.iter().filter(|found| found.cause.is_some()).count();
    let until = match first {
        true => "up to the first test that fails",
        false => "as a whole",
    };
    let mut page = format!(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->\n\
         <!-- Made by `pinbed mutants --page docs/mutants.md`. -->\n\
         # What the suite catches\n\n\
         {} defects of the kind that a rebase or a refactoring makes are built into one kernel \
         ([patches/mutants](../guest-kernel-config/patches/mutants)); `mutant=NAME` on its command line chooses one. `pinbed mutants` runs the \
         suite with each of them, here {until}, and holds it to the baseline of the kernel without a defect. On {} ({}), of {} tests: {killed} of {} \
         are killed, {named} of them by a finding that names the cause.\n\n\
         | mutant | the kernel's defect | tests that fail | a finding that names the cause |\n|---|---|---|---|\n",
        mutants.len(),
        stock.name(),
        stock.environment.release.as_deref().unwrap_or("?"),
        stock.summary.counts.passed,
        mutants.len(),
    );
    let escape = |text: &str| text.replace('|', "\\|");
    for found in &found {
        let mut tests = few(found.tests.iter().map(|test| &**test));
        if let Some(end) = found.end {
            tests.push(escape(end));
        }
        if tests.is_empty() {
            let survives = match found.tried {
                true => "it survives",
                false => "the guest did not come up",
            };
            tests.push(format!("**none: {survives}**"));
        }
        let cause = found
            .cause
            .map_or_else(|| "–".to_owned(), |finding| escape(&finding.text));
        let _ = writeln!(
            page,
            "| {} | {} | {} | {cause} |",
            found.mutant.name,
            escape(&found.mutant.defect),
            tests.join(", ")
        );
    }
    Ok(page.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::verdict::Verdict;
    use crate::report::samples::{boot, finding, judged, run, session, tell};

    fn mutant(name: &str, cause: &str) -> Mutant {
        Mutant {
            name: name.to_owned(),
            defect: "d".to_owned(),
            causes: vec![cause.to_owned()],
        }
    }

    fn known() -> [Mutant; 2] {
        [mutant("one", "byte 0 *"), mutant("two", "byte 1 *")]
    }

    /// A run of the mutants of these names, of which those fail a test that are said to be killed.
    fn of(mutants: &[(&str, bool)]) -> Run {
        let with = |name: &str, killed: bool| {
            let verdict = match killed {
                true => Verdict::Fail {
                    findings: vec![finding()],
                    expected: None,
                },
                false => Verdict::Pass,
            };
            let mut session = session(
                0,
                End::Done,
                vec![boot(End::Done)],
                vec![judged("g::t", verdict)],
            );
            session.environment.append = format!("quiet mutant={name}");
            session
        };
        let mut stock = with("", false);
        stock.environment.append.clear();
        let mutants = mutants.iter().map(|(name, killed)| with(name, *killed));
        run(std::iter::once(stock).chain(mutants).collect())
    }

    /// What is printed of the first run beside the second, and how much of it is wrong.
    fn against(here: &Run, there: Run) -> (String, usize) {
        let wrong = Rc::new(Cell::new(0));
        let earlier = Earlier {
            name: "old.json".to_owned(),
            mutants: of_run(&known(), &there).unwrap(),
            run: there,
        };
        let mutants = of_run(&known(), here).unwrap();
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, mutants, Some(earlier), wrong.clone());
        tell(here, &mut lines);
        let text = String::from_utf8(out).unwrap();
        let (_, end) = text.split_once("names the cause\n").unwrap();
        (end.to_owned(), wrong.get())
    }

    #[test]
    fn a_run_is_compared_with_an_earlier_one() {
        let both = || of(&[("one", true), ("two", true)]);
        assert_eq!(
            against(&both(), both()),
            ("as in old.json: all 2\n".to_owned(), 0)
        );
        // In another order.
        let other = of(&[("two", true), ("one", true)]);
        assert_eq!(against(&both(), other).1, 0);
        let (text, wrong) = against(&both(), of(&[("one", false)]));
        assert_eq!(
            text,
            "other than in old.json: 2 of 2\n  \
             one                            SURVIVED -> killed\n  \
             two                            not in it -> killed, cause not named\n"
        );
        assert_eq!(wrong, 2);
        // A survivor is wrong, and that it differs, too.
        assert_eq!(against(&of(&[("one", false)]), both()).1, 2);
    }

    #[test]
    fn a_run_without_mutants_is_no_earlier_one() {
        let mut stranger = of(&[("three", true)]);
        assert!(of_run(&known(), &stranger).unwrap_err().contains("three"));
        stranger.sessions[1].environment.append.clear();
        assert!(of_run(&known(), &stranger).is_err());
        stranger.sessions.truncate(1);
        assert!(of_run(&known(), &stranger).is_err());
    }
}
