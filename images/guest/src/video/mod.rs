// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The video node.
//!
//! - [`v4l2`]: the ioctls; [`mplane`]: those of the multi-planar node; [`image`]: images as V4L2 lays them out;
//! - [`m2m`]: the node's two queues, with the placement and device eyes in QBUF and DQBUF.

pub mod image;
pub mod m2m;
pub mod mplane;
pub mod v4l2;
