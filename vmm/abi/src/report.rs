// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the runner asks of the guest, and what the guest reports.
//!
//! The runner puts a [`Plan`] as JSON into the initramfs at [`PLAN_PATH`]. The guest writes one [`Message`] a line, as JSON, to the
//! virtio-serial port [`PORT_NAME`]. A guest whose state is saved ([`Plan::Await`]) is told by an [`Errand`] over the same port, and
//! [`Message::Late`] and [`Message::TimedOut`] are answered there.

use crate::shell::Session;
use serde::{Deserialize, Serialize};
use std::boxed::Box;
use std::fmt;
use std::string::String;
use std::vec::Vec;

/// Path of the [`Plan`] in the guest.
pub const PLAN_PATH: &str = "/etc/pinbed-plan.json";
/// Path in the guest of the configuration of its kernel, in the form of a .config.
pub const CONFIG_PATH: &str = "/etc/pinbed-kernel.config";
/// What a comment in it says of a symbol whose module the runner left out.
pub const NOT_LOADED: &str = "is a module that is not loaded";
/// Path in the guest of the list of modules to load before the driver, in order: a line for each, its path and parameters. Not there
/// where the kernel has none.
pub const MODULES_PATH: &str = "/etc/pinbed-modules";
/// Name of the virtio-serial port that carries [`Message`]s.
pub const PORT_NAME: &str = "org.pinbed.report";

/// Group of the tests that run v4l2-compliance.
pub const COMPLIANCE_GROUP: &str = "compliance";
/// Directory in the guest with v4l2-compliance, its dynamic loader and its libraries, if the plan has a test of that group.
pub const COMPLIANCE_PATH: &str = "/opt/v4l2-compliance";
/// The dynamic loader in [`COMPLIANCE_PATH`].
pub const COMPLIANCE_LOADER: &str = "ld-linux-x86-64.so.2";
/// The program in [`COMPLIANCE_PATH`].
pub const COMPLIANCE_PROGRAM: &str = "v4l2-compliance";

/// The library in [`COMPLIANCE_PATH`] that makes time pass faster for a program: libfaketime.
pub const COMPLIANCE_HURRY: &str = "libfaketimeMT.so.1";

/// Groups of the tests that may have devices taken out of the machine and put in; see [`Message::Hotplug`].
pub const HOTPLUG_GROUPS: [&str; 2] = ["unplug", "devices"];

/// A part of the machine that the host takes out and puts in; see [`Message::Hotplug`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The pinbed device.
    Device,
    /// The memory of the second NUMA node, which is a DIMM.
    Memory,
    /// A second pinbed device.
    SecondDevice,
}

impl Part {
    /// Whether it is in the machine unless a test asks for something else.
    pub fn is_in_at_rest(self) -> bool {
        match self {
            Part::Device | Part::Memory => true,
            Part::SecondDevice => false,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Device => "device",
            Part::Memory => "memory",
            Part::SecondDevice => "second device",
        })
    }
}

/// What the guest is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// Run these tests in this order, then power off.
    Tests {
        /// Names as [`TestInfo::name`].
        names: Vec<String>,
        /// Seconds each test may take, unless it asks for more.
        timeout_s: u64,
    },
    /// Load the driver and run a command for a person; power off when it ends.
    Shell(Session),
    /// Get ready without the device, say [`Message::Ready`], and wait for an [`Errand`].
    Await,
}

/// What a guest is told that has said [`Message::Ready`], perhaps long ago and in another QEMU: one line of JSON on the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// What it is to do; not [`Plan::Await`]. The device is in the machine by now.
    pub plan: Plan,
    /// The time: nanoseconds since the epoch.
    pub realtime_ns: u64,
    /// Random bytes for the kernel, whose own are those of every guest from the same saved state.
    pub seed: Vec<u8>,
}

impl Errand {
    /// The errand as one line, with its newline.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        line_of(self)
    }
}

/// A line of JSON, with its newline.
fn line_of(value: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(value).map(|line| line + "\n")
}

impl Plan {
    /// Whether it has a test of this group.
    pub fn has_group(&self, group: &str) -> bool {
        let Self::Tests { names, .. } = self else {
            return false;
        };
        let of_group = |name: &str| name.split_once("::").is_some_and(|it| it.0 == group);
        names.iter().any(|name| of_group(name))
    }
}

/// The answer to [`Message::Late`] and [`Message::TimedOut`]: one line of JSON on the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// Milliseconds that the host kept the guest or its device from running, since the last message that was another one.
    pub ms: u64,
}

impl Delay {
    /// The answer as one line, with its newline.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        line_of(self)
    }
}

/// One test, as the guest's test binary lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TestInfo {
    /// `group::what_a_correct_kernel_does`.
    pub name: String,
    /// One sentence: what a correct kernel does.
    pub correct: String,
    /// Where that is from: a thread, a commit, a kernel document.
    pub source: String,
    /// Seconds that the test asks for, if more than the plan gives; else 0.
    pub timeout_s: u64,
}

/// One of the four eyes that judge a test, or the test itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Eye {
    /// What the process reads back, and what system calls return.
    Cpu,
    /// What the engine saw.
    Device,
    /// Where the page frames are.
    Placement,
    /// What is left behind.
    Aftermath,
    /// The test did not get to a judgement: it crashed, timed out, or could not set itself up.
    Harness,
    /// The state that the test starts from did not come about (pages in one piece, a page that moves), so it judged nothing.
    Premise,
}

/// Something a correct kernel does not do, or that kept the test from judging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Who saw it.
    pub eye: Eye,
    /// One sentence with the expected and the actual value.
    pub text: String,
}

/// What a test came to in the guest, before any baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No eye found anything.
    Pass,
    /// At least one did; never empty.
    Fail(Vec<Finding>),
    /// The guest lacks what the test needs; the reason says what and how to get it.
    Skip(String),
}

/// A part of guest memory that the kernel treats in its own way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Region {
    /// The kernel's name for it: "Node 0 DMA32", "reserved".
    pub name: String,
    /// What the kernel does with its pages.
    pub kind: RegionKind,
    /// Its first page frame.
    pub first: u64,
    /// How many page frames it spans; some of them may be holes.
    pub pages: u64,
}

/// What the kernel does with the pages of a [`Region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RegionKind {
    /// A zone with pages of every kind.
    Zone,
    /// ZONE_MOVABLE: no page in it may be pinned for long.
    Movable,
    /// A CMA region, which lies in a zone: no page in it may be pinned for long, unless a driver allocated it.
    Cma,
}

/// Page frame numbers, in the order in which the buffer has them. In JSON a string in the form of the kernel's cpulists, in hexadecimal:
/// "1b400-1b403,1a7f0" are five frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames(pub Vec<core::ops::RangeInclusive<u64>>);

impl FromIterator<u64> for Frames {
    fn from_iter<I: IntoIterator<Item = u64>>(frames: I) -> Self {
        let mut runs: Vec<core::ops::RangeInclusive<u64>> = Vec::new();
        for frame in frames {
            match runs.last_mut() {
                Some(run) if run.end().checked_add(1) == Some(frame) => *run = *run.start()..=frame,
                _ => runs.push(frame..=frame),
            }
        }
        Self(runs)
    }
}

impl core::fmt::Display for Frames {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (at, run) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match run.start() == run.end() {
                true => write!(f, "{comma}{:x}", run.start())?,
                false => write!(f, "{comma}{:x}-{:x}", run.start(), run.end())?,
            }
        }
        Ok(())
    }
}

impl Serialize for Frames {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frames {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let run = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some(number(first)?..=number(last)?)
        };
        let runs = text.split(',').filter(|run| !run.is_empty()).map(run);
        let runs: Option<Vec<_>> = runs.collect();
        runs.map(Frames).ok_or_else(|| {
            serde::de::Error::custom("not a list of page frames such as 1b400-1b403,1a7f0")
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Frames {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Frames".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Page frame numbers, in the order in which the buffer has them, in the form of the kernel's cpulists, in hexadecimal: \"1b400-1b403,1a7f0\" are five frames.",
            "pattern": "^([0-9a-f]+(-[0-9a-f]+)?(,[0-9a-f]+(-[0-9a-f]+)?)*)?$"
        })
    }
}

/// Where a buffer was at a moment of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sighting {
    /// The buffer, in the test's words: "OUTPUT 0", "registered memory".
    pub buffer: String,
    /// The moment.
    pub moment: Moment,
    /// The page frames.
    pub frames: Frames,
}

/// A moment in a buffer's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Moment {
    /// Before the kernel takes it: the frames that the process's page table has, as far as pages are present.
    Before,
    /// While the device holds it: the frames that the device has.
    Held,
    /// While the device holds it: the frames that the process's page table has, where they are others than the device's.
    Process,
    /// The device has read or written it: the frames that the device has.
    Dma,
}

/// What the guest's kernel and the device hold between two tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Holdings {
    /// Pages that are pinned: nr_foll_pin_acquired less nr_foll_pin_released.
    pub pinned: i64,
    /// Pages of CMA regions that are free: nr_free_cma.
    pub cma_free: i64,
    /// Pages of CMA regions that drivers have allocated.
    pub cma_used: u64,
    /// Page frames that the device holds.
    pub held: Frames,
}

/// What a test did with guest memory, as far as the guest looked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Memory {
    /// What was held before the test began.
    pub before: Holdings,
    /// Where its buffers were, in the order in which the test looked; what was seen again at the same place is there once.
    pub sightings: Vec<Sighting>,
    /// Whether the test looked more often than is kept.
    pub more: bool,
    /// What is held after the test's processes have gone and what they left has settled.
    pub after: Holdings,
}

/// A line from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Message {
    /// User space is up, and nothing is left to do without an [`Errand`]; comes before [`Message::Hello`].
    Ready,
    /// User space is up.
    Hello {
        /// `uname -r`.
        release: String,
        /// `uname -v`.
        version: String,
        /// Zones and CMA regions.
        #[serde(default)]
        regions: Vec<Region>,
    },
    /// The plan cannot be carried out (no driver, no device …). Nothing follows.
    Broken {
        /// One sentence.
        reason: String,
    },
    /// A test begins.
    Start {
        /// Its name.
        name: String,
    },
    /// The test that runs asks for another machine. There is no answer: the guest sees the part come or go.
    Hotplug {
        /// What is to come or to go.
        part: Part,
        /// Whether it is to be there: a new device in the place of one that went, or the same memory.
        plugged: bool,
    },
    /// By the guest's clock a limit is over. The host answers with a [`Delay`].
    Late,
    /// The test that runs has had all its time, and nothing of it is killed yet. The host looks at the machine, then answers with a [`Delay`].
    TimedOut {
        /// Its tasks, and all that are blocked: a line for each, and the functions of its kernel stack after it, indented.
        tasks: Vec<String>,
        /// Where each CPU is, in the kernel's own words.
        #[serde(default)]
        cpus: Vec<String>,
    },
    /// The test that runs asks to have guest memory compared; see [`crate::frozen`].
    Freeze {
        /// Physical address of the [`crate::frozen::Mailbox`].
        mailbox: u64,
    },
    /// A test ended.
    End {
        /// Its name.
        name: String,
        /// What it came to.
        outcome: Outcome,
        /// Milliseconds it took, with the judging.
        duration_ms: u64,
        /// Facts worth keeping, as `key: value` in the test's own words (addresses, counters).
        notes: Vec<String>,
        /// Kernel log lines that appeared meanwhile.
        dmesg: Vec<String>,
        /// What the test did with guest memory; none if it did not come to that.
        #[serde(default)]
        memory: Option<Box<Memory>>,
    },
    /// Every test of the plan ended; power off follows.
    Done,
}

impl Message {
    /// The message as one line, with its newline.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        line_of(self)
    }

    /// Parses a line, with or without its newline.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_runs_and_read_back() {
        let frames: Frames = [0x1b400, 0x1b401, 0x1b402, 0x1a7f0, 0x1b403, u64::MAX]
            .into_iter()
            .collect();
        let text = serde_json::to_string(&frames).unwrap();
        assert_eq!(text, "\"1b400-1b402,1a7f0,1b403,ffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<Frames>(&text).unwrap(), frames);
        assert_eq!(serde_json::from_str::<Frames>("\"\"").unwrap().0, []);
        for bad in ["\"g\"", "\"1-\"", "\"1-2-3\"", "1"] {
            assert!(serde_json::from_str::<Frames>(bad).is_err(), "{bad}");
        }
    }
}
