// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Keeps each run in the state directory: its events as they come, and the whole of it once it is over. The oldest runs go first.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::collect::Collector;
use super::event::{Event, What};
use super::file::{json, line};
use super::record::Run;
use super::{Error, Reporter};

/// How many runs are kept.
const KEPT: usize = 100;
/// How many bytes they may take together; the newest is kept whatever it takes.
const BYTES: u64 = 512 << 20;

const EVENTS: &str = "events.jsonl";
const RUN: &str = "run.json";

/// The directory with the runs: `runs` in the [`state`] directory.
pub fn directory() -> Option<PathBuf> {
    Some(state()?.join("runs"))
}

/// What is kept of one command for the next: `pinbed` in `$XDG_STATE_HOME`, else in `~/.local/state`.
pub fn state() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("pinbed"))
}

/// A run that was kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name: when it began, and the process that it was.
    pub name: String,
    directory: PathBuf,
}

impl Kept {
    /// The runs in this directory, the newest first.
    pub fn all(directory: &Path) -> Vec<Self> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter(|entry| entry.path().join(EVENTS).exists())
            .map(|entry| Kept {
                name: entry.file_name().to_string_lossy().into_owned(),
                directory: entry.path(),
            })
            .collect();
        all.sort_by(|a, b| b.name.cmp(&a.name));
        all
    }

    /// The run; none if it did not come to its end, or cannot be read.
    pub fn run(&self) -> Option<Run> {
        let file = File::open(self.path()).ok()?;
        serde_json::from_reader(io::BufReader::new(file)).ok()
    }

    /// Where the JSON document of the run is, if the run came to its end.
    pub fn path(&self) -> PathBuf {
        self.directory.join(RUN)
    }

    fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum()
    }
}

/// The reporter that keeps a run, from its first session on.
pub struct Recorder {
    parent: PathBuf,
    /// The first event, until there is a session.
    first: Option<Event>,
    open: Option<(PathBuf, Option<File>)>,
    collector: Collector,
    /// Whether the user knows that something cannot be written.
    told: bool,
}

impl Recorder {
    /// Keeps the run in a directory of its own below this one.
    pub fn new(parent: PathBuf) -> Self {
        Recorder {
            parent,
            first: None,
            open: None,
            collector: Collector::default(),
            told: false,
        }
    }

    fn begin(&mut self, first: &Event) -> io::Result<()> {
        let name = format!(
            "{}-{}",
            first.time.format("%Y%m%dT%H%M%S%.3fZ"),
            std::process::id()
        );
        let directory = self.parent.join(name);
        fs::create_dir_all(&directory)?;
        let mut events = File::create(directory.join(EVENTS))?;
        events.write_all(&line(first)?)?;
        self.open = Some((directory, Some(events)));
        Ok(())
    }

    fn take(&mut self, event: &Event) -> io::Result<()> {
        self.collector.hear(event);
        match event.what {
            What::RunStarted { .. } => self.first = Some(event.clone()),
            What::SessionStarted { .. } => {
                if let Some(first) = self.first.take() {
                    self.begin(&first)?;
                }
            }
            _ => {}
        }
        let Some((directory, events)) = &mut self.open else {
            return Ok(());
        };
        let written = match events {
            Some(file) => file.write_all(&line(event)?),
            None => Ok(()),
        };
        if written.is_err() {
            // Nothing goes behind half a line. The results are kept if there is room again at the end.
            *events = None;
        }
        if let (What::RunFinished { .. }, Some(run)) = (&event.what, self.collector.run()) {
            let bytes = json(run).map_err(io::Error::other)?;
            let temporary = directory.join("run.json.part");
            fs::write(&temporary, bytes)?;
            fs::rename(temporary, directory.join(RUN))?;
            clear(&self.parent, KEPT, BYTES);
        }
        written
    }
}

impl Reporter for Recorder {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        // That a run is not kept is no reason to fail it.
        if let Err(error) = self.take(event)
            && !std::mem::replace(&mut self.told, true)
        {
            say!(
                "pinbed: the run cannot be kept whole in {}: {error}",
                self.parent.display()
            );
        }
        Ok(())
    }
}

/// Deletes the oldest runs until there are no more than so many, and so many bytes.
fn clear(parent: &Path, most: usize, most_bytes: u64) {
    let mut bytes = 0;
    for (at, kept) in Kept::all(parent).into_iter().enumerate() {
        bytes += kept.bytes();
        if at > 0 && (at >= most || bytes > most_bytes) {
            // Another run may be deleting it, too.
            let _ = fs::remove_dir_all(&kept.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn a_run_is_kept_with_its_events_and_read_back() {
        let place = tempfile::tempdir().unwrap();
        samples::tell(&samples::mixed(), &mut Recorder::new(place.path().into()));
        let all = Kept::all(place.path());
        assert_eq!(all.len(), 1);
        let run = all[0].run().unwrap();
        assert_eq!(run.exit, Some(1));
        assert_eq!(run.sessions[0].tests.len(), 6);
        let events = fs::read_to_string(all[0].directory.join(EVENTS)).unwrap();
        assert!(events.lines().last().unwrap().contains("run_finished"));
    }

    #[test]
    fn a_run_that_was_killed_leaves_its_events() {
        let place = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(place.path().into());
        for event in samples::mixed().events().into_iter().take(4) {
            recorder.hear(&event).unwrap();
        }
        drop(recorder);
        let all = Kept::all(place.path());
        assert!(all[0].run().is_none());
        let events = fs::read_to_string(all[0].directory.join(EVENTS)).unwrap();
        assert_eq!(events.lines().count(), 4);
    }

    #[test]
    fn a_run_without_a_session_is_not_kept() {
        let place = tempfile::tempdir().unwrap();
        let nothing = samples::run(Vec::new());
        samples::tell(&nothing, &mut Recorder::new(place.path().into()));
        assert!(Kept::all(place.path()).is_empty());
    }

    #[test]
    fn the_oldest_runs_go_first() {
        let place = tempfile::tempdir().unwrap();
        for name in ["20260101", "20260102", "20260103", "20260104"] {
            fs::create_dir(place.path().join(name)).unwrap();
            fs::write(place.path().join(name).join(EVENTS), vec![0; 100]).unwrap();
        }
        let names = || -> Vec<_> {
            Kept::all(place.path())
                .into_iter()
                .map(|k| k.name)
                .collect()
        };
        clear(place.path(), 3, 1000);
        assert_eq!(names(), ["20260104", "20260103", "20260102"]);
        clear(place.path(), 3, 250);
        assert_eq!(names(), ["20260104", "20260103"]);
        clear(place.path(), 3, 10);
        assert_eq!(names(), ["20260104"]);
    }

    #[test]
    fn a_place_that_cannot_be_written_fails_no_run() {
        let mut recorder = Recorder::new("/proc/none".into());
        samples::tell(&samples::green(), &mut recorder);
    }
}
