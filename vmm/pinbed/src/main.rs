// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command a person types.

mod exit;
mod kernel;
mod progress;
mod provision;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use exit::Exit;
use provision::qemu::Qemu;
use provision::{Context, Error, interrupt, packages};

#[derive(Parser)]
#[command(version, about = "A testbed for the kernel's long-term pins")]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Get this machine ready: packages, QEMU, a kernel.
    Setup {
        #[command(flatten)]
        kernel: KernelArguments,
        /// The QEMU to use.
        #[arg(long, value_name = "PATH")]
        qemu: Option<PathBuf>,
    },
    /// Provide a kernel and the driver for it.
    Kernel(KernelArguments),
    /// Provide a QEMU.
    Qemu {
        /// The QEMU to use.
        #[arg(long, value_name = "PATH")]
        qemu: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct KernelArguments {
    /// Which kernel of kernels.toml.
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Build this kernel tree instead, out of tree.
    #[arg(long, value_name = "DIR")]
    kernel_src: Option<PathBuf>,
    /// Fragments on top, such as "debug".
    #[arg(long, value_name = "NAME")]
    fragment: Vec<String>,
}

fn main() -> Exit {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => Exit::Green,
        Err(error) => {
            eprintln!("pinbed: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("pinbed: because: {error}");
                cause = error.source();
            }
            error.exit()
        }
    }
}

fn run(what: What) -> Result<(), Error> {
    let context = Context::of_user()?;
    interrupt::install()
        .map_err(|e| Error::io("watch for signals in", Path::new("/proc/self"), e))?;
    match what {
        What::Setup { kernel, qemu } => {
            packages::ensure(&context, &packages::KERNEL)?;
            show_qemu(&context, qemu.as_deref())?;
            show_kernel(&context, &kernel)
        }
        What::Kernel(kernel) => {
            packages::ensure(&context, &packages::KERNEL)?;
            show_kernel(&context, &kernel)
        }
        What::Qemu { qemu } => show_qemu(&context, qemu.as_deref()),
    }
}

fn show_qemu(context: &Context, asked: Option<&Path>) -> Result<(), Error> {
    let qemu = Qemu::provide(context, asked)?;
    println!("QEMU {}: {:?}", qemu.version, qemu.command());
    Ok(())
}

fn show_kernel(context: &Context, arguments: &KernelArguments) -> Result<(), Error> {
    let request = kernel::Request {
        name: arguments.kernel.clone(),
        tree: arguments.kernel_src.clone(),
        fragments: arguments.fragment.clone(),
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kernel-config");
    let kernel = kernel::provide(context, &directory, &request)?;
    println!(
        "kernel {} (by the entry {}, baseline {})",
        kernel.release, kernel.name, kernel.baseline
    );
    for file in [&kernel.image, &kernel.vmlinux, &kernel.config] {
        println!("    {}", file.display());
    }
    let driver = directory.join("driver");
    if driver.join("Kbuild").exists() {
        println!(
            "driver: {}",
            kernel::module(context, &kernel, &driver)?.display()
        );
    }
    Ok(())
}
