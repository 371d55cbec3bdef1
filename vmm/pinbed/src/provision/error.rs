// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Everything that can keep a machine from having what a run needs, each with its own sentence.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::exit::Exit;

/// Why something could not be provided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Ctrl-C or a termination signal.
    #[error("interrupted; what is finished is kept, and the next run goes on from there")]
    Interrupted,

    /// The cache's file system is full, or too small to begin.
    #[error(
        "the disk is full: {path} {detail}. Free some space there, or point XDG_CACHE_HOME at a larger disk"
    )]
    DiskFull {
        /// Where it was to be written.
        path: PathBuf,
        /// How much is there and how much is needed, or what failed.
        detail: String,
    },

    /// The cache cannot be written.
    #[error(
        "{path} cannot be written. Make it writable, or point XDG_CACHE_HOME at a directory that is"
    )]
    CacheNotWritable {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// Any other failure to read or write.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done, as a verb: "read", "create".
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program's name.
        program: String,
        /// Why not.
        source: io::Error,
    },

    /// A program ran and failed.
    #[error("{what} failed ({status}){}", tail(lines, log.as_deref()))]
    Command {
        /// What it was to do.
        what: String,
        /// How it ended.
        status: String,
        /// The lines that say why.
        lines: Vec<String>,
        /// Where all of its output is.
        log: Option<PathBuf>,
    },

    /// A program did not end in the time that it may take.
    #[error("{what} did not end within {seconds} s, and was stopped")]
    Slow {
        /// What it was to do.
        what: String,
        /// The limit.
        seconds: f64,
    },

    /// Packages are missing and we are not root.
    #[error("this machine lacks {missing}. Install it with\n\n    {line}\n\nand run pinbed again")]
    MissingPackages {
        /// What is missing, for people.
        missing: String,
        /// The exact line to run.
        line: String,
    },

    /// Packages are missing on a system without apt.
    #[error(
        "this machine lacks {missing}, and has no apt to install it with; install it by other means"
    )]
    NoApt {
        /// What is missing.
        missing: String,
    },

    /// Not x86-64.
    #[error("pinbed runs on x86-64 Linux; this machine is {arch}")]
    Architecture {
        /// What it is.
        arch: &'static str,
    },

    /// apt has no Debian mirror.
    #[error(
        "no Debian mirror is configured in {etc}, so nothing can be downloaded from Debian. Add one there (a line \
         \"deb MIRROR {release} main\"), or give --qemu and --kernel-src"
    )]
    NoMirror {
        /// apt's configuration directory.
        etc: PathBuf,
        /// The Debian release to name.
        release: String,
    },

    /// The mirrors cannot be read.
    #[error(
        "cannot read Debian's package lists from {mirrors}{}",
        tail(lines, None)
    )]
    Mirror {
        /// Which were tried.
        mirrors: String,
        /// What apt says.
        lines: Vec<String>,
    },

    /// Debian has no such suite.
    #[error(
        "there is no suite {suite} at {mirrors}. Debian's are named like trixie, trixie-backports, bookworm or sid; one that is no longer on \
         the mirrors is in Debian's archive, which a line of guest-kernel-config/kernels.toml can name"
    )]
    NoSuite {
        /// What was asked for.
        suite: String,
        /// Which mirrors were asked.
        mirrors: String,
    },

    /// A suite has no such package.
    #[error("there is no package {package} in Debian's {suite}, which has {known}")]
    NoPackage {
        /// What was asked for.
        package: String,
        /// Where.
        suite: String,
        /// What there is of its kind.
        known: String,
    },

    /// No keyring to check signatures with.
    #[error(
        "{path} is missing, so what is downloaded could not be checked. Install debian-archive-keyring"
    )]
    NoKeyring {
        /// Where Debian puts it.
        path: PathBuf,
    },

    /// `--offline`, and something has to be fetched.
    #[error(
        "{what} would have to be fetched, and --offline forbids that. On a machine with a network, `pinbed setup` and `pinbed cache export FILE` \
         gather everything; `pinbed cache import FILE` takes it in here"
    )]
    Offline {
        /// What.
        what: String,
    },

    /// A cache entry is not what was published.
    #[error("{what} is damaged: {why}. `pinbed cache verify` has it made anew")]
    Damaged {
        /// The entry.
        what: String,
        /// What differs.
        why: String,
    },

    /// No source of a kernel has it.
    #[error(
        "kernel {kernel} cannot be had from any of its sources:{}",
        tail(reasons, None)
    )]
    NoSource {
        /// Which.
        kernel: String,
        /// For each source, why not.
        reasons: Vec<String>,
    },

    /// A source has another kernel.
    #[error("{from} has Linux {found}, not {wanted}")]
    AnotherKernel {
        /// Which source.
        from: String,
        /// What it has.
        found: String,
        /// What was wanted.
        wanted: String,
    },

    /// A download failed.
    #[error(
        "the download of {what} was cut off or failed; run pinbed again to resume it{}",
        tail(lines, None)
    )]
    Download {
        /// What was being downloaded.
        what: String,
        /// What apt says.
        lines: Vec<String>,
    },

    /// A package file is not what Debian's signed index says.
    #[error(
        "{file} is not what Debian's signed index says ({why}); it has been deleted, run pinbed again"
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What differs.
        why: String,
    },

    /// `--qemu` names nothing, or nothing that runs.
    #[error(
        "{program} is not a QEMU that runs: {why}. Give the path of a qemu-system-x86_64, or leave --qemu out"
    )]
    QemuNotFound {
        /// What was asked for.
        program: PathBuf,
        /// What happened.
        why: String,
    },

    /// The QEMU given is too old.
    #[error(
        "{program} is QEMU {found}; pinbed needs {needed} or later. Leave --qemu out to have one fetched"
    )]
    QemuTooOld {
        /// Which.
        program: PathBuf,
        /// Its version.
        found: String,
        /// The lowest that will do.
        needed: String,
    },

    /// The QEMU given was built without the device.
    #[error(
        "{program} (QEMU {version}) was built without {device}. Leave --qemu out to have one fetched"
    )]
    QemuLacksDevice {
        /// Which.
        program: PathBuf,
        /// Its version.
        version: String,
        /// The device it lacks.
        device: &'static str,
    },

    /// kernels.toml cannot be understood.
    #[error("{path} cannot be understood: {why}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },

    /// `--workspace` is no checkout.
    #[error(
        "{path} is not the top of a checkout of pinbed (no guest-kernel-config/kernels.toml in it)"
    )]
    NotACheckout {
        /// What was given.
        path: PathBuf,
    },

    /// There is no checkout to work on.
    #[error(
        "there is no checkout of pinbed: the current directory is in none, and {built_from}, which this program was built from, is gone. \
         Go to one, or name it with --workspace or PINBED_WORKSPACE"
    )]
    NoCheckout {
        /// Where it was.
        built_from: PathBuf,
    },

    /// The command and the programs that it would build do not speak the same language.
    #[error(
        "this pinbed was built from another version of {file}, so it does not understand what it would build from {workspace}. Start it with \
         ci/run, or build it anew there: cargo build --release -p pinbed"
    )]
    AnotherVersion {
        /// The file that differs, below the checkout.
        file: &'static str,
        /// The checkout.
        workspace: PathBuf,
    },

    /// No such kernel.
    #[error("there is no kernel {name} in {path}; it has {known}, and \"all\" is each of them")]
    UnknownKernel {
        /// What was asked for.
        name: String,
        /// The manifest.
        path: PathBuf,
        /// What there is.
        known: String,
    },

    /// No such patch for this kernel.
    #[error("there is no patch {name} for kernel {kernel}; it has {known}")]
    UnknownPatch {
        /// What was asked for.
        name: String,
        /// The kernel.
        kernel: String,
        /// What there is.
        known: String,
    },

    /// Patches for what is not ours to change.
    #[error(
        "{tree} is not changed by pinbed: apply the patches of {name} there, and name the kernel without them"
    )]
    PatchesOnTree {
        /// The user's tree.
        tree: PathBuf,
        /// The kernel that was asked for.
        name: String,
    },

    /// A line of a fragment is no Kconfig line.
    #[error("{path}:{line}: not a line of a Kconfig fragment: {text}")]
    Fragment {
        /// The fragment.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },

    /// The final configuration is not what the fragments ask for.
    #[error(
        "kernel {kernel} cannot be configured as the fragments ask:\n{}\nDrop the line, or ask for what the symbol depends on",
        .missing.join("\n")
    )]
    MissingSymbols {
        /// Which kernel.
        kernel: String,
        /// One line each: fragment, what it asks for, what came out.
        missing: Vec<String>,
    },

    /// No such fragment.
    #[error("there is no fragment {name} in {directory}; it has {known}")]
    UnknownFragment {
        /// What was asked for.
        name: String,
        /// The directory of fragments.
        directory: PathBuf,
        /// What there is.
        known: String,
    },

    /// `--kernel-src` is no kernel tree.
    #[error(
        "{path} is not a Linux source tree (no {lacks} in it); --kernel-src takes the top of one"
    )]
    NotAKernelTree {
        /// What was given.
        path: PathBuf,
        /// The file that is not there.
        lacks: &'static str,
    },

    /// `--kernel-src` was built in place.
    #[error(
        "{path} was built in place ({product} is in it), and the kernel's makefiles refuse to build such a tree out of \
         tree. Clean it with `make -C {path} mrproper` (that deletes its .config too), or give a clean tree: `git worktree add`"
    )]
    BuiltInPlace {
        /// The tree.
        path: PathBuf,
        /// What gives it away.
        product: String,
    },

    /// What the user gave cannot be used.
    #[error("cannot use {argument}: {why}")]
    Argument {
        /// The file, directory or name.
        argument: String,
        /// Why not, and what to do instead.
        why: String,
    },

    /// There is no driver to build.
    #[error("{path} has no Kbuild file, so there is no driver to build")]
    NoDriver {
        /// The driver's directory.
        path: PathBuf,
    },
}

impl Error {
    /// An I/O failure on `path`; a full disk is told apart.
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::DiskFull {
                path,
                detail: format!("cannot be written ({source})"),
            },
            ErrorKind::ReadOnlyFilesystem => Error::CacheNotWritable { path, source },
            _ => Error::Io {
                doing,
                path,
                source,
            },
        }
    }

    /// Whether trying something else instead would be in vain.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Error::Interrupted | Error::DiskFull { .. } | Error::CacheNotWritable { .. }
        )
    }

    /// How `pinbed` ends because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Interrupted => Exit::Interrupted,
            Error::NotACheckout { .. }
            | Error::Argument { .. }
            | Error::UnknownKernel { .. }
            | Error::NoSuite { .. }
            | Error::NoPackage { .. }
            | Error::UnknownFragment { .. }
            | Error::UnknownPatch { .. }
            | Error::PatchesOnTree { .. }
            | Error::NotAKernelTree { .. }
            | Error::BuiltInPlace { .. }
            | Error::Fragment { .. }
            | Error::QemuNotFound { .. }
            | Error::QemuTooOld { .. }
            | Error::QemuLacksDevice { .. } => Exit::Usage,
            _ => Exit::Provisioning,
        }
    }
}

fn tail(lines: &[String], log: Option<&Path>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str("\n    ");
        text.push_str(line);
    }
    if let Some(log) = log {
        text.push_str(&format!("\nAll of its output is in {}", log.display()));
    }
    text
}
