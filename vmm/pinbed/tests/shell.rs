// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed shell` with real guests: commands with pipes, files and devices of the host, and shells on a terminal, which script(1) provides.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const PINBED: &str = env!("CARGO_BIN_EXE_pinbed");

/// Runs a command in a guest with this on its standard input.
fn command(options: &[&str], words: &[&str], input: &[u8]) -> Output {
    let mut pinbed = Command::new(PINBED)
        .args(["shell", "--accel", "tcg"])
        .args(options)
        .arg("--")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = pinbed.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that reads nothing closes the pipe.
    let writer = thread::spawn(move || drop(keys.write_all(&input)));
    let output = pinbed.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Opens a shell on a terminal of 33 lines and 101 columns, types a line at its prompt, and waits for the end. When the guest has shown
/// that size, the terminal becomes another. `state` is where the history is kept. Returns the exit code and what the terminal showed.
fn typed(state: &Path, options: &str, line: &str) -> (Option<i32>, String) {
    let command = format!(
        "stty rows 33 cols 101; echo host=$(tty)=; {PINBED} shell --kernel 6.12 --accel tcg {options}"
    );
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("XDG_STATE_HOME", state)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let (mut shown, mut bytes) = (Vec::new(), [0; 4096]);
    let (mut typed, mut resized) = (false, false);
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        shown.extend_from_slice(&bytes[..count]);
        let text = text(&shown);
        if !typed && text.contains("pinbed:/# ") {
            keys.write_all(line.as_bytes()).unwrap();
            typed = true;
        }
        if !resized && text.contains("33 101") {
            let terminal = text.split("host=").nth(1).unwrap().split('=').next();
            let resize = ["-F", terminal.unwrap(), "rows", "44", "cols", "99"];
            assert!(
                Command::new("stty")
                    .args(resize)
                    .status()
                    .unwrap()
                    .success()
            );
            resized = true;
        }
    }
    let status = script.wait().unwrap();
    (status.code(), text(&shown))
}

#[test]
fn a_shell_on_a_terminal_has_its_size_and_its_exit_code() {
    let line = "tty; echo $TERM; stty size; for i in $(seq 100); do stty size | grep -q '^44 99' && break; sleep 0.2; done; stty size; exit 7\n";
    let state = tempfile::tempdir().unwrap();
    let (code, shown) = typed(state.path(), "", line);
    assert_eq!(code, Some(7), "{shown}");
    for expected in ["/dev/pts/0", "xterm-256color", "33 101\r\n", "44 99\r\n"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}

#[test]
fn a_shell_whose_kernel_panics_ends_with_its_last_words() {
    let state = tempfile::tempdir().unwrap();
    let (code, shown) = typed(state.path(), "", "echo c > /proc/sysrq-trigger\n");
    assert_eq!(code, Some(5), "{shown}");
    assert!(shown.contains("Kernel panic - not syncing"), "{shown}");
}

#[test]
fn bash_goes_on_with_the_history_of_the_shell_before() {
    let state = tempfile::tempdir().unwrap();
    let kept = state.path().join("pinbed/shell_history");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "echo of-before\n").unwrap();
    // Every host of these tests has a bash.
    let (code, shown) = typed(state.path(), "--rootfs /", "history; exit 3\n");
    assert_eq!(code, Some(3), "{shown}");
    assert!(shown.contains("1  echo of-before"), "{shown}");
    let kept = fs::read_to_string(kept).unwrap();
    assert_eq!(kept, "echo of-before\nhistory; exit 3\n");
}

#[test]
fn a_command_has_its_streams_apart_its_input_whole_and_its_exit_code() {
    let place = tempfile::tempdir().unwrap();
    let added = place.path().join("added");
    fs::create_dir(&added).unwrap();
    fs::write(added.join("file"), "text").unwrap();
    fs::set_permissions(added.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    mkfifo(&added.join("pipe"), Mode::S_IRUSR).unwrap();
    // Only root can give a file away.
    let given = chown(added.join("file"), Some(12), Some(34)).is_ok();
    let input: Vec<u8> = (0..1_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let line =
        "cat; stat -c '%a %u %g' /added/file >&2; test -p /added/pipe && echo pipe >&2; exit 42";
    let output = command(&["--add", added.to_str().unwrap()], &[line], &input);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(42), "{errors}");
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    let owner = if given { "640 12 34\n" } else { "640 0 0\n" };
    assert!(
        errors.contains(owner) && errors.contains("pipe\n"),
        "{errors}"
    );
}

#[test]
fn files_disks_and_networks_of_the_host_are_there() {
    let place = tempfile::tempdir().unwrap();
    let (share, readonly) = (place.path().join("share"), place.path().join("readonly"));
    fs::create_dir(&share).unwrap();
    fs::create_dir(&readonly).unwrap();
    fs::write(share.join("in"), "from the host").unwrap();
    let disk = place.path().join("disk");
    fs::write(&disk, vec![b'd'; 1 << 20]).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let answer = thread::spawn(move || {
        let (mut connection, _) = server.accept().unwrap();
        connection.write_all(b"from the network\n").unwrap();
    });
    let line = format!(
        "cat in > out; nc 10.0.2.2 {port} >> out; touch /ro/x || echo refused >> out; \
         head -c 3 /dev/vda >> out; printf new > /dev/vda; ls -d /dev/shm /dev/pts /dev/fd/0 | wc -l >> out"
    );
    let output = command(
        &[
            // Which has a network without being built anew.
            "--kernel",
            "5.10",
            "--share",
            share.to_str().unwrap(),
            "--share",
            &format!("{}:/ro:ro", readonly.display()),
            "--disk",
            disk.to_str().unwrap(),
            "--net",
        ],
        &[&line],
        b"",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let out = fs::read_to_string(share.join("out")).unwrap();
    assert_eq!(out, "from the hostfrom the network\nrefused\nddd3\n");
    assert!(fs::read(&disk).unwrap().starts_with(b"newd"));
    answer.join().unwrap();
}

/// A directory that is a root file system: busybox and its commands.
fn root(directory: &Path) {
    for below in ["bin", "etc", "lib"] {
        fs::create_dir_all(directory.join(below)).unwrap();
    }
    let busybox = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output()
        .unwrap();
    let program = directory.join("bin/busybox");
    fs::copy(text(&busybox.stdout).trim(), &program).unwrap();
    for name in ["sh", "cat", "touch"] {
        std::os::unix::fs::symlink("busybox", directory.join("bin").join(name)).unwrap();
    }
    fs::write(directory.join("etc/mine"), "my root\n").unwrap();
}

#[test]
fn a_root_of_ones_own_is_under_an_overlay_and_runs_the_tests() {
    let place = tempfile::tempdir().unwrap();
    root(place.path());
    let line =
        "cat /etc/mine; touch /etc/new /tmp/t && pinbed-guest run userptr::malloc_is_decoder_input";
    let output = command(&["--rootfs", place.path().to_str().unwrap()], &[line], b"");
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said} {errors}");
    assert!(said.starts_with("my root\n"), "{said}");
    assert!(!place.path().join("etc/new").exists());
}

#[test]
fn what_does_not_fit_or_does_not_exist_is_refused_at_once() {
    let place = tempfile::tempdir().unwrap();
    let large = place.path().join("large");
    fs::File::create(&large)
        .unwrap()
        .set_len(300 << 20)
        .unwrap();
    let output = command(&["--add", large.to_str().unwrap()], &["true"], b"");
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("300 MiB") && errors.contains("--memory 768M"),
        "{errors}"
    );
    let output = command(&["--share", "/nonexistent"], &["true"], b"");
    assert_eq!(output.status.code(), Some(2));
    // As shells have it.
    let output = command(&[], &["no-such-program", "x"], b"");
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
}
