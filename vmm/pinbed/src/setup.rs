// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine needs before it can be started: QEMU, a kernel with its driver, the guest's programs, and a directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pinbed_abi::report::{PLAN_PATH, Plan};
use tempfile::TempDir;

use crate::accel::{self, Accel, Kvm};
use crate::cli::{AccelArg, VmArgs};
use crate::guest::{self, Programs};
use crate::initramfs::{self, Content};
use crate::record::Environment;
use crate::vm::{Console, Files, Machine};

/// Paths of UNIX sockets have to be shorter than 108 bytes, and the run's directory has one with a name of up to 20.
const DIRECTORY_MAX: usize = 80;

/// TEMPORARY until provisioning is merged.
pub struct Qemu;
impl Qemu {
    /// The command without arguments.
    pub fn command(&self) -> Command {
        Command::new(std::env::var_os("PINBED_QEMU").unwrap_or_default())
    }
}

/// All that runs share.
pub struct Setup {
    /// QEMU.
    pub qemu: Qemu,
    /// The guest's programs.
    pub programs: Programs,
    /// The kernel's baseline, if it has one.
    pub baseline: Option<PathBuf>,
    kernel: PathBuf,
    driver: PathBuf,
    accel: Accel,
    accel_reason: Option<String>,
}

impl Setup {
    /// Provides everything.
    ///
    /// # Errors
    /// When something cannot be had or built.
    pub fn new(args: &VmArgs) -> Result<Self> {
        let programs = guest::build(&workspace())?;
        let qemu = Qemu;
        let (accel, accel_reason) = match args.accel {
            AccelArg::Kvm => (Accel::Kvm, None),
            AccelArg::Tcg => (Accel::Tcg, None),
            AccelArg::Auto => {
                let cache = PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
                    .join(".cache/pinbed/kvm.json");
                match accel::probe(|| qemu.command(), "dev", &cache) {
                    Kvm::Works => (Accel::Kvm, None),
                    Kvm::Fails(why) => (Accel::Tcg, Some(why)),
                }
            }
        };
        let path = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .unwrap_or_default()
        };
        let baseline = Some(workspace().join("images/baselines/6.12.toml"));
        Ok(Setup {
            qemu,
            programs,
            baseline,
            kernel: path("PINBED_KERNEL"),
            driver: path("PINBED_DRIVER"),
            accel,
            accel_reason,
        })
    }

    /// What the tests run on, as far as it is known before the guest is up.
    pub fn environment(&self, args: &VmArgs) -> Environment {
        Environment {
            release: None,
            version: None,
            kernel: "6.12".to_owned(),
            qemu: "dev".to_owned(),
            accel: self.accel,
            accel_reason: self.accel_reason.clone(),
            memory_mib: args.memory,
            cpus: args.cpus,
            baseline: self
                .baseline
                .as_ref()
                .map(|path| path.display().to_string()),
        }
    }

    /// A machine whose guest carries out `plan`. Writes its initramfs.
    ///
    /// # Errors
    /// When the initramfs cannot be written.
    pub fn machine(
        &self,
        args: &VmArgs,
        console: Console,
        files: &Files,
        plan: &Plan,
    ) -> Result<Machine> {
        let mut entries = vec![
            ("bin", Content::Directory),
            ("etc", Content::Directory),
            ("lib", Content::Directory),
            ("init", Content::Program(self.programs.init.clone())),
            (
                "bin/pinbed-guest",
                Content::Program(self.programs.tests.clone()),
            ),
            ("lib/pinbed.ko", Content::File(self.driver.clone())),
            (
                PLAN_PATH.trim_start_matches('/'),
                Content::Bytes(serde_json::to_vec(plan)?),
            ),
        ];
        if console == Console::Person {
            entries.push(("bin/busybox", Content::Program(static_busybox()?)));
        }
        let initramfs = files.initramfs();
        initramfs::write(&initramfs, &entries).context("cannot write the guest's initramfs")?;
        Ok(Machine {
            kernel: self.kernel.clone(),
            initramfs,
            accel: self.accel,
            memory: args.memory,
            cpus: args.cpus,
            console,
        })
    }
}

/// The top of the sources that this program was built from: it builds the guest's programs and the driver from there.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// A busybox that needs no libraries.
fn static_busybox() -> Result<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|directory| directory.join("busybox"))
        .find(|path| std::fs::read(path).is_ok_and(|program| !program.windows(LOADER.len()).any(|bytes| bytes == LOADER)))
        .context("there is no busybox that is linked statically, which the guest's shell is; install the package busybox-static")
}

/// A program that needs libraries names who loads them.
const LOADER: &[u8] = b"/ld-linux-x86-64.so";

/// A run's directory, removed when this is dropped unless it is to be kept.
#[derive(Debug)]
pub struct Directory {
    files: Files,
    temporary: Option<TempDir>,
}

impl Directory {
    /// A new directory for a run.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(keep: bool) -> Result<Self> {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() + "/pinbed-123456".len() > DIRECTORY_MAX {
            parent = PathBuf::from("/tmp");
        }
        let temporary = tempfile::Builder::new()
            .prefix("pinbed-")
            .tempdir_in(&parent);
        let temporary = temporary.with_context(|| {
            format!(
                "cannot create a directory for the run in {}",
                parent.display()
            )
        })?;
        let files = Files::new(temporary.path());
        Ok(match keep {
            true => {
                let _ = temporary.keep();
                Directory {
                    files,
                    temporary: None,
                }
            }
            false => Directory {
                files,
                temporary: Some(temporary),
            },
        })
    }

    /// The run's files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Says where the files are, if they are kept.
    pub fn tell(&self) {
        if self.temporary.is_none() {
            eprintln!(
                "pinbed: the run's files are kept in {}",
                self.files.directory().display()
            );
        }
    }
}
