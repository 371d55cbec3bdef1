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

/// Prints a line for each mutant as its session ends.
pub struct Lines<W: Write> {
    out: W,
    mutants: Vec<Mutant>,
    survivors: Rc<Cell<usize>>,
    collector: Collector,
}

impl<W: Write> Lines<W> {
    /// Of these mutants; counts in `survivors` those that no test finds.
    pub fn new(out: W, mutants: Vec<Mutant>, survivors: Rc<Cell<usize>>) -> Self {
        Lines {
            out,
            mutants,
            survivors,
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
                self.survivors
                    .set(self.survivors.get() + usize::from(!found.killed()));
                let word = match (found.killed(), found.cause.is_some()) {
                    (true, true) => "killed",
                    (true, false) => "killed, cause not named",
                    (false, _) if !found.tried => "NOT TRIED",
                    (false, _) => "SURVIVED",
                };
                writeln!(self.out, "  {:<30} {word}  by {}", mutant.name, found.by())
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
