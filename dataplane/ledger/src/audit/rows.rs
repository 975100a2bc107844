//! Re-hashes events from their stored bytes and compares them with the log entries of their batches.
//!
//! Pure. Works on a stretch of ids: the batches in it, then its rows, both in the order of ids. Never allocates for an event
//! that is as it should be. What is not as it should be goes to [`Suspects`]; what it means is judged there, once all of
//! them are known.

use std::collections::HashSet;
use std::mem;

use uuid::Uuid;

use super::suspect::Suspects;
use crate::commit::from_postgres_micros;
use crate::envelope::{BatchSecret, ContentType, ENTRY_BYTES, Envelope, EnvelopeHead, ProducerPlace};
use crate::id::BatchId;
use crate::provenance::Runs;

/// A batch as the audit of rows needs it.
#[derive(Debug)]
pub(crate) struct BatchRow {
    pub(crate) first_index: u64,
    pub(crate) event_count: u32,
    pub(crate) id: BatchId,
    pub(crate) events: Events,
}

/// What is expected of a batch's events.
#[derive(Debug)]
pub(crate) enum Events {
    /// Nothing: they are of another ledger, or beyond the size that is audited.
    Skipped,
    /// That they are not in the database.
    Archived,
    /// That they are there and match.
    Stored {
        /// Where their salts come from.
        salts: Salts,
        /// Their log entries, one after the other.
        entries: Vec<u8>,
        /// The batch's columns of that name: what else the envelopes hold.
        producers: Option<Vec<u8>>,
        key_id: Option<Vec<u8>>,
    },
}

/// The salts of a batch.
#[derive(Debug)]
pub(crate) enum Salts {
    /// Derived from the batch's secret.
    Secret(BatchSecret),
    /// Written down one by one, as some are destroyed.
    Each(Vec<u8>),
}

impl Salts {
    fn at(&self, position: u32) -> [u8; 32] {
        match self {
            Self::Secret(secret) => secret.salt(position),
            Self::Each(salts) => part(salts, position).unwrap_or([0; 32]),
        }
    }
}

/// The 32 bytes at a position.
fn part(bytes: &[u8], position: u32) -> Option<[u8; 32]> {
    let start = usize::try_from(position).ok()?.checked_mul(32)?;
    bytes.get(start..start + 32)?.try_into().ok()
}

impl BatchRow {
    fn first_id(&self) -> u128 {
        self.id.uuid().as_u128()
    }

    fn end_id(&self) -> u128 {
        self.first_id() + u128::from(self.event_count)
    }
}

/// What an envelope holds that comes from the batch's row.
#[derive(Debug, Clone, Copy)]
pub(super) struct More<'a> {
    pub(super) producer: Option<ProducerPlace<'a>>,
    pub(super) key_id: &'a [u8],
}

/// A row of `certeus.events`, as it comes from the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventRow<'a> {
    pub(crate) id: Uuid,
    /// Microseconds since 2000-01-01.
    pub(crate) postgres_micros: i64,
    pub(crate) kind: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Events whose bytes were hashed again.
    pub rehashed: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Events whose payload was erased, on record: their log entry stands for them.
    pub erased: u64,
    /// Events whose payload is archived and was not hashed again.
    pub archived: u64,
}

impl std::ops::AddAssign for RowCounts {
    fn add_assign(&mut self, other: Self) {
        let Self { rehashed, payload_bytes, erased, archived } = other;
        self.rehashed += rehashed;
        self.payload_bytes += payload_bytes;
        self.erased += erased;
        self.archived += archived;
    }
}

/// The database gave rows in another order than that of their ids: its index is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database gave event {0} out of order: an index of certeus.events is damaged (REINDEX it)")]
pub struct OutOfOrder(pub Uuid);

/// The audit of a stretch of ids.
#[derive(Debug)]
pub(crate) struct RowAudit<'a> {
    ledger: &'a str,
    batches: &'a [BatchRow],
    erased: HashSet<Uuid>,
    /// Of the batch that the next row is expected in.
    runs: Runs<'a>,
    /// The batch that the next row is expected in.
    at: usize,
    /// The position in it.
    position: u32,
    last_id: Option<Uuid>,
    counts: RowCounts,
    suspects: Suspects,
    scratch: Vec<u8>,
}

impl<'a> RowAudit<'a> {
    /// `batches` in the order of their ids; `erased` are the events whose erasure is on record.
    pub(crate) fn new(ledger: &'a str, batches: &'a [BatchRow], erased: HashSet<Uuid>) -> Self {
        debug_assert!(batches.is_sorted_by_key(BatchRow::first_id));
        let mut audit = Self {
            ledger,
            batches,
            erased,
            runs: Runs::default(),
            at: 0,
            position: 0,
            last_id: None,
            counts: RowCounts::default(),
            suspects: Suspects::default(),
            scratch: Vec::with_capacity(512),
        };
        audit.read_producers();
        audit
    }

    /// Takes the next row.
    pub(crate) fn row(&mut self, row: &EventRow<'_>) -> Result<(), OutOfOrder> {
        if self.last_id.replace(row.id).is_some_and(|last| row.id <= last) {
            return Err(OutOfOrder(row.id));
        }
        let id = row.id.as_u128();
        while self.batches.get(self.at).is_some_and(|batch| id >= batch.end_id()) {
            self.leave_batch();
        }
        let Some(batch) = self.batches.get(self.at).filter(|batch| id >= batch.first_id()) else {
            self.suspects.added(row.id);
            return Ok(());
        };
        let Ok(position) = u32::try_from(id - batch.first_id()) else { return Ok(()) };
        let Events::Stored { salts, entries, key_id, producers: _ } = &batch.events else {
            if matches!(batch.events, Events::Archived) {
                self.suspects.added(row.id);
            }
            return Ok(());
        };
        let index = batch.first_index + u64::from(position);
        let expected = part(entries, position).unwrap_or_default();
        let skipped = mem::replace(&mut self.position, position + 1)..position;
        let salt = salts.at(position);
        if row.payload.is_empty() && salt == [0; 32] && self.erased.contains(&row.id) {
            self.counts.erased += 1;
        } else {
            self.counts.rehashed += 1;
            self.counts.payload_bytes += row.payload.len() as u64;
            let more =
                More { producer: self.runs.find(position), key_id: key_id.as_deref().unwrap_or_default() };
            let computed = entry_of(self.ledger, row, &more, &salt, &mut self.scratch);
            if computed != Some(expected) {
                self.suspects.altered(index, row.id);
            }
        }
        if !skipped.is_empty() {
            self.missing(skipped.start, skipped.end);
        }
        Ok(())
    }

    /// To be called after the last row.
    pub(crate) fn finish(mut self) -> (RowCounts, Suspects) {
        while self.at < self.batches.len() {
            self.leave_batch();
        }
        (self.counts, self.suspects)
    }

    fn leave_batch(&mut self) {
        let (at, position) = (self.at, self.position);
        let count = self.batches[at].event_count;
        match self.batches[at].events {
            Events::Stored { .. } if position < count => self.missing(position, count),
            Events::Archived => self.counts.archived += u64::from(count),
            Events::Stored { .. } | Events::Skipped => {}
        }
        self.at += 1;
        self.position = 0;
        self.read_producers();
    }

    /// Without its producers, none of a batch's events match that came with one: a damaged column shows.
    fn read_producers(&mut self) {
        let column = match self.batches.get(self.at).map(|batch| &batch.events) {
            Some(Events::Stored { producers, .. }) => producers.as_deref(),
            Some(Events::Skipped | Events::Archived) | None => None,
        };
        self.runs = Runs::read(column).unwrap_or_default();
    }

    /// Positions `from` up to `to` of the present batch have no row.
    fn missing(&mut self, from: u32, to: u32) {
        let batch = &self.batches[self.at];
        let id = Uuid::from_u128(batch.first_id() + u128::from(from));
        self.suspects.missing(batch.first_index + u64::from(from), id, to - from);
    }
}

/// The log entry of a row; `None` if it holds what no event has.
pub(super) fn entry_of(
    ledger: &str,
    row: &EventRow<'_>,
    more: &More<'_>,
    salt: &[u8; 32],
    scratch: &mut Vec<u8>,
) -> Option<[u8; ENTRY_BYTES]> {
    let envelope = Envelope {
        head: EnvelopeHead {
            ledger,
            id: row.id,
            kind: std::str::from_utf8(row.kind).ok()?,
            time: from_postgres_micros(row.postgres_micros)?,
            content_type: ContentType::Json,
            producer: more.producer,
            key_id: more.key_id,
        },
        payload: row.payload,
    };
    Some(envelope.entry(salt, scratch))
}
