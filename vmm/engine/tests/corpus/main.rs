// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What fuzzing has kept of the engine's inputs (`vmm/fuzz/corpus`) breaks nothing: `ci/fuzz` calls the same functions with coverage.

mod requests;
mod tee;

use std::fs;
use std::path::Path;

/// Calls `target` with each file of its corpus.
fn replay(name: &str, target: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let mut count = 0;
    for file in fs::read_dir(&corpus).unwrap() {
        let path = file.unwrap().path();
        // Said if it breaks.
        eprintln!("{}", path.display());
        target(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{} is empty", corpus.display());
}

#[test]
fn the_corpus_of_requests_breaks_nothing() {
    replay("requests", requests::run);
}

#[test]
fn the_corpus_of_the_tee_breaks_nothing() {
    replay("tee", tee::run);
}
