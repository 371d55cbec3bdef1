// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The configuration of the kernel under test, which the runner puts into the guest: it tells why something is not there.

use crate::harness::error::Error;
use pinbed_abi::report::{CONFIG_PATH, NOT_LOADED};
use std::fs;
use std::sync::LazyLock;

/// Empty where there is none, in a guest that someone else made.
static CONFIG: LazyLock<String> =
    LazyLock::new(|| fs::read_to_string(CONFIG_PATH).unwrap_or_default());

const PREFIX: &str = "CONFIG_";

/// Fails unless this symbol, without "CONFIG_", is on, or is not known to this kernel: newer ones may do always what it was for.
pub fn unless_off(symbol: &str, what: &str) -> Result<(), Error> {
    let off = format!("# {PREFIX}{symbol} is not set");
    match CONFIG.lines().any(|line| line == off) {
        true => Err(Error::Absent {
            what: what.into(),
            remedy: format!("build the kernel with {PREFIX}{symbol}"),
        }),
        false => Ok(()),
    }
}

/// Why something is not there that has this remedy: "CONFIG_UDMABUF is not set". None if the configuration is not the reason.
pub fn reason(remedy: &str) -> Option<String> {
    reason_in(&CONFIG, remedy)
}

/// Symbols after "without" are to be off, all others on and not left out as modules. The first that is not as it should be is the reason.
fn reason_in(config: &str, remedy: &str) -> Option<String> {
    if config.is_empty() {
        return None;
    }
    let mut wanted = true;
    for word in remedy.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        match word {
            "with" => wanted = true,
            "without" => wanted = false,
            symbol if symbol.starts_with(PREFIX) => {
                let on = config.lines().any(|line| {
                    line.strip_prefix(symbol)
                        .is_some_and(|rest| rest.starts_with('='))
                });
                let left_out = format!("{symbol} {NOT_LOADED}");
                let is_left_out = |line: &str| line.strip_prefix("# ") == Some(&*left_out);
                if wanted && config.lines().any(is_left_out) {
                    return Some(left_out);
                }
                match (on, wanted) {
                    (false, true) => return Some(format!("{symbol} is not set")),
                    (true, false) => return Some(format!("{symbol} is set")),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_symbol_that_is_not_as_it_should_be_is_the_reason() {
        let config = "CONFIG_DEVMEM=y\nCONFIG_STRICT_DEVMEM=y\n# CONFIG_CMA is not set\nCONFIG_CMA_SYSFSX=y\nCONFIG_N=2\n";
        let reason = |remedy| reason_in(config, remedy);
        assert_eq!(
            reason("build the kernel with CONFIG_CMA and CONFIG_CMA_SYSFS, boot it with cma=64M")
                .unwrap(),
            "CONFIG_CMA is not set"
        );
        assert_eq!(
            reason("build the kernel with CONFIG_DEVMEM and without CONFIG_STRICT_DEVMEM").unwrap(),
            "CONFIG_STRICT_DEVMEM is set"
        );
        assert_eq!(
            reason("build it with CONFIG_CMA_SYSFS").unwrap(),
            "CONFIG_CMA_SYSFS is not set"
        );
        assert_eq!(reason("with CONFIG_DEVMEM and CONFIG_N=2"), None);
        assert_eq!(reason("use Linux 6.13 or newer"), None);
        assert_eq!(reason_in("", "with CONFIG_CMA"), None);
        let config =
            "CONFIG_VFIO=m\nCONFIG_VFIO_PCI=m\n# CONFIG_VFIO_PCI is a module that is not loaded\n";
        assert_eq!(
            reason_in(config, "with CONFIG_VFIO and CONFIG_VFIO_PCI").unwrap(),
            "CONFIG_VFIO_PCI is a module that is not loaded"
        );
        assert_eq!(reason_in(config, "with CONFIG_VFIO"), None);
    }
}
