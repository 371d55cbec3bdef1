// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A buffer that moves, with all that can happen to it in random order: a model says what the device holds and what is where, and after
//! each event all eyes are held against it.

use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_abi::{uapi, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::kconfig;
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device::{Device, Held, copy};
use pinbed_guest::observe::extent::{Extent, PAGE, merged};
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::image::Image;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::Output;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;

/// Times that everything begins anew, and events of each.
const ROUNDS: usize = 4;
const EVENTS: usize = 40;
/// Buffers that have a descriptor, and devices' users that import.
const BUFFERS: usize = 2;
const IMPORTERS: usize = 2;
/// Bytes of a buffer.
const SIZE: usize = PAGE;
/// What the driver leaves in memory that is given back: PINBED_CARVEOUT_STALE.
const STALE: u8 = 0xdb;
/// How much later a late job begins, in microseconds.
const LATE_US: u64 = 2_000;

/// A dma-buf as it should be.
struct Buffer {
    /// Until it is closed.
    area: Option<Area>,
    /// Where it is, unless revoked.
    address: Option<u64>,
    contents: Vec<u8>,
}

/// A user of the device that follows one dma-buf.
struct Importer {
    device: Device,
    /// The buffer's number.
    follows: Option<usize>,
    /// Gone once the buffer moves.
    handle: Option<u64>,
}

/// All there is.
struct World {
    /// For what is done behind everyone's back.
    hub: Device,
    /// Numbered; those that are gone are `None`.
    buffers: Vec<Option<Buffer>>,
    importers: Vec<Importer>,
    /// Its OUTPUT queue pins.
    m2m: M2m,
    pinned: Option<usize>,
    /// Every place where a buffer has been: the device's handle for looking at it, and the CRC32C of what is to be seen.
    places: BTreeMap<u64, (u64, u32)>,
    /// What the device held before.
    others: BTreeSet<u64>,
    /// Handles that the device has dropped.
    stale: Vec<u64>,
}

fn below(t: &mut Ctx, limit: usize) -> usize {
    let mut word = [0; 8];
    word.copy_from_slice(&t.random(8));
    (u64::from_le_bytes(word) % limit as u64) as usize
}

/// One of these, if there is any.
fn one_of<T: Copy>(t: &mut Ctx, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[below(t, all.len())])
}

impl World {
    fn new(t: &mut Ctx) -> TestResult<Self> {
        let hub = Device::open()?;
        let others = hub.list()?.iter().map(|held| held.handle).collect();
        let importer = || -> TestResult<Importer> {
            Ok(Importer {
                device: Device::open()?,
                follows: None,
                handle: None,
            })
        };
        let mut world = Self {
            hub,
            buffers: Vec::new(),
            importers: (0..IMPORTERS)
                .map(|_| importer())
                .collect::<Result<_, _>>()?,
            m2m: M2m::copier(Image::PAGE)?,
            pinned: None,
            places: BTreeMap::new(),
            others,
            stale: Vec::new(),
        };
        for _ in 0..BUFFERS {
            world.export(t)?;
        }
        Ok(world)
    }

    fn buffer(&mut self, number: usize) -> TestResult<&mut Buffer> {
        let buffer = self.buffers.get_mut(number).and_then(Option::as_mut);
        buffer.ok_or_else(|| Stop::finding(Eye::Harness, format!("there is no buffer {number}")))
    }

    /// Numbers of the buffers that have a descriptor.
    fn open_buffers(&self) -> Vec<usize> {
        let open = |buffer: &Option<Buffer>| buffer.as_ref().is_some_and(|b| b.area.is_some());
        (0..self.buffers.len())
            .filter(|number| open(&self.buffers[*number]))
            .collect()
    }

    /// Handles that the device should hold, with the buffers' numbers.
    fn handles(&self) -> Vec<(u64, usize)> {
        let of = |importer: &Importer| Some((importer.handle?, importer.follows?));
        self.importers.iter().filter_map(of).collect()
    }

    /// This is to be seen at a place from now on.
    fn expect(&mut self, address: u64, crc: u32) -> TestResult {
        let handle = match self.places.get(&address) {
            Some((handle, _)) => *handle,
            None => {
                let length = SIZE as u64;
                let at = Extent { address, length };
                self.hub.attach_frames(wire::DIRECTION_READ, at)?
            }
        };
        self.places.insert(address, (handle, crc));
        Ok(())
    }

    fn contains(&mut self, number: usize, contents: Vec<u8>) -> TestResult {
        let crc = crc(&contents);
        let buffer = self.buffer(number)?;
        buffer.contents = contents;
        match buffer.address {
            Some(address) => self.expect(address, crc),
            None => Ok(()),
        }
    }

    fn leaves(&mut self, number: usize, to: Option<u64>) -> TestResult {
        if let Some(old) = std::mem::replace(&mut self.buffer(number)?.address, to) {
            self.expect(old, crc(&[STALE; SIZE]))?;
        }
        let contents = self.buffer(number)?.contents.clone();
        self.contains(number, contents)?;
        for importer in &mut self.importers {
            if importer.follows == Some(number) {
                self.stale.extend(importer.handle.take());
            }
        }
        Ok(())
    }

    /// Buffers that nobody has any more are gone.
    fn forget(&mut self) -> TestResult {
        for number in 0..self.buffers.len() {
            let followed = self
                .importers
                .iter()
                .any(|importer| importer.follows == Some(number));
            let closed = self.buffers[number]
                .as_ref()
                .is_some_and(|buffer| buffer.area.is_none());
            if closed && !followed && self.pinned != Some(number) {
                self.leaves(number, None)?;
                self.buffers[number] = None;
            }
        }
        Ok(())
    }

    fn export(&mut self, t: &mut Ctx) -> TestResult {
        // What has no kernel address cannot be bounced.
        swiotlb::unless_forced()?;
        let (dmabuf, address) = self
            .hub
            .export(SIZE, uapi::EXPORT_MOVING | uapi::EXPORT_ANY_IMPORTER)?;
        let mut area = Area::dmabuf(dmabuf, SIZE, SIZE)?;
        area.fill(t)?;
        let contents = area.written().to_vec();
        self.buffers.push(Some(Buffer {
            area: Some(area),
            address: Some(address),
            contents: contents.clone(),
        }));
        self.contains(self.buffers.len() - 1, contents)
    }

    /// One event; says which.
    fn event(&mut self, t: &mut Ctx) -> TestResult<String> {
        let open = self.open_buffers();
        let number = open[below(t, open.len())];
        let by = below(t, IMPORTERS);
        match below(t, 17) {
            0 => self.fill(t, number),
            1..=3 => self.import(t, by, number),
            4 => self.release(by),
            5 | 6 => self.relocate(t, number, false),
            7 => self.relocate(t, number, true),
            8..=10 => self.job(t),
            11 | 12 => self.late_job(t),
            13 | 14 => self.pin(t, number),
            _ => self.close(t, number),
        }
    }

    fn fill(&mut self, t: &mut Ctx, number: usize) -> TestResult<String> {
        let buffer = self.buffer(number)?;
        if let (Some(area), Some(_)) = (&mut buffer.area, buffer.address) {
            area.fill(t)?;
            let contents = area.written().to_vec();
            self.contains(number, contents)?;
        }
        Ok(format!("the CPU fills {number}"))
    }

    fn import(&mut self, t: &mut Ctx, by: usize, number: usize) -> TestResult<String> {
        let buffer = self.buffers[number].as_ref();
        let Some((area, address)) = buffer.and_then(|b| Some((b.area.as_ref()?, b.address))) else {
            return Ok(format!("{number} is closed"));
        };
        let importer = &mut self.importers[by];
        let result = importer.device.import(area.fd()?, wire::DIRECTION_BOTH);
        let event = format!("{by} imports {number}: {result:?}");
        if importer.follows != Some(number) {
            self.stale.extend(importer.handle.take());
            importer.follows = Some(number);
        }
        match (address, result) {
            (None, result) => {
                let what = "importing what was revoked";
                t.equal(Eye::Cpu, what, result, Err(Errno::ENODEV));
            }
            (Some(_), Ok(handle)) => {
                if let Some(former) = importer.handle {
                    t.equal(Eye::Device, "handle of what did not move", handle, former);
                }
                importer.handle = Some(handle);
            }
            (Some(_), Err(errno)) => {
                t.find(Eye::Cpu, format!("importing fails with {errno:?}"));
            }
        }
        Ok(event)
    }

    fn release(&mut self, by: usize) -> TestResult<String> {
        let importer = &mut self.importers[by];
        // The old file is closed once the new one is there.
        importer.device = Device::open()?;
        importer.follows = None;
        self.stale.extend(importer.handle.take());
        Ok(format!("{by} lets go"))
    }

    fn relocate(&mut self, t: &mut Ctx, number: usize, gone: bool) -> TestResult<String> {
        let buffer = self.buffers[number].as_ref();
        let Some((area, address)) = buffer.and_then(|b| Some((b.area.as_ref()?, b.address))) else {
            return Ok(format!("{number} is closed"));
        };
        let flags = if gone { uapi::MOVE_REVOKE } else { 0 };
        let result = self.hub.relocate(area.fd()?, flags);
        let event = format!(
            "{number} {}: {result:x?}",
            if gone { "is revoked" } else { "moves" }
        );
        let refusal = match address {
            None => Some(Errno::ENODEV),
            Some(_) if self.pinned == Some(number) => Some(Errno::EBUSY),
            Some(_) => None,
        };
        match (result, refusal) {
            (result, Some(errno)) => {
                let what = "moving what is pinned or was revoked";
                t.equal(Eye::Cpu, what, result, Err(errno));
            }
            (Ok(to), None) => self.leaves(number, (!gone).then_some(to))?,
            (Err(errno), None) => t.find(Eye::Cpu, format!("moving fails with {errno:?}")),
        }
        Ok(event)
    }

    /// A copy between any two handles, good or stale.
    fn job(&mut self, t: &mut Ctx) -> TestResult<String> {
        let good = self.handles();
        let mut all: Vec<_> = good.iter().map(|(handle, _)| *handle).collect();
        all.extend(self.stale.iter().rev().take(2));
        let (Some(src), Some(dst)) = (one_of(t, &all), one_of(t, &all)) else {
            return Ok("nothing to copy".into());
        };
        let status = self.hub.job(&copy(src, dst, SIZE as u64))?.header.status;
        let buffer = |handle| good.iter().find(|(other, _)| *other == handle).copied();
        let expected = match (buffer(src), buffer(dst)) {
            (Some((_, src)), Some((_, dst))) => {
                let contents = self.buffer(src)?.contents.clone();
                self.contains(dst, contents)?;
                wire::STATUS_OK
            }
            _ => wire::STATUS_DMA_FAULT,
        };
        t.equal(Eye::Device, "status of the job", status.get(), expected);
        Ok(format!("the device copies from {src} to {dst}: {status}"))
    }

    /// A copy that begins a little later, while one of its buffers moves. It is done before, or it faults: in between there is nothing.
    fn late_job(&mut self, t: &mut Ctx) -> TestResult<String> {
        let good = self.handles();
        let (Some((src, from)), Some((dst, to))) = (one_of(t, &good), one_of(t, &good)) else {
            return Ok("nothing to copy late".into());
        };
        let number = [from, to][below(t, 2)];
        let contents = self.buffer(from)?.contents.clone();
        let place = self.buffer(number)?.address;
        let device = Device::open()?;
        device.inject(wire::INJECT_DELAY, 1, LATE_US)?;
        let (answer, meanwhile) = thread::scope(|scope| {
            let job = scope.spawn(|| device.job(&copy(src, dst, SIZE as u64)));
            let meanwhile = self.relocate(t, number, false);
            (job.join(), meanwhile)
        });
        let answer = answer
            .map_err(|_| Stop::finding(Eye::Harness, "the thread with the job panicked"))??;
        let status = answer.header.status.get();
        let disturbed = self.buffer(number)?.address != place;
        match status {
            wire::STATUS_OK => self.contains(to, contents)?,
            wire::STATUS_DMA_FAULT if disturbed => (),
            _ => t.find(Eye::Device, format!("status of the late job: {status}")),
        }
        Ok(format!(
            "the device copies late from {src} to {dst}: {status}; meanwhile {}",
            meanwhile?
        ))
    }

    fn pin(&mut self, t: &mut Ctx, number: usize) -> TestResult<String> {
        if let Some(pinned) = self.pinned.take() {
            self.m2m.request(Output, Memory::Dmabuf, 0)?;
            return Ok(format!("the queue lets go of {pinned}"));
        }
        let buffer = self.buffers[number].as_ref();
        let Some(area) = buffer.and_then(|b| b.address.and(b.area.as_ref())) else {
            return Ok(format!("{number} was revoked"));
        };
        self.m2m.request(Output, Memory::Dmabuf, 1)?;
        self.m2m.queue(t, Output, 0, area)?;
        self.pinned = Some(number);
        Ok(format!("the queue pins {number}"))
    }

    fn close(&mut self, t: &mut Ctx, number: usize) -> TestResult<String> {
        self.buffer(number)?.area = None;
        self.forget()?;
        self.export(t)?;
        Ok(format!(
            "{number} is closed, and {} made",
            self.buffers.len() - 1
        ))
    }

    /// All eyes.
    fn judge(&self, t: &mut Ctx) -> TestResult {
        let place = |number: usize| self.buffers[number].as_ref().and_then(|b| b.address);
        let mut expected: BTreeMap<u64, Option<u64>> = self
            .handles()
            .into_iter()
            .map(|(handle, number)| (handle, place(number)))
            .collect();
        if let Some(number) = self.pinned {
            expected.insert(self.m2m.handle(Output, 0)?, place(number));
        }
        let ours = |held: &Held| {
            !self.others.contains(&held.handle)
                && !self.places.values().any(|(spy, _)| *spy == held.handle)
        };
        let held: BTreeMap<u64, Option<u64>> = self
            .hub
            .list()?
            .into_iter()
            .filter(ours)
            .map(|held| match merged(held.segments)[..] {
                [piece] if piece.length == SIZE as u64 => (held.handle, Some(piece.address)),
                _ => (held.handle, None),
            })
            .collect();
        t.equal(
            Eye::Device,
            "what the device holds, and where",
            held,
            expected,
        );
        for (address, (spy, crc)) in &self.places {
            let seen = self.hub.checksum(*spy, 0, SIZE as u64)?;
            let what = format!("CRC32C of what is at {address:#x}");
            t.equal(Eye::Placement, &what, seen, *crc);
        }
        for buffer in self.buffers.iter().flatten() {
            if let (Some(area), Some(_)) = (&buffer.area, buffer.address) {
                let what = "a buffer through its mapping";
                t.same_bytes(Eye::Cpu, what, &area.contents()?, &buffer.contents);
            }
        }
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        for (spy, _) in self.places.values() {
            self.hub.detach(*spy)?;
        }
        Ok(())
    }
}

/// A kernel without it pins what a dynamic importer takes, so that nothing moves until that lets go.
pub fn needs_moves() -> TestResult {
    Ok(kconfig::unless_off(
        "DMABUF_MOVE_NOTIFY",
        "an import that follows the move of a dma-buf",
    )?)
}

pub fn no_stray_dma(t: &mut Ctx) -> TestResult {
    needs_moves()?;
    let before = t.findings();
    for round in 0..ROUNDS {
        let mut world = World::new(t)?;
        let mut events = Vec::new();
        while t.findings() == before && events.len() < EVENTS {
            let event = world.event(t)?;
            world.forget()?;
            world.judge(t)?;
            events.push(event);
        }
        world.end()?;
        t.note(format!("round {round}: {}", events.join("; ")));
        if t.findings() > before {
            break;
        }
    }
    Ok(())
}
