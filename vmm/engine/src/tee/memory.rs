// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE's way to the DMA core.

use vm_memory::GuestMemory;

use crate::Engine;
use crate::dma::{self, Access, Extent, Fault, Piece, Range};

/// Attached buffers, as a trusted application reaches them: without the type of the guest's memory. Each access is checked
/// anew, since a buffer may be detached between two of them.
pub trait Memory {
    /// Checks an access without making it.
    fn check(&self, range: Range, access: Access) -> Result<(), Fault>;
    /// Reads `range` to `to`, which is as long.
    fn read(&self, range: Range, to: &mut [u8]) -> Result<(), Fault>;
    /// Writes `from`, which is as long as `range`.
    fn write(&self, range: Range, from: &[u8]) -> Result<(), Fault>;
    /// Where `range` is, adjacent pieces merged.
    fn pieces(&self, range: Range) -> Result<Vec<Piece>, Fault>;
}

/// An engine's.
pub struct Attached<'a, M> {
    engine: &'a Engine,
    memory: &'a M,
}

impl<'a, M: GuestMemory> Attached<'a, M> {
    pub fn new(engine: &'a Engine, memory: &'a M) -> Self {
        Self { engine, memory }
    }

    fn with<T>(
        &self,
        range: Range,
        access: Access,
        then: impl FnOnce(&[Piece]) -> Result<T, dma::Reason>,
    ) -> Result<T, Fault> {
        // Held until the bytes have moved: a buffer must not be detached meanwhile.
        let table = self.engine.table();
        let whole = [Extent {
            offset: 0,
            length: range.length,
        }];
        let pieces = table.resolve(self.memory, range, &whole, access)?;
        then(&pieces).map_err(|reason| Fault {
            reason,
            access,
            range,
        })
    }
}

impl<M: GuestMemory> Memory for Attached<'_, M> {
    fn check(&self, range: Range, access: Access) -> Result<(), Fault> {
        self.with(range, access, |_| Ok(()))
    }

    fn read(&self, range: Range, to: &mut [u8]) -> Result<(), Fault> {
        self.with(range, Access::Read, |pieces| {
            dma::read(self.memory, pieces, to)
        })
    }

    fn write(&self, range: Range, from: &[u8]) -> Result<(), Fault> {
        self.with(range, Access::Write, |pieces| {
            dma::write(self.memory, pieces, from)
        })
    }

    fn pieces(&self, range: Range) -> Result<Vec<Piece>, Fault> {
        self.with(range, Access::Inspect, |pieces| Ok(pieces.to_vec()))
    }
}
