// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A client of the TEE, through the ioctls of `include/uapi/linux/tee.h`, in the order in which client libraries make them.

use crate::harness::ctx::Stop;
use crate::harness::error::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::Uuid;
use pinbed_abi::tee::{self, PARAM_COUNT, Param};
use pinbed_abi::wire;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `TEE_GEN_CAP_GP`: calls are those of GlobalPlatform's TEE Client API.
pub const CAP_GP: u32 = 1;
/// `TEE_GEN_CAP_REG_MEM`: user memory can be registered.
pub const CAP_REG_MEM: u32 = 1 << 2;
/// `TEE_GEN_CAP_MEMREF_NULL`: there is a NULL memref.
pub const CAP_MEMREF_NULL: u32 = 1 << 3;
/// `TEE_MEMREF_NULL`
const MEMREF_NULL: u64 = u64::MAX;
/// `TEE_IOCTL_PARAM_ATTR_META`
pub const PARAM_META: u64 = 0x100;
/// `TEE_IOCTL_LOGIN_PUBLIC`: anybody.
pub const LOGIN_PUBLIC: u32 = 0;
/// `TEE_IOCTL_LOGIN_USER`: this user.
pub const LOGIN_USER: u32 = 1;
/// `TEE_IOCTL_LOGIN_GROUP`: a member of this group.
pub const LOGIN_GROUP: u32 = 2;
/// `TEE_IOCTL_LOGIN_APPLICATION`: this program, which Linux cannot tell.
pub const LOGIN_APPLICATION: u32 = 4;
/// `TEE_IOCTL_LOGIN_REE_KERNEL`: the kernel itself.
pub const LOGIN_KERNEL: u32 = 0x8000_0000;
/// `TEE_MAX_ARG_SIZE`: bytes of a call's arguments.
pub const MAX_ARGUMENTS: usize = 1024;
/// Nodes that client libraries look at.
const NODES: u32 = 10;

/// `struct tee_ioctl_version_data`
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Version {
    /// Who made the TEE.
    pub implementation: u32,
    /// Of this implementation only.
    pub implementation_caps: u32,
    /// `CAP_…`
    pub caps: u32,
}

/// `struct tee_ioctl_shm_alloc_data`
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Allocation {
    /// Bytes.
    pub size: u64,
    /// None are known.
    pub flags: u32,
    /// The answer: the kernel's name for the memory.
    pub id: i32,
}

/// `struct tee_ioctl_shm_register_data`
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Registration {
    /// Of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// None are known.
    pub flags: u32,
    /// The answer: the kernel's name for the memory.
    pub id: i32,
}

/// `struct tee_ioctl_shm_register_fd_data`
#[derive(Default)]
#[repr(C)]
pub struct FdRegistration {
    fd: i64,
    size: u64,
    flags: u32,
    id: i32,
}

/// `struct tee_ioctl_buf_data`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Arguments {
    /// Of the call's own arguments.
    pub address: u64,
    /// Their size in bytes.
    pub length: u64,
}

/// `struct tee_ioctl_cancel_arg`
#[repr(C)]
pub struct Cancel {
    cancel_id: u32,
    session: u32,
}

/// `struct tee_ioctl_open_session_arg` and its parameters.
#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct OpenSession {
    /// The trusted application.
    pub uuid: Uuid,
    /// Of the client, or a group's number, as `login` wants it.
    pub client_uuid: Uuid,
    /// `LOGIN_…`
    pub login: u32,
    /// By which it can be cancelled.
    pub cancel_id: u32,
    /// The answer: the session.
    pub session: u32,
    /// The answer: `TEEC_…`
    pub result: u32,
    /// The answer: `TEEC_ORIGIN_…`
    pub origin: u32,
    /// How many of `params` there are.
    pub param_count: u32,
    /// For the application, and from it.
    pub params: [Param; 4],
}

/// `struct tee_ioctl_invoke_arg`, with room for one parameter too many.
#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Invoke {
    /// Of the application.
    pub function: u32,
    /// Its session.
    pub session: u32,
    /// By which it can be cancelled.
    pub cancel_id: u32,
    /// The answer: `TEEC_…`
    pub result: u32,
    /// The answer: `TEEC_ORIGIN_…`
    pub origin: u32,
    /// How many of `params` there are.
    pub param_count: u32,
    /// For the application, and from it.
    pub params: [Param; 5],
}

mod ioctls {
    const MAGIC: u8 = 0xa4;

    nix::ioctl_read!(version, MAGIC, 0, super::Version);
    nix::ioctl_readwrite!(shm_alloc, MAGIC, 1, super::Allocation);
    nix::ioctl_read!(open_session, MAGIC, 2, super::Arguments);
    nix::ioctl_read!(invoke, MAGIC, 3, super::Arguments);
    nix::ioctl_read!(cancel, MAGIC, 4, super::Cancel);
    nix::ioctl_read!(close_session, MAGIC, 5, u32);
    nix::ioctl_readwrite!(shm_register_fd, MAGIC, 8, super::FdRegistration);
    nix::ioctl_readwrite!(shm_register, MAGIC, 9, super::Registration);
}

/// Requests by number, for [`Tee::raw`].
pub mod request {
    use super::{Allocation, Arguments, Cancel, Registration};
    use libc::c_ulong;

    const MAGIC: u8 = 0xa4;
    /// TEE_IOC_SHM_ALLOC
    pub const SHM_ALLOC: c_ulong = nix::request_code_readwrite!(MAGIC, 1, size_of::<Allocation>());
    /// TEE_IOC_OPEN_SESSION
    pub const OPEN_SESSION: c_ulong = nix::request_code_read!(MAGIC, 2, size_of::<Arguments>());
    /// TEE_IOC_INVOKE
    pub const INVOKE: c_ulong = nix::request_code_read!(MAGIC, 3, size_of::<Arguments>());
    /// TEE_IOC_CANCEL
    pub const CANCEL: c_ulong = nix::request_code_read!(MAGIC, 4, size_of::<Cancel>());
    /// TEE_IOC_CLOSE_SESSION
    pub const CLOSE_SESSION: c_ulong = nix::request_code_read!(MAGIC, 5, size_of::<u32>());
    /// TEE_IOC_SUPPL_RECV, which is for a helper of the TEE only.
    pub const SUPPL_RECV: c_ulong = nix::request_code_read!(MAGIC, 6, size_of::<Arguments>());
    /// TEE_IOC_SHM_REGISTER
    pub const SHM_REGISTER: c_ulong =
        nix::request_code_readwrite!(MAGIC, 9, size_of::<Registration>());
    /// None that there is.
    pub const UNKNOWN: c_ulong = nix::request_code_read!(MAGIC, 99, size_of::<Arguments>());
}

/// An open TEE device: a client, in the TEE Client API a context.
pub struct Tee {
    file: OwnedFd,
}

/// Memory shared with the TEE, until this is dropped.
#[derive(Debug)]
pub struct Shm {
    /// What keeps it.
    pub file: OwnedFd,
    /// By which the client names it.
    id: i32,
    /// Bytes.
    pub size: u64,
}

/// An open session. It is closed by [`Tee::close_session`], or with the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session(pub u32);

/// What came of a call.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// `TEEC_…`
    pub result: u32,
    /// `TEEC_ORIGIN_…`
    pub origin: u32,
    /// The parameters as the trusted application left them.
    pub params: [Param; 4],
}

impl Reply {
    /// The parts of an output value.
    pub fn value(&self, index: usize) -> (u64, u64, u64) {
        let param = &self.params[index];
        (param.a.get(), param.b.get(), param.c.get())
    }

    /// The size of an output memref.
    pub fn size(&self, index: usize) -> u64 {
        self.params[index].b.get()
    }

    /// Result and origin.
    pub fn verdict(&self) -> (u32, u32) {
        (self.result, self.origin)
    }

    /// It, if the call succeeded.
    pub fn ok(self, what: &str) -> Result<Self, Stop> {
        match self.result {
            tee::TEEC_SUCCESS => Ok(self),
            result => Err(Stop::finding(
                Eye::Cpu,
                format!("{what} fails with {result:#010x} of origin {}", self.origin),
            )),
        }
    }
}

/// A parameter that is not used.
pub const NONE: Param = value(tee::PARAM_NONE, 0, 0, 0);
/// No parameter at all.
pub const NO_PARAMS: [Param; 4] = [NONE; 4];
/// A value that the trusted application gives.
pub const VALUE_OUT: Param = value(tee::PARAM_VALUE_OUTPUT, 0, 0, 0);

/// A parameter from its parts.
pub const fn value(attr: u64, a: u64, b: u64, c: u64) -> Param {
    use zerocopy::little_endian::U64;
    Param {
        attr: U64::new(attr),
        a: U64::new(a),
        b: U64::new(b),
        c: U64::new(c),
    }
}

/// A value that the trusted application gets.
pub const fn value_in(a: u64, b: u64) -> Param {
    value(tee::PARAM_VALUE_INPUT, a, b, 0)
}

/// The NULL memref.
pub const fn null(attr: u64) -> Param {
    value(attr, 0, 0, MEMREF_NULL)
}

impl Shm {
    /// The kernel's name for it: the smallest number that is free.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// A memref: `size` bytes at `offset`.
    pub fn part(&self, attr: u64, offset: u64, size: u64) -> Param {
        value(attr, offset, size, self.id as u64)
    }

    /// A memref of all of it.
    pub fn all(&self, attr: u64) -> Param {
        self.part(attr, 0, self.size)
    }
}

impl AsRawFd for Tee {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Tee {
    /// Opens the device's node, which is one of several if the machine has other TEEs.
    pub fn open() -> Result<Self, Error> {
        for number in 0..NODES {
            let Ok(tee) = Self::open_at(&format!("/dev/tee{number}")) else {
                continue;
            };
            if tee.version()?.implementation == wire::MAGIC {
                return Ok(tee);
            }
        }
        Err(Error::Absent {
            what: "a TEE of ours among /dev/tee*".into(),
            remedy: "build the kernel with CONFIG_TEE, and the driver for it".into(),
        })
    }

    /// Opens a node, whoever's it is.
    pub fn open_at(path: &str) -> Result<Self, Errno> {
        let file = open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { file })
    }

    /// TEE_IOC_VERSION.
    pub fn version(&self) -> Result<Version, Error> {
        let mut version = Version::default();
        // SAFETY: the descriptor is open, the argument is the struct that this ioctl fills.
        unsafe { ioctls::version(self.file.as_raw_fd(), &mut version) }
            .map_err(Error::call("TEE_IOC_VERSION"))?;
        Ok(version)
    }

    /// TEE_IOC_SHM_REGISTER of this process's memory.
    pub fn register(&self, address: usize, length: usize) -> Result<Shm, Errno> {
        let mut registration = Registration {
            address: address as u64,
            length: length as u64,
            ..Default::default()
        };
        // SAFETY: the descriptor is open, the argument is the struct that this ioctl reads and fills. No reference into the memory
        // that is registered can exist, or it is refused.
        let fd = unsafe { ioctls::shm_register(self.file.as_raw_fd(), &mut registration) }?;
        Ok(Shm {
            // SAFETY: the kernel has just made this descriptor for us.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            id: registration.id,
            size: registration.length,
        })
    }

    /// TEE_IOC_SHM_REGISTER_FD of a dma-buf, which Linux has since 6.18 for those of [`crate::dmabuf::protected_heap`].
    pub fn register_dmabuf(&self, buffer: impl AsFd) -> Result<Shm, Errno> {
        let mut registration = FdRegistration {
            fd: buffer.as_fd().as_raw_fd().into(),
            ..Default::default()
        };
        // SAFETY: the descriptor is open, the argument is the struct that this ioctl reads and fills.
        let fd = unsafe { ioctls::shm_register_fd(self.file.as_raw_fd(), &mut registration) }?;
        Ok(Shm {
            // SAFETY: the kernel has just made this descriptor for us.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            id: registration.id,
            size: registration.size,
        })
    }

    /// TEE_IOC_SHM_ALLOC of at least `size` bytes.
    pub fn allocate(&self, size: usize) -> Result<Shm, Errno> {
        let mut allocation = Allocation {
            size: size as u64,
            ..Default::default()
        };
        // SAFETY: the descriptor is open, the argument is the struct that this ioctl reads and fills.
        let fd = unsafe { ioctls::shm_alloc(self.file.as_raw_fd(), &mut allocation) }?;
        Ok(Shm {
            // SAFETY: the kernel has just made this descriptor for us.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            id: allocation.id,
            size: allocation.size,
        })
    }

    /// Any request, with an argument at any address, which belongs to nobody else.
    pub fn raw(&self, request: libc::c_ulong, argument: usize) -> Result<i32, Errno> {
        // SAFETY: the descriptor is open. The kernel reads and writes at the argument what the caller has put there for it: memory of
        // which no references exist, or none.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) })
    }

    /// TEE_IOC_OPEN_SESSION as anybody; the session only if the call succeeded.
    pub fn try_open(&self, uuid: Uuid, params: [Param; 4]) -> Result<(Session, Reply), Errno> {
        self.open_as(LOGIN_PUBLIC, Uuid::default(), uuid, params)
    }

    /// TEE_IOC_OPEN_SESSION as `login` says, with what it goes with.
    pub fn open_as(
        &self,
        login: u32,
        client_uuid: Uuid,
        uuid: Uuid,
        params: [Param; 4],
    ) -> Result<(Session, Reply), Errno> {
        let mut call = OpenSession {
            uuid,
            client_uuid,
            login,
            param_count: PARAM_COUNT,
            params,
            ..Default::default()
        };
        let mut arguments = Arguments {
            address: &raw mut call as u64,
            length: size_of::<OpenSession>() as u64,
        };
        // SAFETY: the descriptor is open, the argument says where the struct is that this ioctl reads and fills, and how long.
        unsafe { ioctls::open_session(self.file.as_raw_fd(), &mut arguments) }?;
        let reply = Reply {
            result: call.result,
            origin: call.origin,
            params: call.params,
        };
        Ok((Session(call.session), reply))
    }

    /// A session that is expected to open.
    pub fn session(&self, uuid: Uuid) -> Result<Session, Stop> {
        let opened = self.try_open(uuid, NO_PARAMS);
        let (session, reply) = opened.map_err(Error::call("TEE_IOC_OPEN_SESSION"))?;
        reply.ok("OPEN_SESSION").map(|_| session)
    }

    /// TEE_IOC_INVOKE with any number of parameters up to five, and a name by which it can be cancelled.
    pub fn try_invoke(
        &self,
        session: Session,
        function: u32,
        params: &[Param],
        cancel_id: u32,
    ) -> Result<Reply, Errno> {
        let mut call = Invoke {
            function,
            session: session.0,
            cancel_id,
            param_count: params.len() as u32,
            ..Default::default()
        };
        call.params[..params.len()].copy_from_slice(params);
        let unused = call.params.len() - params.len();
        let mut arguments = Arguments {
            address: &raw mut call as u64,
            length: (size_of::<Invoke>() - unused * size_of::<Param>()) as u64,
        };
        // SAFETY: as in `try_open`.
        unsafe { ioctls::invoke(self.file.as_raw_fd(), &mut arguments) }?;
        let [a, b, c, d, _] = call.params;
        Ok(Reply {
            result: call.result,
            origin: call.origin,
            params: [a, b, c, d],
        })
    }

    /// A call that is expected to reach the TEE, whatever that says.
    pub fn invoke(
        &self,
        session: Session,
        function: u32,
        params: [Param; 4],
    ) -> Result<Reply, Error> {
        self.try_invoke(session, function, &params, 0)
            .map_err(Error::call("TEE_IOC_INVOKE"))
    }

    /// TEE_IOC_CANCEL.
    pub fn cancel(&self, session: Session, cancel_id: u32) -> Result<(), Errno> {
        let mut cancel = Cancel {
            cancel_id,
            session: session.0,
        };
        // SAFETY: the descriptor is open, the argument is the struct that this ioctl reads.
        unsafe { ioctls::cancel(self.file.as_raw_fd(), &mut cancel) }.map(drop)
    }

    /// TEE_IOC_CLOSE_SESSION.
    pub fn close_session(&self, session: Session) -> Result<(), Errno> {
        let mut number = session.0;
        // SAFETY: the descriptor is open, the argument is the struct of one number that this ioctl reads.
        unsafe { ioctls::close_session(self.file.as_raw_fd(), &mut number) }.map(drop)
    }
}
