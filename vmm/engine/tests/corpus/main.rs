// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What fuzzing has kept of the engine's inputs (`vmm/fuzz/corpus`) breaks nothing: `ci/fuzz` calls the same functions with coverage.

#[path = "../../../fuzz/replay.rs"]
mod replay;
mod requests;
mod tee;

use replay::replay;

#[test]
fn the_corpus_of_requests_breaks_nothing() {
    replay("requests", requests::run);
}

#[test]
fn the_corpus_of_the_tee_breaks_nothing() {
    replay("tee", tee::run);
}
