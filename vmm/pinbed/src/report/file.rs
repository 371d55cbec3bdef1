// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A report that is written as a whole when the run is over: to standard output, or to a file that appears complete or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::collect::Collector;
use super::event::{Event, What};
use super::record::Run;
use super::{Error, Reporter};

/// Makes a document of a run.
pub type Format = Box<dyn Fn(&Run) -> Result<Vec<u8>, String>>;

/// Where a report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output, which "-" means.
    Stdout,
    /// A file.
    Path(PathBuf),
}

impl From<PathBuf> for Target {
    fn from(path: PathBuf) -> Self {
        match path.to_str() {
            Some("-") => Target::Stdout,
            _ => Target::Path(path),
        }
    }
}

impl Target {
    /// Checks that a report can be written there, so that a wrong path costs no run.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Target::Stdout => Ok(()),
            Target::Path(path) if is_special(path) => {
                File::options().write(true).open(path).map(drop)
            }
            Target::Path(path) if path.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Target::Path(path) => {
                // First, since its error is the plainest.
                fs::metadata(directory(path))?;
                tempfile::Builder::new()
                    .tempfile_in(directory(path))
                    .map(drop)
            }
        }
    }

    /// Writes a report.
    ///
    /// # Errors
    /// When it cannot be written; a file that was there before is then as it was.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            // A pipe or a terminal cannot be replaced.
            Target::Path(path) if is_special(path) => {
                File::options().write(true).open(path)?.write_all(bytes)
            }
            Target::Path(path) => {
                let mut file = tempfile::Builder::new()
                    .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                    .tempfile_in(directory(path))?;
                file.write_all(bytes)?;
                file.as_file().sync_data()?;
                file.persist(path).map(drop).map_err(|error| error.error)
            }
        }
    }
}

/// Whether something is there that is not an ordinary file.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Collects a run and writes it once it is over.
pub struct Whole {
    what: String,
    target: Target,
    format: Format,
    collector: Collector,
}

impl Whole {
    /// Writes what `format` makes of the run to `target`; `what` names it in messages: "the JSON report".
    pub fn new(
        what: &str,
        target: Target,
        format: impl Fn(&Run) -> Result<Vec<u8>, String> + 'static,
    ) -> Self {
        Whole {
            what: what.to_owned(),
            target,
            format: Box::new(format),
            collector: Collector::default(),
        }
    }
}

impl Reporter for Whole {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        self.collector.hear(event);
        let (What::RunFinished { .. }, Some(run)) = (&event.what, self.collector.run()) else {
            return Ok(());
        };
        let bytes = (self.format)(run).map_err(|why| Error::write(&self.what, why))?;
        self.target
            .write(&bytes)
            .map_err(|error| match &self.target {
                Target::Stdout => Error::stdout(error),
                Target::Path(path) => {
                    Error::write(format!("{} {}", self.what, path.display()), error)
                }
            })
    }
}

/// The JSON document of a run.
///
/// # Errors
/// Never, for runs that a collector made.
pub fn json(run: &Run) -> Result<Vec<u8>, String> {
    let mut bytes = serde_json::to_vec_pretty(run).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The stream of events itself, one JSON object a line.
pub struct Stream {
    target: Target,
    out: Box<dyn Write>,
}

impl Stream {
    /// Writes to `target` as events come.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub fn new(target: Target) -> io::Result<Self> {
        let out: Box<dyn Write> = match &target {
            Target::Stdout => Box::new(io::stdout()),
            Target::Path(path) => Box::new(File::create(path)?),
        };
        Ok(Stream { target, out })
    }
}

impl Reporter for Stream {
    fn hear(&mut self, event: &Event) -> Result<(), Error> {
        let written = line(event).and_then(|line| {
            self.out.write_all(&line)?;
            self.out.flush()
        });
        written.map_err(|error| match &self.target {
            Target::Stdout => Error::stdout(error),
            Target::Path(path) => Error::write(format!("the events to {}", path.display()), error),
        })
    }
}

/// An event as a line of the stream.
pub fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out.json");
        let target = Target::from(path.clone());
        target.check().unwrap();
        assert!(!path.exists(), "a check leaves nothing");
        target.write(b"one").unwrap();
        target.write(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);

        let nowhere = Target::from(place.path().join("none/out.json"));
        assert!(nowhere.check().is_err() && nowhere.write(b"x").is_err());
        assert!(Target::from(place.path().to_owned()).check().is_err());
        assert_eq!(Target::from(PathBuf::from("-")), Target::Stdout);
        Target::from(PathBuf::from("/dev/null"))
            .write(b"x")
            .unwrap();
    }
}
