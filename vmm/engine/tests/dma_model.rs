// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The DMA core against a model that knows a buffer as a list of byte addresses and memory as a byte array.

mod support;

use std::collections::BTreeMap;

use pinbed_engine::Limits;
use pinbed_engine::access::{
    Access, Agent, Destination, Direction, Extent, Fault, Piece, Range, Reason,
};
use pinbed_engine::dma::{AttachError, Table};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LIMITS: Limits = Limits {
    buffers: 6,
    segments: 5,
    length: 0x3000,
    total_segments: 16,
    protected_pieces: 0,
};
/// Memory is `[0, END)` less a hole.
const END: u64 = 0x3000;
const HOLE: std::ops::Range<u64> = 0x1000..0x1800;

fn is_memory(address: u64) -> bool {
    address < END && !HOLE.contains(&address)
}

#[derive(Debug, Clone)]
enum Op {
    Attach(Direction, Vec<Piece>),
    /// Buffers are named by when they were attached; the last names one that never was.
    Detach(usize),
    Clear,
    Move(usize, u64, u64, Vec<Extent>, Access, u8),
}

#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    /// Each buffer's direction and its bytes' addresses.
    buffers: BTreeMap<u64, (Direction, Vec<u64>)>,
    /// Each buffer's number of segments.
    segments: BTreeMap<u64, usize>,
    last_handle: u64,
}

impl Model {
    fn attach(&mut self, direction: Direction, segments: &[Piece]) -> Result<u64, AttachError> {
        if segments.len() > LIMITS.segments as usize
            || self.buffers.len() >= LIMITS.buffers as usize
            || self.segments.values().sum::<usize>() + segments.len()
                > LIMITS.total_segments as usize
        {
            return Err(AttachError::Limit);
        }
        let ends = segments
            .iter()
            .map(|segment| u128::from(segment.address) + u128::from(segment.length));
        let length: u128 = segments
            .iter()
            .map(|segment| u128::from(segment.length))
            .sum();
        let max = u128::from(u64::MAX);
        let empty = segments.iter().any(|segment| segment.length == 0);
        if segments.is_empty() || empty || length > max || ends.into_iter().any(|end| end > max) {
            return Err(AttachError::Malformed);
        }
        if length > u128::from(LIMITS.length) {
            return Err(AttachError::Limit);
        }
        let addresses = segments
            .iter()
            .flat_map(|segment| segment.address..segment.address + segment.length)
            .collect();
        self.last_handle += 1;
        self.buffers
            .insert(self.last_handle, (direction, addresses));
        self.segments.insert(self.last_handle, segments.len());
        Ok(self.last_handle)
    }

    fn resolve(
        &self,
        range: Range,
        extents: &[Extent],
        access: Access,
    ) -> Result<Vec<u64>, Reason> {
        let (direction, addresses) = self.buffers.get(&range.handle).ok_or(Reason::NotAttached)?;
        let end = u128::from(range.offset) + u128::from(range.length);
        if end > addresses.len() as u128 {
            return Err(Reason::OutOfBounds);
        }
        if !matches!(
            (access, direction),
            (Access::Inspect, _)
                | (_, Direction::Both)
                | (Access::Read, Direction::Read)
                | (Access::Write, Direction::Write)
        ) {
            return Err(Reason::Permission);
        }
        let mut touched = vec![];
        for extent in extents {
            let end = u128::from(extent.offset) + u128::from(extent.length);
            if end > u128::from(range.length) {
                return Err(Reason::OutOfBounds);
            }
            let first = (range.offset + extent.offset) as usize;
            touched.extend_from_slice(&addresses[first..first + extent.length as usize]);
        }
        match touched.iter().find(|address| !is_memory(**address)) {
            Some(missing) => Err(Reason::NoMemory(*missing)),
            None => Ok(touched),
        }
    }
}

/// Runs of addresses.
fn pieces(addresses: &[u64]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = vec![];
    for &address in addresses {
        match pieces.last_mut() {
            Some(last) if last.address + last.length == address => last.length += 1,
            _ => pieces.push(Piece { address, length: 1 }),
        }
    }
    pieces
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), HOLE.start as usize),
        (GuestAddress(HOLE.end), (END - HOLE.end) as usize),
    ])
    .unwrap()
}

fn whole(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; END as usize];
    let (low, high) = bytes.split_at_mut(HOLE.end as usize);
    let low = &mut low[..HOLE.start as usize];
    memory.read_slice(low, GuestAddress(0)).unwrap();
    memory.read_slice(high, GuestAddress(HOLE.end)).unwrap();
    bytes
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0..HOLE.start - 0x200,
        2 => HOLE.start - 0x40..HOLE.end + 0x40,
        1 => END - 0x40..END + 0x40,
        1 => u64::MAX - 0x40..=u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 1..0x200u64,
        // Round, so that ranges and extents end where segments do.
        8 => (1..8u64).prop_map(|n| n * 0x40),
        2 => 0x200..0x1000u64,
        1 => Just(0),
        1 => prop_oneof![Just(u64::MAX), Just(1 << 63), Just(LIMITS.length), Just(LIMITS.length + 1)],
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..0x400u64, 8 => (0..8u64).prop_map(|n| n * 0x40), 2 => 0..0x2000u64, 1 => u64::MAX - 2..=u64::MAX]
}

fn op() -> impl Strategy<Value = Op> {
    let direction = prop_oneof![
        Just(Direction::Read),
        Just(Direction::Write),
        Just(Direction::Both)
    ];
    let access = prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Inspect)
    ];
    let piece = (address(), length()).prop_map(|(address, length)| Piece { address, length });
    // Now and then a piece that follows the one before it, as kernels hand out.
    let segments =
        prop::collection::vec((piece, prop::bool::weighted(0.4)), 0..7).prop_map(|list| {
            let mut segments: Vec<Piece> = vec![];
            for (mut piece, follows) in list {
                if let (true, Some(last)) = (follows, segments.last()) {
                    piece.address = last.address.wrapping_add(last.length);
                }
                segments.push(piece);
            }
            segments
        });
    let extent = (offset(), length()).prop_map(|(offset, length)| Extent { offset, length });
    let extents = prop_oneof![
        2 => Just(None),
        1 => prop::collection::vec(extent, 0..4).prop_map(Some),
    ];
    prop_oneof![
        4 => (direction, segments).prop_map(|(direction, segments)| Op::Attach(direction, segments)),
        1 => (0..8usize).prop_map(Op::Detach),
        1 => prop::bool::weighted(0.1).prop_map(|clear| if clear { Op::Clear } else { Op::Detach(0) }),
        10 => (0..8usize, offset(), length(), extents, access, any::<u8>()).prop_map(
            |(buffer, offset, length, extents, access, seed)| {
                let extents = extents.unwrap_or(vec![Extent { offset: 0, length }]);
                Op::Move(buffer, offset, length, extents, access, seed)
            }
        ),
    ]
}

fn run(ops: Vec<Op>) {
    let memory = memory();
    let mut table = Table::new(LIMITS);
    let mut model = Model {
        bytes: (0..END).map(|i| (i * 13 + i / 256) as u8).collect(),
        ..Model::default()
    };
    model.bytes[HOLE.start as usize..HOLE.end as usize].fill(0);
    let (low, high) = model.bytes.split_at(HOLE.end as usize);
    let low = &low[..HOLE.start as usize];
    memory.write_slice(low, GuestAddress(0)).unwrap();
    memory.write_slice(high, GuestAddress(HOLE.end)).unwrap();
    // Counted from the newest, so that most are attached still.
    let handle = |model: &Model, back: usize| match back {
        7 => u64::MAX,
        back => model.last_handle.wrapping_sub(back as u64),
    };
    for op in ops {
        match op {
            Op::Attach(direction, segments) => {
                let expected = model.attach(direction, &segments);
                let attached = table.attach(direction, segments.iter().copied());
                assert_eq!(attached, expected);
                if let Ok(handle) = attached {
                    assert_eq!(table.get(handle).unwrap().segments(), segments);
                }
            }
            Op::Detach(back) => {
                let handle = handle(&model, back);
                let expected = model.buffers.remove(&handle);
                model.segments.remove(&handle);
                let detached = table.detach(handle).map(|buffer| buffer.length());
                assert_eq!(detached, expected.map(|(_, bytes)| bytes.len() as u64));
            }
            Op::Clear => {
                table.clear();
                model.buffers.clear();
                model.segments.clear();
            }
            Op::Move(back, offset, length, extents, access, seed) => {
                let handle = handle(&model, back);
                let range = Range {
                    handle,
                    offset,
                    length,
                };
                let expected = model.resolve(range, &extents, access);
                let agent = match access {
                    Access::Inspect => Agent::Control,
                    _ => Agent::Video,
                };
                let resolved = table.resolve(&memory, agent, range, &extents, access);
                let touched = match expected {
                    Err(reason) => {
                        let fault = Fault {
                            reason,
                            access,
                            range,
                        };
                        assert_eq!(resolved, Err(fault));
                        let mut bytes = vec![seed; 0x4000];
                        let moved = match access {
                            Access::Write => {
                                let any = Destination::Any;
                                table.write(&memory, agent, range, &extents, &bytes, any)
                            }
                            _ => table
                                .read(&memory, agent, range, &extents, access, &mut bytes)
                                .map(drop),
                        };
                        assert_eq!(moved, Err(fault));
                        continue;
                    }
                    Ok(touched) => touched,
                };
                let resolved = resolved.unwrap();
                assert_eq!(resolved, pieces(&touched));
                if access == Access::Write {
                    let bytes: Vec<u8> = (0..touched.len())
                        .map(|i| (i + seed as usize) as u8)
                        .collect();
                    for (address, byte) in touched.iter().zip(&bytes) {
                        model.bytes[*address as usize] = *byte;
                    }
                    let any = Destination::Any;
                    let written = table.write(&memory, agent, range, &extents, &bytes, any);
                    written.unwrap();
                } else {
                    let expected = touched.iter().map(|address| model.bytes[*address as usize]);
                    let mut bytes = vec![seed; touched.len()];
                    let read = table.read(&memory, agent, range, &extents, access, &mut bytes);
                    assert_eq!(read, Ok(false));
                    assert!(bytes.into_iter().eq(expected));
                }
            }
        }
        let held: u64 = model
            .buffers
            .values()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert_eq!((table.len(), table.bytes()), (model.buffers.len(), held));
        let mut listed = vec![];
        while let Some((handle, _)) = table.next_after(listed.last().copied().unwrap_or(0)) {
            listed.push(handle);
        }
        assert!(listed.iter().eq(model.buffers.keys()));
    }
    assert!(whole(&memory) == model.bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_the_model_does(ops in prop::collection::vec(op(), 1..40)) {
        run(ops);
    }
}
