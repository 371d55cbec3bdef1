// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What must be mounted, and kernel settings that tests count on.

use nix::mount::{MsFlags, mount};
use std::fs;

/// (type, place), in this order.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("tmpfs", "/tmp"),
];

/// Mounts all that the kernel has. One that it lacks is missed where it is needed, with a reason.
pub fn mount_all() {
    for (kind, place) in MOUNTS {
        // Fails for places that exist, and for those in sysfs of kernels that have no use for them.
        let _ = fs::create_dir_all(place);
        if let Err(error) = mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        ) && error != nix::errno::Errno::EBUSY
            && kind != "tracefs"
        {
            eprintln!("pinbed-init: cannot mount {kind} on {place}: {error}");
        }
    }
    // The kernel gives small machines no huge pages unless asked. Absent where it has none at all.
    for file in ["enabled", "defrag"] {
        let _ = fs::write(
            format!("/sys/kernel/mm/transparent_hugepage/{file}"),
            "madvise",
        );
    }
    // DMA-API debugging reports one error and then falls silent unless told otherwise. Absent where it is not built in.
    let _ = fs::write("/sys/kernel/debug/dma-api/all_errors", "1");
}
