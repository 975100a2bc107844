//! The envelope: the exact bytes that stand for an event in the log, and the log entry that commits to them.
//!
//! Owns the format (`docs/formats/envelope.md` is its specification and holds the test vector). Pure. Never reorders,
//! normalises or re-encodes a payload: the bytes hashed are the bytes received.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::field::BATCH_KEY_ID_BYTES;
use crate::request::is_producer_id;
use crate::submission::TYPE_BYTES_MAX;
use crate::timestamp::Timestamp;

/// Version byte of the format below.
pub const VERSION: u8 = 1;

/// Bytes of a log entry: a SHA-256.
pub const ENTRY_BYTES: usize = 32;

const SALT_DOMAIN: &[u8; 16] = b"certeus/salt/v1\0";
pub(crate) const ENTRY_DOMAIN: &[u8; 17] = b"certeus/entry/v1\0";

/// What the payload is. A closed list, so that a verifier needs no table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// `application/json`: one JSON object.
    Json = 1,
}

/// Bytes of a filled `sequence` field: the epoch (u32) and the sequence number (u64).
const SEQUENCE_BYTES: usize = 12;
/// Bytes of the longest ledger name.
const LEDGER_BYTES_MAX: usize = 63;

/// Where an event stands among those of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerPlace<'a> {
    /// The producer's id: 1 to [`PRODUCER_BYTES_MAX`](crate::request::PRODUCER_BYTES_MAX) visible ASCII characters.
    pub id: &'a str,
    /// The life of the producer that sent it.
    pub epoch: u32,
    /// The event's number within that life, from 0.
    pub sequence: u64,
}

/// Everything of an event that its log entry commits to, but for the payload, in the order of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopeHead<'a> {
    /// Name of the ledger.
    pub ledger: &'a str,
    /// The event's id.
    pub id: Uuid,
    /// The event's `type`, unescaped.
    pub kind: &'a str,
    /// The event's `timestamp`.
    pub time: Timestamp,
    /// Who sent it under which number; `None` for an event without.
    pub producer: Option<ProducerPlace<'a>>,
    /// What the payload is.
    pub content_type: ContentType,
    /// The [`BatchKeyId`](crate::field::BatchKeyId) of a payload that may have encrypted members; empty for a plain one.
    pub key_id: &'a [u8],
}

/// An event as its log entry commits to it.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// What stands before the payload.
    pub head: EnvelopeHead<'a>,
    /// The event as received.
    pub payload: &'a [u8],
}

/// Why bytes are not the head of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// They end too early.
    #[error("the envelope's head ends too early")]
    Truncated,
    /// Something follows the payload's length.
    #[error("{0} bytes follow the envelope's head")]
    Trailing(usize),
    /// A version that this software does not know.
    #[error("envelope version {0} is not known")]
    Version(u8),
    /// A field holds what the format does not allow.
    #[error("the envelope's field `{0}` is not valid")]
    Field(&'static str),
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

impl EnvelopeHead<'_> {
    /// Appends the head, which ends with the length of the payload.
    pub fn write(&self, payload_len: usize, out: &mut Vec<u8>) {
        let Self { ledger, id, kind, time, producer, content_type, key_id } = self;
        out.push(VERSION);
        write_field(out, ledger.as_bytes());
        write_field(out, id.as_bytes());
        write_field(out, kind.as_bytes());
        write_field(out, &time.micros().to_be_bytes());
        match producer {
            None => {
                write_length(out, 0);
                write_length(out, 0);
            }
            Some(ProducerPlace { id, epoch, sequence }) => {
                write_field(out, id.as_bytes());
                write_length(out, SEQUENCE_BYTES);
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&sequence.to_be_bytes());
            }
        }
        write_field(out, &[*content_type as u8]);
        write_field(out, key_id);
        write_length(out, payload_len);
    }
}

impl<'a> Envelope<'a> {
    /// Reads a head and the length of the payload that belongs to it. `bytes` is the head alone.
    ///
    /// Strict: what it accepts is what [`EnvelopeHead::write`] writes, byte for byte.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn read_head(bytes: &'a [u8]) -> Result<(EnvelopeHead<'a>, usize), HeadError> {
        let mut reader = Reader(bytes);
        let version = reader.array::<1>()?[0];
        if version != VERSION {
            return Err(HeadError::Version(version));
        }
        let ledger = reader.text("ledger", LEDGER_BYTES_MAX)?;
        let id = Uuid::from_bytes(reader.fixed("id")?);
        let kind = reader.text("type", TYPE_BYTES_MAX)?;
        let time = Timestamp::from_micros(i64::from_be_bytes(reader.fixed("time")?))
            .map_err(|_out_of_range| HeadError::Field("time"))?;
        let producer = reader.producer()?;
        let content_type = match reader.field()? {
            [1] => ContentType::Json,
            _ => return Err(HeadError::Field("content type")),
        };
        let key_id = reader.field()?;
        if !matches!(key_id.len(), 0 | BATCH_KEY_ID_BYTES) {
            return Err(HeadError::Field("key id"));
        }
        let payload_len = reader.length()?;
        if !reader.0.is_empty() {
            return Err(HeadError::Trailing(reader.0.len()));
        }
        Ok((EnvelopeHead { ledger, id, kind, time, producer, content_type, key_id }, payload_len))
    }

    /// The whole envelope.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.head.write(self.payload.len(), &mut bytes);
        bytes.extend_from_slice(self.payload);
        bytes
    }

    /// The log entry: `SHA-256(domain || salt || envelope)`. `scratch` is reused, so that a batch allocates once.
    #[must_use]
    pub fn entry(&self, salt: &[u8; 32], scratch: &mut Vec<u8>) -> [u8; ENTRY_BYTES] {
        scratch.clear();
        scratch.extend_from_slice(ENTRY_DOMAIN);
        scratch.extend_from_slice(salt);
        self.head.write(self.payload.len(), scratch);
        let mut hasher = Sha256::new();
        hasher.update(&scratch[..]);
        hasher.update(self.payload);
        hasher.finalize().into()
    }
}

/// What is left to read of a head.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeadError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(HeadError::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    fn length(&mut self) -> Result<usize, HeadError> {
        let length = u32::from_be_bytes(self.array()?);
        usize::try_from(length).map_err(|_beyond_memory| HeadError::Truncated)
    }

    fn field(&mut self) -> Result<&'a [u8], HeadError> {
        let length = self.length()?;
        let (field, rest) = self.0.split_at_checked(length).ok_or(HeadError::Truncated)?;
        self.0 = rest;
        Ok(field)
    }

    fn fixed<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], HeadError> {
        self.field()?.try_into().map_err(|_other_length| HeadError::Field(name))
    }

    /// Text of 1 to `max` bytes without control characters.
    fn text(&mut self, name: &'static str, max: usize) -> Result<&'a str, HeadError> {
        let text = std::str::from_utf8(self.field()?).map_err(|_not_utf8| HeadError::Field(name))?;
        let valid = (1..=max).contains(&text.len()) && !text.chars().any(char::is_control);
        if valid { Ok(text) } else { Err(HeadError::Field(name)) }
    }

    /// The fields `producer` and `sequence`: both filled or both empty.
    fn producer(&mut self) -> Result<Option<ProducerPlace<'a>>, HeadError> {
        let id = self.field()?;
        let sequence = self.field()?;
        if id.is_empty() {
            return if sequence.is_empty() { Ok(None) } else { Err(HeadError::Field("sequence")) };
        }
        let id = std::str::from_utf8(id).ok().filter(|id| is_producer_id(id));
        let id = id.ok_or(HeadError::Field("producer"))?;
        let (Some(epoch), Some(number)) = (sequence.first_chunk::<4>(), sequence.last_chunk::<8>()) else {
            return Err(HeadError::Field("sequence"));
        };
        if sequence.len() != SEQUENCE_BYTES {
            return Err(HeadError::Field("sequence"));
        }
        Ok(Some(ProducerPlace {
            id,
            epoch: u32::from_be_bytes(*epoch),
            sequence: u64::from_be_bytes(*number),
        }))
    }
}

fn write_field(out: &mut Vec<u8>, field: &[u8]) {
    write_length(out, field.len());
    out.extend_from_slice(field);
}

fn write_length(out: &mut Vec<u8>, length: usize) {
    // No field is near 4 GiB: request bodies are bounded far below.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Envelope<'static> {
        let head = EnvelopeHead {
            ledger: "default",
            id: Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0001),
            kind: "payment.made",
            time: Timestamp::from_micros(1_769_860_800_123_456).unwrap(),
            producer: None,
            content_type: ContentType::Json,
            key_id: &[],
        };
        let payload = br#"{"type":"payment.made","timestamp":1769860800123456,"amount": 12.50}"#;
        Envelope { head, payload }
    }

    fn with_producer() -> Envelope<'static> {
        let producer = Some(ProducerPlace { id: "till-7", epoch: 3, sequence: 258 });
        Envelope { head: EnvelopeHead { producer, ..sample().head }, ..sample() }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The specification's examples are these very events; both must change together or not at all.
    #[test]
    fn the_vectors_of_the_specification_hold() {
        let document = include_str!("../../../docs/formats/envelope.md");
        let vectors = |name: &str| -> Vec<String> {
            document
                .lines()
                .filter_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_owned())
                .collect()
        };
        let secret = BatchSecret(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let salt = secret.salt(1);
        let events = [sample(), with_producer()];
        assert_eq!(vectors("salt:"), [hex(&salt)]);
        assert_eq!(vectors("envelope:"), events.map(|event| hex(&event.to_bytes())));
        assert_eq!(vectors("entry:"), events.map(|event| hex(&event.entry(&salt, &mut Vec::new()))));
    }

    /// Shows that no two different events share an envelope by moving bytes across a field's border.
    #[test]
    fn fields_cannot_run_into_each_other() {
        let head = EnvelopeHead { ledger: "defaultp", kind: "ayment.made", ..sample().head };
        let moved = Envelope { head, ..sample() };
        assert_ne!(sample().to_bytes(), moved.to_bytes());
    }

    fn head_bytes(envelope: &Envelope<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        envelope.head.write(envelope.payload.len(), &mut bytes);
        bytes
    }

    #[test]
    fn heads_come_back_and_anything_cut_or_added_is_refused() {
        for envelope in [sample(), with_producer()] {
            let bytes = head_bytes(&envelope);
            assert_eq!(Envelope::read_head(&bytes), Ok((envelope.head, envelope.payload.len())));
            for end in 0..bytes.len() {
                assert_eq!(Envelope::read_head(&bytes[..end]), Err(HeadError::Truncated));
            }
            assert_eq!(Envelope::read_head(&[&bytes[..], b"x"].concat()), Err(HeadError::Trailing(1)));
        }
    }

    #[test]
    fn fields_outside_the_format_are_named() {
        let name = "x".repeat(300);
        let head = sample().head;
        let producer = |id| Some(ProducerPlace { id, epoch: 0, sequence: 0 });
        for (head, field) in [
            (EnvelopeHead { ledger: "", ..head }, "ledger"),
            (EnvelopeHead { ledger: &name, ..head }, "ledger"),
            (EnvelopeHead { kind: &name, ..head }, "type"),
            (EnvelopeHead { kind: "a\nb", ..head }, "type"),
            (EnvelopeHead { producer: producer(&name), ..head }, "producer"),
            (EnvelopeHead { producer: producer("a b"), ..head }, "producer"),
            (EnvelopeHead { producer: producer(""), ..head }, "sequence"),
            (EnvelopeHead { key_id: &[0; BATCH_KEY_ID_BYTES - 1], ..head }, "key id"),
        ] {
            let bytes = head_bytes(&Envelope { head, payload: b"{}" });
            assert_eq!(Envelope::read_head(&bytes), Err(HeadError::Field(field)));
        }
        let mut bytes = head_bytes(&sample());
        bytes[0] = 2;
        assert_eq!(Envelope::read_head(&bytes), Err(HeadError::Version(2)));
    }

    proptest! {
        /// Two different texts never read as the same head: what is accepted is what would be written.
        #[test]
        fn what_is_read_is_what_would_be_written(at in 0_usize..200, byte: u8, producer: bool) {
            let mut bytes = head_bytes(&if producer { with_producer() } else { sample() });
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok((head, payload_len)) = Envelope::read_head(&bytes) {
                let mut again = Vec::new();
                head.write(payload_len, &mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
