// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs what fuzzing has kept; for tests of the crates under `vmm`.

use std::fs;
use std::path::Path;

/// Calls `target` with each file of its corpus.
pub fn replay(name: &str, target: impl Fn(&[u8])) {
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
