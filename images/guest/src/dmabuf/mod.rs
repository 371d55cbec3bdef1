// SPDX-License-Identifier: Apache-2.0 OR MIT
//! dma-bufs from exporters other than V4L2 (Documentation/driver-api/dma-buf.rst): from the heaps, made of a memfd by udmabuf, and from
//! [`vgem`]; CPU access to them, and which of them are alive.

mod bufinfo;
mod heaps;
mod sync;
mod udmabuf;
pub mod vgem;

pub use bufinfo::{Alive, alive};
pub use heaps::{PROTECTED_HEAP, cma_heap, protected_heap, system_heap};
pub use sync::{Access, with_cpu_access};
pub use udmabuf::{
    UDMABUF_PARTS, memfd, seal, try_udmabuf, udmabuf, udmabuf_device, udmabuf_of, udmabuf_on,
};
