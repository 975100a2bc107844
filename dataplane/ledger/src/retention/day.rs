//! Writes the archived files of one day and one ledger.
//!
//! Owns the reading of a partition in the order of ids, one group of batches after the other, and the records of files.
//! Each event is checked on its way as on any read; a batch that is not complete ends the file. Memory is bounded by
//! [`GROUP_EVENTS`] log entries and one row group.

use std::collections::HashSet;
use std::pin::pin;

use certeus_archive::{Content as ArchivedContent, FileWriter, Row as ArchivedRow, Written};
use futures_util::TryStreamExt;
use rand::RngExt;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::{RetentionError, Run, delete_leftovers, give_up_file, note_file};
use crate::envelope::ENTRY_BYTES;
use crate::erasure;
use crate::id::{self, BatchId, Day};
use crate::provenance::Runs;
use crate::schema;
use crate::store::{self, Commitment, Content, ReadError, SALT_BYTES, StoredEvent, Unchecked};
use crate::timestamp::Timestamp;

/// Events of batches whose entries are read at a time; a single batch may have more.
const GROUP_EVENTS: i64 = 20_000;
/// Batch rows read at a time.
const GROUP_BATCHES: i64 = 1000;

/// Ids of a ledger, both ends included.
struct Range<'a> {
    ledger: &'a str,
    first: Uuid,
    last: Uuid,
}

/// A batch, as far as its events lie in a range.
struct Batch {
    id: BatchId,
    first_index: u64,
    committed_at: Timestamp,
    secret: Option<Vec<u8>>,
    salts: Option<Vec<u8>>,
    entries: Vec<u8>,
    producers: Option<Vec<u8>>,
    key_id: Option<Vec<u8>>,
    positions: std::ops::Range<usize>,
}

impl Batch {
    fn commitment<'a>(&self, event: Uuid, producers: &Runs<'a>) -> Option<Commitment<'a>> {
        let start = id::position(event) * ENTRY_BYTES;
        let place = start..start + SALT_BYTES;
        let salt = self.salts.as_ref().and_then(|salts| salts.get(place.clone()));
        let entry = self.entries.get(place)?;
        Commitment::new(self.secret.as_deref(), salt, entry, producers, self.key_id.as_deref(), event)
    }
}

/// What a file's record needs beside the file.
struct Extent {
    first_id: Uuid,
    last_id: Uuid,
    first_index: u64,
    last_index: u64,
    erased: i64,
}

impl Run<'_> {
    /// Archives what of a day is not archived yet, and again what was changed by an erasure since; gives the number of events.
    pub(super) async fn archive(&mut self, day: Day, ledger: &str) -> Result<u64, RetentionError> {
        self.replace_stale(day, ledger).await?;
        let mut events = 0;
        let end = before(day.next().first_id());
        let mut first = self.resume_at(day, ledger).await?;
        while first <= end {
            let range = Range { ledger, first, last: end };
            let Some((written, extent)) = self.write(day, &range, true).await? else { break };
            if let Err(error) = self.record(day, ledger, &written, &extent).await {
                give_up_file(&self.connection.client, &written.name).await;
                return Err(error);
            }
            self.shared.metrics.archived_events.inc_by(written.rows);
            tracing::info!(
                archive.name = written.name,
                archive.events = written.rows,
                archive.bytes = written.bytes,
                "events were archived"
            );
            events += written.rows;
            first = after(extent.last_id);
        }
        Ok(events)
    }

    /// The first id of a day that no recorded file has.
    async fn resume_at(&self, day: Day, ledger: &str) -> Result<Uuid, RetentionError> {
        let sql = "SELECT last_id FROM certeus.archives \
                   WHERE ledger = $1 AND first_id >= $2 AND first_id < $3 ORDER BY first_id DESC LIMIT 1";
        let bounds = (day.first_id(), day.next().first_id());
        let row = self.connection.client.query_opt(sql, &[&ledger, &bounds.0, &bounds.1]).await?;
        Ok(row.map_or(bounds.0, |row| after(row.get(0))))
    }

    /// Writes files again that hold an event which was erased after they were recorded, while its row is still there.
    async fn replace_stale(&mut self, day: Day, ledger: &str) -> Result<(), RetentionError> {
        let sql = "SELECT first_id, last_id, name FROM certeus.archives a \
                   WHERE day = to_date($1, 'YYYYMMDD') AND ledger = $2 AND erased <> \
                   (SELECT count(*) FROM certeus.erasures e WHERE e.event_id BETWEEN a.first_id AND a.last_id \
                   AND e.ledger = a.ledger)";
        for row in self.connection.client.query(sql, &[&day.suffix(), &ledger]).await? {
            let (first, last, old): (Uuid, Uuid, String) = (row.get(0), row.get(1), row.get(2));
            let range = Range { ledger, first, last };
            let Some((written, extent)) = self.write(day, &range, false).await? else {
                return Err(RetentionError::Missing(first));
            };
            replace_file(&self.connection.client, ledger, first, &old, &written, extent.erased).await?;
            delete_leftovers(&mut self.connection.client, &self.store.archive).await?;
        }
        Ok(())
    }

    async fn record(
        &self,
        day: Day,
        ledger: &str,
        written: &Written,
        extent: &Extent,
    ) -> Result<(), RetentionError> {
        let sql = "WITH noted AS (DELETE FROM certeus.archive_leftovers WHERE name = $8 RETURNING name) \
                   INSERT INTO certeus.archives (ledger, day, first_id, last_id, first_index, last_index, \
                   location, name, sha256, bytes, events, erased) \
                   SELECT $1, to_date($2, 'YYYYMMDD'), $3, $4, $5, $6, $7, noted.name, $9, $10, $11, $12 FROM noted";
        let Written { name, sha256, bytes, rows } = written;
        let Extent { first_id, last_id, first_index, last_index, erased } = extent;
        let (first_index, last_index) = (number(*first_index), number(*last_index));
        let (bytes, rows) = (number(*bytes), number(*rows));
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 12] = [
            &ledger,
            &day.suffix(),
            first_id,
            last_id,
            &first_index,
            &last_index,
            &self.store.location,
            name,
            &&sha256[..],
            &bytes,
            &rows,
            erased,
        ];
        recorded(self.connection.client.execute(sql, &parameters).await?)
    }

    /// The first index of a range; `None` when it has no event.
    async fn first_index(&self, range: &Range<'_>) -> Result<Option<u64>, RetentionError> {
        let sql = "SELECT first_index + CASE WHEN batch_id = $2 THEN certeus.position_of($4) ELSE 0 END \
                   FROM certeus.batches WHERE ledger = $1 AND batch_id >= $2 AND batch_id <= $3 \
                   AND (batch_id > $2 OR certeus.last_id(batch_id, event_count) >= $4) ORDER BY batch_id LIMIT 1";
        let batch = BatchId::of(range.first).uuid();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&range.ledger, &batch, &range.last, &range.first];
        let row = self.connection.client.query_opt(sql, &parameters).await?;
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()))
    }

    /// Writes the events of a range to a file and reads it back; to its end, or with `cut` until the file is full. `None`
    /// when there are none.
    async fn write(
        &self,
        day: Day,
        range: &Range<'_>,
        cut: bool,
    ) -> Result<Option<(Written, Extent)>, RetentionError> {
        let Some(first_index) = self.first_index(range).await? else { return Ok(None) };
        let name = file_name(range.ledger, day, first_index, rand::rng().random());
        note_file(&self.connection.client, &name).await?;
        let outcome = self.write_noted(day, range, cut, &name).await;
        if outcome.is_err() {
            give_up_file(&self.connection.client, &name).await;
        }
        outcome.map(Some)
    }

    async fn write_noted(
        &self,
        day: Day,
        range: &Range<'_>,
        cut: bool,
        name: &str,
    ) -> Result<(Written, Extent), RetentionError> {
        let writer = self.store.archive.create(range.ledger, name).await?;
        let mut file = File { writer, extent: None };
        if let Err(error) = self.fill(day, range, cut, &mut file).await {
            self.connection.client.batch_execute("ROLLBACK").await?;
            // Of what cannot be taken back, S3 keeps parts until its lifecycle rules clear them away.
            let _parts_stay_at_worst = file.writer.abort().await;
            return Err(error);
        }
        let extent = file.extent.ok_or(RetentionError::Missing(range.first))?;
        let written = file.writer.finish().await?;
        self.store.archive.verify(&written).await?;
        Ok((written, extent))
    }

    async fn fill(
        &self,
        day: Day,
        range: &Range<'_>,
        cut: bool,
        file: &mut File,
    ) -> Result<(), RetentionError> {
        let client = &self.connection.client;
        let mut first = range.first;
        loop {
            // Salts and payloads must be of the same moment, or an erasure in between would look like an alteration.
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let rest = Range { first, ..*range };
            let batches = self.batches(&rest).await?;
            let Some(last) = batches.last() else {
                client.batch_execute("COMMIT").await?;
                return Ok(());
            };
            let last_id = last.id.event(last.positions.end.saturating_sub(1));
            let full = self.fill_group(day, &rest, &batches, cut, file).await?;
            client.batch_execute("COMMIT").await?;
            if full || last_id >= range.last {
                return Ok(());
            }
            first = after(last_id);
        }
    }

    /// The next batches of a range; each has at least one event in it.
    async fn batches(&self, range: &Range<'_>) -> Result<Vec<Batch>, RetentionError> {
        let sql = "SELECT batch_id, first_index, event_count, committed_at, secret, salts, entries, producers, key_id FROM \
                   (SELECT b.*, sum(event_count) OVER (ORDER BY batch_id) - event_count AS before \
                   FROM certeus.batches b WHERE ledger = $1 AND batch_id >= $2 AND batch_id <= $3 \
                   AND (batch_id > $2 OR certeus.last_id(batch_id, event_count) >= $6) ORDER BY batch_id LIMIT $4) next WHERE before < $5 ORDER BY batch_id";
        let (first_batch, last) = (BatchId::of(range.first), range.last);
        let rows = self
            .connection
            .client
            .query(
                sql,
                &[&range.ledger, &first_batch.uuid(), &last, &GROUP_BATCHES, &GROUP_EVENTS, &range.first],
            )
            .await?;
        let batches = rows.iter().map(|row| {
            let batch: Uuid = row.get(0);
            let id = BatchId::of(batch);
            let impossible = || ReadError::Impossible(batch);
            let count = usize::try_from(row.get::<_, i32>(2)).map_err(|_| impossible())?;
            let start = if first_batch == id { id::position(range.first) } else { 0 };
            let end = if BatchId::of(last) == id { count.min(id::position(last) + 1) } else { count };
            Ok(Batch {
                id,
                first_index: u64::try_from(row.get::<_, i64>(1)).map_err(|_| impossible())?,
                committed_at: store::time(row, 3, batch)?,
                secret: row.get(4),
                salts: row.get(5),
                entries: row.get(6),
                producers: row.get(7),
                key_id: row.get(8),
                positions: start..end,
            })
        });
        batches.collect()
    }

    /// Moves the events of some batches into the file; `true` when it is full.
    async fn fill_group(
        &self,
        day: Day,
        range: &Range<'_>,
        batches: &[Batch],
        cut: bool,
        file: &mut File,
    ) -> Result<bool, RetentionError> {
        let client = &self.connection.client;
        let Some(last) = batches.last() else { return Ok(false) };
        let last_id = last.id.event(last.positions.end.saturating_sub(1));
        let mut erasures = erasure::between(client, range.first, last_id).await?;
        let producers = batches.iter().map(|batch| {
            Runs::read(batch.producers.as_deref()).map_err(|_| ReadError::Impossible(batch.id.uuid()))
        });
        let producers: Vec<Runs<'_>> = producers.collect::<Result<_, _>>()?;
        let mut expected = batches.iter().zip(&producers).flat_map(|(batch, producers)| {
            batch.positions.clone().map(move |position| (batch, producers, batch.id.event(position)))
        });
        let known: HashSet<BatchId> = batches.iter().map(|batch| batch.id).collect();
        let sql = format!(
            "SELECT id, event_time, type, payload FROM {} WHERE id >= $1 AND id <= $2 ORDER BY id",
            schema::partition(day)
        );
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&range.first, &last_id];
        let mut rows = pin!(client.query_raw(&sql, parameters).await?);
        let mut scratch = Vec::new();
        while let Some(row) = rows.try_next().await? {
            let id: Uuid = row.get(0);
            if !known.contains(&BatchId::of(id)) {
                // Of another ledger; one that belongs to none is found when the partition's events are counted.
                continue;
            }
            let (batch, producers, next) = expected.next().ok_or(ReadError::Impossible(id))?;
            if next != id {
                return Err(RetentionError::Missing(next));
            }
            let event = Unchecked {
                id,
                index: batch.first_index + id::position(id) as u64,
                kind: row.get(2),
                time: store::time(&row, 1, id)?,
                received_at: batch.committed_at,
                payload: row.get(3),
            };
            let commitment = batch.commitment(id, producers).ok_or(ReadError::Impossible(id))?;
            let mut head = Vec::new();
            let key_id = commitment.key_id.map(|key_id| key_id.to_bytes());
            event
                .head(range.ledger, commitment.producer, key_id.as_ref())
                .write(event.payload.len(), &mut head);
            let event = event.check(range.ledger, &commitment, erasures.remove(&id), &mut scratch)?;
            file.push(event, head).await?;
            if cut && file.writer.is_full() {
                return Ok(true);
            }
        }
        match expected.next() {
            Some((_, _, missing)) => Err(RetentionError::Missing(missing)),
            None => Ok(false),
        }
    }
}

/// Puts a file that was read back in the place of a recorded one, which is to be deleted.
pub(crate) async fn replace_file(
    client: &impl GenericClient,
    ledger: &str,
    first_id: Uuid,
    old: &str,
    written: &Written,
    erased: i64,
) -> Result<(), RetentionError> {
    let sql = "WITH noted AS (DELETE FROM certeus.archive_leftovers WHERE name = $2 RETURNING name), \
               leftover AS (INSERT INTO certeus.archive_leftovers SELECT $1, clock_timestamp() FROM noted) \
               UPDATE certeus.archives a SET name = noted.name, sha256 = $3, bytes = $4, erased = $5, \
               archived_at = clock_timestamp() FROM noted WHERE a.ledger = $6 AND a.first_id = $7 AND a.name = $1";
    let (sha256, bytes) = (&written.sha256[..], number(written.bytes));
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&old, &written.name, &sha256, &bytes, &erased, &ledger, &first_id];
    recorded(client.execute(sql, &parameters).await?)
}

/// Whether a file was recorded. If not, its note is gone: it took more than a day, and was deleted meanwhile.
fn recorded(rows: u64) -> Result<(), RetentionError> {
    if rows == 1 { Ok(()) } else { Err(RetentionError::Overtaken) }
}

/// A file being written.
struct File {
    writer: FileWriter,
    /// `None` before the first event.
    extent: Option<Extent>,
}

impl File {
    /// Appends an event; `head` is that of its envelope.
    async fn push(&mut self, event: StoredEvent, head: Vec<u8>) -> Result<(), RetentionError> {
        let StoredEvent { id, index, kind, time, received_at, content, key_id: _, entry, archived: _ } =
            event;
        let first = Extent { first_id: id, last_id: id, first_index: index, last_index: index, erased: 0 };
        let extent = self.extent.get_or_insert(first);
        let content = match content {
            Content::Intact { payload, salt } => {
                Some(ArchivedContent { payload: payload.into(), head, salt: salt.0 })
            }
            Content::Erased(_) => {
                extent.erased += 1;
                None
            }
        };
        extent.last_id = id;
        extent.first_index = extent.first_index.min(index);
        extent.last_index = extent.last_index.max(index);
        let (time_micros, committed_micros) = (time.micros(), received_at.micros());
        let row = ArchivedRow { index, id, time_micros, committed_micros, kind, entry, content };
        Ok(self.writer.push(row).await?)
    }
}

/// The name of a file: the random part keeps an attempt that failed from being taken for one that did not.
pub(crate) fn file_name(ledger: &str, day: Day, first_index: u64, random: u64) -> String {
    format!("{}/{first_index:020}-{random:016x}.parquet", folder(ledger, day))
}

/// Where the files of a ledger's day lie.
fn folder(ledger: &str, day: Day) -> String {
    format!("{ledger}/{}", day.suffix())
}

fn after(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_add(1))
}

fn before(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_sub(1))
}

/// As a column of type bigint. What is counted here stays far below 2^63.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
