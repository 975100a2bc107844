//! The envelope: the exact bytes that stand for an event in the log, and the log entry that commits to them.
//!
//! Owns the format (`docs/formats/envelope.md` is its specification and holds the test vector). Pure. Never reorders,
//! normalises or re-encodes a payload: the bytes hashed are the bytes received.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::timestamp::Timestamp;

/// Version byte of the format below.
pub const VERSION: u8 = 1;

/// Bytes of a log entry: a SHA-256.
pub const ENTRY_BYTES: usize = 32;

const SALT_DOMAIN: &[u8; 16] = b"certeus/salt/v1\0";
const ENTRY_DOMAIN: &[u8; 17] = b"certeus/entry/v1\0";

/// What the payload is. A closed list, so that a verifier needs no table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// `application/json`: one JSON object.
    Json = 1,
}

/// The fields of an event that its log entry commits to, in the order of the format.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Name of the ledger.
    pub ledger: &'a str,
    /// The event's id.
    pub id: Uuid,
    /// The event's `type`, unescaped.
    pub kind: &'a str,
    /// The event's `timestamp`.
    pub time: Timestamp,
    /// What the payload is.
    pub content_type: ContentType,
    /// The event as received.
    pub payload: &'a [u8],
}

/// The secret of a batch, from which each of its events' salts follows.
///
/// Whoever holds no salt learns nothing about a payload from its public log entry, not even by guessing payloads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BatchSecret(pub [u8; 32]);

impl BatchSecret {
    /// `SHA-256(domain || secret || position as u32 big endian)`: a fixed-length input, so a prefix key is sound.
    #[must_use]
    pub fn salt(&self, position: u32) -> [u8; 32] {
        let mut input = [0_u8; 52];
        input[..16].copy_from_slice(SALT_DOMAIN);
        input[16..48].copy_from_slice(&self.0);
        input[48..].copy_from_slice(&position.to_be_bytes());
        Sha256::digest(input).into()
    }
}

impl std::fmt::Debug for BatchSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BatchSecret(..)")
    }
}

impl Envelope<'_> {
    /// Appends everything before the payload bytes: the head. Head and payload together are the envelope.
    fn write_head(&self, out: &mut Vec<u8>) {
        let Self { ledger, id, kind, time, content_type, payload } = self;
        let producer: &[u8] = &[];
        let sequence: &[u8] = &[];
        let key_id: &[u8] = &[];
        out.push(VERSION);
        for field in [
            ledger.as_bytes(),
            id.as_bytes(),
            kind.as_bytes(),
            &time.micros().to_be_bytes(),
            producer,
            sequence,
            &[*content_type as u8],
            key_id,
        ] {
            write_length(out, field.len());
            out.extend_from_slice(field);
        }
        write_length(out, payload.len());
    }

    /// The whole envelope.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_head(&mut bytes);
        bytes.extend_from_slice(self.payload);
        bytes
    }

    /// The log entry: `SHA-256(domain || salt || envelope)`. `head` is scratch space, so that a batch allocates once.
    #[must_use]
    pub fn entry(&self, salt: &[u8; 32], head: &mut Vec<u8>) -> [u8; ENTRY_BYTES] {
        head.clear();
        head.extend_from_slice(ENTRY_DOMAIN);
        head.extend_from_slice(salt);
        self.write_head(head);
        let mut hasher = Sha256::new();
        hasher.update(&head[..]);
        hasher.update(self.payload);
        hasher.finalize().into()
    }
}

fn write_length(out: &mut Vec<u8>, length: usize) {
    // No field is near 4 GiB: request bodies are bounded far below.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Envelope<'static> {
        Envelope {
            ledger: "default",
            id: Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0001),
            kind: "payment.made",
            time: Timestamp::from_micros(1_769_860_800_123_456).unwrap(),
            content_type: ContentType::Json,
            payload: br#"{"type":"payment.made","timestamp":1769860800123456,"amount": 12.50}"#,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The specification's example is this very event; both must change together or not at all.
    #[test]
    fn the_vector_of_the_specification_holds() {
        let document = include_str!("../../../docs/formats/envelope.md");
        let vector = |name: &str| {
            let line =
                document.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
            line.trim().to_owned()
        };
        let secret = BatchSecret(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let salt = secret.salt(1);
        assert_eq!(hex(&sample().to_bytes()), vector("envelope:"));
        assert_eq!(hex(&salt), vector("salt:"));
        assert_eq!(hex(&sample().entry(&salt, &mut Vec::new())), vector("entry:"));
    }

    /// Shows that no two different events share an envelope by moving bytes across a field's border.
    #[test]
    fn fields_cannot_run_into_each_other() {
        let moved = Envelope { ledger: "defaultp", kind: "ayment.made", ..sample() };
        assert_ne!(sample().to_bytes(), moved.to_bytes());
    }
}
