// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a run shows while it goes on, and leaves behind.

pub mod explain;
pub mod junit;
pub mod ktap;
pub mod table;

use std::io;

use crate::record::{Environment, Judged, Record};

/// Somebody who is told of a run while it goes on.
pub trait Output {
    /// The guest is up, or will not come up: `total` results are to follow.
    fn begin(&mut self, environment: &Environment, total: usize) -> io::Result<()>;
    /// A test begins.
    fn start(&mut self, name: &str) -> io::Result<()>;
    /// A test has its verdict.
    fn verdict(&mut self, judged: &Judged) -> io::Result<()>;
    /// The guest's console shows a line.
    fn console(&mut self, line: &str) -> io::Result<()>;
    /// The run is over.
    fn end(&mut self, record: &Record) -> io::Result<()>;
}

/// Nobody.
pub struct Silent;

impl Output for Silent {
    fn begin(&mut self, _: &Environment, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn start(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn verdict(&mut self, _: &Judged) -> io::Result<()> {
        Ok(())
    }
    fn console(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn end(&mut self, _: &Record) -> io::Result<()> {
        Ok(())
    }
}
