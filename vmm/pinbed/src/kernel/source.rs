// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel source trees: fetched from where kernels.toml says, into the cache, or a user's own, left as it is.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::manifest::{Origin, PACKAGE, Recipe};
use crate::provision::apt::{self, Apt};
use crate::provision::cache::{Entry, Fingerprint, Locked};
use crate::provision::child::Run;
use crate::provision::inventory::{Check, Depth};
use crate::provision::progress::Unit;
use crate::provision::{Context, Error, answers, is_offline, online};

/// The space that a package, the tarball in it and the unpacked tree take at the same time.
const SPACE: u64 = 2300 << 20;

/// A tree to build from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its top.
    pub dir: PathBuf,
    /// The kernel's version, "6.12.117".
    pub version: String,
    /// What tells its content from another's.
    pub identity: String,
    /// Its entry in the cache; none of a user's own, which may change between two runs.
    pub entry: Option<Entry>,
}

/// The record of a source: what it came from.
#[derive(Serialize, Deserialize)]
struct Unpacked {
    package: String,
    version: String,
    sha256: String,
}

impl Source {
    /// The recipe's source, fetched once, and the same from then on.
    pub fn of_recipe(context: &Context, recipe: &Recipe) -> Result<Self, Error> {
        let entry = context.cache.entry("source", &recipe.name);
        let unpacked = match entry.record::<Unpacked>() {
            Some(unpacked) => unpacked,
            None => {
                let work = entry.lock(&context.progress)?;
                match entry.record::<Unpacked>() {
                    Some(unpacked) => unpacked,
                    None => fetch(context, recipe, &work)?,
                }
            }
        };
        let dir = entry.dir().join("tree");
        Ok(Source {
            version: version(&dir)?,
            dir,
            identity: format!(
                "{} {} {}",
                unpacked.package, unpacked.version, unpacked.sha256
            ),
            entry: Some(entry),
        })
    }

    /// A user's own tree. It must be clean enough to be built out of tree.
    pub fn of_user(dir: &Path) -> Result<Self, Error> {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        for lacks in ["Makefile", "Kconfig", "mm/gup.c"] {
            if !dir.join(lacks).is_file() {
                return Err(Error::NotAKernelTree { path: dir, lacks });
            }
        }
        // What the top Makefile looks for before it builds out of tree.
        for product in [".config", "include/config", "arch/x86/include/generated"] {
            if dir.join(product).exists() {
                return Err(Error::BuiltInPlace {
                    path: dir,
                    product: product.to_owned(),
                });
            }
        }
        Ok(Source {
            version: version(&dir)?,
            identity: state(&dir)?,
            dir,
            entry: None,
        })
    }
}

/// Takes a source away that has lost files, so that it is fetched again. Whether it has.
pub fn heal(context: &Context, recipe: &Recipe) -> Result<bool, Error> {
    let entry = context.cache.entry("source", &recipe.name);
    heal_entry(context, &entry)
}

/// Takes an entry away that has lost files. Whether it has.
pub fn heal_entry(context: &Context, entry: &Entry) -> Result<bool, Error> {
    let Some(why) = entry.damage(Depth::Sizes) else {
        return Ok(false);
    };
    context.progress.say(&format!(
        "{} is damaged: {why}; fetching it again",
        entry.dir().display()
    ));
    entry.lock(&context.progress)?.retract()?;
    Ok(true)
}

/// Names, sizes and times of all files: tells an edited tree from an unedited one in a fraction of a second.
fn state(dir: &Path) -> Result<String, Error> {
    let mut print = Fingerprint::default();
    let files = WalkDir::new(dir)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.file_name() != ".git");
    for file in files {
        let found = file.and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = found.map_err(|e| {
            let path = e.path().unwrap_or(dir).to_owned();
            Error::io("read", &path, e.into())
        })?;
        if !metadata.is_dir() {
            let mark = format!(
                "{} {} {}",
                metadata.size(),
                metadata.mtime(),
                metadata.mtime_nsec()
            );
            print = print.add(&file.path().to_string_lossy(), mark);
        }
    }
    Ok(print.finish())
}

/// VERSION, PATCHLEVEL, SUBLEVEL and EXTRAVERSION at the head of the top Makefile.
fn version(dir: &Path) -> Result<String, Error> {
    let path = dir.join("Makefile");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let field = |name: &str| {
        let line = text
            .lines()
            .take(20)
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.unwrap_or_default().trim().to_owned()
    };
    Ok(format!(
        "{}.{}.{}{}",
        field("VERSION"),
        field("PATCHLEVEL"),
        field("SUBLEVEL"),
        field("EXTRAVERSION")
    ))
}

/// Fetches the source from the first origin that has it.
fn fetch(context: &Context, recipe: &Recipe, work: &Locked) -> Result<Unpacked, Error> {
    context.cache.require_free(SPACE)?;
    let mut reasons = Vec::new();
    for origin in &recipe.sources {
        let tree = work.fresh("tree")?;
        let fetched = fetch_from(context, origin, work, &tree).and_then(|unpacked| {
            let found = version(&tree)?;
            let rest = found.strip_prefix(&recipe.name);
            match rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())) {
                true => Ok(unpacked),
                false => Err(Error::AnotherKernel {
                    from: origin.to_string(),
                    found,
                    wanted: recipe.name.clone(),
                }),
            }
        });
        match fetched {
            Ok(unpacked) => {
                work.publish(
                    &unpacked,
                    Check::OnFailure,
                    &["package", "originals", "patching"],
                )?;
                // Only now: an unpacking that is interrupted must not cost the download again.
                let package = work.dir().join("package");
                match fs::remove_dir_all(&package) {
                    Err(e) if e.kind() != ErrorKind::NotFound => {
                        return Err(Error::io("delete", &package, e));
                    }
                    _ => return Ok(unpacked),
                }
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                let why = format!("{origin}: {error}");
                context.progress.say(&why);
                reasons.push(why);
            }
        }
    }
    Err(Error::NoSource {
        kernel: recipe.name.clone(),
        reasons,
    })
}

fn fetch_from(
    context: &Context,
    origin: &Origin,
    work: &Locked,
    tree: &Path,
) -> Result<Unpacked, Error> {
    match origin {
        Origin::Debian {
            package,
            suites,
            mirror,
            security,
        } => {
            let apt = match mirror {
                None => Apt::open(context, suites)?,
                Some(mirror) => Apt::open_old(context, suites, mirror, security.as_deref())?,
            };
            let deb = apt.package(package)?;
            let what = format!("{} {}", deb.package, deb.version);
            let files = apt.download(&what, std::slice::from_ref(&deb))?;
            let unpacked = work.fresh("package")?;
            for file in &files {
                apt::unpack(file, &unpacked, |_| {})?;
            }
            let tarball = format!("usr/src/{package}.tar.xz");
            unpack(context, &what, &unpacked.join(tarball), tree)?;
            for file in &files {
                fs::remove_file(file).map_err(|e| Error::io("delete", file, e))?;
            }
            Ok(Unpacked {
                package: deb.package,
                version: deb.version,
                sha256: deb.sha256,
            })
        }
        Origin::Tarball { url, sha256 } => {
            if !url.starts_with("file:") {
                online(url)?;
            }
            let name = url.rsplit('/').next().unwrap_or(url);
            let file = work.fresh("package")?.join(name);
            let mut task = context
                .progress
                .start(format!("downloading {name}"), Unit::Bytes, None);
            // apt's own way: with the host's proxies and certificates, and the checksum looked at.
            let mut helper = Command::new("/usr/lib/apt/apt-helper");
            helper
                .args(["-o", "APT::Sandbox::User=root", "download-file", url])
                .arg(&file)
                .arg(format!("SHA256:{}", sha256.to_ascii_lowercase()));
            Run::new("the download", helper)
                .errors(|line| line.starts_with("E: ") || line.starts_with("Err:"))
                .checked(|_| task.set(file.metadata().map_or(0, |file| file.len())))?;
            task.finish(&format!("downloaded {name}"));
            unpack(context, name, &file, tree)?;
            Ok(Unpacked {
                package: url.clone(),
                version: String::new(),
                sha256: sha256.clone(),
            })
        }
        Origin::Git { url, tag, commit } => {
            if Path::new(url).is_relative() && !url.starts_with("file:") {
                online(url)?;
            }
            let mut task =
                context
                    .progress
                    .start(format!("fetching {origin}"), Unit::Count("commits"), None);
            let git = |arguments: &[&str]| {
                let mut command = Command::new("git");
                command.args(arguments).current_dir(tree);
                command
            };
            let tag = format!("refs/tags/{tag}");
            for arguments in [
                &["init", "--quiet", "."][..],
                &["fetch", "--quiet", "--depth=1", url, &tag],
                // The commit, not what the tag may have become.
                &["checkout", "--quiet", commit],
            ] {
                Run::new("git", git(arguments))
                    .errors(|line| line.starts_with("fatal:") || line.starts_with("error:"))
                    .checked(|_| task.tick())?;
            }
            let history = tree.join(".git");
            fs::remove_dir_all(&history).map_err(|e| Error::io("delete", &history, e))?;
            task.finish(&format!("fetched {origin}"));
            Ok(Unpacked {
                package: url.clone(),
                version: tag,
                sha256: commit.clone(),
            })
        }
        Origin::Directory { path } => {
            let source = Source::of_user(path)?;
            let mut copy = Command::new("cp");
            copy.args(["--archive", "--reflink=auto", "--no-target-directory"])
                .arg(&source.dir)
                .arg(tree)
                .current_dir(work.dir());
            Run::new("copying the source", copy).checked(|_| {})?;
            Ok(Unpacked {
                package: path.display().to_string(),
                version: source.version,
                sha256: source.identity,
            })
        }
    }
}

/// Unpacks a tarball without its top directory.
fn unpack(context: &Context, what: &str, tarball: &Path, tree: &Path) -> Result<(), Error> {
    let read = |e| Error::io("read", tarball, e);
    let file = File::open(tarball).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    // tar reads from a descriptor whose position we share, which is how far it is.
    let mut position = file.try_clone().map_err(read)?;
    let mut task = context
        .progress
        .start(format!("unpacking {what}"), Unit::Bytes, Some(size));
    let compression = match tarball.extension().and_then(|end| end.to_str()) {
        Some("xz") => Some("--xz"),
        Some("gz" | "tgz") => Some("--gzip"),
        Some("zst") => Some("--zstd"),
        Some("bz2") => Some("--bzip2"),
        _ => None,
    };
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file=-"])
        .args(compression)
        .current_dir(tree);
    Run::new("tar", tar)
        .stdin(file)
        .checked(|_| task.set(position.stream_position().unwrap_or_default()))?;
    task.finish(&format!("unpacked {what}"));
    Ok(())
}

/// The newest package with a kernel's source that the suites have. Remembered for a day, and whatever its age where nothing may be fetched.
pub fn newest(context: &Context, suites: &[String]) -> Result<String, Error> {
    let question = format!("the newest kernel of {}", suites.join(" "));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let day = now.map_or(0, |now| now.as_secs() / 86_400).to_string();
    let last = format!("{question}, whenever");
    let known = match is_offline() {
        true => answers::recall(&context.cache, &last, ""),
        false => answers::recall(&context.cache, &question, &day),
    };
    if let Some(package) = known {
        return Ok(package);
    }
    let names = Apt::open(context, suites)?.names(PACKAGE)?;
    let newest = names
        .into_iter()
        .filter_map(|name| {
            let number = name.strip_prefix(PACKAGE)?;
            let (major, minor) = number.split_once('.')?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?, name))
        })
        .max();
    let (_, _, package) = newest.ok_or_else(|| Error::NoSource {
        kernel: "newest".to_owned(),
        reasons: vec![format!("no {PACKAGE}* in {}", suites.join(", "))],
    })?;
    answers::keep(&context.cache, &last, "", &package);
    answers::keep(&context.cache, &question, &day, &package);
    Ok(package)
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufRead, Write};

    use super::*;
    use crate::kernel::Manifest;
    use crate::provision::cache::Cache;
    use crate::provision::inventory;
    use crate::provision::progress::Progress;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mm")).unwrap();
        for (name, text) in [
            (
                "Makefile",
                "# SPDX\nVERSION = 6\nPATCHLEVEL = 13\nSUBLEVEL = 0\nEXTRAVERSION = -rc4\nNAME = x\n",
            ),
            ("Kconfig", ""),
            ("mm/gup.c", ""),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_users_tree_is_recognised() {
        let dir = tree();
        let source = Source::of_user(dir.path()).unwrap();
        assert_eq!(source.version, "6.13.0-rc4");
        fs::remove_file(dir.path().join("mm/gup.c")).unwrap();
        assert!(matches!(
            Source::of_user(dir.path()),
            Err(Error::NotAKernelTree {
                lacks: "mm/gup.c",
                ..
            })
        ));
    }

    #[test]
    fn a_tree_built_in_place_is_refused() {
        let dir = tree();
        fs::write(dir.path().join(".config"), "").unwrap();
        let error = Source::of_user(dir.path()).unwrap_err();
        assert!(
            matches!(&error, Error::BuiltInPlace { product, .. } if product == ".config"),
            "{error}"
        );
    }

    #[test]
    fn an_edit_changes_the_identity_and_git_does_not() {
        let dir = tree();
        let before = Source::of_user(dir.path()).unwrap().identity;
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".git/index"), "x").unwrap();
        assert_eq!(Source::of_user(dir.path()).unwrap().identity, before);
        fs::write(dir.path().join("mm/gup.c"), "x").unwrap();
        assert_ne!(Source::of_user(dir.path()).unwrap().identity, before);
    }

    #[test]
    fn a_source_that_lost_a_file_is_fetched_again() {
        let directory = tempfile::tempdir().unwrap();
        let context = Context {
            cache: Cache::at(directory.path().to_owned()),
            progress: Progress::new(),
        };
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config");
        let manifest = Manifest::read(&config.join("kernels.toml")).unwrap();
        let recipe = manifest.default().unwrap();
        let entry = context.cache.entry("source", &recipe.name);
        let work = entry.lock(&context.progress).unwrap();
        let header = work.fresh("tree").unwrap().join("mm.h");
        fs::write(&header, "").unwrap();
        work.publish(&"", Check::OnFailure, &[]).unwrap();
        drop(work);
        assert!(!heal(&context, recipe).unwrap());
        assert!(entry.record::<String>().is_some());
        fs::remove_file(header).unwrap();
        assert!(
            entry.record::<String>().is_some(),
            "it is not checked on use"
        );
        assert!(heal(&context, recipe).unwrap());
        assert!(entry.record::<String>().is_none());
    }

    fn context(directory: &Path) -> Context {
        Context {
            cache: Cache::at(directory.join("cache")),
            progress: Progress::new(),
        }
    }

    fn recipe(name: &str, sources: &str) -> Recipe {
        toml::from_str(&format!(
            "name = \"{name}\"\nsources = [{sources}]\nfragments = []\nsteps = 1\n"
        ))
        .unwrap()
    }

    /// A tarball of the tree of 6.13, and its SHA-256.
    fn tarball(directory: &Path) -> (PathBuf, String) {
        let (tree, path) = (tree(), directory.join("linux-6.13.tar.gz"));
        let status = Command::new("tar")
            .args([
                "--create",
                "--gzip",
                "--transform=s,^[.],linux-6.13,",
                "--file",
            ])
            .arg(&path)
            .arg("--directory")
            .arg(tree.path())
            .arg(".")
            .status();
        assert!(status.unwrap().success());
        let (_, sum) = inventory::sum(&path).unwrap();
        (path, sum)
    }

    /// Serves a file to whoever asks, on the loopback device.
    fn serve(path: &Path) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let body = fs::read(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = io::BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            }
        });
        format!("http://127.0.0.1:{port}/linux-6.13.tar.gz")
    }

    #[test]
    fn the_first_source_that_has_the_kernel_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (path, sum) = tarball(directory.path());
        let (file, wrong) = (format!("file:{}", path.display()), "0".repeat(64));
        let url = serve(&path);
        // Nobody listens on port 1.
        let silent = "package = \"linux-source-6.13\", suites = [\"trixie\"], mirror = \"http://127.0.0.1:1/debian\"";
        for (case, last) in [
            format!("tarball = \"{file}\", sha256 = \"{sum}\""),
            format!("tarball = \"{url}\", sha256 = \"{sum}\""),
            format!("directory = \"{}\"", tree().keep().display()),
        ]
        .iter()
        .enumerate()
        {
            let context = context(&directory.path().join(case.to_string()));
            let first = match case {
                // apt tries again some times, which takes seconds.
                0 => silent,
                _ => "directory = \"/nonexistent\"",
            };
            let sources = format!(
                "{{ {first} }}, {{ tarball = \"{file}\", sha256 = \"{wrong}\" }}, {{ {last} }}"
            );
            let source = Source::of_recipe(&context, &recipe("6.13", &sources)).unwrap();
            assert_eq!(source.version, "6.13.0-rc4", "{last}");
            assert!(source.dir.join("mm/gup.c").is_file());
            let entry = source.entry.unwrap();
            assert!(!entry.dir().join("package").exists());
        }
    }

    #[test]
    fn a_kernel_that_no_source_has_is_named_with_the_reasons() {
        let directory = tempfile::tempdir().unwrap();
        let context = context(directory.path());
        let (path, sum) = tarball(directory.path());
        let sources = format!(
            "{{ tarball = \"file:{}\", sha256 = \"{sum}\" }}, {{ directory = \"/nonexistent\" }}",
            path.display()
        );
        let error = Source::of_recipe(&context, &recipe("6.1", &sources)).unwrap_err();
        assert_eq!(error.exit(), crate::exit::Exit::Provisioning);
        let said = error.to_string();
        for what in ["kernel 6.1 ", "6.13.0-rc4, not 6.1", "/nonexistent"] {
            assert!(said.contains(what), "{said}");
        }
        assert!(
            context
                .cache
                .entry("source", "6.1")
                .record::<Unpacked>()
                .is_none()
        );
    }

    #[test]
    fn a_tag_is_taken_only_if_it_is_of_the_commit() {
        let directory = tempfile::tempdir().unwrap();
        let context = context(directory.path());
        let tree = tree();
        let git = |arguments: &[&str]| {
            let identity = ["-c", "user.name=x", "-c", "user.email=x@x.example"];
            let mut command = Command::new("git");
            command
                .args(identity)
                .args(arguments)
                .current_dir(tree.path());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message=x"]);
        git(&["tag", "v6.13"]);
        let commit = git(&["rev-parse", "HEAD"]);
        let source = |commit: &str| {
            let path = tree.path().display();
            let source = format!("{{ git = \"{path}\", tag = \"v6.13\", commit = \"{commit}\" }}");
            Source::of_recipe(&context, &recipe("6.13", &source))
        };
        assert!(source(&"1".repeat(40)).is_err());
        assert_eq!(source(&commit).unwrap().version, "6.13.0-rc4");
    }
}
