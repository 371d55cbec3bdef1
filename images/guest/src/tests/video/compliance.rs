// SPDX-License-Identifier: Apache-2.0 OR MIT
//! v4l2-compliance, which V4L2's developers keep: all of its tests on each node, streaming with every memory type included.

use crate::tests::test::Test;
use pinbed_abi::report::{
    COMPLIANCE_HURRY, COMPLIANCE_LOADER, COMPLIANCE_PATH, COMPLIANCE_PROGRAM, Eye,
};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::hugetlb::Pool;
use pinbed_guest::video::mplane;
use pinbed_guest::video::v4l2::Memop::{DmaContig, DmaSg, Vmalloc};
use pinbed_guest::video::v4l2::find_named;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = "v4l-utils, utils/v4l2-compliance";
/// Frames of each streaming test. Enough for each buffer to go round more than once.
const FRAMES: &str = "10";
/// How many times as fast time passes for it. It sleeps for 16 s, most of it for threads to get to where they block, which takes them
/// far less.
const HURRY: u32 = 16;
/// How many times as fast where something failed at [`HURRY`], which may be a timeout on a busy host.
const PATIENT: u32 = 4;
/// What malloc takes in them, of 2 MiB each: its heap, and the buffers of 300 KiB that it gives out.
const HUGE_PAGES: usize = 6;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    node("compliance::sg_node_complies", |t| complies(t, &DmaSg.node()),
        "The dma-sg node passes all tests of v4l2-compliance, streaming included, without warnings."),
    node("compliance::contig_node_complies", |t| complies(t, &DmaContig.node()),
        "The dma-contig node passes all tests of v4l2-compliance, streaming included, without warnings."),
    node("compliance::vmalloc_node_complies", |t| complies(t, &Vmalloc.node()),
        "The vmalloc node passes all tests of v4l2-compliance, streaming included, without warnings."),
    node("compliance::multiplanar_node_complies", |t| complies(t, mplane::NAME),
        "The multi-planar node passes all tests of v4l2-compliance, streaming included but for dma-bufs, without warnings."),
];

const fn node(name: &'static str, run: fn(&mut Ctx) -> TestResult, correct: &'static str) -> Test {
    let (source, timeout_s) = (PROGRAM, 180);
    Test {
        name,
        correct,
        source,
        timeout_s,
        run,
    }
}

/// Of the node of this name.
fn complies(t: &mut Ctx, node: &str) -> TestResult {
    // dma-contig cannot take what malloc gives out as a rule: here it gives out pieces of huge pages.
    let _pool = match node == DmaContig.node() {
        true => Some(Pool::of(HUGE_PAGES)?),
        false => None,
    };
    let hurried = attempt(t, node, HURRY)?;
    if hurried.is_empty() {
        return Ok(());
    }
    // What fails again is a finding, at whichever pace: of all that fails once only what fails but once is left out, and noted.
    let patient = attempt(t, node, PATIENT)?;
    let again = match hurried.is_subset(&patient) {
        true => BTreeSet::new(),
        false => attempt(t, node, HURRY)?,
    };
    for fault in hurried.union(&patient) {
        if patient.contains(fault) || again.contains(fault) {
            t.find(Eye::Cpu, format!("v4l2-compliance: {fault}"));
        }
    }
    Ok(())
}

/// What fails in one run, in which time passes so many times as fast.
fn attempt(t: &mut Ctx, node: &str, pace: u32) -> TestResult<BTreeSet<String>> {
    let output = run(node, pace)?;
    let said = text(&output);
    let verdict = Verdict::read(&said).ok_or_else(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().chain(complaint.lines()).last();
        let last = last.unwrap_or_default().trim();
        let status = output.status;
        Stop::finding(
            Eye::Harness,
            format!("v4l2-compliance ended without a total ({status}): {last}"),
        )
    })?;
    t.note(format!("{pace} times as fast: {}", verdict.total));
    for fault in &verdict.faults {
        t.note(format!("{pace} times as fast: {fault}"));
    }
    Ok(verdict.all_faults())
}

fn run(node: &str, pace: u32) -> TestResult<Output> {
    let directory = Path::new(COMPLIANCE_PATH);
    let program = directory.join(COMPLIANCE_PROGRAM);
    if !program.exists() {
        let what = program.display().to_string();
        let remedy = "let pinbed run start the guest: it puts it there for a plan with this test";
        let remedy = remedy.into();
        return Err(Error::Absent { what, remedy }.into());
    }
    // By its own loader, with its own libraries: the guest has no others.
    let mut command = Command::new(directory.join(COMPLIANCE_LOADER));
    command.env_clear().arg("--library-path").arg(directory);
    command.arg("--preload").arg(COMPLIANCE_HURRY);
    // Of sleeps and timeouts; not of the clock that the kernel's timestamps are held against.
    command.env("FAKETIME", format!("+0 x{pace}"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    if node == DmaContig.node() {
        let tunables = "glibc.malloc.hugetlb=2:glibc.malloc.mmap_threshold=33554432";
        command.env("GLIBC_TUNABLES", tunables);
    }
    command.arg(&program);
    command.args(["--color", "never", "--no-progress"]);
    command.arg("--device").arg(find_named(node)?);
    command.args(["--streaming", FRAMES, "--stream-all-io"]);
    // What this node exports is contiguous, and so can be imported by all; but it has one plane. v4l2-compliance takes buffers of
    // several planes from a capture-only node alone, and there is none: the group mplane imports such dma-bufs.
    if node != mplane::NAME {
        command
            .arg("--expbuf-device")
            .arg(find_named(&DmaContig.node())?);
    }
    command
        .output()
        .map_err(|error| Error::io("starting v4l2-compliance")(error).into())
}

fn text(output: &Output) -> Cow<'_, str> {
    String::from_utf8_lossy(&output.stdout)
}

/// What v4l2-compliance found.
#[derive(Debug, PartialEq, Eq)]
struct Verdict<'a> {
    /// Its last line.
    total: &'a str,
    failed: u32,
    warnings: u32,
    /// The tests that failed, and before each the conditions that were not met; warnings alike.
    faults: Vec<&'a str>,
}

impl<'a> Verdict<'a> {
    /// Each failed test, unmet condition and warning by its line; a total that counts more than there are lines for is one more fault.
    fn all_faults(&self) -> BTreeSet<String> {
        let lines = |is: fn(&str) -> bool| self.faults.iter().filter(|line| is(line)).count();
        let failed = lines(|line| line.ends_with(": FAIL"));
        let warnings = lines(|line| line.starts_with("warn:"));
        let unnamed = [
            ("failed tests", self.failed as usize, failed),
            ("warnings", self.warnings as usize, warnings),
        ];
        let unnamed = unnamed
            .iter()
            .filter(|(_, total, named)| total > named)
            .map(|(what, total, named)| format!("{total} {what}, of which it names {named}"));
        let named = self.faults.iter().map(|line| (*line).to_owned());
        named.chain(unnamed).collect()
    }

    /// Reads what it printed, or `None` if it did not come to its end.
    fn read(output: &'a str) -> Option<Self> {
        let lines = output.lines().map(str::trim);
        let total = lines.clone().rfind(|line| line.starts_with("Total for "))?;
        let number = |name: &str| {
            total
                .rsplit_once(name)?
                .1
                .split(',')
                .next()?
                .trim()
                .parse()
                .ok()
        };
        let is_fault = |line: &&str| {
            line.starts_with("fail:") || line.starts_with("warn:") || line.ends_with(": FAIL")
        };
        Some(Self {
            total,
            failed: number("Failed:")?,
            warnings: number("Warnings:")?,
            faults: lines.filter(is_fault).collect(),
        })
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    const OUTPUT: &str = "v4l2-compliance 1.30.1, 64 bits, 64-bit time_t\n\nBuffer ioctls:\n\
        \ttest VIDIOC_EXPBUF: OK\n\nTest input 0:\n\
        \t\tfail: v4l2-test-buffers.cpp(1411): node->streamon(q.g_type())\n\ttest MMAP (no poll): FAIL\n\
        \t\twarn: v4l2-test-formats.cpp(1): odd\n\n";

    #[test]
    fn faults_are_told_from_what_is_well() {
        let total =
            "Total for pinbed device /dev/video0: 57, Succeeded: 56, Failed: 1, Warnings: 2";
        assert_eq!(
            Verdict::read(&format!("{OUTPUT}{total}\n")),
            Some(Verdict {
                total,
                failed: 1,
                warnings: 2,
                faults: vec![
                    "fail: v4l2-test-buffers.cpp(1411): node->streamon(q.g_type())",
                    "test MMAP (no poll): FAIL",
                    "warn: v4l2-test-formats.cpp(1): odd",
                ],
            })
        );
        assert_eq!(Verdict::read(OUTPUT), None, "it did not come to its end");
    }

    #[test]
    fn a_fault_that_only_the_total_tells_of_is_a_fault() {
        let total =
            "Total for pinbed device /dev/video0: 57, Succeeded: 55, Failed: 2, Warnings: 1";
        let output = format!("{OUTPUT}{total}\n");
        let faults = Verdict::read(&output).map(|verdict| verdict.all_faults());
        let faults = faults.unwrap_or_default();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(faults.contains("2 failed tests, of which it names 1"));
    }
}
