// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Allocations that the kernel makes fail (Documentation/fault-injection/fault-injection.rst), for the environments failslab and
//! fail_page_alloc, which say `pinbed_fail=NAME` on the kernel's command line.
//!
//! A test that passes is run again, each time with one allocation that fails, below ioctl(2), at a point that is random and the same in
//! each run. What is right then, [`counts`] says.

use crate::{Broken, aftermath};
use pinbed_abi::report::{Eye, Finding};
use pinbed_guest::harness::{cmdline, ctx};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// How often a test that passes is run again, unless `pinbed_fail=NAME,ROUNDS` says.
const ROUNDS: u32 = 3;
/// Below which function allocations fail: `pinbed_fail=NAME,ROUNDS,FUNCTION` names another.
const BELOW: &str = "__x64_sys_ioctl";
/// Neighbours in kernel/dma/debug.c: where an allocation of theirs fails, DMA-API debugging switches itself off for good.
const CHECKER: [&str; 2] = ["dma_entry_alloc", "add_dma_entry"];
/// The driver's function by which tests talk to the device themselves.
const RAW_REQUESTS: &str = "pinbed_ioctl";
/// A budget that no test uses up: bytes, or pages.
const ENDLESS: i32 = i32::MAX;

/// One of the kernel's places where allocations can be made to fail.
pub struct Failing {
    name: String,
    /// How many further rounds a test has.
    pub rounds: u32,
    directory: PathBuf,
}

impl Failing {
    /// What the kernel's command line asks for.
    pub fn asked() -> Result<Option<Self>, Broken> {
        let Some(asked) = parse(&cmdline::read()?)? else {
            return Ok(None);
        };
        let failing = Self {
            directory: format!("/sys/kernel/debug/{}", asked.name).into(),
            name: asked.name,
            rounds: asked.rounds,
        };
        let symbols = fs::read_to_string("/proc/kallsyms")?;
        let below = extent(&symbols, &asked.below).ok_or_else(|| {
            Broken(format!(
                "/proc/kallsyms does not say where {}() is, below which allocations are to fail",
                asked.below
            ))
        })?;
        failing.set_range("require", below)?;
        let checker = CHECKER.iter().filter_map(|name| extent(&symbols, name));
        let joined = checker.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        if let Some(range) = joined {
            failing.set_range("reject", range)?;
        }
        failing.set("task-filter", "Y")?;
        failing.set("interval", "1")?;
        // Allocations that may sleep fail only where nothing is ignored.
        failing.set("ignore-gfp-wait", "N")?;
        if failing.name == "fail_page_alloc" {
            failing.set("ignore-gfp-highmem", "N")?;
            failing.set("min-order", "0")?;
        }
        // With the stack of the allocation, each time.
        failing.set("verbose", "2")?;
        failing.set("verbose_ratelimit_burst", "1000000")?;
        Ok(Some(failing))
    }

    fn set(&self, file: &str, value: impl AsRef<str>) -> Result<(), Broken> {
        let path = self.directory.join(file);
        fs::write(&path, value.as_ref()).map_err(|error| {
            Broken(format!(
                "allocations cannot be made to fail: {}: {error}; build the kernel with --fragment faultinject",
                path.display()
            ))
        })
    }

    fn set_range(&self, what: &str, range: Range<u64>) -> Result<(), Broken> {
        self.set(&format!("{what}-start"), format!("{:#x}", range.start))?;
        self.set(&format!("{what}-end"), format!("{:#x}", range.end))
    }

    fn number(&self, file: &str) -> Result<i32, Broken> {
        let path = self.directory.join(file);
        let text = fs::read_to_string(&path)?;
        text.trim()
            .parse()
            .map_err(|_| Broken(format!("{} says '{text}'", path.display())))
    }

    /// From now on allocations are counted and succeed.
    pub fn count(&self) -> Result<(), Broken> {
        self.set("times", "-1")?;
        self.begin(ENDLESS)
    }

    /// From now on one allocation fails, the first after so many bytes or pages.
    pub fn fail(&self, after: u32) -> Result<(), Broken> {
        self.set("times", "1")?;
        self.begin(i32::try_from(after).unwrap_or(ENDLESS))
    }

    fn begin(&self, space: i32) -> Result<(), Broken> {
        self.set("space", space.to_string())?;
        self.set("probability", "100")
    }

    /// No allocation is looked at any more. How many bytes or pages were allocated since [`Failing::count`].
    pub fn counted(&self) -> Result<u32, Broken> {
        self.set("probability", "0")?;
        Ok(ENDLESS.abs_diff(self.number("space")?))
    }

    /// The same after [`Failing::fail`]: whether one failed.
    pub fn failed(&self) -> Result<bool, Broken> {
        self.set("probability", "0")?;
        Ok(self.number("times")? == 0)
    }

    /// The point of a test's round, of so many bytes or pages.
    pub fn point(&self, test: &str, round: u32, of: u32) -> u32 {
        // FNV-1a, and what SplitMix64 ends with, since FNV leaves short texts close together.
        let text = format!("{} {test} {round}", self.name);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((hash ^ hash >> 31) % u64::from(of.max(1))) as u32
    }

    /// Says which allocation failed, from the kernel log.
    pub fn note(&self, point: u32, of: u32, log: &[String]) -> String {
        let unit = match self.name.as_str() {
            "fail_page_alloc" => "pages",
            _ => "bytes",
        };
        let place = match stack(log) {
            stack if stack.is_empty() => "an allocation that asks for silence".to_owned(),
            stack => stack.join(" < "),
        };
        format!("{} after {point} of {of} {unit}: {place}", self.name)
    }
}

/// Makes the tasks that this one forks count as those whose allocations may fail, or no longer.
pub fn mark(on: bool) -> Result<(), Broken> {
    // Not there without CONFIG_FAULT_INJECTION, which is complained of elsewhere.
    fs::write("/proc/self/make-it-fail", if on { "1" } else { "0" })?;
    Ok(())
}

/// Whether a finding counts in a round in which this allocation failed. A call that is refused is right then, and so is a test that gets no
/// further; wrong bytes and addresses, leaks, complaints and hangs are not.
pub fn counts(allocation: &str, finding: &Finding) -> bool {
    match finding.eye {
        // A raw request belongs to no file that could end it, so what the device holds by one stays if the test could not go on.
        Eye::Aftermath if finding.text.starts_with(aftermath::HELD) => {
            !allocation.contains(RAW_REQUESTS)
        }
        Eye::Placement | Eye::Aftermath => true,
        // That something is not there may be for want of memory.
        Eye::Cpu | Eye::Device => ctx::is_about_bytes(&finding.text),
        Eye::Premise => false,
        Eye::Harness => {
            let text = &finding.text;
            let ends = ["timed out", "SIGKILL", "ended by SIG"];
            ends.iter().any(|end| text.contains(end)) && !text.contains("SIGABRT")
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    name: String,
    rounds: u32,
    below: String,
}

fn parse(line: &str) -> Result<Option<Asked>, Broken> {
    let Some(value) = cmdline::value(line, "pinbed_fail=") else {
        return Ok(None);
    };
    let mut parts = value.split(',');
    let name = parts.next().unwrap_or_default();
    let rounds = parts.next().map_or(Ok(ROUNDS), str::parse);
    let below = parts.next().unwrap_or(BELOW);
    match (name, rounds, parts.next()) {
        ("failslab" | "fail_page_alloc", Ok(rounds), None) => Ok(Some(Asked {
            name: name.into(),
            rounds,
            below: below.into(),
        })),
        _ => Err(Broken(format!(
            "pinbed_fail={value} is none of failslab and fail_page_alloc, with a number of rounds and a function of the kernel's after it"
        ))),
    }
}

/// Where a function is, by the symbols of the kernel; `None` too where they have no addresses.
fn extent(symbols: &str, function: &str) -> Option<Range<u64>> {
    let parse = |line: &str| -> Option<(u64, bool)> {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)? == function))
    };
    let all: Vec<_> = symbols.lines().filter_map(parse).collect();
    let start = all.iter().find(|it| it.1 && it.0 > 0)?.0;
    let end = all.iter().map(|it| it.0).filter(|it| *it > start).min()?;
    Some(start..end)
}

/// The callers of the allocation that failed, the innermost first, as the kernel's dump names them.
fn stack(log: &[String]) -> Vec<&str> {
    const NAMED: usize = 10;
    let forced = |line: &&String| line.contains("FAULT_INJECTION: forcing a failure");
    let function = |line: &'_ String| -> Option<usize> {
        let text = line.trim();
        let end = text.find("+0x")?;
        (!text.starts_with('?') && !text[..end].contains([' ', ':'])).then_some(end)
    };
    log.iter()
        .skip_while(|line| !forced(line))
        .take_while(|line| !line.contains("</TASK>"))
        .filter_map(|line| Some(&line.trim()[..function(line)?]))
        // What dumps, and what decides.
        .skip_while(|name| name.starts_with("dump_stack") || name.starts_with("should_fail"))
        .take_while(|name| *name != BELOW)
        .take(NAMED)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_fails() {
        let asked = |line| parse(line).ok().flatten();
        let (name, below) = ("failslab".to_owned(), BELOW.to_owned());
        let rounds = ROUNDS;
        let plain = Asked {
            name,
            rounds,
            below,
        };
        assert_eq!(asked("quiet pinbed_fail=failslab"), Some(plain));
        let last = asked("pinbed_fail=failslab pinbed_fail=fail_page_alloc,8,f");
        assert!(last.is_some_and(|it| (it.rounds, it.below.as_str()) == (8, "f")));
        assert_eq!(asked("quiet"), None);
        for bad in ["fail_futex", "failslab,many", "failslab,1,f,g", ""] {
            assert!(parse(&format!("pinbed_fail={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_function_ends_where_the_next_one_begins() {
        let symbols = "ffffffff81000020 T g\nffffffff81000000 T f\nffffffff81000040 t h\n";
        let f = 0xffff_ffff_8100_0000..0xffff_ffff_8100_0020;
        assert_eq!(extent(symbols, "f"), Some(f));
        assert_eq!(extent(symbols, "i"), None);
        let hidden = "0000000000000000 T f\n0000000000000000 T g\n";
        assert_eq!(extent(hidden, "f"), None);
    }

    #[test]
    fn points_are_spread_and_the_same_each_time() {
        let failing = Failing {
            name: "failslab".into(),
            rounds: 3,
            directory: PathBuf::new(),
        };
        let points: Vec<_> = (1..=3).map(|it| failing.point("a::b", it, 1000)).collect();
        assert_eq!(
            points,
            (1..=3)
                .map(|it| failing.point("a::b", it, 1000))
                .collect::<Vec<_>>()
        );
        let thirds = |count| (0..count).map(|it| failing.point("a::b", it, 999) / 333);
        for third in 0..3 {
            let share = thirds(300).filter(|it| *it == third).count();
            assert!(
                (60..140).contains(&share),
                "{share} of 300 in third {third}"
            );
        }
    }

    #[test]
    fn a_refused_call_is_right_and_wrong_bytes_are_not() {
        let finding = |eye, text: &str| Finding {
            eye,
            text: text.into(),
        };
        for right in [
            finding(Eye::Cpu, "QBUF: refused with ENOMEM, expected [EFAULT]"),
            finding(Eye::Harness, "opening /dev/video0: ENOMEM"),
            finding(Eye::Device, "buffers that the device holds: 0, expected 1"),
            finding(Eye::Harness, "the test was ended by SIGABRT"),
        ] {
            assert!(!counts("f < g", &right), "{right:?}");
        }
        for wrong in [
            finding(
                Eye::Cpu,
                "CAPTURE: 2 of 4 bytes differ (1 of them are zero), the first at 2: 0x00, expected 0x63",
            ),
            finding(Eye::Aftermath, "2 pins left"),
            finding(
                Eye::Device,
                "OUTPUT: the device saw bytes with CRC32C 0x1, the process has 0x2",
            ),
            finding(Eye::Harness, "timed out after 30 s"),
            finding(Eye::Harness, "the test was ended by SIGSEGV"),
        ] {
            assert!(counts("f < g", &wrong), "{wrong:?}");
        }
        let held = finding(Eye::Aftermath, "the device still holds handle 7");
        assert!(counts("pinbed_request_new < pinbed_hold_begin", &held));
        assert!(!counts("pinbed_request_new < pinbed_ioctl", &held));
    }

    #[test]
    fn the_callers_of_the_allocation_are_named() {
        let log = [
            "FAULT_INJECTION: forcing a failure.",
            "name failslab, interval 1, probability 100, space 0, times 1",
            "CPU: 0 UID: 0 PID: 61 Comm: pinbed-guest Not tainted 7.3.4 #1",
            "Call Trace:",
            " <TASK>",
            " dump_stack_lvl+0x5d/0x80",
            " should_fail_ex+0x97/0xe0",
            " should_failslab+0x3c/0x50",
            " __kmalloc_noprof+0x52/0x310",
            " ? srso_return_thunk+0x5/0x5f",
            " vb2_create_framevec+0x42/0xd0",
            " __x64_sys_ioctl+0x92/0xd0",
            " do_syscall_64+0x3c/0x90",
            "RIP: 0033:0x4011e0",
            " </TASK>",
        ]
        .map(str::to_owned);
        assert_eq!(stack(&log), ["__kmalloc_noprof", "vb2_create_framevec"]);
        assert!(stack(&log[..1]).is_empty());
    }
}
