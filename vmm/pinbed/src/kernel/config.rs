// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's configuration: what the fragments ask for, and whether the final .config has it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::provision::Error;

/// One symbol and its value; `None` is "is not set".
#[derive(Clone, Debug, PartialEq)]
struct Setting {
    symbol: String,
    value: Option<String>,
}

impl Setting {
    /// A line of a fragment or a .config: a setting, or nothing when it is blank or a comment.
    fn parse(line: &str) -> Result<Option<Self>, ()> {
        let line = line.trim_end();
        let named = |symbol: &str, value: Option<&str>| {
            let good = !symbol.is_empty()
                && symbol
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_');
            let setting = Setting {
                symbol: symbol.to_owned(),
                value: value.map(str::to_owned),
            };
            if good { Ok(Some(setting)) } else { Err(()) }
        };
        if let Some(comment) = line.strip_prefix('#') {
            let symbol = comment
                .strip_prefix(" CONFIG_")
                .and_then(|rest| rest.strip_suffix(" is not set"));
            return symbol.map_or(Ok(None), |symbol| named(symbol, None));
        }
        if line.is_empty() {
            return Ok(None);
        }
        let (symbol, value) = line
            .strip_prefix("CONFIG_")
            .and_then(|rest| rest.split_once('='))
            .ok_or(())?;
        named(symbol, (value != "n").then_some(value))
    }

    fn line(&self) -> String {
        match &self.value {
            Some(value) => format!("CONFIG_{}={value}", self.symbol),
            None => format!("# CONFIG_{} is not set", self.symbol),
        }
    }
}

/// A final .config: each symbol's value, none of those that are off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config(BTreeMap<String, Option<String>>);

impl Config {
    /// Reads a .config.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Ok(Config::parse(&text))
    }

    /// Takes the settings from its lines; others are comments.
    pub fn parse(text: &str) -> Self {
        let settings = text
            .lines()
            .filter_map(|line| Setting::parse(line).ok().flatten());
        Config(
            settings
                .map(|setting| (setting.symbol, setting.value))
                .collect(),
        )
    }

    /// The value of a symbol, without "CONFIG_": "y", "m", a number, a string in quotes; none if it is off or unknown.
    pub fn get(&self, symbol: &str) -> Option<&str> {
        self.0.get(symbol)?.as_deref()
    }

    /// Its lines.
    pub fn text(&self) -> String {
        let settings = self.0.iter().map(|(symbol, value)| Setting {
            symbol: symbol.clone(),
            value: value.clone(),
        });
        settings.map(|setting| setting.line() + "\n").collect()
    }

    /// Whether what a guest gives as a reason, that a symbol is or is not set, is so. Of another reason it is not.
    pub fn confirms(&self, reason: &str) -> bool {
        let said = |end: &str| {
            let symbol = reason.strip_suffix(end)?.rsplit(' ').next()?;
            symbol
                .strip_prefix("CONFIG_")
                .filter(|symbol| !symbol.is_empty())
        };
        match (said(" is not set"), said(" is set")) {
            (Some(symbol), _) => self.get(symbol).is_none(),
            (_, Some(symbol)) => self.has(symbol),
            _ => false,
        }
    }

    /// Looks for what a kernel must have; `mem2mem` is whether v4l2-mem2mem can be built beside the driver, `vmlinux` whether QEMU is to
    /// boot the vmlinux.
    ///
    /// # Errors
    /// When something is missing: all of it is named.
    pub fn check(&self, kernel: &str, mem2mem: bool, vmlinux: bool) -> Result<(), Error> {
        let mut missing: Vec<_> = NEEDED.iter().filter(|symbol| !self.has(symbol)).collect();
        if !mem2mem && !self.has("V4L2_MEM2MEM_DEV") {
            missing.push(&"V4L2_MEM2MEM_DEV");
        }
        if vmlinux && !self.has("PVH") {
            missing.push(&"PVH");
        }
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missing
            .iter()
            .map(|symbol| format!("CONFIG_{symbol}"))
            .collect();
        Err(Error::Argument {
            argument: kernel.to_owned(),
            why: format!(
                "its configuration lacks {}; the fragments base and media in guest-kernel-config/fragments turn that on",
                names.join(", ")
            ),
        })
    }

    /// Whether a symbol is on, built in or as a module.
    pub fn has(&self, symbol: &str) -> bool {
        matches!(self.get(symbol), Some("y" | "m"))
    }
}

/// What a kernel must have for the guest to boot and to report, and for the driver to load.
const NEEDED: [&str; 15] = [
    "64BIT",
    "BINFMT_ELF",
    "BLK_DEV_INITRD",
    "DEVTMPFS",
    "MODULES",
    "PCI",
    "PROC_FS",
    "SERIAL_8250_CONSOLE",
    "SYSFS",
    "VIDEOBUF2_DMA_CONTIG",
    "VIDEOBUF2_DMA_SG",
    "VIDEOBUF2_VMALLOC",
    "VIDEO_DEV",
    "VIRTIO_CONSOLE",
    "VIRTIO_PCI",
];

/// All that the fragments ask for, each symbol once.
#[derive(Debug)]
pub struct Wish {
    /// A whole .config that the settings change; without one, all that they do not name is off.
    base: Option<String>,
    settings: Vec<(Setting, PathBuf)>,
}

impl Wish {
    /// Reads the fragments; a later one wins over an earlier. Each is a name in `directory`, or the path of a file (with a slash in it, or
    /// ending in .config), or a setting itself. The symbols in `lacks` are not asked for. `base` is a whole .config.
    pub fn read(
        directory: &Path,
        names: &[&str],
        lacks: &[String],
        base: Option<&Path>,
    ) -> Result<Self, Error> {
        let base = base.map(read_base).transpose()?;
        let mut wish = Wish {
            base,
            settings: Vec::new(),
        };
        for name in names {
            if name.starts_with("CONFIG_") || name.starts_with("# CONFIG_") {
                wish.add(Path::new("--fragment"), name)?;
                continue;
            }
            let path = match name.contains('/') || name.ends_with(".config") {
                true => PathBuf::from(name),
                false => directory.join(format!("{name}.config")),
            };
            let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound if path.parent() == Some(directory) => unknown(directory, name),
                ErrorKind::NotFound => Error::Argument {
                    argument: format!("--fragment {name}"),
                    why: "there is no such file".to_owned(),
                },
                _ => Error::io("read", &path, e),
            })?;
            wish.add(&path, &text)?;
        }
        wish.settings
            .retain(|(setting, _)| !lacks.contains(&setting.symbol));
        Ok(wish)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        for (i, line) in text.lines().enumerate() {
            let bad = |()| Error::Fragment {
                path: path.to_owned(),
                line: i + 1,
                text: line.to_owned(),
            };
            if let Some(setting) = Setting::parse(line).map_err(bad)? {
                self.settings
                    .retain(|(known, _)| known.symbol != setting.symbol);
                self.settings.push((setting, path.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether there is a whole .config beneath.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Whether debug information is asked for, in whatever form.
    pub fn has_debug_info(&self) -> bool {
        let text = self.text();
        let mut forms = text
            .lines()
            .filter_map(|line| line.strip_prefix("CONFIG_DEBUG_INFO"));
        forms.any(|form| form.ends_with("=y") && !form.starts_with("_NONE="))
    }

    /// Whether a fragment turns a symbol on.
    pub fn asks_for(&self, symbol: &str) -> bool {
        let mut settings = self.settings.iter();
        settings.any(|(setting, _)| setting.symbol == symbol && setting.value.is_some())
    }

    /// The lines: the base, if there is one, and then each symbol once.
    pub fn text(&self) -> String {
        let lines = self
            .settings
            .iter()
            .map(|(setting, _)| setting.line() + "\n");
        self.base.iter().cloned().chain(lines).collect()
    }

    /// What a final .config lacks of it: a line for each, that names the fragment.
    pub fn missing_in(&self, config: &str) -> Vec<String> {
        let settled = config
            .lines()
            .filter_map(|line| Setting::parse(line).ok().flatten());
        let have: HashMap<String, Option<String>> = settled
            .map(|setting| (setting.symbol, setting.value))
            .collect();
        let mut missing = Vec::new();
        for (setting, path) in &self.settings {
            // A symbol that is not in the .config at all is as good as one that is not set.
            let value = have.get(&setting.symbol).cloned().flatten();
            if value != setting.value {
                let file = path
                    .file_name()
                    .unwrap_or(path.as_os_str())
                    .to_string_lossy();
                let got = match value {
                    Some(value) => format!("the kernel makes it {value}"),
                    None if have.contains_key(&setting.symbol) => {
                        "the kernel leaves it off".to_owned()
                    }
                    None => "this kernel lacks it, or what it depends on is off".to_owned(),
                };
                missing.push(format!("    {file}: {}: {got}", setting.line()));
            }
        }
        missing
    }
}

/// A whole .config, which ends in a line's end.
fn read_base(path: &Path) -> Result<String, Error> {
    let unfit = |why: String| Error::Argument {
        argument: format!("--config {}", path.display()),
        why,
    };
    let text = fs::read_to_string(path).map_err(|e| unfit(e.to_string()))?;
    if Config::parse(&text).0.is_empty() {
        return Err(unfit("it is not a .config of a kernel".to_owned()));
    }
    Ok(text + "\n")
}

fn unknown(directory: &Path, name: &str) -> Error {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut known: Vec<String> = files
        .filter_map(|file| {
            Some(
                file.file_name()
                    .to_str()?
                    .strip_suffix(".config")?
                    .to_owned(),
            )
        })
        .collect();
    known.sort();
    Error::UnknownFragment {
        name: name.to_owned(),
        directory: directory.to_owned(),
        known: known.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(fragments: &[(&str, &str)]) -> Wish {
        let mut wish = Wish {
            base: None,
            settings: Vec::new(),
        };
        for (name, text) in fragments {
            wish.add(Path::new(name), text).unwrap();
        }
        wish
    }

    #[test]
    fn a_reason_is_held_against_the_configuration() {
        let config = Config::parse("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_M=m\n");
        for reason in [
            "x is not there: CONFIG_B is not set",
            "x is not there: CONFIG_GONE is not set",
            "x is not there: CONFIG_M is set",
        ] {
            assert!(config.confirms(reason), "{reason}");
        }
        for reason in [
            "x is not there: CONFIG_A is not set",
            "x is not there: CONFIG_M is not set",
            "x is not there: CONFIG_B is set",
            "x is not there; build the kernel with CONFIG_B",
            "CONFIG_ is not set",
            "",
        ] {
            assert!(!config.confirms(reason), "{reason}");
        }
        assert_eq!(Config::parse(&config.text()), config);
    }

    #[test]
    fn a_later_fragment_wins() {
        let wish = wish(&[
            ("a.config", "CONFIG_A=y\nCONFIG_B=m\n"),
            ("b.config", "# CONFIG_A is not set\nCONFIG_C=\"x\"\n"),
        ]);
        assert_eq!(
            wish.text(),
            "CONFIG_B=m\n# CONFIG_A is not set\nCONFIG_C=\"x\"\n"
        );
    }

    #[test]
    fn each_unmet_wish_is_named_with_its_fragment() {
        let wish = wish(&[(
            "a.config",
            "CONFIG_A=y\nCONFIG_B=m\nCONFIG_N=16\n# CONFIG_OFF is not set\nCONFIG_GONE=y\n",
        )]);
        assert!(
            wish.missing_in("CONFIG_A=y\nCONFIG_B=m\nCONFIG_N=16\nCONFIG_GONE=y\n")
                .is_empty()
        );
        let missing =
            wish.missing_in("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_N=17\nCONFIG_OFF=y\n");
        let expected = [
            "    a.config: CONFIG_A=y: the kernel leaves it off",
            "    a.config: CONFIG_B=m: the kernel makes it y",
            "    a.config: CONFIG_N=16: the kernel makes it 17",
            "    a.config: # CONFIG_OFF is not set: the kernel makes it y",
            "    a.config: CONFIG_GONE=y: this kernel lacks it, or what it depends on is off",
        ];
        assert_eq!(missing, expected);
    }

    #[test]
    fn comments_are_ignored_and_nonsense_is_refused() {
        assert_eq!(Setting::parse("# a comment about CONFIG_A"), Ok(None));
        assert_eq!(
            Setting::parse("CONFIG_A=n").unwrap(),
            Setting::parse("# CONFIG_A is not set").unwrap()
        );
        for bad in [
            "A=y",
            "CONFIG_A",
            "CONFIG_=y",
            "CONFIG_A B=y",
            "CONFIG_A =y",
        ] {
            assert_eq!(Setting::parse(bad), Err(()), "{bad}");
        }
    }

    #[test]
    fn fragments_are_names_paths_or_settings_on_a_base() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::write(dir.path().join("a.config"), "CONFIG_A=y\n").unwrap();
        fs::write(&own, "CONFIG_A=m\nCONFIG_O=y\n").unwrap();
        let base = dir.path().join("base");
        fs::write(&base, "CONFIG_BASE=y").unwrap();
        let names = ["a", own.to_str().unwrap(), "CONFIG_C=\"x y\""];
        let wish = Wish::read(dir.path(), &names, &[], Some(&base)).unwrap();
        assert_eq!(
            wish.text(),
            "CONFIG_BASE=y\nCONFIG_A=m\nCONFIG_O=y\nCONFIG_C=\"x y\"\n"
        );
        let missing = wish.missing_in("CONFIG_A=m\nCONFIG_O=y\n");
        assert!(missing[0].contains("--fragment: CONFIG_C"), "{missing:?}");
        let fails = |names: &[&str], base: Option<&Path>| {
            Wish::read(dir.path(), names, &[], base)
                .unwrap_err()
                .to_string()
        };
        assert!(fails(&["CONFIG_C"], None).contains("--fragment:1: not a line"));
        assert!(fails(&["./none.config"], None).contains("./none.config"));
        assert!(fails(&[], Some(&dir.path().join("gone"))).contains("--config"));
        fs::write(&base, "text").unwrap();
        assert!(fails(&[], Some(&base)).contains("not a .config"));
    }

    #[test]
    fn what_a_kernel_lacks_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.config"), "CONFIG_A=y\nCONFIG_B=y\n").unwrap();
        let wish = Wish::read(dir.path(), &["a"], &["B".to_owned()], None).unwrap();
        assert_eq!(wish.text(), "CONFIG_A=y\n");
        let error = Wish::read(dir.path(), &["b"], &[], None).unwrap_err();
        assert!(
            matches!(&error, Error::UnknownFragment { known, .. } if known == "a"),
            "{error}"
        );
    }
}
