// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's memory: files in memory that QEMU and the device map, and that we can fill and read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
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

/// Where QEMU's machine q35 has memory: what does not fit below the hole is above it.
const ABOVE: u64 = 4 << 30;
/// The first block goes below the hole whole if it is smaller than this (QEMU, hw/i386/pc_q35.c, pc_q35_init()).
const LOW_WHOLE: u64 = 0xb000_0000;
/// What of a greater one goes below the hole.
const LOW_PART: u64 = 0x8000_0000;
/// Blocks that are plugged in come at a multiple of this behind the first.
const PLUGGED: u64 = 1 << 30;

/// What was in a guest's memory at a moment.
#[derive(Debug)]
pub struct Snapshot {
    /// By physical address. What is between them was zero.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// Bytes of memory, with those that were never written.
    pub length: u64,
}

impl Snapshot {
    /// Calls `differs` for each range of physical addresses whose bytes all are others in `later`, which is of the same memory.
    pub fn compare(&self, later: &Self, mut differs: impl FnMut(Range<u64>)) {
        let zeros = [0; PAGE];
        // Memory is not taken back while the guest stands still: what was there still is, in pieces that may have grown.
        for (start, bytes) in &later.pieces {
            for (page, now) in (*start..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
                let before = self.at(page, now.len()).unwrap_or(&zeros[..now.len()]);
                if before == now {
                    continue;
                }
                let mut run: Option<Range<u64>> = None;
                for (address, _) in (page..)
                    .zip(before.iter().zip(now))
                    .filter(|it| it.1.0 != it.1.1)
                {
                    match &mut run {
                        Some(run) if run.end == address => run.end += 1,
                        _ => run
                            .replace(address..address + 1)
                            .into_iter()
                            .for_each(&mut differs),
                    }
                }
                run.into_iter().for_each(&mut differs);
            }
        }
    }

    fn at(&self, address: u64, length: usize) -> Option<&[u8]> {
        let (start, bytes) = self.pieces.range(..=address).next_back()?;
        let offset = usize::try_from(address - start).ok()?;
        bytes.get(offset..offset.checked_add(length)?)
    }
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

    /// The parts of each block that are in one piece for the guest: block, offset, length, physical address.
    fn parts(&self) -> io::Result<Vec<(usize, u64, u64, u64)>> {
        let mut parts = Vec::new();
        let mut next = ABOVE;
        for (block, file) in self.blocks.iter().enumerate() {
            let length = file.metadata()?.len();
            let below = match (block, length) {
                (0, ..LOW_WHOLE) => length,
                (0, _) => LOW_PART,
                _ => 0,
            };
            if below > 0 {
                parts.push((block, 0, below, 0));
            }
            if length > below {
                next = if block == 0 {
                    ABOVE
                } else {
                    next.next_multiple_of(PLUGGED)
                };
                parts.push((block, below, length - below, next));
                next += length - below;
            }
        }
        Ok(parts)
    }

    /// Reads at a physical address of the guest's.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (block, offset) = self.place(address, bytes.len())?;
        block.read_exact_at(bytes, offset)
    }

    /// Writes at a physical address of the guest's.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let (block, offset) = self.place(address, bytes.len())?;
        block.write_all_at(bytes, offset)
    }

    fn place(&self, address: u64, length: usize) -> io::Result<(&File, u64)> {
        let inside = |&(_, _, size, physical): &(usize, u64, u64, u64)| {
            let end = address.checked_add(length as u64);
            address >= physical && end.is_some_and(|end| end <= physical + size)
        };
        let part = self.parts()?.into_iter().find(inside);
        let (block, offset, _, physical) =
            part.ok_or_else(|| io::Error::other(format!("no memory at {address:#x}")))?;
        Ok((&self.blocks[block], offset + address - physical))
    }

    /// All that is in it, page by page; what was never written is left out.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let mut pages = BTreeMap::new();
        for (block, offset, length, physical) in self.parts()? {
            let mut next = offset;
            while let Some((start, end)) = data_from(&self.blocks[block], next)?
                && start < offset + length
            {
                let end = end.min(offset + length);
                let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
                self.blocks[block].read_exact_at(&mut bytes, start)?;
                pages.insert(physical + start - offset, bytes);
                next = end;
            }
        }
        let length = self.parts()?.iter().map(|part| part.2).sum();
        Ok(Snapshot {
            pieces: pages,
            length,
        })
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
    fn addresses_are_those_of_the_machine() {
        let place = |sizes: &[u64], address| {
            let memory = Memory::new(sizes).unwrap();
            let (file, offset) = memory.place(address, 1).ok()?;
            let same = |block: &&File| std::ptr::eq(*block, file);
            let block = memory.blocks.iter().position(|block| same(&block));
            Some((block.unwrap(), offset))
        };
        let small = [512 << 20, 128 << 20];
        assert_eq!(place(&small, (512 << 20) - 1), Some((0, (512 << 20) - 1)));
        assert_eq!(place(&small, 512 << 20), None);
        assert_eq!(place(&small, (4 << 30) + 5), Some((1, 5)));
        let great = [3 << 30, 128 << 20];
        assert_eq!(place(&great, (2 << 30) - 1), Some((0, (2 << 30) - 1)));
        assert_eq!(place(&great, 2 << 30), None);
        assert_eq!(place(&great, 4 << 30), Some((0, 2 << 30)));
        assert_eq!(place(&great, 5 << 30), Some((1, 0)));
        assert_eq!(place(&great, u64::MAX), None);
    }

    #[test]
    fn every_byte_that_differs_is_found() {
        let memory = Memory::new(&[1 << 20, 1 << 20]).unwrap();
        memory.write(0x2000, &[7; 3 * PAGE]).unwrap();
        let before = memory.snapshot().unwrap();
        assert_eq!(before.length, 2 << 20);
        for (address, bytes) in [
            (0x2003, &[8, 8, 7, 9][..]),
            (0x4fff, &[0]),
            (0x5000, &[1]),
            (ABOVE + 0x8_0000, &[0, 1]),
        ] {
            memory.write(address, bytes).unwrap();
        }
        let mut found = Vec::new();
        let after = memory.snapshot().unwrap();
        before.compare(&after, |range| found.push(range));
        let at = ABOVE + 0x8_0001;
        let expected = [
            0x2003..0x2005,
            0x2006..0x2007,
            0x4fff..0x5000,
            0x5000..0x5001,
            at..at + 1,
        ];
        assert_eq!(found, expected);
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
