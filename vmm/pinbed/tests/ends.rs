// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Each way a run can end, with real guests: its exit code, what it says, and that it leaves neither processes nor files behind.
//!
//! They provide what they need as `pinbed run` does, so the first time takes as long as its.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pinbed_abi::report::Message;
use serde_json::Value;

/// A test that ends at once, then one that takes long enough to do things to it.
const TESTS: [&str; 2] = [
    "userptr::malloc_is_decoder_input",
    "stream::thousand_repins_leave_nothing_pinned",
];
/// A test that comes after them.
const LAST: &str = "dmabuf::udmabuf_outlives_its_memfd";
/// How TESTS begin on the table.
const FIRST: &str = "malloc_is_decoder_input";

/// What tells an end that is reported at once from one that is found at a deadline, on a host of any load: with these arguments a boot
/// and a test have two minutes.
const PATIENT: [&str; 2] = ["--timeout", "120"];
const AT_ONCE: Duration = Duration::from_secs(60);
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(20);

/// One guest at a time: they take all the CPU there is.
static TURN: Mutex<()> = Mutex::new(());

/// A `pinbed run` under way, with a directory for temporary files of its own.
struct Run {
    pinbed: Child,
    output: BufReader<std::process::ChildStdout>,
    seen: String,
    temporary: tempfile::TempDir,
    reports: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// What is left of a run.
struct Ended {
    status: ExitStatus,
    output: String,
    took: Duration,
    /// The JSON document.
    json: Value,
}

impl Run {
    fn start(arguments: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (temporary, reports) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut pinbed = Command::new(env!("CARGO_BIN_EXE_pinbed"))
            .args(["run", "--verbose", "--cold", "--accel", "tcg", "--json"])
            .arg(reports.path().join("run.json"))
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .env("XDG_STATE_HOME", reports.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(pinbed.stdout.take().unwrap());
        Run {
            pinbed,
            output,
            seen: String::new(),
            temporary,
            reports,
            _turn: turn,
        }
    }

    /// Waits until the second of TESTS has begun.
    fn wait_for_the_second(&mut self) {
        self.wait_for(FIRST);
        self.wait_for_start(TESTS[1]);
    }

    /// Waits until a test has begun, as the runner's log of the report has it. It says so once the runner knows.
    fn wait_for_start(&mut self, test: &str) {
        let start = Message::Start { name: test.into() };
        let start = start.to_line().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_dir(self.temporary.path()).unwrap().any(|run| {
            fs::read_to_string(run.unwrap().path().join("report.jsonl"))
                .is_ok_and(|report| report.contains(&start))
        }) {
            assert!(Instant::now() < deadline, "{test} never began");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.pinbed.id().cast_signed())
    }

    /// Waits until a line with this is printed.
    fn wait_for(&mut self, what: &str) {
        loop {
            let before = self.seen.len();
            let read = self.output.read_line(&mut self.seen).unwrap();
            assert!(read > 0, "{what} never came:\n{}", self.seen);
            if self.seen[before..].contains(what) {
                return;
            }
        }
    }

    /// Its child whose command line has this.
    fn child(&self, what: &str) -> Pid {
        let children = children(self.pid());
        let found = children.iter().find(|(_, command)| command.contains(what));
        found
            .unwrap_or_else(|| panic!("no {what} among {children:?}"))
            .0
    }

    fn device(&self) -> Pid {
        self.child("--socket-path")
    }

    fn qemu(&self) -> Pid {
        self.child("-nodefaults")
    }

    /// Waits for the end of it, and sees that nothing is left. `then` is called first, and the time counts from it.
    fn end(mut self, then: impl FnOnce(&Self)) -> Ended {
        let children = children(self.pid());
        let begin = Instant::now();
        then(&self);
        self.output.read_to_string(&mut self.seen).unwrap();
        let status = self.pinbed.wait().unwrap();
        let took = begin.elapsed();
        let deadline = Instant::now() + GONE;
        for (pid, command) in children {
            while command_of(pid).is_some_and(|now| now == command) {
                assert!(Instant::now() < deadline, "{pid} is still there: {command}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // A pinbed that was killed cannot remove it.
        if status.code().is_some() {
            let left: Vec<_> = fs::read_dir(self.temporary.path()).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let json = fs::read(self.reports.path().join("run.json")).unwrap_or_default();
        Ended {
            status,
            output: self.seen,
            took,
            json: serde_json::from_slice(&json).unwrap_or_default(),
        }
    }
}

impl Ended {
    fn check(&self, code: i32, says: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{}", self.output);
        for what in says {
            assert!(
                self.output.contains(what),
                "lacks {what:?}:\n{}",
                self.output
            );
        }
        assert_eq!(self.json["exit"], code, "{}", self.json);
    }

    /// The verdicts of the JSON document, by test.
    fn verdicts(&self) -> Vec<(String, String)> {
        let tests = self.json["sessions"][0]["tests"].as_array().unwrap();
        let field = |test: &'_ Value, name| test[name].as_str().unwrap().to_owned();
        tests
            .iter()
            .map(|test| (field(test, "name"), field(test, "verdict")))
            .collect()
    }
}

/// All processes whose parent this is, with their command lines.
fn children(parent: Pid) -> Vec<(Pid, String)> {
    let parent = format!("PPid:\t{parent}");
    let ids = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.lines().any(|line| line == parent))
    };
    ids.filter(is_child)
        .filter_map(|pid| Some((Pid::from_raw(pid), command_of(Pid::from_raw(pid))?)))
        .collect()
}

/// The command line; none if there is no such process, or only its exit status is left.
fn command_of(pid: Pid) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))
        .ok()
        .filter(|bytes| !bytes.is_empty())?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// A run whose first test has ended, so that the second runs.
fn in_the_middle() -> Run {
    let mut run = Run::start(&[&TESTS[..], &PATIENT].concat());
    run.wait_for_the_second();
    run
}

/// A program that starts the QEMU that pinbed would, after `change` to the arguments in the shell array `arguments`.
fn changed_qemu(directory: &Path, change: &str) -> PathBuf {
    let setup = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["setup", "--accel", "tcg"])
        .output()
        .unwrap();
    let setup = String::from_utf8(setup.stdout).unwrap();
    let line = setup.lines().find(|line| line.starts_with("QEMU")).unwrap();
    let command = line.split_once('(').unwrap().1.trim_end_matches(')');
    let path = directory.join("qemu");
    let script = format!(
        "#!/bin/bash\narguments=(\"$@\")\n{change}\nexec {command} \"${{arguments[@]}}\"\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The change that puts one argument in the place of another, which is given as a pattern.
fn instead_of(pattern: &str, argument: &str) -> String {
    format!(
        "for i in \"${{!arguments[@]}}\"; do [[ ${{arguments[i]}} == {pattern} ]] && arguments[i]={argument}; done"
    )
}

#[test]
fn a_run_that_ends_well_leaves_nothing() {
    let ended = Run::start(&[TESTS[0]]).end(|_| {});
    ended.check(0, &["pass", FIRST]);
    assert_eq!(ended.output.lines().last(), Some("1 passed, 0 failed"));
}

#[test]
fn a_device_that_is_killed_is_reported_at_once() {
    let ended = in_the_middle().end(|run| kill(run.device(), Signal::SIGKILL).unwrap());
    ended.check(
        7,
        &[
            "the device process died (killed by SIGKILL) during stream::",
            "next:",
            "1 passed, 1 failed",
        ],
    );
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

#[test]
fn a_qemu_that_is_killed_is_reported_at_once() {
    let ended = in_the_middle().end(|run| kill(run.qemu(), Signal::SIGKILL).unwrap());
    ended.check(
        8,
        &[
            "QEMU died (killed by SIGKILL) during stream::",
            "next:",
            "1 passed, 1 failed",
        ],
    );
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

#[test]
fn time_in_which_qemu_is_stopped_counts_against_no_limit() {
    // PID 1 ends a test after 8 s of the guest's clock, which goes on. (After 20 s the kernel's own watchdogs complain.)
    const LIMITED: &str = "leaks::registered_memory";
    let mut run = Run::start(&[LIMITED, "--timeout", "8"]);
    run.wait_for_start(LIMITED);
    let ended = run.end(|run| {
        kill(run.qemu(), Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_secs(10));
        kill(run.qemu(), Signal::SIGCONT).unwrap();
    });
    ended.check(0, &["1 passed, 0 failed"]);
}

#[test]
fn ctrl_c_ends_everything_and_shows_what_there_is() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let ended = in_the_middle().end(|run| kill(run.pid(), signal).unwrap());
        ended.check(130, &["interrupted", "1 passed, 0 failed, 1 not run"]);
        let verdicts = [(TESTS[0], "pass"), (TESTS[1], "not_run")];
        let verdicts = verdicts.map(|(name, verdict)| (name.to_owned(), verdict.to_owned()));
        assert_eq!(ended.verdicts(), verdicts);
        assert!(ended.took < AT_ONCE, "{:?}", ended.took);
    }
}

#[test]
fn a_runner_that_is_killed_takes_everything_along() {
    let ended = in_the_middle().end(|run| kill(run.pid(), Signal::SIGKILL).unwrap());
    assert_eq!(ended.status.code(), None);
}

#[test]
fn a_panic_at_boot_is_reported_with_its_text() {
    let arguments = [TESTS[0], "--append", "rdinit=/bin/pinbed-guest"];
    let ended = Run::start(&[&arguments[..], &PATIENT].concat()).end(|_| {});
    ended.check(
        5,
        &[
            "the guest kernel panicked: ",
            "Attempted to kill init!",
            "the console's last lines",
            "0 passed, 0 failed, 1 not run",
        ],
    );
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

#[test]
fn a_kernel_that_is_none_never_comes_up() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("bzImage");
    fs::write(&garbage, [0x5a; 1 << 20]).unwrap();
    let qemu = changed_qemu(
        directory.path(),
        &instead_of("*/vmlinux", garbage.to_str().unwrap()),
    );
    let arguments = [TESTS[0], "--qemu", qemu.to_str().unwrap()];
    let ended = Run::start(&[&arguments[..], &PATIENT].concat()).end(|_| {});
    ended.check(
        4,
        &[
            "the guest never came up",
            "QEMU says",
            "0 passed, 0 failed, 1 not run",
        ],
    );
    assert!(ended.took < AT_ONCE, "{:?}", ended.took);
}

#[test]
fn a_guest_without_its_device_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let qemu = changed_qemu(
        directory.path(),
        &instead_of("\\{*vhost-user-test-device-pci*", "virtio-balloon-pci"),
    );
    let ended = Run::start(&[TESTS[0], "--qemu", qemu.to_str().unwrap()]).end(|_| {});
    ended.check(
        3,
        &[
            "the guest cannot run the tests: ",
            "0 passed, 0 failed, 1 not run",
        ],
    );
}

/// A QEMU with a monitor of its own at the path that is returned, too.
fn qemu_with_monitor(directory: &Path) -> (PathBuf, PathBuf) {
    let monitor = directory.join("monitor");
    let change = format!(
        "arguments+=(-qmp unix:{},server=on,wait=off)",
        monitor.display()
    );
    (changed_qemu(directory, &change), monitor)
}

/// Gives a monitor a command, and waits for its answer: QEMU drops the commands of a connection that closes.
fn command(monitor: &Path, command: &str) {
    let mut monitor = UnixStream::connect(monitor).unwrap();
    let commands = format!(
        "{{\"execute\":\"qmp_capabilities\"}}\n{{\"execute\":\"{command}\",\"id\":\"{command}\"}}\n"
    );
    monitor.write_all(commands.as_bytes()).unwrap();
    let mut answers = BufReader::new(monitor)
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let answer = answers.find(|answer| answer["id"] == command).unwrap();
    assert!(answer.get("return").is_some(), "{answer}");
}

#[test]
fn a_guest_that_goes_silent_is_a_hang_with_registers_and_the_rest_runs_in_another() {
    let directory = tempfile::tempdir().unwrap();
    let (qemu, monitor) = qemu_with_monitor(directory.path());
    // Not the second of TESTS, which asks for more time than this test wants to wait.
    let mut run = Run::start(&[
        TESTS[0],
        "--repeat",
        "30",
        "--timeout",
        "10",
        "--qemu",
        qemu.to_str().unwrap(),
    ]);
    run.wait_for(FIRST);
    let ended = run.end(|_| command(&monitor, "stop"));
    ended.check(
        6,
        &[
            "the guest hangs",
            "registers",
            "RIP=",
            "backtraces",
            "CPU 1",
        ],
    );
    // It may have been stopped between two tests; then none of them failed.
    let verdicts = ended.verdicts();
    let of = |verdict: &str| verdicts.iter().filter(|(_, v)| v == verdict).count();
    assert_eq!(of("pass") + of("fail"), 30, "{verdicts:?}");
    assert!(of("fail") <= 1, "{verdicts:?}");
}

#[test]
fn a_panic_costs_the_test_that_ran_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (qemu, monitor) = qemu_with_monitor(directory.path());
    let arguments = [
        "--append",
        "unknown_nmi_panic",
        "--qemu",
        qemu.to_str().unwrap(),
        // The last of all tests, so one that comes after.
        LAST,
    ];
    let mut run = Run::start(&[&TESTS[..], &PATIENT, &arguments].concat());
    run.wait_for_the_second();
    let ended = run.end(|_| command(&monitor, "inject-nmi"));
    let says = [
        "Kernel panic - not syncing: NMI: Not continuing",
        "during stream::",
        "2 passed, 1 failed",
    ];
    ended.check(5, &says);
    let verdicts = [(TESTS[0], "pass"), (TESTS[1], "fail"), (LAST, "pass")];
    let verdicts = verdicts.map(|(name, verdict)| (name.to_owned(), verdict.to_owned()));
    assert_eq!(ended.verdicts(), verdicts);
    let boots = ended.json["sessions"][0]["boots"].as_array().unwrap();
    assert_eq!(boots.len(), 2);
    assert_eq!(boots[0]["culprit"], TESTS[1]);
}

#[test]
fn machines_that_share_a_plan_lose_no_result() {
    // None of these leaves anything, after which a fresh guest would go on.
    let ended = Run::start(&["convert::", "--jobs", "2", "--shuffle=7"]).end(|_| {});
    ended.check(0, &["shuffled; --shuffle=7 repeats it"]);
    let boots = ended.json["sessions"][0]["boots"].as_array().unwrap();
    assert_eq!(boots.len(), 2);
    let mut names: Vec<_> = ended.verdicts().into_iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ended.verdicts().len());
}

#[test]
fn a_shuffled_test_does_not_meet_what_another_left() {
    // What the first leaves is never freed, a known defect of this kernel, and keeps the driver from being unloaded.
    let tests = [
        "exporter::pageless_buffer_is_for_importers_that_can_take_it",
        "driver::reload_works",
    ];
    let ended = Run::start(&[&tests[..], &["--shuffle=2"]].concat()).end(|_| {});
    ended.check(0, &["2 passed, 0 failed"]);
    let verdicts = [(tests[0], "xfail"), (tests[1], "pass")];
    let verdicts = verdicts.map(|(name, verdict)| (name.to_owned(), verdict.to_owned()));
    assert_eq!(ended.verdicts(), verdicts);
    let boots = ended.json["sessions"][0]["boots"].as_array().unwrap();
    assert_eq!(boots.len(), 2);
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    let state = tempfile::tempdir().unwrap();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pinbed = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["run", "--accel", "tcg", "--ktap", "userptr::"])
        .env("XDG_STATE_HOME", state.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(pinbed.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "KTAP version 1\n");
    let output = pinbed.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panic"), "{said}");
}

#[test]
fn json_alone_is_on_standard_output_where_it_is_asked_for() {
    let state = tempfile::tempdir().unwrap();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["run", "--accel", "tcg", "--json", "-", TESTS[0]])
        .env("XDG_STATE_HOME", state.path())
        .output()
        .unwrap();
    let run: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(run["sessions"][0]["tests"][0]["verdict"], "pass");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1 passed, 0 failed"), "{said}");
}

#[test]
fn a_run_that_comes_to_nothing_leaves_its_reports() {
    let place = tempfile::tempdir().unwrap();
    let (json, junit) = (place.path().join("a.json"), place.path().join("a.xml"));
    let output = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["run", "--qemu", "/nonexistent/qemu"])
        .args(["--json".as_ref(), json.as_os_str()])
        .args(["--junit".as_ref(), junit.as_os_str()])
        .env("XDG_STATE_HOME", place.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let run: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(run["exit"], 2);
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("/nonexistent/qemu"), "{error}");
    let junit = fs::read_to_string(junit).unwrap();
    assert!(junit.contains("/nonexistent/qemu"), "{junit}");
}

#[test]
fn a_report_that_cannot_be_written_is_named_and_costs_no_verdict() {
    let state = tempfile::tempdir().unwrap();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["run", "--accel", "tcg", "--json", "/dev/full", TESTS[0]])
        .env("XDG_STATE_HOME", state.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("1 passed, 0 failed"), "{said}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the JSON report /dev/full"), "{said}");
}

/// The file system of the run's directory and of the kept runs fills up once the guest is there.
#[test]
fn a_disk_that_fills_up_costs_no_verdict() {
    let (directory, reports) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let script = r#"set -e
        mount -t tmpfs -o size=64M none "$TMPDIR"
        {
            until ls "$TMPDIR"/*/report.jsonl >/dev/null 2>&1; do sleep 0.01; done
            dd if=/dev/zero of="$TMPDIR/fill" bs=4k 2>/dev/null || touch "$FULL"
        } &
        exec "$@""#;
    let (json, full) = (reports.path().join("run.json"), reports.path().join("full"));
    // The superuser of a namespace of one's own may mount as well.
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .args(["--mount", "bash", "-c", script, "bash"])
        .args([env!("CARGO_BIN_EXE_pinbed"), "run", "--cold"])
        .args(["--accel", "tcg", TESTS[0], LAST, "--json"])
        .arg(&json)
        .env("TMPDIR", directory.path())
        .env("FULL", &full)
        .env("XDG_STATE_HOME", directory.path().join("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(full.exists(), "the disk was not full: {said}");
    assert!(said.contains("2 passed, 0 failed"), "{said}");
    assert!(said.contains("the run cannot be kept whole in"), "{said}");
    let run: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(run["sessions"][0]["counts"]["passed"], 2, "{run}");
}

#[test]
fn a_filter_without_match_names_close_tests() {
    let run = Command::new(env!("CARGO_BIN_EXE_pinbed"))
        .args(["run", "userptr::malloc_is_decoder_inptu"])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(2));
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("userptr::malloc_is_decoder_input"), "{said}");
}

#[test]
fn ktap_is_all_there_is_on_standard_output() {
    let ended = Run::start(&["--ktap", TESTS[0], "userptr::malloc_is_encoder_output"]).end(|_| {});
    ended.check(0, &[]);
    let lines: Vec<_> = ended
        .output
        .lines()
        .filter(|line| !line.starts_with("# "))
        .collect();
    let expected = [
        "KTAP version 1",
        "1..2",
        "ok 1 userptr::malloc_is_decoder_input",
        "ok 2 userptr::malloc_is_encoder_output",
    ];
    assert_eq!(lines, expected);
}
