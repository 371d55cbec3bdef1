// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device that serves for long takes up no more than one that has just begun: memory, descriptors, threads.
//!
//! The short run is a test. The long one is for nights, and prints what it saw:
//!
//!     cargo test -p pinbed-device --test endurance -- --ignored --nocapture

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::fs;
use std::os::unix::net::UnixStream;

use pinbed_abi::wire;
use support::{Device, FREE, Host};

/// What the process takes up.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Anonymous memory in KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Taken {
    fn by(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        Self {
            memory: memory.unwrap().trim().parse().unwrap(),
            descriptors: count("fd"),
            threads: count("task"),
        }
    }
}

/// An ATTACH, a COPY and a DETACH, so many times.
fn cycles(host: &mut Host, count: usize) {
    for round in 0..count {
        let at = FREE + 0x1000 * (round as u64 % 64);
        let handle = host.attach(wire::DIRECTION_BOTH, &[(at, 64), (at + 0x80, 64)]);
        if round % 16 == 0 {
            host.copy(handle, handle, 128);
        }
        host.detach(handle);
    }
}

/// A driver that leaves a buffer behind and begins anew, so many times.
fn resets(host: &mut Host, count: usize) {
    for _ in 0..count {
        host.attach(wire::DIRECTION_READ, &[(FREE, 64)]);
        host.stop_rings();
        host.begin_rings();
        assert_eq!(host.status().buffers.get(), 0);
    }
}

fn endure(attachments: usize, drivers: usize) {
    let device = Device::spawn();
    let pid = device.pid();
    let mut host = Host::connect_to(device, true);
    host.begin_rings();
    // Whatever is made once is made.
    cycles(&mut host, 500);
    resets(&mut host, 5);
    let before = Taken::by(pid);
    cycles(&mut host, attachments);
    let between = Taken::by(pid);
    resets(&mut host, drivers);
    let after = Taken::by(pid);
    println!(
        "{before:?}\nafter {attachments} attachments {between:?}\nafter {drivers} resets {after:?}"
    );
    for now in [between, after] {
        assert!(
            now.memory <= before.memory + 1024,
            "{now:?} after {before:?}"
        );
        assert_eq!(now.descriptors, before.descriptors, "{now:?}");
        assert_eq!(now.threads, before.threads, "{now:?}");
    }
}

#[test]
fn peers_that_come_and_go_leave_nothing_behind() {
    // Peers are served one after the other, so the front end's turn comes when they have gone.
    let [few, many] = [1, 60].map(|peers| {
        let device = Device::spawn();
        let pid = device.pid();
        for _ in 0..peers {
            drop(UnixStream::connect(&device.socket).unwrap());
        }
        let mut host = Host::connect_to(device, true);
        host.begin_rings();
        host.status();
        Taken::by(pid)
    });
    assert_eq!(many.descriptors, few.descriptors, "{many:?}");
    assert_eq!(many.threads, few.threads, "{many:?}");
}

#[test]
fn a_device_does_not_grow() {
    endure(2_000, 20);
}

#[test]
#[ignore = "takes minutes"]
fn a_device_does_not_grow_in_a_night() {
    endure(100_000, 1_000);
}
