//! One connection to the ledger, with one request in flight.
//!
//! Owns the socket. Never repeats a request: it tells whether one was surely not written, and leaves the rest to the
//! caller. The body's memory is handed to the kernel as it is, without a copy in between.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::options::{Encoding, Endpoint};
use super::reply::{self, Reply};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a server in good order ever takes; after it the outcome counts as unknown.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Receipts and problems are far smaller.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Exchange {
    Reply(Reply),
    /// The connection had ended before the request was written.
    NotSent,
    /// The connection ended after the request was written, at least in part.
    Lost,
    TimedOut,
}

/// A client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    host: String,
    port: u16,
    uri: Uri,
    headers: HeaderMap,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes. It ends with the connection, and what ends it also reaches the request in flight.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// `authorization` is the value of that header.
    pub(crate) fn new(
        endpoint: &Endpoint,
        encoding: Encoding,
        authorization: Option<&HeaderValue>,
    ) -> Result<Self, hyper::http::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(&endpoint.authority)?);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("certeus/", env!("CARGO_PKG_VERSION"))),
        );
        match encoding {
            Encoding::None => None,
            Encoding::Gzip => headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            Encoding::Zstd => headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd")),
        };
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        Ok(Self {
            host: endpoint.host.clone(),
            port: endpoint.port,
            uri: format!("{}/v1/ledger/events", endpoint.base_path).parse::<Uri>()?,
            headers,
            connection: None,
        })
    }

    /// Connects, unless there is a usable connection.
    pub(crate) async fn connect(&mut self) -> io::Result<()> {
        if let Some(connection) = &mut self.connection {
            if connection.sender.ready().await.is_ok() {
                return Ok(());
            }
            self.connection = None;
        }
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port)))
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // The request in flight is told the same.
            let _told_elsewhere = connection.await;
        });
        self.connection = Some(Connection { sender, driver });
        Ok(())
    }

    /// Sends `count` events, under an idempotency key if there is one. A connection that must not be used again is closed.
    pub(crate) async fn send(&mut self, body: Bytes, count: usize, key: Option<&HeaderValue>) -> Exchange {
        let Some(mut connection) = self.connection.take() else { return Exchange::NotSent };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let content_type = if count == 1 { "application/json" } else { "application/x-ndjson" };
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(key) = key {
            request.headers_mut().insert("idempotency-key", key.clone());
        }

        let exchange = async {
            let response = match connection.sender.try_send_request(request).await {
                Ok(response) => response,
                Err(error) if error.message().is_some() => return (Exchange::NotSent, false),
                Err(_) => return (Exchange::Lost, false),
            };
            let keep = !closes(response.headers());
            (Exchange::Reply(read(response, count).await), keep)
        };
        let Ok((exchange, keep)) = timeout(REPLY_TIMEOUT, exchange).await else { return Exchange::TimedOut };
        if keep {
            self.connection = Some(connection);
        }
        exchange
    }
}

async fn read(response: Response<Incoming>, count: usize) -> Reply {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, REPLY_BYTES_MAX).collect().await.ok().map(|body| body.to_bytes());
    let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    reply::interpret(head.status.as_u16(), retry_after, body.as_deref(), count)
}

/// Whether the server asks for a new connection.
fn closes(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
    })
}
