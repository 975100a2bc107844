//! Speaks to the admin ports of pods: short requests, bounded in time and in size.
//!
//! Owns no connection. Who asks again soon keeps the one that is left over, an [`Idle`]: it costs a socket and no buffers, where
//! a pool of connections that are each driven by a task would hold some 40 KiB for every pod of every cluster.
//! Never follows a redirect, never repeats a request: callers ask again with their next round.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For connection, request and reply together, unless the caller has less time.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
/// A page of metrics is some tens of kilobytes.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a pod gave no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the pod has no address yet")]
    NoAddress,
    #[error("no reply within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("cannot reach the pod")]
    Connect(#[source] io::Error),
    #[error("the request failed")]
    Http(#[source] hyper::Error),
    #[error("the request cannot be formed")]
    Request(#[source] hyper::http::Error),
    #[error("the API key cannot be sent")]
    Key,
    #[error("the reply is longer than {BODY_BYTES_MAX} bytes")]
    Body,
    #[error("the reply is {0}")]
    Status(StatusCode),
}

/// What pods of a cluster ask their callers for. Held in memory only while the cluster exists, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(Arc<str>);

impl ApiKey {
    pub(crate) fn new(key: &str) -> Self {
        Self(key.into())
    }

    fn bearer(&self) -> Result<HeaderValue, Error> {
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", self.0)).map_err(|_unprintable| Error::Key)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// What a pod answered, whatever the status.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body, if the pod did what it was asked for.
    pub(crate) fn success(self) -> Result<Bytes, Error> {
        if self.status.is_success() { Ok(self.body) } else { Err(Error::Status(self.status)) }
    }
}

/// A connection between two requests.
#[derive(Debug)]
pub(crate) struct Idle(TcpStream);

impl Idle {
    /// Whether the pod has neither closed it nor sent what it was not asked for.
    fn is_usable(&self) -> bool {
        self.0.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The admin port of one pod.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    /// Sent as bearer token.
    pub(crate) api_key: Option<ApiKey>,
}

impl Admin {
    /// `GET path`, on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Result<Reply, Error> {
        self.request(Method::GET, path, None, TIMEOUT, &mut None).await
    }

    /// `POST path` without a body, on a connection of its own.
    pub(crate) async fn post(&self, path: &str) -> Result<Reply, Error> {
        self.request(Method::POST, path, None, TIMEOUT, &mut None).await
    }

    /// Any request; a `json` body is sent as such. Takes the connection that is `idle` if it can be used, and leaves one there
    /// if it can be used again.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        json: Option<Bytes>,
        timeout: Duration,
        idle: &mut Option<Idle>,
    ) -> Result<Reply, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.address.to_string());
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, key.bearer()?);
        }
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(json.unwrap_or_default())).map_err(Error::Request)?;
        let exchange = self.exchange(request, idle);
        tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(Error::Timeout(timeout)))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, idle: &mut Option<Idle>) -> Result<Reply, Error> {
        let stream = match idle.take().filter(Idle::is_usable) {
            Some(Idle(stream)) => stream,
            None => connect(self.address).await.map_err(Error::Connect)?,
        };
        let (mut sender, mut connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Error::Http)?;
        let mut exchange = pin!(async move {
            let response = sender.send_request(request).await.map_err(Error::Http)?;
            let is_last = is_last(&response);
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(cut)?;
            Ok((Reply { status, body: body.to_bytes() }, is_last))
        });
        let (reply, is_last) = tokio::select! {
            biased;
            ended = &mut exchange => ended?,
            // What it ended with is told to the exchange, unless that has its reply already.
            _ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                drop(connection);
                return exchange.await.map(|(reply, _)| reply);
            }
        };
        let parts = connection.into_parts();
        if !is_last && parts.read_buf.is_empty() {
            *idle = Some(Idle(parts.io.into_inner()));
        }
        Ok(reply)
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether nothing can be asked on this connection any more. A request that was refused may not have been read whole.
fn is_last<B>(response: &Response<B>) -> bool {
    !response.status().is_success()
        || response.version() != hyper::Version::HTTP_11
        || response.headers().get(CONNECTION).is_some_and(|value| value.as_bytes() == b"close")
}

fn cut(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast() {
        Ok(error) => Error::Http(*error),
        Err(other) => {
            debug_assert!(other.is::<LengthLimitError>());
            Error::Body
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage";

    async fn listen() -> (TcpListener, Admin) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, Admin { address, api_key: Some(ApiKey::new("hush")) })
    }

    async fn answer(stream: &mut TcpStream, bytes: &[u8]) {
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        let request = std::str::from_utf8(&request[..length]).unwrap();
        assert!(request.starts_with("GET /metrics HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nauthorization: Bearer hush\r\n"), "{request}");
        // A client that has seen enough closes.
        let _closed = stream.write_all(bytes).await;
    }

    /// What becomes of a request that is answered with these bytes.
    async fn reply(bytes: &[u8]) -> Result<Bytes, Error> {
        let (listener, admin) = listen().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, bytes).await;
        };
        tokio::join!(admin.get("/metrics"), server).0?.success()
    }

    #[tokio::test]
    async fn only_a_whole_and_successful_reply_counts() {
        assert_eq!(reply(PAGE).await.unwrap(), "page");
        let cut_off = reply(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npage").await;
        assert!(matches!(cut_off, Err(Error::Http(_))), "{cut_off:?}");
        let failed = reply(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\npage").await;
        assert!(matches!(failed, Err(Error::Status(StatusCode::SERVICE_UNAVAILABLE))), "{failed:?}");
        let mut long =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1).into_bytes();
        long.resize(long.len() + BODY_BYTES_MAX + 1, b'0');
        let long = reply(&long).await;
        assert!(matches!(long, Err(Error::Body)), "{long:?}");
        let silent = reply(b"").await;
        assert!(matches!(silent, Err(Error::Http(_))), "{silent:?}");
    }

    /// On how many connections three requests go, if each is answered so; `closes`: the server closes after each answer.
    async fn connections(bytes: &[u8], closes: bool) -> usize {
        let (listener, admin) = listen().await;
        let client = async {
            let mut idle = None;
            for _ in 0..3 {
                let get = admin.request(Method::GET, "/metrics", None, TIMEOUT, &mut idle);
                assert_eq!(get.await.unwrap().body, "page");
                // What the server does after its answer arrives.
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        let mut count = 0;
        let server = async {
            let mut answers = 0;
            while answers < 3 {
                let (mut stream, _) = listener.accept().await.unwrap();
                count += 1;
                while answers < 3 && (closes || stream.readable().await.is_ok()) {
                    if !closes && stream.peek(&mut [0]).await.unwrap() == 0 {
                        break;
                    }
                    answer(&mut stream, bytes).await;
                    answers += 1;
                    if closes {
                        break;
                    }
                }
            }
        };
        tokio::join!(client, server);
        count
    }

    #[tokio::test]
    async fn a_connection_is_used_again_unless_it_is_closed_or_may_not_be() {
        assert_eq!(connections(PAGE, false).await, 1);
        assert_eq!(connections(PAGE, true).await, 3, "the server closes");
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npage\r\n0\r\n\r\n";
        assert_eq!(connections(chunked, false).await, 1);
        let closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\npage";
        assert_eq!(connections(closing, false).await, 3, "the server says that it will close");
        let refused = b"HTTP/1.1 413 No\r\ncontent-length: 4\r\n\r\npage";
        assert_eq!(connections(refused, false).await, 3, "it may not have read the request");
        let more = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage?";
        assert_eq!(connections(more, false).await, 3, "it says more than it was asked for");
    }

    #[tokio::test]
    async fn a_pod_that_says_nothing_is_given_up() {
        let (_listener, admin) = listen().await;
        let short = Duration::from_millis(50);
        let reply = admin.request(Method::GET, "/metrics", None, short, &mut None).await;
        assert!(matches!(reply, Err(Error::Timeout(limit)) if limit == short), "{reply:?}");
    }
}
