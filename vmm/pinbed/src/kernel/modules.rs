// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A kernel's own modules that the guest needs: found by name, with all that they depend on, in the order in which they load.
//!
//! Each module names what it depends on itself (its section .modinfo), so no modules.dep is needed, which depmod makes only where a
//! kernel is installed.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSection};
use pinbed_abi::report::NOT_LOADED;
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::{Config, Kernel};
use crate::provision::cache::Fingerprint;
use crate::provision::inventory::Check;
use crate::provision::{Context, Error};

/// A module that tests or the harness use, besides those that the driver depends on.
struct Use {
    /// The symbol that makes it: a module is looked for where that is "m".
    symbol: &'static str,
    /// Its name.
    module: &'static str,
    /// What it is loaded with.
    parameters: &'static str,
}

const fn module(symbol: &'static str, module: &'static str) -> Use {
    Use {
        symbol,
        module,
        parameters: "",
    }
}

/// What makes CRC32C, in some kernels a module of this name.
const CRC32C: &str = "CRYPTO_CRC32C";

/// The first two are what the guest reports through.
const USED: [Use; 15] = [
    module("VIRTIO_PCI", "virtio_pci"),
    module("VIRTIO_CONSOLE", "virtio_console"),
    module("UDMABUF", "udmabuf"),
    module("DMABUF_HEAPS_SYSTEM", "system_heap"),
    module("DMABUF_HEAPS_CMA", "cma_heap"),
    module("DRM_VGEM", "vgem"),
    // ext4 asks for it by an alias of the crypto API, which would take a modprobe. Newer kernels have it in their library.
    module(CRC32C, "crc32c_generic"),
    module("EXT4_FS", "ext4"),
    Use {
        symbol: "BLK_DEV_RAM",
        module: "brd",
        parameters: "rd_nr=2 rd_size=32768",
    },
    module("BLK_DEV_LOOP", "loop"),
    module("BLK_DEV_PMEM", "nd_pmem"),
    module("X86_PMEM_LEGACY", "nd_e820"),
    module("HWPOISON_INJECT", "hwpoison_inject"),
    module("TEE", "tee"),
    module("UIO_PCI_GENERIC", "uio_pci_generic"),
];

/// The modules that only some guests need, which ask for them by the symbol: `pinbed shell`, and environments.
const ASKED_FOR: [Use; 14] = [
    module("NET_9P_VIRTIO", "9pnet_virtio"),
    module("9P_FS", "9p"),
    module("OVERLAY_FS", "overlay"),
    module("VIRTIO_BLK", "virtio_blk"),
    module("VIRTIO_NET", "virtio_net"),
    module("DUMMY", "dummy"),
    module("INFINIBAND_USER_ACCESS", "ib_uverbs"),
    // rxe asks for it by an alias of the crypto API.
    module("CRYPTO_CRC32", "crc32_generic"),
    module("RDMA_RXE", "rdma_rxe"),
    module("IOMMUFD", "iommufd"),
    module("VFIO_IOMMU_TYPE1", "vfio_iommu_type1"),
    module("VFIO_PCI", "vfio_pci"),
    module("KVM_AMD", "kvm_amd"),
    module("VHOST_VSOCK", "vhost_vsock"),
];

/// A module as it goes into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name, as the kernel writes it.
    pub name: String,
    /// The file, uncompressed and without debug information.
    pub file: PathBuf,
    /// What it is loaded with.
    pub parameters: String,
}

/// How many selections are kept.
const KEPT: usize = 8;

/// Finds in the kernel's modules those that are used and those that `built` (modules just built for it) depend on. Returns them in an
/// order in which they load; none if the kernel has no modules. `asked_for` are symbols of what this guest needs beyond what all do.
///
/// # Errors
/// When one that `built` depend on is not there, is of another release, or cannot be read.
pub fn provide(
    context: &Context,
    kernel: &Kernel,
    built: &[PathBuf],
    asked_for: &[&str],
) -> Result<Vec<Module>, Error> {
    let Some(directory) = &kernel.modules else {
        return Ok(Vec::new());
    };
    let index = Index::new(directory, &kernel.release)?;
    let key = built.iter().try_fold(
        Fingerprint::default()
            .add("release", &kernel.release)
            .add("modules", &index.state)
            .add(
                "used",
                wanted(&kernel.config, asked_for)
                    .map(|used| format!("{} {}\n", used.module, used.parameters))
                    .collect::<String>(),
            ),
        |print, path| {
            let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
            Ok::<_, Error>(print.add("built", bytes))
        },
    )?;
    let entry = context.cache.entry("modules", &key.finish());
    if let Some(modules) = entry.record() {
        return Ok(modules);
    }
    let work = entry.lock(&context.progress)?;
    if let Some(modules) = entry.record() {
        return Ok(modules);
    }
    let mut closure = Closure {
        index: &index,
        release: &kernel.release,
        into: work.fresh("modules")?,
        seen: HashSet::new(),
        modules: Vec::new(),
    };
    let mut depends = Vec::new();
    for path in built {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        closure.seen.insert(normal(&stem(path)));
        depends.extend(Info::of(path, &bytes)?.depends);
    }
    for used in wanted(&kernel.config, asked_for) {
        if index.files.contains_key(used.module) {
            closure.add(used.module, used.parameters)?;
        } else if used.symbol != CRC32C {
            context.progress.say(&format!(
                "{} has no module {}, so tests that need CONFIG_{} cannot run",
                directory.display(),
                used.module,
                used.symbol
            ));
        }
    }
    for name in depends {
        closure.add(&name, "")?;
    }
    let modules = closure.modules;
    work.publish(&modules, Check::EachUse, &[])?;
    context.cache.keep("modules", "", KEPT)?;
    Ok(modules)
}

/// The modules that a guest does not get, since only others ask for them: each as the reason that a test has to skip.
pub fn not_loaded(config: &Config, asked_for: &[&str]) -> Vec<String> {
    ASKED_FOR
        .iter()
        .filter(|used| config.get(used.symbol) == Some("m") && !asked_for.contains(&used.symbol))
        .map(|used| format!("CONFIG_{} {NOT_LOADED}", used.symbol))
        .collect()
}

/// What is used and is a module in this configuration.
fn wanted(config: &Config, asked_for: &[&str]) -> impl Iterator<Item = &'static Use> {
    let asked_for = ASKED_FOR
        .iter()
        .filter(|used| asked_for.contains(&used.symbol));
    USED.iter()
        .chain(asked_for)
        .filter(|used| config.get(used.symbol) == Some("m"))
}

/// All modules of a kernel.
struct Index {
    directory: PathBuf,
    files: HashMap<String, PathBuf>,
    /// Changes when one of them does.
    state: String,
}

impl Index {
    fn new(directory: &Path, release: &str) -> Result<Self, Error> {
        // As `make INSTALL_MOD_PATH=… modules_install` makes it.
        let installed = directory.join("lib/modules").join(release);
        let directory = if installed.is_dir() {
            &installed
        } else {
            directory
        };
        let mut files = HashMap::new();
        let mut print = Fingerprint::default();
        for file in WalkDir::new(directory).sort_by_file_name() {
            let file = file.map_err(|e| Error::io("read", directory, e.into()))?;
            let name = file.file_name().to_string_lossy();
            let is_module = SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
            if is_module && file.file_type().is_file() {
                let metadata = file
                    .metadata()
                    .map_err(|e| Error::io("read", file.path(), e.into()))?;
                print = print.add(
                    &file.path().to_string_lossy(),
                    format!("{} {:?}", metadata.len(), metadata.modified().ok()),
                );
                files.insert(normal(&stem(file.path())), file.into_path());
            }
        }
        Ok(Index {
            directory: directory.to_owned(),
            files,
            state: print.finish(),
        })
    }
}

/// How modules are compressed.
const SUFFIXES: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// A module's name by its file's.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The kernel takes - and _ for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// What is taken so far.
struct Closure<'a> {
    index: &'a Index,
    release: &'a str,
    into: PathBuf,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl Closure<'_> {
    /// Takes a module after those that it depends on.
    fn add(&mut self, name: &str, parameters: &str) -> Result<(), Error> {
        let name = normal(name);
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let unfit = |why: String| Error::Argument {
            argument: self.index.directory.display().to_string(),
            why,
        };
        let from = self.index.files.get(&name).ok_or_else(|| unfit(format!("the module {name} is not in it; give with --modules the directory that `make modules_install` filled")))?;
        let bytes = read(from)?;
        let info = Info::of(from, &bytes)?;
        if info.release != self.release {
            return Err(unfit(format!(
                "its module {name} is of kernel {}, and the image is of {}",
                info.release, self.release
            )));
        }
        let file = self.into.join(format!("{name}.ko"));
        for depends in &info.depends {
            self.add(depends, "")?;
        }
        fs::write(&file, &bytes).map_err(|e| Error::io("write", &file, e))?;
        if info.has_debug {
            strip(&file)?;
        }
        self.modules.push(Module {
            name,
            file,
            parameters: parameters.to_owned(),
        });
        Ok(())
    }
}

/// A module's bytes, uncompressed.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |e| Error::io("read", path, e);
    let program = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => {
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(failed)?;
            flate2::read::GzDecoder::new(file)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
            return Ok(bytes);
        }
        _ => return fs::read(path).map_err(failed),
    };
    let output = Command::new(program)
        .args(["--decompress", "--stdout"])
        .stdin(File::open(path).map_err(failed)?)
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| Error::Spawn {
            program: program.to_owned(),
            source,
        })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        what: format!("unpacking {}", path.display()),
        status: output.status.to_string(),
        lines: String::from_utf8_lossy(&output.stderr)
            .lines()
            .map(str::to_owned)
            .collect(),
        log: None,
    })
}

/// Takes debug information out of a module, which can be many times as large as the rest.
fn strip(file: &Path) -> Result<(), Error> {
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg(file);
    crate::provision::child::Run::new("strip", command).checked(|_| {})
}

/// What a module says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Info {
    /// The modules that it needs, by name: those whose symbols it uses.
    depends: Vec<String>,
    /// The kernel that it is for.
    release: String,
    /// Whether there is something to strip.
    has_debug: bool,
}

impl Info {
    fn of(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        Info::parse(bytes).ok_or_else(|| Error::Argument {
            argument: path.display().to_string(),
            why: "it is not a kernel module for x86-64".to_owned(),
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let elf = ElfFile::<FileHeader64<Endianness>>::parse(bytes).ok()?;
        let section = elf.section_by_name(".modinfo")?;
        let text = String::from_utf8_lossy(section.data().ok()?).into_owned();
        let field = |name: &str| {
            text.split('\0')
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Info {
            depends: field("depends")
                .unwrap_or_default()
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            release: field("vermagic")?.split(' ').next()?.to_owned(),
            has_debug: elf.section_by_name(".debug_info").is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.12.1-test";

    /// Writes a module that says this of itself.
    fn module(dir: &Path, name: &str, release: &str, depends: &str) {
        let source = dir.join("source.c");
        let text = format!(
            "__attribute__((section(\".modinfo\"))) const char a[] = \"license=GPL\\0depends={depends}\\0vermagic={release} SMP\";"
        );
        fs::write(&source, text).unwrap();
        let compiled = Command::new("gcc")
            .args(["-c", "-o"])
            .arg(dir.join(name))
            .arg(&source)
            .status();
        assert!(compiled.unwrap().success());
        fs::remove_file(source).unwrap();
    }

    fn closure(dir: &Path, names: &[&str]) -> Result<Vec<String>, Error> {
        let into = tempfile::tempdir().unwrap();
        let index = Index::new(dir, RELEASE)?;
        let mut closure = Closure {
            index: &index,
            release: RELEASE,
            into: into.path().to_owned(),
            seen: HashSet::new(),
            modules: Vec::new(),
        };
        for name in names {
            closure.add(name, "")?;
        }
        for module in &closure.modules {
            assert!(fs::read(&module.file).unwrap().starts_with(b"\x7fELF"));
        }
        Ok(closure
            .modules
            .into_iter()
            .map(|module| module.name)
            .collect())
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_uncompressed() {
        let dir = tempfile::tempdir().unwrap();
        module(dir.path(), "top-one.ko", RELEASE, "mid_one,low");
        module(dir.path(), "mid-one.ko", RELEASE, "low");
        module(dir.path(), "low.ko", RELEASE, "");
        module(dir.path(), "unused.ko", RELEASE, "");
        let packed = Command::new("xz").arg(dir.path().join("low.ko")).status();
        assert!(packed.unwrap().success());
        let order = closure(dir.path(), &["top-one", "low"]).unwrap();
        assert_eq!(order, ["low", "mid_one", "top_one"]);
    }

    #[test]
    fn a_module_that_is_missing_foreign_or_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        module(dir.path(), "top.ko", RELEASE, "gone");
        module(dir.path(), "old.ko", "6.11.0", "");
        fs::write(dir.path().join("text.ko"), "text").unwrap();
        fs::write(dir.path().join("cut.ko.xz"), "\u{fd}7zXZ").unwrap();
        for (name, why) in [
            ("top", "the module gone is not in it"),
            (
                "old",
                "its module old is of kernel 6.11.0, and the image is of 6.12.1-test",
            ),
            ("text", "text.ko: it is not a kernel module"),
            ("cut", "cut.ko.xz failed"),
        ] {
            let error = closure(dir.path(), &[name]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_what_the_configuration_makes_a_module_is_looked_for() {
        let config = Config::parse(
            "CONFIG_EXT4_FS=m\nCONFIG_VIRTIO_PCI=y\nCONFIG_BLK_DEV_RAM=m\nCONFIG_9P_FS=m\n",
        );
        let names = |asked_for| -> Vec<_> {
            let used = wanted(&config, asked_for);
            used.map(|used| used.module).collect()
        };
        assert_eq!(names(&[]), ["ext4", "brd"]);
        assert_eq!(names(&["9P_FS", "OVERLAY_FS"]), ["ext4", "brd", "9p"]);
        assert_eq!(
            not_loaded(&config, &[]),
            ["CONFIG_9P_FS is a module that is not loaded"]
        );
        assert!(not_loaded(&config, &["9P_FS"]).is_empty());
    }

    #[test]
    fn names_of_modules_and_files_agree() {
        for name in ["a-b.ko", "a_b.ko.xz", "a-b.ko.zst", "a_b.ko.gz"] {
            assert_eq!(normal(&stem(&Path::new("/x").join(name))), "a_b");
        }
    }
}
