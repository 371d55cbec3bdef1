// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What every test is given, whatever it is about.
//!
//! - [`ctx`]: findings, notes, random data; [`error`]: why the harness could not do its part;
//! - [`progress`]: what a test tells its supervisor, PID 1;
//! - [`child`]: a forked process that acts in its turn; [`cpu`]: where a test runs; [`attempt`]: a system call that may not return;
//! - [`privilege`]: giving up rights; [`kconfig`]: the configuration of the kernel under test;
//! - [`node`]: files of the kernel's that it may lack;
//! - [`patience`]: waiting for the kernel; [`rounds`]: how often a race is tried; [`setting`]: values in sysfs and procfs, put back afterwards.

pub mod attempt;
pub mod child;
pub mod cmdline;
pub mod cpu;
pub mod ctx;
pub mod error;
pub mod kconfig;
pub mod node;
pub mod patience;
pub mod privilege;
pub mod progress;
pub mod rounds;
pub mod setting;
