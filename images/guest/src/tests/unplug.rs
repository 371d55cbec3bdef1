// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device goes away, or stops doing what it is asked, while it is in use: unbinding takes bounded time, all that waits for the device is
//! told, every call fails with ENODEV, and memory comes back when the files are closed.

use super::dmabuf::orders::needs_moves;
use super::driver::needs_module;
use super::pin::longterm::hold_in_pipe;
use super::sources::MODULE;
use super::test::{FRAME, Test, test};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::pin;
use pinbed_abi::tee::{PARAM_MEMREF_INPUT, TEEC_SUCCESS};
use pinbed_abi::{uapi, wire};
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::harness::setting;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::dimm::Leaving;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::memory::numa;
use pinbed_guest::module;
use pinbed_guest::observe::cma;
use pinbed_guest::observe::device::{self, Device};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::observe::vmstat;
use pinbed_guest::observe::zones::{self, Zone};
use pinbed_guest::tee::client::{NO_PARAMS, NONE, Tee, value_in};
use pinbed_guest::tee::protected::Protected;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{self, Capture, Output};
use pinbed_guest::video::v4l2::{Memop, Memory};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const V4L2: &str = "Documentation/driver-api/media/v4l2-dev.rst, video device cleanup; drivers/media/v4l2-core/v4l2-dev.c";
const DRIVER_MODEL: &str = "Documentation/driver-api/driver-model/driver.rst, remove()";
const TEE_CORE: &str = "drivers/tee/tee_core.c, tee_device_unregister()";
const HOTPLUG: &str = "Documentation/PCI/pci.rst, device removal; drivers/pci/hotplug/acpiphp_glue.c, acpiphp_disable_and_eject_slot()";
const MEMORY_HOTPLUG: &str = "Documentation/core-api/pin_user_pages.rst, FOLL_LONGTERM; Documentation/admin-guide/mm/memory-hotplug.rst, ZONE_MOVABLE; drivers/acpi/acpi_memhotplug.c";
const DMABUF: &str = "Documentation/driver-api/dma-buf.rst";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("unplug::unbind_ends_streaming", |t| each_memop(t, Way::Unbind), V4L2,
        "Unbinding ends a DQBUF that waits, and later calls fail with ENODEV; buffers stay pinned until the file is closed."),
    test("unplug::pci_removal_ends_streaming", |t| each_memop(t, Way::Remove), V4L2,
        "As unbinding, where the PCI device is removed."),
    test("unplug::unbind_ends_the_control_nodes_calls", |t| control(t, Way::Unbind), DRIVER_MODEL,
        "Unbinding ends a request that the device has not answered and a poll that waits for an event; later calls fail with ENODEV."),
    test("unplug::pci_removal_ends_the_control_nodes_calls", |t| control(t, Way::Remove), DRIVER_MODEL,
        "As unbinding, where the PCI device is removed."),
    test("unplug::unbind_ends_calls_to_the_tee", |t| calls(t, Way::Unbind), TEE_CORE,
        "Unbinding ends a call that a trusted application does not answer, and waits for no client; later calls fail with ENODEV."),
    test("unplug::pci_removal_ends_calls_to_the_tee", |t| calls(t, Way::Remove), TEE_CORE,
        "As unbinding, where the PCI device is removed."),
    test("unplug::imports_outlive_an_unbind", |t| imports(t, Way::Unbind), DMABUF,
        "A dma-buf that the device holds, and one that a video node has exported, can be moved and closed after the device is unbound."),
    test("unplug::imports_outlive_a_pci_removal", |t| imports(t, Way::Remove), DMABUF,
        "As unbinding, where the PCI device is removed."),
    test("unplug::protected_memory_outlives_an_unbind", |t| protected(t, Way::Unbind), DMABUF,
        "Protected memory stays allocated after the device is unbound, and is free again when its dma-buf is closed."),
    test("unplug::protected_memory_outlives_a_pci_removal", |t| protected(t, Way::Remove), DMABUF,
        "As unbinding, where the PCI device is removed."),
    test("unplug::hot_unplug_with_everything_open", hot_unplug_with_everything_open, HOTPLUG,
        "When the device leaves the machine all that waits for it ends, calls fail with ENODEV, memory comes back at close, and a new device works."),
    Test { timeout_s: 60, ..test("unplug::memory_leaves_the_machine_under_a_buffer", memory_leaves_under_a_buffer, MEMORY_HOTPLUG,
        "Memory whose pages the device holds can be unplugged: they left it when they were pinned. What is plugged in afterwards the device reads.") },
    Test { timeout_s: 60, ..test("unplug::memory_that_a_pipe_holds_stays_in_the_machine", memory_that_a_pipe_holds_stays, MEMORY_HOTPLUG,
        "Memory of which a pipe holds a page for a short time leaves the machine when the pipe lets go, and not before.") },
    test("unplug::unload_after_unbind_waits_for_files", unload_after_unbind_waits_for_files, MODULE,
        "With files open after an unbind rmmod is refused with EAGAIN; when they are closed it works."),
    Test { timeout_s: 60, ..test("unplug::unbind_at_any_moment", unbind_at_any_moment, DRIVER_MODEL,
        "Unbinding and binding while others open, register, queue, import and call leaves nothing pinned, held or allocated.") },
    test("unplug::silent_device_ends_calls_to_the_tee", silent_device_ends_calls, DRIVER_MODEL,
        "A device that answers nothing any more is given up after the driver's timeout: a call to the TEE ends, and so does its client's SIGKILL."),
    test("unplug::refused_detach_resets_the_device", refused_detach_resets_the_device, DRIVER_MODEL,
        "When the device does not let go of a buffer the driver resets it before the buffer's pages are unpinned."),
    Test { timeout_s: 120, ..test("unplug::driver_leaks_nothing", driver_leaks_nothing, "Documentation/dev-tools/kmemleak.rst",
        "After all this the kernel's leak detector finds no memory of the driver's that nobody refers to.") },
];

/// How the device goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The driver is unbound in sysfs.
    Unbind,
    /// The PCI device is removed in sysfs; the machine still has it.
    Remove,
    /// The device is taken out of the machine: QMP's `device_del`.
    Unplug,
}

/// Ample for an unbind, on a host however busy. That it waits for no job shows in what becomes of the job.
const BOUND: Duration = Duration::from_secs(60);
/// How long a job is delayed: as long as the device can.
const DELAY_US: u64 = 10_000_000;

/// While this lives the device is gone; dropping it brings the device back.
struct Gone(Way);

impl Drop for Gone {
    fn drop(&mut self) {
        // What fails here fails again for the aftermath eye, which says so.
        let _ = self.restore();
    }
}

impl Gone {
    fn restore(&self) -> Result<(), Error> {
        if self.0 == Way::Unplug {
            module::plug();
        }
        module::restore()
    }

    fn back(self) -> TestResult {
        self.restore()?;
        std::mem::forget(self);
        Ok(())
    }
}

/// Makes the device go, in bounded time, and its nodes with it.
fn lose(t: &mut Ctx, way: Way) -> TestResult<Gone> {
    needs_module()?;
    let gone = Gone(way);
    let (lost, in_time) = patience::within(BOUND, || match way {
        Way::Unbind => module::unbind(),
        Way::Remove => module::remove(),
        Way::Unplug => module::unplug(),
    })?;
    lost?;
    t.check(Eye::Cpu, in_time, || {
        format!("{way:?} took longer than {BOUND:?}")
    });
    for path in [device::PATH, "/sys/class/video4linux/video0"] {
        t.check(Eye::Cpu, !Path::new(path).exists(), || {
            format!("{path} is still there after {way:?}")
        });
    }
    Ok(gone)
}

/// The driver copies. Its buffers are vb2's own: older kernels pin user memory in CMA, which is not to be judged here.
pub fn works(t: &mut Ctx) -> TestResult {
    let m2m = M2m::copier(FRAME)?;
    let (mut src, mut dst) = (m2m.own(Output)?, m2m.own(Capture)?);
    m2m.copy(t, &mut src, &mut dst)
}

/// QBUF, not judged; see [`works`].
fn enqueue(m2m: &M2m, queue: Queue, area: &Area) -> TestResult {
    let queued = m2m.enqueue(queue, 0, area);
    Ok(queued.map_err(Error::call(format!("QBUF of {queue:?}")))?)
}

pub fn no_device<T: std::fmt::Debug>(t: &mut Ctx, what: &str, result: Result<T, Errno>) {
    t.refused(what, result, &[Errno::ENODEV]);
}

/// The driver has given this device up: an open file says so, and no other is opened.
pub fn given_up(t: &mut Ctx, device: &Device, open: impl FnOnce() -> Result<Device, Error>) {
    no_device(
        t,
        "a request to the device that was reset",
        errno(device.status()).map(drop),
    );
    no_device(t, "opening its control node", errno(open()).map(drop));
}

/// The errno under an [`Error`].
pub fn errno<T>(result: Result<T, Error>) -> Result<T, Errno> {
    result.map_err(|error| match error {
        Error::Call { errno, .. } => errno,
        _ => Errno::EPROTO,
    })
}

fn each_memop(t: &mut Ctx, way: Way) -> TestResult {
    for memop in Memop::ALL {
        streaming(t, way, memop)?;
    }
    Ok(())
}

fn streaming(t: &mut Ctx, way: Way, memop: Memop) -> TestResult {
    let idle = vmstat::pinned_pages()?;
    let m2m = M2m::copier_on(memop, FRAME)?;
    let (src, dst) = match memop {
        // User memory is not contiguous.
        Memop::DmaContig => (m2m.own(Output)?, m2m.own(Capture)?),
        _ => (
            m2m.with(Output, Area::anon(8, FRAME.size())?)?,
            m2m.with(Capture, Area::anon(0, FRAME.size())?)?,
        ),
    };
    m2m.device.inject(wire::INJECT_DELAY, 1, DELAY_US)?;
    enqueue(&m2m, Output, &src)?;
    enqueue(&m2m, Capture, &dst)?;
    m2m.stream_on()?;
    // DQBUF is to wait.
    fcntl(&m2m.node, FcntlArg::F_SETFL(OFlag::O_RDWR)).map_err(Error::call("F_SETFL"))?;
    let pinned = vmstat::pinned_pages()?;
    let kind = pinbed_guest::video::m2m::memory(&dst);

    let gone = thread::scope(|scope| {
        let waiter = scope.spawn(|| m2m.node.dequeue(Capture, kind));
        // So that it waits; if it does not yet, the call is the later one of those below.
        thread::sleep(Duration::from_millis(50));
        let gone = lose(t, way);
        let waited = waiter.join().map_err(|_| panicked())?;
        let ended: &[Errno] = &[Errno::EIO, Errno::ENODEV];
        match waited {
            // The job's end, as an error, came first.
            Ok(buffer) => t.check(
                Eye::Cpu,
                buffer.flags & pinbed_guest::video::v4l2::FLAG_ERROR != 0,
                || "DQBUF returned a good buffer of a job that the device did not do".into(),
            ),
            Err(errno) => t.check(Eye::Cpu, ended.contains(&errno), || {
                format!("DQBUF that waits ends with {errno:?}, expected one of {ended:?}")
            }),
        };
        gone
    })?;

    no_device(t, "QUERYCAP", m2m.node.capability().map(drop));
    no_device(t, "QBUF", m2m.enqueue(Output, 0, &src));
    no_device(t, "DQBUF", m2m.node.dequeue(Capture, kind).map(drop));
    no_device(t, "REQBUFS", m2m.node.request(Output, Memory::Mmap, 0));
    t.equal(
        Eye::Aftermath,
        "pages pinned while the file is open",
        vmstat::pinned_pages()?,
        pinned,
    );
    let mut set = [PollFd::new(m2m.node.as_fd(), PollFlags::POLLIN)];
    poll(&mut set, PollTimeout::from(5_000u16)).map_err(Error::call("poll of the video node"))?;
    t.check(
        Eye::Cpu,
        set[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLERR)),
        || format!("poll says {:?}, expected POLLERR", set[0].revents()),
    );
    gone.back()?;

    // A new binding works beside the old one's file.
    works(t)?;
    no_device(t, "QUERYCAP after binding", m2m.node.capability().map(drop));
    drop((m2m, src, dst));
    let free = || Ok(vmstat::pinned_pages()? == idle);
    let returned = patience::until(patience::LIMIT, free)?;
    t.check(Eye::Aftermath, returned, || {
        "pages are still pinned after the file was closed".into()
    });
    Ok(())
}

fn panicked() -> Stop {
    Stop::finding(Eye::Harness, "a thread of the test panicked")
}

fn control(t: &mut Ctx, way: Way) -> TestResult {
    let device = Device::open()?;
    let other = Device::open()?;
    let src = device.attach_frames(wire::DIRECTION_READ, frame_of_carveout(&device)?)?;
    device.inject(wire::INJECT_DELAY, 1, DELAY_US)?;
    let gone = thread::scope(|scope| {
        let job = scope.spawn(|| errno(device.job(&device::copy(src, src, 16))).map(drop));
        let event = scope.spawn(|| errno(other.next_event(u16::MAX)).map(drop));
        thread::sleep(Duration::from_millis(50));
        let gone = lose(t, way);
        let job = job.join().map_err(|_| panicked())?;
        no_device(t, "a request that is not answered", job);
        let event = event.join().map_err(|_| panicked())?;
        no_device(t, "reading an event, for which it waited", event);
        gone
    })?;
    no_device(t, "a request", errno(device.status()).map(drop));
    no_device(t, "EXPORT", device.try_export(PAGE, 0).map(drop));
    no_device(t, "BALLAST", errno(device.ballast(u64::MAX)));
    gone.back()?;
    let new = Device::open()?;
    t.equal(
        Eye::Device,
        "buffers that the device holds",
        new.list()?.len(),
        0,
    );
    no_device(
        t,
        "a request after binding",
        errno(device.status()).map(drop),
    );
    works(t)
}

/// Memory that a request may name: a page of the carveout, which goes on to exist.
fn frame_of_carveout(device: &Device) -> TestResult<pinbed_guest::observe::extent::Extent> {
    let (_, address) = device.export(PAGE, 0)?;
    Ok(pinbed_guest::observe::extent::Extent {
        address,
        length: PAGE as u64,
    })
}

fn calls(t: &mut Ctx, way: Way) -> TestResult {
    let idle = vmstat::pinned_pages()?;
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let area = Area::anon(0, 4 * PAGE)?;
    let shm = tee
        .register(area.address(), area.len())
        .map_err(Error::call("TEE_IOC_SHM_REGISTER"))?;
    let pool = tee
        .allocate(PAGE)
        .map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    let held = [shm.all(PARAM_MEMREF_INPUT), NONE, NONE, NONE];
    tee.invoke(session, pin::HOLD, held)?;
    let wait = [value_in(pin::MAX_WAIT_MS, 0), NONE, NONE, NONE];

    let gone = thread::scope(|scope| {
        let call = scope.spawn(|| tee.try_invoke(session, pin::WAIT, &wait, 0));
        thread::sleep(Duration::from_millis(50));
        let gone = lose(t, way);
        match call.join().map_err(|_| panicked())? {
            Err(Errno::ENODEV) => (),
            Ok(reply) => {
                t.check(Eye::Cpu, reply.result != TEEC_SUCCESS, || {
                    "a call that the device did not answer succeeds".into()
                });
            }
            Err(errno) => t.find(
                Eye::Cpu,
                format!("a call that is not answered ends with {errno:?}"),
            ),
        }
        gone
    })?;
    let again = tee.try_invoke(session, pin::RETURN, &NO_PARAMS, 0);
    no_device(t, "INVOKE", again.map(drop));
    no_device(
        t,
        "OPEN_SESSION",
        tee.try_open(pin::UUID, NO_PARAMS).map(drop),
    );
    no_device(t, "CLOSE_SESSION", tee.close_session(session));
    let more = Area::anon(0, PAGE)?;
    no_device(
        t,
        "SHM_REGISTER",
        tee.register(more.address(), more.len()).map(drop),
    );
    no_device(t, "SHM_ALLOC", tee.allocate(PAGE).map(drop));
    t.check(Eye::Aftermath, vmstat::pinned_pages()? > idle, || {
        "registered memory is not pinned any more while its descriptor is open".into()
    });
    gone.back()?;
    let new = Tee::open()?;
    new.session(pin::UUID)?;
    drop((shm, pool, tee));
    let free = || Ok(vmstat::pinned_pages()? == idle);
    let returned = patience::until(patience::LIMIT, free)?;
    t.check(Eye::Aftermath, returned, || {
        "registered memory is still pinned after its descriptor was closed".into()
    });
    // The heap of protected memory was still the old binding's while the new one came.
    Ok(module::restore()?)
}

fn imports(t: &mut Ctx, way: Way) -> TestResult {
    needs_moves()?;
    let (exporter, importer) = (Device::open()?, Device::open()?);
    // What has no kernel address cannot be bounced.
    swiotlb::unless_forced()?;
    let (moving, _) = exporter.export(PAGE, uapi::EXPORT_MOVING)?;
    importer
        .import(&moving, wire::DIRECTION_BOTH)
        .map_err(Error::call("importing a dma-buf into the device"))?;
    let m2m = M2m::copier_on(Memop::DmaSg, FRAME)?;
    m2m.request(Capture, Memory::Mmap, 1)?;
    let exported = m2m.export(Capture)?;
    drop(m2m);

    let gone = lose(t, way)?;
    no_device(
        t,
        "IMPORT",
        importer.import(&moving, wire::DIRECTION_BOTH).map(drop),
    );
    no_device(t, "MOVE", exporter.relocate(&moving, 0).map(drop));
    gone.back()?;
    let new = Device::open()?;
    // The old binding's importer still has it mapped, and lets go.
    new.relocate(&moving, 0).map_err(Error::call(
        "moving a dma-buf after its importer's device is gone",
    ))?;
    drop((importer, exporter));
    let handle = new
        .import(&moving, wire::DIRECTION_BOTH)
        .map_err(Error::call("importing a dma-buf into the new binding"))?;
    t.check(Eye::Device, new.query(handle)?.is_some(), || {
        "the device does not hold what was imported".into()
    });
    // A buffer of the old binding's, in a node of the new one's.
    let m2m = M2m::copier_on(Memop::DmaSg, FRAME)?;
    let mut src = m2m.with(Output, exported)?;
    let mut dst = m2m.own(Capture)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn protected(t: &mut Ctx, way: Way) -> TestResult {
    let region = cma::largest()?;
    let used = region.used()?;
    let (device, tee) = (Device::open()?, Tee::open()?);
    let memory = Protected::new(&device, &tee, 64 * PAGE)?;
    let gone = lose(t, way)?;
    t.check(Eye::Aftermath, region.used()? >= used + 64, || {
        "protected memory is free again while its dma-buf is open".into()
    });
    gone.back()?;
    drop((memory, tee, device));
    let free = || Ok(region.used()? == used);
    let returned = patience::until(patience::LIMIT, free)?;
    t.check(Eye::Aftermath, returned, || {
        "protected memory is still allocated after its dma-buf was closed".into()
    });
    // The kernel has one heap of protected memory, which was still the old binding's while the new one came.
    Ok(module::restore()?)
}

fn hot_unplug_with_everything_open(t: &mut Ctx) -> TestResult {
    needs_module()?;
    module::needs_hotplug()?;
    let idle = vmstat::pinned_pages()?;
    let region = cma::largest()?;
    let used = region.used()?;
    let wait = [value_in(pin::MAX_WAIT_MS, 0), NONE, NONE, NONE];

    // Registered, protected and imported memory, and a session.
    let (tee, device, other) = (Tee::open()?, Device::open()?, Device::open()?);
    let area = Area::anon(0, 4 * PAGE)?;
    let shm = tee
        .register(area.address(), area.len())
        .map_err(Error::call("TEE_IOC_SHM_REGISTER"))?;
    let session = tee.session(pin::UUID)?;
    let secret = Protected::new(&device, &tee, 64 * PAGE)?;
    let moving = match needs_moves() {
        Ok(()) => {
            // What has no kernel address cannot be bounced.
            swiotlb::unless_forced()?;
            let (moving, _) = device.export(PAGE, uapi::EXPORT_MOVING)?;
            other
                .import(&moving, wire::DIRECTION_BOTH)
                .map_err(Error::call("importing a dma-buf into the device"))?;
            Some(moving)
        }
        // As on Debian's kernels.
        Err(_) => None,
    };
    let src = device.attach_frames(wire::DIRECTION_READ, frame_of_carveout(&device)?)?;
    // Streaming, on a job that takes long; what comes after it on its queue waits as well.
    let m2m = M2m::copier(FRAME)?;
    let from = m2m.with(Output, Area::anon(8, FRAME.size())?)?;
    let to = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    device.inject(wire::INJECT_DELAY, 1, DELAY_US)?;
    enqueue(&m2m, Output, &from)?;
    enqueue(&m2m, Capture, &to)?;
    m2m.stream_on()?;
    fcntl(&m2m.node, FcntlArg::F_SETFL(OFlag::O_RDWR)).map_err(Error::call("F_SETFL"))?;
    let pinned = vmstat::pinned_pages()?;

    let gone = thread::scope(|scope| {
        let frame = scope.spawn(|| m2m.node.dequeue(Capture, Memory::Userptr));
        let job = scope.spawn(|| errno(device.job(&device::copy(src, src, 16))).map(drop));
        let event = scope.spawn(|| errno(other.next_event(u16::MAX)).map(drop));
        let call = scope.spawn(|| tee.try_invoke(session, pin::WAIT, &wait, 0));
        thread::sleep(Duration::from_millis(50));
        let gone = lose(t, Way::Unplug);
        let failed = match frame.join().map_err(|_| panicked())? {
            Ok(buffer) => buffer.flags & pinbed_guest::video::v4l2::FLAG_ERROR != 0,
            Err(errno) => [Errno::EIO, Errno::ENODEV].contains(&errno),
        };
        t.check(Eye::Cpu, failed, || {
            "DQBUF returned a good buffer of a job that the device did not do".into()
        });
        let job = job.join().map_err(|_| panicked())?;
        no_device(t, "a request that is not answered", job);
        let event = event.join().map_err(|_| panicked())?;
        no_device(t, "reading an event, for which it waited", event);
        let call = call.join().map_err(|_| panicked())?;
        t.check(
            Eye::Cpu,
            !call.is_ok_and(|reply| reply.result == TEEC_SUCCESS),
            || "a call that the device did not answer succeeds".into(),
        );
        gone
    })?;

    no_device(t, "QUERYCAP", m2m.node.capability().map(drop));
    no_device(t, "QBUF", m2m.enqueue(Output, 0, &from));
    no_device(t, "a request", errno(device.status()).map(drop));
    let again = tee.try_invoke(session, pin::RETURN, &NO_PARAMS, 0);
    no_device(t, "INVOKE", again.map(drop));
    if let Some(moving) = &moving {
        let imported = other.import(moving, wire::DIRECTION_BOTH).map(drop);
        no_device(t, "IMPORT", imported);
    }
    t.equal(
        Eye::Aftermath,
        "pages pinned while the files are open",
        vmstat::pinned_pages()?,
        pinned,
    );
    t.check(Eye::Aftermath, region.used()? >= used + 64, || {
        "protected memory is free again while its dma-buf is open".into()
    });
    gone.back()?;

    // A new device works beside the old one's files.
    t.equal(
        Eye::Device,
        "buffers that the new device holds",
        Device::open()?.list()?.len(),
        0,
    );
    works(t)?;
    drop((m2m, from, to, shm, area, secret, moving));
    drop((tee, device, other));
    let free = || Ok(vmstat::pinned_pages()? == idle && region.used()? == used);
    let returned = patience::until(patience::LIMIT, free)?;
    t.check(Eye::Aftermath, returned, || {
        "memory is still pinned or protected after the files were closed".into()
    });
    // The heap of protected memory was still the old device's while the new one came.
    Ok(module::restore()?)
}

/// User memory in the DIMM; where its pages go to is not bound to be the same.
fn in_the_dimm(t: &mut Ctx, zone: &Zone, length: usize) -> TestResult<Area> {
    let mut area = Area::user(Mapping::anon(length)?, 0..length);
    area.mapping.bind(numa::MOVABLE)?;
    area.fill(t)?;
    area.mapping.bind(numa::HOME)?;
    premise(is_all_in(zone, &area)?, || {
        format!(
            "the memory is in frames {:x?}, not all of {zone:?}",
            area.frames()
        )
    })?;
    Ok(area)
}

fn is_all_in(zone: &Zone, area: &Area) -> TestResult<bool> {
    let frames = area.frames()?;
    let pages = area.mapping.len() / PAGE;
    Ok(frames.len() == pages && frames.iter().all(|frame| zone.frames.contains(frame)))
}

fn memory_leaves_under_a_buffer(t: &mut Ctx) -> TestResult {
    let zone = zones::movable_node()?;
    let m2m = M2m::copier(FRAME)?;
    let src = m2m.with(Output, in_the_dimm(t, &zone, FRAME.size())?)?;
    let dst = m2m.with(Capture, in_the_dimm(t, &zone, FRAME.size())?)?;
    let found = t.findings();
    m2m.queue(t, Output, 0, &src)?;
    m2m.queue(t, Capture, 0, &dst)?;
    if t.findings() > found {
        // Pinned where it is: the kernel would try for as long as that lasts.
        return Ok(());
    }
    let leaving = Leaving::begin()?;
    let out = patience::until(patience::LIMIT, || leaving.is_out())?;
    t.check(Eye::Placement, out, || {
        "the memory does not leave the machine, though no page of it is pinned".into()
    });
    m2m.stream_on()?;
    m2m.finish(t, &src, src.written(), &dst, src.written())?;
    m2m.judge_placement(t, Output, 0, &src)?;
    m2m.judge_placement(t, Capture, 0, &dst)?;
    leaving.back()?;

    let new = in_the_dimm(t, &zone, PAGE)?;
    let at = new.extents()?.and_then(Result::ok).unwrap_or_default();
    for piece in at {
        let handle = m2m.device.attach_frames(wire::DIRECTION_READ, piece)?;
        t.equal(
            Eye::Device,
            "CRC32C that the device sees in memory that was plugged in",
            m2m.device.checksum(handle, 0, piece.length)?,
            crc(new.written()),
        );
        m2m.device.detach(handle)?;
    }
    Ok(())
}

fn memory_that_a_pipe_holds_stays(t: &mut Ctx) -> TestResult {
    let zone = zones::movable_node()?;
    let area = in_the_dimm(t, &zone, PAGE)?;
    let pipe = hold_in_pipe(&area)?;
    let leaving = Leaving::begin()?;
    let tries = patience::until(patience::LIMIT, || leaving.is_tried())?;
    premise(tries, || {
        "the kernel does not try to let go of the memory".into()
    })?;
    // Many times over: a try takes less than a millisecond.
    thread::sleep(Duration::from_millis(200));
    t.check(Eye::Placement, !leaving.is_out()?, || {
        "the memory has left the machine, of which a pipe holds a page".into()
    });
    // While the kernel tries to move it, it is in no page table.
    let shown = patience::until(patience::LIMIT, || Ok(!area.frames()?.is_empty()))?;
    let frames = area.frames()?;
    let stays = frames.iter().all(|frame| zone.frames.contains(frame));
    t.check(Eye::Placement, shown && stays, || {
        format!("a page that a pipe holds was moved to {frames:x?}")
    });
    let mut bytes = vec![0; PAGE];
    let read = nix::unistd::read(&pipe.0, &mut bytes).map_err(Error::call("reading a pipe"))?;
    t.same_bytes(
        Eye::Cpu,
        "what the pipe holds",
        &bytes[..read],
        area.written(),
    );
    drop(pipe);
    let out = patience::until(patience::LIMIT, || leaving.is_out())?;
    t.check(Eye::Placement, out, || {
        "the memory does not leave the machine, though nobody holds a page of it any more".into()
    });
    area.judge_untouched(t, "memory that was moved")?;
    Ok(leaving.back()?)
}

fn unload_after_unbind_waits_for_files(t: &mut Ctx) -> TestResult {
    let busy = &[Errno::EAGAIN];
    let m2m = M2m::copier(FRAME)?;
    let tee = Tee::open()?;
    let shm = tee
        .allocate(PAGE)
        .map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    let gone = lose(t, Way::Unbind)?;
    t.refused("rmmod with everything open", module::unload(), busy);
    let M2m { node, device, .. } = m2m;
    drop(device);
    t.refused("rmmod with the video node open", module::unload(), busy);
    drop(node);
    t.refused("rmmod with the TEE open", module::unload(), busy);
    drop(tee);
    t.refused("rmmod with memory of the TEE", module::unload(), busy);
    drop(shm);
    let unloaded = patience::until(patience::LIMIT, || Ok(module::unload().is_ok()))?;
    t.check(Eye::Cpu, unloaded, || {
        "rmmod fails though nothing is open".into()
    });
    gone.back()?;
    works(t)
}

/// One of many who use the device, whatever comes of it.
fn use_once(seed: usize) {
    // What fails, fails because the device has just gone.
    let _ = match seed % 4 {
        0 => M2m::copier(FRAME).and_then(|m2m| {
            let src = m2m.with(Output, Area::anon(8, FRAME.size())?)?;
            let dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
            let _ = m2m.enqueue(Output, 0, &src);
            let _ = m2m.enqueue(Capture, 0, &dst);
            let _ = m2m.stream_on();
            let _ = m2m.node.dequeue(Capture, Memory::Userptr);
            Ok(())
        }),
        1 => Tee::open().map_err(Stop::from).and_then(|tee| {
            let area = Area::anon(0, 4 * PAGE)?;
            let _shm = tee.register(area.address(), area.len());
            let session = tee.session(pin::UUID)?;
            let _ = tee.try_invoke(session, pin::RETURN, &NO_PARAMS, 0);
            Ok(())
        }),
        2 => Device::open().map_err(Stop::from).and_then(|device| {
            // What has no kernel address cannot be bounced.
            swiotlb::unless_forced()?;
            let (moving, _) = device.export(PAGE, uapi::EXPORT_MOVING)?;
            let _ = device.import(&moving, wire::DIRECTION_BOTH);
            let _ = device.relocate(&moving, uapi::MOVE_FENCED);
            Ok(())
        }),
        _ => Device::open().map_err(Stop::from).map(|device| {
            let _ = device.status();
            let _ = device.try_export(4 * PAGE, uapi::EXPORT_PROTECTED);
        }),
    };
}

fn unbind_at_any_moment(t: &mut Ctx) -> TestResult {
    const ROUNDS: usize = 4;
    needs_module()?;
    let mut ways = vec![Way::Unbind, Way::Remove];
    if module::needs_hotplug().is_ok() {
        ways.push(Way::Unplug);
    }
    let before = dmabuf::alive()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for user in 0..4 {
            let stop = &stop;
            scope.spawn(move || {
                let mut seed = user;
                while !stop.load(Ordering::Relaxed) {
                    use_once(seed);
                    seed += 1;
                }
            });
        }
        let mut result = Ok(());
        for round in 0..ROUNDS {
            thread::sleep(Duration::from_millis(7 * (round as u64 % 5)));
            result = lose(t, ways[round % ways.len()]).and_then(Gone::back);
            if result.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    // The bytes of the last moves are still on their way. Other tests may have left dma-bufs for good.
    let arrived = || Ok(dmabuf::alive()?.iter().all(|it| before.contains(it)));
    patience::until(patience::LIMIT, arrived)?;
    works(t)
}

/// How long a device may be silent in these tests.
const TIMEOUT_S: &str = "1";

fn silent_device_ends_calls(t: &mut Ctx) -> TestResult {
    t.expect_log("given up until it is bound again");
    let tee = Tee::open()?;
    let session = tee.session(pin::UUID)?;
    let device = Device::open()?;
    let wait = [value_in(pin::MAX_WAIT_MS, 0), NONE, NONE, NONE];
    thread::scope(|scope| {
        let call = scope
            .spawn(|| patience::within(BOUND, || tee.try_invoke(session, pin::WAIT, &wait, 0)));
        thread::sleep(Duration::from_millis(50));
        device.inject(wire::INJECT_SILENCE, 1, 0)?;
        // Not before: however busy the host is, the device answers nothing now.
        let _timeout = module::parameter("timeout_s", TIMEOUT_S)?;
        let (reply, in_time) = call.join().map_err(|_| panicked())??;
        t.check(
            Eye::Cpu,
            !reply.is_ok_and(|reply| reply.result == TEEC_SUCCESS),
            || "a call that the device did not answer succeeds".into(),
        );
        t.check(Eye::Cpu, in_time, || {
            format!("the call took longer than {BOUND:?}")
        });
        Ok::<_, Stop>(())
    })?;
    given_up(t, &device, Device::open);
    drop((tee, device));
    module::restore()?;
    works(t)
}

fn refused_detach_resets_the_device(t: &mut Ctx) -> TestResult {
    t.expect_log("given up until it is bound again");
    let m2m = M2m::copier(FRAME)?;
    let src = m2m.with(Output, Area::anon(8, FRAME.size())?)?;
    enqueue(&m2m, Output, &src)?;
    m2m.device.inject(wire::INJECT_KEEP, 1, 0)?;
    m2m.request(Output, Memory::Userptr, 0)?;
    given_up(t, &m2m.device, Device::open);
    drop((m2m, src));
    module::restore()?;
    let device = Device::open()?;
    t.equal(
        Eye::Device,
        "buffers that the device holds",
        device.list()?.len(),
        0,
    );
    works(t)
}

fn driver_leaks_nothing(t: &mut Ctx) -> TestResult {
    const DETECTOR: &str = "/sys/kernel/debug/kmemleak";
    if !Path::new(DETECTOR).exists() {
        return Err(Error::Absent {
            what: DETECTOR.into(),
            remedy: "build the kernel with CONFIG_DEBUG_KMEMLEAK, as the debug fragment does"
                .into(),
        }
        .into());
    }
    // It looks at nothing younger than 5 s, and believes only what two scans agree on.
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(5_500));
        setting::write(DETECTOR, "scan")?;
    }
    let report =
        std::fs::read_to_string(DETECTOR).map_err(Error::io(format!("reading {DETECTOR}")))?;
    for leak in report.split("unreferenced object").skip(1) {
        t.check(Eye::Aftermath, !leak.contains("pinbed"), || {
            format!("kmemleak: unreferenced object{leak}")
        });
    }
    Ok(())
}
