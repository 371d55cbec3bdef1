// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `pinbed doctor`: what a run finds on this machine and what it lacks, with a line each to mend it. Fetches and builds nothing.

use anyhow::Result;

use crate::exit::Exit;
use crate::kernel::{self, Manifest};
use crate::machine::accel::{self, Kvm};
use crate::provision::qemu::Qemu;
use crate::provision::sources::Mirrors;
use crate::provision::{Context, is_offline, packages, workspace};
use crate::settings;

/// What is wrong with one thing.
enum State {
    /// Nothing.
    Good(String),
    /// A run can do without, or provides it itself.
    Fair(String),
    /// A run cannot begin.
    Bad(String),
}

use State::{Bad, Fair, Good};

/// Looks at everything, and says what it found.
///
/// # Errors
/// When there is no cache directory.
pub fn doctor() -> Result<Exit> {
    let context = Context::of_user()?;
    let qemu = Qemu::present(&context.cache);
    let states = [
        ("checkout", checkout()),
        ("settings", settings()),
        ("packages", built_with()),
        ("tools", tools()),
        ("Rust", rust()),
        ("cache", cache(&context)),
        ("network", network()),
        ("kernels", kernels(&context)),
        (
            "QEMU",
            match &qemu {
                Ok((qemu, whose)) => Good(format!("{}, {whose}", qemu.version)),
                Err(why) => Fair(format!(
                    "{why}; the first run fetches a private copy out of Debian"
                )),
            },
        ),
        (
            "KVM",
            kvm(&context, qemu.as_ref().map(|(qemu, _)| qemu).ok()),
        ),
    ];
    let mut exit = Exit::Green;
    for (what, state) in states {
        let (mark, text) = match state {
            Good(text) => ("good", text),
            Fair(text) => ("note", text),
            Bad(text) => {
                exit = Exit::Provisioning;
                ("BAD", text)
            }
        };
        println!("{mark:<5} {what:<9} {text}");
    }
    Ok(exit)
}

fn checkout() -> State {
    match workspace() {
        Ok(path) => Good(path.display().to_string()),
        Err(error) => Bad(error.to_string()),
    }
}

fn settings() -> State {
    match settings::summary() {
        Ok(text) => Good(text),
        Err(error) => Bad(error.to_string()),
    }
}

fn built_with() -> State {
    match packages::lacking(packages::needs()) {
        None => Good("all that builds need is installed".to_owned()),
        Some((missing, line)) => Bad(format!("lacks {missing}; {line}")),
    }
}

fn tools() -> State {
    match packages::lacking(packages::EXTRAS) {
        None => Good("all that debugger, tracer and Debian root need is installed".to_owned()),
        Some((missing, line)) => Fair(format!("lacks {missing}; {line}")),
    }
}

fn rust() -> State {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let output = std::process::Command::new("rustc")
        .arg("--version")
        .output();
    let version = output.ok().and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.split(' ').nth(1)?.trim().to_owned())
    });
    let number = |version: &str| -> Vec<u32> {
        let parts = version.split(['.', '-']);
        parts.map_while(|part| part.parse().ok()).collect()
    };
    match version {
        Some(version) if number(&version) >= number(needed) => Good(version),
        Some(version) => Bad(format!(
            "{version} is too old, {needed} is needed; ci/run installs it, and so does rustup"
        )),
        None => Bad(format!(
            "no rustc on PATH, {needed} is needed; ci/run installs it, and so does rustup"
        )),
    }
}

/// The space that the source and the objects of a kernel take.
const SPACE: u64 = 3 << 30;

fn cache(context: &Context) -> State {
    let root = context.cache.root().display();
    match context.cache.require_free(SPACE) {
        Ok(()) => Good(root.to_string()),
        Err(error) => Bad(error.to_string()),
    }
}

fn network() -> State {
    let mirrors = Mirrors::of_host(std::path::Path::new("/etc/apt"));
    match mirrors.archive.first() {
        _ if is_offline() => Fair("--offline: what is not in the cache cannot be had".to_owned()),
        Some(mirror) => Good(format!("Debian's packages come from {mirror}")),
        None => Fair(
            "apt has no Debian mirror: add a line \"deb MIRROR trixie main\" to its sources, or `pinbed cache import`"
                .to_owned(),
        ),
    }
}

fn kernels(context: &Context) -> State {
    let manifest =
        workspace().and_then(|top| Manifest::read(&top.join("guest-kernel-config/kernels.toml")));
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(error) => return Bad(error.to_string()),
    };
    let (here, not): (Vec<_>, Vec<_>) =
        kernel::fetched(context, &manifest).partition(|(_, here)| *here);
    let names = |kernels: &[(&str, bool)]| -> String {
        let names: Vec<_> = kernels.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    };
    match (here.is_empty(), not.is_empty()) {
        (_, true) => Good(format!("the sources of {} are here", names(&here))),
        (true, _) => Fair(format!(
            "{}: `pinbed setup` fetches and builds",
            names(&not)
        )),
        _ => Fair(format!(
            "the sources of {} are here, not those of {}: `pinbed setup --kernel all` fetches and builds them",
            names(&here),
            names(&not)
        )),
    }
}

fn kvm(context: &Context, qemu: Option<&Qemu>) -> State {
    let known = match qemu {
        Some(qemu) => accel::known(qemu, context),
        None => None,
    };
    match known {
        Some(Kvm::Works) => Good("it works, and runs use it".to_owned()),
        Some(Kvm::Fails(why)) => Fair(format!("{why}; runs use QEMU's own emulation")),
        None => Fair("not tried yet; the first run does".to_owned()),
    }
}
