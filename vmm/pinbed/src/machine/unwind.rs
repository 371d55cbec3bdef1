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

/// Whether each function of the kernel has its name in these lines.
pub fn are_named(lines: &[String]) -> bool {
    lines.iter().all(|line| {
        let last = line.split_whitespace().next_back();
        let digits = last.and_then(|word| word.strip_prefix("0x"));
        let address = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        address.is_none_or(|address| address < KERNEL)
    })
}

/// Backtraces from the kernel's own (SysRq l), in the form of ours: what `show_regs()` and `show_trace_log_lvl()` of arch/x86 print for each
/// CPU. Without the CPU that printed them, and without what the kernel is not sure of.
pub fn of_kernel(log: &[String]) -> Vec<String> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for line in log {
        if let Some(rest) = line.strip_prefix("NMI backtrace for cpu ") {
            let (index, idle) = rest.split_once(" skipped: ").unwrap_or((rest, ""));
            all.push(vec![format!("CPU {index}, as the kernel says: {idle}")]);
            continue;
        }
        let Some(cpu) = all.last_mut() else { continue };
        let line = line.trim();
        let function = line.strip_prefix("RIP: 0010:").unwrap_or(line);
        let is_function = function.contains("+0x") && !function.starts_with('?');
        match cpu.len() {
            1 if cpu[0].ends_with(": ") && is_function => cpu[0].push_str(function),
            _ if is_function && function != line => (),
            _ if is_function => cpu.push(format!("  {function}")),
            _ => (),
        }
    }
    all.retain(|cpu| !cpu.iter().any(|line| line.contains("write_sysrq_trigger+")));
    all.concat()
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

    #[test]
    fn addresses_of_the_kernel_are_no_names() {
        let named = |line: &str| are_named(&["CPU 0: f+0x1/0x2".to_owned(), line.to_owned()]);
        assert!(named("  vb2_qbuf+0x4/0x80"));
        assert!(named("CPU 1: in user space at 0x401000"));
        assert!(!named("CPU 1, halted: 0xffffffffb330fa3f"));
        assert!(!named("  0xffffffffc0123abc"));
    }

    #[test]
    fn the_kernels_backtraces_look_as_ours_do() {
        let log = [
            "sysrq: Show backtrace of all active CPUs",
            "NMI backtrace for cpu 0",
            "CPU: 0 UID: 0 PID: 1 Comm: init Tainted: G           OE      6.12.117+deb13-amd64 #1  Debian",
            "Call Trace:",
            " <TASK>",
            " dump_stack_lvl+0x5d/0x80",
            " write_sysrq_trigger+0x59/0x80",
            "RIP: 0033:0x46730f",
            " </TASK>",
            "Sending NMI from CPU 0 to CPUs 1-2:",
            "NMI backtrace for cpu 1",
            "CPU: 1 UID: 0 PID: 52 Comm: pinbed-guest Tainted: G           OE",
            "RIP: 0010:pinbed_hold_begin+0xf/0x20 [pinbed]",
            "Code: 09 c3 cc cc",
            "RAX: 0000000000000001 RBX: 0000000000000000 RCX: 0000000000000000",
            "Call Trace:",
            " <TASK>",
            " ? do_syscall_64+0x93/0x1b0",
            " pinbed_hold_dma_sg+0x9/0x20 [pinbed]",
            " </TASK>",
            "NMI backtrace for cpu 2 skipped: idling at default_idle+0xf/0x20",
        ]
        .map(str::to_owned);
        let expected = [
            "CPU 1, as the kernel says: pinbed_hold_begin+0xf/0x20 [pinbed]",
            "  pinbed_hold_dma_sg+0x9/0x20 [pinbed]",
            "CPU 2, as the kernel says: idling at default_idle+0xf/0x20",
        ];
        assert_eq!(of_kernel(&log), expected);
        assert_eq!(of_kernel(&[]), [""; 0]);
    }
}
