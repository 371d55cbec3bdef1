// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel under test and the driver for it: source, configuration, build, all kept in the cache by content.

mod build;
mod config;
mod manifest;
mod module;
mod source;

use std::path::{Path, PathBuf};

pub use manifest::{Manifest, Recipe};
pub use module::provide as module;

use crate::provision::{Context, Error};
use source::Source;

/// Which kernel is wanted.
#[derive(Debug, Default)]
pub struct Request {
    /// An entry of kernels.toml; without it the default, or the one that is nearest to `tree`.
    pub name: Option<String>,
    /// A user's own source tree to build instead of Debian's.
    pub tree: Option<PathBuf>,
    /// Fragments on top of the entry's own.
    pub fragments: Vec<String>,
}

/// A kernel that is built.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The entry of kernels.toml it was built by.
    pub name: String,
    /// What `uname -r` says in it.
    pub release: String,
    /// vmlinux, with symbols, and with line numbers if the debug fragment is in. QEMU boots it as it is, by PVH: with nothing
    /// to decompress, that takes less time than a bzImage.
    pub vmlinux: PathBuf,
    /// The object directory, which modules are built against, with the final .config.
    pub objects: PathBuf,
    /// The source tree.
    pub source: PathBuf,
    /// Of all that went into it.
    pub fingerprint: String,
}

/// Finds the kernel in the cache or builds it. `guest_kernel_config` is the checkout's directory of that name.
pub fn provide(
    context: &Context,
    guest_kernel_config: &Path,
    request: &Request,
) -> Result<Kernel, Error> {
    let manifest = Manifest::read(&guest_kernel_config.join("kernels.toml"))?;
    let user = request.tree.as_deref().map(Source::of_user).transpose()?;
    let recipe = match (&request.name, &user) {
        (Some(name), _) => manifest.named(name)?,
        (None, Some(source)) => manifest.nearest(&source.version)?,
        (None, None) => manifest.default()?,
    };
    let names: Vec<&str> = recipe
        .fragments
        .iter()
        .chain(&request.fragments)
        .map(String::as_str)
        .collect();
    let wish = config::Wish::read(
        &guest_kernel_config.join("fragments"),
        &names,
        &recipe.lacks,
    )?;
    let source = match user {
        Some(source) => source,
        None => Source::of_debian(context, recipe)?,
    };
    build::provide(context, recipe, &source, &wish)
}
