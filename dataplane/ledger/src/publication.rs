//! Bundles of this ledger: published on record, and shown; `make` makes them of its events.
//!
//! Owns the table `certeus.bundles` and events of type `certeus.bundle`. Promises: what is published was verified, is consistent
//! with the newest checkpoint, and is recorded by one event of the ledger however often and wherever it is published; a bundle that
//! shows an event is not shown any more once that was erased. Copies that others have are beyond it.
//!
//! Stopping between the event and the table leaves a record without a publication; a repeat finds the record and goes on. For a day
//! the identity of the request sees to it, also while the first attempt is in doubt, and for ever the case of the record.

mod make;

use std::time::Duration;

use bytes::Bytes;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::proof::verify_consistency;
use sha2::{Digest, Sha256};
use tokio::sync::SemaphorePermit;
use tokio_postgres::{Error, GenericClient};
use uuid::Uuid;

use crate::bundle::{self, Bundle, Entry, EntryError, NotProven, Opened, Trust};
use crate::commit::CommitError;
use crate::erasure;
use crate::error::Class;
use crate::ledger::{AppendError, Ledger};
use crate::log::LogError;
use crate::request::{IdempotencyKey, Identity};
use crate::store::ReadError;
use crate::submission::Submission;

/// Type of the event that records a publication.
const RECORD_TYPE: &str = "certeus.bundle";
/// Bundles that a pod makes or publishes at a time; each may take some 80 MiB of memory.
pub(crate) const TURNS: usize = 2;
/// A request waits this long for its turn.
const TURN_MAX: Duration = Duration::from_secs(5);
/// A request waits this long for a checkpoint.
const SEAL_WAIT: Duration = Duration::from_secs(10);
/// Key of the advisory lock that publications share and an erasure has alone: "bundles" in ASCII.
const ERASURE_LOCK: i64 = 0x62_75_6E_64_6C_65_73;
/// The record is looked for among so many events of its case. Others can be there only if a client put them there on purpose.
const RECORDS_MAX: usize = 500;

/// A publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The bundle.
    pub rid: Uuid,
    /// The event that records it.
    pub event_id: Uuid,
    /// Its index.
    pub event_index: u64,
    /// Whether it was published before.
    pub repeated: bool,
}

/// Why a bundle was not made or not published.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// The bundle is not one of ours, or does not prove what it should.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// There is no such event.
    #[error("entry {position}: there is no event {id}")]
    Unknown {
        /// Position in the list, from 0.
        position: usize,
        /// The event.
        id: Uuid,
    },
    /// The bundle shows an event that was erased since.
    #[error("entry {position}: event {id} was erased after the bundle was made, and is not shown any more")]
    Erased {
        /// Position in the list, from 0.
        position: usize,
        /// The event.
        id: Uuid,
    },
    /// Our key has signed a checkpoint of another history.
    #[error(
        "the bundle's checkpoint of {size} events is signed, and is not of the history of the newest one"
    )]
    Forked {
        /// Its size.
        size: u64,
    },
    /// Another bundle has this name.
    #[error("another bundle was published as {0}")]
    RidReused(Uuid),
    /// An event that it shows was erased.
    #[error("bundle {0} was withdrawn: an event that it shows was erased")]
    Withdrawn(Uuid),
    /// Others are being made or published.
    #[error("other bundles are being made or published")]
    Busy,
    /// The log cannot prove it now.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The event that records it was not committed.
    #[error("the event that records the bundle was not committed")]
    Append(#[from] AppendError),
    /// The record would not be an event: a defect.
    #[error("the event that records the bundle is malformed")]
    Malformed,
    /// The database failed before or after the publication was written.
    #[error("the publication was not finished; repeat the request")]
    Unfinished(#[source] Option<Error>),
}

impl PublicationError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Bundle(_) | Self::Unknown { .. } | Self::Erased { .. } => Class::Invalid,
            Self::RidReused(_) | Self::Withdrawn(_) => Class::Invalid,
            Self::Forked { .. } => Class::Corrupt,
            Self::Busy => Class::Overloaded,
            Self::Log(error) => error.class(),
            Self::Append(error) => error.class(),
            Self::Malformed => Class::Bug,
            Self::Unfinished(_) => Class::OutcomeUnknown,
        }
    }
}

impl From<NotProven> for PublicationError {
    fn from(error: NotProven) -> Self {
        bundle::Error::from(error).into()
    }
}

impl From<ReadError> for PublicationError {
    fn from(error: ReadError) -> Self {
        LogError::from(error).into()
    }
}

/// A row of the table.
struct Row {
    sha256: Vec<u8>,
    withdrawn: bool,
    published: Published,
}

impl Ledger {
    async fn bundling_turn(&self) -> Result<SemaphorePermit<'_>, PublicationError> {
        let turn = tokio::time::timeout(TURN_MAX, self.shared().bundling.acquire());
        turn.await.map_err(|_| PublicationError::Busy)?.map_err(|_| PublicationError::Busy)
    }

    /// Verifies a bundle, records it as an event, and publishes it. `strict`: see [`bundle::check_strict`].
    ///
    /// # Errors
    /// When the bundle is not one of this log or does not prove what it should, or the database is away.
    pub async fn publish(&self, jws: String, strict: bool) -> Result<Published, PublicationError> {
        let origin = self.signing_keys().ok_or(LogError::Off)?.origin().to_owned();
        let _turn = self.bundling_turn().await?;
        let trust = Trust { origin, ledger: self.name().to_owned(), keys: self.keys_of_all_time().await? };
        let opened = blocking(move || {
            let opened = Bundle::open(&jws, &trust)?;
            Ok((opened, jws))
        });
        let (Opened { bundle, checkpoint }, jws) = opened.await?;
        if strict {
            let proven: Vec<_> =
                bundle.entries.iter().map(|entry| (entry.id, entry.payload.is_none())).collect();
            bundle::check_strict(&bundle.claims, &proven)?;
        }
        let sha256: [u8; 32] = Sha256::digest(&jws).into();
        let found = {
            let client = self.shared().pool.get().await.map_err(LogError::from)?;
            row(&**client, self.name(), bundle.rid).await.map_err(LogError::from)?
        };
        if let Some(row) = found {
            return repeated(row, &sha256);
        }
        self.check_history(&checkpoint).await?;
        self.check_erasures(&bundle.entries).await?;
        let (event_id, event_index) = match self.recorded(bundle.rid, &sha256).await? {
            Some(recorded) => recorded,
            None => {
                let record = record(&bundle, &sha256, checkpoint.size())?;
                let receipt = self.append(record).await.map_err(|error| match error {
                    AppendError::Commit(CommitError::KeyReused) => PublicationError::RidReused(bundle.rid),
                    error => error.into(),
                })?;
                (receipt.first_id, receipt.first_index)
            }
        };
        let published = Published { rid: bundle.rid, event_id, event_index, repeated: false };
        self.insert(&published, &bundle.entries, &jws, &sha256).await
    }

    /// Whether a signed checkpoint is one of this log's past.
    async fn check_history(&self, checkpoint: &Checkpoint) -> Result<(), PublicationError> {
        let (size, root) = (checkpoint.size(), checkpoint.root());
        // Another pod may have made it with a checkpoint that this one does not know yet.
        let latest = self.sealed(size, SEAL_WAIT).await?.signed.checkpoint.clone();
        let proof = self.prove(size, latest.size()).await?;
        if verify_consistency(size, latest.size(), &root, &latest.root(), &proof).is_ok() {
            return Ok(());
        }
        // What is stored may be wrong instead. If not, our key has signed two histories.
        self.log_consistency(size, latest.size()).await?;
        tracing::error!(log.size = size, log.root = %root, "a signed checkpoint is not of this log's history");
        Err(PublicationError::Forked { size })
    }

    /// Whether the events that a bundle shows are not erased, and those that it calls erased are.
    async fn check_erasures(&self, entries: &[Entry]) -> Result<(), PublicationError> {
        let shown = shown(entries);
        let erased = {
            let client = self.shared().pool.get().await.map_err(LogError::from)?;
            erasure::of(&**client, &shown).await?
        };
        if let Some((position, entry)) = place(entries, |entry| erased.contains_key(&entry.id)) {
            return Err(PublicationError::Erased { position, id: entry.id });
        }
        for (position, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.payload.is_none()) {
            let id = entry.id;
            let event = self.event(id).await?.filter(|event| {
                event.payload().is_none()
                    && event.index == entry.index
                    && entry.log_entry(self.name()).is_ok_and(|proven| proven == event.entry)
            });
            if event.is_none() {
                let source = EntryError::NotErased;
                return Err(bundle::Error::Entry { position, id, source }.into());
            }
        }
        Ok(())
    }

    /// The event that records this bundle, if there is one.
    async fn recorded(&self, rid: Uuid, sha256: &[u8; 32]) -> Result<Option<(Uuid, u64)>, PublicationError> {
        let page = self.case_events(&rid.to_string(), 0, RECORDS_MAX).await?;
        for found in page.events {
            let Some(event) = self.stored(found.id).await?.filter(|event| event.kind == RECORD_TYPE) else {
                continue;
            };
            let payload = event.payload().and_then(|payload| std::str::from_utf8(payload).ok());
            if payload.is_some_and(|payload| payload.contains(&hex(sha256))) {
                return Ok(Some((event.id, event.index)));
            }
            return Err(PublicationError::RidReused(rid));
        }
        Ok(None)
    }

    async fn insert(
        &self,
        published: &Published,
        entries: &[Entry],
        jws: &str,
        sha256: &[u8; 32],
    ) -> Result<Published, PublicationError> {
        const INSERT: &str = "INSERT INTO certeus.bundles (rid, ledger, jws, sha256, event_id, event_index, shown) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (rid) DO NOTHING";
        // Against an erasure: whoever comes second sees what the first has done.
        const LOCK: &str = "SELECT pg_advisory_xact_lock_shared($1)";
        let unfinished = |error| PublicationError::Unfinished(Some(error));
        let Published { rid, event_id, event_index, repeated: _ } = published;
        let shown = shown(entries);
        let index = i64::try_from(*event_index).map_err(|_| ReadError::Impossible(*event_id))?;
        // A connection that flushes before it says that something is committed.
        let mut connection = self.shared().database.connect().await.map_err(unfinished)?;
        let transaction = connection.client.transaction().await.map_err(unfinished)?;
        transaction.batch_execute("SET LOCAL lock_timeout = '15s'").await.map_err(unfinished)?;
        transaction.execute(LOCK, &[&ERASURE_LOCK]).await.map_err(unfinished)?;
        let erased = erasure::of(&transaction, &shown).await?;
        if let Some((position, entry)) = place(entries, |entry| erased.contains_key(&entry.id)) {
            return Err(PublicationError::Erased { position, id: entry.id });
        }
        let inserted = transaction
            .execute(INSERT, &[rid, &self.name(), &jws, &&sha256[..], event_id, &index, &shown])
            .await
            .map_err(unfinished)?;
        transaction.commit().await.map_err(unfinished)?;
        if inserted == 1 {
            tracing::info!(bundle.rid = %rid, event.id = %event_id, event.index = event_index, "a bundle was published");
            return Ok(*published);
        }
        let found = row(&connection.client, self.name(), *rid).await.map_err(unfinished)?;
        repeated(found.ok_or(PublicationError::RidReused(*rid))?, sha256)
    }

    /// A published bundle: the JWS.
    ///
    /// # Errors
    /// When it was withdrawn, or the database is away.
    pub async fn published(&self, rid: Uuid) -> Result<Option<String>, PublicationError> {
        let sql = "SELECT jws FROM certeus.bundles WHERE rid = $1 AND ledger = $2";
        let client = self.shared().pool.get().await.map_err(LogError::from)?;
        let found = client.query_opt(sql, &[&rid, &self.name()]).await.map_err(LogError::from)?;
        let Some(row) = found else { return Ok(None) };
        row.get::<_, Option<String>>(0).ok_or(PublicationError::Withdrawn(rid)).map(Some)
    }
}

/// Withdraws the bundles that show an event, also those that are being published: the transaction has to record its erasure.
pub(crate) async fn withdraw(client: &impl GenericClient, event: Uuid) -> Result<(), Error> {
    let sql = "UPDATE certeus.bundles SET jws = NULL WHERE shown @> ARRAY[$1::uuid] AND jws IS NOT NULL";
    client.execute("SELECT pg_advisory_xact_lock($1)", &[&ERASURE_LOCK]).await?;
    let withdrawn = client.execute(sql, &[&event]).await?;
    if withdrawn > 0 {
        tracing::info!(event.id = %event, bundles = withdrawn, "published bundles that show an event are withdrawn");
    }
    Ok(())
}

/// Work that would hold up the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublicationError> + Send + 'static,
) -> Result<T, PublicationError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        // The runtime is going down, unless it was a defect.
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(PublicationError::Unfinished(None)),
        },
    }
}

/// Events whose payload is in a bundle.
fn shown(entries: &[Entry]) -> Vec<Uuid> {
    entries.iter().filter(|entry| entry.payload.is_some()).map(|entry| entry.id).collect()
}

fn place(entries: &[Entry], is: impl Fn(&Entry) -> bool) -> Option<(usize, &Entry)> {
    entries.iter().enumerate().find(|(_, entry)| is(entry))
}

/// The answer to a repeat.
fn repeated(row: Row, sha256: &[u8; 32]) -> Result<Published, PublicationError> {
    let Row { sha256: known, withdrawn, published } = row;
    if known != sha256 {
        return Err(PublicationError::RidReused(published.rid));
    }
    if withdrawn { Err(PublicationError::Withdrawn(published.rid)) } else { Ok(published) }
}

async fn row(client: &impl GenericClient, ledger: &str, rid: Uuid) -> Result<Option<Row>, Error> {
    let sql = "SELECT sha256, jws IS NULL, event_id, event_index FROM certeus.bundles WHERE rid = $1 AND ledger = $2";
    let Some(row) = client.query_opt(sql, &[&rid, &ledger]).await? else { return Ok(None) };
    // The table has none below zero.
    let event_index = u64::try_from(row.get::<_, i64>(3)).unwrap_or(0);
    let published = Published { rid, event_id: row.get(2), event_index, repeated: true };
    Ok(Some(Row { sha256: row.get(0), withdrawn: row.get(1), published }))
}

/// The event that records a bundle. The same of the same bundle, whenever it is made: its time is when the bundle was issued.
fn record(bundle: &Bundle, sha256: &[u8; 32], size: u64) -> Result<Submission, PublicationError> {
    let Bundle { rid, issued_at, entries, .. } = bundle;
    let text = format!(
        r#"{{"type":"{RECORD_TYPE}","timestamp":"{issued_at}","case_id":"{rid}","rid":"{rid}","sha256":"{}","entries":{},"checkpoint_size":{size}}}"#,
        hex(sha256),
        entries.len(),
    );
    let record = Submission::own(Bytes::from(text)).ok().flatten().ok_or(PublicationError::Malformed)?;
    record
        .identified(Identity::Key(IdempotencyKey::of_bundle(*rid)), b"")
        .map_err(|_| PublicationError::Malformed)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
