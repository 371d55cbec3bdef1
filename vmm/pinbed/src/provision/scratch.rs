// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Directories for what lives as long as a run. Each is locked by the process that made it, so that what a killed one left is known as such
//! and removed by the next.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use tempfile::TempDir;

/// What their names begin with; six letters and digits follow.
const PREFIX: &str = "pinbed-";
/// What the names of those begin with that are to stay.
const KEPT: &str = "pinbed-kept-";

/// A directory of one's own.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// None of one that stays.
    _temporary: Option<(TempDir, Flock<File>)>,
}

impl Scratch {
    /// A new directory below `parent`, which goes when this is dropped unless it is to be kept. Removes what killed processes left there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path, keep: bool) -> io::Result<Self> {
        sweep(parent);
        let name = if keep { KEPT } else { PREFIX };
        // For nobody else: who reaches the sockets in it controls QEMU, and sees the guest's memory.
        let directory = tempfile::Builder::new()
            .prefix(name)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        if keep {
            return Ok(Scratch {
                path: directory.keep(),
                _temporary: None,
            });
        }
        let lock = Flock::lock(
            File::open(directory.path())?,
            FlockArg::LockExclusiveNonblock,
        );
        let lock = lock.map_err(|(_, errno)| io::Error::from(errno))?;
        Ok(Scratch {
            path: directory.path().to_owned(),
            _temporary: Some((directory, lock)),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        self._temporary.is_none()
    }
}

/// Removes directories of this user that no process has locked.
fn sweep(parent: &Path) {
    let of_killed = |path: &Path| {
        let metadata = fs::symlink_metadata(path).ok()?;
        let is_ours = metadata.is_dir() && metadata.uid() == Uid::effective().as_raw();
        // One that was just made has a moment to be locked.
        let is_new = metadata.modified().ok()?.elapsed().ok()?.as_secs() < 60;
        if !is_ours || is_new {
            return None;
        }
        Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()
    };
    for file in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = file.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_name = rest.is_some_and(|rest| {
            rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if is_name && let Some(_lock) = of_killed(&file.path()) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(file.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn age(path: &Path) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(path).unwrap().set_modified(hour_ago).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_used_or_kept_stays() {
        let parent = tempfile::tempdir().unwrap();
        let of_killed = parent.path().join("pinbed-aB3dE6");
        let not_ours = parent.path().join("pinbed-something");
        for path in [&of_killed, &not_ours] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("console.log"), "").unwrap();
            age(path);
        }
        let used = Scratch::new(parent.path(), false).unwrap();
        let kept = Scratch::new(parent.path(), true).unwrap();
        assert!(!of_killed.exists());
        age(used.path());
        age(kept.path());
        let next = Scratch::new(parent.path(), false).unwrap();
        assert!(used.path().exists() && kept.path().exists() && not_ours.exists());

        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists() && next.path().exists());
    }

    #[test]
    fn nobody_else_sees_into_it() {
        let parent = tempfile::tempdir().unwrap();
        for keep in [false, true] {
            let scratch = Scratch::new(parent.path(), keep).unwrap();
            let mode = scratch.path().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }
}
