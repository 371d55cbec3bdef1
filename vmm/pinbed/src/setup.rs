// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine needs before it can be started: QEMU, a kernel with its driver, the guest's programs, and a directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use pinbed_abi::report::{PLAN_PATH, Plan};
use tempfile::TempDir;

use crate::accel::{self, Accel, Kvm};
use crate::cli::{AccelArg, VmArgs};
use crate::guest::{self, Programs};
use crate::initramfs::{self, Content};
use crate::kernel::{self, Kernel};
use crate::output::Silent;
use crate::provision::qemu::Qemu;
use crate::provision::{self, disk, interrupt, packages};
use crate::record::Environment;
use crate::session::Session;
use crate::vm::{Console, Files, Machine, shell_line};
use crate::watch::{End, Limits};

/// Paths of UNIX sockets have to be shorter than 108 bytes, and the run's directory has one with a name of up to 20.
const DIRECTORY_MAX: usize = 80;

/// All that runs share.
#[derive(Debug)]
pub struct Setup {
    /// QEMU.
    pub qemu: Qemu,
    /// The guest's programs.
    pub programs: Programs,
    /// Whose baseline the kernel is held against: a name of kernels.toml.
    pub baseline: Option<String>,
    kernel: Kernel,
    driver: PathBuf,
    disk: PathBuf,
    accel: Accel,
    accel_reason: Option<String>,
}

impl Setup {
    /// Provides everything.
    ///
    /// # Errors
    /// When something cannot be had or built, or on a signal.
    pub fn new(args: &VmArgs) -> Result<Self> {
        interrupt::install().context("cannot watch for signals")?;
        let context = provision::Context::of_user()?;
        packages::ensure(&context, &packages::BUILD)?;
        let qemu = Qemu::provide(&context, args.qemu.as_deref())?;
        let workspace = workspace();
        let config = workspace.join("guest-kernel-config");
        let request = kernel::Request {
            name: args.kernel.clone(),
            tree: args.kernel_src.clone(),
            fragments: args.fragments.clone(),
        };
        let kernel = kernel::provide(&context, &config, &request)?;
        let driver = kernel::module(&context, &kernel, &config.join("driver"))?;
        let disk = disk::provide(&context)?;
        let programs = guest::build(&workspace)?;
        let baseline = baseline_of(&kernel);
        let mut setup = Setup {
            qemu,
            programs,
            baseline,
            kernel,
            driver,
            disk,
            accel: if args.accel == AccelArg::Tcg {
                Accel::Tcg
            } else {
                Accel::Kvm
            },
            accel_reason: None,
        };
        if args.accel == AccelArg::Auto
            && let Kvm::Fails(why) = accel::probe(&setup.qemu, &setup.kernel, &context, |limits| {
                setup.trial(args, limits)
            })?
        {
            setup.accel = Accel::Tcg;
            setup.accel_reason = Some(why);
        }
        Ok(setup)
    }

    /// Boots the machine with nothing to do.
    fn trial(&self, args: &VmArgs, limits: Limits) -> Result<End> {
        let directory = Directory::new(false)?;
        let plan = Plan::Tests {
            names: Vec::new(),
            timeout_s: 0,
        };
        let machine = self.machine(args, Console::Runner, directory.files(), &plan, Vec::new())?;
        let mut silent = Silent;
        let session = Session::new(
            Vec::new(),
            None,
            self.environment(args),
            &mut silent,
            Instant::now(),
        );
        let (record, _) = session.run(&machine, self.qemu.command(), directory.files(), limits)?;
        Ok(record.end)
    }

    /// What the tests run on, as far as it is known before the guest is up.
    pub fn environment(&self, args: &VmArgs) -> Environment {
        Environment {
            release: None,
            version: None,
            kernel: self.kernel.release.clone(),
            qemu: self.qemu.version.to_string(),
            accel: self.accel,
            accel_reason: self.accel_reason.clone(),
            memory_mib: args.memory,
            cpus: args.cpus,
            baseline: self.baseline.clone(),
        }
    }

    /// A machine whose guest carries out `plan`. Writes its initramfs, with `additions` in it.
    ///
    /// # Errors
    /// When the initramfs cannot be written.
    pub fn machine(
        &self,
        args: &VmArgs,
        console: Console,
        files: &Files,
        plan: &Plan,
        additions: Vec<(String, Content)>,
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
            ("lib/ext4.img.gz", Content::File(self.disk.clone())),
            (
                PLAN_PATH.trim_start_matches('/'),
                Content::Bytes(serde_json::to_vec(plan)?),
            ),
        ];
        if console == Console::Person {
            entries.push(("bin/busybox", Content::Program(static_busybox()?)));
        }
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|(name, content)| (name.to_owned(), content))
            .collect();
        entries.extend(additions);
        let initramfs = files.initramfs();
        initramfs::write(&initramfs, &entries).context("cannot write the guest's initramfs")?;
        Ok(Machine {
            kernel: self.kernel.vmlinux.clone(),
            initramfs,
            accel: self.accel,
            memory: args.memory,
            cpus: args.cpus,
            append: args.append.clone(),
            console,
        })
    }
}

/// Whose baseline fits a kernel: its recipe's, if it is of the version that this is named after. (The recipe of a user's own tree is
/// the nearest one, and what is known of another version says nothing.)
fn baseline_of(kernel: &Kernel) -> Option<String> {
    let rest = kernel.release.strip_prefix(&kernel.name)?;
    (!rest.starts_with(|c: char| c.is_ascii_digit())).then(|| kernel.name.clone())
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let qemu = shell_line(&self.qemu.command());
        let baseline = self.baseline.as_deref().unwrap_or("none");
        let Kernel {
            release,
            vmlinux,
            objects,
            ..
        } = &self.kernel;
        writeln!(f, "kernel    {release}")?;
        for file in [vmlinux, &objects.join(".config")] {
            writeln!(f, "          {}", file.display())?;
        }
        writeln!(f, "driver    {}", self.driver.display())?;
        writeln!(f, "QEMU      {} ({})", self.qemu.version, qemu.trim_end())?;
        write!(f, "machine   {}", self.accel.name())?;
        if let Some(why) = &self.accel_reason {
            write!(f, ", not KVM: {why}")?;
        }
        write!(f, "\nbaseline  {baseline}")
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
