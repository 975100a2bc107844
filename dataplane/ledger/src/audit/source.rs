//! What the audit reads from PostgreSQL: its statements and how their rows are decoded.
//!
//! Never writes: every connection is read-only. Everything long is a binary COPY, hashed from the buffer it arrives in. A read
//! sees one state of the database, and is over within seconds, so that it does not hold up the clean-up of old rows.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use certeus_tlog::Hash;
use futures_util::TryStreamExt;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::AuditError;
use super::archive::Archives;
use super::copy::CopyDecoder;
use super::explain::Span;
use super::finding::{Finding, Findings, Kind};
use super::records::Erasures;
use super::rows::{BatchRow, EventRow, Events, RowAudit, Salts};
use super::sequence::SequenceRow;
use super::suspect::{Content, Place};
use super::tree::LEVELS;
use crate::envelope::{BatchSecret, ENTRY_BYTES};
use crate::id::{self, BATCH_EVENTS_MAX, BatchId};
use crate::postgres::Connection;
use crate::provenance::Runs;

/// Reads see one state of the database and keep to the order of the indexes, whatever the planner's statistics say.
/// Partitions are taken from the catalog as it is: the lock keeps a day that is in the snapshot from being dropped.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
     LOCK TABLE certeus.events IN ACCESS SHARE MODE; \
     SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off";

/// A read-only connection.
pub(super) struct Source(Connection);

/// Ids from `from` up to `to`, or without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IdRange {
    pub(super) from: Uuid,
    pub(super) to: Option<Uuid>,
}

impl IdRange {
    /// As a condition on a column; ids are written by us and need no quoting.
    pub(super) fn condition(&self, column: &str) -> String {
        let end = self.to.map(|to| format!(" AND {column} < '{to}'")).unwrap_or_default();
        format!("{column} >= '{}'{end}", self.from)
    }
}

/// Where a ledger stands.
#[derive(Debug)]
pub(super) struct Standing {
    /// What its head says.
    pub(super) next_index: u64,
    /// One after the last index of its batches.
    pub(super) end: u64,
    /// Size of its newest checkpoint.
    pub(super) log_size: u64,
    /// That checkpoint.
    pub(super) checkpoint: Option<StoredCheckpoint>,
}

/// A checkpoint as the database has it.
#[derive(Debug)]
pub(super) struct StoredCheckpoint {
    pub(super) size: u64,
    pub(super) root: Vec<u8>,
    pub(super) note: String,
}

impl Source {
    pub(super) async fn open(database: &crate::Database) -> Result<Self, AuditError> {
        let connection = database.connect().await.map_err(AuditError::Connect)?;
        connection.client.batch_execute("SET default_transaction_read_only = on").await?;
        Ok(Self(connection))
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Version of the schema; `None` if there is none.
    pub(super) async fn schema_version(&self) -> Result<Option<i32>, AuditError> {
        let exists = "SELECT to_regclass('certeus.migrations') IS NOT NULL";
        if !self.client().query_one(exists, &[]).await?.get::<_, bool>(0) {
            return Ok(None);
        }
        let row = self.client().query_one("SELECT max(version) FROM certeus.migrations", &[]).await?;
        Ok(row.get(0))
    }

    /// `None` if there is no such ledger.
    pub(super) async fn standing(&self, ledger: &str) -> Result<Option<Standing>, AuditError> {
        const SQL: &str = "SELECT h.next_index, \
             coalesce((SELECT b.first_index + b.event_count FROM certeus.batches b \
             WHERE b.ledger = $1 ORDER BY b.first_index DESC LIMIT 1), 0), \
             l.tree_size, l.root, l.checkpoint \
             FROM certeus.heads h LEFT JOIN certeus.log_heads l USING (ledger) WHERE h.ledger = $1";
        let Some(row) = self.client().query_opt(SQL, &[&ledger]).await? else { return Ok(None) };
        let log_size = row.get::<_, Option<i64>>(2).map_or(Ok(0), unsigned)?;
        let checkpoint = match (row.get(3), row.get(4)) {
            (Some(root), Some(note)) => Some(StoredCheckpoint { size: log_size, root, note }),
            _ => None,
        };
        let (next_index, end) = (unsigned(row.get(0))?, unsigned(row.get(1))?);
        Ok(Some(Standing { next_index, end, log_size, checkpoint }))
    }

    /// Ids and sizes of batches from `from` on, in the order of ids.
    pub(super) async fn batch_ids(&self, from: Uuid, limit: i64) -> Result<Vec<(Uuid, u64)>, AuditError> {
        const SQL: &str = "SELECT batch_id, event_count FROM certeus.batches WHERE batch_id >= $1 \
             ORDER BY batch_id LIMIT $2";
        let rows = self.client().query(SQL, &[&from, &limit]).await?;
        rows.iter().map(|row| Ok((row.get(0), unsigned(i64::from(row.get::<_, i32>(1)))?))).collect()
    }

    /// Audits the rows of a range of ids.
    pub(super) async fn audit_rows(&self, job: &RowJob) -> Result<RowsDone, AuditError> {
        let RowJob { ledger, range, through, archives } = job;
        self.client().batch_execute(BEGIN).await?;
        let mut findings = Findings::default();
        // As this snapshot has them: a day may be archived and dropped while the audit goes on.
        let archived_days = self.archived_days(ledger).await?;
        let batches = self.batches(ledger, range, *through, &archived_days, &mut findings).await?;
        let Erasures { events: erased, mut claims } = self.erasures(ledger, range, &archived_days).await?;
        // Those of archived events are checked with their files.
        claims.retain(|claim| !archived_days.contains(&BatchId::of(claim.event).day().suffix()));
        let mut audit = RowAudit::new(ledger, &batches, erased);
        let copy = format!(
            "COPY (SELECT id, event_time, type, payload FROM certeus.events WHERE {} ORDER BY id) \
             TO STDOUT (FORMAT binary)",
            range.condition("id")
        );
        let mut decoder = CopyDecoder::<4>::default();
        let mut pieces = pin!(self.client().copy_out(&copy).await?);
        while let Some(piece) = pieces.try_next().await? {
            decoder.feed(&piece, |row| {
                let row = event_row(row).ok_or(AuditError::Columns("certeus.events"))?;
                audit.row(&row).map_err(AuditError::from)
            })?;
        }
        decoder.finish()?;
        self.client().batch_execute("COMMIT").await?;
        let (counts, suspects) = audit.finish();
        archives.check(self, ledger, &claims, &mut findings).await?;
        Ok(RowsDone { counts, suspects, findings })
    }

    /// The batches with events in a range of ids; of those of `archived_days` no rows are expected.
    pub(super) async fn batches(
        &self,
        ledger: &str,
        range: &IdRange,
        through: u64,
        archived_days: &HashSet<String>,
        findings: &mut Findings,
    ) -> Result<Vec<BatchRow>, AuditError> {
        let ours = format!("ledger = '{ledger}' AND first_index < {through}");
        let from_batch = IdRange { from: BatchId::of(range.from).uuid(), to: range.to };
        let copy = format!(
            "COPY (SELECT {ours}, first_index, event_count, batch_id, CASE WHEN {ours} THEN secret END, \
             CASE WHEN {ours} THEN salts END, CASE WHEN {ours} THEN entries END, producers, key_id \
             FROM certeus.batches WHERE {} ORDER BY batch_id) TO STDOUT (FORMAT binary)",
            from_batch.condition("batch_id")
        );
        let mut batches = Vec::new();
        let mut decoder = CopyDecoder::<9>::default();
        let mut pieces = pin!(self.client().copy_out(&copy).await?);
        while let Some(piece) = pieces.try_next().await? {
            decoder.feed(&piece, |row| {
                let (batch, finding) =
                    batch_row(row, archived_days).ok_or(AuditError::Columns("certeus.batches"))?;
                batches.extend(batch);
                finding.into_iter().for_each(|finding| findings.push(finding));
                Ok::<(), AuditError>(())
            })?;
        }
        decoder.finish()?;
        Ok(batches)
    }

    /// The first batch at or after an index.
    pub(super) async fn next_batch(&self, ledger: &str, from: u64) -> Result<Option<u64>, AuditError> {
        const SQL: &str = "SELECT first_index FROM certeus.batches WHERE ledger = $1 AND first_index >= $2 \
             ORDER BY first_index LIMIT 1";
        let row = self.client().query_opt(SQL, &[&ledger, &signed(from)]).await?;
        row.map(|row| unsigned(row.get(0))).transpose()
    }

    /// Gives each batch whose first index lies in the range to `take`, in the order of indexes.
    pub(super) async fn sequence(
        &self,
        ledger: &str,
        (from, to): (u64, u64),
        mut take: impl FnMut(&SequenceRow<'_>),
    ) -> Result<(), AuditError> {
        self.client().batch_execute(BEGIN).await?;
        let copy = format!(
            "COPY (SELECT first_index, event_count, batch_id, entries FROM certeus.batches \
             WHERE ledger = '{ledger}' AND first_index >= {from} AND first_index < {to} ORDER BY first_index) \
             TO STDOUT (FORMAT binary)"
        );
        let mut decoder = CopyDecoder::<4>::default();
        {
            let mut pieces = pin!(self.client().copy_out(&copy).await?);
            while let Some(piece) = pieces.try_next().await? {
                decoder.feed(&piece, |row| {
                    take(&sequence_row(row).ok_or(AuditError::Columns("certeus.batches"))?);
                    Ok::<(), AuditError>(())
                })?;
            }
        }
        decoder.finish()?;
        Ok(self.client().batch_execute("COMMIT").await?)
    }

    /// The stored tiles of a level between two indexes, both included.
    pub(super) async fn tiles(
        &self,
        ledger: &str,
        level: usize,
        (first, last): (u64, u64),
        into: &mut BTreeMap<(usize, u64), Vec<Hash>>,
    ) -> Result<(), AuditError> {
        debug_assert!((1..LEVELS).contains(&level));
        const SQL: &str = "SELECT tile_index, hashes FROM certeus.log_tiles \
             WHERE ledger = $1 AND level = $2 AND tile_index BETWEEN $3 AND $4";
        let level_column = i16::try_from(level).unwrap_or(i16::MAX);
        let rows = self.client().query(SQL, &[&ledger, &level_column, &signed(first), &signed(last)]).await?;
        for row in rows {
            let hashes = row.get::<_, &[u8]>(1).as_chunks().0.iter().copied().map(Hash).collect();
            into.insert((level, unsigned(row.get(0))?), hashes);
        }
        Ok(())
    }

    /// Stored checkpoints of sizes above `after`, up to `to`.
    pub(super) async fn checkpoints(
        &self,
        ledger: &str,
        after: u64,
        to: u64,
    ) -> Result<Vec<StoredCheckpoint>, AuditError> {
        const SQL: &str = "SELECT tree_size, root, note FROM certeus.checkpoints \
             WHERE ledger = $1 AND tree_size > $2 AND tree_size <= $3 ORDER BY tree_size";
        let rows = self.client().query(SQL, &[&ledger, &signed(after), &signed(to)]).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredCheckpoint { size: unsigned(row.get(0))?, root: row.get(1), note: row.get(2) })
            })
            .collect()
    }

    /// Batches that overlap the events from `first` up to `end`.
    pub(super) async fn spans(&self, ledger: &str, first: u64, end: u64) -> Result<Vec<Span>, AuditError> {
        const SQL: &str = "SELECT first_index, event_count, batch_id FROM certeus.batches \
             WHERE ledger = $1 AND first_index >= $2 AND first_index < $4 AND first_index + event_count > $3 \
             ORDER BY first_index";
        let from = first.saturating_sub(BATCH_EVENTS_MAX as u64);
        let rows = self.client().query(SQL, &[&ledger, &signed(from), &signed(first), &signed(end)]).await?;
        rows.iter()
            .map(|row| {
                let count =
                    u32::try_from(row.get::<_, i32>(1)).map_err(|_| AuditError::Columns("batches"))?;
                Ok(Span { first: unsigned(row.get(0))?, count, id: row.get(2) })
            })
            .collect()
    }

    /// Where an event belongs, by its id.
    pub(super) async fn place(&self, index: u64, id: Uuid) -> Result<Option<Place>, AuditError> {
        const SQL: &str = "SELECT secret, substring(salts FROM $2 FOR 32), substring(entries FROM $2 FOR 32), \
             producers, key_id FROM certeus.batches WHERE batch_id = $1";
        let position = id::position(id);
        let start = i32::try_from(position * ENTRY_BYTES + 1).unwrap_or(i32::MAX);
        let Some(row) = self.client().query_opt(SQL, &[&BatchId::of(id).uuid(), &start]).await? else {
            return Ok(None);
        };
        let bytes =
            |column: usize| row.get::<_, Option<&[u8]>>(column).and_then(|bytes| bytes.try_into().ok());
        let secret: Option<[u8; 32]> = bytes(0);
        let derived = secret.map(|secret| BatchSecret(secret).salt(u32::try_from(position).unwrap_or(0)));
        let place = || {
            let (salt, entry) = (derived.or_else(|| bytes(1))?, bytes(2)?);
            let runs = Runs::read(row.get(3)).unwrap_or_default();
            let producer = runs.find(u32::try_from(position).ok()?);
            let producer = producer.map(|place| (place.id.to_owned(), place.epoch, place.sequence));
            Some(Place { index, id, salt, entry, producer, key_id: row.get(4) })
        };
        Ok(place())
    }

    /// What the row of an event holds.
    pub(super) async fn content(&self, id: Uuid) -> Result<Option<Content>, AuditError> {
        const SQL: &str = "SELECT event_time, type, payload FROM certeus.events WHERE id = $1";
        let row: Option<Row> = self.client().query_opt(SQL, &[&id]).await?;
        Ok(row.map(|row| {
            Content::new(row.get::<_, RawTime>(0).0, row.get::<_, &str>(1).as_bytes().to_vec(), row.get(2))
        }))
    }
}

/// A range of ids to be audited.
pub(super) struct RowJob {
    pub(super) ledger: String,
    pub(super) range: IdRange,
    /// Events at or above this index are not looked at.
    pub(super) through: u64,
    pub(super) archives: Arc<Archives>,
}

/// What became of a [`RowJob`], or of a stretch of archived ids.
#[derive(Debug, Default)]
pub(super) struct RowsDone {
    pub(super) counts: super::rows::RowCounts,
    pub(super) suspects: super::suspect::Suspects,
    pub(super) findings: Findings,
}

/// A `timestamptz` as PostgreSQL sends it: microseconds since 2000-01-01.
struct RawTime(i64);

impl<'a> tokio_postgres::types::FromSql<'a> for RawTime {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &tokio_postgres::types::Type) -> bool {
        *ty == tokio_postgres::types::Type::TIMESTAMPTZ
    }
}

fn event_row<'a>([id, time, kind, payload]: [Option<&'a [u8]>; 4]) -> Option<EventRow<'a>> {
    Some(EventRow {
        id: Uuid::from_bytes(id?.try_into().ok()?),
        postgres_micros: i64::from_be_bytes(time?.try_into().ok()?),
        kind: kind?,
        payload: payload?,
    })
}

/// A batch, unless it holds what is never written; then what is wrong with it. `None` if the columns are not what they should be.
fn batch_row(
    [ours, first_index, event_count, id, secret, salts, entries, producers, key_id]: [Option<&[u8]>; 9],
    archived_days: &HashSet<String>,
) -> Option<(Option<BatchRow>, Option<Finding>)> {
    let id = Uuid::from_bytes(id?.try_into().ok()?);
    let first_index = i64::from_be_bytes(first_index?.try_into().ok()?);
    let event_count = i32::from_be_bytes(event_count?.try_into().ok()?);
    let malformed = |what: &str| {
        let finding = Finding::about(Kind::BatchMalformed, Some(id), format!("the batch {what}"));
        Some((None, Some(finding)))
    };
    let (Ok(first_index), Ok(event_count)) = (u64::try_from(first_index), u32::try_from(event_count)) else {
        return malformed("has a negative index or count");
    };
    if !(1..=BATCH_EVENTS_MAX as u64).contains(&u64::from(event_count)) || id::position(id) != 0 {
        return malformed("has an impossible id or number of events");
    }
    let row = |events| BatchRow { first_index, event_count, id: BatchId::of(id), events };
    let batch = |events| Some((Some(row(events)), None));
    // Its rows are there, but there is nothing to compare them with.
    let malformed = |what: &str| malformed(what).map(|(_, finding)| (Some(row(Events::Skipped)), finding));
    if ours? != [1] {
        return batch(Events::Skipped);
    }
    if archived_days.contains(&BatchId::of(id).day().suffix()) {
        return batch(Events::Archived);
    }
    let length = usize::try_from(event_count).ok()? * ENTRY_BYTES;
    let salts = match (secret.map(<[u8; 32]>::try_from), salts) {
        (Some(Ok(secret)), None) => Salts::Secret(BatchSecret(secret)),
        (None, Some(salts)) if salts.len() == length => Salts::Each(salts.to_vec()),
        _ => return malformed("has no salts, or not one for each event"),
    };
    match entries {
        Some(entries) if entries.len() == length => batch(Events::Stored {
            salts,
            entries: entries.to_vec(),
            producers: producers.map(<[u8]>::to_vec),
            key_id: key_id.map(<[u8]>::to_vec),
        }),
        _ => malformed("has not one log entry for each event"),
    }
}

fn sequence_row<'a>([first, count, id, entries]: [Option<&'a [u8]>; 4]) -> Option<SequenceRow<'a>> {
    Some(SequenceRow {
        first_index: u64::try_from(i64::from_be_bytes(first?.try_into().ok()?)).ok()?,
        event_count: u32::try_from(i32::from_be_bytes(count?.try_into().ok()?)).ok()?,
        id: Uuid::from_bytes(id?.try_into().ok()?),
        entries: entries?,
    })
}

/// Indexes and sizes are never negative: the schema's checks say so, and a database without them is not ours.
pub(super) fn unsigned(number: i64) -> Result<u64, AuditError> {
    u64::try_from(number).map_err(|_| AuditError::Columns("a negative number"))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
