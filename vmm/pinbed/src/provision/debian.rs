// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A root file system of Debian's with the tools that one looks for in a guest, made by mmdebstrap once and kept in the cache: an image,
//! so that owners and modes are those of the packages, whoever made it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Fingerprint, Locked};
use super::child::Run;
use super::inventory::Check;
use super::progress::Unit;
use super::{Context, Error, packages};

/// What it is called on the command line.
pub const NAME: &str = "debian";
/// Where the release is from unless the host is a Debian: whose kernel and QEMU are taken, too.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 17] = [
    "bpftool",
    "bpftrace",
    "gdb",
    "gstreamer1.0-plugins-base",
    "gstreamer1.0-plugins-good",
    "gstreamer1.0-tools",
    "iproute2",
    "kmod",
    "less",
    "linux-perf",
    "numactl",
    "procps",
    "python3-minimal",
    "strace",
    "trace-cmd",
    "v4l-utils",
    "vim-tiny",
];
/// Its file in the cache entry.
const IMAGE: &str = "root.ext2";

/// Finds the image in the cache, or makes it.
///
/// # Errors
/// When mmdebstrap is not there or fails, or the cache cannot be written.
pub fn provide(context: &Context) -> Result<PathBuf, Error> {
    let suite = suite();
    let key = Fingerprint::default()
        .add("suite", &suite)
        .add("packages", PACKAGES.join(" "))
        .finish();
    let entry = context
        .cache
        .entry("rootfs", &format!("{NAME}-{suite}-{key}"));
    if entry.record::<()>().is_none() {
        let work = entry.lock(&context.progress)?;
        if entry.record::<()>().is_none() {
            packages::ensure(context, [packages::MMDEBSTRAP, packages::GENEXT2FS])?;
            context.cache.require_free(3 << 30)?;
            make(context, &suite, &work)?;
        }
    }
    Ok(entry.dir().join(IMAGE))
}

/// The host's own release, if it is a Debian: its mirrors are known to be within reach.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some(id), Some(suite)) if id == "debian" => suite,
        _ => SUITE.to_owned(),
    }
}

/// The host's own sources, which name the mirrors that it reaches; mmdebstrap's own choice where they are in the newer format.
fn sources(suite: &str) -> Option<File> {
    let path = Path::new("/etc/apt/sources.list");
    let text = fs::read_to_string(path).ok()?;
    let names_it = |line: &str| line.starts_with("deb ") && line.contains(suite);
    text.lines().any(names_it).then(|| File::open(path).ok())?
}

fn make(context: &Context, suite: &str, work: &Locked) -> Result<(), Error> {
    work.retract()?;
    let image = work.dir().join(IMAGE);
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--format=ext2"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(suite)
        .arg(&image);
    let sources = sources(suite);
    if sources.is_some() {
        command.arg("-");
    }
    let mut task = context.progress.start(
        format!("making a root of Debian {suite}"),
        Unit::Count("lines"),
        None,
    );
    let mut run = Run::new("mmdebstrap", command).errors(|line| line.starts_with("E:"));
    if let Some(sources) = sources {
        run = run.stdin(sources);
    }
    run.checked(|_| task.tick())?;
    task.finish(&format!("made a root of Debian {suite}"));
    work.publish(&(), Check::EachUse, &[])
}
