// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What files a cache entry has: path, size and SHA-256 of each, written when the entry is complete, and held against what is there.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Its name in an entry.
pub const NAME: &str = "files.list";

/// How closely files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Whether they are there and have their size.
    Sizes,
    /// Their content, too.
    Contents,
}

/// When an entry's sizes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// On each use: some thousand files take milliseconds.
    EachUse,
    /// When something that uses it fails: for trees of many files.
    OnFailure,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::EachUse => "each-use",
            Check::OnFailure => "on-failure",
        }
    }
}

/// Writes the list of all files below a directory, but for `leave_out` at its top. The first line says when they are checked.
///
/// # Errors
/// When a file cannot be read, or the list not written.
pub fn write(directory: &Path, leave_out: &[&str], check: Check) -> io::Result<()> {
    let mut list = BufWriter::new(File::create(directory.join(NAME))?);
    writeln!(list, "{}", check.name())?;
    let at_top = |file: &walkdir::DirEntry| file.depth() == 1;
    let files = WalkDir::new(directory)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|file| {
            let name = file.file_name();
            !(at_top(file) && (name == NAME || leave_out.iter().any(|other| name == *other)))
        });
    for file in files {
        let file = file?;
        let path = file.path().strip_prefix(directory).unwrap_or(file.path());
        // The list is a line for each file; no file of ours has such a name.
        let Some(path) = path.to_str().filter(|path| !path.contains('\n')) else {
            continue;
        };
        if file.file_type().is_file() {
            let (size, sum) = sum(file.path())?;
            writeln!(list, "{size} {sum} {path}")?;
        } else if file.file_type().is_symlink() {
            writeln!(list, "0 link {path}")?;
        }
    }
    list.into_inner()?.sync_all()
}

/// Whether the sizes are to be looked at on each use. Not where there is no list, as in entries of earlier versions.
pub fn is_checked_on_use(directory: &Path) -> bool {
    let mut first = String::new();
    File::open(directory.join(NAME))
        .and_then(|list| BufReader::new(list).read_line(&mut first))
        .is_ok_and(|_| first.trim_end() == Check::EachUse.name())
}

/// The first file that is not as the list has it, and what is wrong with it. Files that are not on the list do not matter.
pub fn difference(directory: &Path, depth: Depth) -> Option<String> {
    let list = match fs::read_to_string(directory.join(NAME)) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("{NAME} cannot be read: {error}")),
    };
    list.lines().skip(1).find_map(|line| {
        let mut words = line.splitn(3, ' ');
        let entry = (words.next()?.parse::<u64>(), words.next()?, words.next()?);
        let (Ok(size), recorded, path) = entry else {
            return Some(format!("{NAME} is damaged"));
        };
        wrong(&directory.join(path), size, recorded, depth).map(|why| format!("{path} {why}"))
    })
}

/// What is wrong with a file.
fn wrong(path: &Path, size: u64, recorded: &str, depth: Depth) -> Option<String> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some("is missing".to_owned());
        }
        Err(error) => return Some(format!("cannot be read: {error}")),
    };
    if metadata.is_symlink() && recorded == "link" {
        return None;
    }
    if metadata.len() != size {
        return Some(format!("has {} bytes instead of {size}", metadata.len()));
    }
    if depth == Depth::Sizes {
        return None;
    }
    match sum(path) {
        Ok((_, sum)) => (sum != recorded).then(|| "has other contents".to_owned()),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

/// A file's size and SHA-256 in hexadecimal.
pub fn sum(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut size, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((size, hex(&hash.finalize()))),
            count => {
                hash.update(&chunk[..count]);
                size += count as u64;
            }
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        let write_all = || {
            fs::create_dir_all(top.join("objects/include")).unwrap();
            fs::write(top.join("objects/vmlinux"), "kernel").unwrap();
            fs::write(top.join("objects/include/a b.h"), "").unwrap();
            fs::write(top.join("entry.json"), "{}").unwrap();
        };
        write_all();
        assert_eq!(difference(top, Depth::Contents), None, "without a list");
        write(top, &["entry.json"], Check::EachUse).unwrap();
        assert!(is_checked_on_use(top));
        assert_eq!(difference(top, Depth::Contents), None);

        fs::write(top.join("entry.json"), "changed").unwrap();
        fs::write(top.join("objects/new"), "not on the list").unwrap();
        assert_eq!(difference(top, Depth::Contents), None);

        fs::write(top.join("objects/vmlinux"), "kerne").unwrap();
        let why = difference(top, Depth::Sizes).unwrap();
        assert_eq!(why, "objects/vmlinux has 5 bytes instead of 6");
        fs::write(top.join("objects/vmlinux"), "kernal").unwrap();
        assert_eq!(difference(top, Depth::Sizes), None);
        let why = difference(top, Depth::Contents).unwrap();
        assert_eq!(why, "objects/vmlinux has other contents");
        write_all();
        fs::remove_file(top.join("objects/include/a b.h")).unwrap();
        let why = difference(top, Depth::Sizes).unwrap();
        assert_eq!(why, "objects/include/a b.h is missing");

        write(top, &[], Check::OnFailure).unwrap();
        assert!(!is_checked_on_use(top));
    }
}
