// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packages of any Debian release, as files, without root: apt with a state of its own, on the host's mirrors.
//!
//! apt resolves, downloads and resumes, and checks everything against Debian's signature: each source names Debian's keyring,
//! and the configuration here refuses what is unsigned whatever the host's says. The SHA-256 of each file is checked once more,
//! since a file may lie in the cache for a while before it is unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Fingerprint, Locked};
use super::child::{Event, Run};
use super::sources::Mirrors;
use super::{Context, Error, inventory};
use crate::provision::progress::Unit;

const ETC: &str = "/etc/apt";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the programs come from that are not the host's own.
pub const RELEASE: [&str; 3] = ["trixie", "trixie-security", "trixie-backports"];

/// Packages that others depend on for their installation, or for what is done with them here by the host's own tools. We only
/// unpack, so these and all they need stay away.
const NOT_NEEDED: [&str; 17] = [
    "adduser",
    "binutils",
    "binutils-x86-64-linux-gnu",
    "bzip2",
    "coreutils",
    "debconf",
    "gcc-10",
    "gcc-12",
    "gcc-14",
    "gcc-14-for-host",
    "gcc-15",
    "initramfs-tools",
    "kmod",
    "linux-base",
    "pahole",
    "passwd",
    "xz-utils",
];

/// A private apt for some suites, its package lists up to date. Holds a lock as long as it lives.
pub struct Apt<'a> {
    context: &'a Context,
    work: Locked,
}

/// One package file.
#[derive(Clone, Debug, PartialEq)]
pub struct Deb {
    /// The package's name.
    pub package: String,
    /// Its version, as Debian writes it.
    pub version: String,
    file: String,
    size: u64,
    /// SHA-256 of the file, in hexadecimal, from the signed index.
    pub sha256: String,
}

impl<'a> Apt<'a> {
    /// Fetches the package lists of the suites from the host's mirrors. A "-security" suite is left out if there is no security mirror.
    pub fn open(context: &'a Context, suites: &[String]) -> Result<Self, Error> {
        Apt::open_at(context, suites, Mirrors::of_host(Path::new(ETC)), "")
    }

    /// Fetches them from other mirrors, such as Debian's archive of old releases and its snapshots, whose lists are of any age.
    pub fn open_old(
        context: &'a Context,
        suites: &[String],
        mirror: &str,
        security: Option<&str>,
    ) -> Result<Self, Error> {
        let mirrors = Mirrors {
            archive: vec![mirror.to_owned()],
            security: security.iter().map(|&mirror| mirror.to_owned()).collect(),
        };
        let key = Fingerprint::default().add("mirror", mirror).finish();
        Apt::open_at(context, suites, mirrors, &format!("@{key}"))
    }

    fn open_at(
        context: &'a Context,
        suites: &[String],
        mirrors: Mirrors,
        suffix: &str,
    ) -> Result<Self, Error> {
        let release = suites.first().map_or("", String::as_str);
        super::online(&format!("the package lists of Debian {release}"))?;
        if mirrors.archive.is_empty() {
            return Err(Error::NoMirror {
                etc: ETC.into(),
                release: release.to_owned(),
            });
        }
        if !Path::new(KEYRING).exists() {
            return Err(Error::NoKeyring {
                path: KEYRING.into(),
            });
        }
        let work = context
            .cache
            .entry("apt", &(suites.join("+") + suffix))
            .lock(&context.progress)?;
        let apt = Apt { context, work };
        let mut configuration = apt.configuration();
        if !suffix.is_empty() {
            configuration += "Acquire::Check-Valid-Until \"false\";\n";
        }
        apt.write("apt.conf", &configuration)?;
        apt.write("status", &installed(&NOT_NEEDED))?;
        for dir in [
            "state/lists/partial",
            "cache/archives/partial",
            "empty/partial",
        ] {
            super::cache::create_dir(&apt.path(dir))?;
        }
        // More than one when it is not sure which is Debian's; a foreign one fails the signature check.
        let mut failure = Vec::new();
        for archive in &mirrors.archive {
            apt.write(
                "sources.list",
                &source_lines(suites, archive, mirrors.security.first()),
            )?;
            match apt.update(release) {
                Ok(()) => return Ok(apt),
                Err(Error::Command { lines, .. }) => failure.extend(lines),
                Err(other) => return Err(other),
            }
        }
        let mirrors = mirrors.archive.join(", ");
        if let Some(suite) = suites.iter().find(|suite| lacks_suite(&failure, suite)) {
            return Err(Error::NoSuite {
                suite: suite.clone(),
                mirrors,
            });
        }
        Err(Error::Mirror {
            mirrors,
            lines: failure,
        })
    }

    /// The package that would be installed from the suites, without those it depends on.
    pub fn package(&self, name: &str) -> Result<Deb, Error> {
        let mut found = self.describe(&[name.to_owned()])?;
        found.pop().ok_or_else(|| self.unknown(name))
    }

    /// The names of all packages that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut command = Command::new("apt-cache");
        command
            .arg("--config-file")
            .arg(self.path("apt.conf"))
            .args(["pkgnames", prefix])
            .current_dir(self.work.dir());
        let mut names = Vec::new();
        Run::new("the search for packages", command)
            .errors(complaint)
            .checked(|event| {
                if let Event::Line(line) = event {
                    names.push(line.trim().to_owned());
                }
            })?;
        Ok(names)
    }

    /// The packages and all that they need to run, none taken as installed, the newest that `suite` allows.
    pub fn closure(&self, packages: &[&str], suite: &str) -> Result<Vec<Deb>, Error> {
        let mut command = self.apt_get(&[
            "install",
            "--print-uris",
            "--yes",
            "--target-release",
            suite,
        ]);
        // With an archive directory that is empty, what is already downloaded is listed too.
        command
            .arg("-o")
            .arg(format!(
                "Dir::Cache::archives={}",
                self.path("empty").display()
            ))
            .args(packages);
        let lines = self.uris("the search for packages", command)?;
        let exact: Vec<String> = lines
            .iter()
            .map(|deb| format!("{}={}", deb.package, deb.version))
            .collect();
        self.describe(&exact)
    }

    /// Downloads what is not here yet, goes on with what is here in part, and checks it all.
    pub fn download(&self, what: &str, debs: &[Deb]) -> Result<Vec<PathBuf>, Error> {
        let archives = self.path("cache/archives");
        let paths: Vec<PathBuf> = debs.iter().map(|deb| archives.join(&deb.file)).collect();
        // apt would download again what is whole.
        let mut wanted = Vec::new();
        for (deb, path) in debs.iter().zip(&paths) {
            if !path.exists() || difference(deb, path)?.is_some() {
                wanted.push((deb, path));
            }
        }
        if wanted.is_empty() {
            return Ok(paths);
        }
        let total: u64 = wanted.iter().map(|(deb, _)| deb.size).sum();
        // The files, and as much again for the unpacking that follows.
        self.context.cache.require_free(2 * total)?;
        let mut task =
            self.context
                .progress
                .start(format!("downloading {what}"), Unit::Bytes, Some(total));
        // Not `apt-get download`: that begins again with a file that is there in part.
        let mut command = self.apt_get(&["install", "--yes", "--download-only"]);
        let exact = wanted
            .iter()
            .map(|(deb, _)| format!("{}={}", deb.package, deb.version));
        command.args(exact);
        let result = Run::new("the download", command)
            .errors(complaint)
            .checked(|_| {
                let partial = |deb: &Deb| archives.join("partial").join(&deb.file);
                let sizes = wanted.iter().filter_map(|(deb, path)| {
                    let found = path.metadata().or_else(|_| partial(deb).metadata());
                    Some(found.ok()?.len())
                });
                task.set(sizes.sum());
            });
        match result {
            Err(Error::Command { lines, .. }) => {
                return Err(Error::Download {
                    what: what.to_owned(),
                    lines,
                });
            }
            other => other?,
        }
        for (deb, path) in wanted {
            check(deb, path)?;
        }
        task.finish(&format!(
            "downloaded {what}, {} MiB",
            total.div_ceil(1 << 20)
        ));
        Ok(paths)
    }

    /// Fetches packages, the newest that `suite` allows, and all that they need to run, and unpacks them below a directory that is empty.
    /// Says what they were: name and version.
    pub fn fetch(
        &self,
        what: &str,
        packages: &[&str],
        suite: &str,
        tree: &Path,
    ) -> Result<Vec<String>, Error> {
        let debs = self.closure(packages, suite)?;
        let files = self.download(what, &debs)?;
        let mut task = self.context.progress.start(
            format!("unpacking {what}"),
            Unit::Count("packages"),
            Some(files.len() as u64),
        );
        for file in &files {
            unpack(file, tree, |event| {
                if let Event::Tick = event {
                    task.tick();
                }
            })?;
            task.inc();
        }
        task.finish(&format!("unpacked {what}"));
        for file in &files {
            fs::remove_file(file).map_err(|e| Error::io("delete", file, e))?;
        }
        Ok(debs
            .into_iter()
            .map(|deb| format!("{} {}", deb.package, deb.version))
            .collect())
    }

    fn update(&self, release: &str) -> Result<(), Error> {
        let mut task = self.context.progress.start(
            format!("reading the package lists of Debian {release}"),
            Unit::Count("lists"),
            None,
        );
        Run::new("apt-get update", self.apt_get(&["update"]))
            .errors(complaint)
            .checked(|_| task.tick())?;
        task.finish(&format!("read the package lists of Debian {release}"));
        Ok(())
    }

    fn describe(&self, packages: &[String]) -> Result<Vec<Deb>, Error> {
        let mut command = self.apt_get(&["download", "--print-uris"]);
        // In an empty directory, for the same reason as above.
        command.current_dir(self.path("empty")).args(packages);
        self.uris("the search for packages", command)
    }

    fn uris(&self, what: &str, command: Command) -> Result<Vec<Deb>, Error> {
        let mut debs = Vec::new();
        Run::new(what, command).errors(complaint).checked(|event| {
            if let Event::Line(line) = event {
                debs.extend(uri_line(line));
            }
        })?;
        Ok(debs)
    }

    fn unknown(&self, package: &str) -> Error {
        let lines = vec![format!("{package} is in none of the suites")];
        Error::Command {
            what: "the search for packages".to_owned(),
            status: "no match".to_owned(),
            lines,
            log: None,
        }
    }

    fn apt_get(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command
            .arg("--config-file")
            .arg(self.path("apt.conf"))
            .args(arguments)
            .current_dir(self.work.dir());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.dir().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.path(name);
        fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
    }

    // Read after the host's configuration, which keeps what it says of proxies and certificates.
    fn configuration(&self) -> String {
        let dir = self.work.dir().display();
        format!(
            r#"#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Dir::Cache;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "{dir}/state";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"#
        )
    }
}

fn source_lines(suites: &[String], archive: &str, security: Option<&String>) -> String {
    let mut lines = String::new();
    for suite in suites {
        let mirror = match security {
            _ if !suite.ends_with("-security") => archive,
            Some(mirror) => mirror,
            None => continue,
        };
        lines.push_str(&format!(
            "deb [signed-by={KEYRING} target=Packages] {mirror} {suite} main\n"
        ));
    }
    lines
}

/// A dpkg status file in which these packages are installed, at a version above any other.
fn installed(packages: &[&str]) -> String {
    let stanza = |name: &&str| {
        format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: all\nMulti-Arch: foreign\nVersion: 999\n\n"
        )
    };
    packages.iter().map(stanza).collect()
}

/// `'URI' FILE SIZE HASH`, as `apt-get --print-uris` writes it.
fn uri_line(line: &str) -> Option<Deb> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    let (file, size, hash) = (
        words.next()?.to_owned(),
        words.next()?.parse().ok()?,
        words.next().unwrap_or_default(),
    );
    let mut parts = file.split('_');
    let (package, version) = (parts.next()?.to_owned(), parts.next()?.replace("%3a", ":"));
    let sha256 = hash.strip_prefix("SHA256:").unwrap_or_default().to_owned();
    Some(Deb {
        package,
        version,
        file,
        size,
        sha256,
    })
}

fn complaint(line: &str) -> bool {
    line.starts_with("E: ")
}

/// Whether apt complains that a mirror answers and does not have the suite.
fn lacks_suite(lines: &[String], suite: &str) -> bool {
    lines
        .iter()
        .any(|line| line.contains(&format!(" {suite} Release' does not have a Release file")))
}

/// Deletes a file that is not the package it should be.
fn check(deb: &Deb, path: &Path) -> Result<(), Error> {
    let Some(why) = difference(deb, path)? else {
        return Ok(());
    };
    fs::remove_file(path).map_err(|e| Error::io("delete", path, e))?;
    Err(Error::Corrupt {
        file: path.to_owned(),
        why,
    })
}

/// What keeps a file from being the package that the index tells of.
fn difference(deb: &Deb, path: &Path) -> Result<Option<String>, Error> {
    let read = |e| Error::io("read", path, e);
    let size = path.metadata().map_err(read)?.len();
    if size != deb.size {
        return Ok(Some(format!("{size} bytes instead of {}", deb.size)));
    }
    let (_, sum) = inventory::sum(path).map_err(read)?;
    Ok((sum != deb.sha256).then(|| "its SHA-256 differs".to_owned()))
}

/// Fetches packages of the release that the host's other packages come from, the newest that `suite` allows, and all that they need to run,
/// and unpacks them below a directory that is empty. Says what they were.
pub fn fetch(
    context: &Context,
    what: &str,
    packages: &[&str],
    suite: &str,
    tree: &Path,
) -> Result<Vec<String>, Error> {
    Apt::open(context, &RELEASE.map(str::to_owned))?.fetch(what, packages, suite, tree)
}

/// Unpacks a package's files below a directory.
pub fn unpack(deb: &Path, into: &Path, on_event: impl FnMut(Event<'_>)) -> Result<(), Error> {
    let mut command = Command::new("dpkg-deb");
    command
        .arg("--extract")
        .arg(deb)
        .arg(into)
        .current_dir(into);
    Run::new("dpkg-deb", command).checked(on_event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_uris_lines_are_read() {
        let line = "'http://m.example/pool/main/q/qemu/qemu-system-x86_11.1.3%2bds-1_amd64.deb' \
                    qemu-system-x86_1%3a11.1.3+ds-1_amd64.deb 10377056 SHA256:00ff";
        let deb = uri_line(line).unwrap();
        assert_eq!(
            (deb.package.as_str(), deb.version.as_str()),
            ("qemu-system-x86", "1:11.1.3+ds-1")
        );
        assert_eq!((deb.size, deb.sha256.as_str()), (10_377_056, "00ff"));
        assert_eq!(uri_line("Reading package lists..."), None);
    }

    #[test]
    fn a_suite_that_is_not_there_is_told_from_a_mirror_that_is_not() {
        let lacks = |line: &str| lacks_suite(&[line.to_owned()], "trixy");
        assert!(lacks(
            "E: The repository 'http://m.example/debian trixy Release' does not have a Release file."
        ));
        assert!(!lacks(
            "E: The repository 'http://m.example/debian trixy-security Release' does not have a Release file."
        ));
        assert!(!lacks(
            "E: Failed to fetch http://m.example/debian/dists/trixy/InRelease  Temporary failure resolving 'm.example'"
        ));
    }

    #[test]
    fn security_suites_come_from_the_security_mirror_or_not_at_all() {
        let suites = ["trixie".to_owned(), "trixie-security".to_owned()];
        let both = source_lines(
            &suites,
            "http://a.example/debian",
            Some(&"http://s.example/sec".to_owned()),
        );
        assert_eq!(both.lines().count(), 2);
        assert!(
            both.contains("http://s.example/sec trixie-security main"),
            "{both}"
        );
        assert_eq!(
            source_lines(&suites, "http://a.example/debian", None)
                .lines()
                .count(),
            1
        );
    }

    #[test]
    fn a_file_that_is_not_what_the_index_says_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.deb");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let deb = Deb {
            package: "x".into(),
            version: "1".into(),
            file: "x.deb".into(),
            size: 3,
            sha256,
        };
        fs::write(&path, "abc").unwrap();
        check(&deb, &path).unwrap();
        for wrong in ["ab", "abd"] {
            fs::write(&path, wrong).unwrap();
            assert!(
                matches!(check(&deb, &path), Err(Error::Corrupt { .. })),
                "{wrong}"
            );
            assert!(!path.exists());
        }
    }
}
