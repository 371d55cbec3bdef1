// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Results of runs, by the names that people give them: a file that `--json` wrote, or a run that is kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::record::{FORMAT, Run, Session};
use super::recorder::{self, Kept};

/// What is accepted as a result, for messages.
const ACCEPTED: &str = "give a file that `pinbed run --json` wrote, \"last\", \"last~1\" for the run before it, or the name of a run that \
                        `pinbed runs` shows";

/// A result that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("{}: cannot be read ({why}); give files that `pinbed run --json` wrote", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file without results of mutants.
    #[error("{}: {why}; give files that `pinbed mutants --json` wrote", path.display())]
    NoMutants {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of another format.
    #[error("{}: has format {format}, and this pinbed reads {FORMAT}; use the pinbed that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// Neither a file nor a run.
    #[error("there is no result {name}: {ACCEPTED}")]
    Unknown {
        /// What was given.
        name: String,
    },
    /// A run that was killed.
    #[error("the run {name} did not come to its end, so there is no result of it; {ACCEPTED}")]
    NotEnded {
        /// Its name.
        name: String,
    },
    /// A kernel that the result has no session of.
    #[error("{name} has no kernel {kernel}; it has {known}")]
    NoKernel {
        /// The result.
        name: String,
        /// The kernel.
        kernel: String,
        /// What it has.
        known: String,
    },
}

/// A result, and how it was named.
#[derive(Clone, Debug)]
pub struct Named {
    /// The file's name, or the run's.
    pub name: String,
    /// The result.
    pub run: Run,
}

/// Finds a result. `NAME@KERNEL` is that of one kernel alone, and KERNEL is short for `last@KERNEL`.
///
/// # Errors
/// When there is none of this name, or it cannot be read.
pub fn find(name: &str) -> Result<Named, Error> {
    let kept = recorder::directory().map_or_else(Vec::new, |place| Kept::all(&place));
    find_among(name, &kept)
}

fn find_among(name: &str, kept: &[Kept]) -> Result<Named, Error> {
    match whole(name, kept) {
        Err(Error::Unknown { .. }) => {}
        found => return found,
    }
    if let Some((of, kernel)) = name.rsplit_once('@') {
        return one_kernel(whole(of, kept)?, kernel);
    }
    let last = whole("last", kept).and_then(|last| one_kernel(last, name));
    last.map_err(|_| Error::Unknown {
        name: name.to_owned(),
    })
}

/// A result with all its kernels.
fn whole(name: &str, kept: &[Kept]) -> Result<Named, Error> {
    let path = Path::new(name);
    if path.exists() && !path.is_dir() {
        let file = path.file_name().unwrap_or_default();
        return Ok(Named {
            name: file.to_string_lossy().into_owned(),
            run: read(path)?,
        });
    }
    let back = match name.strip_prefix("last") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix('~').and_then(|n| n.parse().ok()),
        None => None,
    };
    if let Some(back) = back {
        let mut runs = kept.iter().filter_map(|kept| {
            let run = kept.run().filter(|run| !run.sessions.is_empty())?;
            Some((kept.name.clone(), run))
        });
        if let Some((name, run)) = runs.nth(back) {
            return Ok(Named { name, run });
        }
    } else if let Some(kept) = kept.iter().find(|kept| kept.name == name) {
        let run = kept.run().ok_or_else(|| Error::NotEnded {
            name: name.to_owned(),
        })?;
        return Ok(Named {
            name: name.to_owned(),
            run,
        });
    }
    Err(Error::Unknown {
        name: name.to_owned(),
    })
}

fn one_kernel(mut from: Named, kernel: &str) -> Result<Named, Error> {
    let known: Vec<_> = from.run.sessions.iter().map(Session::name).collect();
    if !known.contains(&kernel) {
        return Err(Error::NoKernel {
            kernel: kernel.to_owned(),
            known: known.join(", "),
            name: from.name,
        });
    }
    from.run.sessions.retain(|session| session.name() == kernel);
    from.name = format!("{}@{kernel}", from.name);
    Ok(from)
}

/// Reads a file that `--json` wrote.
///
/// # Errors
/// When it cannot be read, or has another format.
pub fn read(path: &Path) -> Result<Run, Error> {
    let unreadable = |why: String| Error::Unreadable {
        path: path.to_owned(),
        why,
    };
    let text = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    match value["format"].as_u64() {
        Some(format) if format != u64::from(FORMAT) => Err(Error::Format {
            path: path.to_owned(),
            format,
        }),
        _ => serde_json::from_value(value).map_err(|error| unreadable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::recorder::Recorder;
    use crate::report::samples;

    #[test]
    fn a_result_is_a_file_or_a_run_that_is_kept_or_a_kernel_of_one() {
        let place = tempfile::tempdir().unwrap();
        let mut first = samples::mixed();
        first.started -= chrono::TimeDelta::seconds(5);
        let mut second = samples::green();
        second.sessions.extend(samples::not_provided().sessions);
        for run in [&first, &second] {
            samples::tell(run, &mut Recorder::new(place.path().into()));
        }
        let kept = Kept::all(place.path());
        let sessions = |name: &str| {
            let found = find_among(name, &kept).unwrap();
            let kernels: Vec<_> = found
                .run
                .sessions
                .iter()
                .map(|s| s.name().to_owned())
                .collect();
            (found.name, kernels.join(" "))
        };
        let newest = kept[0].name.clone();
        assert_eq!(sessions("last"), (newest.clone(), "6.12 7.3".to_owned()));
        assert_eq!(sessions("last~1").0, kept[1].name);
        assert_eq!(sessions(&kept[1].name).1, "6.12");
        assert_eq!(sessions("last@7.3").1, "7.3");
        assert_eq!(sessions("7.3"), (format!("{newest}@7.3"), "7.3".to_owned()));

        let file = place.path().join("a@b.json");
        fs::write(&file, serde_json::to_vec(&second).unwrap()).unwrap();
        let file = file.display().to_string();
        assert_eq!(
            sessions(&file),
            ("a@b.json".to_owned(), "6.12 7.3".to_owned())
        );
        assert_eq!(sessions(&format!("{file}@7.3")).1, "7.3");

        let error = |name: &str| find_among(name, &kept).unwrap_err().to_string();
        assert!(error("nosuch.json").contains("there is no result nosuch.json: give a file"));
        assert!(error("last~7").contains("there is no result last~7"));
        assert!(error("last@9").ends_with("has no kernel 9; it has 6.12, 7.3"));
    }

    #[test]
    fn a_file_that_is_no_result_is_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.json");
        for text in ["", "[]", "{\"format\": 1}"] {
            fs::write(&path, text).unwrap();
            let error = read(&path).err().unwrap().to_string();
            assert!(error.contains("x.json: "), "{error}");
        }
    }
}
