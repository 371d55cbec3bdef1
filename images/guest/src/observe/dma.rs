// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The DMA mappings of all devices, as the kernel's debugging of the DMA API counts them (CONFIG_DMA_API_DEBUG).

use crate::harness::error::Error;
use std::fs;
use std::io::ErrorKind;

const PLACE: &str = "/sys/kernel/debug/dma-api";

/// How many mappings there are, coherent allocations included.
pub fn mappings() -> Result<i64, Error> {
    Ok(number("nr_total_entries")? - number("num_free_entries")?)
}

fn number(file: &str) -> Result<i64, Error> {
    let path = format!("{PLACE}/{file}");
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::Absent {
            what: PLACE.into(),
            remedy: "build the kernel with CONFIG_DMA_API_DEBUG=y".into(),
        },
        _ => Error::io(format!("reading {path}"))(error),
    })?;
    text.trim().parse().map_err(|_| Error::Format {
        source_name: path,
        text,
    })
}
