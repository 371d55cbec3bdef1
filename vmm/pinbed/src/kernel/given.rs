// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernels that the user has built: an image, the directory it was built in or the headers of it, and its modules.

use std::path::{Path, PathBuf};

use super::image::Image;
use super::module::{Kit, MEM2MEM};
use super::{Config, Kernel, Manifest, compiler};
use crate::provision::cache::Fingerprint;
use crate::provision::{Context, Error};

/// What every object directory and every package of headers has that modules can be built against.
const PREPARED: [&str; 3] = [
    "include/generated/autoconf.h",
    "Module.symvers",
    "scripts/mod/modpost",
];

/// Where the kernel's release is in an object directory.
const RELEASE: &str = "include/config/kernel.release";

/// A kernel that the user has built.
#[derive(Clone, Debug)]
pub struct Given {
    /// The image.
    pub image: Image,
    /// What modules are built against.
    build: PathBuf,
    /// Where its modules are.
    modules: Option<PathBuf>,
    /// The nearest entry of kernels.toml.
    nearest: String,
}

impl Given {
    /// Finds what belongs to an image: the directory it was built in is `build`, or one above the image, or where its release has one
    /// installed; its modules are in `modules`, or in that directory, or where its release has them installed.
    ///
    /// # Errors
    /// When the image is none, or nothing that belongs to it is found.
    pub fn find(
        manifest: &Manifest,
        image: &Path,
        build: Option<&Path>,
        modules: Option<&Path>,
    ) -> Result<Self, Error> {
        let image = Image::read(image)?;
        let installed = Path::new("/lib/modules").join(&image.release);
        let build = match build {
            Some(build) => build.to_owned(),
            None => image
                .path
                .ancestors()
                .skip(1)
                .map(Path::to_owned)
                .chain([installed.join("build")])
                .find(|directory| release_of(directory).as_ref() == Some(&image.release))
                .ok_or_else(|| Error::Argument {
                    argument: image.path.display().to_string(),
                    why: format!(
                        "what modules for {} are built against is neither in a directory above it nor in {}; give the directory the \
                         kernel was built in, or its headers, with --kernel-build",
                        image.release,
                        installed.join("build").display()
                    ),
                })?,
        };
        let build = build.canonicalize().unwrap_or(build);
        check(&build, &image)?;
        let modules = match modules {
            Some(modules) if !modules.is_dir() => {
                return Err(Error::Argument {
                    argument: format!("--modules {}", modules.display()),
                    why: "it is not a directory; give the one that `make modules_install` filled"
                        .to_owned(),
                });
            }
            Some(modules) => Some(modules.to_owned()),
            None => [build.clone(), installed]
                .into_iter()
                .find(|directory| directory.join("modules.order").exists()),
        };
        Ok(Given {
            nearest: manifest.nearest(&image.release)?.name.clone(),
            image,
            build,
            modules,
        })
    }

    /// The kernel, with nothing to build.
    pub fn kernel(&self, context: &Context) -> Result<Kernel, Error> {
        let path = [".config", "include/config/auto.conf"]
            .map(|name| self.build.join(name))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| self.build.join(".config"));
        let config = Config::read(&path)?;
        let mem2mem = ["source", "."]
            .map(|source| self.build.join(source).join(MEM2MEM))
            .into_iter()
            .find(|path| !config.has("V4L2_MEM2MEM_DEV") && path.exists());
        config.check(&self.image.path.to_string_lossy(), mem2mem.is_some(), false)?;
        let mut print = Fingerprint::default()
            .add("release", &self.image.release)
            .add("compiler", compiler::version(&context.cache)?)
            .add("build", self.build.as_os_str().as_encoded_bytes());
        for path in [&path, &self.build.join("Module.symvers"), &self.image.path] {
            let metadata = path.metadata().map_err(|e| Error::io("read", path, e))?;
            print = print.add(
                "file",
                format!("{} {:?}", metadata.len(), metadata.modified().ok()),
            );
        }
        Ok(Kernel {
            name: self.nearest.clone(),
            baseline: self.nearest.clone(),
            patches: Vec::new(),
            release: self.image.release.clone(),
            image: self.image.path.clone(),
            modules: self.modules.clone(),
            kit: Kit {
                make: self.build.clone(),
                objects: self.build.clone(),
                arguments: compiler::arguments(&context.cache, &config)?,
                mem2mem,
                tree: None,
            },
            config,
            fingerprint: print.finish(),
        })
    }
}

/// The release of the kernel that was built in a directory.
fn release_of(directory: &Path) -> Option<String> {
    let text = std::fs::read_to_string(directory.join(RELEASE)).ok()?;
    Some(text.trim().to_owned())
}

/// Whether modules for this image can be built against a directory.
fn check(build: &Path, image: &Image) -> Result<(), Error> {
    let unfit = |why: String| {
        Err(Error::Argument {
            argument: format!("--kernel-build {}", build.display()),
            why,
        })
    };
    match release_of(build) {
        None => unfit(format!(
            "it is not a directory that a kernel was built in, nor one of headers: there is no {RELEASE} in it"
        )),
        Some(release) if release != image.release => unfit(format!(
            "it is of kernel {release}, and {} is of {}",
            image.path.display(),
            image.release
        )),
        Some(_) => match PREPARED.iter().find(|path| !build.join(path).exists()) {
            Some(lacks) => unfit(format!(
                "there is no {lacks} in it, so modules cannot be built; run `make` there, not only `make bzImage` or `make vmlinux`"
            )),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn image(release: &str) -> Image {
        Image {
            path: "/boot/vmlinuz".into(),
            release: release.to_owned(),
        }
    }

    fn build(release: &str, files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in files.iter().chain([&RELEASE]) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{release}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn a_directory_of_another_kernel_or_half_built_is_named() {
        let why = |dir: &Path, release| check(dir, &image(release)).unwrap_err().to_string();
        let whole = build("6.12.1-x", &PREPARED);
        check(whole.path(), &image("6.12.1-x")).unwrap();
        let other = why(whole.path(), "6.12.2-x");
        assert!(
            other.contains("of kernel 6.12.1-x, and /boot/vmlinuz is of 6.12.2-x"),
            "{other}"
        );
        let half = build("6.12.1-x", &PREPARED[..1]);
        assert!(why(half.path(), "6.12.1-x").contains("no Module.symvers"));
        let none = tempfile::tempdir().unwrap();
        assert!(why(none.path(), "6.12.1-x").contains("there is no include/config/kernel.release"));
    }
}
