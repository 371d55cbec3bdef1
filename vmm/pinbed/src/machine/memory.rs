// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's memory: files in memory that QEMU and the device map, and that we can fill and read.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use flate2::Crc;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

/// What is looked at in one piece when zeros are left out: a page.
const PAGE: usize = 4096;
/// What is copied in one piece: it stays in a CPU's cache.
const CHUNK: usize = 256 << 10;

/// The guest's memory.
#[derive(Debug)]
pub struct Memory {
    blocks: Vec<File>,
}

/// What of the memory was written to a file, in this order, without its zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Block of memory, offset and length in bytes.
    pieces: Vec<(usize, u64, u64)>,
    /// CRC-32 of the file.
    sum: u32,
}

impl Memory {
    /// Empty memory, a block of each of these sizes in bytes.
    ///
    /// # Errors
    /// When the host has no room for them.
    pub fn new(sizes: &[u64]) -> io::Result<Self> {
        let block = |size: &u64| {
            let file = File::from(memfd_create("pinbed-guest", MFdFlags::MFD_CLOEXEC)?);
            file.set_len(*size)?;
            Ok(file)
        };
        let blocks = sizes.iter().map(block).collect::<io::Result<_>>()?;
        Ok(Memory { blocks })
    }

    /// A descriptor of each block, for another process.
    ///
    /// # Errors
    /// When there are too many.
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let clone = |file: &File| Ok(file.try_clone()?.into());
        self.blocks.iter().map(clone).collect()
    }

    /// Writes what is not zero.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, to: &mut impl Write) -> io::Result<Layout> {
        let mut layout = Layout::default();
        let mut sum = Crc::new();
        let mut chunk = vec![0; CHUNK];
        for (number, block) in self.blocks.iter().enumerate() {
            let mut next = 0;
            while let Some((start, end)) = data_from(block, next)? {
                let mut at = start;
                while at < end {
                    let length = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
                    block.read_exact_at(&mut chunk[..length], at)?;
                    for page in chunk[..length].chunks(PAGE) {
                        if page.iter().any(|byte| *byte != 0) {
                            to.write_all(page)?;
                            sum.update(page);
                            layout.add(number, at, page.len() as u64);
                        }
                        at += page.len() as u64;
                    }
                }
                next = end;
            }
        }
        layout.sum = sum.sum();
        Ok(layout)
    }

    /// Fills empty memory with what was saved.
    ///
    /// # Errors
    /// When it is not what was saved, or does not fit.
    pub fn fill(&self, from: &mut impl Read, layout: &Layout) -> io::Result<()> {
        let damaged = |what| io::Error::new(ErrorKind::InvalidData, what);
        let mut sum = Crc::new();
        let mut chunk = vec![0; CHUNK];
        for &(block, mut at, mut left) in &layout.pieces {
            let block = self.blocks.get(block);
            let block = block.ok_or_else(|| damaged("there is no such block of memory"))?;
            while left > 0 {
                let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
                from.read_exact(&mut chunk[..length])?;
                sum.update(&chunk[..length]);
                block.write_all_at(&chunk[..length], at)?;
                at += length as u64;
                left -= length as u64;
            }
        }
        match sum.sum() == layout.sum {
            true => Ok(()),
            false => Err(damaged(
                "the saved memory has other contents than when it was saved",
            )),
        }
    }
}

impl Layout {
    fn add(&mut self, block: usize, offset: u64, length: u64) {
        match self.pieces.last_mut() {
            Some(last) if last.0 == block && last.1 + last.2 == offset => last.2 += length,
            _ => self.pieces.push((block, offset, length)),
        }
    }
}

/// Where the next data begins and ends in a sparse file, if there is any from an offset on.
fn data_from(file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let signed = i64::try_from(offset).map_err(io::Error::other)?;
    let start = match lseek(file, signed, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        start => start?,
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    let unsigned = |offset| u64::try_from(offset).map_err(io::Error::other);
    Ok(Some((unsigned(start)?, unsigned(end)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(memory: &Memory, block: usize) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        memory.blocks[block].read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn memory_is_filled_as_it_was_and_damage_is_seen() {
        let memory = Memory::new(&[1 << 20, 1 << 20]).unwrap();
        memory.blocks[0].write_all_at(&[1; 9000], 4096).unwrap();
        memory.blocks[0].write_all_at(&[0; 9000], 65536).unwrap();
        memory.blocks[1].write_all_at(&[2], (1 << 20) - 1).unwrap();
        let mut saved = Vec::new();
        let layout = memory.save(&mut saved).unwrap();
        assert_eq!(
            layout.pieces,
            [(0, 4096, 3 * 4096), (1, (1 << 20) - 4096, 4096)]
        );
        assert_eq!(saved.len(), 4 * 4096);

        let other = Memory::new(&[1 << 20, 1 << 20]).unwrap();
        other.fill(&mut saved.as_slice(), &layout).unwrap();
        for block in [0, 1] {
            assert!(contents(&memory, block) == contents(&other, block));
        }
        let why = |saved: &[u8]| {
            let empty = Memory::new(&[1 << 20, 1 << 20]).unwrap();
            empty.fill(&mut &saved[..], &layout).unwrap_err().kind()
        };
        assert_eq!(why(&saved[..saved.len() - 1]), ErrorKind::UnexpectedEof);
        saved[5000] ^= 1;
        assert_eq!(why(&saved), ErrorKind::InvalidData);
    }
}
