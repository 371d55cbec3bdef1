// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel image files: their format, and the release that they name.

use std::fs;
use std::path::{Path, PathBuf};

use memchr::memmem;
use object::Endianness;
use object::elf::{EM_X86_64, FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::provision::Error;

/// A kernel that QEMU can boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// What `uname -r` says in it.
    pub release: String,
}

/// Name and type of the ELF note with the address that QEMU starts a vmlinux at (XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: (&[u8], NoteType) = (b"Xen", NoteType(18));

impl Image {
    /// Reads what an image says of itself: a bzImage in its boot header (Documentation/arch/x86/boot.rst), a vmlinux in its banner.
    ///
    /// # Errors
    /// When it cannot be read, or is not a kernel that boots here.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unfit = |why| Error::Argument {
            argument: path.display().to_string(),
            why,
        };
        let bytes = fs::read(path).map_err(|e| unfit(e.to_string()))?;
        let release = release(&bytes).map_err(unfit)?;
        Ok(Image {
            path: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
            release,
        })
    }
}

/// The release, or why the bytes are not a kernel that boots here.
fn release(bytes: &[u8]) -> Result<String, String> {
    let at = |offset: usize, length: usize| bytes.get(offset..offset + length);
    if at(0x202, 4) == Some(b"HdrS") {
        // kernel_version: the place of the text, less 0x200.
        let text = at(0x20e, 2)
            .map(|offset| 0x200 + usize::from(u16::from_le_bytes([offset[0], offset[1]])))
            .and_then(|offset| bytes.get(offset..));
        return text
            .and_then(first_word)
            .ok_or_else(|| "it is a bzImage that does not name its release".to_owned());
    }
    if bytes.starts_with(b"\x7fELF") {
        return of_vmlinux(bytes);
    }
    Err(match at(0x38, 4) {
        Some(b"ARM\x64") => "it is an Image for arm64, and the guests are x86-64".to_owned(),
        Some(b"RSC\x05") => "it is an Image for RISC-V, and the guests are x86-64".to_owned(),
        _ if bytes.starts_with(b"\x1f\x8b") => {
            "it is compressed with gzip; unpack it, or give the bzImage".to_owned()
        }
        _ => "it is not a kernel: neither a bzImage (vmlinuz) nor a vmlinux".to_owned(),
    })
}

fn of_vmlinux(bytes: &[u8]) -> Result<String, String> {
    let other = || "it is an ELF file, but not a vmlinux for x86-64".to_owned();
    let header = FileHeader64::<Endianness>::parse(bytes).map_err(|_| other())?;
    let endian = header.endian().map_err(|_| other())?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(other());
    }
    // Many strings begin so; the banner goes on with a number.
    const BANNER: &[u8] = b"Linux version ";
    let release = memmem::find_iter(bytes, BANNER)
        .map(|start| &bytes[start + BANNER.len()..])
        .find(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .and_then(first_word)
        .ok_or_else(other)?;
    let segments = header.program_headers(endian, bytes).map_err(|_| other())?;
    let has_entry = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_NOTE)
        .filter_map(|segment| segment.notes(endian, bytes).ok().flatten())
        .any(|mut notes| {
            std::iter::from_fn(|| notes.next().ok().flatten())
                .any(|note| (note.name(), note.n_type(endian)) == PVH_NOTE)
        });
    if has_entry {
        Ok(release)
    } else {
        Err(
            "QEMU cannot boot this vmlinux: CONFIG_PVH is not set in it. Give the bzImage"
                .to_owned(),
        )
    }
}

/// The text up to a space or its end.
fn first_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0 || b == b' ')?;
    let word = std::str::from_utf8(&bytes[..end]).ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    (word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(good))
        .then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage's boot header with this text as its version.
    fn bzimage(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        bytes[0x300..0x300 + version.len()].copy_from_slice(version);
        bytes
    }

    #[test]
    fn a_bzimage_names_its_release() {
        let bytes = bzimage(b"6.12.117+deb13-amd64 (builder@example) #1 SMP\0");
        assert_eq!(release(&bytes).unwrap(), "6.12.117+deb13-amd64");
        assert!(release(&bzimage(b"\x01\x02 \0")).is_err());
        let mut outside = bzimage(b"6.12 \0");
        outside[0x20e..0x210].copy_from_slice(&0xf000u16.to_le_bytes());
        assert!(release(&outside).is_err());
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let mut arm = vec![0; 0x40];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        for (bytes, why) in [
            (arm.as_slice(), "arm64"),
            (b"", "neither a bzImage"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x7fELF\x02", "not a vmlinux"),
        ] {
            let error = release(bytes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        // The banner's text is in here, too, but no release follows.
        assert!(release(&this_test).unwrap_err().contains("not a vmlinux"));
    }
}
