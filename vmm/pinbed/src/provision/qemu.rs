// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A QEMU that has the generic vhost-user device: the one asked for, the host's, or a private copy out of Debian.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::child::{Event, Run};
use super::inventory::Check;
use super::{Context, Error, answers, apt};
use crate::interrupt;

/// The device. QEMU has it under this name, for users to create, from 10.2 on.
pub const DEVICE: &str = "vhost-user-test-device-pci";
const NEEDED: Version = Version {
    major: 10,
    minor: 2,
    patch: 0,
};
const PROGRAM: &str = "qemu-system-x86_64";
/// Where Debian has libraries, below usr.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Has QEMU refuse itself system calls that a guest which broke out of it would want: no program is executed, no rights are gained.
const SANDBOX: [&str; 2] = [
    "-sandbox",
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
];

/// Where a private copy comes from.
const SUITE: &str = "trixie-backports";
const PACKAGES: [&str; 1] = ["qemu-system-x86"];
/// How long it may take to say what it is. It takes a tenth of a second, and on a busy host seconds.
const ANSWER: Duration = Duration::from_secs(60);
/// The space that the download and the unpacked files take.
const SPACE: u64 = 300 << 20;

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Out of what `--version` prints: "QEMU emulator version 11.1.3 (Debian …)".
    fn parse(text: &str) -> Option<Self> {
        let word = text
            .split_once("version ")?
            .1
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .next()?;
        let mut numbers = word.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Version {
            major: next()?,
            minor: next()?,
            patch: next().unwrap_or(0),
        })
    }
}

/// A QEMU that will do.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// What to start.
    pub program: PathBuf,
    /// Arguments that come before any other.
    pub args_prefix: Vec<OsString>,
    /// Variables to set.
    pub env: Vec<(OsString, OsString)>,
    /// Its version.
    pub version: Version,
    /// Whether it can confine itself.
    sandbox: bool,
}

impl Qemu {
    /// The command to add arguments to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args_prefix)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.sandbox {
            command.args(SANDBOX);
        }
        command
    }

    /// The one that a run would take without fetching anything, and where it is from; or why there is none.
    pub fn present(cache: &Cache) -> Result<(Self, &'static str), String> {
        let host = which::which(PROGRAM).map_err(|_| format!("no {PROGRAM} on PATH"));
        let host = host.and_then(|program| {
            let probed = Candidate::plain(program).probe(cache);
            probed.map_err(|error| error.to_string())
        });
        let why = match host {
            Ok(qemu) => return Ok((qemu, "the host's")),
            Err(why) => why,
        };
        let private = cache.entry("qemu", SUITE);
        if private.record::<Private>().is_none() {
            return Err(why);
        }
        Candidate::unpacked(&private.dir().join("tree"))
            .and_then(|candidate| candidate.probe(cache))
            .map(|qemu| (qemu, "a private copy"))
            .map_err(|error| error.to_string())
    }

    /// The one at `asked` and no other; else the host's if it will do; else a private copy, fetched when there is none yet.
    pub fn provide(context: &Context, asked: Option<&Path>) -> Result<Self, Error> {
        let qemu = Self::find(context, asked)?;
        if !qemu.sandbox {
            context.progress.say(
                "QEMU goes on without -sandbox: it was built without seccomp, or the kernel has no CONFIG_SECCOMP_FILTER",
            );
        }
        Ok(qemu)
    }

    fn find(context: &Context, asked: Option<&Path>) -> Result<Self, Error> {
        let cache = &context.cache;
        if let Some(program) = asked {
            return Candidate::plain(program.to_owned()).probe(cache);
        }
        let private = cache.entry("qemu", SUITE);
        let host = which::which(PROGRAM).ok();
        if let Some(program) = &host {
            match Candidate::plain(program.clone()).probe(cache) {
                Ok(qemu) => return Ok(qemu),
                // Said once, when it costs a download; not on every run.
                Err(why) if private.record::<Private>().is_none() => {
                    context.progress.say(&format!("{why}"))
                }
                Err(_) => {}
            }
        }
        if private.record::<Private>().is_none() {
            let work = private.lock(&context.progress)?;
            if private.record::<Private>().is_none() {
                if host.is_none() {
                    context.progress.say(&format!(
                        "no {PROGRAM} on PATH; fetching one out of Debian {SUITE}"
                    ));
                }
                let tree = work.fresh("tree")?;
                context.cache.require_free(SPACE)?;
                let packages = apt::fetch(context, "QEMU", &PACKAGES, SUITE, &tree)?;
                let version = Candidate::unpacked(&tree)?.probe(cache)?.version;
                work.publish(&Private { version, packages }, Check::EachUse, &[])?;
            }
        }
        Candidate::unpacked(&private.dir().join("tree"))?.probe(cache)
    }
}

/// The record of a private copy.
#[derive(Serialize, Deserialize)]
struct Private {
    version: Version,
    packages: Vec<String>,
}

/// What a QEMU says of itself.
#[derive(Serialize, Deserialize)]
struct Probed {
    version: Version,
    /// Whether it has [`DEVICE`].
    device: bool,
    /// Whether it takes [`SANDBOX`], on this host's kernel.
    sandbox: bool,
}

/// A QEMU that is yet to be looked at.
struct Candidate {
    program: PathBuf,
    args_prefix: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// What to call it in a message.
    name: PathBuf,
}

impl Candidate {
    fn plain(program: PathBuf) -> Self {
        Candidate {
            name: program.clone(),
            program,
            args_prefix: Vec::new(),
            env: Vec::new(),
        }
    }

    // Started by its own dynamic loader, with its own libraries: the host's C library may be older than it needs.
    //
    // QEMU asks for modules and data in the directories that it was configured with, which are the host's. QEMU_MODULE_DIR is only one more
    // to ask first. A module that the copy lacks would be the host's, and QEMU exits over one of another build. But where there is a
    // directory qemu-bundle beside the program (/proc/self/exe, here the loader), all of those directories are below it: get_relocated_path()
    // in QEMU's util/cutils.c. So the copy is its own root.
    fn unpacked(tree: &Path) -> Result<Self, Error> {
        let usr = tree.join("usr");
        let libraries = usr.join(LIBRARIES);
        let bundle = libraries.join("qemu-bundle");
        let link = bundle.join("usr");
        if !link.exists() {
            let made = fs::create_dir_all(&bundle).and_then(|()| symlink("../../../../usr", &link));
            made.map_err(|e| Error::io("create", &link, e))?;
        }
        let name = usr.join("bin").join(PROGRAM);
        Ok(Candidate {
            program: libraries.join("ld-linux-x86-64.so.2"),
            args_prefix: vec![
                "--library-path".into(),
                libraries.clone().into(),
                name.clone().into(),
            ],
            // Not what the caller's environment may name.
            env: vec![("QEMU_MODULE_DIR".into(), libraries.join("qemu").into())],
            name,
        })
    }

    fn probe(self, cache: &Cache) -> Result<Qemu, Error> {
        let probed = answers::of_program(cache, "is this a QEMU", &self.name, || self.look());
        let Probed {
            version,
            device,
            sandbox,
        } = probed.map_err(|why| match interrupt::requested() {
            true => Error::Interrupted,
            false => Error::QemuNotFound {
                program: self.name.clone(),
                why,
            },
        })?;
        if version < NEEDED {
            return Err(Error::QemuTooOld {
                program: self.name,
                found: version.to_string(),
                needed: NEEDED.to_string(),
            });
        }
        if !device {
            return Err(Error::QemuLacksDevice {
                program: self.name,
                version: version.to_string(),
                device: DEVICE,
            });
        }
        Ok(Qemu {
            program: self.program,
            args_prefix: self.args_prefix,
            env: self.env,
            version,
            sandbox,
        })
    }

    /// Asks for the one device: a list of all would load every module there is, and fail where one of them does.
    fn look(&self) -> Result<Probed, String> {
        let (status, text) = self.ask(&["--version"])?;
        let version = Version::parse(&text).filter(|_| status.success());
        let version = version.ok_or_else(|| {
            let said = text.lines().next().unwrap_or_default();
            format!("--version says {said:?} ({status})")
        })?;
        let help = format!("{DEVICE},help");
        let (status, text) = self.ask(&["-device", &help])?;
        let device = status.success();
        if !device && !text.contains(&format!("'{DEVICE}' not found")) {
            let said = text.lines().last().unwrap_or_default();
            return Err(format!(
                "asked for its device {DEVICE}, it says {said:?} ({status})"
            ));
        }
        // It confines itself before it gives help.
        let [name, value] = SANDBOX;
        let (status, _) = self.ask(&["-device", &help, name, value])?;
        Ok(Probed {
            version,
            device,
            sandbox: device && status.success(),
        })
    }

    /// How it ends with these arguments, and what it says.
    fn ask(&self, arguments: &[&str]) -> Result<(ExitStatus, String), String> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args_prefix)
            .args(arguments)
            .envs(self.env.iter().map(|(n, v)| (n, v)));
        let mut answer = String::new();
        let what = format!("{} {}", self.name.display(), arguments.join(" "));
        let ended = Run::new(&what, command)
            .within(ANSWER)
            .ended(|event| {
                if let Event::Line(line) = event {
                    answer.push_str(line);
                    answer.push('\n');
                }
            })
            .map_err(|e| match e {
                Error::Spawn { source, .. } => source.to_string(),
                other => other.to_string(),
            })?;
        Ok((ended.status, answer))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that answers as a QEMU does that has these devices.
    fn pretend(dir: &Path, version: &str, devices: &str) -> PathBuf {
        let path = dir.join("qemu");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version {version}' && exit\n\
             for device in {devices}; do [ \"$2\" = \"$device,help\" ] && echo \"$device options:\" && exit; done\n\
             echo \"qemu: $1 $2: Device '${{2%,help}}' not found\" >&2; exit 1\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read_and_ordered() {
        let parse = |text| Version::parse(text).unwrap();
        let debian =
            parse("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c)");
        assert_eq!(
            debian,
            Version {
                major: 11,
                minor: 1,
                patch: 3
            }
        );
        assert!(parse("QEMU emulator version 10.2.0") >= NEEDED);
        assert!(parse("QEMU emulator version 10.2") >= NEEDED);
        assert!(parse("QEMU emulator version 10.1.99") < NEEDED);
        assert!(parse("QEMU emulator version 9.10.0") < NEEDED);
        assert_eq!(Version::parse("GNU coreutils"), None);
    }

    #[test]
    fn each_shortcoming_has_its_own_error() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            cache: crate::provision::cache::Cache::at(dir.path().into()),
            progress: crate::provision::progress::Progress::new(),
        };
        let provide = |path: &Path| Qemu::provide(&context, Some(path));
        let good = provide(&pretend(dir.path(), "10.2.1", DEVICE)).unwrap();
        assert_eq!(good.version.to_string(), "10.2.1");
        let arguments = |qemu: &Qemu| format!("{:?}", qemu.command());
        assert!(arguments(&good).contains("-sandbox"));
        let path = pretend(dir.path(), "10.2.2", DEVICE);
        let script = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            script.replace("\n", "\n[ \"$3\" = -sandbox ] && exit 1\n"),
        )
        .unwrap();
        let unconfined = provide(&path).unwrap();
        assert!(!arguments(&unconfined).contains("-sandbox"));
        let old = provide(&pretend(dir.path(), "7.2.22", DEVICE)).unwrap_err();
        assert!(
            matches!(&old, Error::QemuTooOld { found, .. } if found == "7.2.22"),
            "{old}"
        );
        let lacks = provide(&pretend(dir.path(), "11.0.0", "virtio-net-pci")).unwrap_err();
        assert!(matches!(lacks, Error::QemuLacksDevice { .. }), "{lacks}");
        let other = provide(Path::new("/bin/true")).unwrap_err();
        assert!(matches!(other, Error::QemuNotFound { .. }), "{other}");
        let none = provide(Path::new("/nonexistent/qemu")).unwrap_err();
        assert!(matches!(none, Error::QemuNotFound { .. }), "{none}");
    }
}
