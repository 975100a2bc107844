//! The operator's own port: `/metrics`, `/healthz`, `/readyz`, and `/loglevel` for callers on the same machine.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::log::FILTER_BYTES_MAX;
use super::{Health, LogFilter, LogLevel, Metrics};
use crate::run::clock;

/// Probes and scrapers; each needs one connection.
const CONNECTIONS_MAX: usize = 32;
/// For sending a request's head, and for using a connection at all.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest after a failed accept, which usually means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server tells of.
#[derive(Clone)]
struct State {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    level: LogLevel,
}

/// Serves until the task is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    level: LogLevel,
) {
    let state = State { metrics, health, level };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let state = state.clone();
                // Ends by itself: a connection is read with a timeout, and replies are small.
                tokio::spawn(async move {
                    connection(stream, peer, state).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, state: State) {
    let service = service_fn(|request: Request<Incoming>| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, peer, &state).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection to the operator's port failed");
    }
}

async fn answer(request: Request<Incoming>, peer: SocketAddr, state: &State) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/metrics") => match state.metrics.text() {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                let format = hyper::header::HeaderValue::from_static(prometheus::TEXT_FORMAT);
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (&Method::GET, "/healthz") => told(state.health.live(clock::now())),
        (&Method::GET, "/readyz") => ready(state.health.ready(clock::now()), &state.health.refusals()),
        (&Method::GET, "/loglevel") => match state.level.current() {
            Ok(level) => text(StatusCode::OK, format!("{level}\n")),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        // Debug logs name objects; whoever may forward a port to the pod may have them, the network may not.
        (&Method::PUT, "/loglevel") if !peer.ip().to_canonical().is_loopback() => {
            text(StatusCode::FORBIDDEN, "only from the loopback address: use kubectl port-forward\n")
        }
        (&Method::PUT, "/loglevel") => set_level(request, state).await,
        (_, "/metrics" | "/healthz" | "/readyz" | "/loglevel") => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
            let allowed = if path == "/loglevel" { "GET, PUT" } else { "GET" };
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allowed));
            response
        }
        (_, _) => text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz and /loglevel are here\n"),
    }
}

async fn set_level(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let read = Limited::new(request.into_body(), FILTER_BYTES_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(HEAD_TIMEOUT, read).await else {
        return text(StatusCode::BAD_REQUEST, format!("send a level of at most {FILTER_BYTES_MAX} bytes\n"));
    };
    let level = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
    let filter: LogFilter = match level.parse() {
        Ok(filter) => filter,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    match state.level.set(&filter) {
        Ok(()) => {
            tracing::info!(log.level = level, "log level changed");
            text(StatusCode::OK, format!("{level}\n"))
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn told(health: Result<(), String>) -> Response<Full<Bytes>> {
    match health {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// What is refused in some namespaces is told, and keeps nobody from being ready for the others.
fn ready(ready: Result<(), String>, refusals: &[String]) -> Response<Full<Bytes>> {
    let (status, first) = match ready {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let lines: Vec<&str> = std::iter::once(&first).chain(refusals).map(String::as_str).collect();
    text(status, lines.join("\n") + "\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
