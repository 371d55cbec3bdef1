// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The built-in trusted applications: UUIDs, functions and their parameters.
//!
//! The first ten are the well-known examples that client programs bring along, with the UUIDs, functions and parameters
//! these expect. [`pin`] and [`playback`] are pinbed's own, for its tests.
//!
//! `[in, out]` lists the parameters in order: *value in* is [`crate::tee::PARAM_VALUE_INPUT`], *memref any* one of the three
//! kinds of memref, and so on; unnamed parameters are [`crate::tee::PARAM_NONE`]. Other kinds are
//! [`crate::tee::TEEC_ERROR_BAD_PARAMETERS`].

/// 16 octets in the order of RFC 4122, as `struct tee_ioctl_open_session_arg` has them.
pub type Uuid = [u8; 16];

const fn uuid(value: u128) -> Uuid {
    value.to_be_bytes()
}

/// Counts.
pub mod hello_world {
    /// 8aaaf200-2450-11e4-abe2-0002a5d5c51b
    pub const UUID: super::Uuid = super::uuid(0x8aaaf200_2450_11e4_abe2_0002a5d5c51b);
    /// [value inout]: `a` plus one, as 32 bits.
    pub const INCREMENT: u32 = 0;
    /// [value inout]: `a` minus one, as 32 bits.
    pub const DECREMENT: u32 = 1;
}

/// Random bytes.
pub mod random {
    /// b6c53aba-9669-4668-a7f2-205629d00f86
    pub const UUID: super::Uuid = super::uuid(0xb6c53aba_9669_4668_a7f2_205629d00f86);
    /// [memref out]: filled.
    pub const GENERATE: u32 = 0;
}

/// AES without padding.
pub mod aes {
    /// 5dbac793-f574-4871-8ad3-04331ec17f24
    pub const UUID: super::Uuid = super::uuid(0x5dbac793_f574_4871_8ad3_04331ec17f24);
    /// [value in `ALGORITHM_…`, value in key size in bytes: 16 or 32, value in `MODE_…`]: begin anew.
    pub const PREPARE: u32 = 0;
    /// [memref in]: the key.
    pub const SET_KEY: u32 = 1;
    /// [memref in]: the initial vector or counter block, 16 bytes; none for ECB.
    pub const SET_IV: u32 = 2;
    /// [memref in, memref out]: the next bytes of the stream. CBC and ECB put out whole blocks and keep the rest for the
    /// next call. BAD_STATE after a call that ended in the middle, because its memory went away, until [`SET_IV`].
    pub const CIPHER: u32 = 3;
    /// [memref in, memref out, value in: zero decrypts, else encrypts, memref inout: the tag]: a whole message with CCM or GCM, the
    /// nonce [`NONCE`], and no other data. Tags are 4, 6 … 16 bytes long with CCM, 12 to 16 with GCM, else NOT_SUPPORTED;
    /// MAC_INVALID if a message does not have its tag.
    pub const AUTHENC: u32 = 4;
    /// [`PREPARE`]
    pub const ALGORITHM_ECB: u32 = 0;
    /// [`PREPARE`]
    pub const ALGORITHM_CBC: u32 = 1;
    /// [`PREPARE`]
    pub const ALGORITHM_CTR: u32 = 2;
    /// [`PREPARE`], for [`AUTHENC`] only.
    pub const ALGORITHM_CCM: u32 = 3;
    /// [`PREPARE`], for [`AUTHENC`] only.
    pub const ALGORITHM_GCM: u32 = 4;
    /// The nonce of each message of [`AUTHENC`]: this is an example.
    pub const NONCE: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    /// [`PREPARE`]
    pub const MODE_DECODE: u32 = 0;
    /// [`PREPARE`]
    pub const MODE_ENCODE: u32 = 1;
}

/// Objects that outlive a session and a reset of the device (here: in its memory). One session at a time.
pub mod secure_storage {
    /// f4e750bb-1437-4fbf-8785-8d3580c34994
    pub const UUID: super::Uuid = super::uuid(0xf4e750bb_1437_4fbf_8785_8d3580c34994);
    /// [memref in: id, memref out: contents]
    pub const READ: u32 = 0;
    /// [memref in: id, memref in: contents]: creates or replaces.
    pub const WRITE: u32 = 1;
    /// [memref in: id]
    pub const DELETE: u32 = 2;
}

/// One-time passwords (RFC 4226), six digits.
pub mod hotp {
    /// 484d4143-2d53-4841-3120-4a6f636b6542
    pub const UUID: super::Uuid = super::uuid(0x484d4143_2d53_4841_3120_4a6f636b6542);
    /// [memref in]: the shared key, 10 to 64 bytes.
    pub const REGISTER_SHARED_KEY: u32 = 0;
    /// [value out]: `a` is the next password; the counter begins with 0 in each session.
    pub const GET_HOTP: u32 = 1;
}

/// RSA.
pub mod acipher {
    /// a734eed9-d6a1-4244-aa50-7c99719e7b7b
    pub const UUID: super::Uuid = super::uuid(0xa734eed9_d6a1_4244_aa50_7c99719e7b7b);
    /// [value in]: a new key of `a` bits.
    pub const GENERATE_KEY: u32 = 0;
    /// [memref in, memref out, value in: zero decrypts, else encrypts, value in `ALGORITHM_…`]
    pub const ENCRYPT_DECRYPT: u32 = 1;
    /// RSAES-PKCS1-v1_5
    pub const ALGORITHM_PKCS1_V1_5: u32 = 0x6000_0130;
    /// RSAES-OAEP, MGF1 with SHA-1.
    pub const ALGORITHM_OAEP_SHA1: u32 = 0x6021_0230;
    /// RSAES-OAEP, MGF1 with SHA-224.
    pub const ALGORITHM_OAEP_SHA224: u32 = 0x6031_0230;
    /// RSAES-OAEP, MGF1 with SHA-256.
    pub const ALGORITHM_OAEP_SHA256: u32 = 0x6041_0230;
    /// RSAES-OAEP, MGF1 with SHA-384.
    pub const ALGORITHM_OAEP_SHA384: u32 = 0x6051_0230;
    /// RSAES-OAEP, MGF1 with SHA-512.
    pub const ALGORITHM_OAEP_SHA512: u32 = 0x6061_0230;
}

/// Elliptic-curve Diffie-Hellman.
pub mod ecdh {
    /// 50c82425-94da-4072-a3e0-58ef063767c0
    pub const UUID: super::Uuid = super::uuid(0x50c82425_94da_4072_a3e0_58ef063767c0);
    /// [value in `a` = `CURVE_…`, none, none, memref out]: makes two key pairs, derives the secret on both sides, compares, and
    /// gives it: the x coordinate, as long as the curve's field.
    pub const DERIVE_SELFTEST: u32 = 0;
    /// 24 bytes.
    pub const CURVE_P192: u32 = 0;
    /// 28 bytes.
    pub const CURVE_P224: u32 = 1;
    /// 32 bytes.
    pub const CURVE_P256: u32 = 2;
    /// 48 bytes.
    pub const CURVE_P384: u32 = 3;
}

/// ECDSA. The algorithm chooses hash and curve: SHA-1 goes with P-192, SHA-224 with P-224, and so on to SHA-512 with P-521.
pub mod ecdsa {
    /// 1945e8e7-0278-4bfb-bb99-af1080b2a934
    pub const UUID: super::Uuid = super::uuid(0x1945e8e7_0278_4bfb_bb99_af1080b2a934);
    /// [memref in: message, memref out: digest, value in `a` = `ALGORITHM_…`]: chooses the algorithm, too.
    pub const COMPUTE_DIGEST: u32 = 0;
    /// []: a new key pair for the algorithm.
    pub const GENERATE_KEY: u32 = 1;
    /// [memref in: digest, memref out: signature]: signs, and verifies that. The signature is r and s, each as long as the curve's
    /// order.
    pub const SIGN_VERIFY_DIGEST: u32 = 2;
    /// P-192, SHA-1.
    pub const ALGORITHM_SHA1: u32 = 0x7000_1042;
    /// P-224.
    pub const ALGORITHM_SHA224: u32 = 0x7000_2042;
    /// P-256.
    pub const ALGORITHM_SHA256: u32 = 0x7000_3042;
    /// P-384.
    pub const ALGORITHM_SHA384: u32 = 0x7000_4042;
    /// P-521.
    pub const ALGORITHM_SHA512: u32 = 0x7000_5042;
}

/// Digests and message authentication codes.
pub mod sha {
    /// 1dc6a16b-2fba-4aa1-9519-ea8a6c8c16e5
    pub const UUID: super::Uuid = super::uuid(0x1dc6a16b_2fba_4aa1_9519_ea8a6c8c16e5);
    /// [value in `a` = `HMAC_…` or [`AES_CMAC`], value in key size in bytes, value in `KEY_…`]: begin anew.
    pub const PREPARE: u32 = 0;
    /// [memref in]: the key, of just that size.
    pub const SET_KEY: u32 = 1;
    /// [memref in]: begin a message. These codes have no initial vector, so what is in the memref does not count.
    pub const SET_IV: u32 = 2;
    /// [memref in, memref out]: the code of the message *twice*: the example goes on with it, and then ends with it.
    pub const COMPUTE_MAC: u32 = 3;
    /// [memref in, memref in]: MAC_INVALID unless the second is what [`COMPUTE_MAC`] gives for the first.
    pub const COMPARE_MAC: u32 = 4;
    /// [memref in, memref out, value in `a` = `SHA…`]: the digest. SHAKE fills the memref.
    pub const COMPUTE_DIGEST: u32 = 5;

    /// [`COMPUTE_DIGEST`]
    pub const SHA1: u32 = 0x5000_0002;
    /// [`COMPUTE_DIGEST`]
    pub const SHA224: u32 = 0x5000_0003;
    /// [`COMPUTE_DIGEST`]
    pub const SHA256: u32 = 0x5000_0004;
    /// [`COMPUTE_DIGEST`]
    pub const SHA384: u32 = 0x5000_0005;
    /// [`COMPUTE_DIGEST`]
    pub const SHA512: u32 = 0x5000_0006;
    /// [`COMPUTE_DIGEST`]
    pub const SHA3_224: u32 = 0x5000_0008;
    /// [`COMPUTE_DIGEST`]
    pub const SHA3_256: u32 = 0x5000_0009;
    /// [`COMPUTE_DIGEST`]
    pub const SHA3_384: u32 = 0x5000_000a;
    /// [`COMPUTE_DIGEST`]
    pub const SHA3_512: u32 = 0x5000_000b;
    /// [`COMPUTE_DIGEST`]
    pub const SHAKE128: u32 = 0x5000_0101;
    /// [`COMPUTE_DIGEST`]
    pub const SHAKE256: u32 = 0x5000_0102;
    /// [`PREPARE`], with [`KEY_HMAC_SHA1`] of 10 to 64 bytes.
    pub const HMAC_SHA1: u32 = 0x3000_0002;
    /// [`PREPARE`], with [`KEY_HMAC_SHA224`] of 14 to 64 bytes.
    pub const HMAC_SHA224: u32 = 0x3000_0003;
    /// [`PREPARE`], with [`KEY_HMAC_SHA256`] of 24 to 128 bytes.
    pub const HMAC_SHA256: u32 = 0x3000_0004;
    /// [`PREPARE`], with [`KEY_HMAC_SHA384`] of 32 to 128 bytes.
    pub const HMAC_SHA384: u32 = 0x3000_0005;
    /// [`PREPARE`], with [`KEY_HMAC_SHA512`] of 32 to 128 bytes.
    pub const HMAC_SHA512: u32 = 0x3000_0006;
    /// [`PREPARE`], with [`KEY_AES`] of 16, 24 or 32 bytes.
    pub const AES_CMAC: u32 = 0x3000_0610;
    /// [`PREPARE`]
    pub const KEY_HMAC_SHA256: u32 = 0;
    /// [`PREPARE`]
    pub const KEY_HMAC_SHA1: u32 = 1;
    /// [`PREPARE`]
    pub const KEY_HMAC_SHA224: u32 = 2;
    /// [`PREPARE`]
    pub const KEY_HMAC_SHA384: u32 = 3;
    /// [`PREPARE`]
    pub const KEY_HMAC_SHA512: u32 = 4;
    /// [`PREPARE`]
    pub const KEY_AES: u32 = 5;
}

/// RSA signatures.
pub mod sign_verify {
    /// f066f150-42af-404f-ae32-c8e6cd117e70
    pub const UUID: super::Uuid = super::uuid(0xf066f150_42af_404f_ae32_c8e6cd117e70);
    /// [memref in: message, memref out: signature, value in `a` = `ALGORITHM_…`, value in key size in bits]: makes a key, signs
    /// the message's digest with it, and verifies that.
    pub const SIGN_VERIFY: u32 = 0;
    /// RSASSA-PSS, MGF1 with the same hash, a salt as long as the digest.
    pub const ALGORITHM_PSS_SHA1: u32 = 0;
    /// As [`ALGORITHM_PSS_SHA1`].
    pub const ALGORITHM_PSS_SHA224: u32 = 1;
    /// As [`ALGORITHM_PSS_SHA1`].
    pub const ALGORITHM_PSS_SHA256: u32 = 2;
    /// As [`ALGORITHM_PSS_SHA1`].
    pub const ALGORITHM_PSS_SHA384: u32 = 3;
    /// As [`ALGORITHM_PSS_SHA1`].
    pub const ALGORITHM_PSS_SHA512: u32 = 4;
    /// RSASSA-PKCS1-v1_5.
    pub const ALGORITHM_PKCS1_V1_5_SHA1: u32 = 5;
    /// RSASSA-PKCS1-v1_5.
    pub const ALGORITHM_PKCS1_V1_5_SHA224: u32 = 6;
    /// RSASSA-PKCS1-v1_5.
    pub const ALGORITHM_PKCS1_V1_5_SHA256: u32 = 7;
    /// RSASSA-PKCS1-v1_5.
    pub const ALGORITHM_PKCS1_V1_5_SHA384: u32 = 8;
    /// RSASSA-PKCS1-v1_5.
    pub const ALGORITHM_PKCS1_V1_5_SHA512: u32 = 9;
}

/// Touches memory in every way a test may want, now, late, and between calls. May not be given protected memory.
pub mod pin {
    /// a065c159-524a-4eb7-8e91-fdabe19067e6
    pub const UUID: super::Uuid = super::uuid(0xa065c159_524a_4eb7_8e91_fdabe19067e6);
    /// [memref in or inout, value out]: `a` is the CRC32C of the memory, `b` its size.
    pub const CHECKSUM: u32 = 0;
    /// [memref out or inout, value in]: fill with the four bytes of `a`, in memory order when seen as little-endian,
    /// after `b` milliseconds (at most [`MAX_WAIT_MS`]); the wait can be cancelled, and then nothing is written.
    pub const FILL: u32 = 1;
    /// [memref in, memref out]: copy; the size of the second becomes that of the first, SHORT_BUFFER if it is smaller.
    pub const COPY: u32 = 2;
    /// [memref any, memref out, value out]: the second gets the [`crate::wire::Segment`]s of the first, adjacent ones
    /// merged, SHORT_BUFFER if they do not fit. `a` is their number, `b` the memref's size, `c` 1 for the NULL memref.
    pub const DESCRIBE: u32 = 3;
    /// [memref any, value out]: remember the memref beyond this call; `a` is its number in this session. At most
    /// [`MAX_HELD`]; more are OUT_OF_MEMORY.
    pub const HOLD: u32 = 4;
    /// [value in]: forget memref `a`. ITEM_NOT_FOUND if there is none, as for the other functions that name one.
    pub const RELEASE: u32 = 5;
    /// [value in, value in, value out]: checksum of memref `a` of the first, from offset `a` of the second, `b` bytes long.
    /// Output as of [`CHECKSUM`].
    pub const HELD_CHECKSUM: u32 = 6;
    /// [value in, memref out]: read from memref `a` at offset `b` as many bytes as the second holds.
    pub const HELD_READ: u32 = 7;
    /// [value in, memref in]: write the second into memref `a` at offset `b`.
    pub const HELD_WRITE: u32 = 8;
    /// [value in, memref any]: wait `a` milliseconds (at most [`MAX_WAIT_MS`]), or until cancelled when `a` is zero; with
    /// `b` = 1 a cancellation is not heeded. The memref may be absent (none); it is not touched, but the call holds it.
    pub const WAIT: u32 = 9;
    /// [value in, value out, value inout]: the second becomes the first, in the third each bit is inverted.
    pub const ECHO: u32 = 10;
    /// [memref out, value in]: leave size `a` in the memref, without writing; SHORT_BUFFER if that is more than it has.
    pub const SET_SIZE: u32 = 11;
    /// [value in]: return the code `a`.
    pub const RETURN: u32 = 12;
    /// []: panic.
    pub const PANIC: u32 = 13;

    /// [value out, value out]: who opened the session: `a` of the first is the login (`TEE_IOCTL_LOGIN_…`), `a` and `b` of the
    /// second are the upper and the lower half of the UUID that the kernel computed for it.
    pub const CLIENT: u32 = 14;

    /// Memrefs that a session can hold.
    pub const MAX_HELD: u32 = 64;
    /// Longest wait in milliseconds.
    pub const MAX_WAIT_MS: u64 = 60_000;
}

/// Secure playback: decrypts a stream (AES-CTR) into memory that only the device's engines can read. May be given protected
/// memory; its session has a key and a policy, and knows how far the stream is. The first session that names protected memory
/// owns it until the session is closed; for all others it is as for an application without the right.
///
/// Where these functions take *memory*, it is a memref of the kind given, or a value in whose `a` is the handle of a buffer that is
/// attached as protected, all of which is meant: for kernels whose TEE subsystem cannot register a dma-buf.
pub mod playback {
    /// 02944ad1-8c7a-4d87-9010-eb6c0e3855b8
    pub const UUID: super::Uuid = super::uuid(0x02944ad1_8c7a_4d87_9010_eb6c0e3855b8);
    /// [memref in: key, 16 or 32 bytes, memref in: initial counter block, 16 bytes, value in `a` = `POLICY_…`]: begin at
    /// stream position 0.
    pub const SET_KEY: u32 = 0;
    /// [memref in, memory out, value out]: decrypt the next bytes of the stream into the second, whose size becomes that of
    /// the first (SHORT_BUFFER if it is smaller). `a` is the CRC32C of the plain bytes, `b` the new stream position.
    /// ACCESS_DENIED if the second is not protected and the policy wants it to be, or the first is; BAD_STATE without a key.
    pub const DECRYPT: u32 = 1;
    /// [value in]: go to stream position `a` (in bytes; any).
    pub const SEEK: u32 = 2;
    /// [memory in or inout, value out]: `a` is the CRC32C of the memory as it is now, `b` its size. BAD_STATE without a key.
    pub const CHECKSUM: u32 = 3;
    /// [memory any, value in]: let the video engine touch this protected memory: `a` is a `DIRECTION_…` of
    /// [`crate::wire`], or zero to forbid it again. BAD_PARAMETERS if the memory is not protected.
    pub const ALLOW_VIDEO: u32 = 4;

    /// [`SET_KEY`]: plain bytes may only go to protected memory.
    pub const POLICY_PROTECTED: u64 = 0;
    /// [`SET_KEY`]: plain bytes may go anywhere.
    pub const POLICY_CLEAR: u64 = 1;
}
