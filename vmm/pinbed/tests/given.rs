// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernels that the user has built: one of pinbed's own serves as such. Costs a boot, and the first time a build of the driver.

mod common;

use std::fs;
use std::path::Path;

use common::{pinbed, said, vmlinux};

const TEST: &str = "userptr::malloc_is_decoder_input";

/// Runs a test on an image, and returns the exit code and all that was said.
fn run(image: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut all = vec!["run", "--accel", "tcg", "--kernel-image"];
    all.push(image.to_str().unwrap());
    all.extend(arguments);
    all.push(TEST);
    let output = pinbed(&all).output().unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn an_image_is_tested_with_a_driver_built_where_it_was_built() {
    let image = vmlinux("6.1");
    let (code, said) = run(&image, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 passed, 0 failed"), "{said}");
    // Away from its build, and with a build that is not its own.
    let directory = tempfile::tempdir().unwrap();
    let away = directory.path().join("vmlinux");
    fs::copy(&image, &away).unwrap();
    let (code, said) = run(&away, &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--kernel-build"), "{said}");
    let other = directory.path().join("other");
    fs::create_dir_all(other.join("include/config")).unwrap();
    fs::write(other.join("include/config/kernel.release"), "9.9.9\n").unwrap();
    let (code, said) = run(&away, &["--kernel-build", other.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it is of kernel 9.9.9, and"), "{said}");
}

#[test]
fn what_is_no_kernel_or_no_package_is_named() {
    let (code, said) = run(Path::new("/bin/true"), &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("not a vmlinux"), "{said}");
    let (code, said) = run(Path::new("/nonexistent"), &[]);
    assert_eq!(code, Some(2), "{said}");
    for (name, says) in [
        ("deb:./nonexistent.deb", "No such file"),
        ("deb:trixie/vim", "comes a suite of Debian"),
    ] {
        let output = pinbed(&["run", "--kernel", name, TEST]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
