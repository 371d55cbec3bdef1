// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the device writes while the guest stands still: the test's side of [`pinbed_abi::frozen`].

use super::stage::region;
use pinbed_abi::frozen::{
    Mailbox, PHASE_ASKED, PHASE_DONE, PHASE_FAILED, PHASE_HELD, PHASE_READY, RANGES, Range,
};
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, is_supervised, tell_from_anywhere};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience;
use pinbed_guest::harness::progress::Progress;
use pinbed_raw::region::Region;
use pinbed_raw::virtio_drivers::transport::Transport;
use pinbed_raw::virtio_drivers::transport::pci::PciTransport;
use std::mem::offset_of;
use std::time::Duration;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How long the host may take for each step.
const LIMIT: Duration = Duration::from_secs(25);

/// What the device wrote.
pub struct Written {
    /// Bytes of memory that were compared: all that the guest has.
    pub compared: u64,
    /// Bytes that it wrote where it was allowed to, as far as they were others than before.
    pub inside: u64,
    /// Bytes that it wrote elsewhere.
    pub outside: u64,
    /// The first of them: physical address and length.
    pub found: Vec<(u64, u64)>,
}

impl Written {
    /// Some was written, and none elsewhere than allowed.
    pub fn judge(&self, t: &mut Ctx, what: &str) {
        t.note(format!(
            "{} MiB, all guest memory, were compared after {what}: {} bytes were written, all but {} of them where they may be",
            self.compared >> 20,
            self.inside + self.outside,
            self.outside
        ));
        t.check(Eye::Device, self.inside > 0, || {
            format!("the device wrote nothing at all for {what}")
        });
        t.check(Eye::Device, self.outside == 0, || {
            format!(
                "{what}: the device wrote {} bytes that it was not given, first (address, length) {:x?}",
                self.outside, self.found
            )
        });
    }
}

/// A device that stands still, until it is told of what is in its rings.
pub struct Held {
    page: Region,
}

/// Has the device stand still. In what it is to do then it may write the `allowed` ranges of physical addresses, given with their
/// lengths.
pub fn hold(allowed: &[(u64, u64)]) -> TestResult<Held> {
    if !is_supervised() {
        return Err(Error::Absent {
            what: "a host that compares guest memory".into(),
            remedy: "run the test with `pinbed run`".into(),
        }
        .into());
    }
    assert!(allowed.len() <= RANGES, "a mailbox has room for {RANGES}");
    let mut mailbox = Mailbox::new_zeroed();
    mailbox.phase = PHASE_ASKED.into();
    mailbox.allowed_count = (allowed.len() as u32).into();
    for (to, (address, length)) in mailbox.allowed.iter_mut().zip(allowed) {
        *to = Range {
            address: (*address).into(),
            length: (*length).into(),
        };
    }
    let page = region(size_of::<Mailbox>())?;
    page.write(0, mailbox.as_bytes());
    tell_from_anywhere(&Progress::Freeze {
        mailbox: page.physical(0),
    });
    await_phase(&page, PHASE_HELD)?;
    Ok(Held { page })
}

impl Held {
    /// Notifies the device of what is in the rings of these queues, and has all guest memory compared around what it does then.
    ///
    /// Nobody in the guest runs meanwhile, so that what differs was written by the device.
    pub fn serve(self, transport: &mut PciTransport, queues: &[u32]) -> TestResult<Written> {
        for queue in queues {
            transport.notify(*queue as u16);
        }
        let phase = offset_of!(Mailbox, phase);
        self.page.write(phase, &PHASE_READY.to_le_bytes());
        await_phase(&self.page, PHASE_DONE)?;
        let seen = read(&self.page);
        let found = seen.found.iter().filter(|range| range.length.get() > 0);
        Ok(Written {
            compared: seen.compared.get(),
            inside: seen.inside.get(),
            outside: seen.outside.get(),
            found: found
                .map(|range| (range.address.get(), range.length.get()))
                .collect(),
        })
    }
}

fn read(page: &Region) -> Mailbox {
    let bytes = page.read(0..size_of::<Mailbox>());
    Mailbox::read_from_bytes(&bytes).unwrap_or_else(|_| Mailbox::new_zeroed())
}

fn await_phase(page: &Region, phase: u32) -> TestResult {
    let mut last = PHASE_ASKED;
    let came = patience::until(LIMIT, || {
        last = read(page).phase.get();
        Ok(last == phase || last == PHASE_FAILED)
    })?;
    match came && last == phase {
        true => Ok(()),
        false => Err(Stop::finding(
            Eye::Harness,
            format!("the host did not compare guest memory: phase {last}, expected {phase}"),
        )),
    }
}
