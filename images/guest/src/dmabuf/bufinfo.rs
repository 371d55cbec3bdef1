// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which dma-bufs are alive, through debugfs.

use crate::harness::error::Error;
use std::fmt;
use std::fs;

/// A dma-buf somewhere in the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Bytes.
    pub size: u64,
    /// Who exported it.
    pub exporter: String,
    /// Its inode: a name for it.
    pub inode: u64,
    /// The devices that are attached to it.
    pub attached: Vec<String>,
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "dma-buf {} of {} bytes from {}",
            self.inode, self.size, self.exporter
        )
    }
}

/// All dma-bufs of the system.
pub fn alive() -> Result<Vec<Alive>, Error> {
    const WHERE: &str = "/sys/kernel/debug/dma_buf/bufinfo";
    let text = fs::read_to_string(WHERE).map_err(|_| Error::Absent {
        what: WHERE.into(),
        remedy: "build the kernel with CONFIG_DEBUG_FS and dma-buf support".into(),
    })?;
    parse(&text).map_err(|line| Error::Format {
        source_name: WHERE.into(),
        text: line,
    })
}

/// Objects are the lines that begin with a digit: size, flags, mode, count, exporter, inode, name; tabs between. The devices that are attached
/// follow each, a line for each.
fn parse(bufinfo: &str) -> Result<Vec<Alive>, String> {
    let mut all: Vec<Alive> = Vec::new();
    let mut in_devices = false;
    for line in bufinfo.lines() {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            let fields: Vec<_> = line.split('\t').map(str::trim).collect();
            let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
            let (Some(size), Some(exporter), Some(inode)) = (number(0), fields.get(4), number(5))
            else {
                return Err(line.to_owned());
            };
            all.push(Alive {
                size,
                exporter: (*exporter).into(),
                inode,
                attached: Vec::new(),
            });
        }
        // Between these two lines.
        if line.trim() == "Attached Devices:" {
            in_devices = true;
        } else if !line.starts_with('\t') {
            in_devices = false;
        } else if let (true, Some(last)) = (in_devices, all.last_mut()) {
            last.attached.push(line.trim().to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bufinfo_lists_objects_among_other_lines() {
        let text = "\nDma-buf Objects:\nsize    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n\
                    00004096\t00000002\t00080007\t00000002\tsystem\t00000012\t<none>\n\
                    \tAttached Devices:\n\tvirtio0\nTotal 1 devices attached\n\n\nTotal 1 objects, 4096 bytes\n";
        assert_eq!(
            parse(text).unwrap(),
            [Alive {
                size: 4096,
                exporter: "system".into(),
                inode: 12,
                attached: vec!["virtio0".into()],
            }]
        );
        assert!(parse("12 34\n").is_err());
    }
}
