//! A stand-in for the ledger that answers as its contract says, and as badly as a test tells it to.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

/// What the server does with one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    Commit,
    CommitAndClose,
    CommitAfter(Duration),
    /// Commits, tells the test that the request is there, and replies when the test says so.
    CommitWhenReleased,
    /// Commits and breaks the connection instead of replying.
    CommitAndBreak,
    /// Breaks the connection instead of replying.
    Break,
    Overloaded,
    /// Full now and for all later requests.
    OverloadedForGood,
    Unavailable,
    OutcomeUnknown,
    Spooled,
    Reject,
}

/// What the server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Committed lines with their indexes as positions.
    pub(crate) committed: Vec<String>,
    pub(crate) connections: usize,
    pub(crate) requests: usize,
    pub(crate) headers: Vec<HeaderMap>,
    /// Paths and bodies of the requests that make and publish a bundle.
    pub(crate) publishing: Vec<(String, serde_json::Value)>,
    /// Receipts by idempotency key.
    receipts: HashMap<String, String>,
}

pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    pub(crate) waiting: mpsc::Receiver<()>,
    pub(crate) release: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Ledger {
    seen: Arc<Mutex<Seen>>,
    /// Acts for the next requests; when they are used up, everything is committed.
    script: Arc<Mutex<VecDeque<Act>>>,
    waiting: mpsc::Sender<()>,
    released: watch::Receiver<bool>,
}

impl Server {
    pub(crate) fn start(script: &[Act]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (waiting_sender, waiting) = mpsc::channel();
        let (release, released) = watch::channel(false);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let script = Arc::new(Mutex::new(script.iter().copied().collect()));
        let ledger = Ledger { seen: seen.clone(), script, waiting: waiting_sender, released };
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                ledger.seen.lock().unwrap().connections += 1;
                let ledger = ledger.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| ledger.answer(request));
                    let http = hyper::server::conn::http1::Builder::new();
                    // An act may be to break the connection.
                    let _ended = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, waiting, release, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Ledger {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, io::Error> {
        assert_eq!(request.method(), "POST");
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if head.uri.path() != "/v1/ledger/events" {
            return Ok(self.publish(head.uri.path(), &body));
        }
        let lines = decode(&head.headers, &body);
        let act = {
            let mut script = self.script.lock().unwrap();
            script.pop_front_if(|act| !matches!(act, Act::OverloadedForGood)).or(script.front().copied())
        };
        let key = head.headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
        {
            let mut seen = self.seen.lock().unwrap();
            seen.requests += 1;
            seen.headers.push(head.headers);
        }
        let broken = || Err(io::Error::other("as the script says"));
        match act.unwrap_or(Act::Commit) {
            Act::Commit => {}
            Act::CommitAfter(time) => tokio::time::sleep(time).await,
            Act::CommitWhenReleased => {
                self.waiting.send(()).unwrap();
                self.released.clone().wait_for(|released| *released).await.unwrap();
            }
            Act::CommitAndClose => {
                let mut response = self.commit(lines, key).unwrap();
                response.headers_mut().insert("connection", "close".parse().unwrap());
                return Ok(response);
            }
            Act::CommitAndBreak => {
                self.commit(lines, key).unwrap();
                return broken();
            }
            Act::Break => return broken(),
            Act::Overloaded | Act::OverloadedForGood => {
                return Ok(problem(429, "queue-full", "the queue is full"));
            }
            Act::Unavailable => return Ok(problem(503, "database-unavailable", "no database")),
            Act::Spooled => {
                let mut response = Response::new(Full::new(Bytes::from(r#"{"ack":"spooled"}"#)));
                *response.status_mut() = hyper::StatusCode::ACCEPTED;
                return Ok(response);
            }
            Act::OutcomeUnknown => return Ok(problem(503, "outcome-unknown", "the commit reply was lost")),
            Act::Reject => return Ok(problem(400, "invalid-event", "event 3 has no 'type'")),
        }
        Ok(self.commit(lines, key).unwrap())
    }

    /// Is busy once, then makes a bundle and publishes it.
    fn publish(&self, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
        let mut seen = self.seen.lock().unwrap();
        seen.publishing.push((path.to_owned(), serde_json::from_slice(body).unwrap()));
        let reply = match (seen.publishing.len(), path) {
            (1, _) => return problem(429, "overloaded", "other bundles"),
            (_, "/v1/pco/bundle") => r#"{"rid":"r","bundle":"a.b.c"}"#,
            (_, "/v1/proofgate/publish") => r#"{"rid":"r","url":"/v1/pco/public/r"}"#,
            (_, other) => panic!("{other}"),
        };
        Response::builder().status(201).body(Full::new(Bytes::from(reply))).unwrap()
    }

    fn commit(&self, lines: Vec<String>, key: Option<String>) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut seen = self.seen.lock().unwrap();
        let known = key.as_ref().and_then(|key| seen.receipts.get(key).cloned());
        let receipt = known.unwrap_or_else(|| {
            let (first_index, count) = (seen.committed.len(), lines.len());
            seen.committed.extend(lines);
            format!(
                r#"{{"ledger":"default","ack":"committed","first_index":{first_index},"count":{count},"first_id":"id-{first_index}"}}"#
            )
        });
        seen.receipts.extend(key.map(|key| (key, receipt.clone())));
        let mut response = Response::new(Full::new(Bytes::from(receipt)));
        *response.status_mut() = hyper::StatusCode::CREATED;
        Ok(response)
    }
}

fn decode(headers: &HeaderMap, body: &[u8]) -> Vec<String> {
    let encoding = headers.get("content-encoding").map_or("", |value| value.to_str().unwrap());
    let mut text = String::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap(),
        "zstd" => zstd::Decoder::new(body).unwrap().read_to_string(&mut text).unwrap(),
        _ => (&mut &*body).read_to_string(&mut text).unwrap(),
    };
    let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let expected = if lines.len() == 1 { "application/json" } else { "application/x-ndjson" };
    assert_eq!(headers["content-type"], expected);
    lines
}

fn problem(status: u16, kind: &str, detail: &str) -> Response<Full<Bytes>> {
    let body = format!(
        r#"{{"type":"https://certeus.io/problems/{kind}","title":"Problem","status":{status},"detail":"{detail}"}}"#
    );
    Response::builder()
        .status(status)
        .header("content-type", "application/problem+json")
        .header("retry-after", "0")
        .body(Full::new(Bytes::from(body)))
        .unwrap()
}
