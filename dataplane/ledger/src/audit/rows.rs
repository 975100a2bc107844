//! Re-hashes events from their stored bytes and compares them with the log entries of their batches.
//!
//! Pure. Works on a stretch of ids: the batches in it, then its rows, both in the order of ids, whether they come from the
//! database or from archived files. Never allocates for an event that is as it should be. What is not as it should be goes to
//! [`Suspects`]; what it means is judged there, once all of them are known.

use std::collections::HashSet;
use std::mem;
use std::ops::Range;

use certeus_archive::Row;
use uuid::Uuid;

use super::finding::{Finding, Kind};
use super::suspect::Suspects;
use crate::commit::{POSTGRES_EPOCH_MICROS, from_postgres_micros};
use crate::envelope::{
    BatchSecret, ContentType, ENTRY_BYTES, ENTRY_DOMAIN, Envelope, EnvelopeHead, ProducerPlace,
};
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
    /// Events of days that are in the archive alone.
    pub archived: u64,
    /// Of these, those whose bytes were hashed again from the archived files.
    pub archived_rehashed: u64,
    /// Bytes of their payloads.
    pub archived_payload_bytes: u64,
    /// Of the archived, those whose payload was erased, on record.
    pub archived_erased: u64,
}

impl RowCounts {
    /// Archived events that were not looked at: left out, or not found as they should be.
    #[must_use]
    pub fn archived_unseen(&self) -> u64 {
        self.archived.saturating_sub(self.archived_rehashed + self.archived_erased)
    }

    /// What a [`RowAudit`] came to, as that of an archived file.
    pub(super) fn of_archive(self) -> Self {
        let Self { rehashed, payload_bytes, erased, .. } = self;
        Self {
            archived_rehashed: rehashed,
            archived_payload_bytes: payload_bytes,
            archived_erased: erased,
            ..Self::default()
        }
    }
}

impl std::ops::AddAssign for RowCounts {
    fn add_assign(&mut self, other: Self) {
        let Self {
            rehashed,
            payload_bytes,
            erased,
            archived,
            archived_rehashed,
            archived_payload_bytes,
            archived_erased,
        } = other;
        self.rehashed += rehashed;
        self.payload_bytes += payload_bytes;
        self.erased += erased;
        self.archived += archived;
        self.archived_rehashed += archived_rehashed;
        self.archived_payload_bytes += archived_payload_bytes;
        self.archived_erased += archived_erased;
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
    /// Ids that are audited; a batch may lie there in part.
    ids: Range<u128>,
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
        Self::within(0..u128::MAX, ledger, batches, erased)
    }

    /// As [`Self::new`], of a range of ids that may begin and end within batches.
    pub(crate) fn within(
        ids: Range<u128>,
        ledger: &'a str,
        batches: &'a [BatchRow],
        erased: HashSet<Uuid>,
    ) -> Self {
        debug_assert!(batches.is_sorted_by_key(BatchRow::first_id));
        let mut audit = Self {
            ledger,
            batches,
            erased,
            ids,
            runs: Runs::default(),
            at: 0,
            position: 0,
            last_id: None,
            counts: RowCounts::default(),
            suspects: Suspects::default(),
            scratch: Vec::with_capacity(512),
        };
        audit.enter_batch();
        audit
    }

    /// Takes the next row.
    pub(crate) fn row(&mut self, row: &EventRow<'_>) -> Result<(), OutOfOrder> {
        self.take(row, None).map(|_of_archived_rows_only| ())
    }

    /// Takes the next row of an archived file, of which more must be right than of a live one; a finding says what is not. What
    /// can be wrong with a live row as well is left to the suspects.
    pub(crate) fn archived_row(&mut self, row: &Row) -> Result<Option<Finding>, OutOfOrder> {
        let payload = row.content.as_ref().map_or(&[][..], |content| &content.payload);
        let event = EventRow {
            id: row.id,
            postgres_micros: row.time_micros.saturating_sub(POSTGRES_EPOCH_MICROS),
            kind: row.kind.as_bytes(),
            payload,
        };
        self.take(&event, Some(row))
    }

    fn take(&mut self, row: &EventRow<'_>, archived: Option<&Row>) -> Result<Option<Finding>, OutOfOrder> {
        if self.last_id.replace(row.id).is_some_and(|last| row.id <= last) {
            return Err(OutOfOrder(row.id));
        }
        let id = row.id.as_u128();
        while self.batches.get(self.at).is_some_and(|batch| id >= batch.end_id()) {
            self.leave_batch();
        }
        let Some(batch) = self.batches.get(self.at).filter(|batch| id >= batch.first_id()) else {
            self.suspects.added(row.id);
            return Ok(None);
        };
        let Ok(position) = u32::try_from(id - batch.first_id()) else { return Ok(None) };
        let Events::Stored { salts, entries, key_id, producers: _ } = &batch.events else {
            if matches!(batch.events, Events::Archived) {
                self.suspects.added(row.id);
            }
            return Ok(archived.and_then(|row| self.of_another_ledger(row)));
        };
        let index = batch.first_index + u64::from(position);
        let expected = part(entries, position).unwrap_or_default();
        let skipped = mem::replace(&mut self.position, position + 1)..position;
        let salt = salts.at(position);
        let on_record = salt == [0; 32] && self.erased.contains(&row.id);
        let has_content = archived.map_or(!row.payload.is_empty(), |row| row.content.is_some());
        let mut difference = None;
        if on_record && !has_content {
            self.counts.erased += 1;
            difference = archived.and_then(|row| different(row, index, &expected, &salt, &[]));
        } else if on_record && archived.is_some() {
            difference = Some("its erasure is on record, and its archived file still has its content");
        } else {
            self.counts.rehashed += 1;
            self.counts.payload_bytes += row.payload.len() as u64;
            let more =
                More { producer: self.runs.find(position), key_id: key_id.as_deref().unwrap_or_default() };
            let computed = entry_of(self.ledger, row, &more, &salt, &mut self.scratch);
            if computed == Some(expected) {
                let head = self.scratch.get(ENTRY_DOMAIN.len() + salt.len()..).unwrap_or_default();
                difference = archived.and_then(|row| different(row, index, &expected, &salt, head));
            } else {
                self.suspects.altered(index, row.id);
            }
        }
        if !skipped.is_empty() {
            self.missing(skipped.start, skipped.end);
        }
        Ok(difference.map(|detail| Finding::event(Kind::EventAltered, index, row.id, detail)))
    }

    /// A file may have events that are not audited, as they came after the audit had begun, but none of another ledger.
    fn of_another_ledger(&self, row: &Row) -> Option<Finding> {
        let content = row.content.as_ref()?;
        let (head, _) = Envelope::read_head(&content.head).ok()?;
        let detail = format!("an archived file of ledger {} has this event of another one", self.ledger);
        (head.ledger != self.ledger).then(|| Finding::about(Kind::EventMisplaced, Some(row.id), detail))
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
        let end = self.position_of(self.ids.end);
        match self.batches[at].events {
            Events::Stored { .. } if position < end => self.missing(position, end),
            Events::Archived => self.counts.archived += u64::from(end),
            Events::Stored { .. } | Events::Skipped => {}
        }
        self.at += 1;
        self.enter_batch();
    }

    fn enter_batch(&mut self) {
        if self.at == self.batches.len() {
            return;
        }
        self.position = self.position_of(self.ids.start);
        // Without its producers, none of a batch's events match that came with one: a damaged column shows.
        let column = match &self.batches[self.at].events {
            Events::Stored { producers, .. } => producers.as_deref(),
            Events::Skipped | Events::Archived => None,
        };
        self.runs = Runs::read(column).unwrap_or_default();
    }

    /// How many events of the present batch stand before an id.
    fn position_of(&self, id: u128) -> u32 {
        let batch = &self.batches[self.at];
        let before = id.saturating_sub(batch.first_id());
        u32::try_from(before).unwrap_or(u32::MAX).min(batch.event_count)
    }

    /// Positions `from` up to `to` of the present batch have no row.
    fn missing(&mut self, from: u32, to: u32) {
        let batch = &self.batches[self.at];
        let id = Uuid::from_u128(batch.first_id() + u128::from(from));
        self.suspects.missing(batch.first_index + u64::from(from), id, to - from);
    }
}

/// What an archived row has beside the columns of a live one, where it is not what it must be. `head` is what was hashed between
/// salt and payload.
fn different(
    row: &Row,
    index: u64,
    entry: &[u8; ENTRY_BYTES],
    salt: &[u8; 32],
    head: &[u8],
) -> Option<&'static str> {
    if row.index != index {
        return Some("its archived row has another index; its content is as it was");
    }
    if row.entry != *entry {
        return Some("its archived row has another log entry; its content is as it was");
    }
    let content = row.content.as_ref()?;
    (content.salt != *salt || content.head != head).then_some(
        "the salt or the head in its archived row is not what was hashed; its other columns are as they were",
    )
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
