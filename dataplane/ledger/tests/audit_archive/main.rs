//! The audit of archived events against a real PostgreSQL and real files: whatever is tampered with is named, in the files, in
//! what is on record about them, and in the database.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/aged.rs"]
mod aged;
mod fixture;
#[path = "../support/sealed.rs"]
mod sealed;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use aged::{archived_to, now_ms};
use certeus_archive::Row;
use certeus_ledger::audit::{ArchiveFrom, Audit, AuditError, Kind, Options, Report, StateError};
use certeus_ledger::id::BatchId;
use certeus_ledger::{Class, Reason};
use fixture::{BOTH, ENCRYPTED, ERASED, ERASURES, EVENTS, Original, PRODUCED, TODAY, audit};
use support::{close, id_after, start};
use uuid::Uuid;

type Found = Vec<(Kind, Option<(u64, u64)>)>;

fn found(report: &Report) -> Found {
    assert_eq!(report.findings.count(), report.findings.kept().len() as u64);
    report.findings.kept().iter().map(|one| (one.kind, one.indexes)).collect()
}

fn details(report: &Report) -> String {
    report.findings.kept().iter().map(|finding| format!("{finding}\n")).collect()
}

/// Where an audit is among the files.
fn place(audit: &Audit) -> String {
    let saved: serde_json::Value = serde_json::from_slice(&audit.save()).unwrap();
    saved["next_file"].to_string()
}

/// The payload of a row, with something more.
fn longer(row: &mut Row) {
    let content = row.content.as_mut().unwrap();
    content.payload = [&content.payload[..], b" "].concat().into();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_archive_is_clean_and_counted() {
    let original = Original::new().await;
    let whole = original.copy("whole").await;
    // Where they were written to, and elsewhere.
    for archive in [ArchiveFrom::Recorded, ArchiveFrom::At(whole.location())] {
        let report = audit(Options { archive, ..whole.options() }).await;
        assert_eq!(found(&report), [], "{}", details(&report));
        let rows = report.rows;
        assert_eq!((report.events, report.confirmed), (EVENTS, EVENTS - 1));
        assert_eq!((rows.archived, rows.rehashed, rows.erased), (EVENTS, 0, 0));
        assert_eq!(
            (rows.archived_rehashed, rows.archived_erased, rows.archived_unseen()),
            (EVENTS - 2, 2, 0)
        );
        assert!(rows.archived_payload_bytes > 40 * EVENTS && rows.payload_bytes == 0);
    }
    let report = audit(Options { archive: ArchiveFrom::Skip, ..whole.options() }).await;
    assert_eq!(found(&report), []);
    assert_eq!((report.rows.archived_rehashed, report.rows.archived_unseen()), (0, EVENTS));

    let mixed = original.copy("mixed").await;
    let report = mixed.audit().await;
    assert_eq!(found(&report), [], "{}", details(&report));
    let rows = report.rows;
    assert_eq!((rows.rehashed, rows.erased, rows.archived), (EVENTS - 100, 0, 100));
    assert_eq!((rows.archived_rehashed, rows.archived_erased), (98, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_row_is_named_although_its_file_is_as_recorded() {
    use Kind::*;
    let original = Original::new().await;
    let one = |index: u64| Some((index, index));
    let copy = original.copy("whole").await;
    // Several to a file, at places that have nothing to do with each other.
    copy.rewrite(0, |rows| {
        longer(&mut rows[3]);
        rows[5].kind = "other".to_owned();
        rows[7].time_micros += 1;
        rows[9].index += 1000;
        // The one that was erased is there again.
        rows[11].content = rows[12].content.clone();
        rows[14].entry[0] ^= 1;
        rows[16].content.as_mut().unwrap().salt[0] ^= 1;
        rows[18].content.as_mut().unwrap().head.push(0);
        let mut unknown = rows[49].clone();
        unknown.id = Uuid::from_u128(unknown.id.as_u128() + 7);
        rows.push(unknown);
        rows.remove(20);
    })
    .await;
    copy.rewrite(2, |rows| {
        // The entry is made to match: the batch still has the one that was signed.
        longer(&mut rows[200]);
        let content = rows[200].content.clone().unwrap();
        rows[200].entry = <sha2::Sha256 as sha2::Digest>::digest(
            [&b"certeus/entry/v1\0"[..], &content.salt, &content.head, &content.payload].concat(),
        )
        .into();
        let (a, b) = (rows[300].clone(), rows[8500].clone());
        for (to, from) in [(300, b), (8500, a)] {
            (rows[to].kind, rows[to].time_micros, rows[to].content) =
                (from.kind, from.time_micros, from.content);
        }
        rows[400].content = None;
        rows.drain(8190..8195);
    })
    .await;
    let report = copy.audit().await;
    let wanted = vec![
        (EventAltered, one(3)),
        (EventAltered, one(5)),
        (EventAltered, one(7)),
        (EventAltered, one(9)),
        (EventAltered, one(11)),
        (EventAltered, one(14)),
        (EventAltered, one(16)),
        (EventAltered, one(18)),
        (EventMissing, one(20)),
        (EventAltered, one(TODAY + 200)),
        (EventsSwapped, one(TODAY + 300)),
        (EventEmptied, one(TODAY + 400)),
        (EventMissing, Some((TODAY + 8190, TODAY + 8194))),
        (EventAdded, None),
    ];
    let details = details(&report);
    assert_eq!(found(&report), wanted, "{details}");
    for detail in [
        "its column `type` was altered",
        "its column `event_time` was altered",
        "another index",
        "still has its content",
        "another log entry",
        "the salt or the head",
        "not in the file that should have it",
        &format!("event {} (", TODAY + 8500),
    ] {
        assert!(details.contains(detail), "{detail}: {details}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_says_of_archived_events_is_not_believed() {
    use Kind::*;
    let original = Original::new().await;
    let copy = original.copy("whole").await;
    // An erasure is made up: salt and content are gone, and some event is said to tell why.
    let batch = "SELECT batch_id FROM certeus.batches WHERE first_index = 0";
    let batch: Uuid = copy.client.query_one(batch, &[]).await.unwrap().get(0);
    copy.sql(&format!(
        "UPDATE certeus.batches SET salts = overlay(salts PLACING decode(repeat('00', 32), 'hex') FROM 30 * 32 + 1) \
         WHERE first_index = 0; \
         INSERT INTO certeus.erasures (event_id, ledger, index, reason, audit_event_id, audit_index) \
         VALUES ('{}', 'default', 30, 'ticket 1', '{}', 31); \
         UPDATE certeus.batches SET producers = set_byte(producers, 19, 1) WHERE first_index = {PRODUCED}; \
         UPDATE certeus.batches SET key_id = NULL WHERE first_index = {ENCRYPTED}; \
         UPDATE certeus.batches SET producers = NULL WHERE first_index = {BOTH}; \
         UPDATE certeus.batches SET entries = set_byte(entries, 128, get_byte(entries, 128) # 1) WHERE first_index = 50",
        id_after(batch, 30),
        id_after(batch, 31),
    ))
    .await;
    copy.rewrite(0, |rows| rows[30].content = None).await;
    let report = copy.audit().await;
    // The archived event shows which of the entries of the block it was.
    let mut wanted = vec![(EventEmptied, Some((30, 30))), (EntriesAltered, Some((54, 54)))];
    wanted.extend((PRODUCED..ERASURES).map(|index| (EventAltered, Some((index, index)))));
    assert_eq!(found(&report), wanted, "{}", details(&report));
    // Who leaves the archive out sees no more than the block of the entry, from the checkpoint before it on.
    let report = audit(Options { archive: ArchiveFrom::Skip, ..copy.options() }).await;
    assert_eq!(found(&report), [(EntriesAltered, Some((50, 255)))]);

    // An erasure that is on record no more, in the table and in the ledger.
    for (n, (forget, index)) in [
        (format!("DELETE FROM certeus.erasures WHERE index = {}", ERASED[0]), ERASED[0]),
        (format!("UPDATE certeus.erasures SET reason = 'other' WHERE index = {}", ERASED[1]), ERASED[1]),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = original.copy("whole").await;
        copy.sql(&forget).await;
        let report = copy.audit().await;
        assert_eq!(found(&report), [(EventEmptied, Some((index, index)))], "{n}: {}", details(&report));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_as_recorded_is_named_and_the_others_are_audited() {
    use Kind::*;
    let original = Original::new().await;
    let (first, second) = (Some((0, 49)), Some((50, 99)));
    let third = Some((TODAY, EVENTS - 1));
    let nth =
        |n: i64| format!("(SELECT first_id FROM certeus.archives ORDER BY first_id OFFSET {n} LIMIT 1)");
    let set = |n: i64, what: &str| format!("UPDATE certeus.archives SET {what} WHERE first_id = {}", nth(n));
    let swap = |columns: &str| {
        format!(
            "CREATE TEMP TABLE old AS SELECT * FROM certeus.archives WHERE first_id IN ({0}, {1}); \
             UPDATE certeus.archives a SET ({columns}) = (SELECT {columns} FROM old WHERE old.first_id <> a.first_id) \
             WHERE first_id IN (SELECT first_id FROM old)",
            nth(0),
            nth(1)
        )
    };
    let twice = format!(
        "INSERT INTO certeus.archives SELECT ledger, day, (left(first_id::text, 31) || '00001')::uuid, last_id, first_index, \
         last_index, location, name, sha256, bytes, events, erased FROM certeus.archives WHERE first_id = {}",
        nth(1)
    );
    let misplaced =
        [(EventMissing, first), (EventMissing, second), (EventMisplaced, first), (EventMisplaced, second)];
    let mut exchanged: Found =
        misplaced.into_iter().chain([(ArchiveAltered, first), (ArchiveAltered, second)]).collect();
    exchanged.sort_by_key(|(kind, indexes)| (*indexes, *kind));
    let records: Vec<(String, Found)> = vec![
        (
            set(0, "sha256 = sha256('x')") + ";" + &set(2, "bytes = bytes + 1"),
            vec![(ArchiveAltered, first), (ArchiveAltered, third)],
        ),
        (
            set(0, "events = 51") + ";" + &set(1, "erased = 0"),
            vec![(ArchiveAltered, first), (ArchiveAltered, second)],
        ),
        // It ends too early, says its record: what is behind belongs to no file.
        (
            set(1, "last_id = (left(last_id::text, 31) || '0002f')::uuid"),
            vec![(ArchiveAltered, second), (EventMissing, Some((98, 99))), (EventMisplaced, Some((98, 99)))],
        ),
        ("DELETE FROM certeus.archives WHERE first_index = 50".to_owned(), vec![(EventMissing, second)]),
        (swap("name"), vec![(ArchiveAltered, first), (ArchiveAltered, second)]),
        (swap("name, sha256, bytes"), exchanged),
        (twice, vec![(ArchiveAltered, second), (EventMisplaced, second)]),
    ];
    let mut wrong = Vec::new();
    let mut check = |what: &str, report: &Report, mut wanted: Found| {
        let mut got = found(report);
        got.sort_unstable();
        wanted.sort_unstable();
        if got != wanted {
            wrong.push(format!("{what}: wanted {wanted:?}, got {}", details(report)));
        }
    };
    for (tamper, wanted) in records {
        let copy = original.copy("whole").await;
        copy.sql(&tamper).await;
        let report = copy.audit().await;
        check(&tamper, &report, wanted);
        let unseen = report.rows.archived_unseen();
        assert!(unseen <= 100, "the others were not audited: {unseen}");
    }

    let copy = original.copy("whole").await;
    std::fs::remove_file(copy.path(1).await).unwrap();
    let mut bytes = std::fs::read(copy.path(2).await).unwrap();
    // In the second row group: the events of the first are read.
    let length = bytes.len();
    bytes[length - 55_000..length - 8_000].fill(0);
    std::fs::write(copy.path(2).await, bytes).unwrap();
    let report = copy.audit().await;
    let rest = |from, to| (EventMissing, Some((from, to)));
    let wanted = vec![
        (ArchiveMissing, second),
        (ArchiveAltered, third),
        (ArchiveAltered, third),
        rest(TODAY + 8192, PRODUCED - 1),
        rest(PRODUCED, ENCRYPTED - 1),
        rest(ENCRYPTED, BOTH - 1),
        rest(BOTH, ERASURES - 1),
        rest(ERASURES, ERASURES),
        rest(ERASURES + 1, ERASURES + 1),
        // Its audit event cannot be read.
        (EventEmptied, Some((11, 11))),
    ];
    check("missing and damaged files", &report, wanted);
    assert_eq!(report.rows.archived_rehashed, 49 + 8192);

    let copy = original.copy("whole").await;
    std::fs::write(copy.path(0).await, b"no Parquet").unwrap();
    let report = copy.audit().await;
    check("no Parquet", &report, vec![(ArchiveAltered, first)]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_is_interrupted_among_the_files_comes_to_the_same_end() {
    let original = Original::new().await;
    let copy = original.copy("whole").await;
    copy.rewrite(0, |rows| longer(&mut rows[3])).await;
    copy.rewrite(2, |rows| drop(rows.remove(8999))).await;
    std::fs::remove_file(copy.path(1).await).unwrap();
    let whole = copy.audit().await;
    assert_eq!(whole.findings.count(), 3, "{}", details(&whole));

    // One at a time: what is behind a piece that is not done is done again.
    let options = || Options { jobs: 1, ..copy.options() };
    let (mut saved, mut rounds, mut places) = (None::<Vec<u8>>, 0, Vec::new());
    let resumed = loop {
        rounds += 1;
        assert!(rounds < 100);
        let mut audit = Audit::start(options(), saved.as_deref()).await.unwrap();
        if !audit.step().await.unwrap() {
            break audit.finish().await.unwrap();
        }
        let bytes = audit.save();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let again = Audit::start(options(), Some(&bytes)).await.unwrap().save();
        assert_eq!(String::from_utf8(again).unwrap(), text);
        places.push(place(&audit));
        places.dedup();
        saved = Some(bytes);
    };
    // Before, behind each file, and at the end of each day.
    assert!(places.len() >= 6, "{places:?}");
    assert_eq!(resumed.findings, whole.findings);
    assert_eq!(resumed.rows, whole.rows);

    let saved = saved.unwrap();
    let skipping = Options { archive: ArchiveFrom::Skip, ..copy.options() };
    let refused = Audit::start(skipping, Some(&saved)).await;
    assert!(matches!(refused, Err(AuditError::State(StateError::Other(what))) if what.contains("archived")));
    let old = String::from_utf8(saved).unwrap().replace("\"version\":2", "\"version\":1");
    let refused = Audit::start(copy.options(), Some(old.as_bytes())).await;
    assert!(matches!(refused, Err(AuditError::State(StateError::Version(1)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_be_reached_is_an_error_and_no_finding() {
    let original = Original::new().await;
    let copy = original.copy("whole").await;
    let refused = async |options: Options| {
        let error = Audit::start(options, None).await.err().expect("an error");
        assert!(error.concerns_archive() && error.class() == Class::Unavailable, "{error:?}");
        error.to_string()
    };
    // An empty folder, as under a mount point, and none.
    let empty = tempfile::tempdir().unwrap();
    let at = |path: &Path| ArchiveFrom::At(format!("file://{}", path.display()).parse().unwrap());
    let text = refused(Options { archive: at(empty.path()), ..copy.options() }).await;
    assert!(text.contains("none of the 3 newest files"), "{text}");
    let nowhere = empty.path().join("nothing");
    refused(Options { archive: at(&nowhere), ..copy.options() }).await;
    assert!(!nowhere.exists(), "an audit makes nothing");
    copy.sql("UPDATE certeus.archives SET location = 'ftp://x' WHERE first_index = 50").await;
    refused(Options { archive: ArchiveFrom::Recorded, ..copy.options() }).await;
    // Elsewhere they are there, whatever is recorded.
    assert_eq!(found(&copy.audit().await), []);
    // It goes away while the audit runs: a link that leads to itself cannot be read.
    let path = copy.path(0).await;
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let mut audit = Audit::start(copy.options(), None).await.unwrap();
    let error = loop {
        match audit.step().await {
            Ok(more) => assert!(more, "it came to an end"),
            Err(error) => break error,
        }
    };
    assert!(error.concerns_archive(), "{error:?}");
    std::fs::remove_file(&path).unwrap();
    std::fs::copy(original.files.path().join(copy.name(0).await), &path).unwrap();
    let mut audit = Audit::start(copy.options(), Some(&audit.save())).await.unwrap();
    while audit.step().await.unwrap() {}
    assert_eq!(found(&audit.finish().await.unwrap()), []);
}

/// Files are replaced while they are read, and their old ones deleted.
#[tokio::test(flavor = "multi_thread")]
async fn erasures_during_an_audit_are_no_findings() {
    let original = Original::new().await;
    let copy = original.copy("mixed").await;
    let (ledger, tasks) = start(archived_to(&copy.url, copy.files.path())).await;
    let first: Uuid = copy
        .client
        .query_one("SELECT batch_id FROM certeus.batches WHERE first_index = 50", &[])
        .await
        .unwrap()
        .get(0);
    assert_ne!(BatchId::of(first).day(), BatchId::new(now_ms(), 0).day());
    let erasing = ledger.clone();
    let erasures = tokio::spawn(async move {
        for offset in 20..40 {
            let reason = Reason::new("ticket 2".to_owned()).unwrap();
            erasing.erase(id_after(first, offset), reason).await.unwrap();
        }
    });
    let mut audits = 0;
    while !erasures.is_finished() || audits == 0 {
        let report = copy.audit().await;
        assert_eq!(found(&report), [], "{}", details(&report));
        audits += 1;
    }
    erasures.await.unwrap();
    let report = copy.audit().await;
    assert_eq!((found(&report), report.rows.archived_erased), (vec![], 22), "{}", details(&report));
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_replaced_while_it_was_read_is_read_again() {
    let original = Original::new().await;
    let copy = original.copy("whole").await;
    let mut audit = Audit::start(Options { jobs: 1, ..copy.options() }, None).await.unwrap();
    // One file after the other, and the end of each day: the third is next.
    let mut places = vec![place(&audit)];
    while places.len() < 5 {
        assert!(audit.step().await.unwrap());
        places.push(place(&audit));
        places.dedup();
    }
    // It is open, and its second row group is still to be read, when the erasures are asked for.
    copy.sql("BEGIN; LOCK TABLE certeus.erasures IN ACCESS EXCLUSIVE MODE").await;
    let waiting =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'certeus.erasures'::regclass)";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !copy.client.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(tokio::time::Instant::now() < deadline, "nobody asks for erasures");
        let _a_part_of_the_log = tokio::time::timeout(Duration::from_millis(20), audit.step()).await;
    }
    copy.rewrite(2, |_| ()).await;
    copy.sql("COMMIT").await;
    while audit.step().await.unwrap() {}
    let report = audit.finish().await.unwrap();
    assert_eq!(found(&report), [], "{}", details(&report));
    assert_eq!(report.rows.archived_unseen(), 0);
}
