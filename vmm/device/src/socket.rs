// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The listening socket: when its file is there, a front end can connect.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use vhost::vhost_user::Listener;

/// A socket that listens, and has no file yet that a front end would look for.
pub(crate) struct Bound {
    listener: UnixListener,
    fresh: PathBuf,
    path: PathBuf,
}

/// A listening socket whose file is removed when it is dropped.
pub(crate) struct Socket {
    pub listener: Listener,
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there since is not removed.
    file: (u64, u64),
}

/// Why no socket can listen at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is a file of another kind.
    #[error("it is a file that is not a socket; remove it or give another path")]
    NotASocket,
    /// A process listens there.
    #[error("another process listens there; end it or give another path")]
    InUse,
    /// The kernel refused.
    #[error("the directory must exist and be writable, and the path be shorter than 108 bytes")]
    Io(#[from] io::Error),
}

impl Bound {
    /// Listens, for [`Bound::publish`] at `path`.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => return Err(SocketError::NotASocket),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::InUse),
            Ok(_) | Err(_) => {}
        }
        let fresh = path.with_file_name(format!(".pinbed{}", std::process::id()));
        let listener = UnixListener::bind(&fresh)?;
        // For nobody else, whatever the directory allows.
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o700))?;
        Ok(Self {
            listener,
            fresh,
            path: path.to_owned(),
        })
    }

    /// The directory of the socket's file.
    pub fn directory(&self) -> &Path {
        match self.fresh.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        }
    }

    /// Gives the socket its file. A socket file that nobody listens at any more is replaced. The file appears when the socket listens
    /// already, which bind() alone would not do, so a front end may connect as soon as it sees it.
    pub fn publish(self) -> Result<Socket, SocketError> {
        let named = fs::symlink_metadata(&self.fresh).and_then(|file| {
            fs::rename(&self.fresh, &self.path)?;
            Ok((file.dev(), file.ino()))
        });
        match named {
            Ok(file) => Ok(Socket {
                listener: self.listener.into(),
                path: self.path,
                file,
            }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = fs::remove_file(&self.fresh);
                Err(error.into())
            }
        }
    }
}

impl Socket {
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the listener keeps its descriptor open as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.listener.as_raw_fd()) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
