//! The whole ledger as PostgreSQL holds it at one moment, read around all of the ledger's own code.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::envelope;
use crate::journal::Sequence;
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
    /// What its salts come from, until one of its events is erased.
    pub secret: Option<Vec<u8>>,
    /// From then on its salts, one after the other.
    pub salts: Option<Vec<u8>>,
    /// Which events came with a producer's sequence.
    pub producers: Option<Vec<u8>>,
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
     secret, salts, producers, entries FROM certeus.batches WHERE ledger = $1 ORDER BY first_index";
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
                        salts: row.get(6),
                        producers: row.get(7),
                        entries: row.get(8),
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

impl Batch {
    /// The salt of the event at a position.
    #[must_use]
    pub fn salt(&self, position: u32) -> Option<[u8; 32]> {
        let start = position as usize * 32;
        match (&self.secret, &self.salts) {
            (Some(secret), _) => Some(envelope::salt(secret, position)),
            (None, Some(salts)) => salts.get(start..start + 32)?.try_into().ok(),
            (None, None) => None,
        }
    }

    /// Producer, epoch and number of each event that came with them, by position: docs/formats/envelope.md, "Producers".
    /// `None` when the bytes are not of that format.
    #[must_use]
    pub fn sequences(&self) -> Option<HashMap<u32, Sequence>> {
        let mut rest = self.producers.as_deref().unwrap_or_default();
        let mut sequences = HashMap::new();
        while !rest.is_empty() {
            let mut take = |length: usize| {
                let (field, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(field)
            };
            let number =
                |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            let (first, count, epoch) = (number(take(4)?), number(take(4)?), number(take(4)?));
            let (first_number, length) = (number(take(8)?), number(take(1)?));
            let producer = std::str::from_utf8(take(usize::try_from(length).ok()?)?).ok()?;
            for (position, number) in (first..first + count).zip(first_number..) {
                let epoch = u32::try_from(epoch).ok()?;
                let sequence = Sequence { producer: producer.to_owned(), epoch, number };
                if sequences.insert(u32::try_from(position).ok()?, sequence).is_some() {
                    return None;
                }
            }
        }
        Some(sequences)
    }
}

fn id(bytes: &[u8]) -> Result<u128> {
    Ok(u128::from_be_bytes(bytes.try_into().context("a UUID has 16 bytes")?))
}
