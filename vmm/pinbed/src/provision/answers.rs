// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Answers that every run needs and that take time to get, such as a program's version: kept in the cache with a stamp of all that they
//! depend on, and asked for again when the stamp changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cache::{Cache, Fingerprint, create_dir};
use super::error::Error;

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    stamp: String,
    answer: T,
}

/// The answer to `question`, if it was kept with the same stamp.
pub fn recall<T: DeserializeOwned>(cache: &Cache, question: &str, stamp: &str) -> Option<T> {
    let bytes = fs::read(cache.answer(&key(question))).ok()?;
    let kept: Kept<T> = serde_json::from_slice(&bytes).ok()?;
    (kept.stamp == stamp).then_some(kept.answer)
}

/// Keeps an answer in the place of the last one to this question. Whether that works makes no difference but for time.
pub fn keep<T: Serialize>(cache: &Cache, question: &str, stamp: &str, answer: &T) {
    let path = cache.answer(&key(question));
    let kept = Kept {
        stamp: stamp.to_owned(),
        answer,
    };
    let write = || -> Result<(), Error> {
        let failed = |e| Error::io("write", &path, e);
        let directory = path.parent().unwrap_or(&path);
        create_dir(directory)?;
        let text = serde_json::to_vec(&kept).map_err(|e| failed(e.into()))?;
        let file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        fs::write(file.path(), text).map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    };
    if let Err(error) = write() {
        log::debug!("{question} will be asked again: {error}");
    }
}

/// What tells a file from any that takes its place: the path without links, size, time of change, inode. None where there is no file.
pub fn stamp_of(file: &Path) -> Option<String> {
    let path = file.canonicalize().ok()?;
    let metadata = path.metadata().ok()?;
    let (size, inode) = (metadata.size(), metadata.ino());
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Some(format!(
        "{} {size} {seconds}.{nanoseconds:09} {inode}",
        path.display()
    ))
}

/// The answer of a program, which depends on the program's file alone.
///
/// # Errors
/// Those of `ask`; a failure is not remembered.
pub fn of_program<T: Serialize + DeserializeOwned, E>(
    cache: &Cache,
    question: &str,
    program: &Path,
    ask: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let question = format!("{question} {}", program.display());
    let Some(stamp) = stamp_of(program) else {
        return ask();
    };
    if let Some(answer) = recall(cache, &question, &stamp) {
        return Ok(answer);
    }
    let answer = ask()?;
    keep(cache, &question, &stamp, &answer);
    Ok(answer)
}

fn key(question: &str) -> String {
    Fingerprint::default().add("question", question).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_again_only_when_its_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("cache"));
        let program = directory.path().join("program");
        let ask = |answer: &str| {
            of_program(&cache, "version", &program, || {
                Ok::<_, ()>(answer.to_owned())
            })
            .unwrap()
        };
        assert_eq!(ask("no file"), "no file");
        fs::write(&program, "1").unwrap();
        assert_eq!(ask("one"), "one");
        assert_eq!(ask("two"), "one");
        fs::write(&program, "changed").unwrap();
        assert_eq!(ask("three"), "three");
        let failed = of_program(&cache, "other", &program, || Err::<String, _>("why"));
        assert_eq!(failed, Err("why"));
        let again = of_program(&cache, "other", &program, || {
            Ok::<_, ()>("works".to_owned())
        });
        assert_eq!(again.unwrap(), "works");
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned());
        keep(&cache, "question", "stamp", &"answer");
        assert_eq!(
            recall::<String>(&cache, "question", "stamp").as_deref(),
            Some("answer")
        );
        assert_eq!(recall::<u32>(&cache, "question", "stamp"), None);
        assert_eq!(recall::<String>(&cache, "question", "another"), None);
        fs::write(cache.answer(&key("question")), "{\"stamp\":").unwrap();
        assert_eq!(recall::<String>(&cache, "question", "stamp"), None);
    }
}
