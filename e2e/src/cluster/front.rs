//! A server that stands before another one, writes down each request, and answers some of them badly itself.
//!
//! Speaks HTTP without TLS to its clients. Requests keep their headers, credentials included, so that the server behind
//! judges the client and not the front. Faults are chosen by method and path; the first that fits a request counts.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use futures_util::StreamExt;
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::runtime;

/// Requests to an API server are small, and so are those to a pod's admin port.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// A request that went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `PATCH`, ...
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The query, or nothing.
    pub query: String,
    /// Whether it was answered by a fault.
    pub broken: bool,
}

impl Seen {
    /// Whether it changes something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(&self.method[..], "GET" | "HEAD" | "OPTIONS")
    }

    /// Whether it asks for changes as they come.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.split('&').any(|part| part == "watch=true" || part == "watch=1")
    }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered with this status at once, and does not reach the server.
    Refuse(u16),
    /// It reaches the server, but its answer is this status.
    LoseReply(u16),
    /// It is held for so long first.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// A watch begins well, and then says that what it would go on from is no longer there (410).
    Expire,
}

/// Which requests a fault is for.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The method; empty: all.
    pub method: &'static str,
    /// What the path contains; empty: all.
    pub path: String,
    /// Whether watches are meant, and nothing else, or all but watches.
    pub watches: bool,
    /// How many requests it is for.
    pub times: usize,
    /// What becomes of them.
    pub fault: Fault,
}

impl Rule {
    /// All requests of this method whose path contains this, watches excepted.
    #[must_use]
    pub fn new(method: &'static str, path: &str, fault: Fault) -> Self {
        Self { method, path: path.to_owned(), watches: false, times: usize::MAX, fault }
    }

    /// All watches.
    #[must_use]
    pub fn watches(fault: Fault) -> Self {
        Self { watches: true, ..Self::new("GET", "", fault) }
    }

    /// Only the first so many.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    fn fits(&self, seen: &Seen) -> bool {
        self.times > 0
            && (self.method.is_empty() || self.method == seen.method)
            && seen.path.contains(&self.path)
            && self.watches == seen.is_watch()
    }
}

#[derive(Debug, Default)]
struct Book {
    seen: Vec<Seen>,
    rules: Vec<Rule>,
}

struct Shared {
    upstream: Client,
    book: Mutex<Book>,
    /// Grows when watches are to end.
    dropped: watch::Sender<u64>,
}

/// A running front; its connections end with it.
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Front {
    /// Listens at `listen` (port 0: a free one) before the server that `upstream` says, whose credentials are not used.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(listen: SocketAddr, mut upstream: Config) -> Result<Self> {
        let _inside = runtime().enter();
        upstream.auth_info = kube::config::AuthInfo::default();
        // Clients have their own idea of how long to wait.
        upstream.read_timeout = None;
        // Repeats are theirs, too.
        upstream.default_retry = false;
        let shared = Arc::new(Shared {
            upstream: Client::try_from(upstream).context("cannot make a client")?,
            book: Mutex::default(),
            dropped: watch::Sender::new(0),
        });
        let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen at {listen}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            // Ends only with the task.
            let _never = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task: serving.abort_handle() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a fault.
    pub fn inject(&self, rule: Rule) {
        self.shared.book().rules.push(rule);
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        self.shared.book().rules.clear();
    }

    /// Breaks every watch that is open.
    pub fn drop_watches(&self) {
        self.shared.dropped.send_modify(|count| *count += 1);
    }

    /// Everything that was asked so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.book().seen.clone()
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        self.shared.book().seen.clear();
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.drop_watches();
        self.task.abort();
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the request down and takes the fault that is for it.
    fn enter(&self, mut seen: Seen) -> Option<Fault> {
        let mut book = self.book();
        let fault = book.rules.iter_mut().find(|rule| rule.fits(&seen)).map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        seen.broken = fault.is_some();
        book.seen.push(seen);
        fault
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let uri = request.uri();
    let seen = Seen {
        method: request.method().to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        broken: false,
    };
    let is_watch = seen.is_watch();
    let fault = shared.enter(seen);
    match fault {
        Some(Fault::Refuse(status)) => return refusal(status),
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Expire) => {
            let event = json!({ "type": "ERROR", "object": status(410) });
            return json_reply(StatusCode::OK, format!("{event}\n"));
        }
        Some(Fault::LoseReply(_)) | None => {}
    }
    let dropped = shared.dropped.subscribe();
    let reply = match forward(&shared.upstream, request).await {
        Ok(reply) => reply,
        Err(error) => {
            let mut reply = Response::new(Body::from(format!("{error:#}")));
            *reply.status_mut() = StatusCode::BAD_GATEWAY;
            return reply;
        }
    };
    match fault {
        Some(Fault::LoseReply(status)) => refusal(status),
        _ if is_watch => reply.map(|body| until_dropped(body, dropped)),
        _ => reply,
    }
}

async fn forward(upstream: &Client, request: Request) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    // The client adds the server's own.
    parts.headers.remove("host");
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().context("no path")?;
    let bytes = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.context("cannot read the request")?;
    let request = http::Request::from_parts(parts, kube::client::Body::from(bytes));
    let reply = upstream.send(request).await.context("no answer")?;
    Ok(reply.map(Body::new))
}

/// A body that breaks off when watches are dropped.
fn until_dropped(body: Body, mut dropped: watch::Receiver<u64>) -> Body {
    dropped.mark_unchanged();
    let stream = futures_util::stream::unfold(Some((body.into_data_stream(), dropped)), |state| async {
        let (mut data, mut dropped) = state?;
        tokio::select! {
            piece = data.next() => piece.map(|piece| (piece, Some((data, dropped)))),
            // Also when the front is gone.
            _ = dropped.changed() => {
                let broken = axum::Error::new(std::io::Error::other("dropped"));
                Some((Err(broken), None))
            }
        }
    });
    Body::from_stream(stream)
}

/// As the API server words it.
fn status(code: u16) -> serde_json::Value {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "injected by the test", "reason": reason, "code": code,
    })
}

fn json_reply(status: StatusCode, body: String) -> Response<Body> {
    let mut reply = Response::new(Body::from(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    reply
}

fn refusal(code: u16) -> Response<Body> {
    let http_status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = json_reply(http_status, status(code).to_string());
    if code == 429 {
        reply.headers_mut().insert("retry-after", http::HeaderValue::from_static("1"));
    }
    reply
}
