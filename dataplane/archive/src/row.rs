//! One archived event.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Begins what a log entry hashes (`docs/formats/envelope.md`).
const ENTRY_DOMAIN: &[u8; 17] = b"certeus/entry/v1\0";

/// An event with everything that ties it to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its index in the ledger.
    pub index: u64,
    /// Its id.
    pub id: Uuid,
    /// Its `timestamp`, in microseconds since the Unix epoch.
    pub time_micros: i64,
    /// When it was committed, in microseconds since the Unix epoch.
    pub committed_micros: i64,
    /// Its `type`.
    pub kind: String,
    /// Its log entry.
    pub entry: [u8; 32],
    /// What the entry commits to; `None` for an event that was erased.
    pub content: Option<Content>,
}

/// What a log entry commits to.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// The event as received.
    pub payload: Bytes,
    /// The envelope's bytes before the payload.
    pub head: Vec<u8>,
    /// The event's salt.
    pub salt: [u8; 32],
}

impl std::fmt::Debug for Content {
    /// Neither payload nor salt.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("payload_bytes", &self.payload.len()).finish_non_exhaustive()
    }
}

impl Row {
    /// Whether the bytes are those that the entry commits to. An erased event has none that could be wrong.
    #[must_use]
    pub fn matches_entry(&self) -> bool {
        let Some(Content { payload, head, salt }) = &self.content else { return true };
        let mut hasher = Sha256::new();
        for part in [&ENTRY_DOMAIN[..], salt, head, payload] {
            hasher.update(part);
        }
        hasher.finalize()[..] == self.entry
    }

    /// Bytes of memory that the row holds on to, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let content = self.content.as_ref().map_or(0, |content| content.payload.len() + content.head.len());
        size_of::<Self>() + self.kind.len() + content
    }
}
