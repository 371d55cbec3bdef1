// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an owner of protected memory allows, what becomes of it after the owner, and how much a guest may have of it and of the TEE's
//! storage: docs/device.md, 4, 5.3 and 6.

use super::stage::{Driver, Lanes, OFFERED, Stage, region};
use super::tee_requests::{NONE, close, invoke, memref, session, value};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{playback, secure_storage};
use pinbed_abi::{tee, wire};
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::observe::device::{header, range};
use pinbed_guest::observe::extent::PAGE;
use pinbed_raw::region::Region;

const PROTECTED: &str = "docs/device.md, 6 Protected memory";
const LIMITS: &str = "docs/device.md, 4 Configuration space";
const TEE: &str = "docs/device.md, 5.3 TEE";

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("raw::the_video_engine_does_what_the_owner_allows", the_video_engine_does_what_the_owner_allows, PROTECTED,
        "A job reads and writes those bytes of protected memory for which ALLOW_VIDEO says so, until it is taken back."),
    test("raw::a_new_owner_reads_nothing_of_before", a_new_owner_reads_nothing_of_before, PROTECTED,
        "After CLOSE_SESSION the next session owns protected memory, reads other bytes than the last one wrote, and the video engine's rights are gone."),
    test("raw::protection_ends_with_detach_and_reset", protection_ends_with_detach_and_reset, PROTECTED,
        "After DETACH and after a reset memory that was protected can be read, and protected again."),
    test("raw::protected_pieces_are_bounded", protected_pieces_are_bounded, LIMITS,
        "65,536 pieces of protected memory are attached, one more is STATUS_LIMIT; an ALLOW_VIDEO that needs more is OUT_OF_MEMORY."),
    test("raw::storage_outlives_resets", storage_outlives_resets, TEE,
        "An object in the TEE's storage is the same after a reset, until it is deleted."),
    test("raw::storage_is_bounded", storage_is_bounded, LIMITS,
        "Of objects of 1 MiB, no more than 16 are written; the next is STORAGE_NO_SPACE until one is deleted."),
];

const PAGE64: u64 = PAGE as u64;
const HALF: u64 = PAGE64 / 2;

/// A page of protected memory, and one beside it that is not.
struct Pages {
    _clear: Region,
    secret: Region,
    /// Handles.
    from: u64,
    to: u64,
}

impl Pages {
    fn attach(t: &mut Ctx, lanes: &mut Lanes<16>) -> TestResult<Self> {
        let (clear, secret) = (region(PAGE)?, region(PAGE)?);
        clear.write(0, &t.random(PAGE));
        let from = lanes.attach(wire::DIRECTION_BOTH, &[(clear.physical(0), PAGE64)])?;
        let to = protect(lanes, &[(secret.physical(0), PAGE64)])?.map_err(|status| {
            Stop::finding(Eye::Device, format!("a protected ATTACH: status {status}"))
        })?;
        Ok(Self {
            _clear: clear,
            secret,
            from,
            to,
        })
    }

    /// A session of playback, with a key.
    fn session(&self, lanes: &mut Lanes<16>, context: u64) -> TestResult<u32> {
        let app = session(lanes, context, playback::UUID)?;
        let key = [
            memref(tee::PARAM_MEMREF_INPUT, 0, 16, self.from),
            memref(tee::PARAM_MEMREF_INPUT, 16, 16, self.from),
            value(tee::PARAM_VALUE_INPUT, playback::POLICY_PROTECTED, 0),
            NONE,
        ];
        invoke(lanes, context, app, playback::SET_KEY, key)?;
        Ok(app)
    }

    /// Decrypts to protected memory: the result, and the CRC32C of the plain bytes.
    fn decrypt(&self, lanes: &mut Lanes<16>, context: u64, app: u32) -> TestResult<(u32, u64)> {
        let params = [
            memref(tee::PARAM_MEMREF_INPUT, 0, PAGE64, self.from),
            memref(tee::PARAM_MEMREF_OUTPUT, 0, PAGE64, self.to),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
        ];
        let answer = invoke(lanes, context, app, playback::DECRYPT, params)?;
        Ok((answer.result.get(), answer.params[2].a.get()))
    }

    /// What a session reads in a part of protected memory: the result, and the CRC32C.
    fn look(
        &self,
        lanes: &mut Lanes<16>,
        (context, app): (u64, u32),
        at: u64,
        length: u64,
    ) -> TestResult<(u32, u64)> {
        let params = [
            memref(tee::PARAM_MEMREF_INPUT, at, length, self.to),
            value(tee::PARAM_VALUE_OUTPUT, 0, 0),
            NONE,
            NONE,
        ];
        let answer = invoke(lanes, context, app, playback::CHECKSUM, params)?;
        Ok((answer.result.get(), answer.params[1].a.get()))
    }

    /// ALLOW_VIDEO of a part: the result.
    fn allow(
        &self,
        lanes: &mut Lanes<16>,
        (context, app): (u64, u32),
        at: u64,
        length: u64,
        direction: u32,
    ) -> TestResult<u32> {
        let params = [
            memref(tee::PARAM_MEMREF_INOUT, at, length, self.to),
            value(tee::PARAM_VALUE_INPUT, direction.into(), 0),
            NONE,
            NONE,
        ];
        let answer = invoke(lanes, context, app, playback::ALLOW_VIDEO, params)?;
        Ok(answer.result.get())
    }

    /// COPY out of protected memory: the fault's reason, and the CRC32C of what was read.
    fn copy_out(&self, lanes: &mut Lanes<16>, at: u64, length: u64) -> TestResult<(u32, u64)> {
        copy_part(
            lanes,
            range(self.to, at, length),
            range(self.from, 0, length),
        )
    }

    /// COPY into protected memory: the fault's reason.
    fn copy_in(&self, lanes: &mut Lanes<16>, at: u64, length: u64) -> TestResult<u32> {
        let copied = copy_part(
            lanes,
            range(self.from, 0, length),
            range(self.to, at, length),
        )?;
        Ok(copied.0)
    }
}

fn protect(lanes: &mut Lanes<16>, segments: &[(u64, u64)]) -> TestResult<Result<u64, u32>> {
    lanes.try_attach(wire::DIRECTION_BOTH, wire::ATTACH_PROTECTED, segments)
}

fn copy_part(lanes: &mut Lanes<16>, src: wire::Range, dst: wire::Range) -> TestResult<(u32, u64)> {
    let answer = lanes.job(&wire::JobRequest {
        header: header(wire::OP_COPY),
        src,
        dst,
        ..Default::default()
    })?;
    Ok((answer.fault.reason.get(), answer.src_crc.get().into()))
}

fn the_video_engine_does_what_the_owner_allows(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let pages = Pages::attach(t, &mut lanes)?;
    let owner = (1, pages.session(&mut lanes, 1)?);
    let (result, _) = pages.decrypt(&mut lanes, 1, owner.1)?;
    t.equal(Eye::Device, "DECRYPT", result, tee::TEEC_SUCCESS);
    let (_, plain) = pages.look(&mut lanes, owner, 0, HALF)?;
    const PROTECTED: u32 = wire::FAULT_PROTECTED;
    // What each half allows; whether each can be read and written then.
    for (first, second, reasons) in [
        (
            wire::DIRECTION_READ,
            0,
            [0, PROTECTED, PROTECTED, PROTECTED],
        ),
        (
            0,
            wire::DIRECTION_READ,
            [PROTECTED, PROTECTED, 0, PROTECTED],
        ),
        (
            wire::DIRECTION_READ,
            wire::DIRECTION_WRITE,
            [0, PROTECTED, PROTECTED, 0],
        ),
        (
            wire::DIRECTION_READ,
            wire::DIRECTION_BOTH,
            [0, PROTECTED, 0, 0],
        ),
        (0, 0, [PROTECTED; 4]),
    ] {
        for (at, direction) in [(0, first), (HALF, second)] {
            let result = pages.allow(&mut lanes, owner, at, HALF, direction)?;
            t.equal(Eye::Device, "ALLOW_VIDEO", result, tee::TEEC_SUCCESS);
        }
        let (read, crc) = pages.copy_out(&mut lanes, 0, HALF)?;
        if read == 0 {
            t.equal(Eye::Device, "CRC32C of what a job reads", crc, plain);
        }
        let found = [
            read,
            pages.copy_in(&mut lanes, 0, HALF)?,
            pages.copy_out(&mut lanes, HALF, HALF)?.0,
            pages.copy_in(&mut lanes, HALF, HALF)?,
        ];
        t.equal(
            Eye::Device,
            &format!("faults of reads and writes where halves allow {first} and {second}"),
            found,
            reasons,
        );
        // A byte of the other half is enough.
        let both = [first, second].map(|it| it & wire::DIRECTION_READ != 0);
        let across = pages.copy_out(&mut lanes, HALF - 1, 2)?.0;
        let expected = if both == [true; 2] { 0 } else { PROTECTED };
        t.equal(
            Eye::Device,
            "the fault of a read across both",
            across,
            expected,
        );
    }
    let of_clear = [
        memref(tee::PARAM_MEMREF_INOUT, 0, PAGE64, pages.from),
        value(tee::PARAM_VALUE_INPUT, wire::DIRECTION_READ.into(), 0),
        NONE,
        NONE,
    ];
    let answer = invoke(&mut lanes, 1, owner.1, playback::ALLOW_VIDEO, of_clear)?;
    t.equal(
        Eye::Device,
        "ALLOW_VIDEO of memory that is not protected",
        answer.result.get(),
        tee::TEEC_ERROR_BAD_PARAMETERS,
    );
    Ok(())
}

fn a_new_owner_reads_nothing_of_before(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let pages = Pages::attach(t, &mut lanes)?;
    let first = (1, pages.session(&mut lanes, 1)?);
    let (_, plain) = pages.decrypt(&mut lanes, 1, first.1)?;
    pages.allow(&mut lanes, first, 0, PAGE64, wire::DIRECTION_BOTH)?;
    let second = (2, pages.session(&mut lanes, 2)?);
    let kept_out = pages.look(&mut lanes, second, 0, PAGE64)?.0;
    t.equal(
        Eye::Device,
        "another session while the owner's is open",
        kept_out,
        tee::TEEC_ERROR_BAD_PARAMETERS,
    );
    let stands = pages.secret.read(0..PAGE);
    close(&mut lanes, 1, first.1)?;
    let (result, seen) = pages.look(&mut lanes, second, 0, PAGE64)?;
    t.equal(
        Eye::Device,
        "the new owner's look",
        result,
        tee::TEEC_SUCCESS,
    );
    t.check(Eye::Device, seen != plain, || {
        "the new owner reads what the last one wrote".into()
    });
    t.check(Eye::Device, seen != u64::from(crc(&stands)), || {
        "the new owner reads what the CPU reads".into()
    });
    let read = pages.copy_out(&mut lanes, 0, PAGE64)?.0;
    t.equal(
        Eye::Device,
        "the fault of a job that the last owner allowed",
        read,
        wire::FAULT_PROTECTED,
    );
    let again = pages.decrypt(&mut lanes, 2, second.1)?;
    let look = pages.look(&mut lanes, second, 0, PAGE64)?;
    t.equal(
        Eye::Device,
        "what the new owner writes and reads",
        look,
        again,
    );
    Ok(())
}

fn protection_ends_with_detach_and_reset(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let pages = Pages::attach(t, &mut lanes)?;
    let place = [(pages.secret.physical(0), PAGE64)];
    let plain = lanes.attach(wire::DIRECTION_BOTH, &place)?;
    lanes.detach(pages.to)?;
    let seen = lanes.checksum(plain, 0, PAGE64)?.crc.get();
    t.equal(
        Eye::Device,
        "CHECKSUM after DETACH",
        seen,
        crc(&pages.secret.read(0..PAGE)),
    );
    let again = protect(&mut lanes, &place)?;
    t.check(Eye::Device, again.is_ok(), || {
        format!("a protected ATTACH after DETACH: {again:?}")
    });
    drop(lanes);
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let plain = lanes.attach(wire::DIRECTION_BOTH, &place)?;
    let status = lanes.checksum(plain, 0, PAGE64)?.header.status.get();
    t.equal(
        Eye::Device,
        "CHECKSUM after a reset",
        status,
        wire::STATUS_OK,
    );
    let again = protect(&mut lanes, &place)?;
    t.check(Eye::Device, again.is_ok(), || {
        format!("a protected ATTACH after a reset: {again:?}")
    });
    Ok(())
}

fn protected_pieces_are_bounded(t: &mut Ctx) -> TestResult {
    const MOST: u64 = 65_536;
    /// Where no guest has memory.
    const FAR: u64 = 1 << 45;
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let pages = Pages::attach(t, &mut lanes)?;
    let owner = (1, pages.session(&mut lanes, 1)?);
    let pieces = |count| (0..count).map(|n| (FAR + 2 * n, 1)).collect::<Vec<_>>();
    let too_many = protect(&mut lanes, &pieces(MOST))?;
    t.equal(
        Eye::Device,
        "as many pieces as there may be, beside one",
        too_many,
        Err(wire::STATUS_LIMIT),
    );
    let rest = protect(&mut lanes, &pieces(MOST - 1))?;
    let rest = rest.map_err(|status| {
        Stop::finding(Eye::Device, format!("all pieces but one: status {status}"))
    })?;
    let one = protect(&mut lanes, &[(FAR - 1, 1)])?;
    t.equal(Eye::Device, "one piece more", one, Err(wire::STATUS_LIMIT));
    for (what, expected) in [
        ("where there is no room", tee::TEEC_ERROR_OUT_OF_MEMORY),
        ("where there is room", tee::TEEC_SUCCESS),
    ] {
        let result = pages.allow(&mut lanes, owner, 100, 100, wire::DIRECTION_READ)?;
        t.equal(
            Eye::Device,
            &format!("ALLOW_VIDEO of a part {what}"),
            result,
            expected,
        );
        lanes.detach(rest)?;
    }
    Ok(())
}

/// The TEE's storage, through the one session of its application that there can be.
struct Storage {
    app: u32,
    /// Ids, of 8 bytes each.
    ids: Region,
    id_handle: u64,
}

impl Storage {
    const COUNT: u64 = 32;

    fn open(lanes: &mut Lanes<16>) -> TestResult<Self> {
        let ids = region(8 * Self::COUNT as usize)?;
        for n in 0..Self::COUNT {
            ids.write(8 * n as usize, &(0x7261_7772_6177_0000 + n).to_le_bytes());
        }
        let place = [(ids.physical(0), ids.len() as u64)];
        Ok(Self {
            app: session(lanes, 1, secure_storage::UUID)?,
            id_handle: lanes.attach(wire::DIRECTION_BOTH, &place)?,
            ids,
        })
    }

    /// A function with an object, and what it takes beside the id: the result.
    fn ask(
        &self,
        lanes: &mut Lanes<16>,
        function: u32,
        object: u64,
        with: tee::Param,
    ) -> TestResult<u32> {
        debug_assert!(8 * object < self.ids.len() as u64);
        let id = memref(tee::PARAM_MEMREF_INPUT, 8 * object, 8, self.id_handle);
        let answer = invoke(lanes, 1, self.app, function, [id, with, NONE, NONE])?;
        Ok(answer.result.get())
    }

    fn delete(&self, lanes: &mut Lanes<16>, object: u64) -> TestResult<u32> {
        self.ask(lanes, secure_storage::DELETE, object, NONE)
    }
}

fn storage_outlives_resets(t: &mut Ctx) -> TestResult {
    let stage = Stage::take()?;
    let memory = region(PAGE)?;
    let bytes = t.random(100);
    let whole = [(memory.physical(0), PAGE64)];
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let storage = Storage::open(&mut lanes)?;
    memory.write(0, &bytes);
    let handle = lanes.attach(wire::DIRECTION_BOTH, &whole)?;
    let contents = memref(tee::PARAM_MEMREF_INPUT, 0, 100, handle);
    let written = storage.ask(&mut lanes, secure_storage::WRITE, 0, contents)?;
    t.equal(Eye::Device, "WRITE", written, tee::TEEC_SUCCESS);
    drop((lanes, storage));
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let storage = Storage::open(&mut lanes)?;
    memory.write(0, &[0; 100]);
    let handle = lanes.attach(wire::DIRECTION_BOTH, &whole)?;
    let room = memref(tee::PARAM_MEMREF_OUTPUT, 0, 100, handle);
    let read = storage.ask(&mut lanes, secure_storage::READ, 0, room)?;
    t.equal(Eye::Device, "READ after a reset", read, tee::TEEC_SUCCESS);
    t.same_bytes(Eye::Cpu, "the object", &memory.read(0..100), &bytes);
    let deleted = storage.delete(&mut lanes, 0)?;
    t.equal(Eye::Device, "DELETE", deleted, tee::TEEC_SUCCESS);
    let gone = storage.ask(&mut lanes, secure_storage::READ, 0, room)?;
    t.equal(
        Eye::Device,
        "READ after DELETE",
        gone,
        tee::TEEC_ERROR_ITEM_NOT_FOUND,
    );
    Ok(())
}

fn storage_is_bounded(t: &mut Ctx) -> TestResult {
    const MIB: u64 = 1 << 20;
    let stage = Stage::take()?;
    let mut lanes: Lanes<16> = stage.lanes(OFFERED)?;
    let storage = Storage::open(&mut lanes)?;
    let memory = region(PAGE)?;
    memory.write(0, &[0x5a; PAGE]);
    // The same page again and again.
    let again = vec![(memory.physical(0), PAGE64); (MIB / PAGE64) as usize];
    let handle = lanes.attach(wire::DIRECTION_READ, &again)?;
    let contents = memref(tee::PARAM_MEMREF_INPUT, 0, MIB, handle);
    let mut count = 0;
    let refused = loop {
        match storage.ask(&mut lanes, secure_storage::WRITE, count, contents)? {
            tee::TEEC_SUCCESS if count + 1 < Storage::COUNT => count += 1,
            result => break result,
        }
    };
    t.equal(
        Eye::Device,
        "one object more",
        refused,
        tee::TEEC_ERROR_STORAGE_NO_SPACE,
    );
    // What other tests have left there takes up less than an object of these.
    t.check(Eye::Device, (15..=16).contains(&count), || {
        format!("{count} objects of 1 MiB are written, expected 16")
    });
    storage.delete(&mut lanes, 0)?;
    let after = storage.ask(&mut lanes, secure_storage::WRITE, count, contents)?;
    t.equal(Eye::Device, "WRITE after DELETE", after, tee::TEEC_SUCCESS);
    for object in 1..=count {
        storage.delete(&mut lanes, object)?;
    }
    Ok(())
}
