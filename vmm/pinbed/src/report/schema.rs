// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Makes docs/run.schema.json, the JSON schema of the document that `--json` writes, from the types, and tests that it is up to date.

use std::path::Path;
use std::{env, fs};

use schemars::generate::SchemaSettings;

use super::record::Run;

const BLESS: &str = "PINBED_BLESS=1 cargo test -p pinbed schema";

#[test]
fn the_schema_in_docs_is_that_of_the_types() {
    let generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut made = serde_json::to_string_pretty(&generator.into_root_schema_for::<Run>()).unwrap();
    made.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run.schema.json");
    if env::var_os("PINBED_BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == made,
        "docs/run.schema.json is not what the types say; run `{BLESS}` and commit the result"
    );
}
