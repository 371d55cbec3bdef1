// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A memory region of RDMA: rxe, RDMA in software, on a dummy network card, by the kernel's own calls.

use super::{absent, remedy};
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use nix::unistd::{read, write};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::node::open_node;
use pinbed_guest::observe::extent::PAGE;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

const UVERBS: &str = "/dev/infiniband/uverbs0";
const CARD: &str = "dummy0";

const NETLINK_RDMA: i32 = 20;
/// RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_NEWLINK).
const NEWLINK: u16 = 5 << 10 | 3;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_NDEV_NAME: u16 = 51;
const ATTR_LINK_TYPE: u16 = 65;

/// IB_USER_VERBS_CMD_ of rdma/ib_user_verbs.h.
const GET_CONTEXT: u32 = 0;
const ALLOC_PD: u32 = 3;
const REG_MR: u32 = 9;
const LOCAL_WRITE: u32 = 1;

/// A protection domain, which regions are registered in until its file is closed.
pub struct Domain {
    file: OwnedFd,
    handle: u32,
}

impl Domain {
    /// Of a device that is made for it, if there is none yet.
    ///
    /// # Errors
    /// Where the kernel has no RDMA in software.
    pub fn open() -> Result<Self, Error> {
        if !Path::new(UVERBS).exists() {
            add_link()?;
        }
        let file = open_node(UVERBS, remedy("CONFIG_INFINIBAND_USER_ACCESS"))?;
        let [_async_fd, _] =
            command::<2>(&file, GET_CONTEXT).map_err(Error::call("GET_CONTEXT of RDMA"))?;
        let [handle] = command::<1>(&file, ALLOC_PD).map_err(Error::call("ALLOC_PD of RDMA"))?;
        Ok(Self { file, handle })
    }
}

/// A command of the old kind, which has no argument but the place for its answer.
fn command<const N: usize>(file: &OwnedFd, number: u32) -> Result<[u32; N], Errno> {
    let mut answer = [0_u32; N];
    let mut words = vec![number, (N as u32) << 16 | 4];
    let place = answer.as_mut_ptr() as u64;
    words.extend([place as u32, (place >> 32) as u32]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    write(file, &bytes)?;
    // Written by the kernel.
    Ok(std::hint::black_box(answer))
}

/// struct ib_uverbs_reg_mr.
#[repr(C)]
struct Registration {
    response: u64,
    start: u64,
    length: u64,
    iova: u64,
    domain: u32,
    access: u32,
}

/// struct ib_uverbs_attr of rdma/rdma_user_ioctl_cmds.h.
#[repr(C)]
struct Attribute {
    id: u16,
    length: u16,
    flags: u16,
    reserved: u16,
    data: u64,
}

/// struct ib_uverbs_ioctl_hdr, and UVERBS_METHOD_INVOKE_WRITE's attributes.
#[repr(C)]
struct Invoke {
    length: u16,
    object: u16,
    method: u16,
    attributes: u16,
    reserved: u64,
    driver: u32,
    reserved2: u32,
    core_in: Attribute,
    core_out: Attribute,
    command: Attribute,
}

/// RDMA_DRIVER_RXE.
const RXE: u32 = 14;
/// RDMA_VERBS_IOCTL: _IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr).
const VERBS: libc::c_ulong = 0xc018_1b01;

impl Taker for Domain {
    /// By ioctl(2): write(2) is refused once the caller has other credentials than had who opened the file.
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let registration = Registration {
            response: 0,
            start: address as u64,
            length: PAGE as u64,
            iova: address as u64,
            domain: self.handle,
            access: LOCAL_WRITE,
        };
        // mr_handle, lkey, rkey.
        let mut answer = [0_u32; 3];
        let attribute = |id, length: usize, data| Attribute {
            id,
            length: length as u16,
            flags: 1,
            reserved: 0,
            data,
        };
        let mut invoke = Invoke {
            length: size_of::<Invoke>() as u16,
            object: 0,
            method: 0,
            attributes: 3,
            reserved: 0,
            driver: RXE,
            reserved2: 0,
            core_in: attribute(0, size_of::<Registration>(), &raw const registration as u64),
            core_out: attribute(1, size_of_val(&answer), answer.as_mut_ptr() as u64),
            command: attribute(2, 8, REG_MR.into()),
        };
        // SAFETY: the descriptor is open; the argument and what it points at live until the call is over. The page is that of a mapping, of
        // which no references exist.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), VERBS, &raw mut invoke) })?;
        Ok(())
    }
}

/// `rdma link add rxe0 type rxe netdev dummy0`.
fn add_link() -> Result<(), Error> {
    if !Path::new("/sys/class/net").join(CARD).exists() {
        return Err(absent("a dummy network card", "CONFIG_DUMMY"));
    }
    // SAFETY: no memory is involved.
    let made = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            NETLINK_RDMA,
        )
    };
    let made = match Errno::result(made) {
        // SAFETY: the descriptor has just been made, and is nobody else's.
        Ok(made) => unsafe { OwnedFd::from_raw_fd(made) },
        Err(_) => return Err(absent("RDMA", "CONFIG_INFINIBAND")),
    };
    let mut message = vec![0; 16];
    for (kind, text) in [
        (ATTR_DEV_NAME, "rxe0"),
        (ATTR_LINK_TYPE, "rxe"),
        (ATTR_NDEV_NAME, CARD),
    ] {
        let length = 4 + text.len() + 1;
        message.extend((length as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(text.bytes());
        message.resize((message.len() + 1).next_multiple_of(4), 0);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&NEWLINK.to_ne_bytes());
    // NLM_F_REQUEST and NLM_F_ACK.
    message[6..8].copy_from_slice(&5_u16.to_ne_bytes());
    write(&made, &message).map_err(Error::call("asking for a link of RDMA"))?;
    let mut answer = [0; 1024];
    let length =
        read(&made, &mut answer).map_err(Error::call("the answer about a link of RDMA"))?;
    let errno = answer[..length].get(16..20).map_or(libc::EIO, |bytes| {
        -i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    });
    match Errno::from_raw(errno) {
        _ if errno == 0 => Ok(()),
        Errno::EEXIST => Ok(()),
        Errno::EINVAL | Errno::EOPNOTSUPP => Err(absent("rxe", "CONFIG_RDMA_RXE")),
        errno => Err(Error::call("adding a link of rxe")(errno)),
    }
}
