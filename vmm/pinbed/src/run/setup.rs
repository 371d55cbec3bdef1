// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a machine needs before it can be started: QEMU, a kernel with its driver, the guest's programs, and a directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use pinbed_abi::report::{
    COMPLIANCE_PATH, CONFIG_PATH, HOTPLUG_GROUPS, MODULES_PATH, PLAN_PATH, Plan, TestInfo,
};
use pinbed_abi::trace::WANTED_PATH;

use crate::cli::{AccelArg, VmArgs};
use crate::interrupt;
use crate::judge::baseline::{Baseline, Baselines};
use crate::kernel::{self, Choice, Driver, Kernel, Manifest, Module, Request};
use crate::machine::accel::{self, Accel, Kvm};
use crate::machine::initramfs::{self, Content};
use crate::machine::vm::{Files, Machine, Start, shell_line};
use crate::machine::watch::{End, Limits};
use crate::machine::{boot, events, tsc};
use crate::provision::programs::{self, Programs};
use crate::provision::qemu::Qemu;
use crate::provision::scratch::Scratch;
use crate::provision::workspace;
use crate::provision::{self, answers, compliance, disk, packages};
use crate::report::record::{Environment, StartedBy};
use crate::run::extras::{self, Extras};
use crate::run::revision;
use crate::trace;

/// Paths of UNIX sockets have to be shorter than 108 bytes, and the run's directory has one with a name of up to 20.
const DIRECTORY_MAX: usize = 80;

/// Runs of more tests than this boot.
const WARM_TESTS: usize = 20;

/// What all kernels share.
#[derive(Debug)]
pub struct Host {
    /// QEMU.
    pub qemu: Qemu,
    /// The device and the guest's programs.
    pub programs: Programs,
    /// The kernels there are.
    pub manifest: Manifest,
    context: provision::Context,
    /// The kernels that the command line asks for; at least one.
    pub requests: Vec<Request>,
    config: PathBuf,
    disk: PathBuf,
}

impl Host {
    /// Provides it.
    ///
    /// # Errors
    /// When something cannot be had or built, or on a signal.
    pub fn new(args: &VmArgs) -> Result<Self> {
        interrupt::install().context("cannot watch for signals")?;
        tsc::begin();
        let context = provision::Context::of_user()?;
        context.cache.sweep();
        let config = workspace()?.join("guest-kernel-config");
        let mut manifest = Manifest::read(&config.join("kernels.toml"))?;
        let is_newest = |name: &String| name.split('+').next() == Some(kernel::NEWEST);
        if args.kernels.iter().any(is_newest) {
            let suites = manifest.suites();
            manifest.add_newest(&kernel::newest(&context, &suites)?, &suites)?;
        }
        let requests = Request::all(&config, &manifest, &choice(args))?;
        packages::ensure(&context, packages::needs())?;
        // The compiler and the network wait for each other in no way. Of several kernels each may fail for itself, and later.
        let workspace = workspace()?;
        let (provided, programs) = thread::scope(|scope| {
            let programs = scope.spawn(|| programs::build(&workspace));
            let provide = || {
                let qemu = Qemu::provide(&context, args.qemu.as_deref())?;
                let disk = disk::provide(&context)?;
                if let [request] = requests.as_slice() {
                    match request {
                        // Compiled when its turn comes, and said so.
                        Request::Source(build) => kernel::fetch(&context, build)?,
                        Request::Given(_) | Request::Package(_) => {
                            drop(kernel_and_driver(&context, &config, &manifest, request)?);
                        }
                    }
                }
                if !programs.is_finished() {
                    // The compiler works on, and a run of all tests wants it. Where it fails, the run that needs it says so.
                    let _ = compliance::provide(&context);
                }
                Ok::<_, provision::Error>((qemu, disk))
            };
            (provide(), programs.join())
        });
        let (qemu, disk) = provided?;
        Ok(Host {
            qemu,
            programs: programs.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            requests,
            disk,
            manifest,
            context,
            config,
        })
    }

    /// What a kernel that is not there yet is to run on.
    pub fn environment(&self, args: &VmArgs, request: &Request) -> Environment {
        Environment {
            release: None,
            version: None,
            regions: Vec::new(),
            kernel: session_name(args, request),
            env: args.environment.as_ref().map(|it| it.name.clone()),
            fingerprint: None,
            tree_revision: request.path().and_then(revision::of),
            fragments: args.fragments.clone(),
            append: args.append.clone(),
            faults: args.faults.iter().map(ToString::to_string).collect(),
            qemu: self.qemu.version.to_string(),
            accel: None,
            accel_reason: None,
            memory_mib: args.memory,
            cpus: args.cpus,
            baseline: None,
            shuffle: None,
            shard: None,
            start: None,
        }
    }
}

/// What a session is called in reports: by its kernel, and the environment after a comma.
pub fn session_name(args: &VmArgs, request: &Request) -> String {
    let path = request.path().map(|path| path.display().to_string());
    let kernel = path.unwrap_or_else(|| request.name());
    match &args.environment {
        Some(environment) => format!("{kernel},{}", environment.name),
        None => kernel,
    }
}

/// What the command line says of kernels.
fn choice(args: &VmArgs) -> Choice<'_> {
    Choice {
        names: &args.kernels,
        tree: args.kernel_src.as_deref(),
        image: args.kernel_image.as_deref(),
        build: args.kernel_build.as_deref(),
        modules: args.modules.as_deref(),
        config: args.config.as_deref(),
        fragments: &args.fragments,
    }
}

/// Provides a kernel and the driver for it. `config` is the checkout's directory guest-kernel-config.
fn kernel_and_driver(
    context: &provision::Context,
    config: &Path,
    manifest: &Manifest,
    request: &Request,
) -> Result<(Kernel, Driver), provision::Error> {
    let provide = || {
        let kernel = kernel::provide(context, config, manifest, request)?;
        let driver = kernel::module(context, &kernel, &config.join("driver"))?;
        Ok((kernel, driver))
    };
    match provide() {
        Err(provision::Error::Command { .. } | provision::Error::Io { .. })
            if kernel::heal(context, request)? =>
        {
            provide()
        }
        provided => provided,
    }
}

/// All that runs of a kernel share.
#[derive(Debug)]
pub struct Setup<'a> {
    host: &'a Host,
    kernel: Kernel,
    driver: Driver,
    /// The kernel's own modules that the guest loads, in order.
    modules: Vec<Module>,
    /// Those it does not load, as reasons for skips.
    not_loaded: Vec<String>,
    accel: Accel,
    accel_reason: Option<String>,
    /// More arguments for QEMU.
    arguments: Vec<String>,
    /// Who takes in what guests trace, if they do.
    trace: Option<trace::Collector>,
}

impl<'a> Setup<'a> {
    /// Provides the kernel and its driver.
    ///
    /// # Errors
    /// When something cannot be had or built, or on a signal.
    pub fn new(host: &'a Host, args: &VmArgs, request: &Request) -> Result<Self> {
        let context = &host.context;
        let (kernel, driver) = kernel_and_driver(context, &host.config, &host.manifest, request)?;
        let environment = args.environment.as_ref();
        let asked_for: Vec<_> = environment
            .iter()
            .flat_map(|it| it.modules.iter().map(String::as_str))
            .collect();
        let modules = modules(context, &kernel, &driver, &asked_for)?;
        let not_loaded = kernel::not_loaded(&kernel.config, &asked_for);
        let mut setup = Setup {
            host,
            kernel,
            driver,
            modules,
            not_loaded,
            accel: if args.accel == AccelArg::Tcg {
                Accel::Tcg
            } else {
                Accel::Kvm
            },
            accel_reason: None,
            arguments: environment.map_or(Vec::new(), |it| it.qemu.clone()),
            trace: None,
        };
        if args.accel == AccelArg::Auto
            && let Kvm::Fails(why) =
                accel::probe(&host.qemu, &setup.kernel, context, |accel, limits| {
                    setup.trial(args, accel, limits)
                })?
        {
            setup.accel = Accel::Tcg;
            setup.accel_reason = Some(why);
        }
        Ok(setup)
    }

    /// Adds what a person wants in the guest.
    ///
    /// # Errors
    /// When the kernel cannot do it.
    pub fn equip(&mut self, extras: &Extras) -> Result<()> {
        let config = &self.kernel.config;
        for &(option, symbol) in &extras.needs {
            ensure!(
                config.get(symbol).is_some(),
                extras::Error::Kernel { option, symbol }
            );
        }
        let symbols: Vec<_> = extras.needs.iter().map(|(_, symbol)| *symbol).collect();
        if symbols.iter().any(|symbol| config.get(symbol) == Some("m")) {
            let context = &self.host.context;
            self.modules = modules(context, &self.kernel, &self.driver, &symbols)?;
        }
        self.arguments.extend(extras.arguments.iter().cloned());
        Ok(())
    }

    /// Has guests trace their tests from now on, and tell this one.
    pub fn trace(&mut self, collector: trace::Collector) {
        self.trace = Some(collector);
    }

    /// Where the kernel's vmlinux is, if it is there.
    pub fn vmlinux(&self) -> PathBuf {
        self.kernel.objects().join("vmlinux")
    }

    /// The vmlinux, if it has DWARF.
    pub fn symbols(&self) -> Option<PathBuf> {
        let config = &self.kernel.config;
        let path = self.vmlinux();
        (config.has("DEBUG_INFO") && path.exists()).then_some(path)
    }

    /// The driver's module.
    pub fn driver(&self) -> &Path {
        &self.driver.module
    }

    /// The kernel's source, or what there is of it.
    pub fn source(&self) -> &Path {
        self.kernel.source()
    }

    /// Boots the machine with nothing to do.
    fn trial(&self, args: &VmArgs, accel: Accel, limits: Limits) -> Result<End> {
        let plan = Plan::Tests {
            names: Vec::new(),
            timeout_s: 0,
        };
        let guest = self.guest(args, &plan, Start::Cold, false)?;
        let (mut machine, qemu, files) = guest.parts();
        machine.accel = accel;
        let ended = boot::run(
            &machine,
            qemu,
            &files,
            limits,
            events::stream(),
            &mut |_| {},
        )?;
        Ok(ended.end)
    }

    /// A guest that carries out `plan`, with its console for the runner. Its directory goes with it unless it is to be kept.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn guest(&self, args: &VmArgs, plan: &Plan, start: Start, keep: bool) -> Result<Guest> {
        let directory = Directory::new(keep)?;
        let machine = self.machine_from(args, directory.files(), plan, start, Vec::new())?;
        Ok(Guest {
            machine,
            qemu: self.host.qemu.clone(),
            directory,
            trace: self.trace.clone(),
        })
    }

    /// Whether runs of these tests may start from a saved state: few tests, whose guest is like that of all others. Not under KVM, where
    /// a guest has the host's processor, and a boot takes little.
    pub fn allows_warm(&self, tests: &[TestInfo]) -> bool {
        let names: Vec<_> = tests.iter().map(|test| test.name.clone()).collect();
        self.accel == Accel::Tcg && names.len() <= WARM_TESTS && !compliance::is_needed(&names)
    }

    /// What is shared with other set-ups.
    pub fn context(&self) -> &provision::Context {
        &self.host.context
    }

    /// QEMU's command without arguments, and its version: all that tells it from others.
    pub fn qemu(&self) -> String {
        let command = self.host.qemu.command();
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let stamps: Vec<_> = words
            .filter_map(|word| answers::stamp_of(Path::new(word)))
            .collect();
        format!(
            "{} {} {}",
            self.host.qemu.version,
            stamps.join(" "),
            shell_line(&command)
        )
    }

    /// QEMU's command without arguments.
    pub fn qemu_command(&self) -> Command {
        self.host.qemu.command()
    }

    /// What the tests run on, as far as it is known before the guest is up.
    pub fn environment(&self, args: &VmArgs, request: &Request) -> Environment {
        Environment {
            release: Some(self.kernel.release.clone()),
            fingerprint: Some(self.kernel.fingerprint.clone()),
            accel: Some(self.accel),
            accel_reason: self.accel_reason.clone(),
            baseline: self.is_known().then(|| self.kernel.baseline_name()),
            ..self.host.environment(args, request)
        }
    }

    /// Seconds that a test may take on this kernel and in its environment, where it may take `timeout` elsewhere: KASAN makes each access
    /// of the kernel's a call.
    pub fn timeout(&self, args: &VmArgs, timeout: u64) -> u64 {
        let environment = args.environment.as_ref();
        let slower = environment.and_then(|it| it.slower).unwrap_or(1);
        let checked = match self.kernel.config.has("KASAN") {
            true => 8,
            false => 1,
        };
        timeout.saturating_mul(slower).saturating_mul(checked)
    }

    /// What is known of this kernel, if it is one of those that baselines name. (The recipe of a user's own tree is the nearest one, and
    /// what is known of another version says nothing.)
    pub fn baseline(&self, args: &VmArgs, baselines: &Baselines) -> Option<Baseline> {
        let patches: Vec<_> = self
            .kernel
            .patches
            .iter()
            .map(|patch| patch.name.clone())
            .collect();
        self.is_known().then(|| {
            let kernel = &self.kernel.baseline;
            let baseline = match &args.environment {
                Some(it) => baselines.of_environment(kernel, it),
                None => baselines.of(kernel),
            };
            baseline
                .patched(&patches)
                .configured(self.kernel.config.clone())
                .lacking(self.not_loaded.clone())
        })
    }

    /// Whether the kernel is of the version that its recipe is named after.
    fn is_known(&self) -> bool {
        let rest = self.kernel.release.strip_prefix(&self.kernel.name);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// The kernel's configuration, and which of its modules are not in the guest.
    fn config(&self) -> String {
        let left_out = self.not_loaded.iter().map(|why| format!("# {why}\n"));
        self.kernel.config.text() + &left_out.collect::<String>()
    }

    /// The modules that PID 1 loads before the driver, and the list of them.
    fn loaded(&self) -> Vec<(String, Content)> {
        let mut entries = Vec::new();
        let mut list = String::new();
        let mut add = |name: &str, file: &Path, parameters: &str| {
            let path = format!("lib/{name}.ko");
            list += format!("/{path} {parameters}").trim_end();
            list.push('\n');
            entries.push((path, Content::File(file.to_owned())));
        };
        for module in &self.modules {
            add(&module.name, &module.file, &module.parameters);
        }
        if let Some(file) = &self.driver.mem2mem {
            add("v4l2_mem2mem", file, "");
        }
        if !entries.is_empty() {
            let list_path = MODULES_PATH.trim_start_matches('/').to_owned();
            entries.push((list_path, Content::Bytes(list.into_bytes())));
        }
        entries
    }

    /// The guest's root, with `additions` in it.
    ///
    /// # Errors
    /// When a part of it cannot be had.
    pub fn root(
        &self,
        plan: &Plan,
        additions: Vec<(String, Content)>,
    ) -> Result<Vec<(String, Content)>> {
        let mut entries = vec![
            ("bin", Content::Directory),
            ("etc", Content::Directory),
            ("lib", Content::Directory),
            ("init", Content::Program(self.host.programs.init.clone())),
            (
                "bin/pinbed-guest",
                Content::Program(self.host.programs.tests.clone()),
            ),
            ("lib/pinbed.ko", Content::File(self.driver.module.clone())),
            ("lib/ext4.img.gz", Content::File(self.host.disk.clone())),
            (
                CONFIG_PATH.trim_start_matches('/'),
                Content::Bytes(self.config().into_bytes()),
            ),
            (
                PLAN_PATH.trim_start_matches('/'),
                Content::Bytes(serde_json::to_vec(plan)?),
            ),
        ];
        if matches!(plan, Plan::Shell(_)) {
            let context = provision::Context::of_user()?;
            let busybox = packages::provide(&context, packages::BUSYBOX)?;
            entries.push(("bin/busybox", Content::Program(busybox)));
        }
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|(name, content)| (name.to_owned(), content))
            .collect();
        entries.extend(self.loaded());
        entries.extend(additions);
        entries.extend(compliance_for(plan)?);
        if self.trace.is_some() {
            let path = WANTED_PATH.trim_start_matches('/').to_owned();
            let wanted = trace::wanted(self.kernel.image_has_symbols());
            entries.push((path, Content::Bytes(serde_json::to_vec(&wanted)?)));
        }
        Ok(entries)
    }

    /// A machine that boots and whose guest carries out `plan`. Writes its initramfs, with `additions` in it.
    ///
    /// # Errors
    /// When the initramfs cannot be written.
    pub fn machine(
        &self,
        args: &VmArgs,
        files: &Files,
        plan: &Plan,
        additions: Vec<(String, Content)>,
    ) -> Result<Machine> {
        self.machine_from(args, files, plan, Start::Cold, additions)
    }

    /// The same, with another start.
    ///
    /// # Errors
    /// As [`Setup::machine`].
    pub fn machine_from(
        &self,
        args: &VmArgs,
        files: &Files,
        plan: &Plan,
        start: Start,
        additions: Vec<(String, Content)>,
    ) -> Result<Machine> {
        let machine = self.machine_of(args, files, plan, start);
        // A saved guest has its root.
        let entries = match machine.start {
            Start::Warm(..) => Vec::new(),
            Start::Cold | Start::Bare => self.root(plan, additions)?,
        };
        initramfs::write(&machine.initramfs, &entries)
            .context("cannot write the guest's initramfs")?;
        Ok(machine)
    }

    /// The same, without an initramfs yet.
    pub fn machine_of(&self, args: &VmArgs, files: &Files, plan: &Plan, start: Start) -> Machine {
        // What the plan of a saved guest needs is not known.
        let hotplug = !matches!(start, Start::Cold)
            || HOTPLUG_GROUPS.iter().any(|group| plan.has_group(group));
        Machine {
            device: self.host.programs.device.clone(),
            kernel: self.kernel.image.clone(),
            driver: self.driver.module.clone(),
            symbols: Arc::default(),
            has_dwarf: self.kernel.config.has("DEBUG_INFO"),
            initramfs: files.initramfs(),
            accel: self.accel,
            memory: args.memory,
            cpus: args.cpus,
            parallel: args.environment.as_ref().is_some_and(|it| it.parallel),
            cpu: (args.environment.as_ref()).and_then(|it| it.cpu.clone()),
            append: args.append.clone(),
            start,
            hotplug,
            shell: matches!(plan, Plan::Shell(_)),
            trace: self.trace.is_some(),
            faults: args.faults.clone(),
            release: self.kernel.release.clone(),
            arguments: self.arguments.clone(),
        }
    }
}

/// The kernel's modules that a guest loads: for the driver, for the tests, and for what `asked_for` names by its symbols.
fn modules(
    context: &provision::Context,
    kernel: &Kernel,
    driver: &Driver,
    asked_for: &[&str],
) -> Result<Vec<Module>, provision::Error> {
    let built = driver.mem2mem.iter().chain([&driver.module]);
    let built: Vec<_> = built.cloned().collect();
    kernel::modules(context, kernel, &built, asked_for)
}

/// The names of modules.
fn module_names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|module| module.name.as_str()).collect()
}

impl fmt::Display for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let qemu = shell_line(&self.host.qemu.command());
        let baseline = if self.is_known() {
            &self.kernel.baseline
        } else {
            "none"
        };
        let Kernel { release, image, .. } = &self.kernel;
        writeln!(f, "kernel    {release}")?;
        writeln!(f, "          {}", image.display())?;
        writeln!(f, "          {}", self.kernel.objects().display())?;
        if !self.modules.is_empty() {
            writeln!(f, "modules   {}", module_names(&self.modules).join(" "))?;
        }
        writeln!(f, "driver    {}", self.driver.module.display())?;
        writeln!(
            f,
            "QEMU      {} ({})",
            self.host.qemu.version,
            qemu.trim_end()
        )?;
        write!(f, "machine   {}", self.accel.name())?;
        if let Some(why) = &self.accel_reason {
            write!(f, ", not KVM: {why}")?;
        }
        write!(f, "\nbaseline  {baseline}")
    }
}

/// v4l2-compliance for the guest's file system, if a test of the plan needs it: half the size of all else in there.
fn compliance_for(plan: &Plan) -> Result<Vec<(String, Content)>> {
    let needed = matches!(plan, Plan::Tests { names, .. } if compliance::is_needed(names));
    if !needed {
        return Ok(Vec::new());
    }
    let mut place = PathBuf::from(COMPLIANCE_PATH.trim_start_matches('/'));
    let files = compliance::provide(&provision::Context::of_user()?)?;
    let mut entries: Vec<_> = files
        .into_iter()
        .filter_map(|file| {
            let name = place.join(file.file_name()?).display().to_string();
            Some((name, Content::Program(file)))
        })
        .collect();
    // The directories above them, the lowest first.
    while !place.as_os_str().is_empty() {
        entries.insert(0, (place.display().to_string(), Content::Directory));
        place.pop();
    }
    Ok(entries)
}

/// A guest that is ready to be booted.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    qemu: Qemu,
    directory: Directory,
    trace: Option<trace::Collector>,
}

impl Guest {
    /// What [`boot::run`] takes.
    pub fn parts(&self) -> (Machine, Command, Files) {
        (
            self.machine.clone(),
            self.qemu.command(),
            self.directory.files().clone(),
        )
    }

    /// How it starts.
    pub fn start(&self) -> StartedBy {
        match self.machine.start {
            Start::Warm(..) => StartedBy::Warm,
            Start::Cold | Start::Bare => StartedBy::Cold,
        }
    }

    /// Removes the saved state that it started from.
    pub fn clear_start(&self) {
        if let Start::Warm(saved, _) = &self.machine.start {
            saved.clear();
        }
    }

    /// After its end: has its trace taken in, and says where its files are, if they are kept.
    pub fn over(&self) {
        if let Some(collector) = &self.trace {
            collector.add(&self.machine, self.directory.files());
        }
        self.directory.tell();
    }
}

/// A run's directory, removed when this is dropped unless it is to be kept.
#[derive(Debug)]
pub struct Directory {
    files: Files,
    scratch: Scratch,
}

impl Directory {
    /// A new directory for a run.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(keep: bool) -> Result<Self> {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() + "/pinbed-kept-123456".len() > DIRECTORY_MAX {
            parent = PathBuf::from("/tmp");
        }
        let scratch = Scratch::new(&parent, keep).with_context(|| {
            format!(
                "cannot create a directory for the run in {}",
                parent.display()
            )
        })?;
        Ok(Directory {
            files: Files::new(scratch.path()),
            scratch,
        })
    }

    /// The run's files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Says where the files are, if they are kept.
    pub fn tell(&self) {
        if self.scratch.is_kept() {
            say!(
                "pinbed: the run's files are kept in {}",
                self.files.directory().display()
            );
        }
    }
}
