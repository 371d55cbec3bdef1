// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The words for an access to memory: who, where, what for, and why not.

use pinbed_abi::wire;
use std::sync::Arc;
use vm_memory::Permissions;

/// What the holder of a buffer lets the device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads.
    Read,
    /// The device writes.
    Write,
    /// The device reads and writes.
    Both,
}

impl Direction {
    /// From `wire::DIRECTION_…`; `None` for any other value.
    pub fn from_wire(value: u32) -> Option<Self> {
        match value {
            wire::DIRECTION_READ => Some(Self::Read),
            wire::DIRECTION_WRITE => Some(Self::Write),
            wire::DIRECTION_BOTH => Some(Self::Both),
            _ => None,
        }
    }

    /// To `wire::DIRECTION_…`.
    pub fn to_wire(self) -> u32 {
        match self {
            Self::Read => wire::DIRECTION_READ,
            Self::Write => wire::DIRECTION_WRITE,
            Self::Both => wire::DIRECTION_BOTH,
        }
    }

    pub(crate) fn permissions(self) -> Permissions {
        match self {
            Self::Read => Permissions::Read,
            Self::Write => Permissions::Write,
            Self::Both => Permissions::ReadWrite,
        }
    }
}

/// Identity of a session that owns protected memory, for as long as a clone of it lives. Two owners are equal if one is a
/// clone of the other.
#[derive(Clone, Debug, Default)]
pub struct Owner(Arc<()>);

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Owner {
    /// A name of this owner that does not keep it alive.
    pub(crate) fn downgrade(&self) -> std::sync::Weak<()> {
        Arc::downgrade(&self.0)
    }

    /// Whether `weak` is a name of this owner.
    pub(crate) fn is(&self, weak: &std::sync::Weak<()>) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.0), weak.as_ptr())
    }
}

/// Who accesses memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agent<'a> {
    /// The control queue.
    Control,
    /// The video engine.
    Video,
    /// A trusted application without the right to protected memory.
    Tee,
    /// A trusted application with that right, in one session.
    SecureTee(&'a Owner),
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads for a job.
    Read,
    /// Writes for a job.
    Write,
    /// Reads to report about the buffer: allowed whatever its direction.
    Inspect,
}

impl Access {
    /// What the buffer's direction must allow.
    pub(crate) fn needs(self) -> Permissions {
        match self {
            Self::Read => Permissions::Read,
            Self::Write => Permissions::Write,
            Self::Inspect => Permissions::No,
        }
    }

    pub(crate) fn of_memory(self) -> Permissions {
        match self {
            Self::Read | Self::Inspect => Permissions::Read,
            Self::Write => Permissions::Write,
        }
    }

    fn to_wire(self) -> u32 {
        match self {
            Self::Read | Self::Inspect => wire::DIRECTION_READ,
            Self::Write => wire::DIRECTION_WRITE,
        }
    }
}

/// Where a write may go. It travels with the write, so that protection cannot end between the check and the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To any memory that the agent may write.
    Any,
    /// To protected memory only.
    Protected,
}

/// How much of some memory is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None,
    /// A part.
    Part,
    /// All.
    Whole,
}

/// A contiguous piece of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// DMA address of the first byte.
    pub address: u64,
    /// Length; never zero in what the DMA core returns.
    pub length: u64,
}

impl Piece {
    /// Address after the last byte. The DMA core takes no piece that ends past the address space.
    pub fn end(&self) -> u64 {
        self.address + self.length
    }
}

impl From<Piece> for wire::Segment {
    fn from(piece: Piece) -> Self {
        Self {
            address: piece.address.into(),
            length: piece.length.into(),
        }
    }
}

/// Part of an attached buffer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The buffer.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

impl Range {
    /// All of it, as an extent of itself.
    pub fn whole(&self) -> [Extent; 1] {
        [Extent {
            offset: 0,
            length: self.length,
        }]
    }
}

impl From<wire::Range> for Range {
    fn from(range: wire::Range) -> Self {
        Self {
            handle: range.handle.get(),
            offset: range.offset.get(),
            length: range.length.get(),
        }
    }
}

/// Bytes of a [`Range`] that an access touches: a line of an image, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte, from the start of the range.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

/// Reasons to refuse an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The handle names nothing that is attached.
    #[error("the buffer is not attached")]
    NotAttached,
    /// The range, or a part of it, ends after the buffer.
    #[error("the range goes past the buffer's end")]
    OutOfBounds,
    /// The buffer's direction forbids the access.
    #[error("the buffer's direction forbids the access")]
    Permission,
    /// No memory is at this DMA address.
    #[error("address {0:#x} is not memory")]
    NoMemory(u64),
    /// The memory is protected from the agent.
    #[error("the memory is protected")]
    Protected,
    /// The bytes may go to protected memory only, and this is not.
    #[error("the memory is not protected")]
    NotProtected,
}

/// An access that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{access:?} of handle {} offset {:#x} length {:#x}: {reason}", range.handle, range.offset, range.length)]
pub struct Fault {
    /// Why.
    pub reason: Reason,
    /// What was tried.
    pub access: Access,
    /// Where.
    pub range: Range,
}

impl From<Fault> for wire::Fault {
    fn from(fault: Fault) -> Self {
        let (reason, address) = match fault.reason {
            Reason::NotAttached => (wire::FAULT_NOT_ATTACHED, 0),
            Reason::OutOfBounds => (wire::FAULT_OUT_OF_BOUNDS, 0),
            Reason::Permission => (wire::FAULT_PERMISSION, 0),
            Reason::NoMemory(address) => (wire::FAULT_NO_MEMORY, address),
            Reason::Protected => (wire::FAULT_PROTECTED, 0),
            Reason::NotProtected => (wire::FAULT_NOT_PROTECTED, 0),
        };
        Self {
            reason: reason.into(),
            access: fault.access.to_wire().into(),
            range: wire::Range {
                handle: fault.range.handle.into(),
                offset: fault.range.offset.into(),
                length: fault.range.length.into(),
            },
            address: address.into(),
        }
    }
}
