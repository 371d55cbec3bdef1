// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel log, record by record (Documentation/ABI/testing/dev-kmsg).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// /dev/kmsg; readable when there is another record.
pub struct Log {
    file: File,
}

/// What is read next.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// A line of the kernel's, without priority and time.
    Line(String),
    /// Records were overwritten before they could be read.
    Lost,
}

impl Log {
    /// Opens the log where it begins: at the oldest record that the kernel still has.
    ///
    /// # Errors
    /// When /dev/kmsg cannot be opened.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        Ok(Log { file })
    }
}

impl Iterator for Log {
    type Item = io::Result<Record>;

    /// The next record; none when all that the kernel has said so far is read.
    fn next(&mut self) -> Option<Self::Item> {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => {
                    if let Some(line) = kernel_line(&String::from_utf8_lossy(&record[..length])) {
                        return Some(Ok(Record::Line(line)));
                    }
                }
                Err(error) => match error.kind() {
                    // EPIPE. The next read goes on behind what is lost.
                    ErrorKind::BrokenPipe => return Some(Ok(Record::Lost)),
                    ErrorKind::Interrupted => (),
                    ErrorKind::WouldBlock => return None,
                    _ => return Some(Err(error)),
                },
            }
        }
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The text of a record "priority,sequence,time,flags;text\n key=value\n", if the kernel wrote it: processes can write to the log
/// too, and are no witnesses.
fn kernel_line(record: &str) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    let facility = priority >> 3;
    (facility == 0).then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_processes_are_not_the_kernels() {
        let kernel = "4,1022,5123456,-;WARNING: CPU: 0 PID: 61 at mm/gup.c:1 f+0x1\n SUBSYSTEM=x\n";
        assert_eq!(
            kernel_line(kernel).as_deref(),
            Some("WARNING: CPU: 0 PID: 61 at mm/gup.c:1 f+0x1")
        );
        assert_eq!(
            kernel_line("12,1023,5123457,-;WARNING: said a process\n"),
            None
        );
        assert_eq!(kernel_line("nonsense"), None);
    }
}
