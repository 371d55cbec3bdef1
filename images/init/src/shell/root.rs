// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The file systems of a person's command: what programs take for granted, directories of the host, a root of its own.

use super::{BUSYBOX, inside};
use crate::Broken;
use nix::mount::{MsFlags, mount};
use pinbed_abi::report::{CONFIG_PATH, PLAN_PATH};
use pinbed_abi::shell::{HISTORY_PATH, Root, Session, Share};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a root of the person's is put together.
const WORKSHOP: &str = "/root.d";
/// Files that the tests need, and find in any root.
const OURS: [&str; 5] = [
    "/bin/pinbed-guest",
    "/lib/pinbed.ko",
    "/lib/ext4.img.gz",
    CONFIG_PATH,
    PLAN_PATH,
];

/// Makes the file systems ready. Returns the root that is not this one.
pub fn prepare(session: &Session) -> Result<Option<PathBuf>, Broken> {
    attach("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666");
    attach("tmpfs", "/dev/shm", "tmpfs", "mode=1777");
    // Programs open them by these names.
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let _ = symlink(to, link);
    }
    let root = match &session.root {
        Some(root) => Some(other(root)?),
        None => {
            own();
            None
        }
    };
    for share in &session.shares {
        mount_share(share, &inside(root.as_deref(), &share.place))?;
    }
    Ok(root)
}

/// Mounts what a command may miss, but can be without.
fn attach(source: &str, place: &str, kind: &str, options: &str) {
    let _ = fs::create_dir_all(place);
    let _ = mount(
        Some(source),
        place,
        Some(kind),
        MsFlags::empty(),
        Some(options),
    );
}

/// Completes the initramfs: busybox's commands, and files that name root.
fn own() {
    for directory in ["/root", "/run", "/sbin", "/usr/bin", "/usr/sbin", "/var"] {
        let _ = fs::create_dir_all(directory);
    }
    let _ = symlink("/tmp", "/var/tmp");
    for (file, text) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("/etc/group", "root:x:0:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        (HISTORY_PATH, ""),
    ] {
        if !Path::new(file).exists() {
            let _ = fs::write(file, text);
        }
    }
    // Without its commands in /bin it still has all of them as 'busybox COMMAND'.
    let _ = Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status();
}

/// Puts a person's root under an overlay in memory, with this guest's devices in it.
fn other(root: &Root) -> Result<PathBuf, Broken> {
    let at = |name: &str| Path::new(WORKSHOP).join(name);
    let (below, memory, merged) = (at("below"), at("memory"), at("merged"));
    for directory in [&below, &memory, &merged] {
        fs::create_dir_all(directory)?;
    }
    match root {
        // Nobody changes it meanwhile, so it may be cached.
        Root::Share(tag) => mount_9p(tag, &below, false)?,
        Root::Disk(disk) => mount_disk(disk, &below)?,
    }
    mount_at("tmpfs", &memory, "tmpfs", MsFlags::empty(), "mode=755")?;
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        below.display(),
        upper.display(),
        work.display()
    );
    mount_at("overlay", &merged, "overlay", MsFlags::empty(), &options)
        .map_err(|Broken(why)| Broken(format!("{why}; --rootfs needs CONFIG_OVERLAY_FS")))?;
    for directory in ["/proc", "/sys", "/dev", "/tmp"] {
        let place = inside(Some(&merged), directory);
        fs::create_dir_all(&place)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount_at(directory, &place, "", flags, "")?;
    }
    let run = merged.join("run");
    fs::create_dir_all(&run)?;
    mount_at("tmpfs", &run, "tmpfs", MsFlags::empty(), "mode=755")?;
    fs::create_dir_all(merged.join("root"))?;
    // The root's own history is no business of this shell's.
    let history = fs::read(HISTORY_PATH).unwrap_or_default();
    fs::write(inside(Some(&merged), HISTORY_PATH), history)?;
    for file in OURS {
        let place = inside(Some(&merged), file);
        if let Some(directory) = place.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&place, "")?;
        mount_at(file, &place, "", MsFlags::MS_BIND, "")?;
    }
    Ok(merged)
}

fn mount_share(share: &Share, place: &Path) -> Result<(), Broken> {
    fs::create_dir_all(place)?;
    mount_9p(&share.tag, place, share.writable)
}

fn mount_9p(tag: &str, place: &Path, writable: bool) -> Result<(), Broken> {
    // With "mmap" only what is mapped is cached, so both sides see each other's files at once.
    let (flags, cache) = match writable {
        true => (MsFlags::empty(), "mmap"),
        false => (MsFlags::MS_RDONLY, "loose"),
    };
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,access=any,cache={cache}");
    mount_at(tag, place, "9p", flags, &options).map_err(|Broken(why)| {
        Broken(format!(
            "{why}; a directory of the host needs CONFIG_9P_FS and CONFIG_NET_9P_VIRTIO"
        ))
    })
}

/// Mounts a disk read-only with the first file system of the kernel's that takes it.
fn mount_disk(disk: &str, place: &Path) -> Result<(), Broken> {
    let known = fs::read_to_string("/proc/filesystems")?;
    let kinds = known
        .lines()
        .filter(|line| !line.starts_with("nodev"))
        .map(str::trim);
    for kind in kinds {
        if mount_at(disk, place, kind, MsFlags::MS_RDONLY, "").is_ok() {
            return Ok(());
        }
    }
    Err(Broken(format!(
        "{disk} has no file system that this kernel knows"
    )))
}

fn mount_at(
    source: &str,
    place: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Broken> {
    mount(Some(source), place, Some(kind), flags, Some(options)).map_err(|error| {
        Broken(format!(
            "cannot mount {source} ({kind}) on {}: {error}",
            place.display()
        ))
    })
}
