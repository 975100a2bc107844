//! Retention: moves days that are old enough to the archive, and drops their partitions.
//!
//! Owns which days are due, the records of archived files and the dropping; `day` writes the files. Promises: a partition is
//! dropped only when each of its events stands in a file that was read back and recorded, and none was added or erased
//! since; a day that holds an altered, missing or unsealed event is kept, reported, and stops no other. Never touches
//! `certeus.batches`: salts and entries stay, so every proof does.
//!
//! One pod works at a time, under an advisory lock of the very connection that writes the records: whoever loses the lock can
//! write none. Where it may stop:
//! 1. while a file is written: its name was noted before, and what was not recorded under it is deleted later.
//! 2. after the file, before its record: the same. The record takes the note back in the same statement.
//! 3. after the record: the next run goes on behind the last recorded id.
//! 4. the drop is one transaction with the checks before it.

mod day;

pub(crate) use day::{file_name, replace_file};

use std::sync::Arc;
use std::time::Duration;

use certeus_archive::Archive;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Transaction};
use uuid::Uuid;

use crate::error::Class;
use crate::id::Day;
use crate::ledger::{Ledger, Shared};
use crate::postgres::{Connection, describe};
use crate::schema;
use crate::store::{ArchiveStore, ReadError};
use crate::writer::unix_ms;

/// Days change once a day; an hour is how late a day may go.
const INTERVAL: Duration = Duration::from_secs(3600);
/// When the database or the archive was away.
const INTERVAL_FAILED: Duration = Duration::from_secs(60);
/// Key of the advisory lock under which one pod works: "retain" in ASCII.
const LOCK: i64 = 0x72_65_74_61_69_6e;
/// A drop waits this long for reads to end, while those behind it wait as well; then the next run tries.
const DROP_LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '3s'";

/// Why a day was not archived or not dropped.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// No archive is configured.
    #[error("no archive is configured")]
    NoArchive,
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] Error),
    /// The archive failed, or gave back other bytes than were written.
    #[error("the archive failed")]
    Archive(#[from] certeus_archive::Error),
    /// An event is not the one that was committed to.
    #[error(transparent)]
    Event(#[from] ReadError),
    /// An event of a batch is missing.
    #[error("event {0} is missing")]
    Missing(Uuid),
    /// There are events that no checkpoint covers yet.
    #[error("the log of ledger {0} does not cover the day yet")]
    Unsealed(String),
    /// A file that was written has been replaced or deleted before it could be recorded.
    #[error("the archived file was replaced or deleted meanwhile")]
    Overtaken,
    /// The partition has other events than its archived files.
    #[error("the partition has {found} events, and {archived} were archived")]
    Count {
        /// In the partition.
        found: i64,
        /// In the files.
        archived: i64,
    },
}

impl RetentionError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoArchive => Class::Invalid,
            Self::Database(_) | Self::Unsealed(_) | Self::Overtaken => Class::Unavailable,
            Self::Archive(error) if error.is_unavailable() => Class::Unavailable,
            Self::Archive(_) | Self::Missing(_) | Self::Count { .. } => Class::Corrupt,
            Self::Event(error) => error.class(),
        }
    }

    /// Whether other days would fail as well.
    fn stops_all(&self) -> bool {
        match self {
            Self::NoArchive => true,
            // Reads of one partition were in the way for too long.
            Self::Database(error) => error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE),
            Self::Archive(error) => error.is_unavailable(),
            Self::Event(error) => error.class() == Class::Unavailable,
            Self::Missing(_) | Self::Unsealed(_) | Self::Overtaken | Self::Count { .. } => false,
        }
    }
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Retained {
    /// Days, as `YYYYMMDD`, whose events are in the archive alone now.
    pub dropped: Vec<String>,
    /// Days that are due and were kept, and why.
    pub kept: Vec<(String, RetentionError)>,
    /// Events archived.
    pub events: u64,
}

/// Applies the retention now and then, for as long as the ledger runs.
pub(crate) async fn run(shared: Arc<Shared>, keep: Duration) {
    loop {
        // A database that the log refuses, such as an old backup, says nothing about what the archive may lose.
        let pause = if shared.is_available() && !shared.log.refuses() {
            match retain(&shared, keep, unix_ms()).await {
                Ok(retained) => {
                    report(&shared, &retained);
                    INTERVAL
                }
                Err(error) => {
                    shared.metrics.retention_failures.get(error.class()).inc();
                    let reason = describe(&error);
                    tracing::warn!(reason, "the retention could not be applied");
                    INTERVAL_FAILED
                }
            }
        } else {
            Duration::from_secs(1)
        };
        tokio::time::sleep(pause).await;
    }
}

fn report(shared: &Shared, retained: &Retained) {
    let Retained { dropped, kept, events: _ } = retained;
    for (day, error) in kept {
        shared.metrics.retention_failures.get(error.class()).inc();
        let reason = describe(error);
        if error.class() == Class::Corrupt {
            tracing::error!(day, reason, "a day cannot be archived and is kept");
        } else {
            tracing::warn!(day, reason, "a day cannot be archived yet");
        }
    }
    if !dropped.is_empty() {
        tracing::info!(days = dropped.join(" "), "days were archived and dropped");
    }
}

impl Ledger {
    /// Archives and drops the days that ended `keep` or longer before a time in milliseconds since the Unix epoch, as the
    /// ledger's own task does every hour. Does nothing while another pod is at it.
    ///
    /// # Errors
    /// When the database or the archive is away; what concerns one day only is in [`Retained::kept`].
    pub async fn retain(&self, keep: Duration, now_unix_ms: u64) -> Result<Retained, RetentionError> {
        retain(self.shared(), keep, now_unix_ms).await
    }
}

async fn retain(shared: &Shared, keep: Duration, now_unix_ms: u64) -> Result<Retained, RetentionError> {
    let store = shared.archive.as_ref().ok_or(RetentionError::NoArchive)?;
    let mut retained = Retained::default();
    let mut run = Run { shared, store, connection: shared.database.connect().await? };
    // The lock goes with the connection.
    let client = &mut run.connection.client;
    client.batch_execute("SET idle_in_transaction_session_timeout = '10min'").await?;
    if !client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.get::<_, bool>(0) {
        return Ok(retained);
    }
    delete_leftovers(client, &store.archive).await?;
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let now = Day::of_unix_ms(now_unix_ms.saturating_sub(keep_ms));
    // A day is due when the day after it has begun `keep` ago.
    for day in run.days().await?.into_iter().filter(|day| day.next() <= now) {
        match run.day(day, &mut retained.events).await {
            Ok(()) => retained.dropped.push(day.suffix()),
            Err(error) if error.stops_all() => return Err(error),
            Err(error) => retained.kept.push((day.suffix(), error)),
        }
    }
    Ok(retained)
}

/// One pass over all days, by the one pod that has the lock.
struct Run<'a> {
    shared: &'a Shared,
    store: &'a ArchiveStore,
    connection: Connection,
}

impl Run<'_> {
    /// The days that have a partition, oldest first.
    async fn days(&self) -> Result<Vec<Day>, Error> {
        let sql = "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
                   WHERE inhparent = 'certeus.events'::regclass";
        let rows = self.connection.client.query(sql, &[]).await?;
        let suffix = |row: &tokio_postgres::Row| {
            let name: String = row.get(0);
            name.strip_prefix("events_").and_then(Day::from_suffix)
        };
        let mut days: Vec<Day> = rows.iter().filter_map(suffix).collect();
        days.sort_unstable();
        Ok(days)
    }

    /// Archives a day's events, those of every ledger, and drops its partition.
    async fn day(&mut self, day: Day, events: &mut u64) -> Result<(), RetentionError> {
        let sql = "SELECT DISTINCT ledger FROM certeus.batches WHERE batch_id >= $1 AND batch_id < $2";
        let bounds = (day.first_id(), day.next().first_id());
        let rows = self.connection.client.query(sql, &[&bounds.0, &bounds.1]).await?;
        let ledgers: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        for ledger in &ledgers {
            self.check_sealed(day, ledger).await?;
            *events += self.archive(day, ledger).await?;
        }
        self.drop_partition(day, &ledgers).await
    }

    /// Refuses a day with events that no checkpoint covers, if the ledger has checkpoints at all.
    async fn check_sealed(&self, day: Day, ledger: &str) -> Result<(), RetentionError> {
        let client = &self.connection.client;
        let sql = "SELECT coalesce((SELECT tree_size FROM certeus.log_heads \
                   WHERE ledger = $1 AND checkpoint IS NOT NULL) \
                   < (SELECT max(first_index + event_count) FROM certeus.batches \
                   WHERE ledger = $1 AND batch_id >= $2 AND batch_id < $3), false)";
        let row = client.query_one(sql, &[&ledger, &day.first_id(), &day.next().first_id()]).await?;
        if row.get(0) { Err(RetentionError::Unsealed(ledger.to_owned())) } else { Ok(()) }
    }

    /// Drops a day's partition, if it has what its files have and nothing else.
    async fn drop_partition(&mut self, day: Day, ledgers: &[String]) -> Result<(), RetentionError> {
        let partition = schema::partition(day);
        let transaction = self.connection.client.transaction().await?;
        transaction.batch_execute(DROP_LOCK_TIMEOUT).await?;
        // Keeps out erasures, and a pod whose clock is wrong by more than the retention; reads go on.
        let lock = format!("LOCK TABLE {partition} IN SHARE ROW EXCLUSIVE MODE");
        transaction.batch_execute(&lock).await?;
        let found = format!(
            "SELECT (SELECT count(*) FROM {partition}), \
             (SELECT coalesce(sum(events), 0)::bigint FROM certeus.archives WHERE day = to_date($1, 'YYYYMMDD')), \
             EXISTS (SELECT FROM certeus.archives a WHERE day = to_date($1, 'YYYYMMDD') AND a.erased <> \
             (SELECT count(*) FROM certeus.erasures e WHERE e.event_id BETWEEN a.first_id AND a.last_id \
             AND e.ledger = a.ledger))"
        );
        let row = transaction.query_one(&found, &[&day.suffix()]).await?;
        let (found, archived): (i64, i64) = (row.get(0), row.get(1));
        if found != archived || row.get(2) {
            // An erasure since the file was written makes a difference that the next run mends.
            return Err(RetentionError::Count { found, archived });
        }
        for ledger in ledgers {
            record_day(&transaction, day, ledger).await?;
        }
        transaction.batch_execute(&format!("DROP TABLE {partition}")).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Notes that a file is about to be written, so that it is found again if nobody records it.
///
/// Only names noted here are ever deleted: what else lies at the location may be another database's.
pub(crate) async fn note_file(client: &Client, name: &str) -> Result<(), Error> {
    let sql = "INSERT INTO certeus.archive_leftovers (name, due_at) VALUES ($1, clock_timestamp() + interval '1 day')";
    client.execute(sql, &[&name]).await?;
    Ok(())
}

/// Has a file that was given up deleted at the next occasion. Without the database it is deleted when it is a day old.
pub(crate) async fn give_up_file(client: &Client, name: &str) {
    let sql = "UPDATE certeus.archive_leftovers SET due_at = clock_timestamp() WHERE name = $1";
    let _in_a_day_then = client.execute(sql, &[&name]).await;
}

/// Deletes files that no record names.
///
/// The row is locked over the deletion, and whoever records a file deletes its row: of the two, one comes too late.
pub(crate) async fn delete_leftovers(client: &mut Client, archive: &Archive) -> Result<(), RetentionError> {
    let due = "SELECT name FROM certeus.archive_leftovers WHERE due_at <= clock_timestamp() LIMIT 1000";
    for row in client.query(due, &[]).await? {
        let name: String = row.get(0);
        let transaction = client.transaction().await?;
        let sql = "DELETE FROM certeus.archive_leftovers WHERE name = $1 AND due_at <= clock_timestamp() \
                   AND NOT EXISTS (SELECT FROM certeus.archives WHERE name = $1)";
        if transaction.execute(sql, &[&name]).await? == 1 {
            archive.delete(&name).await?;
        }
        transaction.commit().await?;
    }
    Ok(())
}

/// Records that a ledger's day is in the archive alone, and from which index on everything is in the database.
async fn record_day(transaction: &Transaction<'_>, day: Day, ledger: &str) -> Result<(), Error> {
    // Ids and indexes agree only roughly on what comes first, so the smallest index of all that stays counts. While an older
    // day is kept there is no such index.
    let sql = "INSERT INTO certeus.archived_days (ledger, day, live_index) \
               SELECT $1, to_date($2, 'YYYYMMDD'), \
               CASE WHEN (SELECT min(relname::text) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
               WHERE inhparent = 'certeus.events'::regclass) = 'events_' || $2 THEN coalesce( \
               (SELECT min(first_index) FROM certeus.batches WHERE ledger = $1 AND batch_id >= $3), \
               (SELECT next_index FROM certeus.heads WHERE ledger = $1)) END \
               ON CONFLICT (ledger, day) DO UPDATE SET live_index = excluded.live_index, dropped_at = excluded.dropped_at";
    transaction.execute(sql, &[&ledger, &day.suffix(), &day.next().first_id()]).await?;
    Ok(())
}
