//! Speaks to the admin ports of pods: short requests over kept connections, bounded in time and in size.
//! Never follows a redirect, never repeats a request: callers ask again with their next round.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use certeus_operator::build::ADMIN_PORT;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::pods::PodSeen;

/// For connection, request and reply together, unless the caller has less time.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
/// The library's constant has the type that Kubernetes gives ports.
#[expect(clippy::cast_possible_truncation, reason = "checked beside it")]
const ADMIN: u16 = ADMIN_PORT as u16;
const _: () = assert!(ADMIN as i32 == ADMIN_PORT);
/// A page of metrics is some tens of kilobytes.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A reply's head fits in.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// Longer than the interval between two scrapes, shorter than what a pod keeps an idle connection.
const IDLE: Duration = Duration::from_secs(5);

/// Why a pod gave no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the pod has no address yet")]
    NoAddress,
    #[error("no reply within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("cannot reach the pod")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("the request cannot be formed")]
    Request(#[source] hyper::http::Error),
    #[error("the API key cannot be sent")]
    Key,
    #[error("the reply is longer than {BODY_BYTES_MAX} bytes, or was cut off")]
    Body,
}

/// What a pod answered, whatever the status.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// A client for the pods of all clusters.
#[derive(Clone)]
pub(crate) struct PodHttp {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl PodHttp {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            // One for each of some thousand pods: left to itself it would grow to a multiple of a page.
            .http1_read_buf_exact_size(READ_BUFFER_BYTES)
            .build(connector);
        Self { client }
    }

    /// `GET path` on the pod's admin port.
    pub(crate) async fn get(&self, pod: &PodSeen, path: &str) -> Result<Reply, Error> {
        self.request(Method::GET, pod, path, None, TIMEOUT).await
    }

    /// `POST path` without a body.
    pub(crate) async fn post(&self, pod: &PodSeen, path: &str) -> Result<Reply, Error> {
        self.request(Method::POST, pod, path, None, TIMEOUT).await
    }

    /// Any request; a `json` body is sent as such.
    pub(crate) async fn request(
        &self,
        method: Method,
        pod: &PodSeen,
        path: &str,
        json: Option<Bytes>,
        timeout: Duration,
    ) -> Result<Reply, Error> {
        let address = SocketAddr::new(pod.ip.ok_or(Error::NoAddress)?, ADMIN);
        let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        if let Some(key) = &pod.key {
            let value = HeaderValue::try_from(format!("Bearer {}", key.secret_text()));
            let mut value = value.map_err(|_unprintable| Error::Key)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(json.unwrap_or_default())).map_err(Error::Request)?;
        tokio::time::timeout(timeout, self.exchange(request)).await.unwrap_or(Err(Error::Timeout(timeout)))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, Error> {
        let response = self.client.request(request).await.map_err(Error::Connect)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        Ok(Reply { status, body: body.map_err(|_cut| Error::Body)?.to_bytes() })
    }
}
