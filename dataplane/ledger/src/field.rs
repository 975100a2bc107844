//! Field encryption: chosen members of an event are stored as AES-256-GCM ciphertext, all other bytes as received.
//!
//! Owns the format (`docs/formats/field-encryption.md` is its specification and holds the test vector): which values are
//! found, what stands in their place, and how keys follow from the tenant's key. Pure: keys and random bytes are handed
//! in. Never touches a byte outside the values it replaces, and never shows a key. Promises: no occurrence of a
//! configured member stays in plain text, a repeated member included; a nonce is never used twice under one key
//! ([`Encryptor`] counts by itself and cannot go back); what is decrypted is byte for byte what was encrypted, of this
//! ledger, this event and this path, under the one key that the batch committed to.
//!
//! Read next: `pointer.rs` (which members), `key.rs` (keys), `encrypt.rs`, `decrypt.rs`.

mod decrypt;
mod encrypt;
mod key;
mod pointer;

pub use decrypt::{Decrypted, Decryptor, Error as DecryptError};
pub use encrypt::Encryptor;
pub use key::{
    BATCH_KEY_ID_BYTES, BatchKeyId, Error as KeyError, KeyId, Keyring, SALT_BYTES, TENANT_KEYS_MAX,
};
pub use pointer::{Error as PointerError, FIELDS_MAX, Fields, POINTER_BYTES_MAX, SEGMENTS_MAX};

/// A string that begins with this, without an escape, is what stands for an encrypted value.
pub const PREFIX: &str = "certeus:enc:v1:";

/// Values are padded with spaces to a multiple of this before encryption, so that lengths tell less: `true` and `false`
/// look the same. No JSON value ends with a space, so the padding comes off without a length being stored.
const PADDING_BYTES: usize = 16;
/// The number of the value within its event, in front of the ciphertext.
const ORDINAL_BYTES: usize = 4;
/// Bytes of the authentication tag, behind the ciphertext.
const TAG_BYTES: usize = 16;
/// Bytes of AES-GCM's nonce.
const NONCE_BYTES: usize = 12;
/// Begins the additional authenticated data.
const AAD_DOMAIN: &[u8; 17] = b"certeus/field/v1\0";

/// What a ledger encrypts, and with which keys.
#[derive(Debug)]
pub struct Encryption {
    /// The members whose values are encrypted. With none, nothing is encrypted, and what was is still decrypted.
    pub fields: Fields,
    /// The tenant's keys; the first one encrypts, all of them decrypt.
    pub keyring: Keyring,
}

/// The unpadded URL-safe alphabet (RFC 4648 section 5): nothing in it needs an escape in JSON.
const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The nonce of a value: unique under its batch's key, as positions differ between events and ordinals within one.
///
/// This is the deterministic construction of NIST SP 800-38D section 8.2.1.
fn nonce(position: u32, ordinal: u32) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..4].copy_from_slice(&position.to_be_bytes());
    nonce[4..8].copy_from_slice(&ordinal.to_be_bytes());
    nonce
}

/// Additional authenticated data: what a ciphertext belongs to. Begun once per batch, finished per value.
#[derive(Debug)]
struct Aad {
    bytes: Vec<u8>,
    ledger_end: usize,
}

impl Aad {
    fn new(ledger: &str) -> Self {
        let mut bytes = AAD_DOMAIN.to_vec();
        push_lengthened(&mut bytes, ledger.as_bytes());
        Self { ledger_end: bytes.len(), bytes }
    }

    fn of(&mut self, event: uuid::Uuid, path: &str) -> &[u8] {
        self.bytes.truncate(self.ledger_end);
        self.bytes.extend_from_slice(event.as_bytes());
        push_lengthened(&mut self.bytes, path.as_bytes());
        &self.bytes
    }
}

fn push_lengthened(out: &mut Vec<u8>, field: &[u8]) {
    // Names of ledgers and pointers are bounded far below 4 GiB.
    out.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(field);
}

#[cfg(test)]
mod tests;
