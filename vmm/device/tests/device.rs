// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device over a real socket and shared memory: what a driver asks for end to end, and what hostile rings get.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use pinbed_abi::wire;
use pinbed_device::{Error, Options};
use support::{
    Device, F_INDIRECT, F_NEXT, F_WRITE, FREE, HOLE, Host, RING_SIZE, copy, eventually, header,
    stop_limit,
};
use vhost::VhostBackend;
use zerocopy::{FromBytes, IntoBytes};

const SRC: u64 = FREE;
const DST: u64 = FREE + 0x100000;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn attach_copy_detach(event_idx: bool) {
    let mut host = Host::new(event_idx);
    let config = host.read_config(size_of::<wire::Config>() as u32);
    let config = wire::Config::read_from_bytes(&config).unwrap();
    assert_eq!(config.magic.get(), wire::MAGIC);
    assert_eq!(config.version.get(), wire::VERSION);

    let bytes = pattern(9999);
    host.write(SRC + 5, &bytes);
    let src = host.attach(wire::DIRECTION_READ, &[(SRC + 5, 9000), (SRC + 9005, 999)]);
    let dst = host.attach(
        wire::DIRECTION_WRITE,
        &[(DST + 4097, 4000), (DST + 1, 5999)],
    );
    for _ in 0..200 {
        let answer = host.copy(src, dst, 9999);
        assert_eq!(answer.header.status.get(), wire::STATUS_OK);
        assert_eq!(answer.header.cookie.get(), 0x5eed);
        assert_eq!(answer.bytes_written.get(), 9999);
        assert_eq!(answer.src_crc, answer.dst_crc);
        assert_eq!(
            (answer.src_segments.get(), answer.dst_segments.get()),
            (1, 2)
        );
    }
    // The destination's second segment covers the first, so its bytes are those seen last.
    assert_eq!(host.read(DST + 1, 5999), bytes[4000..]);

    let status = host.status();
    assert_eq!((status.buffers.get(), status.jobs.get()), (2, 200));
    for handle in [src, dst] {
        let request = wire::DetachRequest {
            header: header(wire::OP_DETACH),
            handle: handle.into(),
        };
        let answer: wire::ResponseHeader = host.ask(wire::QUEUE_CONTROL, &request);
        assert_eq!(answer.status.get(), wire::STATUS_OK);
    }
    assert_eq!(host.status().buffers.get(), 0);
}

#[test]
fn attach_copy_detach_end_to_end() {
    attach_copy_detach(false);
}

#[test]
fn attach_copy_detach_end_to_end_with_event_idx() {
    attach_copy_detach(true);
}

#[test]
fn a_fault_is_in_the_event_ring_before_it_is_answered() {
    let mut host = Host::new(true);
    let bytes = pattern(100);
    host.write(SRC, &bytes);
    let src = host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    let buffer = host.post_event_buffer(3);
    let answer = host.copy(src, src + 1, 100);
    // No waiting: it must be there.
    let (head, length) = host.poll_used(wire::QUEUE_EVENT).expect("no event");
    assert_eq!((head, length as usize), (3, size_of::<wire::Event>()));
    let event = wire::Event::read_from_bytes(&host.read(buffer, length as usize)).unwrap();
    assert_eq!(answer.header.status.get(), wire::STATUS_DMA_FAULT);
    assert_eq!(event.kind.get(), wire::EVENT_DMA_FAULT);
    assert_eq!(event.cookie.get(), 0x5eed);
    assert_eq!(event.fault, answer.fault);
    assert_eq!(event.fault.reason.get(), wire::FAULT_NOT_ATTACHED);

    // The one buffer is used up: the next event is lost, and counted.
    host.copy(src, src + 1, 100);
    assert_eq!(host.poll_used(wire::QUEUE_EVENT), None);
    let status = host.status();
    assert_eq!((status.faults.get(), status.events_lost.get()), (2, 1));
}

#[test]
fn event_buffers_that_cannot_take_an_event_are_given_back_empty() {
    let mut host = Host::new(true);
    // Too small, readable, outside memory, and then a good one.
    host.descriptor(wire::QUEUE_EVENT, 0, FREE, 8, F_WRITE, 0);
    host.descriptor(wire::QUEUE_EVENT, 1, FREE, 64, 0, 0);
    host.descriptor(wire::QUEUE_EVENT, 2, HOLE.start, 64, F_WRITE, 0);
    for head in 0..3 {
        host.offer(wire::QUEUE_EVENT, head);
    }
    host.post_event_buffer(3);
    host.copy(1, 1, 1);
    let given_back: Vec<_> = (0..4)
        .map(|_| host.poll_used(wire::QUEUE_EVENT).unwrap())
        .collect();
    let whole = size_of::<wire::Event>() as u32;
    assert_eq!(given_back, [(0, 0), (1, 0), (2, 0), (3, whole)]);
    assert_eq!(host.status().events_lost.get(), 0);
}

#[test]
fn a_delayed_job_does_not_hold_up_the_control_queue() {
    let mut host = Host::new(true);
    host.write(SRC, &pattern(100));
    let src = host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    let dst = host.attach(wire::DIRECTION_WRITE, &[(DST, 100)]);
    let inject = |kind, count: u32, argument: u64| wire::InjectRequest {
        header: header(wire::OP_INJECT),
        kind: u32::into(kind),
        count: count.into(),
        argument: argument.into(),
    };
    let _: wire::ResponseHeader = host.ask(
        wire::QUEUE_CONTROL,
        &inject(wire::INJECT_DELAY, 1, 10_000_000),
    );
    host.write(FREE - 0x1000, copy(src, dst, 100).as_bytes());
    let length = size_of::<wire::JobRequest>() as u32;
    host.descriptor(wire::QUEUE_VIDEO, 0, FREE - 0x1000, length, F_NEXT, 1);
    host.descriptor(wire::QUEUE_VIDEO, 1, FREE - 0x800, 0x800, F_WRITE, 0);
    host.offer(wire::QUEUE_VIDEO, 0);
    host.kick(wire::QUEUE_VIDEO);
    eventually("the job's begin", || {
        (host.status().jobs.get() == 1).then_some(())
    });
    let detach = wire::DetachRequest {
        header: header(wire::OP_DETACH),
        handle: dst.into(),
    };
    let answer: wire::ResponseHeader = host.ask(wire::QUEUE_CONTROL, &detach);
    assert_eq!(answer.status.get(), wire::STATUS_OK);
    assert_eq!(host.poll_used(wire::QUEUE_VIDEO), None);
    // Takes the delay back; the job that was waiting finds its destination gone.
    let _: wire::ResponseHeader = host.ask(wire::QUEUE_CONTROL, &inject(wire::INJECT_NONE, 0, 0));
    host.used(wire::QUEUE_VIDEO);
    let answer = host.read(FREE - 0x800, size_of::<wire::JobResponse>());
    let answer = wire::JobResponse::read_from_bytes(&answer).unwrap();
    assert_eq!(answer.fault.reason.get(), wire::FAULT_NOT_ATTACHED);
    assert_eq!(host.read(DST, 100), vec![0; 100]);
}

#[test]
fn a_new_driver_finds_an_empty_device() {
    let mut host = Host::new(true);
    let old = host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    let stopped = host.stop_rings();
    assert_eq!(stopped, [1, 0, 0, 0]);
    host.begin_rings();
    // The video queue is asked first: it must not know the old handle either.
    assert_eq!(
        host.copy(old, old, 1).fault.reason.get(),
        wire::FAULT_NOT_ATTACHED
    );
    let status = host.status();
    assert_eq!((status.buffers.get(), status.attached.get()), (0, 0));
    assert!(host.attach(wire::DIRECTION_READ, &[(SRC, 100)]) > old);
}

#[test]
fn a_paused_guest_keeps_its_buffers() {
    let mut host = Host::new(true);
    host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    for _ in 0..3 {
        let stopped = host.stop_rings();
        host.resume_rings(stopped);
        assert_eq!(host.status().buffers.get(), 1);
    }
}

#[test]
fn where_the_index_wraps_to_zero_a_config_read_tells_a_new_driver_from_a_pause() {
    let mut host = Host::new(true);
    host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    // One request is done; so many more bring the index round to zero.
    let wrap = |host: &mut Host| {
        host.descriptor(wire::QUEUE_CONTROL, 0, FREE, 0, 0, 0);
        for _ in 0..u16::MAX {
            host.offer(wire::QUEUE_CONTROL, 0);
            if host.rings[0].pending() == RING_SIZE {
                host.await_idle(wire::QUEUE_CONTROL);
            }
        }
        host.await_idle(wire::QUEUE_CONTROL);
        let stopped = host.stop_rings();
        assert_eq!(stopped[0], 0);
        stopped
    };
    let stopped = wrap(&mut host);
    host.resume_rings(stopped);
    assert_eq!(host.status().buffers.get(), 1);
    wrap(&mut host);
    host.read_config(size_of::<wire::Config>() as u32);
    host.begin_rings();
    assert_eq!(host.status().buffers.get(), 0);
}

#[test]
fn stopping_the_rings_ends_a_delayed_job_at_once() {
    let mut host = Host::new(true);
    let inject = wire::InjectRequest {
        header: header(wire::OP_INJECT),
        kind: wire::INJECT_DELAY.into(),
        count: 3.into(),
        argument: 10_000_000.into(),
    };
    let _: wire::ResponseHeader = host.ask(wire::QUEUE_CONTROL, &inject);
    host.write(FREE - 0x1000, copy(1, 1, 1).as_bytes());
    let length = size_of::<wire::JobRequest>() as u32;
    host.descriptor(wire::QUEUE_VIDEO, 0, FREE - 0x1000, length, F_NEXT, 1);
    host.descriptor(wire::QUEUE_VIDEO, 1, FREE - 0x800, 0x800, F_WRITE, 0);
    for _ in 0..3 {
        host.offer(wire::QUEUE_VIDEO, 0);
    }
    host.kick(wire::QUEUE_VIDEO);
    eventually("the job's begin", || {
        (host.status().jobs.get() == 1).then_some(())
    });
    let begun = std::time::Instant::now();
    let stopped = host.stop_rings();
    assert!(begun.elapsed().as_secs() < 3);
    // What was begun is answered, the rest is still in the ring.
    assert_eq!(stopped[1], 1);
    assert!(host.poll_used(wire::QUEUE_VIDEO).is_some());
    assert!(host.poll_used(wire::QUEUE_VIDEO).is_none());
}

/// Source and destination of 256 MiB each, in a memory of 12 MiB: the same pages again and again.
fn attach_large(host: &mut Host) -> [u64; 2] {
    const PIECE: u64 = 4 << 10;
    [SRC, DST].map(|at| {
        let segments = vec![(at, PIECE); (256 << 20) / PIECE as usize];
        host.attach(wire::DIRECTION_BOTH, &segments)
    })
}

/// Keeps `queue` full of a request until all heads are out.
fn fill(host: &mut Host, queue: u32, request: &[u8]) {
    for slot in 0..RING_SIZE / 2 {
        let at = FREE + 0x40_0000 + 0x1000 * u64::from(slot);
        host.write(at, request);
        host.descriptor(
            queue,
            2 * slot,
            at,
            request.len() as u32,
            F_NEXT,
            2 * slot + 1,
        );
        host.descriptor(queue, 2 * slot + 1, at + 0x800, 0x800, F_WRITE, 0);
        host.offer(queue, 2 * slot);
    }
    host.kick(queue);
}

fn long_job(host: &mut Host, parts: u64) -> Vec<u8> {
    let [src, dst] = attach_large(host);
    copy(src, dst, parts * (8 << 20)).as_bytes().to_vec()
}

fn long_convert(host: &mut Host, parts: u64) -> Vec<u8> {
    let [src, dst] = attach_large(host);
    let format = |fourcc: &[u8; 4], line: u32| wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: 16384.into(),
        height: (parts as u32 * 160).into(),
        stride: (16384 * line).into(),
        encoding: match fourcc {
            b"RGB3" => wire::ENCODING_NONE,
            _ => wire::ENCODING_BT601,
        }
        .into(),
        quantization: wire::QUANTIZATION_FULL.into(),
    };
    let mut job = copy(src, dst, 256 << 20);
    job.header.op = wire::OP_CONVERT.into();
    job.src_format = format(b"YUYV", 2);
    job.dst_format = format(b"RGB3", 3);
    job.as_bytes().to_vec()
}

fn long_checksum(host: &mut Host, parts: u64) -> Vec<u8> {
    let [handle, _] = attach_large(host);
    let request = wire::ChecksumRequest {
        header: header(wire::OP_CHECKSUM),
        range: copy(handle, handle, parts * (8 << 20)).src,
    };
    request.as_bytes().to_vec()
}

/// A queue, and a request there that takes the longer the more of 32 parts it has.
type Long = (u32, fn(&mut Host, u64) -> Vec<u8>);

const LONG: [Long; 3] = [
    (wire::QUEUE_VIDEO, long_job),
    (wire::QUEUE_VIDEO, long_convert),
    (wire::QUEUE_CONTROL, long_checksum),
];

#[test]
fn the_device_ends_within_a_second_whatever_is_queued() {
    for (queue, request) in LONG {
        for told in [true, false] {
            let mut host = Host::new(true);
            let limit = stop_limit(&mut host);
            let request = request(&mut host, 32);
            fill(&mut host, queue, &request);
            thread::sleep(Duration::from_millis(50));
            let Host {
                mut device,
                frontend,
                ..
            } = host;
            let begin = Instant::now();
            match told {
                true => device.stop(),
                false => drop(frontend),
            }
            device.ended().unwrap();
            let took = begin.elapsed();
            assert!(took < limit, "queue {queue}, told {told}: {took:?}");
        }
    }
}

#[test]
fn rings_stop_within_a_second_and_after_a_pause_all_is_answered() {
    // A job that is long for the stop, and one whose end can be waited for.
    let jobs = LONG
        .iter()
        .flat_map(|long| [32, 4].map(|parts| (long, parts)));
    for ((queue, request), parts) in jobs {
        let queue = *queue;
        let mut host = Host::new(true);
        let limit = stop_limit(&mut host);
        let request = request(&mut host, parts);
        fill(&mut host, queue, &request);
        thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        let stopped = host.stop_rings();
        let took = begin.elapsed();
        assert!(took < limit, "queue {queue}: {took:?}");
        // What is in hand rests: neither memory nor the ring is touched.
        while host.poll_used(queue).is_some() {}
        host.write(DST, &[0x77; 4096]);
        thread::sleep(Duration::from_millis(100));
        assert_eq!(host.read(DST, 4096), [0x77; 4096]);
        assert_eq!(host.poll_used(queue), None);
        if parts == 32 {
            continue;
        }
        host.resume_rings(stopped);
        let what = format!("an answer of queue {queue}");
        let (_, written) = eventually(&what, || host.poll_used(queue));
        assert_ne!(written, 0);
    }
}

#[test]
fn what_was_in_hand_before_a_reset_is_abandoned() {
    for (queue, request) in LONG {
        let mut host = Host::new(true);
        let request = request(&mut host, 32);
        fill(&mut host, queue, &request);
        thread::sleep(Duration::from_millis(50));
        host.stop_rings();
        host.begin_rings();
        assert_eq!(host.status().buffers.get(), 0);
        host.write(DST, &[0x77; 4096]);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(host.read(DST, 4096), [0x77; 4096]);
        let own = host.request(queue, header(7).as_bytes(), 0x800);
        assert_eq!(own.len(), size_of::<wire::ResponseHeader>());
        assert_eq!(host.poll_used(queue), None);
    }
}

#[test]
fn memory_that_is_unplugged_is_not_touched_by_a_job_that_waited() {
    let mut host = Host::new(true);
    let high = HOLE.end;
    let dst = host.attach(wire::DIRECTION_WRITE, &[(high, 0x1000)]);
    host.inject(wire::INJECT_DELAY, 1, 300_000);
    let fill = wire::JobRequest {
        header: header(wire::OP_FILL),
        dst: copy(dst, dst, 0x1000).dst,
        pattern: 0x7777_7777.into(),
        ..Default::default()
    };
    self::fill_one(&mut host, fill.as_bytes());
    eventually("the job's begin", || {
        (host.status().jobs.get() == 1).then_some(())
    });
    host.unplug_high_memory();
    let (_, length) = eventually("the answer", || host.poll_used(wire::QUEUE_VIDEO));
    let answer = host.read(FREE - 0x800, length as usize);
    let answer = wire::JobResponse::read_from_prefix(&answer).unwrap().0;
    assert_eq!(answer.header.status.get(), wire::STATUS_DMA_FAULT);
    assert_eq!(answer.fault.reason.get(), wire::FAULT_NO_MEMORY);
    assert_eq!(host.read(high, 0x1000), [0; 0x1000]);
}

/// One request on the video queue, which is not waited for.
fn fill_one(host: &mut Host, request: &[u8]) {
    host.write(FREE - 0x1000, request);
    let length = request.len() as u32;
    host.descriptor(wire::QUEUE_VIDEO, 0, FREE - 0x1000, length, F_NEXT, 1);
    host.descriptor(wire::QUEUE_VIDEO, 1, FREE - 0x800, 0x800, F_WRITE, 0);
    host.offer(wire::QUEUE_VIDEO, 0);
    host.kick(wire::QUEUE_VIDEO);
}

#[test]
fn sabotage_is_refused_unless_the_host_allows_it() {
    for allowed in [false, true] {
        let device = Device::start_with(Options {
            allow_sabotage: allowed,
            ..Options::default()
        });
        let mut host = Host::connect_to(device, true);
        let features = host.frontend.get_features().unwrap();
        assert_eq!(features >> wire::F_SABOTAGE & 1 == 1, allowed);
        let both = 1 << wire::F_TEE | 1 << wire::F_PROTECTED;
        assert_eq!(features & both, both);
        host.begin_rings();
        let status = host.inject(wire::INJECT_FAIL, 1, 0);
        let expected = match allowed {
            true => wire::STATUS_OK,
            false => wire::STATUS_UNSUPPORTED,
        };
        assert_eq!(status, expected);
        let job = host.copy(1, 1, 1).header.status.get();
        assert_eq!(job == wire::STATUS_ERROR, allowed);
    }
}

/// Writes a chain with its head at descriptor 0.
type Make<'a> = &'a dyn Fn(&Host);

#[test]
fn malformed_chains_are_given_back_empty_and_the_queue_goes_on() {
    let mut host = Host::new(true);
    let queue = wire::QUEUE_CONTROL;
    let request = FREE;
    let room = FREE + 0x1000;
    let table = FREE + 0x2000;
    host.write(request, header(wire::OP_STATUS).as_bytes());
    // An answer's room that stays untouched shows that nothing was carried out.
    host.write(room, &[0xee; 0x100]);
    let malformed: [(&str, Make); 14] = [
        ("more descriptors than the queue has", &|host| {
            let all = RING_SIZE + 1;
            host.descriptor(queue, 0, table, 16 * u32::from(all), F_INDIRECT, 0);
            for n in 0..all - 1 {
                host.put_descriptor(table + 16 * u64::from(n), request, 16, F_NEXT, n + 1);
            }
            let last = table + 16 * u64::from(all - 1);
            host.put_descriptor(last, room, 0x100, F_WRITE, 0);
        }),
        ("a loop", &|host| {
            host.descriptor(queue, 0, request, 16, F_NEXT, 1);
            host.descriptor(queue, 1, room, 0x100, F_WRITE | F_NEXT, 1);
        }),
        ("a successor out of range", &|host| {
            host.descriptor(queue, 0, request, 16, F_NEXT, 1);
            host.descriptor(queue, 1, room, 0x100, F_WRITE | F_NEXT, RING_SIZE);
        }),
        ("readable after writable", &|host| {
            host.descriptor(queue, 0, room, 0x100, F_WRITE | F_NEXT, 1);
            host.descriptor(queue, 1, request, 16, 0, 0);
        }),
        ("a request in a hole", &|host| {
            host.descriptor(queue, 0, HOLE.start - 8, 16, F_NEXT, 1);
            host.descriptor(queue, 1, room, 0x100, F_WRITE, 0);
        }),
        ("room in a hole", &|host| {
            host.descriptor(queue, 0, request, 16, F_NEXT, 1);
            host.descriptor(queue, 1, HOLE.start - 8, 0x100, F_WRITE, 0);
        }),
        ("an address that wraps", &|host| {
            host.descriptor(queue, 0, request, 16, F_NEXT, 1);
            host.descriptor(queue, 1, u64::MAX - 8, 0x100, F_WRITE, 0);
        }),
        ("more than 4 GiB", &|host| {
            host.descriptor(queue, 0, request, 16, F_NEXT, 1);
            host.descriptor(queue, 1, room, u32::MAX, F_WRITE | F_NEXT, 2);
            host.descriptor(queue, 2, room, 0x100, F_WRITE, 0);
        }),
        ("zero-length descriptors alone", &|host| {
            host.descriptor(queue, 0, request, 0, F_NEXT, 1);
            host.descriptor(queue, 1, room, 0, F_WRITE, 0);
        }),
        ("no request", &|host| {
            host.descriptor(queue, 0, room, 0x100, F_WRITE, 0);
        }),
        ("an indirect table of odd size", &|host| {
            host.descriptor(queue, 0, table, 17, F_INDIRECT, 0);
        }),
        ("an indirect table in a hole", &|host| {
            host.descriptor(queue, 0, HOLE.start, 32, F_INDIRECT, 0);
        }),
        ("an indirect table in an indirect table", &|host| {
            host.descriptor(queue, 0, table, 32, F_INDIRECT, 0);
            host.put_descriptor(table, request, 16, F_NEXT, 1);
            host.put_descriptor(table + 16, table, 32, F_INDIRECT, 0);
        }),
        ("an indirect table with a loop", &|host| {
            host.descriptor(queue, 0, table, 32, F_INDIRECT, 0);
            host.put_descriptor(table, request, 16, F_NEXT, 1);
            host.put_descriptor(table + 16, room, 16, F_WRITE | F_NEXT, 1);
        }),
    ];
    for (what, make) in malformed {
        make(&host);
        host.offer(queue, 0);
        host.kick(queue);
        assert_eq!(host.used(queue), (0, 0), "{what}");
        assert_eq!(host.read(room, 0x100), vec![0xee; 0x100], "{what}");
        assert_eq!(host.status().header.status.get(), wire::STATUS_OK, "{what}");
    }
}

#[test]
fn a_request_whose_answer_could_not_be_delivered_is_not_carried_out() {
    let mut host = Host::new(true);
    let request = wire::AttachRequest {
        header: header(wire::OP_ATTACH),
        direction: wire::DIRECTION_READ.into(),
        segment_count: 1.into(),
        length: 1.into(),
        ..Default::default()
    };
    let segment = wire::Segment {
        address: 0.into(),
        length: 1.into(),
    };
    let bytes = [request.as_bytes(), segment.as_bytes()].concat();
    host.write(FREE, &bytes);
    for (room, length) in [(HOLE.start - 8, 0x100), (FREE + 0x1000, 23)] {
        host.descriptor(wire::QUEUE_CONTROL, 0, FREE, bytes.len() as u32, F_NEXT, 1);
        host.descriptor(wire::QUEUE_CONTROL, 1, room, length, F_WRITE, 0);
        host.offer(wire::QUEUE_CONTROL, 0);
        host.kick(wire::QUEUE_CONTROL);
        host.used(wire::QUEUE_CONTROL);
        assert_eq!(host.status().attached.get(), 0);
    }
}

#[test]
fn a_ring_that_cannot_be_read_is_not_asked_again_and_again() {
    let mut host = Host::connect(false);
    // Its index is the last of the memory before the hole, its entries are in the hole.
    host.rings[2].avail_at = HOLE.start - 4;
    host.begin_rings();
    host.set_avail_index(wire::QUEUE_TEE, 1);
    host.kick(wire::QUEUE_TEE);
    // A worker that drains its ring does not want kicks, and says so in the used ring.
    let wants_kicks = |host: &Host| host.used_flags(wire::QUEUE_TEE) == 0;
    // A ring with an error in it forbids no kick either.
    eventually("rest", || {
        let mut looks = (0..2000).map(|_| wants_kicks(&host));
        looks.all(|wants| wants).then_some(())
    });
}

#[test]
fn a_ring_error_forbids_no_kicks() {
    let mut host = Host::new(false);
    host.set_avail_index(wire::QUEUE_TEE, RING_SIZE * 3);
    host.kick(wire::QUEUE_TEE);
    // The kick has been taken when another queue's request, sent later, is answered again and again.
    for _ in 0..20 {
        host.status();
        thread::sleep(Duration::from_millis(1));
    }
    eventually("a ring that wants kicks", || {
        (host.used_flags(wire::QUEUE_TEE) == 0).then_some(())
    });
}

#[test]
fn an_indirect_chain_in_pieces_is_served() {
    let mut host = Host::new(true);
    let (request, room, table) = (FREE, FREE + 0x1000, FREE + 0x2000);
    host.write(request, header(wire::OP_STATUS).as_bytes());
    host.descriptor(wire::QUEUE_CONTROL, 0, table, 5 * 16, F_INDIRECT, 0);
    host.put_descriptor(table, request, 3, F_NEXT, 1);
    host.put_descriptor(table + 16, request + 3, 0, F_NEXT, 2);
    host.put_descriptor(table + 32, request + 3, 13, F_NEXT, 3);
    host.put_descriptor(table + 48, room, 5, F_WRITE | F_NEXT, 4);
    host.put_descriptor(table + 64, room + 5, 0x100, F_WRITE, 0);
    host.offer(wire::QUEUE_CONTROL, 0);
    host.kick(wire::QUEUE_CONTROL);
    let length = size_of::<wire::StatusResponse>();
    assert_eq!(host.used(wire::QUEUE_CONTROL), (0, length as u32));
    let answer = wire::StatusResponse::read_from_bytes(&host.read(room, length)).unwrap();
    assert_eq!(answer.header.cookie.get(), 0x5eed);
}

#[test]
fn a_head_out_of_range_and_an_index_that_jumps_do_not_stop_the_other_queues() {
    let mut host = Host::new(true);
    host.offer(wire::QUEUE_VIDEO, RING_SIZE);
    host.kick(wire::QUEUE_VIDEO);
    host.set_avail_index(wire::QUEUE_TEE, RING_SIZE * 3);
    host.kick(wire::QUEUE_TEE);
    for _ in 0..20 {
        assert_eq!(host.status().header.status.get(), wire::STATUS_OK);
    }
    assert_eq!(host.poll_used(wire::QUEUE_VIDEO), None);
    // A new driver gets them going again.
    host.stop_rings();
    host.begin_rings();
    let answer: wire::ResponseHeader = host.ask(wire::QUEUE_TEE, &header(1));
    assert_eq!(answer.status.get(), wire::STATUS_UNSUPPORTED);
    assert_eq!(
        host.copy(1, 1, 1).header.status.get(),
        wire::STATUS_DMA_FAULT
    );
}

#[test]
fn chains_that_wait_when_a_ring_is_enabled_are_served_without_a_kick() {
    let mut host = Host::new(false);
    host.stop_rings();
    host.start_rings(None, |host| {
        host.write(FREE, header(wire::OP_STATUS).as_bytes());
        host.descriptor(wire::QUEUE_CONTROL, 0, FREE, 16, F_NEXT, 1);
        host.descriptor(wire::QUEUE_CONTROL, 1, FREE + 0x100, 0x100, F_WRITE, 0);
        host.offer(wire::QUEUE_CONTROL, 0);
    });
    assert_eq!(
        host.used(wire::QUEUE_CONTROL).1 as usize,
        size_of::<wire::StatusResponse>()
    );
}

#[test]
fn config_reads_are_as_long_as_asked_for_and_writes_change_nothing() {
    let mut host = Host::new(true);
    assert_eq!(host.read_config(4).len(), 4);
    let long = host.read_config(200);
    assert_eq!(long.len(), 200);
    host.write_config(&[0xff]);
    assert_eq!(host.read_config(200), long);
}

#[test]
fn the_device_ends_when_the_front_end_goes_away() {
    let mut host = Host::new(true);
    host.attach(wire::DIRECTION_READ, &[(SRC, 100)]);
    let Host {
        mut device,
        frontend,
        ..
    } = host;
    drop(frontend);
    device.ended().unwrap();
    assert!(!device.socket.exists());
}

#[test]
fn the_device_ends_when_told_to_even_in_a_delayed_job() {
    let mut host = Host::new(true);
    let inject = wire::InjectRequest {
        header: header(wire::OP_INJECT),
        kind: wire::INJECT_DELAY.into(),
        count: 1.into(),
        argument: 10_000_000.into(),
    };
    let _: wire::ResponseHeader = host.ask(wire::QUEUE_CONTROL, &inject);
    host.descriptor(
        wire::QUEUE_VIDEO,
        0,
        FREE,
        size_of::<wire::JobRequest>() as u32,
        F_NEXT,
        1,
    );
    host.descriptor(wire::QUEUE_VIDEO, 1, FREE + 0x1000, 0x800, F_WRITE, 0);
    host.write(FREE, copy(1, 1, 1).as_bytes());
    host.offer(wire::QUEUE_VIDEO, 0);
    host.kick(wire::QUEUE_VIDEO);
    eventually("the job's begin", || {
        (host.status().jobs.get() == 1).then_some(())
    });
    host.device.stop();
    host.device.ended().unwrap();
    assert!(!host.device.socket.exists());
}

#[test]
fn descriptors_that_block_keep_nobody_waiting() {
    let mut host = Host::connect(false);
    host.take_descriptors_that_block();
    host.begin_rings();
    let (request, length) = (header(wire::OP_STATUS), size_of::<wire::RequestHeader>());
    host.write(FREE, request.as_bytes());
    for queue in [wire::QUEUE_CONTROL, wire::QUEUE_VIDEO].repeat(50) {
        host.descriptor(queue, 0, FREE, length as u32, F_NEXT, 1);
        host.descriptor(queue, 1, FREE + 0x1000, 0x800, F_WRITE, 0);
        host.offer(queue, 0);
        host.await_idle(queue);
    }
    host.device.stop();
    host.device.ended().unwrap();
}

#[test]
fn the_device_ends_when_told_to_before_anybody_came() {
    let mut device = Device::start();
    device.stop();
    device.ended().unwrap();
    assert!(!device.socket.exists());
}

#[test]
fn a_peer_that_leaves_without_a_word_is_not_the_front_end() {
    let device = Device::start();
    for _ in 0..3 {
        drop(UnixStream::connect(&device.socket).unwrap());
    }
    // A second device at the same path finds out by knocking, and does no harm either.
    let stop = std::fs::File::open("/dev/null").unwrap();
    let second = pinbed_device::serve_until(
        &device.socket,
        Options::default(),
        std::os::fd::AsFd::as_fd(&stop),
    );
    assert!(matches!(second, Err(Error::Socket { .. })));
    let host = Host::connect_to(device, true);
    drop(host);
}

#[test]
fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (told, stop) = UnixStream::pair().unwrap();
    drop(told);
    pinbed_device::serve_until(&path, Options::default(), std::os::fd::AsFd::as_fd(&stop)).unwrap();
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let refused =
        pinbed_device::serve_until(&path, Options::default(), std::os::fd::AsFd::as_fd(&stop));
    assert!(matches!(refused, Err(Error::Socket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
