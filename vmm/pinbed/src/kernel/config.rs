// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel's configuration: what the fragments ask for, and whether the final .config has it.

use std::collections::HashMap;
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

/// All that the fragments ask for, each symbol once.
#[derive(Debug)]
pub struct Wish {
    settings: Vec<(Setting, PathBuf)>,
    fragments: Vec<String>,
}

impl Wish {
    /// Reads the fragments; a later one wins over an earlier. The symbols in `lacks` are not asked for.
    pub fn read(directory: &Path, names: &[&str], lacks: &[String]) -> Result<Self, Error> {
        let mut wish = Wish {
            settings: Vec::new(),
            fragments: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        for name in names {
            let path = directory.join(format!("{name}.config"));
            let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound => unknown(directory, name),
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

    /// The fragments' names, in order.
    pub fn fragments(&self) -> &[String] {
        &self.fragments
    }

    /// The lines, each symbol once.
    pub fn text(&self) -> String {
        self.settings
            .iter()
            .map(|(setting, _)| setting.line() + "\n")
            .collect()
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
            settings: Vec::new(),
            fragments: Vec::new(),
        };
        for (name, text) in fragments {
            wish.add(Path::new(name), text).unwrap();
        }
        wish
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
    fn what_a_kernel_lacks_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.config"), "CONFIG_A=y\nCONFIG_B=y\n").unwrap();
        let wish = Wish::read(dir.path(), &["a"], &["B".to_owned()]).unwrap();
        assert_eq!(wish.text(), "CONFIG_A=y\n");
        let error = Wish::read(dir.path(), &["b"], &[]).unwrap_err();
        assert!(
            matches!(&error, Error::UnknownFragment { known, .. } if known == "a"),
            "{error}"
        );
    }
}
