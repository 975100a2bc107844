//! Retention against a real PostgreSQL: old days move to the archive, and nothing is lost, also when it is interrupted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/aged.rs"]
mod aged;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aged::{DAY_MS, KEEP, age, archived_to, now_ms};
use certeus_ledger::id::BatchId;
use certeus_ledger::{Class, Config, Content, Filter, Ledger, LogConfig, Reason, StoredEvent};
use certeus_localpg::{LocalPg, Options};
use certeus_tlog::note::{Algorithm, SignerKey};
use support::{close, config, id_after, request, sql, start};
use tokio_postgres::Client;
use uuid::Uuid;

/// A ledger with three batches of 50 events: of 30 and 20 days ago and of now; gives their first ids.
async fn three_days(ledger: &Ledger, client: &Client) -> [Uuid; 3] {
    let mut first = [Uuid::nil(); 3];
    for (n, days) in [30, 20, 0].into_iter().enumerate() {
        let id = ledger.append(request(n * 50, 50)).await.unwrap().first_id;
        first[n] = if days == 0 { id } else { age(client, id, days).await };
    }
    first
}

async fn read(ledger: &Ledger, first: Uuid) -> Vec<StoredEvent> {
    let mut events = Vec::new();
    for position in 0..50 {
        events.push(ledger.event(id_after(first, position)).await.unwrap().unwrap());
    }
    events
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_days_move_to_the_archive_and_are_read_from_there() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    let first = three_days(&ledger, &client).await;
    let erased = id_after(first[1], 7);
    ledger.erase(erased, Reason::new("x".to_owned()).unwrap()).await.unwrap();
    let mut before = Vec::new();
    for id in first {
        before.push(read(&ledger, id).await);
    }

    let retained = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert!(retained.kept.is_empty(), "{retained:?}");
    assert_eq!((retained.dropped.len(), retained.events), (2, 100));
    // 50 of now, and the audit event.
    assert_eq!(count(&client, "SELECT count(*) FROM certeus.events").await, 51);
    assert_eq!(files(dir.path()).len(), 2);
    for (id, before) in first.into_iter().zip(before) {
        let old = id != first[2];
        let expected: Vec<_> =
            before.into_iter().map(|event| StoredEvent { archived: old, ..event }).collect();
        assert!(read(&ledger, id).await == expected);
    }
    assert!(matches!(ledger.event(erased).await.unwrap().unwrap().content, Content::Erased(_)));
    assert_eq!(ledger.event(id_after(first[0], 50)).await.unwrap(), None);

    // Lists begin where the database does, and say so.
    let page = ledger.events(&Filter { limit: 10, ..Filter::default() }).await.unwrap();
    assert_eq!((page.archived_before, page.events[0].index), (Some(100), 100));
    let page = ledger.events(&Filter { limit: 10, first_index: 100, ..Filter::default() }).await.unwrap();
    assert_eq!((page.archived_before, page.events.len()), (None, 10));

    // The second run does nothing.
    let again = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert!(again.dropped.is_empty() && again.kept.is_empty() && again.events == 0);
    close(&ledger, tasks).await;

    // A pod without the archive says where it is.
    let (ledger, tasks) = start(config(&pg.url())).await;
    let error = ledger.event(first[0]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("archived at file://{}", dir.path().display())), "{error}");
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_archived_events_are_those_of_before() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let first = three_days(&ledger, &sql(&pg.url()).await).await;
    close(&ledger, tasks).await;
    let key = SignerKey::from_seed("log.example/default", Algorithm::Ed25519, [7; 32]).unwrap();
    let log = LogConfig {
        keys: Arc::new(key.to_secret_text().parse().unwrap()),
        anchor: None,
        anchor_shared: true,
        checkpoint_interval: Duration::from_millis(100),
    };
    let (ledger, tasks) = start(Config { log: Some(log), ..archived_to(&pg.url(), dir.path()) }).await;
    let wait = Some(Duration::from_secs(30));
    let started = std::time::Instant::now();
    let before = loop {
        match ledger.event_proof(first[0], wait).await {
            Ok(proof) => break proof.unwrap(),
            // No checkpoint yet.
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ledger.retain(KEEP, now_ms()).await.unwrap().dropped.len(), 2);
    let after = ledger.event_proof(first[0], wait).await.unwrap().unwrap();
    assert!(after.event.archived && !before.event.archived);
    assert_eq!(after.proof, before.proof);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_with_an_altered_event_is_kept_and_the_others_go() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    let first = three_days(&ledger, &client).await;
    let altered = id_after(first[0], 49);
    client.execute("UPDATE certeus.events SET payload = '{}' WHERE id = $1", &[&altered]).await.unwrap();
    let retained = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert_eq!((retained.dropped.len(), retained.kept.len()), (1, 1));
    let error = &retained.kept[0].1;
    assert_eq!(error.class(), Class::Corrupt);
    assert!(error.to_string().contains(&altered.to_string()), "{error}");
    // Of the first day nothing was archived, and lists still have it.
    assert_eq!(files(dir.path()).len(), 1);
    let page = ledger.events(&Filter { limit: 10, ..Filter::default() }).await.unwrap();
    assert_eq!((page.archived_before, page.events.len()), (None, 10));

    // A missing event and one too many are noticed as well.
    client.execute("DELETE FROM certeus.events WHERE id = $1", &[&altered]).await.unwrap();
    let retained = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert_eq!(retained.kept[0].1.to_string(), format!("event {altered} is missing"));
    let whole = "UPDATE certeus.batches SET event_count = 49, entries = substring(entries FOR 49 * 32) \
                 WHERE first_index = 0";
    client.execute(whole, &[]).await.unwrap();
    let stray = "INSERT INTO certeus.events SELECT $1, event_time, type, payload FROM certeus.events LIMIT 1";
    client.execute(stray, &[&id_after(first[0], 1 << 20)]).await.unwrap();
    let retained = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert_eq!(retained.kept[0].1.to_string(), "the partition has 50 events, and 49 were archived");
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_interrupted_is_finished_by_the_next() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    let first = three_days(&ledger, &client).await;
    let folder = dir.path().join("default").join(BatchId::of(first[0]).day().suffix());
    std::fs::create_dir_all(&folder).unwrap();
    let foreign = folder.join("foreign.parquet");
    std::fs::write(&foreign, "not ours").unwrap();
    // Files are written, and cannot be recorded.
    client
        .batch_execute("ALTER TABLE certeus.archives ADD CONSTRAINT full_disk CHECK (bytes < 0)")
        .await
        .unwrap();
    assert_eq!(ledger.retain(KEEP, now_ms()).await.unwrap_err().class(), Class::Unavailable);
    assert_eq!(files(dir.path()).len(), 2);
    client.batch_execute("ALTER TABLE certeus.archives DROP CONSTRAINT full_disk").await.unwrap();
    // They are recorded, and their partition cannot be dropped.
    client
        .batch_execute("ALTER TABLE certeus.archived_days ADD CONSTRAINT stop CHECK (ledger = '')")
        .await
        .unwrap();
    assert!(ledger.retain(KEEP, now_ms()).await.is_err());
    assert_eq!(count(&client, "SELECT count(*) FROM certeus.archives").await, 1);
    // What the first run left is gone, and nothing else: the place may be another database's as well.
    let leftovers = files(dir.path());
    assert_eq!(leftovers.len(), 2, "{leftovers:?}");
    assert!(leftovers.contains(&foreign));
    let recorded = leftovers.into_iter().find(|path| *path != foreign).unwrap();
    client.batch_execute("ALTER TABLE certeus.archived_days DROP CONSTRAINT stop").await.unwrap();
    // An event of the recorded file is erased meanwhile.
    let erased = id_after(first[0], 3);
    ledger.erase(erased, Reason::new("x".to_owned()).unwrap()).await.unwrap();

    // While somebody holds the lock, nothing happens.
    client.batch_execute("SELECT pg_advisory_lock(x'72657461696e'::bigint)").await.unwrap();
    assert!(ledger.retain(KEEP, now_ms()).await.unwrap().dropped.is_empty());
    client.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();

    let retained = ledger.retain(KEEP, now_ms()).await.unwrap();
    assert_eq!((retained.dropped.len(), retained.events), (2, 50), "{retained:?}");
    let left = files(dir.path());
    assert!(left.len() == 3 && left.contains(&foreign) && !left.contains(&recorded), "{left:?}");
    assert_eq!(count(&client, "SELECT count(*) FROM certeus.archive_leftovers").await, 0);
    assert!(matches!(ledger.event(erased).await.unwrap().unwrap().content, Content::Erased(_)));
    assert_eq!(read(&ledger, first[0]).await.len(), 50);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_event_is_erased_from_its_file() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    let first = three_days(&ledger, &client).await;
    ledger.retain(KEEP, now_ms()).await.unwrap();
    let before = files(dir.path());
    let erased = id_after(first[0], 11);
    let erasure = ledger.erase(erased, Reason::new("late".to_owned()).unwrap()).await.unwrap();
    assert_eq!((erasure.index, erasure.audit_index), (11, 150));
    assert_eq!(ledger.erase(erased, Reason::new("again".to_owned()).unwrap()).await.unwrap(), erasure);
    assert_eq!(ledger.event(erased).await.unwrap().unwrap().content, Content::Erased(erasure));
    let events = read(&ledger, first[0]).await;
    assert_eq!(events.iter().filter(|event| event.payload().is_some()).count(), 49);
    // The old file is gone, and the new one is as recorded.
    let after = files(dir.path());
    assert_eq!(after.len(), 2);
    let new: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
    assert_eq!(new.len(), 1);
    let bytes: i64 = client
        .query_one("SELECT bytes FROM certeus.archives WHERE first_index = 0", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(bytes.unsigned_abs(), std::fs::metadata(new[0]).unwrap().len());
    assert_eq!(count(&client, "SELECT count(*) FROM certeus.archive_leftovers").await, 0);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_file_is_noticed_on_reading() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    let first = three_days(&ledger, &client).await;
    ledger.retain(KEEP, now_ms()).await.unwrap();
    let file =
        files(dir.path()).into_iter().find(|path| path.to_string_lossy().contains("/00000000000000000000-"));
    let file = file.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let length = bytes.len();
    bytes[4..length / 2].fill(0);
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(ledger.event(first[0]).await.unwrap_err().class(), Class::Corrupt);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(ledger.event(first[0]).await.unwrap_err().class(), Class::Corrupt);
    assert!(ledger.event(first[1]).await.unwrap().is_some());
    let error = ledger.erase(first[0], Reason::new("x".to_owned()).unwrap()).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_days_that_ended_long_enough_ago_and_are_sealed_are_due() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ledger, tasks) = start(archived_to(&pg.url(), dir.path())).await;
    let client = sql(&pg.url()).await;
    three_days(&ledger, &client).await;
    // The day of 20 days ago ended less than 20 days ago.
    let keep = |days: u64| Duration::from_millis(days * DAY_MS);
    assert_eq!(ledger.retain(keep(30), now_ms()).await.unwrap().dropped.len(), 0);
    let insert = "INSERT INTO certeus.log_heads (ledger, tree_size, root, checkpoint, signed_at) \
                  VALUES ('default', 49, decode(repeat('00', 32), 'hex'), 'x', now()) ON CONFLICT (ledger) DO UPDATE SET \
                  tree_size = 49, root = excluded.root, checkpoint = 'x', signed_at = now()";
    client.execute(insert, &[]).await.unwrap();
    let retained = ledger.retain(keep(19), now_ms()).await.unwrap();
    assert_eq!((retained.dropped.len(), retained.kept.len()), (0, 2), "{retained:?}");
    client.execute("UPDATE certeus.log_heads SET tree_size = 50", &[]).await.unwrap();
    let retained = ledger.retain(keep(19), now_ms()).await.unwrap();
    assert_eq!((retained.dropped.len(), retained.kept.len()), (1, 1), "{retained:?}");
    assert_eq!(retained.kept[0].1.class(), Class::Unavailable);
    close(&ledger, tasks).await;
}
