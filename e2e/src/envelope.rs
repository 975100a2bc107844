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
    /// Its bytes as received.
    pub payload: &'a [u8],
}

impl Envelope<'_> {
    /// The bytes that stand for the event.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let fields: [&[u8]; 9] = [
            self.ledger.as_bytes(),
            &self.id.to_be_bytes(),
            self.kind.as_bytes(),
            &self.time.to_be_bytes(),
            b"",
            b"",
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
    pub fn entry(&self, batch_secret: &[u8], position: u32) -> [u8; ENTRY_BYTES] {
        let salt = hash(&[b"certeus/salt/v1\0", batch_secret, &position.to_be_bytes()]);
        hash(&[b"certeus/entry/v1\0", &salt, &self.bytes()])
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
    fn the_documents_example_comes_out() {
        let document = include_str!("../../docs/formats/envelope.md");
        let given = |name: &str| {
            let line = document.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let envelope = Envelope {
            ledger: "default",
            id: 0x019c_1126_6400_7abc_8def_0123_4560_0001,
            kind: "payment.made",
            time: 1_769_860_800_123_456,
            payload: br#"{"type":"payment.made","timestamp":1769860800123456,"amount": 12.50}"#,
        };
        let secret: Vec<u8> = (0..32).collect();
        assert_eq!(hex(&envelope.bytes()), given("envelope:"));
        assert_eq!(hex(&envelope.entry(&secret, 1)), given("entry:"));
    }
}
