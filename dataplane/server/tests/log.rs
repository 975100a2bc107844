//! The signed log as an outsider meets it: over HTTP, verified with nothing but the public key.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "shared with the other tests")]

mod support;

use std::time::{Duration, Instant};

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignerKey, VerifierKey};
use certeus_tlog::proof::verify_consistency;
use certeus_tlog::tile::new_tiles;
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{JSON, NDJSON, Pod, Reply, Settings, postgres, request};

const ORIGIN: &str = "log.example/default";

fn secret(seed: u8, algorithm: Algorithm) -> String {
    SignerKey::from_seed(ORIGIN, algorithm, [seed; 32]).unwrap().to_secret_text().to_string()
}

fn public(seed: u8) -> [VerifierKey; 1] {
    [SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [seed; 32]).unwrap().verifier().clone()]
}

fn lines(count: usize) -> String {
    (0..count).map(|n| format!("{{\"type\":\"t\",\"timestamp\":1769860800, \"n\":{n}}}\n")).collect()
}

fn append(pod: &Pod, count: usize, query: &str) -> Value {
    let reply = pod.post(&format!("/v1/ledger/events{query}"), &[NDJSON], lines(count).as_bytes());
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()
}

fn checkpoint(pod: &Pod) -> Checkpoint {
    let reply = pod.get("/log/default/checkpoint");
    assert_eq!(reply.status, 200, "{reply:?}");
    Checkpoint::open(&reply.body, ORIGIN, &public(1)).unwrap().0
}

/// The log entry, from the proof's `extra` and the event's bytes.
fn entry(proof: &TlogProof, payload: &[u8]) -> Hash {
    assert_eq!(proof.extra[0], 1);
    let whole = [&b"certeus/entry/v1\0"[..], &proof.extra[1..], payload].concat();
    leaf_hash(&Sha256::digest(whole))
}

#[test]
fn an_outsider_rebuilds_the_log_and_checks_an_event_with_the_public_key_alone() {
    let pg = postgres();
    let key = "0123456789abcdef";
    let signing = secret(1, Algorithm::Ed25519);
    let settings = Settings {
        yaml: "log: {checkpointInterval: 100ms}",
        env: &[("CERTEUS_API_KEY", key), ("CERTEUS_SIGNING_KEY", &signing)],
    };
    let pod = Pod::start(&pg.url(), &settings).ready();
    let bearer = format!("Bearer {key}");
    let get = |path: &str| request(pod.api, "GET", path, &[("authorization", &bearer)], b"");
    let post = |query: &str, count: usize| {
        let path = format!("/v1/ledger/events{query}");
        let reply =
            request(pod.api, "POST", &path, &[NDJSON, ("authorization", &bearer)], lines(count).as_bytes());
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()
    };
    let first = post("?ack=sealed&ids=true", 300);
    assert_eq!(first["ack"], "sealed");
    let early = checkpoint(&pod);
    assert!(early.size() >= 300);
    assert_eq!(post("?ack=sealed", 777)["ack"], "sealed");

    // Everything public needs no key.
    let latest = checkpoint(&pod);
    let size = latest.size();
    assert_eq!(size, 1077);
    let (mut grown, mut full) = (Frontier::new(), Vec::new());
    for tile in new_tiles(0, size).filter(|tile| tile.level() == 0) {
        let path = tile.path().replace("tile/0/", "/log/default/tile/entries/");
        let reply = pod.get(&path);
        assert_eq!((reply.status, reply.body.len()), (200, usize::from(tile.width()) * 34), "{path}");
        let cached = Some("public, max-age=31536000, immutable");
        assert_eq!(
            (reply.header("content-type"), reply.header("cache-control")),
            (Some("application/octet-stream"), cached)
        );
        for entry in reply.body.chunks(34) {
            grown.append(leaf_hash(&entry[2..]), |tile, hashes| full.push((tile, hashes.to_vec())));
        }
    }
    assert_eq!(grown.root(), latest.root());
    full.extend(grown.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec())));
    for (tile, hashes) in full {
        let reply = pod.get(&format!("/log/default/{}", tile.path()));
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        assert!(reply.status == 200 && reply.body == bytes, "{tile}");
    }

    // An event and its proof, as a client would keep them.
    let id = first["ids"][42].as_str().unwrap();
    let reply = get(&format!("/v1/ledger/events/{id}/proof"));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        reply.header("content-disposition"),
        Some(&*format!("attachment; filename=\"{id}.tlog-proof\""))
    );
    let proof = TlogProof::parse(&reply.body).unwrap();
    let payload = lines(300).lines().nth(42).unwrap().to_owned();
    proof.verify(&entry(&proof, payload.as_bytes()), ORIGIN, &public(1)).unwrap();
    assert!(proof.verify(&entry(&proof, b"{}"), ORIGIN, &public(1)).is_err());
    assert!(proof.verify(&entry(&proof, payload.as_bytes()), ORIGIN, &public(2)).is_err());

    let reply = get(&format!("/v1/ledger/log/consistency?from={}&to={size}", early.size()));
    let hashes: Vec<Hash> = reply.text().lines().map(|line| line.parse().unwrap()).collect();
    verify_consistency(early.size(), size, &early.root(), &latest.root(), &hashes).unwrap();
    assert_eq!(pod.get("/v1/ledger/log/consistency?from=1").problem(), (401, "unauthorized".to_owned()));

    let listed = pod.get("/log/default/keys");
    assert_eq!(listed.text(), format!("{}\n", public(1)[0]));
    let set = pod.get("/.well-known/jwks.json").json();
    let key = &set["keys"][0];
    assert_eq!((&key["kty"], &key["crv"]), (&json!("OKP"), &json!("Ed25519")));
    assert_eq!(key["kid"].as_str(), Some(&*format!("{:08x}", public(1)[0].id())));
    let health = get("/v1/ledger/health").json();
    assert_eq!((&health["sealed"], &health["status"]), (&json!(1077), &json!("healthy")));
}

#[test]
fn bad_requests_are_told_what_is_wrong() {
    let pg = postgres();
    let signing = secret(1, Algorithm::Ed25519);
    let settings =
        Settings { yaml: "log: {checkpointInterval: 60s}", env: &[("CERTEUS_SIGNING_KEY", &signing)] };
    let pod = Pod::start(&pg.url(), &settings).ready();
    let id = append(&pod, 300, "?ack=sealed")["first_id"].as_str().unwrap().to_owned();
    // Committed, and the next checkpoint is a minute away unless asked for.
    let late = append(&pod, 5, "")["first_id"].as_str().unwrap().to_owned();
    let early = pod.get(&format!("/v1/ledger/events/{late}/proof"));
    assert_eq!(early.problem(), (409, "not-sealed".to_owned()));
    assert_eq!(early.header("retry-after"), Some("1"));
    assert!(early.text().contains("event 300") && early.text().contains("covers 300"), "{early:?}");
    let cases: &[(&str, u16, &str, &str)] = &[
        ("/v1/ledger/events/none/proof", 400, "invalid-request", "not an event id"),
        ("/v1/ledger/events/01a1fd17-1ba3-7cee-9ce1-ecb65f900000/proof", 404, "not-found", "no event"),
        ("/v1/ledger/events/none/proof?wait=maybe", 400, "invalid-request", ""),
        ("/v1/ledger/log/consistency", 400, "invalid-request", "from"),
        ("/v1/ledger/log/consistency?from=0&to=5", 400, "invalid-request", "`from` is 0"),
        ("/v1/ledger/log/consistency?from=9&to=5", 400, "invalid-request", "only grows"),
        ("/v1/ledger/log/consistency?from=9&to=301", 404, "not-found", "covers 300 events"),
        ("/v1/ledger/log/consistency?from=-1&to=5", 400, "invalid-request", ""),
        ("/v1/ledger/log/consistency?from=18446744073709551615", 400, "invalid-request", "only grows"),
        ("/log/other/checkpoint", 404, "not-found", "no ledger"),
        ("/log/other/tile/0/000", 404, "not-found", "no ledger"),
        ("/log/other/keys", 404, "not-found", "no ledger"),
        ("/log/default/tile/0/001", 404, "not-found", "covers 300 events, and not tile/0/001"),
        ("/log/default/tile/0/001.p/45", 404, "not-found", "covers 300 events"),
        ("/log/default/tile/entries/001", 404, "not-found", "covers 300 events"),
        ("/log/default/tile/entries/x999/999", 404, "not-found", "covers 300 events"),
        ("/log/default/tile/0/1", 404, "not-found", "not a tile path"),
        ("/log/default/tile/8/000", 404, "not-found", "level 8"),
        ("/log/default/tile/0/000.p/0", 404, "not-found", "width 0"),
        ("/log/default/tile/0/000.p/256", 404, "not-found", "not a tile path"),
        ("/log/default/tile/entries/..%2f000", 404, "not-found", "not a tile path"),
        ("/log/default/tile/7/x999/x999/x999/x999/x999/x999/999", 404, "not-found", ""),
    ];
    for (path, status, code, part) in cases {
        let reply = pod.get(path);
        assert_eq!(reply.problem(), (*status, (*code).to_owned()), "{path}");
        assert!(reply.text().contains(part), "{path}: {reply:?}");
    }
    let reply = pod.post("/v1/ledger/events?ack=maybe", &[JSON], lines(1).as_bytes());
    assert_eq!(reply.problem(), (400, "invalid-request".to_owned()));
    assert_eq!(pod.post("/log/default/checkpoint", &[], b"").problem().0, 405);
    assert_eq!(pod.get(&format!("/v1/ledger/events/{id}/proof")).status, 200);
    // Who waits gets a checkpoint at once.
    let started = Instant::now();
    assert_eq!(pod.get(&format!("/v1/ledger/events/{late}/proof?wait=true")).status, 200);
    assert!(started.elapsed() < Duration::from_secs(9));
    assert_eq!(checkpoint(&pod).size(), 305);
}

#[test]
fn without_a_key_nothing_is_signed_and_the_pod_says_so() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let off = (501, "sealing-off".to_owned());
    let id = append(&pod, 1, "")["first_id"].as_str().unwrap().to_owned();
    assert_eq!(pod.get("/log/default/checkpoint").problem(), off);
    assert_eq!(pod.get("/log/default/tile/0/000.p/1").problem(), off);
    assert_eq!(pod.get("/log/default/keys").problem(), off);
    assert_eq!(pod.get(&format!("/v1/ledger/events/{id}/proof")).problem(), off);
    assert_eq!(pod.get("/v1/ledger/log/consistency?from=1&to=1").problem(), off);
    assert_eq!(pod.post("/v1/ledger/events?ack=sealed", &[JSON], lines(1).as_bytes()).problem(), off);
    assert_eq!(pod.get("/.well-known/jwks.json").json(), json!({"keys": []}));
    assert!(pod.get("/health/detailed").text().contains("no signing key is configured"));
    // What was refused is not stored.
    assert_eq!(pod.get("/v1/ledger/events").json()["events"].as_array().unwrap().len(), 1);
}

#[test]
fn keys_rotate_with_both_signing_for_a_while() {
    let pg = postgres();
    let folder = tempfile::tempdir().unwrap();
    let anchor = format!("file://{}", folder.path().join("anchor").display());
    let (old, new) = (secret(1, Algorithm::Ed25519), secret(2, Algorithm::Ed25519));
    let both = format!("{old}\n{new}\n{}\n", secret(3, Algorithm::MlDsa44));
    let start = |keys: &str| {
        let env = [
            ("CERTEUS_SIGNING_KEY", keys),
            ("CERTEUS_LOG_ANCHOR", &*anchor),
            ("CERTEUS_LOG_ANCHOR_SHARED", "true"),
        ];
        Pod::start(&pg.url(), &Settings { env: &env, ..Settings::default() })
    };
    let stop = |pod: Pod| {
        pod.terminate();
        assert_eq!(pod.wait(), Some(0));
    };
    let pod = start(&old).ready();
    append(&pod, 3, "?ack=sealed");
    stop(pod);
    // A new key alone cannot know what the old one signed.
    let pod = start(&new);
    let refused = wait_for(&pod, |pod| pod.get("/health").json()["status"] == "refused");
    assert_eq!(refused.problem(), (503, "log-refused".to_owned()));
    stop(pod);
    let pod = start(&both).ready();
    append(&pod, 3, "?ack=sealed");
    let note = pod.get("/log/default/checkpoint");
    assert_eq!(note.text().lines().filter(|line| line.starts_with('—')).count(), 3);
    for key in [1, 2] {
        assert!(Checkpoint::open(&note.body, ORIGIN, &public(key)).is_ok());
    }
    stop(pod);
    let pod = start(&new).ready();
    append(&pod, 3, "?ack=sealed");
    let note = pod.get("/log/default/checkpoint");
    assert_eq!(Checkpoint::open(&note.body, ORIGIN, &public(2)).unwrap().0.size(), 9);
    assert!(Checkpoint::open(&note.body, ORIGIN, &public(1)).is_err());
    // Retired keys stay published.
    let set = pod.get("/.well-known/jwks.json").json();
    let kinds: Vec<&str> =
        set["keys"].as_array().unwrap().iter().map(|key| key["kty"].as_str().unwrap()).collect();
    assert_eq!((kinds.len(), kinds.iter().filter(|kind| **kind == "AKP").count()), (3, 1), "{set}");
    assert_eq!(set["keys"][0]["kid"].as_str(), Some(&*format!("{:08x}", public(2)[0].id())));
    stop(pod);
}

/// Waits for a state, then tries to append.
fn wait_for(pod: &Pod, holds: impl Fn(&Pod) -> bool) -> Reply {
    let started = Instant::now();
    while !holds(pod) {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    pod.post("/v1/ledger/events", &[JSON], lines(1).as_bytes())
}

#[test]
fn checkpoint_and_known_tiles_are_served_while_the_database_is_away() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::set_permissions(parent.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let options = certeus_localpg::Options { dir: Some(parent.path().join("pg")), ..Default::default() };
    let pg = certeus_localpg::LocalPg::start(&options).unwrap();
    let signing = secret(1, Algorithm::Ed25519);
    let settings = Settings { env: &[("CERTEUS_SIGNING_KEY", &signing)], ..Settings::default() };
    let pod = Pod::start(&pg.url(), &settings).ready();
    append(&pod, 300, "?ack=sealed");
    let paths = ["/log/default/checkpoint", "/log/default/tile/0/000", "/log/default/tile/1/000.p/1"];
    let before = paths.map(|path| pod.get(path).body);
    pg.stop().unwrap();
    let started = Instant::now();
    while pod.get("/log/default/checkpoint").header("certeus-stale").is_none() {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(paths.map(|path| pod.get(path).body), before);
    assert_eq!(pod.get("/log/default/tile/entries/000").problem(), (503, "unavailable".to_owned()));
    assert_eq!(pod.get("/health/live").status, 200);
}

#[test]
fn a_case_comes_with_the_proof_of_each_of_its_events() {
    let pg = postgres();
    let signing = secret(1, Algorithm::Ed25519);
    let settings =
        Settings { yaml: "log: {checkpointInterval: 60s}", env: &[("CERTEUS_SIGNING_KEY", &signing)] };
    let pod = Pod::start(&pg.url(), &settings).ready();
    let event = |n: usize| {
        format!("{{\"type\":\"t\",\"timestamp\":1769860800,\"case_id\":\"c {}\",\"n\":{n}}}\n", n % 2)
    };
    let body: String = (0..7).map(event).collect();
    assert_eq!(pod.post("/v1/ledger/events?ack=sealed", &[NDJSON], body.as_bytes()).status, 201);
    assert_eq!(pod.post("/v1/ledger/events", &[NDJSON], event(7).as_bytes()).status, 201);
    let first = pod.get("/v1/ledger/c%201?limit=2").json();
    assert_eq!((&first["case_id"], &first["next_cursor"]), (&json!("c 1"), &json!("5")));
    let second = pod.get("/v1/ledger/c%201?limit=2&cursor=5").json();
    assert!(second["next_cursor"].is_null());
    let events: Vec<&Value> =
        [&first, &second].into_iter().flat_map(|page| page["events"].as_array().unwrap()).collect();
    let indexes: Vec<u64> = events.iter().map(|event| event["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [1, 3, 5, 7]);
    for found in &events[..3] {
        let proof = TlogProof::parse(found["proof"].as_str().unwrap().as_bytes()).unwrap();
        let n = found["event"]["n"].as_u64().unwrap();
        let payload = event(usize::try_from(n).unwrap());
        proof.verify(&entry(&proof, payload.trim_end().as_bytes()), ORIGIN, &public(1)).unwrap();
    }
    // Committed, and not in a checkpoint yet.
    assert!(events[3]["proof"].is_null());
    assert_eq!(pod.get("/v1/ledger/nobody").problem(), (404, "not-found".to_owned()));
    assert_eq!(pod.get("/v1/ledger/c%201?limit=0").problem(), (400, "invalid-request".to_owned()));
    assert_eq!(pod.get("/v1/ledger/c%201?cursor=x").problem(), (400, "invalid-request".to_owned()));
}

/// Beyond its lease a stopped sealer is no sealer, although its sockets still stand.
#[test]
fn a_sealer_that_is_stopped_loses_its_place_and_comes_back_as_a_follower() {
    let pg = postgres();
    let folder = tempfile::tempdir().unwrap();
    let anchor = format!("file://{}", folder.path().join("anchor").display());
    let signing = secret(1, Algorithm::Ed25519);
    let env = [
        ("CERTEUS_SIGNING_KEY", &*signing),
        ("CERTEUS_LOG_ANCHOR", &*anchor),
        ("CERTEUS_LOG_ANCHOR_SHARED", "true"),
    ];
    let settings = Settings { yaml: "log: {checkpointInterval: 100ms}", env: &env };
    let leads = |pod: &Pod| {
        let metrics = request(pod.admin, "GET", "/metrics", &[], b"");
        metrics.text().contains("\ncerteus_ledger_log_leader 1\n")
    };
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(40), "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let first = Pod::start(&pg.url(), &settings).ready();
    until("a sealer", &|| leads(&first));
    let second = Pod::start(&pg.url(), &settings).ready();
    append(&second, 10, "?ack=sealed");
    let early = checkpoint(&second);
    assert!(!leads(&second));
    first.signal(rustix::process::Signal::STOP);
    append(&second, 10, "");
    until("the other pod to take over", &|| leads(&second));
    append(&second, 10, "?ack=sealed");
    assert_eq!(checkpoint(&second).size(), 30);
    first.signal(rustix::process::Signal::CONT);
    until("the first to follow", &|| checkpoint(&first).size() == 30);
    assert!(leads(&second) && !leads(&first));
    append(&first, 10, "?ack=sealed");
    let latest = checkpoint(&second);
    let reply = first.get(&format!("/v1/ledger/log/consistency?from={}&to={}", early.size(), latest.size()));
    let hashes: Vec<Hash> = reply.text().lines().map(|line| line.parse().unwrap()).collect();
    verify_consistency(early.size(), latest.size(), &early.root(), &latest.root(), &hashes).unwrap();
}

/// A bucket that takes connections and never answers is no trouble of the database, and is told as what it is.
#[test]
fn a_pod_that_starts_without_its_anchor_says_so_and_commits_nothing() {
    let pg = postgres();
    let signing = secret(1, Algorithm::Ed25519);
    let pod =
        Pod::start(&pg.url(), &Settings { env: &[("CERTEUS_SIGNING_KEY", &signing)], ..Settings::default() });
    append(&pod.ready(), 3, "?ack=sealed");

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let env = [
        ("CERTEUS_SIGNING_KEY", &*signing),
        ("CERTEUS_LOG_ANCHOR", "s3://bucket/anchor"),
        ("AWS_ENDPOINT", &*endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "x"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ];
    let pod = Pod::start(&pg.url(), &Settings { env: &env, ..Settings::default() });
    let metric = |name: &str| {
        let page = request(pod.admin, "GET", "/metrics", &[], b"");
        let value = page.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not reported")).parse::<u64>().unwrap()
    };
    let started = Instant::now();
    while metric("certeus_ledger_log_anchor_failures_total") == 0 {
        assert!(started.elapsed() < Duration::from_secs(30), "the failure is not counted");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(metric("certeus_ledger_database_up"), 1);
    assert_eq!(metric("certeus_ledger_log_checked"), 0);
    let detailed = pod.get("/health/detailed");
    let components = detailed.json()["components"].clone();
    let component = |name: &str| {
        let found = components.as_array().unwrap().iter().find(|component| component["name"] == name);
        let found = found.unwrap().clone();
        (found["healthy"] == json!(true), found["message"].as_str().unwrap().to_owned())
    };
    assert_eq!((detailed.status, component("database").0), (503, true), "{components}");
    let (healthy, message) = component("log");
    assert!(!healthy && message.starts_with("the anchor cannot be used"), "{message}");
    let told = pod.get("/v1/ledger/health").json();
    assert_eq!(told["status"], json!("starting"));
    assert!(told["reason"].as_str().unwrap().starts_with("cannot use the anchor: "), "{told}");
    assert_eq!(pod.get("/health/ready").status, 503);
    let refused = pod.post("/v1/ledger/events", &[JSON], lines(1).as_bytes());
    assert_eq!(refused.problem(), (503, "log-unchecked".to_owned()));
    assert_eq!(pod.get("/v1/ledger/events").status, 200);
}
