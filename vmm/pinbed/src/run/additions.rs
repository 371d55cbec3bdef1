// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files that a person wants in the guest: programs to try there, with what they need.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::machine::initramfs::Content;

/// Why something cannot be put into the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot add {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The guest's archive has no such thing.
    #[error("cannot add {}: it is a socket", path.display())]
    Kind { path: PathBuf },
    /// The guest's archive cannot name it.
    #[error("cannot add {}: it has no name, or one that is not UTF-8", path.display())]
    Name { path: PathBuf },
}

/// Entries of the guest's root directory: each path under its own last name, a directory with all that is in it.
///
/// # Errors
/// When a path cannot be read, is a socket, or has no name that the archive can hold.
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
    if kind.is_socket() {
        return Err(Error::Kind {
            path: path.to_owned(),
        });
    }
    let owner = owner(metadata.uid(), metadata.gid());
    entries.push((name.clone(), Content::Same(path.to_owned(), owner)));
    if kind.is_dir() {
        let mut inside = fs::read_dir(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed(path))?;
        inside.sort_by_key(fs::DirEntry::file_name);
        for entry in inside {
            let below = utf8(&Path::new(&name).join(entry.file_name()))?;
            add(entries, below, &entry.path())?;
        }
    }
    Ok(())
}

/// Who owns a file in the guest: its owner on the host. What belongs to whoever runs this, and is not root, is root's there.
fn owner(uid: u32, gid: u32) -> (u32, u32) {
    let me = Uid::effective();
    if !me.is_root() && uid == me.as_raw() {
        (0, 0)
    } else {
        (uid, gid)
    }
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
    use std::os::unix::fs::{PermissionsExt, symlink};
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
            .map(|(name, content)| match content {
                Content::Same(path, _) => format!("{name}: {}", path.display()),
                other => panic!("{other:?}"),
            })
            .collect();
        let top = top.canonicalize().unwrap();
        let top = top.display();
        assert_eq!(
            found,
            [
                format!("client: {top}"),
                format!("client/lib: {top}/lib"),
                format!("client/lib/libteec.so: {top}/lib/libteec.so"),
                format!("client/lib/libteec.so.2: {top}/lib/libteec.so.2"),
                format!("client/run: {top}/run"),
                format!("hello: {top}/run"),
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
