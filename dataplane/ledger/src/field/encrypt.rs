//! Puts ciphertext in the place of values.

use aws_lc_rs::aead::{Aad as LibraryAad, LessSafeKey, Nonce};
use base64::Engine as _;

use super::pointer::Fields;
use super::{
    Aad, BASE64, BatchKeyId, Encryption, ORDINAL_BYTES, PADDING_BYTES, PREFIX, SALT_BYTES, TAG_BYTES, nonce,
};
use crate::id::BatchId;

/// What a caller of this module has made sure of.
const IS_EVENT: &str = "a payload was scanned when it was admitted";

/// Encrypts the events of one batch, in their order.
///
/// One per set of rows: if the rows of a batch change, they need another one with another salt.
pub struct Encryptor<'e> {
    fields: &'e Fields,
    batch: BatchId,
    key: LessSafeKey,
    key_id: BatchKeyId,
    position: u32,
    aad: Aad,
    scratch: Vec<u8>,
}

impl<'e> Encryptor<'e> {
    /// For the events of `batch`. `salt` must be fresh from a random source.
    #[must_use]
    pub fn new(encryption: &'e Encryption, ledger: &str, batch: BatchId, salt: [u8; SALT_BYTES]) -> Self {
        let (key, key_id) = encryption.keyring.encrypting(ledger, batch, salt);
        Self {
            fields: &encryption.fields,
            batch,
            key,
            key_id,
            position: 0,
            aad: Aad::new(ledger),
            scratch: Vec::new(),
        }
    }

    /// What the batch's row and envelopes say of the key.
    #[must_use]
    pub fn key_id(&self) -> BatchKeyId {
        self.key_id
    }

    /// Appends the next event's payload to `out` as it is: one that the ledger writes itself, and must be able to read.
    pub fn push_plain(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
        self.position += 1;
    }

    /// Appends the next event's payload to `out`, encrypted.
    ///
    /// # Panics
    /// When `payload` is not an event that was admitted: storing it in plain text would be worse.
    pub fn push(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let Self { fields, batch, key, key_id: _, position, aad, scratch } = self;
        let event = batch.event(*position as usize);
        let text = std::str::from_utf8(payload).expect(IS_EVENT);
        let mut ordinal = 0_u32;
        let mut copied = 0;
        fields
            .find(text, |found| {
                out.extend_from_slice(&payload[copied..found.place.start]);
                copied = found.place.end;
                scratch.clear();
                scratch.extend_from_slice(&ordinal.to_be_bytes());
                scratch.extend_from_slice(&payload[found.place]);
                scratch.resize(ORDINAL_BYTES + padded(scratch.len() - ORDINAL_BYTES), b' ');
                let nonce = Nonce::assume_unique_for_key(nonce(*position, ordinal));
                let aad = LibraryAad::from(aad.of(event, found.pointer));
                let tag = key.seal_in_place_separate_tag(nonce, aad, &mut scratch[ORDINAL_BYTES..]);
                // The library's limit is 64 GiB, and an event has 1 MiB.
                scratch.extend_from_slice(tag.expect("a value is short enough for AES-GCM").as_ref());
                write_string(scratch, out);
                ordinal += 1;
            })
            .expect(IS_EVENT);
        out.extend_from_slice(&payload[copied..]);
        self.position += 1;
    }
}

impl Fields {
    /// Bytes that an event's payload will have once it is encrypted.
    ///
    /// # Panics
    /// When `payload` is not a JSON object.
    #[must_use]
    pub fn encrypted_len(&self, payload: &str) -> usize {
        let mut length = payload.len();
        self.find(payload, |found| length = length - found.place.len() + string_len(found.place.len()))
            .expect(IS_EVENT);
        length
    }
}

/// A length with its padding. No value is empty, so neither is what is encrypted.
fn padded(length: usize) -> usize {
    length.next_multiple_of(PADDING_BYTES)
}

/// Bytes of the string that stands for a value of this length.
fn string_len(value: usize) -> usize {
    let bytes = ORDINAL_BYTES + padded(value) + TAG_BYTES;
    1 + PREFIX.len() + (bytes * 4).div_ceil(3) + 1
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(PREFIX.as_bytes());
    let start = out.len();
    out.resize(start + (bytes.len() * 4).div_ceil(3), 0);
    let written = BASE64.encode_slice(bytes, &mut out[start..]).expect("the length was worked out above");
    debug_assert_eq!(start + written, out.len());
    out.push(b'"');
}
