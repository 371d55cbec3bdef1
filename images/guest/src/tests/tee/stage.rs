// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the groups of the TEE's tests share: registered memory, and the eyes that judge it.

use pinbed_abi::report::{Eye, Moment};
use pinbed_abi::ta::pin;
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::harness::error::Error;
use pinbed_guest::harness::patience::{LIMIT, until};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::device::{Device, Held, direction_name};
use pinbed_guest::observe::extent::{PAGE, frames, merged};
use pinbed_guest::observe::frame;
use pinbed_guest::tee::client::{NONE, Session, Shm, Tee, VALUE_OUT};

/// Bytes that do not fill their pages.
pub const LENGTH: usize = 5 * PAGE + 123;

/// What registered memory is called where sightings are shown.
pub const REGISTERED: &str = "registered memory";

/// Registering that is expected to work.
pub fn register(tee: &Tee, area: &Area) -> TestResult<Shm> {
    let shm = tee.register(area.address(), area.len());
    Ok(shm.map_err(Error::call("TEE_IOC_SHM_REGISTER"))?)
}

/// Unaligned memory with random contents, registered.
pub fn registered(t: &mut Ctx, tee: &Tee) -> TestResult<(Area, Shm)> {
    let mut area = Area::malloc(LENGTH)?;
    area.fill(t)?;
    t.sight(REGISTERED, Moment::Before, area.frames()?);
    let shm = register(tee, &area)?;
    Ok((area, shm))
}

/// The one buffer that the device holds.
pub fn only_held(device: &Device) -> TestResult<Held> {
    let mut all = device.list()?;
    match (all.pop(), all.len()) {
        (Some(held), 0) => Ok(held),
        (_, others) => Err(Stop::finding(
            Eye::Device,
            format!("the device holds {others} buffers besides that in question, or not even that"),
        )),
    }
}

/// The placement eye: the device holds exactly these bytes, to read and write.
pub fn judge_placement(t: &mut Ctx, device: &Device, area: &Area) -> TestResult {
    let held = only_held(device)?;
    t.equal(
        Eye::Device,
        "the device's direction",
        direction_name(held.direction),
        direction_name(wire::DIRECTION_BOTH),
    );
    t.equal(Eye::Device, "bytes held", held.length, area.len() as u64);
    let at = merged(held.segments);
    t.sight(REGISTERED, Moment::Held, frames(&at));
    match area.extents()? {
        Some(Ok(here)) => {
            t.check(Eye::Placement, at == here, || {
                format!("registered memory: {}", frame::difference(&at, &here))
            });
        }
        other => t.find(
            Eye::Placement,
            format!("registered memory is not all there: {other:?}"),
        ),
    }
    Ok(())
}

/// The application's checksum of all of the memory, from its own eye and the device's.
pub fn judge_checksum(
    t: &mut Ctx,
    tee: &Tee,
    session: Session,
    shm: &Shm,
    expected: &[u8],
) -> TestResult {
    let params = [shm.all(PARAM_MEMREF_INPUT), VALUE_OUT, NONE, NONE];
    let reply = tee
        .invoke(session, pin::CHECKSUM, params)?
        .ok("CHECKSUM of the memory")?;
    t.sight_dma(REGISTERED);
    let wanted = (u64::from(crc(expected)), expected.len() as u64, 0);
    t.equal(
        Eye::Device,
        "CRC32C and size in the application",
        reply.value(1),
        wanted,
    );
    Ok(())
}

pub fn close(tee: &Tee, session: Session) -> TestResult {
    Ok(tee
        .close_session(session)
        .map_err(Error::call("TEE_IOC_CLOSE_SESSION"))?)
}

/// Waits until a client has a call under way that opens its session first, registers memory then, and makes the call last, and returns
/// whether it came to that. That a call is under way does not say so: opening a session is one.
pub fn call_begins(device: &Device) -> TestResult<bool> {
    Ok(until(LIMIT, || Ok(device.list()?.len() == 1))? && calls_become(device, 1)?)
}

/// Waits until the device has so many calls under way, and returns whether it came to that.
pub fn calls_become(device: &Device, wanted: u64) -> TestResult<bool> {
    Ok(until(LIMIT, || Ok(device.status()?.calls == wanted))?)
}
