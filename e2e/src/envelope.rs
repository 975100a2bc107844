//! Log entries, computed from `docs/formats/envelope.md` alone.
//!
//! On purpose this shares nothing with the ledger's own code: two readings of one document must agree.

use sha2::{Digest, Sha256};

/// Bytes of a log entry.
pub const ENTRY_BYTES: usize = 32;

/// What an event's envelope is made of.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Name of the ledger.
    pub ledger: &'a str,
    /// The event's id.
    pub id: u128,
    /// Its `type`.
    pub kind: &'a str,
    /// Its `timestamp` in microseconds since 1970.
    pub time: i64,
    /// The producer's id, epoch and number of the event, if it came with them.
    pub sequence: Option<(&'a str, u32, u64)>,
    /// Its bytes as received.
    pub payload: &'a [u8],
}

/// The salt of a batch's event at a position, while the batch has its secret.
#[must_use]
pub fn salt(batch_secret: &[u8], position: u32) -> [u8; 32] {
    hash(&[b"certeus/salt/v1\0", batch_secret, &position.to_be_bytes()])
}

impl Envelope<'_> {
    /// The bytes that stand for the event.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let sequence = self
            .sequence
            .map(|(_, epoch, number)| [&epoch.to_be_bytes()[..], &number.to_be_bytes()].concat());
        let fields: [&[u8]; 9] = [
            self.ledger.as_bytes(),
            &self.id.to_be_bytes(),
            self.kind.as_bytes(),
            &self.time.to_be_bytes(),
            self.sequence.map_or(b"", |(producer, ..)| producer.as_bytes()),
            &sequence.unwrap_or_default(),
            &[1],
            b"",
            self.payload,
        ];
        let mut bytes = vec![1];
        for field in fields {
            let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes
    }

    /// What the log holds for the event.
    #[must_use]
    pub fn entry(&self, salt: &[u8]) -> [u8; ENTRY_BYTES] {
        hash(&[b"certeus/entry/v1\0", salt, &self.bytes()])
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_examples_come_out() {
        let document = include_str!("../../docs/formats/envelope.md");
        let given = |name: &str| {
            let lines = document.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let plain = Envelope {
            ledger: "default",
            id: 0x019c_1126_6400_7abc_8def_0123_4560_0001,
            kind: "payment.made",
            time: 1_769_860_800_123_456,
            sequence: None,
            payload: br#"{"type":"payment.made","timestamp":1769860800123456,"amount": 12.50}"#,
        };
        let numbered = Envelope { sequence: Some(("till-7", 3, 258)), ..plain };
        let secret: Vec<u8> = (0..32).collect();
        let salt = salt(&secret, 1);
        assert_eq!([hex(&salt)].to_vec(), given("salt:"));
        assert_eq!([plain, numbered].map(|envelope| hex(&envelope.bytes())).to_vec(), given("envelope:"));
        assert_eq!([plain, numbered].map(|envelope| hex(&envelope.entry(&salt))).to_vec(), given("entry:"));
    }
}
