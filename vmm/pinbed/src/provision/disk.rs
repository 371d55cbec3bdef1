// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An empty ext4 file system for the guest, which has no mke2fs: made here once, compressed, and kept in the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::cache::{Fingerprint, Locked};
use super::child::Run;
use super::inventory::Check;
use super::{Context, Error, packages};

/// The program that makes it.
pub const PROGRAM: &str = "mke2fs";
/// Its file in the cache entry.
const IMAGE: &str = "ext4.img.gz";
/// It has to fit into the guest's persistent memory (16 MiB).
const SIZE: &str = "12M";
/// Blocks of a page's size, which DAX needs; a journal; and nothing left to the kernel to initialise in the background.
const OPTIONS: [&str; 10] = [
    "-q",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-J",
    "size=4",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0",
    "-F",
];

/// Finds the file system in the cache, or makes it. Returns the path of the gzip-compressed image.
///
/// # Errors
/// When mke2fs is not there or fails, or the cache cannot be written.
pub fn provide(context: &Context) -> Result<PathBuf, Error> {
    let program = packages::find(PROGRAM).unwrap_or_else(|| PROGRAM.into());
    let key = Fingerprint::default()
        .add("options", OPTIONS.join(" "))
        .add("size", SIZE)
        .finish();
    let entry = context.cache.entry("disk", &key);
    if entry.record::<()>().is_none() {
        let work = entry.lock(&context.progress)?;
        if entry.record::<()>().is_none() {
            make(&program, &work)?;
        }
    }
    Ok(entry.dir().join(IMAGE))
}

fn make(program: &Path, work: &Locked) -> Result<(), Error> {
    work.retract()?;
    let plain = work.dir().join("ext4.img");
    let mut command = Command::new(program);
    command.args(OPTIONS).arg(&plain).arg(SIZE);
    Run::new("making a file system with mke2fs", command)
        .errors(|line| line.starts_with(PROGRAM))
        .checked(|_| ())?;
    let image = work.dir().join(IMAGE);
    compress(&plain, &image).map_err(|e| Error::io("compress", &plain, e))?;
    fs::remove_file(&plain).map_err(|e| Error::io("delete", &plain, e))?;
    work.publish(&(), Check::EachUse, &[])
}

fn compress(from: &Path, to: &Path) -> io::Result<()> {
    let mut encoder = GzEncoder::new(File::create(to)?, Compression::best());
    io::copy(&mut File::open(from)?, &mut encoder)?;
    encoder.finish()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::cache::Cache;
    use crate::provision::progress::Progress;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn what_is_made_is_an_ext4_with_a_journal_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let context = Context {
            cache: Cache::at(directory.path().to_owned()),
            progress: Progress::new(),
        };
        let path = provide(&context).unwrap();
        let mut image = Vec::new();
        GzDecoder::new(File::open(&path).unwrap())
            .read_to_end(&mut image)
            .unwrap();
        assert_eq!(image.len(), 12 << 20);
        // struct ext4_super_block: s_magic, s_feature_compat with HAS_JOURNAL, s_log_block_size.
        assert_eq!(image[1024 + 0x38..][..2], [0x53, 0xef]);
        assert_eq!(image[1024 + 0x5c] & 4, 4);
        assert_eq!(image[1024 + 0x18], 2);

        let made = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(provide(&context).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), made);
    }
}
