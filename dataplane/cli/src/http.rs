//! Single requests to a ledger over HTTP.
//!
//! Owns one connection per request and the bounds on time and size. Never follows a redirect, never sends a key that was not
//! given in `CERTEUS_API_KEY`, and trusts nothing that it is answered. Repeats a request only if it is safe to, and says so.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::load::{API_KEY, Endpoint};

/// From connecting to the reply's last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const REPLY_BYTES_MAX: usize = 8 << 20;

/// Why there is no answer to be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the address {0}")]
    Url(String),
    #[error("the value of {API_KEY} cannot be sent in a header")]
    ApiKey,
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("no answer from {url}")]
    Away { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{url} answered {status}{detail}")]
    Status { url: String, status: StatusCode, detail: String, refused: Option<String> },
}

impl Error {
    /// Whether it may pass by itself.
    fn may_pass(&self) -> bool {
        match self {
            Self::Away { .. } => true,
            // Not in the database yet; too much is waiting; the database is away; no checkpoint yet.
            Self::Status { status, refused, .. } => {
                let later =
                    [StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
                later.contains(status) || refused.as_deref() == Some("https://certeus.io/problems/not-sealed")
            }
            Self::Url(_) | Self::ApiKey | Self::Runtime(_) => false,
        }
    }
}

/// A request with a body, which may be sent again until it is answered for good.
pub(crate) struct Post<'a> {
    pub(crate) path: &'a str,
    /// JSON.
    pub(crate) body: Bytes,
    /// Makes the ledger store the body's events once, however often they are sent.
    pub(crate) idempotency_key: Option<&'a str>,
}

/// Times that a request is sent, and the pause before it is sent again.
const ATTEMPTS: u32 = 15;
const PAUSE: Duration = Duration::from_secs(1);

/// A ledger's address.
pub(crate) struct Site {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    runtime: Runtime,
}

impl Site {
    /// With the API key of the environment, if there is one.
    pub(crate) fn new(endpoint: Endpoint) -> Result<Self, Error> {
        let authorization = match std::env::var(API_KEY) {
            Ok(key) => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_bad| Error::ApiKey)?;
                value.set_sensitive(true);
                Some(value)
            }
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(_)) => return Err(Error::ApiKey),
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        Ok(Self { endpoint, authorization, runtime })
    }

    /// The body of what is at `path` below the site's address. Anything but 200 is an error.
    pub(crate) fn get(&self, path: &str, accept: Option<&'static str>) -> Result<Vec<u8>, Error> {
        let mut request = Request::get(self.target(path));
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let (status, body) = self.exchange(path, request, Bytes::new())?;
        if status == StatusCode::OK { Ok(body) } else { Err(refusal(self.url(path), status, &body)) }
    }

    /// The reply to a request that does the same however often it is sent. While the ledger is away or busy it is sent again.
    /// Anything but success is an error.
    pub(crate) fn post(&self, post: &Post<'_>) -> Result<Vec<u8>, Error> {
        let Post { path, body, idempotency_key } = post;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut request =
                Request::post(self.target(path)).header(header::CONTENT_TYPE, "application/json");
            if let Some(key) = idempotency_key {
                request = request.header("idempotency-key", *key);
            }
            let error = match self.exchange(path, request, body.clone()) {
                Ok((StatusCode::OK | StatusCode::CREATED, body)) => return Ok(body),
                Ok((status, body)) => refusal(self.url(path), status, &body),
                Err(error) => error,
            };
            if attempts == ATTEMPTS || !error.may_pass() {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The address of what is at `path` below the site's.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint.to_string().trim_end_matches('/'))
    }

    fn target(&self, path: &str) -> String {
        let target = format!("{}{path}", self.endpoint.base_path);
        if target.is_empty() { "/".to_owned() } else { target }
    }

    fn exchange(
        &self,
        path: &str,
        request: request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Vec<u8>), Error> {
        let exchange = async { timeout(REQUEST_TIMEOUT, self.send(request, body)).await };
        let answer = match self.runtime.block_on(exchange) {
            Ok(answer) => answer,
            Err(elapsed) => Err(elapsed.into()),
        };
        answer.map_err(|source| Error::Away { url: self.url(path), source })
    }

    async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
        let Endpoint { host, port, authority, .. } = &self.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // What it ends with also reaches the request.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let mut request = request
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("certeus/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await?.to_bytes();
        driver.abort();
        Ok((status, body.to_vec()))
    }
}

/// In the server's own words, where it has any.
fn refusal(url: String, status: StatusCode, body: &[u8]) -> Error {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let word = |key: &str| problem.as_ref()?.get(key)?.as_str().map(str::to_owned);
    let detail = word("detail").or_else(|| word("title")).map(|text| format!(": {text}"));
    Error::Status { url, status, detail: detail.unwrap_or_default(), refused: word("type") }
}
