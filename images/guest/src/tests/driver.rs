// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver comes and goes.

use crate::tests::sources::MODULE;
use crate::tests::test::{FRAME, Test, test};
use nix::errno::Errno;
use pinbed_abi::report::Eye;
use pinbed_abi::{uapi, wire};
use pinbed_guest::dmabuf;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::harness::error::Error;
use pinbed_guest::memory::area::Area;
use pinbed_guest::module;
use pinbed_guest::observe::device::{self, Device};
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::tee::client::Tee;
use pinbed_guest::video::m2m::M2m;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use pinbed_guest::video::v4l2::{Memop, Memory, find};
use std::path::Path;

const FEATURES: &str = "virtio 1.3, 2.2 Feature Bits; docs/device.md, 3";
const SEGMENTS: &str = "Documentation/core-api/dma-api.rst, dma_get_max_seg_size(); kernel/dma/debug.c, check_sg_segment()";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("driver::unload_is_refused_while_a_file_is_open", unload_is_refused_while_a_file_is_open, MODULE,
        "Unloading is refused while the video node or the control node is open, and what is open goes on working."),
    test("driver::reload_works", reload_works, MODULE,
        "After rmmod the nodes are gone and the device holds nothing; after insmod they are back and work."),
    test("driver::segments_are_no_longer_than_the_device_takes", segments_are_no_longer_than_the_device_takes, SEGMENTS,
        "With a device that takes segments of a page, memory registered with the TEE and bounce buffers are mapped in such segments."),
    test("driver::missing_features_leave_the_rest_working", missing_features_leave_the_rest_working, FEATURES,
        "With a device that has neither a TEE nor protected memory there is no TEE device, no heap and no export of protected memory; all else works."),
];

/// Only a module can be unloaded.
pub fn needs_module() -> TestResult {
    if Path::new(module::PATH).exists() {
        return Ok(());
    }
    Err(Error::Absent {
        what: module::PATH.into(),
        remedy: "build the driver as a module".into(),
    }
    .into())
}

/// One copy with user memory on both queues.
pub fn copy(t: &mut Ctx, m2m: &M2m) -> TestResult {
    let mut src = m2m.with(Output, Area::anon(8, FRAME.size())?)?;
    let mut dst = m2m.with(Capture, Area::anon(0, FRAME.size())?)?;
    m2m.copy(t, &mut src, &mut dst)
}

fn unload_is_refused_while_a_file_is_open(t: &mut Ctx) -> TestResult {
    needs_module()?;
    let m2m = M2m::copier(FRAME)?;
    t.refused(
        "rmmod with both nodes open",
        module::unload(),
        &[Errno::EAGAIN],
    );
    copy(t, &m2m)?;
    let M2m { node, device, .. } = m2m;
    drop(device);
    t.refused(
        "rmmod with the video node open",
        module::unload(),
        &[Errno::EAGAIN],
    );
    drop(node);
    let device = Device::open()?;
    t.refused(
        "rmmod with the control node open",
        module::unload(),
        &[Errno::EAGAIN],
    );
    t.equal(
        Eye::Device,
        "buffers that the device holds",
        device.list()?.len(),
        0,
    );
    Ok(())
}

fn reload_works(t: &mut Ctx) -> TestResult {
    needs_module()?;
    copy(t, &M2m::copier(FRAME)?)?;
    let old = Device::open()?.status()?;
    t.check(Eye::Device, old.jobs.get() > 0, || {
        "the device counts no job after one was done".into()
    });
    for round in 0..3 {
        module::unload().map_err(|errno| {
            Stop::finding(
                Eye::Cpu,
                format!("rmmod fails with {errno:?} in round {round}"),
            )
        })?;
        t.check(Eye::Cpu, !Path::new(device::PATH).exists(), || {
            format!("{} is still there after rmmod", device::PATH)
        });
        for memop in Memop::ALL {
            t.check(Eye::Cpu, find(memop).is_err(), || {
                format!("{} is still there after rmmod", memop.node())
            });
        }
        module::load()?;
        let new = Device::open()?.status()?;
        t.equal(
            Eye::Device,
            "buffers that the device holds after insmod",
            new.buffers.get(),
            0,
        );
        t.equal(
            Eye::Device,
            "jobs since the reset that comes with insmod",
            new.jobs.get(),
            0,
        );
        copy(t, &M2m::copier(FRAME)?)?;
    }
    Ok(())
}

/// The driver as it was, again.
struct Reload;

impl Drop for Reload {
    fn drop(&mut self) {
        // What fails here fails again for the aftermath eye, which says so.
        let _ = module::unload();
        let _ = module::load();
    }
}

fn segments_are_no_longer_than_the_device_takes(t: &mut Ctx) -> TestResult {
    needs_module()?;
    module::unload().map_err(Error::call("rmmod"))?;
    let _reload = Reload;
    module::load_with(&format!("max_segment={PAGE}"))?;
    let (device, tee) = (Device::open()?, Tee::open()?);
    let area = Area::huge(0, 16 * PAGE)?;
    let registered = tee.register(area.address(), area.len());
    let shm = registered.map_err(Error::call("TEE_IOC_SHM_REGISTER"))?;
    let allocated = tee.allocate(16 * PAGE);
    let pool = allocated.map_err(Error::call("TEE_IOC_SHM_ALLOC"))?;
    let m2m = M2m::copier_on(Memop::Vmalloc, FRAME)?;
    m2m.request(Output, Memory::Mmap, 1)?;
    for held in device.list()? {
        let longest = held.segments.iter().map(|it| it.length).max();
        t.check(Eye::Device, longest <= Some(PAGE as u64), || {
            format!("the device holds {held} with a segment of {longest:?} bytes")
        });
    }
    t.equal(
        Eye::Device,
        "buffers that the device holds",
        device.list()?.len(),
        3,
    );
    drop((m2m, shm, pool, tee));
    Ok(())
}

fn missing_features_leave_the_rest_working(t: &mut Ctx) -> TestResult {
    needs_module()?;
    // Some kernels have no TEE subsystem.
    let has_tee = Tee::open().is_ok();
    module::unload().map_err(Error::call("rmmod"))?;
    let _reload = Reload;
    for (mask, tee) in [(1u32 << wire::F_TEE, has_tee), (0, false)] {
        module::load_with(&format!("feature_mask={mask}"))?;
        let device = Device::open()?;
        // Others may have a TEE device, too.
        let opened = Tee::open();
        t.check(Eye::Cpu, opened.is_ok() == tee, || match tee {
            true => "the device's TEE is not there".into(),
            false => "there is a TEE device that the driver was not offered".into(),
        });
        drop(opened);
        t.refused(
            "EXPORT of protected memory",
            device.try_export(PAGE, uapi::EXPORT_PROTECTED).map(drop),
            &[Errno::EOPNOTSUPP],
        );
        let heap = dmabuf::protected_heap(PAGE);
        // The node of a heap that was there before stays.
        t.check(Eye::Cpu, !matches!(heap, Ok(Some(_))), || {
            "there is a heap of protected memory that the device does not protect".into()
        });
        drop(device);
        copy(t, &M2m::copier(FRAME)?)?;
        // Unbinding takes away no more than is there.
        module::restore()?;
        copy(t, &M2m::copier(FRAME)?)?;
        module::unload().map_err(Error::call("rmmod"))?;
    }
    Ok(())
}
