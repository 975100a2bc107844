//! The pod as its users meet it: over HTTP, beside a real PostgreSQL, with bad input and in bad weather.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cases/archive.rs"]
mod archive;
#[path = "cases/erasure.rs"]
mod erasure;
#[path = "cases/rules.rs"]
mod rules;
#[path = "cases/spool.rs"]
mod spool;
mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{JSON, NDJSON, Pod, Settings, postgres, read_reply, request};

const EVENT: &str = r#"{"type":"a","timestamp":1769860800}"#;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Runs SQL on a connection that stays open as long as the client.
async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[test]
fn a_file_of_events_comes_back_unchanged_however_it_was_sent() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let file: String = (0..2500)
        .map(|n| {
            format!(
                "{{\"timestamp\":\"2026-01-31T12:00:{:02}Z\" , \"type\":\"é{}\",\"n\":{n}.50}}\n",
                n % 60,
                n % 7
            )
        })
        .collect();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(file.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(file.as_bytes(), 1).unwrap();
    let plain = pod.post("/v1/ledger/events", &[NDJSON], file.as_bytes());
    assert_eq!(
        (plain.status, &plain.json()["count"], &plain.json()["ack"]),
        (201, &json!(2500), &json!("committed"))
    );
    for (encoding, body) in [("gzip", &gzip), ("zstd", &zstd)] {
        let reply = pod.post("/v1/ledger/events", &[NDJSON, ("content-encoding", encoding)], body);
        assert_eq!(reply.status, 201, "{reply:?}");
    }
    let mut lines = Vec::new();
    let mut cursor = Some("0".to_owned());
    while let Some(at) = cursor {
        let path = format!("/v1/ledger/events?limit=1000&cursor={at}");
        let page = request(pod.api, "GET", &path, &[("accept", "application/x-ndjson")], b"");
        assert_eq!(page.status, 200);
        cursor = page.header("certeus-next-cursor").map(str::to_owned);
        lines.extend(page.body);
    }
    assert!(lines == file.repeat(3).into_bytes(), "the file came back changed");

    let reply =
        pod.post("/v1/ledger/events?ids=true", &[JSON], format!("[{EVENT},{EVENT}]").as_bytes()).json();
    let second = reply["ids"][1].as_str().unwrap();
    let event = pod.get(&format!("/v1/ledger/events/{second}")).json();
    assert_eq!(
        (&event["index"], &event["type"], &event["event"]),
        (&json!(7501), &json!("a"), &json!({"type":"a","timestamp":1_769_860_800}))
    );
    assert_eq!(event["timestamp"], "2026-01-31T12:00:00Z");

    let path = format!("/v1/ledger/events/{second}");
    let accept = [("accept", "application/octet-stream")];
    let stored = request(pod.api, "GET", &path, &accept, b"");
    assert_eq!((stored.status, stored.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!(stored.body, EVENT.as_bytes());
    let decrypted = request(pod.api, "GET", &format!("{path}?decrypt=true"), &accept, b"");
    assert!(matches!(decrypted.status, 400 | 403), "{decrypted:?}");
}

#[test]
fn bad_input_gets_a_clear_reply_and_stores_nothing() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let deep = format!(r#"{{"type":"a","timestamp":1,"x":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"type":"a","timestamp":1,"x":"{}"}}"#, "y".repeat(1 << 20));
    let mut truncated = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(EVENT.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    truncated.truncate(truncated.len() - 10);
    let bomb = zstd::encode_all(&vec![b' '; 256 << 20][..], 1).unwrap();
    let gzip = ("content-encoding", "gzip");
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [u8], u16, &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (&[JSON], b"hello", 400, "invalid-request", "invalid JSON at byte 0"),
        (&[JSON], b"", 400, "invalid-request", "no event"),
        (&[JSON], b"\xff\xfe", 400, "invalid-request", "not UTF-8"),
        (&[JSON], br#"{"type":"a","timestamp":1"#, 400, "invalid-event", "the text ends inside a value"),
        (&[JSON], br#"{"type":7,"timestamp":1}"#, 400, "invalid-event", "`type` must be a string"),
        (&[JSON], br#"{"timestamp":1}"#, 400, "invalid-event", "`type` is missing"),
        (
            &[JSON],
            br#"{"type":"a","timestamp":"99999-01-01"}"#,
            400,
            "invalid-event",
            "`timestamp` is not an RFC 3339",
        ),
        (&[JSON], br#"{"type":"a","timestamp":99999999999}"#, 400, "invalid-event", "outside 1970"),
        (&[JSON], deep.as_bytes(), 400, "invalid-event", "nested deeper than 128"),
        (&[JSON], long.as_bytes(), 413, "too-large", "at most 1048576"),
        (&[NDJSON, gzip], &truncated, 400, "invalid-request", "broken or cut short"),
        (&[JSON, gzip], EVENT.as_bytes(), 400, "invalid-request", "broken or cut short"),
        (&[JSON, ("content-encoding", "zstd")], &bomb, 413, "too-large", "also when uncompressed"),
        (&[JSON, ("content-encoding", "br")], b"x", 415, "unsupported-media-type", "gzip or zstd"),
        (&[("content-type", "text/csv")], b"a,b", 415, "unsupported-media-type", "application/x-ndjson"),
        (&[], EVENT.as_bytes(), 415, "unsupported-media-type", "application/json"),
    ];
    for (headers, body, status, code, words) in cases {
        let reply = pod.post("/v1/ledger/events", headers, body);
        assert_eq!(reply.problem(), (*status, (*code).to_owned()), "{reply:?}");
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{detail:?} does not say {words:?}");
    }
    let batch = format!("[{EVENT},{{\"type\":\"a\"}},{EVENT}]");
    let refused = pod.append(&batch);
    assert_eq!(refused.problem(), (400, "invalid-event".to_owned()));
    assert_eq!(refused.json()["refused"][0]["position"], 1);
    assert_eq!(pod.get("/v1/ledger/events").json(), json!({"events": [], "next_cursor": null}));
    let partial = pod.post("/v1/ledger/events?partial=true", &[JSON], batch.as_bytes());
    assert_eq!((partial.status, &partial.json()["count"]), (201, &json!(2)));
    assert_eq!(partial.json()["refused"][0]["reason"], "`timestamp` is missing");
    for (path, status) in [
        ("/v1/ledger/events?limt=1", 400),
        ("/v1/ledger/events?limit=0", 400),
        ("/v1/ledger/events?cursor=x", 400),
        ("/v1/ledger/events?from=soon", 400),
        ("/v1/ledger/events/12", 400),
        ("/v1/ledger/events/01a1fd02-e62b-79e1-8c97-a86e20f00000", 404),
        ("/v2", 404),
    ] {
        assert_eq!(pod.get(path).problem().0, status, "{path}");
    }
    assert_eq!(request(pod.api, "PUT", "/v1/ledger/events", &[], b"").problem().0, 405);
}

#[test]
fn clients_that_vanish_or_dawdle_disturb_nobody() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let head = "POST /v1/ledger/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n[";
    let dawdling: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(pod.api).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(pod.append(EVENT).status, 201);
    drop(dawdling);
    // A client that goes away after its request was admitted: the event is stored nevertheless.
    let mut vanishing = TcpStream::connect(pod.api).unwrap();
    let whole = format!(
        "POST /v1/ledger/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{EVENT}",
        EVENT.len()
    );
    vanishing.write_all(whole.as_bytes()).unwrap();
    wait_for_reply(&vanishing);
    drop(vanishing);
    assert_eq!(pod.append(EVENT).json()["first_index"], 2);
}

/// Waits for the first byte of a reply.
fn wait_for_reply(stream: &TcpStream) {
    assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
}

#[test]
fn a_full_queue_answers_at_once_and_loses_nothing_acknowledged() {
    let pg = postgres();
    let pod = Pod::start(
        &pg.url(),
        &Settings { yaml: "ledger: {queueEvents: 20, writers: 1}", ..Settings::default() },
    )
    .ready();
    let runtime = runtime();
    // Whoever holds the head's row holds up every commit.
    let blocker = runtime.block_on(connect(&pg.url()));
    runtime.block_on(blocker.batch_execute("BEGIN; SELECT * FROM certeus.heads FOR UPDATE")).unwrap();
    let api = pod.api;
    let ten = format!("[{}]", [EVENT; 10].join(","));
    let posts: Vec<_> = (0..8)
        .map(|_| {
            let ten = ten.clone();
            std::thread::spawn(move || request(api, "POST", "/v1/ledger/events", &[JSON], ten.as_bytes()))
        })
        .collect();
    let started = Instant::now();
    loop {
        let reply = request(pod.admin, "GET", "/metrics", &[], b"");
        let full = reply.text().lines().find_map(|line| {
            line.strip_prefix("certeus_ledger_requests_refused_total{reason=\"full\"} ").map(str::to_owned)
        });
        if full.is_some_and(|count| count.parse::<f64>().unwrap() >= 1.0) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the queue does not fill");
    }
    runtime.block_on(blocker.batch_execute("COMMIT")).unwrap();
    let replies: Vec<_> = posts.into_iter().map(|post| post.join().unwrap()).collect();
    let (accepted, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 201);
    for reply in &refused {
        assert_eq!(reply.problem(), (429, "overloaded".to_owned()));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert!(!accepted.is_empty() && !refused.is_empty());
    let too_many = format!("[{}]", [EVENT; 21].join(","));
    assert_eq!(pod.append(&too_many).problem(), (413, "too-large".to_owned()));
    let stored = runtime.block_on(blocker.query_one("SELECT count(*) FROM certeus.event_log", &[])).unwrap();
    assert_eq!(stored.get::<_, i64>(0), 10 * i64::try_from(accepted.len()).unwrap());
}

#[test]
fn without_a_database_the_pod_lives_says_so_and_takes_nothing() {
    let pod = Pod::start("postgres://u:hush@127.0.0.1:1/none", &Settings::default());
    assert_eq!(pod.get("/health/live").status, 200);
    assert_eq!(pod.get("/health/ready").status, 503);
    let reply = pod.append(EVENT);
    assert_eq!(reply.problem(), (503, "unavailable".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(!pod.get("/v1/ledger/health").text().contains("hush"));
    pod.terminate();
    assert_eq!(pod.wait(), Some(0));
}

#[test]
fn with_a_key_every_route_but_health_needs_it() {
    let pg = postgres();
    let key = "0123456789abcdef";
    let pod =
        Pod::start(&pg.url(), &Settings { env: &[("CERTEUS_API_KEY", key)], ..Settings::default() }).ready();
    let bearer = format!("Bearer {key}");
    for path in ["/v1/ledger/events", "/v1/ledger/metrics", "/openapi.json", "/docs/", "/nowhere"] {
        assert_eq!(pod.get(path).problem(), (401, "unauthorized".to_owned()), "{path}");
        let with_key = request(pod.api, "GET", path, &[("authorization", &bearer)], b"");
        assert_ne!(with_key.status, 401, "{path}");
    }
    for path in ["/metrics", "/admin/drain"] {
        assert_eq!(request(pod.admin, "GET", path, &[], b"").status, 401);
        assert_eq!(request(pod.admin, "GET", path, &[("x-api-key", key)], b"").status, 200);
    }
    assert_eq!(pod.append(EVENT).status, 401);
    for path in ["/health", "/health/live", "/health/ready", "/health/detailed", "/health/system"] {
        assert_eq!(pod.get(path).status, 200, "{path}");
        assert_eq!(request(pod.admin, "GET", path, &[], b"").status, 200, "{path}");
    }
}

#[test]
fn sigterm_under_load_acknowledges_exactly_what_is_stored() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let api = pod.api;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut acknowledged = 0;
                while let Ok(stream) = TcpStream::connect(api) {
                    let mut stream = stream;
                    let whole = format!("POST /v1/ledger/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{EVENT}", EVENT.len());
                    if stream.write_all(whole.as_bytes()).is_err() || !stream.peek(&mut [0]).is_ok_and(|read| read > 0) {
                        break;
                    }
                    match read_reply(stream).status {
                        201 => acknowledged += 1,
                        503 => break,
                        status => panic!("{status}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    let started = Instant::now();
    while pod.get("/v1/ledger/metrics").json()["events_processed"].as_u64().unwrap() < 100 {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    pod.terminate();
    assert_eq!(pod.wait(), Some(0));
    let acknowledged: i64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let runtime = runtime();
    let client = runtime.block_on(connect(&pg.url()));
    let stored = runtime.block_on(client.query_one("SELECT count(*) FROM certeus.event_log", &[])).unwrap();
    assert_eq!(stored.get::<_, i64>(0), acknowledged);
}

#[test]
fn pods_share_an_inherited_socket_and_one_drains_without_a_refusal() {
    let pg = postgres();
    let (socket, address) = support::shared_socket();
    let inherit = || Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
    let settings = Settings { env: &[("CERTEUS_API_LISTEN", "fd:0")], ..Settings::default() };
    let first = Pod::start_with(&pg.url(), &settings, inherit()).ready();
    assert_eq!(first.api, address);
    // Kept open, so that the pod has somebody to send elsewhere: without connections it drains in no time.
    let mut idle = TcpStream::connect(address).unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    wait_for_reply(&idle);
    let second = Pod::start_with(&pg.url(), &settings, inherit());
    let started = Instant::now();
    while request(second.admin, "GET", "/health/ready", &[], b"").status != 200 {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    let drained = request(first.admin, "POST", "/admin/drain", &[], b"");
    assert_eq!((drained.status, &drained.json()["state"]), (202, &json!("draining")));
    let mut state = String::new();
    while state != "drained" {
        // Each of these is a new connection: a draining pod must leave them to the other.
        assert_eq!(first.append(EVENT).status, 201);
        state = request(first.admin, "GET", "/admin/drain", &[], b"").json()["state"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    assert!(request(first.admin, "GET", "/metrics", &[], b"").text().contains("\ncerteus_draining 1\n"));
    first.terminate();
    assert_eq!(first.wait(), Some(0));
    assert_eq!(request(address, "POST", "/v1/ledger/events", &[JSON], EVENT.as_bytes()).status, 201);
}

/// Whoever balances by readiness needs seconds to see that a pod drains, and sends it connections meanwhile.
#[test]
fn a_pod_that_drains_answers_whoever_still_comes() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let state = || request(pod.admin, "GET", "/admin/drain", &[], b"").json()["state"].clone();
    assert_eq!(request(pod.admin, "POST", "/admin/drain", &[], b"").status, 202);
    let began = Instant::now();
    let mut refused = None;
    while state() != "drained" {
        // A connection of its own for each, and none between them.
        let reply = pod.append(EVENT);
        match (reply.status, refused) {
            (201, None) => {}
            _ => {
                assert_eq!(reply.problem(), (503, "draining".to_owned()));
                refused.get_or_insert_with(|| began.elapsed());
            }
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Two probes of a kubelet, 2 s apart, and the way of the news to all nodes.
    assert!(refused.unwrap_or_else(|| began.elapsed()) >= Duration::from_secs(7), "{refused:?}");
    assert_eq!(pod.append(EVENT).problem(), (503, "draining".to_owned()));
    pod.terminate();
    assert_eq!(pod.wait(), Some(0));
}

#[test]
fn a_drain_is_taken_back_in_place_or_by_a_restart() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let ask = |method: &str| {
        let reply = request(pod.admin, method, "/admin/drain", &[], b"");
        (reply.status, reply.json()["state"].as_str().unwrap().to_owned())
    };
    let reply = |status: u16, state: &str| (status, state.to_owned());
    assert_eq!(ask("POST"), reply(202, "draining"));
    assert_eq!(pod.get("/health/ready").status, 503);
    assert_eq!(ask("DELETE"), reply(200, "serving"));
    assert_eq!((pod.get("/health/ready").status, pod.append(EVENT).status), (200, 201));
    // Longer than a pod sends clients elsewhere: the drain that was taken back does not go on.
    std::thread::sleep(Duration::from_millis(8500));
    assert_eq!((ask("GET"), pod.append(EVENT).status), (reply(200, "serving"), 201));

    let started = Instant::now();
    while ask("POST").1 != "drained" {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(ask("DELETE"), reply(202, "restarting"));
    assert_eq!(pod.wait(), Some(0), "whoever runs it starts it again");
}

#[test]
fn a_configuration_that_cannot_work_ends_with_code_2_and_the_path() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let settings = Settings { yaml: "ledger:\n  batchSiz: 5\n", ..Settings::default() };
    let output = support::command("postgres://localhost/x", &settings, &file).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("ledger.batchSiz: unknown field") && message.contains("batchSize"), "{message}");
}

#[test]
fn what_ends_a_pod_is_left_for_kubernetes_and_by_the_pod_alone() {
    const WRONG: &str = "ledger:\n  batchSiz: 5\n";
    let folder = tempfile::tempdir().unwrap();
    let words = folder.path().join("termination-log");
    let end = |yaml: &str, env: &[(&str, &str)], arguments: &[&str]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut command = support::command("postgres://localhost/x", &Settings { yaml, env }, &file);
        command.args(arguments).env("CERTEUS_TERMINATION_LOG", &words).output().unwrap().status.code()
    };
    assert_eq!((end(WRONG, &[], &[]), words.exists()), (Some(2), false), "nobody asked for one");
    std::fs::write(&words, "").unwrap();
    let left = || std::fs::read_to_string(&words).unwrap();
    for argument in ["--check-config", "--check-ready"] {
        assert_eq!((end(WRONG, &[], &[argument]), left()), (Some(2), String::new()));
    }
    assert_eq!(end(WRONG, &[], &[]), Some(2));
    assert!(left().contains("ledger.batchSiz: unknown field"), "{}", left());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_eq!(end("", &[("CERTEUS_ADMIN_LISTEN", &address)], &[]), Some(1));
    assert!(left().starts_with(&format!("cannot listen on {address}")), "{}", left());
}

#[test]
fn a_request_sent_again_gets_the_same_bytes_from_every_pod() {
    let pg = postgres();
    let pods = [(); 2].map(|()| Pod::start(&pg.url(), &Settings::default()).ready());
    let send = |pod: &Pod, path: &str, headers: &[(&str, &str)], body: &str| {
        pod.post(path, &[&[JSON], headers].concat(), body.as_bytes())
    };
    let path = "/v1/ledger/events?partial=true&ids=true";
    let body = format!("[{EVENT},{{\"type\":\"a\"}},{EVENT}]");
    assert_eq!(
        send(&pods[0], path, &[("idempotency-key", "order 7")], &body).problem(),
        (400, "invalid-request".to_owned())
    );

    let quoted = [("idempotency-key", "\"order-7\"")];
    let bare = [("idempotency-key", "order-7")];
    let first = send(&pods[0], path, &quoted, &body);
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None), "{first:?}");
    for (pod, headers) in [(&pods[1], quoted), (&pods[0], bare)] {
        let again = send(pod, path, &headers, &body);
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{again:?}");
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("content-type"), first.header("content-type"));
    }
    // Compressed it is the same request.
    let zstd = zstd::encode_all(body.as_bytes(), 1).unwrap();
    let compressed = pods[1].post(path, &[JSON, bare[0], ("content-encoding", "zstd")], &zstd);
    assert_eq!(compressed.body, first.body);
    let spaced = format!(" {body}");
    for (path, body) in [(path, EVENT), (path, &spaced), ("/v1/ledger/events?partial=true", &body)] {
        let reply = send(&pods[1], path, &bare, body);
        assert_eq!(reply.problem(), (409, "idempotency-key-reused".to_owned()), "{path} {body}");
    }
    // Nothing is remembered of a request that was refused.
    let refused = [("idempotency-key", "refused")];
    assert_eq!(send(&pods[0], "/v1/ledger/events", &refused, "{}").status, 400);
    assert_eq!(send(&pods[0], "/v1/ledger/events", &refused, EVENT).json()["first_index"], 2);

    let numbered = |epoch, sequence| {
        [("producer-id", "till"), ("producer-epoch", epoch), ("producer-sequence", sequence)]
    };
    let events = "/v1/ledger/events";
    let two = format!("[{EVENT},{EVENT}]");
    let early = send(&pods[0], events, &numbered("0", "5"), &two);
    assert_eq!(early.problem(), (409, "sequence-gap".to_owned()));
    assert!(early.json()["detail"].as_str().unwrap().contains("next sequence number of this producer is 0"));
    let first = send(&pods[0], events, &numbered("0", "0"), &two);
    assert_eq!(first.json()["first_index"], 3);
    let again = send(&pods[1], events, &numbered("0", "0"), &two);
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(again.body, first.body);
    let other = send(&pods[1], events, &numbered("0", "0"), EVENT);
    assert_eq!(other.problem(), (409, "sequence-reused".to_owned()));
    assert_eq!(
        send(&pods[1], events, &numbered("0", "1"), &two).problem(),
        (409, "sequence-overlap".to_owned())
    );
    // The second event alone was not sent like this before, but is stored.
    let duplicate = send(&pods[1], events, &numbered("0", "1"), EVENT);
    assert_eq!(
        (duplicate.status, duplicate.json()),
        (200, json!({"ledger": "default", "ack": "committed", "duplicate": true, "count": 1}))
    );
    assert_eq!(send(&pods[1], events, &numbered("1", "0"), EVENT).status, 201);
    assert_eq!(
        send(&pods[0], events, &numbered("0", "2"), EVENT).problem(),
        (403, "producer-fenced".to_owned())
    );
    let both = [&numbered("1", "1")[..], &bare].concat();
    for headers in [
        &both[..],
        &numbered("1", "1")[..2],
        &numbered("-1", "1"),
        &[("idempotency-key", "a"), ("idempotency-key", "a")],
    ] {
        assert_eq!(send(&pods[0], events, headers, EVENT).problem(), (400, "invalid-request".to_owned()));
    }
    assert_eq!(pods[0].append(EVENT).json()["first_index"], 6);
}

#[test]
fn encrypted_fields_are_decrypted_for_the_second_key_alone() {
    const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let pg = postgres();
    let (ordinary, decrypting) =
        (("x-api-key", "ordinary-0123456789"), ("x-api-key", "decrypting-0123456789"));
    let env = |keys| {
        [
            ("CERTEUS_API_KEY", ordinary.1),
            ("CERTEUS_DECRYPT_API_KEY", decrypting.1),
            ("CERTEUS_ENCRYPTION_KEY", keys),
        ]
    };
    let yaml = "encryption: {fields: [/card/number]}";
    let pod = Pod::start(&pg.url(), &Settings { yaml, env: &env(ONE) }).ready();
    let received = r#"{"type":"paid","timestamp":1769860800,"card": {"number":"4111-HIDDEN"},"n":1.50}"#;
    let reply = pod.post("/v1/ledger/events", &[JSON, ordinary], received.as_bytes());
    assert_eq!(reply.status, 201, "{reply:?}");
    let one = format!("/v1/ledger/events/{}", reply.json()["first_id"].as_str().unwrap());
    let get = |pod: &Pod, path: &str, key| request(pod.api, "GET", path, &[key], b"");

    // What is stored, to the ordinary key, and to the other one on request.
    let stored = get(&pod, &one, ordinary);
    assert!(!stored.text().contains("HIDDEN") && stored.text().contains(r#""number":"certeus:enc:v1:"#));
    assert_eq!(
        (stored.json()["decrypted"].as_bool(), stored.header("certeus-decrypted")),
        (Some(false), None)
    );
    assert_eq!(get(&pod, &format!("{one}?decrypt=false"), decrypting).text(), stored.text());
    // The bytes received.
    let shown = get(&pod, &one, decrypting);
    assert!(shown.text().contains(&format!(r#""decrypted":true,"event":{received}"#)), "{}", shown.text());
    assert_eq!(shown.header("certeus-decrypted"), Some("true"));
    assert_eq!(shown.header("cache-control"), Some("no-store"));
    // Asking for it does not help.
    for path in [&format!("{one}?decrypt=true"), "/v1/ledger/events?decrypt=true"] {
        assert_eq!(get(&pod, path, ordinary).problem(), (403, "forbidden".to_owned()));
        assert_eq!(get(&pod, path, decrypting).status, 200);
    }
    assert_eq!(get(&pod, &format!("{one}?decrypt=yes"), decrypting).problem().0, 400);
    // Lists, in both forms.
    let list = "/v1/ledger/events?limit=5";
    assert!(!get(&pod, list, ordinary).text().contains("HIDDEN"));
    assert!(get(&pod, list, decrypting).text().contains(received));
    let ndjson = ("accept", "application/x-ndjson");
    let lines = request(pod.api, "GET", list, &[decrypting, ndjson], b"");
    assert_eq!((lines.text(), lines.header("certeus-decrypted")), (&*format!("{received}\n"), Some("true")));
    let lines = request(pod.api, "GET", list, &[ordinary, ndjson], b"");
    assert!(!lines.text().contains("HIDDEN") && lines.header("certeus-decrypted").is_none());
    // The second key opens everything that the first one does, on both ports.
    assert_eq!(pod.post("/v1/ledger/events", &[JSON, decrypting], EVENT.as_bytes()).status, 201);
    assert_eq!(request(pod.admin, "GET", "/metrics", &[decrypting], b"").status, 200);
    // An event that is too long once it is encrypted.
    let long = format!(r#"{{"type":"t","timestamp":1,"card":{{"number":"{}"}}}}"#, "x".repeat(800_000));
    let refused = pod.post("/v1/ledger/events", &[JSON, ordinary], long.as_bytes());
    assert_eq!(refused.problem(), (413, "too-large".to_owned()));
    assert!(refused.text().contains("once its fields are encrypted"));
    drop(pod);

    // After a rotation, and after the old key was thrown away.
    let keys = format!("{TWO}\n{ONE}\n");
    let pod = Pod::start(&pg.url(), &Settings { yaml, env: &env(&keys) }).ready();
    assert!(get(&pod, &one, decrypting).text().contains(received));
    drop(pod);
    let pod = Pod::start(&pg.url(), &Settings { yaml, env: &env(TWO) }).ready();
    let sealed = get(&pod, &one, decrypting);
    assert_eq!((sealed.status, sealed.json()["decrypted"].as_bool()), (200, Some(false)));
    let missing = sealed.json()["missing_key_id"].as_str().unwrap().to_owned();
    assert_eq!((missing.len(), sealed.header("certeus-missing-key-ids")), (16, Some(&*missing)));
    assert_eq!(sealed.json()["event"], stored.json()["event"]);
    assert_eq!(get(&pod, &one, ordinary).text(), stored.text());
    drop(pod);

    // Where no key is asked for, every caller is on this machine and may see it.
    let settings = Settings { yaml, env: &[("CERTEUS_ENCRYPTION_KEY", ONE)] };
    let pod = Pod::start(&pg.url(), &settings).ready();
    assert!(pod.get(&one).text().contains(received));
    assert!(!pod.get(&format!("{one}?decrypt=false")).text().contains("HIDDEN"));
}
