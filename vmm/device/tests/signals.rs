// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SIGTERM and SIGINT end the device's program cleanly.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pinbed_abi::wire;
use support::{Device, F_NEXT, F_WRITE, FREE, Host, copy, stop_limit};
use zerocopy::IntoBytes;

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

/// A guest that has 8 jobs queued at any moment, however quick they are.
#[test]
fn sigterm_ends_it_within_a_second_while_jobs_are_kept_queued() {
    const SLOTS: u16 = 8;
    const LENGTH: u64 = 1 << 20;
    let device = Device::spawn();
    let pid = device.pid();
    let mut host = Host::connect_to(device, true);
    host.begin_rings();
    let limit = stop_limit(&mut host);
    let [src, dst] = [FREE + 0x10_0000, FREE + 0x30_0000]
        .map(|at| host.attach(wire::DIRECTION_BOTH, &[(at, LENGTH)]));
    let job = copy(src, dst, LENGTH);
    for slot in 0..SLOTS {
        let at = FREE + 0x1000 * u64::from(slot);
        host.write(at, job.as_bytes());
        let length = job.as_bytes().len() as u32;
        host.descriptor(
            wire::QUEUE_VIDEO,
            2 * slot,
            at,
            length,
            F_NEXT,
            2 * slot + 1,
        );
        host.descriptor(
            wire::QUEUE_VIDEO,
            2 * slot + 1,
            at + 0x800,
            0x800,
            F_WRITE,
            0,
        );
        host.offer(wire::QUEUE_VIDEO, 2 * slot);
    }
    host.kick(wire::QUEUE_VIDEO);
    let mut done = 0;
    let mut told: Option<Instant> = None;
    let took = loop {
        if let Some((head, written)) = host.poll_used(wire::QUEUE_VIDEO) {
            assert_ne!(written, 0);
            done += 1;
            host.offer(wire::QUEUE_VIDEO, head as u16);
            host.kick(wire::QUEUE_VIDEO);
        }
        match told {
            None if done >= 100 => {
                told = Some(Instant::now());
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
            }
            None => {}
            Some(told) => match host.device.ended_by_itself() {
                Some(status) => {
                    assert!(status.success(), "{status}");
                    break told.elapsed();
                }
                None => assert!(told.elapsed() < PATIENCE, "SIGTERM does not end it"),
            },
        }
    };
    assert!(took < limit, "{took:?}");
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
