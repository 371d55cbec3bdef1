// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtual machine of KVM with one page and one CPU, which executes HLT there: the fault at its first instruction takes the page.

use super::remedy;
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::memory::mapping::{Mapping, READ_WRITE};
use pinbed_guest::observe::extent::PAGE;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Of linux/kvm.h.
const CREATE_VM: libc::c_ulong = nix::request_code_none!(0xae, 0x01);
const GET_VCPU_MMAP_SIZE: libc::c_ulong = nix::request_code_none!(0xae, 0x04);
const CREATE_VCPU: libc::c_ulong = nix::request_code_none!(0xae, 0x41);
const SET_USER_MEMORY_REGION: libc::c_ulong =
    nix::request_code_write!(0xae, 0x46, size_of::<Region>());
const RUN: libc::c_ulong = nix::request_code_none!(0xae, 0x80);
const SET_REGS: libc::c_ulong = nix::request_code_write!(0xae, 0x82, size_of::<Registers>());
const GET_SREGS: libc::c_ulong = nix::request_code_read!(0xae, 0x83, size_of::<SpecialRegisters>());
const SET_SREGS: libc::c_ulong =
    nix::request_code_write!(0xae, 0x84, size_of::<SpecialRegisters>());
const EXIT_HLT: u32 = 5;
/// Where `struct kvm_run` has exit_reason.
const EXIT_REASON: usize = 8;

/// The page's address in the machine.
const PLACE: u64 = 0x1000;
const HLT: u8 = 0xf4;

#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    place: u64,
    length: u64,
    address: u64,
}

/// General registers up to R15, RIP and RFLAGS.
#[repr(C)]
struct Registers {
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

/// `struct kvm_sregs`, which begins with CS.
#[repr(C)]
struct SpecialRegisters {
    cs_base: u64,
    cs_limit: u32,
    cs_selector: u16,
    rest: [u16; 149],
}

/// A machine without memory.
pub struct Machine {
    machine: OwnedFd,
    cpu: OwnedFd,
    run: Mapping,
}

impl Machine {
    /// With a CPU in real mode, at [`PLACE`].
    ///
    /// # Errors
    /// Where the kernel has no KVM, or the CPU no virtualization.
    pub fn open() -> Result<Self, Error> {
        let kvm = open_node(
            "/dev/kvm",
            remedy("CONFIG_KVM_AMD") + ", and run in the environment iommu, whose CPU has SVM",
        )?;
        let machine = descriptor(kvm.as_raw_fd(), CREATE_VM, "KVM_CREATE_VM")?;
        let cpu = descriptor(machine.as_raw_fd(), CREATE_VCPU, "KVM_CREATE_VCPU")?;
        // SAFETY: the descriptor is open, and the call has no argument.
        let size = Errno::result(unsafe { libc::ioctl(kvm.as_raw_fd(), GET_VCPU_MMAP_SIZE, 0) })
            .map_err(Error::call("KVM_GET_VCPU_MMAP_SIZE"))?;
        let run = Mapping::shared(&cpu, size as usize, READ_WRITE)?;
        let mut special = SpecialRegisters {
            cs_base: 0,
            cs_limit: 0,
            cs_selector: 0,
            rest: [0; 149],
        };
        call(&cpu, GET_SREGS, &mut special).map_err(Error::call("KVM_GET_SREGS"))?;
        (special.cs_base, special.cs_selector) = (0, 0);
        call(&cpu, SET_SREGS, &mut special).map_err(Error::call("KVM_SET_SREGS"))?;
        let mut registers = Registers {
            general: [0; 16],
            rip: PLACE,
            rflags: 2,
        };
        call(&cpu, SET_REGS, &mut registers).map_err(Error::call("KVM_SET_REGS"))?;
        Ok(Self { machine, cpu, run })
    }
}

impl Taker for Machine {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        // SAFETY: the address is that of a mapping's page, of which no references exist.
        unsafe { (address as *mut u8).write_volatile(HLT) };
        let mut region = Region {
            slot: 0,
            flags: 0,
            place: PLACE,
            length: PAGE as u64,
            address: address as u64,
        };
        call(&self.machine, SET_USER_MEMORY_REGION, &mut region)?;
        // SAFETY: the descriptor is open, and the call has no argument.
        Errno::result(unsafe { libc::ioctl(self.cpu.as_raw_fd(), RUN, 0) })?;
        let reason = self.run.read(EXIT_REASON..EXIT_REASON + 4);
        match reason[..].try_into().map(u32::from_ne_bytes) {
            Ok(EXIT_HLT) => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

fn descriptor(file: RawFd, command: libc::c_ulong, name: &'static str) -> Result<OwnedFd, Error> {
    // SAFETY: the descriptor is open, and the argument is a number.
    let made =
        Errno::result(unsafe { libc::ioctl(file, command, 0) }).map_err(Error::call(name))?;
    // SAFETY: the call has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

fn call<T>(file: &OwnedFd, command: libc::c_ulong, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; the argument is the struct of this command, which the call reads or writes. A page that it names is
    // that of a mapping, of which no references exist.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command, &raw mut *argument) }).map(drop)
}
