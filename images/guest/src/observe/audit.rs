// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who takes user pages, with which flags, who accounts them, and when they are let go: the kernel's own functions for that, watched by kprobe
//! events.

use crate::harness::error::Error;
use crate::observe::extent::PAGE;
use crate::observe::release::release;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process;

const TRACING: &str = "/sys/kernel/tracing";

/// What is watched. Each has a group of events of its own, since to switch one on takes the kernel tens of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// What takes pages.
    Takers,
    /// What counts them against RLIMIT_MEMLOCK, and what unpins them. Who counts by hand, as io_uring does, is not seen.
    Accountants,
}

impl Watched {
    fn group(self) -> &'static str {
        match self {
            Self::Takers => "pinbed_audit",
            Self::Accountants => "pinbed_accounts",
        }
    }

    fn functions(self) -> &'static [Function] {
        match self {
            Self::Takers => FUNCTIONS,
            Self::Accountants => ACCOUNTANTS,
        }
    }
}

/// A function that takes pages, and the arguments of x86-64's that say which and how. What a kernel lacks is not watched.
struct Function {
    name: &'static str,
    /// First address, or offset in a file.
    start: &'static str,
    /// Number of pages.
    count: Option<&'static str>,
    flags: Option<&'static str>,
}

const fn of_task(name: &'static str) -> Function {
    Function {
        name,
        start: "%di",
        count: Some("%si"),
        flags: Some("%dx"),
    }
}

const fn of_mm(name: &'static str) -> Function {
    Function {
        name,
        start: "%si",
        count: Some("%dx"),
        flags: Some("%cx"),
    }
}

const FUNCTIONS: &[Function] = &[
    of_task("pin_user_pages"),
    of_task("pin_user_pages_fast"),
    // Gone since 6.2.
    of_task("pin_user_pages_locked"),
    of_mm("pin_user_pages_remote"),
    of_task("get_user_pages"),
    of_task("get_user_pages_fast"),
    of_task("get_user_pages_fast_only"),
    of_mm("get_user_pages_remote"),
    // Of a file: there is no address. 6.11 and later.
    Function {
        name: "memfd_pin_folios",
        start: "%si",
        count: None,
        flags: None,
    },
];

/// The first argument is no user address of theirs, but an mm or pages.
const fn of_pages(name: &'static str) -> Function {
    Function {
        name,
        start: "%di",
        count: Some("%si"),
        flags: None,
    }
}

const ACCOUNTANTS: &[Function] = &[
    of_pages("account_locked_vm"),
    of_pages("__account_locked_vm"),
    of_pages("unpin_user_pages"),
    of_pages("unpin_user_pages_dirty_lock"),
    // 5.15 and later.
    of_pages("unpin_user_page_range_dirty_lock"),
    // 6.11 and later.
    of_pages("unpin_folios"),
    Function {
        name: "unpin_user_page",
        start: "%di",
        count: None,
        flags: None,
    },
];

/// A call of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taking {
    /// "pin_user_pages_fast".
    pub function: String,
    /// First address; of memfd_pin_folios() the offset in the file.
    pub start: u64,
    /// Pages; 0 where the function does not say.
    pub pages: u64,
    /// FOLL_ flags; of memfd_pin_folios() none, which pins for long by itself.
    pub flags: Option<u32>,
    /// When, in microseconds of the kernel's clock.
    pub at: u64,
}

impl fmt::Display for Taking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}() of {} pages", self.function, self.pages)?;
        match self.flags {
            Some(flags) => write!(f, ", flags {flags:#x}"),
            None => Ok(()),
        }
    }
}

/// For a message.
pub fn list(takings: &[Taking]) -> String {
    if takings.is_empty() {
        return "nothing".into();
    }
    let each: Vec<_> = takings.iter().map(Taking::to_string).collect();
    each.join("; ")
}

impl Taking {
    /// Whether the page at this address was asked for; always, where there is no address.
    pub fn includes(&self, address: usize) -> bool {
        let start = self.start & !(PAGE as u64 - 1);
        self.flags.is_none()
            || (start..start + self.pages * PAGE as u64).contains(&(address as u64))
    }

    /// Whether it says that the pages stay pinned for as long as user space likes.
    pub fn is_long_term(&self) -> Result<bool, Error> {
        Ok(match self.flags {
            None => true,
            Some(flags) => flags & longterm()? != 0,
        })
    }
}

/// FOLL_LONGTERM, which 6.3 gave another value.
fn longterm() -> Result<u32, Error> {
    Ok(match release()? >= (6, 3) {
        true => 1 << 8,
        false => 0x10000,
    })
}

/// Watches from its making on.
#[derive(Debug)]
pub struct Audit(Watched);

impl Audit {
    /// Begins to watch what takes this process's pages.
    ///
    /// # Errors
    /// Where the kernel has no kprobe events, or none of the functions.
    pub fn begin() -> Result<Self, Error> {
        Self::of(Watched::Takers)
    }

    /// Begins to watch this process.
    ///
    /// # Errors
    /// As [`Audit::begin`].
    pub fn of(watched: Watched) -> Result<Self, Error> {
        let group = watched.group();
        let events = Path::new(TRACING).join("kprobe_events");
        if !events.exists() {
            return Err(Error::Absent {
                what: events.display().to_string(),
                remedy: "build the kernel with CONFIG_KPROBE_EVENTS".into(),
            });
        }
        let audit = Self(watched);
        let mut found = 0;
        for function in watched.functions() {
            let mut event = format!(
                "p:{group}/{} {} start={}:x64",
                function.name, function.name, function.start
            );
            for (name, register, kind) in [
                ("pages", function.count, "u32"),
                ("flags", function.flags, "x32"),
            ] {
                if let Some(register) = register {
                    event += &format!(" {name}={register}:{kind}");
                }
            }
            // Those of an earlier audit are still there, switched off: to make and to delete one takes the kernel tens of milliseconds.
            let made = Path::new(TRACING).join("events").join(group);
            let is_there = made.join(function.name).exists();
            // What is not in this kernel is refused.
            found += usize::from(is_there || append(&events, &event).is_ok());
        }
        if found == 0 {
            return Err(Error::Absent {
                what: "functions that take user pages".into(),
                remedy: "build the kernel with CONFIG_KPROBES and CONFIG_KALLSYMS".into(),
            });
        }
        write("trace", "")?;
        write(&format!("events/{group}/enable"), "1")?;
        write("tracing_on", "1")?;
        Ok(audit)
    }

    /// What this process asked for meanwhile.
    pub fn end(self) -> Result<Vec<Taking>, Error> {
        let watched = self.0;
        drop(self);
        let path = Path::new(TRACING).join("trace");
        let text = fs::read_to_string(&path).map_err(Error::io("reading the kernel's trace"))?;
        let is_one = |taking: &Taking| {
            let mut names = watched.functions().iter().map(|function| function.name);
            names.any(|name| name == taking.function)
        };
        let all = parse(&text, process::id()).into_iter();
        Ok(all.filter(is_one).collect())
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let _ = write(&format!("events/{}/enable", self.0.group()), "0");
    }
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(text.as_bytes())
}

fn write(file: &str, text: &str) -> Result<(), Error> {
    let path = Path::new(TRACING).join(file);
    fs::write(&path, text).map_err(Error::io(format!("writing {}", path.display())))
}

/// The lines of a process: `comm-PID [cpu] flags time: event: (function+0x0/0x10) start=0x1 pages=1 flags=0x1`.
fn parse(text: &str, process: u32) -> Vec<Taking> {
    let line = |line: &str| {
        let (head, rest) = line.split_once(" [")?;
        let (_, pid) = head.rsplit_once('-')?;
        if pid.trim().parse::<u32>().ok()? != process {
            return None;
        }
        let (before, values) = rest.split_once(": (")?;
        let (before, function) = before.rsplit_once(' ')?;
        let seconds: f64 = before
            .split(' ')
            .next_back()?
            .strip_suffix(':')?
            .parse()
            .ok()?;
        let value = |name: &str| {
            let (_, rest) = values.split_once(&format!(" {name}="))?;
            let text = rest.split_whitespace().next()?;
            match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            }
        };
        Some(Taking {
            function: function.to_owned(),
            start: value("start")?,
            pages: value("pages").unwrap_or(0),
            flags: value("flags").map(|flags| flags as u32),
            at: (seconds * 1e6).round() as u64,
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_trace_are_read() {
        let text = "# tracer: nop\n#\n\
            \x20  pinbed-guest-123     [001] d....    12.345678: pin_user_pages_fast: (pin_user_pages_fast+0x4/0x60) start=0x7f0000001010 pages=2 flags=0x101\n\
            \x20           sh-7       [000] d....    12.345679: get_user_pages: (get_user_pages+0x0/0x60) start=0x1000 pages=1 flags=0x1\n\
            \x20  pinbed-guest-123     [001] d....    12.345680: memfd_pin_folios: (memfd_pin_folios+0x0/0x600) start=0x0\n";
        let takings = parse(text, 123);
        let expected = [
            Taking {
                function: "pin_user_pages_fast".into(),
                start: 0x7f00_0000_1010,
                pages: 2,
                flags: Some(0x101),
                at: 12_345_678,
            },
            Taking {
                function: "memfd_pin_folios".into(),
                start: 0,
                pages: 0,
                flags: None,
                at: 12_345_680,
            },
        ];
        assert_eq!(takings, expected);
        assert!(takings[0].includes(0x7f00_0000_2000));
        assert!(!takings[0].includes(0x7f00_0000_3000));
        assert!(takings[1].includes(0x1234_5000));
    }
}
