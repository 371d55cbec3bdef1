// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The way to the runner: a virtio-serial port.

use crate::Broken;
use pinbed_abi::report::{Message, PORT_NAME};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the port may take to appear: the host names it some time after the driver found it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The open report port.
pub struct Port {
    file: File,
}

impl Port {
    /// Finds the port by its name and opens it.
    pub fn open() -> Result<Self, Broken> {
        let start = Instant::now();
        loop {
            if let Some(path) = find()
                && let Ok(file) = OpenOptions::new().write(true).open(&path)
            {
                return Ok(Self { file });
            }
            if start.elapsed() > PATIENCE {
                return Err(Broken(format!(
                    "there is no virtio-serial port named {PORT_NAME}; start QEMU with -device virtserialport,name={PORT_NAME}"
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a message. If it cannot be sent nobody can be told but the console.
    pub fn send(&mut self, message: &Message) {
        let sent = match message.to_line() {
            Ok(line) => self
                .file
                .write_all(line.as_bytes())
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            eprintln!("pinbed-init: cannot send {message:?}: {error}");
        }
    }
}

fn find() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|port| {
            let name = fs::read_to_string(port.path().join("name")).ok()?;
            (name.trim_end() == PORT_NAME).then(|| Path::new("/dev").join(port.file_name()))
        })
}
