//! Reads events back.
//!
//! Owns the read queries and the check of a single event against its log entry. Never writes. Limits: a page holds at
//! most [`PAGE_EVENTS_MAX`] events and about [`PAGE_BYTES_MAX`] bytes, and looks at [`PAGE_SCAN_MAX`] events for [`PAGE_TIME_MAX`] at most, so that a
//! filter that matches little ends in a short page with a cursor instead of an endless query.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::commit::from_postgres_micros;
use crate::envelope::{BatchSecret, ContentType, ENTRY_BYTES, Envelope, EnvelopeHead};
use crate::error::Class;
use crate::id::{self, BatchId};
use crate::ledger::Ledger;
use crate::provenance;
use crate::session::PgTimestamp;
use crate::timestamp::Timestamp;

/// Events on one page.
pub const PAGE_EVENTS_MAX: usize = 10_000;
/// Payload bytes after which a page ends.
pub(crate) const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Events that one page looks at.
const PAGE_SCAN_MAX: usize = 500_000;
/// A page that has found too little ends after this long.
const PAGE_TIME_MAX: Duration = Duration::from_secs(2);
/// Events that one query looks at, at least, so that small batches do not make a query each.
const GROUP_EVENTS: usize = 10_000;
/// Indexes that one look for batches covers, so that a time filter which matches nothing still comes back.
const WINDOW_EVENTS: u64 = 5_000_000;
/// Batch rows read at a time.
const BATCHES_PER_QUERY: i64 = 1000;

/// An event as stored.
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
    /// Its bytes as received.
    pub payload: Vec<u8>,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this `type`.
    pub kind: Option<String>,
    /// Event time at or after.
    pub from: Option<Timestamp>,
    /// Event time before.
    pub to: Option<Timestamp>,
    /// Indexes at or after: where the page before ended.
    pub first_index: u64,
    /// Events wanted, at most [`PAGE_EVENTS_MAX`].
    pub limit: usize,
}

/// Events in index order.
#[derive(Debug)]
pub struct Page {
    /// The events found.
    pub events: Vec<StoredEvent>,
    /// Where the next page begins; `None` at the end of the ledger.
    pub next_index: Option<u64>,
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
    /// A stored value is outside what this software ever writes.
    #[error("event {0} has an impossible value in the database")]
    Impossible(Uuid),
}

impl ReadError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Pool(_) | Self::Query(_) => Class::Unavailable,
            Self::Altered(_) | Self::Impossible(_) => Class::Corrupt,
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

/// A part of a batch that a page looks at.
struct Stretch {
    first_index: u64,
    first_id: Uuid,
    last_id: Uuid,
    received_at: Timestamp,
}

impl Stretch {
    fn len(&self) -> usize {
        id::position(self.last_id) - id::position(self.first_id) + 1
    }

    fn end_index(&self) -> u64 {
        self.first_index + self.len() as u64
    }
}

impl Ledger {
    /// The event of an id, checked against the log entry that was committed with it.
    ///
    /// # Errors
    /// When the database is away, or holds other bytes than were committed.
    pub async fn event(&self, id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        const SQL: &str = "SELECT e.event_time, e.type, e.payload, b.first_index, b.committed_at, b.secret, \
             substring(b.entries FROM $4 FOR 32), b.producers \
             FROM certeus.events e JOIN certeus.batches b ON b.batch_id = $2 AND b.ledger = $3 WHERE e.id = $1";
        let position = id::position(id);
        let entry_start = i32::try_from(position * ENTRY_BYTES + 1).map_err(|_| ReadError::Impossible(id))?;
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let statement = client.prepare_cached(SQL).await?;
        let parameters = (&id, &BatchId::of(id).uuid(), &self.name(), &entry_start);
        let (a, b, c, d) = parameters;
        let Some(row) = client.query_opt(&statement, &[a, b, c, d]).await? else { return Ok(None) };
        let first_index: i64 = row.get(3);
        let event = StoredEvent {
            id,
            index: u64::try_from(first_index).map_err(|_| ReadError::Impossible(id))? + position as u64,
            kind: row.get(1),
            time: time(&row, 0, id)?,
            received_at: time(&row, 4, id)?,
            payload: row.get(2),
        };
        let secret: [u8; 32] = row.get::<_, &[u8]>(5).try_into().map_err(|_| ReadError::Impossible(id))?;
        let batch_position = u32::try_from(position).map_err(|_| ReadError::Impossible(id))?;
        let head = EnvelopeHead {
            ledger: self.name(),
            id,
            kind: &event.kind,
            time: event.time,
            producer: provenance::find(row.get(7), batch_position)
                .map_err(|_malformed| ReadError::Impossible(id))?,
            content_type: ContentType::Json,
            key_id: &[],
        };
        let envelope = Envelope { head, payload: &event.payload };
        let salt = BatchSecret(secret).salt(batch_position);
        if envelope.entry(&salt, &mut Vec::new())[..] != *row.get::<_, &[u8]>(6) {
            return Err(ReadError::Altered(id));
        }
        Ok(Some(event))
    }

    /// The events that match, in index order.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn events(&self, filter: &Filter) -> Result<Page, ReadError> {
        let limit = filter.limit.clamp(1, PAGE_EVENTS_MAX);
        let deadline = Instant::now() + PAGE_TIME_MAX;
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let end = self.end_index(&client).await?;
        let mut page = Page { events: Vec::new(), next_index: None };
        let (mut next_index, mut scanned, mut bytes) = (filter.first_index, 0, 0);
        while next_index < end {
            let window_end = end.min(next_index.saturating_add(WINDOW_EVENTS));
            let stretches = self.stretches(&client, filter, next_index, window_end).await?;
            let mut rest = &stretches[..];
            while !rest.is_empty() {
                let group = group(&mut rest, GROUP_EVENTS.max(limit - page.events.len()));
                scanned += group.iter().map(Stretch::len).sum::<usize>();
                let wanted = Wanted { filter, limit, bytes: &mut bytes };
                if read_group(&client, group, wanted, &mut page).await? {
                    return Ok(page);
                }
                if scanned >= PAGE_SCAN_MAX || Instant::now() >= deadline {
                    page.next_index = group.last().map(Stretch::end_index).filter(|next| *next < end);
                    return Ok(page);
                }
            }
            let read_to = stretches.last().map_or(0, Stretch::end_index);
            // A full list of stretches ends where it ends; a shorter one means that the rest of the window has none.
            let full = i64::try_from(stretches.len()).is_ok_and(|count| count == BATCHES_PER_QUERY);
            next_index = if full { read_to } else { read_to.max(window_end) };
            if Instant::now() >= deadline {
                page.next_index = Some(next_index).filter(|next| *next < end);
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// The index after the ledger's last event.
    async fn end_index(&self, client: &deadpool_postgres::Client) -> Result<u64, ReadError> {
        const SQL: &str = "SELECT next_index FROM certeus.heads WHERE ledger = $1";
        let statement = client.prepare_cached(SQL).await?;
        let row = client.query_opt(&statement, &[&self.name()]).await?;
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0))
    }

    /// The next batches that may hold matching events, by the bounds of their times.
    async fn stretches(
        &self,
        client: &deadpool_postgres::Client,
        filter: &Filter,
        next_index: u64,
        window_end: u64,
    ) -> Result<Vec<Stretch>, ReadError> {
        const SQL: &str = "SELECT first_index, batch_id, event_count, committed_at FROM certeus.batches \
             WHERE ledger = $1 AND first_index >= \
             (SELECT coalesce(max(first_index), 0) FROM certeus.batches WHERE ledger = $1 AND first_index <= $2) \
             AND first_index < $6 AND first_index + event_count > $2 AND ($3::timestamptz IS NULL OR max_time >= $3) AND ($4::timestamptz IS NULL OR min_time < $4) \
             ORDER BY first_index LIMIT $5";
        let (Ok(first), Ok(end)) = (i64::try_from(next_index), i64::try_from(window_end)) else {
            return Ok(Vec::new());
        };
        let statement = client.prepare_cached(SQL).await?;
        let (from, to) = bounds(filter);
        let rows =
            client.query(&statement, &[&self.name(), &first, &from, &to, &BATCHES_PER_QUERY, &end]).await?;
        rows.iter()
            .map(|row| {
                let batch: Uuid = row.get(1);
                let impossible = || ReadError::Impossible(batch);
                let batch_first = u64::try_from(row.get::<_, i64>(0)).map_err(|_| impossible())?;
                let count = usize::try_from(row.get::<_, i32>(2)).map_err(|_| impossible())?;
                let skipped = next_index.saturating_sub(batch_first);
                let first =
                    usize::try_from(skipped).ok().filter(|first| *first < count).ok_or_else(impossible)?;
                Ok(Stretch {
                    first_index: batch_first + skipped,
                    first_id: BatchId::of(batch).event(first),
                    last_id: BatchId::of(batch).event(count - 1),
                    received_at: time(row, 3, batch)?,
                })
            })
            .collect()
    }
}

/// Takes the next stretches that together have about as many events as are still wanted.
fn group<'a>(rest: &mut &'a [Stretch], wanted: usize) -> &'a [Stretch] {
    let mut events = 0;
    let length = rest
        .iter()
        .take_while(|stretch| {
            let more = events < wanted;
            events += stretch.len();
            more
        })
        .count();
    let (group, after) = rest.split_at(length.max(1));
    *rest = after;
    group
}

/// What a page still wants.
struct Wanted<'a> {
    filter: &'a Filter,
    limit: usize,
    bytes: &'a mut usize,
}

/// Reads the matching events of some stretches; `true` when the page is full, with its next index set.
async fn read_group(
    client: &deadpool_postgres::Client,
    group: &[Stretch],
    wanted: Wanted<'_>,
    page: &mut Page,
) -> Result<bool, ReadError> {
    const SQL: &str = "SELECT s.ord, e.id, e.event_time, e.type, e.payload \
         FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS s (first_id, last_id, ord) \
         CROSS JOIN LATERAL (SELECT * FROM certeus.events \
         WHERE id >= s.first_id AND id <= s.last_id \
         AND ($3::timestamptz IS NULL OR event_time >= $3) AND ($4::timestamptz IS NULL OR event_time < $4) \
         AND ($5::text IS NULL OR type = $5) ORDER BY id LIMIT $6) e ORDER BY s.ord, e.id LIMIT $6";
    let statement = client.prepare_cached(SQL).await?;
    let first_ids: Vec<Uuid> = group.iter().map(|stretch| stretch.first_id).collect();
    let last_ids: Vec<Uuid> = group.iter().map(|stretch| stretch.last_id).collect();
    let (from, to) = bounds(wanted.filter);
    let limit = i64::try_from(wanted.limit - page.events.len()).unwrap_or(i64::MAX);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&first_ids, &last_ids, &from, &to, &wanted.filter.kind, &limit];
    let mut rows = pin!(client.query_raw(&statement, parameters).await?);
    while let Some(row) = rows.try_next().await? {
        let id: Uuid = row.get(1);
        let stretch = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|ord| group.get(ord));
        let stretch = stretch.ok_or(ReadError::Impossible(id))?;
        let event = StoredEvent {
            id,
            index: stretch.first_index + (id::position(id) - id::position(stretch.first_id)) as u64,
            kind: row.get(3),
            time: time(&row, 2, id)?,
            received_at: stretch.received_at,
            payload: row.get(4),
        };
        *wanted.bytes += event.payload.len();
        let next_index = event.index + 1;
        page.events.push(event);
        if page.events.len() >= wanted.limit || *wanted.bytes >= PAGE_BYTES_MAX {
            page.next_index = Some(next_index);
            return Ok(true);
        }
    }
    Ok(false)
}

/// The bounds of event time as parameters; NULL where there is none.
fn bounds(filter: &Filter) -> (Option<PgTimestamp>, Option<PgTimestamp>) {
    (filter.from.map(PgTimestamp), filter.to.map(PgTimestamp))
}

fn time(row: &Row, column: usize, id: Uuid) -> Result<Timestamp, ReadError> {
    row.get::<_, StoredTime>(column).0.ok_or(ReadError::Impossible(id))
}
