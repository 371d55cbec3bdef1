// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device's PCI function, through sysfs (Documentation/PCI/sysfs-pci.rst), bound to uio_pci_generic
//! (Documentation/driver-api/uio-howto.rst) in place of virtio-pci.

use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use pinbed_abi::wire::VIRTIO_ID;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};

use crate::Error;
use crate::dma::{self, Bar, Process};

const DEVICES: &str = "/sys/bus/pci/devices";
const PROBE: &str = "/sys/bus/pci/drivers_probe";
/// The driver that leaves a function to user space.
const UIO: &str = "uio_pci_generic";
/// virtio's vendor, and the device ID of a modern device of our virtio ID (virtio 1.3, 4.1.2).
const IDS: (&str, u32) = ("0x1af4", 0x1040 + VIRTIO_ID);

/// The function's directory in sysfs.
fn find() -> Result<PathBuf, Error> {
    let entries = fs::read_dir(DEVICES).map_err(Error::io(format!("reading {DEVICES}")))?;
    let is_ours = |path: &PathBuf| {
        let id = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        id("vendor").trim() == IDS.0 && id("device").trim() == format!("{:#06x}", IDS.1)
    };
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(is_ours).ok_or_else(|| Error::Absent {
        what: "the device on the PCI bus".into(),
        remedy: "rescan the bus".into(),
    })
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<(), Error> {
    let path = path.as_ref();
    fs::write(path, text).map_err(Error::io(format!("writing '{text}' to {}", path.display())))
}

/// The name of the driver that the function is bound to.
fn driver(path: &Path) -> Option<String> {
    let link = fs::read_link(path.join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Binds the function to the driver that the kernel finds for it, or to `to`.
fn bind(path: &Path, to: Option<&str>) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if driver(path).is_some() {
        write(path.join("driver/unbind"), &name)?;
    }
    // A line feed alone takes an override back.
    write(path.join("driver_override"), to.unwrap_or("\n"))?;
    write(PROBE, &name)
}

/// Whether the function is bound to a driver that leaves it to user space, as after the death of who had taken it.
pub fn is_taken() -> bool {
    find().is_ok_and(|path| driver(&path).as_deref() == Some(UIO))
}

/// Gives the function back to the kernel, if it is user space's.
///
/// # Errors
/// When sysfs refuses that.
pub fn give_back() -> Result<(), Error> {
    match is_taken() {
        true => bind(&find()?, None),
        false => Ok(()),
    }
}

/// The function, taken from the kernel. It is given back on drop, after which no [`PciTransport`] of it may be left.
pub struct Function {
    path: PathBuf,
    configuration: File,
    interrupts: File,
    bars: Vec<Bar>,
}

impl Function {
    /// Takes the function from the kernel's driver, which must have no users, and maps its registers.
    ///
    /// # Errors
    /// [`Error::Absent`] where the device or uio_pci_generic is not there.
    pub fn take() -> Result<Self, Error> {
        let path = find()?;
        if !Path::new("/sys/bus/pci/drivers").join(UIO).exists() {
            return Err(Error::Absent {
                what: UIO.into(),
                remedy: "build the kernel with CONFIG_UIO_PCI_GENERIC".into(),
            });
        }
        bind(&path, Some(UIO))?;
        Self::open(path).inspect_err(|_| {
            // The first error is the one to report.
            let _ = give_back();
        })
    }

    fn open(path: PathBuf) -> Result<Self, Error> {
        let open = |path: PathBuf| {
            let file = File::options().read(true).write(true).open(&path);
            file.map_err(Error::io(format!("opening {}", path.display())))
        };
        let configuration = open(path.join("config"))?;
        let directory = path.join("uio");
        let node = fs::read_dir(&directory)
            .ok()
            .and_then(|mut entries| entries.next()?.ok())
            .ok_or_else(|| Error::Absent {
                what: directory.display().to_string(),
                remedy: "see the kernel log for why uio_pci_generic did not take the function"
                    .into(),
            })?;
        let interrupts = open(Path::new("/dev").join(node.file_name()))?;
        let bars = map_bars(&path)?;
        dma::set_bars(bars.clone());
        Ok(Self {
            path,
            configuration,
            interrupts,
            bars,
        })
    }

    /// A driver's way to the device: decodes addresses, and is a bus master. A transport resets the device when it is dropped.
    ///
    /// # Errors
    /// When the function is not what virtio-drivers takes for a virtio device.
    pub fn transport(&self) -> Result<PciTransport, Error> {
        let mut root = PciRoot::new(Access(&self.configuration));
        // The configuration file is that of one function, whichever is named.
        let function = DeviceFunction {
            bus: 0,
            device: 0,
            function: 0,
        };
        root.set_command(
            function,
            Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE,
        );
        Ok(PciTransport::new::<Process, _>(&mut root, function)?)
    }

    /// Lets the function interrupt (INTx), once: uio_pci_generic masks it when it has.
    ///
    /// # Errors
    /// When the configuration space cannot be written.
    pub fn unmask(&self) -> Result<(), Error> {
        let command = Command::MEMORY_SPACE | Command::BUS_MASTER;
        self.configuration
            .write_all_at(&command.bits().to_le_bytes(), 4)
            .map_err(Error::io("writing the PCI command register"))
    }

    /// Waits for the next interrupt, and returns how many there were since the function was taken.
    ///
    /// # Errors
    /// When uio cannot be read.
    pub fn wait_for_interrupt(&self) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        let mut node = &self.interrupts;
        node.read_exact(&mut bytes)
            .map_err(Error::io("waiting for an interrupt"))?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// The node whose readability says that there was an interrupt.
    pub fn interrupts(&self) -> &File {
        &self.interrupts
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        dma::set_bars(Vec::new());
        for bar in &self.bars {
            if let Some(address) = NonNull::new(bar.address as *mut _) {
                // SAFETY: `map_bars` mapped it, and transports are gone, as the type's documentation wants it.
                let _ = unsafe { munmap(address, bar.length) };
            }
        }
        // Where this fails, whoever needs the driver next says so.
        let _ = bind(&self.path, None);
    }
}

/// Maps the registers of all memory BARs.
fn map_bars(path: &Path) -> Result<Vec<Bar>, Error> {
    const MEMORY: u64 = 0x200; // IORESOURCE_MEM, include/linux/ioport.h
    let resources = path.join("resource");
    let text = fs::read_to_string(&resources)
        .map_err(Error::io(format!("reading {}", resources.display())))?;
    let mut bars = Vec::new();
    for (index, line) in text.lines().take(6).enumerate() {
        let mut numbers = line
            .split_whitespace()
            .filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
        let (Some(start), Some(end), Some(flags)) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            continue;
        };
        let length = end.wrapping_sub(start).wrapping_add(1) as usize;
        let (Some(size), true) = (NonZeroUsize::new(length), start != 0 && flags & MEMORY != 0)
        else {
            continue;
        };
        let name = path.join(format!("resource{index}"));
        let what = format!("mapping {}", name.display());
        let file = File::options().read(true).write(true).open(&name);
        let file = file.map_err(Error::io(what.clone()))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, size, protection, MapFlags::MAP_SHARED, &file, 0)
        }
        .map_err(|errno| Error::io(what)(errno.into()))?;
        bars.push(Bar {
            physical: start,
            length,
            address: address.as_ptr() as usize,
        });
    }
    Ok(bars)
}

/// The function's configuration space.
struct Access<'a>(&'a File);

impl ConfigurationAccess for Access<'_> {
    fn read_word(&self, _function: DeviceFunction, offset: u8) -> u32 {
        let mut bytes = [0xff; 4];
        // All ones, as a read of a function that is gone.
        let _ = self.0.read_exact_at(&mut bytes, offset.into());
        u32::from_le_bytes(bytes)
    }

    fn write_word(&mut self, _function: DeviceFunction, offset: u8, data: u32) {
        // As a write to a function that is gone.
        let _ = self.0.write_all_at(&data.to_le_bytes(), offset.into());
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0)
    }
}
