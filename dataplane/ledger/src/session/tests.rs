//! The statements against a real PostgreSQL, where the day and the order of events are in the test's hands.

use std::time::Duration;

use bytes::Bytes;
use certeus_localpg::{LocalPg, Options};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls};

use super::*;
use crate::dedup;
use crate::envelope::BatchSecret;
use crate::queue::Pending;
use crate::request::{IdempotencyKey, Identity};
use crate::submission::{Format, Limits, OnBadEvent, Submission};

const DAY_MS: u64 = 86_400_000;

fn pending(key: &str, events: usize) -> Pending {
    let body = Bytes::from("{\"type\":\"a\",\"timestamp\":1}\n".repeat(events));
    let limits = Limits { request_events_max: 10_000, event_bytes_max: 1000, encrypted_fields: None };
    let parsed = Submission::parse(body, Format::Ndjson, &limits, OnBadEvent::RefuseAll).unwrap();
    let identity = Identity::Key(IdempotencyKey::new(key).unwrap());
    let submission = parsed.submission.unwrap().identified(identity, b"").unwrap();
    Pending { submission, admitted: Instant::now(), reply: oneshot::channel().0 }
}

/// Stores a request as a batch of its own under an id of the given time; `Err` when its key is taken.
async fn store(session: &Session, unix_ms: u64, random: u128, request: &Pending) -> Result<i64, Failure> {
    let claims = [Claim::of(request, "default")];
    let requests = [request];
    let batch = Batch {
        ledger: "default",
        id: BatchId::new(unix_ms, random << 20),
        secret: BatchSecret([7; 32]),
        requests: &requests,
        claims: &claims,
        advances: &[],
        encrypted: None,
    };
    let mut sent = false;
    let stored = if batch.event_count() <= 500 {
        session.insert(&batch, &mut sent).await
    } else {
        session.copy(&batch, &mut sent).await
    };
    stored.map_err(|failed| failed.failure)
}

async fn prepared() -> (LocalPg, Database, Client) {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let database = Database::from_url(&pg.url()).unwrap();
    let mut client = connect(&pg).await;
    schema::migrate(&mut client, "default").await.unwrap();
    (pg, database, client)
}

async fn connect(pg: &LocalPg) -> Client {
    let (client, connection) = tokio_postgres::connect(&pg.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until so many sessions wait for a lock. Not from within a transaction, which would see the same numbers for ever.
async fn until_waiting(client: &Client, sessions: i64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < sessions {
        assert!(Instant::now() < deadline, "{sessions} sessions do not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_unique_across_midnight_also_while_its_first_use_is_under_way() {
    let (pg, database, client) = prepared().await;
    let watcher = connect(&pg).await;
    // Three days in a row: one of these midnights is the border of two partitions.
    let mut borders = 0;
    let mut batches = 0..;
    let mut random = move || batches.next().unwrap();
    for first in 20_000_u64..20_003 {
        let (before, after) = (first * DAY_MS + DAY_MS - 1, (first + 1) * DAY_MS);
        let days = [before, after].map(Day::of_unix_ms);
        let periods = days.map(|day| Period::of_request(day).next());
        borders += usize::from(periods[0] != periods[1]);
        let (yesterday, today) = (
            Session::open(&database, days[0]).await.unwrap(),
            Session::open(&database, days[1]).await.unwrap(),
        );
        for (name, size) in [("small", 1), ("large", 600)] {
            let key = format!("{name}-{first}");
            let (original, repeat) = (pending(&key, size), pending(&key, size));
            // Whoever holds the head's row holds the first transaction up after its claims.
            client.batch_execute("BEGIN; SELECT * FROM certeus.heads FOR UPDATE").await.unwrap();
            let (random_before, random_after) = (random(), random());
            let repeat_and_release = async {
                until_waiting(&watcher, 1).await;
                let release = async {
                    until_waiting(&watcher, 2).await;
                    client.batch_execute("COMMIT").await.unwrap();
                };
                tokio::join!(store(&today, after, random_after, &repeat), release).0
            };
            let (stored, repeated) =
                tokio::join!(store(&yesterday, before, random_before, &original), repeat_and_release);
            let first_index = stored.unwrap();
            assert_eq!(repeated, Err(Failure::Claimed));
            // And it is found, with its first place.
            let claim = Claim::of(&repeat, "default");
            let known = today.look_up("default", &[claim.as_ref().unwrap()]).await.unwrap();
            let dedup::Verdict::Answered(Ok(receipt)) = dedup::plan(&[claim], &known).verdicts[0] else {
                panic!("the repeat counts as new");
            };
            assert_eq!((receipt.first_index, receipt.count), (u64::try_from(first_index).unwrap(), size));
            assert_eq!(BatchId::of(receipt.first_id).day(), days[0]);
        }
    }
    assert_eq!(borders, 1);
    let stored: i64 = client.query_one("SELECT count(*) FROM certeus.events", &[]).await.unwrap().get(0);
    assert_eq!(stored, 3 * 601);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_partitions_of_requests_are_dropped_and_needed_ones_kept() {
    let (_pg, _database, mut client) = prepared().await;
    let today: i64 = client
        .query_one("SELECT ((now() AT TIME ZONE 'UTC')::date - date '1970-01-01')::bigint", &[])
        .await
        .unwrap()
        .get(0);
    let today = u32::try_from(today).unwrap();
    for day in today - 20..=today + 1 {
        schema::ensure_request_partitions(&mut client, Day::of_number(day)).await.unwrap();
    }
    schema::drop_old_requests(&mut client).await.unwrap();
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'certeus.requests'::regclass";
    let left: i64 = client.query_one(count, &[]).await.unwrap().get(0);
    assert!((1..=3).contains(&left), "{left} partitions are left");
    // What is left is what yesterday's requests and later ones are entered into: none is made anew.
    for day in today - 1..=today + 1 {
        schema::ensure_request_partitions(&mut client, Day::of_number(day)).await.unwrap();
    }
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), left);
}

/// As behind a connection pooler that hands each transaction to another session.
#[tokio::test(flavor = "multi_thread")]
async fn commits_are_flushed_although_the_session_lost_its_settings() {
    let (_pg, database, client) = prepared().await;
    // Only who waits for the flush flushes: PostgreSQL's own writer comes far too late.
    client.batch_execute("ALTER SYSTEM SET wal_writer_delay = '10s'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let session = Session::open(&database, Day::of_number(20_000)).await.unwrap();
    session.connection.client.batch_execute("SET synchronous_commit = off").await.unwrap();
    let behind = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()";
    let unflushed =
        async || session.connection.client.query_one(behind, &[]).await.unwrap().get::<_, bool>(0);
    session.connection.client.batch_execute("CREATE TABLE witness (n int)").await.unwrap();
    // PostgreSQL flushes and writes at times of its own, too: the majority tells.
    let (mut asynchronous, mut flushed) = (0, 0);
    for round in 0..5_u128 {
        // The setting does lose commits, or the test would show nothing.
        session.connection.client.batch_execute("INSERT INTO witness VALUES (1)").await.unwrap();
        asynchronous += usize::from(unflushed().await);
        for (random, size) in [(2 * round, 1), (2 * round + 1, 600)] {
            let request = pending(&format!("k{random}"), size);
            store(&session, 20_000 * DAY_MS, random, &request).await.unwrap();
            flushed += usize::from(!unflushed().await);
        }
    }
    assert!(asynchronous >= 3 && flushed >= 8, "{asynchronous} of 5, {flushed} of 10");
    let after: String =
        session.connection.client.query_one("SHOW synchronous_commit", &[]).await.unwrap().get(0);
    assert_eq!(after, "off", "the setting was for the transaction alone");
}
