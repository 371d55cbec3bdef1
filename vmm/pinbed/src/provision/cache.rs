// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cache: `$XDG_CACHE_HOME/pinbed/<kind>/<key>/`, an entry per thing fetched or built.
//!
//! An entry exists when its record does: the record is a small JSON file that is renamed into place last, when all else of the
//! entry is on disk. So an interrupted build leaves no entry, only a directory that the next run goes on from or clears.
//! A lock per entry keeps two pinbeds from building the same thing; readers take none.
//!
//! A complete entry has a list of its files. One that is damaged later counts as one that is not there, and is made anew.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::error::Error;
use super::inventory::{self, Check, Depth, hex};
use crate::interrupt;
use crate::provision::progress::Progress;
use crate::text::printable;

/// The record's name in an entry.
const RECORD: &str = "entry.json";
/// Its name until it is whole.
const TEMPORARY: &str = "entry.json.new";

/// The cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/pinbed`, else `~/.cache/pinbed`. Creates nothing.
    ///
    /// # Errors
    /// When neither variable names an absolute path.
    pub fn of_user() -> Result<Self, Error> {
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".cache")))
            .ok_or_else(|| {
                let source = io::Error::new(
                    ErrorKind::NotFound,
                    "neither XDG_CACHE_HOME nor HOME is an absolute path",
                );
                Error::CacheNotWritable {
                    path: "the cache directory".into(),
                    source,
                }
            })?;
        Ok(Cache::at(base.join("pinbed")))
    }

    /// A cache at this directory.
    pub fn at(root: PathBuf) -> Self {
        Cache { root }
    }

    /// The place for an entry. Touches nothing on disk.
    pub fn entry(&self, kind: &str, key: &str) -> Entry {
        Entry {
            dir: self.root.join(kind).join(key),
        }
    }

    /// The file for a remembered answer. Touches nothing on disk.
    pub(super) fn answer(&self, key: &str) -> PathBuf {
        self.root.join(ANSWERS).join(format!("{key}.json"))
    }

    /// The places of one kind whose key begins so, complete or not, the last changed first.
    pub fn entries(&self, kind: &str, prefix: &str) -> Vec<Entry> {
        let mut found: Vec<_> = fs::read_dir(self.root.join(kind))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|file| file.file_name().to_string_lossy().starts_with(prefix))
            .filter_map(|file| {
                let metadata = file.metadata().ok().filter(fs::Metadata::is_dir)?;
                Some((metadata.modified().ok()?, Entry { dir: file.path() }))
            })
            .collect();
        found.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        found.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Removes all entries of one kind whose key begins so, but for those that were used last, so many.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn keep(&self, kind: &str, prefix: &str, count: usize) -> Result<(), Error> {
        let mut entries = self.entries(kind, prefix);
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used()));
        entries.iter().skip(count).try_for_each(Entry::remove)
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All entries, by kind and key.
    pub fn all(&self) -> Vec<Entry> {
        let kinds = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut kinds: Vec<_> = kinds
            .filter_map(|kind| kind.file_name().into_string().ok())
            .filter(|kind| kind != ANSWERS)
            .collect();
        kinds.sort();
        let mut all = Vec::new();
        for kind in kinds {
            let mut entries = self.entries(&kind, "");
            entries.sort_by(|a, b| a.dir.cmp(&b.dir));
            all.extend(entries);
        }
        all
    }

    /// Removes what interrupted work left and nobody went on with for a week. (Object directories, apt's state and cargo's are never
    /// complete: they go with [`Cache::prune`] alone.)
    pub fn sweep(&self) {
        let week = Duration::from_secs(7 * 86_400);
        for entry in self.all() {
            let is_work = WORK.iter().any(|kind| entry.name().starts_with(kind));
            if !is_work && !entry.is_complete() && entry.is_older(week) {
                // Of no use to anyone, and in nobody's way.
                let _ = entry.remove();
            }
        }
    }

    /// Removes what was not used for so long, but for what another pinbed is at work on. Returns the names.
    ///
    /// # Errors
    /// When a directory cannot be removed.
    pub fn prune(&self, age: Duration) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for entry in self.all().into_iter().filter(|entry| entry.is_older(age)) {
            entry.remove()?;
            if !entry.dir.exists() {
                removed.push(entry.name());
            }
        }
        Ok(removed)
    }

    /// Fails early when fewer than `bytes` are free: better than after minutes of work.
    pub fn require_free(&self, bytes: u64) -> Result<(), Error> {
        create_dir(&self.root)?;
        let stat = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|e| Error::io("look at", &self.root, e.into()))?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < bytes {
            let mib = |n: u64| n.div_ceil(1 << 20);
            let detail = format!(
                "has {} MiB free, and this needs {} MiB",
                mib(free),
                mib(bytes)
            );
            return Err(Error::DiskFull {
                path: self.root.clone(),
                detail,
            });
        }
        Ok(())
    }
}

/// Kinds of entries that are places to work in.
const WORK: [&str; 4] = ["apt/", "bisect/", "build/", "target/"];
/// The kind of the saved states of machines. They are of use on this host alone.
pub const STARTS: &str = "start";
/// The directory of remembered answers.
const ANSWERS: &str = "answers";

/// One entry, there or not.
#[derive(Clone, Debug)]
pub struct Entry {
    dir: PathBuf,
}

impl Entry {
    /// The entry's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The record, if the entry is complete, what it says can be read by this pinbed, and its files have their sizes.
    pub fn record<T: DeserializeOwned>(&self) -> Option<T> {
        let bytes = fs::read(self.dir.join(RECORD)).ok()?;
        let record = serde_json::from_slice(&bytes).ok()?;
        if inventory::is_checked_on_use(&self.dir)
            && let Some(why) = self.damage(Depth::Sizes)
        {
            say!(
                "pinbed: {} is damaged: {why}; making it anew",
                self.dir.display()
            );
            return None;
        }
        self.touch();
        Some(record)
    }

    /// Marks the entry as used now, by its record's time of access, which costs a write a minute at most.
    fn touch(&self) {
        let path = self.dir.join(RECORD);
        let minute = Duration::from_secs(60);
        let is_recent = |used: SystemTime| used.elapsed().is_ok_and(|age| age < minute);
        if !self.used().is_some_and(is_recent) {
            let times = fs::FileTimes::new().set_accessed(SystemTime::now());
            // A cache that cannot be written is used all the same.
            let _ = File::open(path).and_then(|file| file.set_times(times));
        }
    }

    /// When it was last used; of one without a record, when it was last worked on.
    pub fn used(&self) -> Option<SystemTime> {
        if let Ok(record) = fs::metadata(self.dir.join(RECORD)) {
            return record.accessed().ok();
        }
        let files = fs::read_dir(&self.dir).ok()?.flatten();
        let times = files.filter_map(|file| file.metadata().ok()?.modified().ok());
        times.chain(fs::metadata(&self.dir).ok()?.modified()).max()
    }

    /// Whether the entry has a record, whatever that says.
    pub fn is_complete(&self) -> bool {
        self.dir.join(RECORD).exists()
    }

    /// Its kind and key, as the cache's directories have them.
    pub fn name(&self) -> String {
        let parts: Vec<_> = self.dir.iter().rev().take(2).collect();
        let parts: Vec<_> = parts
            .iter()
            .rev()
            .map(|part| part.to_string_lossy())
            .collect();
        parts.join("/")
    }

    /// The space that its files take, in bytes.
    pub fn size(&self) -> u64 {
        let files = WalkDir::new(&self.dir).into_iter().flatten();
        let sizes = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512));
        sizes.sum()
    }

    /// What is wrong with a complete entry's files: the first that differs from what was published.
    pub fn damage(&self, depth: Depth) -> Option<String> {
        inventory::difference(&self.dir, depth)
    }

    fn is_older(&self, age: Duration) -> bool {
        let past = |used: SystemTime| used.elapsed().is_ok_and(|since| since >= age);
        self.used().is_some_and(past)
    }

    /// Deletes the entry, unless another pinbed works on it.
    pub fn remove(&self) -> Result<(), Error> {
        if let Ok(file) = File::open(self.lock_path())
            && let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        {
            fs::remove_dir_all(&self.dir).map_err(|e| cache_error(&self.dir, e))?;
        }
        Ok(())
    }

    // Beside the directory, and never deleted: who waits for a lock on a deleted file waits for nothing.
    fn lock_path(&self) -> PathBuf {
        let mut path = self.dir.clone().into_os_string();
        path.push(".lock");
        path.into()
    }

    /// Takes the entry's lock and makes its directory. Waits, and says for what, while another pinbed has it.
    pub fn lock(&self, progress: &Progress) -> Result<Locked, Error> {
        self.locked(FlockArg::LockExclusiveNonblock, progress)
    }

    /// Takes the lock together with others who take it so: they use the entry, and none changes it.
    pub fn share(&self, progress: &Progress) -> Result<Locked, Error> {
        self.locked(FlockArg::LockSharedNonblock, progress)
    }

    fn locked(&self, how: FlockArg, progress: &Progress) -> Result<Locked, Error> {
        create_dir(&self.dir)?;
        let path = self.lock_path();
        let open = || {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
        };
        let mut file = open().map_err(|e| cache_error(&path, e))?;
        let mut spoke: Option<Instant> = None;
        loop {
            match Flock::lock(file, how) {
                Ok(lock) => {
                    // Whoever had it may have left nothing.
                    create_dir(&self.dir)?;
                    note_holder(&lock, how);
                    return Ok(Locked {
                        entry: self.clone(),
                        _lock: lock,
                    });
                }
                Err((back, nix::errno::Errno::EWOULDBLOCK | nix::errno::Errno::EINTR)) => {
                    file = back
                }
                Err((_, errno)) => return Err(Error::io("lock", &path, errno.into())),
            }
            if interrupt::requested() {
                return Err(Error::Interrupted);
            }
            if spoke.is_none_or(|at| at.elapsed() > Duration::from_secs(15)) {
                progress.say(&format!(
                    "waiting for another pinbed{} that works on {}",
                    holder(&file),
                    self.dir.display()
                ));
                spoke = Some(Instant::now());
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Writes into a lock's file who has it. Nobody reads that but people who wait, so it does no harm if it fails.
fn note_holder(lock: &Flock<File>, how: FlockArg) {
    let holder = match how {
        FlockArg::LockExclusive | FlockArg::LockExclusiveNonblock => {
            let words = env::args_os().skip(1);
            let words: Vec<_> = words
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            format!("{} {}", std::process::id(), words.join(" "))
        }
        // Several may share it.
        _ => String::new(),
    };
    let _ = lock
        .set_len(0)
        .and_then(|()| lock.write_all_at(holder.as_bytes(), 0));
}

/// Who has a lock, in words, as far as its file says.
fn holder(file: &File) -> String {
    let mut bytes = vec![0; 300];
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = printable(&String::from_utf8_lossy(&bytes[..length]));
    match text.split_once(' ') {
        Some((pid, command)) => format!(" (process {pid}, `pinbed {command}`)"),
        None => String::new(),
    }
}

/// An entry that only this process may change.
pub struct Locked {
    entry: Entry,
    _lock: Flock<File>,
}

impl Drop for Locked {
    /// Leaves no entry where nothing was made. What holds something stays: it is gone on from, or swept.
    fn drop(&mut self) {
        if !self.entry.is_complete() {
            for file in fs::read_dir(&self.entry.dir)
                .into_iter()
                .flatten()
                .flatten()
            {
                // Refused where it is a file, or has something in it. So below.
                let _ = fs::remove_dir(file.path());
            }
            let _ = fs::remove_dir(&self.entry.dir);
        }
    }
}

impl Locked {
    /// The entry's directory, which exists.
    pub fn dir(&self) -> &Path {
        &self.entry.dir
    }

    /// Takes the record away, so that the entry does not exist while it is worked on.
    pub fn retract(&self) -> Result<(), Error> {
        let path = self.dir().join(RECORD);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(cache_error(&path, e)),
            _ => Ok(()),
        }
    }

    /// A new, empty directory `name` in the entry.
    pub fn fresh(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir().join(name);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(cache_error(&path, e)),
            _ => {}
        }
        create_dir(&path)?;
        Ok(path)
    }

    /// Makes the entry exist: everything in it to disk with a list of it, then the record, in one step. `changes` are the files and
    /// directories at its top that are worked on later, and not on the list.
    pub fn publish<T: Serialize>(
        &self,
        record: &T,
        check: Check,
        changes: &[&str],
    ) -> Result<(), Error> {
        let failed = |e: io::Error| cache_error(self.dir(), e);
        let leave_out = [&[RECORD, TEMPORARY], changes].concat();
        inventory::write(self.dir(), &leave_out, check).map_err(failed)?;
        let directory = File::open(self.dir()).map_err(failed)?;
        // One call for the thousands of files of an entry; those of other programs on the file system ride along.
        // SAFETY: syncfs takes a descriptor, which is open, and no memory.
        if unsafe { nix::libc::syncfs(directory.as_raw_fd()) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let text = serde_json::to_vec_pretty(record).map_err(|e| failed(e.into()))?;
        let temporary = self.dir().join(TEMPORARY);
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&temporary, self.dir().join(RECORD)).map_err(failed)?;
        directory.sync_all().map_err(failed)
    }
}

/// Makes a directory and those above it, with the cache's own message when that is refused.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|e| cache_error(path, e))
}

fn cache_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::NotADirectory => Error::CacheNotWritable {
            path: path.to_owned(),
            source,
        },
        _ => Error::io("write", path, source),
    }
}

/// A key for the cache, from everything that makes a difference.
#[derive(Default)]
pub struct Fingerprint {
    hash: Sha256,
}

impl Fingerprint {
    /// Adds one thing. The name and the length keep "ab" + "c" apart from "a" + "bc".
    pub fn add(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.hash.update(format!("{name} {}\n", value.len()));
        self.hash.update(value);
        self
    }

    /// 16 hexadecimal digits: 64 bits are plenty for the few entries of one user.
    pub fn finish(self) -> String {
        let mut text = hex(&self.hash.finalize());
        text.truncate(16);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(cache: &Cache) -> Locked {
        cache.entry("thing", "one").lock(&Progress::new()).unwrap()
    }

    #[test]
    fn an_entry_exists_only_once_published() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("pinbed"));
        let entry = cache.entry("thing", "one");
        assert_eq!(entry.record::<String>(), None);
        let work = locked(&cache);
        fs::write(work.dir().join("file"), "half").unwrap();
        assert_eq!(entry.record::<String>(), None, "before publish");
        work.publish(&"done", Check::EachUse, &[]).unwrap();
        assert_eq!(entry.record::<String>().as_deref(), Some("done"));
        work.retract().unwrap();
        assert_eq!(entry.record::<String>(), None, "after retract");
    }

    #[test]
    fn an_entry_whose_files_lost_something_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let work = locked(&cache);
        fs::write(work.dir().join("file"), "whole").unwrap();
        work.publish(&1, Check::EachUse, &[]).unwrap();
        assert_eq!(cache.entry("thing", "one").record(), Some(1));
        fs::write(work.dir().join("file"), "hole").unwrap();
        assert_eq!(cache.entry("thing", "one").record::<i32>(), None);
        work.publish(&2, Check::EachUse, &["file"]).unwrap();
        fs::write(work.dir().join("file"), "of work").unwrap();
        assert_eq!(cache.entry("thing", "one").record(), Some(2));
    }

    #[test]
    fn what_was_not_used_for_long_goes_and_what_is_unfinished_goes_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let old = SystemTime::now() - Duration::from_secs(30 * 86_400);
        let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
        let make = |kind: &str, complete: bool| {
            let work = cache.entry(kind, "x").lock(&Progress::new()).unwrap();
            let half = work.dir().join("half");
            fs::write(&half, "").unwrap();
            if complete {
                work.publish(&1, Check::EachUse, &[]).unwrap();
            }
            for path in [half, work.dir().to_owned(), work.dir().join(RECORD)] {
                if let Ok(file) = File::open(path) {
                    file.set_times(times).unwrap();
                }
            }
        };
        make("kernel", true);
        make("source", false);
        make("build", false);
        make("qemu", true);
        let names = || -> Vec<_> { cache.all().iter().map(Entry::name).collect() };
        cache.sweep();
        assert_eq!(names(), ["build/x", "kernel/x", "qemu/x"]);
        assert_eq!(cache.entry("qemu", "x").record(), Some(1));
        let removed = cache.prune(Duration::from_secs(86_400)).unwrap();
        assert_eq!(removed, ["build/x", "kernel/x"]);
        assert_eq!(names(), ["qemu/x"]);
    }

    #[test]
    fn the_entries_that_were_used_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        for (age, key) in [
            (300, "6.1-a"),
            (200, "6.1-b"),
            (100, "6.1-c"),
            (400, "6.12-d"),
        ] {
            let work = cache.entry("kernel", key).lock(&Progress::new()).unwrap();
            work.publish(&1, Check::EachUse, &[]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            let record = File::open(work.dir().join(RECORD)).unwrap();
            record
                .set_times(fs::FileTimes::new().set_accessed(used))
                .unwrap();
        }
        assert_eq!(cache.entry("kernel", "6.1-a").record(), Some(1));
        cache.keep("kernel", "6.1-", 2).unwrap();
        let names: Vec<_> = cache.all().iter().map(Entry::name).collect();
        assert_eq!(names, ["kernel/6.1-a", "kernel/6.1-c", "kernel/6.12-d"]);
    }

    #[test]
    fn a_record_of_another_form_is_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        locked(&cache)
            .publish(&"text", Check::EachUse, &[])
            .unwrap();
        assert_eq!(cache.entry("thing", "one").record::<u32>(), None);
    }

    #[test]
    fn a_locked_entry_cannot_be_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let held = locked(&cache);
        let file = File::open(dir.path().join("thing/one.lock")).unwrap();
        assert!(Flock::lock(file, FlockArg::LockSharedNonblock).is_err());
        drop(held);
        let file = File::open(dir.path().join("thing/one.lock")).unwrap();
        assert!(Flock::lock(file, FlockArg::LockSharedNonblock).is_ok());
    }

    #[test]
    fn a_lock_says_who_has_it_and_leaves_no_empty_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let lock = || File::open(dir.path().join("thing/one.lock")).unwrap();
        let held = locked(&cache);
        let pid = format!(" (process {}, `pinbed", std::process::id());
        assert!(holder(&lock()).starts_with(&pid), "{}", holder(&lock()));
        held.fresh("tree").unwrap();
        drop(held);
        assert!(!dir.path().join("thing/one").exists());
        let shared = cache.entry("thing", "one").share(&Progress::new()).unwrap();
        assert_eq!(holder(&lock()), "");
        fs::write(shared.dir().join("half"), "").unwrap();
        drop(shared);
        assert!(dir.path().join("thing/one/half").exists());
    }

    #[test]
    fn entries_are_listed_by_age_and_removed_unless_locked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        for key in ["6.1-a", "6.12-b", "6.1-c"] {
            cache
                .entry("kernel", key)
                .lock(&Progress::new())
                .unwrap()
                .publish(&"x", Check::EachUse, &[])
                .unwrap();
            sleep(Duration::from_millis(20));
        }
        let names = |cache: &Cache| -> Vec<_> {
            let entries = cache.entries("kernel", "6.1-");
            entries
                .iter()
                .map(|e| e.dir().file_name().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&cache), ["6.1-c", "6.1-a"]);
        let held = cache
            .entry("kernel", "6.1-a")
            .lock(&Progress::new())
            .unwrap();
        cache.entry("kernel", "6.1-a").remove().unwrap();
        assert_eq!(names(&cache).len(), 2, "it is locked");
        drop(held);
        cache.entry("kernel", "6.1-a").remove().unwrap();
        assert_eq!(names(&cache), ["6.1-c"]);
    }

    #[test]
    fn fingerprints_differ_where_concatenations_do_not() {
        let one = Fingerprint::default().add("a", "bc").finish();
        assert_eq!(one, Fingerprint::default().add("a", "bc").finish());
        assert_ne!(
            one,
            Fingerprint::default().add("a", "b").add("c", "").finish()
        );
        assert_ne!(one, Fingerprint::default().add("ab", "c").finish());
    }

    #[test]
    fn too_little_space_is_said_before_work_begins() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        assert!(matches!(
            cache.require_free(u64::MAX / 2),
            Err(Error::DiskFull { .. })
        ));
        cache.require_free(1).unwrap();
    }
}
