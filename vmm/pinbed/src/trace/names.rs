// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Names of what a trace has as numbers: functions, system calls, ioctls, flags of pins, the device's operations.

use pinbed_abi::{uapi, wire};

use crate::kernel::symbols::Symbols;
use crate::machine::vm::Machine;
use crate::trace::ftrace::Recording;

/// The driver's name among modules.
const DRIVER: &str = "pinbed";

/// Names of one guest's functions.
#[derive(Debug, Default)]
pub struct Names<'a> {
    kernel: Option<Symbols>,
    driver: Option<(u64, Symbols)>,
    recording: Option<&'a Recording>,
    old_flags: bool,
}

impl<'a> Names<'a> {
    /// Those of a guest that ran on this machine.
    pub fn new(machine: &Machine, recording: &'a Recording) -> Self {
        let base = recording.modules.get(DRIVER);
        Names {
            kernel: Symbols::of(&machine.kernel),
            driver: base.and_then(|base| Some((*base, Symbols::of(&machine.driver)?))),
            recording: Some(recording),
            old_flags: has_old_flags(&machine.release),
        }
    }

    /// The function at an address, with the offset in it unless that is 0; the address itself where it has no name.
    pub fn function(&self, address: u64) -> String {
        let of_symbols = |symbols: &Symbols, address| {
            let name = symbols.name(address)?;
            let name = name
                .rsplit_once('/')
                .map_or(name.as_str(), |(name, _)| name);
            Some(name.strip_suffix("+0x0").unwrap_or(name).to_owned())
        };
        let of_driver = || {
            let (base, symbols) = self.driver.as_ref()?;
            of_symbols(symbols, address.checked_sub(*base)?)
        };
        let of_guest = || {
            let symbols = &self.recording?.symbols;
            let (start, name) = symbols.range(..=address).next_back()?;
            Some(match address - start {
                0 => name.clone(),
                offset => format!("{name}+{offset:#x}"),
            })
        };
        let of_kernel = || of_symbols(self.kernel.as_ref()?, address);
        of_kernel()
            .or_else(of_driver)
            .or_else(of_guest)
            .unwrap_or_else(|| format!("{address:#x}"))
    }

    /// The function that a function graph enters at an address. With CONFIG_X86_KERNEL_IBT ftrace's place in a function is behind its first
    /// instruction, ENDBR64.
    pub fn entered(&self, address: u64) -> String {
        let name = self.function(address);
        match name.split_once('+') {
            Some((function, _)) => function.to_owned(),
            None => name,
        }
    }

    /// Flags of get_user_pages() and its like, as include/linux/mm_types.h has them; until 6.2 mm.h had others.
    pub fn pin_flags(&self, flags: u64) -> String {
        const NOW: &[(u64, &str)] = &[
            (1, "FOLL_WRITE"),
            (1 << 1, "FOLL_GET"),
            (1 << 3, "FOLL_FORCE"),
            (1 << 4, "FOLL_NOWAIT"),
            (1 << 5, "FOLL_NOFAULT"),
            (1 << 8, "FOLL_LONGTERM"),
            (1 << 19, "FOLL_PIN"),
        ];
        const BEFORE: &[(u64, &str)] = &[
            (1, "FOLL_WRITE"),
            (4, "FOLL_GET"),
            (0x10, "FOLL_FORCE"),
            (0x20, "FOLL_NOWAIT"),
            (0x1_0000, "FOLL_LONGTERM"),
            (0x4_0000, "FOLL_PIN"),
        ];
        let known = if self.old_flags { BEFORE } else { NOW };
        let mut rest = flags;
        let mut words: Vec<String> = Vec::new();
        for (bit, name) in known {
            if rest & bit != 0 {
                rest &= !bit;
                words.push((*name).to_owned());
            }
        }
        if rest != 0 || words.is_empty() {
            words.push(format!("{rest:#x}"));
        }
        words.join("|")
    }
}

/// Whether a kernel is older than 6.3.
fn has_old_flags(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    (next(), next()) < (Some(6), Some(3))
}

/// A system call's name, with the request's where it is an ioctl that is known here.
pub fn system_call(number: u64, arguments: &[u64]) -> String {
    let name = usize::try_from(number)
        .ok()
        .and_then(syscalls::Sysno::new)
        .map_or_else(
            || format!("system call {number}"),
            |call| call.name().to_owned(),
        );
    match (name.as_str(), arguments.get(1)) {
        ("ioctl", Some(&request)) => format!("ioctl {}", ioctl(request as u32)),
        _ => name,
    }
}

/// An ioctl's request, by its type and number: sizes differ between versions.
fn ioctl(request: u32) -> String {
    let (kind, number) = ((request >> 8) as u8, request as u8);
    let name = match (kind, number) {
        (b'V', 0) => "VIDIOC_QUERYCAP",
        (b'V', 2) => "VIDIOC_ENUM_FMT",
        (b'V', 4) => "VIDIOC_G_FMT",
        (b'V', 5) => "VIDIOC_S_FMT",
        (b'V', 8) => "VIDIOC_REQBUFS",
        (b'V', 9) => "VIDIOC_QUERYBUF",
        (b'V', 15) => "VIDIOC_QBUF",
        (b'V', 16) => "VIDIOC_EXPBUF",
        (b'V', 17) => "VIDIOC_DQBUF",
        (b'V', 18) => "VIDIOC_STREAMON",
        (b'V', 19) => "VIDIOC_STREAMOFF",
        (b'V', 92) => "VIDIOC_CREATE_BUFS",
        (b'V', 93) => "VIDIOC_PREPARE_BUF",
        (0xa4, 0) => "TEE_IOC_VERSION",
        (0xa4, 1) => "TEE_IOC_SHM_ALLOC",
        (0xa4, 2) => "TEE_IOC_OPEN_SESSION",
        (0xa4, 3) => "TEE_IOC_INVOKE",
        (0xa4, 4) => "TEE_IOC_CANCEL",
        (0xa4, 5) => "TEE_IOC_CLOSE_SESSION",
        (0xa4, 8) => "TEE_IOC_SHM_REGISTER_FD",
        (0xa4, 9) => "TEE_IOC_SHM_REGISTER",
        (b'H', 0) => "DMA_HEAP_IOCTL_ALLOC",
        (b'u', 0x42) => "UDMABUF_CREATE",
        (b'u', 0x43) => "UDMABUF_CREATE_LIST",
        (b'b', 0) => "DMA_BUF_IOCTL_SYNC",
        _ => match (u32::from(kind) == uapi::IOC_MAGIC, u32::from(number)) {
            (true, uapi::NR_EXEC) => "PINBED_EXEC",
            (true, uapi::NR_BALLAST) => "PINBED_BALLAST",
            (true, uapi::NR_EXPORT) => "PINBED_EXPORT",
            (true, uapi::NR_MOVE) => "PINBED_MOVE",
            (true, uapi::NR_IMPORT) => "PINBED_IMPORT",
            (false, uapi::NR_BUFFER) if kind == b'V' => "PINBED_BUFFER",
            _ => return format!("{request:#x}"),
        },
    };
    name.to_owned()
}

/// What a request asks of the device.
pub fn operation(op: u32) -> String {
    let name = match op {
        wire::OP_STATUS => "STATUS",
        wire::OP_ATTACH => "ATTACH",
        wire::OP_DETACH => "DETACH",
        wire::OP_QUERY => "QUERY",
        wire::OP_CHECKSUM => "CHECKSUM",
        wire::OP_INJECT => "INJECT",
        wire::OP_COPY => "COPY",
        wire::OP_FILL => "FILL",
        wire::OP_CONVERT => "CONVERT",
        pinbed_abi::tee::OP_OPEN_SESSION => "OPEN_SESSION",
        pinbed_abi::tee::OP_INVOKE => "INVOKE",
        pinbed_abi::tee::OP_CANCEL => "CANCEL",
        pinbed_abi::tee::OP_CLOSE_SESSION => "CLOSE_SESSION",
        _ => return format!("operation {op:#x}"),
    };
    name.to_owned()
}

/// What a queue is for.
pub fn queue(number: u32) -> &'static str {
    match number {
        wire::QUEUE_CONTROL => "control",
        wire::QUEUE_VIDEO => "video",
        wire::QUEUE_TEE => "TEE",
        _ => "event",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_kernels_names() {
        assert_eq!(system_call(16, &[3, 0xc058_560f]), "ioctl VIDIOC_QBUF");
        assert_eq!(system_call(16, &[3, 0xc030_56c0]), "ioctl PINBED_BUFFER");
        assert_eq!(system_call(16, &[3, 0xc030_b700]), "ioctl PINBED_EXEC");
        assert_eq!(system_call(16, &[3, 0x1234]), "ioctl 0x1234");
        assert_eq!(system_call(9, &[]), "mmap");
        assert_eq!(system_call(100_000, &[]), "system call 100000");
        assert!(has_old_flags("6.1.192") && has_old_flags("5.10.262"));
        assert!(!has_old_flags("6.12.117") && !has_old_flags("7.3.4-rc1"));
        let names = Names::default();
        assert_eq!(names.pin_flags(0x101), "FOLL_WRITE|FOLL_LONGTERM");
        let old = Names {
            old_flags: true,
            ..Names::default()
        };
        assert_eq!(
            old.pin_flags(0x1_0011),
            "FOLL_WRITE|FOLL_FORCE|FOLL_LONGTERM"
        );
        assert_eq!(names.function(0x10), "0x10");
    }

    #[test]
    fn a_function_is_entered_behind_its_first_instruction() {
        let recording = Recording {
            symbols: [(0x1000, "vb2_qbuf".to_owned())].into(),
            ..Recording::default()
        };
        let names = Names {
            recording: Some(&recording),
            ..Names::default()
        };
        assert_eq!(names.function(0x1004), "vb2_qbuf+0x4");
        assert_eq!(names.entered(0x1004), "vb2_qbuf");
        assert_eq!(names.entered(0x1000), "vb2_qbuf");
        assert_eq!(names.entered(0x10), "0x10");
    }
}
