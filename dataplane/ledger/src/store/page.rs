//! Lists events, page by page.
//!
//! Owns the queries for pages and the check of a page against the log entries of its batches. Limits: a page holds at
//! most [`PAGE_EVENTS_MAX`] events and about [`PAGE_BYTES_MAX`] bytes, and looks at [`PAGE_SCAN_MAX`] events for
//! [`PAGE_TIME_MAX`] at most, so that a filter that matches little ends in a short page with a cursor instead of an endless
//! query. Promises: an altered event ends the page before it, and is the error of the page that would begin with it.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use uuid::Uuid;

use super::{Commitment, ReadError, SALT_BYTES, StoredEvent, Unchecked, time};
use crate::envelope::ENTRY_BYTES;
use crate::erasure;
use crate::id::{self, BatchId};
use crate::ledger::Ledger;
use crate::provenance::Runs;
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
    /// Set when the page was to begin before this index: events below it may be in the archive, which lists do not read.
    pub archived_before: Option<u64>,
}

/// A page before it is checked.
struct Found {
    rows: Vec<Unchecked>,
    next_index: Option<u64>,
    archived_before: Option<u64>,
}

/// Indexes between which the database has events.
struct Bounds {
    /// The first, if days before it were archived.
    live: Option<u64>,
    /// The one after the last.
    end: u64,
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
    /// The events that match, in index order, each checked against its log entry.
    ///
    /// A change of `type` or `timestamp` in the database can keep an event from matching, which no check of a page can see.
    ///
    /// # Errors
    /// When the database is away, or the first event found is not the one that was committed to.
    pub async fn events(&self, filter: &Filter) -> Result<Page, ReadError> {
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let found = self.find(&client, filter).await?;
        self.check(&client, found).await
    }

    /// The rows that match, up to the page's bounds.
    async fn find(&self, client: &deadpool_postgres::Client, filter: &Filter) -> Result<Found, ReadError> {
        let limit = filter.limit.clamp(1, PAGE_EVENTS_MAX);
        let deadline = Instant::now() + PAGE_TIME_MAX;
        let Bounds { live, end } = self.bounds(client).await?;
        let archived_before = live.filter(|live| filter.first_index < *live);
        let mut page = Found { rows: Vec::new(), next_index: None, archived_before };
        let (mut next_index, mut scanned, mut bytes) = (archived_before.unwrap_or(filter.first_index), 0, 0);
        while next_index < end {
            let window_end = end.min(next_index.saturating_add(WINDOW_EVENTS));
            let stretches = self.stretches(client, filter, next_index, window_end).await?;
            let mut rest = &stretches[..];
            while !rest.is_empty() {
                let group = group(&mut rest, GROUP_EVENTS.max(limit - page.rows.len()));
                scanned += group.iter().map(Stretch::len).sum::<usize>();
                let wanted = Wanted { filter, limit, bytes: &mut bytes };
                if read_group(client, group, wanted, &mut page).await? {
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

    /// Checks a page. One that begins with an altered event is an error; one that has it further on ends before it.
    async fn check(&self, client: &deadpool_postgres::Client, found: Found) -> Result<Page, ReadError> {
        let Found { rows, next_index, archived_before } = found;
        let mut page = Page { events: Vec::with_capacity(rows.len()), next_index, archived_before };
        if rows.is_empty() {
            return Ok(page);
        }
        let spans = spans(&rows);
        let parts = self.commitments(client, &spans).await?;
        let producers: Vec<Option<Runs<'_>>> = parts
            .iter()
            .map(|part| Runs::read(part.as_ref().and_then(|part| part.producers.as_deref())).ok())
            .collect();
        let erased: Vec<Uuid> = rows.iter().filter(|row| row.payload.is_empty()).map(|row| row.id).collect();
        let mut erasures = erasure::of(&***client, &erased).await?;
        let mut span = 0;
        let mut scratch = Vec::new();
        for row in rows {
            let (id, index) = (row.id, row.index);
            if !spans[span].holds(id) {
                span += 1;
            }
            let commitment = parts[span]
                .as_ref()
                .zip(producers[span].as_ref())
                .and_then(|(part, producers)| part.of(id, &spans[span], producers));
            let checked = commitment.ok_or(ReadError::Impossible(id)).and_then(|commitment| {
                row.check(self.name(), &commitment, erasures.remove(&id), &mut scratch)
            });
            let checked = match checked {
                // It may have been erased between the two queries: one query has the last word.
                Err(_) => match self.stored(id).await {
                    Ok(event) => event.ok_or(ReadError::Impossible(id)),
                    Err(error) => Err(error),
                },
                checked => checked,
            };
            match checked {
                Ok(event) => page.events.push(event),
                Err(error) if page.events.is_empty() => return Err(error),
                Err(_) => {
                    page.next_index = Some(index);
                    break;
                }
            }
        }
        Ok(page)
    }

    /// Salts and entries of some batches' parts, in their order; `None` for a batch that is not there any more.
    async fn commitments(
        &self,
        client: &deadpool_postgres::Client,
        spans: &[Span],
    ) -> Result<Vec<Option<Part>>, ReadError> {
        const SQL: &str = "SELECT s.ord, b.secret, substring(b.salts FROM s.start FOR s.length), \
             substring(b.entries FROM s.start FOR s.length), b.producers, b.key_id \
             FROM unnest($2::uuid[], $3::integer[], $4::integer[]) WITH ORDINALITY AS s (batch_id, start, length, ord) \
             JOIN certeus.batches b ON b.batch_id = s.batch_id AND b.ledger = $1";
        let bytes = |positions: usize| {
            i32::try_from(positions * ENTRY_BYTES).expect("a batch has at most 2^20 entries of 32 bytes")
        };
        let batches: Vec<Uuid> = spans.iter().map(|span| span.batch.uuid()).collect();
        let starts: Vec<i32> = spans.iter().map(|span| bytes(span.first) + 1).collect();
        let lengths: Vec<i32> = spans.iter().map(|span| bytes(span.last - span.first + 1)).collect();
        let statement = client.prepare_cached(SQL).await?;
        let found = client.query(&statement, &[&self.name(), &batches, &starts, &lengths]).await?;
        let mut parts: Vec<Option<Part>> = spans.iter().map(|_| None).collect();
        for row in found {
            let slot = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|ord| parts.get_mut(ord));
            if let Some(slot) = slot {
                *slot = Some(Part {
                    secret: row.get(1),
                    salts: row.get(2),
                    entries: row.get(3),
                    producers: row.get(4),
                    key_id: row.get(5),
                });
            }
        }
        Ok(parts)
    }

    /// Where events can be.
    async fn bounds(&self, client: &deadpool_postgres::Client) -> Result<Bounds, ReadError> {
        const SQL: &str = "SELECT next_index, (SELECT live_index FROM certeus.archived_days WHERE ledger = $1 \
             ORDER BY day DESC LIMIT 1) FROM certeus.heads WHERE ledger = $1";
        let statement = client.prepare_cached(SQL).await?;
        let row = client.query_opt(&statement, &[&self.name()]).await?;
        let Some(row) = row else { return Ok(Bounds { live: None, end: 0 }) };
        let live = row.get::<_, Option<i64>>(1).and_then(|live| u64::try_from(live).ok());
        Ok(Bounds { live, end: u64::try_from(row.get::<_, i64>(0)).unwrap_or(0) })
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

/// Positions of a batch from the first to the last that a page has.
struct Span {
    batch: BatchId,
    first: usize,
    last: usize,
}

impl Span {
    fn holds(&self, event: Uuid) -> bool {
        BatchId::of(event) == self.batch
    }
}

/// The spans of rows in index order, which keeps each batch's rows together.
fn spans(rows: &[Unchecked]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for row in rows {
        let position = id::position(row.id);
        match spans.last_mut() {
            Some(span) if span.holds(row.id) => span.last = position,
            _ => spans.push(Span { batch: BatchId::of(row.id), first: position, last: position }),
        }
    }
    spans
}

/// What a batch's row has for a [`Span`].
struct Part {
    secret: Option<Vec<u8>>,
    salts: Option<Vec<u8>>,
    entries: Vec<u8>,
    producers: Option<Vec<u8>>,
    key_id: Option<Vec<u8>>,
}

impl Part {
    fn of<'a>(&self, event: Uuid, span: &Span, producers: &Runs<'a>) -> Option<Commitment<'a>> {
        let start = (id::position(event) - span.first) * ENTRY_BYTES;
        let place = start..start + ENTRY_BYTES;
        let salt = self.salts.as_ref().and_then(|salts| salts.get(place.clone()));
        let entry = self.entries.get(place)?;
        Commitment::new(self.secret.as_deref(), salt, entry, producers, self.key_id.as_deref(), event)
    }
}

// An event's salt and its entry stand at the same place of their columns.
const _: () = assert!(SALT_BYTES == ENTRY_BYTES);

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
    page: &mut Found,
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
    let limit = i64::try_from(wanted.limit - page.rows.len()).unwrap_or(i64::MAX);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&first_ids, &last_ids, &from, &to, &wanted.filter.kind, &limit];
    let mut rows = pin!(client.query_raw(&statement, parameters).await?);
    while let Some(row) = rows.try_next().await? {
        let id: Uuid = row.get(1);
        let stretch = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|ord| group.get(ord));
        let stretch = stretch.ok_or(ReadError::Impossible(id))?;
        let event = Unchecked {
            id,
            index: stretch.first_index + (id::position(id) - id::position(stretch.first_id)) as u64,
            kind: row.get(3),
            time: time(&row, 2, id)?,
            received_at: stretch.received_at,
            payload: row.get(4),
        };
        *wanted.bytes += event.payload.len();
        let next_index = event.index + 1;
        page.rows.push(event);
        if page.rows.len() >= wanted.limit || *wanted.bytes >= PAGE_BYTES_MAX {
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
