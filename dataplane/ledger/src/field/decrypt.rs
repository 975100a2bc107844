//! Puts values back in the place of their ciphertext.
//!
//! The members that are encrypted today need not be those of yesterday, so any string that looks encrypted is tried,
//! wherever a pointer can lead. Where it stands is part of what the ciphertext authenticates: a string of the same look
//! that a client sent itself is not authentic, and stays as it is.

use aws_lc_rs::aead::{Aad as LibraryAad, LessSafeKey, Nonce};
use base64::Engine as _;
use memchr::memmem;
use uuid::Uuid;

use super::key::{BatchKeyId, CommitmentMismatch, KeyId, Keyring};
use super::pointer::{POINTER_BYTES_MAX, SEGMENTS_MAX, members, push_segment};
use super::{Aad, BASE64, ORDINAL_BYTES, PADDING_BYTES, PREFIX, TAG_BYTES, nonce};
use crate::id::{self, BatchId};
use crate::json::{self, Scanner, Text};

/// What decrypting an event gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Decrypted {
    /// Nothing in it is encrypted: the payload is as stored.
    Nothing,
    /// The payload with its values back in their places.
    Payload(Vec<u8>),
    /// Something in it may be encrypted under this key, which is not here: the payload is as stored.
    MissingKey(KeyId),
}

/// Why an event cannot be decrypted although its key is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The batch's row was altered, or made by somebody who holds another key with the same id.
    #[error("the batch of event {0} is not committed to the key that it names")]
    Commitment(Uuid),
    /// An event always is an object.
    #[error("event {0} is not JSON any more")]
    NotJson(Uuid),
}

/// Decrypts events; quick for those of one batch that come after each other.
pub struct Decryptor<'k> {
    keyring: Option<&'k Keyring>,
    ledger: &'k str,
    aad: Aad,
    current: Option<Current>,
}

/// The batch whose key is at hand.
struct Current {
    batch: BatchId,
    key_id: BatchKeyId,
    key: Option<LessSafeKey>,
}

impl<'k> Decryptor<'k> {
    /// With the keys of the ledger's tenant; without any, every key is a missing one.
    #[must_use]
    pub fn new(keyring: Option<&'k Keyring>, ledger: &'k str) -> Self {
        Self { keyring, ledger, aad: Aad::new(ledger), current: None }
    }

    /// Decrypts what is encrypted in the payload of an event. `key_id` is what its batch says of its key.
    ///
    /// # Errors
    /// When stored bytes are not what this software writes.
    pub fn decrypt(&mut self, event: Uuid, key_id: &BatchKeyId, payload: &[u8]) -> Result<Decrypted, Error> {
        if memmem::find(payload, PREFIX.as_bytes()).is_none() {
            return Ok(Decrypted::Nothing);
        }
        let batch = BatchId::of(event);
        let current = match self.current.take() {
            Some(current) if current.batch == batch && current.key_id == *key_id => current,
            _ => {
                let key = self.keyring.and_then(|ring| ring.decrypting(self.ledger, batch, key_id));
                let key = key.transpose().map_err(|CommitmentMismatch| Error::Commitment(event))?;
                Current { batch, key_id: *key_id, key }
            }
        };
        let current = self.current.insert(current);
        let Some(key) = &current.key else { return Ok(Decrypted::MissingKey(key_id.key)) };
        let position = u32::try_from(id::position(event)).unwrap_or(u32::MAX);
        let text = std::str::from_utf8(payload).map_err(|_| Error::NotJson(event))?;
        let mut walk = Walk {
            payload: text,
            path: String::new(),
            segments: 0,
            out: Vec::with_capacity(payload.len()),
            copied: 0,
            open: |path: &str, encoded: &str| open(key, self.aad.of(event, path), position, encoded),
        };
        walk.object(&mut Scanner::new(payload, 0, 0)).map_err(|_| Error::NotJson(event))?;
        let Walk { mut out, copied, .. } = walk;
        if copied == 0 {
            return Ok(Decrypted::Nothing);
        }
        out.extend_from_slice(&payload[copied..]);
        Ok(Decrypted::Payload(out))
    }
}

/// One pass through a payload.
struct Walk<'p, O> {
    payload: &'p str,
    /// The pointer of the object being read, and how many segments it has.
    path: String,
    segments: usize,
    out: Vec<u8>,
    /// Up to here the payload is in `out`.
    copied: usize,
    open: O,
}

impl<'p, O: FnMut(&str, &str) -> Option<Vec<u8>>> Walk<'p, O> {
    fn object(&mut self, scanner: &mut Scanner<'p>) -> Result<(), json::Error> {
        members(scanner, |scanner, key| {
            let value = scanner.peek();
            let outer = self.path.len();
            // Only what a configured pointer can have led to: no longer, no deeper, and by names that are text.
            let name = key.unescape(self.payload).filter(|_| self.segments < SEGMENTS_MAX);
            let Some(name) = name.filter(|_| matches!(value, Some(b'{' | b'"'))) else {
                return scanner.value();
            };
            push_segment(&mut self.path, &name);
            self.segments += 1;
            let read = if self.path.len() > POINTER_BYTES_MAX {
                scanner.value()
            } else if value == Some(b'{') {
                self.object(scanner)
            } else {
                scanner.string().map(|text| self.string(text))
            };
            self.segments -= 1;
            self.path.truncate(outer);
            read
        })
    }

    fn string(&mut self, text: Text) {
        let raw = &self.payload[text.start..text.end];
        let Some(encoded) = raw.strip_prefix(PREFIX) else { return };
        if let Some(value) = (self.open)(&self.path, encoded) {
            // The quotes go as well.
            self.out.extend_from_slice(&self.payload.as_bytes()[self.copied..text.start - 1]);
            self.out.extend_from_slice(&value);
            self.copied = text.end + 1;
        }
    }
}

/// The value, if the string is authentic.
fn open(key: &LessSafeKey, aad: &[u8], position: u32, encoded: &str) -> Option<Vec<u8>> {
    let mut bytes = BASE64.decode(encoded).ok()?;
    let (ordinal, sealed) = bytes.split_first_chunk_mut::<ORDINAL_BYTES>()?;
    let length = sealed.len().checked_sub(TAG_BYTES)?;
    if length == 0 || !length.is_multiple_of(PADDING_BYTES) {
        return None;
    }
    let nonce = Nonce::assume_unique_for_key(nonce(position, u32::from_be_bytes(*ordinal)));
    let padded = key.open_in_place(nonce, LibraryAad::from(aad), sealed).ok()?;
    let value = padded.iter().rposition(|byte| *byte != b' ').map(|last| &padded[..=last])?;
    Some(value.to_vec())
}
