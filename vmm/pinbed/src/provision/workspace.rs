// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The checkout that pinbed works on: it builds the guest's programs and the driver from there, and reads kernels.toml and the baselines.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::{AccessFlags, access};
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::error::Error;
use super::inventory::hex;

/// Files that a checkout has.
const MARKS: [&str; 2] = ["guest-kernel-config/kernels.toml", "vmm/pinbed/Cargo.toml"];

/// The answer, found once.
static FOUND: OnceLock<PathBuf> = OnceLock::new();

/// Names the checkout, as `--workspace` and PINBED_WORKSPACE do.
///
/// # Errors
/// When the directory is not a checkout.
pub fn choose(directory: &Path) -> Result<(), Error> {
    let found = directory
        .canonicalize()
        .ok()
        .filter(|path| is_checkout(path));
    let found = found.ok_or_else(|| Error::NotACheckout {
        path: directory.to_owned(),
    })?;
    FOUND.get_or_init(|| found);
    Ok(())
}

/// The top of the checkout: the one that was chosen, else the one that the current directory is in, else the one that this program was
/// built from. Says which where that is not plain to see.
///
/// # Errors
/// When there is none.
pub fn workspace() -> Result<PathBuf, Error> {
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let program = env::current_exe().unwrap_or_default();
    let current = env::current_dir().unwrap_or_default();
    let (found, say) = search(&current, &program, built_from())?;
    if say {
        say!(
            "pinbed: working on the checkout {} (--workspace names another)",
            found.display()
        );
    }
    Ok(FOUND.get_or_init(|| found).clone())
}

/// Where cargo puts what it builds of this checkout: CARGO_TARGET_DIR, else the checkout's own directory `target`, else, where that cannot
/// be written, one in the cache.
///
/// # Errors
/// When there is neither.
pub fn target(workspace: &Path, cache: &Cache) -> PathBuf {
    if let Some(chosen) = env::var_os("CARGO_TARGET_DIR") {
        return env::current_dir().unwrap_or_default().join(chosen);
    }
    let own = workspace.join("target");
    let place = if own.exists() { &own } else { workspace };
    if access(place, AccessFlags::W_OK).is_ok() {
        return own;
    }
    let mut key = hex(&Sha256::digest(workspace.as_os_str().as_encoded_bytes()));
    key.truncate(16);
    cache.entry("target", &key).dir().to_owned()
}

/// The checkout that this program was built from.
fn built_from() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// The checkout, and whether it is another than a person who knows where the program lies would think.
fn search(current: &Path, program: &Path, built_from: &Path) -> Result<(PathBuf, bool), Error> {
    let around = current.ancestors().find(|path| is_checkout(path));
    if let Some(around) = around {
        return Ok((around.to_owned(), around != built_from));
    }
    if is_checkout(built_from) {
        return Ok((built_from.to_owned(), !program.starts_with(built_from)));
    }
    Err(Error::NoCheckout {
        built_from: built_from.to_owned(),
    })
}

fn is_checkout(path: &Path) -> bool {
    MARKS.iter().all(|mark| path.join(mark).is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checkout(top: &Path) {
        for mark in MARKS {
            let path = top.join(mark);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn the_current_directory_comes_before_the_tree_of_the_build() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        checkout(&one);
        checkout(&two);
        let own = one.join("target/release/pinbed");
        let copied = directory.path().join("bin/pinbed");
        let find = |current: &Path, program: &Path| search(current, program, &one).unwrap();

        assert_eq!(find(&one, &own), (one.clone(), false));
        assert_eq!(find(directory.path(), &own), (one.clone(), false));
        assert_eq!(
            find(&two.join("vmm/pinbed"), &own),
            (two.clone(), true),
            "another tree is named"
        );
        assert_eq!(
            find(directory.path(), &copied),
            (one.clone(), true),
            "a copied program names it"
        );
        fs::remove_dir_all(&one).unwrap();
        let error = search(directory.path(), &copied, &one).unwrap_err();
        assert!(error.to_string().contains("--workspace"), "{error}");
    }

    #[test]
    fn what_is_no_checkout_cannot_be_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let error = choose(directory.path()).unwrap_err();
        assert_eq!(error.exit(), crate::exit::Exit::Usage);
    }
}
