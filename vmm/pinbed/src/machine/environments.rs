// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Environments (guest-kernel-config/environments.toml): machines and settings that the same tests run in.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// An environment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What --env and the baselines call it.
    pub name: String,
    /// What is different.
    pub what: String,
    /// Added to the kernel's command line.
    #[serde(default)]
    pub append: String,
    /// MiB.
    pub memory: Option<u64>,
    pub cpus: Option<u8>,
    /// The model that QEMU emulates under TCG.
    pub cpu: Option<String>,
    /// Whether CPUs run at the same time.
    #[serde(default)]
    pub parallel: bool,
    #[serde(default)]
    pub fragments: Vec<String>,
    /// How many times as long a test may take.
    pub slower: Option<u64>,
    /// Symbols whose modules the guest loads, where a kernel has them as modules.
    #[serde(default)]
    pub modules: Vec<String>,
    /// More arguments for QEMU.
    #[serde(default)]
    pub qemu: Vec<String>,
    /// Parts of reasons to skip.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// What many tests find there for one cause.
    #[serde(default)]
    pub known: Vec<Common>,
}

/// Findings that many tests have there for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// Names in kernels.toml.
    pub kernels: Vec<String>,
    /// What the kernels do wrong.
    pub reason: String,
    /// Where that is known from.
    pub reference: String,
    /// Parts of the findings' texts, with * for any; all are of the aftermath eye.
    pub texts: Vec<String>,
}

/// Their file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {what}", path.display())]
pub struct Error {
    path: PathBuf,
    what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    environment: Vec<Definition>,
}

/// Those of the checkout.
///
/// # Errors
/// When the file cannot be read or makes no sense.
pub fn read(workspace: &Path) -> Result<Vec<Definition>, Error> {
    let path = workspace.join("guest-kernel-config/environments.toml");
    let unreadable = |what: String| Error {
        path: path.clone(),
        what,
    };
    let text = fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    parse(&text).map_err(|error| unreadable(error.to_string()))
}

/// Those of a file with this text.
pub fn parse(text: &str) -> Result<Vec<Definition>, toml::de::Error> {
    toml::from_str(text).map(|file: File| file.environment)
}
