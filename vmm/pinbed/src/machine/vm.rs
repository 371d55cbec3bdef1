// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual machine: the device process, and QEMU with the guest.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pinbed_abi::fault::Fault;
use pinbed_abi::report::Plan;
use pinbed_abi::{report, shell, trace, wire};
use serde_json::{Value, json};

use crate::kernel::symbols::{self, Symbols};
use crate::machine::accel::Accel;
use crate::machine::events::Sources;
use crate::machine::memory::Memory;
use crate::machine::process::Process;
use crate::machine::saved::Saved;
use crate::machine::tsc;
use crate::machine::watch::describe;
use crate::text::printable;

/// How long the device process may take until it listens. It takes milliseconds.
const DEVICE_START: Duration = Duration::from_secs(10);

/// What the kernel is told, whoever it is. With earlycon a panic is seen however early it is; `quiet` keeps both consoles from being
/// slow. The second line is there because start-up under emulation is slow: one serial port to probe
/// instead of four, no legacy pseudo-terminals, and fewer DMA-API debug entries to begin with (the kernel adds more when it needs them).
const KERNEL: &str = "console=ttyS0 earlycon=uart8250,io,0x3f8 panic=-1 cma=64M \
                      8250.nr_uarts=1 pty.legacy_count=0 dma_debug_entries=8192 \
                      secretmem.enable=1 memhp_default_state=online_movable";
/// The kernel would set 64 MiB aside for bounce buffers when memory can be added above 4 GiB, and no device here needs them. It counts even
/// where a later word asks for them.
const NO_BOUNCE: &str = "swiotlb=noforce";

/// Memory in MiB of a NUMA node of its own that the guest puts in ZONE_MOVABLE whole and may take offline: one memory block of x86.
/// Nothing is allocated there unless it asks for that node, or the first one is full.
const MOVABLE: u64 = 128;

/// A device that a machine has or has had. Its place on the root bus is a port: on the bus itself no device can come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The nth in the first place, from 1.
    First(u32),
    /// The nth in the second place.
    Second(u32),
}

impl Unit {
    /// The id in QEMU of the port that it is plugged into.
    fn slot(self) -> &'static str {
        match self {
            Unit::First(_) => "pinbed-slot",
            Unit::Second(_) => "pinbed-slot2",
        }
    }

    /// The one that comes after it in the same place.
    pub fn next(self) -> Self {
        match self {
            Unit::First(count) => Unit::First(count + 1),
            Unit::Second(count) => Unit::Second(count + 1),
        }
    }

    /// Its id in QEMU.
    pub fn id(self) -> &'static str {
        match self {
            Unit::First(_) => DEVICE,
            Unit::Second(_) => SECOND,
        }
    }

    /// The id in QEMU of the connection to its process.
    pub fn chardev(self) -> String {
        match self {
            Unit::First(count) => format!("device{count}"),
            Unit::Second(count) => format!("second{count}"),
        }
    }
}

/// How a guest comes up.
#[derive(Clone, Debug)]
pub enum Start {
    /// It boots, with the device in the machine.
    Cold,
    /// It boots without the device, to be saved.
    Bare,
    /// From a saved state, with this plan.
    Warm(Saved, Plan),
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The device's program.
    pub device: PathBuf,
    /// bzImage, or vmlinux with a PVH entry.
    pub kernel: PathBuf,
    /// The driver's module.
    pub driver: PathBuf,
    /// The symbols of both, as far as they have been read.
    pub symbols: Arc<Known>,
    /// Whether kernel and driver are built with DWARF.
    pub has_dwarf: bool,
    /// The guest's root.
    pub initramfs: PathBuf,
    /// Who runs the guest's code.
    pub accel: Accel,
    /// The guest's memory in MiB.
    pub memory: u64,
    /// The guest's CPUs.
    pub cpus: u8,
    /// Whether they run at the same time under TCG, too.
    pub parallel: bool,
    /// The model of CPU under TCG, in the place of the default.
    pub cpu: Option<String>,
    /// What is added to the kernel's command line.
    pub append: String,
    /// How its guest comes up.
    pub start: Start,
    /// The device can be taken out, and another be put in.
    pub hotplug: bool,
    /// Whether it has the port of `pinbed shell`.
    pub shell: bool,
    /// Whether guest and device write traces.
    pub trace: bool,
    /// How the device misbehaves.
    pub faults: Vec<Fault>,
    /// What `uname -r` says.
    pub release: String,
    /// More arguments for QEMU.
    pub arguments: Vec<String>,
}

impl Machine {
    /// Everything that the machine is made of, but for what differs from run to run: paths of the run, descriptors, and what is measured.
    pub fn description(&self) -> String {
        let nowhere = Files::new(Path::new("/"));
        arguments(self, &nowhere, &[0, 0], None).join("\n")
    }

    /// Sizes in bytes of its blocks of memory: the one that the guest starts with, and the movable one.
    fn memory_sizes(&self) -> [u64; 2] {
        [self.memory << 20, MOVABLE << 20]
    }

    /// Adds source lines to the places that lines of the kernel's log name, if kernel and driver have DWARF.
    pub fn decode(&self, lines: &mut [String]) {
        let is_place = |line: &String| line.contains("+0x");
        if self.has_dwarf && lines.iter().any(is_place) {
            let driver = &self.symbols.driver;
            let driver = driver.get_or_init(|| Symbols::of(&self.driver));
            symbols::decode(lines, self.kernel_symbols(), driver.as_ref());
        }
    }

    /// The kernel's symbols, if its file has any.
    pub fn kernel_symbols(&self) -> Option<&Symbols> {
        let kernel = &self.symbols.kernel;
        kernel.get_or_init(|| Symbols::of(&self.kernel)).as_ref()
    }
}

/// Symbols of a machine's programs, read once, when they are first asked for.
#[derive(Debug, Default)]
pub struct Known {
    kernel: OnceLock<Option<Symbols>>,
    driver: OnceLock<Option<Symbols>>,
}

/// A run's directory.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// The files of a run in this directory, which exists.
    pub fn new(directory: &Path) -> Self {
        Files {
            directory: directory.to_owned(),
        }
    }
    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
    /// Where a device listens.
    pub fn socket(&self, unit: Unit) -> PathBuf {
        self.directory.join(format!("{}.sock", unit.chardev()))
    }
    /// Where the device tells debuggers what it holds.
    pub fn inspect(&self) -> PathBuf {
        self.directory.join("inspect.sock")
    }
    /// Where QEMU listens for a debugger.
    pub fn gdb(&self) -> PathBuf {
        self.directory.join("gdb.sock")
    }
    /// The guest's root.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }
    /// What the guest's console showed.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }
    /// What the guest reported.
    pub fn report(&self) -> PathBuf {
        self.directory.join("report.jsonl")
    }
    /// QEMU's command line.
    pub fn command(&self) -> PathBuf {
        self.directory.join("qemu.command")
    }
    /// What QEMU wrote to standard error.
    pub fn qemu_log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }
    /// What the guest traced.
    pub fn trace(&self) -> PathBuf {
        self.directory.join("trace.guest")
    }
    /// What the device traced.
    pub fn device_trace(&self) -> PathBuf {
        self.directory.join("trace.device")
    }
    /// What the device wrote to standard error.
    pub fn device_log(&self) -> PathBuf {
        self.directory.join("device.log")
    }
}

/// A machine that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    /// QEMU; before the device, so that it is dropped first.
    pub qemu: Process,
    /// The device process.
    pub device: Process,
    /// The guest's memory.
    pub memory: Memory,
}

/// Starts the device process and QEMU; `qemu` is the command without arguments of ours.
///
/// # Errors
/// When one of them cannot be started, the device does not come to listen, or the memory of a warm start is damaged.
pub fn start(machine: &Machine, qemu: Command, files: &Files) -> Result<(Vm, Sources)> {
    let device = start_device(machine, files, Unit::First(1))?;
    let started = start_qemu(machine, qemu, files)?;
    let mut console_log = create(&files.console())?;
    let mut console_before = Vec::new();
    // While QEMU starts.
    if let Start::Warm(saved, _) = &machine.start {
        saved
            .fill(&started.memory)
            .context("cannot put the saved memory in place")?;
        console_before = saved.console().context("cannot read the saved console")?;
        console_log.write_all(&console_before)?;
    }
    let sources = Sources {
        report: started.report,
        report_log: create(&files.report())?,
        console: started.console,
        console_before,
        console_log,
        shell: started.shell,
        qmp: started.qmp,
        qemu: started.qemu.pid(),
        device: device.pid(),
    };
    let vm = Vm {
        qemu: started.qemu,
        device,
        memory: started.memory,
    };
    Ok((vm, sources))
}

/// QEMU that has just been started, and our ends of its connections.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub qemu: Process,
    /// The guest's memory.
    pub memory: Memory,
    /// What the guest is told of the frequency of its time stamp counter.
    pub tsc_khz: Option<u64>,
    /// The report port.
    pub report: UnixStream,
    /// The console.
    pub console: UnixStream,
    /// The QMP connection.
    pub qmp: UnixStream,
    /// The port of `pinbed shell`, if there is one.
    pub shell: Option<UnixStream>,
}

/// Starts QEMU; `qemu` is the command without arguments of ours. The device listens already if it is to be in the machine.
///
/// # Errors
/// When it cannot be started.
pub fn start_qemu(machine: &Machine, mut qemu: Command, files: &Files) -> Result<Started> {
    let memory = Memory::new(&machine.memory_sizes()).context("cannot make the guest's memory")?;
    let mut fds = memory.descriptors()?;
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let tsc_khz = match machine.accel {
        Accel::Kvm => None,
        Accel::Tcg => tsc::khz(),
    };
    qemu.args(arguments(machine, files, &numbers, tsc_khz));
    let mut connect = |id: &str| -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        qemu.arg("-chardev")
            .arg(format!("socket,id={id},fd={}", theirs.as_raw_fd()));
        fds.push(theirs.into());
        Ok(ours)
    };
    let (report, qmp, console) = (connect("report")?, connect("qmp")?, connect("console")?);
    let shell = match machine.shell {
        true => Some(connect("shell")?),
        false => None,
    };
    qemu.args(&machine.arguments);
    qemu.stdin(Stdio::null()).stdout(Stdio::null());
    fs::write(files.command(), shell_line(&qemu)).context("cannot write to the run's directory")?;
    qemu.stderr(create(&files.qemu_log())?);
    let program = qemu.get_program().to_owned();
    let qemu = Process::spawn(&mut qemu, fds)
        .with_context(|| format!("cannot start QEMU ({})", program.display()))?;
    Ok(Started {
        qemu,
        memory,
        tsc_khz,
        report,
        console,
        qmp,
        shell,
    })
}

/// Starts the process of a device. Debuggers ask, and traces follow, the one in the first place.
///
/// # Errors
/// When it cannot be started, or does not come to listen.
pub fn start_device(machine: &Machine, files: &Files, unit: Unit) -> Result<Process> {
    let program = &machine.device;
    let socket = files.socket(unit);
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(&socket);
    // Tests delay jobs, fail them, and have the device die.
    command.arg("--allow-sabotage");
    for fault in &machine.faults {
        command.arg("--fault").arg(fault.to_string());
    }
    if let Unit::First(_) = unit {
        command.arg("--inspect").arg(files.inspect());
        if machine.trace {
            command.arg("--trace").arg(files.device_trace());
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(append(&files.device_log())?);
    let mut device = Process::spawn(&mut command, vec![])
        .with_context(|| format!("cannot start the device ({})", program.display()))?;
    let begin = Instant::now();
    // The socket's file appears when the device listens.
    while !socket.exists() {
        if let Some(status) = device.ended()? {
            let said = fs::read_to_string(files.device_log()).unwrap_or_default();
            bail!(
                "the device process ended before it listened ({}): {}",
                describe(status),
                said.trim()
            );
        }
        if begin.elapsed() > DEVICE_START {
            bail!(
                "the device process does not listen after {} s",
                DEVICE_START.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(1));
    }
    // What it says before it serves, such as how the host's kernel cannot confine it, is the same for each guest.
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let said = fs::read_to_string(files.device_log()).unwrap_or_default();
        for line in said.lines() {
            say!("pinbed: the device: {}", printable(line));
        }
    });
    Ok(device)
}

/// QEMU's arguments, but for those of the connections. The guest's memory comes by these descriptors; its time stamp counter has this
/// frequency, if that is known.
fn arguments(
    machine: &Machine,
    files: &Files,
    memory_fds: &[RawFd],
    tsc_khz: Option<u64>,
) -> Vec<String> {
    let (memory, cpus) = (machine.memory, machine.cpus);
    let port = report::PORT_NAME;
    // Nothing that the guest does not need: each device costs start-up time.
    let machine_type = "q35,sata=off,smbus=off,smm=off,i8042=off,vmport=off,hpet=off";
    let mut arguments = vec![
        "-nodefaults".to_owned(),
        "-no-user-config".to_owned(),
        "-no-reboot".to_owned(),
    ];
    let mut option = |name: &str, value: String| arguments.extend([format!("-{name}"), value]);
    option("display", "none".to_owned());
    option("machine", machine_type.to_owned());
    // What describes the plugging of PCI devices takes the kernel's ACPI interpreter 20 ms.
    if !machine.hotplug {
        option(
            "global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".to_owned(),
        );
    }
    // Shared, so that the device process sees the guest's memory.
    for ((id, size), fd) in ["memory", "movable"]
        .iter()
        .zip(machine.memory_sizes())
        .zip(memory_fds)
    {
        let backend = "memory-backend-file,share=on";
        let path = format!("/proc/self/fd/{fd}");
        option(
            "object",
            format!("{backend},id={id},size={size},mem-path={path}"),
        );
    }
    option(
        "m",
        format!("{memory}M,slots=1,maxmem={}M", memory + MOVABLE),
    );
    option("numa", "node,nodeid=0,memdev=memory".to_owned());
    option("numa", "node,nodeid=1".to_owned());
    option("device", dimm().to_string());
    option("smp", cpus.to_string());
    option(
        "accel",
        machine.accel.qemu_accel(machine.parallel).to_owned(),
    );
    option(
        "cpu",
        machine.accel.qemu_cpu(machine.cpu.as_deref()).to_owned(),
    );
    option("kernel", machine.kernel.display().to_string());
    option("initrd", machine.initramfs.display().to_string());
    let frequency = tsc_khz.map(|khz| format!(" tsc_early_khz={khz}"));
    option(
        "append",
        format!(
            "{KERNEL} {}{}{}{} quiet {}",
            match machine.append.contains("swiotlb=") {
                true => "",
                false => NO_BOUNCE,
            },
            machine.accel.kernel_arguments(),
            frequency.unwrap_or_default(),
            reserved(memory),
            machine.append
        ),
    );
    let unit = Unit::First(1);
    let socket = format!(
        "socket,id={},path={}",
        unit.chardev(),
        doubled(&files.socket(unit))
    );
    let first = match machine.hotplug {
        true => {
            for (place, chassis) in [(unit, 1), (Unit::Second(1), 2)] {
                let slot = place.slot();
                option(
                    "device",
                    format!("pcie-root-port,id={slot},chassis={chassis}"),
                );
            }
            device_in_slot(unit)
        }
        false => device(unit),
    };
    match machine.start {
        Start::Cold => {
            option("chardev", socket);
            option("device", first.to_string());
        }
        Start::Bare => {}
        Start::Warm(..) => {
            option("chardev", socket);
            option("incoming", "defer".to_owned());
        }
    }
    option("device", "virtio-serial-pci".to_owned());
    option(
        "device",
        format!("virtserialport,chardev=report,name={port}"),
    );
    if machine.shell {
        let port = shell::PORT_NAME;
        option(
            "device",
            format!("virtserialport,chardev=shell,name={port}"),
        );
    }
    if machine.trace {
        let (port, path) = (trace::PORT_NAME, doubled(&files.trace()));
        option("chardev", format!("file,id=trace,path={path}"));
        option(
            "device",
            format!("virtserialport,chardev=trace,name={port}"),
        );
    }
    option("qmp", "chardev:qmp".to_owned());
    option("serial", "chardev:console".to_owned());
    if let Start::Warm(..) = machine.start {
        // Until the device is in.
        arguments.push("-S".to_owned());
    }
    arguments
}

/// What the guest's kernel does not manage, in the middle of its memory: 4 MiB without struct pages, which the driver exports, and
/// 16 MiB of persistent memory (/dev/pmem0). The ends of memory belong to firmware, kernel and initramfs; from 2 GiB on may be no memory but
/// devices.
fn reserved(memory: u64) -> String {
    // Only whole pieces of 2 MiB go without struct pages.
    let start = (memory / 2).min(1024) / 2 * 2;
    let pmem = start + 4;
    format!(" memmap=4M${start}M pinbed.carveout=4M@{start}M memmap=16M!{pmem}M")
}

/// The device's id in QEMU.
pub const DEVICE: &str = "pinbed";

/// The id in QEMU of the second device, which is there only while a test asks for it.
pub const SECOND: &str = "pinbed2";

/// The movable memory's id in QEMU.
pub const DIMM: &str = "pinbed-dimm";

/// The movable memory, as QEMU's -device and `device_add` take it.
pub fn dimm() -> Value {
    json!({ "driver": "pc-dimm", "id": DIMM, "memdev": "movable", "node": 1 })
}

/// A device as QEMU's -device and `device_add` take it, but for the bus.
fn device(unit: Unit) -> Value {
    json!({
        "driver": "vhost-user-test-device-pci",
        "id": unit.id(),
        "chardev": unit.chardev(),
        "virtio-id": wire::VIRTIO_ID,
        "num_vqs": wire::QUEUE_COUNT,
        "vq_size": wire::QUEUE_SIZE,
        "config_size": size_of::<wire::Config>(),
    })
}

/// The same, for the slot in which it comes and goes.
pub fn device_in_slot(unit: Unit) -> Value {
    let mut device = device(unit);
    device["bus"] = unit.slot().into();
    device
}

/// A path in an option of QEMU's, which has commas between its parts.
pub fn doubled(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn append(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

/// The command as a shell would take it; its descriptors are ours.
pub fn shell_line(command: &Command) -> String {
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<_> = ["env".to_owned()]
        .into_iter()
        .chain(environment)
        .chain(words.map(|word| word.display().to_string()))
        .collect();
    // Fails only for a NUL, which no argument can have.
    let line = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default();
    format!("{line}\n")
}
