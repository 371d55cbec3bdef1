// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who runs the guest's code: KVM where it is shown to work, TCG elsewhere.
//!
//! That /dev/kvm is there and opens proves little: in some virtual machines it does, and the guest stops at its first steps. So a ROM of
//! ours is run the way the guest will be, and has to get through real mode, protected mode and long mode.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::{Process, Terminal};
use crate::provision::Context;
use crate::provision::qemu::Qemu;

/// How long the ROM may take. It takes a fraction of a second where KVM works.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the ROM writes to the exit port.
const ALIVE: i32 = 0x10;

/// Who runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accel {
    /// For QEMU's `-accel`.
    pub fn qemu_accel(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        }
    }

    /// For QEMU's `-cpu`. Under TCG a fixed model: the same guest on every host, an Intel one so that Linux takes the TSC as constant and
    /// does not measure it, without AVX because its state is slow to switch, and with 1 GiB pages because they are quick to map.
    pub fn qemu_cpu(self) -> &'static str {
        match self {
            Accel::Kvm => "host",
            Accel::Tcg => "Nehalem,+pdpe1gb",
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        }
    }
}

/// Whether KVM runs a guest here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kvm {
    /// It does.
    Works,
    /// It does not, for this reason.
    Fails(String),
}

/// What the last probe found, and what that holds for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    boot: String,
    qemu: String,
    kvm: Kvm,
}

/// Finds out whether KVM runs a guest under this QEMU. The answer is remembered until the host boots or QEMU changes.
pub fn probe(qemu: &Qemu, context: &Context) -> Kvm {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        // Not remembered: a new group or a loaded module shows at once.
        return Kvm::Fails(match error.kind() {
            ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            ErrorKind::PermissionDenied => {
                "you may not open /dev/kvm; join the group kvm".to_owned()
            }
            _ => format!("/dev/kvm does not open: {error}"),
        });
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let identity = format!("{} {}", qemu.program.display(), qemu.version);
    let entry = context.cache.entry("kvm", "probe");
    if let Some(known) = entry.record::<Remembered>()
        && known.boot == boot
        && known.qemu == identity
    {
        return known.kvm;
    }
    let kvm = match run_rom(qemu.command(), Accel::Kvm) {
        Ok(kvm) => kvm,
        Err(error) => return Kvm::Fails(format!("the probe of KVM could not be run: {error}")),
    };
    let remembered = Remembered {
        boot,
        qemu: identity,
        kvm,
    };
    if let Err(error) = entry
        .lock(&context.progress)
        .and_then(|entry| entry.publish(&remembered))
    {
        log::warn!("cannot remember whether KVM works: {error}");
    }
    remembered.kvm
}

fn run_rom(qemu: Command, accel: Accel) -> std::io::Result<Kvm> {
    let directory = tempfile::tempdir()?;
    let rom = directory.path().join("rom");
    fs::write(&rom, rom::bytes())?;
    run(qemu, &rom, accel)
}

fn run(mut qemu: Command, rom: &Path, accel: Accel) -> std::io::Result<Kvm> {
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-machine",
        "q35",
        "-m",
        "64M",
    ]);
    qemu.args(["-accel", accel.qemu_accel(), "-cpu", accel.qemu_cpu()]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(rom);
    let (stderr, theirs) = std::io::pipe()?;
    qemu.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(theirs);
    let mut process = Process::spawn(&mut qemu, vec![], Terminal::Apart)?;
    // Else it holds a writing end of the pipe, which then never ends.
    drop(qemu);

    let (to, lines) = channel();
    thread::spawn(move || {
        BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| to.send(line))
    });
    let begin = Instant::now();
    let mut last = String::new();
    loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
            // QEMU stops the guest, but does not end.
            Ok(line) if line.contains("KVM internal error") => {
                return Ok(Kvm::Fails(
                    "/dev/kvm opens, but KVM stops a small guest with an internal error".to_owned(),
                ));
            }
            Ok(line) => last = line,
            Err(RecvTimeoutError::Timeout) => {
                return Ok(Kvm::Fails(format!(
                    "a small guest did not finish within {} s",
                    PATIENCE.as_secs()
                )));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = process.reap()?;
    // isa-debug-exit makes it odd, so that it cannot be taken for a clean end.
    Ok(match status.code() {
        Some(code) if code == ALIVE << 1 | 1 => Kvm::Works,
        _ if last.is_empty() => Kvm::Fails(format!(
            "a small guest ended QEMU with {}",
            crate::watch::describe(status)
        )),
        _ => Kvm::Fails(
            last.rsplit_once("qemu-system-x86_64: ")
                .map_or(last.as_str(), |(_, said)| said)
                .to_owned(),
        ),
    })
}

/// The ROM.
mod rom {
    use std::arch::global_asm;

    /// QEMU takes no smaller one. Its last 64 KiB lie below 1 MiB too, at F000:0000, and its last 16 bytes are where the CPU starts.
    const SIZE: usize = 0x10000;
    const RESET_VECTOR: usize = SIZE - 16;

    global_asm!(
        ".pushsection .rodata.pinbed_rom, \"a\"",
        ".globl pinbed_rom_begin",
        ".globl pinbed_rom_end",
        "pinbed_rom_begin:",
        // Real mode, at F000:0000.
        ".code16",
        "cli",
        "lgdtl %cs:0xe0",
        "movl %cr0, %eax",
        "orl $1, %eax",
        "movl %eax, %cr0",
        "ljmpl $0x08, $0xf0020",
        // Protected mode. Maps the first 2 MiB: PML4 at 1000, PDPT at 2000, PD at 3000.
        ".org pinbed_rom_begin + 0x20",
        ".code32",
        "movw $0x10, %ax",
        "movw %ax, %ds",
        "movw %ax, %es",
        "movw %ax, %ss",
        "xorl %eax, %eax",
        "movl $0x1000, %edi",
        "movl $0xc00, %ecx",
        "cld",
        "rep stosl",
        "movl $0x2003, 0x1000",
        "movl $0x3003, 0x2000",
        "movl $0x83, 0x3000",
        "movl $0x1000, %eax",
        "movl %eax, %cr3",
        // CR4.PAE, EFER.LME, CR0.PG
        "movl %cr4, %eax",
        "orl $0x20, %eax",
        "movl %eax, %cr4",
        "movl $0xc0000080, %ecx",
        "rdmsr",
        "orl $0x100, %eax",
        "wrmsr",
        "movl %cr0, %eax",
        "orl $0x80000000, %eax",
        "movl %eax, %cr0",
        "ljmpl $0x18, $0xf00a0",
        // Long mode: done.
        ".org pinbed_rom_begin + 0xa0",
        ".code64",
        "movb ${alive}, %al",
        "outb %al, $0xf4",
        "2: hlt",
        "jmp 2b",
        // The GDT: code 08 and data 10 of 32 bits, code 18 of 64.
        ".org pinbed_rom_begin + 0xc0",
        ".quad 0",
        ".quad 0x00cf9b000000ffff",
        ".quad 0x00cf93000000ffff",
        ".quad 0x00af9b000000ffff",
        ".word 31",
        ".long 0xf00c0",
        "pinbed_rom_end:",
        ".popsection",
        alive = const super::ALIVE,
        options(att_syntax)
    );

    unsafe extern "C" {
        static pinbed_rom_begin: u8;
        static pinbed_rom_end: u8;
    }

    pub fn bytes() -> Vec<u8> {
        let (begin, end) = (&raw const pinbed_rom_begin, &raw const pinbed_rom_end);
        // SAFETY: both labels are in one section, in this order, and everything between them is initialised and never written.
        let code = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
        let mut rom = vec![0; SIZE];
        rom[..code.len()].copy_from_slice(code);
        // ljmp f000:0000
        rom[RESET_VECTOR..][..5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
        rom
    }
}
