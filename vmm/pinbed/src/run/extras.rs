// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a person adds to a guest on the command line: directories and disks of the host, a root file system, a network.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use pinbed_abi::shell::{Root, SHARE_PLACE, Session, Share};

use crate::cli::ExtrasArgs;
use crate::machine::initramfs::Content;
use crate::machine::vm::doubled;
use crate::provision::{self, debian};

/// Why something cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or cannot be read.
    #[error("{option} {}: {source}", path.display())]
    Unreadable {
        option: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// It is something else.
    #[error("{option} {}: it is not {wanted}", path.display())]
    Kind {
        option: &'static str,
        path: PathBuf,
        wanted: &'static str,
    },
    /// Two directories at one place.
    #[error(
        "two directories cannot both be at {place} in the guest; say where: --share DIR:/place"
    )]
    Place { place: String },
    /// The kernel cannot do it.
    #[error("{option} needs CONFIG_{symbol}, which this kernel lacks")]
    Kernel {
        option: &'static str,
        symbol: &'static str,
    },
    /// A root cannot be made.
    #[error(transparent)]
    Provision(#[from] provision::Error),
    /// It does not fit into the guest's memory.
    #[error(
        "what --add names takes {size} MiB, and a guest with {memory} MiB of memory has no room for it: give --memory {enough}M, or --share DIR, which copies nothing"
    )]
    Memory { size: u64, memory: u64, enough: u64 },
}

/// What is added, as QEMU, the kernel and the guest's PID 1 have to know it.
#[derive(Debug, Default)]
pub struct Extras {
    /// Arguments for QEMU.
    pub arguments: Vec<String>,
    /// Kernel options that it takes: what asks for them, and their names without "CONFIG_".
    pub needs: Vec<(&'static str, &'static str)>,
    /// What PID 1 mounts and sets up.
    pub session: Session,
}

impl Extras {
    /// What the command line asks for.
    ///
    /// # Errors
    /// When a directory or a disk is not one, or two directories have the same place.
    pub fn new(args: &ExtrasArgs) -> Result<Self, Error> {
        let mut extras = Extras::default();
        for text in &args.shares {
            extras.share(text)?;
        }
        // The guest names disks by their order.
        match &args.rootfs {
            Some(name) if name.as_os_str() == debian::NAME => {
                let image = debian::provide(&provision::Context::of_user()?)?;
                extras.root(&image)?;
            }
            Some(root) => extras.root(root)?,
            None => {}
        }
        for text in &args.disks {
            let (path, writable) = match text.strip_suffix(":ro") {
                Some(path) => (path, false),
                None => (text.as_str(), true),
            };
            extras.disk("--disk", Path::new(path), writable)?;
        }
        if args.network {
            extras.needs.push(("--net", "VIRTIO_NET"));
            extras.session.network = true;
            extras.option("-netdev", "user,id=net".to_owned());
            extras.option("-device", "virtio-net-pci,netdev=net,romfile=".to_owned());
        }
        extras.arguments.extend(args.qemu_arguments.iter().cloned());
        Ok(extras)
    }

    fn option(&mut self, name: &str, value: String) {
        self.arguments.extend([name.to_owned(), value]);
    }

    /// `DIR[:/PLACE][:ro]`.
    fn share(&mut self, text: &str) -> Result<(), Error> {
        let (rest, writable) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, false),
            None => (text, true),
        };
        let (directory, place) = match rest.rsplit_once(':') {
            Some((directory, place)) if place.starts_with('/') => (directory, place),
            _ => (rest, SHARE_PLACE),
        };
        let place = place.to_owned();
        if self.session.shares.iter().any(|share| share.place == place) {
            return Err(Error::Place { place });
        }
        let tag = self.directory("--share", Path::new(directory), writable)?;
        self.session.shares.push(Share {
            tag,
            place,
            writable,
        });
        Ok(())
    }

    /// Gives the guest a directory of the host. Returns the mount tag.
    fn directory(
        &mut self,
        option: &'static str,
        path: &Path,
        writable: bool,
    ) -> Result<String, Error> {
        let real = path.canonicalize().map_err(unreadable(option, path))?;
        if !real.is_dir() {
            return Err(Error::Kind {
                option,
                path: path.to_owned(),
                wanted: "a directory",
            });
        }
        let count = self.arguments.iter().filter(|arg| *arg == "-fsdev").count();
        let tag = format!("pinbed{count}");
        let readonly = if writable { "" } else { ",readonly=on" };
        self.option(
            "-fsdev",
            format!(
                "local,id={tag},path={},security_model=none,multidevs=remap{readonly}",
                doubled(&real)
            ),
        );
        self.option(
            "-device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        );
        self.needs
            .extend([(option, "9P_FS"), (option, "NET_9P_VIRTIO")]);
        Ok(tag)
    }

    /// Gives the guest a disk. Returns its device node there.
    fn disk(&mut self, option: &'static str, path: &Path, writable: bool) -> Result<String, Error> {
        let metadata = fs::metadata(path).map_err(unreadable(option, path))?;
        if metadata.is_dir() {
            return Err(Error::Kind {
                option,
                path: path.to_owned(),
                wanted: "a file or a block device",
            });
        }
        let mut magic = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read(&mut magic));
        read.map_err(unreadable(option, path))?;
        let format = if &magic == b"QFI\xfb" { "qcow2" } else { "raw" };
        let count = self.arguments.iter().filter(|arg| *arg == "-drive").count();
        let readonly = if writable { "" } else { ",readonly=on" };
        self.option(
            "-drive",
            format!(
                "if=none,id=disk{count},format={format},file={}{readonly}",
                doubled(path)
            ),
        );
        self.option("-device", format!("virtio-blk-pci,drive=disk{count}"));
        self.needs.push((option, "VIRTIO_BLK"));
        let letter = char::from(b'a' + u8::try_from(count).unwrap_or(0).min(25));
        Ok(format!("/dev/vd{letter}"))
    }

    fn root(&mut self, path: &Path) -> Result<(), Error> {
        const OPTION: &str = "--rootfs";
        let metadata = fs::metadata(path).map_err(unreadable(OPTION, path))?;
        let root = match metadata.is_dir() {
            true => Root::Share(self.directory(OPTION, path, false)?),
            false => Root::Disk(self.disk(OPTION, path, false)?),
        };
        self.needs.push((OPTION, "OVERLAY_FS"));
        self.session.root = Some(root);
        Ok(())
    }
}

fn unreadable(option: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Unreadable {
        option,
        path: path.clone(),
        source,
    }
}

/// Memory in MiB of a guest that no initramfs may take: the kernel, CMA, what the driver exports, and some for programs.
const RESERVED: u64 = 160;

/// Sees that additions to the initramfs fit into the guest's memory, where they are twice while the kernel unpacks them.
///
/// # Errors
/// When they do not.
pub fn fit(additions: &[(String, Content)], memory: u64) -> Result<(), Error> {
    let size: u64 = additions
        .iter()
        .map(|(_, content)| content.size())
        .sum::<u64>()
        .div_ceil(1 << 20);
    let enough = 2 * size + RESERVED;
    if size == 0 || enough <= memory {
        return Ok(());
    }
    Err(Error::Memory {
        size,
        memory,
        enough: enough.next_multiple_of(64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extras(shares: &[&str]) -> Result<Extras, Error> {
        let shares = shares.iter().map(|text| (*text).to_owned()).collect();
        Extras::new(&ExtrasArgs {
            shares,
            ..ExtrasArgs::default()
        })
    }

    #[test]
    fn shares_have_a_place_and_may_be_read_only() {
        let found = extras(&["/usr", "/tmp:/work:ro"]).unwrap().session.shares;
        let summary: Vec<_> = found
            .iter()
            .map(|share| (share.tag.as_str(), share.place.as_str(), share.writable))
            .collect();
        assert_eq!(
            summary,
            [("pinbed0", "/host", true), ("pinbed1", "/work", false)]
        );
        for bad in [&["/usr", "/tmp"][..], &["/nonexistent"], &["/etc/passwd"]] {
            assert!(extras(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn additions_that_do_not_fit_are_refused_with_the_memory_that_would_do() {
        let of = |mib: usize| [(String::new(), Content::Bytes(vec![0; mib << 20]))];
        assert!(fit(&of(100), 512).is_ok());
        let error = fit(&of(200), 512).unwrap_err().to_string();
        assert!(error.contains("--memory 576M"), "{error}");
        assert!(fit(&of(200), 576).is_ok());
    }
}
