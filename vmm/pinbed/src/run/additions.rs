// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files that a person wants in the guest: programs to try there, with what they need.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::machine::initramfs::Content;

/// Why something cannot be put into the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot add {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The guest's archive has no such thing.
    #[error("cannot add {}: it is neither a file, a directory nor a symbolic link", path.display())]
    Kind { path: PathBuf },
    /// The guest's archive cannot name it.
    #[error("cannot add {}: it has no name, or one that is not UTF-8", path.display())]
    Name { path: PathBuf },
}

/// Entries of the guest's root directory: each path under its own last name, a directory with all that is in it.
///
/// # Errors
/// When a path cannot be read, is neither file, directory nor symbolic link, or has no name that the archive can hold.
pub fn entries(paths: &[PathBuf]) -> Result<Vec<(String, Content)>, Error> {
    let mut entries = Vec::new();
    for path in paths {
        // A link that is named is meant as what it leads to; so is "." as the directory that it is.
        let real = path.canonicalize().map_err(failed(path))?;
        let name = path.file_name().or(real.file_name());
        let name = name.ok_or_else(|| Error::Name { path: path.clone() })?;
        add(&mut entries, utf8(Path::new(name))?, &real)?;
    }
    Ok(entries)
}

fn add(entries: &mut Vec<(String, Content)>, name: String, path: &Path) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(path).map_err(failed(path))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        let mut inside = fs::read_dir(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed(path))?;
        inside.sort_by_key(fs::DirEntry::file_name);
        entries.push((name.clone(), Content::Directory));
        for entry in inside {
            let below = utf8(&Path::new(&name).join(entry.file_name()))?;
            add(entries, below, &entry.path())?;
        }
    } else if kind.is_symlink() {
        let to = fs::read_link(path).map_err(failed(path))?;
        entries.push((name, Content::Link(utf8(&to)?)));
    } else if kind.is_file() {
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let content = match executable {
            true => Content::Program,
            false => Content::File,
        };
        entries.push((name, content(path.to_owned())));
    } else {
        return Err(Error::Kind {
            path: path.to_owned(),
        });
    }
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

fn utf8(name: &Path) -> Result<String, Error> {
    let known = name.to_str().map(str::to_owned);
    known.ok_or_else(|| Error::Name {
        path: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_directory_comes_with_all_that_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().join("client");
        fs::create_dir_all(top.join("lib")).unwrap();
        fs::write(top.join("lib/libteec.so.2"), "library").unwrap();
        symlink("libteec.so.2", top.join("lib/libteec.so")).unwrap();
        fs::write(top.join("run"), "program").unwrap();
        fs::set_permissions(top.join("run"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("client/run", place.path().join("hello")).unwrap();

        let paths = [top.clone(), place.path().join("hello")];
        let found: Vec<_> = entries(&paths)
            .unwrap()
            .into_iter()
            .map(|(name, content)| format!("{name}: {content:?}"))
            .collect();
        let top = top.canonicalize().unwrap();
        let (run, library) = (top.join("run"), top.join("lib/libteec.so.2"));
        assert_eq!(
            found,
            [
                "client: Directory".to_owned(),
                "client/lib: Directory".to_owned(),
                "client/lib/libteec.so: Link(\"libteec.so.2\")".to_owned(),
                format!("client/lib/libteec.so.2: File({library:?})"),
                format!("client/run: Program({run:?})"),
                format!("hello: Program({run:?})"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_added_is_named() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let missing = place.path().join("missing");
        for path in [socket, missing, "/".into()] {
            let error = entries(std::slice::from_ref(&path)).unwrap_err();
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
