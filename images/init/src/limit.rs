// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A limit of memory for each test (Documentation/admin-guide/cgroup-v2.rst), for the environment memcg, which says `pinbed_memory=MIB` on
//! the kernel's command line: a control group that a test's process and its children are in.

use crate::Broken;
use nix::mount::{MsFlags, mount};
use nix::unistd::Pid;
use pinbed_guest::harness::cmdline;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// The group of the tests.
#[derive(Clone, Debug)]
pub struct Limit {
    group: PathBuf,
}

impl Limit {
    /// What the kernel's command line asks for.
    pub fn asked() -> Result<Option<Self>, Broken> {
        match parse(&cmdline::read()?)? {
            None => Ok(None),
            Some(mebibytes) => Self::of(mebibytes).map(Some),
        }
    }

    fn of(mebibytes: u64) -> Result<Self, Broken> {
        let lacks = |_| {
            Broken(
                "this kernel has no control groups that limit memory; build it with CONFIG_MEMCG, as the fragment memcg does".into(),
            )
        };
        mount(
            Some("cgroup2"),
            ROOT,
            Some("cgroup2"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(lacks)?;
        let root = Path::new(ROOT);
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .map_err(|_| lacks(nix::errno::Errno::ENODEV))?;
        let group = root.join("pinbed");
        fs::create_dir_all(&group)?;
        fs::write(group.join("memory.max"), format!("{mebibytes}M"))?;
        Ok(Self { group })
    }

    /// Has a process, and the children that it makes from now on, count against the limit.
    pub fn holds(&self, process: Pid) -> Result<(), Broken> {
        let file = self.group.join("cgroup.procs");
        match fs::write(&file, process.to_string()) {
            // It has ended already.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            written => Ok(written?),
        }
    }
}

fn parse(line: &str) -> Result<Option<u64>, Broken> {
    let Some(value) = cmdline::value(line, "pinbed_memory=") else {
        return Ok(None);
    };
    match value.parse() {
        Ok(mebibytes) if mebibytes > 0 => Ok(Some(mebibytes)),
        _ => Err(Broken(format!(
            "pinbed_memory={value} is no number of MiB, such as pinbed_memory=64"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_how_much() {
        let asked = |line| parse(line).ok();
        assert_eq!(asked("quiet"), Some(None));
        assert_eq!(asked("pinbed_memory=64 quiet"), Some(Some(64)));
        assert_eq!(asked("pinbed_memory=64 pinbed_memory=32"), Some(Some(32)));
        for bad in ["pinbed_memory=", "pinbed_memory=0", "pinbed_memory=64M"] {
            assert_eq!(asked(bad), None, "{bad}");
        }
    }
}
