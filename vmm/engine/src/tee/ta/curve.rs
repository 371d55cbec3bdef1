// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Key pairs on elliptic curves, for the applications `ecdh` and `ecdsa`. Not hardened against timing: a guest that measures its
//! own test keys learns nothing.

use ecdsa::hazmat::{bits2field, sign_prehashed, verify_prehashed};
use ecdsa::{Signature, SignatureSize};
use elliptic_curve::generic_array::ArrayLength;
use elliptic_curve::{CurveArithmetic, NonZeroScalar, PrimeCurve, PublicKey};
use rsa::rand_core::OsRng;

/// A NIST curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P192,
    P224,
    P256,
    P384,
    P521,
}

/// A key pair, whatever its curve is.
pub trait KeyPair: Send {
    /// ECDSA's r and s, each as long as the curve's order; `None` if the digest is too short for the curve.
    fn sign(&self, digest: &[u8]) -> Option<Vec<u8>>;
    /// Whether it is a signature of this digest with this key.
    fn verify(&self, digest: &[u8], signature: &[u8]) -> bool;
}

/// A new key pair.
pub fn generate(curve: Curve) -> Box<dyn KeyPair> {
    match curve {
        Curve::P192 => Box::new(Pair::<p192::NistP192>::generate()),
        Curve::P224 => Box::new(Pair::<p224::NistP224>::generate()),
        Curve::P256 => Box::new(Pair::<p256::NistP256>::generate()),
        Curve::P384 => Box::new(Pair::<p384::NistP384>::generate()),
        Curve::P521 => Box::new(Pair::<p521::NistP521>::generate()),
    }
}

/// Makes two key pairs, and the secret that each side derives.
pub fn agree(curve: Curve) -> [Vec<u8>; 2] {
    match curve {
        Curve::P192 => agree_on::<p192::NistP192>(),
        Curve::P224 => agree_on::<p224::NistP224>(),
        Curve::P256 => agree_on::<p256::NistP256>(),
        Curve::P384 => agree_on::<p384::NistP384>(),
        Curve::P521 => agree_on::<p521::NistP521>(),
    }
}

struct Pair<C: CurveArithmetic> {
    secret: NonZeroScalar<C>,
    public: PublicKey<C>,
}

impl<C: CurveArithmetic> Pair<C> {
    fn generate() -> Self {
        let secret = NonZeroScalar::random(&mut OsRng);
        let public = PublicKey::from_secret_scalar(&secret);
        Self { secret, public }
    }
}

impl<C> KeyPair for Pair<C>
where
    C: PrimeCurve + CurveArithmetic,
    SignatureSize<C>: ArrayLength<u8>,
{
    fn sign(&self, digest: &[u8]) -> Option<Vec<u8>> {
        let digest = bits2field::<C>(digest).ok()?;
        // One in 2^96 or fewer fails, for which another is as good.
        let once = *NonZeroScalar::<C>::random(&mut OsRng).as_ref();
        let (signature, _) = sign_prehashed::<C, _>(self.secret.as_ref(), once, &digest).ok()?;
        Some(signature.to_bytes().to_vec())
    }

    fn verify(&self, digest: &[u8], signature: &[u8]) -> bool {
        let (Ok(digest), Ok(signature)) = (
            bits2field::<C>(digest),
            Signature::<C>::from_slice(signature),
        ) else {
            return false;
        };
        verify_prehashed(&self.public.to_projective(), &digest, &signature).is_ok()
    }
}

fn agree_on<C: CurveArithmetic>() -> [Vec<u8>; 2] {
    let (a, b) = (Pair::<C>::generate(), Pair::<C>::generate());
    [(&a, &b), (&b, &a)].map(|(mine, other)| {
        let secret = elliptic_curve::ecdh::diffie_hellman(mine.secret, other.public.as_affine());
        secret.raw_secret_bytes().to_vec()
    })
}
