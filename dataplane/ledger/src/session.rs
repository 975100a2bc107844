//! A writer's connection and the statements of the commit transaction.
//!
//! Owns the SQL that stores a batch. Never repeats anything: `writer.rs` decides what a failure means. Promises: events,
//! log entries, claims, producers' states and cases of a batch become visible together or not at all, and are
//! flushed when they do, also where a connection pooler has lost the session's settings.
//!
//! Locks are taken in one order by everybody, so there are no deadlocks: claims in order of period and key, then producers
//! by id, then the ledger's head.

use std::collections::HashMap;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Error, Row, Statement};
use uuid::Uuid;

use crate::commit::{self, Batch, COPY_COLUMNS, Header, Receipt};
use crate::dedup::{Claim, Known, ProducerState, Stored};
use crate::id::{BatchId, Day};
use crate::postgres::{Connection, Database, Failure, describe};
use crate::request::{BodyDigest, Period, RequestKey};
use crate::schema;
use crate::timestamp::Timestamp;

/// COPY data is handed over in pieces of this size, so that PostgreSQL stores while we encode.
const COPY_CHUNK_BYTES: usize = 128 * 1024;

/// `$1` ledger, `$2` events, `$3` batch id, `$4`, `$5` bounds of their times, `$6` secret, `$7` log entries, `$8` key
/// id.
///
/// The subquery for the first index gives NULL when there is no head, which the column refuses: events never stay without
/// a batch. What sets `synchronous_commit` does so for this transaction; a stronger setting stays. Placeholders in braces
/// are filled by [`Sql`].
const HEAD: &str = "head AS (UPDATE certeus.heads SET next_index = next_index + $2::integer \
     WHERE ledger = $1{guard} AND (SELECT CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') \
     THEN set_config('synchronous_commit', 'on', true) ELSE '' END) IS NOT NULL \
     RETURNING next_index - $2::integer AS first_index){more} \
     INSERT INTO certeus.batches \
     (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries, key_id{column}) \
     SELECT $1, (SELECT first_index FROM head), $2::integer, $3, $4, $5, $6, $7, $8{value} \
     RETURNING first_index";

/// `$10` cases, `$11` positions, `$12` ids.
const CASES: &str = ", cased AS (INSERT INTO certeus.cases (ledger, case_id, index, id) \
     SELECT $1, c.case_id, (SELECT first_index FROM head) + c.position, c.id \
     FROM unnest($10::text[], $11::integer[], $12::uuid[]) AS c (case_id, position, id))";

/// Enters requests and moves producers on. An earlier request of the same identity is waited for, and then a unique key is
/// violated; a producer that is not where the request expects it is left out. The claims come first by reference.
const CLAIMS: &str = "claimed AS (INSERT INTO certeus.requests (period, key, body, batch_id, position, event_count) \
     SELECT r.period, r.key, r.body, {batch}, r.position, r.event_count \
     FROM unnest({0}::integer[], {1}::bytea[], {2}::bytea[], {3}::integer[], {4}::integer[]) \
     AS r (period, key, body, position, event_count) RETURNING 1), \
     advanced AS (INSERT INTO certeus.producers AS old (ledger, producer, epoch, first_sequence, next_sequence) \
     SELECT {ledger}, n.producer, n.epoch, n.first_sequence, n.next_sequence \
     FROM unnest({5}::text[], {6}::bigint[], {7}::bigint[], {8}::bigint[]) \
     AS n (producer, epoch, first_sequence, next_sequence) \
     WHERE (SELECT count(*) FROM claimed) = cardinality({0}::integer[]) AND (n.first_sequence = 0 OR EXISTS \
     (SELECT FROM certeus.producers WHERE ledger = {ledger} AND producer = n.producer)) \
     ON CONFLICT (ledger, producer) DO UPDATE SET epoch = excluded.epoch, \
     first_sequence = excluded.first_sequence, next_sequence = excluded.next_sequence \
     WHERE (old.epoch = excluded.epoch AND old.next_sequence = excluded.first_sequence) \
     OR (old.epoch < excluded.epoch AND excluded.first_sequence = 0) RETURNING 1)";

/// The statements of one day.
struct Sql {
    copy: String,
    insert: String,
    head: String,
    claim: String,
    insert_full: String,
    head_full: String,
}

impl Sql {
    fn of(day: Day) -> Self {
        let table = schema::partition(day);
        let head = |full: bool, guard: &str| {
            let fill = |text: &'static str| if full { text } else { "" };
            HEAD.replace("{guard}", guard)
                .replace("{more}", fill(CASES))
                .replace("{column}", fill(", producers"))
                .replace("{value}", fill(", $9"))
        };
        let events = |first: usize| {
            let [a, b, c, d] = std::array::from_fn(|at| first + at);
            format!(
                "stored AS (INSERT INTO {table} ({COPY_COLUMNS}) SELECT * FROM \
                 unnest(${a}::uuid[], ${b}::timestamptz[], ${c}::text[], ${d}::bytea[]))"
            )
        };
        let claims = |ledger: &str, batch: &str, first: usize| {
            let named = CLAIMS.replace("{ledger}", ledger).replace("{batch}", batch);
            (0..9).fold(named, |sql, at| sql.replace(&format!("{{{at}}}"), &format!("${}", first + at)))
        };
        let guard = " AND (SELECT count(*) FROM advanced) = cardinality($22::text[])";
        Self {
            copy: format!("COPY {table} ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)"),
            insert: format!("WITH {}, {}", events(9), head(false, "")),
            head: format!("WITH {}", head(false, "")),
            claim: format!(
                "WITH {} SELECT (SELECT count(*) FROM advanced) = cardinality($8::text[])",
                claims("$1::text", "$2::uuid", 3)
            ),
            insert_full: format!("WITH {}, {}, {}", claims("$1", "$3", 17), events(13), head(true, guard)),
            head_full: format!("WITH {}", head(true, "")),
        }
    }
}

/// Why an attempt at a commit failed.
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) reason: String,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { failure: Failure::of(&error), reason: describe(&error) }
    }
}

impl Failed {
    pub(crate) fn log_refused() -> Self {
        let reason = "the database is not the one that the log was signed for".to_owned();
        Self { failure: Failure::Refused, reason }
    }

    fn out_of_sequence() -> Self {
        let reason = "a producer is not where a request of the batch expects it".to_owned();
        Self { failure: Failure::Claimed, reason }
    }
}

/// A connection with what is prepared on it.
pub(crate) struct Session {
    connection: Connection,
    day: Day,
    copy: Statement,
    insert: Statement,
    head: Statement,
    claim: Statement,
    insert_full: Statement,
    head_full: Statement,
}

impl Session {
    pub(crate) async fn open(database: &Database, day: Day) -> Result<Self, Error> {
        let mut connection = database.connect().await?;
        schema::ensure_partition(&mut connection.client, day).await?;
        schema::ensure_request_partitions(&mut connection.client, day).await?;
        let sql = Sql::of(day);
        let client = &connection.client;
        let (copy, insert, head, claim, insert_full, head_full) = tokio::try_join!(
            client.prepare(&sql.copy),
            client.prepare(&sql.insert),
            client.prepare(&sql.head),
            client.prepare(&sql.claim),
            client.prepare(&sql.insert_full),
            client.prepare(&sql.head_full),
        )?;
        Ok(Self { connection, day, copy, insert, head, claim, insert_full, head_full })
    }

    /// Whether batches of a day can be stored through it.
    pub(crate) fn serves(&self, day: Day) -> bool {
        self.day == day && !self.connection.client.is_closed()
    }

    /// Events in the ledger.
    pub(crate) async fn next_index(&self, ledger: &str) -> Result<u64, Error> {
        let sql = "SELECT next_index FROM certeus.heads WHERE ledger = $1";
        let row = self.connection.client.query_opt(sql, &[&ledger]).await?;
        // Without a head, which the next commit finds out, there is nothing.
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0))
    }

    /// The first index of a batch that an earlier attempt stored.
    pub(crate) async fn find(&self, batch: &Batch<'_>) -> Result<Option<u64>, Error> {
        // An erasure destroys the secret. The id alone, with its 54 random bits, is then taken for proof enough.
        let sql = "SELECT first_index FROM certeus.batches \
             WHERE batch_id = $1 AND (secret = $2 OR secret IS NULL)";
        let row = self.connection.client.query_opt(sql, &[&batch.id.uuid(), &&batch.secret.0[..]]).await?;
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()))
    }

    /// What is stored about requests. Their producers are read first: a request that moved one on is then seen, too.
    pub(crate) async fn look_up(&self, ledger: &str, claims: &[&Claim<'_>]) -> Result<Known, Error> {
        const PRODUCERS: &str = "SELECT producer, epoch, next_sequence FROM certeus.producers \
             WHERE ledger = $1 AND producer = ANY($2)";
        const REQUESTS: &str = "SELECT r.key, r.body, r.batch_id, r.position, r.event_count, b.first_index \
             FROM certeus.requests r JOIN certeus.batches b ON b.batch_id = r.batch_id \
             WHERE r.key = ANY($1) AND r.period = ANY($2) ORDER BY r.period DESC";
        let client = &self.connection.client;
        let producers: Vec<&str> = claims.iter().filter_map(|claim| claim.producer.map(|p| p.id())).collect();
        let mut states = HashMap::new();
        if !producers.is_empty() {
            for row in client.query(PRODUCERS, &[&ledger, &producers]).await? {
                states.insert(row.get(0), producer_state(&row));
            }
        }
        let keys: Vec<&[u8]> = claims.iter().map(|claim| &claim.key.0[..]).collect();
        let periods: Vec<i32> = Period::of_request(self.day).map(Period::number).collect();
        // Where a key was taken anew in a later period, the older one, which comes last, is what the insert met first.
        let rows = client.query(REQUESTS, &[&keys, &periods]).await?;
        let stored = rows.iter().map(stored_request).collect();
        Ok(Known { stored, producers: Some(states) })
    }

    /// Everything in one statement, which is its own transaction; sets `sent` when it has sent what commits.
    pub(crate) async fn insert(&self, batch: &Batch<'_>, sent: &mut bool) -> Result<i64, Failed> {
        let count = batch.event_count();
        let mut ids: Vec<Uuid> = Vec::with_capacity(count);
        let mut times = Vec::with_capacity(count);
        let mut kinds: Vec<&str> = Vec::with_capacity(count);
        let mut payloads: Vec<&[u8]> = Vec::with_capacity(count);
        let mut header = batch.header();
        for row in batch.rows() {
            header.add(&row);
            ids.push(row.id);
            times.push(PgTimestamp(row.event.time));
            kinds.push(row.event.kind);
            payloads.push(row.event.payload);
        }
        let header = header.finish();
        let head = HeadParameters::new(batch, &header);
        let events: [&(dyn ToSql + Sync); 4] = [&ids, &times, &kinds, &payloads];
        let mut parameters = head.as_sql().to_vec();
        let client = &self.connection.client;
        if batch.is_plain() {
            parameters.extend(events);
            *sent = true;
            return Ok(client.query_one(&self.insert, &parameters).await?.get(0));
        }
        let (extra, claims) = (ExtraParameters::new(batch), ClaimParameters::new(batch, self.day));
        parameters.extend(extra.as_sql());
        parameters.extend(events);
        parameters.extend(claims.as_sql());
        *sent = true;
        let stored = client.query_one(&self.insert_full, &parameters).await;
        stored.map(|row| row.get(0)).map_err(|error| {
            // The guard leaves the head alone when a producer could not be moved on: then there is no first index.
            let guarded = error.code() == Some(&SqlState::NOT_NULL_VIOLATION) && !batch.advances.is_empty();
            if guarded { Failed::out_of_sequence() } else { error.into() }
        })
    }

    /// Claims, COPY, then head, batch row and COMMIT sent together; sets `sent` likewise.
    pub(crate) async fn copy(&self, batch: &Batch<'_>, sent: &mut bool) -> Result<i64, Failed> {
        let client = &self.connection.client;
        let copy_in = client.copy_in::<_, Bytes>(&self.copy);
        let sink = if batch.claimed().next().is_none() {
            let (begun, sink) = tokio::join!(biased; client.batch_execute("BEGIN"), copy_in);
            begun?;
            sink?
        } else {
            // Not sent together with the COPY: one that fails to begin leaves the connection unusable, and claims that
            // are taken are no rare thing.
            let (begun, claimed) = tokio::join!(biased; client.batch_execute("BEGIN"), self.claim(batch));
            begun?;
            if let Err(failed) = claimed {
                client.batch_execute("ROLLBACK").await?;
                return Err(failed);
            }
            copy_in.await?
        };
        let mut sink = pin!(sink);
        let mut chunk = BytesMut::with_capacity(COPY_CHUNK_BYTES + 4096);
        commit::write_copy_start(&mut chunk);
        let mut header = batch.header();
        for row in batch.rows() {
            commit::write_copy_row(&mut chunk, &row);
            header.add(&row);
            if chunk.len() >= COPY_CHUNK_BYTES {
                sink.send(chunk.split().freeze()).await?;
                chunk.reserve(COPY_CHUNK_BYTES + 4096);
            }
        }
        commit::write_copy_end(&mut chunk);
        sink.send(chunk.freeze()).await?;
        let header = header.finish();
        let head = HeadParameters::new(batch, &header);
        let mut parameters = head.as_sql().to_vec();
        let extra = (!batch.is_plain()).then(|| ExtraParameters::new(batch));
        let statement = if let Some(extra) = &extra {
            parameters.extend(extra.as_sql());
            &self.head_full
        } else {
            &self.head
        };
        *sent = true;
        let (copied, row, committed) = tokio::join!(
            biased;
            sink.as_mut().finish(),
            client.query_one(statement, &parameters),
            client.batch_execute("COMMIT")
        );
        // The first failure is the cause; after it the other two only say that the transaction is aborted.
        let (copied, first_index) = (copied?, row?.get(0));
        committed?;
        assert_eq!(
            copied,
            batch.event_count() as u64,
            "PostgreSQL stored another number of rows than were sent"
        );
        Ok(first_index)
    }

    /// Enters the batch's claims into the transaction that was begun.
    async fn claim(&self, batch: &Batch<'_>) -> Result<(), Failed> {
        let claims = ClaimParameters::new(batch, self.day);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&batch.ledger];
        let batch_id = batch.id.uuid();
        parameters.push(&batch_id);
        parameters.extend(claims.as_sql());
        let row = self.connection.client.query_one(&self.claim, &parameters).await?;
        if row.get(0) { Ok(()) } else { Err(Failed::out_of_sequence()) }
    }
}

fn producer_state(row: &Row) -> ProducerState {
    // The columns' check constraints keep both in range.
    ProducerState {
        epoch: u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX),
        next: u64::try_from(row.get::<_, i64>(2)).unwrap_or(u64::MAX),
    }
}

fn stored_request(row: &Row) -> (RequestKey, Stored) {
    let digest = |column| <[u8; 32]>::try_from(row.get::<_, &[u8]>(column)).expect("a checked length");
    let number = |value: i64| u64::try_from(value).expect("an index or position, which is never negative");
    let batch = BatchId::of(row.get(2));
    let position = number(row.get::<_, i32>(3).into());
    let receipt = Receipt {
        first_index: number(row.get(5)) + position,
        count: usize::try_from(number(row.get::<_, i32>(4).into())).expect("at most 2^20 events"),
        first_id: batch.event(usize::try_from(position).expect("at most 2^20 events")),
        replayed: true,
    };
    (RequestKey(digest(0)), Stored { body: BodyDigest(digest(1)), batch, receipt })
}

/// The parameters of [`HEAD`], kept alive together.
struct HeadParameters<'a> {
    ledger: &'a str,
    event_count: i32,
    batch_id: Uuid,
    min_time: PgTimestamp,
    max_time: PgTimestamp,
    secret: &'a [u8],
    entries: &'a [u8],
    key_id: Option<&'a [u8]>,
}

impl<'a> HeadParameters<'a> {
    fn new(batch: &'a Batch<'_>, header: &'a Header) -> Self {
        Self {
            ledger: batch.ledger,
            event_count: narrow(batch.event_count()),
            batch_id: batch.id.uuid(),
            min_time: PgTimestamp(header.min_time),
            max_time: PgTimestamp(header.max_time),
            secret: &batch.secret.0,
            entries: &header.entries,
            key_id: batch.key_id(),
        }
    }

    fn as_sql(&self) -> [&(dyn ToSql + Sync); 8] {
        let Self { ledger, event_count, batch_id, min_time, max_time, secret, entries, key_id } = self;
        [ledger, event_count, batch_id, min_time, max_time, secret, entries, key_id]
    }
}

/// What the full statements store beside it: the batch's producers, and [`CASES`].
struct ExtraParameters<'a> {
    producers: Option<Vec<u8>>,
    cases: Vec<&'a str>,
    positions: Vec<i32>,
    ids: Vec<Uuid>,
}

impl<'a> ExtraParameters<'a> {
    fn new(batch: &Batch<'a>) -> Self {
        let mut parameters =
            Self { producers: batch.producers(), cases: Vec::new(), positions: Vec::new(), ids: Vec::new() };
        for (position, case) in batch.cases() {
            parameters.cases.push(case);
            parameters.positions.push(narrow(position));
            parameters.ids.push(batch.id.event(position));
        }
        parameters
    }

    fn as_sql(&self) -> [&(dyn ToSql + Sync); 4] {
        let Self { producers, cases, positions, ids } = self;
        [producers, cases, positions, ids]
    }
}

/// The parameters of [`CLAIMS`].
struct ClaimParameters<'a> {
    periods: Vec<i32>,
    keys: Vec<&'a [u8]>,
    bodies: Vec<Vec<u8>>,
    positions: Vec<i32>,
    event_counts: Vec<i32>,
    producers: Vec<&'a str>,
    epochs: Vec<i64>,
    firsts: Vec<i64>,
    nexts: Vec<i64>,
}

impl<'a> ClaimParameters<'a> {
    fn new(batch: &'a Batch<'_>, day: Day) -> Self {
        let mut claims: Vec<_> = batch.claimed().collect();
        claims.sort_unstable_by_key(|(_, claim)| claim.key);
        let rows =
            || Period::of_request(day).flat_map(|period| claims.iter().map(move |claim| (period, claim)));
        let sequence = |number: u64| i64::try_from(number).expect("a sequence number was checked");
        let advances = batch.advances;
        Self {
            periods: rows().map(|(period, _)| period.number()).collect(),
            keys: rows().map(|(_, (_, claim))| &claim.key.0[..]).collect(),
            bodies: rows().map(|(_, (_, claim))| claim.stored_body().0.to_vec()).collect(),
            positions: rows().map(|(_, (position, _))| narrow(*position)).collect(),
            event_counts: rows().map(|(_, (_, claim))| narrow(claim.event_count)).collect(),
            producers: advances.iter().map(|advance| advance.producer).collect(),
            epochs: advances.iter().map(|advance| advance.epoch.into()).collect(),
            firsts: advances.iter().map(|advance| sequence(advance.first)).collect(),
            nexts: advances.iter().map(|advance| sequence(advance.next)).collect(),
        }
    }

    fn as_sql(&self) -> [&(dyn ToSql + Sync); 9] {
        let Self { periods, keys, bodies, positions, event_counts, producers, epochs, firsts, nexts } = self;
        [periods, keys, bodies, positions, event_counts, producers, epochs, firsts, nexts]
    }
}

/// A position or number of events as PostgreSQL's `integer`.
fn narrow(number: usize) -> i32 {
    i32::try_from(number).expect("a batch has at most 2^20 events")
}

/// A [`Timestamp`] as a `timestamptz` parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PgTimestamp(pub(crate) Timestamp);

impl ToSql for PgTimestamp {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&commit::postgres_micros(self.0).to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests;
