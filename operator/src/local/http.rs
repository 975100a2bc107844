//! Speaks to a pod's admin port on this machine: one short request per connection, bounded in time and size.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For connection, request and reply together.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
/// A page of metrics is some tens of kilobytes.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a pod gave no usable reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no reply within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the request failed")]
    Http(#[source] hyper::Error),
    #[error("the request cannot be formed")]
    Request(#[source] hyper::http::Error),
    #[error("the reply is longer than {BODY_BYTES_MAX} bytes, or was cut off")]
    Body,
    #[error("the reply is {0}")]
    Status(StatusCode),
}

/// The admin port of a pod. Not `Debug`: it holds a secret.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    /// Sent as bearer token.
    pub(crate) api_key: Option<String>,
}

impl Admin {
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Error> {
        self.request(Method::GET, path).await
    }

    pub(crate) async fn post(&self, path: &str) -> Result<Bytes, Error> {
        self.request(Method::POST, path).await
    }

    async fn request(&self, method: Method, path: &str) -> Result<Bytes, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.address.to_string());
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Empty::new()).map_err(Error::Request)?;
        tokio::time::timeout(TIMEOUT, self.exchange(request)).await.unwrap_or(Err(Error::Timeout))
    }

    async fn exchange(&self, request: Request<Empty<Bytes>>) -> Result<Bytes, Error> {
        let stream = TcpStream::connect(self.address).await.map_err(Error::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Error::Http)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(Error::Http)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
            if !status.is_success() {
                return Err(Error::Status(status));
            }
            body.map(http_body_util::Collected::to_bytes).map_err(|error| match error.downcast() {
                Ok(error) => Error::Http(*error),
                Err(other) => {
                    debug_assert!(other.is::<LengthLimitError>());
                    Error::Body
                }
            })
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        // The exchange ends first, or fails together with the connection that drives it.
        tokio::select! {
            result = &mut exchange => result,
            driven = &mut connection => {
                driven.map_err(Error::Http)?;
                exchange.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of a request that is answered with these bytes.
    async fn reply(bytes: Vec<u8>) -> Result<Bytes, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = Admin { address: listener.local_addr().unwrap(), api_key: None };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /metrics HTTP/1.1\r\n"));
            // A client that has seen enough closes.
            let _closed = stream.write_all(&bytes).await;
        };
        tokio::join!(admin.get("/metrics"), server).0
    }

    #[tokio::test]
    async fn only_a_whole_and_successful_reply_counts() {
        let whole = reply(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage".to_vec()).await;
        assert_eq!(whole.unwrap(), "page");
        let cut_off = reply(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npage".to_vec()).await;
        assert!(matches!(cut_off, Err(Error::Http(_))), "{cut_off:?}");
        let failed = reply(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\npage".to_vec()).await;
        assert!(matches!(failed, Err(Error::Status(StatusCode::SERVICE_UNAVAILABLE))), "{failed:?}");
        let mut long =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1).into_bytes();
        long.resize(long.len() + BODY_BYTES_MAX + 1, b'0');
        let long = reply(long).await;
        assert!(matches!(long, Err(Error::Body)), "{long:?}");
        let silent = reply(Vec::new()).await;
        assert!(matches!(silent, Err(Error::Http(_))), "{silent:?}");
    }
}
