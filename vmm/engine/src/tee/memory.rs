// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE's way to the DMA core.

use vm_memory::GuestMemory;

use crate::Engine;
use crate::dma::{Access, Direction, Extent, Fault, Piece, Range, Reason, Table};
use crate::protected::{Agent, Refusal};

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
    /// Whether all of `range` is protected.
    fn is_protected(&self, range: Range) -> Result<bool, Fault>;
    /// Length in bytes of the buffer of this handle, if it is one that is attached as protected.
    fn protected_length(&self, handle: u64) -> Option<u64>;
    /// Sets what the video engine may do with `range`, which is protected.
    fn allow_video(
        &self,
        range: Range,
        direction: Option<Direction>,
    ) -> Result<Result<(), Refusal>, Fault>;
}

/// An engine's, for one trusted application.
pub struct Attached<'a, M> {
    engine: &'a Engine,
    memory: &'a M,
    agent: Agent,
}

impl<'a, M: GuestMemory> Attached<'a, M> {
    /// `secure` says whether the application may have protected memory.
    pub fn new(engine: &'a Engine, memory: &'a M, secure: bool) -> Self {
        Self {
            engine,
            memory,
            agent: Agent::Tee { secure },
        }
    }

    fn resolve(&self, table: &Table, range: Range, access: Access) -> Result<Vec<Piece>, Fault> {
        let whole = [Extent {
            offset: 0,
            length: range.length,
        }];
        table.resolve_for(self.agent, self.memory, range, &whole, access)
    }

    fn with<T>(
        &self,
        range: Range,
        access: Access,
        then: impl FnOnce(&Table, &[Piece]) -> Result<T, Reason>,
    ) -> Result<T, Fault> {
        // Held until the bytes have moved: a buffer must not be detached meanwhile.
        let table = self.engine.table();
        let pieces = self.resolve(&table, range, access)?;
        then(&table, &pieces).map_err(|reason| Fault {
            reason,
            access,
            range,
        })
    }
}

impl<M: GuestMemory> Memory for Attached<'_, M> {
    fn check(&self, range: Range, access: Access) -> Result<(), Fault> {
        self.with(range, access, |_, _| Ok(()))
    }

    fn read(&self, range: Range, to: &mut [u8]) -> Result<(), Fault> {
        self.with(range, Access::Read, |table, pieces| {
            table.read(self.memory, pieces, to)
        })
    }

    fn write(&self, range: Range, from: &[u8]) -> Result<(), Fault> {
        self.with(range, Access::Write, |table, pieces| {
            table.write(self.memory, pieces, from)
        })
    }

    fn pieces(&self, range: Range) -> Result<Vec<Piece>, Fault> {
        self.with(range, Access::Inspect, |_, pieces| Ok(pieces.to_vec()))
    }

    fn is_protected(&self, range: Range) -> Result<bool, Fault> {
        self.with(range, Access::Inspect, |table, pieces| {
            Ok(table.protected().covers(pieces))
        })
    }

    fn protected_length(&self, handle: u64) -> Option<u64> {
        let table = self.engine.table();
        let buffer = table.get(handle).filter(|buffer| buffer.is_protected())?;
        Some(buffer.length())
    }

    fn allow_video(
        &self,
        range: Range,
        direction: Option<Direction>,
    ) -> Result<Result<(), Refusal>, Fault> {
        let mut table = self.engine.table_mut();
        let pieces = self.resolve(&table, range, Access::Inspect)?;
        Ok(table.protected_mut().allow_video(&pieces, direction))
    }
}
