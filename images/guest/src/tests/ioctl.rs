// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every ioctl of the driver's nodes with hostile arguments: each is refused with the right error, takes no memory, and leaves the driver
//! working.

use super::driver::copy;
use super::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::unistd::{ForkResult, fork};
use pinbed_abi::report::Eye;
use pinbed_abi::uapi::{self, Ballast, Buffer, Exec, Export, Import, Move};
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::device::{self, Device, header};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::tee::client::Tee;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::{Memop, Memory, Node, Queue};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const UAPI: &str = "vmm/abi/src/uapi.rs";
const CAPABILITIES: &str = "man 7 capabilities, CAP_SYS_RAWIO and CAP_SYS_ADMIN";
const TEE_UAPI: &str = "include/uapi/linux/tee.h";
const V4L2: &str = "Documentation/userspace-api/media/v4l/func-ioctl.rst";
const COMPAT: &str = "Documentation/driver-api/ioctl.rst, 32-bit compat mode";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("ioctl::export_bounds_its_length", export_bounds_its_length, UAPI,
        "EXPORT of no bytes, or of more than its limit up to 2^64-1, is refused with EINVAL; of more than there is with ENOMEM."),
    test("ioctl::exec_bounds_its_lengths", exec_bounds_its_lengths, UAPI,
        "EXEC refuses lengths of zero and beyond its limit, queues that take no requests, and addresses that are not the process's."),
    test("ioctl::descriptors_and_flags_are_checked", descriptors_and_flags_are_checked, UAPI,
        "IMPORT, MOVE and BUFFER refuse what is no dma-buf, no direction, no flag, no queue and no index."),
    test("ioctl::bad_pointers_are_faults", bad_pointers_are_faults, UAPI,
        "Every ioctl with a NULL argument, or one that is not all there, fails with EFAULT."),
    test("ioctl::unknown_numbers_are_refused", unknown_numbers_are_refused, UAPI,
        "A number or size that the control node does not know is refused with ENOTTY."),
    test("ioctl::capabilities_are_needed", capabilities_are_needed, CAPABILITIES,
        "Without capabilities EXEC, BALLAST, EXPORT and MOVE are refused with EPERM on a descriptor that root opened, and IMPORT works."),
    test("ioctl::tee_bounds_its_lengths", tee_bounds_its_lengths, TEE_UAPI,
        "Allocating memory of the TEE of no bytes, or of more than there is up to 2^64-1, is refused."),
    test("ioctl::video_bounds_its_numbers", video_bounds_its_numbers, V4L2,
        "The video nodes refuse or clamp counts, indices, lengths and sizes up to 2^32-1."),
    test("ioctl::works_from_32_bits", works_from_32_bits, COMPAT,
        "The driver's ioctls do from a 32-bit system call what they do from one of 64 bits."),
];

/// Lengths at which a driver cuts or overflows.
const LENGTHS: [u64; 7] = [
    1 << 32,
    (1 << 32) + 1,
    1 << 44,
    (1 << 44) + 4096,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

/// The ioctl of a struct on the control node.
const fn request<T>(number: u32) -> libc::c_ulong {
    nix::request_code_readwrite!(uapi::IOC_MAGIC, number, size_of::<T>())
}

fn control() -> TestResult<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .open(device::PATH)
        .map_err(Error::io(format!("opening {}", device::PATH)))?)
}

/// An ioctl with any argument.
fn raw(file: impl AsFd, request: libc::c_ulong, argument: usize) -> Result<i32, Errno> {
    // SAFETY: the kernel checks the argument; those that it writes through are live structs, or memory that is nobody's.
    Errno::result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request as _, argument) })
}

/// An ioctl with a struct. A descriptor that it returns is closed.
fn call<T>(file: impl AsFd, number: u32, argument: &mut T) -> Result<i32, Errno> {
    raw(
        file,
        request::<T>(number),
        std::ptr::from_mut(argument) as usize,
    )
}

fn export_bounds_its_length(t: &mut Ctx) -> TestResult {
    let file = control()?;
    let max = u64::from(uapi::EXPORT_MAX);
    let kinds = [
        0,
        uapi::EXPORT_MOVING,
        uapi::EXPORT_MIXEDMAP,
        uapi::EXPORT_ANY_IMPORTER,
        uapi::EXPORT_PROTECTED,
    ];
    for flags in kinds {
        let mut try_length = |length| {
            let mut export = Export {
                length,
                flags,
                ..Default::default()
            };
            call(&file, uapi::NR_EXPORT, &mut export).map(|fd| {
                // SAFETY: the kernel has just given us this descriptor.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            })
        };
        let good = [1, PAGE as u64].map(&mut try_length);
        let none = try_length(0);
        let most = [max - 1, max].map(&mut try_length);
        let beyond: Vec<_> = [max + 1]
            .into_iter()
            .chain(LENGTHS)
            .map(|length| (length, try_length(length)))
            .collect();
        for result in good {
            t.equal(Eye::Cpu, "EXPORT of a page", result, Ok(()));
        }
        t.refused("EXPORT of nothing", none, &[Errno::EINVAL]);
        for result in most {
            t.refused("EXPORT of 1 GiB", result, &[Errno::ENOMEM]);
        }
        for (length, result) in beyond {
            let what = format!("EXPORT of {length:#x} bytes, flags {flags}");
            t.refused(&what, result, &[Errno::EINVAL]);
        }
    }
    for flags in [3, 5, 12, 16, u32::MAX] {
        let mut export = Export {
            length: 4096,
            flags,
            ..Default::default()
        };
        let result = call(&file, uapi::NR_EXPORT, &mut export);
        t.refused(
            &format!("EXPORT with flags {flags:#x}"),
            result,
            &[Errno::EINVAL],
        );
    }
    Ok(())
}

fn exec_bounds_its_lengths(t: &mut Ctx) -> TestResult {
    let file = control()?;
    let status = header(wire::OP_STATUS);
    let mut room = vec![0u8; uapi::EXEC_MAX as usize];
    let good = Exec {
        request: std::ptr::from_ref(&status) as u64,
        response: room.as_mut_ptr() as u64,
        request_length: size_of_val(&status) as u32,
        response_length: uapi::EXEC_MAX,
        queue: wire::QUEUE_CONTROL,
        reserved: 0,
    };
    let max = uapi::EXEC_MAX;
    let einval: &[Errno] = &[Errno::EINVAL];
    let mut bad = Vec::new();
    for length in [0, max + 1, u32::MAX] {
        bad.push((
            Exec {
                request_length: length,
                ..good
            },
            einval,
        ));
        bad.push((
            Exec {
                response_length: length,
                ..good
            },
            einval,
        ));
    }
    for queue in [wire::QUEUE_EVENT, wire::QUEUE_COUNT, u32::MAX] {
        bad.push((Exec { queue, ..good }, einval));
    }
    bad.push((
        Exec {
            reserved: 1,
            ..good
        },
        einval,
    ));
    for address in [0, 1 << 46, u64::MAX - 7] {
        bad.push((
            Exec {
                request: address,
                ..good
            },
            &[Errno::EFAULT],
        ));
        bad.push((
            Exec {
                response: address,
                ..good
            },
            &[Errno::EFAULT],
        ));
    }
    for (mut exec, errnos) in bad {
        let what = format!("{exec:x?}");
        t.refused(&what, call(&file, uapi::NR_EXEC, &mut exec), errnos);
    }
    // What the device cannot understand it says so, or says nothing.
    for length in [1, 15, 16, 17, max - 1, max] {
        let request = vec![0xffu8; length as usize];
        for queue in [wire::QUEUE_CONTROL, wire::QUEUE_VIDEO, wire::QUEUE_TEE] {
            for response_length in [1, 15, 16, max] {
                let mut exec = Exec {
                    request: request.as_ptr() as u64,
                    request_length: length,
                    response_length,
                    queue,
                    ..good
                };
                let what = format!("EXEC of {length} senseless bytes on queue {queue}");
                t.equal(
                    Eye::Cpu,
                    &what,
                    call(&file, uapi::NR_EXEC, &mut exec),
                    Ok(0),
                );
                t.check(Eye::Device, exec.response_length <= response_length, || {
                    format!("{what}: {} bytes of an answer", exec.response_length)
                });
            }
        }
    }
    let mut exec = good;
    t.equal(
        Eye::Cpu,
        "EXEC of STATUS",
        call(&file, uapi::NR_EXEC, &mut exec),
        Ok(0),
    );
    Ok(())
}

fn descriptors_and_flags_are_checked(t: &mut Ctx) -> TestResult {
    let file = control()?;
    let device = Device::open()?;
    // What has no kernel address cannot be bounced.
    swiotlb::unless_forced()?;
    let (moving, _) = device.export(PAGE, uapi::EXPORT_MOVING)?;
    let (fixed, _) = device.export(PAGE, 0)?;
    let null = File::open("/dev/null").map_err(Error::io("opening /dev/null"))?;
    let number = |file: &dyn AsRawFd| file.as_raw_fd() as u32;
    let (good, other) = (number(&moving), number(&null));
    let imports = [
        (u32::MAX, wire::DIRECTION_READ, Errno::EBADF),
        (1 << 20, wire::DIRECTION_READ, Errno::EBADF),
        (other, wire::DIRECTION_READ, Errno::EINVAL),
        (good, 0, Errno::EINVAL),
        (good, 4, Errno::EINVAL),
        (good, u32::MAX, Errno::EINVAL),
    ];
    for (fd, direction, errno) in imports {
        let mut import = Import {
            handle: 0,
            fd,
            direction,
        };
        let result = call(&file, uapi::NR_IMPORT, &mut import);
        t.refused(&format!("{import:x?}"), result, &[errno]);
    }
    let moves = [
        (u32::MAX, 0, Errno::EBADF),
        (other, 0, Errno::EINVAL),
        (number(&fixed), 0, Errno::EINVAL),
        (good, uapi::MOVE_REVOKE | uapi::MOVE_FENCED, Errno::EINVAL),
        (good, 4, Errno::EINVAL),
        (good, u32::MAX, Errno::EINVAL),
    ];
    for (fd, flags, errno) in moves {
        let mut relocate = Move {
            address: 0,
            fd,
            flags,
        };
        let result = call(&file, uapi::NR_MOVE, &mut relocate);
        t.refused(&format!("{relocate:x?}"), result, &[errno]);
    }
    let node = Node::open(Memop::DmaSg)?;
    let request = nix::request_code_readwrite!(b'V', uapi::NR_BUFFER, size_of::<Buffer>());
    for kind in [0, 1, 2, 3, 9, 10, u32::MAX] {
        for index in [0, 1, 31, 32, 64, u32::MAX] {
            let mut buffer = Buffer {
                kind,
                index,
                ..Default::default()
            };
            let result = raw(&node, request, std::ptr::from_mut(&mut buffer) as usize);
            t.refused(
                &format!("BUFFER {index} of type {kind}"),
                result,
                &[Errno::EINVAL],
            );
        }
    }
    Ok(())
}

fn bad_pointers_are_faults(t: &mut Ctx) -> TestResult {
    let file = control()?;
    let node = Node::open(Memop::DmaSg)?;
    let edge = Mapping::anon(2 * PAGE)?;
    edge.take_away(PAGE..2 * PAGE)?;
    // The last bytes of a page, with nothing behind.
    let cut = edge.address() + PAGE - 4;
    let requests = [
        ("EXEC", request::<Exec>(uapi::NR_EXEC)),
        ("BALLAST", request::<Ballast>(uapi::NR_BALLAST)),
        ("EXPORT", request::<Export>(uapi::NR_EXPORT)),
        ("MOVE", request::<Move>(uapi::NR_MOVE)),
        ("IMPORT", request::<Import>(uapi::NR_IMPORT)),
    ];
    for address in [0, 1, cut, usize::MAX, 1 << 47] {
        for (name, request) in requests {
            let what = format!("{name} with an argument at {address:#x}");
            t.refused(&what, raw(&file, request, address), &[Errno::EFAULT]);
        }
        let request = nix::request_code_readwrite!(b'V', uapi::NR_BUFFER, size_of::<Buffer>());
        let what = format!("BUFFER with an argument at {address:#x}");
        t.refused(&what, raw(&node, request, address), &[Errno::EFAULT]);
    }
    Ok(())
}

fn unknown_numbers_are_refused(t: &mut Ctx) -> TestResult {
    let file = control()?;
    let known = [
        request::<Exec>(uapi::NR_EXEC),
        request::<Ballast>(uapi::NR_BALLAST),
        request::<Export>(uapi::NR_EXPORT),
        request::<Move>(uapi::NR_MOVE),
        request::<Import>(uapi::NR_IMPORT),
    ];
    let mut accepted = 0;
    for number in 0..=255u32 {
        for size in [0usize, 1, 8, 16, 24, 32, 4096, 16383] {
            let requests = [
                nix::request_code_none!(uapi::IOC_MAGIC, number),
                nix::request_code_read!(uapi::IOC_MAGIC, number, size),
                nix::request_code_write!(uapi::IOC_MAGIC, number, size),
                nix::request_code_readwrite!(uapi::IOC_MAGIC, number, size),
            ];
            for request in requests.into_iter().filter(|it| !known.contains(it)) {
                if raw(&file, request, 0) != Err(Errno::ENOTTY) {
                    accepted += 1;
                }
            }
        }
    }
    t.equal(
        Eye::Cpu,
        "unknown ioctls that are not refused with ENOTTY",
        accepted,
        0,
    );
    Ok(())
}

fn capabilities_are_needed(t: &mut Ctx) -> TestResult {
    let file = control()?;
    // What has no kernel address cannot be bounced.
    swiotlb::unless_forced()?;
    let (moving, _) = Device::open()?.export(PAGE, uapi::EXPORT_MOVING)?;
    let fd = moving.as_raw_fd() as u32;
    let status = header(wire::OP_STATUS);
    let mut room = [0u8; 256];
    // SAFETY: the child makes system calls only, and exits.
    match unsafe { fork() }.map_err(Error::call("fork"))? {
        ForkResult::Child => {
            const NOBODY: libc::uid_t = 65_534;
            // SAFETY: takes three numbers.
            let mut wrong = i32::from(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) } != 0);
            let mut exec = Exec {
                request: std::ptr::from_ref(&status) as u64,
                response: room.as_mut_ptr() as u64,
                request_length: size_of_val(&status) as u32,
                response_length: 256,
                queue: wire::QUEUE_CONTROL,
                reserved: 0,
            };
            let results = [
                call(&file, uapi::NR_EXEC, &mut exec),
                call(
                    &file,
                    uapi::NR_BALLAST,
                    &mut Ballast {
                        leave: u64::MAX,
                        held: 0,
                    },
                ),
                call(
                    &file,
                    uapi::NR_EXPORT,
                    &mut Export {
                        length: 4096,
                        ..Default::default()
                    },
                ),
                call(
                    &file,
                    uapi::NR_MOVE,
                    &mut Move {
                        address: 0,
                        fd,
                        flags: 0,
                    },
                ),
            ];
            for (bit, result) in results.into_iter().enumerate() {
                if result != Err(Errno::EPERM) {
                    wrong |= 2 << bit;
                }
            }
            let mut import = Import {
                handle: 0,
                fd,
                direction: wire::DIRECTION_READ,
            };
            if call(&file, uapi::NR_IMPORT, &mut import).is_err() {
                wrong |= 32;
            }
            // SAFETY: _exit has no preconditions.
            unsafe { libc::_exit(wrong) }
        }
        ForkResult::Parent { child } => {
            let end = nix::sys::wait::waitpid(child, None).map_err(Error::call("waitpid"))?;
            t.equal(
                Eye::Cpu,
                "calls without capabilities that are not treated so (bits: 1 setuid, 2 EXEC, 4 BALLAST, 8 EXPORT, 16 MOVE, 32 IMPORT)",
                end,
                nix::sys::wait::WaitStatus::Exited(child, 0),
            );
        }
    }
    Ok(())
}

fn tee_bounds_its_lengths(t: &mut Ctx) -> TestResult {
    let tee = Tee::open()?;
    t.check(Eye::Cpu, tee.allocate(0).is_err(), || {
        "SHM_ALLOC of nothing is accepted".into()
    });
    for length in LENGTHS.into_iter().chain([1 << 30, (1 << 31) - 1, 1 << 31]) {
        let allocated = tee.allocate(length as usize).map(drop);
        t.check(Eye::Cpu, allocated.is_err(), || {
            format!("SHM_ALLOC of {length:#x} bytes is accepted")
        });
    }
    // Lengths of registrations are tee_memory's.
    for address in [0, 1, usize::MAX, 1 << 47] {
        let registered = tee.register(address, PAGE).map(drop);
        t.check(Eye::Cpu, registered.is_err(), || {
            format!("SHM_REGISTER of memory at {address:#x} is accepted")
        });
    }
    for length in [1, PAGE - 1, PAGE, PAGE + 1] {
        t.check(Eye::Cpu, tee.allocate(length).is_ok(), || {
            format!("SHM_ALLOC of {length} bytes is refused")
        });
    }
    Ok(())
}

fn video_bounds_its_numbers(t: &mut Ctx) -> TestResult {
    for memop in Memop::ALL {
        let m2m = M2m::copier_on(memop, FRAME)?;
        let node = &m2m.node;
        for queue in [Queue::Output, Queue::Capture] {
            let good = node.format(queue).map_err(Error::call("VIDIOC_G_FMT"))?;
            for side in [0, 1, 4097, 65_536, u32::MAX - 1, u32::MAX] {
                let mut wanted = good;
                (wanted.width, wanted.height) = (side, side);
                let got = node.set_format(queue, wanted);
                let bounded = |side: u32| (2..=4096).contains(&side);
                t.check(
                    Eye::Cpu,
                    got.is_ok_and(|got| bounded(got.width) && bounded(got.height)),
                    || format!("S_FMT of {side} by {side} on {queue:?}: {got:?}"),
                );
            }
            node.set_format(queue, good)
                .map_err(Error::call("VIDIOC_S_FMT"))?;
        }
        for queue in [Queue::Output, Queue::Capture] {
            let page = Mapping::anon(16 * PAGE)?;
            node.request(queue, Memory::Userptr, 1)
                .map_err(Error::call("REQBUFS"))?;
            for index in [1, 32, 64, u32::MAX] {
                t.check(Eye::Cpu, node.query(queue, index).is_err(), || {
                    format!("QUERYBUF of {index} is accepted")
                });
            }
            for length in [0, 1, FRAME.size() as u32 - 1, 1 << 31, u32::MAX] {
                let mut buffer = node.query(queue, 0).map_err(Error::call("QUERYBUF"))?;
                buffer.m = page.address() as u64;
                buffer.length = length;
                buffer.bytesused = 1;
                let result = node.enqueue(buffer);
                t.check(Eye::Cpu, result.is_err(), || {
                    format!("QBUF of {length:#x} bytes on {queue:?} of {memop:?} is accepted")
                });
            }
            node.request(queue, Memory::Userptr, 0)
                .map_err(Error::call("REQBUFS"))?;
        }
    }
    copy(t, &M2m::copier(FRAME)?)
}

/// The system call `ioctl` as a 32-bit program makes it, from this one: the argument's address must fit in 32 bits.
fn ioctl_32(file: impl AsFd, request: libc::c_ulong, argument: usize) -> Result<i32, Errno> {
    const NR_IOCTL: u64 = 54;
    let mut result = NR_IOCTL;
    // SAFETY: int 0x80 takes its number and arguments in these registers, and clobbers no memory but the argument, and r8 to r11.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {fd:e}",
            "int 0x80",
            "pop rbx",
            fd = in(reg) file.as_fd().as_raw_fd(),
            inout("rax") result,
            in("rcx") request as u32 as u64,
            in("rdx") argument as u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match result as u32 as i32 {
        error @ -4095..=-1 => Err(Errno::from_raw(-error)),
        value => Ok(value),
    }
}

fn works_from_32_bits(t: &mut Ctx) -> TestResult {
    // Without it int 0x80 is a SIGSEGV.
    if !std::path::Path::new("/proc/sys/abi/vsyscall32").exists() {
        return Err(Error::Absent {
            what: "32-bit system calls".into(),
            remedy: "build the kernel with CONFIG_IA32_EMULATION".into(),
        }
        .into());
    }
    // Below 4 GiB, where a 32-bit program has its memory.
    let low = Mapping::anon_at(0x1000_0000, PAGE)?;
    let file = control()?;
    let mut room = [0u8; size_of::<Export>()];
    let export = Export {
        length: 4096,
        flags: uapi::EXPORT_MOVING,
        ..Default::default()
    };
    low.write(0, zerocopy::IntoBytes::as_bytes(&export));
    let fd = ioctl_32(&file, request::<Export>(uapi::NR_EXPORT), low.address());
    let Ok(fd) = fd else {
        t.find(Eye::Cpu, format!("EXPORT from 32 bits: {fd:?}"));
        return Ok(());
    };
    // SAFETY: the kernel has just given us this descriptor.
    let moving = unsafe { OwnedFd::from_raw_fd(fd) };
    room.copy_from_slice(&low.read(0..size_of::<Export>()));
    t.check(Eye::Cpu, room[8..16] != [0; 8], || {
        "EXPORT from 32 bits says no address".into()
    });
    let import = Import {
        handle: 0,
        fd: moving.as_raw_fd() as u32,
        direction: wire::DIRECTION_READ,
    };
    low.write(0, zerocopy::IntoBytes::as_bytes(&import));
    let result = ioctl_32(&file, request::<Import>(uapi::NR_IMPORT), low.address());
    t.equal(Eye::Cpu, "IMPORT from 32 bits", result, Ok(0));

    let m2m = M2m::copier(FRAME)?;
    m2m.request(Queue::Capture, Memory::Mmap, 1)?;
    let buffer = Buffer {
        kind: 1,
        index: 0,
        ..Default::default()
    };
    low.write(0, zerocopy::IntoBytes::as_bytes(&buffer));
    let request = nix::request_code_readwrite!(b'V', uapi::NR_BUFFER, size_of::<Buffer>());
    let result = ioctl_32(&m2m.node, request, low.address());
    t.equal(Eye::Cpu, "BUFFER from 32 bits", result, Ok(0));
    let flags = low.read(8..12);
    t.equal(
        Eye::Cpu,
        "BUFFER's flags from 32 bits",
        flags[0] & uapi::BUFFER_ATTACHED as u8,
        uapi::BUFFER_ATTACHED as u8,
    );
    Ok(())
}
