//! The ledger against a real PostgreSQL: what is acknowledged is stored once, in order, unchanged, whatever happens.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::timestamp::Timestamp;
use certeus_ledger::{
    AppendError, Availability, BreakerState, CommitError, Config, Database, Filter, Ledger, QueueConfig,
    Tasks,
};
use certeus_localpg::{LocalPg, Options};
use tokio_postgres::{Client, NoTls};

const QUEUE: QueueConfig = QueueConfig {
    queue_events_max: 100_000,
    queue_bytes_max: 64 << 20,
    batch_events: 10_000,
    batch_bytes: 8 << 20,
    batch_timeout: Duration::from_millis(100),
};

/// A request of `count` events whose payloads name them `from..from + count`.
fn request(from: usize, count: usize) -> Submission {
    let body: String = (from..from + count)
        .map(|n| format!("{{\"type\":\"t{}\",\"timestamp\":{},\"n\":{n}}}\n", n % 3, 1_769_860_800 + n))
        .collect();
    let limits = Limits { request_events_max: 100_000, event_bytes_max: 1 << 20, encrypted_fields: None };
    let parsed = Submission::parse(Bytes::from(body), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

fn start(url: &str) -> (Ledger, Tasks) {
    let config = Config {
        name: "default".to_owned(),
        database: Database::from_url(url).unwrap(),
        writers: 2,
        read_connections: 2,
        queue: QUEUE,
        encryption: None,
        log: None,
        archive: None,
        spool: None,
    };
    Ledger::start(config, &prometheus::Registry::new()).unwrap()
}

async fn until_available(ledger: &Ledger) {
    let mut changes = ledger.watch_availability();
    let available = changes.wait_for(|now| *now == Availability::Available);
    tokio::time::timeout(Duration::from_secs(30), available).await.expect("available in time").unwrap();
}

async fn sql(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn close(ledger: &Ledger, tasks: Tasks) {
    ledger.close();
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("drains in time");
}

/// What an outsider sees: indexes without a gap, each event once. Gives the number of events.
async fn check_gapless(client: &Client) -> i64 {
    let row = client
        .query_one(
            "SELECT count(*), count(DISTINCT payload), coalesce(max(index) + 1, 0), \
             (SELECT next_index FROM certeus.heads), count(DISTINCT index) FROM certeus.event_log",
            &[],
        )
        .await
        .unwrap();
    let counts: [i64; 5] = std::array::from_fn(|column| row.get(column));
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_both_commit_paths_come_back_unchanged_and_in_order() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    // A single statement, then a COPY.
    let small = ledger.append(request(0, 3)).await.unwrap();
    let large = ledger.append(request(3, 2000)).await.unwrap();
    assert_eq!((small.first_index, small.count, large.first_index, large.count), (0, 3, 3, 2000));

    let third = uuid::Uuid::from_u128(large.first_id.as_u128() + 2);
    let event = ledger.event(third).await.unwrap().unwrap();
    let payload = "{\"type\":\"t2\",\"timestamp\":1769860805,\"n\":5}";
    assert_eq!((event.index, &event.kind[..], event.payload()), (5, "t2", Some(payload.as_bytes())));
    let unknown = uuid::Uuid::from_u128(large.first_id.as_u128() + 5000);
    assert_eq!(ledger.event(unknown).await.unwrap(), None);

    let (mut indexes, mut next) = (Vec::new(), Some(0));
    while let Some(first_index) = next {
        let page = ledger.events(&Filter { first_index, limit: 700, ..Filter::default() }).await.unwrap();
        assert!(page.events.len() <= 700);
        indexes.extend(page.events.iter().map(|event| event.index));
        next = page.next_index;
    }
    assert!(indexes.iter().copied().eq(0..2003));

    let at = |n: i64| Some(Timestamp::from_micros((1_769_860_800 + n) * 1_000_000).unwrap());
    let filter =
        Filter { kind: Some("t0".to_owned()), from: at(2), to: at(9), limit: 100, ..Filter::default() };
    let found: Vec<u64> =
        ledger.events(&filter).await.unwrap().events.iter().map(|event| event.index).collect();
    assert_eq!(found, [3, 6]);
    assert_eq!(check_gapless(&sql(&pg.url()).await).await, 2003);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_bytes_are_noticed_on_reading() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    let receipt = ledger.append(request(0, 2)).await.unwrap();
    let client = sql(&pg.url()).await;
    let alter = "UPDATE certeus.events SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '}', ' }'), 'UTF8') \
                 WHERE id = $1";
    assert_eq!(client.execute(alter, &[&receipt.first_id]).await.unwrap(), 1);
    let error = ledger.event(receipt.first_id).await.unwrap_err();
    assert_eq!(error.class(), certeus_ledger::Class::Corrupt);
    let untouched = uuid::Uuid::from_u128(receipt.first_id.as_u128() + 1);
    assert!(ledger.event(untouched).await.unwrap().is_some());
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pods_may_start_and_write_at_once() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods: Vec<_> = (0..4).map(|_| start(&pg.url())).collect();
    let mut appends = tokio::task::JoinSet::new();
    for (pod, (ledger, _)) in pods.iter().enumerate() {
        until_available(ledger).await;
        let ledger = ledger.clone();
        appends.spawn(async move {
            for n in 0..50 {
                // Sizes on both sides of the limit between the two commit paths.
                let size = if n % 10 == 0 { 700 } else { 1 + n };
                ledger.append(request(pod * 1_000_000 + n * 1000, size)).await.unwrap();
            }
        });
    }
    appends.join_all().await;
    let per_pod: usize = (0..50).map(|n| if n % 10 == 0 { 700 } else { 1 + n }).sum();
    assert_eq!(check_gapless(&sql(&pg.url()).await).await, 4 * i64::try_from(per_pod).unwrap());
    for (ledger, tasks) in pods {
        close(&ledger, tasks).await;
    }
}

/// Backends are killed at random moments, also in COMMIT, so that replies are lost after the effect.
#[tokio::test(flavor = "multi_thread")]
async fn killed_connections_neither_lose_nor_double_what_is_acknowledged() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    let client = sql(&pg.url()).await;
    let mut appends = tokio::task::JoinSet::new();
    for worker in 0..8_usize {
        let ledger = ledger.clone();
        appends.spawn(async move {
            let (mut acknowledged, mut unknown) = (0, 0);
            for n in 0..60 {
                let from = worker * 1_000_000 + n * 1000;
                let size = if n % 2 == 0 { 5 } else { 600 };
                match ledger.append(request(from, size)).await {
                    Ok(receipt) => acknowledged += receipt.count,
                    Err(AppendError::Commit(CommitError::OutcomeUnknown)) => unknown += size,
                    Err(AppendError::Commit(CommitError::Unavailable) | AppendError::Unavailable) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            (acknowledged, unknown)
        });
    }
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE application_name = 'certeus-dataplane' AND state <> 'idle'";
    let mut killed = 0;
    let mut results = Vec::new();
    while !appends.is_empty() {
        if killed < 150 {
            killed += client.query_one(kill, &[]).await.unwrap().get::<_, i64>(0);
        }
        // A pause, unless a worker ends in it.
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(15), appends.join_next()).await {
            results.push(ended.unwrap());
        }
    }
    let acknowledged: usize = results.iter().map(|(acknowledged, _)| acknowledged).sum();
    let unknown: usize = results.iter().map(|(_, unknown)| unknown).sum();
    let stored = usize::try_from(check_gapless(&client).await).unwrap();
    assert!(killed > 0, "no connection was killed in mid-commit");
    assert!((acknowledged..=acknowledged + unknown).contains(&stored), "{acknowledged} {unknown} {stored}");
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_late_or_goes_away_costs_nothing_acknowledged() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::set_permissions(parent.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let options = Options { dir: Some(parent.path().join("pg")), ..Options::default() };
    let first = LocalPg::start(&options).unwrap();
    let (ledger, tasks) = start(&first.url());
    until_available(&ledger).await;
    ledger.append(request(0, 10)).await.unwrap();
    first.stop().unwrap();

    let mut changes = ledger.watch_availability();
    let gone = changes.wait_for(|now| matches!(now, Availability::Unavailable { .. }));
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("noticed in time").unwrap();
    assert_eq!(ledger.append(request(10, 10)).await.unwrap_err(), AppendError::Unavailable);
    close(&ledger, tasks).await;

    // The port changes with each start of a private server: a new pod takes over.
    let second = LocalPg::start(&options).unwrap();
    let (ledger, tasks) = start(&second.url());
    assert_eq!(ledger.availability(), Availability::Starting { reason: None });
    assert_eq!(ledger.append(request(10, 10)).await.unwrap_err(), AppendError::Unavailable);
    until_available(&ledger).await;
    assert_eq!(ledger.append(request(10, 10)).await.unwrap().first_index, 10);
    assert_eq!(check_gapless(&sql(&second.url()).await).await, 20);
    close(&ledger, tasks).await;
}

/// A trigger that fails every commit as a full disk would, while connections, reads and probes go on.
const DISK_FULL: &str = "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS \
     $$BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END$$; \
     CREATE TRIGGER disk_full BEFORE INSERT ON certeus.batches FOR EACH ROW EXECUTE FUNCTION disk_full()";

#[tokio::test(flavor = "multi_thread")]
async fn one_failure_changes_nothing_and_lasting_ones_do_not_make_readiness_flap() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    ledger.append(request(0, 1)).await.unwrap();
    let admin = sql(&pg.url()).await;
    let mut changes = ledger.watch_availability();
    changes.mark_unchanged();
    let kill =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'certeus-dataplane'";
    admin.execute(kill, &[]).await.unwrap();
    let stored = ledger.append(request(1, 1)).await;
    assert!(stored.is_ok() && !changes.has_changed().unwrap(), "{stored:?} {:?}", ledger.availability());

    admin.batch_execute(DISK_FULL).await.unwrap();
    let refused = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.append(request(2, 1)).await }
    });
    let gone = changes.wait_for(|now| matches!(now, Availability::Unavailable { .. }));
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("noticed in time").unwrap();
    // Clients that go on trying are what would close and open it again and again.
    let mut closings = 0;
    let mut was_closed = false;
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        let ledger_of_client = ledger.clone();
        drop(tokio::spawn(async move { ledger_of_client.append(request(2, 1)).await }));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let closed = ledger.breaker() == BreakerState::Closed;
        closings += u32::from(closed && !was_closed);
        was_closed = closed;
    }
    assert!(closings <= 3, "{closings} times ready in 12 s");
    assert_eq!(refused.await.unwrap(), Err(AppendError::Commit(CommitError::Unavailable)));
    admin.batch_execute("DROP TRIGGER disk_full ON certeus.batches").await.unwrap();
    until_available(&ledger).await;
    ledger.append(request(3, 1)).await.unwrap();
    assert_eq!(ledger.breaker(), BreakerState::Closed);
    close(&ledger, tasks).await;
}

/// The probe that decides whether requests may go back needs no privilege beyond the ledger's own, and a standby, a
/// read-only server or one without the function are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_role_can_probe_and_a_read_only_server_is_noticed() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let admin = sql(&pg.url()).await;
    admin.batch_execute("CREATE ROLE clerk LOGIN PASSWORD 'clerk'").await.unwrap();
    admin.batch_execute("CREATE DATABASE books OWNER clerk").await.unwrap();
    let url = format!("postgres://clerk:clerk@127.0.0.1:{}/books", pg.port());
    let (ledger, tasks) = start(&url);
    until_available(&ledger).await;
    ledger.append(request(0, 1)).await.unwrap();
    let mut changes = ledger.watch_availability();
    let restart = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'books'";
    admin.batch_execute("ALTER DATABASE books SET default_transaction_read_only = on").await.unwrap();
    admin.execute(restart, &[]).await.unwrap();
    let gone = changes.wait_for(|now| matches!(now, Availability::Unavailable { .. }));
    let gone =
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("noticed in time").unwrap().clone();
    assert!(format!("{gone:?}").contains("read-only"), "{gone:?}");
    admin.batch_execute("ALTER DATABASE books RESET default_transaction_read_only").await.unwrap();
    admin.execute(restart, &[]).await.unwrap();
    until_available(&ledger).await;
    ledger.append(request(1, 1)).await.unwrap();
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_fsync_is_refused() {
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let pg = LocalPg::start(&Options { settings, ..Options::default() }).unwrap();
    let (ledger, _tasks) = start(&pg.url());
    let mut changes = ledger.watch_availability();
    let refused = changes.wait_for(|now| matches!(now, Availability::Starting { reason: Some(_) }));
    let refused =
        tokio::time::timeout(Duration::from_secs(10), refused).await.expect("refused in time").unwrap();
    let Availability::Starting { reason: Some(reason) } = refused.clone() else { unreachable!() };
    assert!(reason.contains("fsync = off"), "{reason}");
}

/// A server with a certificate of its own making, as Debian's package and CloudNativePG set one up.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_when_there_is_some_and_checked_when_required() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl, which PostgreSQL's package brings along");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pg_dir = dir.path().join("pg");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    LocalPg::start(&Options { dir: Some(pg_dir.clone()), ..Options::default() }).unwrap().stop().unwrap();
    // PostgreSQL wants its key to be its own, and readable by nobody else.
    let owner = std::fs::metadata(pg_dir.join("data")).unwrap();
    let (uid, gid) =
        (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
    for file in [&certificate, &key] {
        std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(file, Some(uid), Some(gid)).unwrap();
    }
    let settings = [
        ("ssl", "on"),
        ("ssl_cert_file", certificate.to_str().unwrap()),
        ("ssl_key_file", key.to_str().unwrap()),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let pg = LocalPg::start(&Options { dir: Some(pg_dir), settings, ..Options::default() }).unwrap();

    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    ledger.append(request(0, 5)).await.unwrap();
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                 WHERE application_name = 'certeus-dataplane' AND NOT ssl";
    assert_eq!(sql(&pg.url()).await.query_one(plain, &[]).await.unwrap().get::<_, i64>(0), 0);
    close(&ledger, tasks).await;

    let (ledger, _tasks) = start(&format!("{}?sslmode=require", pg.url()));
    let mut changes = ledger.watch_availability();
    let refused = changes.wait_for(|now| matches!(now, Availability::Starting { reason: Some(_) }));
    let refused =
        tokio::time::timeout(Duration::from_secs(10), refused).await.expect("refused in time").unwrap();
    let Availability::Starting { reason: Some(reason) } = refused.clone() else { unreachable!() };
    assert!(reason.contains("certificate"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_hang_do_not_stop_writes() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    ledger.append(request(0, 3)).await.unwrap();
    // A query on the parent table locks every partition, a commit only that of its day: hold tomorrow's.
    let blocker = sql(&pg.url()).await;
    let tomorrow =
        "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'certeus.events'::regclass";
    let tomorrow: String = blocker.query_one(tomorrow, &[]).await.unwrap().get(0);
    blocker.batch_execute(&format!("BEGIN; LOCK TABLE {tomorrow} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let ledger = ledger.clone();
        reads.spawn(async move { ledger.events(&Filter { limit: 10, ..Filter::default() }).await.is_ok() });
    }
    let started = std::time::Instant::now();
    let mut next = 3;
    // Longer than the health check waits.
    while started.elapsed() < Duration::from_secs(5) {
        assert_eq!(ledger.append(request(next, 1)).await.unwrap().first_index, next as u64);
        next += 1;
    }
    blocker.batch_execute("COMMIT").await.unwrap();
    assert!(reads.join_all().await.into_iter().any(|read| read), "no read came through in the end");
    close(&ledger, tasks).await;
}

/// As after a partial restore. Nothing is stored, which is certain, so the answer must not be a doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_behind_its_batches_is_refused_for_certain() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    ledger.append(request(0, 3)).await.unwrap();
    let client = sql(&pg.url()).await;
    client.execute("UPDATE certeus.heads SET next_index = 0", &[]).await.unwrap();
    let error = ledger.append(request(3, 1)).await.unwrap_err();
    assert_eq!(error, AppendError::Commit(CommitError::Unavailable));
    let stored: i64 = client.query_one("SELECT count(*) FROM certeus.events", &[]).await.unwrap().get(0);
    assert_eq!(stored, 3);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rare_type_among_single_events_is_found_quickly() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg.url());
    until_available(&ledger).await;
    // Batches of one event each, as single requests make them.
    let client = sql(&pg.url()).await;
    let receipt = ledger.append(request(0, 1)).await.unwrap();
    let many = "WITH made AS (SELECT n, (left($1::uuid::text, 18) || '-9' || lpad(to_hex(n), 10, '0') || '00000')::text AS id \
                FROM generate_series(1, 20000) n), \
                e AS (INSERT INTO certeus.events SELECT (left(id, 23) || '-' || right(id, 12))::uuid, now(), 'common', '{}' FROM made), \
                h AS (UPDATE certeus.heads SET next_index = 20001) \
                INSERT INTO certeus.batches (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries) \
                SELECT 'default', n, 1, (left(id, 23) || '-' || right(id, 12))::uuid, now(), now(), decode(repeat('00', 32), 'hex'), \
                decode(repeat('00', 32), 'hex') FROM made";
    client.execute(many, &[&receipt.first_id]).await.unwrap();
    let started = std::time::Instant::now();
    let filter = Filter { kind: Some("rare".to_owned()), limit: 1, ..Filter::default() };
    let page = ledger.events(&filter).await.unwrap();
    assert!(page.events.is_empty() && page.next_index.is_none(), "{page:?}");
    // One query an event would take several seconds.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // Their log entries were made up, and the first one that is asked for is named.
    let filter = Filter { first_index: 19_990, limit: 100, ..Filter::default() };
    let error = ledger.events(&filter).await.unwrap_err().to_string();
    assert!(error.contains("4e1600000 does not match"), "{error}");
    close(&ledger, tasks).await;
}
