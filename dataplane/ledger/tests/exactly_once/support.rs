//! A ledger beside a real PostgreSQL, and requests for it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use certeus_ledger::request::{IdempotencyKey, Identity, ProducerSequence};
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{Availability, Config, Database, Ledger, QueueConfig, SpoolConfig, Tasks};
use certeus_localpg::LocalPg;
use tokio_postgres::{Client, NoTls};

const QUEUE: QueueConfig = QueueConfig {
    queue_events_max: 100_000,
    queue_bytes_max: 64 << 20,
    batch_events: 10_000,
    batch_bytes: 8 << 20,
    batch_timeout: Duration::from_millis(100),
};

/// Parses a body of one event per line.
pub(crate) fn lines(body: String) -> Submission {
    let limits = Limits { request_events_max: 100_000, event_bytes_max: 1 << 20, encrypted_fields: None };
    let parsed = Submission::parse(Bytes::from(body), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

/// A request of `count` events that `name` tells apart from those of other names.
pub(crate) fn request(name: &str, count: usize) -> Submission {
    let line = |n| format!("{{\"type\":\"t\",\"timestamp\":{},\"name\":\"{name}\"}}\n", 1_769_860_800 + n);
    lines((0..count).map(line).collect())
}

pub(crate) fn keyed(name: &str, count: usize, key: &str) -> Submission {
    let identity = Identity::Key(IdempotencyKey::new(key).unwrap());
    request(name, count).identified(identity, b"").unwrap()
}

/// Events `first..first + count` of a producer.
pub(crate) fn numbered(producer: &str, epoch: u32, first: u64, count: usize) -> Submission {
    let identity = Identity::Producer(ProducerSequence::new(producer, epoch, first).unwrap());
    request(&format!("{producer} {epoch} {first}"), count).identified(identity, b"").unwrap()
}

pub(crate) async fn start(pg: &LocalPg) -> (Ledger, Tasks) {
    start_with(pg, None).await
}

/// With a spool in this folder.
pub(crate) async fn start_spooling(pg: &LocalPg, folder: &Path) -> (Ledger, Tasks) {
    start_with(pg, Some(SpoolConfig { path: folder.to_owned(), bytes_max: 64 << 20 })).await
}

async fn start_with(pg: &LocalPg, spool: Option<SpoolConfig>) -> (Ledger, Tasks) {
    let config = Config {
        name: "default".to_owned(),
        database: Database::from_url(&pg.url()).unwrap(),
        writers: 2,
        read_connections: 2,
        queue: QUEUE,
        encryption: None,
        log: None,
        archive: None,
        spool,
    };
    let (ledger, tasks) = Ledger::start(config, &prometheus::Registry::new()).unwrap();
    let mut changes = ledger.watch_availability();
    let available = changes.wait_for(|now| *now == Availability::Available);
    tokio::time::timeout(Duration::from_secs(30), available).await.expect("available in time").unwrap();
    (ledger, tasks)
}

pub(crate) async fn close((ledger, tasks): (Ledger, Tasks)) {
    ledger.close();
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("drains in time");
}

pub(crate) async fn sql(pg: &LocalPg) -> Client {
    connect(&pg.url()).await
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The number that a query gives.
pub(crate) async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

/// Checks that indexes have no gap; gives the number of events.
pub(crate) async fn stored(client: &Client) -> i64 {
    let row = client
        .query_one(
            "SELECT count(*), count(DISTINCT index), coalesce(max(index) + 1, 0), \
             (SELECT next_index FROM certeus.heads) FROM certeus.event_log",
            &[],
        )
        .await
        .unwrap();
    let counts: [i64; 4] = std::array::from_fn(|column| row.get(column));
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}
