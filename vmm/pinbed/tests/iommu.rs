// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device behind a virtual IOMMU that it knows nothing of: its driver refuses it where DMA is translated, and takes it where the map is
//! the identity. The kernel is Debian's, which has the IOMMU's driver.

mod common;

use std::process::Output;

use common::pinbed;

/// Runs a command in a guest whose PCI devices are behind an IOMMU.
fn behind_an_iommu(append: &str, words: &str) -> Output {
    pinbed(&["shell", "--accel", "tcg", "--kernel", "deb:trixie"])
        .args(["--qemu-arg=-device", "--qemu-arg=intel-iommu"])
        .args(["--append", append, "--", words])
        .output()
        .unwrap()
}

#[test]
fn the_driver_refuses_the_device_where_dma_is_translated() {
    let refused = behind_an_iommu(
        "intel_iommu=on iommu.passthrough=0",
        "dmesg; ls /dev/pinbed",
    );
    let said = String::from_utf8_lossy(&refused.stdout);
    let message =
        "an IOMMU translates DMA, but the device uses physical addresses: boot with iommu=pt";
    assert!(
        said.contains(message),
        "{said}\n{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    assert!(!said.contains("\n/dev/pinbed"), "{said}");
}

#[test]
fn the_driver_takes_the_device_where_the_map_is_the_identity() {
    let taken = behind_an_iommu(
        "intel_iommu=on iommu=pt",
        "dmesg | grep -i dmar; ls /dev/pinbed",
    );
    let said = String::from_utf8_lossy(&taken.stdout);
    assert!(
        said.contains("DMAR"),
        "{said}\n{}",
        String::from_utf8_lossy(&taken.stderr)
    );
    assert!(said.contains("\n/dev/pinbed"), "{said}");
}
