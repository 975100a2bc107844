//! Keys: the tenant's, as configured, and what follows from them.
//!
//! Owns the derivation and the commitment. Keys are never shown: `Debug` prints their ids, and errors name a key by its
//! number. Key material is overwritten when dropped, here and in the library below.
//!
//! ```text
//! tenant key (32 random bytes)
//!   └ HKDF-Extract ─ prk ┬ HKDF-Expand "key id"                                   8 bytes, public
//!                        ├ HKDF-Expand "batch key"  ‖ salt ‖ batch id ‖ ledger   32 bytes, the AES-256 key
//!                        ├ HKDF-Expand "commitment" ‖ salt ‖ batch id ‖ ledger   32 bytes, public
//!                        └ HKDF-Expand "request digest"                          32 bytes, an HMAC key
//! ```

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::hmac;
use base64::Engine as _;
use zeroize::Zeroizing;

use crate::id::BatchId;

/// Keys that can be configured: one that encrypts and those it replaced.
pub const TENANT_KEYS_MAX: usize = 16;
/// Bytes of the random value that a batch's key is derived with.
pub const SALT_BYTES: usize = 16;
/// Bytes of a [`BatchKeyId`].
pub const BATCH_KEY_ID_BYTES: usize = KEY_ID_BYTES + SALT_BYTES + COMMITMENT_BYTES;

const KEY_ID_BYTES: usize = 8;
const COMMITMENT_BYTES: usize = 32;
const TENANT_KEY_BYTES: usize = 32;
const BATCH_KEY_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;

const EXTRACT_SALT: &[u8] = b"certeus/field-key/v1";
const KEY_ID_LABEL: &[u8] = b"key id\0";
const BATCH_KEY_LABEL: &[u8] = b"batch key\0";
const COMMITMENT_LABEL: &[u8] = b"commitment\0";
const REQUEST_DIGEST_LABEL: &[u8] = b"request digest\0";

/// The padding at the end may be left out, as tools differ in whether they write it.
const KEY_BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// Why configured keys are refused. Names a key by its place, from 1; never shows one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing but white space and commas.
    #[error("there is no key in it")]
    None,
    /// More than [`TENANT_KEYS_MAX`].
    #[error("there are {0} keys in it, and at most {TENANT_KEYS_MAX} are taken")]
    TooMany(usize),
    /// Not base64.
    #[error("key {0} is not base64")]
    NotBase64(usize),
    /// Of the wrong length.
    #[error("key {number} has {bytes} bytes, and must have 32 (make one with: openssl rand -base64 32)")]
    Length {
        /// Which key.
        number: usize,
        /// Its length once decoded.
        bytes: usize,
    },
    /// There before.
    #[error("key {number} is the same as key {first}")]
    Repeated {
        /// Which key.
        number: usize,
        /// Which one it repeats.
        first: usize,
    },
}

/// Names a tenant key without telling anything of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a batch says of its key, in its row and in the envelopes of its events: key id, salt and commitment. Public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchKeyId {
    /// The tenant key.
    pub key: KeyId,
    /// 16 random bytes, so that two batches never share a key, whatever their ids.
    pub salt: [u8; SALT_BYTES],
    /// Fixes the tenant key: AES-GCM alone does not, as a ciphertext can be made that opens under two keys.
    pub commitment: [u8; COMMITMENT_BYTES],
}

impl BatchKeyId {
    /// As stored.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BATCH_KEY_ID_BYTES] {
        let mut bytes = [0; BATCH_KEY_ID_BYTES];
        bytes[..KEY_ID_BYTES].copy_from_slice(&self.key.0);
        bytes[KEY_ID_BYTES..KEY_ID_BYTES + SALT_BYTES].copy_from_slice(&self.salt);
        bytes[KEY_ID_BYTES + SALT_BYTES..].copy_from_slice(&self.commitment);
        bytes
    }

    /// From stored bytes; `None` when there are more or fewer than [`BATCH_KEY_ID_BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (salt, rest) = rest.split_first_chunk()?;
        Some(Self { key: KeyId(*key), salt: *salt, commitment: rest.try_into().ok()? })
    }
}

/// A tenant's key, of which only what others are derived from is kept.
struct TenantKey {
    id: KeyId,
    prk: Prk,
    request_digest: hmac::Key,
}

/// A length that the library has no algorithm for.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl TenantKey {
    fn new(key: &[u8; TENANT_KEY_BYTES]) -> Self {
        let prk = Salt::new(HKDF_SHA256, EXTRACT_SALT).extract(key);
        let mut id = KeyId([0; KEY_ID_BYTES]);
        expand(&prk, &[KEY_ID_LABEL], &mut id.0);
        let mut digest_key = Zeroizing::new([0; DIGEST_BYTES]);
        expand(&prk, &[REQUEST_DIGEST_LABEL], &mut digest_key[..]);
        let request_digest = hmac::Key::new(hmac::HMAC_SHA256, &digest_key[..]);
        Self { id, prk, request_digest }
    }

    /// The key of a batch and the commitment to it.
    fn derive(
        &self,
        ledger: &str,
        batch: BatchId,
        salt: [u8; SALT_BYTES],
    ) -> (LessSafeKey, [u8; COMMITMENT_BYTES]) {
        // Of what is appended to a label only the last part has no fixed length, so no two inputs run into each other.
        let batch = batch.uuid();
        let context = [&salt[..], batch.as_bytes(), ledger.as_bytes()];
        let mut key = Zeroizing::new([0; BATCH_KEY_BYTES]);
        expand(&self.prk, &[BATCH_KEY_LABEL, context[0], context[1], context[2]], &mut key[..]);
        let mut commitment = [0; COMMITMENT_BYTES];
        expand(&self.prk, &[COMMITMENT_LABEL, context[0], context[1], context[2]], &mut commitment);
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("an AES-256 key has 32 bytes");
        (LessSafeKey::new(key), commitment)
    }
}

/// HKDF-Expand (RFC 5869 section 2.3).
fn expand(prk: &Prk, info: &[&[u8]], out: &mut [u8]) {
    let filled = prk.expand(info, Bytes(out.len())).and_then(|okm| okm.fill(out));
    filled.expect("HKDF gives up to 8,160 bytes");
}

/// A tenant's keys: the first one encrypts, all of them decrypt.
pub struct Keyring(Vec<TenantKey>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids().collect::<Vec<_>>()).finish()
    }
}

impl Keyring {
    /// From keys in base64, with commas or white space between them.
    ///
    /// # Errors
    /// When one of them is no key, or there is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text
            .split(|character: char| character == ',' || character.is_ascii_whitespace())
            .filter(|part| !part.is_empty())
            .collect();
        match parts.len() {
            0 => return Err(Error::None),
            count if count > TENANT_KEYS_MAX => return Err(Error::TooMany(count)),
            _ => {}
        }
        let mut keys: Vec<TenantKey> = Vec::with_capacity(parts.len());
        for (number, part) in (1..).zip(parts) {
            let bytes = KEY_BASE64.decode(part).map(Zeroizing::new).map_err(|_| Error::NotBase64(number))?;
            let key: &[u8; TENANT_KEY_BYTES] =
                bytes[..].try_into().map_err(|_| Error::Length { number, bytes: bytes.len() })?;
            let key = TenantKey::new(key);
            if let Some(first) = keys.iter().position(|other| other.id == key.id) {
                return Err(Error::Repeated { number, first: first + 1 });
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    /// The ids of the keys; the first is that of the key which encrypts.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// What is stored of the digest of a request, under each key; that of the first key is the one to store. A plain digest
    /// would let whoever reads it test guesses of the values that are encrypted.
    pub(crate) fn request_digests(
        &self,
        digest: &[u8; DIGEST_BYTES],
    ) -> impl Iterator<Item = [u8; DIGEST_BYTES]> {
        self.0.iter().map(|key| {
            let tag = hmac::sign(&key.request_digest, digest);
            tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
        })
    }

    /// The key for a new batch, from fresh random bytes.
    pub(super) fn encrypting(
        &self,
        ledger: &str,
        batch: BatchId,
        salt: [u8; SALT_BYTES],
    ) -> (LessSafeKey, BatchKeyId) {
        // `parse` lets no empty ring through.
        let tenant = &self.0[0];
        let (key, commitment) = tenant.derive(ledger, batch, salt);
        (key, BatchKeyId { key: tenant.id, salt, commitment })
    }

    /// The key of a stored batch: `None` when its tenant key is not here, an error when the commitment is to another one.
    pub(super) fn decrypting(
        &self,
        ledger: &str,
        batch: BatchId,
        id: &BatchKeyId,
    ) -> Option<Result<LessSafeKey, CommitmentMismatch>> {
        let tenant = self.0.iter().find(|tenant| tenant.id == id.key)?;
        let (key, commitment) = tenant.derive(ledger, batch, id.salt);
        // The commitment is public: there is nothing to learn from the time this takes.
        Some(if commitment == id.commitment { Ok(key) } else { Err(CommitmentMismatch) })
    }
}

/// A batch's commitment is not that of the key it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitmentMismatch;
