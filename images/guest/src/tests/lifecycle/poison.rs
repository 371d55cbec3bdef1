// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that fails while a device holds it (mm/memory-failure.c).

use super::stage::Stage;
use crate::tests::test::{Test, test};
use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::WaitStatus;
use pinbed_abi::report::Eye;
use pinbed_guest::harness::child::Child;
use pinbed_guest::harness::ctx::{Ctx, TestResult, crc, premise};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::harness::setting;
use pinbed_guest::memory::area::Area;
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::extent::{PAGE, frames};
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

const SOFT: &str =
    "man 2 madvise, MADV_SOFT_OFFLINE; mm/memory-failure.c, soft_offline_in_use_page()";
pub const HARD: &str = "man 2 madvise, MADV_HWPOISON; mm/memory-failure.c, has_extra_refcount()";
const UNPOISON: &str = "/sys/kernel/debug/hwpoison/unpoison-pfn";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("lifecycle::soft_offline_leaves_what_is_held", soft_offline, SOFT,
        "MADV_SOFT_OFFLINE of a page that the device holds is refused with EBUSY, and the page stays in use where it is."),
    test("lifecycle::poisoned_page_stays_the_devices", poisoned_page, HARD,
        "After MADV_HWPOISON of a page that the device holds the process gets SIGBUS there, not another page; the device keeps the page, and nobody gets it after the device."),
];

fn soft_offline(t: &mut Ctx) -> TestResult {
    let mut stage = Stage::anon(t)?;
    stage.begin()?;
    for area in stage.areas() {
        for page in (0..area.mapping.len()).step_by(PAGE) {
            let result = area
                .mapping
                .try_advise(page..page + PAGE, MmapAdvise::MADV_SOFT_OFFLINE as i32);
            t.refused(
                "MADV_SOFT_OFFLINE of a page that is held",
                result,
                &[Errno::EBUSY],
            );
        }
    }
    stage.judge(t, "MADV_SOFT_OFFLINE")
}

/// SIGBUS interrupts nothing until this is dropped. Memory that raises it must not be touched meanwhile.
struct Deaf(SigAction);

impl Deaf {
    fn to_sigbus() -> TestResult<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = SigAction::new(
            SigHandler::Handler(nothing),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing.
        let before =
            unsafe { sigaction(Signal::SIGBUS, &action) }.map_err(Error::call("sigaction"))?;
        Ok(Self(before))
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        // SAFETY: this is what was set before. It cannot fail for a signal that it worked for.
        let _ = unsafe { sigaction(Signal::SIGBUS, &self.0) };
    }
}

fn poisoned_page(t: &mut Ctx) -> TestResult {
    // The CPU writes what the device has been given.
    swiotlb::unless_forced()?;
    let stage = Stage::anon(t)?;
    let image = stage.src.written().to_vec();
    let held = stage.held(t, Output)?;
    let Some(frame) = frames(&held).nth(1) else {
        return premise(false, || {
            format!("the device holds one page only: {held:?}")
        });
    };
    let mapping = &stage.src.mapping;
    poison(t, mapping, PAGE)?;
    // The process writes its other pages; the device sees that, and the page that it holds as it was.
    let start = stage.src.window.start;
    let first = t.random(PAGE - start);
    mapping.write(start, &first);
    let mut expected = image;
    expected[..first.len()].copy_from_slice(&first);
    t.equal(
        Eye::Device,
        "CRC32C of the buffer with a poisoned page",
        stage.seen(Output)?,
        crc(&expected),
    );
    stage.m2m.stream_on()?;
    let empty = Area::anon(0, PAGE)?;
    stage
        .m2m
        .finish(t, &empty, &expected, &stage.dst, &expected)?;
    stage.m2m.judge_placement(t, Capture, 0, &stage.dst)?;

    // Released by the device, the page is still nobody's.
    drop(stage);
    let mut others = Vec::new();
    for _ in 0..16 {
        let mut other = Area::anon(0, 16 * PAGE)?;
        other.fill(t)?;
        if let Some(Ok(at)) = other.extents()? {
            t.check(
                Eye::Placement,
                !frames(&at).any(|other| other == frame),
                || format!("frame {frame:#x} is poisoned, and given to a process"),
            );
        }
        others.push(other);
    }
    heal(t, frame)
}

/// Poisons the page there, which then is SIGBUS to read. The kernel unmaps it; whether it says EBUSY, because somebody holds it still, is
/// left to it.
pub fn poison(t: &mut Ctx, mapping: &Mapping, at: usize) -> TestResult {
    let deaf = Deaf::to_sigbus()?;
    let result = mapping.try_advise(at..at + PAGE, MmapAdvise::MADV_HWPOISON as i32);
    drop(deaf);
    premise(matches!(result, Ok(()) | Err(Errno::EBUSY)), || {
        format!("MADV_HWPOISON: {result:?}")
    })?;
    t.note(format!("MADV_HWPOISON: {result:?}"));
    let (_, end) = Child::fork(|| mapping.read(at..at + 1))?.run()?;
    t.check(
        Eye::Cpu,
        matches!(end, WaitStatus::Signaled(_, Signal::SIGBUS, _)),
        || format!("who reads the poisoned page ends with {end:?}, not SIGBUS"),
    );
    Ok(())
}

/// Gives a poisoned frame that nobody holds any more back, so that the guest has all its memory again.
pub fn heal(t: &mut Ctx, frame: u64) -> TestResult {
    // The kernel may take a while to let go of the page.
    let healed = until(LIMIT, || {
        match setting::write(UNPOISON, &format!("{frame:#x}")) {
            Ok(()) => Ok(true),
            Err(Error::Call {
                errno: Errno::EBUSY,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    })?;
    t.check(Eye::Aftermath, healed, || {
        format!("frame {frame:#x} is still in use when nobody holds it any more, and cannot be unpoisoned")
    });
    Ok(())
}
