// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Jobs of the video queue.
//!
//! A job is checked as a whole, then waits or fails if a test asked for it, then all its memory is checked: a job that faults
//! there has written nothing. Then it goes slice by slice: read a part of the source, work on the bytes, write a part of the
//! destination. A buffer that is detached meanwhile ends the job with a fault, and leaves a part of the destination written.
//!
//! Where source and destination share memory, all of the source is read before the first byte is written, so the job sees it as
//! it was. The checksums are over the bytes that were moved, in the order of the image's lines, padding left out and left alone.

use std::collections::BTreeMap;

use pinbed_abi::wire;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::access::{Access, Agent, Destination, Extent, Fault, Piece, Range};
use crate::inject::Outcome;
use crate::message::{Answer, Request, status};
use crate::pixel::{Converter, Layout};
use crate::{Engine, GoOn, count};

/// Bytes that are moved at a time, unless a pair of lines is longer.
const SLICE: u64 = 1 << 18;

/// Most bytes of a source that shares memory with its destination: they are kept until all of them are read.
pub(crate) const MAX_OVERLAP: u32 = 32 << 20;

/// A job whose request makes sense.
#[derive(Debug)]
struct Job {
    work: Work,
    src: Side,
    dst: Side,
    /// So many bytes behind its destination it writes; not zero as sabotage only.
    astray: u64,
}

#[derive(Debug)]
enum Work {
    Copy,
    Fill([u8; 4]),
    Convert(Layout, Layout),
}

/// What a job reads, or writes.
#[derive(Debug)]
struct Side {
    range: Range,
    /// Lines of an image's planes: luma (or all there is), and chroma where it has lines of its own. Without an image, all bytes.
    planes: Option<[Vec<Extent>; 2]>,
}

/// What is done at a time: so many lines of luma, with their chroma, or bytes, from here on.
#[derive(Clone, Copy, Debug)]
struct Slice {
    first: u64,
    count: u64,
}

/// Sums of what a job moved in one direction.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// CRC32C and bytes of each plane, since these do not come one after the other.
    planes: [(u32, usize); 2],
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
    /// Source and destination share too much.
    Limit,
    /// The engine cannot do it, or was told not to go on.
    Engine,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

pub(crate) fn serve<S: GuestAddressSpace>(
    engine: &Engine,
    space: S,
    request: &Request,
    go_on: GoOn,
) -> Answer {
    let mut events = Vec::new();
    let op = request.op();
    if !matches!(op, wire::OP_COPY | wire::OP_FILL | wire::OP_CONVERT) {
        return Answer {
            bytes: request.refuse(wire::STATUS_UNSUPPORTED),
            events,
        };
    }
    let bytes = request.answer(|| {
        let mut job = Job::check(&request.exactly()?).ok_or(wire::STATUS_INVALID)?;
        count(&engine.counters.jobs, 1);
        let outcome = engine.injector.before_job();
        if outcome != Outcome::Run {
            log::debug!("job of op {op:#x} goes wrong, as INJECT asked for: {outcome:?}");
        }
        match outcome {
            Outcome::Fail => return Err(wire::STATUS_ERROR),
            Outcome::Short => job.halve(),
            Outcome::Astray(distance) => job.astray = distance,
            Outcome::Run | Outcome::Status(_) => (),
        }
        match job.run(engine, &space, go_on) {
            Ok(done) => {
                log::debug!("{} of op {op:#x}", done.line(&job));
                let (mut response, pieces) =
                    done.answer(request.room_for_segments::<wire::JobResponse>());
                if let Outcome::Status(other) = outcome {
                    response.header.status = other.into();
                }
                Ok((response, pieces))
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
            Err(Failure::Limit) => Err(wire::STATUS_LIMIT),
            Err(Failure::Engine) => Err(wire::STATUS_ERROR),
        }
    });
    Answer { bytes, events }
}

impl Side {
    fn bytes(range: Range) -> Self {
        Self {
            range,
            planes: None,
        }
    }

    fn image(range: Range, layout: &Layout) -> Self {
        let mut luma = layout.extents();
        let chroma = luma.split_off(luma.len().min(layout.height as usize));
        Self {
            range,
            planes: Some([luma, chroma]),
        }
    }

    /// All that is touched, plane by plane.
    fn extents(&self) -> Vec<Extent> {
        match &self.planes {
            None => self.range.whole().to_vec(),
            Some(planes) => planes.concat(),
        }
    }

    /// The planes' parts of a slice; a plane of chroma has half as many lines as that of luma.
    fn parts(&self, slice: Slice) -> [Vec<Extent>; 2] {
        let Some(planes) = &self.planes else {
            let (offset, length) = (slice.first, slice.count);
            return [vec![Extent { offset, length }], Vec::new()];
        };
        let luma = planes[0].len().max(1);
        planes.each_ref().map(|plane| {
            let scaled = |line: u64| line as usize * plane.len() / luma;
            let lines = scaled(slice.first)..scaled(slice.first + slice.count);
            plane.get(lines).unwrap_or_default().to_vec()
        })
    }

    /// Bytes of a slice.
    fn length(&self, slice: Slice) -> usize {
        self.parts(slice).iter().map(|part| total(part)).sum()
    }
}

impl Sums {
    fn add(&mut self, plane: usize, bytes: &[u8]) {
        let (crc, length) = &mut self.planes[plane];
        *crc = crc32c::crc32c_append(*crc, bytes);
        *length += bytes.len();
    }

    fn bytes(&self) -> u64 {
        self.planes.iter().map(|(_, length)| *length as u64).sum()
    }

    fn crc(&self) -> u32 {
        let [(luma, _), (chroma, length)] = self.planes;
        crc32c::crc32c_combine(luma, chroma, length)
    }
}

fn total(extents: &[Extent]) -> usize {
    extents.iter().map(|extent| extent.length as usize).sum()
}

/// Appends pieces, the first of them merged with the last one before if they are adjacent.
fn append(pieces: &mut Vec<Piece>, more: Vec<Piece>) {
    let mut more = more.into_iter();
    if let Some(last) = pieces.last_mut()
        && let Some(first) = more.next()
    {
        if last.end() == first.address {
            last.length += first.length;
        } else {
            pieces.push(first);
        }
    }
    pieces.extend(more);
}

/// Whether some memory is in both.
fn overlap(one: &[Piece], other: &[Piece]) -> bool {
    let ends = |pieces: &[Piece]| {
        let start = pieces.iter().map(|piece| piece.address).min();
        start.zip(pieces.iter().map(Piece::end).max())
    };
    let (Some((start, end)), Some((other_start, other_end))) = (ends(one), ends(other)) else {
        return false;
    };
    if end <= other_start || other_end <= start {
        return false;
    }
    // What covers each address of `one` from there on; pieces may overlap each other.
    let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
    let mut sorted = one.to_vec();
    sorted.sort_unstable();
    for piece in sorted {
        match covered.last_entry() {
            Some(mut last) if *last.get() >= piece.address => {
                let end = piece.end().max(*last.get());
                last.insert(end);
            }
            _ => drop(covered.insert(piece.address, piece.end())),
        }
    }
    other.iter().any(|piece| {
        let before = covered.range(..piece.end()).next_back();
        before.is_some_and(|(_, end)| *end > piece.address)
    })
}

impl Job {
    /// `None` if the request contradicts itself.
    fn check(request: &wire::JobRequest) -> Option<Self> {
        let (src, dst) = (Range::from(request.src), Range::from(request.dst));
        if request.reserved.get() != 0 {
            return None;
        }
        match request.header.op.get() {
            wire::OP_COPY if src.length == dst.length => Some(Self {
                work: Work::Copy,
                src: Side::bytes(src),
                dst: Side::bytes(dst),
                astray: 0,
            }),
            wire::OP_FILL if request.src == wire::Range::default() => Some(Self {
                work: Work::Fill(request.pattern.get().to_le_bytes()),
                src: Side::bytes(src),
                dst: Side::bytes(dst),
                astray: 0,
            }),
            wire::OP_CONVERT => {
                let from = Layout::from_wire(&request.src_format)?;
                let to = Layout::from_wire(&request.dst_format)?;
                let fits = from.size() <= src.length && to.size() <= dst.length;
                (from.converts_to(&to) && fits).then(|| Self {
                    work: Work::Convert(from, to),
                    src: Side::image(src, &from),
                    dst: Side::image(dst, &to),
                    astray: 0,
                })
            }
            _ => None,
        }
    }

    /// Leaves the second half of the bytes alone, as INJECT_SHORT asks for.
    fn halve(&mut self) {
        if !matches!(self.work, Work::Convert(..)) {
            self.src.range.length /= 2;
            self.dst.range.length /= 2;
        }
    }

    /// The slices, in order. Those of an image have an even number of lines, as its chroma may have half as many.
    fn slices(&self) -> impl Iterator<Item = Slice> + use<> {
        let (all, step) = match &self.work {
            Work::Copy | Work::Fill(_) => (self.dst.range.length, SLICE),
            Work::Convert(from, to) => {
                let bytes = from.packed_size().max(to.packed_size()) as u64;
                let line = bytes.div_ceil(from.height.into());
                let lines = (SLICE / line).next_multiple_of(2).max(2);
                (from.height.into(), lines)
            }
        };
        (0..all).step_by(step as usize).map(move |first| Slice {
            first,
            count: step.min(all - first),
        })
    }

    fn run<S: GuestAddressSpace>(
        &self,
        engine: &Engine,
        space: &S,
        go_on: GoOn,
    ) -> Result<Done, Failure> {
        let mut first = true;
        let mut next = || match std::mem::take(&mut first) || go_on() {
            true => Ok(()),
            false => Err(Failure::Engine),
        };
        // All of it is checked before the first byte moves.
        let src = match self.work {
            Work::Fill(_) => Vec::new(),
            Work::Copy | Work::Convert(..) => {
                self.resolve(engine, space, &self.src, Access::Read, &mut next)?
            }
        };
        let dst = self.resolve(engine, space, &self.dst, Access::Write, &mut next)?;
        let (mut read, mut written) = (Sums::default(), Sums::default());
        let (mut bytes, mut converter) = (Vec::new(), Converter::default());
        let mut kept = overlap(&src, &dst).then(Vec::new);
        if let Some(kept) = &mut kept {
            if total(&self.src.extents()) > MAX_OVERLAP as usize {
                return Err(Failure::Limit);
            }
            for slice in self.slices() {
                next()?;
                self.read(engine, space, slice, &mut bytes, &mut read)?;
                kept.extend_from_slice(&bytes);
            }
        }
        let mut kept = kept.as_deref();
        for slice in self.slices() {
            next()?;
            match (&self.work, &mut kept) {
                (Work::Fill(pattern), _) => {
                    // A slice is a multiple of the pattern.
                    bytes.resize(slice.count as usize, 0);
                    for bytes in bytes.chunks_mut(pattern.len()) {
                        bytes.copy_from_slice(&pattern[..bytes.len()]);
                    }
                }
                (_, Some(kept)) => {
                    let length = self.src.length(slice).min(kept.len());
                    let (now, later) = kept.split_at(length);
                    bytes.clear();
                    bytes.extend_from_slice(now);
                    *kept = later;
                }
                (_, None) => self.read(engine, space, slice, &mut bytes, &mut read)?,
            }
            let output: &[u8] = match &self.work {
                Work::Convert(from, to) => {
                    let lines = |layout: &Layout| Layout {
                        height: slice.count as u32,
                        ..*layout
                    };
                    let converted = converter.convert(&lines(from), &lines(to), &mut bytes);
                    converted.map_err(|error| {
                        log::error!("cannot convert {from:?} to {to:?}: {error}");
                        Failure::Engine
                    })?
                }
                Work::Copy | Work::Fill(_) => &bytes,
            };
            let sums = (!matches!(self.work, Work::Copy)).then_some(&mut written);
            self.write(engine, space, slice, output, sums)?;
        }
        // A copy writes the bytes that it read, so their sums are known.
        let written = match self.work {
            Work::Copy => read.clone(),
            Work::Fill(_) | Work::Convert(..) => written,
        };
        Ok(Done {
            src,
            dst,
            bytes_read: read.bytes(),
            bytes_written: written.bytes(),
            src_crc: read.crc(),
            dst_crc: written.crc(),
        })
    }

    /// The memory of a side, plane by plane, adjacent pieces merged.
    fn resolve<S: GuestAddressSpace>(
        &self,
        engine: &Engine,
        space: &S,
        side: &Side,
        access: Access,
        next: &mut impl FnMut() -> Result<(), Failure>,
    ) -> Result<Vec<Piece>, Failure> {
        let resolve = |extents: &[Extent]| {
            engine.access(space, |table, memory| {
                table.resolve(memory, Agent::Video, side.range, extents, access)
            })
        };
        // The range itself: else there would be no end of slices.
        resolve(&[])?;
        let mut planes: [Vec<Piece>; 2] = Default::default();
        for slice in self.slices() {
            next()?;
            for (plane, extents) in side.parts(slice).iter().enumerate() {
                append(&mut planes[plane], resolve(extents)?);
            }
        }
        let [mut all, chroma] = planes;
        append(&mut all, chroma);
        Ok(all)
    }

    /// Reads a slice of the source, its planes one after the other, to `to`.
    fn read<S: GuestAddressSpace>(
        &self,
        engine: &Engine,
        space: &S,
        slice: Slice,
        to: &mut Vec<u8>,
        sums: &mut Sums,
    ) -> Result<(), Fault> {
        to.resize(self.src.length(slice), 0);
        let mut left = &mut to[..];
        for (plane, extents) in self.src.parts(slice).iter().enumerate() {
            let (now, later) = left.split_at_mut(total(extents));
            left = later;
            engine.access(space, |table, memory| {
                let range = self.src.range;
                table.read(memory, Agent::Video, range, extents, Access::Read, now)
            })?;
            sums.add(plane, now);
        }
        Ok(())
    }

    /// Writes a slice of the destination, likewise, and adds to `sums` if these are wanted.
    fn write<S: GuestAddressSpace>(
        &self,
        engine: &Engine,
        space: &S,
        slice: Slice,
        from: &[u8],
        mut sums: Option<&mut Sums>,
    ) -> Result<(), Fault> {
        let mut left = from;
        for (plane, extents) in self.dst.parts(slice).iter().enumerate() {
            let (now, later) = left.split_at(total(extents).min(left.len()));
            left = later;
            if self.astray != 0 {
                self.write_astray(engine, space, extents, now)?;
                continue;
            }
            engine.access(space, |table, memory| {
                let (range, any) = (self.dst.range, Destination::Any);
                table.write(memory, Agent::Video, range, extents, now, any)
            })?;
            if let Some(sums) = &mut sums {
                sums.add(plane, now);
            }
        }
        Ok(())
    }
}

impl Job {
    /// As INJECT_ASTRAY asks for: past all checks, to memory that the guest may have given to nobody.
    fn write_astray<S: GuestAddressSpace>(
        &self,
        engine: &Engine,
        space: &S,
        extents: &[Extent],
        from: &[u8],
    ) -> Result<(), Fault> {
        engine.access(space, |table, memory| {
            let range = self.dst.range;
            let pieces = table.resolve(memory, Agent::Video, range, extents, Access::Write)?;
            let mut left = from;
            for piece in pieces {
                let (now, later) = left.split_at(left.len().min(piece.length as usize));
                left = later;
                let at = GuestAddress(piece.address.wrapping_add(self.astray));
                // What is not memory cannot be damaged.
                let _ = memory.write_slice(now, at);
            }
            Ok(())
        })
    }
}

impl Done {
    fn line(&self, job: &Job) -> String {
        format!(
            "job {} -> {}: read {} bytes crc {:#010x}, wrote {} bytes crc {:#010x}",
            job.src.range.handle,
            job.dst.range.handle,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::rig::{Buffer, Rig};
    use std::cell::Cell;
    use zerocopy::{FromBytes, IntoBytes};

    fn range(buffer: &Buffer) -> wire::Range {
        wire::Range {
            handle: buffer.handle.into(),
            offset: 0.into(),
            length: buffer.len().into(),
        }
    }

    fn copy(src: &Buffer, dst: &Buffer) -> wire::JobRequest {
        wire::JobRequest {
            header: wire::RequestHeader {
                op: wire::OP_COPY.into(),
                ..Default::default()
            },
            src: range(src),
            dst: range(dst),
            ..Default::default()
        }
    }

    fn run(rig: &Rig, job: &wire::JobRequest, go_on: GoOn) -> wire::JobResponse {
        let answer = rig.engine.video(&rig.memory, job.as_bytes(), 4096, go_on);
        wire::JobResponse::read_from_prefix(&answer.bytes)
            .unwrap()
            .0
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    #[test]
    fn an_image_in_slices_is_the_image_as_a_whole() {
        let rig = Rig::new();
        let (width, height) = (642, 1002);
        let format = |fourcc: &[u8; 4], stride: u32| wire::Format {
            fourcc: u32::from_le_bytes(*fourcc).into(),
            width: width.into(),
            height: height.into(),
            stride: stride.into(),
            encoding: match fourcc {
                b"RGB3" => wire::ENCODING_NONE,
                _ => wire::ENCODING_BT709,
            }
            .into(),
            quantization: match fourcc {
                b"NV12" => wire::QUANTIZATION_LIMITED,
                _ => wire::QUANTIZATION_FULL,
            }
            .into(),
        };
        let formats = [
            format(b"GREY", width),
            format(b"NV12", width),
            format(b"YUYV", 2 * width),
            format(b"RGB3", 3 * width),
        ];
        for (from, to) in formats
            .iter()
            .flat_map(|from| formats.iter().map(move |to| (from, to)))
        {
            let rig = &rig;
            let [from_layout, to_layout] = [from, to].map(|f| Layout::from_wire(f).unwrap());
            let image = noise(from_layout.packed_size());
            let (mut whole, mut converter) = (image.clone(), Converter::default());
            let wanted = converter.convert(&from_layout, &to_layout, &mut whole);
            let wanted = wanted.unwrap().to_vec();
            let (src, dst) = (rig.buffer(&image), rig.room(wanted.len()));
            let mut job = copy(&src, &dst);
            job.header.op = wire::OP_CONVERT.into();
            (job.src_format, job.dst_format) = (*from, *to);
            let asked = Cell::new(0);
            let go_on = || {
                asked.set(asked.get() + 1);
                true
            };
            let answer = run(rig, &job, &go_on);
            assert_eq!(answer.header.status, wire::STATUS_OK);
            assert!(asked.get() >= 4, "not in slices");
            assert!(rig.get(&dst) == wanted, "{from:?} to {to:?}");
            assert_eq!(answer.src_crc, crc32c::crc32c(&image));
            assert_eq!(answer.dst_crc, crc32c::crc32c(&wanted));
            rig.forget_all();
        }
    }

    #[test]
    fn a_copy_in_slices_moves_all_of_it() {
        let rig = Rig::new();
        let bytes = noise(3 * SLICE as usize + 12345);
        let (src, dst) = (rig.buffer(&bytes), rig.room(bytes.len()));
        let answer = run(&rig, &copy(&src, &dst), &|| true);
        assert!(rig.get(&dst) == bytes);
        let crc = crc32c::crc32c(&bytes);
        assert_eq!((answer.src_crc.get(), answer.dst_crc.get()), (crc, crc));
        assert_eq!(answer.bytes_written, bytes.len() as u64);
        assert_eq!(
            (answer.src_segments, answer.dst_segments),
            (2.into(), 2.into())
        );
    }

    #[test]
    fn a_job_ends_where_it_is_told_to() {
        let rig = Rig::new();
        let bytes = noise(8 * SLICE as usize);
        let (src, dst) = (rig.buffer(&bytes), rig.room(bytes.len()));
        // Eight slices of each side are checked, the first without a question; then they move.
        for (stop_at, written) in [(1, 0), (16, 0), (18, 2)] {
            rig.put(&dst, &vec![0xee; bytes.len()]);
            let asked = Cell::new(0);
            let go_on = || {
                asked.set(asked.get() + 1);
                asked.get() < stop_at
            };
            let answer = run(&rig, &copy(&src, &dst), &go_on);
            assert_eq!(answer.header.status, wire::STATUS_ERROR);
            assert_eq!(asked.get(), stop_at);
            let written = written * SLICE as usize;
            let seen = rig.get(&dst);
            assert!(seen[..written] == bytes[..written]);
            assert!(seen[written..].iter().all(|byte| *byte == 0xee));
        }
    }

    #[test]
    fn a_buffer_that_is_detached_under_a_job_is_let_go_of_at_once() {
        let rig = Rig::new();
        let bytes = noise(8 * SLICE as usize);
        let (src, dst) = (rig.buffer(&bytes), rig.room(bytes.len()));
        let asked = Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            if asked.get() == 18 {
                rig.detach(&dst);
                rig.put(&dst, &vec![0xee; bytes.len()]);
            }
            true
        };
        let answer = run(&rig, &copy(&src, &dst), &go_on);
        assert_eq!(answer.header.status, wire::STATUS_DMA_FAULT);
        assert_eq!(answer.fault.reason, wire::FAULT_NOT_ATTACHED);
        assert_eq!(answer.fault.range, range(&dst));
        assert!(rig.get(&dst).iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn a_long_job_onto_itself_sees_its_source_as_it_was() {
        let rig = Rig::new();
        let length = 3 * SLICE as usize;
        let bytes = noise(length);
        let src = rig.buffer(&bytes);
        // The same memory, a page on.
        let mut shifted = src;
        shifted.segments = src.segments.map(|(at, length)| (at + 4096, length));
        shifted.handle = rig.attach(0, &shifted.segments());
        let answer = run(&rig, &copy(&src, &shifted), &|| true);
        assert_eq!(answer.src_crc, crc32c::crc32c(&bytes));
        assert!(rig.get(&shifted) == bytes);
    }

    #[test]
    fn a_job_that_shares_too_much_memory_is_beyond_a_limit() {
        let rig = Rig::new();
        let pages = |count: u32| {
            let page = wire::Segment {
                address: 0x5000.into(),
                length: 4096.into(),
            };
            Buffer {
                handle: rig.attach(0, &vec![page; count as usize]),
                segments: [(0, count as usize * 2048), (0, count as usize * 2048)],
            }
        };
        for (count, status) in [
            (MAX_OVERLAP / 4096, wire::STATUS_OK),
            (MAX_OVERLAP / 4096 + 1, wire::STATUS_LIMIT),
        ] {
            let both = pages(count);
            let answer = run(&rig, &copy(&both, &both), &|| true);
            assert_eq!(answer.header.status, status);
        }
    }
}
