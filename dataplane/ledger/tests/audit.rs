//! The audit against a real PostgreSQL: whatever is tampered with is named, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sealed.rs"]
mod sealed;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use certeus_ledger::audit::{ArchiveFrom, Audit, AuditError, Kind, Options, Report, StateError};
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{Availability, Config, Database, Ledger, QueueConfig};
use certeus_localpg::LocalPg;
use certeus_tlog::leaf_hash;
use certeus_tlog::note::{Algorithm, SignerKey};
use certeus_tlog::tree::Frontier;
use sealed::{ORIGIN, entries, seal, signer};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// Events of each batch. Five blocks of 256 are full; one batch goes over several, one block has several.
const BATCHES: [usize; 9] = [3, 700, 1, 1, 40, 40, 30, 600, 5];
const EVENTS: u64 = 1420;
/// Sizes of signed checkpoints.
const CHECKPOINTS: [u64; 5] = [3, 704, 745, 1415, 1418];

/// A ledger with [`BATCHES`], sealed, to make copies of.
struct Original {
    pg: LocalPg,
    copies: AtomicUsize,
}

impl Original {
    async fn new() -> Self {
        let pg = LocalPg::start(&certeus_localpg::Options::default()).unwrap();
        let original = Self { pg, copies: AtomicUsize::new(0) };
        let admin = original.client("postgres").await;
        admin.batch_execute("CREATE DATABASE original").await.unwrap();
        fill(&original.pg.database_url("original")).await;
        let mut client = original.client("original").await;
        seal(&mut client, &CHECKPOINTS).await;
        original
    }

    async fn client(&self, database: &str) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.pg.database_url(database), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A database of its own with the same content.
    async fn copy(&self) -> String {
        let name = format!("copy_{}", self.copies.fetch_add(1, Ordering::Relaxed));
        let admin = self.client("postgres").await;
        // Connections to the original end a little after they were dropped.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while let Err(error) = admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE original")).await
        {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        name
    }

    fn options(&self, database: &str) -> Options {
        Options {
            database: Database::from_url(&self.pg.database_url(database)).unwrap(),
            ledger: "default".to_owned(),
            origin: ORIGIN.to_owned(),
            keys: vec![signer().verifier().clone()],
            checkpoints: Vec::new(),
            jobs: 2,
            archive: ArchiveFrom::Recorded,
        }
    }

    /// Tampers with a copy and audits it.
    async fn audit_after(&self, tamper: &str) -> Report {
        let name = self.copy().await;
        self.client(&name)
            .await
            .batch_execute(tamper)
            .await
            .unwrap_or_else(|error| panic!("{tamper}: {error:?}"));
        audit(self.options(&name)).await
    }
}

async fn fill(url: &str) {
    let config = Config {
        name: "default".to_owned(),
        database: Database::from_url(url).unwrap(),
        writers: 1,
        read_connections: 1,
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
    };
    let (ledger, tasks) = Ledger::start(config, &prometheus::Registry::new()).unwrap();
    let mut changes = ledger.watch_availability();
    let available = changes.wait_for(|now| *now == Availability::Available);
    tokio::time::timeout(Duration::from_secs(30), available).await.expect("available in time").unwrap();
    let mut from = 0;
    for count in BATCHES {
        ledger.append(request(from, count)).await.unwrap();
        from += count;
    }
    assert_eq!(from as u64, EVENTS);
    ledger.close();
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("drains in time");
}

fn request(from: usize, count: usize) -> Submission {
    let body: String = (from..from + count)
        .map(|n| format!("{{\"type\":\"t{}\",\"timestamp\":{},\"n\":{n}}}\n", n % 3, 1_769_860_800 + n))
        .collect();
    let limits = Limits { request_events_max: 100_000, event_bytes_max: 1 << 20, encrypted_fields: None };
    let parsed = Submission::parse(Bytes::from(body), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

async fn audit(options: Options) -> Report {
    let mut audit = Audit::start(options, None).await.unwrap();
    while audit.step().await.unwrap() {}
    audit.finish().await.unwrap()
}

/// Kinds and indexes of what was found.
fn found(report: &Report) -> Vec<(Kind, Option<(u64, u64)>)> {
    assert_eq!(report.findings.count(), report.findings.kept().len() as u64);
    report.findings.kept().iter().map(|one| (one.kind, one.indexes)).collect()
}

/// SQL for the id of an event.
fn id(index: u64) -> String {
    format!("(SELECT id FROM certeus.event_log WHERE index = {index})")
}

/// SQL that cuts an event's place in the log out of `entries`: the byte before it, and the byte after it.
fn entry(index: u64, first: u64) -> (u64, u64) {
    ((index - first) * 32, (index - first + 1) * 32)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_ledger_is_clean() {
    let original = Original::new().await;
    let report = audit(original.options("original")).await;
    assert_eq!(found(&report), []);
    assert_eq!((report.events, report.confirmed, report.rows.rehashed), (EVENTS, 1418, EVENTS));
    // The newest checkpoint is stored twice.
    assert!(report.checkpoints >= 5, "{}", report.checkpoints);
    let client = original.client("original").await;
    let mut frontier = Frontier::new();
    entries(&client).await.iter().for_each(|entry| frontier.append(leaf_hash(entry), |_, _| {}));
    assert_eq!(report.root, frontier.root());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tampering_is_named_and_nothing_else() {
    use Kind::*;
    let original = Original::new().await;
    let one = |index: u64| Some((index, index));
    let (start, _) = entry(100, 3);
    let (start_b, end_b) = entry(101, 3);
    let swap_entries = format!(
        "UPDATE certeus.batches SET entries = substring(entries FOR {start}) || substring(entries FROM {} FOR 32) \
         || substring(entries FROM {} FOR 32) || substring(entries FROM {}) WHERE first_index = 3",
        start_b + 1,
        start + 1,
        end_b + 1
    );
    let swap_rows = format!(
        "CREATE TEMP TABLE a AS SELECT * FROM certeus.events WHERE id IN ({0}, {1}); \
         UPDATE certeus.events e SET (type, event_time, payload) = \
         (SELECT type, event_time, payload FROM a WHERE a.id <> e.id) WHERE id IN ({0}, {1})",
        id(10),
        id(900)
    );
    // Several to a copy, at places that have nothing to do with each other: copies take time.
    let rows = [
        format!("UPDATE certeus.events SET event_time = event_time + '1 s' WHERE id = {}", id(0)),
        format!("UPDATE certeus.events SET id = (left(id::text, 31) || 'ffffe')::uuid WHERE id = {}", id(4)),
        format!("UPDATE certeus.events SET payload = payload || ' ' WHERE id = {}", id(6)),
        format!("DELETE FROM certeus.events WHERE id = {}", id(8)),
        swap_rows,
        format!("UPDATE certeus.events SET type = 'other' WHERE id = {}", id(703)),
        "INSERT INTO certeus.events SELECT (left(id::text, 31) || 'fffff')::uuid, event_time, type, payload \
         FROM certeus.event_log WHERE index = 706"
            .to_owned(),
        "DELETE FROM certeus.events WHERE id IN \
         (SELECT id FROM certeus.event_log WHERE index BETWEEN 730 AND 750)"
            .to_owned(),
        format!("UPDATE certeus.events SET payload = '' WHERE id = {}", id(1419)),
    ];
    let rows_found = vec![
        (EventAltered, one(0)),
        (EventMoved, one(4)),
        (EventAltered, one(6)),
        (EventMissing, one(8)),
        (EventsSwapped, one(10)),
        (EventAltered, one(703)),
        // They end one batch and begin another.
        (EventMissing, Some((730, 744))),
        (EventMissing, Some((745, 750))),
        (EventEmptied, one(1419)),
        (EventAdded, None),
    ];
    let flip = |first: u64, byte: u64| {
        format!(
            "UPDATE certeus.batches SET entries = set_byte(entries, {byte}, get_byte(entries, {byte}) # 1) \
             WHERE first_index = {first}"
        )
    };
    let entries = [
        flip(3, 0),
        swap_entries,
        "UPDATE certeus.batches SET secret = sha256('x') WHERE first_index = 704".to_owned(),
        // No checkpoint covers it: whether the entry or the event was altered, nobody can say.
        flip(1415, 150),
    ];
    let entries_found = vec![
        (EntriesAltered, one(3)),
        (EventsSwapped, one(100)),
        (EventAltered, one(704)),
        (EventAltered, one(1419)),
    ];
    let log = [
        "UPDATE certeus.log_tiles SET hashes = set_byte(hashes, 64, get_byte(hashes, 64) # 1)",
        "UPDATE certeus.heads SET next_index = next_index + 2",
        "UPDATE certeus.checkpoints SET root = sha256('x') WHERE tree_size = 3",
        "UPDATE certeus.checkpoints SET note = replace(note, E'\\n745\\n', E'\\n744\\n') WHERE tree_size = 745",
    ];
    let log_found = vec![
        (TileAltered, Some((512, 767))),
        (BatchMissing, Some((1420, 1421))),
        (CheckpointInvalid, None),
        (CheckpointInvalid, None),
        (HeadWrong, None),
    ];
    // Its rows are left over.
    let batch_removed = vec![(BatchMissing, Some((745, 784))), (EventAdded, None)];
    /// What is done to the database, in words and in SQL, and what the audit must find, at which indexes.
    type Case<'a> = (&'a str, String, Vec<(Kind, Option<(u64, u64)>)>);
    let cases: Vec<Case<'_>> = vec![
        ("rows", rows.join(";"), rows_found),
        ("entries", entries.join(";"), entries_found),
        ("the log", log.join(";"), log_found),
        ("no tile", "DELETE FROM certeus.log_tiles".to_owned(), vec![(TileMissing, None)]),
        ("no batch", "DELETE FROM certeus.batches WHERE first_index = 745".to_owned(), batch_removed),
        (
            "two batches in each other's place",
            "UPDATE certeus.batches SET first_index = -first_index WHERE first_index IN (705, 745); \
             UPDATE certeus.batches SET first_index = 1450 + first_index WHERE first_index IN (-705, -745)"
                .to_owned(),
            vec![(BatchesSwapped, Some((705, 744)))],
        ),
        (
            "two neighbours of different length in each other's place",
            "UPDATE certeus.batches SET first_index = 5000 WHERE first_index = 785; \
             UPDATE certeus.batches SET first_index = 775 WHERE first_index = 745; \
             UPDATE certeus.batches SET first_index = 745 WHERE first_index = 5000"
                .to_owned(),
            vec![(BatchesSwapped, Some((745, 774)))],
        ),
        (
            "a batch twice",
            "UPDATE certeus.batches SET first_index = 743 WHERE first_index = 745".to_owned(),
            vec![
                (BatchOverlap, Some((743, 744))),
                (EntriesAltered, Some((745, 767))),
                (BatchMissing, Some((783, 784))),
            ],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, tamper, wanted) in cases {
        let report = original.audit_after(&tamper).await;
        let details: Vec<String> = report.findings.kept().iter().map(ToString::to_string).collect();
        let got = found(&report);
        if got != wanted {
            wrong.push(format!("{what}: wanted {wanted:?}, got {details:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_stays_found_when_its_batch_goes_while_the_audit_runs() {
    let original = Original::new().await;
    let name = original.copy().await;
    let client = original.client(&name).await;
    let tamper = format!(
        "UPDATE certeus.events SET type = 'other' WHERE id = {}; DELETE FROM certeus.events WHERE id IN ({}, {})",
        id(5),
        id(8),
        id(9)
    );
    client.batch_execute(&tamper).await.unwrap();
    let mut audit = Audit::start(original.options(&name), None).await.unwrap();
    while audit.step().await.unwrap() {}
    client.batch_execute("DELETE FROM certeus.batches WHERE first_index = 3").await.unwrap();
    let report = audit.finish().await.unwrap();
    let found = found(&report);
    for expected in [(Kind::EventAltered, Some((5, 5))), (Kind::EventMissing, Some((8, 9)))] {
        assert!(found.contains(&expected), "{expected:?} is not among {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_rewritten_as_a_whole_does_not_pass() {
    use Kind::*;
    let original = Original::new().await;
    // Whoever owns the database alters an event, and its entry to match: 90 bytes into the batch of 40 at 705.
    let name = original.copy().await;
    let client = original.client(&name).await;
    let row = client
        .query_one("SELECT batch_id, secret FROM certeus.batches WHERE first_index = 705", &[])
        .await
        .unwrap();
    let (batch, secret): (Uuid, Vec<u8>) = (row.get(0), row.get(1));
    let id = Uuid::from_u128(batch.as_u128() + 2);
    let payload = br#"{"type":"t0","timestamp":1769861507,"n":-1}"#;
    let entry = rewritten_entry(id, &secret, payload);
    let alter = "UPDATE certeus.events SET payload = $2, type = 't0', event_time = to_timestamp(1769861507) WHERE id = $1";
    client.execute(alter, &[&id, &&payload[..]]).await.unwrap();
    let alter =
        "UPDATE certeus.batches SET entries = overlay(entries PLACING $1 FROM 65) WHERE first_index = 705";
    client.execute(alter, &[&&entry[..]]).await.unwrap();
    let report = audit(original.options(&name)).await;
    // Between the checkpoints of 704 and 745, and within the block from 512 to 767.
    assert_eq!(found(&report), [(EntriesAltered, Some((704, 744)))], "{:?}", report.findings);

    // The tiles are made to match as well: now only signatures tell.
    client.batch_execute("DELETE FROM certeus.log_tiles").await.unwrap();
    let rest = "CREATE TABLE old AS SELECT * FROM certeus.checkpoints; DELETE FROM certeus.checkpoints; \
         CREATE TABLE head AS SELECT * FROM certeus.log_heads; DELETE FROM certeus.log_heads";
    client.batch_execute(rest).await.unwrap();
    let mut sealing = original.client(&name).await;
    seal(&mut sealing, &[]).await;
    let back =
        "INSERT INTO certeus.checkpoints SELECT * FROM old; INSERT INTO certeus.log_heads SELECT * FROM head";
    client.batch_execute(back).await.unwrap();
    let report = audit(original.options(&name)).await;
    assert_eq!(found(&report), [(CheckpointMismatch, Some((704, 744)))], "{:?}", report.findings);
    assert_eq!(report.confirmed, 704);

    // Without its checkpoints the database is consistent; the auditor's own one is not in it.
    let note = client.query_one("SELECT note FROM old WHERE tree_size = 1415", &[]).await.unwrap();
    client.batch_execute("DELETE FROM certeus.checkpoints; DELETE FROM certeus.log_heads").await.unwrap();
    assert_eq!(found(&audit(original.options(&name)).await), []);
    let note: String = note.get(0);
    let checkpoints = vec![("mine".to_owned(), note.into_bytes())];
    let report = audit(Options { checkpoints, ..original.options(&name) }).await;
    assert_eq!(found(&report), [(CheckpointMismatch, Some((0, 1414)))]);
}

fn rewritten_entry(id: Uuid, secret: &[u8], payload: &[u8]) -> [u8; 32] {
    use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead};
    let head = EnvelopeHead {
        ledger: "default",
        id,
        kind: "t0",
        time: certeus_ledger::timestamp::Timestamp::from_micros(1_769_861_507_000_000).unwrap(),
        producer: None,
        content_type: ContentType::Json,
        key_id: &[],
    };
    let salt = BatchSecret(secret.try_into().unwrap()).salt(2);
    Envelope { head, payload }.entry(&salt, &mut Vec::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_shows_what_was_cut_off_and_who_did_not_sign() {
    use Kind::*;
    let original = Original::new().await;
    let client = original.client("original").await;
    let newest: String =
        client.query_one("SELECT checkpoint FROM certeus.log_heads", &[]).await.unwrap().get(0);
    drop(client);
    // Restored from a copy that is older than the checkpoint.
    let name = original.copy().await;
    let cut = "DELETE FROM certeus.events WHERE id IN (SELECT id FROM certeus.event_log WHERE index >= 815); \
         DELETE FROM certeus.batches WHERE first_index >= 815; UPDATE certeus.heads SET next_index = 815; \
         DELETE FROM certeus.checkpoints WHERE tree_size > 815; DELETE FROM certeus.log_heads; \
         UPDATE certeus.log_tiles SET hashes = substring(hashes FOR 96)";
    original.client(&name).await.batch_execute(cut).await.unwrap();
    let checkpoints = vec![("mine".to_owned(), newest.into_bytes())];
    let report = audit(Options { checkpoints: checkpoints.clone(), ..original.options(&name) }).await;
    assert_eq!(found(&report), [(DatabaseBehind, Some((815, 1417)))]);
    assert_eq!(report.confirmed, 745);

    // Keys that signed nothing here.
    let stranger = SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [2; 32]).unwrap();
    let keys = vec![stranger.verifier().clone()];
    let report = audit(Options { keys: keys.clone(), ..original.options("original") }).await;
    assert_eq!(found(&report), [(CheckpointInvalid, None)]);
    assert_eq!((report.confirmed, report.checkpoints), (0, 0));
    let refused = Audit::start(Options { keys, checkpoints, ..original.options("original") }, None).await;
    assert!(matches!(refused, Err(AuditError::Checkpoint { .. })));
    let ledger = "nothing-here".to_owned();
    let refused = Audit::start(Options { ledger, ..original.options("original") }, None).await;
    assert!(matches!(refused, Err(AuditError::NoLedger(_))));
    let refused = Audit::start(original.options("postgres"), None).await;
    assert!(matches!(refused, Err(AuditError::NoSchema)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_is_interrupted_anywhere_comes_to_the_same_end() {
    let original = Original::new().await;
    let name = original.copy().await;
    let tamper = format!(
        "UPDATE certeus.events SET payload = payload || ' ' WHERE id = {}; DELETE FROM certeus.events WHERE id = {}; \
         DELETE FROM certeus.batches WHERE first_index = 745; \
         UPDATE certeus.batches SET entries = set_byte(entries, 0, get_byte(entries, 0) # 1) WHERE first_index = 3",
        id(5),
        id(1400)
    );
    original.client(&name).await.batch_execute(&tamper).await.unwrap();
    let whole = audit(original.options(&name)).await;
    assert_eq!(whole.findings.count(), 5, "{:#?}", whole.findings);

    // Saved before each step, dropped with whatever is under way, and gone on with.
    let mut saved: Option<Vec<u8>> = None;
    let mut rounds = 0;
    let resumed = loop {
        rounds += 1;
        assert!(rounds < 100);
        let mut audit = Audit::start(original.options(&name), saved.as_deref()).await.unwrap();
        if !audit.step().await.unwrap() {
            break audit.finish().await.unwrap();
        }
        let bytes = audit.save();
        let again = Audit::start(original.options(&name), Some(&bytes)).await.unwrap().save();
        assert_eq!(String::from_utf8(again).unwrap(), String::from_utf8(bytes.clone()).unwrap());
        saved = Some(bytes);
    };
    assert!(rounds > 2, "{rounds}");
    assert_eq!(resumed.findings, whole.findings);
    assert_eq!((resumed.rows, resumed.root, resumed.confirmed), (whole.rows, whole.root, whole.confirmed));

    let saved = saved.unwrap();
    let other = SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [2; 32]).unwrap();
    let options = Options { keys: vec![other.verifier().clone()], ..original.options(&name) };
    let refused = Audit::start(options, Some(&saved)).await;
    assert!(matches!(refused, Err(AuditError::State(StateError::Other("keys")))));
    for damaged in [&saved[..saved.len() / 2], b"{}", br#"{"version":99}"#] {
        assert!(matches!(
            Audit::start(original.options(&name), Some(damaged)).await,
            Err(AuditError::State(StateError::Format(_) | StateError::Version(_)))
        ));
    }
    // What an earlier version saved says nothing about archived files.
    let old = Audit::start(original.options(&name), Some(br#"{"version":1}"#)).await.err().unwrap();
    let AuditError::State(error) = old else { panic!("{old:?}") };
    assert!(error.to_string().contains("another version"), "{error}");
}
