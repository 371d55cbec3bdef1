// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A second device beside the one that every test has: another function on the PCI bus, with an engine of its own, bound to the same driver.
//! The host puts it in while a test has it.

use crate::harness::ctx::{TestResult, tell_from_anywhere};
use crate::harness::error::Error;
use crate::harness::patience::{LIMIT, until};
use crate::harness::progress::Progress;
use crate::module;
use crate::observe::device::Device;
use crate::tee::client::Tee;
use crate::video::image::Image;
use crate::video::m2m::M2m;
use crate::video::v4l2::{Memop, Node, find_of};
use nix::errno::Errno;
use pinbed_abi::report::Part;
use std::fs;
use std::path::{Path, PathBuf};

/// The second device. When this is dropped it has left the machine.
pub struct Second {
    /// In sysfs.
    device: PathBuf,
    /// What the names of its nodes begin with.
    name: String,
}

impl Second {
    /// Has the host put it in, and waits until the driver is bound to it.
    ///
    /// # Errors
    /// [`Error::Absent`] without a host that hears it, or on a kernel that does not follow.
    pub fn plug() -> Result<Self, Error> {
        module::needs_hotplug()?;
        tell_from_anywhere(&Progress::Hotplug {
            part: Part::SecondDevice,
            plugged: true,
        });
        let mut device = None;
        until(LIMIT, || {
            device = module::devices().into_iter().nth(1);
            Ok(device.is_some())
        })?;
        let device = device.ok_or_else(|| late("the second device"))?;
        // Made before anything can fail, so that it leaves again.
        let mut second = Self {
            name: String::new(),
            device,
        };
        second.wait()?;
        Ok(second)
    }

    /// Waits until its nodes are there.
    fn wait(&mut self) -> Result<(), Error> {
        let ready = until(LIMIT, || {
            self.name = name_of_nodes(&self.device).unwrap_or_default();
            let node = |memop| find_of(&self.name, memop).is_ok_and(|node| node.exists());
            // The TEE comes last, where the kernel has one.
            let tee = !Path::new("/sys/class/tee").exists() || self.tee_path().is_some();
            let control = Path::new("/dev").join(&self.name);
            let named = !self.name.is_empty() && control.exists();
            Ok(named && tee && Memop::ALL.into_iter().all(node))
        })?;
        match ready {
            true => Ok(()),
            false => Err(late("the nodes of the second device")),
        }
    }

    /// What the names of its nodes begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its engine, behind the driver's back.
    pub fn control(&self) -> Result<Device, Error> {
        Device::open_at(&format!("/dev/{}", self.name))
    }

    /// A byte copier on one of its video nodes.
    pub fn copier(&self, memop: Memop, image: Image) -> TestResult<M2m> {
        let node = Node::open_at(&find_of(&self.name, memop)?)?;
        M2m::over((self.control()?, node), memop, image, image)
    }

    /// Its TEE.
    pub fn tee(&self) -> Result<Tee, Error> {
        let path = self.tee_path().ok_or_else(|| Error::Absent {
            what: "the second device's TEE".into(),
            remedy: "build the kernel with CONFIG_TEE".into(),
        })?;
        Tee::open_at(&path).map_err(Error::call(format!("opening {path}")))
    }

    /// By the device that does its DMA: the driver's own, or, behind an IOMMU, the PCI function.
    fn tee_path(&self) -> Option<String> {
        let ours = format!("{}-tee.", self.name);
        let all = fs::read_dir("/sys/class/tee").ok()?;
        all.flatten().find_map(|entry| {
            let node = entry.file_name().to_string_lossy().into_owned();
            let dma = fs::canonicalize(entry.path().join("device")).ok()?;
            let is_ours = module::name_of(&dma).starts_with(&ours)
                || Some(dma.as_path()) == self.device.parent();
            // It is in sysfs before it has its node.
            let path = format!("/dev/{node}");
            let is_node = !node.starts_with("teepriv") && Path::new(&path).exists();
            (is_ours && is_node).then_some(path)
        })
    }

    /// Unbinds the driver from it. Returns when the kernel does.
    pub fn unbind(&self) -> Result<(), Error> {
        module::unbind_from(&module::name_of(&self.device))
    }

    /// Binds the driver to it, and waits for its nodes.
    pub fn bind(&mut self) -> Result<(), Error> {
        module::bind_to(&module::name_of(&self.device))?;
        self.wait()
    }

    /// Has the host take it out, whatever it holds, and waits until the kernel has let go of it. Its process ends.
    pub fn unplug(&self) -> Result<(), Error> {
        match self.device.exists() {
            true => module::take_out(Part::SecondDevice, &self.device),
            false => Ok(()),
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // What fails here fails again for the aftermath eye, which says so.
        let _ = self.unplug();
    }
}

fn late(what: &str) -> Error {
    Error::Call {
        what: format!("waiting for {what}"),
        errno: Errno::ETIMEDOUT,
    }
}

/// That of its control node.
fn name_of_nodes(device: &Path) -> Option<String> {
    let mut nodes = fs::read_dir(device.join("misc")).ok()?.flatten();
    Some(nodes.next()?.file_name().to_string_lossy().into_owned())
}
