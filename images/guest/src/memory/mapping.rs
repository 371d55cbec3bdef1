// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of this process that devices read and write behind the compiler's back.
//!
//! Access is by copy through raw pointers only: no reference to the memory ever exists, so a device, another process or the kernel
//! may change it at any time without breaking Rust's rules. Access to pages that the test itself made inaccessible ends the test with
//! SIGSEGV, which its supervisor reports.

use crate::harness::error::Error;
use crate::observe::extent::PAGE;
use nix::errno::Errno;
use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, mremap,
    munmap,
};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

/// Who gives the memory back, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// munmap.
    Map,
    /// free.
    Malloc,
}

/// A range of this process's memory, given back on drop.
pub struct Mapping {
    base: NonNull<c_void>,
    length: usize,
    owner: Owner,
}

// SAFETY: the range belongs to the mapping alone, and is reached through it only.
unsafe impl Send for Mapping {}

// SAFETY: its bytes are copied through raw pointers only, and whoever uses it from two threads waits for the one's copy before the
// other's, or takes what comes, as with a device.
unsafe impl Sync for Mapping {}

/// Both reading and writing.
pub const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

impl Mapping {
    fn map(length: usize, protection: ProtFlags, flags: MapFlags) -> Result<Self, Error> {
        let flags = MapFlags::MAP_PRIVATE | flags;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no memory that is in use.
        let base = unsafe { mmap_anonymous(None, nonzero(length)?, protection, flags) }.map_err(
            Error::call(format!("mmap of {length} bytes of anonymous memory")),
        )?;
        Ok(Self {
            base,
            length,
            owner: Owner::Map,
        })
    }

    /// Private anonymous memory, untouched.
    pub fn anon(length: usize) -> Result<Self, Error> {
        Self::map(length.next_multiple_of(PAGE), READ_WRITE, MapFlags::empty())
    }

    /// Private anonymous memory at an address where nothing is mapped.
    pub fn anon_at(address: usize, length: usize) -> Result<Self, Error> {
        let length = length.next_multiple_of(PAGE);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: as in `map`: the flag keeps memory that is in use.
        let base = unsafe {
            mmap_anonymous(
                NonZeroUsize::new(address),
                nonzero(length)?,
                READ_WRITE,
                flags,
            )
        }
        .map_err(Error::call(format!(
            "mmap of {length} anonymous bytes at {address:#x}"
        )))?;
        Ok(Self {
            base,
            length,
            owner: Owner::Map,
        })
    }

    /// Private anonymous memory in huge pages of their own pool; `length` is a multiple of their size.
    pub fn hugetlb(length: usize) -> Result<Self, Error> {
        Self::map(length, READ_WRITE, MapFlags::MAP_HUGETLB)
    }

    /// Private anonymous memory whose first byte is aligned to `align`, a power of two and at least a page.
    pub fn anon_aligned(length: usize, align: usize) -> Result<Self, Error> {
        let spacious = Self::anon(length + align)?;
        let start = spacious.address().next_multiple_of(align) - spacious.address();
        let (_, rest) = spacious.split(start);
        let (wanted, _) = rest.split(length.next_multiple_of(PAGE));
        Ok(wanted)
    }

    /// What malloc(3) returns.
    pub fn malloc(length: usize) -> Result<Self, Error> {
        // SAFETY: malloc has no preconditions.
        let base = NonNull::new(unsafe { libc::malloc(length) }).ok_or(Error::Call {
            what: format!("malloc of {length} bytes"),
            errno: Errno::ENOMEM,
        })?;
        Ok(Self {
            base,
            length,
            owner: Owner::Malloc,
        })
    }

    /// A shared mapping of a file, from its start.
    pub fn shared(file: impl AsFd, length: usize, protection: ProtFlags) -> Result<Self, Error> {
        Self::shared_at(file, 0, length, protection)
    }

    /// A shared mapping of a file from `offset` (bytes, or a V4L2 buffer's cookie) on.
    pub fn shared_at(
        file: impl AsFd,
        offset: i64,
        length: usize,
        protection: ProtFlags,
    ) -> Result<Self, Error> {
        let length = length.next_multiple_of(PAGE);
        // SAFETY: as in `map`.
        let base = unsafe {
            mmap(
                None,
                nonzero(length)?,
                protection,
                MapFlags::MAP_SHARED,
                file,
                offset,
            )
        }
        .map_err(Error::call(format!("mmap of {length} bytes of a file")))?;
        Ok(Self {
            base,
            length,
            owner: Owner::Map,
        })
    }

    /// A private mapping of a file, from its start: what is written here does not reach the file.
    pub fn private(file: impl AsFd, length: usize, protection: ProtFlags) -> Result<Self, Error> {
        let length = length.next_multiple_of(PAGE);
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: as in `map`.
        let base = unsafe { mmap(None, nonzero(length)?, protection, flags, file, 0) }.map_err(
            Error::call(format!("private mmap of {length} bytes of a file")),
        )?;
        Ok(Self {
            base,
            length,
            owner: Owner::Map,
        })
    }

    /// Maps a file over the pages from `at` to the end, so that two kinds of memory are neighbours.
    pub fn map_over(&self, at: usize, file: impl AsFd, offset: i64) -> Result<(), Error> {
        let (address, length) = self.part(at..self.length);
        let address = NonZeroUsize::new(address);
        // SAFETY: the range is this mapping's own, and no reference into it can exist.
        unsafe {
            mmap(
                address,
                nonzero(length)?,
                READ_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                file,
                offset,
            )
        }
        .map_err(Error::call(format!(
            "mmap of {length} bytes over other memory"
        )))?;
        Ok(())
    }

    /// munmap(2) of some of the pages, whose addresses stay this mapping's: whoever uses this lays other memory over them soon.
    pub fn take_away(&self, range: Range<usize>) -> Result<(), Error> {
        let (address, length) = self.part(range);
        // SAFETY: the range is this mapping's own, and no reference into it can exist.
        unsafe { munmap(pointer(address)?, length) }
            .map_err(Error::call(format!("munmap of {length} bytes")))
    }

    /// Maps anonymous memory over the pages from `at` to the end.
    pub fn map_anon_over(&self, at: usize) -> Result<(), Error> {
        let (address, length) = self.part(at..self.length);
        let address = NonZeroUsize::new(address);
        // SAFETY: as in `map_over`.
        unsafe {
            mmap_anonymous(
                address,
                nonzero(length)?,
                READ_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED,
            )
        }
        .map_err(Error::call(format!(
            "mmap of {length} anonymous bytes over other memory"
        )))?;
        Ok(())
    }

    /// Virtual address of the first byte.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: kept for the habit.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Two mappings, the second beginning at byte `at`, a multiple of the page size.
    pub fn split(self, at: usize) -> (Self, Self) {
        assert!(
            self.owner == Owner::Map && at <= self.length && at.is_multiple_of(PAGE),
            "only whole mapped pages can be split off"
        );
        let whole = std::mem::ManuallyDrop::new(self);
        // SAFETY: `at` is within the mapping, or one past its end.
        let second = unsafe { whole.base.byte_add(at) };
        (
            Self {
                base: whole.base,
                length: at,
                owner: Owner::Map,
            },
            Self {
                base: second,
                length: whole.length - at,
                owner: Owner::Map,
            },
        )
    }

    /// Copies bytes out.
    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        let (address, length) = self.part(range);
        let mut bytes = vec![0; length];
        // SAFETY: the source is within the mapping (checked by `part`), the destination is a fresh vector of that length.
        unsafe { ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), length) };
        bytes
    }

    /// Copies bytes in, from byte `at` on.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let (address, length) = self.part(at..at + bytes.len());
        // SAFETY: the destination is within the mapping (checked by `part`), and no reference into it can exist.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, length) };
    }

    /// madvise(2) on whole pages.
    pub fn advise(&self, range: Range<usize>, advice: MmapAdvise) -> Result<(), Error> {
        let (address, length) = self.part(range);
        // SAFETY: the pages are this mapping's own, and no reference into them can exist, whatever becomes of their contents.
        unsafe { madvise(pointer(address)?, length, advice) }
            .map_err(Error::call(format!("madvise {advice:?}")))
    }

    /// Makes whole pages guards, access to which is SIGSEGV, and loses what is in them (MADV_GUARD_INSTALL); or makes them usable
    /// again, empty. [`Error::Absent`] where the kernel has no guards.
    pub fn guard(&self, range: Range<usize>, install: bool) -> Result<(), Error> {
        // include/uapi/asm-generic/mman-common.h
        const INSTALL: i32 = 102;
        const REMOVE: i32 = 103;
        let (address, length) = self.part(range);
        let advice = if install { INSTALL } else { REMOVE };
        // SAFETY: as in `advise`.
        let result = unsafe { libc::madvise(address as *mut c_void, length, advice) };
        match Errno::result(result) {
            Ok(_) => Ok(()),
            Err(Errno::EINVAL) if install => Err(Error::Absent {
                what: "MADV_GUARD_INSTALL".into(),
                remedy: "use Linux 6.13 or newer".into(),
            }),
            Err(errno) => Err(Error::call("madvise of guards")(errno)),
        }
    }

    /// mbind(2): pages that are not there yet come from this NUMA node and no other.
    pub fn bind(&self, node: u32) -> Result<(), Error> {
        // include/uapi/linux/mempolicy.h
        const MPOL_BIND: libc::c_ulong = 2;
        let nodes: libc::c_ulong = 1 << node;
        // The kernel takes one bit less than it is told.
        let bits = libc::c_ulong::BITS as usize + 1;
        // SAFETY: the range is this mapping's own, and the mask is a live variable of that many bits less one.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.address(),
                self.length,
                MPOL_BIND,
                &nodes,
                bits,
                0 as libc::c_ulong,
            )
        };
        Errno::result(result)
            .map(drop)
            .map_err(Error::call(format!("mbind to node {node}")))
    }

    /// As [`Mapping::advise`], for advice that the test itself is about, or that has no name yet; `MADV_…`.
    pub fn try_advise(&self, range: Range<usize>, advice: i32) -> Result<(), Errno> {
        let (address, length) = self.part(range);
        // SAFETY: as in `advise`.
        Errno::result(unsafe { libc::madvise(address as *mut _, length, advice) }).map(drop)
    }

    /// mprotect(2) on whole pages.
    pub fn protect(&self, range: Range<usize>, protection: ProtFlags) -> Result<(), Error> {
        let (address, length) = self.part(range);
        // SAFETY: as in `advise`.
        unsafe { mprotect(pointer(address)?, length, protection) }
            .map_err(Error::call(format!("mprotect {protection:?}")))
    }

    /// mremap(2) to an address of the kernel's choice that is not the present one.
    pub fn moved(self) -> Result<Self, Error> {
        let whole = std::mem::ManuallyDrop::new(self);
        let room = std::mem::ManuallyDrop::new(Self::map(
            whole.length,
            ProtFlags::PROT_NONE,
            MapFlags::empty(),
        )?);
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: both ranges are our own, and no reference into them can exist.
        let base = unsafe {
            mremap(
                whole.base,
                whole.length,
                whole.length,
                flags,
                Some(room.base),
            )
        }
        .map_err(Error::call("mremap"))?;
        Ok(Self {
            base,
            length: whole.length,
            owner: Owner::Map,
        })
    }

    /// mremap(2) of the pages to an address of the kernel's choice, with MREMAP_DONTUNMAP: this mapping stays, and is empty.
    pub fn moved_out(&self) -> Result<Self, Error> {
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_DONTUNMAP;
        // SAFETY: the range is our own, and no reference into it can exist.
        let base = unsafe { mremap(self.base, self.length, self.length, flags, None) }
            .map_err(Error::call("mremap with MREMAP_DONTUNMAP"))?;
        Ok(Self {
            base,
            length: self.length,
            owner: Owner::Map,
        })
    }

    fn part(&self, range: Range<usize>) -> (usize, usize) {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "{range:?} is not within {} bytes",
            self.length
        );
        (self.address() + range.start, range.len())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.owner {
            Owner::Map if self.length == 0 => (),
            // SAFETY: the range is this mapping's own. munmap of a range that is mapped cannot fail in a way we could handle.
            Owner::Map => drop(unsafe { munmap(self.base, self.length) }),
            // SAFETY: `base` came from malloc and is freed once.
            Owner::Malloc => unsafe { libc::free(self.base.as_ptr()) },
        }
    }
}

fn nonzero(length: usize) -> Result<NonZeroUsize, Error> {
    NonZeroUsize::new(length).ok_or(Error::Call {
        what: "mmap of no bytes".into(),
        errno: Errno::EINVAL,
    })
}

fn pointer(address: usize) -> Result<NonNull<c_void>, Error> {
    NonNull::new(address as *mut c_void).ok_or(Error::Call {
        what: "use of address 0".into(),
        errno: Errno::EFAULT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_come_back_and_splits_stay_apart() {
        let whole = Mapping::anon(3 * PAGE).unwrap();
        whole.write(PAGE - 2, &[1, 2, 3, 4]);
        let (first, rest) = whole.split(PAGE);
        assert_eq!(first.read(PAGE - 2..PAGE), [1, 2]);
        drop(first);
        assert_eq!(rest.read(0..3), [3, 4, 0]);
        assert_eq!(rest.len(), 2 * PAGE);
    }

    #[test]
    fn alignment_is_as_asked() {
        let mapping = Mapping::anon_aligned(PAGE, 1 << 21).unwrap();
        assert_eq!(mapping.address() % (1 << 21), 0);
    }
}
