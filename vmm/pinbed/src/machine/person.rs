// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A person's side of a command in the guest: their terminal or pipes, and the frames that carry them.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use console::Term;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use pinbed_abi::shell::{self, Frame, PAYLOAD_MAX, Size};
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;

/// What becomes known about the command.
#[derive(Debug)]
pub enum Said {
    /// It ended with this exit code.
    Ended(u8),
    /// Its shell left this history.
    History(Vec<u8>),
    /// The person wants the guest to end at once.
    Escape,
    /// Nobody reads its output any more.
    Unheard,
    /// The guest sent what is no frame.
    Garbled(String),
}

/// Carries standard input, output and error until the command ends, and tells what becomes known. `terminal` says that keys come from a
/// terminal in raw mode.
///
/// # Errors
/// When the connection or a signal is refused.
pub fn attach(
    port: UnixStream,
    terminal: bool,
    tell: impl Fn(Said) + Clone + Send + 'static,
) -> io::Result<()> {
    let send = Arc::new(Mutex::new(port.try_clone()?));
    // Threads that read standard input cannot be ended; they go with the process.
    thread::spawn({
        let (send, tell) = (send.clone(), tell.clone());
        move || take_keys(&send, terminal, &tell)
    });
    if terminal {
        let mut signals = Signals::new([SIGWINCH])?;
        thread::spawn(move || {
            for _ in signals.forever() {
                push(&send, &Frame::Size(size()));
            }
        });
    }
    thread::spawn(move || show(port, &tell));
    Ok(())
}

/// Sends a frame. If the guest is gone, we shall hear of that.
fn push(port: &Mutex<UnixStream>, frame: &Frame) {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = port.write_all(&frame.to_bytes());
}

fn take_keys(port: &Mutex<UnixStream>, terminal: bool, tell: &impl Fn(Said)) {
    let mut bytes = vec![0; PAYLOAD_MAX];
    let mut keys = Keys::default();
    loop {
        let count = match io::stdin().lock().read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal that has gone hangs us up, too.
            Ok(0) | Err(_) => return push(port, &Frame::Input(Vec::new())),
            Ok(count) => count,
        };
        if !terminal {
            push(port, &Frame::Input(bytes[..count].to_vec()));
            continue;
        }
        let Some(meant) = keys.through(&bytes[..count]) else {
            return tell(Said::Escape);
        };
        if !meant.is_empty() {
            push(port, &Frame::Input(meant));
        }
    }
}

fn show(mut port: UnixStream, say: &impl Fn(Said)) {
    loop {
        let shown = match Frame::read(&mut port) {
            Ok(Some(Frame::Output(bytes))) => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())
            }
            Ok(Some(Frame::Errors(bytes))) => io::stderr().lock().write_all(&bytes),
            Ok(Some(Frame::History(history))) => {
                say(Said::History(history));
                Ok(())
            }
            Ok(Some(Frame::Exit(code))) => return say(Said::Ended(code)),
            Ok(Some(frame)) => return say(Said::Garbled(format!("{frame:?}"))),
            // QEMU has ended, which is told by another.
            Ok(None) => return,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return say(Said::Garbled(error.to_string()));
            }
            Err(_) => return,
        };
        if shown.is_err() {
            return say(Said::Unheard);
        }
    }
}

/// Keys of a terminal: Ctrl-A is for us, and the key after it says what for.
#[derive(Debug, Default)]
struct Keys {
    after_prefix: bool,
}

const PREFIX: u8 = 0x01;

impl Keys {
    /// What the guest is to get of these keys; `None` if they mean that it shall end.
    fn through(&mut self, keys: &[u8]) -> Option<Vec<u8>> {
        let mut meant = Vec::with_capacity(keys.len());
        for &key in keys {
            match (self.after_prefix, key) {
                (false, PREFIX) => self.after_prefix = true,
                (false, _) => meant.push(key),
                (true, b'x' | b'X') => return None,
                // Ctrl-A twice, or Ctrl-A A, is one Ctrl-A.
                (true, PREFIX | b'a' | b'A') => {
                    meant.push(PREFIX);
                    self.after_prefix = false;
                }
                (true, _) => {
                    meant.extend([PREFIX, key]);
                    self.after_prefix = false;
                }
            }
        }
        Some(meant)
    }
}

/// Whether a person has both ends of a terminal.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal as the guest has to know it.
pub fn terminal() -> shell::Terminal {
    shell::Terminal {
        term: std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned()),
        size: size(),
    }
}

/// The terminal's size. One that does not know its size has that of a VT100.
fn size() -> Size {
    let (rows, columns) = Term::stdout().size();
    Size { rows, columns }
}

/// The terminal in raw mode; as it was when this is dropped.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Sets raw mode.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn set() -> nix::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends_the_guest_and_all_other_keys_are_its_own() {
        let mut keys = Keys::default();
        assert_eq!(keys.through(b"ls\r").as_deref(), Some(&b"ls\r"[..]));
        assert_eq!(keys.through(b"\x01").as_deref(), Some(&b""[..]));
        assert_eq!(keys.through(b"a\x01b").as_deref(), Some(&b"\x01\x01b"[..]));
        assert_eq!(keys.through(b"\x03\x01"), Some(vec![3]));
        assert_eq!(keys.through(b"x"), None);
    }
}
