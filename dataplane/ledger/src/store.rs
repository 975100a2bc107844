//! Reads events back.
//!
//! Owns the read of a single event and the check of events against their log entries; `page` has the lists, `archived` the
//! events that are not in PostgreSQL any more. Never writes.
//! Promises: an event that is handed out is the one that was committed to, or one that was erased on record.

mod archived;
mod page;

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::commit::from_postgres_micros;
use crate::envelope::{BatchSecret, ContentType, ENTRY_BYTES, Envelope, EnvelopeHead, ProducerPlace};
use crate::erasure::{self, Erasure};
use crate::error::Class;
use crate::field::{BATCH_KEY_ID_BYTES, BatchKeyId};
use crate::id::{self, BatchId};
use crate::ledger::Ledger;
use crate::provenance::Runs;
use crate::timestamp::Timestamp;

pub(crate) use archived::ArchiveStore;
pub use certeus_archive::Location as ArchiveLocation;
pub(crate) use page::PAGE_BYTES_MAX;
pub use page::{Filter, PAGE_EVENTS_MAX, Page};

/// Bytes of a salt: a SHA-256.
pub(crate) const SALT_BYTES: usize = 32;

/// An event as stored, checked against its log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: Uuid,
    /// Its index in the ledger.
    pub index: u64,
    /// Its `type`.
    pub kind: String,
    /// Its `timestamp`.
    pub time: Timestamp,
    /// When it was committed, by the database's clock.
    pub received_at: Timestamp,
    /// Its bytes, unless they were erased.
    pub content: Content,
    /// What its batch says of the key, if members of it may be encrypted.
    pub key_id: Option<BatchKeyId>,
    /// Its log entry.
    pub entry: [u8; ENTRY_BYTES],
    /// Whether it was read from the archive.
    pub archived: bool,
}

/// What is left of an event's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Intact {
        /// The bytes as stored: as received, but for members that are encrypted. What proofs cover.
        payload: Vec<u8>,
        /// What was hashed with them.
        salt: Salt,
    },
    /// Nothing.
    Erased(Erasure),
}

impl StoredEvent {
    /// The bytes as stored, unless they were erased.
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Intact { payload, .. } => Some(payload),
            Content::Erased(_) => None,
        }
    }
}

/// The salt of an event. Whoever has it can test guesses of the payload, so it is never logged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; SALT_BYTES]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(..)")
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No connection could be had.
    #[error("no database connection")]
    Pool(#[source] deadpool_postgres::PoolError),
    /// The query failed.
    #[error("the query failed")]
    Query(#[from] Error),
    /// The stored event is not the one that was committed to.
    #[error("event {0} does not match its log entry: its stored bytes were altered")]
    Altered(Uuid),
    /// The payload is gone, and nothing in the ledger says that it was erased.
    #[error("event {0} has lost its payload, and no event of the ledger records an erasure")]
    Lost(Uuid),
    /// The event is nowhere, although its batch tells of it.
    #[error("event {0} is missing, and its batch tells of it: it was removed from the database")]
    Removed(Uuid),
    /// A stored value is outside what this software ever writes.
    #[error("event {0} has an impossible value in the database")]
    Impossible(Uuid),
    /// The event was archived, and no archive is configured here.
    #[error("event {id} was archived at {location}, which this pod has no access to")]
    Archived {
        /// The event.
        id: Uuid,
        /// Where it was archived.
        location: String,
    },
    /// The archive could not be read, or holds other bytes than were written.
    #[error("the archive could not be read")]
    Archive(#[source] certeus_archive::Error),
    /// The archive did not answer in time.
    #[error("the archive does not answer")]
    ArchiveSlow,
    /// A file that should have the event does not.
    #[error("event {0} is missing in its archived file")]
    NotInArchive(Uuid),
}

impl ReadError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Pool(_) | Self::Query(_) | Self::ArchiveSlow => Class::Unavailable,
            Self::Archive(error) if error.is_unavailable() => Class::Unavailable,
            Self::Altered(_)
            | Self::Lost(_)
            | Self::Removed(_)
            | Self::Impossible(_)
            | Self::Archive(_)
            | Self::NotInArchive(_) => Class::Corrupt,
            Self::Archived { .. } => Class::Invalid,
        }
    }
}

/// A `timestamptz` column; `None` when outside the range of events.
struct StoredTime(Option<Timestamp>);

impl<'a> FromSql<'a> for StoredTime {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(from_postgres_micros(i64::from_be_bytes(raw.try_into()?))))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// An event's columns, not yet checked.
pub(crate) struct Unchecked {
    pub(crate) id: Uuid,
    pub(crate) index: u64,
    pub(crate) kind: String,
    pub(crate) time: Timestamp,
    pub(crate) received_at: Timestamp,
    /// Empty when it was erased; an event never is.
    pub(crate) payload: Vec<u8>,
}

/// What a batch's row says about one of its events.
pub(crate) struct Commitment<'a> {
    /// `None` when it was destroyed.
    pub(crate) salt: Option<Salt>,
    pub(crate) entry: [u8; ENTRY_BYTES],
    pub(crate) producer: Option<ProducerPlace<'a>>,
    pub(crate) key_id: Option<BatchKeyId>,
}

impl<'a> Commitment<'a> {
    /// From the columns of a batch's row: its secret, or the event's part of its salts; the event's part of the entries; its
    /// producers; and its key id.
    pub(crate) fn new(
        secret: Option<&[u8]>,
        salt: Option<&[u8]>,
        entry: &[u8],
        producers: &Runs<'a>,
        key_id: Option<&[u8]>,
        event: Uuid,
    ) -> Option<Self> {
        let position = u32::try_from(id::position(event)).ok()?;
        let salt = match (secret, salt) {
            (Some(secret), None) => Some(BatchSecret(secret.try_into().ok()?).salt(position)),
            (None, Some(salt)) => Some(salt.try_into().ok()?).filter(|salt| *salt != [0; SALT_BYTES]),
            (Some(_), Some(_)) | (None, None) => return None,
        };
        let producer = producers.find(position);
        let key_id = match key_id {
            Some(bytes) => Some(BatchKeyId::from_bytes(bytes)?),
            None => None,
        };
        Some(Self { salt: salt.map(Salt), entry: entry.try_into().ok()?, producer, key_id })
    }
}

impl Unchecked {
    /// Its envelope without the payload.
    pub(crate) fn head<'a>(
        &'a self,
        ledger: &'a str,
        producer: Option<ProducerPlace<'a>>,
        key_id: Option<&'a [u8; BATCH_KEY_ID_BYTES]>,
    ) -> EnvelopeHead<'a> {
        let Self { id, kind, time, .. } = self;
        EnvelopeHead {
            ledger,
            id: *id,
            kind,
            time: *time,
            producer,
            content_type: ContentType::Json,
            key_id: key_id.map_or(&[], |bytes| &bytes[..]),
        }
    }

    /// The event, if it is the one that was committed to. `erasure` is what the database has about its erasure.
    pub(crate) fn check(
        self,
        ledger: &str,
        commitment: &Commitment<'_>,
        erasure: Option<Erasure>,
        scratch: &mut Vec<u8>,
    ) -> Result<StoredEvent, ReadError> {
        let (id, entry) = (self.id, commitment.entry);
        let salt = match commitment.salt {
            None if self.payload.is_empty() => None,
            None => return Err(ReadError::Altered(id)),
            Some(salt) => {
                let key_id = commitment.key_id.map(|key_id| key_id.to_bytes());
                let head = self.head(ledger, commitment.producer, key_id.as_ref());
                let envelope = Envelope { head, payload: &self.payload };
                if envelope.entry(&salt.0, scratch) != entry {
                    return Err(ReadError::Altered(id));
                }
                Some(salt)
            }
        };
        let Self { id, index, kind, time, received_at, payload } = self;
        let content = match salt {
            Some(salt) => Content::Intact { payload, salt },
            None => Content::Erased(erasure.ok_or(ReadError::Lost(id))?),
        };
        let key_id = commitment.key_id;
        Ok(StoredEvent { id, index, kind, time, received_at, content, key_id, entry, archived: false })
    }
}

impl Ledger {
    /// The event of an id, checked against the log entry that was committed with it. Of an erased event, the event of the
    /// ledger that records the erasure is checked as well.
    ///
    /// # Errors
    /// When the database is away, or holds other bytes than were committed.
    pub async fn event(&self, id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        self.event_in(id, &mut Vec::new()).await
    }

    /// As [`Self::event`]. Leaves in `scratch` what was hashed before the payload (see [`Envelope::entry`]).
    pub(crate) async fn event_in(
        &self,
        id: Uuid,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<StoredEvent>, ReadError> {
        let Some(event) = self.stored_in(id, scratch).await? else { return Ok(None) };
        if let Content::Erased(erasure) = &event.content {
            let audit = self.stored(erasure.audit_event_id).await?;
            let recorded = audit.is_some_and(|audit| erasure::records(&audit, &event));
            if !recorded {
                return Err(ReadError::Lost(id));
            }
        }
        Ok(Some(event))
    }

    /// As [`Self::event`], but an erasure is taken from its table alone.
    pub(crate) async fn stored(&self, id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        self.stored_in(id, &mut Vec::new()).await
    }

    async fn stored_in(&self, id: Uuid, scratch: &mut Vec<u8>) -> Result<Option<StoredEvent>, ReadError> {
        const SQL: &str = "SELECT e.event_time, e.type, e.payload, b.first_index, b.committed_at, b.secret, \
             substring(b.salts FROM $4 FOR 32), substring(b.entries FROM $4 FOR 32), b.producers, b.key_id \
             FROM certeus.events e JOIN certeus.batches b ON b.batch_id = $2 AND b.ledger = $3 WHERE e.id = $1";
        let position = id::position(id);
        let entry_start = i32::try_from(position * ENTRY_BYTES + 1).map_err(|_| ReadError::Impossible(id))?;
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let statement = client.prepare_cached(SQL).await?;
        let parameters = (&id, &BatchId::of(id).uuid(), &self.name(), &entry_start);
        let (a, b, c, d) = parameters;
        let Some(row) = client.query_opt(&statement, &[a, b, c, d]).await? else {
            drop(client);
            return self.archived(id, scratch).await;
        };
        let first_index: i64 = row.get(3);
        let event = Unchecked {
            id,
            index: u64::try_from(first_index).map_err(|_| ReadError::Impossible(id))? + position as u64,
            kind: row.get(1),
            time: time(&row, 0, id)?,
            received_at: time(&row, 4, id)?,
            payload: row.get(2),
        };
        let producers = Runs::read(row.get(8)).map_err(|_malformed| ReadError::Impossible(id))?;
        let commitment = Commitment::new(row.get(5), row.get(6), row.get(7), &producers, row.get(9), id);
        let commitment = commitment.ok_or(ReadError::Impossible(id))?;
        let erasure = match commitment.salt {
            None => erasure::of(&**client, &[id]).await?.remove(&id),
            Some(_) => None,
        };
        event.check(self.name(), &commitment, erasure, scratch).map(Some)
    }
}

/// A time of a row about `id`.
pub(crate) fn time(row: &Row, column: usize, id: Uuid) -> Result<Timestamp, ReadError> {
    row.get::<_, StoredTime>(column).0.ok_or(ReadError::Impossible(id))
}
