// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Defaults of the command line, from settings files: pinbed.toml in the current directory, then pinbed/config.toml in $XDG_CONFIG_HOME
//! or ~/.config. A key is the name of an option without its dashes; what the first file has counts, and the command line wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::cli::Cli;

/// The options that have settings. Not those that say which tests are run, or where a result is written.
const KEYS: [&str; 13] = [
    "accel",
    "append",
    "config",
    "cpus",
    "fragment",
    "jobs",
    "kcidb-origin",
    "keep",
    "kernel",
    "memory",
    "qemu",
    "timeout",
    "verbose",
];
/// The subcommands whose options they are.
const COMMANDS: [&str; 3] = ["run", "shell", "setup"];
/// Keys that say which kernel is tested: none of them counts where the command line says so by --kernel-src or --kernel-image.
const OF_KERNEL: [&str; 3] = ["kernel", "config", "fragment"];

/// What is wrong with a settings file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct Error {
    path: PathBuf,
    what: String,
}

/// What a key is set to; several values where the option may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    values: Vec<String>,
    path: PathBuf,
}

type Settings = BTreeMap<&'static str, Setting>;

/// The command line, with defaults from the settings files.
///
/// # Errors
/// When a settings file is not valid. A wrong command line ends the program.
pub fn parse() -> Result<Cli> {
    // What the command line has itself; and its errors and --help do not wait for settings.
    let plain = Cli::command().get_matches();
    let settings = read(&paths())?;
    let command = with_defaults(Cli::command(), &settings, &plain);
    let matches = command.get_matches();
    tell(&matches, &settings);
    Cli::from_arg_matches(&matches).map_err(|error| error.exit())
}

/// Says which files were read, with --verbose.
fn tell(matches: &ArgMatches, settings: &Settings) {
    let verbose = matches.subcommand().is_some_and(|(_, of)| {
        of.try_get_one::<bool>("verbose")
            .is_ok_and(|verbose| verbose == Some(&true))
    });
    if verbose {
        for line in by_file(settings) {
            say!("settings of {line}");
        }
    }
}

/// A line for each file that sets something: its path, and which keys count.
fn by_file(settings: &Settings) -> Vec<String> {
    let mut files: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for (key, setting) in settings {
        files.entry(&setting.path).or_default().push(key);
    }
    let line =
        |(path, keys): (&Path, Vec<&str>)| format!("{}: {}", path.display(), keys.join(", "));
    files.into_iter().map(line).collect()
}

/// Which settings files count here and what they set, or where they would be; for `pinbed doctor`.
///
/// # Errors
/// When a settings file is not valid.
pub fn summary() -> Result<String, Error> {
    let paths = paths();
    let lines = by_file(&read(&paths)?);
    if !lines.is_empty() {
        return Ok(lines.join("; "));
    }
    let places: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Ok(format!("none; files for them are {}", places.join(" and ")))
}

/// The files, the one that counts first.
fn paths() -> Vec<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    let user = config.map(|config| config.join("pinbed/config.toml"));
    [PathBuf::from("pinbed.toml")]
        .into_iter()
        .chain(user)
        .collect()
}

/// What the files say.
fn read(paths: &[PathBuf]) -> Result<Settings, Error> {
    let mut all = Settings::new();
    for path in paths {
        let wrong = |what: String| Error {
            path: path.clone(),
            what,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        for (key, values) in settings(&text).map_err(wrong)? {
            all.entry(key).or_insert_with(|| Setting {
                values,
                path: path.clone(),
            });
        }
    }
    Ok(all)
}

/// The keys of a file and their values, each checked as on the command line.
fn settings(text: &str) -> Result<Vec<(&'static str, Vec<String>)>, String> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    let mut all = Vec::new();
    for (key, value) in table {
        let Some(known) = KEYS.into_iter().find(|known| *known == key) else {
            return Err(format!(
                "there is no setting \"{key}\"; settings are {}",
                KEYS.join(", ")
            ));
        };
        let values = match value {
            toml::Value::Array(values) => values.into_iter().map(word).collect(),
            value => word(value).map(|value| vec![value]),
        };
        let values: Vec<String> = values.ok_or_else(|| {
            format!("{key} is not a string, a number, true or false, or a list of them")
        })?;
        check(known, &values)?;
        all.push((known, values));
    }
    Ok(all)
}

/// A value as on the command line.
fn word(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Whether `pinbed run` would take these values.
fn check(key: &str, values: &[String]) -> Result<(), String> {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    let takes_value = run
        .and_then(|run| run.get_arguments().find(|arg| arg.get_long() == Some(key)))
        .is_some_and(|arg| arg.get_action().takes_values());
    if !takes_value {
        return match values {
            [value] if value == "true" || value == "false" => Ok(()),
            _ => Err(format!("{key} is true or false")),
        };
    }
    let words = values.iter().map(|value| format!("--{key}={value}"));
    let words = ["pinbed".to_owned(), "run".to_owned()]
        .into_iter()
        .chain(words);
    match Cli::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(line.trim_start_matches("error: ").to_owned())
        }
    }
}

/// The command line's definition with these defaults; `plain` is what the command line has without them.
fn with_defaults(mut command: Command, settings: &Settings, plain: &ArgMatches) -> Command {
    let given = |id: &str| {
        plain.subcommand().is_some_and(|(_, of)| {
            of.try_contains_id(id).is_ok() && of.value_source(id) == Some(ValueSource::CommandLine)
        })
    };
    let other_kernel = given("kernel_src") || given("kernel_image");
    for name in COMMANDS {
        command = command.mut_subcommand(name, |mut of| {
            for (key, setting) in settings {
                if other_kernel && OF_KERNEL.contains(key) {
                    continue;
                }
                let id = of
                    .get_arguments()
                    .find(|arg| arg.get_long() == Some(key))
                    .map(|arg| arg.get_id().clone());
                if let Some(id) = id {
                    of = of.mut_arg(id, |arg| arg.default_values(setting.values.clone()));
                }
            }
            of
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, RunArgs};

    fn run_with(files: &[&str], words: &[&str]) -> RunArgs {
        let place = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..files.len())
            .map(|at| place.path().join(at.to_string()))
            .collect();
        for (path, text) in paths.iter().zip(files) {
            fs::write(path, text).unwrap();
        }
        let settings = read(&paths).unwrap();
        let plain = Cli::command().try_get_matches_from(words).unwrap();
        let matches = with_defaults(Cli::command(), &settings, &plain)
            .try_get_matches_from(words)
            .unwrap();
        match Cli::from_arg_matches(&matches).unwrap().command {
            cli::Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_file_is_named_with_what_counts_of_it() {
        let place = tempfile::tempdir().unwrap();
        let paths = ["first", "second", "none"].map(|name| place.path().join(name));
        fs::write(&paths[0], "memory = \"1G\"\n").unwrap();
        fs::write(&paths[1], "memory = \"2G\"\njobs = 2\n").unwrap();
        let lines = by_file(&read(&paths).unwrap());
        assert_eq!(
            lines,
            [
                format!("{}: memory", paths[0].display()),
                format!("{}: jobs", paths[1].display()),
            ]
        );
    }

    #[test]
    fn the_command_line_wins_then_the_first_file() {
        let first = "memory = \"1G\"\nkernel = \"6.1\"\nverbose = true\n";
        let second = "memory = \"2G\"\njobs = 2\nfragment = [\"debug\", \"CONFIG_KASAN=y\"]\n";
        let args = run_with(&[first, second], &["pinbed", "run"]);
        assert_eq!((args.vm.memory, args.jobs), (1024, Some(2)));
        assert_eq!(args.vm.kernels, ["6.1"]);
        assert_eq!(args.vm.fragments, ["debug", "CONFIG_KASAN=y"]);
        assert!(args.reports.verbose);
        let words = ["pinbed", "run", "--memory", "3G", "--kernel=5.10", "-j1"];
        let args = run_with(&[first, second], &words);
        assert_eq!((args.vm.memory, args.jobs), (3072, Some(1)));
        assert_eq!(args.vm.kernels, ["5.10"], "one does not add to the other");
        let args = run_with(&[], &["pinbed", "run"]);
        assert_eq!(
            (args.vm.memory, args.jobs),
            (crate::machine::DEFAULT_MEMORY, None)
        );
    }

    #[test]
    fn a_tree_of_the_command_line_takes_no_kernel_from_settings() {
        let args = run_with(
            &["kernel = [\"6.1\", \"6.12\"]\nfragment = \"debug\"\n"],
            &["pinbed", "run", "--kernel-image", "bzImage"],
        );
        assert!(args.vm.kernels.is_empty() && args.vm.fragments.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            (
                "memroy = 3",
                "there is no setting \"memroy\"; settings are accel, append",
            ),
            (
                "memory = \"5X\"",
                "invalid value '5X' for '--memory <SIZE>'",
            ),
            ("jobs = 0", "not a number of guests"),
            ("verbose = 3", "verbose is true or false"),
            ("memory = 1.5", "memory is not a string"),
            ("memory =", "line 1"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn each_key_is_an_option_of_run() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for key in KEYS {
            assert!(
                run.get_arguments().any(|arg| arg.get_long() == Some(key)),
                "{key}"
            );
        }
    }
}
