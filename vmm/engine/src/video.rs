// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Jobs of the video queue.
//!
//! Every job takes the same way: check the request, wait or fail if a test asked for it, resolve source and destination,
//! read all of the source, work on the bytes, write all of the destination. So nothing is written before all is read:
//! source and destination may overlap, or share pages, and the job sees the source as it was. The checksums are over the
//! bytes that were moved, in the order of the image's lines, padding left out and left alone.

use std::sync::PoisonError;

use pinbed_abi::wire;
use vm_memory::GuestMemory;

use crate::control::nothing_follows;
use crate::dma::{self, Access, Extent, Fault, Piece, Range};
use crate::inject::Outcome;
use crate::message::{Answer, Request, status};
use crate::pixel::{Converter, Layout, sized};
use crate::{Engine, count};

/// Scratch memory that is kept from job to job; a larger job's is given back.
const SCRATCH_KEPT: usize = 64 << 20;

/// Bytes on their way from source to destination.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    bytes: Vec<u8>,
    converter: Converter,
}

/// A job whose request makes sense.
#[derive(Debug)]
struct Job {
    work: Work,
    src: Range,
    src_extents: Vec<Extent>,
    dst: Range,
    dst_extents: Vec<Extent>,
}

#[derive(Debug)]
enum Work {
    Copy,
    Fill([u8; 4]),
    Convert(Layout, Layout),
}

/// What a job saw and did.
#[derive(Debug)]
struct Done {
    src: Vec<Piece>,
    dst: Vec<Piece>,
    bytes_read: u64,
    bytes_written: u64,
    src_crc: u32,
    dst_crc: u32,
}

enum Failure {
    Fault(Fault),
    Engine,
}

pub(crate) fn serve<M: GuestMemory>(engine: &Engine, memory: &M, request: &Request) -> Answer {
    let mut events = Vec::new();
    let op = request.header.op.get();
    if !matches!(op, wire::OP_COPY | wire::OP_FILL | wire::OP_CONVERT) {
        return Answer {
            bytes: request.refuse(wire::STATUS_UNSUPPORTED),
            events,
        };
    }
    let bytes = request.answer(|job: wire::JobRequest, rest| {
        nothing_follows(rest)?;
        let job = Job::check(&job).ok_or(wire::STATUS_INVALID)?;
        count(&engine.counters.jobs, 1);
        if engine.injector.before_job() == Outcome::Fail {
            log::debug!("job of op {op:#x} fails, as INJECT_FAIL asked for");
            return Err(wire::STATUS_ERROR);
        }
        match job.run(engine, memory) {
            Ok(done) => {
                log::debug!("{} of op {op:#x}", done.line(&job));
                Ok(done.answer(request.room_for_segments::<wire::JobResponse>()))
            }
            Err(Failure::Fault(fault)) => {
                events.push(engine.fault(&fault, &request.header));
                let response = wire::JobResponse {
                    header: status(wire::STATUS_DMA_FAULT),
                    fault: fault.into(),
                    ..Default::default()
                };
                Ok((response, Vec::new()))
            }
            Err(Failure::Engine) => Err(wire::STATUS_ERROR),
        }
    });
    Answer { bytes, events }
}

impl Job {
    /// `None` if the request contradicts itself.
    fn check(request: &wire::JobRequest) -> Option<Self> {
        let (src, dst) = (Range::from(request.src), Range::from(request.dst));
        let whole = |range: Range| {
            vec![Extent {
                offset: 0,
                length: range.length,
            }]
        };
        if request.reserved.get() != 0 {
            return None;
        }
        match request.header.op.get() {
            wire::OP_COPY if src.length == dst.length => Some(Self {
                work: Work::Copy,
                src,
                src_extents: whole(src),
                dst,
                dst_extents: whole(dst),
            }),
            wire::OP_FILL if request.src == wire::Range::default() => Some(Self {
                work: Work::Fill(request.pattern.get().to_le_bytes()),
                src,
                src_extents: Vec::new(),
                dst,
                dst_extents: whole(dst),
            }),
            wire::OP_CONVERT => {
                let from = Layout::from_wire(&request.src_format)?;
                let to = Layout::from_wire(&request.dst_format)?;
                let fits = from.size() <= src.length && to.size() <= dst.length;
                (from.converts_to(&to) && fits).then(|| Self {
                    work: Work::Convert(from, to),
                    src,
                    src_extents: from.extents(),
                    dst,
                    dst_extents: to.extents(),
                })
            }
            _ => None,
        }
    }

    fn run<M: GuestMemory>(&self, engine: &Engine, memory: &M) -> Result<Done, Failure> {
        let mut scratch = engine
            .scratch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Scratch { bytes, converter } = &mut *scratch;
        // Held to the end: a buffer must not be detached while its bytes move.
        let table = engine.table();
        let src = match self.work {
            Work::Fill(_) => Vec::new(),
            Work::Copy | Work::Convert(..) => table
                .resolve(memory, self.src, &self.src_extents, Access::Read)
                .map_err(Failure::Fault)?,
        };
        let dst = table
            .resolve(memory, self.dst, &self.dst_extents, Access::Write)
            .map_err(Failure::Fault)?;

        let input = sized(bytes, dma::total(&src));
        table
            .read(memory, &src, input)
            .map_err(|reason| self.lost(Access::Read, reason))?;
        let (bytes_read, src_crc) = (input.len() as u64, crc32c::crc32c(input));

        let output: &[u8] = match &self.work {
            Work::Copy => input,
            Work::Fill(pattern) => {
                let output = sized(bytes, dma::total(&dst));
                for bytes in output.chunks_mut(pattern.len()) {
                    bytes.copy_from_slice(&pattern[..bytes.len()]);
                }
                output
            }
            Work::Convert(from, to) => converter.convert(from, to, input).map_err(|error| {
                log::error!("cannot convert {from:?} to {to:?}: {error}");
                Failure::Engine
            })?,
        };
        table
            .write(memory, &dst, output)
            .map_err(|reason| self.lost(Access::Write, reason))?;
        let dst_crc = match self.work {
            Work::Copy => src_crc,
            Work::Fill(_) | Work::Convert(..) => crc32c::crc32c(output),
        };
        let bytes_written = output.len() as u64;
        if bytes.len() > SCRATCH_KEPT {
            *bytes = Vec::new();
        }
        converter.shrink(SCRATCH_KEPT);
        Ok(Done {
            src,
            dst,
            bytes_read,
            bytes_written,
            src_crc,
            dst_crc,
        })
    }

    /// Memory that was there when it was resolved is not there now, which the same memory does not do.
    fn lost(&self, access: Access, reason: dma::Reason) -> Failure {
        let range = if access == Access::Write {
            self.dst
        } else {
            self.src
        };
        Failure::Fault(Fault {
            reason,
            access,
            range,
        })
    }
}

impl Done {
    fn line(&self, job: &Job) -> String {
        format!(
            "job {} -> {}: read {} bytes crc {:#010x}, wrote {} bytes crc {:#010x}",
            job.src.handle,
            job.dst.handle,
            self.bytes_read,
            self.src_crc,
            self.bytes_written,
            self.dst_crc
        )
    }

    /// The answer, with at most `room` pieces of memory: half of it for the source's, half for the destination's.
    fn answer(self, room: usize) -> (wire::JobResponse, Vec<Piece>) {
        let src_returned = self.src.len().min(room / 2);
        let dst_returned = self.dst.len().min(room / 2);
        let response = wire::JobResponse {
            bytes_read: self.bytes_read.into(),
            bytes_written: self.bytes_written.into(),
            src_crc: self.src_crc.into(),
            dst_crc: self.dst_crc.into(),
            // There are no more pieces than segments and lines together, and u32 counts them.
            src_segments: (self.src.len() as u32).into(),
            dst_segments: (self.dst.len() as u32).into(),
            src_returned: (src_returned as u32).into(),
            dst_returned: (dst_returned as u32).into(),
            ..Default::default()
        };
        let mut pieces = self.src;
        pieces.truncate(src_returned);
        pieces.extend_from_slice(&self.dst[..dst_returned]);
        (response, pieces)
    }
}
