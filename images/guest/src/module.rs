// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loading modules; unloading the driver, binding it to the device and unbinding it.

use crate::harness::cmdline;
use crate::harness::ctx::{needs_host, tell_from_anywhere};
use crate::harness::error::Error;
use crate::harness::patience;
use crate::harness::progress::Progress;
use crate::harness::setting::Setting;
use crate::observe::device;
use crate::video::v4l2;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use pinbed_abi::report::{MODULES_PATH, Part};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the runner puts the driver.
pub const PATH: &str = "/lib/pinbed.ko";
/// How long the nodes may take to appear once the driver is in: the kernel probes while it loads, so they are there already.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the nodes are there.
pub fn is_ready() -> bool {
    let node = |memop| v4l2::find(memop).is_ok_and(|node| node.exists());
    Path::new(device::PATH).exists() && v4l2::Memop::ALL.into_iter().all(node)
}

/// A module's parameters on the kernel's command line, `NAME.PARAMETER=VALUE`, as modprobe passes them on.
fn parameters(module: &str) -> Result<String, Error> {
    let line = cmdline::read()?;
    let ours: Vec<_> = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(module)?.strip_prefix('.'))
        .collect();
    Ok(ours.join(" "))
}

/// insmod, with these parameters and those on the kernel's command line. A module that is in already is left alone.
pub fn insert(path: &str, given: &str) -> Result<(), Error> {
    let file = File::open(path).map_err(|_| Error::Absent {
        what: path.into(),
        remedy: "build the module for this kernel and put it into the initramfs".into(),
    })?;
    let name = Path::new(path)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let text = format!("{given} {}", parameters(&name)?);
    let parameters = CString::new(text.trim()).map_err(|_| Error::Format {
        source_name: path.into(),
        text,
    })?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::call(format!(
            "loading {path} (the kernel log says why)"
        ))(errno)),
    }
}

/// Loads the kernel's own modules that the runner lists, in its order. Returns those that do not load, with the reasons.
pub fn insert_listed() -> Vec<Error> {
    let list = fs::read_to_string(MODULES_PATH).unwrap_or_default();
    list.lines()
        .filter_map(|line| {
            let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
            insert(path, parameters).err()
        })
        .collect()
}

/// insmod: loads the driver and waits for its nodes.
pub fn load() -> Result<(), Error> {
    insert(PATH, "")?;
    wait_for_nodes()
}

/// As [`load`], with parameters `NAME=VALUE` besides those of the kernel's command line. The driver must not be loaded.
pub fn load_with(parameters: &str) -> Result<(), Error> {
    insert(PATH, parameters)?;
    wait_for_nodes()
}

/// Makes the driver work again, whatever a test left: loads it, brings the device back, binds it anew.
pub fn restore() -> Result<(), Error> {
    insert(PATH, "")?;
    // Taken by a driver in user space that was killed.
    pinbed_raw::function::give_back().map_err(|error| Error::Call {
        what: format!("giving the device back to the kernel: {error}"),
        errno: Errno::EIO,
    })?;
    if bound().is_none() {
        rescan()?;
    } else {
        // It may be bound to a device that it has given up.
        unbind()?;
    }
    bind()?;
    wait_for_nodes()
}

fn wait_for_nodes() -> Result<(), Error> {
    let start = Instant::now();
    while !is_ready() {
        if start.elapsed() > PATIENCE {
            return Err(Error::Call {
                what: format!(
                    "waiting for {} and the video nodes; the driver found no device, see the kernel log",
                    device::PATH
                ),
                errno: Errno::ETIMEDOUT,
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The driver's directory in sysfs, with a link to the device that it is bound to.
const DRIVER: &str = "/sys/bus/virtio/drivers/pinbed";
/// The device's virtio ID, as sysfs has it.
const ID: &str = "0x0015";

/// Our devices in sysfs, in their order on the PCI bus. There is a second one only while a test has one.
pub fn devices() -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/bus/virtio/devices")
        .into_iter()
        .flatten();
    let is_ours =
        |path: &PathBuf| fs::read_to_string(path.join("device")).is_ok_and(|id| id.trim() == ID);
    let mut ours: Vec<_> = all
        .flatten()
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .filter(is_ours)
        .collect();
    ours.sort();
    ours
}

/// Waits until there is no second device: the host takes it out after a test that had one.
pub fn wait_until_alone() -> Result<(), Error> {
    match patience::until(patience::LIMIT, || Ok(devices().len() < 2))? {
        true => Ok(()),
        false => Err(Error::Call {
            what: "waiting for the second device to leave the machine".into(),
            errno: Errno::ETIMEDOUT,
        }),
    }
}

/// The device's name on the virtio bus, if it is there.
fn device_name() -> Option<String> {
    Some(name_of(devices().first()?))
}

/// A device's name on its bus.
pub fn name_of(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The device's name on the virtio bus, if the driver is bound to it.
pub fn bound() -> Option<String> {
    device_name().filter(|name| Path::new(DRIVER).join(name).exists())
}

fn tell_sysfs(path: impl AsRef<Path>, text: &str) -> Result<(), Error> {
    let path = path.as_ref();
    fs::write(path, text).map_err(Error::io(format!("writing {text} to {}", path.display())))
}

/// Unbinds the driver from the device. Returns when the kernel does.
pub fn unbind() -> Result<(), Error> {
    match bound() {
        Some(name) => unbind_from(&name),
        None => Ok(()),
    }
}

/// Unbinds the driver from the device of this name on the virtio bus.
pub fn unbind_from(name: &str) -> Result<(), Error> {
    tell_sysfs(Path::new(DRIVER).join("unbind"), name)
}

/// Binds the driver to the device of this name on the virtio bus.
pub fn bind_to(name: &str) -> Result<(), Error> {
    tell_sysfs(Path::new(DRIVER).join("bind"), name)
}

/// Binds the driver to the device, unless it is bound.
pub fn bind() -> Result<(), Error> {
    let mut told = Ok(());
    patience::until(patience::LIMIT, || {
        told = try_bind();
        // A device that is coming is in sysfs before it is on the bus's list (ENODEV, bus_add_device()) and before it can be probed (EAGAIN,
        // dev_ready_to_probe()), and the kernel probes it next.
        Ok(!matches!(
            &told,
            Err(Error::Call {
                errno: Errno::EAGAIN | Errno::ENODEV,
                ..
            })
        ))
    })?;
    told
}

fn no_device() -> Error {
    Error::Absent {
        what: "the device on the virtio bus".into(),
        remedy: "rescan the PCI bus".into(),
    }
}

fn try_bind() -> Result<(), Error> {
    let name = device_name().ok_or_else(no_device)?;
    if bound().is_some() {
        return Ok(());
    }
    match bind_to(&name) {
        // EBUSY: the kernel has just bound it by itself, as it does when a device comes.
        Err(_) if bound().is_some() => Ok(()),
        told => told,
    }
}

/// Takes the device off the PCI bus. The machine still has it.
pub fn remove() -> Result<(), Error> {
    let name = device_name().unwrap_or_default();
    tell_sysfs(format!("/sys/bus/virtio/devices/{name}/../remove"), "1")
}

/// Finds the device on the PCI bus again, or waits for it: the host may be putting it in.
pub fn rescan() -> Result<(), Error> {
    if device_name().is_none() {
        tell_sysfs("/sys/bus/pci/rescan", "1")?;
    }
    patience::until(patience::LIMIT, || Ok(device_name().is_some()))?;
    Ok(())
}

/// Has the host take the device out of the machine (QMP's `device_del`), and waits until the kernel has let go of it.
pub fn unplug() -> Result<(), Error> {
    needs_hotplug()?;
    let device = devices().into_iter().next().ok_or_else(no_device)?;
    take_out(Part::Device, &device)
}

/// Has the host take this device out, which is that part of the machine, and waits until the kernel has let go of it.
pub fn take_out(part: Part, device: &Path) -> Result<(), Error> {
    tell_from_anywhere(&Progress::Hotplug {
        part,
        plugged: false,
    });
    // The PCI device: the kernel unlinks it when its driver has returned, and the virtio device before.
    let is_gone = || Ok(device.parent().is_none_or(|pci| !pci.exists()));
    match patience::until(patience::LIMIT, is_gone)? {
        true => Ok(()),
        false => Err(Error::Call {
            what: format!("waiting for the {part} to leave the machine"),
            errno: Errno::ETIMEDOUT,
        }),
    }
}

/// Has the host put a new device into the machine.
pub fn plug() {
    tell_from_anywhere(&Progress::Hotplug {
        part: Part::Device,
        plugged: true,
    });
}

/// Whether the kernel follows when devices come and go, and somebody hears what a test asks for.
pub fn needs_hotplug() -> Result<(), Error> {
    needs_host()?;
    match fs::read_dir("/sys/bus/pci/slots").is_ok_and(|mut slots| slots.next().is_some()) {
        true => Ok(()),
        false => Err(Error::Absent {
            what: "a PCI slot for hotplug".into(),
            remedy: "build the kernel with CONFIG_HOTPLUG_PCI_ACPI".into(),
        }),
    }
}

/// A parameter of the driver that can be written while it is loaded.
pub fn parameter(name: &str, value: &str) -> Result<Setting, Error> {
    Setting::set(
        format!("/sys/module/pinbed/parameters/{name}"),
        value,
        "build the driver as a module",
    )
}

/// rmmod, without waiting for users to go away.
pub fn unload() -> Result<(), Errno> {
    delete_module(c"pinbed", DeleteModuleFlags::O_NONBLOCK)
}
