//! A small HTTP client that knows whether a request can have been carried out.
//!
//! Owns one connection. Never repeats a request by itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Receipts, problems and pages of events are far smaller.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What became of a request.
#[derive(Debug)]
pub enum Exchange {
    /// Answered.
    Reply(Reply),
    /// The server cannot have received all of it, so it cannot have acted on it.
    NotSent,
    /// Sent whole, and no complete answer came.
    Lost,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The last part of a problem's type, or nothing.
    #[must_use]
    pub fn problem(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap_or_default().to_owned();
        kind.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// A request without its destination.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Headers beyond those of every request.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

/// Keeps one connection, as long as the server does.
#[derive(Debug)]
pub struct Client {
    connection: Option<(SocketAddr, TcpStream)>,
    reply_timeout: Duration,
}

impl Client {
    /// A client that waits so long for a reply.
    #[must_use]
    pub fn new(reply_timeout: Duration) -> Self {
        Self { connection: None, reply_timeout }
    }

    /// Whether there is a connection that may be used again.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Sends a request and waits for the answer.
    pub fn send(&mut self, to: SocketAddr, request: &Request<'_>) -> Exchange {
        let Ok(mut stream) = self.connect(to) else { return Exchange::NotSent };
        let mut head = format!("{} {} HTTP/1.1\r\nhost: localhost\r\n", request.method, request.path);
        for (name, value) in request.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", request.body.len());
        let bytes = [head.as_bytes(), request.body].concat();
        // Bytes that the kernel did not take cannot have arrived, and a request without its end is not acted on.
        if stream.write_all(&bytes).is_err() {
            return Exchange::NotSent;
        }
        match read_reply(&mut stream, Instant::now() + self.reply_timeout) {
            Ok(reply) => {
                if !reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                    self.connection = Some((to, stream));
                }
                Exchange::Reply(reply)
            }
            Err(_) => Exchange::Lost,
        }
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<TcpStream> {
        if let Some((address, stream)) = self.connection.take()
            && address == to
            && still_open(&stream)
        {
            return Ok(stream);
        }
        let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.reply_timeout))?;
        Ok(stream)
    }
}

/// One request on a connection of its own, which must be answered.
///
/// # Errors
/// When it is not.
pub fn request(to: SocketAddr, method: &str, path: &str) -> io::Result<Reply> {
    let mut client = Client::new(Duration::from_secs(30));
    let request = Request { method, path, headers: &[("connection", "close")], body: b"" };
    match client.send(to, &request) {
        Exchange::Reply(reply) => Ok(reply),
        Exchange::NotSent | Exchange::Lost => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Whether the server has not closed the connection while it was idle.
fn still_open(stream: &TcpStream) -> bool {
    let open = stream.set_nonblocking(true).is_ok()
        && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    open && stream.set_nonblocking(false).is_ok()
}

fn read_reply(stream: &mut TcpStream, deadline: Instant) -> io::Result<Reply> {
    let mut raw = Vec::new();
    let mut piece = [0_u8; 16 << 10];
    loop {
        if let Some(reply) = complete(&raw) {
            return Ok(reply);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || raw.len() > REPLY_BYTES_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => raw.extend_from_slice(&piece[..read]),
        }
    }
}

/// The reply, once all of it is there. Every reply of a pod tells its length.
fn complete(raw: &[u8]) -> Option<Reply> {
    let end = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&raw[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut reply = Reply { status, head, body: raw[end + 4..].to_vec() };
    let length: usize = reply.header("content-length")?.parse().ok()?;
    (reply.body.len() >= length).then(|| {
        reply.body.truncate(length);
        reply
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_reply_counts_only_when_it_is_whole() {
        let whole = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(complete(whole).unwrap().body, b"hello");
        for cut in 0..whole.len() {
            assert!(complete(&whole[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn a_closed_door_is_not_sent_and_a_silent_end_is_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let request = Request { method: "POST", path: "/", headers: &[], body: b"x" };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _asked = stream.read(&mut [0; 1024]).unwrap();
        });
        assert!(matches!(Client::new(CONNECT_TIMEOUT).send(address, &request), Exchange::Lost));
        server.join().unwrap();
        assert!(matches!(Client::new(CONNECT_TIMEOUT).send(address, &request), Exchange::NotSent));
    }
}
