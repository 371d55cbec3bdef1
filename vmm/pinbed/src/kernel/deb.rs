// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Debian's kernels as they are in its packages: the image, its modules, and the headers that the driver is built against.
//!
//! The packages are unpacked below one directory of the cache, where nothing is run as it would be installed: kbuild's programs come with
//! the libraries of their own release, and start through scripts in their places. The compiler is the host's.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::image::Image;
use super::module::{Kit, MEM2MEM};
use super::source::heal_entry;
use super::{Config, Kernel, Manifest, compiler};
use crate::provision::apt::{self, Apt};
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::Run;
use crate::provision::inventory::Check;
use crate::provision::{Context, Error};

/// What `--kernel` begins with for a package.
const PREFIX: &str = "deb:";

/// The package of a suite unless another is named.
const DEFAULT: &str = "linux-image-amd64";

/// The space that packages and what is unpacked of them take at the same time.
const SPACE: u64 = 800 << 20;

/// A kernel's package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Package {
    /// The newest of a suite.
    Suite {
        /// The suite: "trixie", "trixie-backports".
        suite: String,
        /// The package: "linux-image-amd64".
        package: String,
    },
    /// A file, with the files of the headers beside it.
    File(PathBuf),
}

/// The record of unpacked packages. Paths are below the entry.
#[derive(Serialize, Deserialize)]
struct Unpacked {
    /// Names and versions, or names and times of files.
    packages: Vec<String>,
    release: String,
    image: PathBuf,
    config: PathBuf,
    modules: PathBuf,
    /// Where make starts.
    make: PathBuf,
    /// The headers of this kernel, in the place of an object directory.
    headers: PathBuf,
    mem2mem: Option<PathBuf>,
}

impl Package {
    /// `deb:SUITE`, `deb:SUITE/PACKAGE` or `deb:FILE.deb`; none if the name does not begin so.
    ///
    /// # Errors
    /// When what follows is none of these.
    pub fn parse(name: &str) -> Option<Result<Self, Error>> {
        let rest = name.strip_prefix(PREFIX)?;
        let unfit = |why: String| {
            Some(Err(Error::Argument {
                argument: format!("--kernel {name}"),
                why,
            }))
        };
        if rest.ends_with(".deb") {
            let path = Path::new(rest);
            return match path.canonicalize() {
                Ok(path) => Some(Ok(Package::File(path))),
                Err(e) => unfit(format!("{rest}: {e}")),
            };
        }
        let (suite, package) = rest.split_once('/').unwrap_or((rest, DEFAULT));
        let good = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        if !good(suite) || !good(package) || !package.starts_with("linux-image-") {
            return unfit(
                "after \"deb:\" comes a suite of Debian (deb:trixie), a suite and a package (deb:trixie/linux-image-rt-amd64), or a file \
                 (deb:./linux-image-6.12.1_6.12.1-1_amd64.deb)"
                    .to_owned(),
            );
        }
        Some(Ok(Package::Suite {
            suite: suite.to_owned(),
            package: package.to_owned(),
        }))
    }

    /// The kernel in it, fetched once, and the same from then on.
    ///
    /// # Errors
    /// When there is no such package, it cannot be fetched, or there is no kernel or no headers in it.
    pub fn provide(&self, context: &Context, manifest: &Manifest) -> Result<Kernel, Error> {
        let entry = context.cache.entry("deb", &self.key()?);
        let unpacked = match entry.record::<Unpacked>() {
            Some(unpacked) => unpacked,
            None => {
                let work = entry.lock(&context.progress)?;
                match entry.record::<Unpacked>() {
                    Some(unpacked) => unpacked,
                    None => self.unpack(context, &work)?,
                }
            }
        };
        unpacked.kernel(context, self, &entry, manifest)
    }

    /// Takes unpacked packages away that have lost files, so that they are fetched again. Whether they have.
    ///
    /// # Errors
    /// When the cache cannot be changed.
    pub fn heal(&self, context: &Context) -> Result<bool, Error> {
        heal_entry(context, &context.cache.entry("deb", &self.key()?))
    }

    /// What the cache calls it. A file that is written anew is another.
    fn key(&self) -> Result<String, Error> {
        Ok(match self {
            Package::Suite { suite, package } if package == DEFAULT => suite.clone(),
            Package::Suite { suite, package } => format!("{suite}-{package}"),
            Package::File(path) => {
                let print =
                    beside(path)?
                        .iter()
                        .try_fold(Fingerprint::default(), |print, path| {
                            let metadata =
                                path.metadata().map_err(|e| Error::io("read", path, e))?;
                            Ok::<_, Error>(print.add(
                                &path.to_string_lossy(),
                                format!("{} {:?}", metadata.len(), metadata.modified().ok()),
                            ))
                        })?;
                format!("file-{}", print.finish())
            }
        })
    }

    fn unpack(&self, context: &Context, work: &Locked) -> Result<Unpacked, Error> {
        context.cache.require_free(SPACE)?;
        let tree = work.fresh("tree")?;
        let unpacked = match self {
            Package::Suite { suite, package } => {
                let headers = package
                    .replacen("linux-image-", "linux-headers-", 1)
                    .replace("-unsigned", "");
                let apt = Apt::open(context, &suites(suite))?;
                let known = apt.names("linux-image-")?;
                if !known.contains(package) {
                    return Err(Error::NoPackage {
                        package: package.clone(),
                        suite: suite.clone(),
                        known: flavours(&known),
                    });
                }
                let packages = apt.fetch(
                    &format!("Debian's kernel of {suite}"),
                    &[package, &headers],
                    target(suite),
                    &tree,
                )?;
                let mut unpacked = self.find(&tree, packages)?;
                let config = Config::read(&tree.join(&unpacked.config))?;
                if !config.has("V4L2_MEM2MEM_DEV") {
                    mem2mem(context, &apt, &unpacked, work)?;
                    unpacked.mem2mem = Some(Path::new("..").join("v4l2-mem2mem.c"));
                }
                unpacked
            }
            Package::File(path) => {
                let files = beside(path)?;
                for file in &files {
                    apt::unpack(file, &tree, |_| {})?;
                }
                let names = files.iter().map(|file| file.display().to_string());
                let mut unpacked = self.find(&tree, names.collect())?;
                if !Config::read(&tree.join(&unpacked.config))?.has("V4L2_MEM2MEM_DEV") {
                    let (source, name) = source_beside(path).ok_or_else(|| Error::Argument {
                        argument: format!("--kernel {self}"),
                        why: "it has no v4l2-mem2mem (CONFIG_V4L2_MEM2MEM_DEV), as Debian's kernels; put linux-source-….deb of the same version \
                              beside it, and that one module is built from there"
                            .to_owned(),
                    })?;
                    take_mem2mem(context, &source, &name, work)?;
                    unpacked.mem2mem = Some(Path::new("..").join("v4l2-mem2mem.c"));
                }
                unpacked
            }
        };
        start_by_own_loader(&tree)?;
        prepare(&tree.join(&unpacked.headers))?;
        work.publish(&unpacked, Check::OnFailure, &[])?;
        Ok(unpacked)
    }

    /// Finds the parts of a kernel in unpacked packages.
    fn find(&self, tree: &Path, packages: Vec<String>) -> Result<Unpacked, Error> {
        let unfit = |why: String| Error::Argument {
            argument: format!("--kernel {self}"),
            why,
        };
        // Where /lib is not yet /usr/lib, and where the image is beside the modules and not in /boot.
        let modules = ["usr/lib/modules", "lib/modules"]
            .iter()
            .flat_map(|place| {
                fs::read_dir(tree.join(place))
                    .into_iter()
                    .flatten()
                    .flatten()
            })
            .map(|entry| entry.path())
            .find(|path| path.join("kernel").is_dir())
            .ok_or_else(|| unfit("there is no kernel in it".to_owned()))?;
        let release = modules
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let file = |name: &str| {
            [
                modules.join(name),
                tree.join(format!("boot/{name}-{release}")),
            ]
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| unfit(format!("there is no {name} of kernel {release} in it")))
        };
        let (image, config) = (file("vmlinuz")?, file("config")?);
        let headers = tree
            .join("usr/src")
            .join(format!("linux-headers-{release}"));
        if !headers.join("include/generated/autoconf.h").exists() {
            return Err(unfit(format!(
                "the headers to build the driver against are missing; put linux-headers-{release}_….deb, and for a kernel of Debian's \
                 also linux-headers-…-common and linux-kbuild, beside it"
            )));
        }
        // What all flavours of a kernel share is a package of its own.
        let common = fs::read_dir(tree.join("usr/src"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .find(|path| is_common(&path.to_string_lossy(), &release));
        let below = |path: &Path| path.strip_prefix(tree).unwrap_or(path).to_owned();
        Ok(Unpacked {
            packages,
            image: below(&image),
            config: below(&config),
            modules: below(&modules),
            make: below(common.as_ref().unwrap_or(&headers)),
            headers: below(&headers),
            release,
            mem2mem: None,
        })
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Package::Suite { suite, package } if package == DEFAULT => write!(f, "{PREFIX}{suite}"),
            Package::Suite { suite, package } => write!(f, "{PREFIX}{suite}/{package}"),
            Package::File(path) => write!(f, "{PREFIX}{}", path.display()),
        }
    }
}

impl Unpacked {
    fn kernel(
        &self,
        context: &Context,
        package: &Package,
        entry: &Entry,
        manifest: &Manifest,
    ) -> Result<Kernel, Error> {
        let tree = entry.dir().join("tree");
        let image = Image::read(&tree.join(&self.image))?;
        let config = Config::read(&tree.join(&self.config))?;
        config.check(&package.to_string(), self.mem2mem.is_some(), false)?;
        let mut arguments = compiler::arguments(&context.cache, &config)?;
        arguments.push("CC=gcc".to_owned());
        let print = Fingerprint::default()
            .add("release", &self.release)
            .add("packages", self.packages.join("\n"))
            .add("compiler", compiler::version(&context.cache)?);
        Ok(Kernel {
            name: manifest.nearest(&self.release)?.name.clone(),
            baseline: manifest.nearest(&self.release)?.name.clone(),
            patches: Vec::new(),
            release: self.release.clone(),
            image: image.path,
            modules: Some(tree.join(&self.modules)),
            kit: Kit {
                make: tree.join(&self.make),
                objects: tree.join(&self.headers),
                arguments,
                mem2mem: self.mem2mem.as_ref().map(|path| tree.join(path)),
                tree: None,
            },
            config,
            fingerprint: print.finish(),
        })
    }
}

/// Of all packages of kernels those that stand for the newest of their kind, without debugging symbols: no version is in their names.
fn flavours(packages: &[String]) -> String {
    let is_flavour = |name: &&String| {
        let kind = name.trim_start_matches("linux-image-");
        kind.starts_with(|c: char| c.is_ascii_alphabetic()) && !kind.ends_with("-dbg")
    };
    let mut names: Vec<_> = packages.iter().filter(is_flavour).cloned().collect();
    names.sort();
    names.join(", ")
}

/// The suites that a kernel of a suite may come from. Those of the release that the host's other packages come from are asked together, so
/// that their lists are read once.
fn suites(suite: &str) -> Vec<String> {
    let release = suite.split('-').next().unwrap_or(suite);
    if apt::RELEASE.contains(&suite) {
        return apt::RELEASE.map(str::to_owned).to_vec();
    }
    let mut suites = vec![release.to_owned()];
    if !["sid", "unstable", "experimental"].contains(&release) {
        suites.push(format!("{release}-security"));
    }
    if !suites.iter().any(|known| known == suite) {
        suites.push(suite.to_owned());
    }
    suites
}

/// The suite that comes before the others: none for a release, whose security updates are newer than what it came with.
fn target(suite: &str) -> &str {
    if suite.contains('-') { suite } else { "" }
}

/// The files that belong to a package file: itself, and headers beside it.
fn beside(package: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = package.parent().unwrap_or(Path::new("."));
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let own = name(package);
    // linux-image-RELEASE_VERSION_amd64.deb
    let mut words = own.split('_');
    let release = words
        .next()
        .and_then(|word| word.strip_prefix("linux-image-"))
        .map(|release| release.trim_end_matches("-unsigned"))
        .ok_or_else(|| Error::Argument {
            argument: package.display().to_string(),
            why: "it is not named like a kernel's package, linux-image-RELEASE_VERSION_amd64.deb"
                .to_owned(),
        })?;
    let version = words.next().unwrap_or_default();
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .map_err(|e| Error::io("read", directory, e))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = name(path);
            let headers = name.starts_with(&format!("linux-headers-{release}_"))
                || (name.starts_with("linux-headers-")
                    && name
                        .split_once(&format!("_{version}_"))
                        .is_some_and(|(stem, _)| is_common(stem, release)))
                || (name.starts_with("linux-kbuild-") && name.contains(&format!("_{version}_")));
            headers && name.ends_with(".deb")
        })
        .collect();
    files.sort();
    files.insert(0, package.to_owned());
    Ok(files)
}

/// Whether headers are those that flavours such as this release share: linux-headers-VERSION-common, or with a set of patches in their
/// name, linux-headers-VERSION-common-rt.
fn is_common(headers: &str, release: &str) -> bool {
    match headers.split_once("-common") {
        Some((_, "")) => !release.contains("-rt-"),
        Some((_, set)) => release.contains(&format!("{set}-")),
        None => false,
    }
}

/// Takes v4l2-mem2mem.c out of the source package of the same version.
fn mem2mem(
    context: &Context,
    apt: &Apt<'_>,
    kernel: &Unpacked,
    work: &Locked,
) -> Result<(), Error> {
    let mut numbers = kernel.release.split(['.', '-', '+']);
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let name = format!("linux-source-{major}.{minor}");
    let image = format!("linux-image-{}", kernel.release);
    let version = kernel
        .packages
        .iter()
        .find_map(|package| {
            package
                .strip_prefix(&image)?
                .trim_start_matches("-unsigned")
                .strip_prefix(' ')
        })
        .unwrap_or_default();
    let deb = apt.package(&format!("{name}={version}"))?;
    let what = format!("{name} {version}, for v4l2-mem2mem.c");
    let files = apt.download(&what, std::slice::from_ref(&deb))?;
    for file in &files {
        take_mem2mem(context, file, &name, work)?;
        fs::remove_file(file).map_err(|e| Error::io("delete", file, e))?;
    }
    Ok(())
}

/// Takes v4l2-mem2mem.c out of the file of a source package, which is called `name`.
fn take_mem2mem(context: &Context, file: &Path, name: &str, work: &Locked) -> Result<(), Error> {
    // The last of them ends when it has the file, which ends the others.
    let script = r#"dpkg-deb --fsys-tarfile "$1" | tar --extract --to-stdout "./usr/src/$2.tar.xz" |
    tar --extract --xz --to-stdout --occurrence=1 "$2/$3" >"$4""#;
    let mut command = Command::new("sh");
    let into: OsString = work.dir().join("v4l2-mem2mem.c").into();
    command
        .args(["-c", script, "sh"])
        .args([file.as_os_str(), name.as_ref(), MEM2MEM.as_ref(), &into])
        .current_dir(work.dir());
    let mut task = context.progress.start(
        format!("unpacking v4l2-mem2mem.c of {name}"),
        crate::provision::progress::Unit::Count("files"),
        None,
    );
    Run::new("tar", command).checked(|_| task.tick())?;
    task.finish("unpacked v4l2-mem2mem.c");
    Ok(())
}

/// The file of the source package beside that of a kernel, and the package's name: of the same version, since both have it in their names.
fn source_beside(package: &Path) -> Option<(PathBuf, String)> {
    let version = package.file_name()?.to_str()?.split('_').nth(1)?.to_owned();
    let files = fs::read_dir(package.parent()?).ok()?.flatten();
    files.map(|file| file.path()).find_map(|path| {
        let mut parts = path.file_name()?.to_str()?.split('_');
        let name = parts.next()?.to_owned();
        let fits = name.starts_with("linux-source-") && parts.next() == Some(&version);
        fits.then_some((path, name))
    })
}

/// Puts scripts in the places of kbuild's programs, which start them by the loader and the libraries that came with them, if any did: the
/// host's may be older.
fn start_by_own_loader(tree: &Path) -> Result<(), Error> {
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| tree.join(place));
    let Some(loader) = libraries
        .iter()
        .map(|place| place.join("ld-linux-x86-64.so.2"))
        .find(|path| path.exists())
    else {
        return Ok(());
    };
    let path = libraries.map(|place| place.display().to_string()).join(":");
    let places = fs::read_dir(tree.join("usr/lib"))
        .into_iter()
        .flatten()
        .flatten();
    let kbuild = places.map(|entry| entry.path()).filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("linux-kbuild-"))
    });
    for file in kbuild.flat_map(|place| WalkDir::new(place).into_iter().flatten()) {
        let program = file.path();
        let name = file.file_name().to_string_lossy();
        if !file.file_type().is_file() || name.ends_with(ELF) || name.contains(OF_ARCHITECTURE) {
            continue;
        }
        if !fs::read(program).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF")) {
            continue;
        }
        // Those that differ between architectures are behind a program that picks one.
        let real = [".real-x86", ".real-lsb-64"]
            .map(|end| program.with_file_name(format!("{name}{end}")))
            .into_iter()
            .find(|path| path.exists());
        let real = match real {
            Some(real) => real,
            None => {
                let real = program.with_file_name(format!("{name}{ELF}"));
                fs::rename(program, &real).map_err(|e| Error::io("rename", program, e))?;
                real
            }
        };
        let words = [
            "exec".to_owned(),
            loader.display().to_string(),
            "--library-path".to_owned(),
            path.clone(),
            real.display().to_string(),
        ];
        let line = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default();
        // Not written over: it may be a hard link.
        let _ = fs::remove_file(program);
        fs::write(program, format!("#!/bin/sh\n{line} \"$@\"\n"))
            .and_then(|()| fs::set_permissions(program, fs::Permissions::from_mode(0o755)))
            .map_err(|e| Error::io("write", program, e))?;
    }
    Ok(())
}

/// What a program is called behind the script that starts it.
const ELF: &str = ".elf";
/// What programs for one architecture have in their names.
const OF_ARCHITECTURE: &str = ".real-";

/// Debian's headers name its own compiler and linker, which a host need not have.
fn prepare(headers: &Path) -> Result<(), Error> {
    let path = headers.join(".kernelvariables");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let kept: String = text
        .lines()
        .filter(|line| !line.contains("CC") && !line.contains("CROSS_COMPILE"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, kept).map_err(|e| Error::io("write", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_suites_packages_or_files() {
        let parse = |name: &str| Package::parse(name).unwrap();
        assert!(Package::parse("6.12").is_none());
        for name in ["deb:trixie", "deb:trixie/linux-image-rt-amd64"] {
            assert_eq!(parse(name).unwrap().to_string(), name);
        }
        for (name, why) in [
            ("deb:", "comes a suite"),
            ("deb:trixie/vim", "comes a suite"),
            ("deb:-o x", "comes a suite"),
            ("deb:../x", "comes a suite"),
            ("deb:./none.deb", "No such file"),
        ] {
            let error = parse(name).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn the_source_beside_a_package_is_of_its_version() {
        let directory = tempfile::tempdir().unwrap();
        let package = directory
            .path()
            .join("linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb");
        fs::write(
            directory.path().join("linux-source-6.1_6.1.1-1_all.deb"),
            "",
        )
        .unwrap();
        assert_eq!(source_beside(&package), None);
        let source = directory.path().join("linux-source-6.1_6.1.192-2_all.deb");
        fs::write(&source, "").unwrap();
        assert_eq!(
            source_beside(&package),
            Some((source, "linux-source-6.1".to_owned()))
        );
    }

    #[test]
    fn flavours_stand_for_the_newest_of_their_kind() {
        let packages = [
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-rt-amd64",
            "linux-image-amd64-dbg",
            "linux-image-amd64",
        ];
        assert_eq!(
            flavours(&packages.map(str::to_owned)),
            "linux-image-amd64, linux-image-rt-amd64"
        );
    }

    #[test]
    fn security_updates_come_before_the_release_and_backports_only_if_asked_for() {
        assert_eq!(suites("bookworm"), ["bookworm", "bookworm-security"]);
        assert_eq!(
            suites("bookworm-backports"),
            ["bookworm", "bookworm-security", "bookworm-backports"]
        );
        assert_eq!(suites("trixie"), apt::RELEASE);
        assert_eq!(suites("sid"), ["sid"]);
        assert_eq!(target("trixie"), "");
        assert_eq!(target("trixie-backports"), "trixie-backports");
    }

    #[test]
    fn headers_beside_a_package_are_those_of_its_release_and_version() {
        let dir = tempfile::tempdir().unwrap();
        let image = "linux-image-6.12.1-amd64_6.12.1-1_amd64.deb";
        let mut own = vec![
            image,
            "linux-headers-6.12.1-amd64_6.12.1-1_amd64.deb",
            "linux-headers-6.12.1-common_6.12.1-1_all.deb",
            "linux-kbuild-6.12.1_6.12.1-1_amd64.deb",
        ];
        let foreign = [
            "linux-headers-6.12.1-rt-amd64_6.12.1-1_amd64.deb",
            "linux-headers-6.12.1-common-rt_6.12.1-1_all.deb",
            "linux-headers-6.12.2-common_6.12.2-1_all.deb",
            "linux-kbuild-6.12.1_6.12.1-1_amd64.deb.asc",
        ];
        for name in own.iter().chain(&foreign) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut found: Vec<_> = beside(&dir.path().join(image))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(found[0], image);
        own.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, own);
        assert!(beside(&dir.path().join("vim_9_amd64.deb")).is_err());
        let rt = "6.12.1-rt-amd64";
        assert!(is_common("linux-headers-6.12.1-common-rt", rt));
        assert!(!is_common("linux-headers-6.12.1-common", rt));
    }

    #[test]
    fn programs_start_by_the_loader_that_came_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let kbuild = "usr/lib/linux-kbuild-6.12/scripts";
        let loader = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        for (name, text) in [
            ("modpost", "\x7fELF picks one"),
            ("modpost.real-lsb-64", "\x7fELF one"),
            ("modpost.real-msb-64", "\x7fELF other"),
            ("fixdep", "\x7fELF"),
            ("setlocalversion", "#!/bin/sh\n"),
        ] {
            fs::create_dir_all(path(kbuild)).unwrap();
            fs::write(path(kbuild).join(name), text).unwrap();
        }
        start_by_own_loader(dir.path()).unwrap();
        let text = |name: &str| fs::read_to_string(path(kbuild).join(name)).unwrap();
        assert_eq!(text("fixdep"), "\x7fELF", "no libraries came with it");

        fs::create_dir_all(path(loader).parent().unwrap()).unwrap();
        fs::write(path(loader), "").unwrap();
        start_by_own_loader(dir.path()).unwrap();
        assert!(text("modpost").contains("modpost.real-lsb-64 \"$@\""));
        assert!(text("fixdep").contains("fixdep.elf \"$@\""));
        assert!(text("fixdep").contains(loader));
        assert_eq!(text("setlocalversion"), "#!/bin/sh\n");
        assert!(text("modpost.real-lsb-64").starts_with("\x7fELF"));
    }
}
