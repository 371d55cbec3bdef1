// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Modules for a kernel that another compiler built: what that compiler knew and the host's does not is switched off.
//!
//! A configuration says what its compiler can do (CC_HAS_…), and make uses that without another look. What is switched off here changes
//! neither the layout of a structure nor a calling convention, so the modules fit the kernel.

use std::process::{Command, Stdio};

use super::Config;
use crate::provision::cache::Cache;
use crate::provision::child::{Event, Run};
use crate::provision::{Error, answers};

/// Which compiler the kernel's makefiles use.
///
/// # Errors
/// When there is none.
pub fn version(cache: &Cache) -> Result<String, Error> {
    let ask = || {
        let mut version = String::new();
        let mut command = Command::new("gcc");
        command.arg("--version");
        Run::new("gcc --version", command).checked(|event| {
            if let Event::Line(line) = event {
                version.push_str(line);
            }
        })?;
        Ok(version)
    };
    // A gcc that is a link to a wrapper (ccache, distcc) says what another program is.
    let gcc = which::which("gcc")
        .ok()
        .and_then(|gcc| gcc.canonicalize().ok());
    match gcc {
        Some(gcc) if gcc.to_string_lossy().contains("gcc-") => {
            answers::of_program(cache, "gcc --version", &gcc, ask)
        }
        _ => ask(),
    }
}

/// Symbols that make the compiler's command line longer, and the option each of them adds.
const OPTIONS: [(&str, &str); 5] = [
    (
        "CC_HAS_MIN_FUNCTION_ALIGNMENT",
        "-fmin-function-alignment=8",
    ),
    ("INIT_STACK_ALL_ZERO", "-ftrivial-auto-var-init=zero"),
    ("INIT_STACK_ALL_PATTERN", "-ftrivial-auto-var-init=pattern"),
    ("ZERO_CALL_USED_REGS", "-fzero-call-used-regs=used-gpr"),
    ("MITIGATION_SLS", "-mharden-sls=all"),
];

/// Symbols that cost time or need tools, and that a module can do without: debug information, plugins of the kernel's own compiler, and
/// warnings as errors, of which each compiler has others.
const NOT_WANTED: [&str; 4] = [
    "DEBUG_INFO",
    "DEBUG_INFO_BTF_MODULES",
    "GCC_PLUGINS",
    "WERROR",
];

/// What make is told so that the host's compiler builds modules for a kernel of this configuration.
///
/// # Errors
/// When there is no compiler.
pub fn arguments(cache: &Cache, config: &Config) -> Result<Vec<String>, Error> {
    let mut arguments: Vec<String> = Vec::new();
    let compiler = if config.has("CC_IS_CLANG") {
        arguments.push("LLVM=1".to_owned());
        "clang"
    } else {
        "gcc"
    };
    for (symbol, option) in OPTIONS {
        if config.has(symbol) && !accepts(cache, compiler, option)? {
            arguments.push(format!("CONFIG_{symbol}="));
        }
    }
    let unwanted = NOT_WANTED.iter().filter(|symbol| config.has(symbol));
    arguments.extend(unwanted.map(|symbol| format!("CONFIG_{symbol}=")));
    Ok(arguments)
}

/// Whether a compiler knows an option.
fn accepts(cache: &Cache, compiler: &str, option: &str) -> Result<bool, Error> {
    let ask = || {
        Command::new(compiler)
            .args([
                "-Werror",
                option,
                "-S",
                "-x",
                "c",
                "/dev/null",
                "-o",
                "/dev/null",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map(|status| status.success())
            .map_err(|source| Error::Spawn {
                program: compiler.to_owned(),
                source,
            })
    };
    match which::which(compiler) {
        Ok(path) => answers::of_program(cache, &format!("{compiler} {option}"), &path, ask),
        Err(_) => ask(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_tried() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned());
        assert!(accepts(&cache, "gcc", "-O2").unwrap());
        assert!(!accepts(&cache, "gcc", "-fno-such-option-anywhere").unwrap());
        assert!(matches!(
            accepts(&cache, "no-such-compiler", "-O2"),
            Err(Error::Spawn { .. })
        ));
    }

    #[test]
    fn what_a_module_can_do_without_is_off_where_it_was_on() {
        let config = Config::parse("CONFIG_DEBUG_INFO=y\n# CONFIG_WERROR is not set\n");
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned());
        assert_eq!(arguments(&cache, &config).unwrap(), ["CONFIG_DEBUG_INFO="]);
    }
}
