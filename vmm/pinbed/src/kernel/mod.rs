// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel under test and the driver for it: source, configuration, build, all kept in the cache by content.

mod build;
mod ccache;
mod compiler;
mod config;
mod deb;
mod given;
mod image;
mod make;
mod manifest;
mod module;
mod modules;
mod origin;
mod patch;
mod source;
pub mod symbols;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use config::Config;
pub use manifest::{Manifest, NEWEST, Recipe};
pub use module::{Driver, provide as module};
pub use modules::{Module, not_loaded, provide as modules};
pub use patch::Patch;
pub use source::newest;

use crate::provision::{Context, Error};
use deb::Package;
use given::Given;
use module::Kit;
use source::Source;

/// Where patches are that fix something, in the checkout's guest-kernel-config.
pub const FIXES: &str = "patches/fixes";
/// Where the patch is that gives a kernel defects on demand.
pub const MUTANTS: &str = "patches/mutants";

/// Fragments that change how every file is compiled.
const EVERY_FILE: [&str; 3] = ["debug", "dwarf", "trace"];

/// What the command line says of kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// `--kernel`.
    pub names: &'a [String],
    /// `--kernel-src`.
    pub tree: Option<&'a Path>,
    /// `--kernel-image`.
    pub image: Option<&'a Path>,
    /// `--kernel-build`.
    pub build: Option<&'a Path>,
    /// `--modules`.
    pub modules: Option<&'a Path>,
    /// `--config`.
    pub config: Option<&'a Path>,
    /// `--fragment`.
    pub fragments: &'a [String],
}

/// Which kernel is wanted.
#[derive(Clone, Debug)]
pub enum Request {
    /// One that is built from source.
    Source(SourceBuild),
    /// One that the user has built.
    Given(Given),
    /// One in a package of Debian's, or like it.
    Package(Package),
}

/// A kernel that is built from source.
#[derive(Clone, Debug)]
pub struct SourceBuild {
    /// How it is made.
    recipe: Recipe,
    /// A user's own tree to build instead of Debian's source.
    tree: Option<Source>,
    /// Patches on Debian's source.
    patches: Vec<Patch>,
    /// A whole .config in the place of the recipe's fragments.
    config: Option<PathBuf>,
    /// Fragments on top of that.
    fragments: Vec<String>,
}

/// A kernel that can be booted, and that modules can be built for.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The entry of kernels.toml that is nearest to it: the one it was built by, or the one whose baseline may fit.
    pub name: String,
    /// The entry of kernels.toml whose baseline it is held to: its own, but for one that is newer than all of them.
    pub baseline: String,
    /// The patches that are in it.
    pub patches: Vec<Patch>,
    /// What `uname -r` says in it.
    pub release: String,
    /// What QEMU boots. Of a kernel built here it is vmlinux, with symbols, and with line numbers if the debug fragment is in: QEMU boots
    /// that as it is, by PVH, and with nothing to decompress that takes less time than a bzImage.
    pub image: PathBuf,
    /// Its final configuration.
    pub config: Config,
    /// The directory with its own modules, if it has any.
    pub modules: Option<PathBuf>,
    /// What modules for it are built against.
    kit: Kit,
    /// Of all that went into it.
    pub fingerprint: String,
}

impl Request {
    /// What the command line asks for, in the order of kernels.toml for "all": a name of kernels.toml, and with a "+" before each the
    /// patches on it. `guest_kernel_config` is the checkout's directory of that name.
    ///
    /// # Errors
    /// When a name, a tree or an image is not what it should be.
    pub fn all(
        guest_kernel_config: &Path,
        manifest: &Manifest,
        choice: &Choice<'_>,
    ) -> Result<Vec<Self>, Error> {
        if let Some(image) = choice.image {
            let given = Given::find(manifest, image, choice.build, choice.modules)?;
            return Ok(vec![Request::Given(given)]);
        }
        let tree = choice.tree.map(Source::of_user).transpose()?;
        let request = |recipe: &Recipe, patches| {
            Request::Source(SourceBuild {
                recipe: recipe.clone(),
                tree: tree.clone(),
                patches,
                config: choice.config.map(Path::to_owned),
                fragments: choice.fragments.to_vec(),
            })
        };
        let mut requests: Vec<Request> = Vec::new();
        for name in choice.names {
            if name == "all" {
                requests.extend(
                    manifest
                        .recipes()
                        .iter()
                        .map(|recipe| request(recipe, Vec::new())),
                );
                continue;
            }
            if let Some(package) = Package::parse(name) {
                let package = package?;
                if tree.is_some() || choice.config.is_some() || !choice.fragments.is_empty() {
                    return Err(Error::Argument {
                        argument: format!("--kernel {package}"),
                        why: "it is not built here, so none of --kernel-src, --config and --fragment goes with it".to_owned(),
                    });
                }
                requests.push(Request::Package(package));
                continue;
            }
            let mut parts = name.split('+');
            let recipe = manifest.named(parts.next().unwrap_or_default())?;
            let directories = [FIXES, MUTANTS].map(|place| guest_kernel_config.join(place));
            let patches = parts
                .map(|patch| Patch::find(&directories, patch, &recipe.name))
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

    /// What `--kernel` calls it; of a kernel that the user has built, the image.
    pub fn name(&self) -> String {
        match self {
            Request::Source(build) => build.name(),
            Request::Given(given) => given.image.path.display().to_string(),
            Request::Package(package) => package.to_string(),
        }
    }

    /// The same with more fragments; what is not built here stays as it is.
    pub fn with_fragments(&self, fragments: &[String]) -> Self {
        let mut request = self.clone();
        if let Request::Source(build) = &mut request {
            let is_new = |name: &&String| !build.fragments.contains(name);
            let new: Vec<_> = fragments.iter().filter(is_new).cloned().collect();
            build.fragments.extend(new);
        }
        request
    }

    /// A user's own tree or image, if it is made of one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Request::Source(build) => build.tree.as_ref().map(|tree| tree.dir.as_path()),
            Request::Given(given) => Some(&given.image.path),
            Request::Package(_) => None,
        }
    }
}

/// Adds a fragment to those that the kernels of the command line are built with; nothing where none is built.
pub fn with_fragment(
    names: &[String],
    image: Option<&Path>,
    fragments: &mut Vec<String>,
    name: &str,
) {
    let is_built = image.is_none() && !names.iter().any(|name| name.starts_with("deb:"));
    if is_built && !fragments.iter().any(|known| known == name) {
        fragments.push(name.to_owned());
    }
}

impl Kernel {
    /// Its version and patches, as baselines name them.
    pub fn baseline_name(&self) -> String {
        named(&self.baseline, &self.patches)
    }

    /// Whether what is booted names its functions, as a vmlinux does.
    pub fn image_has_symbols(&self) -> bool {
        let mut magic = [0; 4];
        let read = File::open(&self.image).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && magic == *b"\x7fELF"
    }

    /// The object directory, or the headers, that modules for it are built against.
    pub fn objects(&self) -> &Path {
        &self.kit.objects
    }

    /// Where make runs for it: its source tree, or the headers.
    pub fn source(&self) -> &Path {
        &self.kit.make
    }
}

impl SourceBuild {
    /// What `--kernel` calls it.
    fn name(&self) -> String {
        named(&self.recipe.name, &self.patches)
    }

    /// The added fragments that change how every file is compiled, each after a dot: ".dwarf". Their objects have a place of their own.
    fn variant(&self) -> String {
        let added = self.fragments.iter();
        let added = added.filter(|name| EVERY_FILE.contains(&name.as_str()));
        added.map(|name| format!(".{name}")).collect()
    }

    /// The patches as the name has them.
    fn suffix(&self) -> String {
        named("", &self.patches)
    }
}

/// Whether the source of each kernel of the file is in the cache.
pub fn fetched<'a>(
    context: &Context,
    manifest: &'a Manifest,
) -> impl Iterator<Item = (&'a str, bool)> {
    let cache = context.cache.clone();
    manifest.recipes().iter().map(move |recipe| {
        let entry = cache.entry("source", &recipe.name);
        (recipe.name.as_str(), entry.is_complete())
    })
}

/// Sees whether a failed build is the fault of a source in the cache that has lost files. If so, the next attempt fetches it again.
///
/// # Errors
/// When the damaged entry cannot be locked or changed.
pub fn heal(context: &Context, request: &Request) -> Result<bool, Error> {
    match request {
        Request::Source(build) if build.tree.is_none() => source::heal(context, &build.recipe),
        Request::Package(package) => package.heal(context),
        _ => Ok(false),
    }
}

/// A kernel's name with its patches: "6.12+tee-longterm".
fn named(name: &str, patches: &[Patch]) -> String {
    let patches = patches.iter().map(|patch| format!("+{}", patch.name));
    name.to_owned() + &patches.collect::<String>()
}

/// Fetches the source that a kernel is built from, unless that is a tree of the user's.
///
/// # Errors
/// Those of [`provide`].
pub fn fetch(context: &Context, build: &SourceBuild) -> Result<(), Error> {
    match build.tree {
        None => Source::of_recipe(context, &build.recipe).map(drop),
        Some(_) => Ok(()),
    }
}

/// Finds the kernel in the cache or builds it. `guest_kernel_config` is the checkout's directory of that name.
pub fn provide(
    context: &Context,
    guest_kernel_config: &Path,
    manifest: &Manifest,
    request: &Request,
) -> Result<Kernel, Error> {
    let request = match request {
        Request::Source(build) => build,
        Request::Given(given) => return given.kernel(context),
        Request::Package(package) => return package.provide(context, manifest),
    };
    let recipe = &request.recipe;
    let own = recipe.fragments.iter();
    let is_own = |name: &&String| request.config.is_none() && recipe.fragments.contains(name);
    let names: Vec<&str> = own
        .filter(|_| request.config.is_none())
        .chain(request.fragments.iter().filter(|name| !is_own(name)))
        .map(String::as_str)
        .collect();
    let wish = config::Wish::read(
        &guest_kernel_config.join("fragments"),
        &names,
        &recipe.lacks,
        request.config.as_deref(),
    )?;
    let source = match &request.tree {
        Some(source) => source.clone(),
        None => Source::of_recipe(context, recipe)?,
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
        let requests = Request::all(
            &config,
            &manifest,
            &Choice {
                names: &names,
                ..Choice::default()
            },
        )?;
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
