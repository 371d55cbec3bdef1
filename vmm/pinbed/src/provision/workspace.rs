// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The checkout that pinbed works on.

use std::path::{Path, PathBuf};

/// The top of the sources that this program was built from: it builds the guest's programs and the driver from there.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}
