//! Reads from a ledger over HTTP.
//!
//! Owns one connection per request and the bounds on time and size. Never follows a redirect, never sends a key that was not
//! given in `CERTEUS_API_KEY`, and trusts nothing that it is answered.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{self, HeaderValue};
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
    Status { url: String, status: StatusCode, detail: String },
}

/// A place to read from.
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
        let url = format!("{}{path}", self.endpoint);
        let exchange = async { timeout(REQUEST_TIMEOUT, self.exchange(path, accept)).await };
        let answer = match self.runtime.block_on(exchange) {
            Ok(answer) => answer,
            Err(elapsed) => Err(elapsed.into()),
        };
        let (status, body) = answer.map_err(|source| Error::Away { url: url.clone(), source })?;
        if status == StatusCode::OK { Ok(body) } else { Err(refusal(url, status, &body)) }
    }

    async fn exchange(
        &self,
        path: &str,
        accept: Option<&'static str>,
    ) -> Result<(StatusCode, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
        let Endpoint { host, port, authority, base_path, .. } = &self.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // What it ends with also reaches the request.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let target = format!("{base_path}{path}");
        let mut request = Request::get(if target.is_empty() { "/" } else { &target })
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("certeus/", env!("CARGO_PKG_VERSION")));
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
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
    Error::Status { url, status, detail: detail.unwrap_or_default() }
}
