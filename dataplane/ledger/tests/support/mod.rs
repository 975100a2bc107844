//! A ledger beside a real PostgreSQL, for tests that change what lies in the database.

use std::time::Duration;

use bytes::Bytes;
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{Availability, Config, Database, Ledger, QueueConfig, Tasks};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// A request of `count` events whose payloads name them `from..from + count`.
pub(crate) fn request(from: usize, count: usize) -> Submission {
    let body: String = (from..from + count)
        .map(|n| format!("{{\"type\":\"t{}\",\"timestamp\":{},\"n\":{n}}}\n", n % 3, 1_769_860_800 + n))
        .collect();
    submission(body)
}

/// A request of these lines.
pub(crate) fn submission(body: String) -> Submission {
    let limits = Limits { request_events_max: 100_000, event_bytes_max: 1 << 20, encrypted_fields: None };
    let parsed = Submission::parse(Bytes::from(body), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

pub(crate) fn config(url: &str) -> Config {
    Config {
        name: "default".to_owned(),
        database: Database::from_url(url).unwrap(),
        writers: 2,
        read_connections: 4,
        queue: QueueConfig {
            queue_events_max: 100_000,
            queue_bytes_max: 64 << 20,
            batch_events: 10_000,
            batch_bytes: 8 << 20,
            batch_timeout: Duration::from_millis(100),
        },
        encryption: None,
        log: None,
        archive: None,
        spool: None,
    }
}

/// A ledger that takes events.
pub(crate) async fn start(config: Config) -> (Ledger, Tasks) {
    let (ledger, tasks) = Ledger::start(config, &prometheus::Registry::new()).unwrap();
    let mut changes = ledger.watch_availability();
    let available = changes.wait_for(|now| *now == Availability::Available);
    tokio::time::timeout(Duration::from_secs(30), available).await.expect("available in time").unwrap();
    (ledger, tasks)
}

pub(crate) async fn sql(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn close(ledger: &Ledger, tasks: Tasks) {
    ledger.close();
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("drains in time");
}

/// The id of the event `offset` places after another one of its request.
pub(crate) fn id_after(first: Uuid, offset: u128) -> Uuid {
    Uuid::from_u128(first.as_u128() + offset)
}
