//! One commit batch: the rows, log entries and header that go to PostgreSQL in one transaction.
//!
//! Owns the mapping from admitted requests to rows, and the words for a commit's outcome. Pure: the batch's id and
//! secret are handed in. Promises: the same batch always gives the same rows, so a repeat after a lost reply collides
//! with itself on the primary key instead of storing twice.

use bytes::{BufMut, BytesMut};
use uuid::Uuid;

use crate::dedup::{Advance, Claim};
use crate::envelope::{BatchSecret, ContentType, ENTRY_BYTES, Envelope, EnvelopeHead, ProducerPlace};
use crate::error::Class;
use crate::field::{BATCH_KEY_ID_BYTES, Encryptor};
use crate::id::BatchId;
use crate::provenance;
use crate::queue::Pending;
use crate::request::ProducerSequence;
use crate::submission::{EventRef, RESERVED_TYPES};
use crate::timestamp::Timestamp;

/// Where a request's events stand, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Index of the request's first event in its ledger; the others follow without a gap.
    pub first_index: u64,
    /// Number of events.
    pub count: usize,
    /// Id of the first event; the others' ids count up by one.
    pub first_id: Uuid,
    /// Whether the events were stored by an earlier sending of the same request.
    pub replayed: bool,
}

/// Why an admitted request was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The database could not be reached or refused; nothing of the request is stored.
    #[error("the database is not available; nothing was stored")]
    Unavailable,
    /// The reply to a commit was lost and could not be found out in time.
    #[error("the database was lost during the commit; the events may or may not be stored")]
    OutcomeUnknown,
    /// The database refused the rows themselves, which validation should have prevented.
    #[error("the database refused the events")]
    Rejected,
    /// The idempotency key belongs to another request.
    #[error("the idempotency key was used for another request before")]
    KeyReused,
    /// The producer's sequence numbers belong to another request.
    #[error("the sequence numbers were used for another request before")]
    SequenceReused,
    /// The producer's events are stored already, and where is not remembered any more.
    #[error("the events of these sequence numbers are stored already")]
    Duplicate,
    /// Events of the producer are missing before these.
    #[error("the next sequence number of this producer is {expected}: events before these are missing")]
    SequenceGap {
        /// The sequence number that comes next.
        expected: u64,
    },
    /// Only some of the producer's events are stored already.
    #[error(
        "the next sequence number of this producer is {expected}: some of these events are stored already"
    )]
    SequenceOverlap {
        /// The sequence number that comes next.
        expected: u64,
    },
    /// The producer was replaced by a newer life of itself.
    #[error("this producer was fenced: its epoch is now {epoch}")]
    ProducerFenced {
        /// The present epoch.
        epoch: u32,
    },
}

impl CommitError {
    /// What the caller does next.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Unavailable => Class::Unavailable,
            Self::OutcomeUnknown => Class::OutcomeUnknown,
            Self::Rejected => Class::Bug,
            Self::KeyReused
            | Self::SequenceReused
            | Self::Duplicate
            | Self::SequenceGap { .. }
            | Self::SequenceOverlap { .. }
            | Self::ProducerFenced { .. } => Class::Invalid,
        }
    }
}

/// The batch that several requests become.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) ledger: &'a str,
    pub(crate) id: BatchId,
    pub(crate) secret: BatchSecret,
    pub(crate) requests: &'a [&'a Pending],
    /// The requests' claims, in their order.
    pub(crate) claims: &'a [Option<Claim<'a>>],
    /// What they do to the state of their producers.
    pub(crate) advances: &'a [Advance<'a>],
    /// The payloads as they are stored, where members of them are encrypted.
    pub(crate) encrypted: Option<Encrypted>,
}

/// The encrypted payloads of a batch, made once, so that every attempt at its commit sends the same bytes.
#[derive(Debug)]
pub(crate) struct Encrypted {
    pub(crate) key_id: [u8; BATCH_KEY_ID_BYTES],
    bytes: Vec<u8>,
    /// Where each payload ends in `bytes`.
    ends: Vec<usize>,
}

impl Encrypted {
    pub(crate) fn new(encryptor: &Encryptor<'_>, events: usize) -> Self {
        Self { key_id: encryptor.key_id().to_bytes(), bytes: Vec::new(), ends: Vec::with_capacity(events) }
    }

    pub(crate) fn push(&mut self, encryptor: &mut Encryptor<'_>, event: &EventRef<'_>) {
        if event.kind.starts_with(RESERVED_TYPES) {
            encryptor.push_plain(event.payload, &mut self.bytes);
        } else {
            encryptor.push(event.payload, &mut self.bytes);
        }
        self.ends.push(self.bytes.len());
    }

    fn payload(&self, position: usize) -> &[u8] {
        let start = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[position]]
    }
}

/// What the batch's row needs to know of its events.
#[derive(Debug)]
pub(crate) struct Header {
    /// The log entries, one after the other.
    pub(crate) entries: Vec<u8>,
    pub(crate) min_time: Timestamp,
    pub(crate) max_time: Timestamp,
}

/// One event of a batch.
pub(crate) struct Row<'a> {
    pub(crate) id: Uuid,
    pub(crate) event: EventRef<'a>,
    pub(crate) producer: Option<ProducerPlace<'a>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn event_count(&self) -> usize {
        self.requests.iter().map(|pending| pending.submission.len()).sum()
    }

    /// The requests with the position of their first event.
    fn placed(&self) -> impl Iterator<Item = (usize, &'a Pending)> {
        self.requests.iter().scan(0_usize, |next, pending| {
            let position = *next;
            *next += pending.submission.len();
            Some((position, *pending))
        })
    }

    /// The rows in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let events = self.requests.iter().flat_map(|pending| {
            let producer = pending.producer();
            let place = move |offset: u64, producer: &'a ProducerSequence| ProducerPlace {
                id: producer.id(),
                epoch: producer.epoch(),
                sequence: producer.first() + offset,
            };
            let numbered = (0_u64..).zip(pending.submission.events());
            numbered.map(move |(offset, event)| (event, producer.map(|producer| place(offset, producer))))
        });
        let numbered = events.enumerate();
        numbered.map(|(position, (mut event, producer))| {
            if let Some(encrypted) = &self.encrypted {
                event.payload = encrypted.payload(position);
            }
            Row { id: self.id.event(position), event, producer }
        })
    }

    /// The receipts in the order of the requests, once the batch's first index is known.
    pub(crate) fn receipts(&self, first_index: u64) -> impl Iterator<Item = Receipt> {
        self.placed().map(move |(position, pending)| Receipt {
            first_index: first_index + position as u64,
            count: pending.submission.len(),
            first_id: self.id.event(position),
            replayed: false,
        })
    }

    /// The claims of those requests that have one, each with the position of its first event.
    pub(crate) fn claimed(&self) -> impl Iterator<Item = (usize, &Claim<'a>)> {
        let claims = self.placed().zip(self.claims);
        claims.filter_map(|((position, _), claim)| Some((position, claim.as_ref()?)))
    }

    /// The events that belong to a case: position and case.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (usize, &'a str)> {
        self.placed().flat_map(|(first, pending)| {
            pending.submission.cases().map(move |(position, case)| (first + position, case))
        })
    }

    /// The column `producers` of the batch's row.
    pub(crate) fn producers(&self) -> Option<Vec<u8>> {
        let mut column = Vec::new();
        for (position, pending) in self.placed() {
            if let Some(producer) = pending.producer() {
                provenance::write(&mut column, position, pending.submission.len(), producer);
            }
        }
        (!column.is_empty()).then_some(column)
    }

    /// Whether there is nothing to store but events and the batch's row.
    pub(crate) fn is_plain(&self) -> bool {
        self.claims.iter().all(Option::is_none)
            && self.requests.iter().all(|pending| pending.submission.cases().next().is_none())
    }

    /// What the batch's row says of the key, where members are encrypted.
    pub(crate) fn key_id(&self) -> Option<&[u8]> {
        self.encrypted.as_ref().map(|encrypted| &encrypted.key_id[..])
    }

    pub(crate) fn header(&self) -> HeaderBuilder<'_> {
        HeaderBuilder {
            ledger: self.ledger,
            secret: &self.secret,
            key_id: self.key_id().unwrap_or_default(),
            scratch: Vec::with_capacity(256),
            header: Header {
                entries: Vec::with_capacity(self.event_count() * ENTRY_BYTES),
                min_time: Timestamp::MAX,
                max_time: Timestamp::MIN,
            },
            position: 0,
        }
    }
}

/// Collects the header while the rows pass by, so that each payload is read while it is still in the cache.
pub(crate) struct HeaderBuilder<'a> {
    ledger: &'a str,
    secret: &'a BatchSecret,
    key_id: &'a [u8],
    scratch: Vec<u8>,
    header: Header,
    position: u32,
}

impl HeaderBuilder<'_> {
    pub(crate) fn add(&mut self, row: &Row<'_>) {
        let EventRef { kind, time, payload } = row.event;
        let salt = self.secret.salt(self.position);
        let head = EnvelopeHead {
            ledger: self.ledger,
            id: row.id,
            kind,
            time,
            producer: row.producer,
            content_type: ContentType::Json,
            key_id: self.key_id,
        };
        let entry = Envelope { head, payload }.entry(&salt, &mut self.scratch);
        self.header.entries.extend_from_slice(&entry);
        self.header.min_time = self.header.min_time.min(time);
        self.header.max_time = self.header.max_time.max(time);
        self.position += 1;
    }

    pub(crate) fn finish(self) -> Header {
        self.header
    }
}

/// Microseconds from the Unix epoch to that of PostgreSQL, 2000-01-01.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A time as PostgreSQL's binary `timestamptz`: microseconds since 2000-01-01.
pub(crate) fn postgres_micros(time: Timestamp) -> i64 {
    time.micros() - POSTGRES_EPOCH_MICROS
}

/// The inverse of [`postgres_micros`]; `None` when out of the range of events.
pub(crate) fn from_postgres_micros(micros: i64) -> Option<Timestamp> {
    Timestamp::from_micros(micros.checked_add(POSTGRES_EPOCH_MICROS)?).ok()
}

/// The columns that [`write_copy_row`] writes, in order.
pub(crate) const COPY_COLUMNS: &str = "id, event_time, type, payload";

/// Starts a binary COPY (PostgreSQL manual, COPY, "Binary Format").
pub(crate) fn write_copy_start(out: &mut BytesMut) {
    out.put_slice(b"PGCOPY\n\xff\r\n\0");
    out.put_u64(0);
}

/// Ends a binary COPY.
pub(crate) fn write_copy_end(out: &mut BytesMut) {
    out.put_i16(-1);
}

/// Appends one row in the binary COPY format.
pub(crate) fn write_copy_row(out: &mut BytesMut, row: &Row<'_>) {
    let Row { id, event, producer: _ } = row;
    out.reserve(2 + 4 * 4 + 16 + 8 + event.kind.len() + event.payload.len());
    out.put_i16(4);
    write_field(out, id.as_bytes());
    write_field(out, &postgres_micros(event.time).to_be_bytes());
    write_field(out, event.kind.as_bytes());
    write_field(out, event.payload);
}

fn write_field(out: &mut BytesMut, bytes: &[u8]) {
    // Fields are parts of a request body, which is bounded far below 2 GiB.
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;
    use crate::submission::{Format, Limits, OnBadEvent, Submission};

    fn pending(body: &str) -> Pending {
        let limits = Limits { request_events_max: 10, event_bytes_max: 1000, encrypted_fields: None };
        let body = Bytes::copy_from_slice(body.as_bytes());
        let parsed = Submission::parse(body, Format::Ndjson, &limits, OnBadEvent::RefuseAll).unwrap();
        Pending {
            submission: parsed.submission.unwrap(),
            admitted: Instant::now(),
            reply: oneshot::channel().0,
        }
    }

    #[tokio::test]
    async fn requests_get_consecutive_places_and_entries_their_own_salt() {
        let line = "{\"type\":\"a\",\"timestamp\":5}\n";
        let requests = [pending(&line.repeat(2)), pending("{\"type\":\"b\",\"timestamp\":2}")];
        let requests = requests.each_ref();
        let id = BatchId::new(1_769_860_800_000, 7 << 20);
        let (claims, secret) = ([None, None], BatchSecret([1; 32]));
        let batch = Batch {
            ledger: "default",
            id,
            secret,
            requests: &requests,
            claims: &claims,
            advances: &[],
            encrypted: None,
        };

        let receipts: Vec<Receipt> = batch.receipts(40).collect();
        let receipt =
            |first_index, count, first_id| Receipt { first_index, count, first_id, replayed: false };
        assert_eq!(receipts[0], receipt(40, 2, id.event(0)));
        assert_eq!(receipts[1], receipt(42, 1, id.event(2)));

        let mut header = batch.header();
        let mut rows = BytesMut::new();
        for row in batch.rows() {
            write_copy_row(&mut rows, &row);
            header.add(&row);
        }
        let header = header.finish();
        assert_eq!((header.min_time.micros(), header.max_time.micros()), (2_000_000, 5_000_000));
        // Equal events have different entries: the salt, and the id, differ.
        let entries: Vec<&[u8]> = header.entries.chunks(ENTRY_BYTES).collect();
        assert_eq!(entries.len(), 3);
        assert_ne!(entries[0], entries[1]);
        // 4 columns: 16 bytes of id, 8 of time, then type and payload.
        assert_eq!(&rows[..6], [0, 4, 0, 0, 0, 16]);
        assert_eq!(rows.len(), 3 * (2 + 16 + 16 + 8 + 1) + 2 * (line.len() - 1) + 26);
    }
}
