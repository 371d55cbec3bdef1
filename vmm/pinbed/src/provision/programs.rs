// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device and the guest's programs: built by cargo, which knows when there is nothing to do. The tests' program lists its tests.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pinbed_abi::report::TestInfo;
use walkdir::WalkDir;

use crate::provision::cache::Fingerprint;
use crate::provision::child::{Event, Run};
use crate::provision::{self, answers};

/// The one target that they are built for. Named even where it is the host's, so that RUSTFLAGS stay off build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// For programs that run without libraries beside them.
const RUSTFLAGS: &str = include_str!("../../../../images/rustflags");

/// The device and the guest's programs, statically linked.
#[derive(Debug)]
pub struct Programs {
    /// The device, for the host.
    pub device: PathBuf,
    /// PID 1.
    pub init: PathBuf,
    /// The tests.
    pub tests: PathBuf,
}

impl Programs {
    fn files(&self) -> [PathBuf; 3] {
        [&self.device, &self.init, &self.tests].map(PathBuf::clone)
    }
}

/// All in the workspace that the programs are made from.
const MADE_FROM: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "images/rustflags",
    "vmm/abi",
    "vmm/engine",
    "vmm/device",
    "images/init",
    "images/guest",
    "images/raw",
];

/// What the command says to the programs and hears from them, as it was when the command was built: places in the checkout, and contents.
const SPOKEN: [(&str, &str); 2] = [
    (
        "vmm/abi/src/report.rs",
        include_str!("../../../abi/src/report.rs"),
    ),
    (
        "vmm/abi/src/wire.rs",
        include_str!("../../../abi/src/wire.rs"),
    ),
];

/// Cargo cannot build the programs. It has said why.
#[derive(Debug, thiserror::Error)]
#[error("the device and the guest's programs cannot be built; cargo's messages above say why")]
pub struct BuildFailed;

/// The device's program: built from the checkout, so that an edit counts; where there is none, the one that is installed beside the
/// command.
///
/// # Errors
/// When there is neither, or those of [`build`].
pub fn device() -> Result<PathBuf> {
    let command = std::env::current_exe().context("cannot find the program that runs")?;
    device_of(provision::workspace(), &command)
}

fn device_of(workspace: Result<PathBuf, provision::Error>, command: &Path) -> Result<PathBuf> {
    let beside = command.with_file_name("pinbed-device");
    match workspace {
        Ok(workspace) => Ok(build(&workspace)?.device),
        Err(_) if beside.exists() => Ok(beside),
        Err(error) => Err(error.into()),
    }
}

/// Builds the programs from the workspace at `workspace`. Cargo's messages go to standard error: its progress the first time, which
/// takes a minute, and later what is wrong.
///
/// # Errors
/// [`BuildFailed`], when cargo cannot be started, or when this program is of another version than the checkout.
pub fn build(workspace: &Path) -> Result<Programs> {
    understood(workspace)?;
    let cache = provision::cache::Cache::of_user()?;
    let target = provision::target(workspace, &cache);
    let built = target.join(TARGET).join("release");
    let programs = Programs {
        device: built.join("pinbed-device"),
        init: built.join("pinbed-init"),
        tests: built.join("pinbed-guest"),
    };
    // Cargo takes 0.1 s to find that there is nothing to do.
    let question = format!("are {} made from {}", built.display(), workspace.display());
    let sources = stamp(MADE_FROM.map(|part| workspace.join(part)));
    let stamps =
        |sources: &str| format!("{sources} {}", stamp(programs.files()).unwrap_or_default());
    if let Some(sources) = &sources
        && answers::recall(&cache, &question, &stamps(sources)) == Some(true)
    {
        return Ok(programs);
    }
    let quiet = programs.tests.exists().then_some("--quiet");
    std::fs::create_dir_all(&target)
        .map_err(|error| provision::Error::io("create", &target, error))?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args([
            "-p",
            "pinbed-device",
            "-p",
            "pinbed-init",
            "-p",
            "pinbed-guest",
        ])
        .args(quiet)
        .args(provision::is_offline().then_some("--offline"))
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        // Where it writes, and so where the disk may be full.
        .current_dir(&target)
        .env("CARGO_TARGET_DIR", &target)
        // Progress of other things is shown at the same time.
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        // Theirs, not the caller's: another set would be another build each time.
        .env("RUSTFLAGS", RUSTFLAGS.trim())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let built = Run::new("building the device and the guest's programs", cargo).ended(|event| {
        if let Event::Line(line) = event {
            say!("{line}");
        }
    });
    let built = match built {
        Err(error @ provision::Error::Spawn { .. }) => {
            return Err(error).context("cannot start cargo, which builds the device and the guest's programs; install Rust, or put cargo into PATH");
        }
        built => built?,
    };
    ensure!(built.status.success(), BuildFailed);
    // Taken before the build: an edit during it counts at the next.
    if let Some(sources) = &sources {
        answers::keep(&cache, &question, &stamps(sources), &true);
    }
    Ok(programs)
}

/// Sees that the programs of a checkout speak as this one does.
fn understood(workspace: &Path) -> Result<(), provision::Error> {
    let differs = |(file, text): &&(&str, &str)| {
        std::fs::read(workspace.join(file)).map_or(true, |found| found != text.as_bytes())
    };
    match SPOKEN.iter().find(differs) {
        None => Ok(()),
        Some((file, _)) => Err(provision::Error::AnotherVersion {
            file,
            workspace: workspace.to_owned(),
        }),
    }
}

/// A stamp of files and of directories with all that is in them. None where one cannot be read: cargo then says what is wrong.
fn stamp(paths: impl IntoIterator<Item = PathBuf>) -> Option<String> {
    let mut all = Fingerprint::default();
    for path in paths {
        for entry in WalkDir::new(path).sort_by_file_name() {
            let entry = entry.ok()?;
            if entry.file_type().is_file() {
                all = all.add("file", answers::stamp_of(entry.path())?);
            }
        }
    }
    Some(all.finish())
}

/// The tests that the guest has. Its program lists them on any Linux.
///
/// # Errors
/// When the program fails, or says something else than a list.
pub fn list(programs: &Programs) -> Result<Vec<TestInfo>> {
    let program = programs.tests.display();
    let output = Command::new(&programs.tests)
        .arg("list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} list failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{program} list does not print a list of tests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_any_file_below() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        std::fs::create_dir(&two).unwrap();
        std::fs::write(&one, "").unwrap();
        let look = || stamp([one.clone(), two.clone()]);
        let before = look().unwrap();
        assert_eq!(look().unwrap(), before);
        std::fs::write(two.join("new.rs"), "").unwrap();
        let with_new = look().unwrap();
        assert_ne!(with_new, before);
        std::fs::write(&one, "longer").unwrap();
        assert_ne!(look().unwrap(), with_new);
        std::fs::remove_file(&one).unwrap();
        assert_eq!(look(), None);
    }

    #[test]
    fn a_checkout_of_another_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in SPOKEN {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        understood(directory.path()).unwrap();
        let (file, text) = SPOKEN[1];
        std::fs::write(directory.path().join(file), format!("{text}\n")).unwrap();
        let error = build(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(file) && error.contains("cargo build"),
            "{error}"
        );
    }

    #[test]
    fn without_a_checkout_the_device_is_the_one_beside_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let command = directory.path().join("pinbed");
        let find = || {
            let built_from = directory.path().join("gone");
            device_of(Err(provision::Error::NoCheckout { built_from }), &command)
        };
        assert!(find().unwrap_err().is::<provision::Error>());
        let device = directory.path().join("pinbed-device");
        std::fs::write(&device, "").unwrap();
        assert_eq!(find().unwrap(), device);
    }
}
