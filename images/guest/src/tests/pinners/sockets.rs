// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sockets that take user pages: AF_XDP's umem, and MSG_ZEROCOPY.

use super::absent;
use crate::tests::dmabuf::taker::Taker;
use nix::errno::Errno;
use pinbed_guest::harness::error::Error;
use pinbed_guest::observe::extent::PAGE;
use std::ffi::CStr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// XDP_UMEM_REG of an AF_XDP socket: the pages are its frames until it is closed.
pub struct Umem(OwnedFd);

/// struct xdp_umem_reg of linux/if_xdp.h.
#[repr(C)]
struct Registration {
    address: u64,
    length: u64,
    chunk_size: u32,
    headroom: u32,
    flags: u32,
    tx_metadata_length: u32,
}

impl Umem {
    /// A socket without memory.
    ///
    /// # Errors
    /// Where the kernel has none.
    pub fn open() -> Result<Self, Error> {
        // SAFETY: no memory is involved.
        let made = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        match Errno::result(made) {
            // SAFETY: the descriptor has just been made, and is nobody else's.
            Ok(made) => Ok(Self(unsafe { OwnedFd::from_raw_fd(made) })),
            Err(Errno::EAFNOSUPPORT) => Err(absent("sockets of AF_XDP", "CONFIG_XDP_SOCKETS")),
            Err(errno) => Err(Error::call("socket of AF_XDP")(errno)),
        }
    }
}

impl Taker for Umem {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        let registration = Registration {
            address: address as u64,
            length: PAGE as u64,
            chunk_size: PAGE as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_length: 0,
        };
        set(
            self.0.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_REG,
            &registration,
        )
    }
}

/// A UDP socket that sends to itself with MSG_ZEROCOPY.
pub struct ZeroCopy(UdpSocket);

impl ZeroCopy {
    /// With the loopback device up.
    ///
    /// # Errors
    /// Where the kernel has no Internet protocols.
    pub fn open() -> Result<Self, Error> {
        let any = UdpSocket::bind("0.0.0.0:0")
            .map_err(|_| absent("sockets of AF_INET", "CONFIG_INET"))?;
        set_up(&any, c"lo").map_err(Error::call("setting the loopback device up"))?;
        let made = || -> io::Result<_> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(socket.local_addr()?)?;
            Ok(socket)
        };
        let made = made().map_err(Error::io("connecting a UDP socket to itself"))?;
        set(
            made.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            &1_i32,
        )
        .map_err(Error::call("setsockopt of SO_ZEROCOPY"))?;
        Ok(Self(made))
    }
}

impl Taker for ZeroCopy {
    fn take(&mut self, address: usize) -> Result<(), Errno> {
        // SAFETY: the address is that of a mapping's page, of which no references exist.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                address as *const _,
                PAGE,
                libc::MSG_ZEROCOPY,
            )
        };
        match Errno::result(sent)? as usize {
            PAGE => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

/// Sets a network device up.
fn set_up(socket: &UdpSocket, name: &CStr) -> Result<(), Errno> {
    // SAFETY: a struct of numbers and bytes, for which zero is good.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and the argument is the struct that the call reads.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })?;
    Ok(())
}

fn set<T>(socket: RawFd, level: i32, option: i32, value: &T) -> Result<(), Errno> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the argument is a live value of this length, which the call reads.
    let set =
        unsafe { libc::setsockopt(socket, level, option, (&raw const *value).cast(), length) };
    Errno::result(set).map(drop)
}
