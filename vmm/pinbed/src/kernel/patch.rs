// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Patches of a kernel: found by name, and in its source only for as long as something is built from that.
//!
//! What kbuild knows of a built object has the path of the source in it, so in a patched copy elsewhere it would build all of a kernel
//! anew. Hence patched files take the place of Debian's in the one tree there is, where make finds just them changed. The files they
//! replace are kept beside the tree and put back afterwards, if need be by the next who builds from it. Who builds from the tree as it
//! is holds a lock with others like it, and who patches it holds it alone.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use walkdir::WalkDir;

use super::source::Source;
use crate::provision::cache::{Locked, create_dir};
use crate::provision::child::Run;
use crate::provision::{Context, Error};

/// A patch for one kernel.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Its name: "tee-longterm".
    pub name: String,
    /// Where it is.
    path: PathBuf,
    /// The patch itself.
    pub text: String,
}

impl Patch {
    /// Finds a patch for a kernel of kernels.toml in one of these directories: `<name>-<kernel>.patch`.
    ///
    /// # Errors
    /// When there is none of that name for this kernel, or it cannot be read.
    pub fn find(directories: &[PathBuf], name: &str, kernel: &str) -> Result<Self, Error> {
        let file = format!("{name}-{kernel}.patch");
        for path in directories.iter().map(|directory| directory.join(&file)) {
            match fs::read_to_string(&path) {
                Ok(text) => {
                    return Ok(Patch {
                        name: name.to_owned(),
                        path,
                        text,
                    });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        let known = directories
            .iter()
            .flat_map(|directory| Patch::names(directory, kernel));
        Err(Error::UnknownPatch {
            name: name.to_owned(),
            kernel: kernel.to_owned(),
            known: known.collect::<Vec<_>>().join(", "),
        })
    }

    /// The names of all patches for a kernel.
    pub fn names(directory: &Path, kernel: &str) -> Vec<String> {
        let end = format!("-{kernel}.patch");
        let files = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = files
            .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(&end)?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// The files that it changes.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let lines = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("+++ b/"));
        lines.map(|rest| Path::new(rest.split('\t').next().unwrap_or(rest)))
    }
}

/// A tree that is as it is to be built. When this is dropped, it is Debian's again.
pub struct Held<'a> {
    source: &'a Source,
    /// None of a user's own tree.
    lock: Option<Locked>,
}

impl<'a> Held<'a> {
    /// Puts a tree into the state with these patches, and keeps it there.
    ///
    /// # Errors
    /// When a patch does not apply, a file cannot be written, or on a signal.
    pub fn new(context: &Context, source: &'a Source, patches: &[Patch]) -> Result<Self, Error> {
        let Some(entry) = &source.entry else {
            return Ok(Held { source, lock: None });
        };
        if patches.is_empty() && !originals(source).exists() {
            let lock = entry.share(&context.progress)?;
            return Ok(Held {
                source,
                lock: Some(lock),
            });
        }
        let lock = entry.lock(&context.progress)?;
        let held = Held {
            source,
            lock: Some(lock),
        };
        held.restore()?;
        for patch in patches {
            held.apply(patch)?;
        }
        Ok(held)
    }

    fn apply(&self, patch: &Patch) -> Result<(), Error> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        let (tree, originals) = (&self.source.dir, originals(self.source));
        // Debian's tree is not to be seen half patched: patch works on copies.
        let copies = lock.fresh("patching")?;
        for file in patch.files() {
            copy(&tree.join(file), &copies.join(file))?;
        }
        let mut command = Command::new("patch");
        command
            .args([
                "--strip=1",
                "--forward",
                "--fuzz=0",
                "--batch",
                "--reject-file=-",
                "--input",
            ])
            .arg(&patch.path)
            .current_dir(&copies);
        let what = format!("applying {}", patch.path.display());
        Run::new(&what, command).checked(|_| {})?;
        for file in patch.files() {
            if !originals.join(file).exists() {
                copy(&tree.join(file), &originals.join(file))?;
            }
            copy(&copies.join(file), &tree.join(file))?;
        }
        fs::remove_dir_all(&copies).map_err(|e| Error::io("delete", &copies, e))
    }

    /// Puts back what patches replaced. A file that is written anew is newer than the object that was made of the patched one.
    fn restore(&self) -> Result<(), Error> {
        let originals = originals(self.source);
        for file in WalkDir::new(&originals).into_iter().flatten() {
            if let Ok(path) = file.path().strip_prefix(&originals)
                && file.file_type().is_file()
            {
                copy(file.path(), &self.source.dir.join(path))?;
            }
        }
        match fs::remove_dir_all(&originals) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("delete", &originals, e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = self.restore()
        {
            log::warn!("the next build will have to do this: {error}");
        }
    }
}

/// Where files are kept that patched ones replace, by their paths in the tree.
fn originals(source: &Source) -> PathBuf {
    source.dir.with_file_name("originals")
}

/// A copy with the time of now, there as a whole or not at all.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    if let Some(directory) = to.parent() {
        create_dir(directory)?;
    }
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(".pinbed");
    let bytes = fs::read(from).map_err(|e| Error::io("read", from, e))?;
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, to))
        .map_err(|e| Error::io("write", to, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::cache::Cache;
    use crate::provision::progress::Progress;

    const PATCH: &str = "--- a/mm/gup.c\n+++ b/mm/gup.c\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n";

    struct Rig {
        directory: tempfile::TempDir,
        context: Context,
        source: Source,
    }

    fn rig() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned());
        let entry = cache.entry("source", "6.12");
        let dir = entry.dir().join("tree");
        fs::create_dir_all(dir.join("mm")).unwrap();
        fs::write(dir.join("mm/gup.c"), "one\ntwo\n").unwrap();
        for (name, text) in [("one", PATCH), ("bad", &PATCH.replace("two", "four"))] {
            fs::write(directory.path().join(format!("{name}-6.12.patch")), text).unwrap();
        }
        let source = Source {
            dir,
            version: "6.12.1".to_owned(),
            identity: String::new(),
            entry: Some(entry),
        };
        let context = Context {
            cache,
            progress: Progress::new(),
        };
        Rig {
            directory,
            context,
            source,
        }
    }

    impl Rig {
        fn hold(&self, patch: &str) -> Result<Held<'_>, Error> {
            let patch = Patch::find(&[self.directory.path().to_owned()], patch, "6.12").unwrap();
            Held::new(&self.context, &self.source, &[patch])
        }

        fn text(&self) -> String {
            fs::read_to_string(self.source.dir.join("mm/gup.c")).unwrap()
        }

        fn is_stock(&self) {
            assert_eq!(self.text(), "one\ntwo\n");
            let left: Vec<_> = fs::read_dir(self.source.entry.as_ref().unwrap().dir())
                .unwrap()
                .map(|file| file.unwrap().file_name())
                .filter(|name| *name != "patching")
                .collect();
            assert_eq!(left, ["tree"]);
        }
    }

    #[test]
    fn a_patch_is_there_while_the_tree_is_held_and_no_longer() {
        let rig = rig();
        let held = rig.hold("one").unwrap();
        assert_eq!(rig.text(), "one\nthree\n");
        drop(held);
        rig.is_stock();
    }

    #[test]
    fn a_patch_that_does_not_apply_changes_nothing() {
        let rig = rig();
        let error = rig.hold("bad").map(drop).unwrap_err().to_string();
        assert!(error.contains("bad-6.12.patch"), "{error}");
        rig.is_stock();
    }

    #[test]
    fn the_next_build_puts_back_what_a_killed_one_left() {
        let rig = rig();
        std::mem::forget(rig.hold("one").unwrap());
        // The lock goes with a process; this one is still there.
        let lock = rig.directory.path().join("source/6.12.lock");
        fs::remove_file(lock).unwrap();
        let held = Held::new(&rig.context, &rig.source, &[]).unwrap();
        assert_eq!(rig.text(), "one\ntwo\n");
        drop(held);
        rig.is_stock();
    }

    #[test]
    fn an_unknown_patch_is_told_with_those_there_are() {
        let rig = rig();
        let error = Patch::find(&[rig.directory.path().to_owned()], "two", "6.12").unwrap_err();
        assert!(error.to_string().contains("bad, one"), "{error}");
        assert_eq!(error.exit(), crate::exit::Exit::Usage);
    }
}
