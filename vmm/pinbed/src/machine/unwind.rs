// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Backtraces of a guest that no longer answers: from its registers and its stacks, by frame pointers, as QEMU's monitor shows them. Needs
//! nothing of the guest, and works in the middle of a loop with interrupts off.

/// How many frames of a CPU are followed.
pub const FRAMES: usize = 40;
/// Where the kernel's half of the address space begins.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// A CPU as `info registers -a` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub index: usize,
    /// Instruction pointer.
    pub rip: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// Whether it waits for an interrupt.
    pub halted: bool,
}

impl Cpu {
    /// Whether it runs in the kernel.
    pub fn in_kernel(&self) -> bool {
        self.rip >= KERNEL
    }
}

/// The CPUs in a register dump.
pub fn cpus(registers: &str) -> Vec<Cpu> {
    let mut all: Vec<Cpu> = Vec::new();
    for line in registers.lines() {
        if let Some(index) = line.trim().strip_prefix("CPU#") {
            all.push(Cpu {
                index: index.parse().unwrap_or(all.len()),
                rip: 0,
                rbp: 0,
                halted: false,
            });
        }
        let Some(cpu) = all.last_mut() else { continue };
        let value = |name: &str| {
            let rest = &line[line.find(name)? + name.len()..];
            u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()
        };
        cpu.rip = value("RIP=").unwrap_or(cpu.rip);
        cpu.rbp = value("RBP=").unwrap_or(cpu.rbp);
        cpu.halted |= line.contains("HLT=1");
    }
    all
}

/// The frame at a frame pointer, of two words as the monitor's `x /2gx` shows them: the caller's frame pointer, and the address to which
/// the function returns. Nothing where the chain ends.
pub fn frame(rbp: u64, shown: &str) -> Option<(u64, u64)> {
    let mut words = shown
        .split_once(':')?
        .1
        .split_whitespace()
        .map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (next, address) = (words.next()??, words.next()??);
    // Stacks grow down, so a caller's frame is above.
    (address >= KERNEL && next > rbp).then_some((next, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_frames_are_read_as_qemu_shows_them() {
        let dump = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=1 RCX=2 RDX=3\r\nRSI=0 RDI=0 RBP=ffffc90000013e80 RSP=ffffc90000013e80\r\n\
                    RIP=ffffffff81a0000b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\r\nCPU#1\r\nRBP=00007ffe00000000\r\nRIP=0000000000401000 HLT=0\r\n";
        let found = cpus(dump);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].rip, found[0].rbp, found[0].halted),
            (0xffff_ffff_81a0_000b, 0xffff_c900_0001_3e80, true)
        );
        assert!(found[0].in_kernel() && !found[1].in_kernel());
        let shown = "ffffc90000013e80: 0xffffc90000013ea0 0xffffffff81234567\r\n";
        assert_eq!(
            frame(0xffff_c900_0001_3e80, shown),
            Some((0xffff_c900_0001_3ea0, 0xffff_ffff_8123_4567))
        );
        assert_eq!(frame(0xffff_c900_0001_3e80, "Cannot access memory"), None);
        let ended = "ffffc90000013e80: 0x0000000000000000 0x0000000000000000\r\n";
        assert_eq!(frame(0xffff_c900_0001_3e80, ended), None);
    }
}
