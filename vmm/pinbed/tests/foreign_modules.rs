// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A host with modules of another QEMU, as Debian's own packages install them: pinbed's private copy neither looks at them nor fails over
//! them. The modules are there in a mount namespace only.
//!
//! It provides what it needs as `pinbed run` does, so the first time takes as long as its.

mod common;

use std::fs;
use std::process::{Command, Output};

use common::said;

/// Where Debian's QEMU is configured to have its modules.
const DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";
/// Modules that Debian's QEMU asks for and that `qemu-system-x86` does not bring: those of qemu-system-gui,
/// qemu-system-modules-opengl, qemu-system-modules-spice and qemu-block-extra.
const MODULES: [&str; 16] = [
    "audio-jack",
    "audio-pa",
    "audio-pipewire",
    "audio-sdl",
    "audio-spice",
    "block-curl",
    "block-iscsi",
    "chardev-spice",
    "hw-display-qxl",
    "hw-display-virtio-gpu-gl",
    "hw-display-virtio-gpu-pci-gl",
    "hw-display-virtio-vga-gl",
    "ui-gtk",
    "ui-opengl",
    "ui-spice-app",
    "ui-spice-core",
];
/// Whoever loads it leaves a file. It lacks the stamp of QEMU's build, as a module of another build does.
const MODULE: &str = "#include <fcntl.h>\n\
    __attribute__((constructor)) static void loaded(void) { open(MARK, O_CREAT | O_WRONLY, 0600); }\n";

/// Runs a script with the modules in place and without a QEMU of the host's. `$PINBED` is the program.
fn with_foreign_modules(script: &str) -> (Output, bool) {
    let directory = tempfile::tempdir().unwrap();
    let (source, modules) = (directory.path().join("m.c"), directory.path().join("lib"));
    let mark = directory.path().join("loaded");
    fs::write(&source, MODULE).unwrap();
    fs::create_dir_all(modules.join("qemu")).unwrap();
    let module = directory.path().join("m.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&module, &source])
        .arg(format!("-DMARK=\"{}\"", mark.display()))
        .status()
        .unwrap();
    assert!(compiled.success());
    for name in MODULES {
        fs::copy(&module, modules.join(format!("qemu/{name}.so"))).unwrap();
    }
    let mount = format!(
        "set -e; mount -t overlay overlay -o lowerdir={}:{DIRECTORY} {DIRECTORY}\n\
         for qemu in $(type -ap qemu-system-x86_64); do mount --bind /bin/false $qemu; done\n",
        modules.display()
    );
    // The superuser of a namespace of one's own may mount as well.
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .args(["--mount", "bash", "-c", &(mount + script)])
        .env("PINBED", env!("CARGO_BIN_EXE_pinbed"))
        .output()
        .unwrap();
    (output, mark.exists())
}

#[test]
fn a_run_loads_no_module_of_another_qemu() {
    let (output, loaded) =
        with_foreign_modules("exec \"$PINBED\" run --accel tcg userptr::malloc_is_decoder_input");
    assert!(output.status.success(), "{}", said(&output));
    assert!(!loaded, "a foreign module was loaded:\n{}", said(&output));
}

/// Not what a run asks, but it makes QEMU load every module that it can find.
#[test]
fn the_private_copy_finds_its_own_modules_only() {
    let (output, loaded) = with_foreign_modules(
        "command=$(\"$PINBED\" setup --accel tcg | sed -n 's/^QEMU[^(]*(\\(.*\\))$/\\1/p')\n\
         eval \"exec $command -device help\"",
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("vhost-user-test-device-pci"));
    assert!(!loaded, "a foreign module was loaded:\n{}", said(&output));
}
