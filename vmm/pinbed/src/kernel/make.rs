// SPDX-License-Identifier: Apache-2.0 OR MIT
//! kbuild's make: the command, and what the lines that it prints mean.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// What `uname -r` ends with.
pub const LOCALVERSION: &str = "-pinbed";

/// Variables that would change what make does.
const FOREIGN: [&str; 10] = [
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "GNUMAKEFLAGS",
    "ARCH",
    "SUBARCH",
    "CROSS_COMPILE",
    "LLVM",
    "O",
    "V",
];

/// make for a kernel tree, in an environment that is the same for everyone.
pub fn make(source: &Path, objects: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(source).current_dir(objects);
    if source != objects {
        command.arg(prefixed("O=", objects));
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("KBUILD_") || text.starts_with("KCONFIG_") || FOREIGN.contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    // LOCALVERSION also keeps the build from asking git how dirty a user's tree is. No byte code in a user's tree.
    command.envs([
        ("LOCALVERSION", LOCALVERSION),
        ("KBUILD_BUILD_USER", "pinbed"),
        ("KBUILD_BUILD_HOST", "pinbed"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ]);
    command
}

/// `NAME=path` as an argument.
pub fn prefixed(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(path);
    argument
}

/// Whether a line of make's output is one step: "  CC      mm/gup.o".
pub fn is_step(line: &str) -> bool {
    line.strip_prefix("  ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Whether make says that a step has failed; the rest of it, which may take minutes, is then in vain.
pub fn is_fatal(line: &str) -> bool {
    line.contains("*** [") && line.contains("Error ")
}

/// Whether a line complains of an object file: of one that is cut off, if an earlier build was.
pub fn is_of_object(line: &str) -> bool {
    let complaints = [
        "truncated",
        "not recognized",
        "malformed",
        "corrupt",
        "undefined reference",
        "unterminated",
    ];
    complaints.iter().any(|what| line.contains(what))
}

/// Whether a line says what is wrong.
pub fn is_error(line: &str) -> bool {
    [
        "error:",
        "Error ",
        "*** ",
        "undefined reference",
        "multiple definition",
        "ERROR: ",
    ]
    .iter()
    .any(|m| line.contains(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_errors_are_told_from_the_rest() {
        assert!(is_step("  CC      mm/gup.o"));
        assert!(!is_step("make[1]: Entering directory '/x'"));
        assert!(!is_step("   10 |  int x"));
        assert!(is_error("mm/gup.c:12:3: error: unknown type name 'x'"));
        assert!(is_error(
            "make[3]: *** [scripts/Makefile.build:229: mm/gup.o] Error 1"
        ));
        assert!(!is_error("  CC      lib/errname.o"));
    }
}
