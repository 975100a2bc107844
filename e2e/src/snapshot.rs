//! The whole ledger as PostgreSQL holds it at one moment, read around all of the ledger's own code.

use anyhow::{Context, Result};

use crate::postgres::Sql;

/// A row of `certeus.batches`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Index of its first event.
    pub first_index: i64,
    /// Number of events.
    pub event_count: i32,
    /// Its id.
    pub id: u128,
    /// Earliest event time in microseconds since 1970.
    pub min_time: i64,
    /// Latest event time in microseconds since 1970.
    pub max_time: i64,
    /// What its salts come from.
    pub secret: Vec<u8>,
    /// Its log entries, one after the other.
    pub entries: Vec<u8>,
}

/// A row of `certeus.events`.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its id.
    pub id: u128,
    /// Its time in microseconds since 1970.
    pub time: i64,
    /// Its type.
    pub kind: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Everything of one ledger.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The ledger's name.
    pub ledger: String,
    /// The head: where the next event goes.
    pub next_index: i64,
    /// All batches by first index.
    pub batches: Vec<Batch>,
    /// All events by id.
    pub rows: Vec<Row>,
}

const BATCHES: &str = "SELECT first_index, event_count, uuid_send(batch_id), \
     (extract(epoch FROM min_time) * 1000000)::bigint, (extract(epoch FROM max_time) * 1000000)::bigint, \
     secret, entries FROM certeus.batches WHERE ledger = $1 ORDER BY first_index";
const ROWS: &str = "SELECT uuid_send(id), (extract(epoch FROM event_time) * 1000000)::bigint, type, payload \
     FROM certeus.events ORDER BY id";

impl Snapshot {
    /// Reads it all in one transaction.
    ///
    /// # Errors
    /// When a query fails.
    pub fn read(sql: &Sql, ledger: &str) -> Result<Self> {
        sql.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let head = sql.query("SELECT next_index FROM certeus.heads WHERE ledger = $1", &[&ledger])?;
        let batches = sql.query(BATCHES, &[&ledger])?;
        let rows = sql.query(ROWS, &[])?;
        sql.batch("COMMIT")?;
        Ok(Self {
            ledger: ledger.to_owned(),
            next_index: head.first().context("the ledger has no head")?.get(0),
            batches: batches
                .iter()
                .map(|row| {
                    Ok(Batch {
                        first_index: row.get(0),
                        event_count: row.get(1),
                        id: id(row.get(2))?,
                        min_time: row.get(3),
                        max_time: row.get(4),
                        secret: row.get(5),
                        entries: row.get(6),
                    })
                })
                .collect::<Result<_>>()?,
            rows: rows
                .iter()
                .map(|row| {
                    Ok(Row { id: id(row.get(0))?, time: row.get(1), kind: row.get(2), payload: row.get(3) })
                })
                .collect::<Result<_>>()?,
        })
    }
}

fn id(bytes: &[u8]) -> Result<u128> {
    Ok(u128::from_be_bytes(bytes.try_into().context("a UUID has 16 bytes")?))
}
