// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device's program while it serves: it has no more rights than it needs, and still does all it should.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pinbed_abi::ta::pin;
use pinbed_abi::tee::{CallResponse, OP_OPEN_SESSION, OpenSessionRequest, TEEC_SUCCESS};
use pinbed_abi::wire;
use support::{Device, FREE, Host, copy, header};
use zerocopy::IntoBytes;

/// Each thread's lines of /proc/PID/task/TID/status that begin with `field`.
fn of_threads(pid: u32, field: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        })
        .collect()
}

fn limit(pid: u32, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Has the device serve each of its queues.
fn work(host: &mut Host) {
    let [src, dst] =
        [FREE, FREE + 0x10000].map(|at| host.attach(wire::DIRECTION_BOTH, &[(at, 0x8000)]));
    let job = host.copy(src, dst, 0x8000);
    assert_eq!(job.header.status.get(), wire::STATUS_OK);
    let open = OpenSessionRequest {
        header: header(OP_OPEN_SESSION),
        uuid: pin::UUID,
        ..Default::default()
    };
    let answer: CallResponse = host.ask(wire::QUEUE_TEE, &open);
    assert_eq!(answer.result.get(), TEEC_SUCCESS);
}

#[test]
fn every_thread_that_serves_is_confined() {
    let device = Device::spawn();
    let (pid, socket) = (device.pid(), device.socket.clone());
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let mut host = Host::connect_to(device, true);
    host.begin_rings();
    work(&mut host);
    assert_eq!(host.device.log(), "");
    let filters = of_threads(pid, "Seccomp:");
    // The main thread, who may stop it, the connection, three queues, and a call.
    assert!(filters.len() >= 6, "{filters:?}");
    assert!(filters.iter().all(|mode| mode == "2"), "{filters:?}");
    let privileges = of_threads(pid, "NoNewPrivs");
    assert!(privileges.iter().all(|set| set == "1"), "{privileges:?}");
    for kind in ["user", "net", "ipc", "mnt"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    assert_eq!(limit(pid, "Max open files"), "256");
    assert_eq!(limit(pid, "Max data size"), (1 << 30).to_string());

    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    assert!(host.device.exit().success());
    assert!(!socket.exists());
    assert_eq!(host.device.log(), "");
}

#[test]
fn a_confined_device_dies_as_any_other() {
    let mut host = Host::connect_to(Device::spawn_with(&["--allow-sabotage"]), true);
    host.begin_rings();
    assert_eq!(host.inject(wire::INJECT_DIE, 1, 0), wire::STATUS_OK);
    host.send_at(FREE, wire::QUEUE_VIDEO, copy(1, 1, 1).as_bytes(), 0x800);
    let status = host.device.exit();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
}

#[test]
fn one_that_is_told_to_keeps_its_rights() {
    let device = Device::spawn_with(&["--unconfined"]);
    let pid = device.pid();
    let mut host = Host::connect_to(device, true);
    host.begin_rings();
    work(&mut host);
    let filters = of_threads(pid, "Seccomp:");
    assert!(filters.iter().all(|mode| mode == "0"), "{filters:?}");
}
