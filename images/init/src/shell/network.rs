// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The network card, set up for QEMU's user networking, whose addresses are fixed (QEMU's documentation, "Using the user mode network
//! stack").

use super::BUSYBOX;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const STEPS: [&str; 4] = [
    "ip link set lo up",
    "ip addr add 10.0.2.15/24 dev eth0",
    "ip link set eth0 up",
    "ip route add default via 10.0.2.2",
];
const NAME_SERVER: &str = "nameserver 10.0.2.3\n";

/// Brings it up, and names the name server in this root.
pub fn configure(root: &Path) -> io::Result<()> {
    for step in STEPS {
        let output = Command::new(BUSYBOX).args(step.split(' ')).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("{step}: {}", said.trim())));
        }
    }
    let file = root.join("etc/resolv.conf");
    // It may be a link to what is not there.
    let _ = fs::remove_file(&file);
    fs::write(file, NAME_SERVER)
}
