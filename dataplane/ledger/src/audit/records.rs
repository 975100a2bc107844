//! What PostgreSQL has on record about archived files and erasures.

use std::collections::HashSet;

use tokio_postgres::Row;
use uuid::Uuid;

use super::AuditError;
use super::source::{IdRange, Source, unsigned};
use crate::erasure;
use crate::id::{self, BatchId, Day};

/// A file as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordedFile {
    pub(super) location: String,
    pub(super) name: String,
    pub(super) sha256: Vec<u8>,
    pub(super) bytes: i64,
    pub(super) extent: Extent,
}

/// What a file covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first_id: Uuid,
    pub(super) last_id: Uuid,
    pub(super) first_index: i64,
    pub(super) last_index: i64,
    pub(super) events: i64,
    pub(super) erased: i64,
}

/// Erasures that the database has on record.
#[derive(Debug, Default)]
pub(super) struct Erasures {
    /// The erased events.
    pub(super) events: HashSet<Uuid>,
    /// Those of them whose audit event is in the archive, where it is still to be read.
    pub(super) claims: Vec<Claim>,
}

/// That an archived event of the ledger says why another one was erased.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) event: Uuid,
    pub(super) reason: String,
    pub(super) audit_event: Uuid,
}

const FILE: &str = "SELECT location, name, sha256, bytes, first_id, last_id, first_index, last_index, events, \
     erased FROM certeus.archives";

fn file(row: &Row) -> RecordedFile {
    RecordedFile {
        location: row.get(0),
        name: row.get(1),
        sha256: row.get(2),
        bytes: row.get(3),
        extent: Extent {
            first_id: row.get(4),
            last_id: row.get(5),
            first_index: row.get(6),
            last_index: row.get(7),
            events: row.get(8),
            erased: row.get(9),
        },
    }
}

impl Source {
    /// Days whose partition was dropped after its events were archived.
    pub(super) async fn archived_days(&self, ledger: &str) -> Result<HashSet<String>, AuditError> {
        let sql = "SELECT to_char(day, 'YYYYMMDD') FROM certeus.archived_days WHERE ledger = $1";
        Ok(self.client().query(sql, &[&ledger]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// First and last ids of the files of a day, in the order of the first.
    pub(super) async fn files_of(&self, ledger: &str, day: Day) -> Result<Vec<(Uuid, Uuid)>, AuditError> {
        const SQL: &str = "SELECT first_id, last_id FROM certeus.archives \
             WHERE ledger = $1 AND first_id >= $2 AND first_id < $3 ORDER BY first_id";
        let rows = self.client().query(SQL, &[&ledger, &day.first_id(), &day.next().first_id()]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The file whose record begins with an id.
    pub(super) async fn recorded_file(
        &self,
        ledger: &str,
        first_id: Uuid,
    ) -> Result<Option<RecordedFile>, AuditError> {
        let sql = format!("{FILE} WHERE ledger = $1 AND first_id = $2");
        Ok(self.client().query_opt(&sql, &[&ledger, &first_id]).await?.as_ref().map(file))
    }

    /// The file that should have an event.
    pub(super) async fn file_with(&self, ledger: &str, id: Uuid) -> Result<Option<RecordedFile>, AuditError> {
        let sql = format!("{FILE} WHERE ledger = $1 AND first_id <= $2 ORDER BY first_id DESC LIMIT 1");
        let found = self.client().query_opt(&sql, &[&ledger, &id]).await?.as_ref().map(file);
        Ok(found.filter(|file| file.extent.last_id >= id))
    }

    /// The name of another file than this one that is recorded with a digest.
    pub(super) async fn file_with_digest(
        &self,
        ledger: &str,
        sha256: &[u8],
        name: &str,
    ) -> Result<Option<String>, AuditError> {
        const SQL: &str =
            "SELECT name FROM certeus.archives WHERE ledger = $1 AND sha256 = $2 AND name <> $3 LIMIT 1";
        Ok(self.client().query_opt(SQL, &[&ledger, &sha256, &name]).await?.map(|row| row.get(0)))
    }

    /// Where files of archived days were written to.
    pub(super) async fn archive_locations(&self, ledger: &str) -> Result<Vec<String>, AuditError> {
        const SQL: &str = "SELECT DISTINCT location FROM certeus.archives \
             JOIN certeus.archived_days USING (ledger, day) WHERE ledger = $1 ORDER BY location";
        Ok(self.client().query(SQL, &[&ledger]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Names of the newest files at a location.
    pub(super) async fn newest_files(
        &self,
        ledger: &str,
        location: &str,
        limit: i64,
    ) -> Result<Vec<String>, AuditError> {
        const SQL: &str = "SELECT name FROM certeus.archives JOIN certeus.archived_days USING (ledger, day) \
             WHERE ledger = $1 AND location = $2 ORDER BY first_id DESC LIMIT $3";
        let rows = self.client().query(SQL, &[&ledger, &location, &limit]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The index of an event, if a batch tells of it.
    pub(super) async fn index_of(&self, ledger: &str, id: Uuid) -> Result<Option<u64>, AuditError> {
        const SQL: &str =
            "SELECT first_index, event_count FROM certeus.batches WHERE ledger = $1 AND batch_id = $2";
        let row = self.client().query_opt(SQL, &[&ledger, &BatchId::of(id).uuid()]).await?;
        let Some(row) = row else { return Ok(None) };
        let (first, count) = (unsigned(row.get(0))?, unsigned(i64::from(row.get::<_, i32>(1)))?);
        let position = id::position(id) as u64;
        Ok((position < count).then_some(first + position))
    }

    /// Events of a range whose erasure is on record, in the table and by an event of the ledger, which is audited like any
    /// other. What an archived event says of it is a claim that is still to be checked.
    pub(super) async fn erasures(
        &self,
        ledger: &str,
        ids: &IdRange,
        archived_days: &HashSet<String>,
    ) -> Result<Erasures, AuditError> {
        // In the order of the audit events, which is that of their files.
        let sql = format!(
            "SELECT x.event_id, x.reason, x.audit_event_id, a.type, a.payload, b.event_count FROM certeus.erasures x \
             LEFT JOIN certeus.events a ON a.id = x.audit_event_id \
             LEFT JOIN certeus.batches b ON b.batch_id = certeus.batch_of(x.audit_event_id) AND b.ledger = x.ledger \
             WHERE x.ledger = $1 AND {} ORDER BY x.audit_event_id",
            ids.condition("x.event_id")
        );
        let mut erasures = Erasures::default();
        for row in self.client().query(&sql, &[&ledger]).await? {
            let (event, reason, audit_event): (Uuid, String, Uuid) = (row.get(0), row.get(1), row.get(2));
            // An event that is not of this ledger's log is audited by nobody here.
            let position = i64::try_from(id::position(audit_event)).unwrap_or(i64::MAX);
            let is_ours = row.get::<_, Option<i32>>(5).is_some_and(|count| position < i64::from(count));
            let recorded = is_ours
                && match (row.get::<_, Option<&str>>(3), row.get::<_, Option<&[u8]>>(4)) {
                    (Some(kind), Some(payload)) => erasure::says(kind, payload, event, &reason),
                    _ if archived_days.contains(&BatchId::of(audit_event).day().suffix()) => {
                        erasures.claims.push(Claim { event, reason, audit_event });
                        true
                    }
                    _ => false,
                };
            if recorded {
                erasures.events.insert(event);
            }
        }
        Ok(erasures)
    }
}
