// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE's way to the DMA core.

use vm_memory::GuestAddressSpace;

use crate::access::{
    Access, Agent, Destination, Direction, Fault, Owner, Piece, Protection, Range,
};
use crate::protected::Refusal;
use crate::{Engine, GoOn};

/// Attached buffers, as a trusted application accesses them: without the type of the guest's memory. Each access is checked
/// anew, since a buffer may be detached between two of them.
pub trait Memory {
    /// Whether memory may be accessed still; waits while the device is paused.
    fn go_on(&self) -> bool;
    /// Checks an access without making it.
    fn check(&self, range: Range, access: Access) -> Result<(), Fault>;
    /// Reads `range` to `to`, which is as long. Returns whether some of it is protected.
    fn read(&self, range: Range, to: &mut [u8]) -> Result<bool, Fault>;
    /// Writes `from`, which is as long as `range`.
    fn write(&self, range: Range, from: &[u8], destination: Destination) -> Result<(), Fault>;
    /// Where `range` is, adjacent pieces merged: `most` pieces after the first `skip`, and how many there are.
    fn pieces(&self, range: Range, skip: usize, most: usize) -> Result<(Vec<Piece>, usize), Fault>;
    /// How much of `range` is protected.
    fn protection(&self, range: Range) -> Result<Protection, Fault>;
    /// Length in bytes of the buffer of this handle, if it is one that is attached as protected.
    fn protected_length(&self, handle: u64) -> Option<u64>;
    /// Sets what the video engine may do with `range`, which is protected.
    fn allow_video(
        &self,
        range: Range,
        direction: Option<Direction>,
    ) -> Result<Result<(), Refusal>, Fault>;
}

/// An engine's, for a session of a trusted application.
pub struct Attached<'a, S> {
    engine: &'a Engine,
    space: S,
    owner: Option<&'a Owner>,
    go_on: GoOn<'a>,
}

impl<'a, S: GuestAddressSpace> Attached<'a, S> {
    /// `owner` is the session, if its application may have protected memory.
    pub fn new(engine: &'a Engine, space: S, owner: Option<&'a Owner>, go_on: GoOn<'a>) -> Self {
        Self {
            engine,
            space,
            owner,
            go_on,
        }
    }

    fn agent(&self) -> Agent<'a> {
        self.owner.map_or(Agent::Tee, Agent::SecureTee)
    }

    /// What is protected for nobody yet is this session's from now on. A fault is the access's to report, which comes next.
    fn claim(&self, range: Range) {
        if let Some(owner) = self.owner
            && self.engine.table().is_vacant(range) == Ok(true)
        {
            let _ = self.engine.table_mut().claim(owner, range);
        }
    }
}

impl<S: GuestAddressSpace> Memory for Attached<'_, S> {
    fn go_on(&self) -> bool {
        (self.go_on)()
    }

    fn check(&self, range: Range, access: Access) -> Result<(), Fault> {
        self.claim(range);
        self.engine
            .access_when_running(&self.space, self.go_on, |table, memory| {
                table.check(memory, self.agent(), range, access)
            })
    }

    fn read(&self, range: Range, to: &mut [u8]) -> Result<bool, Fault> {
        self.claim(range);
        self.engine
            .access_when_running(&self.space, self.go_on, |table, memory| {
                let (agent, whole) = (self.agent(), range.whole());
                table.read(memory, agent, range, &whole, Access::Read, to)
            })
    }

    fn write(&self, range: Range, from: &[u8], destination: Destination) -> Result<(), Fault> {
        self.claim(range);
        self.engine
            .access_when_running(&self.space, self.go_on, |table, memory| {
                let (agent, whole) = (self.agent(), range.whole());
                table.write(memory, agent, range, &whole, from, destination)
            })
    }

    fn pieces(&self, range: Range, skip: usize, most: usize) -> Result<(Vec<Piece>, usize), Fault> {
        self.claim(range);
        self.engine
            .access_when_running(&self.space, self.go_on, |table, memory| {
                let (agent, access) = (self.agent(), Access::Inspect);
                table.describe(memory, agent, range, access, skip, most)
            })
    }

    fn protection(&self, range: Range) -> Result<Protection, Fault> {
        self.claim(range);
        self.engine
            .access_when_running(&self.space, self.go_on, |table, memory| {
                table.protection(memory, self.agent(), range)
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
        self.claim(range);
        let mut table = self.engine.table_mut();
        let memory = self.space.memory();
        table.allow_video(&*memory, self.agent(), range, direction)
    }
}
