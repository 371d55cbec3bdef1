// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed run --trace` with a real guest. The file is read by a reader of its own, which knows of protocol buffers only how they are
//! written. The kernel is one of pinbed's own as it is, without function graphs, so that nothing is built.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{pinbed, top, vmlinux};

const TEST: &str = "userptr::malloc_is_decoder_input";

/// A field of a message: a number, or bytes.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

/// The fields of a message, by number, in the order in which they come.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (number, rest) = bytes.split_first_chunk().unwrap();
                bytes = rest;
                Field::Number(u64::from_le_bytes(*number))
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (field, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(field)
            }
            kind => panic!("no field of kind {kind} is expected"),
        };
        all.push((tag >> 3, field));
    }
    all
}

fn number(message: &[(u64, Field)], wanted: u64) -> Option<u64> {
    message.iter().find_map(|(tag, field)| match field {
        Field::Number(number) if *tag == wanted => Some(*number),
        _ => None,
    })
}

fn bytes<'a>(message: &[(u64, Field<'a>)], wanted: u64) -> Option<&'a [u8]> {
    message.iter().find_map(|(tag, field)| match field {
        Field::Bytes(bytes) if *tag == wanted => Some(*bytes),
        _ => None,
    })
}

fn text(message: &[(u64, Field)], wanted: u64) -> String {
    String::from_utf8(bytes(message, wanted).unwrap_or_default().to_vec()).unwrap()
}

/// A trace event: time, track, type, name.
struct Seen {
    time: u64,
    track: u64,
    kind: u64,
    name: String,
}

#[test]
fn a_trace_has_system_calls_pins_and_the_devices_accesses_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("test.pftrace");
    let path = file.to_str().unwrap();
    let output = pinbed(&[
        "run",
        TEST,
        "--accel",
        "tcg",
        "--kernel-image",
        vmlinux("6.12").to_str().unwrap(),
        "--trace",
        path,
    ])
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("test.pftrace has"), "{said}");

    let trace = fs::read(&file).unwrap();
    let (mut seen, mut tracks) = (Vec::new(), BTreeMap::new());
    let mut stacks = Vec::new();
    for (tag, packet) in fields(&trace) {
        let (1, Field::Bytes(packet)) = (tag, packet) else {
            panic!("field {tag} of a trace")
        };
        let packet = fields(packet);
        if let Some(descriptor) = bytes(&packet, 60) {
            let descriptor = fields(descriptor);
            let name = match (bytes(&descriptor, 3), bytes(&descriptor, 4)) {
                (Some(process), _) => text(&fields(process), 6),
                (_, Some(thread)) => text(&fields(thread), 5),
                _ => text(&descriptor, 2),
            };
            tracks.insert(number(&descriptor, 1).unwrap(), name);
        }
        if let Some(event) = bytes(&packet, 11) {
            let event = fields(event);
            for (tag, field) in &event {
                let (4, Field::Bytes(annotation)) = (tag, field) else {
                    continue;
                };
                let annotation = fields(annotation);
                if text(&annotation, 10) == "stack" {
                    stacks.push(text(&annotation, 6));
                }
            }
            seen.push(Seen {
                time: number(&packet, 8).unwrap(),
                track: number(&event, 11).unwrap(),
                kind: number(&event, 9).unwrap(),
                name: text(&event, 23),
            });
        }
    }
    // Slices end as often as they begin, and time does not go back on a track.
    let mut open: BTreeMap<u64, (i32, u64)> = BTreeMap::new();
    for event in &seen {
        assert!(tracks.contains_key(&event.track));
        let (depth, last) = open.entry(event.track).or_default();
        *depth += match event.kind {
            1 => 1,
            2 => -1,
            _ => 0,
        };
        assert!(*depth >= 0 && *last <= event.time, "{}", event.name);
        *last = event.time;
    }
    assert!(open.values().all(|(depth, _)| *depth == 0));

    assert!(seen.iter().any(|event| event.name == TEST));
    // A pin's stack goes from the function to the system call.
    assert!(
        stacks.iter().any(|stack| {
            let place = |name| stack.find(name);
            place("pin_user_pages_fast").is_some() && place("vb2_qbuf") < place("do_syscall_64")
        }),
        "{stacks:?}"
    );
    // The device's times are known to some microseconds only, but not their order against the requests.
    seen.sort_by_key(|event| event.time);
    let mut rest = seen.iter();
    for what in [
        "ioctl VIDIOC_QBUF",
        "pin 5 pages FOLL_LONGTERM",
        "pin_user_pages_fast returned 5",
        "send ATTACH",
        "ATTACH",
        "send COPY",
        "COPY",
        "DMA read",
        "DMA write",
        "answer (video)",
        "unpin 5 pages",
    ] {
        let found = rest.any(|event| event.name.starts_with(what));
        assert!(found, "no {what} after what should come before it");
    }
    assert!(
        tracks
            .values()
            .any(|name| name.starts_with("pinbed-device"))
    );
    assert!(tracks.values().any(|name| name == "video queue"));
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_anything_runs() {
    let output = pinbed(&["trace", TEST, "--trace", "/nonexistent/x.pftrace"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--trace /nonexistent/x.pftrace: cannot be written"),
        "{said}"
    );
}

#[test]
fn the_trace_of_a_failure_leaves_the_results_of_its_run_alone() {
    // It waits for an answer for longer than it may take here.
    const FAILS: &str = "fault::lost_completions_give_the_device_up";
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().join("state");
    let output = pinbed(&["run", TEST, FAILS, "--accel", "tcg", "--timeout", "1"])
        .arg("--kernel-image")
        .arg(vmlinux("6.12"))
        .args(["--on-fail", "trace"])
        .args(["--json", "run.json", "--events", "run.events", "--ktap"])
        .current_dir(directory.path())
        .env("PINBED_WORKSPACE", top())
        .env("XDG_STATE_HOME", &results)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let trace = "fault-lost_completions_give_the_device_up.pftrace";
    assert!(said.contains(&format!("pinbed: {trace} has ")), "{said}");
    assert!(directory.path().join(trace).exists());
    // The run of both tests is the one that was told of everywhere, and the one that is kept.
    for told in ["run.json", "run.events"] {
        let text = fs::read_to_string(directory.path().join(told)).unwrap();
        assert!(text.contains(TEST), "{told}: {text}");
    }
    let ktap = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(ktap.matches("KTAP version 1").count(), 1, "{ktap}");
    let kept: Vec<_> = fs::read_dir(results.join("pinbed/runs")).unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
}
