// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel under test and the driver for it: source, configuration, build, all kept in the cache by content.

mod build;
mod config;
mod manifest;
mod module;
mod patch;
mod source;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub use manifest::{Manifest, Recipe};
pub use module::provide as module;
pub use patch::Patch;

use crate::provision::{Context, Error};
use source::Source;

/// Where patches are that fix something, in the checkout's guest-kernel-config.
pub const FIXES: &str = "patches/fixes";

/// Which kernel is wanted.
#[derive(Clone, Debug)]
pub struct Request {
    /// How it is made.
    recipe: Recipe,
    /// A user's own tree to build instead of Debian's source.
    tree: Option<Source>,
    /// Patches on Debian's source.
    patches: Vec<Patch>,
    /// Fragments on top of the recipe's own.
    fragments: Vec<String>,
}

/// A kernel that is built.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The entry of kernels.toml it was built by.
    pub name: String,
    /// The patches that are in it.
    pub patches: Vec<Patch>,
    /// What `uname -r` says in it.
    pub release: String,
    /// vmlinux, with symbols, and with line numbers if the debug fragment is in. QEMU boots it as it is, by PVH: with nothing
    /// to decompress, that takes less time than a bzImage.
    pub vmlinux: PathBuf,
    /// The object directory, which modules are built against, with the final .config.
    pub objects: PathBuf,
    /// The source.
    source: Source,
    /// Of all that went into it.
    pub fingerprint: String,
}

impl Request {
    /// What the names on the command line ask for, in the order of kernels.toml for "all": a name of kernels.toml, and with a "+" before
    /// each the patches on it. `guest_kernel_config` is the checkout's directory of that name, `tree` a user's own source.
    ///
    /// # Errors
    /// When a name or the tree is not what it should be.
    pub fn all(
        guest_kernel_config: &Path,
        manifest: &Manifest,
        names: &[String],
        tree: Option<&Path>,
        fragments: &[String],
    ) -> Result<Vec<Self>, Error> {
        let tree = tree.map(Source::of_user).transpose()?;
        let request = |recipe: &Recipe, patches| Request {
            recipe: recipe.clone(),
            tree: tree.clone(),
            patches,
            fragments: fragments.to_vec(),
        };
        let mut requests: Vec<Request> = Vec::new();
        for name in names {
            if name == "all" {
                requests.extend(
                    manifest
                        .recipes()
                        .iter()
                        .map(|recipe| request(recipe, Vec::new())),
                );
                continue;
            }
            let mut parts = name.split('+');
            let recipe = manifest.named(parts.next().unwrap_or_default())?;
            let directory = guest_kernel_config.join(FIXES);
            let patches = parts
                .map(|patch| Patch::find(&directory, patch, &recipe.name))
                .collect::<Result<Vec<_>, _>>()?;
            if let (Some(tree), false) = (&tree, patches.is_empty()) {
                return Err(Error::PatchesOnTree {
                    tree: tree.dir.clone(),
                    name: name.clone(),
                });
            }
            requests.push(request(recipe, patches));
        }
        if requests.is_empty() {
            let recipe = match &tree {
                Some(tree) => manifest.nearest(&tree.version)?,
                None => manifest.default()?,
            };
            requests.push(request(recipe, Vec::new()));
        }
        let mut seen = HashSet::new();
        requests.retain(|request| seen.insert(request.name()));
        Ok(requests)
    }

    /// What `--kernel` calls it.
    pub fn name(&self) -> String {
        self.recipe.name.clone() + &self.suffix()
    }

    /// A user's own tree, if it is made of one.
    pub fn tree(&self) -> Option<&Path> {
        self.tree.as_ref().map(|tree| tree.dir.as_path())
    }

    /// The patches as the name has them.
    fn suffix(&self) -> String {
        self.patches
            .iter()
            .map(|patch| format!("+{}", patch.name))
            .collect()
    }
}

/// Sees whether a failed build is the fault of a source in the cache that has lost files. If so, the next attempt fetches it again.
///
/// # Errors
/// When the damaged entry cannot be locked or changed.
pub fn heal(context: &Context, request: &Request) -> Result<bool, Error> {
    match request.tree {
        Some(_) => Ok(false),
        None => source::heal(context, &request.recipe),
    }
}

/// Finds the kernel in the cache or builds it. `guest_kernel_config` is the checkout's directory of that name.
pub fn provide(
    context: &Context,
    guest_kernel_config: &Path,
    request: &Request,
) -> Result<Kernel, Error> {
    let recipe = &request.recipe;
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
    let source = match &request.tree {
        Some(source) => source.clone(),
        None => Source::of_debian(context, recipe)?,
    };
    build::provide(context, request, source, &wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Result<Vec<String>, Error> {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config");
        let manifest = Manifest::read(&config.join("kernels.toml"))?;
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let requests = Request::all(&config, &manifest, &names, None, &[])?;
        Ok(requests.iter().map(Request::name).collect())
    }

    #[test]
    fn names_are_versions_with_patches_or_all() {
        assert_eq!(named(&[]).unwrap(), ["6.12"]);
        assert_eq!(
            named(&["all", "6.1"]).unwrap(),
            ["5.10", "6.1", "6.12", "7.3"]
        );
        assert_eq!(
            named(&["7.3", "6.12+tee-longterm+tee-memlock"]).unwrap(),
            ["7.3", "6.12+tee-longterm+tee-memlock"]
        );
        for (name, why) in [
            ("6.2", "no kernel 6.2"),
            ("6.1+tee-longterm", "no patch tee-longterm for kernel 6.1"),
        ] {
            let error = named(&[name]).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.exit(), crate::exit::Exit::Usage);
        }
    }
}
