// SPDX-License-Identifier: Apache-2.0 OR MIT
//! v4l2-compliance out of Debian, with the libraries it needs and the loader for them: what the guest's tests of that group run. And
//! libfaketime, since it sleeps for 16 s.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pinbed_abi::report::{
    COMPLIANCE_GROUP, COMPLIANCE_HURRY, COMPLIANCE_LOADER, COMPLIANCE_PROGRAM,
};
use serde::{Deserialize, Serialize};

use super::child::{Event, Run};
use super::inventory::Check;
use super::{Context, Error, apt};

const SUITE: &str = "trixie";
const PACKAGES: [&str; 2] = ["v4l-utils", "libfaketime"];
/// Where the packages have the program, and the libraries with the loader.
const PROGRAM: &str = "usr/bin/v4l2-compliance";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The record of the program.
#[derive(Serialize, Deserialize)]
struct Tool {
    packages: Vec<String>,
    /// File names, all in one directory.
    files: Vec<String>,
}

/// Whether one of these tests needs it.
pub fn is_needed(tests: &[String]) -> bool {
    let group = |test: &str| test.split_once("::").map(|(group, _)| group.to_owned());
    tests
        .iter()
        .any(|test| group(test).as_deref() == Some(COMPLIANCE_GROUP))
}

/// Its files, to be put into one directory of the guest; fetched if they are not in the cache yet.
pub fn provide(context: &Context) -> Result<Vec<PathBuf>, Error> {
    let entry = context.cache.entry(COMPLIANCE_PROGRAM, SUITE);
    if entry.record::<Tool>().is_none() {
        let work = entry.lock(&context.progress)?;
        if entry.record::<Tool>().is_none() {
            let tree = work.fresh("tree")?;
            let packages = apt::fetch(context, COMPLIANCE_PROGRAM, &PACKAGES, SUITE, &tree)?;
            let files = gather(&tree, &work.fresh("files")?)?;
            fs::remove_dir_all(&tree).map_err(|e| Error::io("delete", &tree, e))?;
            work.publish(&Tool { packages, files }, Check::EachUse, &[])?;
        }
    }
    let files = entry.record::<Tool>().map_or(Vec::new(), |tool| tool.files);
    let directory = entry.dir().join("files");
    Ok(files.iter().map(|name| directory.join(name)).collect())
}

/// Copies the program, its loader, and what the loader says that it would load; returns their names.
fn gather(tree: &Path, into: &Path) -> Result<Vec<String>, Error> {
    let (program, libraries) = (tree.join(PROGRAM), tree.join(LIBRARIES));
    let loader = libraries.join(COMPLIANCE_LOADER);
    let hurry = libraries.join("faketime").join(COMPLIANCE_HURRY);
    let mut list = Command::new(&loader);
    list.arg("--library-path")
        .arg(&libraries)
        .arg("--list")
        .arg(&program);
    let mut wanted = vec![
        (COMPLIANCE_PROGRAM.to_owned(), program),
        (COMPLIANCE_LOADER.to_owned(), loader),
        (COMPLIANCE_HURRY.to_owned(), hurry),
    ];
    Run::new("the search for libraries", list).checked(|event| {
        if let Event::Line(line) = event {
            wanted.extend(library(line, tree));
        }
    })?;
    for (name, path) in &wanted {
        // What a link leads to, under the link's name.
        fs::copy(path, into.join(name)).map_err(|e| Error::io("copy", path, e))?;
    }
    Ok(wanted.into_iter().map(|(name, _)| name).collect())
}

/// `name => path (address)`, of a library in the tree.
fn library(line: &str, tree: &Path) -> Option<(String, PathBuf)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let path = Path::new(rest.rsplit_once(" (")?.0);
    (path.starts_with(tree) && !name.contains('/')).then(|| (name.to_owned(), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_of_the_tree() {
        let tree = Path::new("/cache/tree");
        let path = "/cache/tree/usr/lib/x86_64-linux-gnu/libv4l2.so.0";
        let line = format!("\tlibv4l2.so.0 => {path} (0x00007f8b6b0e4000)");
        assert_eq!(
            library(&line, tree),
            Some(("libv4l2.so.0".into(), path.into()))
        );
        for other in [
            "\tlinux-vdso.so.1 (0x00007ffd2a5c9000)",
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f8b6aef0000)",
            "\t/lib64/ld-linux-x86-64.so.2 => /cache/tree/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 (0x00007f8b6b1)",
            "\tlibgone.so.1 => not found",
        ] {
            assert_eq!(library(other, tree), None, "{other}");
        }
    }

    #[test]
    fn only_its_own_group_needs_it() {
        let plan =
            |names: &[&str]| is_needed(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert!(plan(&["userptr::x", "compliance::y"]));
        assert!(!plan(&["userptr::compliance", "compliance_of::x"]));
    }
}
