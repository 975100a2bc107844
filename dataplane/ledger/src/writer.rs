//! A writer: takes batches from the queue and commits them, one after the other, over a connection of its own.
//!
//! Owns the commit transaction and what happens when it fails. Promises: a receipt is given only after PostgreSQL
//! confirmed the commit; a batch whose reply was lost is repeated under the same keys and so is stored once; a
//! failed connection is never used again. Limits: [`COMMIT_DEADLINE`].
//!
//! One transaction, and where it may stop:
//! 1. `COPY` of the events: rolled back with the connection, the batch is repeated.
//! 2. the head row moves on and the batch's row is written: the same. The head's row lock is held from here to the
//!    flush, so index order is commit order, without a gap.
//! 3. `COMMIT`, sent together with 2: if the reply is lost, the batch may be stored. The repeat then meets its own
//!    primary keys, waits for the earlier transaction if that still runs, and reads the batch's row.
//!
//! Below [`INSERT_EVENTS_MAX`] events all of it is one statement, one round trip.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use rand::RngExt;
use tokio::time::Instant;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Error, Statement};
use uuid::Uuid;

use crate::commit::{self, Batch, COPY_COLUMNS, CommitError, Header, Receipt};
use crate::envelope::BatchSecret;
use crate::id::{BatchId, Day};
use crate::ledger::Shared;
use crate::postgres::{Connection, Failure, describe};
use crate::queue::{Pending, Taken};
use crate::schema;
use crate::timestamp::Timestamp;

/// How long after its admission a request is answered when the database is away.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);
/// What a commit is given at least, however long its requests waited.
const COMMIT_MIN: Duration = Duration::from_secs(5);
/// A connection that does not answer for this long is given up, while there is still time to try on another one.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Up to here one `INSERT` statement is quicker than the three round trips of a `COPY`.
const INSERT_EVENTS_MAX: usize = 500;
/// COPY data is handed over in pieces of this size, so that PostgreSQL stores while we encode.
const COPY_CHUNK_BYTES: usize = 128 * 1024;

/// `$1` ledger, `$2` events, `$3` batch id, `$4`, `$5` bounds of their times, `$6` secret, `$7` log entries.
///
/// The subquery gives NULL when there is no head, which the column refuses: events never stay without a batch.
const HEAD: &str = "head AS (UPDATE certeus.heads SET next_index = next_index + $2::integer \
     WHERE ledger = $1 RETURNING next_index - $2::integer AS first_index) \
     INSERT INTO certeus.batches \
     (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries) \
     SELECT $1, (SELECT first_index FROM head), $2::integer, $3, $4, $5, $6, $7 \
     RETURNING first_index";

/// A connection with what is prepared on it.
struct Session {
    connection: Connection,
    day: Day,
    copy: Statement,
    head: Statement,
    insert: Statement,
}

/// Commits batches until the queue is closed and empty.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut writer = Writer { shared: &shared, session: None };
    while let Some(taken) = shared.queue.take().await {
        writer.commit_taken(taken).await;
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    session: Option<Session>,
}

/// Whether an earlier attempt at a batch may have been committed.
#[derive(Default)]
struct Doubt {
    /// An earlier attempt's outcome is unknown.
    earlier: bool,
    /// This attempt has sent what commits.
    sent: bool,
}

/// Why an attempt failed.
struct Failed {
    failure: Failure,
    reason: String,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { failure: Failure::of(&error), reason: describe(&error) }
    }
}

impl Writer<'_> {
    /// Commits what was taken and answers every request in it.
    async fn commit_taken(&mut self, mut taken: Taken<'_>) {
        let requests = std::mem::take(&mut taken.requests);
        // Rows that the database refuses are one request's fault: the others must not suffer.
        for request in self.commit_requests(requests).await {
            self.commit_requests(vec![request]).await;
        }
    }

    /// Commits requests as one batch and answers them; gives back several requests whose rows were refused together.
    async fn commit_requests(&mut self, requests: Vec<Pending>) -> Vec<Pending> {
        let started = Instant::now();
        let batch = Batch {
            ledger: &self.shared.name,
            id: BatchId::new(unix_ms(), rand::rng().random()),
            secret: BatchSecret(rand::rng().random()),
            requests: &requests,
        };
        let outcome = self.commit(&batch).await;
        match outcome {
            Ok(first_index) => {
                self.shared.metrics.committed(batch.event_count(), started.elapsed());
                let receipts: Vec<Receipt> = batch.receipts(first_index).collect();
                for (pending, receipt) in requests.into_iter().zip(receipts) {
                    pending.answer(Ok(receipt));
                }
            }
            Err(CommitError::Rejected) if requests.len() > 1 => return requests,
            Err(error) => {
                self.shared.metrics.commit_failures.get(error.class()).inc();
                for pending in requests {
                    pending.answer(Err(error));
                }
            }
        }
        Vec::new()
    }

    /// Commits a batch, repeating it while that can help; gives its first index.
    async fn commit(&mut self, batch: &Batch<'_>) -> Result<u64, CommitError> {
        let oldest = batch.requests.iter().map(|pending| pending.admitted).min();
        let mut deadline = oldest.unwrap_or_else(Instant::now) + COMMIT_DEADLINE;
        if self.shared.is_available() {
            deadline = deadline.max(Instant::now() + COMMIT_MIN);
        }
        if Instant::now() >= deadline {
            return Err(CommitError::Unavailable);
        }
        let mut doubt = Doubt::default();
        let mut backoff = BACKOFF_MIN;
        loop {
            doubt.sent = false;
            let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_MAX);
            let failed =
                match tokio::time::timeout_at(attempt_deadline, self.attempt(batch, &mut doubt)).await {
                    Ok(Ok(first_index)) => {
                        self.shared.set_available();
                        return Ok(first_index);
                    }
                    Ok(Err(failed)) => failed,
                    Err(_elapsed) => {
                        Failed { failure: Failure::Lost, reason: "the database does not answer".to_owned() }
                    }
                };
            // Whatever went wrong, the connection's state is not worth finding out.
            self.session = None;
            tracing::warn!(
                failure = ?failed.failure, reason = failed.reason, batch.id = %batch.id.uuid(),
                batch.events = batch.event_count(), "a commit attempt failed"
            );
            match failed.failure {
                Failure::Rejected if doubt.earlier => return Err(CommitError::OutcomeUnknown),
                Failure::Rejected => return Err(CommitError::Rejected),
                // The earlier attempt was committed after all, which the next one reads.
                Failure::Duplicate => doubt.earlier = true,
                Failure::Refused => self.shared.set_unavailable(&failed.reason),
                Failure::Lost => {
                    if doubt.sent && !doubt.earlier {
                        // There must be time for at least one look on another connection.
                        deadline = deadline.max(Instant::now() + COMMIT_MIN);
                    }
                    doubt.earlier |= doubt.sent;
                    self.shared.set_unavailable(&failed.reason);
                }
            }
            if Instant::now() + backoff >= deadline {
                return Err(if doubt.earlier {
                    CommitError::OutcomeUnknown
                } else {
                    CommitError::Unavailable
                });
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&mut self, batch: &Batch<'_>, doubt: &mut Doubt) -> Result<u64, Failed> {
        let session = match self.session.take() {
            Some(session) if session.day == batch.id.day() && !session.connection.client.is_closed() => {
                session
            }
            _ => Session::open(self.shared, batch.id.day()).await?,
        };
        let session = self.session.insert(session);
        if doubt.earlier
            && let Some(first_index) = session.find(batch).await?
        {
            return Ok(first_index);
        }
        let first_index = if batch.event_count() <= INSERT_EVENTS_MAX {
            session.insert(batch, doubt).await?
        } else {
            session.copy(batch, doubt).await?
        };
        Ok(u64::try_from(first_index).expect("the head's check constraint keeps indexes at 0 or above"))
    }
}

impl Session {
    async fn open(shared: &Shared, day: Day) -> Result<Self, Error> {
        let mut connection = shared.database.connect().await?;
        schema::ensure_partition(&mut connection.client, day).await?;
        let table = schema::partition(day);
        let client = &connection.client;
        let copy = format!("COPY {table} ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)");
        let insert = format!(
            "WITH stored AS (INSERT INTO {table} ({COPY_COLUMNS}) \
             SELECT * FROM unnest($8::uuid[], $9::timestamptz[], $10::text[], $11::bytea[])), {HEAD}"
        );
        let head = format!("WITH {HEAD}");
        let (copy, insert, head) =
            tokio::try_join!(client.prepare(&copy), client.prepare(&insert), client.prepare(&head))?;
        Ok(Self { connection, day, copy, head, insert })
    }

    /// The first index of a batch that an earlier attempt stored.
    async fn find(&self, batch: &Batch<'_>) -> Result<Option<u64>, Error> {
        // An erasure destroys the secret. The id alone, with its 54 random bits, is then taken for proof enough.
        let sql = "SELECT first_index FROM certeus.batches \
             WHERE batch_id = $1 AND (secret = $2 OR secret IS NULL)";
        let row = self.connection.client.query_opt(sql, &[&batch.id.uuid(), &&batch.secret.0[..]]).await?;
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()))
    }

    /// Everything in one statement, which is its own transaction.
    async fn insert(&self, batch: &Batch<'_>, doubt: &mut Doubt) -> Result<i64, Error> {
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
        let mut parameters = head.as_sql().to_vec();
        parameters.extend([&ids as &(dyn ToSql + Sync), &times, &kinds, &payloads]);
        doubt.sent = true;
        Ok(self.connection.client.query_one(&self.insert, &parameters).await?.get(0))
    }

    /// COPY, then head, batch row and COMMIT sent together.
    async fn copy(&self, batch: &Batch<'_>, doubt: &mut Doubt) -> Result<i64, Error> {
        let client = &self.connection.client;
        let (begun, sink) =
            tokio::join!(biased; client.batch_execute("BEGIN"), client.copy_in::<_, Bytes>(&self.copy));
        begun?;
        let mut sink = pin!(sink?);
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
        let parameters = head.as_sql();
        doubt.sent = true;
        let (copied, row, committed) = tokio::join!(
            biased;
            sink.as_mut().finish(),
            client.query_one(&self.head, &parameters),
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
}

impl<'a> HeadParameters<'a> {
    fn new(batch: &'a Batch<'_>, header: &'a Header) -> Self {
        Self {
            ledger: batch.ledger,
            event_count: i32::try_from(batch.event_count()).expect("a batch has at most 2^20 events"),
            batch_id: batch.id.uuid(),
            min_time: PgTimestamp(header.min_time),
            max_time: PgTimestamp(header.max_time),
            secret: &batch.secret.0,
            entries: &header.entries,
        }
    }

    fn as_sql(&self) -> [&(dyn ToSql + Sync); 7] {
        let Self { ledger, event_count, batch_id, min_time, max_time, secret, entries } = self;
        [ledger, event_count, batch_id, min_time, max_time, secret, entries]
    }
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

/// Milliseconds since the Unix epoch. A clock before 1970 counts as 1970: ids stay unique, only less ordered.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
