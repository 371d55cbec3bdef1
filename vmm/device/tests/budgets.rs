// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that takes all it can get: the device's program stays within its budgets.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pinbed_abi::ta::{pin, secure_storage};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use support::{Device, F_NEXT, F_WRITE, FREE, HOLE, Host, RING_SIZE, header};
use zerocopy::{FromBytes, IntoBytes};

/// Host memory that a guest can make the device take up.
const MEMORY: u64 = 256 << 20;
/// Threads: those of the queues, of the calls, of the connection, of who may stop it, and the first.
const THREADS: usize = 3 + 64 + 3;

/// A field of a process's status in bytes, or its number.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let mut words = line.split_whitespace().skip(1);
    let value: u64 = words.next().unwrap().parse().unwrap();
    match words.next() {
        Some(_) => value << 10,
        None => value,
    }
}

/// The most anonymous memory that a process had while this lived.
struct Peak {
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Peak {
    fn watch(pid: u32) -> Self {
        let (most, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let peak = Self {
            most: Arc::clone(&most),
            over: Arc::clone(&over),
        };
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(status(pid, "RssAnon"), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        peak
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let most = self.most.load(Ordering::Relaxed);
        assert!(most > 0);
        assert!(most < MEMORY, "{what}: {most} bytes");
        println!("{what}: {} MiB", most >> 20);
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // The process may be gone from here on.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Attaches as often as the device lets.
fn attach_all(host: &mut Host, direction: u32, flags: u32, segments: &[(u64, u64)]) -> Vec<u64> {
    let mut handles = Vec::new();
    loop {
        match host.try_attach(direction, flags, segments) {
            Ok(handle) => handles.push(handle),
            Err(status) => {
                assert_eq!(status, wire::STATUS_LIMIT);
                return handles;
            }
        }
    }
}

fn open(host: &mut Host, uuid: pinbed_abi::ta::Uuid) -> Result<u32, u32> {
    let request = OpenSessionRequest {
        header: header(OP_OPEN_SESSION),
        uuid,
        ..Default::default()
    };
    let answer: CallResponse = host.ask(wire::QUEUE_TEE, &request);
    match answer.result.get() {
        TEEC_SUCCESS => Ok(answer.session.get()),
        result => Err(result),
    }
}

fn invoke(session: u32, function: u32, params: &[(u64, u64, u64, u64)]) -> InvokeRequest {
    let mut request = InvokeRequest {
        header: header(OP_INVOKE),
        session: session.into(),
        function: function.into(),
        ..Default::default()
    };
    for (param, (attr, a, b, c)) in request.params.iter_mut().zip(params) {
        let (attr, a, b, c) = (*attr, *a, *b, *c);
        *param = Param {
            attr: attr.into(),
            a: a.into(),
            b: b.into(),
            c: c.into(),
        };
    }
    request
}

#[test]
fn a_guest_that_takes_all_it_can_get_takes_so_much() {
    let device = Device::spawn();
    let pid = device.pid();
    let mut host = Host::connect_to(device, true);
    let config = host.read_config(size_of::<wire::Config>() as u32);
    let config = wire::Config::read_from_bytes(&config).unwrap();
    host.begin_rings();
    let peak = Peak::watch(pid);

    // Segments, the most that there are.
    let most = config.max_segments.get() as usize;
    let scattered: Vec<_> = (0..most as u64).map(|n| (2 * n, 1)).collect();
    let handles = attach_all(&mut host, wire::DIRECTION_BOTH, 0, &scattered);
    let total = config.max_total_segments.get() as usize;
    assert_eq!(handles.len(), total / most);
    peak.check("attached segments");

    // Protected memory in the most pieces that there are.
    for handle in &handles[..4] {
        host.detach(*handle);
    }
    let protected = wire::ATTACH_PROTECTED;
    let pieces = config.max_protected_pieces.get() as usize;
    let handle = host.try_attach(wire::DIRECTION_BOTH, protected, &scattered[..pieces]);
    handle.unwrap();
    let beyond = host.try_attach(wire::DIRECTION_BOTH, protected, &[(15 << 20, 1)]);
    assert_eq!(beyond, Err(wire::STATUS_LIMIT));
    peak.check("protected pieces");

    // A job that must keep all of its source.
    let page = vec![(FREE, 4096); config.max_overlap.get() as usize / 4096];
    let shared = host.attach(wire::DIRECTION_BOTH, &page);
    let job = host.copy(shared, shared, config.max_overlap.get().into());
    assert_eq!(job.header.status.get(), wire::STATUS_OK);
    peak.check("a job that overlaps itself");

    // Storage.
    let session = open(&mut host, secure_storage::UUID).unwrap();
    let mut stored = 0;
    loop {
        let name = FREE + 0x1000;
        host.write(name, &u32::to_le_bytes(stored));
        let name = host.attach(wire::DIRECTION_BOTH, &[(name, 4)]);
        let params = [
            (PARAM_MEMREF_INPUT, 0, 4, name),
            (PARAM_MEMREF_INPUT, 0, 1 << 20, shared),
        ];
        let answer: CallResponse = host.ask(
            wire::QUEUE_TEE,
            &invoke(session, secure_storage::WRITE, &params),
        );
        if answer.result.get() == TEEC_ERROR_STORAGE_NO_SPACE {
            break;
        }
        assert_eq!(answer.result.get(), TEEC_SUCCESS);
        stored += 1;
    }
    assert_eq!(stored << 20, config.max_storage.get());
    peak.check("storage");

    // Sessions, and calls that wait.
    let mut sessions = vec![session];
    let full = loop {
        match open(&mut host, pin::UUID) {
            Ok(session) => sessions.push(session),
            Err(result) => break result,
        }
    };
    assert_eq!(full, TEEC_ERROR_OUT_OF_MEMORY);
    assert_eq!(sessions.len(), config.max_sessions.get() as usize);
    let calls = config.max_calls.get() as usize;
    for (n, session) in sessions[1..].iter().take(calls).enumerate() {
        // All with the same descriptors, which a driver must not do.
        let request = invoke(*session, pin::WAIT, &[(PARAM_VALUE_INPUT, 0, 0, 0)]);
        let at = FREE + 0x10_0000 + 0x400 * n as u64;
        host.write(at, request.as_bytes());
        let length = request.as_bytes().len() as u32;
        host.descriptor(wire::QUEUE_TEE, 2, at, length, F_NEXT, 3);
        host.descriptor(wire::QUEUE_TEE, 3, FREE, 0x200, F_WRITE, 0);
        host.offer(wire::QUEUE_TEE, 2);
        host.kick(wire::QUEUE_TEE);
        support::eventually("a call", || {
            (host.status().calls.get() == n as u64 + 1).then_some(())
        });
    }
    let busy: CallResponse = host.ask(wire::QUEUE_TEE, &invoke(sessions[1], pin::ECHO, &[]));
    assert_eq!(busy.result.get(), TEEC_ERROR_BUSY);
    let threads = status(pid, "Threads") as usize;
    assert!(threads <= THREADS, "{threads} threads");
    peak.check("sessions and calls");

    // Malformed chains, each worth a line.
    for _ in 0..200 {
        for _ in 0..RING_SIZE / 2 {
            host.descriptor(wire::QUEUE_CONTROL, 8, HOLE.start, 0x100, F_WRITE, 0);
            host.offer(wire::QUEUE_CONTROL, 8);
        }
        host.await_idle(wire::QUEUE_CONTROL);
    }
    let lines = host.device.log().lines().count();
    assert!((500..2000).contains(&lines), "{lines} lines of log");
    peak.check("all of it");
}
