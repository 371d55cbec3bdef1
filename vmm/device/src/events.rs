// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Events of a request, which go out before its answer.

use pinbed_abi::wire;
use pinbed_engine::Engine;

use crate::ring::{self, Memory, Ring};

/// Posts events, and counts those for which the driver has no room.
pub(crate) fn post(engine: &Engine, ring: &Ring, memory: &Memory, events: &[wire::Event]) {
    for event in events {
        if !ring::deliver(ring, memory, event) {
            log::warn!("event lost: the driver has posted no buffer for it");
            engine.count_lost_events(1);
        }
    }
}
