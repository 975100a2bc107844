//! The signed log against a real PostgreSQL: sealed under load, taken over, fenced, and refused when log and database differ.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{
    AppendError, Availability, Class, Config, Database, Latest, Ledger, LogConfig, LogError, LogState,
    QueueConfig, SigningKeys, Tasks,
};
use certeus_localpg::{LocalPg, Options};
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignerKey};
use certeus_tlog::tile::{BundleId, TileId, new_tiles};
use certeus_tlog::tree::{Frontier, root_of};
use certeus_tlog::{Hash, leaf_hash};
use tokio_postgres::{Client, NoTls};

const WAIT: Duration = Duration::from_secs(30);
const KILL_ALL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";

fn key(seed: u8) -> SignerKey {
    SignerKey::from_seed("log.example/default", Algorithm::Ed25519, [seed; 32]).unwrap()
}

fn keys(seed: u8) -> Arc<SigningKeys> {
    Arc::new(key(seed).to_secret_text().parse().unwrap())
}

/// A request of `count` events.
fn request(from: usize, count: usize) -> Submission {
    let body: String = (from..from + count)
        .map(|n| format!("{{\"type\":\"t\",\"timestamp\":1769860800,\"n\":{n}}}\n"))
        .collect();
    let limits = Limits { request_events_max: 100_000, event_bytes_max: 1 << 20, encrypted_fields: None };
    let parsed = Submission::parse(Bytes::from(body), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

/// One pod, with its metrics.
struct Pod {
    ledger: Ledger,
    tasks: Tasks,
    registry: prometheus::Registry,
}

impl Pod {
    /// A pod that shares its anchor with all others.
    fn start(url: &str, seed: u8, anchor: Option<&Path>) -> Self {
        Self::start_sharing(url, seed, anchor, true)
    }

    /// A pod that has its anchor for itself.
    fn start_alone(url: &str, anchor: &Path) -> Self {
        Self::start_sharing(url, 1, Some(anchor), false)
    }

    fn start_sharing(url: &str, seed: u8, anchor: Option<&Path>, anchor_shared: bool) -> Self {
        let registry = prometheus::Registry::new();
        let config = Config {
            archive: None,
            name: "default".to_owned(),
            database: Database::from_url(url).unwrap(),
            writers: 2,
            read_connections: 2,
            queue: QueueConfig {
                queue_events_max: 100_000,
                queue_bytes_max: 64 << 20,
                batch_events: 10_000,
                batch_bytes: 8 << 20,
                batch_timeout: Duration::from_millis(100),
            },
            encryption: None,
            spool: None,
            log: Some(LogConfig {
                keys: keys(seed),
                anchor: anchor.map(|path| format!("file://{}", path.display()).parse().unwrap()),
                anchor_shared,
                checkpoint_interval: Duration::from_millis(100),
            }),
        };
        let (ledger, tasks) = Ledger::start(config, &registry).unwrap();
        Self { ledger, tasks, registry }
    }

    async fn ready(self) -> Self {
        let mut changes = self.ledger.watch_availability();
        let available = changes.wait_for(|now| *now == Availability::Available);
        tokio::time::timeout(WAIT, available).await.expect("available in time").unwrap();
        self
    }

    async fn append(&self, from: usize, count: usize) -> u64 {
        self.ledger.append(request(from, count)).await.unwrap().first_index
    }

    async fn sealed(&self, size: u64) -> Latest {
        self.ledger.sealed(size, WAIT).await.unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let metric = &family.get_metric()[0];
        metric.get_gauge().get_value() + metric.get_counter().get_value()
    }

    fn leads(&self) -> bool {
        self.metric("certeus_ledger_log_leader") > 0.5
    }

    /// Waits until the pod refuses for this reason.
    async fn refuses(&self, expected: &str) {
        let refuses = async || match self.ledger.log_state() {
            LogState::Refused { reason } => reason.contains(expected),
            LogState::Off | LogState::Unchecked { .. } | LogState::Agreed => false,
        };
        until(expected, refuses).await;
        assert!(self.metric("certeus_ledger_log_refused") > 0.5);
    }

    async fn close(self) {
        self.ledger.close();
        tokio::time::timeout(WAIT, self.tasks.finished()).await.expect("drains in time");
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < WAIT, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn sql(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Reads the whole log as an outsider, rebuilds the tree from its entries, and compares it with every tile and checkpoint.
async fn audit(pod: &Pod, client: &Client) -> u64 {
    let latest = pod.ledger.checkpoint().unwrap().signed;
    let (checkpoint, _) =
        Checkpoint::open(latest.note.as_bytes(), "log.example/default", &[key(1).verifier().clone()])
            .unwrap();
    let size = checkpoint.size();
    let (mut grown, mut roots, mut tiles) = (Frontier::new(), vec![Frontier::new().root()], Vec::new());
    for tile in new_tiles(0, size).filter(|tile| tile.level() == 0) {
        let bundle = BundleId::new(tile.index(), tile.width()).unwrap();
        let bytes = pod.ledger.log_entries(bundle).await.unwrap();
        for entry in bytes.chunks(34) {
            assert_eq!(entry[..2], [0, 32]);
            grown.append(leaf_hash(&entry[2..]), |tile, hashes| tiles.push((tile, hashes.to_vec())));
            roots.push(grown.root());
        }
    }
    assert_eq!((grown.size(), grown.root()), (size, checkpoint.root()));
    tiles.extend(grown.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec())));
    assert_eq!(tiles.len(), new_tiles(0, size).count());
    for (tile, hashes) in tiles {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        assert_eq!(pod.ledger.log_tile(tile).await.unwrap(), bytes, "{tile}");
    }
    // Every checkpoint that was ever published is one of this tree.
    let history = client.query("SELECT note FROM certeus.checkpoints", &[]).await.unwrap();
    assert!(!history.is_empty());
    for row in history {
        let note: String = row.get(0);
        let (old, _) =
            Checkpoint::open(note.as_bytes(), "log.example/default", &[key(1).verifier().clone()]).unwrap();
        assert_eq!(old.root(), roots[usize::try_from(old.size()).unwrap()]);
    }
    size
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_are_sealed_under_load_and_one_takes_over_when_the_sealer_is_lost() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let anchors = [folder.path().join("a"), folder.path().join("b")];
    let [first, second] = [&anchors[0], &anchors[1]].map(|anchor| Pod::start_alone(&pg.url(), anchor));
    let (first, second) = (first.ready().await, second.ready().await);
    let client = sql(&pg.url()).await;
    let kill = "SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted";
    let appends = async |pod: &Pod, from: usize| {
        for n in 0..40 {
            let size = if n % 8 == 0 { 900 } else { 7 };
            pod.append(from + n * 1000, size).await;
        }
    };
    let mut epochs = Vec::new();
    let kills = async {
        for _ in 0..3 {
            until("a sealer", async || first.leads() || second.leads()).await;
            until("a checkpoint", async || first.ledger.checkpoint().is_ok()).await;
            epochs.push(first.metric("certeus_ledger_log_epoch"));
            assert!(client.query_one(kill, &[]).await.unwrap().get::<_, i64>(0) >= 1);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::join!(appends(&first, 0), appends(&second, 1_000_000), kills);
    let total = 2 * (5 * 900 + 35 * 7);
    for pod in [&first, &second] {
        assert_eq!(pod.sealed(total).await.signed.checkpoint.size(), total);
        assert_eq!(pod.ledger.log_state(), LogState::Agreed);
        assert_eq!(audit(pod, &client).await, total);
    }
    assert!(!(first.leads() && second.leads()));
    // Both pods' anchors follow, whoever signs.
    for anchor in &anchors {
        let newest = first.ledger.checkpoint().unwrap().signed.note.clone();
        until("the anchor", async || std::fs::read_to_string(anchor).ok().as_ref() == Some(&newest)).await;
    }
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_it_was_and_proves_old_and_new() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let anchor = folder.path().join("anchor");
    let pod = Pod::start(&pg.url(), 1, Some(&anchor)).ready().await;
    pod.append(0, 1000).await;
    pod.sealed(1000).await;
    pod.close().await;

    let pod = Pod::start(&pg.url(), 1, Some(&anchor)).ready().await;
    let receipt = pod.ledger.append(request(1000, 300)).await.unwrap();
    let last = uuid::Uuid::from_u128(receipt.first_id.as_u128() + 299);
    let early = pod.ledger.event_proof(last, None).await;
    assert!(early.is_ok() || matches!(early, Err(LogError::NotSealed { index: 1299, .. })), "{early:?}");
    let found = pod.ledger.event_proof(last, Some(WAIT)).await.unwrap().unwrap();
    assert_eq!((found.event.index, found.proof.index), (1299, 1299));
    // The entry follows from `extra` and the payload alone.
    let (salt, head) = found.proof.extra[1..].split_at(32);
    let entry: [u8; 32] = {
        use sha2::Digest;
        let whole = [&b"certeus/entry/v1\0"[..], salt, head, found.event.payload().unwrap()].concat();
        sha2::Sha256::digest(whole).into()
    };
    let trusted = [key(1).verifier().clone()];
    let (checkpoint, _) = found.proof.verify(&leaf_hash(&entry), "log.example/default", &trusted).unwrap();
    let proof = pod.ledger.log_consistency(1000, 1300).await.unwrap();
    let old = {
        let history = sql(&pg.url()).await;
        let row = history.query_one("SELECT root FROM certeus.checkpoints WHERE tree_size = 1000", &[]).await;
        Hash(row.unwrap().get::<_, &[u8]>(0).try_into().unwrap())
    };
    assert_eq!(checkpoint.size(), 1300);
    certeus_tlog::proof::verify_consistency(1000, 1300, &old, &checkpoint.root(), &proof).unwrap();
    for (from, to) in [(1000, 1301), (1301, 1301), (2, 1)] {
        assert!(matches!(pod.ledger.log_consistency(from, to).await, Err(LogError::Beyond { .. })));
    }
    let beyond = pod.ledger.log_tile(TileId::new(0, 5, 21).unwrap()).await;
    assert!(matches!(beyond, Err(LogError::Beyond { .. })), "{beyond:?}");
    pod.ledger.log_tile(TileId::new(0, 5, 20).unwrap()).await.unwrap();
    assert_eq!(audit(&pod, &sql(&pg.url()).await).await, 1300);
    pod.close().await;
}

/// As PostgreSQL's statement log has it, not as this sealer hopes: a write with an old epoch changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealer_with_an_old_epoch_writes_nothing() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    pod.append(0, 10).await;
    pod.sealed(10).await;
    let client = sql(&pg.url()).await;
    // Somebody else claims, without the lock.
    let epoch: i64 = client
        .query_one("UPDATE certeus.log_heads SET epoch = epoch + 1 RETURNING epoch", &[])
        .await
        .unwrap()
        .get(0);
    pod.append(10, 10).await;
    let latest = pod.sealed(20).await;
    let row = client.query_one("SELECT epoch, checkpoint FROM certeus.log_heads", &[]).await.unwrap();
    // It had to take over anew before it could write.
    assert!(row.get::<_, i64>(0) > epoch);
    assert_eq!(row.get::<_, String>(1), latest.signed.note);
    pod.close().await;
}

/// Copies what a restore brings back into a schema of this name.
async fn back_up(client: &Client, name: &str) {
    let tables = ["heads", "batches", "log_heads", "log_tiles", "log_witnesses"];
    let copies = tables.map(|table| format!("CREATE TABLE {name}.{table} AS TABLE certeus.{table}"));
    client.batch_execute(&format!("CREATE SCHEMA {name}; {}", copies.join("; "))).await.unwrap();
}

/// As a restore while no pod is connected, but for the epoch: that pods were connected must not help.
async fn restore(client: &Client, name: &str) {
    let sql = format!(
        "BEGIN; LOCK certeus.heads; \
         UPDATE certeus.log_heads l SET tree_size = b.tree_size, root = b.root, checkpoint = b.checkpoint, refused = NULL \
         FROM {name}.log_heads b; UPDATE certeus.heads h SET next_index = b.next_index FROM {name}.heads b; \
         DELETE FROM certeus.batches; INSERT INTO certeus.batches TABLE {name}.batches; \
         DELETE FROM certeus.log_tiles; INSERT INTO certeus.log_tiles TABLE {name}.log_tiles; \
         DELETE FROM certeus.log_witnesses; INSERT INTO certeus.log_witnesses TABLE {name}.log_witnesses; COMMIT"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Until PostgreSQL has ended what closed pods had asked for last: it might still write after a restore.
async fn sessions_ended(client: &Client) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'certeus-dataplane'";
    let ended = async || client.query_one(sessions, &[]).await.unwrap().get::<_, i64>(0) == 0;
    until("the end of all sessions", ended).await;
}

/// A pod whose anchor is older than the backup would sign what the others know to be a fork.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_knows_less_signs_nothing_that_another_contradicts() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [informed, stale] = ["informed", "stale"].map(|name| folder.path().join(name));
    let pod = Pod::start_alone(&pg.url(), &informed).ready().await;
    pod.append(0, 600).await;
    pod.sealed(600).await;
    std::fs::copy(&informed, &stale).unwrap();
    pod.append(600, 100).await;
    pod.sealed(700).await;
    let client = sql(&pg.url()).await;
    back_up(&client, "old").await;
    pod.append(700, 50).await;
    pod.sealed(750).await;
    back_up(&client, "new").await;
    pod.close().await;
    let signed = async || -> Vec<String> {
        let rows =
            client.query("SELECT note FROM certeus.checkpoints ORDER BY tree_size", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let before = signed().await;

    // With fewer events than were signed, and with more: taken by the pod that knows less.
    for (more, expected) in
        [(0, "the log was signed up to 750"), (90, "the first 750 events in the database")]
    {
        sessions_ended(&client).await;
        restore(&client, "old").await;
        let old = Pod::start_alone(&pg.url(), &stale).ready().await;
        until("the lock", async || old.leads()).await;
        if more > 0 {
            old.append(700, more).await;
        }
        let new = Pod::start_alone(&pg.url(), &informed);
        for pod in [&old, &new] {
            pod.refuses(expected).await;
        }
        assert_eq!(old.ledger.append(request(800, 1)).await.unwrap_err(), AppendError::LogRefused);
        // What it has said stays said, for those who come when it is gone.
        for pod in [new, old] {
            pod.close().await;
        }
        let again = Pod::start_alone(&pg.url(), &stale);
        again.refuses(expected).await;
        assert_eq!(signed().await, before);
        again.close().await;
    }

    // With the right backup it goes on.
    sessions_ended(&client).await;
    restore(&client, "new").await;
    let pods = [&stale, &informed].map(|anchor| Pod::start_alone(&pg.url(), anchor));
    for pod in pods {
        let pod = pod.ready().await;
        let size = pod.append(2000, 1).await + 1;
        pod.sealed(size).await;
        assert_eq!(pod.ledger.log_state(), LogState::Agreed);
        pod.close().await;
    }
    let witnesses = "SELECT count(*) FROM certeus.log_witnesses";
    assert_eq!(client.query_one(witnesses, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_from_an_old_backup_takes_and_signs_nothing() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let anchor = folder.path().join("anchor");
    let pod = Pod::start(&pg.url(), 1, Some(&anchor)).ready().await;
    pod.append(0, 700).await;
    pod.sealed(700).await;
    let client = sql(&pg.url()).await;
    back_up(&client, "backup").await;
    pod.append(700, 50).await;
    pod.sealed(750).await;
    let anchored = std::fs::read_to_string(&anchor).unwrap();
    restore(&client, "backup").await;

    // The pod that was there notices, and so does one that starts now.
    let other = Pod::start(&pg.url(), 1, Some(&anchor)).ready().await;
    for pod in [&pod, &other] {
        pod.refuses("the log was signed up to 750").await;
        let refused = pod.ledger.append(request(700, 60)).await.unwrap_err();
        assert_eq!((refused, refused.class()), (AppendError::LogRefused, Class::Corrupt));
    }
    // A pod without an anchor is told by the one that has the lock.
    let blind = Pod::start(&pg.url(), 1, None).ready().await;
    blind.refuses("the log was signed up to 750").await;
    assert_eq!(std::fs::read_to_string(&anchor).unwrap(), anchored);
    for pod in [pod, other, blind] {
        pod.close().await;
    }

    // Events taken by something that knows nothing of the log make a fork, which is no better.
    let fork = "UPDATE certeus.heads SET next_index = 800; \
         INSERT INTO certeus.batches (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries) \
         VALUES ('default', 700, 100, gen_random_uuid(), now(), now(), decode(repeat('00', 32), 'hex'), decode(repeat('07', 3200), 'hex'))";
    client.batch_execute(fork).await.unwrap();
    let forked = Pod::start(&pg.url(), 1, Some(&anchor));
    forked.refuses("the first 750 events in the database are not those").await;
    assert_eq!(std::fs::read_to_string(&anchor).unwrap(), anchored);
    forked.ledger.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_head_is_not_shown() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    pod.append(0, 10).await;
    let genuine = pod.sealed(10).await;
    let client = sql(&pg.url()).await;
    let forged = {
        let checkpoint = Checkpoint::new("log.example/default", 10, Hash([9; 32])).unwrap();
        certeus_tlog::note::SignedNote::sign(checkpoint.to_text(), [&key(2)], 0).unwrap().to_string()
    };
    let forge = "UPDATE certeus.log_heads SET root = decode(repeat('09', 32), 'hex'), checkpoint = $1";
    client.execute(forge, &[&forged]).await.unwrap();
    let second = Pod::start(&pg.url(), 1, None);
    for pod in [&pod, &second] {
        pod.refuses("the newest checkpoint in the database cannot be trusted").await;
    }
    assert!(matches!(second.ledger.checkpoint(), Err(LogError::NoCheckpoint)));
    assert_eq!(pod.ledger.checkpoint().unwrap().signed, genuine.signed);
    second.ledger.close();
    pod.ledger.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_entries_are_found_and_not_proven() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    let receipt = pod.ledger.append(request(0, 600)).await.unwrap();
    pod.sealed(600).await;
    let client = sql(&pg.url()).await;
    // The entry of event 5 becomes another; the event itself stays, as does every other event.
    let alter = "UPDATE certeus.batches SET entries = overlay(entries PLACING decode(repeat('aa', 32), 'hex') FROM 5 * 32 + 1)";
    client.execute(alter, &[]).await.unwrap();
    let altered = uuid::Uuid::from_u128(receipt.first_id.as_u128() + 5);
    let error = pod.ledger.event_proof(altered, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    // Its neighbour is what it was, but the way to the root leads past what is not.
    let neighbour = uuid::Uuid::from_u128(receipt.first_id.as_u128() + 6);
    assert!(matches!(pod.ledger.event_proof(neighbour, None).await, Err(LogError::Unproven)));
    let tile = TileId::new(0, 0, 256).unwrap();
    assert!(matches!(pod.ledger.log_tile(tile).await, Err(LogError::Altered(found)) if found == tile));
    assert!(matches!(
        pod.ledger.log_entries(BundleId::new(0, 256).unwrap()).await,
        Err(LogError::Altered(_))
    ));
    let far = uuid::Uuid::from_u128(receipt.first_id.as_u128() + 300);
    assert!(pod.ledger.event_proof(far, None).await.unwrap().is_some());
    pod.close().await;
}

/// 200,000 events that nobody has sealed: several reads, and checkpoints on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_is_caught_up_in_pieces() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    pod.close().await;
    let client = sql(&pg.url()).await;
    let many = "INSERT INTO certeus.batches (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries) \
         SELECT 'default', n * 1000, 1000, gen_random_uuid(), now(), now(), sha256(n::text::bytea), \
         (SELECT string_agg(sha256((n * 1000 + k)::text::bytea), '' ORDER BY k) FROM generate_series(0, 999) k) \
         FROM generate_series(0, 199) n";
    client.execute(many, &[]).await.unwrap();
    client.execute("UPDATE certeus.heads SET next_index = 200000", &[]).await.unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    let latest = pod.sealed(200_000).await;
    let leaves: Vec<Hash> = {
        use sha2::Digest;
        (0..200_000).map(|n: u32| leaf_hash(&sha2::Sha256::digest(n.to_string()))).collect()
    };
    assert_eq!(latest.signed.checkpoint.root(), root_of(&leaves));
    pod.close().await;
}

/// Without an anchor there is the memory of the pods that run: they do not sign over what they have shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_remembers_what_it_has_shown() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = Pod::start(&pg.url(), 1, None).ready().await;
    pod.append(0, 30).await;
    pod.sealed(30).await;
    let client = sql(&pg.url()).await;
    let restore = "BEGIN; DELETE FROM certeus.log_heads; DELETE FROM certeus.log_tiles; DELETE FROM certeus.batches; \
         UPDATE certeus.heads SET next_index = 20; \
         INSERT INTO certeus.batches (ledger, first_index, event_count, batch_id, min_time, max_time, secret, entries) \
         VALUES ('default', 0, 20, gen_random_uuid(), now(), now(), decode(repeat('00', 32), 'hex'), decode(repeat('07', 640), 'hex')); \
         COMMIT";
    client.batch_execute(restore).await.unwrap();
    pod.refuses("the log was signed up to 30").await;
    let heads = "SELECT count(*) FROM certeus.log_heads WHERE checkpoint IS NOT NULL";
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.query_one(heads, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(pod.ledger.append(request(30, 1)).await.unwrap_err(), AppendError::LogRefused);
    pod.close().await;
}

/// Whether the database is behind the log nobody knows without the anchor: nothing is committed, and the database is not blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_starts_without_its_anchor_commits_nothing_and_says_why() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let client = sql(&pg.url()).await;
    let folder = tempfile::tempdir().unwrap();
    let [anchor, aside] = ["anchor", "aside"].map(|name| folder.path().join(name));
    // Without a head in the database the sealer meets the anchor first, with one whoever follows.
    for size in [0, 10] {
        if size > 0 {
            std::fs::rename(&anchor, &aside).unwrap();
        }
        std::fs::create_dir(&anchor).unwrap();
        let pod = Pod::start(&pg.url(), 1, Some(&anchor));
        let waits = async || {
            let told = matches!(pod.ledger.log_state(), LogState::Unchecked { anchor_failure: Some(_) });
            told && pod.ledger.availability() == Availability::Comparing
        };
        until("the anchor's failure", waits).await;
        let gauges = || {
            ["certeus_ledger_database_up", "certeus_ledger_log_checked"].map(|name| pod.metric(name) > 0.5)
        };
        assert!(pod.metric("certeus_ledger_log_anchor_failures_total") > 0.5);
        assert_eq!(gauges(), [true, false]);
        assert_eq!(pod.ledger.append(request(size, 1)).await.unwrap_err(), AppendError::LogUnchecked);

        // The database goes meanwhile.
        let read_only = async |on: &str| {
            let alter = format!(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}', \
                 current_database()); END $$"
            );
            client.batch_execute(&alter).await.unwrap();
            client.query(KILL_ALL, &[]).await.unwrap();
        };
        read_only("on").await;
        let is_away = async || matches!(pod.ledger.availability(), Availability::Unavailable { .. });
        until("the database to be away", is_away).await;
        assert_eq!(gauges(), [false, false]);
        assert_eq!(pod.ledger.append(request(size, 1)).await.unwrap_err(), AppendError::Unavailable);
        read_only("off").await;
        until("the database to be back", waits).await;

        std::fs::remove_dir(&anchor).unwrap();
        if size > 0 {
            std::fs::rename(&aside, &anchor).unwrap();
        }
        let pod = pod.ready().await;
        assert_eq!(pod.append(size, 10).await, size as u64);
        pod.sealed(size as u64 + 10).await;
        assert!(pod.metric("certeus_ledger_log_checked") > 0.5);
        pod.close().await;
    }
}

/// An anchor that never answers, as a folder on the network may, keeps the log from being signed and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_commits_over_new_connections_while_its_anchor_hangs() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let anchor = folder.path().join("anchor");
    let pod = Pod::start(&pg.url(), 1, Some(&anchor)).ready().await;
    pod.append(0, 10).await;
    pod.sealed(10).await;
    std::fs::remove_file(&anchor).unwrap();
    // Who opens it to read waits for somebody to write.
    assert!(std::process::Command::new("mkfifo").arg(&anchor).status().unwrap().success());
    sql(&pg.url()).await.query(KILL_ALL, &[]).await.unwrap();
    let appended = pod.ledger.append(request(10, 10)).await;
    let availability = pod.ledger.availability();
    // Lets go of those who wait.
    let hold = std::fs::File::options().read(true).write(true).open(&anchor).unwrap();
    std::fs::remove_file(&anchor).unwrap();
    drop(hold);
    assert_eq!(appended.map(|receipt| receipt.first_index), Ok(10));
    assert_eq!(availability, Availability::Available);
    pod.close().await;
}
