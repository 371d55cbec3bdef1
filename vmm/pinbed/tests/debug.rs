// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed debug` with a real guest and a real gdb, which takes its commands from its command line.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{pinbed, said};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TEST: &str = "userptr::malloc_is_decoder_input";
/// The kernel that ci/test builds for environments, which has what `debug` adds.
const KERNEL: [&str; 8] = [
    "--kernel",
    "7.3",
    "--fragment",
    "faultinject",
    "--fragment",
    "memcg",
    "--fragment",
    "dwarf",
];

/// Whether this machine has no gdb: then there is nothing to test.
fn lacks_gdb() -> bool {
    let lacks = Command::new("gdb").arg("--version").output().is_err();
    if lacks {
        eprintln!("skipped: there is no gdb; apt-get install gdb");
    }
    lacks
}

fn debug(options: &[&str]) -> Command {
    let mut command = pinbed(&["debug", TEST, "--accel", "tcg"]);
    command.args(KERNEL).args(options);
    command
}

/// What gdb and pinbed print, and the exit code.
fn debugged(options: &[&str], commands: &[&str]) -> (String, Option<i32>) {
    let commands = commands.iter().flat_map(|command| ["-ex", *command]);
    let output = debug(options)
        .args(["--", "-batch"])
        .args(commands)
        .output()
        .unwrap();
    (said(&output), output.status.code())
}

#[track_caller]
fn assert_has(shown: &str, parts: &[&str]) {
    for part in parts {
        assert!(shown.contains(part), "lacks {part:?}:\n{shown}");
    }
}

#[test]
fn a_test_stops_at_its_first_qbuf_and_its_pages_are_known_from_both_sides() {
    if lacks_gdb() {
        return;
    }
    let commands = [
        // The driver's symbols are there, and the kernel's scripts.
        "info line pinbed_hold_begin",
        "python gdb.lookup_type('struct pinbed_hold')",
        "up",
        "set $user = b->m.userptr",
        "pinbed page $user",
        "finish",
        "pinbed holds",
        "pinbed page $user",
        "lx-version",
        "continue",
    ];
    let (shown, code) = debugged(&[], &commands);
    assert_has(
        &shown,
        &[
            "vb2_core_qbuf (",
            "pinbed_hold.c",
            "0 pins (FOLL_PIN), mapped 1 time",
            "not held by the device",
            "handle 2: 19200 bytes, the device may read: 0x",
            "1 pin (FOLL_PIN), mapped 1 time",
            "  mapped by pinbed-guest[",
            "  held by the device: handle 2, 19200 bytes, may read",
            "Linux version 7.3",
            &format!("{TEST} passed"),
        ],
    );
    assert_eq!(code, Some(0), "{shown}");
}

#[test]
fn a_guest_stops_where_it_is_told_to_even_in_the_driver() {
    if lacks_gdb() {
        return;
    }
    let (shown, _) = debugged(
        &["--break", "pinbed_hold_end"],
        &["bt 1", "info symbol $pc"],
    );
    assert_has(&shown, &["#0  pinbed_hold_end (hold=", "pinbed_hold.c:"]);
}

#[test]
fn a_debugger_of_ones_own_can_attach() {
    if lacks_gdb() {
        return;
    }
    let mut waiting = debug(&["--attach"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(waiting.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let shown = Command::new("sh")
        .args([
            "-c",
            &format!("{} -batch -ex 'bt 1' </dev/null 2>&1", line.trim()),
        ])
        .output()
        .unwrap();
    assert_has(
        &String::from_utf8_lossy(&shown.stdout),
        &["vb2_core_qbuf ("],
    );
    kill(Pid::from_raw(waiting.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
}

#[test]
fn what_cannot_be_debugged_is_refused() {
    if lacks_gdb() {
        return;
    }
    for (arguments, code, says) in [
        (&["debug", "userptr::"][..], 2, "names"),
        (&["debug", "no_such_test_at_all"], 2, "no test matches"),
        (&["debug", TEST, "--gdb", "no-such-gdb"], 3, "no-such-gdb"),
    ] {
        let output = pinbed(arguments).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn a_report_on_standard_output_is_alone_there() {
    if lacks_gdb() {
        return;
    }
    let mut command = pinbed(&["run", TEST, "--accel", "tcg"]);
    // gdb ends at the end of its standard input.
    let output = command
        .args(KERNEL)
        .args(["--fault", "status", "--on-fail", "debug", "--json", "-"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_has(
        &errors,
        &["again, in a debugger", "hit Breakpoint", "vb2_core_qbuf"],
    );
    let run: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    assert_eq!(run["sessions"][0]["environment"]["faults"][0], "status=1");
}
