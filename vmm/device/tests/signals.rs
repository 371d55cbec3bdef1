// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SIGTERM and SIGINT end the device's program cleanly.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_signal_ends_it_with_and_without_a_front_end() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for connected in [false, true] {
            ends_on(signal, connected);
        }
    }
}

fn ends_on(signal: Signal, connected: bool) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("device");
    let mut child = Command::new(env!("CARGO_BIN_EXE_pinbed-device"))
        .arg("--socket-path")
        .arg(&socket)
        .spawn()
        .unwrap();
    wait(&mut child, || socket.exists().then_some(()));
    let connection = connected.then(|| UnixStream::connect(&socket).unwrap());
    if connected {
        // Until the listener has taken it, and serves.
        let workers = format!("/proc/{}/task", child.id());
        wait(&mut child, || {
            let threads = std::fs::read_dir(&workers).ok()?.count();
            (threads > 1).then_some(())
        });
    }
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let status: ExitStatus = loop_until(|| child.try_wait().unwrap()).unwrap_or_else(|| {
        child.kill().unwrap();
        panic!("{signal} does not end it");
    });
    assert!(status.success(), "{status}");
    assert!(!socket.exists(), "the socket is still there");
    drop(connection);
}

/// Waits for something that the child does; a child that does not is ended first.
fn wait(child: &mut Child, look: impl FnMut() -> Option<()>) {
    if loop_until(look).is_none() {
        child.kill().unwrap();
        panic!("the child does not get ready");
    }
}

fn loop_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}
