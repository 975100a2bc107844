//! Erasure: destroys the payload of one event and its salt, on record.
//!
//! Owns the order of the steps, the table `certeus.erasures` and the audit event. Promises: the log entry, the index and
//! every proof stay; nothing is destroyed before the ledger itself holds a committed event that says so; a repeat gives the
//! first answer. Never erases an audit event, nor one that does not match its log entry: that is evidence. What PostgreSQL
//! keeps of overwritten rows (until VACUUM), in its write-ahead log and in backups is beyond it.
//!
//! The steps, and where they may stop:
//! 1. the audit event is appended as any other is. If we stop here, the ledger announces an erasure that was not carried
//!    out: a repeat of the request does so, with an audit event of its own.
//! 2. one transaction: the batch's salts are written down without this one and its secret is destroyed, since a salt
//!    that can be derived again would confirm a guess of the payload; the payload is emptied, or the archived file that has it
//!    is replaced by one that has not; published bundles that show it are withdrawn; the erasure is recorded. If the reply to
//!    its COMMIT is lost, a repeat finds the record, or starts over.

mod archived;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, GenericClient, Transaction};
use uuid::Uuid;

use crate::envelope::BatchSecret;
use crate::error::Class;
use crate::id::{self, BatchId};
use crate::ledger::{AppendError, Ledger};
use crate::publication;
use crate::store::{self, Content, ReadError, SALT_BYTES, StoredEvent};
use crate::submission::Submission;
use crate::timestamp::Timestamp;
use crate::writer::unix_ms;

/// Type of the event that records an erasure.
const AUDIT_TYPE: &str = "certeus.erasure";
/// Bytes of the longest reason.
pub const REASON_BYTES_MAX: usize = 1024;
/// A request waits this long for the erasure before it on this pod, each of which takes as long as a commit.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Why an event is erased: 1 to [`REASON_BYTES_MAX`] bytes without control characters, not only white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// Checks a reason.
    ///
    /// # Errors
    /// [`EraseError::Reason`].
    pub fn new(text: String) -> Result<Self, EraseError> {
        let fits = text.len() <= REASON_BYTES_MAX && !text.trim().is_empty();
        if fits && !text.chars().any(char::is_control) { Ok(Self(text)) } else { Err(EraseError::Reason) }
    }
}

/// The record of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The event that was erased.
    pub event_id: Uuid,
    /// Its index.
    pub index: u64,
    /// Why.
    pub reason: String,
    /// When, by the database's clock.
    pub erased_at: Timestamp,
    /// The event of the ledger that records the erasure.
    pub audit_event_id: Uuid,
    /// Its index.
    pub audit_index: u64,
}

/// Why an event was not erased.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The reason cannot be taken.
    #[error(
        "`reason` must have 1 to {REASON_BYTES_MAX} bytes without control characters, and not only white space"
    )]
    Reason,
    /// There is no such event.
    #[error("there is no event {0}")]
    NotFound(Uuid),
    /// The event records an erasure itself.
    #[error("event {0} records an erasure, and such a record cannot be erased")]
    Audit(Uuid),
    /// Other erasures are under way.
    #[error("other erasures are under way")]
    Busy,
    /// The event cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file that has the archived event could not be written again.
    #[error("the archived file could not be written again; repeat the request")]
    Archive(#[source] certeus_archive::Error),
    /// The audit event was not committed, so nothing was erased.
    #[error("the event that records the erasure was not committed")]
    Append(#[from] AppendError),
    /// The audit event would not be an event: a defect.
    #[error("the event that records the erasure is malformed")]
    Malformed,
    /// The database failed before or after the record was written.
    #[error("the erasure was not finished; repeat the request")]
    Unfinished(#[source] Option<Error>),
}

impl EraseError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Reason | Self::NotFound(_) | Self::Audit(_) => Class::Invalid,
            Self::Busy => Class::Overloaded,
            Self::Read(error) => error.class(),
            Self::Append(error) => error.class(),
            Self::Malformed => Class::Bug,
            Self::Archive(error) if !error.is_unavailable() => Class::Corrupt,
            Self::Unfinished(_) | Self::Archive(_) => Class::OutcomeUnknown,
        }
    }
}

impl From<Error> for EraseError {
    fn from(error: Error) -> Self {
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return Self::Busy;
        }
        Self::Unfinished(Some(error))
    }
}

impl Ledger {
    /// Erases an event's payload and salt; gives the record, also when it was erased before.
    ///
    /// Dropping the future does not undo anything: what has begun goes on.
    ///
    /// # Errors
    /// When the event is unknown or may not be erased, or the database is away.
    pub async fn erase(&self, id: Uuid, reason: Reason) -> Result<Erasure, EraseError> {
        let ledger = self.clone();
        let erasing = tokio::spawn(async move { erase(&ledger, id, &reason).await });
        match erasing.await {
            Ok(outcome) => outcome,
            // The runtime is going down, unless it was a defect.
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(EraseError::Unfinished(None)),
            },
        }
    }
}

async fn erase(ledger: &Ledger, id: Uuid, reason: &Reason) -> Result<Erasure, EraseError> {
    let turn = tokio::time::timeout(TURN_MAX, ledger.shared().erasing.acquire());
    let _turn = turn.await.map_err(|_| EraseError::Busy)?.map_err(|_| EraseError::Unfinished(None))?;
    // A connection of its own: it is held over an append, and those for commits flush before they say so.
    let mut connection = ledger.shared().database.connect().await?;
    let transaction = connection.client.transaction().await?;
    lock(&transaction, id).await?;
    if let Some(erasure) = of(&transaction, &[id]).await?.remove(&id) {
        return Ok(erasure);
    }
    let event = ledger.stored(id).await?.ok_or(EraseError::NotFound(id))?;
    if event.kind == AUDIT_TYPE {
        return Err(EraseError::Audit(id));
    }
    let audit = ledger.append(audit_event(&event, reason)?).await?;
    let record = Erasure {
        event_id: id,
        index: event.index,
        reason: reason.0.clone(),
        // Set by the database.
        erased_at: event.received_at,
        audit_event_id: audit.first_id,
        audit_index: audit.first_index,
    };
    if event.archived {
        archived::replace_file(ledger, &transaction, id).await?;
    } else {
        let sql = "UPDATE certeus.events SET payload = '' WHERE id = $1";
        if transaction.execute(sql, &[&id]).await? == 0 {
            // Its day has just gone to the archive.
            return Err(EraseError::Busy);
        }
    }
    forget_salt(&transaction, id).await?;
    forget_case(&transaction, ledger.name(), &event).await?;
    // Last, as bundles that are being published wait for it.
    publication::withdraw(&transaction, id).await?;
    let erased_at = insert(&transaction, ledger.name(), &record).await?;
    transaction.commit().await?;
    if event.archived {
        archived::delete_replaced(ledger, &mut connection.client).await;
    }
    tracing::info!(event.id = %id, event.index = event.index, audit.index = audit.first_index, "an event was erased");
    Ok(Erasure { erased_at, ..record })
}

/// Makes erasures of one event wait for each other, on all pods.
async fn lock(transaction: &Transaction<'_>, id: Uuid) -> Result<(), Error> {
    /// Class of these advisory locks: "eras" in ASCII.
    const LOCK_CLASS: i32 = 0x65_72_61_73;
    // The second is for the file that may have to be written again meanwhile.
    transaction
        .batch_execute(
            "SET LOCAL lock_timeout = '15s'; SET LOCAL idle_in_transaction_session_timeout = '10min'",
        )
        .await?;
    // The position and 12 random bits: two events that share them wait for each other, and nothing more.
    let [.., a, b, c, d] = id.into_bytes();
    let key = i32::from_be_bytes([a, b, c, d]);
    transaction.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&LOCK_CLASS, &key]).await?;
    Ok(())
}

/// The event that records an erasure.
fn audit_event(event: &StoredEvent, reason: &Reason) -> Result<Submission, EraseError> {
    let now = i64::try_from(unix_ms() * 1000).ok().and_then(|micros| Timestamp::from_micros(micros).ok());
    let now = now.unwrap_or(Timestamp::MIN);
    let reason = Value::from(&reason.0[..]);
    let text = format!(
        r#"{{"type":"{AUDIT_TYPE}","timestamp":"{now}","event_id":"{}","index":{},"reason":{reason}}}"#,
        event.id, event.index
    );
    Submission::own(Bytes::from(text)).ok().flatten().ok_or(EraseError::Malformed)
}

/// Whether an event of the ledger records the erasure of another one, as it is shown.
pub(crate) fn records(audit: &StoredEvent, erased: &StoredEvent) -> bool {
    let (Content::Intact { payload, .. }, Content::Erased(erasure)) = (&audit.content, &erased.content)
    else {
        return false;
    };
    audit.index == erasure.audit_index && says(&audit.kind, payload, erased.id, &erasure.reason)
}

/// Whether an event's type and payload are the record of this erasure.
pub(crate) fn says(kind: &str, payload: &[u8], erased: Uuid, reason: &str) -> bool {
    let Ok(text) = serde_json::from_slice::<Value>(payload) else { return false };
    kind == AUDIT_TYPE && text["event_id"] == erased.to_string() && text["reason"] == reason
}

/// Takes an event out of its case, whose name is a part of the payload.
async fn forget_case(
    transaction: &Transaction<'_>,
    ledger: &str,
    event: &StoredEvent,
) -> Result<(), EraseError> {
    let payload = event.payload().and_then(|payload| serde_json::from_slice::<Value>(payload).ok());
    let case_id = payload.as_ref().and_then(|payload| payload["case_id"].as_str());
    let index = i64::try_from(event.index).map_err(|_| ReadError::Impossible(event.id))?;
    if let Some(case_id) = case_id {
        let sql = "DELETE FROM certeus.cases WHERE ledger = $1 AND case_id = $2 AND index = $3";
        transaction.execute(sql, &[&ledger, &case_id, &index]).await?;
    }
    Ok(())
}

/// Destroys an event's salt, and the secret that gives it; the other events of the batch keep theirs.
async fn forget_salt(transaction: &Transaction<'_>, id: Uuid) -> Result<(), EraseError> {
    let batch = BatchId::of(id).uuid();
    let sql = "SELECT secret, salts, event_count FROM certeus.batches WHERE batch_id = $1 FOR UPDATE";
    let row = transaction.query_one(sql, &[&batch]).await?;
    let (secret, salts): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(0), row.get(1));
    let count = u32::try_from(row.get::<_, i32>(2)).map_err(|_| ReadError::Impossible(id))?;
    let secret = secret.map(<[u8; 32]>::try_from).transpose().map_err(|_| ReadError::Impossible(id))?;
    let mut salts = match (secret, salts) {
        (Some(secret), None) => {
            // A million events take most of a second.
            tokio::task::spawn_blocking(move || {
                let secret = BatchSecret(secret);
                (0..count).flat_map(|position| secret.salt(position)).collect()
            })
            .await
            .map_err(|_| EraseError::Unfinished(None))?
        }
        (None, Some(salts)) => salts,
        (Some(_), Some(_)) | (None, None) => return Err(ReadError::Impossible(id).into()),
    };
    let start = id::position(id) * SALT_BYTES;
    salts.get_mut(start..start + SALT_BYTES).ok_or(ReadError::Impossible(id))?.fill(0);
    let sql = "UPDATE certeus.batches SET secret = NULL, salts = $2 WHERE batch_id = $1";
    transaction.execute(sql, &[&batch, &salts]).await?;
    Ok(())
}

/// Records an erasure; gives its time.
async fn insert(
    transaction: &Transaction<'_>,
    ledger: &str,
    record: &Erasure,
) -> Result<Timestamp, EraseError> {
    let Erasure { event_id, index, reason, erased_at: _, audit_event_id, audit_index } = record;
    let sql = "INSERT INTO certeus.erasures (event_id, ledger, index, reason, audit_event_id, audit_index) \
               VALUES ($1, $2, $3, $4, $5, $6) RETURNING erased_at";
    let (index, audit_index) = (i64::try_from(*index).ok(), i64::try_from(*audit_index).ok());
    let row = transaction
        .query_one(sql, &[event_id, &ledger, &index, reason, audit_event_id, &audit_index])
        .await?;
    Ok(store::time(&row, 0, *event_id)?)
}

/// The records of those events that were erased.
pub(crate) async fn of(
    client: &impl GenericClient,
    events: &[Uuid],
) -> Result<HashMap<Uuid, Erasure>, ReadError> {
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = format!("{RECORD} WHERE event_id = ANY($1)");
    records_of(&client.query(&sql, &[&events]).await?)
}

/// The records of the events erased among those from one id to another.
pub(crate) async fn between(
    client: &impl GenericClient,
    first: Uuid,
    last: Uuid,
) -> Result<HashMap<Uuid, Erasure>, ReadError> {
    let sql = format!("{RECORD} WHERE event_id BETWEEN $1 AND $2");
    records_of(&client.query(&sql, &[&first, &last]).await?)
}

/// The columns that [`records_of`] reads.
const RECORD: &str =
    "SELECT event_id, index, reason, erased_at, audit_event_id, audit_index FROM certeus.erasures";

fn records_of(rows: &[tokio_postgres::Row]) -> Result<HashMap<Uuid, Erasure>, ReadError> {
    let erasures = rows.iter().map(|row| {
        let event_id: Uuid = row.get(0);
        let index =
            |column| u64::try_from(row.get::<_, i64>(column)).map_err(|_| ReadError::Impossible(event_id));
        let erasure = Erasure {
            event_id,
            index: index(1)?,
            reason: row.get(2),
            erased_at: store::time(row, 3, event_id)?,
            audit_event_id: row.get(4),
            audit_index: index(5)?,
        };
        Ok((event_id, erasure))
    });
    erasures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_text_that_says_something() {
        for (text, good) in [
            ("Art. 17 GDPR, ticket 4711".to_owned(), true),
            ("é".repeat(REASON_BYTES_MAX / 2), true),
            ("é".repeat(REASON_BYTES_MAX / 2) + "x", false),
            (String::new(), false),
            (" \u{a0}".to_owned(), false),
            ("a\0b".to_owned(), false),
            ("a\nb".to_owned(), false),
        ] {
            assert_eq!(Reason::new(text.clone()).is_ok(), good, "{text:?}");
        }
    }
}
