//! The spool: what is acknowledged while the database is away is there once it is back, once and in order.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use certeus_localpg::{LocalPg, Options};
use serde_json::{Value, json};

use crate::support::{JSON, Pod, Reply, Settings, postgres, request};

/// A database at one address, although a private server has another port after each start.
struct Away {
    directory: tempfile::TempDir,
    server: Option<LocalPg>,
    door: SocketAddr,
    port: Arc<Mutex<Option<u16>>>,
}

impl Away {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = listener.local_addr().unwrap();
        let port = Arc::new(Mutex::new(None));
        let behind = Arc::clone(&port);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(port)) = (client, *behind.lock().unwrap()) else { continue };
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    forward(client.try_clone().unwrap(), server.try_clone().unwrap());
                    forward(server, client);
                }
            }
        });
        let mut away = Self { directory, server: None, door, port };
        away.comes();
        away
    }

    fn comes(&mut self) {
        let dir = Some(self.directory.path().join("pg"));
        let server = LocalPg::start(&Options { dir, ..Options::default() }).unwrap();
        *self.port.lock().unwrap() = Some(server.port());
        self.server = Some(server);
    }

    fn goes(&mut self) {
        *self.port.lock().unwrap() = None;
        self.server.take().unwrap().stop().unwrap();
    }

    fn url(&self) -> String {
        let server = self.server.as_ref().unwrap();
        server.url().replace(&server.port().to_string(), &self.door.port().to_string())
    }
}

/// Copies one direction of a connection until it ends.
fn forward(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            if std::io::Write::write_all(&mut to, &piece[..read]).is_err() {
                break;
            }
        }
        // The other direction ends with it; it may have already.
        let _ended = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

fn yaml(spool: &Path) -> String {
    format!("spool: {{path: {}, maxBytes: 64Mi, persistent: true}}", spool.display())
}

fn event(n: u32) -> String {
    format!("{{\"type\":\"a\",\"timestamp\":1769860800,\"n\":{n}}}")
}

fn post(pod: &Pod, n: u32, headers: &[(&str, &str)]) -> Reply {
    let headers: Vec<_> = std::iter::once(JSON).chain(headers.iter().copied()).collect();
    pod.post("/v1/ledger/events", &headers, event(n).as_bytes())
}

fn producer(first: &'static str) -> [(&'static str, &'static str); 3] {
    [("producer-id", "till"), ("producer-epoch", "0"), ("producer-sequence", first)]
}

fn spool(pod: &Pod) -> Value {
    pod.get("/v1/ledger/health").json()["spool"].clone()
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(40), "{what} takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The numbers of all events, in log order.
fn stored(pod: &Pod) -> Vec<u64> {
    let page = pod.get("/v1/ledger/events?limit=1000").json();
    page["events"].as_array().unwrap().iter().map(|one| one["event"]["n"].as_u64().unwrap()).collect()
}

fn files(folder: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "lock" && name != "rules").collect();
    names.sort();
    names
}

#[test]
fn what_is_spooled_outlives_the_pod_and_is_stored_once_in_order() {
    let mut database = Away::start();
    let url = database.url();
    let folder = tempfile::tempdir().unwrap();
    let yaml = yaml(folder.path());
    let settings = Settings { yaml: &yaml, ..Settings::default() };
    let pod = Pod::start(&url, &settings).ready();
    assert_eq!(post(&pod, 0, &producer("0")).status, 201);
    database.goes();

    // The first request finds out that the database is away, and is safe nevertheless.
    let keyed = [("idempotency-key", "k1")];
    let reply = post(&pod, 1, &keyed);
    assert_eq!(reply.status, 202, "{reply:?}");
    let expected = json!({"ledger": "default", "ack": "spooled", "count": 1, "idempotency_key": "k1"});
    assert_eq!(reply.json(), expected);
    let unnamed = post(&pod, 2, &[]).json();
    let made = unnamed["idempotency_key"].as_str().unwrap().to_owned();
    assert_eq!(made.len(), 32);
    let reply = post(&pod, 3, &producer("1"));
    assert_eq!(reply.json(), json!({"ledger": "default", "ack": "spooled", "count": 1}));
    wait_until("opening the breaker", || pod.get("/health").json()["status"] == "spooling");
    assert_eq!(pod.get("/health/ready").status, 200);
    let health = pod.get("/v1/ledger/health").json();
    assert_eq!((&health["breaker"], &health["spool"]["records"]), (&json!("open"), &json!(3)), "{health}");
    let metrics = request(pod.admin, "GET", "/metrics", &[], b"");
    for line in ["certeus_ledger_spool_records 3", "certeus_ledger_breaker_state{state=\"open\"} 1"] {
        assert!(metrics.text().contains(line), "no {line}");
    }
    drop(pod);

    // Killed, and started again without a database; then ended in good order.
    let pod = Pod::start(&url, &settings).ready();
    assert_eq!(pod.get("/health").json()["status"], "spooling");
    wait_until("reading the spool", || spool(&pod)["records"] == 3);
    assert_eq!(post(&pod, 4, &[]).status, 202);
    assert_eq!(post(&pod, 5, &producer("2")).status, 202);
    pod.terminate();
    assert_eq!(pod.wait(), Some(0));
    assert!(!files(folder.path()).is_empty());

    let pod = Pod::start(&url, &settings).ready();
    assert_eq!(post(&pod, 6, &keyed).status, 202, "another request with a key that is in use");
    database.comes();
    wait_until("replay", || spool(&pod)["records"] == 0);
    assert_eq!(stored(&pod), [0, 1, 2, 3, 4, 5]);
    // What the database will never take is kept and named.
    let aside = files(folder.path());
    assert!(aside.len() == 1 && aside[0].ends_with(".rejected"), "{aside:?}");
    assert_eq!(spool(&pod)["set_aside"], 1);
    let metrics = request(pod.admin, "GET", "/metrics", &[], b"");
    assert!(metrics.text().contains("certeus_ledger_spool_rejected_total 1"));

    // The receipts, later.
    for (n, key) in [(1, "k1"), (2, &made)] {
        let receipt = post(&pod, n, &[("idempotency-key", key)]);
        assert_eq!(
            (receipt.status, receipt.header("idempotency-replayed")),
            (201, Some("true")),
            "{receipt:?}"
        );
        assert_eq!(receipt.json()["first_index"], n);
    }
    let receipt = post(&pod, 7, &producer("3"));
    assert_eq!((receipt.status, &receipt.json()["first_index"]), (201, &json!(6)));
}

#[test]
fn a_producers_request_that_came_before_its_predecessor_waits_for_it() {
    let mut database = Away::start();
    let url = database.url();
    let folder = tempfile::tempdir().unwrap();
    let yaml = yaml(folder.path());
    let pod = Pod::start(&url, &Settings { yaml: &yaml, ..Settings::default() }).ready();
    database.goes();
    // Number 1 before number 0, as when the reply to number 0 was an error and it is sent again.
    assert_eq!(post(&pod, 1, &producer("1")).status, 202);
    assert_eq!(post(&pod, 0, &producer("0")).status, 202);
    database.comes();
    wait_until("replay", || spool(&pod)["records"] == 0);
    assert_eq!((stored(&pod), files(folder.path())), (vec![0, 1], vec![]));
}

#[test]
fn without_a_persistent_spool_nothing_is_taken_while_the_database_is_away() {
    let mut database = Away::start();
    let url = database.url();
    let folder = tempfile::tempdir().unwrap();
    let undeclared = format!("spool: {{path: {}}}", folder.path().display());
    let pod = Pod::start(&url, &Settings { yaml: &undeclared, ..Settings::default() }).ready();
    database.goes();
    let reply = post(&pod, 0, &[]);
    assert_eq!(reply.problem(), (503, "unavailable".to_owned()));
    assert_eq!(pod.get("/health/ready").status, 503);
    assert_eq!(pod.get("/v1/ledger/health").json()["spool"], json!(null));
    assert_eq!(files(folder.path()), [""; 0]);
    database.comes();
    wait_until("recovery", || pod.get("/health/ready").status == 200);
    assert_eq!(post(&pod, 0, &[]).status, 201);
}

#[test]
fn a_spool_that_cannot_be_read_is_never_said_to_be_empty() {
    let pg = postgres();
    let folder = tempfile::tempdir().unwrap();
    // No folder can be made there.
    let place = folder.path().join("spool");
    std::fs::write(&place, b"").unwrap();
    let yaml = yaml(&place);
    let pod = Pod::start(&pg.url(), &Settings { yaml: &yaml, ..Settings::default() });
    let records = || request(pod.admin, "GET", "/admin/drain", &[], b"").json()["spool_records"].clone();
    assert_eq!(records(), json!(null));
    let metrics = || request(pod.admin, "GET", "/metrics", &[], b"");
    assert!(metrics().text().contains("certeus_ledger_spool_records NaN"), "{}", metrics().text());
    std::fs::remove_file(&place).unwrap();
    wait_until("reading the spool", || records() == 0);
    assert!(metrics().text().contains("certeus_ledger_spool_records 0"));
}
