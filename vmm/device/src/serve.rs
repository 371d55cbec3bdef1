// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Serving one front end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

use crate::Options;
use crate::backend::{Backend, Shared};
use crate::confine::confine;
use crate::inspect::{self, Inspector};
use crate::ring::no_memory;
use crate::socket::{Bound, SocketError};

/// Why the device could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket can listen at the path.
    #[error("cannot listen for a front end at {path}")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: SocketError,
    },
    /// The front end and this back end do not understand each other.
    #[error(
        "the front end broke the vhost-user protocol ({0}); see that it is QEMU 10.2 or newer with shared memory"
    )]
    Protocol(String),
    /// The system refused a thread, a descriptor or a signal mask.
    #[error("the system refused a resource that serving needs; see ulimit -a")]
    System(#[from] io::Error),
}

/// Listens at `socket`, serves one front end, and returns when it goes away, or on SIGTERM or SIGINT.
///
/// The socket file appears when the socket listens, so a front end may connect as soon as it sees the file. A file that a
/// dead process has left is replaced; the file is removed in the end. A peer that leaves before it has asked for the
/// device's features was no front end, and does not count.
///
/// It returns within a second, whatever is queued or runs.
///
/// The two signals are blocked in the calling thread while this runs; call it before the process has other threads, which
/// might take them.
pub fn serve(socket: &Path, options: Options) -> Result<(), Error> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let before = signals
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(io::Error::from)?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let stop = SignalFd::with_flags(&signals, flags).map_err(io::Error::from)?;
    let result = serve_until(socket, options, stop.as_fd());
    // Taken, or it would end the process as soon as it is unblocked.
    if let Ok(Some(signal)) = stop.read_signal() {
        log::info!("ends on signal {}", signal.ssi_signo);
    }
    before.thread_set_mask().map_err(io::Error::from)?;
    result
}

/// As [`serve`], but without a look at signals: returns when `stop` is readable. [`Options::confined`] is for good: it outlasts this.
pub fn serve_until(socket: &Path, options: Options, stop: BorrowedFd) -> Result<(), Error> {
    let unfit = |source| Error::Socket {
        path: socket.to_owned(),
        source,
    };
    let bound = Bound::bind(socket).map_err(unfit)?;
    let inspect = options.inspect.as_deref().map(inspect::Socket::bind);
    if options.confined {
        for missing in confine(bound.directory()) {
            // An error, so that it is seen without being asked for.
            log::error!("goes on less confined: {missing}");
        }
    }
    let inspector = inspect
        .transpose()?
        .map(inspect::Socket::serve)
        .transpose()?;
    let mut listening = bound.publish().map_err(unfit)?;
    log::info!("listens at {}", socket.display());
    loop {
        if wait(listening.fd(), stop)?
            || serve_peer(&mut listening.listener, &options, inspector.as_ref(), stop)?
        {
            return Ok(());
        }
        log::info!("a peer came and left without a word");
    }
}

/// Serves the next peer, until it leaves or `stop` is readable; false if it was no front end.
pub(crate) fn serve_peer(
    listener: &mut Listener,
    options: &Options,
    inspector: Option<&Inspector>,
    stop: BorrowedFd,
) -> Result<bool, Error> {
    let backend = Shared::new(Backend::new(no_memory(), options));
    if let Some(inspector) = inspector {
        inspector.watch(backend.engine());
    }
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend.clone(), no_memory())
        .map_err(|error| Error::System(io::Error::other(error.to_string())))?;
    daemon.start(listener).map_err(protocol)?;
    let (ended, stopped) = finish(&mut daemon, stop)?;
    // The daemon's drop joins the workers, whose jobs end at their next slice.
    backend.stop();
    drop(daemon);
    if !stopped && !backend.spoken_to() {
        return Ok(false);
    }
    log::info!(
        "{}",
        if stopped {
            "was told to end"
        } else {
            "the front end has gone"
        }
    );
    ended.map(|()| true)
}

/// Waits until the connection ends, or `stop` is readable and it is ended for that; true if so.
fn finish(
    daemon: &mut VhostUserDaemon<Shared>,
    stop: BorrowedFd,
) -> Result<(Result<(), Error>, bool), Error> {
    let (done, not_done) = UnixStream::pair()?;
    let connection = daemon.shutdown_handle();
    let stopped = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            // An error here would leave the connection without a way to be told to stop: end it.
            if wait(done.as_fd(), stop).unwrap_or(true) {
                stopped.store(true, Ordering::Relaxed);
                if let Some(connection) = connection {
                    connection.shutdown();
                }
            }
        });
        let ended = daemon.wait();
        drop(not_done);
        ended
    });
    let stopped = stopped.into_inner();
    let ended = match ended {
        Err(DaemonError::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::PartialMessage,
        )) => Ok(()),
        other => other.map_err(protocol),
    };
    Ok((ended, stopped))
}

fn protocol(error: DaemonError) -> Error {
    Error::Protocol(error.to_string())
}

/// Waits until `fd` or `stop` is readable or has hung up; true if `stop` is.
fn wait(fd: BorrowedFd, stop: BorrowedFd) -> io::Result<bool> {
    let mut fds = [fd, stop].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return Ok(fds[1].any().unwrap_or(false)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
