//! Days of the past for tests of what becomes of them.

use std::path::Path;
use std::time::Duration;

use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead};
use certeus_ledger::id::{BatchId, Day};
use certeus_ledger::timestamp::Timestamp;
use certeus_ledger::{ArchiveConfig, Config};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::config;

pub(crate) const DAY_MS: u64 = 86_400_000;
pub(crate) const KEEP: Duration = Duration::from_secs(10 * 24 * 3600);

pub(crate) fn now_ms() -> u64 {
    u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

pub(crate) fn archived_to(url: &str, dir: &Path) -> Config {
    let location = format!("file://{}", dir.display()).parse().unwrap();
    // Applied by the tests alone.
    Config { archive: Some(ArchiveConfig { location, keep: None }), ..config(url) }
}

/// Makes a batch look as if it had been committed days ago, log entries included.
pub(crate) async fn age(client: &Client, first_id: Uuid, days: u64) -> Uuid {
    let then = now_ms() - days * DAY_MS;
    let day = Day::of_unix_ms(then);
    let table = format!("certeus.events_{}", day.suffix());
    let partition = format!(
        "CREATE TABLE IF NOT EXISTS {table} PARTITION OF certeus.events FOR VALUES FROM ('{}') TO ('{}')",
        day.first_id(),
        day.next().first_id()
    );
    client.batch_execute(&partition).await.unwrap();
    let aged = BatchId::new(then, first_id.as_u128());
    let sql = "SELECT id, event_time::text, type, payload FROM certeus.events e \
               WHERE certeus.batch_of(id) = $1 ORDER BY id";
    let secret: [u8; 32] = client
        .query_one("SELECT secret FROM certeus.batches WHERE batch_id = $1", &[&first_id])
        .await
        .unwrap()
        .get::<_, Vec<u8>>(0)
        .try_into()
        .unwrap();
    let mut entries = Vec::new();
    for (position, row) in client.query(sql, &[&first_id]).await.unwrap().iter().enumerate() {
        let (old, new): (Uuid, Uuid) = (row.get(0), aged.event(position));
        let (time, kind, payload): (String, String, Vec<u8>) = (row.get(1), row.get(2), row.get(3));
        let head = EnvelopeHead {
            ledger: "default",
            id: new,
            kind: &kind,
            time: Timestamp::from_rfc3339(&format!("{}Z", &time[..19])).unwrap(),
            producer: None,
            content_type: ContentType::Json,
            key_id: &[],
        };
        let envelope = Envelope { head, payload: &payload };
        let salt = BatchSecret(secret).salt(u32::try_from(position).unwrap());
        entries.extend(envelope.entry(&salt, &mut Vec::new()));
        client.execute("UPDATE certeus.events SET id = $2 WHERE id = $1", &[&old, &new]).await.unwrap();
    }
    let sql = "UPDATE certeus.batches SET batch_id = $2, entries = $3 WHERE batch_id = $1";
    assert_eq!(client.execute(sql, &[&first_id, &aged.uuid(), &entries]).await.unwrap(), 1);
    aged.uuid()
}
