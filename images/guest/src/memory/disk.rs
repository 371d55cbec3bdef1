// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A real ext4 file system, whose files' pages are page cache that is written back, or persistent memory itself (DAX).
//!
//! The initramfs carries it, compressed. It is unpacked to its device when the first test asks for it, and mounted in a mount
//! namespace of the asking process, so that it is unmounted when that ends. Files have no name, so none stays behind.

use crate::harness::error::Error;
use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const IMAGE: &str = "/lib/ext4.img.gz";
/// `struct ext4_super_block`'s `s_magic`, where it is on the device.
const MAGIC: (u64, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);

/// A mounted file system.
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// ext4 on a RAM disk: ordinary page cache, with dirty tracking.
    pub fn ext4() -> Result<Self, Error> {
        Self::mounted("/dev/ram0", None, "CONFIG_BLK_DEV_RAM and CONFIG_EXT4_FS")
    }

    /// ext4 on persistent memory, mounted with DAX: mappings are of the device's own pages.
    pub fn dax() -> Result<Self, Error> {
        Self::mounted(
            "/dev/pmem0",
            Some("dax"),
            "CONFIG_FS_DAX, CONFIG_X86_PMEM_LEGACY and CONFIG_EXT4_FS, and boot it with memmap=SIZE!START",
        )
    }

    fn mounted(device: &str, options: Option<&str>, symbols: &str) -> Result<Self, Error> {
        let absent = |what: String| Error::Absent {
            what,
            remedy: format!("build the kernel with {symbols}"),
        };
        unpack(Path::new(device)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => absent(device.into()),
            _ => Error::io(format!("unpacking {IMAGE} to {device}"))(error),
        })?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(Error::call("a mount namespace"))?;
        let root = Path::new("/tmp").join(device.trim_start_matches("/dev/"));
        fs::create_dir_all(&root).map_err(Error::io(format!("making {}", root.display())))?;
        match mount(Some(device), &root, Some("ext4"), MsFlags::empty(), options) {
            // It is mounted there already.
            Ok(()) | Err(Errno::EBUSY) => Ok(Self { root }),
            Err(errno @ (Errno::ENODEV | Errno::EINVAL)) => {
                let with = options.map_or(String::new(), |options| format!(" with -o {options}"));
                Err(absent(format!("ext4 on {device}{with} ({errno})")))
            }
            Err(errno) => Err(Error::call(format!("mounting {device}"))(errno)),
        }
    }

    /// Where it is mounted, for this process.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file without a name, of `length` bytes of which none is allocated.
    pub fn file(&self, length: usize) -> Result<OwnedFd, Error> {
        let what = || format!("a file in {}", self.root.display());
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let file =
            open(&self.root, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::call(what()))?;
        ftruncate(&file, length as i64).map_err(Error::call(format!("ftruncate of {}", what())))?;
        Ok(file)
    }
}

/// Writes the file system to a device that has none, which is all zeros. What says that there is one comes last.
fn unpack(device: &Path) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    let file = File::options().read(true).write(true).open(device)?;
    let mut magic = [0; 2];
    file.read_exact_at(&mut magic, MAGIC.0)?;
    if magic == MAGIC.1 {
        return Ok(());
    }
    let mut image = Vec::new();
    GzDecoder::new(File::open(IMAGE)?).read_to_end(&mut image)?;
    for (index, block) in image.chunks(BLOCK).enumerate().rev() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (index * BLOCK) as u64)?;
        }
    }
    file.sync_all()
}
