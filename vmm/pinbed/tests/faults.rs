// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Faults of the device that the host asks for, with real guests: `pinbed run --fault NAME[=N]`.

mod common;

use common::{pinbed, said};

fn run(faults: &[&str], test: &str) -> (Option<i32>, String) {
    run_with(faults, &[test])
}

fn run_with(faults: &[&str], arguments: &[&str]) -> (Option<i32>, String) {
    let results = tempfile::tempdir().unwrap();
    let mut command = pinbed(&["run", "--accel", "tcg", "--kernel", "6.12"]);
    for fault in faults {
        command.args(["--fault", fault]);
    }
    let run = command
        .args(arguments)
        .env("XDG_STATE_HOME", results.path());
    let run = run.output().unwrap();
    (run.status.code(), said(&run))
}

/// A test with one job.
const JOB: &str = "userptr::malloc_is_decoder_input";
/// A test that calls the TEE.
const CALL: &str = "fault::wrong_status_is_an_error_of_the_call";
/// A test that fills all rings before the device hears of it.
const FULL: &str = "raw_hostile::nothing_is_written_but_what_was_given";

#[test]
fn death_is_named_wherever_it_comes() {
    for (fault, test) in [
        ("death", JOB),
        ("death", FULL),
        ("attach-death", JOB),
        ("call-death", CALL),
    ] {
        let (code, said) = run(&[fault], test);
        assert_eq!(code, Some(7), "{fault}: {said}");
        assert!(said.contains("the device dies now"), "{fault}: {said}");
    }
}

#[test]
fn a_test_that_hangs_shows_where_the_machine_stands() {
    let (code, said) = run_with(&["attach-lost"], &["--timeout", "5", JOB]);
    assert_eq!(code, Some(1), "{said}");
    for (title, line) in [
        (
            "tasks when it timed out",
            "state D (disk sleep), waits in pinbed_hold_begin",
        ),
        ("tasks when it timed out", "vb2_core_reqbufs+0x"),
        ("backtraces when it timed out", "CPU 1"),
        (
            "the device holds when it timed out",
            "handle 1: 19200 bytes",
        ),
        ("registers when it timed out", "RIP="),
    ] {
        let shown = said.split(title).nth(1).unwrap_or_default();
        assert!(shown.contains(line), "{line} under {title}: {said}");
    }
    let backtraces = said.split("backtraces when it timed out").nth(1).unwrap();
    let backtraces = backtraces.split("the device holds").next().unwrap();
    assert!(!backtraces.contains(" 0xffff"), "without names: {said}");
}

#[test]
fn a_fault_comes_at_its_request_and_no_other() {
    // The test has fewer jobs.
    let (code, said) = run(&["status=1000", "call-status=1000"], JOB);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["status=1"], JOB);
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn names_and_numbers_that_are_none_are_refused() {
    for (fault, why) in [
        ("lsot", "there are late fail lost"),
        ("lost=0", "a number from 1 on"),
        ("lost=", "a number from 1 on"),
    ] {
        let (code, said) = run(&[fault], JOB);
        assert_eq!(code, Some(2), "{fault}: {said}");
        assert!(said.contains(why), "{fault}: {said}");
    }
}
