// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A command that runs in the guest for a person: what the runner asks for, and the frames that carry its streams.
//!
//! The virtio-serial port [`PORT_NAME`] carries [`Frame`]s in both directions. On the wire a frame is a byte that says its kind, the
//! length of its payload (32 bits, little-endian, at most [`PAYLOAD_MAX`]), and the payload.

use serde::{Deserialize, Serialize};
use std::format;
use std::io::{self, Read};
use std::string::String;
use std::vec;
use std::vec::Vec;

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "org.pinbed.shell";
/// The largest payload of a frame, in bytes: with its head it fits into one write to a port, of which Linux takes 32 KiB.
pub const PAYLOAD_MAX: usize = 16 << 10;
/// Where the guest has a directory of the host unless another place is named.
pub const SHARE_PLACE: &str = "/host";
/// Path in the guest of the shell's history.
pub const HISTORY_PATH: &str = "/root/.ash_history";

/// What the guest is to run for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The program and its arguments; empty for a login shell.
    pub command: Vec<String>,
    /// The terminal of the person; without one the command has pipes.
    pub terminal: Option<Terminal>,
    /// Directories of the host.
    pub shares: Vec<Share>,
    /// The root file system of the command; without one it has the initramfs.
    pub root: Option<Root>,
    /// Whether the guest has a network card with QEMU's user networking behind it.
    pub network: bool,
}

/// A person's terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// `TERM`.
    pub term: String,
    /// Its size.
    pub size: Size,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A directory of the host in the guest, by 9p.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The mount tag.
    pub tag: String,
    /// Where the guest mounts it: an absolute path.
    pub place: String,
    /// Whether the guest may write there.
    pub writable: bool,
}

/// A root file system, which the guest sees under an overlay in memory: what is written there goes with the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A directory of the host with this mount tag.
    Share(String),
    /// The file system on this disk, such as `/dev/vda`.
    Disk(String),
}

/// A piece of a stream, or news about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// For the command's standard input, or keys; empty at the input's end.
    Input(Vec<u8>),
    /// The terminal has this size now.
    Size(Size),
    /// From the command's standard output, or its terminal.
    Output(Vec<u8>),
    /// From the command's standard error.
    Errors(Vec<u8>),
    /// The history of the shell, which is about to end.
    History(Vec<u8>),
    /// The command ended with this exit code, 128 + N after signal N. The last frame.
    Exit(u8),
}

impl Frame {
    /// The frame as the wire has it. A payload of more than [`PAYLOAD_MAX`] is cut.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size;
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Frame::Input(bytes) => (b'i', bytes),
            Frame::Size(of) => {
                let [a, b] = of.rows.to_le_bytes();
                let [c, d] = of.columns.to_le_bytes();
                size = [a, b, c, d];
                (b's', &size)
            }
            Frame::Output(bytes) => (b'o', bytes),
            Frame::Errors(bytes) => (b'e', bytes),
            Frame::History(bytes) => (b'h', bytes),
            Frame::Exit(of) => {
                code = [*of];
                (b'x', &code)
            }
        };
        let payload = &payload[..payload.len().min(PAYLOAD_MAX)];
        let mut bytes = vec![kind];
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Reads the next frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of `from`; [`io::ErrorKind::UnexpectedEof`] for a frame that is cut off, [`io::ErrorKind::InvalidData`] for what is none.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        let mut have = 0;
        while have < head.len() {
            match from.read(&mut head[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > PAYLOAD_MAX {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(match (kind, &payload[..]) {
            (b'i', _) => Frame::Input(payload),
            (b's', &[a, b, c, d]) => Frame::Size(Size {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            }),
            (b'o', _) => Frame::Output(payload),
            (b'e', _) => Frame::Errors(payload),
            (b'h', _) => Frame::History(payload),
            (b'x', &[code]) => Frame::Exit(code),
            _ => {
                return Err(invalid(format!(
                    "a frame of kind {kind} and {length} bytes"
                )));
            }
        }))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let size = Size {
            rows: 50,
            columns: 300,
        };
        let frames = [
            Frame::Input(vec![]),
            Frame::Input(b"ls\n".to_vec()),
            Frame::Size(size),
            Frame::Output(vec![0xff; PAYLOAD_MAX]),
            Frame::Errors(b"no".to_vec()),
            Frame::History(b"ls".to_vec()),
            Frame::Exit(130),
        ];
        let wire: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut rest = &wire[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut rest).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for bytes in [
            &b"o\x05\0\0\0hell"[..],
            b"o\x05\0",
            b"o\xff\xff\xff\xff",
            b"?\0\0\0\0",
            b"x\x02\0\0\0ab",
        ] {
            assert!(Frame::read(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
