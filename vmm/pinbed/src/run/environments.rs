// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The arguments of a command in the form of the environments that it names.

use std::path::Path;

use crate::cli::VmArgs;
use crate::judge::closest;
use crate::machine::environments::{self, Definition};
use crate::machine::{DEFAULT_CPUS, DEFAULT_MEMORY};

/// The machine that is none of the file's.
pub const STOCK: &str = "stock";
/// All of the file's.
pub const ALL: &str = "all";

/// Why the environments that are asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Their file cannot be read.
    #[error(transparent)]
    Read(#[from] environments::Error),
    /// There is none of this name.
    #[error(
        "no environment {name}{}; there are:\n{known}", close.as_ref().map_or(String::new(), |close| format!(", did you mean {close}?"))
    )]
    Unknown {
        name: String,
        close: Option<String>,
        known: String,
    },
    /// A command that has one guest.
    #[error("this command has one guest; give one --env")]
    Several,
}

/// The arguments once for each environment that they name, in its form; as they are where they name none.
///
/// # Errors
/// When there is no such environment.
pub fn each(args: &VmArgs, workspace: &Path) -> Result<Vec<VmArgs>, Error> {
    if args.environments.is_empty() {
        return Ok(vec![args.clone()]);
    }
    let all = environments::read(workspace)?;
    let mut chosen: Vec<Option<&Definition>> = Vec::new();
    for name in &args.environments {
        match name.as_str() {
            STOCK => chosen.push(None),
            ALL => chosen.extend(all.iter().map(Some)),
            name => {
                let found = all.iter().find(|definition| definition.name == name);
                let names = || all.iter().map(|definition| definition.name.as_str());
                chosen.push(Some(found.ok_or_else(|| {
                    Error::Unknown {
                        name: name.to_owned(),
                        close: closest(name, names()).into_iter().next(),
                        known: all
                            .iter()
                            .map(|it| format!("  {:<10} {}", it.name, it.what))
                            .chain([
                                format!("  {STOCK:<10} none"),
                                format!("  {ALL:<10} all of these"),
                            ])
                            .collect::<Vec<_>>()
                            .join("\n"),
                    }
                })?));
            }
        }
    }
    let mut seen = Vec::new();
    chosen.retain(|definition| {
        let name = definition.map(|definition| &definition.name);
        let is_new = !seen.contains(&name);
        seen.push(name);
        is_new
    });
    let in_form = |definition: Option<&Definition>| match definition {
        Some(definition) => apply(definition, args),
        None => args.clone(),
    };
    Ok(chosen.into_iter().map(in_form).collect())
}

/// The arguments in the form of the one environment that they name, for a command that has one guest.
///
/// # Errors
/// When they name several, or one that is not there.
pub fn one(args: &VmArgs, workspace: &Path) -> Result<VmArgs, Error> {
    match <[_; 1]>::try_from(each(args, workspace)?) {
        Ok([args]) => Ok(args),
        Err(_) => Err(Error::Several),
    }
}

/// What the command line itself says counts more.
fn apply(definition: &Definition, args: &VmArgs) -> VmArgs {
    let mut args = args.clone();
    args.append = format!("{} {}", definition.append, args.append)
        .trim()
        .to_owned();
    if args.memory == DEFAULT_MEMORY {
        args.memory = definition.memory.unwrap_or(DEFAULT_MEMORY);
    }
    if args.cpus == DEFAULT_CPUS {
        args.cpus = definition.cpus.unwrap_or(DEFAULT_CPUS);
    }
    args.fragments.extend(definition.fragments.iter().cloned());
    args.environment = Some(definition.clone());
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use std::path::PathBuf;

    fn args(words: &[&str]) -> VmArgs {
        let words = ["pinbed", "run"].iter().chain(words);
        match Cli::parse_from(words).command {
            Command::Run(args) => args.vm,
            _ => unreachable!(),
        }
    }

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn each_environment_gives_the_arguments_a_form_and_the_command_line_counts_more() {
        let all = environments::read(&workspace()).unwrap();
        assert!(
            all.iter()
                .all(|it| !it.what.is_empty() && !it.name.contains([',', ' ']))
        );
        let forms = each(&args(&["--env", "stock", "--env", "all"]), &workspace()).unwrap();
        assert_eq!(forms.len(), 1 + all.len());
        assert!(forms[0].environment.is_none());
        let [low] = &each(&args(&["--env", "lowmem", "--append=x=1"]), &workspace()).unwrap()[..]
        else {
            panic!()
        };
        assert_eq!((low.memory, low.append.as_str()), (256, "x=1"));
        let mine = args(&["--env", "lowmem", "--memory", "300"]);
        assert_eq!(one(&mine, &workspace()).unwrap().memory, 300);
    }

    #[test]
    fn an_unknown_one_and_several_for_one_guest_are_refused() {
        let error = each(&args(&["--env", "swiotbl"]), &workspace()).unwrap_err();
        assert!(
            error.to_string().contains("did you mean swiotlb?"),
            "{error}"
        );
        let several = args(&["--env", "smp", "--env", "lowmem"]);
        assert!(matches!(one(&several, &workspace()), Err(Error::Several)));
    }
}
