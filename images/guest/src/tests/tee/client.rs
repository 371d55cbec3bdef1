// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The TEE as programs use it that know nothing of us: through the ioctls that the usual client library makes, with the applications
//! that its examples call.

use super::stage::{calls_become, close};
use crate::tests::sources::{HOTP, LIBTEEC, OPTEE_EXAMPLES, SP800_38A, TEE_CLIENT_API};
use crate::tests::test::{Test, test};
use crate::tests::video::stream::Before;
use nix::sys::mman::ProtFlags;
use pinbed_abi::report::Eye;
use pinbed_abi::ta::{
    acipher, aes, ecdh, ecdsa, hello_world, hotp, pin, random, secure_storage, sha, sign_verify,
};
use pinbed_abi::tee::*;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult, crc};
use pinbed_guest::memory::mapping::Mapping;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::tee::client::{Reply, Session};
use pinbed_guest::tee::libteec::Argument::{self, None as Unused};
use pinbed_guest::tee::libteec::{Bytes, Client, inout, input, output};
use std::thread;

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("tee_client::hello_world_counts", hello_world_counts, TEE_CLIENT_API,
        "The example that counts: 42 goes in and 43 comes out."),
    test("tee_client::random_fills_a_buffer_on_the_stack", random_fills_a_buffer_on_the_stack, TEE_CLIENT_API,
        "The example of random numbers: 16 bytes of unaligned memory are filled, and nothing around them."),
    test("tee_client::aes_round_trip", aes_round_trip, SP800_38A,
        "The AES example: what is enciphered and deciphered is what it was, and the published vector of AES-CTR comes out as published."),
    test("tee_client::secure_storage_keeps_an_object", secure_storage_keeps_an_object, TEE_CLIENT_API,
        "The storage example: an object of 7000 bytes is written, read, too large for a short buffer, deleted, and not found."),
    test("tee_client::hotp_gives_the_published_passwords", hotp_gives_the_published_passwords, HOTP,
        "The example of one-time passwords gives those of RFC 4226, appendix D."),
    test("tee_client::acipher_asks_for_the_size_first", acipher_asks_for_the_size_first, TEE_CLIENT_API,
        "The RSA example: a call with NULL for the output says how large it is, the next one enciphers, and what is deciphered is what it was."),
    test("tee_client::ecdh_derives_a_secret", ecdh_derives_a_secret, OPTEE_EXAMPLES,
        "The ECDH example: a call with NULL for the output says how long the secret is on each curve, and the next one gives one."),
    test("tee_client::ecdsa_signs_a_digest", ecdsa_signs_a_digest, OPTEE_EXAMPLES,
        "The ECDSA example: the digest is the published one, and with each algorithm a signature of its length comes into memory larger than that."),
    test("tee_client::sha_gives_digests_and_codes", sha_gives_digests_and_codes, OPTEE_EXAMPLES,
        "The SHA example: the published digest of 'abc', and a code that a second operation takes for right, and not with one bit changed."),
    test("tee_client::sign_verify_gives_a_signature", sign_verify_gives_a_signature, OPTEE_EXAMPLES,
        "The RSA signature example: signatures of both schemes are as long as the key."),
    test("tee_client::read_only_memory_is_copied", read_only_memory_is_copied, LIBTEEC,
        "Memory that the program may only read cannot be registered; the copy that the client library registers instead is read as well."),
    test("tee_client::without_registering_memory_is_copied", without_registering_memory_is_copied, LIBTEEC,
        "A client that does not register allocates, maps and closes: the mapping keeps the memory for calls, and munmap gives it back."),
    test("tee_client::size_comes_back", size_comes_back, TEE_CLIENT_API,
        "An output's size comes back smaller, equal, or larger than the buffer with SHORT_BUFFER, and only what is valid is copied back."),
    test("tee_client::memory_of_no_bytes_is_not_null", memory_of_no_bytes_is_not_null, LIBTEEC,
        "A buffer of no bytes reaches the application as one of no bytes, and NULL as NULL."),
    test("tee_client::registered_memory_serves_many_calls", registered_memory_serves_many_calls, TEE_CLIENT_API,
        "Memory that is registered once is used whole and in parts, by several calls and sessions, and is pinned once."),
    test("tee_client::four_memories_in_one_call", four_memories_in_one_call, TEE_CLIENT_API,
        "A call with four memories that overlap registers each, and lets go of all."),
    test("tee_client::calls_are_cancelled_by_number_0", calls_are_cancelled_by_number_0, LIBTEEC,
        "A call that waits is cancelled by the client library, which gives all calls the number 0."),
];

/// A program: a client, and a session with an application.
struct Program {
    client: Client,
    session: Session,
    before: Before,
}

impl Program {
    fn start(uuid: pinbed_abi::ta::Uuid) -> TestResult<Self> {
        let before = Before::look()?;
        let client = Client::open()?;
        let session = client.open_session(uuid)?;
        Ok(Self {
            client,
            session,
            before,
        })
    }

    fn call(&self, function: u32, arguments: [Argument; 4]) -> TestResult<Reply> {
        Ok(self.client.invoke(self.session, function, arguments)?)
    }

    /// Closes all; nothing is left.
    fn end(self, t: &mut Ctx) -> TestResult {
        close(&self.client.tee, self.session)?;
        drop(self.client);
        self.before.judge(t, "after the program's end", 0, 0)?;
        let sessions = self.before.device.status()?.sessions.get();
        t.equal(Eye::Device, "sessions after the program's end", sessions, 0);
        Ok(())
    }
}

fn hello_world_counts(t: &mut Ctx) -> TestResult {
    let program = Program::start(hello_world::UUID)?;
    let params = [Argument::ValueInout(42, 0), Unused, Unused, Unused];
    let reply = program
        .call(hello_world::INCREMENT, params)?
        .ok("INCREMENT")?;
    t.equal(Eye::Cpu, "the value", reply.value(0).0, 43);
    program.end(t)
}

fn random_fills_a_buffer_on_the_stack(t: &mut Ctx) -> TestResult {
    let program = Program::start(random::UUID)?;
    let memory = Mapping::anon(2 * PAGE)?;
    // Across a page's end, as a buffer on the stack may be.
    let buffer = PAGE - 7..PAGE + 9;
    let generate = || {
        let params = [output(&memory, buffer.clone()), Unused, Unused, Unused];
        let reply = program.call(random::GENERATE, params)?.ok("GENERATE")?;
        TestResult::Ok((reply.size(0), memory.read(buffer.clone())))
    };
    let (first, second) = (generate()?, generate()?);
    t.equal(Eye::Cpu, "its size", first.0, 16);
    t.check(Eye::Cpu, first.1 != second.1 && second.1 != [0; 16], || {
        format!(
            "the bytes are not random: {:x?}, then {:x?}",
            first.1, second.1
        )
    });
    let around = [
        memory.read(0..buffer.start),
        memory.read(buffer.end..2 * PAGE),
    ]
    .concat();
    t.same_bytes(Eye::Cpu, "what is around", &around, &vec![0; around.len()]);
    program.end(t)
}

/// Sets key and counter block, as the example does: each in a buffer of its own.
fn prepare_aes(program: &Program, mode: u32, key: &[u8; 16], counter: &[u8; 16]) -> TestResult {
    let memory = Mapping::anon(PAGE)?;
    memory.write(8, key);
    memory.write(100, counter);
    let params = [
        Argument::ValueInput(aes::ALGORITHM_CTR, 0),
        Argument::ValueInput(16, 0),
        Argument::ValueInput(mode, 0),
        Unused,
    ];
    program.call(aes::PREPARE, params)?.ok("PREPARE")?;
    let params = [input(&memory, 8..24), Unused, Unused, Unused];
    program.call(aes::SET_KEY, params)?.ok("SET_KEY")?;
    let params = [input(&memory, 100..116), Unused, Unused, Unused];
    program.call(aes::SET_IV, params)?.ok("SET_IV")?;
    Ok(())
}

fn cipher(program: &Program, text: &[u8]) -> TestResult<Vec<u8>> {
    let (from, to) = (Mapping::malloc(text.len())?, Mapping::malloc(text.len())?);
    from.write(0, text);
    let params = [
        input(&from, 0..text.len()),
        output(&to, 0..text.len()),
        Unused,
        Unused,
    ];
    program.call(aes::CIPHER, params)?.ok("CIPHER")?;
    Ok(to.read(0..text.len()))
}

fn aes_round_trip(t: &mut Ctx) -> TestResult {
    // NIST SP 800-38A, F.5.1, first block.
    let key = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes();
    let counter = 0xf0f1_f2f3_f4f5_f6f7_f8f9_fafb_fcfd_feff_u128.to_be_bytes();
    let plain = 0x6bc1_bee2_2e40_9f96_e93d_7e11_7393_172a_u128.to_be_bytes();
    let enciphered = 0x874d_6191_b620_e326_1bef_6864_990d_b6ce_u128.to_be_bytes();
    let program = Program::start(aes::UUID)?;
    prepare_aes(&program, aes::MODE_ENCODE, &key, &counter)?;
    let seen = cipher(&program, &plain)?;
    t.same_bytes(Eye::Cpu, "the published vector", &seen, &enciphered);

    let text = t.random(4096);
    prepare_aes(&program, aes::MODE_ENCODE, &key, &counter)?;
    let seen = cipher(&program, &text)?;
    t.check(Eye::Cpu, seen != text, || {
        "enciphering changes nothing".into()
    });
    prepare_aes(&program, aes::MODE_DECODE, &key, &counter)?;
    let seen = cipher(&program, &seen)?;
    t.same_bytes(Eye::Cpu, "what was deciphered", &seen, &text);
    program.end(t)
}

fn secure_storage_keeps_an_object(t: &mut Ctx) -> TestResult {
    const SIZE: usize = 7000;
    let program = Program::start(secure_storage::UUID)?;
    let (name, data) = (Mapping::malloc(8)?, Mapping::malloc(SIZE)?);
    name.write(0, b"object#1");
    let text = t.random(SIZE);
    data.write(0, &text);
    let id = || input(&name, 0..8);
    let write = [id(), input(&data, 0..SIZE), Unused, Unused];
    program.call(secure_storage::WRITE, write)?.ok("WRITE")?;
    data.write(0, &[0; SIZE]);
    let read = |room| {
        let params = [id(), output(&data, 0..room), Unused, Unused];
        program.call(secure_storage::READ, params)
    };
    let reply = read(SIZE - 1)?;
    let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(Eye::Cpu, "reading into too little", reply.verdict(), short);
    t.equal(Eye::Cpu, "the size needed", reply.size(1), SIZE as u64);
    read(SIZE)?.ok("READ")?;
    t.same_bytes(Eye::Cpu, "the object", &data.read(0..SIZE), &text);
    let delete = [id(), Unused, Unused, Unused];
    program.call(secure_storage::DELETE, delete)?.ok("DELETE")?;
    let none = (TEEC_ERROR_ITEM_NOT_FOUND, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(
        Eye::Cpu,
        "reading what was deleted",
        read(SIZE)?.verdict(),
        none,
    );
    program.end(t)
}

fn hotp_gives_the_published_passwords(t: &mut Ctx) -> TestResult {
    let program = Program::start(hotp::UUID)?;
    let key = Mapping::malloc(20)?;
    key.write(0, b"12345678901234567890");
    let params = [input(&key, 0..20), Unused, Unused, Unused];
    program
        .call(hotp::REGISTER_SHARED_KEY, params)?
        .ok("REGISTER_SHARED_KEY")?;
    for password in [755_224, 287_082, 359_152, 969_429, 338_314] {
        let params = [Argument::ValueOutput, Unused, Unused, Unused];
        let reply = program.call(hotp::GET_HOTP, params)?.ok("GET_HOTP")?;
        t.equal(Eye::Cpu, "the password", reply.value(0).0, password);
    }
    program.end(t)
}

fn acipher_asks_for_the_size_first(t: &mut Ctx) -> TestResult {
    /// The smallest that its application takes with room for a text: keys are made at random, and large ones take long.
    const KEY_BITS: u32 = 512;
    const TEXT: &[u8] = b"a short text";
    let program = Program::start(acipher::UUID)?;
    let params = [Argument::ValueInput(KEY_BITS, 0), Unused, Unused, Unused];
    program
        .call(acipher::GENERATE_KEY, params)?
        .ok("GENERATE_KEY")?;
    let apply = |encrypt: bool, from: Argument, to: Argument| {
        let algorithm = Argument::ValueInput(acipher::ALGORITHM_PKCS1_V1_5, 0);
        let params = [from, to, Argument::ValueInput(encrypt.into(), 0), algorithm];
        program.call(acipher::ENCRYPT_DECRYPT, params)
    };
    let plain = Mapping::malloc(TEXT.len())?;
    plain.write(0, TEXT);
    let text = || input(&plain, 0..TEXT.len());
    let reply = apply(true, text(), Argument::Temporary(PARAM_MEMREF_OUTPUT, None))?;
    let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(Eye::Cpu, "enciphering into NULL", reply.verdict(), short);
    let size = reply.size(1) as usize;
    t.equal(Eye::Cpu, "the size needed", size, KEY_BITS as usize / 8);
    if size > PAGE {
        return Err(Stop::finding(Eye::Cpu, "that size is of no use"));
    }
    let secret = Mapping::malloc(size)?;
    apply(true, text(), output(&secret, 0..size))?.ok("enciphering")?;
    let clear = Mapping::malloc(size)?;
    let reply = apply(false, input(&secret, 0..size), output(&clear, 0..size))?;
    let reply = reply.ok("deciphering")?;
    let seen = clear.read(0..size.min(reply.size(1) as usize));
    t.same_bytes(Eye::Cpu, "what was deciphered", &seen, TEXT);
    program.end(t)
}

fn ecdh_derives_a_secret(t: &mut Ctx) -> TestResult {
    let program = Program::start(ecdh::UUID)?;
    for (curve, length) in [
        (ecdh::CURVE_P192, 24),
        (ecdh::CURVE_P224, 28),
        (ecdh::CURVE_P256, 32),
        (ecdh::CURVE_P384, 48),
    ] {
        let derive = |to: Argument| {
            let curve = Argument::ValueInput(curve, 0);
            program.call(ecdh::DERIVE_SELFTEST, [curve, Unused, Unused, to])
        };
        let reply = derive(Argument::Temporary(PARAM_MEMREF_OUTPUT, None))?;
        let short = (TEEC_ERROR_SHORT_BUFFER, TEEC_ORIGIN_TRUSTED_APP);
        t.equal(Eye::Cpu, "deriving into NULL", reply.verdict(), short);
        t.equal(Eye::Cpu, "the size needed", reply.size(3), length);
        let memory = Mapping::malloc(length as usize)?;
        let mut secrets = Vec::new();
        for _ in 0..2 {
            derive(output(&memory, 0..length as usize))?.ok("DERIVE_SELFTEST")?;
            secrets.push(memory.read(0..length as usize));
        }
        t.check(Eye::Cpu, secrets[0] != secrets[1], || {
            format!("two secrets of new keys on curve {curve} are the same")
        });
    }
    program.end(t)
}

fn ecdsa_signs_a_digest(t: &mut Ctx) -> TestResult {
    let program = Program::start(ecdsa::UUID)?;
    let text = b"hello world";
    let (message, digest) = (Mapping::malloc(text.len())?, Mapping::malloc(64)?);
    message.write(0, text);
    for (algorithm, length, signed) in [
        (ecdsa::ALGORITHM_SHA1, 20, 48),
        (ecdsa::ALGORITHM_SHA224, 28, 56),
        (ecdsa::ALGORITHM_SHA256, 32, 64),
        (ecdsa::ALGORITHM_SHA384, 48, 96),
        (ecdsa::ALGORITHM_SHA512, 64, 132),
    ] {
        let params = [
            input(&message, 0..text.len()),
            output(&digest, 0..64),
            Argument::ValueInput(algorithm, 0),
            Unused,
        ];
        let reply = program.call(ecdsa::COMPUTE_DIGEST, params)?;
        let reply = reply.ok("COMPUTE_DIGEST")?;
        t.equal(Eye::Cpu, "the digest's length", reply.size(1), length);
        if algorithm == ecdsa::ALGORITHM_SHA256 {
            let wanted = 0xb94d_27b9_934d_3e08_a52e_52d7_da7d_abfa_u128.to_be_bytes();
            let seen = digest.read(0..16);
            t.same_bytes(Eye::Cpu, "the digest's first half", &seen, &wanted);
        }
        program
            .call(ecdsa::GENERATE_KEY, [Unused, Unused, Unused, Unused])?
            .ok("GENERATE_KEY")?;
        let mut signatures = Vec::new();
        for _ in 0..2 {
            let memory = Mapping::anon(PAGE)?;
            let params = [
                input(&digest, 0..length as usize),
                output(&memory, 0..512),
                Unused,
                Unused,
            ];
            let reply = program.call(ecdsa::SIGN_VERIFY_DIGEST, params)?;
            let size = reply.ok("SIGN_VERIFY_DIGEST")?.size(1);
            t.equal(Eye::Cpu, "the signature's length", size, signed);
            let rest = memory.read(signed as usize..512);
            t.same_bytes(Eye::Cpu, "what is behind", &rest, &vec![0; rest.len()]);
            signatures.push(memory.read(0..signed as usize));
        }
        t.check(Eye::Cpu, signatures[0] != signatures[1], || {
            format!("two signatures with algorithm {algorithm:#x} are the same")
        });
    }
    program.end(t)
}

fn sha_gives_digests_and_codes(t: &mut Ctx) -> TestResult {
    const SIZE: usize = 128;
    let program = Program::start(sha::UUID)?;
    let (message, result) = (Mapping::malloc(3)?, Mapping::malloc(64)?);
    message.write(0, b"abc");
    let text = || input(&message, 0..3);
    let algorithm = Argument::ValueInput(sha::SHA256, 0);
    let params = [text(), output(&result, 0..64), algorithm, Unused];
    let reply = program.call(sha::COMPUTE_DIGEST, params)?;
    let length = reply.ok("COMPUTE_DIGEST")?.size(1);
    t.equal(Eye::Cpu, "the digest's length", length, 32);
    // FIPS 180-4's example.
    let wanted = 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223_u128.to_be_bytes();
    let seen = result.read(0..16);
    t.same_bytes(Eye::Cpu, "the digest's first half", &seen, &wanted);

    let key = Mapping::malloc(SIZE)?;
    key.write(0, &[0xa5; SIZE]);
    let begin = || -> TestResult {
        let prepare = [
            Argument::ValueInput(sha::HMAC_SHA256, 0),
            Argument::ValueInput(SIZE as u32, 0),
            Argument::ValueInput(sha::KEY_HMAC_SHA256, 0),
            Unused,
        ];
        program.call(sha::PREPARE, prepare)?.ok("PREPARE")?;
        let params = [input(&key, 0..SIZE), Unused, Unused, Unused];
        program.call(sha::SET_KEY, params)?.ok("SET_KEY")?;
        let none = Argument::Temporary(PARAM_MEMREF_INPUT, None);
        let params = [none, Unused, Unused, Unused];
        program.call(sha::SET_IV, params)?.ok("SET_IV")?;
        Ok(())
    };
    begin()?;
    let params = [text(), output(&result, 0..64), Unused, Unused];
    let reply = program.call(sha::COMPUTE_MAC, params)?.ok("COMPUTE_MAC")?;
    t.equal(Eye::Cpu, "the code's length", reply.size(1), 32);
    for (change, wanted) in [(0, TEEC_SUCCESS), (1, TEE_ERROR_MAC_INVALID)] {
        begin()?;
        let mut code = result.read(0..32);
        code[31] ^= change;
        result.write(0, &code);
        let params = [text(), input(&result, 0..32), Unused, Unused];
        let reply = program.call(sha::COMPARE_MAC, params)?;
        t.equal(Eye::Cpu, "comparing the code", reply.result, wanted);
    }
    program.end(t)
}

fn sign_verify_gives_a_signature(t: &mut Ctx) -> TestResult {
    /// Keys are made at random, and large ones take long.
    const KEY_BITS: u32 = 512;
    const SIZE: usize = KEY_BITS as usize / 8;
    let program = Program::start(sign_verify::UUID)?;
    let text = b"HelloFromHost";
    let message = Mapping::malloc(text.len())?;
    message.write(0, text);
    for algorithm in [
        sign_verify::ALGORITHM_PKCS1_V1_5_SHA256,
        sign_verify::ALGORITHM_PSS_SHA1,
    ] {
        let memory = Mapping::anon(PAGE)?;
        let params = [
            input(&message, 0..text.len()),
            output(&memory, 0..512),
            Argument::ValueInput(algorithm, 0),
            Argument::ValueInput(KEY_BITS, 0),
        ];
        let reply = program.call(sign_verify::SIGN_VERIFY, params)?;
        let size = reply.ok("SIGN_VERIFY")?.size(1);
        t.equal(Eye::Cpu, "the signature's length", size as usize, SIZE);
        t.check(Eye::Cpu, memory.read(0..SIZE) != [0; SIZE], || {
            "the signature was not written".into()
        });
        let rest = memory.read(SIZE..512);
        t.same_bytes(Eye::Cpu, "what is behind", &rest, &vec![0; rest.len()]);
    }
    program.end(t)
}

fn read_only_memory_is_copied(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let memory = Mapping::anon(3 * PAGE)?;
    let bytes = t.random(3 * PAGE);
    memory.write(0, &bytes);
    memory.protect(0..3 * PAGE, ProtFlags::PROT_READ)?;
    let range = 100..2 * PAGE + 55;
    let text = Bytes {
        mapping: &memory,
        range: range.clone(),
    };
    let shared = program.client.register(PARAM_MEMREF_INPUT, text)?;
    t.check(Eye::Cpu, shared.is_copied(), || {
        "memory that the program may only read was registered for reading and writing".into()
    });
    drop(shared);
    let params = [
        input(&memory, range.clone()),
        Argument::ValueOutput,
        Unused,
        Unused,
    ];
    let reply = program.call(pin::CHECKSUM, params)?.ok("CHECKSUM")?;
    let wanted = (crc(&bytes[range.clone()]).into(), range.len() as u64, 0);
    t.equal(
        Eye::Device,
        "CRC32C and size in the application",
        reply.value(1),
        wanted,
    );
    t.same_bytes(Eye::Cpu, "the memory", &memory.read(0..3 * PAGE), &bytes);
    program.end(t)
}

fn without_registering_memory_is_copied(t: &mut Ctx) -> TestResult {
    let mut program = Program::start(pin::UUID)?;
    program.client.registers = false;
    let memory = Mapping::anon(2 * PAGE)?;
    let bytes = t.random(2 * PAGE);
    memory.write(0, &bytes);
    let range = 77..PAGE + 99;
    let part = Bytes {
        mapping: &memory,
        range: range.clone(),
    };
    let shared = program.client.register(PARAM_MEMREF_INOUT, part)?;
    program.before.judge(t, "while it is mapped", 1, 0)?;
    let params = [
        Argument::Whole(&shared),
        Argument::ValueOutput,
        Unused,
        Unused,
    ];
    let reply = program.call(pin::CHECKSUM, params)?.ok("CHECKSUM")?;
    let wanted = (crc(&bytes[range.clone()]).into(), range.len() as u64, 0);
    t.equal(
        Eye::Device,
        "CRC32C and size in the application",
        reply.value(1),
        wanted,
    );
    let fill = [
        Argument::Part(PARAM_MEMREF_OUTPUT, &shared, 10..20),
        Argument::ValueInput(0x4444_4444, 0),
        Unused,
        Unused,
    ];
    program.call(pin::FILL, fill)?.ok("FILL")?;
    let mut expected = bytes;
    expected[range.start + 10..range.start + 20].fill(0x44);
    t.same_bytes(
        Eye::Cpu,
        "the memory after FILL",
        &memory.read(0..2 * PAGE),
        &expected,
    );
    drop(shared);
    program.before.judge(t, "after munmap", 0, 0)?;
    program.end(t)
}

fn size_comes_back(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let memory = Mapping::anon(PAGE)?;
    let mut expected = t.random(PAGE);
    memory.write(0, &expected);
    let bytes = Bytes {
        mapping: &memory,
        range: 50..150,
    };
    let shared = program.client.register(PARAM_MEMREF_OUTPUT, bytes)?;
    for (size, result) in [
        (0, TEEC_SUCCESS),
        (1, TEEC_SUCCESS),
        (100, TEEC_SUCCESS),
        (101, TEEC_ERROR_SHORT_BUFFER),
        (u32::MAX, TEEC_ERROR_SHORT_BUFFER),
    ] {
        let params = [
            Argument::Whole(&shared),
            Argument::ValueInput(size, 0),
            Unused,
            Unused,
        ];
        let reply = program.call(pin::SET_SIZE, params)?;
        t.equal(
            Eye::Cpu,
            &format!("size {size} of 100"),
            reply.result,
            result,
        );
        t.equal(
            Eye::Cpu,
            "the size that comes back",
            reply.size(0),
            size.into(),
        );
    }
    if shared.is_copied() {
        // Nobody wrote the copy either, which is zero, and of which the application says that it is valid.
        expected[50..150].fill(0);
    }
    drop(shared);
    t.same_bytes(
        Eye::Cpu,
        "memory that nobody wrote",
        &memory.read(0..PAGE),
        &expected,
    );
    // An input's size does not come back, whatever the application makes of it.
    let params = [
        input(&memory, 0..10),
        output(&memory, 100..200),
        Unused,
        Unused,
    ];
    let reply = program.call(pin::COPY, params)?.ok("COPY")?;
    t.equal(
        Eye::Cpu,
        "the sizes",
        (reply.size(0), reply.size(1)),
        (10, 10),
    );
    expected.copy_within(0..10, 100);
    t.same_bytes(
        Eye::Cpu,
        "the memory after COPY",
        &memory.read(0..PAGE),
        &expected,
    );
    program.end(t)
}

fn memory_of_no_bytes_is_not_null(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let memory = Mapping::anon(PAGE)?;
    for (what, argument, null) in [
        ("no bytes", input(&memory, 60..60), 0),
        (
            "no bytes at a page's end",
            input(&memory, PAGE - 8..PAGE - 8),
            0,
        ),
        ("NULL", Argument::Temporary(PARAM_MEMREF_INPUT, None), 1),
    ] {
        let room = output(&memory, 1000..1100);
        let params = [argument, room, Argument::ValueOutput, Unused];
        let reply = program.call(pin::DESCRIBE, params)?.ok("DESCRIBE")?;
        let (_, size, is_null) = reply.value(2);
        t.equal(
            Eye::Device,
            &format!("size of {what}, whether NULL"),
            (size, is_null),
            (0, null),
        );
    }
    program.end(t)
}

fn registered_memory_serves_many_calls(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let second = program.client.open_session(pin::UUID)?;
    let memory = Mapping::anon(4 * PAGE)?;
    let mut expected = t.random(4 * PAGE);
    memory.write(0, &expected);
    let range = 33..3 * PAGE + 44;
    let shared = program.client.register(
        PARAM_MEMREF_INOUT,
        Bytes {
            mapping: &memory,
            range: range.clone(),
        },
    )?;
    for round in 0..3_u8 {
        let at = usize::from(round) * PAGE;
        for session in [program.session, second] {
            let params = [
                Argument::Whole(&shared),
                Argument::ValueOutput,
                Unused,
                Unused,
            ];
            let reply = program
                .client
                .invoke(session, pin::CHECKSUM, params)?
                .ok("CHECKSUM")?;
            let wanted = (crc(&expected[range.clone()]).into(), range.len() as u64, 0);
            t.equal(
                Eye::Device,
                "CRC32C and size of the whole",
                reply.value(1),
                wanted,
            );
        }
        let params = [
            Argument::Part(PARAM_MEMREF_OUTPUT, &shared, at..at + PAGE),
            Argument::ValueInput(u32::from_le_bytes([round; 4]), 0),
            Unused,
            Unused,
        ];
        program.call(pin::FILL, params)?.ok("FILL")?;
        expected[range.start + at..range.start + at + PAGE].fill(round);
        t.same_bytes(
            Eye::Cpu,
            "the memory after FILL",
            &memory.read(0..4 * PAGE),
            &expected,
        );
        program.before.judge(t, "between calls", 1, 4)?;
    }
    drop(shared);
    close(&program.client.tee, second)?;
    program.end(t)
}

fn four_memories_in_one_call(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let memory = Mapping::anon(2 * PAGE)?;
    let mut before = t.random(2 * PAGE);
    // A copy comes back as zeros. It is made where the kernel refuses to register the memory itself.
    before[100..PAGE + 100].fill(0);
    memory.write(0, &before);
    // The application refuses so many; what they were is given back all the same.
    let all = [
        input(&memory, 0..PAGE),
        output(&memory, 100..PAGE + 100),
        inout(&memory, PAGE - 1..PAGE + 1),
        input(&memory, 0..2 * PAGE),
    ];
    let reply = program.call(pin::COPY, all)?;
    let refused = (TEEC_ERROR_BAD_PARAMETERS, TEEC_ORIGIN_TRUSTED_APP);
    t.equal(
        Eye::Cpu,
        "a call with four memories",
        reply.verdict(),
        refused,
    );
    t.same_bytes(Eye::Cpu, "the memory", &memory.read(0..2 * PAGE), &before);
    program.end(t)
}

fn calls_are_cancelled_by_number_0(t: &mut Ctx) -> TestResult {
    let program = Program::start(pin::UUID)?;
    let device = &program.before.device;
    let (waiting, cancelled, reply) = thread::scope(|scope| {
        let call = scope.spawn(|| {
            let wait = [Argument::ValueInput(2_000, 0), Unused, Unused, Unused];
            program.client.invoke(program.session, pin::WAIT, wait)
        });
        let waiting = calls_become(device, 1);
        (waiting, program.client.cancel(program.session), call.join())
    });
    t.check(Eye::Device, waiting?, || "no call is under way".into());
    t.equal(Eye::Cpu, "cancelling", cancelled, Ok(()));
    let reply =
        reply.map_err(|_| Stop::finding(Eye::Harness, "the thread that waits has panicked"))??;
    t.equal(Eye::Cpu, "its result", reply.result, TEEC_ERROR_CANCEL);
    program.end(t)
}
