// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A trace of what the guest's kernel does while a test runs: what the runner asks for, and how the guest sends it.
//!
//! The runner puts a [`Wanted`] as JSON into the initramfs at [`WANTED_PATH`]. The guest writes [`Part`]s to the virtio-serial port
//! [`PORT_NAME`], each after a [`Part::header`]; it decodes nothing.

use serde::{Deserialize, Serialize};
use std::format;
use std::string::String;
use std::vec::Vec;

/// Path of the [`Wanted`] in the guest; not there where nothing is to be traced.
pub const WANTED_PATH: &str = "/etc/pinbed-trace.json";
/// Name of the virtio-serial port that carries [`Part`]s.
pub const PORT_NAME: &str = "org.pinbed.trace";
/// The kernel's clock whose times a trace has: the CPU's time stamp counter.
pub const CLOCK: &str = "x86-tsc";

/// What is to be traced. What the kernel lacks of it is left out, and named in a [`Part`] of kind [`NOTE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// KiB of each of the two buffers that each CPU has: one of events, one of function graphs.
    pub buffer_kib: u32,
    /// Probes, as the kernel's `kprobe_events` takes them.
    pub probes: Vec<String>,
    /// Events, as `GROUP/NAME`, or a group alone.
    pub events: Vec<String>,
    /// Those of them that come with a kernel stack.
    pub stacks: Vec<String>,
    /// Functions whose calls are recorded, as `set_ftrace_filter` takes them. With none there is no graph.
    pub functions: Vec<String>,
    /// Whether the names of the kernel's functions are wanted, too.
    pub symbols: bool,
}

/// [`Part::kind`]: a sentence for a person.
pub const NOTE: &str = "note";
/// [`Part::kind`]: an event's `format` file.
pub const FORMAT: &str = "format";
/// [`Part::kind`]: `saved_cmdlines`: a task's number and name a line.
pub const TASKS: &str = "tasks";
/// [`Part::kind`]: `saved_tgids`: a task's number and its process's a line.
pub const PROCESSES: &str = "processes";
/// [`Part::kind`]: where modules' .text is: a name and an address a line.
pub const MODULES: &str = "modules";
/// [`Part::kind`]: `/proc/kallsyms`.
pub const SYMBOLS: &str = "symbols";
/// [`Part::kind`]: pages of the buffer of events, as `trace_pipe_raw` gives them.
pub const EVENTS: &str = "events";
/// [`Part::kind`]: pages of the buffer of function graphs.
pub const GRAPH: &str = "graph";

/// A piece of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// What it is.
    pub kind: &'a str,
    /// Whose buffer, where it is one.
    pub cpu: u32,
    /// The content.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// The line before the content: `KIND CPU LENGTH`.
    pub fn header(&self) -> String {
        format!("{} {} {}\n", self.kind, self.cpu, self.bytes.len())
    }

    /// The first part of `bytes`, and what follows it; nothing if it is not whole.
    pub fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let end = bytes.iter().take(80).position(|byte| *byte == b'\n')?;
        let mut words = core::str::from_utf8(&bytes[..end]).ok()?.split(' ');
        let (kind, cpu, length) = (words.next()?, words.next()?, words.next()?);
        let rest = &bytes[end + 1..];
        let length = length.parse().ok().filter(|length| *length <= rest.len())?;
        let (bytes, rest) = rest.split_at(length);
        let cpu = cpu.parse().ok()?;
        Some((Self { kind, cpu, bytes }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written_and_a_torn_one_is_none() {
        let part = Part {
            kind: GRAPH,
            cpu: 3,
            bytes: b"a\nb",
        };
        let mut bytes = part.header().into_bytes();
        bytes.extend(part.bytes);
        assert_eq!(Part::parse(&bytes), Some((part, &b""[..])));
        assert_eq!(Part::parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Part::parse(b"graph 1"), None);
    }
}
