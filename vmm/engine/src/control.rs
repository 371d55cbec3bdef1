// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Operations of the control queue.

use std::sync::atomic::Ordering;

use pinbed_abi::wire;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use zerocopy::FromBytes;

use crate::access::{Access, Agent, Direction, Fault, Piece, Range};
use crate::dma::AttachError;
use crate::message::{Answer, Request, status};
use crate::protected::Refusal;
use crate::{Engine, GoOn, count};

/// Bytes that CHECKSUM reads at a time.
const CHECKSUM_STEP: u64 = 1 << 20;

pub(crate) fn serve<S: GuestAddressSpace>(
    engine: &Engine,
    space: S,
    request: &Request,
    go_on: GoOn,
) -> Answer {
    let mut events = Vec::new();
    let bytes = match request.op() {
        wire::OP_STATUS => request.reply(|| {
            request.exactly::<wire::RequestHeader>()?;
            write_stale(engine, &space);
            Ok(report(engine))
        }),
        wire::OP_ATTACH => request.reply(|| {
            let (attach, rest) = request.with_rest()?;
            let handle = self::attach(engine, &attach, rest)?;
            engine.injector.attached();
            Ok(wire::AttachResponse {
                handle: handle.into(),
                ..Default::default()
            })
        }),
        wire::OP_DETACH => request.reply(|| {
            let handle = request.exactly::<wire::DetachRequest>()?.handle.get();
            if engine.injector.keeps() {
                log::debug!("DETACH {handle} refused, as INJECT_KEEP asked for");
                return Err(wire::STATUS_ERROR);
            }
            let buffer = engine.table_mut().detach(handle);
            match buffer {
                Some(buffer) => {
                    engine.injector.detached(buffer.segments());
                    log::debug!("DETACH {handle}: {} bytes", buffer.length());
                }
                None => return Err(wire::STATUS_NO_BUFFER),
            }
            Ok(status(wire::STATUS_OK))
        }),
        wire::OP_QUERY => request.answer(|| {
            let room = request.room_for_segments::<wire::QueryResponse>();
            query(engine, &request.exactly()?, room)
        }),
        wire::OP_CHECKSUM => request.reply(|| {
            let range = Range::from(request.exactly::<wire::ChecksumRequest>()?.range);
            if engine.table().get(range.handle).is_none() {
                return Err(wire::STATUS_NO_BUFFER);
            }
            match checksum(engine, space, range, go_on) {
                Ok(crc) => {
                    log::debug!(
                        "CHECKSUM {}: offset {:#x} length {:#x} crc {crc:#010x}",
                        range.handle,
                        range.offset,
                        range.length
                    );
                    Ok(wire::ChecksumResponse {
                        crc: crc.into(),
                        ..Default::default()
                    })
                }
                Err(Ended::Abandoned) => Err(wire::STATUS_ERROR),
                Err(Ended::Fault(fault)) => {
                    events.push(engine.fault(&fault, &request.header));
                    Ok(wire::ChecksumResponse {
                        header: status(wire::STATUS_DMA_FAULT),
                        fault: fault.into(),
                        ..Default::default()
                    })
                }
            }
        }),
        wire::OP_INJECT if engine.sabotage => request.reply(|| {
            let inject: wire::InjectRequest = request.exactly()?;
            let (kind, count) = (inject.kind.get(), inject.count.get());
            let argument = inject.argument.get();
            if !engine.injector.plan(kind, count, argument) {
                return Err(wire::STATUS_INVALID);
            }
            log::debug!("INJECT kind {kind} count {count} argument {argument}");
            Ok(status(wire::STATUS_OK))
        }),
        _ => request.refuse(wire::STATUS_UNSUPPORTED),
    };
    Answer { bytes, events }
}

/// As INJECT_STALE asks for: writes to memory that is not attached any more.
fn write_stale<S: GuestAddressSpace>(engine: &Engine, space: &S) {
    let (pieces, fill) = engine.injector.stale();
    engine.access(space, |_, memory| {
        for piece in pieces {
            let bytes = vec![fill; piece.length.min(1 << 20) as usize];
            log::debug!("writes to {:#x}, which was detached", piece.address);
            // What is not memory cannot be damaged.
            let _ = memory.write_slice(&bytes, GuestAddress(piece.address));
        }
    });
}

fn report(engine: &Engine) -> wire::StatusResponse {
    let table = engine.table();
    let counters = &engine.counters;
    let (sessions, calls) = engine.tee.count();
    let response = wire::StatusResponse {
        header: status(wire::STATUS_OK),
        buffers: (table.len() as u64).into(),
        bytes: table.bytes().into(),
        attached: counters.attached.load(Ordering::Relaxed).into(),
        jobs: counters.jobs.load(Ordering::Relaxed).into(),
        faults: counters.faults.load(Ordering::Relaxed).into(),
        events_lost: counters.events_lost.load(Ordering::Relaxed).into(),
        sessions: (sessions as u64).into(),
        calls: (calls as u64).into(),
    };
    log::debug!(
        "STATUS: {} buffers of {} bytes, {} jobs, {} faults",
        response.buffers,
        response.bytes,
        response.jobs,
        response.faults
    );
    response
}

fn attach(engine: &Engine, request: &wire::AttachRequest, rest: &[u8]) -> Result<u64, u32> {
    let direction = Direction::from_wire(request.direction.get()).ok_or(wire::STATUS_INVALID)?;
    let segments = <[wire::Segment]>::ref_from_bytes(rest).map_err(|_| wire::STATUS_INVALID)?;
    if segments.len() != request.segment_count.get() as usize {
        return Err(wire::STATUS_INVALID);
    }
    // Summed before the table sees it, so that a length that is not the sum is INVALID whatever the limits are.
    let sum = segments
        .iter()
        .try_fold(0u64, |sum, segment| sum.checked_add(segment.length.get()));
    if sum != Some(request.length.get()) {
        return Err(wire::STATUS_INVALID);
    }
    let pieces = segments.iter().map(|segment| Piece {
        address: segment.address.get(),
        length: segment.length.get(),
    });
    let mut table = engine.table_mut();
    let attached = match (request.flags.get(), request.reserved.get()) {
        (0, 0) => table.attach(direction, pieces),
        (wire::ATTACH_PROTECTED, 0) => table.attach_protected(direction, pieces),
        _ => return Err(wire::STATUS_INVALID),
    };
    drop(table);
    let handle = attached.map_err(|error| match error {
        AttachError::Malformed | AttachError::Protection(Refusal::Twice) => wire::STATUS_INVALID,
        AttachError::Limit | AttachError::Protection(Refusal::Limit) => wire::STATUS_LIMIT,
        AttachError::Protection(Refusal::NoKey | Refusal::NotProtected) => wire::STATUS_ERROR,
    })?;
    count(&engine.counters.attached, 1);
    log::debug!(
        "ATTACH {handle}: {direction:?} {} bytes in {} segments",
        request.length,
        segments.len()
    );
    Ok(handle)
}

fn query(
    engine: &Engine,
    query: &wire::QueryRequest,
    room: usize,
) -> Result<(wire::QueryResponse, Vec<Piece>), u32> {
    let table = engine.table();
    let handle = query.handle.get();
    let found = match query.flags.get() {
        0 => table.get(handle).map(|buffer| (handle, buffer)),
        wire::QUERY_NEXT => table.next_after(handle),
        _ => return Err(wire::STATUS_INVALID),
    };
    let (handle, buffer) = found.ok_or(wire::STATUS_NO_BUFFER)?;
    let segments = buffer.segments();
    let first = segments.len().min(query.first_segment.get() as usize);
    let returned: Vec<Piece> = segments[first..].iter().take(room).copied().collect();
    log::debug!(
        "QUERY {handle}: {} of {} segments",
        returned.len(),
        segments.len()
    );
    let response = wire::QueryResponse {
        handle: handle.into(),
        length: buffer.length().into(),
        direction: buffer.direction().to_wire().into(),
        // The table takes no more segments than a u32 counts.
        segment_count: (segments.len() as u32).into(),
        returned: (returned.len() as u32).into(),
        flags: match buffer.is_protected() {
            true => wire::ATTACH_PROTECTED,
            false => 0,
        }
        .into(),
        ..Default::default()
    };
    Ok((response, returned))
}

enum Ended {
    Fault(Fault),
    Abandoned,
}

fn checksum<S: GuestAddressSpace>(
    engine: &Engine,
    space: S,
    range: Range,
    go_on: GoOn,
) -> Result<u32, Ended> {
    let (agent, access) = (Agent::Control, Access::Inspect);
    // All of it is checked first, so that a fault says the range that was asked for.
    let checked = engine.table().check(&*space.memory(), agent, range, access);
    checked.map_err(Ended::Fault)?;
    let (mut crc, mut done) = (0, 0);
    let mut scratch = vec![0; CHECKSUM_STEP.min(range.length) as usize];
    while done < range.length {
        if done > 0 && !go_on() {
            return Err(Ended::Abandoned);
        }
        let step = Range {
            offset: range.offset + done,
            length: CHECKSUM_STEP.min(range.length - done),
            ..range
        };
        let bytes = &mut scratch[..step.length as usize];
        let read = engine.access(&space, |table, memory| {
            table.read(memory, agent, step, &step.whole(), access, bytes)
        });
        read.map_err(|fault| Ended::Fault(Fault { range, ..fault }))?;
        crc = crc32c::crc32c_append(crc, bytes);
        done += step.length;
    }
    Ok(crc)
}
