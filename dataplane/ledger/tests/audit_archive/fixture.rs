//! A ledger of which days are archived, to make copies of and tamper with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use certeus_archive::{Archive, Location, Row};
use certeus_ledger::audit::{ArchiveFrom, Audit, Options, Report};
use certeus_ledger::field::{Encryption, Fields, Keyring};
use certeus_ledger::request::{Identity, ProducerSequence};
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{Config, Database, Ledger, Reason};
use certeus_localpg::LocalPg;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::aged::{DAY_MS, KEEP, age, archived_to, now_ms};
use crate::sealed::{ORIGIN, seal, signer};
use crate::support::{close, id_after, request, sql, start};

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// Indexes at which batches of today begin, after one of 30 days ago and one of 20 days ago, with 50 events each. The first has
/// more than a row group, the second a producer, the third encrypted members, the fourth both.
pub(crate) const TODAY: u64 = 100;
pub(crate) const PRODUCED: u64 = TODAY + 9000;
pub(crate) const ENCRYPTED: u64 = PRODUCED + 5;
pub(crate) const BOTH: u64 = ENCRYPTED + 4;
/// Audit events of the two erasures follow.
pub(crate) const ERASURES: u64 = BOTH + 3;
pub(crate) const EVENTS: u64 = ERASURES + 2;
/// Erased before they were archived, and after.
pub(crate) const ERASED: [u64; 2] = [57, 11];

/// A ledger of which everything is archived and sealed, and the same before its last day was, to make copies of.
pub(crate) struct Original {
    pg: LocalPg,
    pub(crate) files: tempfile::TempDir,
    copies: AtomicUsize,
}

/// A copy with files of its own.
pub(crate) struct Copy {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) files: tempfile::TempDir,
}

fn submission(ledger: &Ledger, from: usize, count: usize, producer: Option<ProducerSequence>) -> Submission {
    let line =
        |n| format!(r#"{{"type":"paid","timestamp":{},"card":{{"number":"4111-{n}"}}}}"#, 1_769_860_800 + n);
    let body: Vec<String> = (from..from + count).map(line).collect();
    let encrypted_fields = ledger.encrypted_fields();
    let limits = Limits { request_events_max: 100, event_bytes_max: 1 << 20, encrypted_fields };
    let parsed =
        Submission::parse(Bytes::from(body.join("\n")), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    let submission = parsed.unwrap().submission.unwrap();
    match producer {
        Some(sequence) => submission.identified(Identity::Producer(sequence), &[]).unwrap(),
        None => submission,
    }
}

impl Original {
    pub(crate) async fn new() -> Self {
        let pg = LocalPg::start(&certeus_localpg::Options::default()).unwrap();
        let files = tempfile::tempdir().unwrap();
        let admin = sql(&pg.database_url("postgres")).await;
        admin.batch_execute("CREATE DATABASE mixed").await.unwrap();
        let url = pg.database_url("mixed");
        fill(&url, files.path()).await;
        let original = Self { pg, files, copies: AtomicUsize::new(0) };
        original.copy_database("mixed", "whole").await;
        let url = original.pg.database_url("whole");
        archive_today(&url, original.files.path()).await;
        seal(&mut sql(&url).await, &[50, EVENTS - 1]).await;
        original
    }

    async fn copy_database(&self, from: &str, to: &str) {
        let admin = sql(&self.pg.database_url("postgres")).await;
        // Connections to the original end a little after they were dropped.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while let Err(error) = admin.batch_execute(&format!("CREATE DATABASE {to} TEMPLATE {from}")).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn copy(&self, of: &str) -> Copy {
        let name = format!("copy_{}", self.copies.fetch_add(1, Ordering::Relaxed));
        self.copy_database(of, &name).await;
        let url = self.pg.database_url(&name);
        let files = tempfile::tempdir().unwrap();
        copy_folder(self.files.path(), files.path());
        Copy { client: sql(&url).await, url, files }
    }
}

/// Fills a ledger and archives its old days. Nothing of it is connected when this returns.
async fn fill(url: &str, files: &Path) {
    let client = sql(url).await;
    let (ledger, tasks) = start(archived_to(url, files)).await;
    let mut old = Vec::new();
    for (from, days) in [(0, 30), (50, 20)] {
        let first = ledger.append(request(from, 50)).await.unwrap().first_id;
        old.push(age(&client, first, days).await);
    }
    ledger.append(request(100, 9000)).await.unwrap();
    let producer = |first| ProducerSequence::new("till", 3, first).unwrap();
    ledger.append(submission(&ledger, 0, 5, Some(producer(0)))).await.unwrap();
    close(&ledger, tasks).await;
    let encryption =
        Encryption { fields: Fields::new(&["/card/number"]).unwrap(), keyring: Keyring::parse(KEY).unwrap() };
    let encrypting = Config { encryption: Some(Arc::new(encryption)), ..archived_to(url, files) };
    let (ledger, tasks) = start(encrypting).await;
    ledger.append(submission(&ledger, 5, 4, None)).await.unwrap();
    ledger.append(submission(&ledger, 9, 3, Some(producer(5)))).await.unwrap();

    let erase = async |id: Uuid| {
        ledger.erase(id, Reason::new("ticket 1".to_owned()).unwrap()).await.unwrap();
    };
    erase(id_after(old[1], 7)).await;
    assert_eq!(ledger.retain(KEEP, now_ms()).await.unwrap().dropped.len(), 2);
    erase(id_after(old[0], 11)).await;
    close(&ledger, tasks).await;
}

async fn archive_today(url: &str, files: &Path) {
    let (ledger, tasks) = start(archived_to(url, files)).await;
    let retained = ledger.retain(KEEP, now_ms() + 40 * DAY_MS).await.unwrap();
    assert!(retained.kept.is_empty() && retained.events == EVENTS - TODAY, "{retained:?}");
    close(&ledger, tasks).await;
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl Copy {
    pub(crate) fn options(&self) -> Options {
        Options {
            database: Database::from_url(&self.url).unwrap(),
            ledger: "default".to_owned(),
            origin: ORIGIN.to_owned(),
            keys: vec![signer().verifier().clone()],
            checkpoints: Vec::new(),
            jobs: 2,
            archive: ArchiveFrom::At(self.location()),
        }
    }

    pub(crate) fn location(&self) -> Location {
        format!("file://{}", self.files.path().display()).parse().unwrap()
    }

    pub(crate) async fn sql(&self, statements: &str) {
        let done = self.client.batch_execute(statements).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// The name of a file: the first has the events of 30 days ago, the second those of 20, the third those of today.
    pub(crate) async fn name(&self, number: i64) -> String {
        let query = "SELECT name FROM certeus.archives ORDER BY first_id OFFSET $1 LIMIT 1";
        self.client.query_one(query, &[&number]).await.unwrap().get(0)
    }

    pub(crate) async fn path(&self, number: i64) -> PathBuf {
        self.files.path().join(self.name(number).await)
    }

    /// Writes a file again with other rows and puts all that is on record about it right, as whoever owns both can.
    pub(crate) async fn rewrite(&self, number: i64, edit: impl FnOnce(&mut Vec<Row>)) {
        let old = self.name(number).await;
        let archive = Archive::open(&self.location()).unwrap();
        let file = archive.open_file(&old).await.unwrap();
        let mut rows = Vec::new();
        for group in 0..file.groups() {
            rows.extend(file.rows(group).await.unwrap());
        }
        edit(&mut rows);
        let name = old.replace(".parquet", "-new.parquet");
        let mut writer = archive.create("default", &name).await.unwrap();
        for row in rows.clone() {
            writer.push(row).await.unwrap();
        }
        let written = writer.finish().await.unwrap();
        archive.delete(&old).await.unwrap();
        let update = "UPDATE certeus.archives SET name = $2, sha256 = $3, bytes = $4, events = $5, erased = $6, \
             first_id = $7, last_id = $8, first_index = $9, last_index = $10 WHERE name = $1";
        let number = |value: u64| i64::try_from(value).unwrap();
        let (erased, indexes) =
            (rows.iter().filter(|row| row.content.is_none()).count(), rows.iter().map(|row| row.index));
        let (low, high) = (number(indexes.clone().min().unwrap()), number(indexes.max().unwrap()));
        self.client
            .execute(
                update,
                &[
                    &old,
                    &name,
                    &&written.sha256[..],
                    &number(written.bytes),
                    &number(written.rows),
                    &number(erased as u64),
                    &rows[0].id,
                    &rows.last().unwrap().id,
                    &low,
                    &high,
                ],
            )
            .await
            .unwrap();
    }

    pub(crate) async fn audit(&self) -> Report {
        audit(self.options()).await
    }
}

pub(crate) async fn audit(options: Options) -> Report {
    let mut audit = Audit::start(options, None).await.unwrap();
    while audit.step().await.unwrap() {}
    audit.finish().await.unwrap()
}
