//! Verifiers that are not ours, unmodified, against a log that a real pod serves: `sumdb/note` and `sumdb/tlog` of Go's module
//! `golang.org/x/mod` (driven by `e2e/verifiers`), and Tessera's `fsck`. Both must accept the log, and refuse it once altered.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use certeus_e2e::http::{Client, Exchange, Reply, Request, request};
use certeus_e2e::pod::{Pod, PodSpec};
use certeus_e2e::postgres::Postgres;
use certeus_e2e::programs;
use certeus_tlog::note::{Algorithm, SignerKey};

/// Module path and version; what is compiled is kept by Go's own cache.
const FSCK: &str = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4";
const ORIGIN: &str = "certeus.example/third-party";
/// Two full tiles and a part of a third.
const EVENTS: usize = 600;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds both programs into `dir`; needs Go, which `scripts/setup.sh go` looks for.
fn build(dir: &Path) {
    let verifiers = repository().join("e2e/verifiers");
    let built = go(&verifiers, dir, &["build", "-o", dir.join("verifiers").to_str().unwrap(), "."]);
    assert!(built.status.success(), "cannot build e2e/verifiers: {}", text(&built));
    let installed = go(dir, dir, &["install", FSCK]);
    assert!(installed.status.success(), "cannot install {FSCK}: {}", text(&installed));
}

fn go(current: &Path, bin: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("go");
    command.args(arguments).current_dir(current).env("GOBIN", bin);
    command.output().expect("Go is installed: run scripts/setup.sh go")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn get(api: SocketAddr, path: &str) -> Vec<u8> {
    let reply = request(api, "GET", path).unwrap();
    assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    reply.body
}

fn append(api: SocketAddr, first: usize, count: usize) -> Reply {
    let line = |n| format!("{{\"type\":\"third.party\",\"timestamp\":{},\"n\":{n}}}\n", 1_769_860_800 + n);
    let body: String = (first..first + count).map(line).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let sent = Request {
        method: "POST",
        path: "/v1/ledger/events?ack=sealed",
        headers: &headers,
        body: body.as_bytes(),
    };
    match Client::new(Duration::from_secs(30)).send(api, &sent) {
        Exchange::Reply(reply) => {
            assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
            assert_eq!(reply.json()["ack"], "sealed");
            reply
        }
        Exchange::NotSent | Exchange::Lost => panic!("no answer"),
    }
}

/// Tessera's program tells only in words whether the log is in order.
fn fsck(dir: &Path, log: &str, key: &Path) -> Result<(), String> {
    let mut command = Command::new(dir.join("fsck"));
    command.args(["-ui=false", "-v=1", "-storage_url", &format!("{log}/"), "-public_key"]).arg(key);
    let output = text(&command.output().unwrap());
    if output.contains("Successfully fsck'd log") && !output.contains("fsck failed") {
        Ok(())
    } else {
        Err(output)
    }
}

#[test]
fn verifiers_of_others_accept_the_log_and_refuse_an_altered_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    build(dir);
    let data = dir.join("postgres");
    let mut postgres = Postgres::start(&data, dir, &[], &[]).unwrap();
    let sql = postgres.connect("postgres").unwrap();
    let key = SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [3; 32]).unwrap();
    let spec = PodSpec {
        program: programs::dataplane().unwrap(),
        env: vec![
            ("CERTEUS_DB_URL".to_owned(), postgres.url_through(postgres.address(), "postgres")),
            ("CERTEUS_SIGNING_KEY".to_owned(), key.to_secret_text().to_string()),
        ],
        config: String::new(),
    };
    let pod = Pod::start(&spec, &dir.join("pod.log")).unwrap();
    pod.wait_until_ready().unwrap();
    let (api, log) = (pod.api(), format!("http://{}/log/default", pod.api()));

    let first = append(api, 0, 10).json()["first_id"].as_str().unwrap().to_owned();
    let keys = dir.join("keys");
    fs::write(&keys, get(api, "/log/default/keys")).unwrap();
    let verifiers = |arguments: &[&str]| {
        let mut command = Command::new(dir.join("verifiers"));
        let output = command.args(arguments).arg("-key").arg(&keys).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    };
    let old = dir.join("old-checkpoint");
    verifiers(&["log", "-url", &log, "-save", old.to_str().unwrap()]).unwrap();

    append(api, 10, EVENTS - 10);
    verifiers(&["log", "-url", &log, "-old", old.to_str().unwrap()]).unwrap();
    fsck(dir, &log, &keys).unwrap();

    // One event, offline, from its bytes and its proof file.
    let (event, proof) = (dir.join("event"), dir.join("proof"));
    fs::write(&event, br#"{"type":"third.party","timestamp":1769860800,"n":0}"#).unwrap();
    fs::write(&proof, get(api, &format!("/v1/ledger/events/{first}/proof"))).unwrap();
    let offline = ["event", "-event", event.to_str().unwrap(), "-proof", proof.to_str().unwrap()];
    verifiers(&offline).unwrap();
    fs::write(&event, br#"{"type":"third.party","timestamp":1769860800,"n":1}"#).unwrap();
    assert!(verifiers(&offline).unwrap_err().contains("not verified"));

    // Somebody changes a log entry in the database; a pod that starts anew has nothing of it in memory.
    pod.stop().unwrap();
    let last = i64::try_from(EVENTS - 1).unwrap();
    let changed = sql.execute(
        "UPDATE certeus.batches SET entries = overlay(entries PLACING '\\x00'::bytea FROM 33) \
         WHERE first_index <= $1 AND first_index + event_count > $1",
        &[&last],
    );
    assert_eq!(changed.unwrap(), 1);
    let pod = Pod::start(&spec, &dir.join("pod-2.log")).unwrap();
    let log = format!("http://{}/log/default", pod.api());
    assert!(verifiers(&["log", "-url", &log]).is_err());
    assert!(fsck(dir, &log, &keys).is_err());
    drop(pod);
    postgres.stop().unwrap();
}
