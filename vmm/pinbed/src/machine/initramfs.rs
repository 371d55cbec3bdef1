// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's first and only file system: an uncompressed cpio archive, which the kernel unpacks faster than any compressed one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, trailer};
use nix::sys::stat::{major, minor};

use crate::provision::answers;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DATA: u32 = 0o100_644;

/// What an entry of the archive holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// This file's bytes, executable.
    Program(PathBuf),
    /// This file's bytes.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// An empty directory.
    Directory,
    /// What is at this path: a file, a directory (without what is in it), a symbolic link, a device node or a pipe, with its mode and
    /// this owner and group.
    Same(PathBuf, (u32, u32)),
}

impl Content {
    /// What tells it from any other content, without reading it: for files what [`answers::stamp_of`] says.
    pub fn stamp(&self) -> Vec<u8> {
        let of = |kind: &str, path: &Path| {
            let stamp = answers::stamp_of(path).unwrap_or_default();
            format!("{kind} {stamp}").into_bytes()
        };
        match self {
            Content::Program(path) => of("program", path),
            Content::File(path) => of("file", path),
            Content::Bytes(bytes) => [b"bytes ".as_slice(), bytes].concat(),
            Content::Directory => b"directory".to_vec(),
            Content::Same(path, owner) => of(&format!("same {owner:?}"), path),
        }
    }

    /// About how many bytes it takes; nothing for what cannot be read.
    pub fn size(&self) -> u64 {
        match self {
            Content::Program(path) | Content::File(path) => {
                fs::metadata(path).map_or(0, |metadata| metadata.len())
            }
            Content::Same(path, _) => fs::symlink_metadata(path).map_or(0, |metadata| {
                if metadata.is_dir() { 0 } else { metadata.len() }
            }),
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Directory => 0,
        }
    }
}

/// Writes an archive with these paths (without a leading slash, directories before what is in them).
///
/// # Errors
/// When a file cannot be read, or the archive cannot be written; the message names the file.
pub fn write(archive: &Path, entries: &[(impl AsRef<str>, Content)]) -> io::Result<()> {
    let told = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let mut out = io::BufWriter::new(File::create(archive).map_err(|error| told(archive, error))?);
    for (ino, (name, content)) in (1..).zip(entries) {
        let name = name.as_ref();
        match content {
            Content::Directory => {
                entry(&mut out, ino, name, DIRECTORY, &[]).map_err(|error| told(archive, error))?
            }
            Content::Bytes(bytes) => {
                entry(&mut out, ino, name, DATA, bytes).map_err(|error| told(archive, error))?
            }
            Content::Same(path, owner) => {
                same(&mut out, ino, name, path, *owner).map_err(|error| told(path, error))?
            }
            Content::Program(path) | Content::File(path) => {
                let bytes = std::fs::read(path).map_err(|error| told(path, error))?;
                let mode = if let Content::Program(_) = content {
                    PROGRAM
                } else {
                    DATA
                };
                entry(&mut out, ino, name, mode, &bytes).map_err(|error| told(archive, error))?;
            }
        }
    }
    trailer(&mut out)
        .and_then(|out| out.flush())
        .map_err(|error| told(archive, error))
}

fn entry(out: impl Write, ino: u32, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(out, Builder::new(name).ino(ino).mode(mode), bytes)
}

fn put(out: impl Write, head: Builder, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::other("more than 4 GiB do not fit into an initramfs"))?;
    let mut entry = head.write(out, length);
    entry.write_all(bytes)?;
    entry.finish().map(drop)
}

fn same(
    out: impl Write,
    ino: u32,
    name: &str,
    path: &Path,
    (uid, gid): (u32, u32),
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
    let head = Builder::new(name)
        .ino(ino)
        .mode(metadata.mode())
        .uid(uid)
        .gid(gid)
        .mtime(u32::try_from(metadata.mtime()).unwrap_or(0))
        .rdev_major(number(major(metadata.rdev()))?)
        .rdev_minor(number(minor(metadata.rdev()))?);
    let bytes = if kind.is_file() {
        fs::read(path)?
    } else if kind.is_symlink() {
        let to = fs::read_link(path)?;
        to.into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    put(out, head, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_has_what_was_put_into_it() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::write(&program, b"\x7fELF and five").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("data", &link).unwrap();
        let archive = directory.path().join("archive");
        let entries = [
            ("lib", Content::Directory),
            ("init", Content::Program(program.clone())),
            ("lib/data", Content::File(program)),
            ("plan", Content::Bytes(b"{}".to_vec())),
            ("lib/link", Content::Same(link, (5, 6))),
        ];
        write(&archive, &entries).unwrap();

        let mut rest: Box<dyn Read> = Box::new(File::open(&archive).unwrap());
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            found.push((
                reader.entry().name().to_owned(),
                reader.entry().mode(),
                bytes,
            ));
            rest = reader.finish().unwrap();
        }
        let program = b"\x7fELF and five".to_vec();
        assert_eq!(
            found,
            [
                ("lib".to_owned(), 0o040_755, vec![]),
                ("init".to_owned(), 0o100_755, program.clone()),
                ("lib/data".to_owned(), 0o100_644, program),
                ("plan".to_owned(), 0o100_644, b"{}".to_vec()),
                ("lib/link".to_owned(), 0o120_777, b"data".to_vec()),
            ]
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no-such-program");
        let error = write(
            &directory.path().join("archive"),
            &[("init", Content::Program(missing))],
        )
        .unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
