// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Confinement of the device's process, which maps all of a guest's memory and works on what the guest says.
//!
//! It is set when the socket is bound and before a front end can connect, so no byte of a guest is seen without it, and every
//! thread that serves one inherits it:
//!
//! - resource limits: private memory, and descriptors;
//! - namespaces of its own: users (so that root is nobody outside), mounts, network, System V IPC. Not process ids, which would be of a child;
//!   other processes are out of reach by the system calls;
//! - no_new_privs: no execve gives the process more rights;
//! - Landlock: no file is opened and no TCP port used; in the socket's directory files may be renamed and removed, as the socket is;
//!   no signal to and no abstract socket of other processes;
//! - seccomp: the system calls that serving needs, and no others. What is not on the list fails with EPERM. So no
//!   file is opened and no program executed, no socket made, no process traced, and no memory is made executable, whatever the rest of
//!   the confinement says.
//!
//! What has to be opened is opened before: the source of random numbers. Panics, the log and abort() do as usual. Where `RUST_BACKTRACE` is set, the symbols of the program are loaded first, so
//! that a backtrace has names. What writes files at exit, such as coverage, needs `pinbed-device --unconfined`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Bytes of private memory: the 256 MiB that a guest can make the device take up, its threads' stacks, and what the allocator keeps.
const DATA: u64 = 1 << 30;
/// Descriptors: each ring has three, the front end shares memory in a few, and the rest is the process's own.
const DESCRIPTORS: u64 = 256;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A part of the confinement that this system lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    #[error("no random numbers, so no memory can be protected")]
    Random,
    #[error("no limits of memory and descriptors: {0}")]
    Limits(io::Error),
    #[error(
        "no namespaces of its own, which the kernel allows root, or everyone with CONFIG_USER_NS and kernel.unprivileged_userns_clone: {0}"
    )]
    Namespaces(io::Error),
    #[error(
        "no Landlock: the kernel lacks CONFIG_SECURITY_LANDLOCK, or lsm= on its command line leaves it out"
    )]
    NoLandlock,
    #[error("no Landlock: {0}")]
    Landlock(Cause),
    #[error("no seccomp filter, for which the kernel needs CONFIG_SECCOMP_FILTER: {0}")]
    Seccomp(Cause),
}

/// Confines the calling thread, and those that it starts, for good. `directory` is the socket's. Returns what is missing.
pub(crate) fn confine(directory: &Path) -> Vec<Missing> {
    if Backtrace::capture().status() == BacktraceStatus::Captured {
        load_symbols();
    }
    let random = match pinbed_engine::open_random_source() {
        true => Ok(()),
        false => Err(Missing::Random),
    };
    let all = [
        random,
        limit(),
        separate(),
        restrict_files(directory),
        filter_calls(),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

/// Has the symbols read that a backtrace takes its names from, while files can be opened.
fn load_symbols() {
    drop(Backtrace::force_capture().to_string());
}

fn limit() -> Result<(), Missing> {
    let limits = [
        (Resource::RLIMIT_DATA, DATA),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
    ];
    for (resource, most) in limits {
        setrlimit(resource, most, most).map_err(|error| Missing::Limits(error.into()))?;
    }
    Ok(())
}

/// Moves the process, or where it has threads the calling one, to namespaces of its own. The socket is there by its path.
fn separate() -> Result<(), Missing> {
    let all = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    unshare(all | CloneFlags::CLONE_NEWUSER)
        // A thread of many cannot have users of its own, nor can root in a chroot.
        .or_else(|_| unshare(all))
        .map_err(|error| Missing::Namespaces(error.into()))
}

fn restrict_files(directory: &Path) -> Result<(), Missing> {
    let restrict = || -> Result<RulesetStatus, Cause> {
        // What a kernel does not know of this, it leaves out.
        let abi = ABI::V6;
        let socket = AccessFs::MakeSock | AccessFs::RemoveFile;
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new(directory)?, socket))?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match restrict() {
        Ok(RulesetStatus::NotEnforced) => Err(Missing::NoLandlock),
        Ok(_) => Ok(()),
        Err(error) => Err(Missing::Landlock(error)),
    }
}

/// The system calls of a process that serves.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // The sockets that are there, eventfds, and the log.
    libc::SYS_accept4, libc::SYS_close, libc::SYS_fcntl, libc::SYS_lseek, libc::SYS_read,
    libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendto,
    libc::SYS_shutdown, libc::SYS_write, libc::SYS_writev,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_eventfd2, libc::SYS_ppoll,
    // The socket's file.
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_statx, libc::SYS_unlinkat,
    // Memory.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap,
    // Threads and time.
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_clone3, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_futex, libc::SYS_gettid,
    libc::SYS_getpid, libc::SYS_membarrier, libc::SYS_nanosleep, libc::SYS_restart_syscall, libc::SYS_rseq,
    libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_set_robust_list,
    // Signals: of itself only, for abort().
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Keys.
    libc::SYS_getrandom,
];

/// Those that other architectures do not have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[i64] = &[
    libc::SYS_epoll_wait, libc::SYS_lstat, libc::SYS_poll, libc::SYS_rename, libc::SYS_stat, libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

fn filter_calls() -> Result<(), Missing> {
    let programs = programs().map_err(|error| Missing::Seccomp(error.into()))?;
    for program in programs {
        seccompiler::apply_filter(&program).map_err(|error| Missing::Seccomp(error.into()))?;
    }
    Ok(())
}

fn programs() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let only = |argument, length, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(
            argument, length, operator, value,
        )?])
    };
    let not_executable = || only(2, Qword, MaskedEq(libc::PROT_EXEC as u64), 0);
    let own = u64::from(std::process::id());
    let thread = libc::CLONE_THREAD as u64;
    let conditional = [
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        (libc::SYS_clone, only(0, Qword, MaskedEq(thread), thread)?),
        (
            libc::SYS_prctl,
            only(0, Dword, Eq, libc::PR_SET_NAME as u64)?,
        ),
        (libc::SYS_tgkill, only(0, Dword, Eq, own)?),
        (libc::SYS_ioctl, only(1, Dword, Eq, libc::FIONBIO)?),
        (
            libc::SYS_socketpair,
            only(0, Dword, Eq, libc::AF_UNIX as u64)?,
        ),
    ];
    let rules = ALLOWED.iter().chain(OLDER).map(|call| (*call, vec![]));
    let rules = rules.chain(conditional.map(|(call, rule)| (call, vec![rule])));
    let arch = std::env::consts::ARCH.try_into()?;
    let list = SeccompFilter::new(
        rules.collect(),
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    )?;
    // The C library then takes clone(), whose flags a filter can see.
    let no_clone3 = SeccompFilter::new(
        [(libc::SYS_clone3, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    Ok([no_clone3.try_into()?, list.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;
    use std::ptr;
    use std::thread;

    /// Runs `test` in a thread of its own, which can be confined without the others.
    fn apart(test: impl FnOnce() + Send) {
        thread::scope(|scope| scope.spawn(test).join()).unwrap();
    }

    fn errno(result: impl Into<i64>) -> i32 {
        match result.into() {
            -1 => io::Error::last_os_error().raw_os_error().unwrap(),
            _ => 0,
        }
    }

    fn refused<T>(result: io::Result<T>) -> i32 {
        result
            .err()
            .and_then(|error| error.raw_os_error())
            .unwrap_or(0)
    }

    #[test]
    fn the_filter_refuses_open_exec_socket_and_ptrace() {
        apart(|| {
            load_symbols();
            filter_calls().unwrap();
            let eperm = libc::EPERM;
            assert_eq!(refused(File::open("/dev/null")), eperm);
            assert_eq!(refused(UnixListener::bind("/tmp/pinbed-confined")), eperm);
            assert_eq!(refused(TcpStream::connect("127.0.0.1:1")), eperm);
            let program = CString::new("/bin/true").unwrap();
            let arguments = [program.as_ptr(), ptr::null()];
            // SAFETY: path and arguments are terminated and live on; if it does not fail, the test is gone, and fails.
            let exec = unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
            assert_eq!(errno(exec), eperm);
            let none = ptr::null_mut::<libc::c_void>();
            // SAFETY: process 1 is asked for nothing but being traced.
            let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, 1, none, none) };
            assert_eq!(errno(traced), eperm);
            let executable = libc::PROT_READ | libc::PROT_EXEC;
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: new memory, at an address of the kernel's choice.
            let mapped = unsafe { libc::mmap(none, 4096, executable, anonymous, -1, 0) };
            assert_eq!(errno(mapped as i64), eperm);
            // SAFETY: a signal that asks whether it could be sent.
            assert_eq!(errno(unsafe { libc::kill(1, 0) }), eperm);
            assert_eq!(refused(Command::new("/bin/true").status()), eperm);

            // What serving needs is there, and so is a backtrace.
            let (one, other) = UnixStream::pair().unwrap();
            io::Write::write_all(&mut &one, b"x").unwrap();
            io::Read::read_exact(&mut &other, &mut [0]).unwrap();
            assert_eq!(
                thread::spawn(|| vec![1; 1 << 20].len()).join().unwrap(),
                1 << 20
            );
            let names = Backtrace::force_capture().to_string();
            // Of this file no function is left that is not inlined, with optimization.
            assert!(names.contains("__rust_begin_short_backtrace"), "{names}");
            let panic = thread::spawn(|| panic!("a panic ends a thread as usual"));
            assert!(panic.join().is_err());
        });
    }

    #[test]
    fn landlock_refuses_files_and_ports() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap();
        let [own, others] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for directory in [&own, &others] {
            fs::write(directory.path().join("file"), "").unwrap();
        }
        apart(|| {
            match restrict_files(own.path()) {
                Err(Missing::NoLandlock) => return eprintln!("skipped: {}", Missing::NoLandlock),
                other => other.unwrap(),
            }
            let eacces = libc::EACCES;
            for directory in [&own, &others] {
                let file = directory.path().join("file");
                assert_eq!(refused(File::open(&file)), eacces);
                assert_eq!(refused(File::create(directory.path().join("new"))), eacces);
            }
            assert_eq!(refused(Command::new("/bin/true").status()), eacces);
            assert_eq!(refused(fs::remove_file(others.path().join("file"))), eacces);
            fs::remove_file(own.path().join("file")).unwrap();
            let connected = refused(TcpStream::connect(port));
            // Kernels before 6.7 have no rules of ports.
            assert!([eacces, 0].contains(&connected));
        });
    }
}
